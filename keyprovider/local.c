/*
** local.c: the provider of keys in the instance directory.
**
** What must hold: a key file is used only if nobody else can read it and if it
** holds the key that its name says; a key is never overwritten; a key file
** that is gone is gone, cached or not; no lock is held while a file is read,
** parsed or used.
*/
#include "local.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "files.h"
#include "instance.h"
#include "rsa.h"

#define PREFIX "local:"
#define PREFIX_LEN 6
#define VERSION_BYTES TDE_THUMB_SHOWN
#define VERSION_LEN (2 * VERSION_BYTES)
#define PEM_MAX 16384
#define KEY_BITS 3072
#define CREATED "created: "
#define KEY_PATH_MAX (TDE_PATH_MAX + TDE_LOCAL_NAME_MAX + VERSION_LEN + 16)

/* ---- ids and paths ---- */

static int name_valid(const char *name, size_t n) {
  if (n == 0 || n > TDE_LOCAL_NAME_MAX) return 0;
  for (size_t i = 0; i < n; i++) {
    char c = name[i];
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')) return 0;
  }
  return 1;
}

/* Lower case only: one version has one spelling, and one file name. */
static int version_valid(const char *v, size_t n) {
  if (n != VERSION_LEN) return 0;
  for (size_t i = 0; i < n; i++) {
    if (!((v[i] >= '0' && v[i] <= '9') || (v[i] >= 'a' && v[i] <= 'f'))) return 0;
  }
  return 1;
}

static int local_matches(const char *key_id) {
  return strncmp(key_id, PREFIX, PREFIX_LEN) == 0;
}

static tde_class local_parse_id(const char *key_id, char base_id[TDE_KEY_ID_MAX],
                                char version[TDE_KEY_VERSION_MAX], tde_status *st) {
  const char *name = key_id + PREFIX_LEN;
  const char *slash = local_matches(key_id) ? strchr(name, '/') : NULL;
  size_t nname = slash != NULL ? (size_t)(slash - name) : strlen(name);
  base_id[0] = version[0] = 0;
  if (!local_matches(key_id) || !name_valid(name, nname) ||
      (slash != NULL && !version_valid(slash + 1, strlen(slash + 1)))) {
    return tde_fail(st, TDE_MISCONFIGURED,
                    "write local:NAME or local:NAME/VERSION; NAME is of a-z, 0-9 and -, at most 32 "
                    "long; VERSION is 40 lower-case hexadecimal digits",
                    "the key id %.200s is not that of a local key", key_id);
  }
  memcpy(base_id, key_id, PREFIX_LEN + nname);
  base_id[PREFIX_LEN + nname] = 0;
  if (slash != NULL) memcpy(version, slash + 1, VERSION_LEN + 1);
  return TDE_OK;
}

static tde_class key_path(const char *dir, const char *name, const char *version,
                          char out[KEY_PATH_MAX], tde_status *st) {
  int n = snprintf(out, KEY_PATH_MAX, "%s/keys/%s-%s.pem", dir, name, version);
  if (n > 0 && n < KEY_PATH_MAX) return TDE_OK;
  return tde_fail(st, TDE_MISCONFIGURED, "use a shorter instance directory",
                  "the instance directory's path is too long");
}

static void info_ids(tde_key_info *info, const char *name, const char *version) {
  snprintf(info->base_id, sizeof info->base_id, PREFIX "%s", name);
  snprintf(info->version, sizeof info->version, "%s", version);
}

/* ---- parsed keys, and their cache ---- */

/* Shared between threads by reference, and never changed once made. Counted
** here and not by EVP_PKEY_up_ref, so that the thread sanitizer sees that the
** last user comes after all others (it does not look into the library). */
typedef struct local_key {
  atomic_int refs;
  EVP_PKEY *pkey;
  tde_key_info info;
  tde_file_mark mark;
  char path[KEY_PATH_MAX];
} local_key;

static local_key *key_ref(local_key *k) {
  atomic_fetch_add_explicit(&k->refs, 1, memory_order_relaxed);
  return k;
}

static void key_unref(local_key *k) {
  if (k == NULL || atomic_fetch_sub_explicit(&k->refs, 1, memory_order_acq_rel) != 1) return;
  EVP_PKEY_free(k->pkey); /* the library wipes the private numbers */
  free(k);
}

typedef struct slot {
  local_key *key; /* NULL: free */
  uint64_t used;
} slot;

static struct {
  pthread_mutex_t mutex;
  pthread_once_t once;
  uint64_t clock;
  slot slots[TDE_LOCAL_KEYS_MAX];
} cache = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void raw_lock(void) {
  pthread_mutex_lock(&cache.mutex);
}

static void cache_unlock(void) {
  pthread_mutex_unlock(&cache.mutex);
}

/* A child forked while another thread holds the mutex would never get it. */
static void cache_once(void) {
  pthread_atfork(raw_lock, cache_unlock, cache_unlock);
}

static void cache_lock(void) {
  pthread_once(&cache.once, cache_once);
  raw_lock();
}

static void slot_put(slot *s, local_key *key) {
  key_unref(s->key);
  s->key = key;
  s->used = ++cache.clock;
}

static slot *slot_of(const char *path) {
  for (int i = 0; i < TDE_LOCAL_KEYS_MAX; i++) {
    slot *s = &cache.slots[i];
    if (s->key != NULL && strcmp(s->key->path, path) == 0) return s;
  }
  return NULL;
}

/* A free slot, or else the one that was used the longest time ago. */
static slot *slot_to_fill(void) {
  slot *oldest = &cache.slots[0];
  for (int i = 0; i < TDE_LOCAL_KEYS_MAX; i++) {
    slot *s = &cache.slots[i];
    if (s->key == NULL) return s;
    if (s->used < oldest->used) oldest = s;
  }
  return oldest;
}

static void cache_drop(const char *path) {
  cache_lock();
  slot *s = slot_of(path);
  if (s != NULL) slot_put(s, NULL);
  cache_unlock();
}

void tde_local_drop_cache(void) {
  cache_lock();
  for (int i = 0; i < TDE_LOCAL_KEYS_MAX; i++) slot_put(&cache.slots[i], NULL);
  cache_unlock();
}

int tde_local_cached_keys(void) {
  int n = 0;
  cache_lock();
  for (int i = 0; i < TDE_LOCAL_KEYS_MAX; i++) n += cache.slots[i].key != NULL;
  cache_unlock();
  return n;
}

/* A reference to the cached key of this state of the file, or NULL; the key of
** another state is dropped. */
static local_key *cache_get(const char *path, const tde_file_mark *mark) {
  local_key *key = NULL;
  cache_lock();
  slot *s = slot_of(path);
  if (s != NULL && tde_file_mark_equal(&s->key->mark, mark)) {
    key = key_ref(s->key);
    s->used = ++cache.clock;
  } else if (s != NULL) {
    slot_put(s, NULL);
  }
  cache_unlock();
  return key;
}

static void cache_put(local_key *key) {
  cache_lock();
  slot *s = slot_of(key->path);
  if (s == NULL) s = slot_to_fill();
  slot_put(s, key_ref(key));
  cache_unlock();
}

/* ---- key files ---- */

static int64_t created_of(const char *text, const tde_file_mark *mark) {
  if (strncmp(text, CREATED, sizeof CREATED - 1) == 0) {
    long long t = strtoll(text + sizeof CREATED - 1, NULL, 10);
    if (t > 0) return t;
  }
  return (int64_t)mark->mtime.tv_sec;
}

static tde_class parse_pem(const char *text, size_t n, const char *path, EVP_PKEY **out,
                           tde_status *st) {
  ERR_set_mark();
  BIO *bio = BIO_new_mem_buf(text, (int)n);
  *out = bio != NULL ? PEM_read_bio_PrivateKey(bio, NULL, tde_no_password, NULL) : NULL;
  int nomem = bio == NULL;
  BIO_free(bio);
  ERR_pop_to_mark();
  if (*out != NULL) return TDE_OK;
  if (nomem) return tde_nomem(st);
  return tde_fail(st, TDE_CORRUPT, "restore it from a backup of the instance directory",
                  "%s holds no unencrypted private key in PEM form", path);
}

/* The key must be the one that the file's name says. */
static tde_class check_version(const tde_key_info *info, const char *path, tde_status *st) {
  char hex[VERSION_LEN + 1];
  tde_hex(info->thumbprint, VERSION_BYTES, hex);
  if (strcmp(hex, info->version) == 0) return TDE_OK;
  return tde_fail(st, TDE_WRONG_KEY, "restore it from a backup of the instance directory",
                  "%s holds another key, version %s", path, hex);
}

/* Reads and checks the key file key->path; the slow way. */
static tde_class key_load(local_key *key, tde_status *st) {
  char *text = NULL;
  size_t n = 0;
  tde_class rc = tde_file_read(key->path, TDE_FILE_SECRET, PEM_MAX, &text, &n, &key->mark, st);
  if (rc != TDE_OK) return rc;
  key->info.created = created_of(text, &key->mark);
  rc = parse_pem(text, n, key->path, &key->pkey, st);
  tde_secret_free(text);
  if (rc == TDE_OK) rc = tde_rsa_info(key->pkey, &key->info, st);
  return rc == TDE_OK ? check_version(&key->info, key->path, st) : rc;
}

static tde_class key_missing(const char *dir, const char *name, const char *version,
                             tde_status *st) {
  char remedy[320];
  snprintf(remedy, sizeof remedy,
           "copy the instance directory that holds it (file keys/%s-%s.pem) to this machine, or set "
           "tde_instance= or TDE_INSTANCE to that directory",
           name, version[0] != 0 ? version : "VERSION");
  return tde_fail(st, TDE_MISSING, remedy, "the key local:%s%s%s is not in the instance directory %s",
                  name, version[0] != 0 ? "/" : "", version, dir);
}

/* A reference to one key version, from the cache while its file is the same. */
static tde_class key_get(const char *dir, const char *name, const char *version, local_key **out,
                         tde_status *st) {
  char path[KEY_PATH_MAX];
  tde_file_mark mark;
  struct stat sb;
  *out = NULL;
  tde_class rc = key_path(dir, name, version, path, st);
  if (rc != TDE_OK) return rc;
  if (lstat(path, &sb) == 0 && tde_file_check(&sb, TDE_FILE_SECRET, path, NULL) == TDE_OK) {
    tde_file_mark_of(&sb, &mark);
    *out = cache_get(path, &mark);
    if (*out != NULL) return TDE_OK;
  } else {
    cache_drop(path);
  }
  local_key *key = calloc(1, sizeof *key);
  if (key == NULL) return tde_nomem(st);
  key->refs = 1;
  memcpy(key->path, path, strlen(path) + 1);
  info_ids(&key->info, name, version);
  rc = key_load(key, st);
  if (rc == TDE_OK) {
    cache_put(key);
    *out = key;
    return TDE_OK;
  }
  key_unref(key);
  return rc == TDE_MISSING ? key_missing(dir, name, version, st) : rc;
}

/* True when this file name is NAME-VERSION.pem; copies the version. */
static int is_version_of(const char *file, const char *name, char version[VERSION_LEN + 1]) {
  size_t nname = strlen(name);
  if (strlen(file) != nname + 1 + VERSION_LEN + 4 || strncmp(file, name, nname) != 0) return 0;
  if (file[nname] != '-' || strcmp(file + nname + 1 + VERSION_LEN, ".pem") != 0) return 0;
  memcpy(version, file + nname + 1, VERSION_LEN);
  version[VERSION_LEN] = 0;
  return version_valid(version, VERSION_LEN);
}

/* The newer of two; the version decides between equals, so that every process
** comes to the same result. */
static int is_newer(const tde_key_info *a, const tde_key_info *b) {
  if (a->created != b->created) return a->created > b->created;
  return strcmp(a->version, b->version) > 0;
}

/* Takes one version in; the scan ends when it fails. */
typedef tde_class (*take_version)(void *arg, const tde_key_info *info, tde_status *st);

/* Every version of a name, in no order. One that cannot be used ends the scan:
** it might be the newest. */
static tde_class scan_versions(const char *dir, const char *name, take_version take, void *arg,
                               tde_status *st) {
  char path[TDE_PATH_MAX + 8], version[VERSION_LEN + 1];
  int seen = 0;
  tde_class rc = TDE_OK;
  snprintf(path, sizeof path, "%s/keys", dir);
  DIR *d = opendir(path);
  if (d == NULL && (errno == ENOENT || errno == ENOTDIR)) return key_missing(dir, name, "", st);
  if (d == NULL) {
    int err = errno, refused = err == EACCES;
    return tde_fail(st, refused ? TDE_DENIED : TDE_IO,
                    tde_errno_remedy(err, refused ? "give this process's user access to it" : "check the disk"),
                    "cannot list %s: %s", path, strerror(err));
  }
  const char *entry;
  int more = 1;
  while (rc == TDE_OK && (more = tde_dir_next(d, &entry)) > 0) {
    local_key *key = NULL;
    if (!is_version_of(entry, name, version)) continue;
    if (++seen > TDE_VERSIONS_MAX) {
      rc = tde_fail(st, TDE_UNSUPPORTED, "name the version in the key id",
                    "the key local:%s has more than %d versions", name, TDE_VERSIONS_MAX);
      break;
    }
    rc = key_get(dir, name, version, &key, st);
    if (rc == TDE_OK) rc = take(arg, &key->info, st);
    key_unref(key);
  }
  if (more < 0) {
    rc = tde_fail(st, TDE_IO, "check the disk", "cannot list %s: %s", path, strerror(errno));
  }
  closedir(d);
  if (rc == TDE_OK && seen == 0) return key_missing(dir, name, "", st);
  return rc;
}

static tde_class take_newest(void *arg, const tde_key_info *info, tde_status *st) {
  tde_key_info *newest = arg;
  (void)st;
  if (newest->version[0] == 0 || is_newer(info, newest)) *newest = *info;
  return TDE_OK;
}

tde_class tde_local_latest(const char *dir, const char *name, tde_key_info *info, tde_status *st) {
  memset(info, 0, sizeof *info);
  return scan_versions(dir, name, take_newest, info, st);
}

static tde_class take_all(void *arg, const tde_key_info *info, tde_status *st) {
  return tde_op_add_version(arg, info, st);
}

/* The key as a PEM text in memory that the library wipes; NULL on failure. */
static BIO *pem_text(EVP_PKEY *key, int64_t created) {
  ERR_set_mark();
  BIO *bio = BIO_new(BIO_s_secmem());
  int ok = bio != NULL && BIO_printf(bio, CREATED "%lld\n", (long long)created) > 0 &&
           PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) == 1;
  ERR_pop_to_mark();
  if (ok) return bio;
  BIO_free(bio);
  return NULL;
}

static tde_class key_write(const char *dir, const char *name, EVP_PKEY *key,
                           const tde_key_info *info, tde_status *st) {
  char keys[TDE_PATH_MAX + 8], file[TDE_LOCAL_NAME_MAX + VERSION_LEN + 8];
  char *text = NULL;
  snprintf(keys, sizeof keys, "%s/keys", dir);
  /* %.40s: a local key's version is that long. */
  snprintf(file, sizeof file, "%.32s-%.40s.pem", name, info->version);
  tde_class rc = tde_dir_make(keys, st);
  if (rc == TDE_OK) rc = tde_dir_check(keys, st);
  if (rc != TDE_OK) return rc;
  BIO *bio = pem_text(key, info->created);
  if (bio == NULL) return tde_fail(st, TDE_CRYPTO, NULL, "the crypto library failed to write a key");
  long n = BIO_get_mem_data(bio, &text);
  rc = tde_file_create(keys, file, text, (size_t)n, st);
  BIO_free(bio);
  return rc;
}

/* When a new version is made: later than every other one, also within the same second and
** after the clock was set back, or a rotation would find the one before. Where one cannot be
** read the clock serves: a damaged key must not keep its successor from being made. */
static int64_t created_now(const char *dir, const char *name) {
  tde_key_info newest;
  int64_t now = (int64_t)time(NULL);
  if (tde_local_latest(dir, name, &newest, NULL) != TDE_OK || newest.created < now) return now;
  return newest.created + 1;
}

tde_class tde_local_check_name(const char *name, tde_status *st) {
  if (name_valid(name, strlen(name))) return TDE_OK;
  return tde_fail(st, TDE_MISUSE, "use a-z, 0-9 and -, at most 32 characters",
                  "a local key cannot have this name or directory");
}

tde_class tde_local_create(const char *dir, const char *name, tde_key_info *info, tde_status *st) {
  char version[VERSION_LEN + 1];
  EVP_PKEY *key = NULL;
  memset(info, 0, sizeof *info);
  tde_class rc = tde_local_check_name(strlen(dir) < TDE_PATH_MAX ? name : "", st);
  /* What is noted of it could not be read again. */
  if (rc == TDE_OK && time(NULL) < 0) {
    rc = tde_fail(st, TDE_MISCONFIGURED, "set the clock",
                  "this machine's clock is before 1970: no key is made by it");
  }
  if (rc == TDE_OK) rc = tde_rsa_generate(KEY_BITS, &key, st);
  if (rc == TDE_OK) rc = tde_rsa_info(key, info, st);
  if (rc == TDE_OK) {
    tde_hex(info->thumbprint, VERSION_BYTES, version);
    info_ids(info, name, version);
    info->created = created_now(dir, name);
    rc = key_write(dir, name, key, info, st);
  }
  EVP_PKEY_free(key);
  return rc;
}

/* ---- operations ---- */

/* Who wants to wrap under a key that never was can make it; to unwrap, only the old one serves. */
static void advise_new_key(const tde_op *op, const char *name, tde_status *st) {
  if (op->kind == TDE_OP_UNWRAP || strcmp(name, TDE_SMK_NAME) == 0) return;
  tde_also(st, "if there never was one: SELECT tde_instance_new_key('%s')", name);
}

/* Which version a versionless id means: the service-managed key's is the one
** that the instance names, another key's the newest. */
static tde_class resolve_version(tde_op *op, const char *dir, const char *name, tde_status *st) {
  tde_key_info info;
  const char *smk = tde_instance_smk(op->instance);
  size_t nbase = strlen(op->base_id);
  if (strncmp(smk, op->base_id, nbase) == 0 && smk[nbase] == '/') {
    snprintf(op->version, sizeof op->version, "%.40s", smk + nbase + 1);
    return TDE_OK;
  }
  tde_class rc = tde_local_latest(dir, name, &info, st);
  if (rc == TDE_OK) memcpy(op->version, info.version, sizeof op->version);
  if (rc == TDE_MISSING) advise_new_key(op, name, st);
  return rc;
}

static tde_step local_start(tde_op *op, tde_request *req, tde_status *st) {
  local_key *key = NULL;
  (void)req;
  if (op->instance == NULL) {
    tde_fail(st, TDE_MISUSE, NULL, "a local key needs an instance");
    return TDE_STEP_FAILED;
  }
  const char *dir = tde_instance_dir(op->instance), *name = op->base_id + PREFIX_LEN;
  tde_class rc = TDE_OK;
  if (op->kind == TDE_OP_VERSIONS) {
    rc = scan_versions(dir, name, take_all, op, st);
    return rc == TDE_OK ? TDE_STEP_DONE : TDE_STEP_FAILED;
  }
  if (op->version[0] == 0 || op->kind == TDE_OP_LATEST) rc = resolve_version(op, dir, name, st);
  if (rc == TDE_OK && op->kind == TDE_OP_UNWRAP && op->algorithm[0] != 0 &&
      strcmp(op->algorithm, TDE_RSA_OAEP_256) != 0) {
    rc = tde_fail(st, TDE_UNSUPPORTED, NULL, "local keys do not unwrap with %s", op->algorithm);
  }
  if (rc == TDE_OK) rc = key_get(dir, name, op->version, &key, st);
  if (rc == TDE_OK) op->info = key->info;
  if (rc == TDE_OK && op->kind == TDE_OP_WRAP) {
    rc = tde_rsa_wrap(key->pkey, op->dek, op->wrapped, &op->nwrapped, st);
  } else if (rc == TDE_OK && op->kind == TDE_OP_UNWRAP) {
    rc = tde_rsa_unwrap(key->pkey, op->wrapped, op->nwrapped, op->dek, st);
    if (rc == TDE_WRONG_KEY || rc == TDE_CRYPTO) {
      /* A failed allocation can leave OpenSSL's blinding of a cached key wrong
      ** for some uses: only the key as its file has it may say "wrong key". */
      cache_drop(key->path);
      key_unref(key);
      tde_status_clear(st);
      rc = key_get(dir, name, op->version, &key, st);
      if (rc == TDE_OK) rc = tde_rsa_unwrap(key->pkey, op->wrapped, op->nwrapped, op->dek, st);
    }
  }
  key_unref(key);
  return rc == TDE_OK ? TDE_STEP_DONE : TDE_STEP_FAILED;
}

const tde_provider tde_provider_local = {
    .name = "local",
    .matches = local_matches,
    .parse_id = local_parse_id,
    .start = local_start,
    .reply = NULL,
    .finish = NULL,
};
