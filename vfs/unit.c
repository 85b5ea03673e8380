/*
** unit.c: seals and opens one unit; see unit.h for the layout.
*/
#include "unit.h"

#include <string.h>

#include "../ext/base/bytes.h"

#define PAD_MAX 0xffffffu

uint32_t tde_unit_epoch(const uint8_t *record) {
  return tde_get32le(record);
}

uint32_t tde_unit_pad(const uint8_t *record) {
  return tde_get32le(record + 4);
}

static void build_aad(const tde_unit_place *at, uint32_t epoch, uint32_t pad,
                      uint8_t aad[TDE_AAD_BYTES]) {
  tde_put64le(aad, at->index);
  tde_put32le(aad + 8, epoch);
  tde_put32le(aad + 12, (pad & PAD_MAX) | ((uint32_t)at->role << 24));
  if (at->salt) {
    memcpy(aad + 16, at->salt, TDE_SALT_BYTES);
  } else {
    memset(aad + 16, 0, TDE_SALT_BYTES);
  }
}

tde_class tde_unit_seal(tde_aead *aead, const tde_unit_place *at, uint32_t epoch, uint32_t pad,
                        const uint8_t *pt, uint8_t *record, uint32_t n) {
  uint8_t aad[TDE_AAD_BYTES];

  if (pad > PAD_MAX || pad > n) return TDE_INTERNAL;
  build_aad(at, epoch, pad, aad);
  tde_put32le(record, epoch);
  tde_put32le(record + 4, pad);
  return tde_aead_seal(aead, aad, sizeof(aad), pt, n, record + 8, record + TDE_UNIT_HEAD,
                       record + TDE_UNIT_HEAD + n);
}

tde_class tde_unit_open(tde_aead *aead, const tde_unit_place *at, const uint8_t *record, uint32_t n,
                        uint8_t *out) {
  uint8_t aad[TDE_AAD_BYTES];
  uint32_t pad = tde_unit_pad(record);

  if (pad > n) {
    memset(out, 0, n);
    return TDE_TAMPERED;
  }
  build_aad(at, tde_unit_epoch(record), pad, aad);
  return tde_aead_open(aead, aad, sizeof(aad), record + 8, record + TDE_UNIT_HEAD, n,
                       record + TDE_UNIT_HEAD + n, out);
}
