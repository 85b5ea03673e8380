/*
** vtab.c: makes scalar functions and table-valued functions of the views.
**
** A table is eponymous: SELECT ... FROM tde_keylist('current'). Its rows are the
** objects that the view builds when a query begins; a column is a member.
*/
#include <string.h>

#include "result.h"
#include "subject.h"
#include "views.h"

SQLITE_EXTENSION_INIT3

typedef struct view_table {
  sqlite3_vtab base;
  sqlite3 *db;
  const tde_view *view;
  int ncolumns, nargs;
  const char *names[32]; /* of all columns, arguments last; point into text */
  char *text;
} view_table;

typedef struct view_cursor {
  sqlite3_vtab_cursor base;
  tde_json *rows;
  size_t at;
} view_cursor;

/* Splits a comma-separated list in place; returns how many names follow. */
static int split(char *text, const char **names, int max) {
  int n = 0;

  for (char *p = text; *p && n < max; n++) {
    names[n] = p;
    p += strcspn(p, ",");
    if (*p) *p++ = 0;
  }
  return n;
}

/* How many arguments a view takes at most. */
static int most_args(const tde_view *v) {
  int n = v->args[0] != 0;

  for (const char *p = v->args; *p; p++) n += *p == ',';
  return n;
}

static int table_disconnect(sqlite3_vtab *t) {
  sqlite3_free(((view_table *)t)->text);
  sqlite3_free(t);
  return SQLITE_OK;
}

static int table_connect(sqlite3 *db, void *aux, int argc, const char *const *argv,
                         sqlite3_vtab **out, char **error) {
  const tde_view *view = aux;
  view_table *t = sqlite3_malloc64(sizeof(*t));
  sqlite3_str *sql = sqlite3_str_new(db);
  char *text;
  int rc = SQLITE_NOMEM;

  (void)argc;
  (void)argv;
  (void)error;
  if (t) {
    memset(t, 0, sizeof(*t));
    t->db = db;
    t->view = view;
    t->text = sqlite3_mprintf("%s%s%s", view->columns, view->args[0] ? "," : "", view->args);
  }
  if (t && t->text) {
    int n = split(t->text, t->names, 32);
    t->nargs = most_args(view);
    t->ncolumns = n - t->nargs;
    sqlite3_str_appendall(sql, "CREATE TABLE x(");
    for (int i = 0; i < n; i++) {
      sqlite3_str_appendf(sql, "%s\"%w\"%s", i ? ", " : "", t->names[i],
                          i >= t->ncolumns ? " HIDDEN" : "");
    }
    sqlite3_str_appendall(sql, ")");
  }
  text = sqlite3_str_finish(sql);
  if (t && t->text && text) rc = sqlite3_declare_vtab(db, text);
  sqlite3_free(text);
  if (rc) {
    if (t) (void)table_disconnect(&t->base);
    return rc;
  }
  /* Like the functions: a hostile schema gets nothing from it. */
  (void)sqlite3_vtab_config(db, SQLITE_VTAB_DIRECTONLY);
  *out = &t->base;
  return SQLITE_OK;
}

/* Arguments are equality constraints on the hidden columns. */
static int table_best_index(sqlite3_vtab *base, sqlite3_index_info *info) {
  const view_table *t = (view_table *)base;
  int next = 1, given = 0;

  for (int a = 0; a < t->nargs; a++) {
    for (int i = 0; i < info->nConstraint; i++) {
      if (info->aConstraint[i].iColumn != t->ncolumns + a ||
          info->aConstraint[i].op != SQLITE_INDEX_CONSTRAINT_EQ) {
        continue;
      }
      if (!info->aConstraint[i].usable) return SQLITE_CONSTRAINT;
      info->aConstraintUsage[i].argvIndex = next++;
      info->aConstraintUsage[i].omit = 1;
      given |= 1 << a;
      break;
    }
  }
  info->idxNum = given;
  info->estimatedCost = 100;
  info->estimatedRows = 10;
  return SQLITE_OK;
}

static int table_open(sqlite3_vtab *t, sqlite3_vtab_cursor **out) {
  view_cursor *c = sqlite3_malloc64(sizeof(*c));

  (void)t;
  if (!c) return SQLITE_NOMEM;
  memset(c, 0, sizeof(*c));
  *out = &c->base;
  return SQLITE_OK;
}

static int table_close(sqlite3_vtab_cursor *base) {
  view_cursor *c = (view_cursor *)base;
  tde_json_free(c->rows);
  sqlite3_free(c);
  return SQLITE_OK;
}

static int table_filter(sqlite3_vtab_cursor *base, int given, const char *ignored, int argc,
                        sqlite3_value **argv) {
  view_cursor *c = (view_cursor *)base;
  view_table *t = (view_table *)base->pVtab;
  const char *args[TDE_VIEW_ARGS_MAX] = {NULL};
  tde_status st;

  (void)ignored;
  tde_json_free(c->rows);
  c->rows = NULL;
  c->at = 0;
  tde_status_clear(&st);
  if (tde_args_check(argc, argv, &st) == SQLITE_OK) {
    for (int a = 0, i = 0; a < t->nargs && i < argc; a++) {
      if (given & (1 << a)) args[a] = (const char *)sqlite3_value_text(argv[i++]);
    }
    c->rows = t->view->rows(t->db, args, &st);
  }
  if (c->rows) return SQLITE_OK;
  if (!st.code || st.code == TDE_NOMEM) return SQLITE_NOMEM;
  sqlite3_free(base->pVtab->zErrMsg);
  base->pVtab->zErrMsg = tde_result_text(SQLITE_ERROR, &st);
  return tde_result_code(SQLITE_ERROR, &st);
}

static int table_next(sqlite3_vtab_cursor *base) {
  ((view_cursor *)base)->at++;
  return SQLITE_OK;
}

static int table_eof(sqlite3_vtab_cursor *base) {
  const view_cursor *c = (view_cursor *)base;
  return c->at >= tde_json_count(c->rows);
}

static int table_column(sqlite3_vtab_cursor *base, sqlite3_context *ctx, int i) {
  const view_cursor *c = (view_cursor *)base;
  const view_table *t = (view_table *)base->pVtab;
  const tde_json *row = tde_json_at(c->rows, c->at);
  const tde_json *v;

  if (i >= t->ncolumns) return SQLITE_OK; /* an argument: NULL */
  v = tde_json_get(row, t->names[i]);
  if (tde_json_is_text(v)) {
    sqlite3_result_text(ctx, tde_json_get_text(row, t->names[i]), -1, SQLITE_TRANSIENT);
  } else if (tde_json_is_int(v)) {
    sqlite3_result_int64(ctx, tde_json_get_int(row, t->names[i], 0));
  } else if (tde_json_is_bool(v)) {
    sqlite3_result_int(ctx, tde_json_get_bool(row, t->names[i], 0));
  }
  return SQLITE_OK;
}

static int table_rowid(sqlite3_vtab_cursor *base, sqlite3_int64 *out) {
  *out = (sqlite3_int64)((view_cursor *)base)->at + 1;
  return SQLITE_OK;
}

static const sqlite3_module module = {.iVersion = 0,
                                      .xConnect = table_connect,
                                      .xBestIndex = table_best_index,
                                      .xDisconnect = table_disconnect,
                                      .xOpen = table_open,
                                      .xClose = table_close,
                                      .xFilter = table_filter,
                                      .xNext = table_next,
                                      .xEof = table_eof,
                                      .xColumn = table_column,
                                      .xRowid = table_rowid};

/* The same list as JSON. */
static void scalar(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const tde_view *view = sqlite3_user_data(ctx);
  const char *args[TDE_VIEW_ARGS_MAX] = {NULL};
  tde_status st;
  tde_json *rows;
  int rc;

  if (argc > most_args(view)) {
    tde_result_arity(ctx, view->name);
    return;
  }
  tde_status_clear(&st);
  rc = tde_args_check(argc, argv, &st);
  if (rc) {
    tde_result_status(ctx, rc, &st);
    return;
  }
  for (int i = 0; i < argc; i++) args[i] = (const char *)sqlite3_value_text(argv[i]);
  rows = view->rows(sqlite3_context_db_handle(ctx), args, &st);
  if (!rows && st.code) {
    tde_result_status(ctx, SQLITE_ERROR, &st);
    return;
  }
  tde_result_json(ctx, rows, 0);
}

int tde_views_register(sqlite3 *db) {
  int rc = SQLITE_OK;

  for (int i = 0; i < tde_nviews && rc == SQLITE_OK; i++) {
    const tde_view *v = &tde_views[i];
    /* With any number of arguments: see functions.c. */
    rc = sqlite3_create_function_v2(db, v->name, -1, SQLITE_UTF8 | SQLITE_DIRECTONLY, (void *)v,
                                    scalar, NULL, NULL, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_create_module_v2(db, v->name, &module, (void *)v, NULL);
  }
  return rc;
}
