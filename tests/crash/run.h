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
  int exclusive;   /* locking_mode */
  int tde_only;    /* nothing to compare plain SQLite with */
  const char *first;
  const char *mix;
  int steps;
  int create_safe; /* the schema is made before the power may fail */
  int death;       /* not the power fails: the process dies */
} scenario;

extern const scenario scenarios[];
extern const int nscenarios;

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
  int floor, committed, top; /* states that may be found: see run_low() */
  int stop;                  /* the life is over */
  int tolerant;              /* errors are expected: rc is kept, why is not set */
  int rc;
  form main_form; /* of path[0] */
  int out_form;   /* -1: out must not be looked for; else form of out */
  int out_must;   /* out must be there */
  int out_from;   /* the oldest state that out may hold */
  int backup_of;  /* the state in the backup */
  /* The database's protector: before the last change, and after it if that was
  ** reported done (else it may be either). */
  const char *protector, *protector_next;
  char why[700];  /* a failure: what is wrong */
} run;

void run_init(run *r, const scenario *sc, uint64_t seed, int tde, const char *dir);
/* One life: until the steps are done or the power fails. fresh: the first one;
** armed: the power fails at this operation once it may. */
void run_life(run *r, int fresh, long armed);
/* After disk_export(): opens with the real VFS and compares. why is set when
** something is wrong. */
void run_verify(run *r);
void run_close(run *r);

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
/* A transaction of random changes on one connection. */
void run_transaction(run *r, sqlite3 *db, int changes, int longest, int end);
#define END_COMMIT 0
#define END_ROLLBACK 1
/* Finds out in which state the databases are, and that it may be. */
int run_resolve(run *r);
void run_set_journal(run *r);
void run_make_schema(run *r);
/* On the open connection: integrity_check, and tde_verify where it can tell. */
void run_check_whole(run *r);

#endif
