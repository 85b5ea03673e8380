/*
** logical.c: the Tcl command tde_logical, which answers what SQLite's tests ask
** of files behind SQLite's back.
**
**     tde_logical kind FILE               main, wal, journal, or "" (not encrypted)
**     tde_logical flush FILE              writes what open connections hold back
**     tde_logical size FILE               bytes, as SQLite sees them
**     tde_logical read FILE OFFSET COUNT  a byte array, shorter at the end
**     tde_logical write FILE OFFSET BYTES
**     tde_logical truncate FILE SIZE
**     tde_logical create FILE             an empty WAL or journal of an encrypted
**                                         database; its kind, or "" when not one
**     tde_logical import FILE BYTES       makes FILE an encrypted database of
**                                         this image
**
** A test that patches byte 24 of a database means the byte that SQLite wrote
** there. The physical file has ciphertext at that place, so the request goes
** through the shim.
**
** What must hold:
**  - the file is opened through the VFS, never with open(): closing a plain
**    descriptor would drop the POSIX locks that SQLite holds on the same file;
**  - a WAL or journal finds its database through sqlite3_database_file_object,
**    which needs a real connection behind the file name: each view has one. It
**    runs no SQL, so it takes no lock and sees no WAL;
**  - what open connections have written and the shim still holds back (a WAL's
**    frames up to the commit, say) is flushed first: the test means SQLite's
**    writes, whenever they reach the disk. live.c knows the connections;
**  - the counters by which tests inject I/O errors are put aside meanwhile.
*/
#include "logical.h"

#include <string.h>
#include <sys/stat.h>

#include "live.h"

#include "sqlite3.h"
#include "vfs/shim.h"

/* os_unix.c's fault injection, compiled in under SQLITE_TEST. */
extern int sqlite3_io_error_pending;
extern int sqlite3_diskfull_pending;

static const char *const verbs[] = {"kind", "size", "read", "write", "truncate", "create", "import", "flush", NULL};
static const int argcs[] = {3, 3, 5, 5, 4, 3, 4, 3};
enum {
  VERB_KIND,
  VERB_SIZE,
  VERB_READ,
  VERB_WRITE,
  VERB_TRUNCATE,
  VERB_CREATE,
  VERB_IMPORT,
  VERB_FLUSH
};

typedef struct view {
  sqlite3 *db;
  sqlite3_file *file;     /* what the request is about */
  sqlite3_file *own;      /* a WAL or journal opened here; file points to it */
  const char *kind;
  int io_error, disk_full;
} view;

static int ends_with(const char *name, const char *tail) {
  size_t n = strlen(name), t = strlen(tail);
  return n > t && memcmp(name + n - t, tail, t) == 0;
}

static int nonempty_file(const char *name) {
  struct stat st;
  return stat(name, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0;
}

/* The database that a file belongs to, or NULL; sqlite3_free it. */
static char *database_of(const char *name, const char **kind) {
  int n = (int)strlen(name);
  *kind = "main";
  /* A wal-index is not to be opened: closing it would drop SQLite's locks. */
  if (ends_with(name, "-shm")) return NULL;
  if (ends_with(name, "-wal")) {
    *kind = "wal";
    n -= 4;
  } else if (ends_with(name, "-journal")) {
    *kind = "journal";
    n -= 8;
  }
  return sqlite3_mprintf("%s%.*s", name[0] == '/' ? "" : "./", n, name);
}

static void view_close(view *v) {
  if (v->own != NULL) {
    if (v->own->pMethods != NULL) (void)v->own->pMethods->xClose(v->own);
    sqlite3_free(v->own);
  }
  (void)sqlite3_close(v->db);
  sqlite3_io_error_pending = v->io_error;
  sqlite3_diskfull_pending = v->disk_full;
}

static int is_encrypted(sqlite3 *db) {
  tde_file *f = NULL;
  tde_file_info info;
  if (sqlite3_file_control(db, "main", TDE_FCNTL_FILE, &f) != SQLITE_OK || f == NULL) return 0;
  memset(&info, 0, sizeof(info));
  tde_file_info_get(f, 0, &info);
  return info.state == TDE_STATE_ONLINE;
}

/* Opens the WAL or journal of the connection's database. extra: flags. */
static int open_companion(view *v, int extra) {
  sqlite3_vfs *vfs = sqlite3_vfs_find(TDE_VFS_NAME);
  const char *db_name = sqlite3_db_filename(v->db, "main");
  int is_wal = v->kind[0] == 'w', out = 0;
  int flags = SQLITE_OPEN_READWRITE | extra | (is_wal ? SQLITE_OPEN_WAL : SQLITE_OPEN_MAIN_JOURNAL);
  const char *name = is_wal ? sqlite3_filename_wal(db_name) : sqlite3_filename_journal(db_name);
  int rc;

  v->own = sqlite3_malloc(vfs->szOsFile);
  if (v->own == NULL) return SQLITE_NOMEM;
  memset(v->own, 0, (size_t)vfs->szOsFile);
  rc = vfs->xOpen(vfs, name, v->own, flags, &out);
  v->file = v->own;
  return rc;
}

/* A WAL that no release of the shim wrote (a test put it there) is looked at
** as it is. */
static int is_sealed_wal(const view *v) {
  tde_file *owner = NULL, *log;

  if (sqlite3_file_control(v->db, "main", TDE_FCNTL_FILE, &owner) != SQLITE_OK) return 0;
  log = owner->db->wal;
  return log != NULL && tde_log_refresh(log) == SQLITE_OK && log->gen.valid;
}

/* Returns 1 when the view stands, 0 when the file is not an encrypted one, -1
** with a message in the interpreter when it is but cannot be opened. */
static int view_open(Tcl_Interp *interp, const char *name, int verb, view *v) {
  char *base;
  int rc = SQLITE_OK, encrypted = 0;

  memset(v, 0, sizeof(*v));
  v->io_error = sqlite3_io_error_pending;
  v->disk_full = sqlite3_diskfull_pending;
  sqlite3_io_error_pending = 0;
  sqlite3_diskfull_pending = 0;
  base = database_of(name, &v->kind);
  if (base != NULL) suite_live_flush(base);
  if (base != NULL && nonempty_file(base) &&
      (verb == VERB_KIND || strcmp(v->kind, "main") == 0 ? nonempty_file(name) : 1) &&
      sqlite3_vfs_find(TDE_VFS_NAME) != NULL &&
      sqlite3_open_v2(base, &v->db, SQLITE_OPEN_READWRITE, TDE_VFS_NAME) == SQLITE_OK) {
    encrypted = is_encrypted(v->db);
  }
  if (encrypted) {
    if (strcmp(v->kind, "main") == 0) {
      rc = sqlite3_file_control(v->db, "main", SQLITE_FCNTL_FILE_POINTER, &v->file);
    } else {
      rc = open_companion(v, verb == VERB_CREATE ? SQLITE_OPEN_CREATE : 0);
      if (rc == SQLITE_OK && v->kind[0] == 'w' && nonempty_file(name) &&
          verb != VERB_CREATE) {
        encrypted = is_sealed_wal(v);
      }
    }
  }
  sqlite3_free(base);
  if (encrypted && rc == SQLITE_OK) return 1;
  view_close(v);
  if (!encrypted) return 0;
  Tcl_SetObjResult(interp, Tcl_ObjPrintf("cannot open %s: %s", name, sqlite3_errstr(rc)));
  return -1;
}

static int failed(Tcl_Interp *interp, const char *what, int rc) {
  Tcl_SetObjResult(interp, Tcl_ObjPrintf("%s: %s", what, sqlite3_errstr(rc)));
  return TCL_ERROR;
}

static int do_size(Tcl_Interp *interp, view *v) {
  sqlite3_int64 size = 0;
  int rc = v->file->pMethods->xFileSize(v->file, &size);
  if (rc != SQLITE_OK) return failed(interp, "size", rc);
  Tcl_SetObjResult(interp, Tcl_NewWideIntObj(size));
  return TCL_OK;
}

/* A WAL is read frame by frame from each frame's first byte, as SQLite's
** recovery does: frames of an older generation then read as zeros. */
static int read_wal(sqlite3_file *f, unsigned char *out, int count, sqlite3_int64 off) {
  unsigned char head[32], *frame;
  sqlite3_int64 at = 32, unit;
  int rc = f->pMethods->xRead(f, head, sizeof(head), 0);

  unit = 24 + (sqlite3_int64)(head[8] << 24 | head[9] << 16 | head[10] << 8 | head[11]);
  if (rc != SQLITE_OK || unit < 24 + 512 || unit > 24 + 65536) {
    return f->pMethods->xRead(f, out, count, off);
  }
  frame = sqlite3_malloc64((sqlite3_uint64)unit);
  if (frame == NULL) return SQLITE_NOMEM;
  for (sqlite3_int64 i = off; i < 32 && i < off + count; i++) out[i - off] = head[i];
  if (off > 32) at += (off - 32) / unit * unit;
  for (; rc == SQLITE_OK && at < off + count; at += unit) {
    rc = f->pMethods->xRead(f, frame, (int)unit, at);
    if (rc == SQLITE_IOERR_SHORT_READ) rc = SQLITE_OK;
    for (sqlite3_int64 i = at; i < at + unit; i++) {
      if (i >= off && i < off + count) out[i - off] = frame[i - at];
    }
  }
  sqlite3_free(frame);
  return rc;
}

/* A journal is read in small pieces, as SQLite does: what an older transaction
** left behind the end reads as zeros without taking its neighbours along. */
static int read_journal(sqlite3_file *f, unsigned char *out, int count, sqlite3_int64 off) {
  const int piece = 512;
  int rc = SQLITE_OK;

  for (int done = 0; done < count && rc == SQLITE_OK;) {
    int n = piece - (int)((off + done) % piece);
    if (n > count - done) n = count - done;
    rc = f->pMethods->xRead(f, out + done, n, off + done);
    if (rc == SQLITE_IOERR_SHORT_READ) rc = SQLITE_OK;
    done += n;
  }
  return rc;
}

static int read_bytes(const view *v, unsigned char *out, int count, sqlite3_int64 off) {
  if (count == 0) return SQLITE_OK;
  if (v->kind[0] == 'w') return read_wal(v->file, out, count, off);
  if (v->kind[0] == 'j') return read_journal(v->file, out, count, off);
  return v->file->pMethods->xRead(v->file, out, count, off);
}

static int do_read(Tcl_Interp *interp, view *v, Tcl_WideInt off, int count) {
  sqlite3_int64 size = 0;
  Tcl_Obj *out;
  unsigned char *bytes;
  int rc = v->file->pMethods->xFileSize(v->file, &size);

  if (rc != SQLITE_OK) return failed(interp, "size", rc);
  if (off >= size) count = 0;
  else if (count > size - off) count = (int)(size - off);
  out = Tcl_NewByteArrayObj(NULL, 0);
  bytes = Tcl_SetByteArrayLength(out, count);
  rc = read_bytes(v, bytes, count, off);
  /* Short: a torn unit at a log's end. SQLite gets zeros there, and so does the test. */
  if (rc != SQLITE_OK && rc != SQLITE_IOERR_SHORT_READ) {
    Tcl_DecrRefCount(out);
    return failed(interp, "read", rc);
  }
  Tcl_SetObjResult(interp, out);
  return TCL_OK;
}

static int do_write(Tcl_Interp *interp, view *v, Tcl_WideInt off, Tcl_Obj *data) {
  int n = 0, rc = SQLITE_OK;
  unsigned char *bytes = Tcl_GetByteArrayFromObj(data, &n);

  if (n > 0) rc = v->file->pMethods->xWrite(v->file, bytes, n, off);
  if (rc == SQLITE_OK) rc = v->file->pMethods->xSync(v->file, SQLITE_SYNC_NORMAL);
  if (rc != SQLITE_OK) return failed(interp, "write", rc);
  Tcl_SetObjResult(interp, Tcl_NewIntObj(n));
  return TCL_OK;
}

static int do_truncate(Tcl_Interp *interp, view *v, Tcl_WideInt size) {
  int rc = v->file->pMethods->xTruncate(v->file, size);
  return rc == SQLITE_OK ? TCL_OK : failed(interp, "truncate", rc);
}

/* Writes a database image page by page, as SQLite itself would: the first
** write tells the shim the page size. A lock that somebody else holds is no
** hindrance: the test meant to write behind SQLite's back. */
static int write_image(sqlite3_file *f, const unsigned char *image, int n) {
  const sqlite3_io_methods *m = f->pMethods;
  int page = n >= 18 ? (image[16] << 8 | image[17]) : 0;
  int off = 0, rc;

  if (page == 1) page = 65536;
  if (page < 512 || (page & (page - 1)) != 0) page = 512;
  rc = m->xLock(f, SQLITE_LOCK_SHARED);
  if (rc == SQLITE_OK) rc = m->xLock(f, SQLITE_LOCK_RESERVED);
  if (rc == SQLITE_OK) rc = m->xLock(f, SQLITE_LOCK_EXCLUSIVE);
  if (rc == SQLITE_BUSY) rc = SQLITE_OK;
  if (rc == SQLITE_OK) rc = m->xTruncate(f, 0);
  for (; rc == SQLITE_OK && off < n; off += page) {
    rc = m->xWrite(f, image + off, n - off < page ? n - off : page, off);
  }
  if (rc == SQLITE_OK) rc = m->xSync(f, SQLITE_SYNC_NORMAL);
  (void)m->xUnlock(f, SQLITE_LOCK_NONE);
  return rc;
}

static int do_import(Tcl_Interp *interp, const char *name, Tcl_Obj *data) {
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
  sqlite3 *db = NULL;
  sqlite3_file *f = NULL;
  int n = 0, rc;
  unsigned char *image = Tcl_GetByteArrayFromObj(data, &n);

  rc = sqlite3_open_v2(name, &db, flags, TDE_VFS_NAME);
  if (rc == SQLITE_OK) rc = sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &f);
  if (rc == SQLITE_OK) rc = write_image(f, image, n);
  (void)sqlite3_close(db);
  return rc == SQLITE_OK ? TCL_OK : failed(interp, "import", rc);
}

static int do_flush(const char *name) {
  const char *kind;
  char *base = database_of(name, &kind);

  if (base != NULL) suite_live_flush(base);
  sqlite3_free(base);
  return TCL_OK;
}

static int run_verb(Tcl_Interp *interp, view *v, int verb, Tcl_Obj *const objv[]) {
  Tcl_WideInt off = 0;
  int count = 0;

  if (verb >= VERB_READ && verb <= VERB_TRUNCATE &&
      Tcl_GetWideIntFromObj(interp, objv[3], &off) != TCL_OK) {
    return TCL_ERROR;
  }
  switch (verb) {
    case VERB_CREATE:
      if (do_truncate(interp, v, 0) != TCL_OK) return TCL_ERROR;
      /* fall through */
    case VERB_KIND:
      Tcl_SetObjResult(interp, Tcl_NewStringObj(v->kind, -1));
      return TCL_OK;
    case VERB_SIZE:
      return do_size(interp, v);
    case VERB_READ:
      if (Tcl_GetIntFromObj(interp, objv[4], &count) != TCL_OK) return TCL_ERROR;
      return do_read(interp, v, off, count);
    case VERB_WRITE:
      return do_write(interp, v, off, objv[4]);
    default:
      return do_truncate(interp, v, off);
  }
}

static int logical_cmd(ClientData unused, Tcl_Interp *interp, int objc, Tcl_Obj *const objv[]) {
  view v;
  int verb = 0, rc, opened;
  (void)unused;

  if (objc < 3) {
    Tcl_WrongNumArgs(interp, 1, objv, "VERB FILE ...");
    return TCL_ERROR;
  }
  if (Tcl_GetIndexFromObj(interp, objv[1], verbs, "verb", 0, &verb) != TCL_OK) return TCL_ERROR;
  if (objc != argcs[verb]) {
    Tcl_WrongNumArgs(interp, 2, objv, "FILE ...");
    return TCL_ERROR;
  }
  if (verb == VERB_IMPORT) return do_import(interp, Tcl_GetString(objv[2]), objv[3]);
  if (verb == VERB_FLUSH) return do_flush(Tcl_GetString(objv[2]));
  opened = view_open(interp, Tcl_GetString(objv[2]), verb, &v);
  if (opened < 0) return TCL_ERROR;
  if (opened == 0) {
    if (verb == VERB_KIND || verb == VERB_CREATE) return TCL_OK;
    Tcl_SetObjResult(interp, Tcl_ObjPrintf("not encrypted: %s", Tcl_GetString(objv[2])));
    return TCL_ERROR;
  }
  rc = run_verb(interp, &v, verb, objv);
  view_close(&v);
  return rc;
}

void suite_logical_init(Tcl_Interp *interp) {
  Tcl_CreateObjCommand(interp, "tde_logical", logical_cmd, NULL, NULL);
}
