/*
** reserve.c: RESERVED on a main database, for a change outside of SQLite's transactions.
**
** What must hold: it is the lock of this connection's own lower file, or of a second one of the same
** file (aside), so that processes take turns as SQLite's writers do; nobody is kept waiting by a lock
** that is held while another one is waited for; a hot journal is rolled back first, by SQLite.
*/
#include "shim.h"

SQLITE_EXTENSION_INIT3

/* Somebody else has the lock: does the connection's busy handler want to wait? */
int tde_db_wait_busy(tde_db *db) {
  return db->busy_handler && db->busy_handler(db->busy_arg);
}

/* RESERVED through a second lower file. SQLite from 3.51 on refuses it to one that has the wal-index
** open while other processes have, too (os_unix.c, unixIsSharingShmNode): it asks for such a lock
** itself only to remove the log, and takes them for a sign that its locks were broken. */
static int reserve_aside(tde_file *f) {
  int rc;
  sqlite3_file *aside = tde_lower_open(f->lower_vfs, f->path,
                                       SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE, NULL, &rc);

  if (!aside) return rc;
  rc = tde_main_lock(aside, SQLITE_LOCK_NONE, SQLITE_LOCK_SHARED);
  if (rc == SQLITE_OK) rc = aside->pMethods->xLock(aside, SQLITE_LOCK_RESERVED);
  if (rc == SQLITE_OK && tde_has_moved(f))
    rc = SQLITE_READONLY_DBMOVED; /* it is another file's lock */
  if (rc) {
    (void)tde_main_close(aside);
  } else {
    f->db->aside = aside;
  }
  return rc;
}

/* RESERVED, from SHARED. */
static int reserve_shared(tde_file *f) {
  int taken = 0, rc = LOWER(f)->xLock(f->lower, SQLITE_LOCK_RESERVED);

  if (rc != SQLITE_BUSY || !f->db->shm_open) return rc;
  if (tde_main_reserved(f->lower, &taken) != SQLITE_OK || taken) return rc;
  return reserve_aside(f);
}

/* RESERVED, from no lock at all. While somebody has it, others take the journal that
** they find for that writer's: with a hot one beside it they would read, and write
** over, half a transaction. So it is looked for first, as SQLite does; under SHARED
** none can become hot. */
static int reserve_once(tde_file *f) {
  int hot = 0, rc = tde_main_lock(f->lower, SQLITE_LOCK_NONE, SQLITE_LOCK_SHARED);

  if (rc) return rc;
  if (f->db->state == TDE_STATE_ONLINE) rc = tde_journal_is_hot(f, &hot);
  if (rc == SQLITE_OK) {
    rc = hot ? SQLITE_BUSY_RECOVERY : reserve_shared(f);
  }
  if (rc) (void)LOWER(f)->xUnlock(f->lower, SQLITE_LOCK_NONE);
  return rc;
}

/* Takes RESERVED for a header change. *before: the level to go back to. It waits
** without any lock: a SHARED lock that is held on would keep the writer, who is
** waited for, from its EXCLUSIVE one. (In WAL mode connections hold SHARED all the time, and
** nobody takes EXCLUSIVE for a commit.) SQLITE_BUSY_RECOVERY: a transaction that a crash
** cut short is to be rolled back first, by reading through SQLite. */
int tde_db_reserve(tde_file *f, int *before) {
  tde_db *db = f->db;
  int rc;

  *before = db->lock;
  if (db->lock >= SQLITE_LOCK_RESERVED) return SQLITE_OK;
  if (db->lock == SQLITE_LOCK_SHARED && !db->shm_open) {
    return LOWER(f)->xLock(f->lower, SQLITE_LOCK_RESERVED);
  }
  do {
    rc = db->lock == SQLITE_LOCK_SHARED ? reserve_shared(f) : reserve_once(f);
  } while (rc != SQLITE_BUSY_RECOVERY && (rc & 0xff) == SQLITE_BUSY && tde_db_wait_busy(db));
  return rc;
}

void tde_db_unreserve(tde_file *f, int before) {
  if (f->db->aside) (void)tde_main_close(f->db->aside);
  f->db->aside = NULL;
  if (before < SQLITE_LOCK_RESERVED) (void)LOWER(f)->xUnlock(f->lower, before);
}
