/*
** shim.c: the VFS "tde": how files are opened, and what passes through.
**
** The shim stacks on another VFS. SQLite above sees exactly the bytes that it
** wrote, at the offsets it wrote them, in files of the sizes it expects; the
** lower VFS sees sealed records (sealed.h, FORMAT.md). What does not touch
** file content passes through. By role:
**
**   main database   mainfile.c: its methods; database.c, database_edit.c: header and keys; gate.c:
**                   whether a transaction may begin; units in sealed.c
**   WAL, journal    sidefile.c: their methods; wal.c, journal.c; logfile.c: generations
**   temp files      sealed.c with a random key that exists in memory alone
**   super-journal   passed through: it holds file names only
**   anything else   refused
*/
#include "shim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../ext/base/crypto.h"
#include "../ext/base/log.h"
#include "methods.h"
#include "openfiles.h"

SQLITE_EXTENSION_INIT3

tde_key_source tde_source;

static sqlite3_vfs tde_vfs;
static sqlite3_vfs *base_vfs;
static sqlite3_vfs *default_before;
static pthread_mutex_t register_lock = PTHREAD_MUTEX_INITIALIZER;

sqlite3_vfs *tde_base_vfs(void) {
  return base_vfs;
}

const char *tde_vfs_base_name(void) {
  return base_vfs ? base_vfs->zName : NULL;
}

int64_t tde_now_ms(void) {
  struct timespec ts;
  /* Goes on while the machine sleeps, as a key's grace does. */
  clock_gettime(CLOCK_BOOTTIME, &ts);
  return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- opening ---- */

const char *tde_name_of(const char *path, const char *suffix) {
  const char *none[1] = {NULL};
  char *text = sqlite3_mprintf("%s%s", path, suffix);
  const char *name = text ? sqlite3_create_filename(text, "", "", 0, none) : NULL;

  sqlite3_free(text);
  return name;
}

void tde_name_free(const char *name) {
  sqlite3_free_filename((char *)name);
}

int tde_lower_close(sqlite3_file *lower) {
  int rc = SQLITE_OK;

  if (lower && lower->pMethods) rc = lower->pMethods->xClose(lower);
  sqlite3_free(lower);
  return rc;
}

sqlite3_file *tde_lower_open(sqlite3_vfs *vfs, const char *name, int flags, int *out_flags,
                             int *rc) {
  sqlite3_file *lower = sqlite3_malloc64((sqlite3_uint64)vfs->szOsFile);

  if (!lower) {
    *rc = SQLITE_NOMEM;
    return NULL;
  }
  memset(lower, 0, (size_t)vfs->szOsFile);
  *rc = vfs->xOpen(vfs, name, lower, flags, out_flags);
  if (*rc) {
    (void)tde_lower_close(lower);
    return NULL;
  }
  return lower;
}

/* NULL: *st says why. */
static sqlite3_vfs *choose_base(const char *name, tde_status *st) {
  const char *want = sqlite3_uri_parameter(name, "tde_base");
  sqlite3_vfs *vfs;

  if (!want) return base_vfs;
  vfs = sqlite3_vfs_find(want);
  if (!vfs || vfs == &tde_vfs || !vfs->xDelete) { /* memdb has no files */
    tde_fail(st, TDE_MISUSE, "name a VFS that keeps files, or leave tde_base out",
             "%.250s: tde_base=%.100s: no such VFS to stack on", name, want);
    return NULL;
  }
  return vfs;
}

/* *st: why, where it is not SQLite's error alone. */
static int open_main(tde_file *f, const char *name, int flags, int *out_flags, tde_status *st) {
  const char *damaged = sqlite3_uri_parameter(name, "tde_damaged");
  int rc = tde_class_rc(tde_uri_check(name, st)), got = 0;

  if (rc == SQLITE_OK && !(f->lower_vfs = choose_base(name, st))) rc = SQLITE_CANTOPEN;
  if (rc) {
    tde_log_status(TDE_LOG_ERROR, NULL, st);
    return rc;
  }
  if (damaged && strcmp(damaged, "zeros") == 0) {
    flags &= ~(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    flags |= SQLITE_OPEN_READONLY;
  }
  f->lower = tde_lower_open(f->lower_vfs, name, flags, &got, &rc);
  if (rc) return rc;
  if (out_flags) *out_flags = got;
  tde_openfiles_add(f);
  rc = tde_db_open(f, name, got & SQLITE_OPEN_READONLY ? SQLITE_OPEN_READONLY : flags);
  if (rc && f->db) *st = f->db->last;
  return rc;
}

static int open_log(tde_file *f, const char *name, int flags, int *out_flags) {
  tde_file *owner = tde_openfiles_owner(name);
  int rc;

  if (!owner) {
    tde_log(TDE_LOG_ERROR, "%s: a %s whose database is not open here is refused",
            name ? name : "(no name)", tde_role_name(f->role));
    return SQLITE_CANTOPEN;
  }
  f->lower_vfs = owner->lower_vfs;
  f->plain = owner->plain;
  if (!f->plain && owner->db->state == TDE_STATE_NEW && (flags & SQLITE_OPEN_CREATE)) {
    rc = tde_db_create(owner); /* nolock=1: no RESERVED came before */
    if (rc) return rc;
  }
  if (!f->plain && owner->db->state != TDE_STATE_ONLINE && owner->db->state != TDE_STATE_NEW) {
    rc = tde_db_report(owner->db);
    return rc ? rc : SQLITE_CANTOPEN;
  }
  f->lower = tde_lower_open(f->lower_vfs, name, flags, out_flags, &rc);
  if (rc) return rc;
  f->db = owner->db;
  if (!f->plain) tde_log_open(f);
  return SQLITE_OK;
}

static int open_temp(tde_file *f, const char *name, int flags, int *out_flags) {
  tde_class c;
  int rc;

  f->lower_vfs = base_vfs;
  f->lower = tde_lower_open(base_vfs, name, flags, out_flags, &rc);
  if (rc) return rc;
  c = tde_cryptor_init_temp(&f->own_crypt, NULL);
  if (c) return tde_class_rc(c);
  tde_sealed_init(&f->s, f->lower, TDE_ROLE_TEMP, 0, &f->own_crypt, &f->own_counters,
                  &tde_temp_hooks, f);
  return SQLITE_OK;
}

static int open_super(tde_file *f, const char *name, int flags, int *out_flags) {
  int rc, is_sealed = 0;

  f->lower_vfs = tde_openfiles_vfs(name);
  f->lower = tde_lower_open(f->lower_vfs, name, flags, out_flags, &rc);
  if (rc) return rc;
  f->plain = 1;
  if ((flags & SQLITE_OPEN_READONLY) && name) {
    f->plain = 0;
    rc = tde_journal_open_child(f, name, &is_sealed);
    if (!is_sealed) f->plain = 1;
  }
  return rc;
}

static int open_role(tde_file *f, const char *name, int flags, int *out_flags, tde_status *st) {
  switch (f->role) {
    case TDE_ROLE_MAIN:
      return name ? open_main(f, name, flags, out_flags, st) : SQLITE_CANTOPEN;
    case TDE_ROLE_WAL:
    case TDE_ROLE_JOURNAL:
      return open_log(f, name, flags, out_flags);
    case TDE_ROLE_TEMP:
      return open_temp(f, name, flags, out_flags);
    case TDE_ROLE_SUPER:
      return open_super(f, name, flags, out_flags);
    default:
      tde_log(TDE_LOG_ERROR, "%s: a file of unknown use (flags 0x%x) is refused",
              name ? name : "(no name)", (unsigned)flags);
      return SQLITE_CANTOPEN;
  }
}

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *pf, int flags,
                     int *out_flags) {
  tde_handle *h = (tde_handle *)pf;
  tde_file *f = sqlite3_malloc64(sizeof(*f));
  tde_status why;
  int rc;

  (void)vfs;
  h->base.pMethods = NULL;
  if (!f) return SQLITE_NOMEM;
  memset(f, 0, sizeof(*f));
  h->f = f;
  f->path = name;
  f->role = tde_role_of(flags);
  tde_file_enter(f);
  tde_status_clear(&why);
  rc = open_role(f, name, flags, out_flags, &why);
  if (rc == SQLITE_OK) {
    h->base.pMethods = f->role == TDE_ROLE_MAIN ? tde_mainfile_methods(f) : &tde_sidefile_methods;
    tde_file_leave(f);
  } else if (f->lower) {
    (void)(f->role == TDE_ROLE_MAIN ? tde_mainfile_close(f) : tde_sidefile_close(f));
  } else {
    sqlite3_free(f);
  }
  return rc && why.code ? tde_refuse_open(pf, rc, &why) : rc;
}

/* ---- the rest of the VFS passes through ---- */

#define BASE_CALL(method, ...) base_vfs->method(base_vfs, __VA_ARGS__)

static int shim_delete(sqlite3_vfs *v, const char *name, int sync_dir) {
  sqlite3_vfs *lower = tde_openfiles_vfs(name);
  (void)v;
  return lower->xDelete(lower, name, sync_dir);
}
static int shim_access(sqlite3_vfs *v, const char *name, int flags, int *out) {
  sqlite3_vfs *lower = tde_openfiles_vfs(name);
  (void)v;
  return lower->xAccess(lower, name, flags, out);
}
static int shim_full_pathname(sqlite3_vfs *v, const char *name, int n, char *out) {
  (void)v;
  return BASE_CALL(xFullPathname, name, n, out);
}
static void *shim_dlopen(sqlite3_vfs *v, const char *name) {
  (void)v;
  return BASE_CALL(xDlOpen, name);
}
static void shim_dlerror(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  BASE_CALL(xDlError, n, out);
}
static void (*shim_dlsym(sqlite3_vfs *v, void *p, const char *name))(void) {
  (void)v;
  return BASE_CALL(xDlSym, p, name);
}
static void shim_dlclose(sqlite3_vfs *v, void *p) {
  (void)v;
  BASE_CALL(xDlClose, p);
}
static int shim_randomness(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  return BASE_CALL(xRandomness, n, out);
}
static int shim_sleep(sqlite3_vfs *v, int usec) {
  (void)v;
  return BASE_CALL(xSleep, usec);
}
static int shim_current_time(sqlite3_vfs *v, double *out) {
  (void)v;
  return BASE_CALL(xCurrentTime, out);
}
static int shim_last_error(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  return base_vfs->xGetLastError ? BASE_CALL(xGetLastError, n, out) : 0;
}
static int shim_current_time64(sqlite3_vfs *v, sqlite3_int64 *out) {
  (void)v;
  return BASE_CALL(xCurrentTimeInt64, out);
}
static int shim_set_syscall(sqlite3_vfs *v, const char *name, sqlite3_syscall_ptr p) {
  (void)v;
  return BASE_CALL(xSetSystemCall, name, p);
}
static sqlite3_syscall_ptr shim_get_syscall(sqlite3_vfs *v, const char *name) {
  (void)v;
  return BASE_CALL(xGetSystemCall, name);
}
static const char *shim_next_syscall(sqlite3_vfs *v, const char *name) {
  (void)v;
  return BASE_CALL(xNextSystemCall, name);
}

/* TDE_LOG=stderr: for programs that can not set SQLite's log, as most languages' bindings can
** not. Of an open that fails there is no connection to ask. */
static int log_to_stderr;

static tde_class read_log_setting(tde_status *st) {
  const char *v = secure_getenv("TDE_LOG");

  if (v && v[0] && strcmp(v, "stderr") != 0) {
    return tde_fail(st, TDE_MISUSE, "unset TDE_LOG, or set it to stderr",
                    "TDE_LOG=%.100s: has no such value", v);
  }
  log_to_stderr = v && v[0];
  return TDE_OK;
}

/* One call, so that lines of several threads and processes do not mix. */
static void write_stderr(const char *line) {
  char text[1300];
  int n = snprintf(text, sizeof(text), "tde: %s\n", line);

  if (n > 0 && (size_t)n < sizeof(text) && write(STDERR_FILENO, text, (size_t)n) < 0) {
    return; /* there is nobody left to tell */
  }
}

static void log_to_sqlite(tde_level level, const char *line) {
  if (log_to_stderr) write_stderr(line);
  sqlite3_log(level == TDE_LOG_ERROR    ? SQLITE_ERROR
              : level == TDE_LOG_NOTICE ? SQLITE_NOTICE
                                        : SQLITE_WARNING,
              "tde: %s", line);
}

static void fill_vfs(void) {
  int v = base_vfs->iVersion;

  tde_vfs.iVersion = v < 3 ? v : 3;
  tde_vfs.szOsFile = (int)sizeof(tde_handle);
  tde_vfs.mxPathname = base_vfs->mxPathname;
  tde_vfs.zName = TDE_VFS_NAME;
  tde_vfs.xOpen = shim_open;
  tde_vfs.xDelete = shim_delete;
  tde_vfs.xAccess = shim_access;
  tde_vfs.xFullPathname = shim_full_pathname;
  tde_vfs.xDlOpen = base_vfs->xDlOpen ? shim_dlopen : NULL;
  tde_vfs.xDlError = base_vfs->xDlError ? shim_dlerror : NULL;
  tde_vfs.xDlSym = base_vfs->xDlSym ? shim_dlsym : NULL;
  tde_vfs.xDlClose = base_vfs->xDlClose ? shim_dlclose : NULL;
  tde_vfs.xRandomness = shim_randomness;
  tde_vfs.xSleep = shim_sleep;
  tde_vfs.xCurrentTime = shim_current_time;
  tde_vfs.xGetLastError = shim_last_error;
  if (v >= 2) tde_vfs.xCurrentTimeInt64 = base_vfs->xCurrentTimeInt64 ? shim_current_time64 : NULL;
  if (v >= 3 && base_vfs->xSetSystemCall) {
    tde_vfs.xSetSystemCall = shim_set_syscall;
    tde_vfs.xGetSystemCall = shim_get_syscall;
    tde_vfs.xNextSystemCall = shim_next_syscall;
  }
}

/* The first time in a process. The lock is held. */
static tde_class prepare(const tde_key_source *source, tde_status *st) {
  tde_class c;

  tde_source = *source;
  tde_log_set_sink(log_to_sqlite);
  c = read_log_setting(st);
  if (c == TDE_OK) c = tde_crypto_init(st);
  if (c) {
    tde_log_status(TDE_LOG_ERROR, NULL, st);
    return c;
  }
  base_vfs = sqlite3_vfs_find(NULL);
  if (!base_vfs) return tde_fail(st, TDE_MISCONFIGURED, NULL, "SQLite has no default VFS");
  fill_vfs();
  return TDE_OK;
}

int tde_vfs_register(const tde_key_source *source, tde_status *st) {
  sqlite3_vfs *there = sqlite3_vfs_find(TDE_VFS_NAME);
  int rc;

  if (there && there != &tde_vfs) { /* whose files are not ours, whatever it is */
    tde_fail(st, TDE_MISCONFIGURED, "load the same file everywhere in the process",
             "another copy of this extension is loaded already (its VFS " TDE_VFS_NAME
             " is there)");
    return SQLITE_ERROR;
  }
  pthread_mutex_lock(&register_lock);
  rc = base_vfs || prepare(source, st) == TDE_OK ? SQLITE_OK : SQLITE_ERROR;
  /* A host may have unregistered it. */
  if (rc == SQLITE_OK && sqlite3_vfs_find(TDE_VFS_NAME) != &tde_vfs) {
    rc = sqlite3_vfs_register(&tde_vfs, 0);
  }
  pthread_mutex_unlock(&register_lock);
  return rc;
}

int tde_vfs_make_default(int on) {
  sqlite3_vfs *now;
  int rc = SQLITE_OK;

  pthread_mutex_lock(&register_lock);
  now = sqlite3_vfs_find(NULL);
  if (!base_vfs) {
    rc = SQLITE_MISUSE;
  } else if (on && now != &tde_vfs) {
    default_before = now;
    rc = sqlite3_vfs_register(&tde_vfs, 1);
  } else if (!on && now == &tde_vfs) {
    rc = sqlite3_vfs_register(default_before ? default_before : base_vfs, 1);
  }
  pthread_mutex_unlock(&register_lock);
  return rc;
}
