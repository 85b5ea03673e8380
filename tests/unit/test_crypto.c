/*
** test_crypto.c: known answers, rejection of every flipped bit, nonce
** discipline (threads, leases, forks), and failures of random source and
** memory.
**
** TDE_UNIT_LONG=1 runs C2SP's million iterations; TDE_UNIT_SMALL=1 makes the
** thread test small, for valgrind.
**
** Sources: C2SP XAES-256-GCM (test vectors); RFC 5869, appendix A; RFC 4231,
** section 4; FIPS 180-4 and NIST's SHA-256 examples.
*/
#include <limits.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ext/base/bytes.h"
#include "ext/base/crypto.h"
#include "ext/base/secret.h"
#include "tests/unit/unit.h"

/* Hexadecimal of up to 256 bytes; returns their number. */
static size_t hex(const char *text, uint8_t *out) {
  size_t n = strlen(text) / 2;
  CHECK(tde_unhex(text, out, n) == 0);
  return n;
}

static int equals_hex(const uint8_t *p, size_t n, const char *text) {
  uint8_t want[256];
  return hex(text, want) == n && memcmp(p, want, n) == 0;
}

/* A cryptor whose key is one byte repeated. */
static tde_aead *cryptor(int byte, tde_nonce_source *source) {
  uint8_t key[TDE_KEY_BYTES];
  tde_aead *a = NULL;
  memset(key, byte, sizeof key);
  CHECK(tde_aead_new(key, source, &a, NULL) == TDE_OK);
  return a;
}

/* ---- Known answers ----------------------------------------------------- */

static void kat_sha256(void) {
  static const char *const v[][2] = {
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"}};
  uint8_t out[32];
  for (size_t i = 0; i < COUNT(v); i++) {
    CHECK(tde_sha256(v[i][0], strlen(v[i][0]), out) == TDE_OK);
    CHECK(equals_hex(out, 32, v[i][1]));
  }
  char *million = malloc(1000000);
  REQUIRE(million);
  memset(million, 'a', 1000000);
  CHECK(tde_sha256(million, 1000000, out) == TDE_OK);
  CHECK(equals_hex(out, 32, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
  free(million);
}

typedef struct mac_case {
  int key_byte; /* repeated; -1: key is text; -2: 01 02 03 ... */
  size_t nkey;
  const char *key, *data;
  int data_byte; /* repeated 50 times when data is NULL */
  const char *mac;
} mac_case;

static void kat_hmac(void) {
  static const mac_case v[] = {
      {0x0b, 20, NULL, "Hi There", 0,
       "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
      {-1, 4, "Jefe", "what do ya want for nothing?", 0,
       "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
      {0xaa, 20, NULL, NULL, 0xdd,
       "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
      {-2, 25, NULL, NULL, 0xcd,
       "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"},
      {0x0c, 20, NULL, "Test With Truncation", 0, "a3b6167473100ee06e0c796c2955552b"},
      {0xaa, 131, NULL, "Test Using Larger Than Block-Size Key - Hash Key First", 0,
       "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
      {0xaa, 131, NULL,
       "This is a test using a larger than block-size key and a larger than block-size data. "
       "The key needs to be hashed before being used by the HMAC algorithm.",
       0, "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"}};
  for (size_t i = 0; i < COUNT(v); i++) {
    uint8_t key[131], data[50], out[32];
    memset(key, v[i].key_byte, sizeof key);
    if (v[i].key_byte == -1) memcpy(key, v[i].key, v[i].nkey);
    for (size_t j = 0; v[i].key_byte == -2 && j < v[i].nkey; j++) key[j] = (uint8_t)(j + 1);
    memset(data, v[i].data_byte, sizeof data);
    const void *p = v[i].data ? (const void *)v[i].data : data;
    size_t n = v[i].data ? strlen(v[i].data) : sizeof data;
    CHECK(tde_hmac_sha256(key, v[i].nkey, p, n, NULL, 0, out) == TDE_OK);
    CHECK(equals_hex(out, strlen(v[i].mac) / 2, v[i].mac));
    for (size_t cut = 0; cut <= n; cut++) { /* the two parts are one message */
      CHECK(tde_hmac_sha256(key, v[i].nkey, p, cut, (const char *)p + cut, n - cut, out) == TDE_OK);
      CHECK(equals_hex(out, strlen(v[i].mac) / 2, v[i].mac));
    }
  }
}

static void kat_hkdf(void) {
  static const char *const v[][4] = {/* salt, ikm, info, okm */
      {"000102030405060708090a0b0c", "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
       "f0f1f2f3f4f5f6f7f8f9",
       "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"},
      {"606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c"
       "8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
       "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c"
       "2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f",
       "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdc"
       "dddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
       "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e"
       "590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"},
      {"", "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "",
       "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"}};
  uint8_t salt[256], ikm[256], info[256], out[256];
  for (size_t i = 0; i < COUNT(v); i++) {
    size_t ns = hex(v[i][0], salt), nk = hex(v[i][1], ikm), ni = hex(v[i][2], info);
    size_t n = strlen(v[i][3]) / 2;
    CHECK(tde_hkdf_sha256(salt, ns, ikm, nk, info, ni, out, n) == TDE_OK);
    CHECK(equals_hex(out, n, v[i][3]));
    uint8_t shorter[256] = {0}; /* a shorter output is a prefix, and no byte more is written */
    CHECK(tde_hkdf_sha256(salt, ns, ikm, nk, info, ni, shorter, 33) == TDE_OK);
    CHECK(memcmp(shorter, out, 33) == 0 && shorter[33] == 0);
  }
  static uint8_t big[255 * 32 + 1];
  CHECK(tde_hkdf_sha256(NULL, 0, ikm, 22, NULL, 0, big, 255 * 32) == TDE_OK);
  CHECK(!tde_all_zero(big + 254 * 32, 32) && big[255 * 32] == 0);
  CHECK(tde_hkdf_sha256(NULL, 0, ikm, 22, NULL, 0, big, 255 * 32 + 1) == TDE_MISUSE);
  CHECK(tde_all_zero(big, sizeof big));
}

static void kat_xaes(void) {
  static const uint8_t nonce[] = "ABCDEFGHIJKLMNOPQRSTUVWX", pt[] = "XAES-256-GCM";
  static const struct {
    int key;
    const char *aad, *sealed;
  } v[] = {{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
           {3, "c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"}};
  for (size_t i = 0; i < COUNT(v); i++) {
    tde_aead *a = cryptor(v[i].key, NULL);
    const uint8_t *aad = (const uint8_t *)v[i].aad;
    size_t naad = strlen(v[i].aad);
    uint8_t sealed[28], back[12];
    REQUIRE(a);
    CHECK(tde_aead_seal_with_nonce(a, aad, naad, pt, 12, nonce, sealed, sealed + 12) == TDE_OK);
    CHECK(equals_hex(sealed, 28, v[i].sealed));
    CHECK(tde_aead_open(a, aad, naad, nonce, sealed, 12, sealed + 12, back) == TDE_OK);
    CHECK(memcmp(back, pt, 12) == 0);
    tde_aead_free(a);
  }
}

/* One iteration of C2SP's accumulated test; returns the input's new end. */
static const uint8_t *accumulate(const uint8_t *s, EVP_MD_CTX *d) {
  const uint8_t *key = s, *nonce = s + 32, *pt = nonce + 25, *aad = pt + nonce[24] + 1;
  size_t n = nonce[24], naad = aad[-1];
  uint8_t sealed[255 + 16], back[255];
  tde_aead *a = NULL;
  CHECK(tde_aead_new(key, NULL, &a, NULL) == TDE_OK);
  CHECK(tde_aead_seal_with_nonce(a, aad, naad, pt, n, nonce, sealed, sealed + n) == TDE_OK);
  EVP_DigestUpdate(d, sealed, n + 16);
  CHECK(tde_aead_open(a, aad, naad, nonce, sealed, n, sealed + n, back) == TDE_OK);
  CHECK(memcmp(back, pt, n) == 0);
  tde_aead_free(a);
  return aad + naad;
}

/* OpenSSL 3.0 cannot squeeze a SHAKE piecewise, so the whole input stream is
** made at once. An iteration takes 58 to 568 bytes, 313 on average. */
static void accumulated(int iterations, size_t nstream, const char *want) {
  uint8_t *s = malloc(nstream), out[32];
  EVP_MD_CTX *in = EVP_MD_CTX_new(), *d = EVP_MD_CTX_new();
  REQUIRE(s && in && d);
  EVP_DigestInit_ex(in, EVP_shake128(), NULL);
  EVP_DigestInit_ex(d, EVP_shake128(), NULL);
  REQUIRE(EVP_DigestFinalXOF(in, s, nstream) == 1);
  const uint8_t *at = s;
  for (int i = 0; i < iterations && !unit_failures; i++) {
    REQUIRE((size_t)(at - s) + 568 <= nstream);
    at = accumulate(at, d);
  }
  REQUIRE(EVP_DigestFinalXOF(d, out, 32) == 1);
  CHECK(equals_hex(out, 32, want));
  EVP_MD_CTX_free(in);
  EVP_MD_CTX_free(d);
  free(s);
}

static void kat_xaes_accumulated(void) {
  accumulated(10000, 568 * 10000,
              "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939");
}

static void kat_xaes_million(void) {
  if (!getenv("TDE_UNIT_LONG")) SKIP("set TDE_UNIT_LONG=1");
  accumulated(1000000, 320u * 1000000,
              "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15");
}

/* ---- Sealing and opening ----------------------------------------------- */

#define UNIT 4096

static void round_trips(void) {
  static const size_t sizes[] = {0, 1, 15, 16, 17, 512, 4095, 4120, 16384, 65536};
  static uint8_t pt[65536], ct[65536], back[65536];
  tde_aead *a = cryptor(5, NULL);
  REQUIRE(a);
  for (size_t i = 0; i < sizeof pt; i++) pt[i] = (uint8_t)(i * 31);
  for (size_t i = 0; i < COUNT(sizes); i++) {
    size_t n = sizes[i];
    uint8_t aad[TDE_AAD_BYTES] = {1}, nonce[24], tag[16];
    CHECK(tde_aead_seal(a, aad, sizeof aad, pt, n, nonce, ct, tag) == TDE_OK);
    CHECK(n < 16 || memcmp(ct, pt, n) != 0);
    CHECK(tde_aead_open(a, aad, sizeof aad, nonce, ct, n, tag, back) == TDE_OK);
    CHECK(memcmp(back, pt, n) == 0);
    memcpy(back, pt, n); /* in place, both ways, and without associated data */
    CHECK(tde_aead_seal(a, NULL, 0, back, n, nonce, back, tag) == TDE_OK);
    CHECK(tde_aead_open(a, NULL, 0, nonce, back, n, tag, back) == TDE_OK);
    CHECK(memcmp(back, pt, n) == 0);
    CHECK(tde_aead_open(a, aad, 1, nonce, ct, n, tag, back) == TDE_TAMPERED);
  }
  uint8_t nonce[24], tag[16]; /* nothing to seal: the pointers may be NULL */
  CHECK(tde_aead_seal(a, NULL, 0, NULL, 0, nonce, NULL, tag) == TDE_OK);
  CHECK(tde_aead_open(a, NULL, 0, nonce, NULL, 0, tag, NULL) == TDE_OK);
  tag[3] ^= 1;
  CHECK(tde_aead_open(a, NULL, 0, nonce, NULL, 0, tag, NULL) == TDE_TAMPERED);
  tde_aead_free(a);
}

/* Everything that the tag covers, in one object, so that one loop can flip it. */
typedef struct sealed_unit {
  uint8_t aad[TDE_AAD_BYTES], nonce[TDE_NONCE_BYTES], ct[UNIT], tag[TDE_TAG_BYTES];
} sealed_unit;

static tde_class open_unit(tde_aead *a, const sealed_unit *u, uint8_t *pt) {
  return tde_aead_open(a, u->aad, sizeof u->aad, u->nonce, u->ct, sizeof u->ct, u->tag, pt);
}

static void every_bit_counts(void) {
  static sealed_unit u;
  static uint8_t pt[UNIT], back[UNIT];
  tde_aead *a = cryptor(6, NULL), *other = cryptor(7, NULL);
  REQUIRE(a && other);
  for (size_t i = 0; i < sizeof u.aad; i++) u.aad[i] = (uint8_t)i;
  for (size_t i = 0; i < sizeof pt; i++) pt[i] = (uint8_t)(i * 13 + 1);
  REQUIRE(tde_aead_seal(a, u.aad, sizeof u.aad, pt, UNIT, u.nonce, u.ct, u.tag) == TDE_OK);
  uint8_t *bytes = (uint8_t *)&u;
  for (size_t bit = 0; bit < 8 * sizeof u; bit++) {
    bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    memset(back, 0xee, sizeof back);
    CHECK(open_unit(a, &u, back) == TDE_TAMPERED);
    CHECK(tde_all_zero(back, sizeof back));
    bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
  }
  CHECK(open_unit(other, &u, back) == TDE_TAMPERED);
  CHECK(ERR_peek_error() == 0); /* the host's error queue is left alone */
  CHECK(open_unit(a, &u, back) == TDE_OK && memcmp(back, pt, UNIT) == 0);
  memcpy(back, u.ct, UNIT); /* in place: neither plaintext nor ciphertext stays */
  u.tag[0] ^= 1;
  CHECK(tde_aead_open(a, u.aad, sizeof u.aad, u.nonce, back, UNIT, u.tag, back) == TDE_TAMPERED);
  CHECK(tde_all_zero(back, sizeof back));
  tde_aead_free(a);
  tde_aead_free(other);
}

/* More prefixes than derived keys are kept, in an order that evicts all of
** them again and again, with a writer of its own prefix in between. */
static void derived_key_cache(void) {
  enum { PREFIXES = 3 * TDE_DERIVED_KEYS };
  static sealed_unit u[PREFIXES];
  static uint8_t pt[UNIT], back[UNIT];
  tde_aead *a = cryptor(8, NULL);
  REQUIRE(a);
  for (int i = 0; i < PREFIXES; i++) {
    tde_aead *w = cryptor(8, NULL); /* each has a source, so a prefix, of its own */
    memset(pt, i, sizeof pt);
    REQUIRE(tde_aead_seal(w, u[i].aad, TDE_AAD_BYTES, pt, UNIT, u[i].nonce, u[i].ct, u[i].tag) ==
            TDE_OK);
    tde_aead_free(w);
    for (int j = 0; j < i; j++) CHECK(memcmp(u[i].nonce, u[j].nonce, TDE_NONCE_PREFIX) != 0);
  }
  unsigned seed = 1;
  uint8_t first[TDE_NONCE_PREFIX] = {0};
  for (int round = 0; round < 5000; round++) {
    seed = seed * 1103515245u + 12345u;
    int i = (int)(seed >> 16) % PREFIXES;
    memset(pt, i, sizeof pt);
    CHECK(open_unit(a, &u[i], back) == TDE_OK && memcmp(back, pt, UNIT) == 0);
    if (round % 7) continue;
    sealed_unit own = {{0}, {0}, {0}, {0}};
    CHECK(tde_aead_seal(a, own.aad, TDE_AAD_BYTES, pt, UNIT, own.nonce, own.ct, own.tag) == TDE_OK);
    if (round == 0) memcpy(first, own.nonce, sizeof first);
    CHECK(memcmp(first, own.nonce, sizeof first) == 0);
    if (round % 2) CHECK(open_unit(a, &own, back) == TDE_OK && memcmp(back, pt, UNIT) == 0);
  }
  tde_aead_free(a);
}

/* ---- Nonces ------------------------------------------------------------ */

static int by_nonce(const void *a, const void *b) {
  return memcmp(a, b, TDE_NONCE_BYTES);
}

static int by_first_half(const void *a, const void *b) {
  return memcmp(a, b, TDE_NONCE_PREFIX);
}

/* Sorts the nonces; false when one repeats. */
static int all_differ(uint8_t (*nonces)[TDE_NONCE_BYTES], size_t n) {
  qsort(nonces, n, TDE_NONCE_BYTES, by_nonce);
  for (size_t i = 1; i < n; i++) {
    if (by_nonce(nonces[i - 1], nonces[i]) == 0) return 0;
  }
  return 1;
}

/* Of sorted nonces: the number of prefixes, and the longest run of one. */
static size_t count_prefixes(uint8_t (*nonces)[TDE_NONCE_BYTES], size_t n, size_t *longest) {
  size_t prefixes = 0, run = 0;
  *longest = 0;
  for (size_t i = 0; i < n; i++) {
    int same = i && by_first_half(nonces[i - 1], nonces[i]) == 0;
    run = same ? run + 1 : 1;
    prefixes += !same;
    if (run > *longest) *longest = run;
  }
  return prefixes;
}

static int seal_nonce(tde_aead *a, uint8_t nonce[TDE_NONCE_BYTES]) {
  uint8_t tag[16], ct[1], pt[1] = {0};
  return tde_aead_seal(a, NULL, 0, pt, 1, nonce, ct, tag) == TDE_OK;
}

/* What this cryptor seals next, another one of its key opens. */
static int opens_elsewhere(tde_aead *a, uint8_t seed) {
  static uint8_t pt[UNIT], back[UNIT];
  sealed_unit u = {{0}, {0}, {0}, {0}};
  tde_aead *other = cryptor(seed, NULL);
  int ok;
  memset(pt, seed, sizeof pt);
  ok = other && tde_aead_seal(a, u.aad, TDE_AAD_BYTES, pt, UNIT, u.nonce, u.ct, u.tag) == TDE_OK &&
       open_unit(other, &u, back) == TDE_OK && memcmp(back, pt, UNIT) == 0;
  tde_aead_free(other);
  return ok;
}

typedef struct seal_job {
  tde_nonce_source *source;
  uint8_t (*nonces)[TDE_NONCE_BYTES];
  size_t n;
} seal_job;

static void *seal_many(void *arg) {
  seal_job *job = arg;
  tde_aead *a = cryptor(9, job->source);
  for (size_t i = 0; i < job->n; i++) {
    if (!CHECK(seal_nonce(a, job->nonces[i]))) break;
  }
  tde_aead_free(a);
  return NULL;
}

static void nonces_in_threads(void) {
  enum { THREADS = 4 };
  size_t each = getenv("TDE_UNIT_SMALL") ? 20000 : 300000, n = THREADS * each, longest;
  uint8_t(*nonces)[TDE_NONCE_BYTES] = calloc(n, TDE_NONCE_BYTES);
  tde_nonce_source *source = tde_nonce_source_new();
  REQUIRE(nonces && source);
  pthread_t t[THREADS];
  seal_job job[THREADS];
  for (size_t i = 0; i < THREADS; i++) {
    job[i] = (seal_job){source, nonces + i * each, each};
    REQUIRE(pthread_create(&t[i], NULL, seal_many, &job[i]) == 0);
  }
  for (size_t i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
  CHECK(all_differ(nonces, n));
  CHECK(count_prefixes(nonces, n, &longest) == (n > TDE_NONCE_RUN ? 2 : 1));
  CHECK(longest <= TDE_NONCE_RUN);
  tde_nonce_source_free(source);
  free(nonces);
}

/* A cryptor reserves whole leases: that many short-lived ones use up a run. */
static void leases_turn_over(void) {
  enum { LEASES = TDE_NONCE_RUN / TDE_NONCE_LEASE };
  static uint8_t nonces[2 * LEASES + 1][TDE_NONCE_BYTES];
  tde_nonce_source *source = tde_nonce_source_new();
  REQUIRE(source);
  for (size_t i = 0; i < COUNT(nonces); i++) {
    tde_aead *a = cryptor(9, source);
    CHECK(seal_nonce(a, nonces[i]));
    tde_aead_free(a);
    if (i) CHECK((by_first_half(nonces[i - 1], nonces[i]) == 0) == (i % LEASES != 0));
  }
  CHECK(all_differ(nonces, COUNT(nonces)));
  tde_nonce_source_free(source);
}

/* One cryptor through a whole run: at each lease's end it goes on under the
** source's prefix of that moment, and never beyond the run. */
static void one_writer_through_a_run(void) {
  size_t n = TDE_NONCE_RUN + 1, longest;
  if (getenv("TDE_UNIT_SMALL")) SKIP("TDE_UNIT_SMALL");
  uint8_t(*nonces)[TDE_NONCE_BYTES] = calloc(n, TDE_NONCE_BYTES);
  tde_aead *a = cryptor(9, NULL);
  REQUIRE(nonces && a);
  for (size_t i = 0; i < n; i++) CHECK(seal_nonce(a, nonces[i]));
  CHECK(by_first_half(nonces[0], nonces[n - 2]) == 0);
  CHECK(by_first_half(nonces[0], nonces[n - 1]) != 0);
  CHECK(all_differ(nonces, n));
  CHECK(count_prefixes(nonces, n, &longest) == 2 && longest == TDE_NONCE_RUN);
  CHECK(opens_elsewhere(a, 9)); /* the key is that of the new prefix */
  tde_aead_free(a);
  free(nonces);
}

/* ---- Forks ------------------------------------------------------------- */

static pid_t plain_fork(void) {
  return fork();
}

/* No handler runs and no library learns of it: only the kernel's wiping (or
** the process id) tells. */
static pid_t raw_clone(void) {
  return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

#define AFTER 200 /* seals on each side of a fork: more than a batch */

typedef struct fork_report {
  int ok;
  uint64_t generation, grandchild;
  uint8_t nonces[2 * AFTER][TDE_NONCE_BYTES]; /* the child's and the grandchild's */
} fork_report;

/* One child's part: seals with the inherited cryptor, and opens what the parent
** sealed. */
static int seal_in_child(tde_aead *a, const sealed_unit *parents, uint64_t *generation,
                         uint8_t (*nonces)[TDE_NONCE_BYTES]) {
  static uint8_t pt[UNIT];
  int ok = 1;
  *generation = tde_fork_generation();
  for (int i = 0; i < AFTER; i++) ok = ok && seal_nonce(a, nonces[i]);
  ok = ok && open_unit(a, parents, pt) == TDE_OK && pt[0] == 0x77 && opens_elsewhere(a, 10);
  return ok && tde_fork_generation() == *generation;
}

static _Noreturn void be_child(tde_aead *a, const sealed_unit *parents, fork_report *r,
                               pid_t (*do_fork)(void)) {
  int ok = seal_in_child(a, parents, &r->generation, r->nonces), status = -1;
  pid_t pid = do_fork();
  if (pid == 0) unit_child_exit(seal_in_child(a, parents, &r->grandchild, r->nonces + AFTER));
  r->ok = ok && pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
  unit_child_exit(r->ok);
}

static void fork_with(pid_t (*do_fork)(void)) {
  static uint8_t all[4 * AFTER][TDE_NONCE_BYTES];
  static uint8_t pt[UNIT];
  sealed_unit u = {{0}, {0}, {0}, {0}};
  tde_nonce_source *source = tde_nonce_source_new();
  tde_aead *a = cryptor(10, source);
  fork_report *r =
      mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(source && a && r != MAP_FAILED);
  memset(pt, 0x77, sizeof pt);
  uint64_t before = tde_fork_generation();
  /* Lease taken, key derived, batch half used: all of it must be left behind. */
  CHECK(tde_aead_seal(a, u.aad, TDE_AAD_BYTES, pt, UNIT, u.nonce, u.ct, u.tag) == TDE_OK);
  for (int i = 0; i < AFTER; i++) CHECK(seal_nonce(a, all[i]));
  fflush(stdout);
  pid_t pid = do_fork();
  if (pid == 0) be_child(a, &u, r, do_fork);
  REQUIRE(pid > 0);
  for (int i = AFTER; i < 2 * AFTER; i++) CHECK(seal_nonce(a, all[i]));
  int status = -1;
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  CHECK(r->ok);
  CHECK(before && r->generation && r->grandchild);
  CHECK(before != r->generation && r->generation != r->grandchild && before != r->grandchild);
  CHECK(tde_fork_generation() == before);
  CHECK(by_first_half(all[0], all[2 * AFTER - 1]) == 0); /* the parent keeps its lease */
  CHECK(by_first_half(all[0], r->nonces[0]) != 0);
  CHECK(by_first_half(all[0], r->nonces[AFTER]) != 0);
  CHECK(by_first_half(r->nonces[0], r->nonces[AFTER]) != 0);
  memcpy(all + 2 * AFTER, r->nonces, sizeof r->nonces);
  CHECK(all_differ(all, COUNT(all)));
  /* Second halves alone must differ as well: the batch was dropped. */
  for (size_t i = 0; i < COUNT(all); i++) memset(all[i], 0, TDE_NONCE_PREFIX);
  CHECK(all_differ(all, COUNT(all)));
  munmap(r, sizeof *r);
  tde_aead_free(a);
  tde_nonce_source_free(source);
}

static void fork_plain(void) {
  fork_with(plain_fork);
}

static void fork_raw_clone(void) {
  fork_with(raw_clone);
}

/* Parent and child both have process id 1: a generator that tells a fork by
** process id repeats itself in the child. */
static void fork_same_pid(void) {
  uint8_t mine[32];
  struct shared {
    pid_t pid[2];
    uint8_t random[2][32];
  } *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(s != MAP_FAILED);
  REQUIRE(tde_random(mine, sizeof mine, NULL) == TDE_OK);
  fflush(stdout);
  pid_t outer = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
  if (outer < 0) SKIP("no right to make a PID namespace");
  if (outer == 0) {
    tde_random(mine, sizeof mine, NULL); /* a generator would be seeded now, for process 1 */
    pid_t inner = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
    int k = inner == 0;
    s->pid[k] = getpid();
    tde_random(s->random[k], 32, NULL);
    int status = 0;
    if (inner > 0) waitpid(inner, &status, 0);
    unit_child_exit(inner >= 0 && status == 0);
  }
  int status = -1;
  CHECK(waitpid(outer, &status, 0) == outer && status == 0);
  CHECK(s->pid[0] == 1 && s->pid[1] == 1);
  CHECK(memcmp(s->random[0], s->random[1], 32) != 0);
  munmap(s, sizeof *s);
}

/* After this test the process stays with the fallback: it runs last. */
static void fork_without_wipeonfork(void) {
  tde_test_fork_fallback();
  fork_with(plain_fork);
  fork_with(raw_clone);
}

/* A fork at any moment must leave the child able to lease and to allocate. A
** prefix is drawn under the lease lock: a slow draw makes that the moment. */
static atomic_int stop;

static int slow_prefix(size_t n) {
  if (n == TDE_NONCE_PREFIX) usleep(200);
  return 0;
}

static void *seal_until_stopped(void *arg) {
  (void)arg;
  while (!stop) {
    uint8_t nonce[TDE_NONCE_BYTES];
    tde_aead *a = cryptor(11, NULL);
    CHECK(seal_nonce(a, nonce));
    tde_aead_free(a);
  }
  return NULL;
}

static void fork_among_threads(void) {
  pthread_t t[2];
  int ok = 1;
  stop = 0;
  tde_test_random_hook = slow_prefix;
  for (int i = 0; i < 2; i++) REQUIRE(!pthread_create(&t[i], NULL, seal_until_stopped, NULL));
  for (int i = 0; ok && i < 50; i++) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
      uint8_t nonce[TDE_NONCE_BYTES];
      alarm(20); /* a lock that was left behind would hang here */
      tde_aead *a = cryptor(11, NULL);
      unit_child_exit(a && seal_nonce(a, nonce));
    }
    int status = -1;
    ok = CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
  }
  stop = 1;
  for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
  tde_test_random_hook = NULL;
}

/* A snapshot of the machine's memory that is resumed twice: the heap (of this program's main thread;
** where an instrumented allocator has it elsewhere, nothing is put back) as it was. */
static void snapshot_resumed_twice(void) {
  enum { LEFT = TDE_NONCE_BATCH - 1 };
  uint8_t n[2][LEFT][TDE_NONCE_BYTES], first[TDE_NONCE_BYTES];
  uint8_t *low = sbrk(0), *saved;
  tde_aead *a = cryptor(12, NULL);
  REQUIRE(a && seal_nonce(a, first));
  low -= (uintptr_t)low > (uintptr_t)a ? (size_t)(low - (uint8_t *)a) + 4096 : 0;
  size_t size = (size_t)((uint8_t *)sbrk(0) - low);
  saved = mmap(NULL, size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(saved != MAP_FAILED);
  memcpy(saved, low, size);
  for (int r = 0; r < 2; r++) {
    memcpy(low, saved, size);
    for (int i = 0; i < LEFT; i++) (void)seal_nonce(a, n[r][i]);
  }
  CHECK(memcmp(n[0][0], n[1][0], TDE_NONCE_PREFIX) == 0);
  for (int i = 0; i < LEFT; i++) CHECK(memcmp(n[0][i], n[1][i], TDE_NONCE_BYTES) != 0);
  munmap(saved, size + 1);
  tde_aead_free(a);
}

/* ---- Failures ---------------------------------------------------------- */

static int countdown; /* the failure comes when it reaches 0 */
static int fired;

static int fail_at(size_t n) {
  (void)n;
  if (countdown-- != 0) return 0;
  fired = 1;
  return 1;
}

static void random_source_fails(void) {
  uint8_t buf[32], nonce[24], ct[16], pt[16] = {1}, tag[16];
  tde_status st;
  tde_status_clear(&st);
  tde_test_random_hook = fail_at;
  memset(buf, 0xaa, sizeof buf);
  countdown = 0;
  CHECK(tde_random(buf, sizeof buf, &st) == TDE_RANDOM);
  CHECK(st.code == TDE_RANDOM && st.message[0]);
  CHECK(tde_all_zero(buf, sizeof buf));
  /* A seal draws twice: prefix and batch. It works again once the source does. */
  for (int k = 0; k < 2; k++) {
    tde_aead *a = cryptor(12, NULL);
    countdown = k;
    memset(ct, 0xaa, sizeof ct);
    memset(nonce, 0xaa, sizeof nonce);
    memset(tag, 0xaa, sizeof tag);
    CHECK(tde_aead_seal(a, NULL, 0, pt, sizeof pt, nonce, ct, tag) == TDE_RANDOM);
    CHECK(tde_all_zero(ct, 16) && tde_all_zero(nonce, 24) && tde_all_zero(tag, 16));
    CHECK(tde_aead_seal(a, NULL, 0, pt, sizeof pt, nonce, ct, tag) == TDE_OK);
    CHECK(!tde_all_zero(nonce, TDE_NONCE_PREFIX) && !tde_all_zero(nonce + TDE_NONCE_PREFIX, 12));
    /* With the batch used up, the source is needed again. */
    for (unsigned i = 1; i < TDE_NONCE_BATCH; i++) CHECK(seal_nonce(a, nonce));
    countdown = 0;
    CHECK(!seal_nonce(a, nonce));
    CHECK(seal_nonce(a, nonce));
    tde_aead_free(a);
  }
  tde_test_random_hook = NULL;
}

/* All that a cryptor can do, checked at each step. */
static tde_class whole_life(void) {
  uint8_t key[32] = {13}, nonce[24], tag[16], pt[64] = {1}, ct[64], hash[64];
  tde_aead *a = NULL, *reader = NULL;
  tde_nonce_source *source = tde_nonce_source_new();
  tde_class rc = source ? TDE_OK : TDE_NOMEM;
  memset(ct, 0xaa, sizeof ct);
  memset(hash, 0xaa, sizeof hash);
  if (!rc) rc = tde_aead_new(key, source, &a, NULL);
  CHECK(!rc == (a != NULL));
  if (!rc) {
    rc = tde_aead_seal(a, NULL, 0, pt, sizeof pt, nonce, ct, tag);
    if (rc) CHECK(tde_all_zero(ct, sizeof ct) && tde_all_zero(nonce, 24) && tde_all_zero(tag, 16));
  }
  if (!rc) rc = tde_aead_new(key, NULL, &reader, NULL);
  if (!rc) {
    uint8_t back[64];
    memset(back, 0xaa, sizeof back);
    rc = tde_aead_open(reader, NULL, 0, nonce, ct, sizeof ct, tag, back);
    CHECK(rc ? tde_all_zero(back, sizeof back) : memcmp(back, pt, sizeof pt) == 0);
  }
  if (!rc && (rc = tde_sha256(pt, 3, hash))) CHECK(tde_all_zero(hash, 32));
  if (!rc && (rc = tde_hmac_sha256(key, 32, pt, 3, NULL, 0, hash))) CHECK(tde_all_zero(hash, 32));
  if (!rc) {
    rc = tde_hkdf_sha256(pt, 16, key, 32, pt, 8, hash, 64);
    if (rc) CHECK(tde_all_zero(hash, 64));
  }
  tde_aead_free(a);
  tde_aead_free(reader);
  tde_nonce_source_free(source);
  return rc;
}

static void memory_runs_out(void) {
  int n = 0;
  CHECK(whole_life() == TDE_OK);
  tde_test_alloc_hook = fail_at;
  for (;; n++) {
    countdown = n;
    fired = 0;
    tde_class rc = whole_life();
    if (!fired) {
      CHECK(rc == TDE_OK);
      break;
    }
    CHECK(rc == TDE_NOMEM);
  }
  tde_test_alloc_hook = NULL;
  CHECK(n >= 13); /* source; 2 x (cryptor, key block); writer; 2 x (AES, GCM); 3 hashes; ... */
}

/* The same for the allocations inside OpenSSL, which this program takes over
** in main before the library makes its first one. */
static atomic_int library_countdown = -1;

static void *library_malloc(size_t n, const char *file, int line) {
  (void)file;
  (void)line;
  if (library_countdown >= 0 && library_countdown-- == 0) {
    fired = 1;
    return NULL;
  }
  return malloc(n);
}

static void *library_realloc(void *p, size_t n, const char *file, int line) {
  (void)file;
  (void)line;
  return realloc(p, n);
}

static void library_free(void *p, const char *file, int line) {
  (void)file;
  (void)line;
  free(p);
}

static void library_memory_runs_out(void) {
  int n = 0;
  for (;; n++) {
    fired = 0;
    library_countdown = n;
    tde_class rc = whole_life();
    library_countdown = -1;
    if (!fired) break;
    CHECK(rc == TDE_OK || rc == TDE_NOMEM || rc == TDE_CRYPTO);
    CHECK(whole_life() == TDE_OK);
  }
  CHECK(n >= 8); /* it was the library that ran out; OpenSSL 3.5 allocates 10 times, 3.0 more often */
  ERR_clear_error();
}

/* An open that fails for want of a derived key leaves the cache good. */
static void failed_derivation(void) {
  static sealed_unit u[TDE_DERIVED_KEYS + 4];
  static uint8_t pt[UNIT], back[UNIT];
  tde_aead *a = cryptor(14, NULL);
  for (size_t i = 0; i < COUNT(u); i++) {
    tde_aead *w = cryptor(14, NULL);
    CHECK(!tde_aead_seal(w, u[i].aad, TDE_AAD_BYTES, pt, UNIT, u[i].nonce, u[i].ct, u[i].tag));
    tde_aead_free(w);
  }
  for (size_t i = 0; i < COUNT(u); i++) {
    tde_test_alloc_hook = fail_at;
    countdown = i ? 0 : 1; /* the first time after AES under K is there */
    fired = 0;
    tde_class rc = open_unit(a, &u[i], back);
    tde_test_alloc_hook = NULL;
    CHECK(rc == (fired ? TDE_NOMEM : TDE_OK));
    CHECK(fired == (i < TDE_DERIVED_KEYS + 1));
    for (size_t j = 0; j <= i; j++) CHECK(open_unit(a, &u[j], back) == TDE_OK);
  }
  tde_aead_free(a);
}

/* Opens a unit whose plaintext is all threes. Returns how many allocations that took. */
static int allocations_to_open(tde_aead *a, const sealed_unit *u) {
  static uint8_t threes[UNIT], back[UNIT];
  memset(threes, 3, sizeof threes);
  countdown = -1; /* counts down, and fails none */
  tde_test_alloc_hook = fail_at;
  CHECK(open_unit(a, u, back) == TDE_OK && memcmp(back, threes, UNIT) == 0);
  tde_test_alloc_hook = NULL;
  return -1 - countdown;
}

/* A cryptor that was told what another one derived first does not derive it again, and all
** others as ever. */
static void derived_keys_are_told(void) {
  enum { BOTH = 2, KEY_ALONE = 1 }; /* AES for deriving, and the derived key */
  static sealed_unit u[2];
  static uint8_t pt[UNIT], back[UNIT];
  tde_aead *a = cryptor(9, NULL), *b = cryptor(9, NULL), *c = cryptor(9, NULL);
  tde_aead *other = cryptor(10, NULL);
  REQUIRE(a && b && c && other);
  memset(pt, 3, sizeof pt);
  for (int i = 0; i < 2; i++) {
    tde_aead *w = cryptor(9, NULL);
    REQUIRE(tde_aead_seal(w, u[i].aad, TDE_AAD_BYTES, pt, UNIT, u[i].nonce, u[i].ct, u[i].tag) ==
            TDE_OK);
    tde_aead_free(w);
  }
  CHECK(!tde_aead_derived(a)->valid);
  CHECK(allocations_to_open(a, &u[0]) == BOTH);
  CHECK(allocations_to_open(a, &u[1]) == KEY_ALONE);
  CHECK(tde_aead_derived(a)->valid);
  CHECK(memcmp(tde_aead_derived(a)->prefix, u[0].nonce, TDE_NONCE_PREFIX) == 0);

  tde_aead_tell(b, tde_aead_derived(a));
  CHECK(allocations_to_open(b, &u[0]) == KEY_ALONE);
  CHECK(allocations_to_open(b, &u[1]) == BOTH);
  CHECK(memcmp(tde_aead_derived(b)->prefix, u[0].nonce, TDE_NONCE_PREFIX) == 0);

  tde_aead_tell(c, tde_aead_derived(a)); /* of no use: page 1 was sealed anew since */
  CHECK(allocations_to_open(c, &u[1]) == BOTH);
  CHECK(memcmp(tde_aead_derived(c)->prefix, u[1].nonce, TDE_NONCE_PREFIX) == 0);
  CHECK(allocations_to_open(c, &u[0]) == KEY_ALONE);

  tde_aead_tell(other, tde_aead_derived(a));
  CHECK(open_unit(other, &u[1], back) == TDE_TAMPERED && tde_all_zero(back, UNIT));
  tde_aead_free(a);
  tde_aead_free(b);
  tde_aead_free(c);
  tde_aead_free(other);
}

static void misuse(void) {
  uint8_t nonce[24], tag[16], b[1] = {0};
  tde_aead *a = cryptor(15, NULL);
  CHECK(tde_aead_seal(a, b, (size_t)INT_MAX + 1, b, 1, nonce, b, tag) == TDE_MISUSE);
  CHECK(tde_aead_open(a, b, (size_t)INT_MAX + 1, nonce, b, 1, tag, b) == TDE_MISUSE);
  tde_aead_free(a);
  tde_aead_free(NULL);
  tde_nonce_source_free(NULL);
  CHECK(strncmp(tde_crypto_engine(), "OpenSSL 3", 9) == 0 ||
        strncmp(tde_crypto_engine(), "IPsec-mb ", 9) == 0);
  CHECK(tde_crypto_init(NULL) == TDE_OK);
}

static void *init_in_thread(void *arg) {
  (void)arg;
  CHECK(tde_crypto_init(NULL) == TDE_OK);
  CHECK(tde_fork_generation() != 0);
  return NULL;
}

/* Runs first, so that the threads race for the real start-up. */
static void init_races(void) {
  pthread_t t[4];
  for (int i = 0; i < 4; i++) REQUIRE(pthread_create(&t[i], NULL, init_in_thread, NULL) == 0);
  for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"init_races", init_races},
      {"kat_sha256", kat_sha256},
      {"kat_hmac", kat_hmac},
      {"kat_hkdf", kat_hkdf},
      {"kat_xaes", kat_xaes},
      {"kat_xaes_accumulated", kat_xaes_accumulated},
      {"kat_xaes_million", kat_xaes_million},
      {"round_trips", round_trips},
      {"every_bit_counts", every_bit_counts},
      {"derived_key_cache", derived_key_cache},
      {"nonces_in_threads", nonces_in_threads},
      {"leases_turn_over", leases_turn_over},
      {"one_writer_through_a_run", one_writer_through_a_run},
      {"fork_plain", fork_plain},
      {"fork_raw_clone", fork_raw_clone},
      {"fork_same_pid", fork_same_pid},
      {"fork_among_threads", fork_among_threads},
      {"snapshot_resumed_twice", snapshot_resumed_twice},
      {"random_source_fails", random_source_fails},
      {"memory_runs_out", memory_runs_out},
      {"library_memory_runs_out", library_memory_runs_out},
      {"failed_derivation", failed_derivation},
      {"derived_keys_are_told", derived_keys_are_told},
      {"misuse", misuse},
      {"fork_without_wipeonfork", fork_without_wipeonfork},
  };
  if (CRYPTO_set_mem_functions(library_malloc, library_realloc, library_free) != 1) return 2;
  /* A test named on the command line finds the library ready as well. */
  if (argc > 1 && tde_crypto_init(NULL)) return 2;
  return unit_main(argc, argv, tests, COUNT(tests));
}
