/*
** result.c: how the SQL functions answer; see result.h.
*/
#include "result.h"

#include <stdlib.h>

#include "../vfs/tdevfs.h"

SQLITE_EXTENSION_INIT3

char *tde_result_text(int rc, const tde_status *st) {
  char *message = tde_json_clean(st->message[0] ? st->message : sqlite3_errstr(rc));
  char *text = message ? sqlite3_mprintf("%s%s%s", message, st->remedy[0] ? "; " : "", st->remedy)
                       : NULL;

  free(message);
  return text;
}

int tde_result_code(int rc, const tde_status *st) {
  if (rc != SQLITE_OK && rc != SQLITE_ERROR) return rc;
  return st->code ? tde_class_rc(st->code) : SQLITE_ERROR;
}

void tde_result_status(sqlite3_context *ctx, int rc, const tde_status *st) {
  char *text = rc == SQLITE_NOMEM ? NULL : tde_result_text(rc, st);

  if (!text) {
    sqlite3_result_error_nomem(ctx);
    return;
  }
  sqlite3_result_error(ctx, text, -1);
  sqlite3_result_error_code(ctx, tde_result_code(rc, st));
  sqlite3_free(text);
}

void tde_result_arity(sqlite3_context *ctx, const char *function) {
  char *text = sqlite3_mprintf("wrong number of arguments to function %s()", function);

  if (text) {
    sqlite3_result_error(ctx, text, -1);
    sqlite3_free(text);
  } else {
    sqlite3_result_error_nomem(ctx);
  }
}

void tde_result_json(sqlite3_context *ctx, tde_json *json, int failed) {
  size_t n = 0;
  char *text = failed || !json ? NULL : tde_json_text(json, &n);

  tde_json_free(json);
  if (!text) {
    sqlite3_result_error_nomem(ctx);
    return;
  }
  sqlite3_result_text64(ctx, text, n, SQLITE_TRANSIENT, SQLITE_UTF8);
  free(text);
}
