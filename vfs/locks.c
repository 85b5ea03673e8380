/*
** locks.c: locks of the database file where threads of this process work on it.
**
** SQLite keeps the POSIX locks of all connections of a process in one list (os_unix.c). Two
** moments of it, looked at in 3.40.1, let one thread's connection take away what another's
** relies on. Plain SQLite has both; here they would cost an encrypted database what they cost
** a plain one, so they are closed:
**
**  - unixClose looks whether anybody has a lock on the file, and then calls close(2), which
**    drops all of the process's. Who gets a lock between the two has none. Mapped files are
**    unmapped there, too, which takes its time.
**  - unixLock, refused EXCLUSIVE, leaves the file PENDING. Who rolls back a hot journal asks
**    from SHARED; for the others it looks like a writer then, and the journal like that
**    writer's: they read, and write over, half a transaction.
**
** What must hold: every lower database file is closed by tde_main_close; every step from no
** lock to SHARED is tde_main_lock's; nobody asks the lower file whether it is reserved but
** tde_main_reserved. A connection of the same file by another VFS is not reached.
*/
#include <pthread.h>

#include "shim.h"

SQLITE_EXTENSION_INIT3

/* Held by who goes from no lock to SHARED (any number), and by who closes (alone). With a
** lock there is nothing to lose: the lower file stays open then. Readers would keep a closer
** waiting for good, so they wait for him; share() never nests. */
static pthread_rwlock_t closing;

/* Held while a refused EXCLUSIVE may be seen as PENDING. */
static pthread_mutex_t pending = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) {
  pthread_mutex_lock(&pending);
  pthread_rwlock_wrlock(&closing);
}
static void after_fork(void) {
  pthread_rwlock_unlock(&closing);
  pthread_mutex_unlock(&pending);
}
static void make_closing(void) {
  pthread_rwlockattr_t kind;

  pthread_rwlockattr_init(&kind);
#ifdef __GLIBC__
  pthread_rwlockattr_setkind_np(&kind, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
  pthread_rwlock_init(&closing, &kind);
  pthread_rwlockattr_destroy(&kind);
}

/* The child's only thread bears another number than the one that locked. */
static void in_child(void) {
#ifdef __SANITIZE_THREAD__
  pthread_rwlock_unlock(&closing); /* for its books: it knows nothing of a second init */
#endif
  make_closing();
  pthread_mutex_unlock(&pending);
}

static void init(void) {
  make_closing();
  (void)pthread_atfork(before_fork, after_fork, in_child);
}

/* Before either lock is taken. */
static void ready(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, init);
}

static int share(sqlite3_file *lower) {
  int rc;

  ready();
  pthread_rwlock_rdlock(&closing);
  rc = lower->pMethods->xLock(lower, SQLITE_LOCK_SHARED);
  pthread_rwlock_unlock(&closing);
  return rc;
}

/* From SHARED. */
static int exclude(sqlite3_file *lower) {
  int rc;

  ready();
  pthread_mutex_lock(&pending);
  rc = lower->pMethods->xLock(lower, SQLITE_LOCK_EXCLUSIVE);
  if (rc) (void)lower->pMethods->xUnlock(lower, SQLITE_LOCK_SHARED);
  pthread_mutex_unlock(&pending);
  return rc;
}

int tde_main_lock(sqlite3_file *lower, int before, int level) {
  if (before == SQLITE_LOCK_NONE && level == SQLITE_LOCK_SHARED) return share(lower);
  if (before == SQLITE_LOCK_SHARED && level == SQLITE_LOCK_EXCLUSIVE) return exclude(lower);
  return lower->pMethods->xLock(lower, level);
}

int tde_main_reserved(sqlite3_file *lower, int *reserved) {
  int rc;

  *reserved = 0;
  if (!lower->pMethods->xCheckReservedLock) return SQLITE_OK; /* memdb: no journal is hot there */
  ready();
  pthread_mutex_lock(&pending);
  rc = lower->pMethods->xCheckReservedLock(lower, reserved);
  pthread_mutex_unlock(&pending);
  return rc;
}

int tde_main_close(sqlite3_file *lower) {
  int rc;

  ready();
  pthread_rwlock_wrlock(&closing);
  rc = tde_lower_close(lower);
  pthread_rwlock_unlock(&closing);
  return rc;
}
