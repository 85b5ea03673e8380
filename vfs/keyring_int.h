/*
** keyring_int.h: what the files of the ring share. For these alone:
**   keyring.c           the entries, who uses them, and their place in the line for checks
**   keyring_keys.c      what connections do with an entry's keys
**   keyring_ask.c       questions to the key service, and what an answer does to an entry
**   keyring_unlock.c    finds or fetches the keys of a header that a connection read
**   keyring_check.c     asks again about entries in use, when it is time
**   keyring_policies.c  reads the instances' policies anew
**
** An entry that is being asked for is busy: its header, facts and params then
** belong to the thread that asks, which holds no lock meanwhile. Everything else
** of an entry is read and changed under the ring's lock, but for the atomics that
** a transaction's begin looks at.
*/
#ifndef TDE_KEYRING_INT_H
#define TDE_KEYRING_INT_H

#include "epochs.h"
#include "keyring.h"
#include "lanes.h"

struct tde_keys {
  tde_keys *next, *prev; /* in its bucket */
  uint8_t uuid[TDE_UUID_BYTES];
  int refs;
  int held;           /* of them, by threads of the watch ... */
  uint64_t held_in;   /* ... of this process */
  int blind;          /* denials in a row that counted as no answer; see tde_keyring_check_blind */
  int busy;           /* a thread asks the key service for it */
  uint64_t busy_fork; /* ... of this process */
  uint64_t used_in;   /* the process that used it last; a forked child is another one */
  int unproved;       /* who opens it asks first: others wait for the outcome */
  int linked;         /* stands in its bucket */
  atomic_int live;
  atomic_int remote;           /* facts.remote */
  _Atomic int64_t cutoff, due; /* ms; see tde_keys_cut_off, tde_keys_due */
  tde_lease lease;
  tde_key_policy policy, next_policy; /* next: came while busy; check_ms 0: none did.
                                      ** While busy it changes under the lock, and by the
                                      ** one that asks alone */
  tde_key_params params;              /* of whoever asked first; own copies. as_...: how it was
                                      ** unlocked, in which way checks ask, too */
  tde_header header;                  /* last verified, or asked for; doc is a copy */
  tde_key_facts facts;                /* of that header */
  tde_header other;                   /* the other slot, whole; see tde_keyring_note_other */
  tde_status last;                    /* how the last check ended */
  tde_keys *idle_next, *idle_prev;    /* among those without users, the longest idle first */
  int idle;
  int64_t idle_since;        /* ms; when idle */
  int64_t late_due, late_at; /* the due_at that was found to be past, and when; keyring_check.c */
  tde_turn turn;             /* see tde_entry_stand */
  tde_line *line;            /* for the lanes, while it is not linked */
  tde_epochs epochs;
};

/* ---- keyring.c. Functions of an entry want the lock held, but for those that make and free one ---- */

void tde_ring_lock(void); /* the first call prepares for forks */
void tde_ring_unlock(void);
void tde_ring_wait(void); /* until an entry is not busy any more; the lock is held before and after */

/* Entries in use and idle, newest first. A short list would do for one
** database; thousands of tenants need the hash. */
#define TDE_RING_BUCKETS 4096
tde_keys *tde_ring_bucket(unsigned bucket);
tde_keys *tde_ring_of(const uint8_t uuid[TDE_UUID_BYTES]); /* the bucket of this UUID */

/* Wipes entries that nobody used for too long, and the longest unused of too many. */
void tde_ring_expire_idle(void);

/* An entry with one reference, not linked yet. NULL: no memory. */
tde_keys *tde_entry_new(const uint8_t *uuid, const tde_key_params *params,
                        const tde_key_policy *policy);
void tde_entry_free(tde_keys *k); /* of one that is not linked */
void tde_entry_link(tde_keys *k); /* others find it from here on */
void tde_entry_take(tde_keys *k); /* one more reference */
void tde_entry_drop(tde_keys *k); /* one less; k may be freed */

int tde_entry_is_busy(tde_keys *k);
void tde_entry_set_busy(tde_keys *k);
/* Its lane is free from here on: what its thread goes on to do for it (watch.h) may take long. */
void tde_entry_end_busy(tde_keys *k);
/* Are its checks made, and in time? Not without users; and in a forked child not before it is
** used there: what the parent had open would be asked for in every child. */
int tde_entry_is_attended(const tde_keys *k);
/* Whose key it is that a check asks for. */
const char *tde_entry_asked_key(const tde_keys *k);
/* Its place in the line for checks is kept in step: to be called after any change of the lease, the
** policy, the users, the header or its key, and of who is busy with it. */
void tde_entry_stand(tde_keys *k);
/* Keeps the atomics, the counts and the place in line in step with the lease. */
void tde_entry_publish(tde_keys *k);
/* An entry is in use again, or in a forked child, where no thread of the parent's is. */
void tde_entry_note_use(const tde_keys *k);
/* A policy that was read; of an entry that is not busy. */
void tde_entry_apply_policy(tde_keys *k, const tde_key_policy *policy);

int tde_facts_same_protector(const tde_key_facts *a, const tde_key_facts *b);
/* Replaces the header that the entry goes by; the document is copied. A way of asking was
** about the protector of then. 0: no memory, and nothing has changed. */
int tde_entry_note_header(tde_keys *k, const tde_header *h, const tde_key_facts *facts);
/* In use, by a file that has gone on to an epoch which this header does not know: not
** the same file any more. */
int tde_entry_is_ahead(const tde_keys *k, const tde_header *h, const tde_key_facts *facts);
/* Do the entry's own keys, those of every epoch that the facts name, verify this header? stale: those
** of stale epochs count, too (epochs.h). */
int tde_entry_verifies(const tde_keys *k, int stale, const tde_header *h,
                       const tde_key_facts *facts);
/* The failure of an entry that has no DEK. */
tde_class tde_entry_not_live(const tde_keys *k, tde_status *st);

/* ---- keyring_ask.c. The entry is busy, and the lock is not held ---- */

/* What a question brings: the keys of some epochs. To be cleared. */
typedef struct tde_fetched {
  int n;
  tde_epoch_keys epochs[TDE_EPOCHS_MAX];
  int64_t at; /* an answer that another database got then; 0: it is this one's */
} tde_fetched;
void tde_fetched_clear(tde_fetched *f);
/* Puts them among the entry's; the lock is held. A failure may leave a part of them there. */
tde_class tde_fetched_install(tde_keys *k, tde_fetched *got, tde_status *st);
/* Do the keys of all epochs that the header names, those of `got` and of s, verify it? */
tde_class tde_fetched_verify(const tde_fetched *got, const tde_epochs *s, const tde_header *h,
                             const tde_key_facts *facts, tde_status *st);

/* What the header says of its keys. TDE_NOT_AUTHENTIC: its document is malformed. */
tde_class tde_ask_describe(const tde_key_source *source, const tde_header *h, tde_key_facts *facts,
                           tde_status *st);
/* Fetches the DEKs of these epochs; the header that names them is the caller's to verify. It may be
** anybody's, and name hosts that do not answer: however many epochs there are, they have the time of
** one. */
tde_class tde_ask_epochs(const tde_key_source *source, const tde_key_params *params,
                         const tde_header *h, const uint32_t *epochs, int n, tde_fetched *out,
                         tde_status *st);
/* Asks for the DEKs of all epochs that the entry's header names, which verify it. */
tde_class tde_ask_all(const tde_keys *k, const tde_key_source *source,
                      const tde_key_params *params, tde_fetched *out, tde_status *st);
/* The same, as the entry was unlocked. Where the key service did not answer another database a
** moment ago, it is not waited for again. */
tde_class tde_ask_absent(tde_keys *k, const tde_key_source *source, tde_fetched *got,
                         tde_status *st);
/* Asks whether the protector still unwraps the live DEK. fresh: whatever was heard a moment ago.
** caller: whose way of asking counts; NULL: as the entry was unlocked. */
tde_class tde_ask_live(tde_keys *k, const tde_key_source *source, int fresh,
                       const tde_key_params *caller, tde_fetched *got, tde_status *st);
/* How a call asks is its caller's, not the entry's. */
void tde_ask_as(tde_key_params *params, const tde_key_params *caller);
/* The caller had the key: checks ask as it did. */
void tde_ask_keep_way(tde_keys *k, const tde_key_params *caller);
/* Tells the audit sink what happened; st: NULL if it went well. what: NULL: nothing. */
void tde_ask_tell(const tde_keys *k, const tde_key_source *source, const char *what,
                  const tde_status *st);
void tde_ask_end(tde_keys *k); /* without an answer: the entry is not busy any more */

/* The outcome of the entry's first question, or of one that was asked before it was used again:
** applied, and the entry is not busy any more. Returns c, or why the keys could not be kept. */
tde_class tde_answer_first(tde_keys *k, tde_class c, tde_fetched *got, tde_status *st);
/* Any other answer. forced: a revalidation. */
tde_lease_act tde_answer(tde_keys *k, const tde_key_source *source, tde_class c, int forced,
                         tde_fetched *got, tde_status *st);
/* Time passed without an answer: pass is tde_lease_tick or tde_lease_pass. The entry stays busy. */
tde_lease_act tde_answer_none(tde_keys *k, const tde_key_source *source,
                              tde_lease_act (*pass)(tde_lease *, int64_t, const tde_key_policy *),
                              tde_access *after);

#endif
