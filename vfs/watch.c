/*
** watch.c: checks leases in the background; see watch.h.
**
** What must hold:
**  - no lock is held while a key service is asked or a file is read;
**  - before an entry is judged its header is read from disk: another process may
**    have given the database another protector, and taken the old one away;
**  - a file system that hangs keeps those checks alone whose files are in it: who looks at a
**    file holds no lane (lanes.h), and not all threads do at a time;
**  - the process may end at any moment: threads are told to stop, and waited for
**    as long as a request may take to notice it, before libraries clean up;
**  - signals are the host's: the threads block all of them;
**  - a fork does not catch a thread inside of a library: it waits until the
**    threads are outside, or have been waiting for the network for a while, where
**    they hold nothing. The child would find that library's locks taken for ever.
*/
#include "watch.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/log.h"
#include "lanes.h"
#include "openfiles.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

#define STACK_BYTES (1024 * 1024)
/* Looks again at least this often: a machine that slept wakes up to it. */
#define LONGEST_NAP_MS 30000
/* A thread beyond the first ends when another could have done its work for so long. */
#define IDLE_MS 10000
#define POLICY_EVERY_MS 5000
#define EXIT_WAIT_SECONDS 3
#define FORK_WAIT_MS 150
/* So many threads look at files at a time. Where a file system hangs they are kept, and others ask
** without a look. One more may be kept by a job: one is left. */
#define LOOKS (TDE_LANES - 2)

/* Read-locked by a thread at work; a fork write-locks it if it can. */
static pthread_rwlock_t at_work = PTHREAD_RWLOCK_INITIALIZER;
static _Thread_local int fork_owns;

static struct {
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  pthread_once_t once, work_once;
  int forbidden, stopping;
  int threads, waiting;
  int64_t wake_at[TDE_LANES]; /* of the threads that wait; 0: no such thread */
  int64_t soonest; /* the earliest due time that came up since a thread began to look for one */
  tde_watch_job job;
  int64_t job_since; /* 0: none runs */
  int reading;          /* a thread reads policies */
  int64_t looks[LOOKS]; /* since when a thread looks at a file; 0: none */
} watch = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT,
           .work_once = PTHREAD_ONCE_INIT, .soonest = INT64_MAX};

static _Thread_local int is_ours; /* a thread of the watch */

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
  pthread_mutex_lock(&watch.mutex);
}
static void after_fork(void) {
  pthread_mutex_unlock(&watch.mutex);
}
/* The parent's threads are not here. */
static void in_child(void) {
  cond_make();
  watch.threads = watch.waiting = 0;
  watch.job_since = 0;
  watch.reading = 0;
  memset(watch.wake_at, 0, sizeof(watch.wake_at));
  memset(watch.looks, 0, sizeof(watch.looks));
  pthread_mutex_unlock(&watch.mutex);
}

/* Of all that a fork does this comes first: a thread at work may need any of the locks that
** others take for the fork. So it is registered last, when there is a thread. */
static void wait_for_work(void) {
  struct timespec until = in_ms(CLOCK_REALTIME, FORK_WAIT_MS);

  fork_owns = pthread_rwlock_timedwrlock(&at_work, &until) == 0;
}
static void let_work(void) {
  if (fork_owns) pthread_rwlock_unlock(&at_work);
}
static void no_work_in_child(void) {
  (void)pthread_rwlock_init(&at_work, NULL);
}
static void work_init(void) {
  (void)pthread_atfork(wait_for_work, let_work, no_work_in_child);
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

/* Jobs run one at a time, since they may ask a key service of their own choice, which no lane is
** taken for. Where one goes on for long the others are left for after the next check. */
static int job_begin(void) {
  struct timespec ms = {0, 20 * 1000000};
  int mine, give_up;

  for (;;) {
    int64_t now = tde_now_ms();
    watch_lock();
    mine = watch.job && !watch.job_since;
    give_up = !watch.job || watch.stopping || now - watch.job_since >= TDE_LANE_STUCK_MS;
    if (mine) watch.job_since = now;
    pthread_mutex_unlock(&watch.mutex);
    if (mine || give_up) return mine;
    nanosleep(&ms, NULL);
  }
}

static void job_end(void) {
  watch_lock();
  watch.job_since = 0;
  pthread_mutex_unlock(&watch.mutex);
}

/* Which look of a thread's this is; -1: all that there may be go on for long. */
static int look_begin(void) {
  struct timespec ms = {0, 1000000};
  int mine, give_up;

  for (;;) {
    int64_t now = tde_now_ms();
    watch_lock();
    mine = -1;
    give_up = 1;
    for (int i = 0; i < LOOKS; i++) {
      if (!watch.looks[i]) mine = i;
      if (now - watch.looks[i] < TDE_LANE_STUCK_MS) give_up = 0;
    }
    if (mine >= 0) watch.looks[mine] = now;
    give_up |= watch.stopping;
    pthread_mutex_unlock(&watch.mutex);
    if (mine >= 0 || give_up) return mine;
    nanosleep(&ms, NULL);
  }
}

/* The header of its file, as tde_db_peek. */
static int look(const tde_key_params *params, tde_header *h) {
  int mine = look_begin(), rc;

  if (mine < 0) return TDE_CANTOPEN_NOW;
  rc = tde_db_peek(params->path, params->vfs, h);
  watch_lock();
  watch.looks[mine] = 0;
  pthread_mutex_unlock(&watch.mutex);
  return rc;
}

/* Looks at its file, and asks. params NULL: there is no memory to look. False: it was not asked. */
static int ask(tde_keys *k, const tde_key_params *params) {
  tde_header h;
  int rc = params ? SQLITE_NOTFOUND : SQLITE_NOMEM, back = 1;

  memset(&h, 0, sizeof(h));
  if (params && params->path) {
    tde_keyring_step_aside(k);
    rc = look(params, &h);
    back = tde_keyring_step_back(k);
  }
  if (back && (rc == SQLITE_NOMEM || rc == TDE_CANTOPEN_NOW)) {
    (void)tde_keyring_check_blind(k, &tde_source);
  } else if (back) {
    (void)tde_keyring_check(k, &tde_source, rc == SQLITE_OK ? &h : NULL);
  }
  tde_header_clear(&h);
  return back;
}

static void check(tde_keys *k) {
  uint8_t uuid[TDE_UUID_BYTES];
  tde_key_facts *facts = malloc(sizeof(*facts));
  tde_key_params params;
  int known = facts && tde_keys_about(k, uuid, facts, &params) == TDE_OK;
  int asked = ask(k, known ? &params : NULL);

  if (known) {
    tde_key_params_clear(&params);
    known = asked && tde_keys_live(k) && tde_keys_about(k, uuid, facts, &params) == TDE_OK;
  }
  if (known) {
    if (params.path && tde_openfiles_writable(params.path, params.instance) && job_begin()) {
      watch.job(uuid, facts, &params);
      job_end();
    }
    tde_key_params_clear(&params);
  }
  free(facts);
}

/* ---- threads ---- */

static int start_thread(void);

/* When the first of those that wait looks; INT64_MAX: none does in time. The clock that they nap by
** stands still while the machine sleeps: whose time is past may nap on. The lock is held. */
static int64_t first_look(int64_t now) {
  int64_t first = INT64_MAX;

  for (int i = 0; i < TDE_LANES; i++) {
    if (watch.wake_at[i] > now && watch.wake_at[i] < first) first = watch.wake_at[i];
  }
  return first;
}

/* Somebody is to look at this time. The lock is held. */
static void look_by(int64_t due) {
  if (due < watch.soonest) watch.soonest = due;
  if (watch.waiting > 0 && due < first_look(tde_now_ms())) pthread_cond_signal(&watch.wake);
}

/* Sleeps until something is due, a note, or the end, and at most for so long; the lock is held. */
static void nap(int64_t due, int64_t most_ms) {
  int64_t now = tde_now_ms(), ms;
  struct timespec t;
  int i = 0;

  if (watch.soonest < due) due = watch.soonest; /* came up after the search */
  ms = first_look(now) <= due ? most_ms : due - now; /* one that looks is enough */
  if (ms > most_ms) ms = most_ms;
  if (ms < 1) ms = 1;
  t = in_ms(CLOCK_MONOTONIC, ms);
  while (i < TDE_LANES - 1 && watch.wake_at[i]) i++;
  watch.waiting++;
  watch.wake_at[i] = now + ms;
  (void)pthread_cond_timedwait(&watch.wake, &watch.mutex, &t);
  watch.wake_at[i] = 0;
  watch.waiting--;
}

/* This thread may be kept waiting, for as long as the longest nap: another is to be there for
** what is due meanwhile. False: one is, and could have done what this one does. */
static int share_load(int64_t now, int64_t next) {
  int needed;

  watch_lock();
  needed = watch.waiting == 0;
  if (next < now + LONGEST_NAP_MS) {
    if (needed && watch.threads < TDE_LANES) (void)start_thread();
    look_by(next);
  }
  pthread_mutex_unlock(&watch.mutex);
  return needed;
}

/* Another process may have changed an instance's policy. Where there are many instances,
** some are looked at each time. One thread does that: an instance's directory may hang, too. */
static void refresh_policies(int64_t now) {
  static int64_t last;
  static unsigned next;
  int mine;

  watch_lock();
  mine = !watch.reading && now - last >= POLICY_EVERY_MS;
  if (mine) watch.reading = 1;
  pthread_mutex_unlock(&watch.mutex);
  if (!mine) return;
  pthread_rwlock_rdlock(&at_work);
  next = tde_keyring_refresh_policies(&tde_source, next);
  pthread_rwlock_unlock(&at_work);
  watch_lock();
  last = now;
  watch.reading = 0;
  pthread_mutex_unlock(&watch.mutex);
}

/* This process did: whose databases they are is not known, since an instance has many
** names. */
void tde_watch_policy_changed(void) {
  unsigned next = 0;

  do {
    next = tde_keyring_refresh_policies(&tde_source, next);
  } while (next);
}

static void serve(tde_keys *k, int ask) {
  pthread_rwlock_rdlock(&at_work);
  if (ask) {
    check(k);
  } else {
    (void)tde_keyring_pass(k, &tde_source);
  }
  pthread_rwlock_unlock(&at_work);
  tde_keyring_done(k);
}

/* Was the thread not needed for long? There is one that waits, which looks after what a note
** woke this one for. The lock is held. */
static int may_leave(int64_t idle_ms) {
  if (idle_ms < IDLE_MS || watch.waiting == 0) return 0;
  pthread_cond_signal(&watch.wake);
  return 1;
}

static void *run(void *arg) {
  int first = arg != NULL, ask, needed;
  int64_t next, now, idle, idle_since = tde_now_ms();

  is_ours = 1;
  for (;;) {
    tde_keys *k;
    watch_lock();
    if (watch.stopping) break;
    watch.soonest = INT64_MAX;
    pthread_mutex_unlock(&watch.mutex);
    now = tde_now_ms();
    k = tde_keyring_due(now, &next, &ask);
    if (k) {
      needed = share_load(now, next);
      serve(k, ask);
      if (needed) idle_since = tde_now_ms();
      continue;
    }
    refresh_policies(now);
    watch_lock();
    idle = now - idle_since;
    if (watch.stopping || (!first && may_leave(idle))) break;
    nap(next, first ? LONGEST_NAP_MS : idle < IDLE_MS ? IDLE_MS - idle : IDLE_MS);
    pthread_mutex_unlock(&watch.mutex);
  }
  watch.threads--;
  pthread_mutex_unlock(&watch.mutex);
  return NULL;
}

#ifdef SQLITE_CORE
/* A SQLite that is built for one thread (SQLITE_THREADSAFE=0) has none to link with, nor are they called there. */
#pragma weak sqlite3_mutex_alloc
#pragma weak sqlite3_mutex_free
#endif

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
  pthread_once(&watch.work_once, work_init);
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

/* Threads there are, but each may be kept waiting by now. */
static int all_at_work(int64_t due) {
  return !is_ours && watch.waiting == 0 && due < tde_now_ms() + LONGEST_NAP_MS;
}

void tde_watch_note(int64_t due, int start) {
  if (due == INT64_MAX) return;
  watch_lock();
  if (start && watch.threads < TDE_LANES && (watch.threads == 0 || all_at_work(due))) {
    (void)start_thread();
  }
  look_by(due);
  pthread_mutex_unlock(&watch.mutex);
}

/* Transactions on a database that stands in line kick each time: one look in so many ms. */
#define KICK_EVERY_MS 50

int tde_watch_kick(void) {
  static int64_t last;
  int64_t now = tde_now_ms();
  int there;

  watch_lock();
  there = watch.threads > 0 || start_thread();
  if (now - last >= KICK_EVERY_MS) {
    last = now;
    if (watch.threads < TDE_LANES && all_at_work(now)) (void)start_thread();
    look_by(now);
  }
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
