/*
** keyring_keys.c: what connections do with the keys of an entry that they refer to; see keyring.h.
*/
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/secret.h"
#include "keyring_int.h"
#include "shim.h"

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

const atomic_uint *tde_keys_replaced(const tde_keys *keys) {
  return &keys->epochs.replaced;
}

int tde_keys_has(const tde_keys *keys, uint32_t epoch) {
  int has;

  if (!keys) return 0;
  tde_ring_lock();
  has = tde_epochs_find(&keys->epochs, epoch) != NULL;
  tde_ring_unlock();
  return has;
}

/* The epoch's keys, or why there are none. The lock is held. */
static tde_class keys_of(const tde_keys *k, uint32_t epoch, const tde_epoch_keys **out) {
  *out = k ? tde_epochs_find(&k->epochs, epoch) : NULL;
  if (!*out) return TDE_WRONG_KEY;
  return (*out)->dek ? TDE_OK : tde_entry_not_live(k, NULL);
}

tde_class tde_keys_aead(tde_keys *keys, uint32_t epoch, int role, tde_aead **out) {
  const tde_epoch_keys *e;
  tde_class c;

  tde_ring_lock();
  c = keys_of(keys, epoch, &e);
  if (c == TDE_OK) c = tde_aead_new(e->role_key[role - 1], e->nonces[role - 1], out, NULL);
  if (c == TDE_OK && role == TDE_ROLE_MAIN && e->derived) tde_aead_tell(*out, e->derived);
  tde_ring_unlock();
  return c;
}

void tde_keys_note_derived(tde_keys *keys, uint32_t epoch, unsigned seen, const tde_aead *aead) {
  const tde_derived *d = tde_aead_derived(aead);
  tde_epoch_keys *e;

  if (!d->valid) return;
  tde_ring_lock();
  e = tde_epochs_any(&keys->epochs, epoch);
  if (e && e->dek && !e->stale && seen == atomic_load(&keys->epochs.replaced)) {
    if (!e->derived) e->derived = tde_secret_alloc(sizeof(*d));
    if (e->derived) *e->derived = *d; /* without memory it is derived again */
  }
  tde_ring_unlock();
}

tde_class tde_keys_mac_key(const tde_keys *keys, uint32_t epoch, uint8_t out[TDE_KEY_BYTES]) {
  const tde_epoch_keys *e;
  tde_class c;

  tde_ring_lock();
  c = keys_of(keys, epoch, &e);
  if (c == TDE_OK) memcpy(out, e->mac_key, TDE_KEY_BYTES);
  tde_ring_unlock();
  return c;
}

tde_class tde_keys_dek(const tde_keys *keys, uint32_t epoch, uint8_t *out) {
  const tde_epoch_keys *e;
  tde_class c;

  tde_ring_lock();
  c = keys_of(keys, epoch, &e);
  if (c == TDE_OK) memcpy(out, e->dek, TDE_KEY_BYTES);
  tde_ring_unlock();
  return c;
}

int tde_keyring_verifies(tde_keys *keys, const tde_key_source *source, const tde_header *header) {
  tde_key_facts *facts = malloc(sizeof(*facts));
  int good = facts &&
             source->describe(source->ctx, header->doc, header->ndoc, facts, NULL) == TDE_OK;

  tde_ring_lock();
  good = good && memcmp(keys->uuid, header->uuid, TDE_UUID_BYTES) == 0 &&
         tde_entry_verifies(keys, 0, header, facts);
  tde_ring_unlock();
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
  tde_ring_lock();
  if (c == TDE_OK && !atomic_load(&keys->live)) c = tde_entry_not_live(keys, NULL);
  if (c == TDE_OK) c = tde_epochs_header_key(&keys->epochs, 0, NULL, 0, facts, key);
  tde_ring_unlock();
  free(facts);
  if (c == TDE_OK) c = tde_slot_build(h, key, slot);
  tde_wipe(key, sizeof(key));
  return c;
}

tde_class tde_keys_add_epoch(tde_keys *keys, uint32_t epoch, const uint8_t *dek, int pending) {
  tde_epoch_keys e, *left;
  tde_class c = tde_epoch_derive(keys->uuid, epoch, dek, &e);

  if (c) return c;
  tde_ring_lock();
  left = tde_epochs_any(&keys->epochs, epoch);
  /* Of an attempt whose header was not written. */
  if (left && !tde_facts_name_epoch(&keys->facts, epoch)) left->stale = 1;
  c = atomic_load(&keys->live) ? tde_epochs_install(&keys->epochs, &keys->facts, &e)
                               : tde_entry_not_live(keys, NULL);
  if (c == TDE_OK) tde_epochs_any(&keys->epochs, epoch)->pending = pending;
  tde_ring_unlock();
  tde_epoch_wipe(&e);
  return c;
}

void tde_keys_abandon_epochs(tde_keys *keys, const tde_key_facts *facts) {
  if (!keys) return;
  tde_ring_lock();
  tde_epochs_abandon(&keys->epochs, facts);
  tde_ring_unlock();
}

/* ---- what they are about ---- */

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
  tde_ring_lock();
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
  tde_ring_unlock();
}

tde_class tde_keys_about(const tde_keys *keys, uint8_t uuid[TDE_UUID_BYTES], tde_key_facts *facts,
                         tde_key_params *params) {
  int ok;

  tde_ring_lock();
  memcpy(uuid, keys->uuid, TDE_UUID_BYTES);
  *facts = keys->facts;
  ok = tde_key_params_copy(params, &keys->params);
  tde_ring_unlock();
  return ok ? TDE_OK : TDE_NOMEM;
}
