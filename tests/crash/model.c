/*
** model.c: what a database must hold; see model.h.
*/
#include "model.h"

#include <stdio.h>
#include <string.h>

#include "disk.h"

void model_body(uint32_t id, uint32_t txn, uint32_t len, uint8_t *out) {
  rng r = {((uint64_t)id << 32) ^ ((uint64_t)txn << 16) ^ len};

  (void)snprintf((char *)out, 25, "%s%04x%04x", MODEL_MARK, id & 0xffff, txn & 0xffff);
  for (uint32_t i = 24; i < len; i += 8) {
    uint64_t v = rng_next(&r);
    memcpy(out + i, &v, len - i < 8 ? len - i : 8);
  }
}

static int one_int(sqlite3 *db, const char *fmt, const char *schema, int *out) {
  char *sql = sqlite3_mprintf(fmt, schema);
  sqlite3_stmt *s = NULL;
  int rc = sql ? sqlite3_prepare_v2(db, sql, -1, &s, NULL) : SQLITE_NOMEM;

  *out = -1;
  if (rc == SQLITE_OK && (rc = sqlite3_step(s)) == SQLITE_ROW) {
    *out = sqlite3_column_int(s, 0);
  }
  if (rc == SQLITE_ROW || rc == SQLITE_DONE) rc = SQLITE_OK;
  (void)sqlite3_finalize(s);
  sqlite3_free(sql);
  return rc;
}

static int row_ok(sqlite3_stmt *s, const state *want, int id) {
  static uint8_t body[MODEL_BODY_MAX + 32];

  if (id < 0 || id >= MODEL_IDS || !want->txn[id]) return 0;
  if (sqlite3_column_int(s, 1) != (int)want->txn[id]) return 0;
  if (sqlite3_column_int(s, 2) != want->len[id]) return 0;
  if (sqlite3_column_bytes(s, 3) != want->len[id]) return 0;
  model_body((uint32_t)id, want->txn[id], want->len[id], body);
  return memcmp(sqlite3_column_blob(s, 3), body, want->len[id]) == 0;
}

static int compare_rows(sqlite3 *db, const char *schema, const state *want, int *rc, char *why,
                        size_t nwhy) {
  char *sql = sqlite3_mprintf("SELECT id, txn, len, body FROM %s.t ORDER BY id", schema);
  sqlite3_stmt *s = NULL;
  int next = 0, bad = 0;

  *rc = sql ? sqlite3_prepare_v2(db, sql, -1, &s, NULL) : SQLITE_NOMEM;
  sqlite3_free(sql);
  while (*rc == SQLITE_OK && !bad && sqlite3_step(s) == SQLITE_ROW) {
    int id = sqlite3_column_int(s, 0);
    while (next < id && next < MODEL_IDS && !want->txn[next]) next++;
    if (id != next || !row_ok(s, want, id)) {
      (void)snprintf(why, nwhy, "%s: row %d is not as it should be (expected: row %d of txn %u)",
                     schema, id, next, next < MODEL_IDS ? want->txn[next] : 0);
      bad = 1;
    }
    next++;
  }
  if (*rc == SQLITE_OK) *rc = sqlite3_finalize(s);
  if (*rc) return -1;
  while (!bad && next < MODEL_IDS && !want->txn[next]) next++;
  if (!bad && next < MODEL_IDS) {
    (void)snprintf(why, nwhy, "%s: row %d (of txn %u) is missing", schema, next, want->txn[next]);
    bad = 1;
  }
  return bad;
}

int model_compare(sqlite3 *db, const char *schema, const model *m, int ntxn, int *txn, int *rc,
                  char *why, size_t nwhy) {
  int tables;

  *rc = one_int(db, "SELECT count(*) FROM %s.sqlite_schema WHERE name='meta'", schema, &tables);
  if (*rc) return -1;
  *txn = 0;
  if (tables == 0) return 0;
  *rc = one_int(db, "SELECT txn FROM %s.meta", schema, txn);
  if (*rc) return -1;
  if (*txn < 1 || *txn > ntxn) {
    (void)snprintf(why, nwhy, "%s: meta.txn is %d; transactions 1..%d were begun", schema, *txn,
                   ntxn);
    return 1;
  }
  return compare_rows(db, schema, &m->after[*txn], rc, why, nwhy);
}
