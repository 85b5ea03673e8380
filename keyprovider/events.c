/*
** events.c: the ring of recent events, and the audit sink; see events.h.
**
** What must hold:
**  - a line is written by one writev(2) to a file opened for appending, under a
**    lock that all processes of the instance take: lines do not mix, and a
**    rotation loses none;
**  - the lock is waited for at most LOCK_WAIT_MS: a process that hangs on to it
**    must not stop others from opening their databases;
**  - a failure of the sink is never silent;
**  - nothing is written to a file, nor is it renamed, which is no log of ours.
*/
#include "events.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "cloud.h"
#include "files.h"
#include "provider.h"

#define LOCK_WAIT_MS 2000
#define LOCK_NAP_MS 5
#define WARN_EACH_MS 60000
/* Every line begins so: object_of. */
#define LINE_HEAD "{\"time\":\""
#define LINE_HEAD_LEN ((ssize_t)sizeof LINE_HEAD - 1)
/* The message of an announcement. */
#define BEGINS "begins"
#define OWN "names a file of the instance, or one among its keys"

/* ---- the event ---- */

static void copy(char *out, size_t cap, const char *text) {
  snprintf(out, cap, "%s", text != NULL ? text : "");
}

void tde_event_fill(tde_event *e, const char *event, const uint8_t *uuid, const char *path,
                    const char *key_id, const char *version, const tde_status *st) {
  memset(e, 0, sizeof *e);
  e->time = (int64_t)time(NULL);
  e->event = event;
  e->uuid = uuid;
  e->path = path;
  copy(e->key_id, sizeof e->key_id, key_id);
  copy(e->version, sizeof e->version, version);
  if (st == NULL || st->code == TDE_OK) return;
  e->code = st->code;
  e->http_status = st->http_status;
  copy(e->service_code, sizeof e->service_code, st->service_code);
  copy(e->request_id, sizeof e->request_id, st->request_id);
  snprintf(e->message, sizeof e->message, "%.255s", st->message);
  tde_clean_line(e->message);
}

void tde_event_key(const tde_event *e, char out[TDE_KEY_ID_MAX]) {
  snprintf(out, TDE_KEY_ID_MAX, "%.383s%s%.127s", e->key_id, e->version[0] != 0 ? "/" : "",
           e->version);
}

static void rfc3339(int64_t t, char out[32]) {
  struct tm tm;
  time_t at = (time_t)t;
  if (gmtime_r(&at, &tm) == NULL || strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0) out[0] = 0;
}

/* The object of a line. NULL: out of memory. */
static tde_json *object_of(const tde_event *e) {
  char text[40], when[32];
  tde_json *j = tde_json_object();
  rfc3339(e->time, when);
  int failed = tde_json_set_text(j, "time", when) | tde_json_set_text(j, "event", e->event);
  if (e->uuid != NULL) {
    tde_uuid_text(e->uuid, text);
    failed |= tde_json_set_text(j, "database", text);
  }
  if (e->path != NULL) failed |= tde_json_set_text(j, "path", e->path);
  if (e->key_id[0] != 0) {
    char full[TDE_KEY_ID_MAX];
    tde_event_key(e, full);
    failed |= tde_json_set_text(j, "key_id", full);
  }
  failed |= tde_json_set_text(j, "outcome", tde_class_name(e->code));
  if (e->http_status != 0) failed |= tde_json_set_int(j, "http_status", e->http_status);
  if (e->service_code[0] != 0) failed |= tde_json_set_text(j, "service_code", e->service_code);
  if (e->request_id[0] != 0) failed |= tde_json_set_text(j, "request_id", e->request_id);
  if (e->message[0] != 0) failed |= tde_json_set_text(j, "message", e->message);
  if (!failed) return j;
  tde_json_free(j);
  return NULL;
}

/* ---- the ring ---- */

typedef struct kept {
  tde_event e;
  uint8_t uuid[TDE_UUID_BYTES];
  int has_uuid;
  char *path; /* or NULL */
} kept;

static struct {
  pthread_mutex_t mutex;
  pthread_once_t once;
  kept *at; /* TDE_EVENTS_MAX of them; made with the first event */
  uint64_t n;
  int64_t next_warning; /* tde_boot_ms() from which one is due */
} ring = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void raw_lock(void) {
  pthread_mutex_lock(&ring.mutex);
}

static void ring_unlock(void) {
  pthread_mutex_unlock(&ring.mutex);
}

/* A child forked while another thread holds the mutex would never get it. */
static void ring_once(void) {
  pthread_atfork(raw_lock, ring_unlock, ring_unlock);
}

static void ring_lock(void) {
  pthread_once(&ring.once, ring_once);
  raw_lock();
}

static void keep(const tde_event *e) {
  ring_lock();
  if (ring.at == NULL) ring.at = calloc(TDE_EVENTS_MAX, sizeof *ring.at);
  if (ring.at != NULL) {
    kept *k = &ring.at[ring.n++ % TDE_EVENTS_MAX];
    k->e = *e;
    k->has_uuid = e->uuid != NULL;
    if (k->has_uuid) memcpy(k->uuid, e->uuid, TDE_UUID_BYTES);
    free(k->path);
    k->path = e->path != NULL && e->path[0] != 0 ? strdup(e->path) : NULL;
    k->e.uuid = k->has_uuid ? k->uuid : NULL;
    k->e.path = k->path;
  }
  ring_unlock();
}

static int is_of(const kept *k, const uint8_t *uuid) {
  return uuid == NULL || (k->has_uuid && memcmp(k->uuid, uuid, TDE_UUID_BYTES) == 0);
}

tde_class tde_event_announce(const tde_audit *audit, const tde_event *e, tde_status *st) {
  tde_event before = *e;
  if (audit == NULL || !audit->required) return TDE_OK;
  snprintf(before.message, sizeof before.message, BEGINS);
  return tde_event_emit(audit, &before, st);
}

tde_json *tde_events_recent(const uint8_t *uuid) {
  tde_json *arr = tde_json_array();
  int failed = arr == NULL;
  ring_lock();
  uint64_t from = ring.n > TDE_EVENTS_MAX ? ring.n - TDE_EVENTS_MAX : 0;
  for (uint64_t i = from; i < ring.n && !failed && ring.at != NULL; i++) {
    const kept *k = &ring.at[i % TDE_EVENTS_MAX];
    if (is_of(k, uuid)) failed = tde_json_append(arr, object_of(&k->e)) != 0;
  }
  ring_unlock();
  if (!failed) return arr;
  tde_json_free(arr);
  return NULL;
}

tde_json *tde_events_last_answer(const uint8_t *uuid) {
  tde_json *found = NULL;
  ring_lock();
  uint64_t from = ring.n > TDE_EVENTS_MAX ? ring.n - TDE_EVENTS_MAX : 0;
  for (uint64_t i = ring.n; i > from && found == NULL && ring.at != NULL; i--) {
    const kept *k = &ring.at[(i - 1) % TDE_EVENTS_MAX];
    if (is_of(k, uuid) && k->e.key_id[0] != 0) found = object_of(&k->e);
  }
  ring_unlock();
  return found != NULL ? found : tde_json_null();
}

/* ---- configuration ---- */

static tde_class bad(tde_status *st, const char *file, const char *field, const char *what) {
  return tde_fail(st, TDE_MISCONFIGURED, TDE_CORRECT_INSTANCE, "%s: \"audit.%s\" %s", file, field, what);
}

static tde_class flag(const tde_json *obj, const char *file, const char *name, int *out,
                      tde_status *st) {
  const tde_json *v = tde_json_get(obj, name);
  if (v == NULL) return TDE_OK;
  if (!tde_json_is_bool(v)) {
    return bad(st, file, name, "is neither true nor false: write json('true') or json('false') in SQL");
  }
  *out = tde_json_get_bool(obj, name, 0);
  return TDE_OK;
}

static int same_place(const struct stat *a, const struct stat *b) {
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Is this log one of the instance's own files, or among its keys? Folders are compared, not
** their names. */
static int is_instances_own(const char *log, const char *instance_file) {
  char folder[1024], dir[TDE_PATH_MAX + 16];
  struct stat of_log, of_instance;
  const char *name = strrchr(log, '/') + 1;
  snprintf(folder, sizeof folder, "%.*s", (int)(name - log), log);
  const char *own = strrchr(instance_file, '/');
  if (own == NULL || stat(folder, &of_log) != 0) return 0;
  snprintf(dir, sizeof dir, "%.*s/", (int)(own - instance_file), instance_file);
  if (stat(dir, &of_instance) == 0 && same_place(&of_log, &of_instance)) {
    return name[0] == '.' || strncmp(name, "instance.json", 13) == 0;
  }
  snprintf(dir, sizeof dir, "%.*s/keys", (int)(own - instance_file), instance_file);
  return stat(dir, &of_instance) == 0 && same_place(&of_log, &of_instance);
}

tde_class tde_audit_read(const tde_json *root, const char *file, tde_audit *out, tde_status *st) {
  const tde_json *obj = tde_json_get(root, "audit");
  memset(out, 0, sizeof *out);
  out->max_bytes = 10 * 1024 * 1024;
  out->keep = 5;
  if (obj == NULL) return TDE_OK;
  if (!tde_json_is_object(obj)) {
    return tde_fail(st, TDE_MISCONFIGURED, TDE_CORRECT_INSTANCE, "%s: \"audit\" is no object", file);
  }
  const tde_json *path = tde_json_get(obj, "file");
  if (path != NULL && !tde_json_is_null(path)) {
    const char *text = tde_json_get_text(obj, "file");
    if (text == NULL || text[0] != '/' || strlen(text) >= sizeof out->file - 16) {
      return bad(st, file, "file", "is no absolute path");
    }
    memcpy(out->file, text, strlen(text) + 1);
    /* Databases must not hang on that: only the audit fails. */
    out->own = is_instances_own(text, file);
  }
  if (tde_json_get(obj, "max_bytes") != NULL) out->max_bytes = tde_json_get_int(obj, "max_bytes", -1);
  if (out->max_bytes < 4096) return bad(st, file, "max_bytes", "is no number from 4096 on");
  if (tde_json_get(obj, "keep") != NULL) {
    int64_t keep = tde_json_get_int(obj, "keep", -1);
    if (keep < 1 || keep > 1000) return bad(st, file, "keep", "is no number from 1 to 1000");
    out->keep = (int)keep;
  }
  tde_class rc = flag(obj, file, "sync", &out->sync, st);
  if (rc == TDE_OK) rc = flag(obj, file, "syslog", &out->syslog, st);
  if (rc == TDE_OK) rc = flag(obj, file, "required", &out->required, st);
  /* syslog(3) does not tell whether a line arrived. */
  if (rc == TDE_OK && out->required && out->file[0] == 0) {
    rc = bad(st, file, "required", "needs \"file\"; \"syslog\" alone cannot fulfil it");
  }
  return rc;
}

/* ---- the file ---- */

static const char *remedy_of(int err) {
  switch (err) {
    case ENOENT: return "make the folder that the audit file is to be in, or name another file";
    case ELOOP: return "name the file that the symbolic link leads to (tde_instance_set_audit)";
    case EWOULDBLOCK: return "find who keeps it locked (fuser), and let it go";
    case ENOLCK:
    case ENOTSUP: return "name a file on a file system that has locks (tde_instance_set_audit)";
    case EIO: return "check the disk and the file system";
    default: return tde_errno_remedy(err, "check the permissions of the audit file and of its folder");
  }
}

static tde_class file_failed(const tde_audit *a, const char *what, tde_status *st) {
  int err = errno;
  return tde_fail(st, TDE_IO, remedy_of(err), "the audit file %.300s %s: %s", a->file, what,
                  err == EWOULDBLOCK ? "another process has it locked" : strerror(err));
}

/* Does it hold lines of ours, or nothing yet? One that we may not read is not looked at; -1 with errno:
** that cannot be told. After an outage the first line may be zeros, or end too early: the next one
** begins anew. */
static int is_ours(int fd) {
  char head[4096];
  ssize_t n = pread(fd, head, sizeof head, 0), zeros = 0, same = 0;
  if (n < 0) return errno == EBADF ? 1 : -1;
  while (zeros < n && head[zeros] == 0) zeros++;
  if (zeros == n) return 1;
  if (zeros > 0 && head[zeros] == '\n') zeros++;
  while (same < LINE_HEAD_LEN && zeros + same < n && head[zeros + same] == LINE_HEAD[same]) same++;
  if (same == LINE_HEAD_LEN || zeros + same == n) return 1;
  return same > 0 && head[zeros + same] == '\n';
}

static tde_class not_a_log(const tde_audit *a, const char *what, tde_status *st) {
  return tde_fail(st, TDE_IO, "name a new file, or one that holds an audit already (tde_instance_set_audit)",
                  "the audit file %.300s %s: nothing is written to it", a->file, what);
}

/* TDE_OK: lines may be added to what is in the file. */
static tde_class check_content(const tde_audit *a, int fd, tde_status *st) {
  int ours = is_ours(fd);
  if (ours > 0) return TDE_OK;
  return ours == 0 ? not_a_log(a, "holds something else than an audit", st)
                   : file_failed(a, "cannot be read", st);
}

tde_class tde_audit_look(const tde_audit *a, tde_status *st) {
  struct stat sb;
  if (a->own) return not_a_log(a, OWN, st);
  if (a->file[0] == 0 || lstat(a->file, &sb) != 0) return TDE_OK;
  if (!S_ISREG(sb.st_mode)) return not_a_log(a, "is no regular file", st);
  int fd = open(a->file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) return TDE_OK; /* whether it can be written will be seen */
  tde_class rc = check_content(a, fd, st);
  close(fd);
  return rc;
}

/* Not left to close(): a child forked meanwhile shares the description, and the lock. */
static void unlock(int fd) {
  (void)flock(fd, LOCK_UN);
  close(fd);
}

/* Reading, too, shows what is in it; who may only append does without. */
static int open_for_lines(const tde_audit *a) {
  const int flags = O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK;
  int fd = open(a->file, O_RDWR | flags, 0600);
  if (fd < 0 && errno == EACCES) fd = open(a->file, O_WRONLY | flags, 0600);
  return fd;
}

/* Opens and locks the file that has the name now; -1 with errno. *is: what it is under the
** lock. *waited: ms spent so far. */
static int open_locked(const tde_audit *a, int *waited, struct stat *is) {
  struct stat by_name;
  for (;;) {
    int fd = open_for_lines(a);
    if (fd < 0) return -1;
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      struct timespec nap = {0, LOCK_NAP_MS * 1000000L};
      if ((errno != EWOULDBLOCK && errno != EINTR) || *waited >= LOCK_WAIT_MS) {
        (void)tde_file_close(fd, -1);
        return -1;
      }
      nanosleep(&nap, NULL);
      *waited += LOCK_NAP_MS;
    }
    /* Another process may have rotated it between open and lock. */
    if (fstat(fd, is) == 0 && stat(a->file, &by_name) == 0 && is->st_ino == by_name.st_ino &&
        is->st_dev == by_name.st_dev) {
      return fd;
    }
    unlock(fd);
    if (*waited >= LOCK_WAIT_MS) {
      errno = EWOULDBLOCK;
      return -1;
    }
    ++*waited;
  }
}

/* May the file go that has this name? */
static int may_go(const char *name) {
  int fd = open(name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) return errno == ENOENT || errno == EACCES;
  int ours = is_ours(fd) > 0;
  close(fd);
  return ours;
}

/* FILE.keep goes, FILE.1 becomes FILE.2, ..., FILE becomes FILE.1. EEXIST: one of them is
** no log. */
static int rotate(const tde_audit *a) {
  char from[1100], to[1100];
  for (int i = a->keep; i > 0; i--) {
    snprintf(to, sizeof to, "%s.%d", a->file, i);
    if (may_go(to)) continue;
    errno = EEXIST;
    return -1;
  }
  for (int i = a->keep - 1; i >= 0; i--) {
    if (i == 0) snprintf(from, sizeof from, "%s", a->file);
    else snprintf(from, sizeof from, "%s.%d", a->file, i);
    snprintf(to, sizeof to, "%s.%d", a->file, i + 1);
    if (rename(from, to) != 0 && (errno != ENOENT || i == 0)) return -1;
  }
  return 0;
}

/* Did an outage, or a full disk, leave half a line at the end? It is to be one of its own. */
static int ends_torn(int fd, int64_t size) {
  char last = '\n';
  return size > 0 && pread(fd, &last, 1, size - 1) == 1 && last != '\n';
}

static int write_line(int fd, const char *line, size_t n, int torn, int sync) {
  struct iovec parts[] = {{(void *)"\n", torn ? 1 : 0}, {(void *)line, n}};
  ssize_t done;
  do {
    done = writev(fd, parts, 2);
  } while (done < 0 && errno == EINTR);
  if (done >= 0 && (size_t)done != parts[0].iov_len + n) {
    errno = ENOSPC;
    return -1;
  }
  return done < 0 || (sync && fdatasync(fd) != 0) ? -1 : 0;
}

/* A new file that root makes is for whoever wrote the one before; the first is for the
** folder's owner. One with a second name is not new, but root's for something else. */
static void adopt(const tde_audit *a, int fd, const struct stat *is) {
  char before[1100];
  struct stat sb;
  int rc;
  snprintf(before, sizeof before, "%s.1", a->file);
  if (geteuid() != 0 || is->st_uid != 0 || is->st_nlink != 1) return;
  if (lstat(before, &sb) == 0 && S_ISREG(sb.st_mode)) rc = fchown(fd, sb.st_uid, sb.st_gid);
  else rc = tde_file_adopt(fd, a->file);
  if (rc != 0) {
    tde_log(TDE_LOG_WARNING, "the audit file %s could not be given to its owner", a->file);
  }
}

/* Says that the sink fails, but not with every event. (The clock of day may be set back.) */
static void warn(const tde_status *st) {
  int64_t now = tde_boot_ms();
  ring_lock();
  int due = now >= ring.next_warning;
  if (due) ring.next_warning = now + WARN_EACH_MS;
  ring_unlock();
  if (due) tde_log_status(TDE_LOG_ERROR, "audit", st);
}

/* Why a rotation failed. A file that grows on is better than lines that are lost. */
static tde_class not_rotated(const tde_audit *a, tde_status *st) {
  if (errno == EEXIST) {
    return tde_fail(st, TDE_IO, "move FILE.1 and those that follow, which are no audit, elsewhere",
                    "the audit file %.300s cannot be rotated: a file that is no audit has the name", a->file);
  }
  return file_failed(a, "cannot be rotated", st);
}

/* EBUSY: the file is a mount of its own, as a container's may be. */
static int may_grow_on(int err) {
  return err == EACCES || err == EPERM || err == EROFS || err == EEXIST || err == EBUSY;
}

/* Opens, locked, a file with room for n bytes more. Another process may fill the new file
** between a rotation and the lock, so that is looked at again. Without the right to rename
** it grows on. TDE_OK: *out is the caller's to close. */
static tde_class open_with_room(const tde_audit *a, size_t n, int *out, tde_status *st) {
  struct stat sb;
  for (int waited = 0;;) {
    int fd = open_locked(a, &waited, &sb);
    if (fd < 0) return file_failed(a, "cannot be opened", st);
    if (!S_ISREG(sb.st_mode)) {
      unlock(fd);
      return not_a_log(a, "is no regular file", st);
    }
    tde_class rc = check_content(a, fd, st);
    if (rc != TDE_OK) {
      unlock(fd);
      return rc;
    }
    if (sb.st_size == 0) {
      tde_file_unmask(fd, 0200);
      adopt(a, fd, &sb);
    }
    if (sb.st_size == 0 || sb.st_size + (int64_t)n <= a->max_bytes) {
      *out = fd;
      return TDE_OK;
    }
    int rotated = rotate(a), err = errno;
    if (rotated != 0 && may_grow_on(err)) {
      tde_status why;
      tde_status_clear(&why);
      (void)not_rotated(a, &why);
      warn(&why);
      *out = fd;
      return TDE_OK;
    }
    unlock(fd);
    errno = err;
    if (rotated != 0) return not_rotated(a, st);
  }
}

/* A line of a new file is durable with the file's name. Some file systems sync no folders. */
static int sync_new(const tde_audit *a, int64_t before) {
  if (!a->sync || before != 0 || tde_file_sync_parent(a->file) == 0) return 0;
  return errno == EINVAL || errno == ENOTSUP ? 0 : -1;
}

static tde_class to_file(const tde_audit *a, const char *line, size_t n, tde_status *st) {
  int fd = -1;
  tde_class rc = a->own ? not_a_log(a, OWN, st) : open_with_room(a, n, &fd, st);
  if (rc != TDE_OK) return rc;
  int64_t before = lseek(fd, 0, SEEK_END);
  int failed = write_line(fd, line, n, ends_torn(fd, before), a->sync) != 0 || sync_new(a, before) != 0;
  int saved = errno;
  if (failed && before >= 0 && ftruncate(fd, before) != 0) {
    tde_log(TDE_LOG_WARNING, "the audit file %s may end with half a line", a->file);
  }
  unlock(fd);
  errno = saved;
  return failed ? file_failed(a, "cannot be written", st) : TDE_OK;
}

/* Is there nothing in the file but an announcement of this process? */
static int is_announcement(int fd, const struct stat *is) {
  char line[8192], mark[64];
  if (!S_ISREG(is->st_mode) || is->st_nlink != 1 || is->st_size >= (off_t)sizeof line) return 0;
  ssize_t n = pread(fd, line, sizeof line - 1, 0);
  if (n <= 0) return n == 0;
  line[n] = 0;
  snprintf(mark, sizeof mark, "\"message\":\"" BEGINS "\",\"pid\":%d,", (int)getpid());
  return strchr(line, '\n') == line + n - 1 && strstr(line, mark) != NULL;
}

void tde_audit_take_back(const tde_audit *a) {
  struct stat is;
  int waited = 0, fd = a->own ? -1 : open_locked(a, &waited, &is);
  if (fd < 0) return;
  /* Who waits for the lock sees that the name is gone, and makes a new one. */
  if (is_announcement(fd, &is)) (void)unlink(a->file);
  unlock(fd);
}

/* ---- emitting ---- */

static char *line_of(const tde_event *e, size_t *n) {
  tde_json *j = object_of(e);
  if (tde_json_set_int(j, "pid", getpid()) != 0 || tde_json_set_int(j, "uid", getuid()) != 0) {
    tde_json_free(j);
    return NULL;
  }
  char *text = tde_json_text(j, n);
  tde_json_free(j);
  char *line = text != NULL ? realloc(text, *n + 2) : NULL;
  if (line == NULL) {
    free(text);
    return NULL;
  }
  line[(*n)++] = '\n';
  line[*n] = 0;
  return line;
}

tde_class tde_event_emit(const tde_audit *audit, const tde_event *e, tde_status *st) {
  tde_status own;
  size_t n = 0;
  tde_class rc = TDE_OK;
  if (st == NULL) st = &own;
  keep(e);
  if (audit == NULL || (audit->file[0] == 0 && !audit->syslog)) return TDE_OK;
  char *line = line_of(e, &n);
  if (line == NULL) {
    rc = tde_fail(st, TDE_NOMEM, NULL, "no memory for an audit line");
  } else {
    if (audit->syslog) {
      syslog(LOG_AUTHPRIV | LOG_NOTICE, "sqlite-tde: %.*s", (int)(n - 1), line);
    }
    if (audit->file[0] != 0) rc = to_file(audit, line, n, st);
  }
  free(line);
  if (rc != TDE_OK) warn(st);
  return rc;
}
