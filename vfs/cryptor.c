/*
** cryptor.c: the AEADs of one role on one file handle; see cryptor.h.
*/
#include "cryptor.h"

#include <string.h>

#include "../ext/base/secret.h"

int tde_epoch_is_named(const tde_named_epochs *named, uint32_t epoch) {
  for (int i = 0; i < named->n; i++) {
    if (named->epoch[i] == epoch) return 1;
  }
  return 0;
}

void tde_cryptor_init(tde_cryptor *c, tde_role role, tde_keys *keys, const tde_named_epochs *named,
                      uint32_t current) {
  memset(c, 0, sizeof(*c));
  c->role = (uint8_t)role;
  c->keys = keys;
  c->named = named;
  c->current = current;
  c->replaced = keys ? tde_keys_replaced(keys) : NULL;
  if (c->replaced) c->seen = atomic_load_explicit(c->replaced, memory_order_acquire);
}

tde_class tde_cryptor_init_temp(tde_cryptor *c, tde_status *st) {
  uint8_t *key = tde_secret_alloc(TDE_KEY_BYTES);
  tde_class rc;

  memset(c, 0, sizeof(*c));
  c->role = TDE_ROLE_TEMP;
  if (!key) return tde_fail(st, TDE_NOMEM, NULL, "no memory for a temporary file's key");
  rc = tde_random(key, TDE_KEY_BYTES, st);
  if (rc == TDE_OK) rc = tde_aead_new(key, NULL, &c->list[0].aead, st);
  if (rc == TDE_OK) c->n = 1;
  tde_secret_free(key);
  return rc;
}

void tde_cryptor_wipe(tde_cryptor *c) {
  for (int i = 0; i < c->n; i++) tde_aead_free(c->list[i].aead);
  c->n = c->last = 0;
}

void tde_cryptor_clear(tde_cryptor *c) {
  for (int i = 0; c->role == TDE_ROLE_MAIN && i < c->n; i++) {
    tde_keys_note_derived(c->keys, c->list[i].epoch, c->seen, c->list[i].aead);
  }
  tde_cryptor_wipe(c);
  memset(c, 0, sizeof(*c));
}

/* Room for one more: an epoch that is neither current nor the last used goes. */
static void make_room(tde_cryptor *c) {
  for (int i = 0; i < c->n && c->n >= TDE_EPOCHS_MAX; i++) {
    if (c->list[i].epoch == c->current || i == c->last) continue;
    tde_aead_free(c->list[i].aead);
    c->list[i] = c->list[--c->n];
    if (c->last == c->n) c->last = i;
  }
}

void tde_cryptor_prune(tde_cryptor *c) {
  for (int i = c->n; i > 0; i--) {
    if (tde_epoch_is_named(c->named, c->list[i - 1].epoch)) continue;
    tde_aead_free(c->list[i - 1].aead);
    c->list[i - 1] = c->list[--c->n];
  }
  c->last = 0;
}

tde_class tde_cryptor_get(tde_cryptor *c, uint32_t epoch, tde_aead **out) {
  tde_class rc;

  if (c->replaced && c->seen != atomic_load_explicit(c->replaced, memory_order_acquire)) {
    tde_cryptor_wipe(c);
    c->seen = atomic_load_explicit(c->replaced, memory_order_acquire);
  }
  if (c->last < c->n && c->list[c->last].epoch == epoch) {
    *out = c->list[c->last].aead;
    return TDE_OK;
  }
  for (int i = 0; i < c->n; i++) {
    if (c->list[i].epoch == epoch) {
      c->last = i;
      *out = c->list[i].aead;
      return TDE_OK;
    }
  }
  if (!c->keys || !tde_epoch_is_named(c->named, epoch)) return TDE_WRONG_KEY;
  make_room(c);
  rc = tde_keys_aead(c->keys, epoch, c->role, &c->list[c->n].aead);
  if (rc) return rc;
  c->list[c->n].epoch = epoch;
  c->last = c->n++;
  *out = c->list[c->last].aead;
  return TDE_OK;
}
