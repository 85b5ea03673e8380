/*
** gate.c: whether a transaction may begin, and go on, by how the database's key stands.
**
** What must hold:
**  - a database that is not Online lets nobody begin a transaction: xLock and xShmLock are refused
**    (tde_db_gate), since SQLite may still hold pages in its cache. It can always be opened, and its
**    status asked;
**  - a key service is asked before a transaction's first lock (tde_db_ask), not under it;
**  - what was under way when the key was lost may end, but not go on for ever (tde_db_io_gate).
*/
#include <errno.h>

#include "redo.h"
#include "shim.h"
#include "watch.h"

SQLITE_EXTENSION_INIT3

/* ---- the key is away ---- */

void tde_db_wipe(tde_db *db) {
  for (int r = 0; r < TDE_ROLE_KEYS; r++) tde_cryptor_wipe(&db->crypt[r]);
}

int tde_db_in_transaction(const tde_db *db) {
  return db->shm_locks > 0 || (db->lock > SQLITE_LOCK_NONE && !db->shm_open) || tde_db_in_write(db);
}

int tde_db_in_write(const tde_db *db) {
  return db->lock > SQLITE_LOCK_SHARED || db->wal_writing || (db->no_locks && db->writing);
}

void tde_db_note_loss(tde_db *db) {
  tde_key_report r;

  tde_keys_report(db->keys, &r);
  db->last = r.last;
  if (r.last.code == TDE_OK) { /* it is being healed at this very moment */
    tde_fail(&db->last, TDE_UNREACHABLE, "try again", "%s: its key was away until just now",
             tde_path_of(db->file));
  }
}

void tde_db_lose(tde_db *db) {
  tde_db_wipe(db);
  tde_sealed_forget(&db->file->s);
  db->head_valid = 0;
  db->state = TDE_STATE_INACCESSIBLE;
  db->retry_at = tde_now_ms() + TDE_RETRY_MS;
  tde_db_note_loss(db);
}

void tde_db_note_if_lost(tde_db *db, int rc) {
  if ((rc & 0xff) != SQLITE_IOERR || db->last.code || !db->keys) return;
  if (rc == SQLITE_IOERR_AUTH || !tde_keys_live(db->keys)) tde_db_note_loss(db);
}

/* ---- checks that are due ---- */

/* Asks the key service, by the header that is on disk now. */
static void check_now(tde_db *db) {
  tde_key_report r;
  tde_header h;

  (void)tde_db_read_newest(db, &h);
  (void)tde_keyring_check(db->keys, &tde_source, h.doc ? &h : NULL);
  tde_header_clear(&h);
  /* A denial is repeated by a thread, and what goes with a check (watch.h) is its to do. */
  if (!tde_watch_kick()) return;
  tde_keys_report(db->keys, &r);
  if (r.last.code == TDE_OK) tde_keyring_hurry(db->keys);
}

/* A thread that is there has looked by then. */
#define LATE_MS 1000

/* A check that is due and that no thread looks after. A key service is not waited for here
** if a thread can be had. A local key answers at once, and is asked before anything is read
** if no thread did in time: for local keys alone none is started when a database is opened. */
static void check_here(tde_db *db) {
  int64_t late = tde_now_ms() - tde_keys_due(db->keys);
  uint64_t fork = tde_fork_generation();
  int remote = tde_keys_remote(db->keys); /* another connection may have changed the key */

  if (db->fork != fork) { /* nobody looked after it here: a check that is overdue is waited for */
    db->fork = fork;
    if (tde_keyring_use_here(db->keys, 1)) {
      check_now(db);
      return;
    }
  }
  if (late < 0) return;
  if (late >= LATE_MS) tde_keyring_overdue(db->keys);
  if (remote || (late < LATE_MS && tde_watch_threads() > 0)) {
    if (tde_watch_kick()) return;
  }
  if (tde_keyring_claim(db->keys)) check_now(db);
}

/* A transaction may go on for longer than a check interval. */
#define IO_GATES 64
static void check_meanwhile(tde_db *db) {
  if (++db->io_gates % IO_GATES || tde_keys_due(db->keys) > tde_now_ms()) return;
  tde_keyring_use_here(db->keys, 0); /* in the middle of a transaction nobody is waited for */
  tde_keyring_overdue(db->keys);
  (void)tde_watch_kick();
}

/* ---- the gates ---- */

int tde_db_journal_in_memory(const tde_db *db) {
  return db->writing && !db->journal && !db->wal;
}

int tde_db_io_gate(tde_file *f, int writes) {
  tde_db *db = f->db;

  if (!db->keys || db->state != TDE_STATE_ONLINE) return SQLITE_OK;
  if (tde_keys_live(db->keys)) {
    check_meanwhile(db);
    return SQLITE_OK;
  }
  /* What was under way at the loss may end (its rollback needs the journal's
  ** key), but not go on for ever. Where nobody could roll it back later it reads nothing any more:
  ** SQLite then does that, which only writes. */
  if (!tde_keys_cut_off(db->keys)) return SQLITE_OK;
  if (tde_db_journal_in_memory(db)) {
    if (writes) return SQLITE_OK;
    tde_db_note_loss(db);
  } else {
    tde_db_lose(db);
  }
  return tde_db_report(db);
}

/* A secondary whose update was cut short: it is finished before anything is read. Who updates it holds
** EXCLUSIVE, so under SHARED such a log is nobody's; with nolock=1 it is said to be nobody's. */
static int finish_update(tde_file *f) {
  tde_db *db = f->db;
  int rc, err = 0;

  if (!tde_redo_exists(f)) return SQLITE_OK;
  if (db->read_only) {
    /* A log that does not count is of an update that has changed nothing yet. */
    rc = tde_redo_none(f);
    if (rc == SQLITE_BUSY) {
      tde_fail(&db->last, TDE_BUSY, "open it for writing once, or run tde_sync_secondary() again",
               "%s: an update of this secondary was cut short", tde_path_of(f));
    }
  } else if (db->no_locks) {
    rc = tde_redo_settle(f, 1);
  } else {
    rc = LOWER(f)->xLock(f->lower, SQLITE_LOCK_RESERVED);
    if (rc == SQLITE_OK) rc = LOWER(f)->xLock(f->lower, SQLITE_LOCK_EXCLUSIVE);
    if (rc == SQLITE_OK) rc = tde_redo_settle(f, 1);
    if (rc == SQLITE_CANTOPEN) err = errno;
    (void)LOWER(f)->xUnlock(f->lower, SQLITE_LOCK_SHARED);
  }
  if (rc && (rc & 0xff) != SQLITE_BUSY) {
    tde_fail(&db->last, rc == SQLITE_NOMEM ? TDE_NOMEM : TDE_IO,
             tde_errno_remedy(
                 err, "check the disk, and the permissions of the file whose name ends in -tdelog"),
             "%s: the log of an update of this secondary can not be used: %s", tde_path_of(f),
             sqlite3_errstr(rc));
    (void)tde_db_report(db);
  }
  return rc;
}

int tde_db_ask(tde_file *f) {
  tde_db *db = f->db;
  int rc = SQLITE_OK;

  if (db->state == TDE_STATE_ONLINE && db->keys) {
    /* A transaction begins: what is wrong now shows anew. */
    if (db->last.code && db->lock <= SQLITE_LOCK_SHARED) tde_status_clear(&db->last);
    check_here(db);
    if (db->unlearnt && tde_keys_live(db->keys)) {
      db->unlearnt = TDE_OK;
      rc = tde_db_follow(f);
    }
  } else if (db->state == TDE_STATE_INACCESSIBLE &&
             (tde_now_ms() >= db->retry_at || (db->keys && tde_keys_live(db->keys)))) {
    rc = tde_db_load(f, 1);
  }
  return rc;
}

int tde_db_gate(tde_file *f) {
  tde_db *db = f->db;
  int rc;

  if (db->state == TDE_STATE_ONLINE && db->keys && !tde_keys_live(db->keys)) tde_db_lose(db);
  if (db->state == TDE_STATE_ONLINE && db->facts.secondary) {
    rc = finish_update(f);
    if (rc) return rc;
  }
  switch (db->state) {
    case TDE_STATE_ONLINE:
      if (db->header.unit_size) return SQLITE_OK;
      return tde_db_load(f, 1); /* empty so far: another connection may have fixed U */
    case TDE_STATE_PLAIN:
      return SQLITE_OK;
    case TDE_STATE_NEW:
    case TDE_STATE_DAMAGED: /* somebody may have put the file right, or the disk */
      rc = tde_db_load(f, 1);
      if (rc) return rc;
      break;
    default:
      break;
  }
  if (db->state == TDE_STATE_NEW && db->unwanted) return tde_db_not_made(db);
  if (db->state == TDE_STATE_ONLINE || db->state == TDE_STATE_NEW || db->state == TDE_STATE_PLAIN) {
    return SQLITE_OK;
  }
  return tde_db_report(db);
}
