/*
** watch.c: checks leases in the background; see watch.h.
**
** What must hold:
**  - no lock is held while a key service is asked or a file is read;
**  - before an entry is judged its header is read from disk: another process may
**    have given the database another protector, and taken the old one away;
**  - the process may end at any moment: threads are told to stop, and waited for
**    as long as a request may take to notice it, before libraries clean up;
**  - signals are the host's: the threads block all of them;
**  - a fork does not catch a thread inside of a library: it waits until the
**    threads are outside, or have been waiting for the network for a while, where
**    they hold nothing. The child would find that library's locks taken for ever.
*/
#include "watch.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/log.h"
#include "openfiles.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

#define THREADS_MAX 4
#define STACK_BYTES (1024 * 1024)
/* Looks again at least this often: a machine that slept wakes up to it. */
#define LONGEST_NAP_MS 30000
/* A thread beyond the first ends when there was nothing to do for so long. */
#define IDLE_MS 10000
#define POLICY_EVERY_MS 5000
#define EXIT_WAIT_SECONDS 3
#define FORK_WAIT_MS 150

/* Read-locked by a thread at work; a fork write-locks it if it can. */
static pthread_rwlock_t at_work = PTHREAD_RWLOCK_INITIALIZER;
static _Thread_local int fork_owns;

static struct {
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  pthread_once_t once;
  int forbidden, stopping;
  int threads, waiting;
  uint64_t fork_generation; /* of the process whose threads they are */
  int64_t wake_at;          /* the earliest due time that a waiting thread knows */
  tde_watch_job job;
} watch = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void cond_make(void) {
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_cond_init(&watch.wake, &attr);
  pthread_condattr_destroy(&attr);
}

static struct timespec in_ms(clockid_t clock, int64_t ms) {
  struct timespec t;

  clock_gettime(clock, &t);
  t.tv_sec += ms / 1000;
  t.tv_nsec += (ms % 1000) * 1000000;
  if (t.tv_nsec >= 1000000000) {
    t.tv_sec++;
    t.tv_nsec -= 1000000000;
  }
  return t;
}

static void before_fork(void) {
  struct timespec until = in_ms(CLOCK_REALTIME, FORK_WAIT_MS);

  fork_owns = pthread_rwlock_timedwrlock(&at_work, &until) == 0;
  pthread_mutex_lock(&watch.mutex);
}
static void after_fork(void) {
  pthread_mutex_unlock(&watch.mutex);
  if (fork_owns) pthread_rwlock_unlock(&at_work);
}
/* The parent's threads are not here. */
static void in_child(void) {
  (void)pthread_rwlock_init(&at_work, NULL);
  cond_make();
  watch.threads = watch.waiting = 0;
  pthread_mutex_unlock(&watch.mutex);
}

static void at_exit(void) {
  struct timespec nap = {0, 10 * 1000000};
  int64_t until = tde_now_ms() + EXIT_WAIT_SECONDS * 1000;
  int left;

  pthread_mutex_lock(&watch.mutex);
  watch.stopping = 1;
  if (tde_source.stop) tde_source.stop(tde_source.ctx);
  pthread_cond_broadcast(&watch.wake);
  left = watch.threads;
  pthread_mutex_unlock(&watch.mutex);
  while (left > 0 && tde_now_ms() < until) {
    nanosleep(&nap, NULL);
    pthread_mutex_lock(&watch.mutex);
    left = watch.threads;
    pthread_mutex_unlock(&watch.mutex);
  }
}

static void watch_init(void) {
  cond_make();
  (void)pthread_atfork(before_fork, after_fork, in_child);
  (void)atexit(at_exit);
}

static void watch_lock(void) {
  pthread_once(&watch.once, watch_init);
  pthread_mutex_lock(&watch.mutex);
}

/* ---- one entry ---- */

static void check(tde_keys *k) {
  uint8_t uuid[TDE_UUID_BYTES];
  tde_key_facts *facts = malloc(sizeof(*facts));
  tde_key_params params;
  tde_header h;
  int known = facts && tde_keys_about(k, uuid, facts, &params) == TDE_OK, found = 0;

  memset(&h, 0, sizeof(h));
  if (known && params.path) found = tde_db_peek(params.path, params.vfs, &h) == SQLITE_OK;
  (void)tde_keyring_check(k, &tde_source, found ? &h : NULL);
  tde_header_clear(&h);
  if (known) {
    tde_key_params_clear(&params);
    known = tde_keys_live(k) && tde_keys_about(k, uuid, facts, &params) == TDE_OK;
  }
  if (known) {
    if (watch.job && params.path && tde_openfiles_writable(params.path, params.instance)) {
      watch.job(uuid, facts, &params);
    }
    tde_key_params_clear(&params);
  }
  free(facts);
}

/* ---- threads ---- */

static int start_thread(void);

/* Sleeps until `until`, a note, or the end; the lock is held. */
static void nap(int64_t until) {
  int64_t now = tde_now_ms(), ms = until - now;
  struct timespec t;

  if (ms > LONGEST_NAP_MS) ms = LONGEST_NAP_MS;
  if (ms < 1) ms = 1;
  t = in_ms(CLOCK_MONOTONIC, ms);
  watch.waiting++;
  watch.wake_at = until;
  (void)pthread_cond_timedwait(&watch.wake, &watch.mutex, &t);
  watch.waiting--;
}

/* One more thread where others' checks are due: this one may be kept waiting. */
static void share_load(int64_t now) {
  if (!tde_keyring_is_due(now)) return;
  watch_lock();
  if (watch.waiting == 0 && watch.threads < THREADS_MAX) (void)start_thread();
  pthread_mutex_unlock(&watch.mutex);
}

/* Another process may have changed an instance's policy. Where there are many instances,
** some are looked at each time. */
static void refresh_policies(int64_t now) {
  static _Atomic int64_t last;
  static _Atomic unsigned next;

  if (now - atomic_load(&last) < POLICY_EVERY_MS) return;
  atomic_store(&last, now);
  pthread_rwlock_rdlock(&at_work);
  atomic_store(&next, tde_keyring_refresh_policies(&tde_source, atomic_load(&next)));
  pthread_rwlock_unlock(&at_work);
}

/* This process did: whose databases they are is not known, since an instance has many
** names. */
void tde_watch_policy_changed(void) {
  unsigned next = 0;

  do {
    next = tde_keyring_refresh_policies(&tde_source, next);
  } while (next);
}

static void *run(void *arg) {
  int first = arg != NULL;
  int64_t idle_since = tde_now_ms();

  for (;;) {
    int64_t next, now = tde_now_ms();
    tde_keys *k;
    watch_lock();
    if (watch.stopping || (!first && now - idle_since > IDLE_MS)) break;
    pthread_mutex_unlock(&watch.mutex);
    k = tde_keyring_due(now, &next);
    if (k) {
      share_load(now);
      pthread_rwlock_rdlock(&at_work);
      check(k);
      pthread_rwlock_unlock(&at_work);
      tde_keyring_release(k);
      idle_since = tde_now_ms();
      continue;
    }
    refresh_policies(now);
    watch_lock();
    if (!watch.stopping) nap(first || next < now + IDLE_MS ? next : now + IDLE_MS);
    pthread_mutex_unlock(&watch.mutex);
  }
  watch.threads--;
  pthread_mutex_unlock(&watch.mutex);
  return NULL;
}

/* Does SQLite let two threads in? With SQLITE_CONFIG_SINGLETHREAD its mutexes are
** all one and the same dummy. */
static int sqlite_is_threadsafe(void) {
  sqlite3_mutex *a, *b;
  int differ;

  if (!sqlite3_threadsafe()) return 0;
  a = sqlite3_mutex_alloc(SQLITE_MUTEX_FAST);
  b = sqlite3_mutex_alloc(SQLITE_MUTEX_FAST);
  differ = a && b && a != b;
  sqlite3_mutex_free(a);
  sqlite3_mutex_free(b);
  return differ;
}

/* The lock is held. Returns 0 when there is none. */
static int start_thread(void) {
  static char the_first;
  pthread_attr_t attr;
  pthread_t id;
  sigset_t all, old;
  int rc;

  if (watch.forbidden || watch.stopping) return 0;
  if (!sqlite_is_threadsafe()) {
    watch.forbidden = 1;
    return 0;
  }
  if (pthread_attr_init(&attr)) return 0;
  (void)pthread_attr_setstacksize(&attr, STACK_BYTES);
  (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  rc = pthread_create(&id, &attr, run, watch.threads == 0 ? &the_first : NULL);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attr);
  if (rc) {
    tde_log(TDE_LOG_WARNING, "no thread to check keys in the background (%s): transactions do it",
            strerror(rc));
    return 0;
  }
  watch.threads++;
  return 1;
}

void tde_watch_note(int64_t due, int start) {
  if (due == INT64_MAX) return;
  watch_lock();
  if (watch.threads == 0 && start) (void)start_thread();
  if (watch.waiting > 0 && due < watch.wake_at) pthread_cond_signal(&watch.wake);
  pthread_mutex_unlock(&watch.mutex);
}

int tde_watch_kick(void) {
  int there;

  watch_lock();
  there = watch.threads > 0 || start_thread();
  if (watch.waiting > 0) pthread_cond_signal(&watch.wake);
  pthread_mutex_unlock(&watch.mutex);
  return there;
}

void tde_watch_set_job(tde_watch_job job) {
  watch_lock();
  watch.job = job;
  pthread_mutex_unlock(&watch.mutex);
}

void tde_watch_forbid(void) {
  watch_lock();
  watch.forbidden = 1;
  pthread_mutex_unlock(&watch.mutex);
}

int tde_watch_threads(void) {
  int n;
  watch_lock();
  n = watch.threads;
  pthread_mutex_unlock(&watch.mutex);
  return n;
}
