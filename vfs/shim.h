/*
** shim.h: the file object that the parts of the shim share. Internal to vfs/.
*/
#ifndef TDE_SHIM_H
#define TDE_SHIM_H

#include <stdatomic.h>

#include "header.h"
#include "dbhead.h"
#include "keyring.h"
#include "sealed.h"
#include "tdevfs.h"

/* What a main database has beyond any other file. */
typedef struct tde_db {
  struct tde_file *file;
  tde_state state;
  tde_status last;    /* why it is not accessible, or the last bad unit */
  int64_t retry_at;   /* monotonic ms: when an unlock may be tried again */
  tde_class unlearnt; /* why the DEK of an epoch that is new here was not to be had */
  uint64_t fork;      /* of the process in which a check was last thought of */
  unsigned io_gates;
  tde_key_params params;
  char *as_key; /* tde_key=: the id to ask under, in place of the header's */
  int as_known; /* ... whose protector it stands for has this thumbprint */
  uint8_t as_of[TDE_THUMB_BYTES];
  tde_header header; /* in force; header.doc NULL while new */
  tde_slot_info slot[2];
  tde_key_facts facts;
  tde_keys *keys; /* reference, or NULL; its DEK may be away */
  tde_cryptor crypt[TDE_ROLE_KEYS];
  tde_named_epochs named; /* by header */
  tde_counters counters;
  struct tde_file *wal; /* this connection's open WAL and journal */
  struct tde_file *journal;
  int (*busy_handler)(void *); /* the connection's, from SQLITE_FCNTL_BUSYHANDLER */
  void *busy_arg;
  int lock; /* SQLITE_LOCK_* that the lower file holds for us */
  int read_only;
  int no_locks; /* nolock=1, immutable=1: SQLite takes none, and lock stays SQLITE_LOCK_NONE */
  int writing;  /* a page was written, and no transaction has ended or begun since */
  int unwanted; /* an empty one here gets no header: last says why */
  /* Where SQLite says which connection is at work. With a shared cache they are several, and whose
  ** it was first may be closed. */
  sqlite3 *const *connection;
  int shared; /* atomic: they are several, or were */
  int guest;  /* one of them may have attached it, and have a main database of another VFS */
  int opened; /* atomic, for openfiles.c: 0: params are being set; 1: for reading; 2: for writing */
  int plain_allowed;
  int refuse_inaccessible;          /* tde_inaccessible=refuse: it is not opened then */
  int shm_locks;                    /* wal-index locks that this connection holds */
  int wal_writing;                  /* ... the one to write is among them */
  uint8_t seen[2][TDE_SLOT_FIXED];  /* of both slots when the header was read */
  int shm_open;                     /* xShmMap was called: WAL readers may be about */
  const volatile char *index;       /* the wal-index's first region, while it is mapped */
  const volatile char **index_more; /* ... and the others, so many: of logs of 4062 frames and */
  int index_more_n;                 /* more; see walindex.c */
  volatile uint32_t *index_sign;    /* what others find in their place, where it can be written */
  uint8_t head_seen[TDE_UNIT_HEAD]; /* of unit 0 when head was read */
  uint8_t head[TDE_DBHEAD_BYTES];   /* SQLite's database header: no user data in it */
  int head_valid;
  int slot_durable;  /* the slot in force is known to be synced */
  int slot_behind;   /* the slot not in force lacks U, or a change made here */
  int slot_lost;     /* header.slot holds an older one: that of the header in force was damaged */
  int journal_lost;  /* a journal was closed that could not be written */
  int write_failed;  /* a page may be torn: see heal.c */
  int damaged_zeros; /* tde_damaged=zeros: read-only salvage */
  int guard_next;    /* which double-write area comes next */
  int guard_ready;   /* older guards were looked after in this lock */
  int guard_used;
  sqlite3_file *aside;     /* a second lower file, which has RESERVED while this one can not */
  sqlite3_file *map;       /* another, for its map; see map.c */
  sqlite3_int64 map_limit; /* bytes of it that may be mapped */
  int map_missed;          /* reads within the limit that the map did not cover */
  int map_own;             /* it is the connection's own, not that of PRAGMA mmap_size */
  int map_off;             /* tde_map=off: no own one */
  int map_wait;            /* an own map is not asked for so many reads */
  int map_waited;          /* ... and has not been for so many */
  unsigned map_asked;      /* ... and was so often */
  int map_pause;           /* so many it will be when its pages come from the disk */
  int64_t map_debt;        /* nanoseconds that it has cost and not saved since */
} tde_db;

/* What stands as the version in the sign for SQLite without the extension (walindex.c). */
#define TDE_INDEX_SIGN 0x54444501u

/* The wal-index's first region (wal.c: struct WalIndexHdr, twice, then struct
** WalCkptInfo): 32-bit numbers in native byte order. */
#define TDE_INDEX_IS_INIT 12   /* 8 bits */
#define TDE_INDEX_PAGE_SIZE 14 /* 16 bits; 1: 65536 */
#define TDE_INDEX_MX_FRAME 16  /* the last committed frame */
#define TDE_INDEX_PAGES 20     /* and the page count with it */
#define TDE_INDEX_SALT_AT 32
#define TDE_INDEX_SALT 8 /* bytes of it */
#define TDE_INDEX_COPY 48
#define TDE_INDEX_BACKFILL 96 /* how far checkpoints have come */

/* What a WAL or journal has: its generation. */
typedef struct tde_generation {
  int valid;       /* s.salt and seen are of a generation */
  int checked;     /* ... and it was compared in this transaction */
  uint32_t commit; /* WAL: the frame being written ends a transaction: the pages then; else 0 */
  int alone;       /* WAL: opened under EXCLUSIVE, which is held since, so SQLite has its wal-index
                   ** in its own memory: no other connection can begin a generation */
  int indexed;     /* WAL: index_salt says what the wal-index called this generation */
  uint32_t pages;  /* WAL: of the database, by the last commit frame written or recovered here */
  uint32_t last;   /* ... which is this one; 0: none of this generation */
  int synced;      /* journal: was it, since this generation began? */
  uint8_t index_salt[TDE_INDEX_SALT];
  int head_known; /* WAL: head_salt is what this generation's WAL header says */
  uint8_t head_salt[TDE_INDEX_SALT];
  uint8_t seen[TDE_PREFIX_BYTES];
} tde_generation;

/* What SQLite holds. The file itself is elsewhere: a shim above may move what
** it was given, and the parts of a file point at each other. */
typedef struct tde_handle {
  sqlite3_file base;
  tde_file *f;
} tde_handle;

struct tde_file {
  tde_file *next_open, *prev_open; /* openfiles.c */
  int looked_at;                   /* ... a thread of its own reads the header; under its lock */
  atomic_int use;                  /* 1: a thread is inside of a method; see below */
  tde_role role;
  int plain;               /* passed through as it is */
  int no_pragmas;          /* its connection is without functions, and so without these */
  const char *path;        /* SQLite's; NULL for a temp file */
  sqlite3_int64 mmap_size; /* as PRAGMA mmap_size set it */
  sqlite3_vfs *lower_vfs;
  sqlite3_file *lower; /* own allocation */
  tde_sealed s;
  tde_db *db; /* main: own; WAL and journal: the owner's */
  tde_generation gen;
  struct tde_file *owned_owner; /* a child journal's database, opened for its key */
  tde_cryptor own_crypt;        /* temp files */
  tde_counters own_counters;
};

#define LOWER(f) ((f)->lower->pMethods)


/* Has its name another file by now, as far as the file below can tell? */
static inline int tde_has_moved(const tde_file *f) {
  int moved = 0;

  return LOWER(f)->xFileControl(f->lower, SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK && moved;
}

/* Does nobody else read or write the file now? With nolock=1 whoever opened it sees to that. */
static inline int tde_db_alone(const tde_db *db) {
  return db->lock == SQLITE_LOCK_EXCLUSIVE || db->no_locks;
}

/* A hot journal is being played back: in a transaction of its own SQLite writes the
** journal before it writes the database. */
static inline int tde_db_rolls_back(const tde_db *db) {
  const tde_file *j = db->journal;
  return tde_db_alone(db) && !db->wal && j && j->gen.valid && j->s.own_from == j->s.own_to;
}

static inline const char *tde_path_of(const tde_file *f) {
  return f->path ? f->path : "(temporary)";
}

/* SQLite's WAL_WRITE_LOCK and WAL_CKPT_LOCK (wal.c). */
#define TDE_SHM_WRITE 0
#define TDE_SHM_CKPT 1

/* A connection's files belong to one thread at a time, but when its key is lost
** another thread wipes what the connection derived from it (openfiles.c). So each
** method marks the main file as in use; the other thread keeps out of those. With a shared cache
** the file is several connections', one of which may be waiting for a key service in it. */
void tde_file_wait(tde_file *f); /* file.c: enters it when it is free */
static inline int tde_file_try_enter(tde_file *f) {
  int idle = 0;
  return atomic_compare_exchange_strong_explicit(&f->use, &idle, 1, memory_order_acquire,
                                                 memory_order_relaxed);
}
static inline void tde_file_enter(tde_file *f) {
  if (!tde_file_try_enter(f)) tde_file_wait(f);
}
static inline void tde_file_leave(tde_file *f) {
  atomic_store_explicit(&f->use, 0, memory_order_release);
}

/* uri.c: the tde_ parameters of a main database's name */
/* Reads them into db; SQLITE_NOMEM. (tde_uri_check says what is wrong with one.) */
int tde_db_read_uri(tde_db *db, const char *name);
void tde_db_forget_uri(tde_db *db); /* frees what was read */

/* database.c: a main database's header as it is read, and its keys */
/* An inaccessible database asks for its key again at most this often. */
#define TDE_RETRY_MS 1000
int tde_db_open(tde_file *f, const char *name, int flags);
void tde_db_close(tde_file *f);
int tde_db_load(tde_file *f, int wait);
int tde_db_report(tde_db *db);   /* logs db->last, returns its rc */
int tde_db_not_made(tde_db *db); /* the same of a new one that is to stay empty */
/* The code, and st, for what needs a database that is Online. */
int tde_db_not_online(tde_db *db, tde_status *st);
/* The newest whole header that the file has now, to be cleared by the caller; its doc is NULL
** where there is none, or it could not be read. False: a slot could not be looked at. */
int tde_db_read_newest(tde_db *db, tde_header *now);
/* Puts a parsed header in force with the keys that verify it; db->facts are its already. Takes h
** and keys over. */
void tde_db_take_header(tde_db *db, tde_header *h, tde_keys *keys);
/* db->facts are those of the header that is in force now; they are another's where one could not
** be taken. */
void tde_db_take_facts(tde_db *db);
/* Reads the header again if another connection changed it. */
int tde_db_follow(tde_file *f);
/* The same for those who keep other writers of the database file out: they also
** put in place what an interrupted sweep left. */
int tde_db_freshen(tde_file *f);
/* Opens a database beside SQLite, for its keys or its units: the file has no methods
** and is in no list. instance: as in the URI, or NULL. *out is to be closed also after
** a failure; its state may be any. */
int tde_db_open_beside(const char *path, sqlite3_vfs *vfs, const char *instance, int flags,
                       tde_file **out);
void tde_db_close_beside(tde_file *f); /* NULL is allowed */
/* The newest whole header slot of a file, not verified; through a connection that has it open, where
** there is one (openfiles.h). out->doc NULL: there is none. vfs: the VFS below, by name.
** TDE_CANTOPEN_NOW, SQLITE_NOMEM: the process lacks descriptors or memory to look. */
#define TDE_CANTOPEN_NOW (SQLITE_CANTOPEN | 99 << 8) /* none of SQLite's own */
int tde_db_peek(const char *path, const char *vfs, tde_header *out);
/* Looks for the keys of an epoch that is not known (ctx: the main file). TDE_TAMPERED:
** there are none; other classes: why they are not to be had. */
tde_class tde_db_learn_epoch(void *ctx, uint32_t epoch);
/* Does the header that is in force name this epoch, and is it in the key ring? */
int tde_db_knows(const tde_db *db, uint32_t epoch);

/* database_edit.c: creates and changes a main database's header */
int tde_db_create(tde_file *f); /* a new database's header, under RESERVED */
/* Before the first page is written: the unit size, by the bytes of that write. */
int tde_db_fix_unit(tde_file *f, int64_t first_write);
int tde_db_after_sync(tde_file *f);
void tde_db_before_close(tde_file *f);

/* gate.c: may a transaction begin, and go on? */
/* Before a transaction's first lock: what the key service may have to be asked for is asked
** while nobody waits for this connection. SQLITE_OK does not say that the database is Online. */
int tde_db_ask(tde_file *f);
int tde_db_gate(tde_file *f); /* ... and after it: SQLITE_OK when a transaction may begin */
/* ... when one that began may go on. writes: with a page into the main file. */
int tde_db_io_gate(tde_file *f, int writes);
/* Opened read-only, or a backup. */
static inline int tde_db_is_read_only(const tde_db *db) {
  return db->read_only || db->facts.backup;
}
/* The key is away: nothing that was derived from it stays. */
void tde_db_lose(tde_db *db);
/* ... why, into last. */
void tde_db_note_loss(tde_db *db);
/* ... if what failed with this code did for that, and nothing is told yet. */
void tde_db_note_if_lost(tde_db *db, int rc);
void tde_db_wipe(tde_db *db);
int tde_db_in_transaction(const tde_db *db);
int tde_db_in_write(const tde_db *db); /* ... in one that writes */
/* Does memory alone have what the file held before its transaction wrote there
** (journal_mode=MEMORY)? */
int tde_db_journal_in_memory(const tde_db *db);

/* reserve.c: RESERVED for a change outside of SQLite's transactions */
/* Takes it; *before: what to go back to with tde_db_unreserve. The connection's busy handler decides
** how long. */
int tde_db_reserve(tde_file *f, int *before);
void tde_db_unreserve(tde_file *f, int before);
int tde_db_wait_busy(tde_db *db);

/* hooks.c: what sealed files ask of their database */
extern const tde_sealed_hooks tde_main_hooks, tde_log_hooks, tde_temp_hooks;

/* refused.c */
/* Makes the file that stands for one which is refused with rc, for the connection to be told why
** (TDE_FCNTL_REFUSAL), and returns SQLITE_OK; without memory rc. */
int tde_refuse_open(sqlite3_file *pf, int rc, const tde_status *why);

/* guard.c: records that several pages share, twice on disk. ctx: the main file. */
/* Makes a record durable in an area beside the header, before its place is overwritten. */
int tde_guard_put(void *ctx, uint64_t index, const uint8_t *record, uint32_t n);
/* Puts a whole copy of a torn unit into record. SQLITE_NOTFOUND: there is none. */
int tde_guard_salvage(void *ctx, uint64_t index, uint8_t *record, uint32_t n);
/* The guarded units are durable: empties the areas, so that an old copy can not
** stand in for a unit that is damaged much later. */
int tde_guard_clear(tde_file *f);

/* map.c: pages from a map of the file */
/* A database was opened. */
void tde_map_init(tde_file *f);
/* SQLITE_FCNTL_MMAP_SIZE, of any file. */
int tde_map_limit(tde_file *f, sqlite3_int64 *size);
/* Copies n bytes at a place of the lower file. False: the map has them not. ctx: the
** main file. */
int tde_map_copy(void *ctx, uint64_t at, uint32_t n, uint8_t *to);
/* The file has changed, or is about to become shorter: it is mapped anew when it is
** next used. */
void tde_map_undo(tde_file *f);
void tde_map_close(tde_file *f);

/* locks.c: as xLock (before: what the connection has), xCheckReservedLock and xClose of a
** database's lower file, safe beside other threads' connections. */
int tde_main_lock(sqlite3_file *lower, int before, int level);
int tde_main_reserved(sqlite3_file *lower, int *reserved);
/* Frees it, too; NULL too. */
int tde_main_close(sqlite3_file *lower);

/* walindex.c: what the wal-index says, while this connection has it mapped */
/* xShmMap, of a region as SQLite counts. With an error nothing is mapped, but with
** SQLITE_READONLY. */
int tde_index_map(tde_file *f, int region, int size, int extend, void volatile **out);
/* The sign is put up, if it is not there; the caller's connection holds the write lock. */
void tde_index_sign(tde_file *f);
void tde_index_unmapped(tde_db *db);
/* The salts of a WAL in which the wal-index names frames. False: it names none, is being
** changed just now, or is not shared. */
int tde_index_salt(const tde_db *db, uint8_t out[TDE_INDEX_SALT]);
/* The page of a frame (1: the first); 0: none. False: the wal-index is not mapped. */
int tde_index_page(const tde_db *db, uint64_t frame, uint32_t *page);
/* Quickly: has it this page for the frame, and these salts? False says nothing. */
int tde_index_has(const tde_db *db, uint64_t frame, uint32_t page,
                  const uint8_t salt[TDE_INDEX_SALT]);
/* The last committed frame and (pages may be NULL) the page count with it,
** from the wal-index; 0 without shared memory. The caller's transaction has seen
** to it that the wal-index is up to date. */
uint32_t tde_wal_index(const tde_file *main_file, uint32_t *pages);
/* How many of them checkpoints have brought into the database file; the wal-index is mapped. */
uint32_t tde_wal_restored(const tde_file *main_file);
/* Pages of the database after the WAL's last commit, by the wal-index, or, where there is no
** shared memory and nobody else writes, by the generation; 0: unknown. */
uint32_t tde_wal_pages(const tde_file *main_file);

/* heal.c: free pages that a crash tore and no journal restores */
int tde_heal_free_pages(tde_file *f);

/* logfile.c: what a WAL and a rollback journal have in common */
void tde_log_open(tde_file *f);
/* Begins a generation; its prefix goes out in front of unit 0. */
int tde_log_begin(tde_file *f, uint32_t unit);
/* Reads the generation from disk unless it was checked in this transaction. */
int tde_log_refresh(tde_file *f);
/* What the next use of the log goes by is read from the file, whatever the wal-index says. */
void tde_log_look_again(tde_file *f);
/* Has a WAL been begun anew since its generation's salt was this? */
int tde_log_begun_anew(tde_file *w, const uint8_t salt[TDE_SALT_BYTES]);
/* The error of frames that are not those in use. Nothing is changed: whoever puts the log back can
** go on. */
int tde_log_refuse_frames(tde_file *f, const char *why);
int tde_log_truncate(tde_file *f, uint64_t size);
int tde_log_size(tde_file *f, uint64_t *size);
/* What SQLite's own logs begin with (file format, sections 3 and 4.1): a rollback journal; a WAL, but
** for the last bit of it, and then its version, which is the wal-index's, too. */
extern const uint8_t tde_sqlite_journal_magic[8];
#define TDE_SQLITE_WAL_MAGIC 0x377f0682u
#define TDE_SQLITE_WAL_VERSION 3007000u

/* wal.c */
int tde_wal_read(tde_file *f, uint8_t *buf, uint32_t n, uint64_t off);
int tde_wal_write(tde_file *f, const uint8_t *buf, uint32_t n, uint64_t off);
/* A WAL write lock was taken: what a rolled-back transaction left is void. */
void tde_wal_begin(tde_file *f);
/* The WAL write lock is about to be given up. */
void tde_wal_end(tde_file *f);
/* Forgets what waits and was not committed. */
void tde_wal_forget(tde_file *f);
/* Is a frame (opened, from its header on) of the log of which the wal-index names frames, by
** its salts? True where it names none. */
int tde_wal_of_index(tde_file *w, const uint8_t *frame);
/* A hook (sealed.h, absent) of the main file. */
int tde_wal_has_rest(void *ctx, uint64_t index, uint32_t lo, uint32_t hi);
/* Does a checkpoint that is still to come write all of the main file's unit `index`, or cut
** it off? The caller keeps other checkpoints out. */
int tde_wal_has_unit(tde_file *f, uint64_t index);

/* journal.c */
int tde_journal_read(tde_file *f, uint8_t *buf, uint32_t n, uint64_t off);
int tde_journal_write(tde_file *f, const uint8_t *buf, uint32_t n, uint64_t off);
/* A hook (sealed.h, trim) of the logs. */
int tde_journal_trim(void *ctx, sqlite3_int64 *size);
/* Under SHARED: did somebody die in the middle of a transaction, which is to be rolled
** back before anything else? SQLite does that when it begins a transaction. */
int tde_journal_is_hot(tde_file *main_file, int *hot);
/* A file that was opened as a super-journal: if it is a sealed journal, *is_sealed is 1, and it is
** open as its database's, whose keys were opened for it (f->owned_owner). */
int tde_journal_open_child(tde_file *f, const char *journal_path, int *is_sealed);

/* shim.c */
extern tde_key_source tde_source;
sqlite3_vfs *tde_base_vfs(void);
/* The name of a file as a VFS is given it (some look for parameters behind it), which
** ends in suffix ("", "-wal", ...); NULL: no memory. To be freed with tde_name_free,
** NULL too. */
const char *tde_name_of(const char *path, const char *suffix);
void tde_name_free(const char *name);
/* A file of the lower VFS, in memory of its own; NULL: *rc tells why. */
sqlite3_file *tde_lower_open(sqlite3_vfs *vfs, const char *name, int flags, int *out_flags,
                             int *rc);
/* Closes and frees it; NULL too. Returns what xClose did. */
int tde_lower_close(sqlite3_file *lower);
int64_t tde_now_ms(void);

#endif
