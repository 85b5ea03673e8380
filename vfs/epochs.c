/*
** epochs.c: the keys of one database's DEK epochs; see epochs.h.
*/
#include "epochs.h"

#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"

struct tde_retired_nonces {
  tde_retired_nonces *next;
  tde_nonce_source *nonces[TDE_ROLE_KEYS];
};

/* Derives one key: HKDF-SHA256, salt = UUID (FORMAT.md, Keys). */
static tde_class derive_one(const uint8_t *uuid, const uint8_t *dek, const char *purpose,
                            uint8_t **out) {
  *out = tde_secret_alloc(TDE_KEY_BYTES);
  if (!*out) return TDE_NOMEM;
  return tde_hkdf_sha256(uuid, TDE_UUID_BYTES, dek, TDE_KEY_BYTES, (const uint8_t *)purpose,
                         strlen(purpose), *out, TDE_KEY_BYTES);
}

void tde_epoch_wipe(tde_epoch_keys *e) {
  tde_secret_free(e->dek);
  tde_secret_free(e->mac_key);
  tde_secret_free(e->derived);
  e->dek = e->mac_key = NULL;
  e->derived = NULL;
  for (int r = 0; r < TDE_ROLE_KEYS; r++) {
    tde_secret_free(e->role_key[r]);
    e->role_key[r] = NULL;
  }
}

tde_class tde_epoch_derive(const uint8_t *uuid, uint32_t epoch, const uint8_t *dek,
                           tde_epoch_keys *out) {
  static const char *const purpose[TDE_ROLE_KEYS] = {"sqlite-tde v1 main", "sqlite-tde v1 wal",
                                                     "sqlite-tde v1 journal"};
  tde_class c;

  memset(out, 0, sizeof(*out));
  out->epoch = epoch;
  out->dek = tde_secret_alloc(TDE_KEY_BYTES);
  if (!out->dek) return TDE_NOMEM;
  memcpy(out->dek, dek, TDE_KEY_BYTES);
  c = derive_one(uuid, dek, "sqlite-tde v1 header mac", &out->mac_key);
  for (int r = 0; c == TDE_OK && r < TDE_ROLE_KEYS; r++) {
    c = derive_one(uuid, dek, purpose[r], &out->role_key[r]);
  }
  if (c) tde_epoch_wipe(out);
  return c;
}

int tde_facts_name_epoch(const tde_key_facts *facts, uint32_t epoch) {
  for (int i = 0; i < facts->nepochs; i++) {
    if (facts->epochs[i] == epoch) return 1;
  }
  return 0;
}

static const tde_epoch_keys *entry_of(const tde_epoch_keys *of, int n, uint32_t epoch) {
  for (int i = 0; i < n; i++) {
    if (of[i].epoch == epoch) return &of[i];
  }
  return NULL;
}

tde_epoch_keys *tde_epochs_any(tde_epochs *s, uint32_t epoch) {
  return (tde_epoch_keys *)entry_of(s->of, s->n, epoch);
}

const tde_epoch_keys *tde_epochs_find(const tde_epochs *s, uint32_t epoch) {
  const tde_epoch_keys *e = entry_of(s->of, s->n, epoch);
  return e && !e->stale ? e : NULL;
}

/* Makes room for one more by letting go of an epoch that is not named any more. TDE_CORRUPT: all
** are named. */
static tde_class retire_one(tde_epochs *s, const tde_key_facts *named) {
  for (int i = 0; i < s->n; i++) {
    tde_retired_nonces *r;
    if (s->of[i].pending || tde_facts_name_epoch(named, s->of[i].epoch)) continue;
    r = malloc(sizeof(*r));
    if (!r) return TDE_NOMEM;
    memcpy(r->nonces, s->of[i].nonces, sizeof(r->nonces));
    r->next = s->old;
    s->old = r;
    tde_epoch_wipe(&s->of[i]);
    s->of[i] = s->of[--s->n];
    return TDE_OK;
  }
  return TDE_CORRUPT;
}

/* A new entry without keys. */
static tde_class add(tde_epochs *s, const tde_key_facts *named, uint32_t epoch,
                     tde_epoch_keys **out) {
  tde_class c = s->n >= TDE_EPOCHS_MAX ? retire_one(s, named) : TDE_OK;
  tde_epoch_keys *e;

  if (c) return c;
  e = &s->of[s->n];
  memset(e, 0, sizeof(*e));
  for (int r = 0; r < TDE_ROLE_KEYS; r++) {
    e->nonces[r] = tde_nonce_source_new();
    if (e->nonces[r]) continue;
    while (r > 0) tde_nonce_source_free(e->nonces[--r]);
    return TDE_NOMEM;
  }
  e->epoch = epoch;
  s->n++;
  *out = e;
  return TDE_OK;
}

tde_class tde_epochs_install(tde_epochs *s, const tde_key_facts *named, tde_epoch_keys *from) {
  tde_epoch_keys *e = tde_epochs_any(s, from->epoch);

  if (e && e->dek && !e->stale && !tde_equal(e->dek, from->dek, TDE_KEY_BYTES)) {
    return TDE_WRONG_KEY;
  }
  if (!e) {
    tde_class c = add(s, named, from->epoch, &e);
    if (c) return c;
  } else if (!e->dek || !tde_equal(e->dek, from->dek, TDE_KEY_BYTES)) {
    atomic_fetch_add(&s->replaced, 1);
  }
  tde_epoch_wipe(e);
  e->stale = 0;
  e->dek = from->dek;
  e->mac_key = from->mac_key;
  memcpy(e->role_key, from->role_key, sizeof(e->role_key));
  memset(from, 0, sizeof(*from));
  return TDE_OK;
}

static const uint8_t *mac_key_of(const tde_epochs *s, int stale, const tde_epoch_keys *got,
                                 int ngot, uint32_t epoch) {
  const tde_epoch_keys *e = entry_of(got, ngot, epoch);

  if (!e) e = entry_of(s->of, s->n, epoch);
  return e && (stale || !e->stale) ? e->mac_key : NULL;
}

tde_class tde_epochs_header_key(const tde_epochs *s, int stale, const tde_epoch_keys *got, int ngot,
                                const tde_key_facts *facts, uint8_t out[TDE_KEY_BYTES]) {
  uint8_t others[TDE_EPOCHS_MAX * (4 + TDE_KEY_BYTES)];
  const uint8_t *current = mac_key_of(s, stale, got, ngot, facts->epoch);
  tde_class c = current ? TDE_OK : TDE_WRONG_KEY;
  size_t n = 0;

  for (int i = 0; c == TDE_OK && i < facts->nepochs; i++) {
    const uint8_t *key;
    if (facts->epochs[i] == facts->epoch) continue;
    key = mac_key_of(s, stale, got, ngot, facts->epochs[i]);
    if (!key) c = TDE_WRONG_KEY;
    tde_put32le(others + n, facts->epochs[i]);
    if (key) memcpy(others + n + 4, key, TDE_KEY_BYTES);
    n += 4 + TDE_KEY_BYTES;
  }
  if (c == TDE_OK && n == 0) memcpy(out, current, TDE_KEY_BYTES);
  if (c == TDE_OK && n > 0) {
    c = tde_hmac_sha256(current, TDE_KEY_BYTES, others, n, NULL, 0, out);
  }
  tde_wipe(others, sizeof(others));
  return c;
}

int tde_epochs_missing(const tde_epochs *s, const tde_key_facts *facts,
                       uint32_t out[TDE_EPOCHS_MAX]) {
  int n = 0;

  for (int i = 0; i < facts->nepochs; i++) {
    const tde_epoch_keys *e = tde_epochs_find(s, facts->epochs[i]);
    if (!e || !e->dek) out[n++] = facts->epochs[i];
  }
  return n;
}

int tde_epochs_ahead(const tde_epochs *s, uint32_t epoch, const tde_key_facts *facts) {
  for (int i = 0; i < s->n; i++) {
    const tde_epoch_keys *e = &s->of[i];
    if (e->epoch > epoch && !e->stale && !e->pending && !tde_facts_name_epoch(facts, e->epoch)) {
      return 1;
    }
  }
  return 0;
}

void tde_epochs_outdate(tde_epochs *s, uint32_t epoch, const tde_key_facts *facts) {
  for (int i = 0; i < s->n; i++) {
    tde_epoch_keys *e = &s->of[i];
    if (tde_facts_name_epoch(facts, e->epoch)) {
      e->pending = 0;
    } else if (e->epoch > epoch && !e->pending) {
      e->stale = 1;
    }
  }
}

void tde_epochs_abandon(tde_epochs *s, const tde_key_facts *facts) {
  for (int i = 0; i < s->n; i++) {
    tde_epoch_keys *e = &s->of[i];
    if (e->pending && !tde_facts_name_epoch(facts, e->epoch)) e->stale = 1;
    e->pending = 0;
  }
}

void tde_epochs_wipe(tde_epochs *s) {
  for (int i = 0; i < s->n; i++) tde_epoch_wipe(&s->of[i]);
}

void tde_epochs_free(tde_epochs *s) {
  tde_epochs_wipe(s);
  for (int i = 0; i < s->n; i++) {
    for (int r = 0; r < TDE_ROLE_KEYS; r++) tde_nonce_source_free(s->of[i].nonces[r]);
  }
  while (s->old) {
    tde_retired_nonces *r = s->old;
    s->old = r->next;
    for (int i = 0; i < TDE_ROLE_KEYS; i++) tde_nonce_source_free(r->nonces[i]);
    free(r);
  }
  memset(s, 0, sizeof(*s));
}
