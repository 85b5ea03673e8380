/*
** common.c: what the fuzz targets share; see fuzz.h.
**
** Two functions of the C library are replaced for the whole program: getrandom,
** so that runs can be replayed, and usleep, since a unit that does not open is
** read again after a pause, and the fuzzer meets little else.
*/
#include "fuzz.h"

#include <ftw.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

#include "../../ext/base/bytes.h"
#include "../../ext/base/crypto.h"
#include "../../ext/base/secret.h"

_Noreturn void fuzz_broken(const char *rule, const char *file, int line) {
  fprintf(stderr, "\n%s:%d: does not hold: %s\n", file, line, rule);
  fflush(stderr);
  abort();
}

/* ---- randomness and time ---- */

static uint64_t random_state = 1;

void fuzz_random_seed(uint64_t seed) {
  random_state = seed;
}

/* SplitMix64: any seed is a good one. */
uint64_t fuzz_random(void) {
  uint64_t z = (random_state += UINT64_C(0x9e3779b97f4a7c15));
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

ssize_t getrandom(void *out, size_t n, unsigned flags) {
  uint8_t *p = out;

  (void)flags;
  for (size_t i = 0; i < n; i++) p[i] = (uint8_t)(fuzz_random() >> 24);
  return (ssize_t)n;
}

int usleep(useconds_t usec) {
  (void)usec;
  return 0;
}

/* ---- a scratch folder ---- */

static char scratch[256];

static int remove_one(const char *path, const struct stat *sb, int kind, struct FTW *ftw) {
  (void)sb;
  (void)kind;
  (void)ftw;
  return remove(path);
}

static void remove_scratch(void) {
  (void)nftw(scratch, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

const char *fuzz_scratch(void) {
  const char *base = getenv("TDE_FUZZ_SCRATCH");

  if (scratch[0]) return scratch;
  if (!base) base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  (void)snprintf(scratch, sizeof(scratch), "%s/tde-fuzz.XXXXXX", base);
  FUZZ_ASSERT(mkdtemp(scratch) != NULL);
  atexit(remove_scratch);
  return scratch;
}

/* ---- checks and helpers ---- */

static void check_line(const char *text, size_t cap) {
  size_t n = strnlen(text, cap);

  FUZZ_ASSERT(n < cap);
  for (size_t i = 0; i < n; i++) FUZZ_ASSERT((uint8_t)text[i] >= ' ' && text[i] != 0x7f);
}

void fuzz_check_status(const tde_status *st) {
  check_line(st->message, sizeof(st->message));
  check_line(st->remedy, sizeof(st->remedy));
  check_line(st->key_id, sizeof(st->key_id));
  check_line(st->service_code, sizeof(st->service_code));
  check_line(st->request_id, sizeof(st->request_id));
}

void fuzz_edit(fuzz_reader *r, uint8_t *b, size_t n) {
  while (r->n) {
    size_t at = fuzz_u16(r), len = 1 + (fuzz_u8(r) & 7);
    for (size_t i = 0; i < len; i++) b[(at + i) % n] = fuzz_u8(r);
  }
}

void fuzz_derive(const uint8_t uuid[TDE_UUID_BYTES], const uint8_t dek[TDE_KEY_BYTES],
                 fuzz_keys *out) {
  static const char *const info[4] = {"sqlite-tde v1 header mac", "sqlite-tde v1 main",
                                      "sqlite-tde v1 wal", "sqlite-tde v1 journal"};

  for (int i = 0; i < 4; i++) {
    FUZZ_ASSERT(tde_hkdf_sha256(uuid, TDE_UUID_BYTES, dek, TDE_KEY_BYTES, (const uint8_t *)info[i],
                                strlen(info[i]), i ? out->role[i] : out->mac,
                                TDE_KEY_BYTES) == TDE_OK);
  }
}

void fuzz_sha256(const void *a, size_t na, const void *b, size_t nb, uint8_t out[TDE_HASH_BYTES]) {
  EVP_MD_CTX *ctx = EVP_MD_CTX_new();

  FUZZ_ASSERT(ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) && EVP_DigestUpdate(ctx, a, na) &&
              EVP_DigestUpdate(ctx, b, nb) && EVP_DigestFinal_ex(ctx, out, NULL));
  EVP_MD_CTX_free(ctx);
}

void fuzz_hmac(const uint8_t key[TDE_KEY_BYTES], const void *a, size_t na, const void *b, size_t nb,
               uint8_t out[TDE_HASH_BYTES]) {
  uint8_t *both = malloc(na + nb + 1);

  FUZZ_ASSERT(both != NULL);
  memcpy(both, a, na);
  if (nb) memcpy(both + na, b, nb);
  FUZZ_ASSERT(HMAC(EVP_sha256(), key, TDE_KEY_BYTES, both, na + nb, out, NULL) != NULL);
  free(both);
}

void fuzz_prefix_sum(const uint8_t *b, uint8_t sum[TDE_HASH_BYTES]) {
  fuzz_sha256(b, 20, b + 32, 96, sum);
}

void fuzz_prefix_mac(const uint8_t key[TDE_KEY_BYTES], const uint8_t *b,
                     uint8_t mac[TDE_HASH_BYTES]) {
  fuzz_hmac(key, b, 20, b + 32, 64, mac);
}

/* SQLite's checksum of a WAL header (fileformat2.html, section 4.2), little-endian words. */
void fuzz_prefix_chain(const uint8_t *b, uint8_t chain[8]) {
  uint32_t s[2] = {0, 0};

  for (int i = 0; i < 6; i++) s[i % 2] += tde_get32le(b + 4 * i) + s[1 - i % 2];
  tde_put32be(chain, s[0]);
  tde_put32be(chain + 4, s[1]);
}

uint64_t fuzz_hash(uint64_t seed, const void *p, size_t n) {
  const uint8_t *b = p;
  uint64_t h = seed ^ UINT64_C(0xcbf29ce484222325);

  for (; n >= 8; n -= 8, b += 8) {
    uint64_t w;
    memcpy(&w, b, 8);
    h = (h ^ w) * UINT64_C(0x9fb21c651e98df25);
    h ^= h >> 29;
  }
  for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * UINT64_C(0x100000001b3);
  h ^= h >> 32;
  h *= UINT64_C(0xd6e8feb86659fd93);
  return h ^ (h >> 32);
}
