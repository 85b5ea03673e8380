/*
** keyring.c: the process-wide registry of live DEKs; see keyring.h.
**
** An entry that is being asked for is busy: its header, facts and params then
** belong to the thread that asks, which holds no lock meanwhile. Everything else
** of an entry is read and changed under ring_lock, but for the two atomics that
** a transaction's begin looks at.
*/
#include "keyring.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "epochs.h"
#include "lanes.h"
#include "openfiles.h"
#include "recent.h"
#include "watch.h"

struct tde_keys {
  struct tde_keys *next, *prev;
  uint8_t uuid[TDE_UUID_BYTES];
  int refs;
  int held;           /* of them, by threads of the watch ... */
  uint64_t held_in;   /* ... of this process */
  int blind;          /* denials in a row that counted as no answer; see tde_keyring_check_blind */
  int busy;           /* a thread asks the key service for it */
  uint64_t busy_fork; /* ... of this process */
  uint64_t used_in;   /* the process that used it last; a forked child is another one */
  int unproved;       /* who opens it asks first: others wait for the outcome */
  int linked;
  atomic_int live;
  atomic_int remote; /* facts.remote */
  _Atomic int64_t cutoff, due; /* ms; see tde_keys_cut_off, tde_keys_due */
  tde_lease lease;
  tde_key_policy policy, next_policy; /* next: came while busy; check_ms 0: none did.
                                      ** While busy it changes under the lock, and by the
                                      ** one that asks alone */
  tde_key_params params;              /* of whoever asked first; own copies. as_...: how it was
                                      ** unlocked, in which way checks ask, too */
  tde_header header;                  /* last verified, or asked for; doc is a copy */
  tde_key_facts facts;                /* of that header */
  tde_header other;                   /* the other slot, whole; see note_other */
  tde_status last;                    /* how the last check ended */
  tde_keys *idle_next, *idle_prev;    /* among those without users, the longest idle first */
  int idle;
  int64_t idle_since; /* ms; when idle */
  int64_t late_due, late_at; /* the due_at that was found to be past, and when; see is_kept */
  tde_turn turn;      /* see stand */
  tde_line *line;     /* for the lanes, while it is not linked */
  tde_epochs epochs;
};

/* Entries in use and idle, newest first. A short list would do for one
** database; thousands of tenants need the hash. */
#define BUCKETS 4096
static tde_keys *buckets[BUCKETS];
/* Live entries without users. */
static tde_keys *idle_first, *idle_last;
static int idle_count;
static int live_count;
static pthread_mutex_t ring_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ring_changed = PTHREAD_COND_INITIALIZER;
static pthread_once_t ring_once = PTHREAD_ONCE_INIT;

static void before_fork(void) {
  pthread_mutex_lock(&ring_lock);
}
static void after_fork(void) {
  pthread_mutex_unlock(&ring_lock);
}
static void in_child(void) {
  /* Waiters of the parent do not exist here. */
  pthread_cond_init(&ring_changed, NULL);
  pthread_mutex_unlock(&ring_lock);
}
static void ring_init(void) {
  /* Locks that are taken below this one: their fork handlers come first. */
  tde_secret_free(tde_secret_alloc(1));
  (void)tde_watch_threads();
  (void)pthread_atfork(before_fork, after_fork, in_child);
}

static unsigned bucket_of(const uint8_t *uuid) {
  return (uuid[0] | (unsigned)uuid[1] << 8) % BUCKETS;
}

static void link_entry(tde_keys *k) {
  unsigned b = bucket_of(k->uuid);
  k->prev = NULL;
  k->next = buckets[b];
  if (k->next) k->next->prev = k;
  buckets[b] = k;
  k->linked = 1;
  tde_lanes_bring(k->line);
  k->line = NULL;
}

static void unlink_entry(tde_keys *k) {
  if (!k->linked) return;
  if (k->prev) {
    k->prev->next = k->next;
  } else {
    buckets[bucket_of(k->uuid)] = k->next;
  }
  if (k->next) k->next->prev = k->prev;
  k->linked = 0;
  tde_lanes_step_out(&k->turn);
  k->line = tde_lanes_take_away();
}

static void idle_enter(tde_keys *k) {
  if (k->idle) return;
  k->idle = 1;
  k->idle_since = tde_now_ms();
  k->idle_next = NULL;
  k->idle_prev = idle_last;
  if (idle_last) {
    idle_last->idle_next = k;
  } else {
    idle_first = k;
  }
  idle_last = k;
  idle_count++;
}

static void idle_leave(tde_keys *k) {
  if (!k->idle) return;
  k->idle = 0;
  if (k->idle_prev) {
    k->idle_prev->idle_next = k->idle_next;
  } else {
    idle_first = k->idle_next;
  }
  if (k->idle_next) {
    k->idle_next->idle_prev = k->idle_prev;
  } else {
    idle_last = k->idle_prev;
  }
  idle_count--;
}

static tde_class not_installed(tde_class c, tde_status *st) {
  if (c == TDE_NOMEM) return tde_fail(st, c, NULL, "no memory for the database's key");
  return tde_fail(st, c, "close all connections to the database, and open it again",
                  "the file was replaced while it was open: its keys are not those in use here");
}

static char *copy_doc(const tde_header *h) {
  char *doc = malloc(h->ndoc + 1);

  if (!doc) return NULL;
  memcpy(doc, h->doc, h->ndoc);
  doc[h->ndoc] = 0;
  return doc;
}

static void forget_other(tde_keys *k) {
  if (k->other.doc == k->header.doc) k->other.doc = NULL;
  tde_header_clear(&k->other);
}

/* Most often both slots have one document, and so has the entry. Without memory nothing is
** remembered. */
static void note_other(tde_keys *k, const tde_header *h) {
  char *doc = k->header.doc;

  forget_other(k);
  if (!doc || h->ndoc != k->header.ndoc || memcmp(h->doc, doc, h->ndoc) != 0) {
    doc = copy_doc(h);
    if (!doc) return;
  }
  k->other = *h;
  k->other.doc = doc;
}

static void free_entry(tde_keys *k) {
  tde_epochs_free(&k->epochs);
  forget_other(k);
  tde_header_clear(&k->header);
  tde_key_params_clear(&k->params);
  free(k->line);
  free(k);
}

/* ---- state; the lock is held ---- */

static int is_busy(tde_keys *k) {
  /* Its thread is one of the parent: nobody will finish it here. */
  if (k->busy && k->busy_fork != tde_fork_generation()) k->busy = 0;
  return k->busy;
}

/* Are its checks made, and in time? Not without users; and in a forked child not before it is
** used there: what the parent had open would be asked for in every child. */
static int is_attended(const tde_keys *k, uint64_t process) {
  return k->refs > 0 && !k->unproved && k->used_in == process;
}

/* Whose key it is that a check asks for. */
static const char *asked_key(const tde_keys *k) {
  return k->params.as_key ? k->params.as_key : k->facts.key_id;
}

static int64_t later(int64_t a, int64_t b) {
  return a > b ? a : b;
}

/* Who was denied once is to hear soon whether that is so. One whose check is not due is not passed
** over either. */
static tde_turn_times turn_times(const tde_keys *k) {
  const tde_lease *l = &k->lease;
  int64_t pass = tde_lease_unasked(l, 0, &k->policy);
  tde_turn_times t = {l->due_at, l->denials > 0 && tde_class_is_denial(k->last.code), pass, 0};

  if (pass == INT64_MAX) {
    t.pass = tde_lease_unasked(l, 1, &k->policy);
    t.if_stuck = 1;
  }
  t.pass = later(t.pass, t.ask);
  return t;
}

/* Its place in the line for checks is kept in step: to be called after any change of the lease, the
** policy, the users, the header or its key, and of who is busy with it. */
static void stand(tde_keys *k) {
  tde_turn_times t;

  if (!k->linked || !is_attended(k, tde_fork_generation()) || is_busy(k) || !k->header.doc) {
    tde_lanes_step_out(&k->turn);
    return;
  }
  t = turn_times(k);
  tde_lanes_stand(&k->turn, k->facts.remote ? asked_key(k) : NULL, &t);
}

/* Keeps the atomics, the counts and the place in line in step with the lease. */
static void publish(tde_keys *k) {
  int now_live = tde_access_is_live(k->lease.access), was = atomic_load(&k->live);

  atomic_store(&k->cutoff, now_live ? INT64_MAX : tde_lease_cutoff(&k->lease, &k->policy));
  atomic_store(&k->due, k->lease.due_at);
  atomic_store(&k->live, now_live);
  if (k->header.doc && k->refs > 0) tde_watch_note(k->lease.due_at, k->facts.remote);
  live_count += now_live - was;
  stand(k);
}

/* An entry is in use again, or in a forked child, where no thread of the parent's is. */
static void note_use(const tde_keys *k) {
  tde_watch_note(k->lease.due_at, k->facts.remote);
}

/* What the parent's threads hold nobody lets go of in a forked child. */
static void forget_parent(tde_keys *k) {
  uint64_t process = tde_fork_generation();

  if (k->held_in == process) return;
  k->refs -= k->held;
  k->held = 0;
  k->held_in = process;
}

static void take_ref(tde_keys *k) {
  forget_parent(k);
  k->refs++;
  k->used_in = tde_fork_generation();
  idle_leave(k);
  stand(k);
}

/* Without users only a live entry is of use. */
static void drop_ref(tde_keys *k) {
  forget_parent(k);
  if (--k->refs > 0) return;
  stand(k);
  if (k->linked && atomic_load(&k->live)) {
    idle_enter(k);
    return;
  }
  if (atomic_load(&k->live)) live_count--;
  unlink_entry(k);
  free_entry(k);
}

/* Wipes entries that nobody used for too long, and the longest unused of too many. */
static void expire_idle(void) {
  int64_t now = idle_first ? tde_now_ms() : 0;

  while (idle_first &&
         (idle_count > TDE_IDLE_DEKS || now - idle_first->idle_since >= TDE_IDLE_SECONDS * 1000)) {
    tde_keys *k = idle_first;
    idle_leave(k);
    unlink_entry(k);
    live_count--;
    free_entry(k);
  }
}

void tde_keyring_release(tde_keys *keys) {
  if (!keys) return;
  pthread_mutex_lock(&ring_lock);
  drop_ref(keys);
  expire_idle();
  pthread_mutex_unlock(&ring_lock);
}

void tde_keyring_discard(tde_keys *keys) {
  if (!keys) return;
  pthread_mutex_lock(&ring_lock);
  if (keys->refs == 1) unlink_entry(keys); /* so that it does not become an idle one */
  drop_ref(keys);
  pthread_mutex_unlock(&ring_lock);
}

void tde_keyring_known_slots(const uint8_t *const slot[2], int known[2]) {
  pthread_once(&ring_once, ring_init);
  pthread_mutex_lock(&ring_lock);
  for (int i = 0; i < 2; i++) {
    const tde_keys *k = buckets[bucket_of(tde_slot_uuid(slot[i]))];
    for (known[i] = 0; k && !known[i]; k = k->next) {
      known[i] = (k->header.doc && tde_slot_equals(slot[i], &k->header)) ||
                 (k->other.doc && tde_slot_equals(slot[i], &k->other));
    }
  }
  pthread_mutex_unlock(&ring_lock);
}

void tde_keyring_note_other(tde_keys *keys, const tde_header *other) {
  pthread_mutex_lock(&ring_lock);
  note_other(keys, other);
  pthread_mutex_unlock(&ring_lock);
}

int tde_keyring_count(void) {
  int n;
  pthread_mutex_lock(&ring_lock);
  n = live_count;
  pthread_mutex_unlock(&ring_lock);
  return n;
}

static void set_busy(tde_keys *k) {
  k->busy = 1;
  k->busy_fork = tde_fork_generation();
  stand(k);
}

static void apply_policy(tde_keys *k, const tde_key_policy *policy) {
  int64_t due = k->lease.checked_at + policy->check_ms;
  int other = memcmp(&k->policy, policy, sizeof(*policy)) != 0;

  k->policy = *policy;
  if (tde_access_is_live(k->lease.access) && due < k->lease.due_at) {
    k->lease.due_at = due;
    publish(k);
  } else if (other) {
    stand(k);
  }
}

/* Its lane is free from here on: what its thread goes on to do for it (watch.h) may take long. */
static void end_busy(tde_keys *k) {
  tde_lanes_leave(&k->turn);
  k->busy = k->unproved = 0;
  if (k->next_policy.check_ms) apply_policy(k, &k->next_policy);
  k->next_policy.check_ms = 0;
  stand(k);
  pthread_cond_broadcast(&ring_changed);
}

static int same_protector(const tde_key_facts *a, const tde_key_facts *b) {
  return strcmp(a->key_id, b->key_id) == 0 && strcmp(a->key_version, b->key_version) == 0;
}

/* Replaces the header that the entry goes by; the document is copied. A way of asking was
** about the protector of then. */
static int note_header(tde_keys *k, const tde_header *h, const tde_key_facts *facts) {
  tde_header before = k->header;
  char *doc;

  if (memcmp(k->header.sha, h->sha, TDE_HASH_BYTES) == 0 && k->header.doc) return 1;
  doc = copy_doc(h);
  if (!doc) return 0;
  forget_other(k);
  k->header = *h;
  k->header.doc = doc;
  if (before.doc) note_other(k, &before); /* a new header is written to the other slot */
  if (before.doc && !same_protector(&k->facts, facts)) tde_key_params_forget_way(&k->params);
  free(before.doc);
  k->facts = *facts;
  atomic_store(&k->remote, facts->remote);
  tde_epochs_outdate(&k->epochs, h->epoch, facts);
  stand(k);
  return 1;
}

/* ---- asking the key service; no lock is held ---- */

/* What a fetch brings. */
typedef struct fetched {
  int n;
  tde_epoch_keys epochs[TDE_EPOCHS_MAX];
  int64_t at; /* an answer that another database got then; 0: it is this one's */
} fetched;

static void fetched_clear(fetched *f) {
  for (int i = 0; i < f->n; i++) tde_epoch_wipe(&f->epochs[i]);
  f->n = 0;
}

static tde_class fetch_epoch(const tde_key_source *source, const tde_key_params *params,
                             const tde_header *h, uint32_t epoch, fetched *out, tde_status *st) {
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  tde_class c;

  if (!dek) {
    return tde_fail(st, TDE_NOMEM, "close other databases or give the process more memory",
                    "no memory for the database's key");
  }
  c = source->unwrap(source->ctx, params, h->uuid, h->doc, h->ndoc, epoch, dek, st);
  if (c == TDE_OK) {
    c = tde_epoch_derive(h->uuid, epoch, dek, &out->epochs[out->n]);
    if (c) {
      (void)tde_fail(st, c, NULL, "the keys of epoch %u could not be derived", epoch);
    } else {
      out->n++;
    }
  }
  tde_secret_free(dek);
  return c;
}

/* Do the keys of all epochs that the header names, those of `got` and of s, verify it? */
static tde_class check_header(const tde_header *h, const tde_key_facts *facts, const tde_epochs *s,
                              const fetched *got, tde_status *st) {
  uint8_t key[TDE_KEY_BYTES];
  tde_class c;

  if (h->epoch != facts->epoch) {
    return tde_fail(st, TDE_NOT_AUTHENTIC, "restore the file from a backup",
                    "the header is under epoch %u, its key document under %u", h->epoch,
                    facts->epoch);
  }
  c = tde_epochs_header_key(s, 0, got->epochs, got->n, facts, key);
  if (c == TDE_OK) c = tde_header_check_mac(h, key);
  tde_wipe(key, sizeof(key));
  if (c == TDE_WRONG_KEY) {
    return tde_fail(st, TDE_NOT_AUTHENTIC,
                    "restore the file from a backup; the key itself answered",
                    "key %s unwraps a DEK that does not verify this header", facts->key_id);
  }
  if (c) return tde_fail(st, c, NULL, "the header's authentication could not be computed");
  return TDE_OK;
}

/* The same for a header that the entry's own keys are to verify. The lock is held. */
static int verifies(const tde_keys *k, int stale, const tde_header *h, const tde_key_facts *facts) {
  uint8_t key[TDE_KEY_BYTES];
  tde_class c = tde_epochs_header_key(&k->epochs, stale, NULL, 0, facts, key);

  if (c == TDE_OK) c = h->epoch == facts->epoch ? tde_header_check_mac(h, key) : TDE_WRONG_KEY;
  tde_wipe(key, sizeof(key));
  return c == TDE_OK;
}

/* What the header says of its keys. */
static tde_class describe(const tde_key_source *source, const tde_header *h, tde_key_facts *facts,
                          tde_status *st) {
  tde_class c = source->describe(source->ctx, h->doc, h->ndoc, facts, st);

  if (c != TDE_CORRUPT) return c;
  if (st) st->code = TDE_NOT_AUTHENTIC;
  return TDE_NOT_AUTHENTIC;
}

/* Fetches the DEKs of these epochs; the header that names them is the caller's to verify. It may be
** anybody's, and name hosts that do not answer: however many epochs there are, they have the time of
** one. */
static tde_class fetch(const tde_key_source *source, const tde_key_params *params,
                       const tde_header *h, const uint32_t *epochs, int n, fetched *out,
                       tde_status *st) {
  tde_key_params shared = *params; /* borrowed */
  int64_t until = 0;
  tde_class c = TDE_OK;

  shared.until = &until;
  out->n = 0;
  for (int i = 0; c == TDE_OK && i < n; i++) {
    c = fetch_epoch(source, &shared, h, epochs[i], out, st);
  }
  if (c) fetched_clear(out);
  return c;
}

/* Fetches the DEKs of all epochs that an entry's header names, which verify it. */
static tde_class fetch_all(const tde_keys *k, const tde_key_source *source,
                           const tde_key_params *params, fetched *out, tde_status *st) {
  static const tde_epochs none;
  tde_class c = fetch(source, params, &k->header, k->facts.epochs, k->facts.nepochs, out, st);

  if (c == TDE_OK) c = check_header(&k->header, &k->facts, &none, out, st);
  if (c) fetched_clear(out);
  return c;
}

/* A request for the entry's key ended with this class. */
static void heard(const tde_keys *k, const tde_key_params *as, tde_class c) {
  if (!k->facts.remote) return;
  pthread_mutex_lock(&ring_lock);
  tde_lanes_heard(as->as_key ? as->as_key : k->facts.key_id, c);
  pthread_mutex_unlock(&ring_lock);
}

static void tell(const tde_key_source *source, const tde_key_params *params, const char *what,
                 const uint8_t *uuid, const tde_key_facts *facts, const tde_status *st) {
  tde_key_event e = {what, uuid, facts->key_id, facts->key_version, st};
  if (what) source->event(source->ctx, params, &e);
}

/* ---- answers ---- */

static const char *act_name(tde_access before, tde_access after) {
  if (before == after) return NULL;
  switch (after) {
    case TDE_ACCESS_LIVE:
      return before == TDE_ACCESS_GRACE ? "outage-over" : "healed";
    case TDE_ACCESS_GRACE:
      return "outage";
    case TDE_ACCESS_WAITING:
      return "grace-over";
    case TDE_ACCESS_LOST:
      return "key-lost";
    case TDE_ACCESS_CLOSED:
      return "heal-window-over";
  }
  return NULL;
}

/* The answer was about a DEK that has gone since it was asked for (tde_keyring_overdue). */
static tde_class gone(tde_status *st) {
  return tde_fail(st, TDE_BUSY, "try again",
                  "the key was not answered for in time: it is asked for anew");
}

/* Applies the answer c to a busy entry, and ends its being busy. */
static tde_lease_act apply(tde_keys *k, const tde_key_source *source, tde_class c, int forced,
                           fetched *got, tde_status *st) {
  tde_access before;
  tde_lease_act act;
  const char *what;
  int64_t now = tde_now_ms();

  pthread_mutex_lock(&ring_lock);
  before = k->lease.access;
  if (c == TDE_OK && got->n == 0 && !tde_access_is_live(before)) c = gone(st);
  /* An interval goes from when the key service said so, or did not. */
  act = tde_lease_answer(&k->lease, c, forced, got->at && !c ? got->at : now, &k->policy);
  if (got->at && c) tde_lease_heard(&k->lease, got->at, &k->policy);
  for (int i = 0; act == TDE_LEASE_HEAL && i < got->n; i++) {
    tde_class c2 = tde_epochs_install(&k->epochs, &k->facts, &got->epochs[i]);
    if (c2) { /* not healed after all */
      tde_epochs_wipe(&k->epochs);
      c = not_installed(c2, st);
      tde_lease_refused(&k->lease, c2, tde_now_ms(), &k->policy);
      act = TDE_LEASE_KEEP;
    }
  }
  if (act == TDE_LEASE_WIPE) tde_epochs_wipe(&k->epochs);
  if (c) {
    k->last = *st;
    k->last.code = c;
  } else {
    tde_status_clear(&k->last);
  }
  what = act_name(before, k->lease.access);
  publish(k);
  pthread_mutex_unlock(&ring_lock);
  if (act == TDE_LEASE_WIPE) tde_openfiles_wipe(k, k->params.path);
  tell(source, &k->params, what, k->uuid, &k->facts, c ? st : NULL);
  pthread_mutex_lock(&ring_lock);
  end_busy(k);
  pthread_mutex_unlock(&ring_lock);
  return act;
}

/* ---- finding ---- */

/* Is the entry about this file? A copy of it that lies elsewhere has the same UUID and
** DEK, and may get another protector and another DEK in the same epoch. Who comes through
** another instance has not shown that its keys let it in. */
static int is_of(const tde_keys *k, const tde_header *h, const tde_key_params *params) {
  return memcmp(k->uuid, h->uuid, TDE_UUID_BYTES) == 0 &&
         tde_same_text(k->params.path, params->path) &&
         tde_same_text(k->params.instance, params->instance);
}

/* Nobody looked after it, and its check is overdue: its key is asked before it is used. And who
** asks in a way of its own would have the next check ask in another. */
static int usable(const tde_keys *k, const tde_key_params *params, int forced) {
  if (!atomic_load(&k->live)) return 0;
  if (is_attended(k, tde_fork_generation())) return 1;
  return tde_now_ms() < k->lease.due_at && !k->unproved &&
         (forced || !params->as_key || tde_key_params_same_way(&k->params, params));
}

/* A live entry that verified exactly this header before: nothing to parse and
** nothing to compute. With a reference; or NULL. */
static tde_keys *find_known(const tde_header *h, const tde_key_params *params) {
  for (tde_keys *k = buckets[bucket_of(h->uuid)]; k; k = k->next) {
    if (is_of(k, h, params) && usable(k, params, 0) &&
        memcmp(k->header.sha, h->sha, TDE_HASH_BYTES) == 0) {
      take_ref(k);
      return k;
    }
  }
  return NULL;
}

/* In use, by a file that has gone on to an epoch which this header does not know: not
** the same file any more. */
static int is_ahead(const tde_keys *k, const tde_header *h, const tde_key_facts *facts) {
  return k->refs > 0 && tde_epochs_ahead(&k->epochs, h->epoch, facts);
}

/* Read before the header that the entry goes by was written, or of an older copy: see
** tde_keyring_ahead. */
static int is_older(const tde_keys *k, const tde_header *h) {
  return k->header.doc && h->sequence < k->header.sequence;
}

/* A live entry of this protector whose DEK verifies this header, with a
** reference; or NULL. */
static tde_keys *find_live(const tde_header *h, const tde_key_facts *facts,
                           const tde_key_params *params, int forced) {
  uint32_t lacking[TDE_EPOCHS_MAX];

  for (tde_keys *k = buckets[bucket_of(h->uuid)]; k; k = k->next) {
    if (!is_of(k, h, params) || !usable(k, params, forced) || is_ahead(k, h, facts)) continue;
    if (!same_protector(&k->facts, facts)) continue;
    if (tde_epochs_missing(&k->epochs, facts, lacking) || !verifies(k, 0, h, facts)) continue;
    if (!is_busy(k) && !(k->refs > 0 && is_older(k, h)) && !note_header(k, h, facts)) continue;
    take_ref(k);
    return k;
  }
  return NULL;
}

/* A live entry of this protector whose DEK verifies this header, but whose check is overdue: not
** usable. NULL: there is none. */
static tde_keys *find_overdue(const tde_header *h, const tde_key_facts *facts,
                              const tde_key_params *params) {
  uint32_t lacking[TDE_EPOCHS_MAX];

  for (tde_keys *k = buckets[bucket_of(h->uuid)]; k; k = k->next) {
    if (is_of(k, h, params) && atomic_load(&k->live) && !usable(k, params, 0) &&
        same_protector(&k->facts, facts) && !is_ahead(k, h, facts) &&
        (!params->as_key || tde_key_params_same_way(&k->params, params)) &&
        tde_epochs_missing(&k->epochs, facts, lacking) == 0 && verifies(k, 0, h, facts)) {
      return k;
    }
  }
  return NULL;
}

/* An entry without its DEK that was asked for in the same way; a revalidation brings back
** any. */
static tde_keys *find_absent(const tde_header *h, const tde_key_facts *facts,
                             const tde_key_params *params, int forced) {
  for (tde_keys *k = buckets[bucket_of(h->uuid)]; k; k = k->next) {
    if (is_of(k, h, params) && !atomic_load(&k->live) && same_protector(&k->facts, facts) &&
        (forced || tde_key_params_same_way(&k->params, params))) {
      return k;
    }
  }
  return NULL;
}

static tde_keys *new_entry(const uint8_t *uuid, const tde_key_params *params,
                           const tde_key_policy *policy) {
  tde_keys *k = calloc(1, sizeof(*k));

  if (!k) return NULL;
  k->line = tde_lanes_new_line();
  if (!k->line || !tde_key_params_copy(&k->params, params)) {
    free(k->line);
    free(k);
    return NULL;
  }
  memcpy(k->uuid, uuid, TDE_UUID_BYTES);
  k->refs = 1;
  k->used_in = k->held_in = tde_fork_generation();
  k->policy = *policy;
  k->lease.access = TDE_ACCESS_WAITING;
  k->lease.due_at = INT64_MAX;
  atomic_store(&k->cutoff, INT64_MAX);
  atomic_store(&k->due, INT64_MAX);
  return k;
}

/* ---- unlocking ---- */

/* The failure of an entry that has no DEK. */
static tde_class not_live(const tde_keys *k, tde_status *st) {
  tde_class c = k->last.code ? k->last.code : TDE_UNREACHABLE;

  if (st) {
    *st = k->last;
    st->code = c;
    if (k->lease.access == TDE_ACCESS_CLOSED) {
      (void)snprintf(st->remedy, sizeof(st->remedy),
                     "when the key is back, run PRAGMA tde_revalidate");
    }
  }
  return c;
}

/* A key that needs no network is asked for again by whoever begins a
** transaction, at most this often. */
#define LOCAL_RETRY_MS 1000

/* What unlock does with an entry that is there, or new. PLAN_AGAIN: it got its DEK from somebody
** else, for a header which may be another one: it is looked for as any live entry. */
typedef enum plan { PLAN_ASK, PLAN_AGAIN, PLAN_FAIL } plan;

/* What needs a network is asked for by a thread, if there can be one. */
static int may_ask_again(const tde_keys *k, int64_t now) {
  if (k->facts.remote) return now >= k->lease.due_at && !tde_watch_kick();
  return now >= k->lease.due_at || now - k->lease.checked_at >= LOCAL_RETRY_MS;
}

/* The lock is held, and k has our reference. */
static plan plan_absent(tde_keys *k, const tde_header *h, const tde_key_facts *facts, int forced) {
  int first = k->lease.checked_at == 0;

  if (is_busy(k) && (first || forced)) {
    while (is_busy(k)) pthread_cond_wait(&ring_changed, &ring_lock);
    if (!atomic_load(&k->live) && !forced) return PLAN_FAIL; /* the outcome waited for */
  }
  if (atomic_load(&k->live)) return PLAN_AGAIN;
  if (is_busy(k)) return PLAN_FAIL;
  if (memcmp(k->header.sha, h->sha, TDE_HASH_BYTES) != 0) {
    /* Somebody changed the keys, or revalidated. */
    if (!note_header(k, h, facts)) return PLAN_FAIL;
    tde_lease_reopen(&k->lease, tde_now_ms());
    publish(k);
  }
  /* Without an answer to the first question: who asked it is in the process that this one was
  ** forked from. */
  if (!forced && k->lease.checked_at) {
    int64_t now = tde_now_ms();
    (void)tde_lease_tick(&k->lease, now, &k->policy);
    publish(k);
    if (k->lease.access == TDE_ACCESS_CLOSED || !may_ask_again(k, now)) return PLAN_FAIL;
  }
  set_busy(k);
  return PLAN_ASK;
}

/* The outcome of the first fetch of a busy entry. */
static tde_class settle_first(tde_keys *k, tde_class c, fetched *got, tde_status *st) {
  pthread_mutex_lock(&ring_lock);
  for (int i = 0; c == TDE_OK && i < got->n; i++) {
    c = tde_epochs_install(&k->epochs, &k->facts, &got->epochs[i]);
    if (c) (void)not_installed(c, st);
  }
  if (c == TDE_OK) {
    tde_lease_begin(&k->lease, tde_now_ms(), &k->policy);
    tde_status_clear(&k->last);
  } else {
    tde_epochs_wipe(&k->epochs);
    tde_lease_refused(&k->lease, c, tde_now_ms(), &k->policy);
    k->last = *st;
    k->last.code = c;
  }
  publish(k);
  end_busy(k);
  pthread_mutex_unlock(&ring_lock);
  return c;
}

/* How a call asks is its caller's, not the entry's; a check (NULL) asks as the entry was
** unlocked. */
static void ask_as(tde_key_params *params, const tde_key_params *caller) {
  if (!caller) return;
  params->as_key = caller->as_key;
  params->as_identity = caller->as_identity;
  params->as_federated = caller->as_federated;
}

/* The caller of a busy entry had the key: checks ask as it did. */
static void keep_way(tde_keys *k, const tde_key_params *caller) {
  tde_key_params way = {0};

  if (tde_key_params_same_way(&k->params, caller)) return;
  if (!tde_key_params_copy_way(&way, caller)) tde_key_params_forget_way(&way);
  pthread_mutex_lock(&ring_lock); /* somebody may be copying them */
  tde_key_params_forget_way(&k->params);
  k->params.as_key = way.as_key;
  k->params.as_identity = way.as_identity;
  k->params.as_federated = way.as_federated;
  pthread_mutex_unlock(&ring_lock);
}

/* Asks for a busy entry's DEKs, and applies the answer. */
static tde_class ask_all(tde_keys *k, const tde_key_source *source, int forced,
                         const tde_key_params *caller, tde_status *st) {
  fetched got = {0};
  int first = k->lease.checked_at == 0;
  tde_key_params params = k->params; /* borrowed: the entry is busy */
  tde_class c;

  tde_status_clear(st);
  ask_as(&params, caller);
  params.insist = forced;
  c = fetch_all(k, source, &params, &got, st);
  heard(k, &params, c);
  if (c) st->code = c;
  if (c == TDE_OK) keep_way(k, caller);
  if (first) {
    tell(source, &k->params, "unwrap", k->uuid, &k->facts, c ? st : NULL);
    c = settle_first(k, c, &got, st);
  } else {
    if (forced) tell(source, &k->params, "revalidate", k->uuid, &k->facts, c ? st : NULL);
    (void)apply(k, source, c, forced, &got, st);
  }
  fetched_clear(&got);
  return c;
}

/* Failures that say nothing of the key: there is nothing to wait for. */
static int keeps_entry(tde_class c) {
  return c != TDE_NOMEM && c != TDE_CRYPTO && c != TDE_RANDOM && c != TDE_INTERNAL;
}

/* The lock is held on entry and on return. *out NULL and TDE_OK: look again. */
static tde_class unlock_absent(const tde_key_source *source, const tde_key_params *params,
                               const tde_key_policy *policy, const tde_header *h, int forced,
                               const tde_key_facts *facts, tde_keys **out, tde_status *st) {
  tde_keys *k = find_absent(h, facts, params, forced);
  plan p = PLAN_ASK;
  tde_class c = TDE_OK;

  if (k) {
    take_ref(k);
    *(is_busy(k) ? &k->next_policy : &k->policy) = *policy;
    stand(k);
    p = plan_absent(k, h, facts, forced);
  } else {
    k = new_entry(h->uuid, params, policy);
    if (k && !note_header(k, h, facts)) {
      free_entry(k);
      k = NULL;
    }
    if (!k) return tde_fail(st, TDE_NOMEM, NULL, "no memory for the database's key");
    set_busy(k);
    link_entry(k);
  }
  *out = p == PLAN_AGAIN ? NULL : k;
  if (p == PLAN_AGAIN) drop_ref(k);
  if (p == PLAN_FAIL) c = not_live(k, st);
  if (p != PLAN_ASK) return c;
  pthread_mutex_unlock(&ring_lock);
  c = ask_all(k, source, forced, params, st);
  pthread_mutex_lock(&ring_lock);
  if (c == TDE_OK && !atomic_load(&k->live)) c = not_live(k, st);
  if (c && !keeps_entry(c)) {
    drop_ref(k);
    *out = NULL;
  }
  return c;
}

static tde_class ask_live(tde_keys *k, const tde_key_source *source, int fresh,
                          const tde_key_params *caller, fetched *got, tde_status *st);

/* A revalidation of a live entry that is not busy: its protector is asked at once. The lock is
** held on entry and on return. */
static tde_class ask_live_now(tde_keys *k, const tde_key_source *source,
                              const tde_key_params *caller, tde_status *st) {
  fetched got = {0};
  tde_class c;
  int counts;

  set_busy(k);
  pthread_mutex_unlock(&ring_lock);
  tde_status_clear(st);
  c = ask_live(k, source, 1, caller, &got, st);
  if (c == TDE_OK) keep_way(k, caller);
  tell(source, &k->params, "revalidate", k->uuid, &k->facts, c ? st : NULL);
  /* That a key which somebody named does not fit says nothing of the one in use. */
  counts = c == TDE_OK || tde_key_params_same_way(&k->params, caller);
  if (counts) (void)apply(k, source, c, 0, &got, st);
  fetched_clear(&got);
  pthread_mutex_lock(&ring_lock);
  if (!counts) end_busy(k);
  return c;
}

/* An overdue entry is asked about before it is used. Nobody waits for a second denial where no
** transaction is under way; an outage has its grace, as at any check. The lock is held on entry
** and on return. */
static tde_class prove(tde_keys *k, const tde_key_source *source, const tde_key_policy *policy,
                       const tde_header *h, const tde_key_facts *facts, tde_status *st) {
  fetched got = {0};
  tde_class c;

  /* Without memory the next check takes the header. */
  if (k->refs == 0 || !is_older(k, h)) (void)note_header(k, h, facts);
  take_ref(k);
  k->unproved = 1;
  set_busy(k);
  k->policy = *policy;
  pthread_mutex_unlock(&ring_lock);
  c = ask_live(k, source, 0, NULL, &got, st);
  tell(source, &k->params, "unwrap", k->uuid, &k->facts, c ? st : NULL);
  if (tde_class_is_denial(c)) {
    (void)settle_first(k, c, &got, st);
    tde_openfiles_wipe(k, k->params.path);
  } else {
    (void)apply(k, source, c, 0, &got, st);
  }
  fetched_clear(&got);
  pthread_mutex_lock(&ring_lock);
  return atomic_load(&k->live) ? TDE_OK : not_live(k, st);
}

/* A live entry, asked about where nobody did in time; NULL: there is none. The lock is held. */
static tde_keys *take_live(const tde_key_source *source, const tde_key_params *params,
                           const tde_key_policy *policy, const tde_header *h, int forced,
                           const tde_key_facts *facts, tde_class *c, tde_status *st) {
  for (;;) {
    tde_keys *k = find_live(h, facts, params, forced);
    if (k || forced) return k;
    k = find_overdue(h, facts, params);
    if (!k) return NULL;
    if (!is_busy(k)) {
      *c = prove(k, source, policy, h, facts, st);
      return k;
    }
    pthread_cond_wait(&ring_changed, &ring_lock);
  }
}

/* *out NULL: there is none, or it was lost while we waited for who asked about it. The lock is held
** on entry and on return. */
static tde_class unlock_live(const tde_key_source *source, const tde_key_params *params,
                             const tde_key_policy *policy, const tde_header *h, int forced,
                             const tde_key_facts *facts, tde_keys **out, tde_status *st) {
  tde_class c = TDE_OK;
  tde_keys *k = take_live(source, params, policy, h, forced, facts, &c, st);

  *out = k;
  if (k) note_use(k);
  if (!k || !forced) return c;
  while (is_busy(k)) pthread_cond_wait(&ring_changed, &ring_lock);
  if (atomic_load(&k->live)) return ask_live_now(k, source, params, st);
  *out = NULL;
  drop_ref(k);
  return TDE_OK;
}

tde_class tde_keyring_unlock(const tde_key_source *source, const tde_key_params *params,
                             const tde_header *header, int forced, tde_key_facts *facts,
                             tde_keys **out, tde_status *st) {
  tde_key_policy policy;
  tde_status local;
  tde_class c = TDE_OK;

  if (!st) st = &local;
  pthread_once(&ring_once, ring_init);
  pthread_mutex_lock(&ring_lock);
  expire_idle();
  *out = forced ? NULL : find_known(header, params);
  if (*out) {
    *facts = (*out)->facts;
    note_use(*out);
  }
  pthread_mutex_unlock(&ring_lock);
  if (*out) return TDE_OK;

  tde_status_clear(st);
  c = describe(source, header, facts, st);
  if (c) return c;
  source->policy(source->ctx, params, &policy);
  pthread_mutex_lock(&ring_lock);
  do {
    c = unlock_live(source, params, &policy, header, forced, facts, out, st);
    if (!*out) c = unlock_absent(source, params, &policy, header, forced, facts, out, st);
  } while (!*out && c == TDE_OK);
  pthread_mutex_unlock(&ring_lock);
  return c;
}

tde_class tde_keyring_adopt(const tde_key_source *source, const tde_key_params *params,
                            const uint8_t uuid[TDE_UUID_BYTES], uint32_t epoch, const uint8_t *dek,
                            tde_keys **out, tde_status *st) {
  tde_key_policy policy;
  tde_epoch_keys e;
  tde_keys *k;
  tde_class c;

  *out = NULL;
  pthread_once(&ring_once, ring_init);
  source->policy(source->ctx, params, &policy);
  k = new_entry(uuid, params, &policy);
  if (!k) return tde_fail(st, TDE_NOMEM, NULL, "no memory for the database's key");
  tde_key_params_forget_way(&k->params); /* it is under the key that it was made with */
  c = tde_epoch_derive(uuid, epoch, dek, &e);
  if (c == TDE_OK) c = tde_epochs_install(&k->epochs, &k->facts, &e);
  if (c) {
    tde_epoch_wipe(&e);
    free_entry(k);
    return tde_fail(st, c, NULL, "the new database's keys could not be derived");
  }
  pthread_mutex_lock(&ring_lock);
  tde_lease_begin(&k->lease, tde_now_ms(), &policy);
  link_entry(k);
  publish(k);
  pthread_mutex_unlock(&ring_lock);
  *out = k;
  return TDE_OK;
}

/* ---- another header of the same database ---- */

/* Stale epochs' keys that verify the header after all are this database's. */
static void confirm_epochs(tde_keys *k, const tde_header *h, const tde_key_facts *facts) {
  if (!verifies(k, 1, h, facts)) return;
  for (int i = 0; i < facts->nepochs; i++) tde_epochs_any(&k->epochs, facts->epochs[i])->stale = 0;
}

/* Takes a header that the entry's keys verify. The lock is held. */
static tde_class take_header(tde_keys *k, const tde_header *h, const tde_key_facts *facts,
                             int proved, tde_status *st) {
  int taken;

  /* Busy: the next check takes it. */
  if (is_busy(k) || (!proved && is_older(k, h))) return TDE_OK;
  if (!proved && k->header.doc && !same_protector(&k->facts, facts)) {
    /* Nobody asked this protector yet: soon. */
    k->lease.due_at = tde_now_ms();
  }
  taken = note_header(k, h, facts);
  publish(k);
  return taken ? TDE_OK : tde_nomem(st);
}

tde_class tde_keyring_follow(tde_keys *keys, const tde_key_source *source,
                             const tde_key_params *params, const tde_header *header, int proved,
                             tde_key_facts *facts, tde_status *st) {
  uint32_t lacking[TDE_EPOCHS_MAX];
  fetched got = {0};
  tde_class c;
  int n, known;

  pthread_mutex_lock(&ring_lock);
  known = atomic_load(&keys->live) && memcmp(keys->header.sha, header->sha, TDE_HASH_BYTES) == 0;
  if (known) *facts = keys->facts;
  pthread_mutex_unlock(&ring_lock);
  if (known) return TDE_OK;
  if (memcmp(keys->uuid, header->uuid, TDE_UUID_BYTES) != 0) {
    return tde_fail(st, TDE_NOT_AUTHENTIC, NULL, "the header is another database's");
  }
  c = describe(source, header, facts, st);
  if (c) return c;
  pthread_mutex_lock(&ring_lock);
  confirm_epochs(keys, header, facts);
  n = tde_epochs_missing(&keys->epochs, facts, lacking);
  pthread_mutex_unlock(&ring_lock);
  if (n) c = fetch(source, params, header, lacking, n, &got, st);
  pthread_mutex_lock(&ring_lock);
  if (c == TDE_OK && !atomic_load(&keys->live)) c = not_live(keys, st);
  if (c == TDE_OK) c = check_header(header, facts, &keys->epochs, &got, st);
  for (int i = 0; c == TDE_OK && i < got.n; i++) {
    c = tde_epochs_install(&keys->epochs, &keys->facts, &got.epochs[i]);
    if (c) (void)not_installed(c, st);
  }
  if (c == TDE_OK) c = take_header(keys, header, facts, proved, st);
  pthread_mutex_unlock(&ring_lock);
  fetched_clear(&got);
  return c;
}

uint64_t tde_keyring_ahead(const tde_keys *keys, const tde_header *h) {
  uint64_t at;

  pthread_mutex_lock(&ring_lock);
  at = is_older(keys, h) ? keys->header.sequence : 0;
  pthread_mutex_unlock(&ring_lock);
  return at;
}

tde_class tde_keyring_go_back(tde_keys *keys, const tde_header *header, uint64_t from,
                              const tde_key_facts *facts, tde_status *st) {
  tde_class c = TDE_OK;

  pthread_mutex_lock(&ring_lock);
  /* Gone on meanwhile: then the file has a newer one again. */
  if (keys->header.doc && keys->header.sequence == from && !is_busy(keys)) {
    if (!same_protector(&keys->facts, facts)) keys->lease.due_at = tde_now_ms();
    c = note_header(keys, header, facts)
            ? TDE_OK
            : tde_fail(st, TDE_NOMEM, NULL, "no memory for the database's key");
    publish(keys);
  }
  pthread_mutex_unlock(&ring_lock);
  return c;
}

tde_class tde_keys_add_epoch(tde_keys *keys, uint32_t epoch, const uint8_t *dek, int pending) {
  tde_epoch_keys e, *left;
  tde_class c = tde_epoch_derive(keys->uuid, epoch, dek, &e);

  if (c) return c;
  pthread_mutex_lock(&ring_lock);
  left = tde_epochs_any(&keys->epochs, epoch);
  /* Of an attempt whose header was not written. */
  if (left && !tde_facts_name_epoch(&keys->facts, epoch)) left->stale = 1;
  c = atomic_load(&keys->live) ? tde_epochs_install(&keys->epochs, &keys->facts, &e)
                               : not_live(keys, NULL);
  if (c == TDE_OK) tde_epochs_any(&keys->epochs, epoch)->pending = pending;
  pthread_mutex_unlock(&ring_lock);
  tde_epoch_wipe(&e);
  return c;
}

void tde_keys_abandon_epochs(tde_keys *keys, const tde_key_facts *facts) {
  if (!keys) return;
  pthread_mutex_lock(&ring_lock);
  tde_epochs_abandon(&keys->epochs, facts);
  pthread_mutex_unlock(&ring_lock);
}

/* ---- using the keys ---- */

const atomic_uint *tde_keys_replaced(const tde_keys *keys) {
  return &keys->epochs.replaced;
}

int tde_keys_live(const tde_keys *keys) {
  return atomic_load_explicit(&((tde_keys *)keys)->live, memory_order_acquire);
}

int tde_keys_cut_off(const tde_keys *keys) {
  int64_t at = atomic_load(&((tde_keys *)keys)->cutoff);
  return at != INT64_MAX && tde_now_ms() >= at;
}

int tde_keys_remote(const tde_keys *keys) {
  return atomic_load_explicit(&((tde_keys *)keys)->remote, memory_order_relaxed);
}

int64_t tde_keys_due(const tde_keys *keys) {
  return atomic_load_explicit(&((tde_keys *)keys)->due, memory_order_relaxed);
}

int tde_keys_has(const tde_keys *keys, uint32_t epoch) {
  int has;

  if (!keys) return 0;
  pthread_mutex_lock(&ring_lock);
  has = tde_epochs_find(&keys->epochs, epoch) != NULL;
  pthread_mutex_unlock(&ring_lock);
  return has;
}

/* The epoch's keys, or why there are none. The lock is held. */
static tde_class keys_of(const tde_keys *k, uint32_t epoch, const tde_epoch_keys **out) {
  *out = k ? tde_epochs_find(&k->epochs, epoch) : NULL;
  if (!*out) return TDE_WRONG_KEY;
  return (*out)->dek ? TDE_OK : not_live(k, NULL);
}

tde_class tde_keys_aead(tde_keys *keys, uint32_t epoch, int role, tde_aead **out) {
  const tde_epoch_keys *e;
  tde_class c;

  pthread_mutex_lock(&ring_lock);
  c = keys_of(keys, epoch, &e);
  if (c == TDE_OK) c = tde_aead_new(e->role_key[role - 1], e->nonces[role - 1], out, NULL);
  if (c == TDE_OK && role == TDE_ROLE_MAIN && e->derived) tde_aead_tell(*out, e->derived);
  pthread_mutex_unlock(&ring_lock);
  return c;
}

void tde_keys_note_derived(tde_keys *keys, uint32_t epoch, unsigned seen, const tde_aead *aead) {
  const tde_derived *d = tde_aead_derived(aead);
  tde_epoch_keys *e;

  if (!d->valid) return;
  pthread_mutex_lock(&ring_lock);
  e = tde_epochs_any(&keys->epochs, epoch);
  if (e && e->dek && !e->stale && seen == atomic_load(&keys->epochs.replaced)) {
    if (!e->derived) e->derived = tde_secret_alloc(sizeof(*d));
    if (e->derived) *e->derived = *d; /* without memory it is derived again */
  }
  pthread_mutex_unlock(&ring_lock);
}

tde_class tde_keys_mac_key(const tde_keys *keys, uint32_t epoch, uint8_t out[TDE_KEY_BYTES]) {
  const tde_epoch_keys *e;
  tde_class c;

  pthread_mutex_lock(&ring_lock);
  c = keys_of(keys, epoch, &e);
  if (c == TDE_OK) memcpy(out, e->mac_key, TDE_KEY_BYTES);
  pthread_mutex_unlock(&ring_lock);
  return c;
}

int tde_keyring_verifies(tde_keys *keys, const tde_key_source *source, const tde_header *header) {
  tde_key_facts *facts = malloc(sizeof(*facts));
  int good = facts && source->describe(source->ctx, header->doc, header->ndoc, facts, NULL) == TDE_OK;

  pthread_mutex_lock(&ring_lock);
  good = good && memcmp(keys->uuid, header->uuid, TDE_UUID_BYTES) == 0 &&
         verifies(keys, 0, header, facts);
  pthread_mutex_unlock(&ring_lock);
  free(facts);
  return good;
}

tde_class tde_keys_slot_build(const tde_keys *keys, const tde_key_source *source,
                              const tde_header *h, uint8_t *slot) {
  tde_key_facts *facts = malloc(sizeof(*facts));
  uint8_t key[TDE_KEY_BYTES];
  tde_class c;

  if (!facts) return TDE_NOMEM;
  c = source->describe(source->ctx, h->doc, h->ndoc, facts, NULL);
  pthread_mutex_lock(&ring_lock);
  if (c == TDE_OK && !atomic_load(&keys->live)) c = not_live(keys, NULL);
  if (c == TDE_OK) c = tde_epochs_header_key(&keys->epochs, 0, NULL, 0, facts, key);
  pthread_mutex_unlock(&ring_lock);
  free(facts);
  if (c == TDE_OK) c = tde_slot_build(h, key, slot);
  tde_wipe(key, sizeof(key));
  return c;
}

tde_class tde_keys_dek(const tde_keys *keys, uint32_t epoch, uint8_t *out) {
  const tde_epoch_keys *e;
  tde_class c;

  pthread_mutex_lock(&ring_lock);
  c = keys_of(keys, epoch, &e);
  if (c == TDE_OK) memcpy(out, e->dek, TDE_KEY_BYTES);
  pthread_mutex_unlock(&ring_lock);
  return c;
}

/* What the ring's clock is behind of Unix time, in milliseconds. It is looked up anew where the
** machine's time was set: else one moment would be told as this second or the next, as the two
** clocks happen to be read. The lock is held. */
static int64_t behind_unix(void) {
  static int64_t behind;
  struct timespec t;
  int64_t now;

  clock_gettime(CLOCK_REALTIME, &t);
  now = (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000 - tde_now_ms();
  if (now - behind > 500 || behind - now > 500) behind = now;
  return behind;
}

/* A moment of the ring's clock as Unix time. */
static int64_t unix_of(int64_t ms, int64_t behind) {
  if (ms == 0 || ms == INT64_MAX) return 0;
  return (ms + behind) / 1000;
}

void tde_keys_report(const tde_keys *keys, tde_key_report *out) {
  const tde_lease *l = &keys->lease;
  int64_t behind;

  memset(out, 0, sizeof(*out));
  pthread_mutex_lock(&ring_lock);
  behind = behind_unix();
  out->access = l->access;
  out->name = tde_lease_name(l);
  /* Not one of the parent's threads, in a forked child. */
  out->checking = keys->busy && keys->busy_fork == tde_fork_generation();
  out->since = unix_of(l->since, behind);
  out->checked_at = unix_of(l->checked_at, behind);
  out->next_check = unix_of(l->due_at, behind);
  if (l->access == TDE_ACCESS_GRACE) {
    out->until = unix_of(l->since + keys->policy.grace_ms, behind);
  } else if (l->access == TDE_ACCESS_LOST) {
    out->until = unix_of(l->since + keys->policy.heal_ms, behind);
  }
  out->last = keys->last;
  pthread_mutex_unlock(&ring_lock);
}

/* ---- checks ---- */

tde_keys *tde_keyring_due(int64_t now, int64_t *next_due, int *ask) {
  tde_turn *t;
  tde_keys *k = NULL;

  pthread_once(&ring_once, ring_init);
  pthread_mutex_lock(&ring_lock);
  expire_idle();
  t = tde_lanes_first(now, ask);
  if (t) {
    k = (tde_keys *)((char *)t - offsetof(tde_keys, turn));
    if (*ask) tde_lanes_enter(t, now);
    set_busy(k);
    take_ref(k);
    k->held++;
  }
  *next_due = tde_lanes_next(now);
  pthread_mutex_unlock(&ring_lock);
  return k;
}

/* While the machine sleeps nobody can ask: that time does not count. */
static int64_t awake_ms(void) {
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t last_done; /* by awake_ms: a check, or a passing over */

void tde_keyring_done(tde_keys *k) {
  pthread_mutex_lock(&ring_lock);
  last_done = awake_ms();
  k->held--;
  drop_ref(k);
  expire_idle();
  pthread_mutex_unlock(&ring_lock);
}

void tde_keyring_step_aside(tde_keys *k) {
  pthread_mutex_lock(&ring_lock);
  tde_lanes_leave(&k->turn);
  pthread_mutex_unlock(&ring_lock);
}

int tde_keyring_step_back(tde_keys *k) {
  int back;

  pthread_mutex_lock(&ring_lock);
  back = tde_lanes_return(&k->turn, k->facts.remote ? asked_key(k) : NULL, tde_now_ms());
  if (!back) end_busy(k);
  pthread_mutex_unlock(&ring_lock);
  return back;
}

/* An outage that another database met this short a time ago is not waited for again. */
#define OUTAGE_SHARED_MS 900

/* Names the protector together with whoever asks it: another identity, or application in
** another tenant, may be let in where this one is not. False: what is heard is no answer of that
** protector, or not for sure. */
static int recent_key(const tde_keys *k, uint8_t key[TDE_HASH_BYTES]) {
  char text[2 * TDE_KEY_ID_MAX + TDE_PATH_MAX];
  int n = snprintf(text, sizeof(text), "%s\n%s\n%s\n%s\n%s", k->facts.key_id, k->facts.key_version,
                   k->facts.identity, k->facts.federated_client_id,
                   k->params.instance ? k->params.instance : "");
  return k->facts.alone && n > 0 && n < (int)sizeof(text) &&
         tde_sha256(text, (size_t)n, key) == TDE_OK;
}

static int64_t recent_get(const uint8_t key[TDE_HASH_BYTES], int64_t max_age, tde_status *st) {
  int64_t found;

  pthread_mutex_lock(&ring_lock);
  found = tde_recent_get(key, tde_now_ms(), max_age, st);
  pthread_mutex_unlock(&ring_lock);
  return found;
}

static void recent_put(const uint8_t key[TDE_HASH_BYTES], tde_class c, const tde_status *st) {
  pthread_mutex_lock(&ring_lock);
  tde_recent_put(key, tde_now_ms(), c, st);
  pthread_mutex_unlock(&ring_lock);
}

/* Is the DEK that came back the one in use? */
static tde_class compare(tde_keys *k, const fetched *got, tde_status *st) {
  const tde_epoch_keys *e;
  int same = 0, is_gone;

  pthread_mutex_lock(&ring_lock);
  e = tde_epochs_find(&k->epochs, k->header.epoch);
  if (e && e->dek && got->n == 1) same = tde_equal(e->dek, got->epochs[0].dek, TDE_KEY_BYTES);
  is_gone = !atomic_load(&k->live);
  pthread_mutex_unlock(&ring_lock);
  if (same) return TDE_OK;
  if (is_gone) return gone(st);
  return tde_fail(st, TDE_WRONG_KEY, "use the key that wrapped this database's DEK",
                  "the protector unwraps something else than this database's DEK");
}

/* Asks about a live DEK. fresh: whatever was heard a moment ago. */
static tde_class ask_live(tde_keys *k, const tde_key_source *source, int fresh,
                          const tde_key_params *caller, fetched *got, tde_status *st) {
  uint8_t key[TDE_HASH_BYTES];
  tde_key_params params = k->params; /* borrowed: the entry is busy */
  tde_class c;
  int named;

  ask_as(&params, caller);
  params.insist = fresh;
  named = !params.as_key && recent_key(k, key);
  got->at = named && !fresh ? recent_get(key, k->policy.check_ms / 2, st) : 0;
  if (got->at) return st->code;
  c = fetch(source, &params, &k->header, &k->header.epoch, 1, got, st);
  heard(k, &params, c);
  if (c == TDE_OK) c = compare(k, got, st);
  fetched_clear(got);
  if (named) recent_put(key, c, st);
  return c;
}

/* Asks for a DEK that is away. Where the key service did not answer another
** database a moment ago, it is not waited for again. */
static tde_class ask_absent(tde_keys *k, const tde_key_source *source, fetched *got,
                            tde_status *st) {
  uint8_t key[TDE_HASH_BYTES];
  int named = !k->params.as_key && recent_key(k, key);
  tde_class c;

  if (named && recent_get(key, OUTAGE_SHARED_MS, st) && st->code) return st->code;
  c = fetch_all(k, source, &k->params, got, st);
  heard(k, &k->params, c);
  if (c && named) recent_put(key, c, st);
  return c;
}

/* Fetches the epochs of a header that the live entry does not know yet. Its key may be another one
** than the one that the entry was asked for with a way of its own. */
static tde_class fetch_lacking(tde_keys *k, const tde_key_source *source, const tde_header *newer,
                               const tde_key_facts *facts, fetched *got) {
  static const tde_key_params header_says;
  uint32_t lacking[TDE_EPOCHS_MAX];
  tde_key_params params = k->params; /* borrowed: the entry is busy */
  int n = 0;

  if (!same_protector(&k->facts, facts)) ask_as(&params, &header_says);
  pthread_mutex_lock(&ring_lock);
  if (atomic_load(&k->live)) n = tde_epochs_missing(&k->epochs, facts, lacking);
  pthread_mutex_unlock(&ring_lock);
  return fetch(source, &params, newer, lacking, n, got, NULL);
}

/* Puts the header in force, unless it would have the entry forget a DEK that is in use: the slot in
** force may be damaged, so that an older one is the newest whole. Who uses the file tells that from
** an older copy (tde_keyring_go_back). The lock is held. */
static void follow_header(tde_keys *k, const tde_header *newer, const tde_key_facts *facts,
                          fetched *got) {
  tde_class c;

  if (!atomic_load(&k->live)) {
    if (note_header(k, newer, facts)) tde_lease_reopen(&k->lease, tde_now_ms());
    return;
  }
  if (is_ahead(k, newer, facts)) return;
  c = check_header(newer, facts, &k->epochs, got, NULL);
  for (int i = 0; c == TDE_OK && i < got->n; i++) {
    c = tde_epochs_install(&k->epochs, &k->facts, &got->epochs[i]);
  }
  if (c == TDE_OK) (void)note_header(k, newer, facts);
}

/* Takes the header that is on disk now, if it verifies: the old protector may be gone, by right.
** Else the entry is judged by the one it has: nobody keeps a lost key by a header of theirs. The
** entry is busy, so is nobody else's. */
static void follow_disk(tde_keys *k, const tde_key_source *source, const tde_header *newer) {
  tde_key_facts *facts;
  fetched got = {0};

  if (memcmp(newer->sha, k->header.sha, TDE_HASH_BYTES) == 0) return;
  if (memcmp(newer->uuid, k->uuid, TDE_UUID_BYTES) != 0) return;
  facts = malloc(sizeof(*facts));
  if (!facts) return;
  if (source->describe(source->ctx, newer->doc, newer->ndoc, facts, NULL) == TDE_OK &&
      fetch_lacking(k, source, newer, facts, &got) == TDE_OK) {
    pthread_mutex_lock(&ring_lock);
    follow_header(k, newer, facts, &got);
    pthread_mutex_unlock(&ring_lock);
  }
  fetched_clear(&got);
  free(facts);
}

/* Time passed for a busy entry, without an answer. */
static tde_lease_act pass_time(tde_keys *k, const tde_key_source *source,
                               tde_lease_act (*pass)(tde_lease *, int64_t, const tde_key_policy *),
                               tde_access *after) {
  tde_access before;
  tde_lease_act act;

  pthread_mutex_lock(&ring_lock);
  before = k->lease.access;
  act = pass(&k->lease, tde_now_ms(), &k->policy);
  if (act == TDE_LEASE_WIPE) tde_epochs_wipe(&k->epochs);
  *after = k->lease.access;
  publish(k);
  pthread_mutex_unlock(&ring_lock);
  if (act == TDE_LEASE_WIPE) tde_openfiles_wipe(k, k->params.path);
  tell(source, &k->params, act_name(before, *after), k->uuid, &k->facts, &k->last);
  return act;
}

static void stop_asking(tde_keys *k) {
  pthread_mutex_lock(&ring_lock);
  end_busy(k);
  pthread_mutex_unlock(&ring_lock);
}

tde_lease_act tde_keyring_pass(tde_keys *k, const tde_key_source *source) {
  tde_access after;
  tde_lease_act act;

  pthread_mutex_lock(&ring_lock);
  if (k->lease.access == TDE_ACCESS_LIVE) {
    tde_status_clear(&k->last);
    memcpy(k->last.key_id, k->facts.key_id, sizeof(k->last.key_id));
    (void)tde_fail(&k->last, TDE_UNREACHABLE, NULL,
                   "the key service has kept a request waiting: this key is asked for in its turn");
  }
  pthread_mutex_unlock(&ring_lock);
  act = pass_time(k, source, tde_lease_pass, &after);
  stop_asking(k);
  return act;
}

/* Has its check been overdue for too long, because it hangs itself, or all do? (In a long line that
** moves it is waited for.) The lock is held. */
static int is_kept(tde_keys *k) {
  int64_t now = awake_ms();

  if (k->late_due != k->lease.due_at) {
    k->late_due = k->lease.due_at;
    k->late_at = now;
  }
  return now - k->late_at >= TDE_OVERDUE_MS && (is_busy(k) || now - last_done >= TDE_OVERDUE_MS);
}

void tde_keyring_overdue(tde_keys *k) {
  tde_lease *l = &k->lease;
  tde_lease_act act = TDE_LEASE_KEEP;
  int64_t now = tde_now_ms(), from;

  pthread_mutex_lock(&ring_lock);
  from = l->access == TDE_ACCESS_GRACE ? l->since : l->due_at;
  if (tde_access_is_live(l->access) && now >= l->due_at && is_kept(k) &&
      now - from >= k->policy.grace_ms) {
    act = tde_lease_pass(l, now, &k->policy);
    tde_status_clear(&k->last);
    memcpy(k->last.key_id, k->facts.key_id, sizeof(k->last.key_id));
    (void)tde_fail(&k->last, TDE_UNREACHABLE,
                   "see whether a file system hangs, or start the process anew",
                   "the key could not be asked for in time: what does that is kept waiting");
    if (act == TDE_LEASE_WIPE) tde_epochs_wipe(&k->epochs);
    publish(k);
  }
  pthread_mutex_unlock(&ring_lock);
  if (act == TDE_LEASE_WIPE) tde_openfiles_wipe(k, k->params.path);
}

/* Was the key denied that a header of before names? */
static tde_class doubt(tde_keys *k, int blind, tde_class c, tde_status *st) {
  if (!blind) k->blind = 0;
  if (!blind || !tde_class_is_denial(c) || k->blind >= TDE_BLIND_CHECKS) return c;
  k->blind++;
  return tde_fail(
      st, TDE_NOMEM, "raise the limit of open files or of memory, or close other files",
      "a key was denied, and whether the database still goes by it could not be looked up: "
      "the process lacks descriptors or memory, or a file system hangs");
}

static int was_denied(const tde_keys *k) {
  int was;

  pthread_mutex_lock(&ring_lock);
  was = k->lease.denials > 0;
  pthread_mutex_unlock(&ring_lock);
  return was;
}

static tde_lease_act check(tde_keys *k, const tde_key_source *source, const tde_header *newer,
                           int blind) {
  tde_access after;
  tde_key_policy policy;
  tde_lease_act act;
  fetched got = {0};
  tde_status st;
  tde_class c;

  source->policy(source->ctx, &k->params, &policy);
  pthread_mutex_lock(&ring_lock); /* a report may be looking at it */
  k->policy = policy;
  pthread_mutex_unlock(&ring_lock);
  if (newer) follow_disk(k, source, newer);
  tde_status_clear(&st);
  (void)pass_time(k, source, tde_lease_tick, &after);
  if (after == TDE_ACCESS_CLOSED) {
    stop_asking(k);
    return TDE_LEASE_KEEP;
  }
  c = tde_access_is_live(after) ? ask_live(k, source, was_denied(k), NULL, &got, &st)
                                : ask_absent(k, source, &got, &st);
  c = doubt(k, blind, c, &st);
  act = apply(k, source, c, 0, &got, &st);
  fetched_clear(&got);
  return act;
}

tde_lease_act tde_keyring_check(tde_keys *k, const tde_key_source *source,
                                const tde_header *newer) {
  return check(k, source, newer, 0);
}

tde_lease_act tde_keyring_check_blind(tde_keys *k, const tde_key_source *source) {
  return check(k, source, NULL, 1);
}

/* Policies by instance, in order of the names, while they are read. */
#define INSTANCES 256
typedef struct policies {
  int n;
  struct {
    char *instance; /* "" : the default one */
    tde_key_policy policy;
  } of[INSTANCES];
} policies;

/* Where the instance stands, or would stand. */
static int place_of(const policies *p, const char *instance) {
  int low = 0, high = p->n;

  while (low < high) {
    int mid = (low + high) / 2;
    if (strcmp(p->of[mid].instance, instance) < 0) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  return low;
}

static int stands_at(const policies *p, int i, const char *instance) {
  return i < p->n && p->of[i].instance && strcmp(p->of[i].instance, instance) == 0;
}

static int policy_of(const policies *p, const char *instance) {
  const char *name = instance ? instance : "";
  int i = place_of(p, name);
  return stands_at(p, i, name) ? i : -1;
}

/* False: it does not fit in, or there is no memory. */
static int add_instance(policies *p, const char *instance) {
  const char *name = instance ? instance : "";
  int i = place_of(p, name);
  char *copy;

  if (stands_at(p, i, name)) return 1;
  copy = p->n < INSTANCES ? strdup(name) : NULL;
  if (!copy) return 0;
  memmove(&p->of[i + 1], &p->of[i], (size_t)(p->n - i) * sizeof(p->of[0]));
  p->of[i].instance = copy;
  p->n++;
  return 1;
}

/* Of ten thousand entries so many buckets hold some hundred: openers are let in between. */
#define SLICE 256

static unsigned end_of_slice(unsigned from, unsigned to) {
  return to - from < SLICE ? to : from + SLICE;
}

/* The instances of these buckets, as many as fit in. Returns where it ended: behind the last bucket
** that is in as a whole. The lock is held. */
static unsigned collect_slice(policies *p, unsigned from, unsigned to) {
  for (unsigned b = from; b < to; b++) {
    for (const tde_keys *k = buckets[b]; k; k = k->next) {
      if (!add_instance(p, k->params.instance)) return b;
    }
  }
  return to;
}

/* ... of all from `from` on; and it ends behind that one at least. */
static unsigned collect_instances(policies *p, unsigned from) {
  unsigned b = from, end;

  do {
    end = end_of_slice(b, BUCKETS);
    pthread_mutex_lock(&ring_lock);
    b = collect_slice(p, b, end);
    pthread_mutex_unlock(&ring_lock);
  } while (b == end && b < BUCKETS);
  return b > from ? b : from + 1;
}

/* Those whose instances were not collected wait for their checks, which read the policy,
** too. The lock is held. */
static void apply_policies(const policies *p, unsigned from, unsigned to) {
  for (unsigned b = from; b < to; b++) {
    for (tde_keys *k = buckets[b]; k; k = k->next) {
      int i = policy_of(p, k->params.instance);
      if (i < 0) continue;
      if (is_busy(k)) {
        k->next_policy = p->of[i].policy; /* its check goes by the old one */
      } else {
        apply_policy(k, &p->of[i].policy);
      }
    }
  }
}

unsigned tde_keyring_refresh_policies(const tde_key_source *source, unsigned from) {
  policies *p = calloc(1, sizeof(*p));
  unsigned to;

  if (!p) return 0;
  pthread_once(&ring_once, ring_init);
  to = collect_instances(p, from);
  for (int i = 0; i < p->n; i++) {
    tde_key_params params = {.instance = p->of[i].instance};
    source->policy(source->ctx, &params, &p->of[i].policy);
  }
  for (unsigned b = from; b < to; b += SLICE) {
    pthread_mutex_lock(&ring_lock);
    apply_policies(p, b, end_of_slice(b, to));
    pthread_mutex_unlock(&ring_lock);
  }
  for (int i = 0; i < p->n; i++) free(p->of[i].instance);
  free(p);
  return to < BUCKETS ? to : 0;
}

int tde_keyring_claim(tde_keys *keys) {
  int mine;

  pthread_mutex_lock(&ring_lock);
  while (is_busy(keys) && !keys->facts.remote) pthread_cond_wait(&ring_changed, &ring_lock);
  mine = !is_busy(keys) && keys->header.doc && keys->lease.due_at <= tde_now_ms();
  if (mine) set_busy(keys);
  pthread_mutex_unlock(&ring_lock);
  return mine;
}

int tde_keyring_use_here(tde_keys *keys, int may_ask) {
  int mine;

  pthread_mutex_lock(&ring_lock);
  mine = may_ask && !is_attended(keys, tde_fork_generation()) && !is_busy(keys) && keys->header.doc &&
         keys->lease.due_at <= tde_now_ms();
  keys->used_in = tde_fork_generation();
  if (mine) {
    set_busy(keys);
  } else {
    stand(keys);
    note_use(keys);
  }
  pthread_mutex_unlock(&ring_lock);
  return mine;
}

void tde_keyring_hurry(tde_keys *keys) {
  pthread_mutex_lock(&ring_lock);
  if (atomic_load(&keys->live) && !is_busy(keys)) keys->lease.due_at = tde_now_ms();
  publish(keys);
  pthread_mutex_unlock(&ring_lock);
}

tde_class tde_keys_about(const tde_keys *keys, uint8_t uuid[TDE_UUID_BYTES], tde_key_facts *facts,
                         tde_key_params *params) {
  int ok;

  pthread_mutex_lock(&ring_lock);
  memcpy(uuid, keys->uuid, TDE_UUID_BYTES);
  *facts = keys->facts;
  ok = tde_key_params_copy(params, &keys->params);
  pthread_mutex_unlock(&ring_lock);
  return ok ? TDE_OK : TDE_NOMEM;
}

/* ---- for tdevfs.h ---- */

/* Puts the documents into out, or counts them alone. -1: no memory. The lock is held. */
static int list_documents(tde_open_document *out) {
  int n = 0;

  for (unsigned b = 0; b < BUCKETS; b++) {
    for (const tde_keys *k = buckets[b]; k; k = k->next) {
      if (k->refs == 0 || !k->header.doc || !k->params.path) continue;
      if (out) {
        out[n].path = strdup(k->params.path);
        out[n].doc = copy_doc(&k->header);
        out[n].ndoc = k->header.ndoc;
        if (k->params.as_key) out[n].as_key = strdup(k->params.as_key);
        if (!out[n].path || !out[n].doc || (k->params.as_key && !out[n].as_key)) return -1;
      }
      n++;
    }
  }
  return n;
}

int tde_open_documents(tde_open_document **out, int *n) {
  int count;

  pthread_mutex_lock(&ring_lock);
  count = list_documents(NULL);
  *out = calloc((size_t)count + 1, sizeof(**out));
  *n = *out ? list_documents(*out) : -1;
  pthread_mutex_unlock(&ring_lock);
  if (*n >= 0) return SQLITE_OK;
  tde_open_documents_free(*out, count);
  *out = NULL;
  *n = 0;
  return SQLITE_NOMEM;
}

void tde_open_documents_free(tde_open_document *list, int n) {
  for (int i = 0; list && i < n; i++) {
    free(list[i].path);
    free(list[i].doc);
    free(list[i].as_key);
  }
  free(list);
}
