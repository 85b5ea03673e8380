/*
** keyring.h: the DEKs that are live in this process.
**
** One entry per database file (UUID and path), protector and instance, shared by every connection of
** the process that comes through this instance. A copy of the file that lies elsewhere is an entry of
** its own, and so is a backup put in its place under an older protector: it asks for its own key.
** Invariants:
**  - an entry's DEKs have verified the HMAC of the header they were fetched for; a lookup verifies
**    the caller's header again;
**  - no lock is held while a key service is asked; concurrent openers of one database wait for the
**    one fetch and share its outcome;
**  - key material stands in secret memory, and is copied or used under the ring's lock only: at the
**    loss of a key it is wiped at once, whoever holds a reference. An entry without users is wiped
**    after TDE_IDLE_SECONDS, or as the longest unused of more than TDE_IDLE_DEKS (by whoever opens or
**    closes a database then, or a thread of the watch);
**  - checks are made for entries in use, and in a forked child for those that were used there.
**    Who opens another one after its check was due asks first: a denial is believed at once, and
**    an outage has the grace that it has at any check, counted from when the check was due;
**  - checks ask in the way in which the entry was unlocked (tde_key=, or a key that a
**    revalidation named), until the header names another protector;
**  - an entry without its DEK stays as long as somebody has the database open,
**    and is asked for again on its lease (lease.h).
*/
#ifndef TDE_KEYRING_H
#define TDE_KEYRING_H

#include <stdatomic.h>

#include "../ext/base/crypto.h"
#include "header.h"
#include "keysource.h"
#include "lease.h"
#include "role.h"

typedef struct tde_keys tde_keys;

/* Finds or fetches the keys for this header and checks its HMAC. *out is a
** reference, to be released. On a failure of the key service it may be one, too:
** an entry without its DEK, which heals; else NULL. facts gets what the key
** document says, on failure too where the document could be read. forced: a
** revalidation, which asks the service now, whatever the lease says. */
tde_class tde_keyring_unlock(const tde_key_source *source, const tde_key_params *params,
                             const tde_header *header, int forced, tde_key_facts *facts,
                             tde_keys **out, tde_status *st);

/* Another header of the database whose live keys these are: its HMAC must
** verify. The key service is asked for DEK epochs that are new in it alone. From
** here on the entry's protector is this header's; unless it was proved just now
** (by whoever wrote the header), it is asked soon. A header that is older than the
** entry's is verified, and the entry stays as it is (tde_keyring_ahead), unless proved.
** TDE_WRONG_KEY: another database, or forged. */
tde_class tde_keyring_follow(tde_keys *keys, const tde_key_source *source,
                             const tde_key_params *params, const tde_header *header, int proved,
                             tde_key_facts *facts, tde_status *st);

/* An older header than the entry's was read before that one was written, by a thread that
** was slow: the newer one's epochs are in use, and the entry must not go back. Or it is of
** an older copy of the file, put back in its place: the entry must. The file itself tells.
** Returns the entry's sequence number where it is ahead of h, else 0. Who then finds h in
** force in the file still, read anew, says so with tde_keyring_go_back, which does nothing if
** the entry has gone on from there meanwhile. h has been verified (follow, unlock). */
uint64_t tde_keyring_ahead(const tde_keys *keys, const tde_header *h);
tde_class tde_keyring_go_back(tde_keys *keys, const tde_header *header, uint64_t from,
                              const tde_key_facts *facts, tde_status *st);

/* Takes a fresh DEK (secret memory; copied, the caller still frees its own)
** of a database being created into the ring. */
tde_class tde_keyring_adopt(const tde_key_source *source, const tde_key_params *params,
                            const uint8_t uuid[TDE_UUID_BYTES], uint32_t epoch, const uint8_t *dek,
                            tde_keys **out, tde_status *st);

void tde_keyring_release(tde_keys *keys); /* NULL is allowed */
/* The same of keys that nothing was written under: a creation failed. They are wiped at once. */
void tde_keyring_discard(tde_keys *keys);

/* Which of a header's two slots (as tde_slots has them) were found whole before in this
** process, as they are, byte for byte? Their checksums, the better part of what reading the
** header costs, are not to be computed again. */
void tde_keyring_known_slots(const uint8_t *const slot[2], int known[2]);
/* The slot that is not in force, whole: remembered for that. (That of the header in force
** is by itself.) */
void tde_keyring_note_other(tde_keys *keys, const tde_header *other);

/* Counts how often an epoch's keys became others (an older copy of the file came back, and was
** given another DEK of the same number): an AEAD from before is not to be used. The counter
** lives as long as the keys: it is looked at for each unit. */
const atomic_uint *tde_keys_replaced(const tde_keys *keys);

/* True while the DEK is at hand. One load: for each transaction. */
int tde_keys_live(const tde_keys *keys);
/* True when what was under way at the loss may not go on any more. */
int tde_keys_cut_off(const tde_keys *keys);

int tde_keys_has(const tde_keys *keys, uint32_t epoch);
/* A new AEAD for one role and epoch, the caller's. TDE_WRONG_KEY: there is no
** such epoch. The class of the loss when the DEK is away. */
tde_class tde_keys_aead(tde_keys *keys, uint32_t epoch, int role, tde_aead **out);
/* An AEAD of the role main is about to go. What it derived first, most often the key of page 1,
** is what the next connection needs first, too: it stays until the epoch's keys are wiped.
** seen: tde_keys_replaced from before the AEAD was made. */
void tde_keys_note_derived(tde_keys *keys, uint32_t epoch, unsigned seen, const tde_aead *aead);
/* Do the keys at hand, those of every epoch that its document names, verify this header? */
int tde_keyring_verifies(tde_keys *keys, const tde_key_source *source, const tde_header *header);
/* Builds a slot (TDE_SLOT_BYTES) of this header. TDE_WRONG_KEY: the key of an epoch that its
** document names is not at hand. */
tde_class tde_keys_slot_build(const tde_keys *keys, const tde_key_source *source,
                              const tde_header *h, uint8_t *slot);
/* Copies of one epoch's MAC key, and of its DEK: the caller wipes them. */
tde_class tde_keys_mac_key(const tde_keys *keys, uint32_t epoch, uint8_t out[TDE_KEY_BYTES]);
tde_class tde_keys_dek(const tde_keys *keys, uint32_t epoch, uint8_t *out);
/* A new DEK epoch, before the header that names it is written. pending: by the caller,
** under the lock that keeps other changes of the header out; until then other threads,
** which go by the header as it is, let the epoch stay. */
tde_class tde_keys_add_epoch(tde_keys *keys, uint32_t epoch, const uint8_t *dek, int pending);
/* That header was not written: facts are of the one that is in force. */
void tde_keys_abandon_epochs(tde_keys *keys, const tde_key_facts *facts);

/* For status. */
void tde_keys_report(const tde_keys *keys, tde_key_report *out);

/* DEKs live now, for status and tests. */
int tde_keyring_count(void);

/* ---- for watch.c and the gate ---- */

/* Does its key need a network? One load. */
int tde_keys_remote(const tde_keys *keys);
/* When the key service is to be asked about this entry again (tde_now_ms);
** INT64_MAX: not by itself. One load. */
int64_t tde_keys_due(const tde_keys *keys);
/* The entry whose check is to be made first (lanes.h), with a reference, or NULL: a denial to be
** confirmed, then what is due the longest. ask: for tde_keyring_check; else it stands in line,
** and is for tde_keyring_pass. tde_keyring_done follows. *next_due gets the time at which
** another one is due, which may be past (INT64_MAX: none). At most TDE_LANES threads do this. */
tde_keys *tde_keyring_due(int64_t now, int64_t *next_due, int *ask);
void tde_keyring_done(tde_keys *keys);
/* Before it is asked its file is looked at, which may take long where a file system hangs: others at
** its key service do not wait for that. step_back: 0: one of them is being asked by now; it stands in
** line again, and is not for tde_keyring_check. */
void tde_keyring_step_aside(tde_keys *keys);
int tde_keyring_step_back(tde_keys *keys);
/* Its key service keeps others waiting: what is on time all the same (tde_lease_pass). */
tde_lease_act tde_keyring_pass(tde_keys *keys, const tde_key_source *source);
/* A transaction finds that its check is overdue. If one found so this long ago, nothing was heard since
** (of this key, if it is being asked for; else of any), and the grace is over, whoever is to ask, or to
** pass it over, is kept by something that hangs: the DEK goes, if it is live. Asks nobody, and reads no
** file. */
#define TDE_OVERDUE_MS 300000
void tde_keyring_overdue(tde_keys *keys);
/* The same as tde_keyring_due for one entry, whatever its host does: true when its check is due
** and now the caller's. The end of one that is under way is waited for where no network is asked. */
int tde_keyring_claim(tde_keys *keys);
/* A connection that a forked child inherited is used there for the first time: from here on the
** entry's checks are made in this process. True (if may_ask): one is overdue, and now the
** caller's. */
int tde_keyring_use_here(tde_keys *keys, int may_ask);
/* A live entry's check is due at once. */
void tde_keyring_hurry(tde_keys *keys);
/* Asks the key service about an entry that is the caller's to check, and applies the answer. newer:
** the header as it is on disk now (its document is copied), or NULL. Returns what became of the entry;
** after TDE_LEASE_WIPE no key of it is left in secret memory, nor in connections that are idle. */
tde_lease_act tde_keyring_check(tde_keys *keys, const tde_key_source *source,
                                const tde_header *newer);
/* The same where this process lacked what it takes to read the header, which may name another
** key by now. A denial of the old one counts as no answer, but not more often in a row than
** TDE_BLIND_CHECKS: a revoked key does not live on for as long as that lasts. */
#define TDE_BLIND_CHECKS 3
tde_lease_act tde_keyring_check_blind(tde_keys *keys, const tde_key_source *source);
/* Reads policies anew: a shorter check interval holds at once. A process may use thousands
** of instances; one call reads some hundred. from: 0, or what the call before returned, which
** is 0 when all have been read. */
unsigned tde_keyring_refresh_policies(const tde_key_source *source, unsigned from);
/* What an entry is about, copied; the text of params is the caller's
** (tde_key_params_clear). */
tde_class tde_keys_about(const tde_keys *keys, uint8_t uuid[TDE_UUID_BYTES], tde_key_facts *facts,
                         tde_key_params *params);

#endif
