/*
** unit.h: seals and opens one unit. Pure: no I/O, no state but the cryptor's.
**
** A record on disk is
**
**     epoch (4, LE) | pad (4, LE) | nonce (24) | ciphertext (U) | tag (16)
**
** The associated data is built from where the unit stands, never from what
** the record says: index (8) | epoch (4) | pad (3) and role (1) | salt (16).
** So a record opens only in its own place, role, generation and database
** (whose UUID is in the key), and its epoch and pad fields are authenticated.
** FORMAT.md has the bytes.
*/
#ifndef TDE_UNIT_H
#define TDE_UNIT_H

#include "../ext/base/crypto.h"

#define TDE_UNIT_HEAD 32u     /* epoch, pad, nonce */
#define TDE_UNIT_OVERHEAD 48u /* head and tag */

/* Where a unit stands. */
typedef struct tde_unit_place {
  uint8_t role; /* tde_role */
  uint64_t index;
  const uint8_t *salt; /* TDE_SALT_BYTES, or NULL: zeros */
} tde_unit_place;

/* The epoch and pad that a record claims; authenticated only by tde_unit_open. */
uint32_t tde_unit_epoch(const uint8_t *record);
uint32_t tde_unit_pad(const uint8_t *record);

/* Seals n bytes of pt into record (n + 48 bytes; pt may be record + 32). pad:
** how many bytes at the unit's end lie beyond the end of the file. */
tde_class tde_unit_seal(tde_aead *aead, const tde_unit_place *at, uint32_t epoch, uint32_t pad,
                        const uint8_t *pt, uint8_t *record, uint32_t n);

/* Opens a record of n + 48 bytes into out (n bytes; may be record + 32).
** TDE_TAMPERED: not authentic; out is wiped. */
tde_class tde_unit_open(tde_aead *aead, const tde_unit_place *at, const uint8_t *record, uint32_t n,
                        uint8_t *out);

#endif
