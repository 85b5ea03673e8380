/*
** keyring.c: the process-wide registry of live DEKs; see keyring.h. The entries, who uses them, and
** their place in the line for checks; keyring_int.h says what stands in the other files.
*/
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/secret.h"
#include "keyring_int.h"
#include "shim.h"
#include "tdevfs.h"
#include "watch.h"

static tde_keys *buckets[TDE_RING_BUCKETS];
/* Live entries without users. */
static tde_keys *idle_first, *idle_last;
static int idle_count;
static int live_count;
static pthread_mutex_t ring_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ring_changed = PTHREAD_COND_INITIALIZER;
static pthread_once_t ring_once = PTHREAD_ONCE_INIT;

static void before_fork(void) {
  pthread_mutex_lock(&ring_mutex);
}
static void after_fork(void) {
  pthread_mutex_unlock(&ring_mutex);
}
static void in_child(void) {
  /* Waiters of the parent do not exist here. */
  pthread_cond_init(&ring_changed, NULL);
  pthread_mutex_unlock(&ring_mutex);
}
static void ring_init(void) {
  /* Locks that are taken below this one: their fork handlers come first. */
  tde_secret_free(tde_secret_alloc(1));
  (void)tde_watch_threads();
  (void)pthread_atfork(before_fork, after_fork, in_child);
}

void tde_ring_lock(void) {
  pthread_once(&ring_once, ring_init);
  pthread_mutex_lock(&ring_mutex);
}

void tde_ring_unlock(void) {
  pthread_mutex_unlock(&ring_mutex);
}

void tde_ring_wait(void) {
  pthread_cond_wait(&ring_changed, &ring_mutex);
}

static unsigned bucket_of(const uint8_t *uuid) {
  return (uuid[0] | (unsigned)uuid[1] << 8) % TDE_RING_BUCKETS;
}

tde_keys *tde_ring_bucket(unsigned bucket) {
  return buckets[bucket];
}

tde_keys *tde_ring_of(const uint8_t uuid[TDE_UUID_BYTES]) {
  return buckets[bucket_of(uuid)];
}

void tde_entry_link(tde_keys *k) {
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

tde_keys *tde_entry_new(const uint8_t *uuid, const tde_key_params *params,
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

void tde_entry_free(tde_keys *k) {
  tde_epochs_free(&k->epochs);
  forget_other(k);
  tde_header_clear(&k->header);
  tde_key_params_clear(&k->params);
  free(k->line);
  free(k);
}

/* ---- state; the lock is held ---- */

int tde_entry_is_busy(tde_keys *k) {
  /* Its thread is one of the parent: nobody will finish it here. */
  if (k->busy && k->busy_fork != tde_fork_generation()) k->busy = 0;
  return k->busy;
}

int tde_entry_is_attended(const tde_keys *k) {
  return k->refs > 0 && !k->unproved && k->used_in == tde_fork_generation();
}

const char *tde_entry_asked_key(const tde_keys *k) {
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

void tde_entry_stand(tde_keys *k) {
  tde_turn_times t;

  if (!k->linked || !tde_entry_is_attended(k) || tde_entry_is_busy(k) || !k->header.doc) {
    tde_lanes_step_out(&k->turn);
    return;
  }
  t = turn_times(k);
  tde_lanes_stand(&k->turn, k->facts.remote ? tde_entry_asked_key(k) : NULL, &t);
}

void tde_entry_publish(tde_keys *k) {
  int now_live = tde_access_is_live(k->lease.access), was = atomic_load(&k->live);

  atomic_store(&k->cutoff, now_live ? INT64_MAX : tde_lease_cutoff(&k->lease, &k->policy));
  atomic_store(&k->due, k->lease.due_at);
  atomic_store(&k->live, now_live);
  if (k->header.doc && k->refs > 0) tde_watch_note(k->lease.due_at, k->facts.remote);
  live_count += now_live - was;
  tde_entry_stand(k);
}

void tde_entry_note_use(const tde_keys *k) {
  tde_watch_note(k->lease.due_at, k->facts.remote);
}

void tde_entry_set_busy(tde_keys *k) {
  k->busy = 1;
  k->busy_fork = tde_fork_generation();
  tde_entry_stand(k);
}

void tde_entry_apply_policy(tde_keys *k, const tde_key_policy *policy) {
  int64_t due = k->lease.checked_at + policy->check_ms;
  int other = memcmp(&k->policy, policy, sizeof(*policy)) != 0;

  k->policy = *policy;
  if (tde_access_is_live(k->lease.access) && due < k->lease.due_at) {
    k->lease.due_at = due;
    tde_entry_publish(k);
  } else if (other) {
    tde_entry_stand(k);
  }
}

void tde_entry_end_busy(tde_keys *k) {
  tde_lanes_leave(&k->turn);
  k->busy = k->unproved = 0;
  if (k->next_policy.check_ms) tde_entry_apply_policy(k, &k->next_policy);
  k->next_policy.check_ms = 0;
  tde_entry_stand(k);
  pthread_cond_broadcast(&ring_changed);
}

int tde_facts_same_protector(const tde_key_facts *a, const tde_key_facts *b) {
  return strcmp(a->key_id, b->key_id) == 0 && strcmp(a->key_version, b->key_version) == 0;
}

int tde_entry_note_header(tde_keys *k, const tde_header *h, const tde_key_facts *facts) {
  tde_header before = k->header;
  char *doc;

  if (memcmp(k->header.sha, h->sha, TDE_HASH_BYTES) == 0 && k->header.doc) return 1;
  doc = copy_doc(h);
  if (!doc) return 0;
  forget_other(k);
  k->header = *h;
  k->header.doc = doc;
  if (before.doc) note_other(k, &before); /* a new header is written to the other slot */
  if (before.doc && !tde_facts_same_protector(&k->facts, facts))
    tde_key_params_forget_way(&k->params);
  free(before.doc);
  k->facts = *facts;
  atomic_store(&k->remote, facts->remote);
  tde_epochs_outdate(&k->epochs, h->epoch, facts);
  tde_entry_stand(k);
  return 1;
}

int tde_entry_is_ahead(const tde_keys *k, const tde_header *h, const tde_key_facts *facts) {
  return k->refs > 0 && tde_epochs_ahead(&k->epochs, h->epoch, facts);
}

int tde_entry_verifies(const tde_keys *k, int stale, const tde_header *h,
                       const tde_key_facts *facts) {
  uint8_t key[TDE_KEY_BYTES];
  tde_class c = tde_epochs_header_key(&k->epochs, stale, NULL, 0, facts, key);

  if (c == TDE_OK) c = h->epoch == facts->epoch ? tde_header_check_mac(h, key) : TDE_WRONG_KEY;
  tde_wipe(key, sizeof(key));
  return c == TDE_OK;
}

tde_class tde_entry_not_live(const tde_keys *k, tde_status *st) {
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

/* ---- users ---- */

/* What the parent's threads hold nobody lets go of in a forked child. */
static void forget_parent(tde_keys *k) {
  uint64_t process = tde_fork_generation();

  if (k->held_in == process) return;
  k->refs -= k->held;
  k->held = 0;
  k->held_in = process;
}

void tde_entry_take(tde_keys *k) {
  forget_parent(k);
  k->refs++;
  k->used_in = tde_fork_generation();
  idle_leave(k);
  tde_entry_stand(k);
}

/* Without users only a live entry is of use. */
void tde_entry_drop(tde_keys *k) {
  forget_parent(k);
  if (--k->refs > 0) return;
  tde_entry_stand(k);
  if (k->linked && atomic_load(&k->live)) {
    idle_enter(k);
    return;
  }
  if (atomic_load(&k->live)) live_count--;
  unlink_entry(k);
  tde_entry_free(k);
}

void tde_ring_expire_idle(void) {
  int64_t now = idle_first ? tde_now_ms() : 0;

  while (idle_first &&
         (idle_count > TDE_IDLE_DEKS || now - idle_first->idle_since >= TDE_IDLE_SECONDS * 1000)) {
    tde_keys *k = idle_first;
    idle_leave(k);
    unlink_entry(k);
    live_count--;
    tde_entry_free(k);
  }
}

void tde_keyring_release(tde_keys *keys) {
  if (!keys) return;
  tde_ring_lock();
  tde_entry_drop(keys);
  tde_ring_expire_idle();
  tde_ring_unlock();
}

void tde_keyring_discard(tde_keys *keys) {
  if (!keys) return;
  tde_ring_lock();
  if (keys->refs == 1) unlink_entry(keys); /* so that it does not become an idle one */
  tde_entry_drop(keys);
  tde_ring_unlock();
}

/* ---- what openers ask, and status ---- */

void tde_keyring_known_slots(const uint8_t *const slot[2], int known[2]) {
  tde_ring_lock();
  for (int i = 0; i < 2; i++) {
    const tde_keys *k = tde_ring_of(tde_slot_uuid(slot[i]));
    for (known[i] = 0; k && !known[i]; k = k->next) {
      known[i] = (k->header.doc && tde_slot_equals(slot[i], &k->header)) ||
                 (k->other.doc && tde_slot_equals(slot[i], &k->other));
    }
  }
  tde_ring_unlock();
}

void tde_keyring_note_other(tde_keys *keys, const tde_header *other) {
  tde_ring_lock();
  note_other(keys, other);
  tde_ring_unlock();
}

int tde_keyring_count(void) {
  int n;
  tde_ring_lock();
  n = live_count;
  tde_ring_unlock();
  return n;
}

/* ---- for tdevfs.h ---- */

/* Puts the documents into out, or counts them alone. -1: no memory. The lock is held. */
static int list_documents(tde_open_document *out) {
  int n = 0;

  for (unsigned b = 0; b < TDE_RING_BUCKETS; b++) {
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

  tde_ring_lock();
  count = list_documents(NULL);
  *out = calloc((size_t)count + 1, sizeof(**out));
  *n = *out ? list_documents(*out) : -1;
  tde_ring_unlock();
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
