/*
** convert.c: tde_encrypt and tde_decrypt.
**
** A conversion never changes the source's bytes. It copies page by page into a
** temporary file in the target's directory, syncs it, opens every unit or page
** of it again, and renames it. A crash at any point leaves the original, or
** the original and a temporary file that nothing refers to, or the finished
** target. While it runs, the source is locked EXCLUSIVE, so that nobody else
** can read or write it; whoever does is a reason to refuse.
**
** The copy is its caller's alone (mode 0600) while it is made; an encrypted one then gets
** the source's mode, owner and access list, plaintext stays private.
**
** Root may do this in the folder of another user, who can give the names of source and copy to
** other files at any moment. So what is given away, and what decides to whom, is looked at by
** descriptor (place.h), and whatever SQLite opened by a name is compared with it before it is
** written to or believed.
**
** In place, the source's WAL is first emptied into it, then its (empty) WAL
** and wal-index go before the rename: they must not be taken for the new
** file's. That takes the lock, which a file that can only be read does not give:
** SQLite begins no more than a read there, beside which others commit.
**
** In place, too, whoever has the file open keeps the old inode, and would commit into it:
** SQLite looks whether a file was moved only where it opens a journal, and makes a WAL by
** name, in plain, beside the new file. So nobody else may have it open, idle or not, as far
** as the system can tell (openers.h). For those who come after that was asked, or where it
** can not be, the first bytes of the old inode are spoiled under the lock that keeps all
** from reading it: each of them reads page 1 first, and gets SQLITE_NOTADB. A crash between
** the rename and that write, which waits until the rename is durable, leaves the old inode
** whole for them.
*/
#include "convert.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../keyprovider/events.h"
#include "../keyprovider/instance.h"
#include "../keyprovider/json.h"
#include "../vfs/header.h"
#include "../vfs/logview.h"
#include "../vfs/tdevfs.h"
#include "access.h"
#include "functions.h"
#include "openers.h"
#include "place.h"
#include "progress.h"
#include "result.h"
#include "subject.h"

SQLITE_EXTENSION_INIT3

#define PAGES_PER_STEP 256

typedef struct conversion {
  int encrypting;
  const char *verb; /* for messages */
  char *source;     /* full path of the source */
  tde_place place;  /* the result */
  char *params;     /* tde_* URI parameters for the encrypted side */
  int in_place;
  int from_backup; /* which nobody writes to, so that it needs no lock */
  struct stat is;  /* the source that SQLite opened */
  sqlite3 *from, *to;
  int pages, page_size;
  tde_job job;
  const tde_instance *inst; /* of the encrypted side, once it is open */
  tde_event event;
  uint8_t uuid[TDE_UUID_BYTES];
  tde_status st;
} conversion;

#define SHOWN 300 /* bytes of a path: with more, no room is left for what is wrong with it */

static const char *end_of(const char *path) {
  size_t n = strlen(path);
  return n > SHOWN ? path + n - SHOWN : path;
}

static int fail(conversion *c, int rc, tde_class cls, const char *remedy, const char *what) {
  (void)tde_fail(&c->st, cls, remedy, "%s%s%s: %s", c->verb, c->source ? " " : "",
                 c->source ? end_of(c->source) : "", what);
  return rc;
}

#define CUT_SHORT "it is cut short or damaged: name another one, or a backup"

/* What the shim says of its side, when that is the cause. */
static int shim_says(conversion *c, sqlite3 *db) {
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  tde_file *f = db ? tde_subject_find(db, "main") : NULL;
  int said = 0;

  if (info && f) {
    tde_file_info_get(f, 0, info);
    if (info->last.code) {
      (void)tde_fail(&c->st, info->last.code,
                     info->last.code == TDE_TRUNCATED ? CUT_SHORT : info->last.remedy, "%s%s%s: %s",
                     c->verb, c->source ? " " : "", c->source ? c->source : "", info->last.message);
      said = 1;
    }
  }
  sqlite3_free(info);
  return said;
}

#define CLOSE_OTHERS "close the other connections and try again"
#define MAKE_ROOM "make room on the disk and try again; nothing was changed"
#define CHECK_PATH "check the path, and the permissions of the file and its folder"

static int fail_db(conversion *c, sqlite3 *db, int rc, const char *what) {
  char text[512];

  if (shim_says(c, db)) return rc;
  (void)snprintf(text, sizeof(text), "%s: %s", end_of(what),
                 db ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
  switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return fail(c, rc, TDE_BUSY, CLOSE_OTHERS, text);
    case SQLITE_FULL:
      return fail(c, rc, TDE_IO, MAKE_ROOM, text);
    case SQLITE_NOTADB:
      return fail(c, rc, TDE_MISUSE, "name an SQLite database", text);
    case SQLITE_CORRUPT:
      return fail(c, rc, TDE_IO, CUT_SHORT, text);
    case SQLITE_MISUSE:
      return fail(c, rc, TDE_MISUSE,
                  "a URI parameter or its value does not exist; README.md lists them", text);
    default:
      return fail(c, rc, TDE_IO, tde_errno_remedy(db ? sqlite3_system_errno(db) : 0, CHECK_PATH),
                  text);
  }
}

static int fail_errno(conversion *c, const char *what) {
  int err = errno, full = err == ENOSPC || err == EDQUOT;
  char text[300];

  (void)snprintf(text, sizeof(text), "%s: %s", what, strerror(err));
  return fail(c, full ? SQLITE_FULL : SQLITE_IOERR, TDE_IO,
              full ? MAKE_ROOM : tde_errno_remedy(err, CHECK_PATH), text);
}

static int open_db(conversion *c, const char *path, const char *params, const char *vfs, int flags,
                   sqlite3 **db) {
  char *uri = tde_uri_of(path, params);
  int rc = SQLITE_NOMEM;

  if (uri) rc = sqlite3_open_v2(uri, db, flags | SQLITE_OPEN_URI, vfs);
  sqlite3_free(uri);
  return rc ? fail_db(c, *db, rc, "its copy can not be opened") : SQLITE_OK;
}

/* Keeps the tde_* parameters of a URI argument for the encrypted side, which knows them. */
static char *collect_params(const char *filename) {
  char *all = sqlite3_mprintf("?");
  const char *key;

  for (int i = 0; all && (key = sqlite3_uri_key(filename, i)) != NULL; i++) {
    char *escaped;
    if (strncmp(key, "tde_", 4) != 0) continue;
    escaped = tde_uri_value(sqlite3_uri_parameter(filename, key));
    all = escaped ? sqlite3_mprintf("%z%s=%s&", all, key, escaped) : NULL;
    sqlite3_free(escaped);
  }
  return all;
}

static int exec(conversion *c, sqlite3 *db, const char *sql, const char *what) {
  int rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
  return rc ? fail_db(c, db, rc, what) : SQLITE_OK;
}

static int pragma_int(sqlite3 *db, const char *sql, int *out) {
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), rc2;

  *out = 0;
  if (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW) *out = sqlite3_column_int(stmt, 0);
  rc2 = sqlite3_finalize(stmt);
  return rc ? rc : rc2;
}

/* Can the source be decrypted? */
static int check_encrypted(conversion *c) {
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  tde_file *f = NULL;
  int rc;

  if (!info) return fail(c, SQLITE_NOMEM, TDE_NOMEM, NULL, "out of memory");
  rc = sqlite3_file_control(c->from, "main", TDE_FCNTL_FILE, &f);
  if (rc == SQLITE_OK) {
    tde_file_info_get(f, 0, info);
    c->from_backup = info->facts.backup;
    if (info->state == TDE_STATE_NOT_ENCRYPTED || info->state == TDE_STATE_PLAIN) {
      rc = fail(c, SQLITE_NOTADB, TDE_NOT_ENCRYPTED, "check the file's name", "is not encrypted");
    } else if (info->state != TDE_STATE_ONLINE && info->state != TDE_STATE_NEW) {
      rc = tde_class_rc(info->last.code);
      (void)shim_says(c, c->from);
    }
  }
  sqlite3_free(info);
  return rc;
}

/* Can the source be encrypted? */
static int check_plain(conversion *c) {
  sqlite3_file *file = NULL;
  sqlite3_int64 size = 0;
  uint8_t head[sizeof(tde_header_magic)];
  int rc = sqlite3_file_control(c->from, "main", SQLITE_FCNTL_FILE_POINTER, &file);

  if (rc == SQLITE_OK) rc = file->pMethods->xFileSize(file, &size);
  if (rc == SQLITE_OK && size == 0) {
    return fail(c, SQLITE_ERROR, TDE_MISUSE, "open the new database with vfs=tde instead",
                "holds nothing");
  }
  if (rc == SQLITE_OK) rc = file->pMethods->xRead(file, head, sizeof(head), 0);
  if (rc == SQLITE_OK && memcmp(head, tde_header_magic, sizeof(head)) == 0) {
    return fail(c, SQLITE_NOTADB, TDE_MISUSE, "open it with vfs=tde", "is already encrypted");
  }
  if (rc && rc != SQLITE_IOERR_SHORT_READ) return fail_db(c, c->from, rc, "can not be read");
  return SQLITE_OK;
}

/* A parameter that is none: the encrypted side would refuse it, and name no more than that. */
static int says_nonsense(conversion *c, const char *name) {
  tde_status st;

  tde_status_clear(&st);
  if (tde_uri_check(name, &st) == TDE_OK) return 0;
  (void)tde_fail(&c->st, TDE_MISUSE, st.remedy, "%s: %s", c->verb, st.message);
  return 1;
}

/* Why the shim refused the URI: another VFS does not look at it. */
static int explain_uri(conversion *c, const char *uri, int flags) {
  sqlite3 *db = NULL;
  int said = tde_sql_open_plain(uri, &db, flags, tde_vfs_base_name()) == SQLITE_OK &&
             says_nonsense(c, sqlite3_db_filename(db, "main"));

  (void)sqlite3_close(db);
  return said;
}

/* Opens the source, a plain one through the VFS that tde_base= names. Another VFS could see
** in the file what it is not. */
static int connect_source(conversion *c, const char *arg) {
  /* Over a shared cache the lock would not keep this process's other connections out. */
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI | SQLITE_OPEN_PRIVATECACHE, rc;
  const char *vfs = c->encrypting ? tde_vfs_base_name() : TDE_VFS_NAME, *name, *base;
  char *uri = strncmp(arg, "file:", 5) == 0 ? tde_uri_private(arg) : sqlite3_mprintf("%s", arg);

  if (!uri) return fail(c, SQLITE_NOMEM, TDE_NOMEM, NULL, "out of memory");
  rc = tde_sql_open_plain(uri, &c->from, flags, vfs);
  name = rc ? NULL : sqlite3_db_filename(c->from, "main");
  if (name && sqlite3_uri_parameter(name, "vfs")) {
    (void)tde_fail(&c->st, TDE_MISUSE, "leave vfs= out; tde_base= names the VFS below",
                   "%s: %s names a VFS, which is not taken here", c->verb, arg);
    rc = SQLITE_MISUSE;
  } else if (name && says_nonsense(c, name)) {
    rc = SQLITE_MISUSE;
  } else if (name && c->encrypting && (base = sqlite3_uri_parameter(name, "tde_base")) != NULL) {
    sqlite3 *other = NULL;
    rc = tde_sql_open_plain(uri, &other, flags, base);
    (void)sqlite3_close(c->from);
    c->from = other;
    if (rc) rc = fail_db(c, c->from, rc, arg);
  } else if (rc && (rc != SQLITE_MISUSE || !explain_uri(c, uri, flags))) {
    rc = fail_db(c, c->from, rc, arg);
  }
  sqlite3_free(uri);
  return rc;
}

/* A log beside a plain file that is an encrypted database's, of which the file has the place: SQLite
** plays none back, and in place both would be removed. */
static int refuse_sealed_log(conversion *c) {
  for (int journal = 0; journal <= 1; journal++) {
    tde_log_view log = {0};
    int rc = tde_log_peek(c->source, NULL, journal, &log);
    if (rc) { /* which is not that it is none */
      return fail_db(c, NULL, rc,
                     journal ? "the -journal beside it can not be looked at"
                             : "the -wal beside it can not be looked at");
    }
    if (!log.stamped) continue;
    return fail(c, SQLITE_CANTOPEN, TDE_MISUSE,
                journal ? "put that database back, or move the -journal away"
                        : "put that database back, or move the -wal away",
                journal ? "the -journal beside it belongs to an encrypted database"
                        : "the -wal beside it belongs to an encrypted database");
  }
  return SQLITE_OK;
}

/* Locks the source. With locking_mode=EXCLUSIVE the lock outlives the transaction, which the
** backup could not read beside. */
static int lock_source(conversion *c) {
  int rc = sqlite3_exec(c->from, "BEGIN EXCLUSIVE; COMMIT", NULL, NULL, NULL);

  if (c->encrypting && (rc == SQLITE_OK || (rc & 0xff) == SQLITE_CANTOPEN)) {
    int rc2 = refuse_sealed_log(c);
    if (rc2) return rc2;
  }
  return rc ? fail_db(c, c->from, rc, "is in use") : SQLITE_OK;
}

static int fail_read(conversion *c, int rc) {
  if (c->from_backup && (rc & 0xff) == SQLITE_READONLY) {
    return fail(c, rc, TDE_MISUSE, "move the -wal or -journal beside it away",
                "is a backup, which is only read, and no log beside it is a part of it");
  }
  return fail_db(c, c->from, rc, "can not be read");
}

/* Brings the source's WAL into it. SQLite reads the schema first. */
static int empty_log(conversion *c) {
  sqlite3_stmt *stmt = NULL;
  int busy = 0, rc = sqlite3_prepare_v2(c->from, "PRAGMA wal_checkpoint(TRUNCATE)", -1, &stmt, NULL);

  if (c->encrypting && (rc & 0xff) == SQLITE_CANTOPEN) {
    int rc2 = refuse_sealed_log(c);
    if (rc2) return rc2;
  }
  if (rc) return fail_read(c, rc);
  if (sqlite3_step(stmt) == SQLITE_ROW) busy = sqlite3_column_int(stmt, 0);
  rc = sqlite3_finalize(stmt);
  if (rc) return fail_db(c, c->from, rc, "its WAL can not be emptied into it");
  return busy ? fail(c, SQLITE_BUSY, TDE_BUSY, CLOSE_OTHERS, "its WAL is in use") : SQLITE_OK;
}

/* ---- which files are open ---- */

#define NOT_YOURS "look who may write to its folder, and try again where only you may"

static int replaced(conversion *c) {
  return fail(c, SQLITE_IOERR, TDE_IO, NOT_YOURS, "was replaced while it was converted");
}

/* SQLite's own VFS, the lowest of its chain, has a descriptor of what it opened. Of another one
** that is not known. */
static int has_descriptors(sqlite3 *db) {
  char *chain = NULL;
  const char *lowest;
  int has;

  if (sqlite3_file_control(db, "main", SQLITE_FCNTL_VFSNAME, &chain) != SQLITE_OK || !chain) {
    return 0;
  }
  lowest = strrchr(chain, '/');
  has = strncmp(lowest ? lowest + 1 : chain, "unix", 4) == 0;
  sqlite3_free(chain);
  return has;
}

/* SQLite's descriptor of a file, *fd: TDE_UNTOLD where it can not be told. Non-zero: it has
** another file open; or errno says why that is not known. */
static int descriptor(sqlite3 *db, const struct stat *file, int but, int *fd) {
  *fd = has_descriptors(db) ? tde_descriptor_of(file, but) : TDE_UNTOLD;
  if (*fd == TDE_NO_DESCRIPTOR) {
    errno = ESTALE;
    return -1;
  }
  return *fd == TDE_UNTOLD && (errno == EMFILE || errno == ENFILE || errno == ENOMEM) ? -1 : 0;
}

/* What the source is now, and SQLite's descriptor of it. Where there is none, its path tells. */
static int look_at_source(conversion *c, struct stat *sb, int *fd) {
  errno = 0;
  if (descriptor(c->from, &c->is, -1, fd) != 0) {
    return errno == ESTALE ? replaced(c) : fail_errno(c, "can not be looked at");
  }
  if (*fd >= 0 ? fstat(*fd, sb) : lstat(c->source, sb)) {
    return fail_errno(c, "can not be looked at");
  }
  return sb->st_dev == c->is.st_dev && sb->st_ino == c->is.st_ino ? SQLITE_OK : replaced(c);
}

/* Which file it is, by the name that it was opened under. */
static int know_source(conversion *c) {
  struct stat sb;
  int moved = 0, fd;

  if (lstat(c->source, &c->is) != 0) return fail_errno(c, "can not be looked at");
  (void)sqlite3_file_control(c->from, "main", SQLITE_FCNTL_HAS_MOVED, &moved);
  return moved ? replaced(c) : look_at_source(c, &sb, &fd);
}

/* Has SQLite the temporary file open, and not one that took its name? */
static int check_copy(conversion *c) {
  const struct stat is = {.st_dev = c->place.dev, .st_ino = c->place.ino};
  int fd, rc = tde_place_has(&c->place, c->place.temp, &c->st);

  errno = 0;
  if (rc || descriptor(c->to, &is, c->place.fd, &fd) == 0) return rc;
  return errno == ESTALE ? tde_place_replaced(&c->place, &c->st)
                         : fail_errno(c, "its copy can not be looked at");
}

/* Opens the temporary file, if it is still what tde_place_make made. */
static int open_copy(conversion *c, const char *params, int flags) {
  int rc = tde_place_has(&c->place, c->place.temp, &c->st);

  if (rc) return rc;
  rc = open_db(c, c->place.temp, params, c->encrypting ? TDE_VFS_NAME : tde_vfs_base_name(),
               flags | SQLITE_OPEN_NOFOLLOW, &c->to);
  if (rc) (void)tde_place_has(&c->place, c->place.temp, &c->st); /* which says more */
  return rc ? rc : check_copy(c);
}

/* ---- the source ---- */

/* Before it is locked for writing: SQLite makes page 1 of a database that has none then. Nobody
** else writes from here on: with locking_mode=EXCLUSIVE the lock of this read stays. */
static int count_pages(conversion *c) {
  int rc = pragma_int(c->from, "PRAGMA page_count", &c->pages);

  if (rc == SQLITE_OK) rc = pragma_int(c->from, "PRAGMA page_size", &c->page_size);
  if (rc) return fail_read(c, rc);
  if (c->pages) return SQLITE_OK;
  return fail(c, SQLITE_ERROR, TDE_MISUSE, "open the new database with vfs=tde instead",
              "holds nothing");
}

/* Opens the source so that nobody else can use it. */
static int open_source(conversion *c, const char *arg) {
  int rc = connect_source(c, arg);

  if (rc) return rc;
  c->source = sqlite3_mprintf("%s", sqlite3_db_filename(c->from, "main"));
  c->params = collect_params(sqlite3_db_filename(c->from, "main"));
  if (!c->source || !c->params) return fail(c, SQLITE_NOMEM, TDE_NOMEM, NULL, "out of memory");
  if (!c->source[0]) return fail(c, SQLITE_MISUSE, TDE_MISUSE, "name a file", "not a file");
  rc = know_source(c);
  if (rc == SQLITE_OK) rc = c->encrypting ? check_plain(c) : check_encrypted(c);
  if (rc) return rc;
  /* Set before the first access: then a WAL needs no shared memory, and
  ** whoever else has it open is noticed. */
  rc = exec(c, c->from, "PRAGMA locking_mode=EXCLUSIVE", "can not be locked");
  if (rc == SQLITE_OK) rc = empty_log(c);
  if (rc == SQLITE_OK) rc = count_pages(c);
  return rc == SQLITE_OK && !c->from_backup ? lock_source(c) : rc;
}

/* What is replaced must be the source, and all there is: another connection would go on with
** the old file, and another name would keep it, in plain. */
static int check_alone(conversion *c) {
  struct stat sb;

  if (tde_place_stat(&c->place, c->place.target, &sb) != 0) {
    return fail_errno(c, "can not be looked at");
  }
  if (sb.st_dev != c->is.st_dev || sb.st_ino != c->is.st_ino) return replaced(c);
  if (sb.st_nlink > 1) {
    return fail(c, SQLITE_ERROR, TDE_MISUSE,
                "remove its other names (find -samefile shows them), or name another file for it",
                "has other names (hard links), under which it would stay in plain");
  }
  if (tde_others_have_open(&sb)) {
    return fail(c, SQLITE_BUSY, TDE_BUSY, CLOSE_OTHERS,
                "another connection or program has it open");
  }
  return SQLITE_OK;
}

/* Full path of the target, and the temporary name beside it. Plaintext replaces nothing. */
static int name_target(conversion *c, const char *out) {
  int rc = SQLITE_OK;

  if (c->encrypting) {
    rc = tde_place_begin(&c->place, out ? out : c->source, 1, &c->st);
    if (rc) return rc;
    c->in_place = strcmp(c->source, c->place.target) == 0;
  }
  if (!c->in_place) {
    tde_place_end(&c->place);
    rc = tde_place_begin(&c->place, out, 0, &c->st);
  } else if (sqlite3_db_readonly(c->from, "main")) {
    rc = fail(c, SQLITE_READONLY, TDE_MISUSE, "make the file writable, or name another file for it",
              "can only be read: others may write while it is replaced");
  }
  if (rc == SQLITE_OK) rc = tde_place_fits(&c->place, 1, &c->st);
  return rc == SQLITE_OK && c->in_place ? check_alone(c) : rc;
}

/* What the audit is told, from the encrypted side: before a page is written in plain,
** and before an encrypted file takes its place. */
static int announce(conversion *c, sqlite3 *db) {
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  tde_file *f = NULL;
  int rc = info ? sqlite3_file_control(db, "main", TDE_FCNTL_FILE, &f) : SQLITE_NOMEM;

  if (rc == SQLITE_OK) {
    tde_file_info_get(f, 0, info);
    memcpy(c->uuid, info->uuid, TDE_UUID_BYTES);
    tde_event_fill(&c->event, c->encrypting ? "encrypt" : "decrypt", c->uuid, c->source,
                   info->facts.key_id, info->facts.key_version, NULL);
    rc = tde_class_rc(tde_instance_open(tde_file_instance(f), 0, &c->inst, &c->st));
  }
  if (rc == SQLITE_OK) {
    rc = tde_class_rc(tde_event_announce(tde_instance_audit(c->inst), &c->event, &c->st));
  }
  sqlite3_free(info);
  return rc;
}

/* How it ended. A source that was never opened is no event. */
static void tell(conversion *c, int rc) {
  tde_event e;

  if (!c->inst) return;
  tde_event_fill(&e, c->event.event, c->uuid, c->source, c->event.key_id, c->event.version,
                 rc ? &c->st : NULL);
  (void)tde_event_emit(tde_instance_audit(c->inst), &e, NULL);
}

/* Copies every page; both sides stay locked. */
static int copy_pages(conversion *c) {
  sqlite3_backup *b;
  int rc;

  if (tde_place_make(&c->place) != 0) return fail_errno(c, "a new file can not be made beside it");
  rc = open_copy(c, c->encrypting ? c->params : "?", SQLITE_OPEN_READWRITE);
  /* Nobody refers to the temporary file: no journal; one sync at the end. */
  if (rc == SQLITE_OK) {
    rc = exec(c, c->to,
              "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; "
              "PRAGMA locking_mode=EXCLUSIVE",
              "the target can not be prepared");
  }
  if (rc) return rc;
  b = sqlite3_backup_init(c->to, "main", c->from, "main");
  if (!b) return fail_db(c, c->to, sqlite3_errcode(c->to), "the copy can not begin");
  do {
    rc = sqlite3_backup_step(b, PAGES_PER_STEP);
    if (rc == SQLITE_OK) {
      rc = tde_job_made(&c->job, c->pages - sqlite3_backup_remaining(b), c->pages);
    }
  } while (rc == SQLITE_OK);
  (void)sqlite3_backup_finish(b);
  if (rc == SQLITE_INTERRUPT) return tde_job_interrupted(&c->st);
  if (rc == SQLITE_DONE) return SQLITE_OK;
  /* What is wrong may be the source's. */
  return shim_says(c, c->from) ? rc : fail_db(c, c->to, rc, "the copy stopped");
}

static int sync_target(conversion *c) {
  sqlite3_file *file = NULL;
  int rc = sqlite3_file_control(c->to, "main", SQLITE_FCNTL_FILE_POINTER, &file);

  if (rc == SQLITE_OK) rc = file->pMethods->xSync(file, SQLITE_SYNC_FULL);
  if (rc) return fail(c, rc, TDE_IO, NULL, "the copy could not be synced");
  rc = sqlite3_close(c->to);
  c->to = NULL;
  return rc ? fail(c, rc, TDE_IO, NULL, "the copy could not be closed") : SQLITE_OK;
}

/* Reads the finished copy back: each unit, and the number of pages. */
static int check_target(conversion *c) {
  tde_verify_result r;
  tde_file *f = NULL;
  char *params = sqlite3_mprintf("%simmutable=1", c->encrypting ? c->params : "?");
  int rc, pages = 0;

  if (!params) return fail(c, SQLITE_NOMEM, TDE_NOMEM, NULL, "out of memory");
  rc = open_copy(c, params, SQLITE_OPEN_READONLY);
  sqlite3_free(params);
  if (rc) return rc;
  rc = pragma_int(c->to, "PRAGMA page_count", &pages);
  if (rc == SQLITE_OK && pages != c->pages) rc = SQLITE_IOERR_CORRUPTFS;
  if (rc == SQLITE_OK && c->encrypting) {
    rc = sqlite3_file_control(c->to, "main", TDE_FCNTL_FILE, &f);
    if (rc == SQLITE_OK) {
      rc = tde_file_verify(f, NULL, NULL, tde_job_read_back, &c->job, &r, &c->st);
    }
    if (rc == SQLITE_OK && (r.bad || r.torn || r.truncated)) rc = SQLITE_CORRUPT;
  }
  (void)sqlite3_close(c->to);
  c->to = NULL;
  if (rc == SQLITE_INTERRUPT) return tde_job_interrupted(&c->st);
  return rc ? fail(c, rc, TDE_IO, "check the disk; nothing was changed",
                   "the copy did not read back whole")
            : SQLITE_OK;
}

static int remove_side_file(conversion *c, const char *suffix) {
  char *name = sqlite3_mprintf("%s%s", c->place.target, suffix);
  int rc = SQLITE_OK;

  if (!name) return fail(c, SQLITE_NOMEM, TDE_NOMEM, NULL, "out of memory");
  if (tde_place_remove(&c->place, name) != 0 && errno != ENOENT) {
    rc = fail_errno(c, "a void log of its can not be removed");
  }
  sqlite3_free(name);
  return rc;
}

/* Who makes a new file, and has no right to give it to the source's owner, keeps it: root, too,
** where that owner is none of its namespace's. */
static int keep_owner(conversion *c, const struct stat *source) {
  struct stat sb;

  if (fstat(c->place.fd, &sb) != 0) return fail_errno(c, "its copy can not be looked at");
  if (sb.st_uid == source->st_uid && sb.st_gid == source->st_gid) return SQLITE_OK;
  if (fchown(c->place.fd, source->st_uid, source->st_gid) == 0) return SQLITE_OK;
  if (c->in_place) {
    return fail(c, SQLITE_PERM, TDE_MISUSE, "let its owner do it, or name another file for it",
                "its owner and group can not be kept");
  }
  return errno == EPERM || errno == EINVAL ? SQLITE_OK
                                           : fail_errno(c, "its owner and group can not be kept");
}

/* Some file systems refuse any change of a mode, also to what it is. */
static int keep_mode(conversion *c, mode_t mode) {
  struct stat sb;

  if (fstat(c->place.fd, &sb) == 0 && (sb.st_mode & 07777) == mode) return SQLITE_OK;
  return fchmod(c->place.fd, mode) == 0 ? SQLITE_OK : fail_errno(c, "its mode can not be kept");
}

/* Owner, mode, access list and attributes of the source; plaintext is its owner's alone. */
static int keep_access(conversion *c) {
  const char *what = "the access list of its folder can not be kept off";
  struct stat sb = {0};
  char text[200];
  int source, rc = look_at_source(c, &sb, &source);

  if (rc == SQLITE_OK) rc = keep_owner(c, &sb);
  if (rc) return rc;
  if (c->encrypting ? tde_access_copy(c->source, source, c->place.fd, &what)
                    : tde_access_bare(c->place.fd)) {
    if (errno == ENOMEM) return fail(c, SQLITE_NOMEM, TDE_NOMEM, NULL, "out of memory");
    (void)snprintf(text, sizeof(text), "%s: %s", what, strerror(errno));
    return fail(c, SQLITE_PERM, TDE_MISUSE,
                "take it away (setfacl -b, setfattr -x), or name a file where it can be kept",
                text);
  }
  return keep_mode(c, c->encrypting ? sb.st_mode & 07777 : 0600);
}

/* Makes the file that was replaced unusable for those who have it open: no magic, and
** another change counter than any that they have seen, so that no page cache serves. */
static int spoil_source(conversion *c) {
  uint8_t none[100]; /* SQLite's header */
  sqlite3_file *file = NULL;
  int rc = sqlite3_file_control(c->from, "main", SQLITE_FCNTL_FILE_POINTER, &file);

  memset(none, 0xff, sizeof(none));
  if (rc == SQLITE_OK) rc = file->pMethods->xWrite(file, none, sizeof(none), 0);
  return rc ? fail(c, rc, TDE_IO, "close whatever has the old file open; what it writes is lost",
                   "is encrypted now, but the file that it replaced could not be made unusable")
            : SQLITE_OK;
}

/* Puts the copy in the source's place. What SQLite keeps beside the plain file is void
** under the lock, holds plaintext, and is not the new file's. */
static int replace_source(conversion *c) {
  static const char *const beside[] = {"-wal", "-shm", "-journal"};
  int rc = check_alone(c);
  /* Closing the source must not delete a WAL that the new file may have by then. */
  int keep = 1;

  if (rc == SQLITE_OK) rc = tde_place_has(&c->place, c->place.temp, &c->st);
  if (rc) return rc;
  tde_place_let_go(&c->place);
  (void)sqlite3_file_control(c->from, "main", SQLITE_FCNTL_PERSIST_WAL, &keep);
  for (size_t i = 0; rc == SQLITE_OK && i < sizeof(beside) / sizeof(beside[0]); i++) {
    rc = remove_side_file(c, beside[i]);
  }
  if (rc == SQLITE_OK && tde_place_replace(&c->place) != 0) {
    rc = fail_errno(c, "the copy can not take its place");
  }
  if (rc == SQLITE_OK) rc = tde_place_has(&c->place, c->place.target, &c->st);
  if (rc) return rc;
  /* Spoiled not before the rename is durable: an outage could bring the old file back. */
  rc = tde_place_sync(&c->place, &c->st);
  if (rc == SQLITE_OK) return spoil_source(c);
  return fail(c, rc, TDE_IO,
              "check the disk; close whatever has the old file open: what it writes is lost",
              "is encrypted now, unless an outage undoes it: its folder could not be synced");
}

/* The rename. In place it replaces the source; else it must not replace. */
static int publish(conversion *c) {
  int rc = keep_access(c);

  if (rc) return rc;
  return c->in_place ? replace_source(c) : tde_place_publish(&c->place, &c->st);
}

static int convert(conversion *c, sqlite3 *user, const char *path, const char *out) {
  int rc = open_source(c, path);

  if (rc == SQLITE_OK) rc = name_target(c, out);
  if (rc == SQLITE_OK && !c->encrypting) rc = announce(c, c->from);
  if (rc == SQLITE_OK) {
    tde_job_begin(&c->job, user, c->encrypting ? "encrypt" : "decrypt", c->source);
    rc = copy_pages(c);
  }
  if (rc == SQLITE_OK && c->encrypting) rc = announce(c, c->to);
  if (rc == SQLITE_OK) rc = sync_target(c);
  if (rc == SQLITE_OK) rc = check_target(c);
  if (rc == SQLITE_OK) rc = publish(c);
  tde_job_end(&c->job);
  tell(c, rc);
  return rc;
}

static void clean_up(conversion *c) {
  (void)sqlite3_close(c->to);
  (void)sqlite3_close(c->from);
  tde_place_end(&c->place);
  sqlite3_free(c->source);
  sqlite3_free(c->params);
}

static void run(sqlite3_context *ctx, int argc, sqlite3_value **argv, int encrypting) {
  conversion c;
  const char *path = tde_arg_needed(ctx, argc, argv, 0, "the database's path"), *out = NULL;
  tde_json *j;
  int rc, bad = 0;

  if (path && argc > 1) out = tde_arg_needed(ctx, argc, argv, 1, "the new file's path");
  if (!path || (argc > 1 && !out)) return;
  memset(&c, 0, sizeof(c));
  c.encrypting = encrypting;
  c.verb = encrypting ? "tde_encrypt" : "tde_decrypt";
  rc = convert(&c, sqlite3_context_db_handle(ctx), path, out);
  if (rc) {
    tde_result_status(ctx, rc, &c.st);
    clean_up(&c);
    return;
  }
  j = tde_json_object();
  bad |= tde_json_set_text(j, "path", c.place.target);
  bad |= tde_json_set_int(j, "pages", c.pages);
  bad |= tde_json_set_int(j, "page_size", c.page_size);
  bad |= tde_json_set_bool(j, "in_place", c.in_place);
  clean_up(&c);
  tde_result_json(ctx, j, bad);
}

void tde_sql_encrypt(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  run(ctx, argc, argv, 1);
}

void tde_sql_decrypt(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  run(ctx, argc, argv, 0);
}
