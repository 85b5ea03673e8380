/*
** keyring_check.c: which entry is to be asked about next, and its check; see keyring.h. Its callers
** are watch.c and the gate.
*/
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "keyring_int.h"
#include "openfiles.h"

/* ---- whose turn it is ---- */

tde_keys *tde_keyring_due(int64_t now, int64_t *next_due, int *ask) {
  tde_turn *t;
  tde_keys *k = NULL;

  tde_ring_lock();
  tde_ring_expire_idle();
  t = tde_lanes_first(now, ask);
  if (t) {
    k = (tde_keys *)((char *)t - offsetof(tde_keys, turn));
    if (*ask) tde_lanes_enter(t, now);
    tde_entry_set_busy(k);
    tde_entry_take(k);
    k->held++;
  }
  *next_due = tde_lanes_next(now);
  tde_ring_unlock();
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
  tde_ring_lock();
  last_done = awake_ms();
  k->held--;
  tde_entry_drop(k);
  tde_ring_expire_idle();
  tde_ring_unlock();
}

void tde_keyring_step_aside(tde_keys *k) {
  tde_ring_lock();
  tde_lanes_leave(&k->turn);
  tde_ring_unlock();
}

int tde_keyring_step_back(tde_keys *k) {
  int back;

  tde_ring_lock();
  back = tde_lanes_return(&k->turn, k->facts.remote ? tde_entry_asked_key(k) : NULL, tde_now_ms());
  if (!back) tde_entry_end_busy(k);
  tde_ring_unlock();
  return back;
}

int tde_keyring_claim(tde_keys *keys) {
  int mine;

  tde_ring_lock();
  while (tde_entry_is_busy(keys) && !keys->facts.remote) tde_ring_wait();
  mine = !tde_entry_is_busy(keys) && keys->header.doc && keys->lease.due_at <= tde_now_ms();
  if (mine) tde_entry_set_busy(keys);
  tde_ring_unlock();
  return mine;
}

int tde_keyring_use_here(tde_keys *keys, int may_ask) {
  int mine;

  tde_ring_lock();
  mine = may_ask && !tde_entry_is_attended(keys) && !tde_entry_is_busy(keys) && keys->header.doc &&
         keys->lease.due_at <= tde_now_ms();
  keys->used_in = tde_fork_generation();
  if (mine) {
    tde_entry_set_busy(keys);
  } else {
    tde_entry_stand(keys);
    tde_entry_note_use(keys);
  }
  tde_ring_unlock();
  return mine;
}

void tde_keyring_hurry(tde_keys *keys) {
  tde_ring_lock();
  if (atomic_load(&keys->live) && !tde_entry_is_busy(keys)) keys->lease.due_at = tde_now_ms();
  tde_entry_publish(keys);
  tde_ring_unlock();
}

/* ---- the header on disk ---- */

/* Fetches the epochs of a header that the live entry does not know yet. Its key may be another one
** than the one that the entry was asked for with a way of its own. */
static tde_class fetch_lacking(tde_keys *k, const tde_key_source *source, const tde_header *newer,
                               const tde_key_facts *facts, tde_fetched *got) {
  static const tde_key_params header_says;
  uint32_t lacking[TDE_EPOCHS_MAX];
  tde_key_params params = k->params; /* borrowed: the entry is busy */
  int n = 0;

  if (!tde_facts_same_protector(&k->facts, facts)) tde_ask_as(&params, &header_says);
  tde_ring_lock();
  if (atomic_load(&k->live)) n = tde_epochs_missing(&k->epochs, facts, lacking);
  tde_ring_unlock();
  return tde_ask_epochs(source, &params, newer, lacking, n, got, NULL);
}

/* Puts the header in force, unless it would have the entry forget a DEK that is in use: the slot in
** force may be damaged, so that an older one is the newest whole. Who uses the file tells that from
** an older copy (tde_keyring_go_back). The lock is held. */
static void follow_header(tde_keys *k, const tde_header *newer, const tde_key_facts *facts,
                          tde_fetched *got) {
  tde_class c;

  if (!atomic_load(&k->live)) {
    if (tde_entry_note_header(k, newer, facts)) tde_lease_reopen(&k->lease, tde_now_ms());
    return;
  }
  if (tde_entry_is_ahead(k, newer, facts)) return;
  c = tde_fetched_verify(got, &k->epochs, newer, facts, NULL);
  if (c == TDE_OK) c = tde_fetched_install(k, got, NULL);
  if (c == TDE_OK) (void)tde_entry_note_header(k, newer, facts);
}

/* Takes the header that is on disk now, if it verifies: the old protector may be gone, by right.
** Else the entry is judged by the one it has: nobody keeps a lost key by a header of theirs. The
** entry is busy, so is nobody else's. */
static void follow_disk(tde_keys *k, const tde_key_source *source, const tde_header *newer) {
  tde_key_facts *facts;
  tde_fetched got = {0};

  if (memcmp(newer->sha, k->header.sha, TDE_HASH_BYTES) == 0) return;
  if (memcmp(newer->uuid, k->uuid, TDE_UUID_BYTES) != 0) return;
  facts = malloc(sizeof(*facts));
  if (!facts) return;
  if (source->describe(source->ctx, newer->doc, newer->ndoc, facts, NULL) == TDE_OK &&
      fetch_lacking(k, source, newer, facts, &got) == TDE_OK) {
    tde_ring_lock();
    follow_header(k, newer, facts, &got);
    tde_ring_unlock();
  }
  tde_fetched_clear(&got);
  free(facts);
}

/* ---- checks ---- */

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

  tde_ring_lock();
  was = k->lease.denials > 0;
  tde_ring_unlock();
  return was;
}

static tde_lease_act check(tde_keys *k, const tde_key_source *source, const tde_header *newer,
                           int blind) {
  tde_access after;
  tde_key_policy policy;
  tde_lease_act act;
  tde_fetched got = {0};
  tde_status st;
  tde_class c;

  source->policy(source->ctx, &k->params, &policy);
  tde_ring_lock(); /* a report may be looking at it */
  k->policy = policy;
  tde_ring_unlock();
  if (newer) follow_disk(k, source, newer);
  tde_status_clear(&st);
  (void)tde_answer_none(k, source, tde_lease_tick, &after);
  if (after == TDE_ACCESS_CLOSED) {
    tde_ask_end(k);
    return TDE_LEASE_KEEP;
  }
  c = tde_access_is_live(after) ? tde_ask_live(k, source, was_denied(k), NULL, &got, &st)
                                : tde_ask_absent(k, source, &got, &st);
  c = doubt(k, blind, c, &st);
  act = tde_answer(k, source, c, 0, &got, &st);
  tde_fetched_clear(&got);
  return act;
}

tde_lease_act tde_keyring_check(tde_keys *k, const tde_key_source *source,
                                const tde_header *newer) {
  return check(k, source, newer, 0);
}

tde_lease_act tde_keyring_check_blind(tde_keys *k, const tde_key_source *source) {
  return check(k, source, NULL, 1);
}

/* ---- no answer in time ---- */

/* How the last check ended: it was not made. The lock is held. */
static void note_unasked(tde_keys *k, const char *remedy, const char *message) {
  tde_status_clear(&k->last);
  memcpy(k->last.key_id, k->facts.key_id, sizeof(k->last.key_id));
  (void)tde_fail(&k->last, TDE_UNREACHABLE, remedy, "%s", message);
}

tde_lease_act tde_keyring_pass(tde_keys *k, const tde_key_source *source) {
  tde_access after;
  tde_lease_act act;

  tde_ring_lock();
  if (k->lease.access == TDE_ACCESS_LIVE) {
    note_unasked(k, NULL,
                 "the key service has kept a request waiting: this key is asked for in its turn");
  }
  tde_ring_unlock();
  act = tde_answer_none(k, source, tde_lease_pass, &after);
  tde_ask_end(k);
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
  return now - k->late_at >= TDE_OVERDUE_MS &&
         (tde_entry_is_busy(k) || now - last_done >= TDE_OVERDUE_MS);
}

void tde_keyring_overdue(tde_keys *k) {
  tde_lease *l = &k->lease;
  tde_lease_act act = TDE_LEASE_KEEP;
  int64_t now = tde_now_ms(), from;

  tde_ring_lock();
  from = l->access == TDE_ACCESS_GRACE ? l->since : l->due_at;
  if (tde_access_is_live(l->access) && now >= l->due_at && is_kept(k) &&
      now - from >= k->policy.grace_ms) {
    act = tde_lease_pass(l, now, &k->policy);
    note_unasked(k, "see whether a file system hangs, or start the process anew",
                 "the key could not be asked for in time: what does that is kept waiting");
    if (act == TDE_LEASE_WIPE) tde_epochs_wipe(&k->epochs);
    tde_entry_publish(k);
  }
  tde_ring_unlock();
  if (act == TDE_LEASE_WIPE) tde_openfiles_wipe(k, k->params.path);
}
