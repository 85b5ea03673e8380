/*
** tdevfs.h: the shim, as the rest of the product sees it.
*/
#ifndef TDE_VFS_H
#define TDE_VFS_H

#include <stddef.h>
#include <stdint.h>

#include "sqlite3ext.h"

#include "../ext/base/limits.h"
#include "../ext/base/status.h"
#include "keysource.h"
#include "lease.h"

#define TDE_VFS_NAME "tde"

/* sqlite3_file_control(db, schema, TDE_FCNTL_FILE, &p) sets p (tde_file*) for
** a main database that this VFS opened; SQLITE_NOTFOUND for any other. The
** pointer is valid while the connection has that schema open, and is to be
** used only while the connection's mutex is held (inside an SQL function). */
#define TDE_FCNTL_FILE 0x54444501
/* The same with TDE_FCNTL_REFUSAL, and a const tde_status *: why the VFS refuses the main database
** that was just opened, and the code for it as the result; SQLITE_NOTFOUND: it does not. */
#define TDE_FCNTL_REFUSAL 0x54444502

typedef struct tde_file tde_file;

typedef enum tde_state {
  TDE_STATE_NEW, /* empty: the header comes with the first write transaction */
  TDE_STATE_ONLINE,
  TDE_STATE_INACCESSIBLE,  /* the key is not to be had; st says why */
  TDE_STATE_NOT_ENCRYPTED, /* a plain file, and tde_plain=refuse */
  TDE_STATE_PLAIN,         /* a plain file, passed through (tde_plain=allow) */
  TDE_STATE_NEWER_FORMAT,
  TDE_STATE_DAMAGED /* neither header slot is whole */
} tde_state;

const char *tde_state_name(tde_state s);

typedef struct tde_counters {
  uint64_t units_sealed, units_opened, units_rejected;
  uint64_t lower_reads, lower_writes, lower_syncs;
} tde_counters;

typedef struct tde_slot_info {
  int valid; /* magic, version, sizes and SHA-256 all good */
  uint64_t sequence;
  char found[96]; /* "valid", "all zero", "bad checksum", ... */
} tde_slot_info;

typedef struct tde_file_info {
  tde_state state;
  tde_status last; /* the last error, or why it is inaccessible */
  uint32_t format_version;
  uint8_t uuid[TDE_UUID_BYTES];
  uint64_t sequence;  /* of the header in force */
  uint32_t unit_size; /* bytes; 0: not fixed yet */
  tde_key_facts facts;
  tde_slot_info slot[2];
  tde_counters counters; /* of this connection's database, WAL and journal */
  const char *path;      /* borrowed from the file */
  const char *lower_vfs;
} tde_file_info;

/* Registers the VFS (once per process; later calls do nothing) on top of the
** default VFS of that moment. source is copied. Returns an SQLite code, and says in st why
** not: there is another VFS of this name, or no cipher. */
int tde_vfs_register(const tde_key_source *source, tde_status *st);
/* Makes it the default VFS for later opens, or restores the one before. */
int tde_vfs_make_default(int on);
/* Asked when a connection has opened a main database that is still empty, and whose URI names
** neither instance nor protector; instance: the one that it would be under, resolved. Where
** the answer is not TDE_OK, st says why, and it stays empty. */
typedef tde_class (*tde_ask_of_new)(sqlite3 *db, const char *path, const char *instance,
                                    tde_status *st);
void tde_vfs_ask_of_new(tde_ask_of_new ask);
/* Asked when a connection whose main database is another VFS's is about to write to one of this
** VFS's that it has attached. Where the answer is not TDE_OK, st says why, and it may not. */
typedef tde_class (*tde_ask_of_guest)(sqlite3 *db, const char *path, tde_status *st);
void tde_vfs_ask_of_guest(tde_ask_of_guest ask);
/* Answers a PRAGMA that begins with tde_, of a database of this VFS, on a connection that is not without
** functions: *out is of sqlite3_malloc, the row, or what the error says. SQLITE_NOTFOUND: it is
** none of these. SQLite asks before it reads the schema. */
typedef int (*tde_answer_pragma)(tde_file *f, const char *name, const char *value, char **out);
void tde_vfs_answer_pragma(tde_answer_pragma answer);
/* Are the tde_ parameters of a database's file name (sqlite3_db_filename) such as there are, each
** once and with a value? TDE_MISUSE names the first that is not. */
tde_class tde_uri_check(const char *name, tde_status *st);
/* The VFS below, for opening plain files. */
const char *tde_vfs_base_name(void);

/* Facts of an open database. With refresh the header is read anew, and the last error
** forgotten; not with TDE_REFRESH_KEEP, if the database is online, before and after. */
#define TDE_REFRESH_KEEP 2
void tde_file_info_get(tde_file *f, int refresh, tde_file_info *out);

/* The file of a schema of this thread's connection, by what sqlite3_db_filename says: where
** sqlite3_file_control could wait for a lock. NULL: another VFS has it. */
tde_file *tde_file_named(const char *filename);

/* The key document in force: malloc'd, the caller's; NULL: there is none, or no memory. */
char *tde_file_keydoc(tde_file *f, size_t *n);

/* The header of a file that need not be open, its newest whole slot, not verified.
** No key is needed. doc: malloc'd, NULL when there is none: SQLITE_NOTADB, or
** SQLITE_CORRUPT where one was, damaged now or of a newer format. vfs: the VFS below,
** NULL: the default one. */
typedef struct tde_peek {
  uint8_t uuid[TDE_UUID_BYTES];
  uint64_t sequence;
  uint32_t unit_size, epoch;
  char *doc;
  size_t ndoc;
  char *other; /* the document of the other slot, if that is whole, too: malloc'd, or NULL */
  size_t nother;
  int unknown; /* SQLITE_NOTADB: it may be a database all the same, TDE_UNKNOWN_... */
} tde_peek;
/* It is long enough for a database, and begins as no file that is known here: one whose header
** is gone may be so. */
#define TDE_UNKNOWN_BYTES 1
/* It was not opened, being named as the wal-index (-shm) of a database; a file of that
** database's name is there, or none. */
#define TDE_UNKNOWN_INDEX 2
#define TDE_UNKNOWN_NAME 3
int tde_header_peek(const char *path, const char *vfs, tde_peek *out);

/* Of a file that belongs beside a database by its name (-wal, -journal, -shm, -tdelog): the
** length of that database's path. 0: any other. Such a file may be a database all the same,
** by whatever way it came to its name. */
size_t tde_side_stem(const char *path);

/* The main databases that are open in this process, each path once: *out is the caller's
** (tde_open_databases_free). An SQLite code. */
typedef struct tde_open_database {
  char *path;
  const char *vfs; /* below */
  int moved;       /* some connection's file has no longer this name */
} tde_open_database;
int tde_open_databases(tde_open_database **out, int *n);
void tde_open_databases_free(tde_open_database *list, int n);

/* The key documents that the databases which are open in this process go by, as these last read
** them: authentic, but where the key was asked for in vain. *out is the caller's
** (tde_open_documents_free). An SQLite code. */
typedef struct tde_open_document {
  char *path, *doc;
  char *as_key; /* of tde_key=, under which the key is asked for; or NULL */
  size_t ndoc;
} tde_open_document;
int tde_open_documents(tde_open_document **out, int *n);
void tde_open_documents_free(tde_open_document *list, int n);

/* One bad unit. role: "main" or "wal"; index: unit number from 0 (main) or
** frame number from 1, 0 for the WAL header. */
typedef struct tde_bad_unit {
  const char *role;
  uint64_t index;
  tde_class code;
} tde_bad_unit;

typedef struct tde_verify_result {
  uint64_t main_units, wal_units; /* opened well */
  uint64_t wal_stale;             /* records behind the log's end, void */
  uint64_t wal_cut;               /* of these: authentic, but behind one that is not: a crash
                                    ** leaves such, and so does damage that cuts the log off */
  uint64_t superseded;            /* main units that do not open, of whose pages the WAL holds
                                    ** newer versions: a checkpoint was cut short, nothing is lost;
                                    ** or which are behind the end that the WAL's last commit has */
  uint64_t bad;                   /* all bad units, listed or not */
  int truncated;                  /* the file is shorter than page 1 says */
  int torn;                       /* the file ends within a unit */
} tde_verify_result;

/* How far a log whose wal-index is not shared has come, as SQLite's checkpoint said. */
typedef struct tde_verify_log {
  uint32_t frames;   /* committed */
  uint32_t restored; /* of these: in the database file already */
} tde_verify_log;

/* Is there a log whose wal-index this connection keeps to itself, or can not read
** (locking_mode=EXCLUSIVE, no right to the file)? */
int tde_file_log_unshared(tde_file *f);

/* Opens every unit of the database and of its WAL as they are on disk. log: for one that
** is unshared; NULL: what this connection wrote and recovered counts, and nothing of it is
** taken to be in the database file. on_bad
** may return non-zero to stop; progress (may be NULL) gets units done and in
** all, and stops the run by returning non-zero (SQLITE_INTERRUPT). The caller
** holds a read transaction. Returns an SQLite code; bad units are no error. */
int tde_file_verify(tde_file *f, const tde_verify_log *log,
                    int (*on_bad)(void *, const tde_bad_unit *),
                    int (*progress)(void *, uint64_t done, uint64_t all), void *ctx,
                    tde_verify_result *out, tde_status *st);

/* What a change of the header does to the key document: *newdoc gets the new one
** (malloc'd), or stays NULL when there is nothing to change. It runs with the lock
** held, and asks no key service. */
typedef tde_class (*tde_mutation)(void *ctx, const char *doc, size_t ndoc, char **newdoc,
                                  size_t *nnew, tde_status *st);

/* Changes the header under RESERVED on this connection's own lower handle (the
** connection's busy handler decides how long it waits): reads the newest header,
** lets mutate change the key document (mutate NULL: keep it, which repairs a
** damaged slot), writes the other slot, syncs, reads it back. both: afterwards the
** slot that was in force, too, so that nothing of the old document stays.
** Returns an SQLite code; on failure the old header is in force. */
int tde_file_update_header(tde_file *f, tde_mutation mutate, void *ctx, int both, tde_status *st);

/* How the database's key stands. Returns 0 when nothing was ever asked for. */
int tde_file_report(tde_file *f, tde_key_report *out);
/* Asks the key service now, whatever the lease says; as_key (not NULL): under this
** key id in place of those in the header. Returns an SQLite code. */
int tde_file_revalidate(tde_file *f, const char *as_key, tde_status *st);
/* Gives an empty database its header, under this protector and identity (NULL: as
** its URI says). SQLITE_MISUSE: it has one already. */
int tde_file_make_header(tde_file *f, const char *protector, const char *identity, tde_status *st);
/* The instance that the URI or the environment named when it was opened, resolved; NULL: it
** could not be told. Borrowed. */
const char *tde_file_instance(tde_file *f);
/* Its path, borrowed. */
const char *tde_file_path(const tde_file *f);
/* How its key is asked for, and where it is, but for what is for a new database; as_...: not what a
** revalidation that is under way asks as. Copied (tde_key_params_clear); 0: no memory. */
int tde_file_copy_params(tde_file *f, tde_key_params *out);
/* Opened read-only, or a backup. */
int tde_file_read_only(tde_file *f);
/* Has this connection a lock under which nobody else can change the header? */
int tde_file_is_locked(tde_file *f);
/* Has its name another file by now? */
int tde_file_has_moved(tde_file *f);
/* What whoever would change a backup is told. */
tde_class tde_fail_backup(const tde_file *f, tde_status *st);
/* Copies the DEK of one epoch (TDE_KEY_BYTES) into the caller's secret memory. */
tde_class tde_file_dek(tde_file *f, uint32_t epoch, uint8_t *dek, tde_status *st);
/* Makes a new epoch's DEK known, before the header that names it is written: from within a tde_mutation. */
tde_class tde_file_add_epoch(tde_file *f, uint32_t epoch, const uint8_t *dek, tde_status *st);

/* An instance's policy was changed in this process. */
void tde_watch_policy_changed(void);

/* Seals units that are not of the current DEK epoch anew, from unit *next on, for
** some ten milliseconds; *next goes on, *all is their number, *end: there is none
** behind. Readers go on meanwhile, and writers between the calls. A connection in
** WAL mode must have read before, so that its wal-index is open. SQLITE_BUSY: others
** write all the time. Other SQLite codes: st tells. */
int tde_file_reseal_step(tde_file *f, uint64_t *next, uint64_t *all, int *end, tde_status *st);
/* After the last step, and after the WAL was emptied: no log of an older epoch is left,
** and none that was deleted or cut off comes back after an outage. SQLite codes; st
** tells. */
int tde_file_reseal_end(tde_file *f, tde_status *st);

/* The SQLite result code that a class maps to. */
int tde_class_rc(tde_class c);

#endif
