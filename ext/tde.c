/*
** tde.c: the extension's entry points.
**
** sqlite3_tde_init registers the VFS and, through sqlite3_auto_extension, the
** SQL functions on every connection of the process. It asks to stay loaded for
** good: connections and file handles hold pointers into this library. This is
** the only file with SQLITE_EXTENSION_INIT1.
*/
#include "tde.h"

#include <stdio.h>

#include "../keyprovider/http.h"
#include "../keyprovider/provider.h"
#include "../sql/attach.h"
#include "../sql/functions.h"
#include "../sql/progress.h"
#include "../sql/protector.h"
#include "../sql/status_fn.h"
#include "../vfs/tdevfs.h"
#include "../vfs/watch.h"
#include "wire.h"

#include "sqlite3ext.h"
SQLITE_EXTENSION_INIT1

#define EXPORT __attribute__((visibility("default")))

/* sqlite3_txn_state; make lint compares with what is called. */
#define OLDEST_SQLITE 3034000

EXPORT int sqlite3_tde_init(sqlite3 *db, char **error, const sqlite3_api_routines *api);
EXPORT int tde_default(sqlite3 *db, char **error, const sqlite3_api_routines *api);

/* Runs for each new connection; SQLite hands over its API. */
static int on_connection(sqlite3 *db, char **error, const sqlite3_api_routines *api) {
  (void)api;
  return tde_sql_on_open(db, error);
}

static int start(char **error) {
  tde_status st;
  int rc = SQLITE_OK;

  if (sqlite3_libversion_number() < OLDEST_SQLITE) {
    if (error) {
      *error = sqlite3_mprintf("tde: needs SQLite 3.34.0 or later; this is %s",
                               sqlite3_libversion());
    }
    return SQLITE_ERROR;
  }
  tde_status_clear(&st);
  tde_http_install();
  if (tde_providers_check(&st) != TDE_OK) {
    rc = SQLITE_ERROR;
  } else {
    rc = tde_vfs_register(&tde_wire, &st);
  }
  if (rc == SQLITE_OK) tde_watch_set_job(tde_protector_job);
  if (rc == SQLITE_OK) tde_vfs_ask_of_new(tde_attach_check);
  if (rc == SQLITE_OK) tde_vfs_ask_of_guest(tde_attach_vacuum_check);
  if (rc == SQLITE_OK) tde_vfs_answer_pragma(tde_sql_pragma);
  if (rc == SQLITE_OK) rc = sqlite3_auto_extension((void (*)(void))on_connection);
  if (rc && error && !*error) {
    *error = sqlite3_mprintf("tde: could not start: %s%s%s",
                             st.message[0] ? st.message : sqlite3_errstr(rc),
                             st.remedy[0] ? "; " : "", st.remedy);
  }
  return rc;
}

/* All here calls one SQLite, and the VFS stands in the list of one. A process may have several: a
** module of the host's with one compiled in, and another one's. */
static int is_our_host(const sqlite3_api_routines *api) {
#ifdef SQLITE_CORE
  (void)api;
  return 1;
#else
  static const sqlite3_api_routines *host;
  const sqlite3_api_routines *none = NULL;

  return __atomic_compare_exchange_n(&host, &none, api, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) ||
         none == api;
#endif
}

static int refuse_host(char **error, const sqlite3_api_routines *api) {
  if (error) {
    *error = api->mprintf("tde: this file serves another SQLite of the process already; give this "
                          "one (%s) a copy of the file, under another name (no link)",
                          api->libversion());
  }
  return SQLITE_ERROR;
}

EXPORT int sqlite3_tde_init(sqlite3 *db, char **error, const sqlite3_api_routines *api) {
  int rc;

  if (!is_our_host(api)) return refuse_host(error, api);
  SQLITE_EXTENSION_INIT2(api);
  (void)api;
  rc = start(error);
  if (rc == SQLITE_OK && db && !tde_sql_is_registered(db)) rc = tde_sql_register(db, error);
  return rc == SQLITE_OK ? SQLITE_OK_LOAD_PERMANENTLY : rc;
}

/* `.load ./tde tde_default`: the same, and "tde" becomes the default VFS. */
EXPORT int tde_default(sqlite3 *db, char **error, const sqlite3_api_routines *api) {
  int rc = sqlite3_tde_init(db, error, api);

  if (rc == SQLITE_OK_LOAD_PERMANENTLY && tde_vfs_make_default(1) != SQLITE_OK) {
    if (error) *error = sqlite3_mprintf("tde: could not become the default VFS");
    return SQLITE_ERROR;
  }
  return rc;
}

#ifdef SQLITE_CORE
EXPORT int tde_register(void) {
  int rc = sqlite3_initialize();
  return rc == SQLITE_OK ? start(NULL) : rc;
}
#else
EXPORT int tde_register(void) {
  /* Loaded as an extension: sqlite3_tde_init did it already. Without a host
  ** that handed over its API there is nothing to register with. */
  return sqlite3_api ? start(NULL) : SQLITE_MISUSE;
}
#endif

EXPORT int tde_make_default(int on) {
  int rc = tde_register();
  return rc == SQLITE_OK ? tde_vfs_make_default(on) : rc;
}

EXPORT void tde_set_progress(int (*callback)(void *ctx, const char *operation, const char *path,
                                             long long done, long long total),
                             void *ctx) {
  tde_progress_set(callback, ctx);
}
