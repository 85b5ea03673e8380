/*
** pure.c: what a record is bound to, one field at a time, under one key; and
** where the records of a main database lie, by arithmetic of its own.
*/
#include "cases.h"
#include "files.h"

#include "../../ext/base/crypto.h"
#include "../../vfs/role.h"
#include "../../vfs/unit.h"

/* Under one and the same key each field of the associated data must tell by
** itself; in files the roles' keys differ as well and would hide a lack. */
tally unit_associated(void) {
  static const uint8_t key[32] = {1, 2, 3}, salt[16] = {9, 8, 7};
  uint8_t content[512], record[512 + OVERHEAD], out[512], other_salt[16] = {9, 8, 7};
  tde_aead *aead = NULL;
  tde_unit_place here = {3, 0x123456789aull, salt}, there;
  tde_status st;
  tally t = {0, 0};

  tde_status_clear(&st);
  for (size_t k = 0; k < sizeof(content); k++) content[k] = (uint8_t)(k * 7);
  if (tde_crypto_init(&st) || tde_aead_new(key, NULL, &aead, &st) ||
      tde_unit_seal(aead, &here, 5, 10, content, record, 512)) {
    judge(&t, 0, "could not seal");
    return t;
  }
  judge(&t,
        tde_unit_open(aead, &here, record, 512, out) == TDE_OK && memcmp(out, content, 512) == 0,
        "the record itself");
  for (int bit = 0; bit < 64; bit++) {
    there = here;
    there.index ^= 1ull << bit;
    judge(&t, tde_unit_open(aead, &there, record, 512, out) == TDE_TAMPERED, "index bit %d", bit);
  }
  for (int bit = 0; bit < 8; bit++) {
    there = here;
    there.role ^= (uint8_t)(1u << bit);
    judge(&t, tde_unit_open(aead, &there, record, 512, out) == TDE_TAMPERED, "role bit %d", bit);
  }
  for (int bit = 0; bit < 128; bit++) {
    there = here;
    there.salt = other_salt;
    other_salt[bit / 8] ^= (uint8_t)(1u << bit % 8);
    judge(&t, tde_unit_open(aead, &there, record, 512, out) == TDE_TAMPERED, "salt bit %d", bit);
    other_salt[bit / 8] ^= (uint8_t)(1u << bit % 8);
  }
  for (int bit = 0; bit < 64; bit++) { /* epoch and pad stand in the record */
    int zeros = 0;
    memset(out, 0x55, sizeof(out));
    record[bit / 8] ^= (uint8_t)(1u << bit % 8);
    judge(&t, tde_unit_open(aead, &here, record, 512, out) == TDE_TAMPERED, "%s bit %d",
          bit < 32 ? "epoch" : "pad", bit % 32);
    record[bit / 8] ^= (uint8_t)(1u << bit % 8);
    for (int k = 0; k < 512; k++) zeros += out[k] == 0;
    judge(&t, zeros == 512, "plaintext was handed out");
  }
  there = here;
  there.salt = NULL;
  judge(&t, tde_unit_open(aead, &there, record, 512, out) == TDE_TAMPERED, "no salt");
  tde_aead_free(aead);
  return t;
}

/* FORMAT.md, "Main database", counted up instead of computed. */
tally layout(void) {
  tally t = {0, 0};

  for (uint32_t u = 512; u <= 4096; u *= 2) {
    tde_geometry g;
    uint64_t at_byte = HEADER, i = 0, rest, last;
    tde_geometry_init(&g, TDE_ROLE_MAIN, u);
    last = 0x40000000ull / (u + OVERHEAD) + 1000;
    for (; i < last; i++) {
      uint64_t end = at_byte + u + OVERHEAD;
      if (at_byte < 0x40000000ull && end > 0x40000000ull) {
        at_byte = 0x40010000ull;
        end = at_byte + u + OVERHEAD;
      }
      /* Each unit near the lock bytes, and a sample of the others. */
      if (i % 4099 == 0 || (at_byte > 0x3fff0000ull && at_byte < 0x40020000ull)) {
        judge(&t, tde_unit_physical(&g, i) == at_byte, "U %u, unit %llu", u, (unsigned long long)i);
        judge(&t, tde_units_in(&g, end, &rest) == i + 1 && rest == 0, "U %u, size with unit %llu",
              u, (unsigned long long)i);
        judge(&t, tde_units_in(&g, end - 1, &rest) == i && rest == u + OVERHEAD - 1,
              "U %u, size within unit %llu", u, (unsigned long long)i);
        judge(&t, tde_lower_size(&g, i + 1) == end, "U %u, lower size of unit %llu", u,
              (unsigned long long)i);
      }
      at_byte = end;
    }
  }
  return t;
}
