/*
** openfiles.c: the main databases that are open through this VFS.
*/
#include "openfiles.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

#include "../ext/base/bytes.h"

SQLITE_EXTENSION_INIT3

#define BUCKETS 1024

static tde_file *buckets[BUCKETS];
static int own_bases; /* files whose lower VFS is not the default one */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t list_once = PTHREAD_ONCE_INIT;
/* It is asked about without the lock, and stays open meanwhile; one at a time. */
static const tde_file *asked;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;

static void before_fork(void) {
  pthread_mutex_lock(&list_lock);
}
static void after_fork(void) {
  pthread_mutex_unlock(&list_lock);
}
/* Who asked, or looks, is a thread of the parent. */
static void in_child(void) {
  asked = NULL;
  for (unsigned b = 0; b < BUCKETS; b++) {
    for (tde_file *f = buckets[b]; f; f = f->next_open) {
      if (f->looked_at) tde_file_leave(f);
      f->looked_at = 0;
    }
  }
  pthread_cond_init(&answered, NULL);
  pthread_mutex_unlock(&list_lock);
}
static void list_init(void) {
  (void)pthread_atfork(before_fork, after_fork, in_child);
}

static unsigned bucket_of(const char *path, size_t n) {
  uint32_t h = 2166136261u; /* FNV-1a */
  for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)path[i]) * 16777619u;
  return h % BUCKETS;
}

void tde_openfiles_add(tde_file *f) {
  unsigned b = bucket_of(f->path, strlen(f->path));

  pthread_once(&list_once, list_init);
  pthread_mutex_lock(&list_lock);
  f->next_open = buckets[b];
  if (f->next_open) f->next_open->prev_open = f;
  buckets[b] = f;
  if (f->lower_vfs != tde_base_vfs()) __atomic_add_fetch(&own_bases, 1, __ATOMIC_RELEASE);
  pthread_mutex_unlock(&list_lock);
}

void tde_openfiles_remove(tde_file *f) {
  pthread_mutex_lock(&list_lock);
  while (asked == f || f->looked_at) pthread_cond_wait(&answered, &list_lock);
  if (f->prev_open) {
    f->prev_open->next_open = f->next_open;
  } else {
    buckets[bucket_of(f->path, strlen(f->path))] = f->next_open;
  }
  if (f->next_open) f->next_open->prev_open = f->prev_open;
  if (f->lower_vfs != tde_base_vfs()) __atomic_sub_fetch(&own_bases, 1, __ATOMIC_RELEASE);
  pthread_mutex_unlock(&list_lock);
}

tde_file *tde_file_named(const char *filename) {
  tde_file *f;

  if (!filename) return NULL;
  pthread_mutex_lock(&list_lock);
  for (f = buckets[bucket_of(filename, strlen(filename))]; f; f = f->next_open) {
    if (f->path == filename) break; /* SQLite's own text, one for each open file */
  }
  pthread_mutex_unlock(&list_lock);
  return f;
}

int tde_openfiles_has(const char *path) {
  tde_file *f;

  pthread_mutex_lock(&list_lock);
  f = buckets[bucket_of(path, strlen(path))];
  while (f && strcmp(f->path, path) != 0) f = f->next_open;
  pthread_mutex_unlock(&list_lock);
  return f != NULL;
}

/* Length of the database's path in the name of a file that belongs to it. */
static size_t stem_of(const char *name) {
  static const char *const endings[] = {"-journal", "-wal", "-shm"};
  size_t n = strlen(name);
  const char *super;

  for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
    size_t m = strlen(endings[i]);
    if (n > m && strcmp(name + n - m, endings[i]) == 0) return n - m;
  }
  /* A super-journal: the path, "-mj" and digits (pager.c, vdbeCommit). */
  super = strstr(name, "-mj");
  for (const char *next = super; next; next = strstr(next + 1, "-mj")) super = next;
  return super ? (size_t)(super - name) : n;
}

/* The first open file of this path after `after`. The lock is held. */
static tde_file *find(const char *path, size_t n, const tde_file *after) {
  tde_file *f = after ? after->next_open : buckets[bucket_of(path, n)];

  while (f && (strncmp(f->path, path, n) != 0 || f->path[n] != 0)) f = f->next_open;
  return f;
}

/* The connection to f's path, from f on, that holds RESERVED or more. The lock is held;
** other connections may be about to open. */
static tde_file *writer_of(tde_file *f, const char *name, size_t n) {
  for (; f; f = find(name, n, f)) {
    const tde_db *db = __atomic_load_n(&f->db, __ATOMIC_ACQUIRE);
    if (db && __atomic_load_n(&db->lock, __ATOMIC_RELAXED) >= SQLITE_LOCK_RESERVED) return f;
  }
  return NULL;
}

/* SQLite keeps a database's file names in one block. Asked of the database's name, which is
** SQLite's own for certain: a log's is not if a shim above made it up. */
static int has_beside_it(const tde_file *f, const char *name) {
  return name == sqlite3_filename_journal(f->path) || name == sqlite3_filename_wal(f->path);
}

tde_file *tde_openfiles_owner(const char *name) {
  size_t n = name ? stem_of(name) : 0;
  tde_file *first, *f;

  if (!n || name[n] == 0) return NULL;
  pthread_mutex_lock(&list_lock);
  f = first = find(name, n, NULL);
  if (first && find(name, n, first)) {
    while (f && !has_beside_it(f, name)) f = find(name, n, f);
    /* Made up: then it is the one that writes. */
    if (!f) f = writer_of(first, name, n);
  }
  pthread_mutex_unlock(&list_lock);
  return f;
}

/* Its own thread is kept out meanwhile; where that is at work, it wipes by itself. */
static void wipe_idle(tde_file *f, const tde_keys *keys) {
  if (!tde_file_try_enter(f)) return;
  if (f->db && f->db->keys == keys && !tde_db_in_transaction(f->db)) tde_db_wipe(f->db);
  tde_file_leave(f);
}

void tde_openfiles_wipe(const tde_keys *keys, const char *path) {
  size_t n = path ? strlen(path) : 0;

  if (!path) return;
  pthread_mutex_lock(&list_lock);
  for (tde_file *f = find(path, n, NULL); f; f = find(path, n, f)) wipe_idle(f, keys);
  pthread_mutex_unlock(&list_lock);
}

static int is_one_of(char *const *texts, int n, const char *text) {
  int i = 0;

  while (i < n && strcmp(texts[i], text) != 0) i++;
  return i < n;
}

int tde_openfiles_instances(const char *path, char **instances, int n) {
  int have = 0;

  pthread_mutex_lock(&list_lock);
  for (unsigned b = 0; b < BUCKETS; b++) {
    for (tde_file *f = buckets[b]; f && have < n; f = f->next_open) {
      const tde_db *db = __atomic_load_n(&f->db, __ATOMIC_ACQUIRE);
      if (!db || !__atomic_load_n(&db->opened, __ATOMIC_ACQUIRE)) continue;
      if (__atomic_load_n(&db->lock, __ATOMIC_RELAXED) == SQLITE_LOCK_NONE &&
          strcmp(f->path, path) != 0) {
        continue;
      }
      if (!db->params.instance || is_one_of(instances, have, db->params.instance)) continue;
      instances[have] = sqlite3_mprintf("%s", db->params.instance);
      if (instances[have]) have++;
    }
  }
  pthread_mutex_unlock(&list_lock);
  return have;
}

int tde_openfiles_writable(const char *path, const char *instance) {
  size_t n = strlen(path);
  int found = 0;

  pthread_mutex_lock(&list_lock);
  for (tde_file *f = find(path, n, NULL); f && !found; f = find(path, n, f)) {
    const tde_db *db = __atomic_load_n(&f->db, __ATOMIC_ACQUIRE);
    found = db && __atomic_load_n(&db->opened, __ATOMIC_ACQUIRE) == 2 &&
            tde_same_text(db->params.instance, instance);
  }
  pthread_mutex_unlock(&list_lock);
  return found;
}

/* ---- the header, for the checks of a key ---- */

#define LOOK_TRIES 50 /* a connection is at work for less than a millisecond, but for a sync */

/* A connection whose thread is elsewhere, and is kept there; *busy: one is at work. The lock is
** held. */
static tde_file *idle_one(const char *path, const sqlite3_vfs *vfs, int *busy) {
  size_t n = strlen(path);

  for (tde_file *f = find(path, n, NULL); f; f = find(path, n, f)) {
    const tde_db *db = __atomic_load_n(&f->db, __ATOMIC_ACQUIRE);
    if (!db || !__atomic_load_n(&db->opened, __ATOMIC_ACQUIRE) || f->looked_at) continue;
    if (f->lower_vfs != vfs) continue;
    if (tde_file_try_enter(f)) return f;
    *busy = 1;
  }
  return NULL;
}

/* Its file system may hang: the lock is let go meanwhile. */
static int read_slots(tde_file *f, tde_slots *both) {
  tde_counters counters;
  int rc;

  memset(&counters, 0, sizeof(counters));
  f->looked_at = 1;
  pthread_mutex_unlock(&list_lock);
  rc = f->plain || tde_has_moved(f) ? SQLITE_NOTFOUND : tde_slots_read(f->lower, &counters, both);
  tde_file_leave(f);
  pthread_mutex_lock(&list_lock);
  f->looked_at = 0;
  pthread_cond_broadcast(&answered);
  return rc ? SQLITE_NOTFOUND : SQLITE_OK;
}

int tde_openfiles_slots(const char *path, const sqlite3_vfs *vfs, tde_slots *both) {
  struct timespec ms = {0, 1000000};

  for (int i = 0; i < LOOK_TRIES; i++) {
    int busy = 0, rc = SQLITE_NOTFOUND;
    tde_file *f;
    pthread_mutex_lock(&list_lock);
    f = idle_one(path, vfs, &busy);
    if (f) rc = read_slots(f, both);
    pthread_mutex_unlock(&list_lock);
    if (f || !busy) return rc;
    nanosleep(&ms, NULL);
  }
  return SQLITE_NOTFOUND;
}

/* Is f the first of its path in the list? */
static int is_first(const tde_file *f, const tde_file *bucket) {
  while (bucket != f && strcmp(bucket->path, f->path) != 0) bucket = bucket->next_open;
  return bucket == f;
}

/* Is this another file than the one of its name now? Its file system may hang: the lock is let go
** meanwhile. Nobody is asking. */
static int has_moved(const tde_file *f) {
  int moved;

  asked = f;
  pthread_mutex_unlock(&list_lock);
  moved = tde_has_moved(f);
  pthread_mutex_lock(&list_lock);
  asked = NULL;
  pthread_cond_broadcast(&answered);
  return moved;
}

static int any_moved(const char *path) {
  size_t n = strlen(path);
  int moved = 0;

  pthread_mutex_lock(&list_lock);
  while (asked) pthread_cond_wait(&answered, &list_lock);
  for (const tde_file *f = find(path, n, NULL); f && !moved; f = find(path, n, f)) {
    moved = has_moved(f);
  }
  pthread_mutex_unlock(&list_lock);
  return moved;
}

/* Puts the paths into out, or counts them alone. -1: no memory. The lock is held. */
static int list_paths(tde_open_database *out) {
  int n = 0;

  for (unsigned b = 0; b < BUCKETS; b++) {
    for (const tde_file *f = buckets[b]; f; f = f->next_open) {
      if (!is_first(f, buckets[b])) continue;
      if (out) {
        out[n].vfs = f->lower_vfs->zName;
        out[n].path = sqlite3_mprintf("%s", f->path);
        if (!out[n].path) return -1;
      }
      n++;
    }
  }
  return n;
}

int tde_open_databases(tde_open_database **out, int *n) {
  int count;

  pthread_mutex_lock(&list_lock);
  count = list_paths(NULL);
  *out = sqlite3_malloc64((sqlite3_uint64)(count + 1) * sizeof(**out));
  if (*out) {
    memset(*out, 0, (size_t)(count + 1) * sizeof(**out));
    *n = list_paths(*out);
  }
  pthread_mutex_unlock(&list_lock);
  for (int i = 0; *out && i < *n; i++) (*out)[i].moved = any_moved((*out)[i].path);
  if (*out && *n >= 0) return SQLITE_OK;
  tde_open_databases_free(*out, count);
  *out = NULL;
  *n = 0;
  return SQLITE_NOMEM;
}

void tde_open_databases_free(tde_open_database *list, int n) {
  for (int i = 0; list && i < n; i++) sqlite3_free(list[i].path);
  sqlite3_free(list);
}

sqlite3_vfs *tde_openfiles_vfs(const char *name) {
  sqlite3_vfs *vfs = tde_base_vfs();
  tde_file *f;
  size_t n;

  if (!name || !__atomic_load_n(&own_bases, __ATOMIC_ACQUIRE)) return vfs;
  n = stem_of(name);
  pthread_mutex_lock(&list_lock);
  f = find(name, n, NULL);
  if (f) vfs = f->lower_vfs;
  pthread_mutex_unlock(&list_lock);
  return vfs;
}
