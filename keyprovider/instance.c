/*
** instance.c: finds, makes, keeps and changes the instance directory; what its file says is read in
** instance_read.c.
**
** What must hold:
**  - A published tde_instance never changes and is never freed.
**  - instance.json never names a key that is not durable: the key file is
**    synced, with its directory, before the instance file gets its name.
**  - Two processes that make one instance at once end with the same one: the
**    instance file takes its name without replacing another, and the loser
**    loads the winner's. The lock file only spares the loser its key pair.
**  - A crash in between leaves at most a key file, which the next try uses.
**  - No lock is held while files are read or keys are made.
*/
#include "instance_int.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "../ext/base/crypto.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "files.h"
#include "local.h"

#define INSTANCE_FILE "instance.json"
#define LOCK_FILE ".lock"
/* Room for the names that are appended to a directory. */
#define DIR_MAX (TDE_PATH_MAX - 128)
#define FILE_PATH_MAX TDE_PATH_MAX
/* Longer than a key pair takes on a slow machine; then we go on unlocked. */
#define LOCK_WAIT_MS 30000
#define LOCK_NAP_MS 20

/* One directory: the current state, the file that it was read from, and every
** state ever published, newest first. */
typedef struct place {
  const char *dir;
  tde_file_mark mark;
  int settled;                         /* the mark tells it from every later state */
  const tde_instance *current;
  const tde_instance *all;
  struct place *next;
} place;

/* What a relative TDE_INSTANCE meant when it was first used. */
typedef struct meaning {
  char *text, *dir;
  struct meaning *next;
} meaning;

static struct {
  pthread_mutex_t mutex;
  pthread_once_t once;
  place *first;
  meaning *meanings;
} registry = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void raw_lock(void) {
  pthread_mutex_lock(&registry.mutex);
}

static void registry_unlock(void) {
  pthread_mutex_unlock(&registry.mutex);
}

/* A child forked while another thread holds the mutex would never get it. */
static void registry_once(void) {
  pthread_atfork(raw_lock, registry_unlock, registry_unlock);
}

static void registry_lock(void) {
  pthread_once(&registry.once, registry_once);
  raw_lock();
}

/* ---- where the instance is ---- */

#define NAME_IT "set the URI parameter tde_instance or the environment variable TDE_INSTANCE"

/* Absolute, without doubled or trailing slashes, so that one spelling names
** one place; symbolic links stay. */
static tde_class absolute(const char *path, char out[DIR_MAX], tde_status *st) {
  size_t n = 0;
  char cwd[DIR_MAX];
  cwd[0] = 0;
  if (path[0] != '/' && getcwd(cwd, sizeof cwd) == NULL) {
    return tde_fail(st, TDE_MISCONFIGURED, "give the instance directory as an absolute path",
                    "the relative path %s cannot be resolved: no current directory", path);
  }
  const char *parts[2] = {cwd, path};
  for (int i = 0; i < 2; i++) {
    for (const char *p = parts[i]; *p != 0;) {
      size_t len;
      while (*p == '/') p++;
      len = strcspn(p, "/");
      if (len > 0 && !(len == 1 && p[0] == '.')) {
        if (n + len + 2 > DIR_MAX) {
          return tde_fail(st, TDE_MISCONFIGURED, "use a shorter path",
                          "the instance directory's path is longer than %d bytes", DIR_MAX);
        }
        out[n++] = '/';
        memcpy(out + n, p, len);
        n += len;
      }
      p += len;
    }
  }
  if (n == 0) out[n++] = '/';
  out[n] = 0;
  return TDE_OK;
}

/* The per-user default. Environment variables of a set-user-id process belong
** to somebody else: secure_getenv hides them. */
static tde_class default_dir(char out[DIR_MAX], tde_status *st) {
  const char *base = secure_getenv("XDG_DATA_HOME");
  const char *below = "";
  /* XDG Base Directory Specification: a relative path there is ignored. */
  if (base == NULL || base[0] != '/') {
    base = secure_getenv("HOME");
    below = "/.local/share";
  }
  if (base == NULL || base[0] != '/') {
    return tde_fail(st, TDE_MISCONFIGURED, NAME_IT,
                    "no instance is named, and HOME is not set to an absolute path");
  }
  char path[DIR_MAX];
  int n = snprintf(path, sizeof path, "%s%s/sqlite-tde", base, below);
  if (n < 0 || n >= DIR_MAX) {
    return tde_fail(st, TDE_MISCONFIGURED, NAME_IT, "the default instance directory's path is too long");
  }
  return absolute(path, out, st);
}

static const meaning *meaning_of(const char *text) {
  const meaning *m = registry.meanings;
  while (m != NULL && strcmp(m->text, text) != 0) m = m->next;
  return m;
}

/* Copies what text means to out, and keeps fresh for it where nothing is known yet. */
static int remembered(const char *text, meaning *fresh, char out[DIR_MAX]) {
  registry_lock();
  const meaning *m = meaning_of(text);
  if (m == NULL && fresh != NULL) {
    fresh->next = registry.meanings;
    registry.meanings = fresh;
    m = fresh;
  }
  if (m != NULL) memcpy(out, m->dir, strlen(m->dir) + 1);
  registry_unlock();
  return m != NULL && m != fresh;
}

static void meaning_free(meaning *m) {
  if (m == NULL) return;
  free(m->text);
  free(m->dir);
  free(m);
}

/* TDE_INSTANCE, of a process that may change its directory: a relative path goes on meaning what
** it meant, or there would be a second instance, without the keys of the first. */
static tde_class from_environment(const char *text, char out[DIR_MAX], tde_status *st) {
  if (text[0] == '/') return absolute(text, out, st);
  if (remembered(text, NULL, out)) return TDE_OK;
  tde_class rc = absolute(text, out, st);
  if (rc != TDE_OK) return rc;
  meaning *fresh = calloc(1, sizeof *fresh);
  if (fresh != NULL) fresh->text = strdup(text);
  if (fresh != NULL) fresh->dir = strdup(out);
  if (fresh == NULL || fresh->text == NULL || fresh->dir == NULL) {
    meaning_free(fresh);
    return tde_nomem(st);
  }
  if (remembered(text, fresh, out)) meaning_free(fresh); /* another thread was faster */
  return TDE_OK;
}

static tde_class resolve(const char *path, char out[DIR_MAX], tde_status *st) {
  if (path != NULL && path[0] != 0) return absolute(path, out, st);
  path = secure_getenv("TDE_INSTANCE");
  return path != NULL && path[0] != 0 ? from_environment(path, out, st) : default_dir(out, st);
}

/* Whoever names it: it may have been resolved before. */
static int is_default(const char *dir) {
  char usual[DIR_MAX];
  return default_dir(usual, NULL) == TDE_OK && strcmp(dir, usual) == 0;
}

tde_class tde_instance_resolve(const char *path, char **dir, tde_status *st) {
  char out[DIR_MAX];
  tde_class rc = resolve(path, out, st);
  *dir = rc == TDE_OK ? strdup(out) : NULL;
  return rc == TDE_OK && *dir == NULL ? tde_nomem(st) : rc;
}

/* ---- the registry ---- */

static place *place_of(const char *dir) {
  for (place *p = registry.first; p != NULL; p = p->next) {
    if (strcmp(p->dir, dir) == 0) return p;
  }
  return NULL;
}

/* The published state of the same directory and content, or NULL. The lock is held. */
static const tde_instance *same_content(const place *p, const tde_instance *inst) {
  const tde_instance *same = p != NULL ? p->all : NULL;
  while (same != NULL && !tde_equal(same->digest, inst->digest, TDE_HASH_BYTES)) same = same->older;
  return same;
}

static int is_published(const tde_instance *inst) {
  registry_lock();
  int found = same_content(place_of(inst->dir), inst) != NULL;
  registry_unlock();
  return found;
}

/* Reads and checks the file; *out is the caller's until published. Of a content that is published
** it has the digest alone, by which that state is found. */
static tde_class load(const char *dir, const char *file, tde_instance **out, tde_file_mark *mark,
                      tde_status *st) {
  char *text = NULL;
  size_t n = 0;
  tde_json *root = NULL;
  tde_instance *inst = NULL;
  *out = NULL;
  tde_class rc = tde_dir_check(dir, st);
  if (rc != TDE_OK) return rc;
  rc = tde_file_read(file, TDE_FILE_TRUSTED, TDE_INSTANCE_TEXT_MAX, &text, &n, mark, st);
  if (rc != TDE_OK) return rc;
  inst = calloc(1, sizeof *inst);
  if (inst != NULL) inst->dir = strdup(dir);
  if (inst == NULL || inst->dir == NULL) {
    rc = tde_nomem(st);
    goto done;
  }
  if (tde_sha256(text, n, inst->digest) != TDE_OK) {
    rc = tde_fail(st, TDE_CRYPTO, NULL, "the crypto library failed to hash %s", file);
    goto done;
  }
  if (is_published(inst)) goto done;
  rc = tde_instance_parse(text, n, file, &root, st);
  if (rc == TDE_OK) rc = tde_instance_read(root, file, inst, st);
  if (rc == TDE_OK) tde_instance_find_unknown(root, file, inst);
done:
  tde_json_free(root);
  tde_secret_free(text);
  if (rc == TDE_OK) *out = inst;
  else tde_instance_free(inst);
  return rc;
}

/* Change times are as coarse as the kernel's tick, on some file systems two seconds: what is
** written in place that soon after another change may have the same mark. Such a file is read
** again until its change is older. */
#define COARSEST_NS 2000000000LL

static int is_settled(const tde_file_mark *mark, const struct timespec *read_at) {
  int64_t s = (int64_t)read_at->tv_sec - mark->ctime.tv_sec;
  if (s < -10 || s > 10) return 1; /* or by another machine's clock, which may never catch up */
  return s * 1000000000 + read_at->tv_nsec - mark->ctime.tv_nsec >= COARSEST_NS;
}

/* The published state that was read from this very file, or NULL. */
static const tde_instance *known(const char *dir, const tde_file_mark *mark) {
  const tde_instance *inst = NULL;
  registry_lock();
  const place *p = place_of(dir);
  if (p != NULL && p->settled && tde_file_mark_equal(&p->mark, mark)) inst = p->current;
  registry_unlock();
  return inst;
}

/* Publishes inst, or the state with the same content that is published
** already; takes inst over in every case. */
static tde_class publish(tde_instance *inst, const tde_file_mark *mark, const struct timespec *read_at,
                         const tde_instance **out, tde_status *st) {
  place *fresh = calloc(1, sizeof *fresh);
  if (fresh == NULL) {
    tde_instance_free(inst);
    return tde_nomem(st);
  }
  registry_lock();
  place *p = place_of(inst->dir);
  if (p == NULL) {
    p = fresh;
    fresh = NULL;
    p->dir = inst->dir;
    p->next = registry.first;
    registry.first = p;
  }
  const tde_instance *same = same_content(p, inst);
  if (same == NULL) {
    inst->older = p->all;
    p->all = inst;
    same = inst;
    inst = NULL;
  }
  p->current = same;
  *out = same;
  p->mark = *mark;
  p->settled = is_settled(mark, read_at);
  registry_unlock();
  free(fresh);
  tde_instance_free(inst);
  return TDE_OK;
}

/* ---- making an instance ---- */

static tde_class make_dirs(const char *dir, int parents, tde_status *st) {
  char path[DIR_MAX];
  snprintf(path, sizeof path, "%s", dir);
  for (char *p = path + 1; parents && (p = strchr(p, '/')) != NULL; p++) {
    *p = 0;
    tde_class rc = tde_dir_make(path, st);
    *p = '/';
    if (rc != TDE_OK) return rc;
  }
  return tde_dir_make(path, st);
}

/* A lock that root makes is for the directory's owner, too. What has content, or another name,
** is no lock of ours. */
static void give_away(int fd, const char *path) {
  struct stat sb;
  if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode) || sb.st_size != 0 || sb.st_nlink != 1) return;
  if (tde_file_adopt(fd, path) != 0) {
    tde_log(TDE_LOG_WARNING, "the lock %s could not be given to its folder's owner", path);
  }
}

/* Takes the lock file, or gives up: then the work is merely done twice.
** Returns a descriptor, or -1 with errno; EWOULDBLOCK: another process has it. */
static int lock_take(const char *dir) {
  char path[FILE_PATH_MAX];
  snprintf(path, sizeof path, "%s/" LOCK_FILE, dir);
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
  if (fd < 0) return -1;
  tde_file_unmask(fd, 0600);
  give_away(fd, path);
  for (int waited = 0; flock(fd, LOCK_EX | LOCK_NB) != 0; waited += LOCK_NAP_MS) {
    struct timespec nap = {0, LOCK_NAP_MS * 1000000L};
    if ((errno != EWOULDBLOCK && errno != EINTR) || waited >= LOCK_WAIT_MS) {
      return tde_file_close(fd, -1);
    }
    nanosleep(&nap, NULL);
  }
  return fd;
}

static void lock_release(int fd) {
  if (fd < 0) return;
  /* Not left to close(): a child forked meanwhile shares the description. */
  flock(fd, LOCK_UN);
  close(fd);
}

tde_class tde_instance_smk_ready(const char *dir, tde_key_info *info, tde_status *st) {
  tde_status inner;
  tde_status_clear(&inner);
  tde_class rc = tde_local_latest(dir, TDE_SMK_NAME, info, &inner);
  if (rc == TDE_OK) return TDE_OK;
  if (rc == TDE_MISSING || rc == TDE_CORRUPT || rc == TDE_WRONG_KEY) {
    if (rc != TDE_MISSING) tde_log_status(TDE_LOG_WARNING, NULL, &inner);
    return tde_local_create(dir, TDE_SMK_NAME, info, st);
  }
  if (st != NULL) *st = inner;
  return rc;
}

static char *instance_text(const tde_key_info *smk, size_t *n) {
  tde_json *root = tde_json_object(), *key = tde_json_object();
  int bad = tde_json_set_text(key, "name", TDE_SMK_NAME) | tde_json_set_text(key, "version", smk->version) |
            tde_json_set_int(key, "created", smk->created);
  bad |= tde_json_set_int(root, "version", 1) |
         tde_json_set_text(root, "default_protector", TDE_SERVICE_MANAGED);
  bad |= tde_json_set_json(root, "service_managed_key", key);
  bad |= tde_instance_id_add(root, NULL) != TDE_OK;
  char *text = bad ? NULL : tde_json_pretty(root, n);
  tde_json_free(root);
  return text;
}

/* Under the lock: makes key and file, unless another process was faster. */
static tde_class make_files(const char *dir, const char *file, tde_status *st) {
  tde_key_info smk;
  size_t n = 0;
  struct stat sb;
  if (lstat(file, &sb) == 0) return TDE_OK; /* also a link to what is not there now */
  tde_class rc = tde_instance_smk_ready(dir, &smk, st);
  if (rc != TDE_OK) return rc;
  char *text = instance_text(&smk, &n);
  if (text == NULL) return tde_nomem(st);
  rc = tde_file_create(dir, INSTANCE_FILE, text, n, st);
  free(text);
  return rc == TDE_BUSY ? TDE_OK : rc;
}

static tde_class make_instance(const char *dir, const char *file, tde_status *st) {
  tde_class rc = make_dirs(dir, is_default(dir), st);
  /* As a service's home, or a container's: no access to it is to be given. */
  if (rc == TDE_DENIED && st != NULL) tde_also(st, "or %s to a directory that it may make or use", NAME_IT);
  if (rc == TDE_OK) rc = tde_dir_check(dir, st);
  if (rc == TDE_OK) {
    int lock = lock_take(dir);
    rc = make_files(dir, file, st);
    lock_release(lock);
  }
  if (rc != TDE_OK && st != NULL && st->remedy[0] == 0) {
    snprintf(st->remedy, sizeof st->remedy, "%s to a directory whose parent exists", NAME_IT);
  }
  return rc;
}

static tde_class no_instance(const char *dir, const char *file, tde_status *st) {
  struct stat sb;
  if (lstat(file, &sb) == 0 && S_ISLNK(sb.st_mode)) {
    return tde_fail(st, TDE_MISSING, "bring back what it points to (a volume that is not mounted?)",
                    "%s is a symbolic link to what is not there", file);
  }
  return tde_fail(st, TDE_MISSING, NAME_IT " to the directory that holds it",
                  "there is no instance at %s", dir);
}

/* ---- the interface ---- */

tde_class tde_instance_open(const char *path, int create, const tde_instance **out,
                            tde_status *st) {
  char dir[DIR_MAX], file[FILE_PATH_MAX];
  struct stat sb;
  struct timespec read_at;
  tde_file_mark mark;
  tde_instance *inst = NULL;
  *out = NULL;
  tde_class rc = resolve(path, dir, st);
  if (rc != TDE_OK) return rc;
  snprintf(file, sizeof file, "%s/" INSTANCE_FILE, dir);
  if (stat(file, &sb) == 0) {
    tde_file_mark_of(&sb, &mark);
    *out = known(dir, &mark);
    if (*out != NULL) return TDE_OK;
  } else if (errno == ENOENT && create) {
    rc = make_instance(dir, file, st);
    if (rc != TDE_OK) return rc;
  }
  clock_gettime(CLOCK_REALTIME, &read_at);
  rc = load(dir, file, &inst, &mark, st);
  if (rc == TDE_MISSING) return no_instance(dir, file, st);
  if (rc != TDE_OK) return rc;
  return publish(inst, &mark, &read_at, out, st);
}

const tde_instance *tde_instance_last_seen(const char *path) {
  char dir[DIR_MAX];
  if (resolve(path, dir, NULL) != TDE_OK) return NULL;
  registry_lock();
  const place *p = place_of(dir);
  const tde_instance *inst = p != NULL ? p->current : NULL;
  registry_unlock();
  return inst;
}

const tde_instance *tde_instance_now_or_last(const char *path) {
  const tde_instance *inst;
  if (tde_instance_open(path, 0, &inst, NULL) == TDE_OK) return inst;
  return tde_instance_last_seen(path);
}

/* Changes what was sound, and checks it. */
static tde_class change_root(tde_json *root, const char *file,
                             tde_instance_edit change, void *ctx, tde_status *st) {
  tde_instance draft;
  tde_status inner;
  memset(&draft, 0, sizeof draft);
  tde_status_clear(&inner);
  tde_class rc = change(ctx, root, st);
  if (rc == TDE_OK) rc = tde_instance_id_add(root, st);
  /* What is wrong now is what was to be put into it. */
  if (rc == TDE_OK && tde_instance_read(root, file, &draft, &inner) != TDE_OK) {
    rc = inner.code == TDE_NOMEM ? tde_nomem(st)
                                 : tde_fail(st, TDE_MISUSE, "give another value; nothing was changed",
                                            "%s", inner.message);
  }
  tde_cloud_free(&draft.cloud);
  free(draft.keys);
  return rc;
}

/* Reads, edits and checks; the lock is held. *text: the new content. */
static tde_class edit(const char *file, tde_instance_edit change, void *ctx, char **text, size_t *n,
                      tde_status *st) {
  char *old = NULL;
  tde_json *root = NULL;
  tde_class rc = tde_file_read(file, TDE_FILE_TRUSTED, TDE_INSTANCE_TEXT_MAX, &old, n, NULL, st);
  if (rc != TDE_OK) return rc;
  rc = tde_instance_parse(old, *n, file, &root, st);
  tde_secret_free(old);
  if (rc == TDE_OK) rc = change_root(root, file, change, ctx, st);
  if (rc == TDE_OK) {
    *text = tde_json_pretty(root, n);
    if (*text == NULL) rc = tde_nomem(st);
  }
  if (rc == TDE_OK && *n > TDE_INSTANCE_TEXT_MAX) {
    rc = tde_fail(st, TDE_MISUSE, "remove keys or identities that are not needed",
                  "the instance file would be %zu bytes long; at most %d are", *n,
                  TDE_INSTANCE_TEXT_MAX);
  }
  tde_json_free(root);
  return rc;
}

tde_class tde_instance_change_fits(const char *path, tde_instance_edit change, void *ctx,
                                   tde_status *st) {
  static const tde_key_info smk = {.version = "0123456789abcdef0123456789abcdef01234567", .created = 1};
  char dir[DIR_MAX], file[FILE_PATH_MAX], *text;
  struct stat sb;
  tde_json *root = NULL;
  size_t n = 0;
  tde_class rc = resolve(path, dir, st);
  if (rc != TDE_OK) return rc;
  snprintf(file, sizeof file, "%s/" INSTANCE_FILE, dir);
  if (stat(file, &sb) == 0 || errno != ENOENT) return TDE_OK; /* the change itself tells */
  text = instance_text(&smk, &n);
  rc = text != NULL ? tde_json_parse(text, n, "file", &root, st) : tde_nomem(st);
  if (rc == TDE_OK) rc = change_root(root, file, change, ctx, st);
  tde_json_free(root);
  free(text);
  return rc;
}

static tde_class not_locked(const char *dir, int err, tde_status *st) {
  int refused = err == EACCES || err == EPERM || err == EROFS;
  if (err == EWOULDBLOCK || err == EINTR) {
    return tde_fail(st, TDE_BUSY, "try again", "the instance %s is being changed by another process", dir);
  }
  return tde_fail(st, refused ? TDE_DENIED : TDE_IO,
                  tde_errno_remedy(err, refused ? "give this process's user the right to write there"
                                                : "check the disk and the file system"),
                  "the instance %s cannot be changed: its lock file cannot be had: %s", dir, strerror(err));
}

tde_class tde_instance_change(const char *path, tde_instance_edit change, void *ctx,
                              tde_status *st) {
  const tde_instance *inst;
  char file[FILE_PATH_MAX], *text = NULL;
  size_t n = 0;
  tde_class rc = tde_instance_open(path, 1, &inst, st);
  if (rc != TDE_OK) return rc;
  int lock = lock_take(inst->dir);
  if (lock < 0) return not_locked(inst->dir, errno, st);
  snprintf(file, sizeof file, "%s/" INSTANCE_FILE, inst->dir);
  rc = edit(file, change, ctx, &text, &n, st);
  if (rc == TDE_OK) rc = tde_file_replace(inst->dir, INSTANCE_FILE, text, n, st);
  lock_release(lock);
  free(text);
  return rc;
}

/* May the file be changed unasked? Not one that somebody made read-only, or that is another's. */
static int is_ours(const char *dir) {
  char file[FILE_PATH_MAX];
  struct stat sb;
  snprintf(file, sizeof file, "%s/" INSTANCE_FILE, dir);
  return lstat(file, &sb) == 0 && S_ISREG(sb.st_mode) && (sb.st_mode & 0200) != 0 &&
         (geteuid() == 0 || sb.st_uid == geteuid());
}

static tde_class no_change(void *ctx, tde_json *root, tde_status *st) {
  (void)ctx;
  (void)root;
  (void)st;
  return TDE_OK;
}

void tde_instance_need_id(const tde_instance **inst) {
  const tde_instance *now;
  const char *dir = (*inst)->dir;
  if ((*inst)->id[0] != 0 || !is_ours(dir)) return;
  /* Any change adds it. */
  if (tde_instance_change(dir, no_change, NULL, NULL) == TDE_OK &&
      tde_instance_open(dir, 0, &now, NULL) == TDE_OK) {
    *inst = now;
  }
}
