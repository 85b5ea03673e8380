/*
** run.h: one workload on the simulated disk, from an empty file to the outage.
**
** A scenario is a set of pragmas and a string of steps, one letter each:
**
**   t  a small transaction           P F R T  checkpoint passive, full, restart,
**   b  a large one (cache spill)              truncate
**   d  deletes many rows             v  VACUUM
**   r  a transaction rolled back     p  another page size, and VACUUM
**   s  savepoints, rolled back in    q  one below the unit, and VACUUM
**      part                          i  incremental vacuum
**   B  a transaction brought in      w  journal_mode=WAL
**      by the backup API             j  the scenario's rollback journal mode
**   k  journal_mode=DELETE           o  a reader comes or goes (WAL)
**   x  close and open again          h  the header is written anew (repair)
**   E  tde_encrypt in place          O  tde_encrypt into another file
**   U  tde_decrypt into another file
**   m  the other protector           g  tde_rotate_dek, to its end
**   M  PRAGMA mmap_size
**   A  a backup, to be restored      D  tde_restore of it
**   C  tde_backup                    Y  tde_copy
**   Z  tde_create_secondary          y  tde_sync_secondary (made when it is not
**                                       there)
**   2, 3  from here on so many connections take turns (turns.c)
**
** and among these:
**   l  a read transaction is begun, and held while the others work
**   W  a write transaction is begun, and held: they meet its lock
**   X  the connection is closed, until its next turn
**   V  integrity_check and tde_verify
**   f  a transaction, and one of its writes finds the disk full
**   c  a checkpoint, and one of its writes does
**   e  transactions under locking_mode=EXCLUSIVE
**
** C, D, E, O, U, Y, Z make a file, and are the last thing done (run_ends).
**
** first is run in order, without an outage; then steps letters are drawn from
** mix while the power may fail.
*/
#ifndef CRASH_RUN_H
#define CRASH_RUN_H

#include "disk.h"
#include "model.h"

#define LOCKS_NORMAL 0
#define LOCKS_EXCLUSIVE 1 /* PRAGMA locking_mode */
#define LOCKS_NONE 2      /* nolock=1, after the outage, too */

typedef struct scenario {
  const char *name;
  const char *journal; /* delete, truncate, persist, wal; "any": by seed */
  const char *sync;
  int page_size; /* 0: by seed */
  int cache;     /* pages */
  int autocheckpoint;
  int auto_vacuum; /* 0, 1, 2 */
  int attach;      /* 1: a second encrypted database, 2: a plain one */
  int slack;       /* committed transactions that may be lost */
  int locks;       /* LOCKS_... */
  int tde_only;    /* nothing to compare plain SQLite with */
  const char *first;
  const char *mix;
  int steps;
  int create_safe; /* the schema is made before the power may fail */
  int death;       /* not the power fails: the process dies */
} scenario;

extern const scenario scenarios[];
extern const int nscenarios;

/* What a connection has not ended when another takes its turn. */
typedef enum held { HELD_NOTHING, HELD_READ, HELD_WRITE } held;

#define TURNS_MAX 3
typedef struct turn {
  sqlite3 *db; /* of whose turn it is: run.db */
  const char *journal;
  held held;
  int snapshot; /* the state that its transaction reads */
} turn;

/* How a file stands after a conversion. */
typedef enum form { FORM_PLAIN, FORM_SEALED, FORM_EITHER } form;

typedef struct run {
  const scenario *sc;
  uint64_t seed; /* of the workload */
  int tde;       /* 0: the control */
  int verbose;
  char path[2][600], out[600], backup[600];
  sqlite3 *db, *reader;
  rng r;
  const char *journal;
  model m;
  int floor, committed, top; /* states that may be found: see lowest(); top: one being committed */
  int txn;                   /* the number of the transaction under way */
  turn turns[TURNS_MAX];
  int at;       /* whose turn it is */
  int taking;   /* so many take turns; 1: nobody does */
  int yields;   /* the step may meet the others' locks though they hold no transaction */
  int busy;     /* ... it did, or that of a transaction: nothing was done */
  int stop;     /* the life is over */
  int tolerant; /* errors are expected: rc is kept, why is not set */
  int rc;
  form main_form; /* of path[0] */
  int out_form;   /* -1: out must not be looked for; else form of out */
  int out_must;   /* out must be there */
  int out_from;   /* the oldest state that out may hold */
  int backup_of;  /* the state in the backup */
  /* The database's protector: before the last change, and after it if that was
  ** reported done (else it may be either). */
  const char *protector, *protector_next;
  char why[700]; /* a failure: what is wrong */
} run;

void run_init(run *r, const scenario *sc, uint64_t seed, int tde, const char *dir);
/* One life: until the steps are done or the power fails. fresh: the first one;
** armed: the power fails at this operation once it may. */
void run_life(run *r, int fresh, long armed);
/* After disk_export(): opens with the real VFS and compares. why is set when
** something is wrong. */
void run_verify(run *r);
/* Every connection. */
void run_close(run *r);

/* turns.c: how many connections take turns in a scenario. */
int turns_of(const scenario *sc);
/* A step of the one whose turn it is now. */
void turns_step(run *r, char letter);
/* Another life: all are opened before anybody reads, or one after the other; anyone
** may be the one that recovers. Sets run.stop when it fails. */
void turns_begin_life(run *r);
/* run_set_journal, for which others may be in the way. */
void turns_set_journal(run *r);
/* Is another connection in the way of this step? */
int turns_may_be_busy(const run *r);
/* Closes all but run.db, which is the caller's. */
void turns_close(run *r);

/* The job's last step makes a file, on a connection that is closed then. */
int run_ends(const scenario *sc);
/* A second key in the instance, for m. Returns an SQLite code. */
int run_make_keys(void);

/* For steps: an SQL text; stops the life when the power is gone, and sets why
** when it fails for another reason. */
int run_exec(run *r, sqlite3 *db, const char *fmt, ...);
void run_fail(run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void run_step(run *r, char letter);
/* Opens the database(s); real: on the unix VFS. */
int run_connect(run *r, int real);
/* A call failed: the outage, another connection's lock, or a finding. */
void run_failed(run *r, sqlite3 *db, int rc, const char *what);
/* A transaction of random changes on one connection. */
void run_transaction(run *r, sqlite3 *db, int changes, int longest, int end);
#define END_COMMIT 0
#define END_ROLLBACK 1
/* Its parts: NULL when it could not begin; changes go into that state, too. */
state *run_begin(run *r, sqlite3 *db);
void run_change(run *r, sqlite3 *db, state *s, int longest);
void run_commit(run *r, sqlite3 *db);
void run_rollback(run *r, sqlite3 *db);
/* Finds out in which state the databases are, and that it may be. */
int run_resolve(run *r);
void run_set_journal(run *r);
void run_make_schema(run *r);
/* On the open connection: integrity_check, and tde_verify where it can tell (in_use: a
** WAL's end is known). */
void run_check_whole(run *r, int in_use);

#endif
