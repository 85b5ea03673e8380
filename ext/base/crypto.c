/*
** crypto.c: XAES-256-GCM, HKDF, HMAC, SHA-256, random bytes, fork detection.
**
** Every page read or written passes here, so the way of one unit has no
** allocation, no algorithm fetch and no key set-up: the AES-GCM contexts of
** the derived keys in use are kept ready in the cryptor.
**
** XAES-256-GCM (C2SP) turns the 256-bit key K and the first 12 nonce bytes N
** into a one-time AES-256-GCM key:
**
**     L  = AES_K(0^128)           K1 = L doubled in GF(2^128), as in CMAC
**     M1 = 00 01 'X' 00 || N      M2 = 00 02 'X' 00 || N
**     Kx = AES_K(M1 ^ K1) || AES_K(M2 ^ K1)
**
** and seals with Kx under the last 12 nonce bytes.
**
** What must hold:
**  - No nonce repeats under one Kx. Prefixes and second halves are both random,
**    at most TDE_NONCE_RUN units share a prefix, and nothing drawn before a
**    fork is used after it (tde_fork_generation).
**  - Nothing unauthenticated leaves tde_aead_open.
**  - K and K1 are in secret memory. The expanded keys in OpenSSL's contexts are
**    not: libcrypto allocates those, and wipes them when it frees them.
*/
#include "crypto.h"

#include <errno.h>
#include <limits.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "gcm.h"
#include "secret.h"

#define BLOCK_BYTES 16                   /* of AES */
#define IV_BYTES TDE_GCM_IV_BYTES        /* of AES-GCM: the nonce's second half */
#define NSLOT (TDE_DERIVED_KEYS + 1)     /* the readers' derived keys and the writer's */
#define HMAC_BLOCK 64                    /* of SHA-256 */

_Static_assert(TDE_NONCE_PREFIX + IV_BYTES == TDE_NONCE_BYTES, "the nonce has two halves");

int (*tde_test_random_hook)(size_t n);

/* Fetched once by tde_crypto_init and kept for the life of the process. */
static EVP_CIPHER *aes_ecb;
static EVP_MD *sha256;
static char engine_name[64];

static atomic_int ready;
static pthread_mutex_t init_mutex = PTHREAD_MUTEX_INITIALIZER;

/* One mutex for all nonce sources: it is taken once in TDE_NONCE_LEASE units,
** and a fork has to wait for one lock only, not for a list of them. */
static pthread_mutex_t lease_mutex = PTHREAD_MUTEX_INITIALIZER;

static void *allocate(size_t n) {
  if (tde_test_alloc_hook && tde_test_alloc_hook(n)) return NULL;
  return calloc(1, n);
}

/* ---- Fork detection ---------------------------------------------------- */

/* Normally a page of its own that the kernel wipes in a child; without
** MADV_WIPEONFORK this word, zeroed by an atfork handler and by a changed
** process id (a raw clone runs no handler). */
static _Atomic uint64_t plain_generation;
static _Atomic uint64_t *generation = &plain_generation;
static atomic_int watch_pid = 1;
static _Atomic pid_t generation_pid;

/* Should the kernel refuse, the clock still tells the child from its parent. */
static uint64_t draw_generation(void) {
  uint64_t v = 0;
  if (getrandom(&v, sizeof v, 0) == (ssize_t)sizeof v && v) return v;
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  v = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
  return (v ^ (uint64_t)getpid() << 48) | 1;
}

/* The way of a fresh child: of threads that race here, the first one's number
** counts. No lock, as the parent's other threads may have held any. */
__attribute__((noinline)) static uint64_t new_generation(void) {
  uint64_t old = 0, v = draw_generation();
  return atomic_compare_exchange_strong(generation, &old, v) ? v : old;
}

/* The number goes first: a thread that sees the new process id must not see
** the parent's number any more. Two threads may both forget; that costs a
** prefix, no more. */
static void forget_if_pid_changed(void) {
  pid_t now = getpid();
  if (atomic_load(&generation_pid) == now) return;
  atomic_store(generation, 0);
  atomic_store(&generation_pid, now);
}

uint64_t tde_fork_generation(void) {
  if (atomic_load_explicit(&watch_pid, memory_order_relaxed)) forget_if_pid_changed();
  uint64_t v = atomic_load_explicit(generation, memory_order_acquire);
  return v ? v : new_generation();
}

void tde_test_fork_fallback(void) {
  generation = &plain_generation;
  atomic_store(&watch_pid, 1);
}

static void before_fork(void) {
  pthread_mutex_lock(&lease_mutex);
}

static void after_fork_parent(void) {
  pthread_mutex_unlock(&lease_mutex);
}

static void after_fork_child(void) {
  atomic_store(&plain_generation, 0);
  pthread_mutex_unlock(&lease_mutex);
}

/* User-mode emulators answer 0 to advice that they do not know. A kernel that
** rejects nonsense is taken to have meant its answer. */
static int wiped_on_fork(void *page, size_t n) {
#ifdef MADV_WIPEONFORK
  return madvise(page, n, -1) != 0 && madvise(page, n, MADV_WIPEONFORK) == 0;
#else
  (void)page;
  (void)n;
  return 0;
#endif
}

static void watch_forks(void) {
  size_t n = (size_t)sysconf(_SC_PAGESIZE);
  void *page = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return;
  if (!wiped_on_fork(page, n)) {
    munmap(page, n);
    return;
  }
  generation = page;
  atomic_store(&watch_pid, 0);
}

/* ---- Random bytes ------------------------------------------------------ */

/* From the kernel, not from OpenSSL's generator. That one has state in this
** process, which a clone and a snapshot of the machine copy; OpenSSL 3.0 sees a
** fork by the process id alone, which repeats across PID namespaces; and it
** takes locks in each call, which a fork can leave locked in the child for
** ever. In batches of TDE_NONCE_BATCH the system call costs no more. */
static int draw(uint8_t *out, size_t n) {
  while (n) {
    ssize_t got = getrandom(out, n, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return 0;
    out += got;
    n -= (size_t)got;
  }
  return 1;
}

tde_class tde_random(void *out, size_t n, tde_status *st) {
  int refused = tde_test_random_hook && tde_test_random_hook(n);
  if (!refused && draw(out, n)) return TDE_OK;
  tde_wipe(out, n);
  return tde_fail(st, TDE_RANDOM, TDE_RANDOM_REMEDY, "the random source gave no bytes");
}

/* ---- Hashes ------------------------------------------------------------ */

typedef struct part {
  const void *p;
  size_t n;
} part;

static int digest_parts(EVP_MD_CTX *m, const part *parts, size_t nparts, uint8_t *out) {
  if (EVP_DigestInit_ex2(m, sha256, NULL) != 1) return 0;
  for (size_t i = 0; i < nparts; i++) {
    if (parts[i].n && EVP_DigestUpdate(m, parts[i].p, parts[i].n) != 1) return 0;
  }
  return EVP_DigestFinal_ex(m, out, NULL) == 1;
}

/* HMAC (RFC 2104) by hand: OpenSSL 3.0's HMAC() fetches its algorithms anew
** each time, which costs more than the hashing. At most 4 parts. out may be
** one of the parts. */
static int hmac_parts(EVP_MD_CTX *m, const uint8_t *key, size_t nkey, const part *parts,
                      size_t nparts, uint8_t out[TDE_HASH_BYTES]) {
  uint8_t pad[HMAC_BLOCK] = {0}, inner[TDE_HASH_BYTES];
  part all[5] = {{pad, sizeof pad}};
  int ok = 1;
  if (nkey > sizeof pad) {
    part whole = {key, nkey};
    ok = digest_parts(m, &whole, 1, pad);
  } else if (nkey) {
    memcpy(pad, key, nkey);
  }
  for (size_t i = 0; i < sizeof pad; i++) pad[i] ^= 0x36;
  memcpy(all + 1, parts, nparts * sizeof *parts);
  ok = ok && digest_parts(m, all, nparts + 1, inner);
  for (size_t i = 0; i < sizeof pad; i++) pad[i] ^= 0x36 ^ 0x5c;
  all[1] = (part){inner, sizeof inner};
  ok = ok && digest_parts(m, all, 2, out);
  tde_wipe(pad, sizeof pad);
  tde_wipe(inner, sizeof inner);
  return ok;
}

static EVP_MD_CTX *digest_context(void) {
  if (tde_test_alloc_hook && tde_test_alloc_hook(sizeof(void *))) return NULL;
  return EVP_MD_CTX_new();
}

tde_class tde_sha256_2(const void *a, size_t na, const void *b, size_t nb,
                       uint8_t out[TDE_HASH_BYTES]) {
  part parts[2] = {{a, na}, {b, nb}};
  EVP_MD_CTX *m = digest_context();
  int ok = m && digest_parts(m, parts, 2, out);
  if (!ok) tde_wipe(out, TDE_HASH_BYTES);
  EVP_MD_CTX_free(m);
  return ok ? TDE_OK : m ? TDE_CRYPTO : TDE_NOMEM;
}

tde_class tde_sha256(const void *p, size_t n, uint8_t out[TDE_HASH_BYTES]) {
  return tde_sha256_2(p, n, NULL, 0, out);
}

tde_class tde_hmac_sha256(const uint8_t *key, size_t nkey, const void *a, size_t na, const void *b,
                          size_t nb, uint8_t out[TDE_HASH_BYTES]) {
  part parts[2] = {{a, na}, {b, nb}};
  EVP_MD_CTX *m = digest_context();
  int ok = m && hmac_parts(m, key, nkey, parts, 2, out);
  if (!ok) tde_wipe(out, TDE_HASH_BYTES);
  EVP_MD_CTX_free(m);
  return ok ? TDE_OK : m ? TDE_CRYPTO : TDE_NOMEM;
}

/* HKDF-Expand (RFC 5869, section 2.3): T(i) = HMAC(PRK, T(i-1) || info || i). */
static int hkdf_expand(EVP_MD_CTX *m, const uint8_t prk[TDE_HASH_BYTES], const uint8_t *info,
                       size_t ninfo, uint8_t *out, size_t nout) {
  uint8_t t[TDE_HASH_BYTES], counter = 0;
  int ok = 1;
  while (ok && nout) {
    part parts[3] = {{t, counter ? sizeof t : 0}, {info, ninfo}, {&counter, 1}};
    size_t take = nout < sizeof t ? nout : sizeof t;
    counter++;
    ok = hmac_parts(m, prk, TDE_HASH_BYTES, parts, 3, t);
    if (!ok) break;
    memcpy(out, t, take);
    out += take;
    nout -= take;
  }
  tde_wipe(t, sizeof t);
  return ok;
}

tde_class tde_hkdf_sha256(const uint8_t *salt, size_t nsalt, const uint8_t *ikm, size_t nikm,
                          const uint8_t *info, size_t ninfo, uint8_t *out, size_t nout) {
  if (nout > 255 * TDE_HASH_BYTES) {
    tde_wipe(out, nout);
    return TDE_MISUSE;
  }
  uint8_t prk[TDE_HASH_BYTES];
  part secret = {ikm, nikm};
  EVP_MD_CTX *m = digest_context();
  int ok = m && hmac_parts(m, salt, nsalt, &secret, 1, prk) &&
           hkdf_expand(m, prk, info, ninfo, out, nout);
  tde_wipe(prk, sizeof prk);
  if (!ok) tde_wipe(out, nout);
  EVP_MD_CTX_free(m);
  return ok ? TDE_OK : m ? TDE_CRYPTO : TDE_NOMEM;
}

/* ---- The AES-256-GCM engine -------------------------------------------- */

/* Set once by tde_crypto_init, before anything can seal or open. */
static const tde_gcm *gcm;

const char *tde_crypto_engine(void) {
  return engine_name;
}

/* TDE_ENGINE names one; otherwise the first that works: the vector code is two
** to three times as fast as OpenSSL 3.0's, and has less to do per call. */
static tde_class choose_engine(tde_status *st) {
  static const tde_gcm *const engines[] = {&tde_gcm_ipsec, &tde_gcm_openssl};
  const char *want = getenv("TDE_ENGINE");
  for (size_t i = 0; i < sizeof engines / sizeof *engines; i++) {
    if (want && *want && strcmp(want, engines[i]->name) != 0) continue;
    if (engines[i]->init(engine_name, sizeof engine_name) == TDE_OK) {
      gcm = engines[i];
      return TDE_OK;
    }
  }
  return tde_fail(st, TDE_UNSUPPORTED, "Unset TDE_ENGINE, or set it to openssl or ipsec-mb.",
                  "the AES-GCM engine %s is not to be had here", want && *want ? want : "OpenSSL");
}

/* ---- Nonce sources ----------------------------------------------------- */

struct tde_nonce_source {
  uint64_t generation; /* of the process that drew the prefix; 0: no prefix yet */
  uint32_t leased;     /* units of the prefix's run that are given out */
  uint8_t prefix[TDE_NONCE_PREFIX];
};

tde_nonce_source *tde_nonce_source_new(void) {
  return allocate(sizeof(tde_nonce_source));
}

void tde_nonce_source_free(tde_nonce_source *s) {
  free(s);
}

static tde_class lease(tde_nonce_source *s, uint64_t now, uint8_t prefix[TDE_NONCE_PREFIX],
                       uint32_t *units) {
  tde_class rc = TDE_OK;
  pthread_mutex_lock(&lease_mutex);
  if (s->generation != now || s->leased >= TDE_NONCE_RUN) {
    s->generation = 0; /* stays so if the draw fails */
    rc = tde_random(s->prefix, sizeof s->prefix, NULL);
    if (rc == TDE_OK) {
      s->generation = now;
      s->leased = 0;
    }
  }
  if (rc == TDE_OK) {
    uint32_t left = TDE_NONCE_RUN - s->leased;
    *units = left < TDE_NONCE_LEASE ? left : TDE_NONCE_LEASE;
    s->leased += *units;
    memcpy(prefix, s->prefix, sizeof s->prefix);
  }
  pthread_mutex_unlock(&lease_mutex);
  return rc;
}

/* ---- The cryptor ------------------------------------------------------- */

/* K, K1 and the derived key that was used first, in secret memory. */
typedef struct key_block {
  uint8_t k[TDE_KEY_BYTES];
  uint8_t k1[BLOCK_BYTES];
  tde_derived first;
} key_block;

typedef struct derived_key {
  void *handle;       /* NULL: never used */
  uint64_t last_used; /* by the cryptor's clock */
  uint8_t prefix[TDE_NONCE_PREFIX];
  uint8_t valid;
} derived_key;

/* What only a cryptor that seals needs. */
typedef struct writer {
  uint64_t generation; /* of the process that holds the lease and drew the batch */
  derived_key *key;    /* of the prefix; pinned: never evicted. NULL: not derived yet */
  uint32_t units_left; /* of the lease */
  uint32_t drawn;      /* second halves left in the batch */
  uint8_t prefix[TDE_NONCE_PREFIX];
  uint8_t batch[TDE_NONCE_BATCH][IV_BYTES];
  tde_nonce_source own; /* for a cryptor that was given none */
} writer;

struct tde_aead {
  key_block *keys;
  tde_nonce_source *source;
  writer *writer;      /* made by the first seal */
  EVP_CIPHER_CTX *ecb; /* AES under K; made by the first derivation */
  derived_key *recent; /* the most recently used one: always valid, or NULL */
  uint64_t clock;
  derived_key slot[NSLOT];
};

tde_class tde_aead_new(const uint8_t key[TDE_KEY_BYTES], tde_nonce_source *source, tde_aead **out,
                       tde_status *st) {
  *out = NULL;
  tde_aead *a = allocate(sizeof *a);
  if (a) a->keys = tde_secret_alloc(sizeof *a->keys);
  if (!a || !a->keys) {
    free(a);
    return tde_fail(st, TDE_NOMEM, NULL, "out of memory for a cipher context");
  }
  memcpy(a->keys->k, key, TDE_KEY_BYTES);
  a->source = source;
  *out = a;
  return TDE_OK;
}

void tde_aead_free(tde_aead *a) {
  if (!a) return;
  for (int i = 0; i < NSLOT; i++) gcm->key_free(a->slot[i].handle);
  EVP_CIPHER_CTX_free(a->ecb);
  if (a->writer) tde_wipe(a->writer, sizeof *a->writer);
  free(a->writer);
  tde_secret_free(a->keys);
  free(a);
}

const tde_derived *tde_aead_derived(const tde_aead *a) {
  return &a->keys->first;
}

void tde_aead_tell(tde_aead *a, const tde_derived *d) {
  a->keys->first = *d;
}

/* Doubling in GF(2^128) with the polynomial x^128 + x^7 + x^2 + x + 1, in time
** that does not depend on the data. */
static void double_block(const uint8_t l[BLOCK_BYTES], uint8_t out[BLOCK_BYTES]) {
  for (int i = 0; i < BLOCK_BYTES; i++) {
    uint8_t carry = i + 1 < BLOCK_BYTES ? (uint8_t)(l[i + 1] >> 7) : 0;
    out[i] = (uint8_t)(l[i] << 1 | carry);
  }
  out[BLOCK_BYTES - 1] ^= (uint8_t)(0x87 & (0 - (l[0] >> 7)));
}

/* Makes AES under K and K1. The context is kept: its set-up takes as long as
** all of a derivation. */
static tde_class make_base(tde_aead *a) {
  if (tde_test_alloc_hook && tde_test_alloc_hook(sizeof(void *))) return TDE_NOMEM;
  EVP_CIPHER_CTX *ecb = EVP_CIPHER_CTX_new();
  if (!ecb) return TDE_NOMEM;
  uint8_t l[BLOCK_BYTES] = {0};
  int got = 0;
  if (EVP_EncryptInit_ex2(ecb, aes_ecb, a->keys->k, NULL, NULL) != 1 ||
      EVP_CIPHER_CTX_set_padding(ecb, 0) != 1 ||
      EVP_EncryptUpdate(ecb, l, &got, l, sizeof l) != 1 || got != (int)sizeof l) {
    EVP_CIPHER_CTX_free(ecb);
    return TDE_CRYPTO;
  }
  double_block(l, a->keys->k1);
  tde_wipe(l, sizeof l);
  a->ecb = ecb;
  return TDE_OK;
}

/* Derives the key of a prefix. */
static tde_class derive(tde_aead *a, const uint8_t prefix[TDE_NONCE_PREFIX],
                        uint8_t kx[TDE_KEY_BYTES]) {
  tde_class rc = a->ecb ? TDE_OK : make_base(a);
  if (rc) return rc;
  uint8_t m[2 * BLOCK_BYTES];
  int got = 0;
  for (int half = 0; half < 2; half++) {
    uint8_t *block = m + half * BLOCK_BYTES;
    const uint8_t head[4] = {0, (uint8_t)(half + 1), 'X', 0};
    memcpy(block, head, sizeof head);
    memcpy(block + sizeof head, prefix, TDE_NONCE_PREFIX);
    for (int i = 0; i < BLOCK_BYTES; i++) block[i] ^= a->keys->k1[i];
  }
  if (EVP_EncryptUpdate(a->ecb, kx, &got, m, sizeof m) != 1 || got != TDE_KEY_BYTES) {
    rc = TDE_CRYPTO;
  }
  tde_wipe(m, sizeof m);
  return rc;
}

/* Sets a slot that is not in use to the key of a prefix. */
static tde_class set_slot(tde_aead *a, const uint8_t prefix[TDE_NONCE_PREFIX], derived_key *d) {
  tde_derived *first = &a->keys->first;
  if (!d->handle && !(d->handle = gcm->key_new())) return TDE_NOMEM;
  if (first->valid && memcmp(first->prefix, prefix, TDE_NONCE_PREFIX) == 0) {
    return gcm->key_set(d->handle, first->key);
  }
  uint8_t kx[TDE_KEY_BYTES];
  tde_class rc = derive(a, prefix, kx);
  if (rc == TDE_OK && !a->clock) { /* no key was used yet */
    memcpy(first->prefix, prefix, TDE_NONCE_PREFIX);
    memcpy(first->key, kx, TDE_KEY_BYTES);
    first->valid = 1;
  }
  if (rc == TDE_OK) rc = gcm->key_set(d->handle, kx);
  tde_wipe(kx, sizeof kx);
  return rc;
}

static int has_prefix(const derived_key *d, const uint8_t prefix[TDE_NONCE_PREFIX]) {
  return memcmp(d->prefix, prefix, TDE_NONCE_PREFIX) == 0 && d->valid;
}

/* The slot to fill next: a free one, or the one unused for longest; never the
** writer's. */
static derived_key *victim(tde_aead *a) {
  const derived_key *pinned = a->writer ? a->writer->key : NULL;
  derived_key *best = NULL;
  for (derived_key *d = a->slot; d < a->slot + NSLOT; d++) {
    if (d == pinned) continue;
    if (!d->valid) return d;
    if (!best || d->last_used < best->last_used) best = d;
  }
  return best;
}

__attribute__((noinline)) static tde_class find_key(tde_aead *a,
                                                    const uint8_t prefix[TDE_NONCE_PREFIX],
                                                    derived_key **out) {
  derived_key *d = a->slot;
  while (d < a->slot + NSLOT && !has_prefix(d, prefix)) d++;
  if (d == a->slot + NSLOT) {
    d = victim(a);
    d->valid = 0;
    if (a->recent == d) a->recent = NULL;
    tde_class rc = set_slot(a, prefix, d);
    if (rc) return rc;
    memcpy(d->prefix, prefix, TDE_NONCE_PREFIX);
    d->valid = 1;
  }
  d->last_used = ++a->clock;
  a->recent = *out = d;
  return TDE_OK;
}

static inline tde_class key_of(tde_aead *a, const uint8_t prefix[TDE_NONCE_PREFIX],
                               derived_key **out) {
  if (a->recent && has_prefix(a->recent, prefix)) {
    *out = a->recent;
    return TDE_OK;
  }
  return find_key(a, prefix, out);
}

/* ---- Sealing and opening ----------------------------------------------- */

/* The way of a writer whose lease or batch is used up, or who is new, or whose
** process has forked. What is already fetched stays when a later step fails. */
__attribute__((noinline)) static tde_class refill(tde_aead *a, uint64_t now) {
  tde_class rc = TDE_OK;
  if (!a->writer && !(a->writer = allocate(sizeof *a->writer))) return TDE_NOMEM;
  writer *w = a->writer;
  if (w->generation != now) {
    tde_wipe(w->batch, sizeof w->batch);
    w->drawn = w->units_left = 0;
    w->generation = now;
  }
  if (w->units_left == 0) {
    w->key = NULL;
    rc = lease(a->source ? a->source : &w->own, now, w->prefix, &w->units_left);
  }
  if (rc == TDE_OK && !w->key) rc = key_of(a, w->prefix, &w->key);
  if (rc == TDE_OK && w->drawn == 0) {
    rc = tde_random(w->batch, sizeof w->batch, NULL);
    if (rc == TDE_OK) w->drawn = TDE_NONCE_BATCH;
  }
  return rc;
}

/* A counter that differs by the instant. */
static uint64_t ticks(void) {
#if defined(__x86_64__) || defined(__i386__)
  return __builtin_ia32_rdtsc();
#else
  struct timespec t = {0, 0};
  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
#endif
}

/* Moves a fresh nonce into nonce, and gives the derived key that goes with it. A snapshot of the
** whole machine that is resumed twice has the same batch twice, and no fork that would be noticed:
** the instant of each seal, folded in, sets the two apart, and is no loss to a random number. */
static tde_class take_nonce(tde_aead *a, uint8_t nonce[TDE_NONCE_BYTES], derived_key **key) {
  uint64_t now = tde_fork_generation();
  writer *w = a->writer;
  if (!w || w->generation != now || !w->units_left || !w->drawn || !w->key) {
    tde_class rc = refill(a, now);
    if (rc) return rc;
    w = a->writer;
  }
  uint8_t *iv = w->batch[--w->drawn];
  w->units_left--;
  memcpy(nonce, w->prefix, TDE_NONCE_PREFIX);
  memcpy(nonce + TDE_NONCE_PREFIX, iv, IV_BYTES);
  tde_put64le(nonce + TDE_NONCE_PREFIX, tde_get64le(iv) ^ ticks());
  tde_wipe(iv, IV_BYTES);
  *key = w->key;
  return TDE_OK;
}

static int lengths_fit(size_t naad, size_t n) {
  return naad <= INT_MAX && n <= INT_MAX;
}

tde_class tde_aead_seal(tde_aead *a, const uint8_t *aad, size_t naad, const uint8_t *pt, size_t n,
                        uint8_t nonce[TDE_NONCE_BYTES], uint8_t *ct, uint8_t tag[TDE_TAG_BYTES]) {
  derived_key *key = NULL;
  tde_class rc = lengths_fit(naad, n) ? take_nonce(a, nonce, &key) : TDE_MISUSE;
  if (rc == TDE_OK) {
    rc = gcm->seal(key->handle, nonce + TDE_NONCE_PREFIX, aad, naad, pt, n, ct, tag);
  }
  if (rc) {
    tde_wipe(ct, n);
    tde_wipe(nonce, TDE_NONCE_BYTES);
    tde_wipe(tag, TDE_TAG_BYTES);
  }
  return rc;
}

tde_class tde_aead_seal_with_nonce(tde_aead *a, const uint8_t *aad, size_t naad, const uint8_t *pt,
                                   size_t n, const uint8_t nonce[TDE_NONCE_BYTES], uint8_t *ct,
                                   uint8_t tag[TDE_TAG_BYTES]) {
  derived_key *key = NULL;
  tde_class rc = lengths_fit(naad, n) ? key_of(a, nonce, &key) : TDE_MISUSE;
  if (rc == TDE_OK) {
    rc = gcm->seal(key->handle, nonce + TDE_NONCE_PREFIX, aad, naad, pt, n, ct, tag);
  }
  if (rc) {
    tde_wipe(ct, n);
    tde_wipe(tag, TDE_TAG_BYTES);
  }
  return rc;
}

tde_class tde_aead_open(tde_aead *a, const uint8_t *aad, size_t naad,
                        const uint8_t nonce[TDE_NONCE_BYTES], const uint8_t *ct, size_t n,
                        const uint8_t tag[TDE_TAG_BYTES], uint8_t *pt) {
  derived_key *key = NULL;
  tde_class rc = lengths_fit(naad, n) ? key_of(a, nonce, &key) : TDE_MISUSE;
  if (rc == TDE_OK) {
    rc = gcm->open(key->handle, nonce + TDE_NONCE_PREFIX, aad, naad, ct, n, tag, pt);
  }
  if (rc) tde_wipe(pt, n);
  return rc;
}

/* ---- Start-up ---------------------------------------------------------- */

/* One known answer through the whole path, from C2SP's XAES-256-GCM: a library
** that computes something else must not get to write a file. */
static tde_class self_test(void) {
  static const uint8_t want[28] = {0xce, 0x54, 0x6e, 0xf6, 0x3c, 0x9c, 0xc6, 0x07, 0x65, 0x92,
                                   0x36, 0x09, 0xb3, 0x3a, 0x9a, 0x19, 0x74, 0xe9, 0x6e, 0x52,
                                   0xda, 0xf2, 0xfc, 0xf7, 0x07, 0x5e, 0x22, 0x71};
  static const uint8_t nonce[] = "ABCDEFGHIJKLMNOPQRSTUVWX", pt[] = "XAES-256-GCM";
  uint8_t key[TDE_KEY_BYTES], got[28];
  tde_aead *a = NULL;
  memset(key, 1, sizeof key);
  tde_class rc = tde_aead_new(key, NULL, &a, NULL);
  if (rc == TDE_OK) rc = tde_aead_seal_with_nonce(a, NULL, 0, pt, 12, nonce, got, got + 12);
  if (rc == TDE_OK && memcmp(got, want, sizeof want) != 0) rc = TDE_CRYPTO;
  tde_aead_free(a);
  return rc;
}

static tde_class prepare(tde_status *st) {
  static int forks_watched;
  if (!aes_ecb) aes_ecb = EVP_CIPHER_fetch(NULL, "AES-256-ECB", NULL);
  if (!sha256) sha256 = EVP_MD_fetch(NULL, "SHA2-256", NULL);
  if (!aes_ecb || !sha256) {
    return tde_fail(st, TDE_CRYPTO, "Check that OpenSSL's default or FIPS provider is active.",
                    "OpenSSL offers no AES-256-ECB or SHA-256");
  }
  if (!forks_watched) {
    if (pthread_atfork(before_fork, after_fork_parent, after_fork_child)) {
      return tde_fail(st, TDE_NOMEM, NULL, "out of memory for a fork handler");
    }
    forks_watched = 1;
    watch_forks();
  }
  tde_fork_generation();
  tde_class rc = choose_engine(st);
  if (rc) return rc;
  rc = self_test();
  if (rc) return tde_fail(st, rc, NULL, "the cipher's self-test failed (%s)", tde_class_name(rc));
  return TDE_OK;
}

tde_class tde_crypto_init(tde_status *st) {
  if (atomic_load_explicit(&ready, memory_order_acquire)) return TDE_OK;
  pthread_mutex_lock(&init_mutex);
  tde_class rc = atomic_load(&ready) ? TDE_OK : prepare(st);
  if (rc == TDE_OK) atomic_store_explicit(&ready, 1, memory_order_release);
  pthread_mutex_unlock(&init_mutex);
  return rc;
}
