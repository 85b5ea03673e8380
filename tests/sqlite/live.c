/*
** live.c: the connections open in the test program.
**
** SQLite offers no list of them. An automatic extension sees each one open, and
** the destructor of a function registered on it sees it close. What must hold:
** a connection is in the list exactly while it may be used.
*/
#include "live.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "sqlite3.h"
#include "vfs/shim.h"

typedef struct live {
  struct live *next;
  sqlite3 *db;
} live;

static live *connections;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

static void never_called(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  (void)argc;
  (void)argv;
  sqlite3_result_null(ctx);
}

static void on_close(void *arg) {
  live **p, *entry = arg;

  pthread_mutex_lock(&guard);
  for (p = &connections; *p != NULL; p = &(*p)->next) {
    if (*p == entry) {
      *p = entry->next;
      break;
    }
  }
  pthread_mutex_unlock(&guard);
  free(entry);
}

static int on_open(sqlite3 *db, char **error, const void *api) {
  live *entry = malloc(sizeof(*entry));
  int rc;

  (void)error;
  (void)api;
  if (entry == NULL) return SQLITE_NOMEM;
  entry->db = db;
  pthread_mutex_lock(&guard);
  entry->next = connections;
  connections = entry;
  pthread_mutex_unlock(&guard);
  /* On failure SQLite calls the destructor itself. */
  rc = sqlite3_create_function_v2(db, "suite_live_connection", 0, SQLITE_UTF8, entry, never_called,
                                  NULL, NULL, on_close);
  return rc;
}

int suite_live_start(void) {
  return sqlite3_auto_extension((void (*)(void))on_open);
}

static int same_file(const char *a, const char *b) {
  struct stat x, y;
  return a != NULL && stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev &&
         x.st_ino == y.st_ino;
}

/* The journal first, as the shim's own order demands. */
static void flush_schema(sqlite3 *db, const char *schema, const char *path) {
  tde_file *f = NULL;

  if (sqlite3_file_control(db, schema, TDE_FCNTL_FILE, &f) != SQLITE_OK || f == NULL) return;
  if (f->plain || f->db->state != TDE_STATE_ONLINE || !same_file(f->path, path)) return;
  if (f->db->journal != NULL) (void)tde_sealed_flush(&f->db->journal->s);
  if (f->db->wal != NULL) (void)tde_sealed_flush(&f->db->wal->s);
  (void)tde_sealed_flush(&f->s);
}

void suite_live_flush(const char *path) {
  pthread_mutex_lock(&guard);
  for (live *entry = connections; entry != NULL; entry = entry->next) {
    for (int i = 0;; i++) {
      const char *schema = sqlite3_db_name(entry->db, i);
      if (schema == NULL) break;
      flush_schema(entry->db, schema, path);
    }
  }
  pthread_mutex_unlock(&guard);
}
