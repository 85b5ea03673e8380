/*
** keyring.c: the process-wide registry of live DEKs; see keyring.h.
*/
#include "keyring.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/secret.h"

typedef enum entry_state { ENTRY_FETCHING, ENTRY_LIVE, ENTRY_FAILED } entry_state;

struct tde_keys {
  struct tde_keys *next, *prev;
  uint8_t uuid[TDE_UUID_BYTES];
  entry_state state;
  int refs;
  uint64_t fork_generation;         /* of the process that fetches */
  uint8_t slot_sha[TDE_HASH_BYTES]; /* the header last verified, or fetched for */
  tde_key_facts facts;              /* of that header */
  tde_status failure;               /* ENTRY_FAILED: shared by those who waited */
  time_t idle_since;                /* monotonic seconds; meaningful when refs == 0 */
  int nepochs;
  tde_epoch_keys epochs[TDE_EPOCHS_MAX];
};

/* Entries in use and idle, newest first. A short list would do for one
** database; thousands of tenants need the hash. */
#define BUCKETS 1024
static tde_keys *buckets[BUCKETS];
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
  (void)pthread_atfork(before_fork, after_fork, in_child);
}

static time_t now_seconds(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec;
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
}

static void unlink_entry(tde_keys *k) {
  if (k->prev) {
    k->prev->next = k->next;
  } else {
    buckets[bucket_of(k->uuid)] = k->next;
  }
  if (k->next) k->next->prev = k->prev;
}

static void free_entry(tde_keys *k) {
  for (int i = 0; i < k->nepochs; i++) {
    tde_epoch_keys *e = &k->epochs[i];
    tde_secret_free(e->mac_key);
    for (int r = 0; r < TDE_ROLE_KEYS; r++) {
      tde_secret_free(e->role_key[r]);
      tde_nonce_source_free(e->nonces[r]);
    }
  }
  free(k);
}

/* Derives the keys of one epoch: HKDF-SHA256, salt = UUID (FORMAT.md, Keys). */
static tde_class derive_one(const uint8_t *uuid, const uint8_t *dek, const char *purpose,
                            uint8_t **out) {
  *out = tde_secret_alloc(TDE_KEY_BYTES);
  if (!*out) return TDE_NOMEM;
  return tde_hkdf_sha256(uuid, TDE_UUID_BYTES, dek, TDE_KEY_BYTES, (const uint8_t *)purpose,
                         strlen(purpose), *out, TDE_KEY_BYTES);
}

/* Appends an epoch to an entry that no other thread can see yet. */
static tde_class add_epoch(tde_keys *k, uint32_t epoch, const uint8_t *dek) {
  static const char *const purpose[TDE_ROLE_KEYS] = {"sqlite-tde v1 main", "sqlite-tde v1 wal",
                                                     "sqlite-tde v1 journal"};
  tde_epoch_keys *e;
  tde_class c;

  if (k->nepochs >= TDE_EPOCHS_MAX) return TDE_CORRUPT;
  e = &k->epochs[k->nepochs++];
  e->epoch = epoch;
  c = derive_one(k->uuid, dek, "sqlite-tde v1 header mac", &e->mac_key);
  for (int r = 0; c == TDE_OK && r < TDE_ROLE_KEYS; r++) {
    c = derive_one(k->uuid, dek, purpose[r], &e->role_key[r]);
    if (c == TDE_OK) {
      e->nonces[r] = tde_nonce_source_new();
      if (!e->nonces[r]) c = TDE_NOMEM;
    }
  }
  return c;
}

const tde_epoch_keys *tde_keys_epoch(const tde_keys *keys, uint32_t epoch) {
  for (int i = 0; keys && i < keys->nepochs; i++) {
    if (keys->epochs[i].epoch == epoch) return &keys->epochs[i];
  }
  return NULL;
}

/* Wipes entries that nobody used for too long. Called with the lock held. */
static void expire_idle(void) {
  time_t now = now_seconds();
  static time_t last;

  if (idle_count == 0 || (now == last && idle_count <= TDE_IDLE_DEKS)) return;
  last = now;
  for (unsigned b = 0; b < BUCKETS; b++) {
    tde_keys *k = buckets[b], *next;
    for (; k; k = next) {
      next = k->next;
      if (k->refs || k->state != ENTRY_LIVE) continue;
      if (now - k->idle_since < TDE_IDLE_SECONDS && idle_count <= TDE_IDLE_DEKS) continue;
      unlink_entry(k);
      idle_count--;
      live_count--;
      free_entry(k);
    }
  }
}

static int has_all_epochs(const tde_keys *k, const tde_key_facts *facts) {
  for (int i = 0; i < facts->nepochs; i++) {
    if (!tde_keys_epoch(k, facts->epochs[i])) return 0;
  }
  return 1;
}

static void take_ref(tde_keys *k) {
  if (k->refs++ == 0 && k->state == ENTRY_LIVE) idle_count--;
}

static void drop_ref(tde_keys *k) {
  if (--k->refs > 0) return;
  if (k->state == ENTRY_LIVE) {
    k->idle_since = now_seconds();
    idle_count++;
  } else if (k->state == ENTRY_FAILED) {
    free_entry(k); /* unlinked when it failed */
  }
}

void tde_keyring_release(tde_keys *keys) {
  if (!keys) return;
  pthread_mutex_lock(&ring_lock);
  drop_ref(keys);
  expire_idle();
  pthread_mutex_unlock(&ring_lock);
}

int tde_keyring_count(void) {
  int n;
  pthread_mutex_lock(&ring_lock);
  n = live_count;
  pthread_mutex_unlock(&ring_lock);
  return n;
}

/* A live entry that verified exactly this header before: nothing to parse and
** nothing to compute. With a reference; or NULL. */
static tde_keys *find_known(const tde_header *h) {
  for (tde_keys *k = buckets[bucket_of(h->uuid)]; k; k = k->next) {
    if (k->state == ENTRY_LIVE && memcmp(k->uuid, h->uuid, TDE_UUID_BYTES) == 0 &&
        memcmp(k->slot_sha, h->sha, TDE_HASH_BYTES) == 0) {
      take_ref(k);
      return k;
    }
  }
  return NULL;
}

/* A live entry whose DEK verifies this header, with a reference; or NULL. */
static tde_keys *find_live(const tde_header *h, const tde_key_facts *facts) {
  for (tde_keys *k = buckets[bucket_of(h->uuid)]; k; k = k->next) {
    const tde_epoch_keys *e;
    if (k->state != ENTRY_LIVE || memcmp(k->uuid, h->uuid, TDE_UUID_BYTES) != 0) continue;
    e = tde_keys_epoch(k, h->epoch);
    if (!e || !has_all_epochs(k, facts)) continue;
    if (tde_header_check_mac(h, e->mac_key) != TDE_OK) continue;
    memcpy(k->slot_sha, h->sha, TDE_HASH_BYTES);
    k->facts = *facts;
    take_ref(k);
    return k;
  }
  return NULL;
}

static tde_keys *find_fetching(const tde_header *h) {
  uint64_t generation = tde_fork_generation();
  tde_keys *k, *next;

  for (k = buckets[bucket_of(h->uuid)]; k; k = next) {
    next = k->next;
    if (k->state != ENTRY_FETCHING || memcmp(k->uuid, h->uuid, TDE_UUID_BYTES) != 0) continue;
    if (k->fork_generation != generation) {
      /* Its fetcher is a thread of the parent: nobody will finish it here. */
      unlink_entry(k);
      continue;
    }
    if (memcmp(k->slot_sha, h->sha, TDE_HASH_BYTES) == 0) return k;
  }
  return NULL;
}

static tde_keys *new_entry(const uint8_t *uuid) {
  tde_keys *k = calloc(1, sizeof(*k));
  if (!k) return NULL;
  memcpy(k->uuid, uuid, TDE_UUID_BYTES);
  k->state = ENTRY_FETCHING;
  k->refs = 1;
  k->fork_generation = tde_fork_generation();
  return k;
}

/* Asks for every epoch's DEK; no lock is held. */
static tde_class fetch(tde_keys *k, const tde_key_source *source, const tde_key_params *params,
                       const tde_header *h, const tde_key_facts *facts, tde_status *st) {
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  const tde_epoch_keys *e;
  tde_class c = dek ? TDE_OK : TDE_NOMEM;

  if (c)
    tde_fail(st, TDE_NOMEM, "close other databases or give the process more memory",
             "no memory for the database's key");
  for (int i = 0; c == TDE_OK && i < facts->nepochs; i++) {
    c = source->unwrap(source->ctx, params, h->uuid, h->doc, h->ndoc, facts->epochs[i], dek, st);
    if (c == TDE_OK) {
      c = add_epoch(k, facts->epochs[i], dek);
      if (c) tde_fail(st, c, NULL, "the keys of epoch %u could not be derived", facts->epochs[i]);
    }
  }
  tde_secret_free(dek);
  if (c) return c;
  e = tde_keys_epoch(k, h->epoch);
  if (!e) {
    return tde_fail(st, TDE_CORRUPT, "restore the file from a backup",
                    "the key document names no key for epoch %u", h->epoch);
  }
  c = tde_header_check_mac(h, e->mac_key);
  if (c && c != TDE_WRONG_KEY) {
    return tde_fail(st, c, NULL, "the header's authentication could not be computed");
  }
  if (c) {
    return tde_fail(st, TDE_WRONG_KEY,
                    "restore the header's other slot or a backup; the key itself answered",
                    "key %s unwraps a DEK that does not verify this header", facts->key_id);
  }
  return TDE_OK;
}

/* Publishes the outcome of a fetch. Called with the lock held. */
static void settle(tde_keys *k, tde_class c, const tde_status *st) {
  if (c == TDE_OK) {
    k->state = ENTRY_LIVE;
    live_count++;
  } else {
    k->state = ENTRY_FAILED;
    k->failure = *st;
    k->failure.code = c;
    unlink_entry(k);
  }
  pthread_cond_broadcast(&ring_changed);
}

/* Waits for another thread's fetch; its reference is ours on success. */
static tde_class wait_for(tde_keys *k, tde_keys **out, tde_status *st) {
  tde_class c = TDE_OK;

  k->refs++;
  while (k->state == ENTRY_FETCHING) pthread_cond_wait(&ring_changed, &ring_lock);
  if (k->state == ENTRY_LIVE) {
    *out = k;
    return TDE_OK;
  }
  c = k->failure.code;
  if (st) *st = k->failure;
  drop_ref(k);
  return c;
}

/* The way of a header that no live entry verified before. The lock is held on
** entry and on return, and given up while a key service is asked. */
static tde_class unlock_new(const tde_key_source *source, const tde_key_params *params,
                            const tde_header *header, const tde_key_facts *facts, tde_keys **out,
                            tde_status *st) {
  tde_keys *k = find_live(header, facts);
  tde_class c;

  *out = k;
  if (k) return TDE_OK;
  k = find_fetching(header);
  if (k) return wait_for(k, out, st);
  k = new_entry(header->uuid);
  if (!k) return tde_fail(st, TDE_NOMEM, NULL, "no memory for the database's key");
  memcpy(k->slot_sha, header->sha, TDE_HASH_BYTES);
  k->facts = *facts;
  link_entry(k);
  pthread_mutex_unlock(&ring_lock);
  c = fetch(k, source, params, header, facts, st);
  pthread_mutex_lock(&ring_lock);
  settle(k, c, st);
  if (c) {
    drop_ref(k);
    k = NULL;
  }
  *out = k;
  return c;
}

tde_class tde_keyring_unlock(const tde_key_source *source, const tde_key_params *params,
                             const tde_header *header, tde_key_facts *facts, tde_keys **out,
                             tde_status *st) {
  tde_status local;
  tde_class c = TDE_OK;

  if (!st) st = &local;
  pthread_once(&ring_once, ring_init);
  pthread_mutex_lock(&ring_lock);
  expire_idle();
  *out = find_known(header);
  if (*out) *facts = (*out)->facts;
  pthread_mutex_unlock(&ring_lock);
  if (*out) return TDE_OK;

  tde_status_clear(st);
  c = source->describe(source->ctx, header->doc, header->ndoc, facts, st);
  if (c) return c;
  pthread_mutex_lock(&ring_lock);
  c = unlock_new(source, params, header, facts, out, st);
  pthread_mutex_unlock(&ring_lock);
  return c;
}

tde_class tde_keyring_adopt(const uint8_t uuid[TDE_UUID_BYTES], uint32_t epoch, const uint8_t *dek,
                            tde_keys **out, tde_status *st) {
  tde_keys *k;
  tde_class c;

  *out = NULL;
  pthread_once(&ring_once, ring_init);
  k = new_entry(uuid);
  if (!k) return tde_fail(st, TDE_NOMEM, NULL, "no memory for the database's key");
  c = add_epoch(k, epoch, dek);
  if (c) {
    free_entry(k);
    return tde_fail(st, c, NULL, "the new database's keys could not be derived");
  }
  pthread_mutex_lock(&ring_lock);
  k->state = ENTRY_LIVE;
  live_count++;
  link_entry(k);
  pthread_mutex_unlock(&ring_lock);
  *out = k;
  return TDE_OK;
}
