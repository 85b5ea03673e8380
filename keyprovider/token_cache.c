/*
** token_cache.c: see token_cache.h.
**
** What must hold:
**  - At most one request for one token is under way in the process. Who took it
**    on (a claim) settles it in every case: with a token, with its failure, or
**    by giving up; then the others go on.
**  - A token goes into secret memory. It is in no message.
**  - A failure is given to those who waited for it, and to nobody later: the
**    next one asks again.
**  - A claim of a thread that a fork left behind counts for nothing.
*/
#include "token_cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"

#define LIFE_MAX 86400      /* seconds; a longer life is not believed */
#define RETRY_SECONDS 30    /* between renewals that fail while the old token serves */

typedef struct entry {
  uint8_t key[TDE_HASH_BYTES];
  char *text;                /* secret memory, or NULL */
  uint64_t serial;           /* of text */
  int64_t since, renew_at, expires_at;
  uint64_t claim;            /* number of the claim under way, 0: none */
  uint64_t claim_fork;
  int waiters;
  uint64_t failures;
  tde_status last;           /* of the last failure */
  uint64_t used;
  struct entry *next;
} entry;

static struct {
  pthread_mutex_t mutex;
  pthread_cond_t settled;
  pthread_once_t once;
  entry *first;
  int n;
  uint64_t clock; /* serials, claims, uses */
} cache = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void cond_make(void) {
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_cond_init(&cache.settled, &attr);
  pthread_condattr_destroy(&attr);
}

static void raw_lock(void) {
  pthread_mutex_lock(&cache.mutex);
}

static void cache_unlock(void) {
  pthread_mutex_unlock(&cache.mutex);
}

/* The waiters of the parent are not in the child. */
static void after_fork_child(void) {
  for (entry *e = cache.first; e != NULL; e = e->next) e->waiters = 0;
  cond_make();
  cache_unlock();
}

static void cache_once(void) {
  /* Secret memory has a lock that is taken below this one; its fork handlers
  ** must be registered first, so that a fork takes the two in the same order. */
  tde_secret_free(tde_secret_alloc(1));
  cond_make();
  pthread_atfork(raw_lock, cache_unlock, after_fork_child);
}

static void cache_lock(void) {
  pthread_once(&cache.once, cache_once);
  raw_lock();
}

/* Seconds that go on while the machine sleeps, as a token's life does. */
static int64_t now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_BOOTTIME, &t);
  return (int64_t)t.tv_sec;
}

static int claimed(const entry *e) {
  return e->claim != 0 && e->claim_fork == tde_fork_generation();
}

static void entry_forget(entry *e) {
  tde_secret_free(e->text);
  e->text = NULL;
  e->serial = 0;
  e->renew_at = e->expires_at = 0;
}

/* Makes room for one more; entries that somebody works on stay. */
static void evict(void) {
  entry **oldest = NULL;
  for (entry **p = &cache.first; *p != NULL; p = &(*p)->next) {
    if (claimed(*p) || (*p)->waiters > 0) continue;
    if (oldest == NULL || (*p)->used < (*oldest)->used) oldest = p;
  }
  if (cache.n < TDE_TOKENS_MAX || oldest == NULL) return;
  entry *e = *oldest;
  *oldest = e->next;
  entry_forget(e);
  free(e);
  cache.n--;
}

static entry *entry_of(const uint8_t key[TDE_HASH_BYTES], int make) {
  for (entry *e = cache.first; e != NULL; e = e->next) {
    if (memcmp(e->key, key, TDE_HASH_BYTES) == 0) return e;
  }
  if (!make) return NULL;
  evict();
  entry *e = calloc(1, sizeof *e);
  if (e == NULL) return NULL;
  memcpy(e->key, key, TDE_HASH_BYTES);
  e->next = cache.first;
  cache.first = e;
  cache.n++;
  return e;
}

void tde_token_drop_cache(void) {
  cache_lock();
  for (entry *e = cache.first; e != NULL; e = e->next) entry_forget(e);
  cache_unlock();
}

static tde_want_outcome take_text(tde_want *w, const entry *e, tde_status *st) {
  size_t n = strlen(e->text);
  w->text = tde_secret_alloc(n + 1);
  if (w->text == NULL) {
    tde_nomem(st);
    return TDE_WANT_FAILED;
  }
  memcpy(w->text, e->text, n + 1);
  w->serial = e->serial;
  w->since = e->since;
  return TDE_WANT_READY;
}

/* Waits until e's claim is settled, as long as our own operation has time.
** Returns TDE_WANT_FAILED with its failure, or TDE_WANT_READY: look again. */
static tde_want_outcome wait_for(entry *e, int64_t deadline, tde_status *st) {
  struct timespec until;
  uint64_t failures = e->failures, claim = e->claim;
  int rc = 0;
  int64_t left = deadline - tde_boot_ms();
  clock_gettime(CLOCK_MONOTONIC, &until);
  if (left > 0) {
    left += until.tv_nsec / 1000000;
    until.tv_sec += left / 1000;
    until.tv_nsec = left % 1000 * 1000000;
  }
  e->waiters++;
  while (e->claim == claim && rc == 0) {
    rc = pthread_cond_timedwait(&cache.settled, &cache.mutex, &until);
  }
  e->waiters--;
  if (e->failures != failures) {
    if (st != NULL) *st = e->last;
    return TDE_WANT_FAILED;
  }
  if (e->claim != claim) return TDE_WANT_READY;
  tde_fail(st, TDE_UNREACHABLE, "check the identity's endpoint and the network",
           "another connection's token request did not end in time");
  return TDE_WANT_FAILED;
}

tde_want_outcome tde_want_token(tde_want *w, int64_t deadline, tde_status *st) {
  tde_want_outcome result = TDE_WANT_READY;
  cache_lock();
  entry *e = entry_of(w->key, 1);
  if (e == NULL) {
    tde_nomem(st);
    result = TDE_WANT_FAILED;
  }
  while (result == TDE_WANT_READY && w->text == NULL) {
    int64_t now = now_s();
    e->used = ++cache.clock;
    if (e->text != NULL && (now < e->renew_at || (claimed(e) && now < e->expires_at))) {
      result = take_text(w, e, st);
    } else if (!claimed(e)) {
      e->claim = w->claim = ++cache.clock;
      e->claim_fork = tde_fork_generation();
      w->renewing = e->text != NULL && now < e->expires_at;
      result = TDE_WANT_LEAD;
    } else {
      result = wait_for(e, deadline, st);
    }
  }
  cache_unlock();
  return result;
}

tde_class tde_want_settle(tde_want *w, const char *text, size_t n, int64_t life, tde_status *st) {
  char *own = tde_secret_alloc(n + 1), *shared = tde_secret_alloc(n + 1);
  if (own == NULL || shared == NULL) {
    tde_secret_free(own);
    tde_secret_free(shared);
    return tde_nomem(st);
  }
  memcpy(own, text, n);
  memcpy(shared, text, n);
  tde_secret_free(w->text);
  w->text = own;
  if (life > LIFE_MAX) life = LIFE_MAX;
  w->since = now_s();
  cache_lock();
  entry *e = entry_of(w->key, 0);
  if (e != NULL && w->claim != 0 && e->claim == w->claim) {
    entry_forget(e);
    e->text = shared;
    shared = NULL;
    e->serial = w->serial = ++cache.clock;
    int64_t now = e->since = w->since;
    e->expires_at = now + life;
    e->renew_at = now + (life > 2 * TDE_TOKEN_EARLY ? life - TDE_TOKEN_EARLY : life / 2);
    e->claim = 0;
    pthread_cond_broadcast(&cache.settled);
  }
  w->claim = 0;
  cache_unlock();
  tde_secret_free(shared);
  return TDE_OK;
}

void tde_want_settle_failed(tde_want *w, const tde_status *st) {
  if (w->claim == 0) return;
  cache_lock();
  entry *e = entry_of(w->key, 0);
  if (e != NULL && e->claim == w->claim) {
    e->claim = 0;
    e->failures++;
    e->last = *st;
    if (e->text != NULL && tde_class_is_outage(st->code)) {
      int64_t at = now_s() + RETRY_SECONDS;
      e->renew_at = at < e->expires_at ? at : e->expires_at;
    }
    pthread_cond_broadcast(&cache.settled);
  }
  w->claim = 0;
  cache_unlock();
}

int tde_want_old(tde_want *w) {
  cache_lock();
  const entry *e = entry_of(w->key, 0);
  if (w->text == NULL && e != NULL && e->text != NULL && now_s() < e->expires_at) {
    take_text(w, e, NULL);
  }
  cache_unlock();
  return w->text != NULL;
}

void tde_want_drop(tde_want *w) {
  cache_lock();
  entry *e = entry_of(w->key, 0);
  if (e != NULL && w->serial != 0 && e->serial == w->serial) entry_forget(e);
  cache_unlock();
  tde_secret_free(w->text);
  w->text = NULL;
  w->serial = 0;
}

int tde_token_form(const char *text, size_t n) {
  if (n == 0 || n > TDE_TOKEN_TEXT_MAX) return 0;
  for (size_t i = 0; i < n; i++) {
    if (text[i] <= ' ' || text[i] > '~' || text[i] == '"' || text[i] == '\\') return 0;
  }
  return 1;
}

int64_t tde_token_seconds(const tde_json_span *v) {
  int64_t s = 0;
  if (v->n == 0 || v->n > 10) return -1;
  for (size_t i = 0; i < v->n; i++) {
    if (v->at[i] < '0' || v->at[i] > '9') return -1;
    s = s * 10 + (v->at[i] - '0');
  }
  return s;
}
