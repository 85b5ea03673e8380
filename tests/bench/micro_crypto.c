/*
** micro_crypto.c: what one unit costs in the crypto module alone.
**
** Prints nanoseconds per operation, the best of several rounds: sealing and
** opening with a hot derived key; opening when each unit needs another derived
** key, from the cache and not; the set-up of a cryptor; key derivation.
** Compare on one machine only.
*/
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ext/base/crypto.h"
#include "ext/base/secret.h"

#define ROUNDS 40
#define PREFIXES (4 * TDE_DERIVED_KEYS)

static uint8_t key[TDE_KEY_BYTES] = {1}, aad[TDE_AAD_BYTES];
static uint8_t pt[16384], back[16384], tag[TDE_TAG_BYTES], nonce[TDE_NONCE_BYTES];
static uint8_t ct[PREFIXES][16384], tags[PREFIXES][TDE_TAG_BYTES];
static uint8_t nonces[PREFIXES][TDE_NONCE_BYTES];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void must(int ok) {
  if (ok) return;
  fprintf(stderr, "micro_crypto: an operation failed\n");
  exit(1);
}

static tde_aead *cryptor(void) {
  tde_aead *a = NULL;
  must(tde_aead_new(key, NULL, &a, NULL) == TDE_OK);
  return a;
}

/* Best of ROUNDS of the mean of per_round calls of f(i, n). */
static double measure(void (*f)(int i, size_t n), size_t n, int per_round) {
  double best = 1e18;
  for (int r = 0; r < ROUNDS; r++) {
    double start = now();
    for (int i = 0; i < per_round; i++) f(i, n);
    double each = (now() - start) / per_round;
    if (each < best) best = each;
  }
  return best;
}

static tde_aead *hot, *reader;

static void seal(int i, size_t n) {
  (void)i;
  must(tde_aead_seal(hot, aad, sizeof aad, pt, n, nonce, back, tag) == TDE_OK);
}

static void open_one(int i, size_t n) {
  (void)i;
  must(tde_aead_open(reader, aad, sizeof aad, nonces[0], ct[0], n, tags[0], back) == TDE_OK);
}

static void open_of(int k, size_t n) {
  must(tde_aead_open(reader, aad, sizeof aad, nonces[k], ct[k], n, tags[k], back) == TDE_OK);
}

static void open_cached(int i, size_t n) {
  open_of(i % TDE_DERIVED_KEYS, n);
}

static void open_turnover(int i, size_t n) {
  open_of(i % PREFIXES, n);
}

static void seal_turnover(int i, size_t n) {
  must(tde_aead_seal_with_nonce(hot, aad, sizeof aad, pt, n, nonces[i % PREFIXES], back, tag) ==
       TDE_OK);
}

static void make_and_free(int i, size_t n) {
  (void)i;
  (void)n;
  tde_aead_free(cryptor());
}

static void make_and_seal(int i, size_t n) {
  (void)i;
  tde_aead *a = cryptor();
  must(tde_aead_seal(a, aad, sizeof aad, pt, n, nonce, back, tag) == TDE_OK);
  tde_aead_free(a);
}

static void make_and_open(int i, size_t n) {
  (void)i;
  tde_aead *a = cryptor();
  must(tde_aead_open(a, aad, sizeof aad, nonces[0], ct[0], n, tags[0], back) == TDE_OK);
  tde_aead_free(a);
}

static void hkdf(int i, size_t n) {
  (void)i;
  must(tde_hkdf_sha256(aad, 16, key, sizeof key, pt, 20, back, n) == TDE_OK);
}

static void hmac(int i, size_t n) {
  (void)i;
  must(tde_hmac_sha256(key, sizeof key, pt, n, NULL, 0, back) == TDE_OK);
}

static void generation(int i, size_t n) {
  (void)i;
  (void)n;
  must(tde_fork_generation() != 0);
}

static void print(const char *what, size_t n, double ns) {
  printf("%-44s %6zu %9.0f\n", what, n, ns);
}

static void sizes(size_t n) {
  hot = cryptor();
  reader = cryptor();
  for (int k = 0; k < PREFIXES; k++) {
    tde_aead *w = cryptor();
    must(tde_aead_seal(w, aad, sizeof aad, pt, n, nonces[k], ct[k], tags[k]) == TDE_OK);
    tde_aead_free(w);
  }
  print("seal, hot", n, measure(seal, n, 2000));
  print("open, hot", n, measure(open_one, n, 2000));
  print("open, 8 derived keys in turn (cached)", n, measure(open_cached, n, 2000));
  print("open, a new derived key each time", n, measure(open_turnover, n, 2000));
  print("seal, a new derived key each time", n, measure(seal_turnover, n, 2000));
  tde_aead_free(hot);
  tde_aead_free(reader);
}

int main(void) {
  must(tde_crypto_init(NULL) == TDE_OK);
  printf("%s\n%-44s %6s %9s\n", tde_crypto_engine(), "operation", "bytes", "ns");
  sizes(512);
  sizes(16384);
  sizes(4096); /* last: what follows opens one of its units */
  print("tde_aead_new + free", 0, measure(make_and_free, 0, 1000));
  print("new + first open + free", 4096, measure(make_and_open, 4096, 500));
  print("new + first seal + free", 4096, measure(make_and_seal, 4096, 500));
  print("HKDF-SHA256", 32, measure(hkdf, 32, 1000));
  print("HMAC-SHA256", 32, measure(hmac, 32, 1000));
  print("tde_fork_generation", 0, measure(generation, 0, 5000));
  return 0;
}
