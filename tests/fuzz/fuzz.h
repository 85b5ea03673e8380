/*
** fuzz.h: what the fuzz targets share.
**
** A target is a parser, or the whole shim, and what must hold whatever bytes it
** gets. Two programs run the same targets: libFuzzer's (entry.c, clang) and a
** seeded mutation loop (loop.c, any compiler). Everything that a run draws at
** random comes from fuzz_random, so that an input replays the same way.
*/
#ifndef TDE_FUZZ_H
#define TDE_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../../ext/base/status.h"

typedef struct fuzz_target {
  const char *name;
  void (*setup)(void); /* once, before the first run; may be NULL */
  void (*run)(const uint8_t *data, size_t size);
  size_t max_len;           /* longest input worth trying, in bytes */
  const char *const *words; /* what the format is made of; NULL at the end */
} fuzz_target;

extern const fuzz_target fuzz_slot, fuzz_prefix, fuzz_unit, fuzz_keydoc, fuzz_json, fuzz_keyid,
    fuzz_instance, fuzz_service, fuzz_text, fuzz_db;

/* A rule that does not hold: says so and aborts, which either program reports
** together with the input. */
#define FUZZ_ASSERT(x)                             \
  do {                                             \
    if (!(x)) fuzz_broken(#x, __FILE__, __LINE__); \
  } while (0)
_Noreturn void fuzz_broken(const char *rule, const char *file, int line);

/* Input, read from the front; zeros once it is used up. */
typedef struct fuzz_reader {
  const uint8_t *p;
  size_t n;
} fuzz_reader;

static inline uint8_t fuzz_u8(fuzz_reader *r) {
  if (!r->n) return 0;
  r->n--;
  return *r->p++;
}
static inline uint16_t fuzz_u16(fuzz_reader *r) {
  uint16_t lo = fuzz_u8(r);
  return (uint16_t)(lo | fuzz_u8(r) << 8);
}
static inline uint32_t fuzz_u32(fuzz_reader *r) {
  uint32_t lo = fuzz_u16(r);
  return lo | (uint32_t)fuzz_u16(r) << 16;
}

/* Overwrites parts of b[0..n) as the input says, to its end: offset (2), length
** 1 to 8 (1), bytes. */
void fuzz_edit(fuzz_reader *r, uint8_t *b, size_t n);

/* The process's only source of randomness: getrandom(2) is answered from here. */
void fuzz_random_seed(uint64_t seed);
uint64_t fuzz_random(void);

/* A scratch folder in memory, gone when the process ends well. */
const char *fuzz_scratch(void);

/* A status must be printable lines within its bounds, whatever the input was. */
void fuzz_check_status(const tde_status *st);

/* The keys that a database with this UUID and DEK has (FORMAT.md, Keys). */
typedef struct fuzz_keys {
  uint8_t mac[TDE_KEY_BYTES];
  uint8_t role[4][TDE_KEY_BYTES]; /* by role number; 0 is not used */
} fuzz_keys;
void fuzz_derive(const uint8_t uuid[TDE_UUID_BYTES], const uint8_t dek[TDE_KEY_BYTES],
                 fuzz_keys *out);

/* SHA-256 and HMAC-SHA256 straight from OpenSSL: not by way of the product. */
void fuzz_sha256(const void *a, size_t na, const void *b, size_t nb, uint8_t out[TDE_HASH_BYTES]);
void fuzz_hmac(const uint8_t key[TDE_KEY_BYTES], const void *a, size_t na, const void *b, size_t nb,
               uint8_t out[TDE_HASH_BYTES]);

/* A log prefix's checksum and HMAC (FORMAT.md, Prefix), likewise. */
void fuzz_prefix_sum(const uint8_t *b, uint8_t sum[TDE_HASH_BYTES]);
void fuzz_prefix_chain(const uint8_t *b, uint8_t chain[8]);
void fuzz_prefix_mac(const uint8_t key[TDE_KEY_BYTES], const uint8_t *b,
                     uint8_t mac[TDE_HASH_BYTES]);

/* 64 bits of a fast hash, for sets of known content; not for security. */
uint64_t fuzz_hash(uint64_t seed, const void *p, size_t n);

#endif
