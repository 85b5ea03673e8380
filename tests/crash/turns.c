/*
** turns.c: several connections of one process that work on the database in turn.
**
** At each step another one may have its turn. One that holds a transaction when its turn ends
** leaves its locks in the others' way, and goes on with it at a later turn: what a reader sees
** must be the state that it began with, byte for byte, whatever the others have written,
** checkpointed or sealed anew since; what a writer has changed must not be seen by anybody,
** and a transaction that it rolls back must leave nothing.
**
** SQLITE_BUSY is an answer only while another connection holds a transaction, or to a change
** of the journal mode; the step then has changed nothing. All of them see what was committed.
*/
#include <string.h>

#include "run.h"

int turns_of(const scenario *sc) {
  return strchr(sc->first, '3') ? 3 : strchr(sc->first, '2') ? 2 : 1;
}

int turns_may_be_busy(const run *r) {
  if (r->taking < 2) return 0;
  for (int k = 0; k < TURNS_MAX; k++) {
    if (k != r->at && r->turns[k].held) return 1;
  }
  return r->yields;
}

static void take(run *r, int k) {
  r->turns[r->at].db = r->db;
  r->at = k;
  r->db = r->turns[k].db;
  r->journal = r->turns[k].journal;
}

/* Another connection was in the way: the step is given up. */
static void give_way(run *r) {
  if (!r->busy || disk_dead() || r->why[0]) return;
  r->busy = r->stop = 0;
  r->top = r->committed;
  if (!r->db || sqlite3_get_autocommit(r->db)) return;
  run_rollback(r, r->db);
  r->turns[r->at].held = HELD_NOTHING;
}

/* ---- connections ---- */

static void close_one(run *r) {
  if (r->db && sqlite3_close(r->db) != SQLITE_OK) run_fail(r, "the connection could not be closed");
  r->db = NULL;
  r->turns[r->at].held = HELD_NOTHING;
}

static void close_others(run *r) {
  for (int k = 0; k < TURNS_MAX; k++) {
    turn *t = &r->turns[k];
    if (k == r->at) continue;
    if (t->db && sqlite3_close(t->db)) run_fail(r, "connection %d could not be closed", k);
    t->db = NULL;
    t->held = HELD_NOTHING;
  }
}

void turns_close(run *r) {
  close_others(r);
  r->turns[r->at].held = HELD_NOTHING;
  r->taking = 1;
}

void turns_set_journal(run *r) {
  r->yields = 1;
  run_set_journal(r);
  r->yields = 0;
  give_way(r);
}

/* One whose pragmas met a lock would not write as the scenario asks for. */
static void open_one(run *r) {
  if (run_connect(r, 0) == 0) turns_set_journal(r);
  if (r->busy) close_one(r);
}

void turns_begin_life(run *r) {
  int n = turns_of(r->sc);

  if (n < 2) return;
  if (rng_below(&r->r, 2)) {
    for (int k = 0; k < n && !r->stop; k++) {
      take(r, k);
      (void)run_connect(r, 0);
    }
  }
  take(r, (int)rng_below(&r->r, (uint32_t)n));
  r->taking = n;
}

/* ---- what is held ---- */

/* Reads all: it must be this state. */
static void look(run *r, int want) {
  int txn, rc, bad;

  if (r->stop) return;
  bad = model_compare(r->db, "main", &r->m, r->committed, &txn, &rc, r->why, sizeof(r->why));
  if (bad < 0) {
    run_failed(r, r->db, rc, "reading beside others");
  } else if (bad) {
    r->stop = 1;
  } else if (txn != want) {
    run_fail(r, "connection %d reads state %d; it is in state %d", r->at, txn, want);
  }
}

static void hold_read(run *r, turn *t) {
  (void)run_exec(r, r->db, "BEGIN");
  look(r, r->committed);
  if (r->stop) return;
  t->held = HELD_READ;
  t->snapshot = r->committed;
}

/* False: it goes on reading. */
static int end_read(run *r, turn *t) {
  look(r, t->snapshot);
  if (r->stop || rng_below(&r->r, 3)) return 0;
  (void)run_exec(r, r->db, "COMMIT");
  t->held = HELD_NOTHING;
  return !r->stop;
}

static void hold_write(run *r, turn *t) {
  state *s = run_begin(r, r->db);

  if (!s) return;
  for (uint32_t i = rng_below(&r->r, 30) + 1; i; i--) run_change(r, r->db, s, 2500);
  if (!r->stop) t->held = HELD_WRITE;
}

/* A reader may be in the way of the commit (without a WAL): it is tried again, or given up. */
static void end_write(run *r, turn *t) {
  run_commit(r, r->db);
  if (r->busy && !disk_dead() && rng_below(&r->r, 2)) {
    r->busy = r->stop = 0;
    r->top = r->committed;
  } else {
    t->held = HELD_NOTHING;
  }
}

static void go_on_writing(run *r, turn *t) {
  state *s = &r->m.after[r->txn];

  for (int i = 0; i < 10; i++) run_change(r, r->db, s, 2500);
  switch (rng_below(&r->r, 5)) {
    case 0:
      break;
    case 1:
    case 2:
      run_rollback(r, r->db);
      t->held = HELD_NOTHING;
      break;
    default:
      end_write(r, t);
  }
}

/* ---- steps ---- */

/* From one row to some dozens: what one leaves in the log, another's may cover or not. */
static void transaction(run *r, int end) {
  uint32_t most = 1u << rng_below(&r->r, 6);
  run_transaction(r, r->db, 1 + (int)rng_below(&r->r, most), 2500, end);
}

/* A COMMIT that failed. With journal_mode=PERSIST the last write, half done, has voided the
** journal: the transaction is there. In a WAL nobody may see it, but a recovery may find it:
** the half of the last frame that was not written can be what stood there before. So the
** life ends, and the next one finds either. */
static void after_failed_commit(run *r) {
  int txn, rc;

  if (strcmp(r->sc->journal, "wal") == 0) {
    look(r, r->committed);
    r->stop = 1;
  } else if (model_compare(r->db, "main", &r->m, r->top, &txn, &rc, r->why, sizeof(r->why))) {
    if (!r->why[0]) run_failed(r, r->db, rc, "reading after a failed commit");
  } else if (txn == r->top) {
    r->committed = txn;
  }
}

/* One of the first writes of what is done finds the disk full. Its errors are run.rc. */
static void with_full_disk(run *r, uint32_t writes, void (*what)(run *r)) {
  disk_fault(DISK_FULL, 1 + (long)rng_below(&r->r, writes), 0);
  r->tolerant = 1;
  r->rc = 0;
  what(r);
  r->tolerant = 0;
  if (r->rc && !disk_fault_hits()) run_fail(r, "an error without a fault: %d", r->rc);
  disk_fault(0, 0, 0);
}

static void commit_one(run *r) {
  transaction(r, END_COMMIT);
}

static void checkpoint(run *r) {
  (void)run_exec(r, r->db, "PRAGMA wal_checkpoint");
}

/* A transaction that failed must not be there later either. */
static void full_disk(run *r) {
  if (r->stop) return;
  with_full_disk(r, 1u << rng_below(&r->r, 7), commit_one);
  if (!r->rc || disk_dead() || r->why[0]) return;
  r->stop = 0;
  if (!sqlite3_get_autocommit(r->db)) run_rollback(r, r->db);
  if (r->top > r->committed) after_failed_commit(r);
  if (!r->stop) r->top = r->committed;
}

/* What a checkpoint could not write stays in the log for the next one. */
static void full_checkpoint(run *r) {
  if (r->stop) return;
  with_full_disk(r, 12, checkpoint);
  if (r->rc && !disk_dead() && !r->why[0]) r->stop = 0;
}

/* Who has entered WAL mode under EXCLUSIVE keeps it (SQLite, PRAGMA locking_mode). */
static int still_exclusive(run *r) {
  sqlite3_stmt *q = NULL;
  int rc = sqlite3_prepare_v2(r->db, "PRAGMA main.locking_mode", -1, &q, NULL), yes = 0;

  if (rc == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW) {
    yes = strcmp((const char *)sqlite3_column_text(q, 0), "exclusive") == 0;
  }
  (void)sqlite3_finalize(q);
  return yes;
}

/* The others are closed, or it could not be had. */
static void exclusive(run *r) {
  close_others(r);
  (void)run_exec(r, r->db, "PRAGMA locking_mode=EXCLUSIVE");
  for (int i = 0; i < 4; i++) {
    switch (rng_below(&r->r, 3)) {
      case 0:
        transaction(r, END_COMMIT);
        break;
      case 1:
        transaction(r, END_ROLLBACK);
        break;
      default:
        full_disk(r);
    }
  }
  (void)run_exec(r, r->db, "PRAGMA locking_mode=NORMAL; SELECT count(*) FROM meta");
  if (!r->stop && still_exclusive(r)) close_one(r);
}

static void idle_step(run *r, turn *t, char letter) {
  if (rng_below(&r->r, 2)) look(r, r->committed);
  switch (letter) {
    case 't':
      transaction(r, END_COMMIT);
      break;
    case 'r':
      transaction(r, END_ROLLBACK);
      break;
    case 'l':
      hold_read(r, t);
      break;
    case 'W':
      hold_write(r, t);
      break;
    case 'V':
      run_check_whole(r, 1);
      break;
    case 'f':
      full_disk(r);
      break;
    case 'c':
      full_checkpoint(r);
      break;
    case 'e':
      exclusive(r);
      break;
    default:
      r->yields = strchr("wjk", letter) != NULL;
      run_step(r, letter);
      r->yields = 0;
  }
}

void turns_step(run *r, char letter) {
  turn *t;

  if (disk_dead()) r->stop = 1; /* in a checkpoint behind a commit, say, which does not tell */
  if (r->stop) return;
  take(r, (int)rng_below(&r->r, (uint32_t)r->taking));
  t = &r->turns[r->at];
  if (letter == 'x' || letter == 'X') close_one(r);
  if (!r->db && letter != 'X') open_one(r);
  if (r->db && t->held == HELD_WRITE) {
    go_on_writing(r, t);
  } else if (r->db && (t->held == HELD_NOTHING || end_read(r, t))) {
    idle_step(r, t, letter == 'x' ? 't' : letter);
  }
  give_way(r);
}
