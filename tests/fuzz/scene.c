/*
** scene.c: makes the scenes; see scene.h.
*/
#include "scene.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../ext/base/bytes.h"
#include "../../ext/base/secret.h"
#include "../../ext/tde.h"
#include "../../ext/wire.h"
#include "../../keyprovider/json.h"
#include "../../keyprovider/keydoc.h"
#include "../../vfs/tdevfs.h"

const char *const scene_file[SCENE_FILES] = {"/db", "/db-wal", "/db-journal"};

/* ---- keys ---- */

#define THUMB "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define WRAP(text)                                                                      \
  "{\"key_id\":\"local:smk\",\"version\":\"00112233445566778899aabbccddeeff00112233\"," \
  "\"type\":\"RSA-3072\",\"algorithm\":\"RSA-OAEP-256\",\"thumbprint\":\"" THUMB        \
  "\","                                                                                 \
  "\"wrapped\":\"" text "\",\"created\":1}"
#define EPOCH(number, text) "{\"epoch\":" number ",\"created\":1,\"wraps\":[" WRAP(text) "]}"
#define DOC(epoch, deks) \
  "{\"version\":1,\"mode\":\"inherit\",\"epoch\":" epoch ",\"deks\":[" deks "]}"

/* What stands for a wrapped DEK, by epoch. */
static const char *const wraps[SCENE_EPOCHS + 1] = {"", "REVLMQ", "REVLMg"};
static const char doc1[] = DOC("1", EPOCH("1", "REVLMQ"));
static const char doc2[] = DOC("2", EPOCH("1", "REVLMQ") "," EPOCH("2", "REVLMg"));

const uint8_t *scene_dek(uint32_t epoch) {
  static uint8_t dek[SCENE_EPOCHS + 1][TDE_KEY_BYTES];
  memset(dek[epoch], 0x40 + (int)epoch, TDE_KEY_BYTES);
  return dek[epoch];
}

/* Does this document have an entry for the epoch? */
static int names_epoch(const char *doc, size_t ndoc, int epoch) {
  char entry[40];
  int n = snprintf(entry, sizeof(entry), "{\"epoch\":%d,\"created\"", epoch);

  return memmem(doc, ndoc, entry, (size_t)n) != NULL;
}

void scene_header_key(const uint8_t uuid[TDE_UUID_BYTES], uint32_t epoch, const char *doc,
                      size_t ndoc, uint8_t out[TDE_KEY_BYTES]) {
  uint32_t current = epoch == 2 ? 2 : 1, other = 3 - current;
  fuzz_keys keys, others;
  uint8_t number[4];

  fuzz_derive(uuid, scene_dek(current), &keys);
  memcpy(out, keys.mac, TDE_KEY_BYTES);
  if (!names_epoch(doc, ndoc, (int)other)) return;
  fuzz_derive(uuid, scene_dek(other), &others);
  tde_put32le(number, other);
  fuzz_hmac(keys.mac, number, sizeof(number), others.mac, TDE_KEY_BYTES, out);
}

static tde_class fixed_create(void *ctx, const tde_key_params *params,
                              const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, char **doc,
                              size_t *ndoc, tde_status *st) {
  (void)ctx;
  (void)params;
  (void)uuid;
  (void)st;
  memcpy(dek, scene_dek(1), TDE_KEY_BYTES);
  *doc = strdup(doc1);
  *ndoc = sizeof(doc1) - 1;
  return *doc ? TDE_OK : TDE_NOMEM;
}

/* The number of the DEK that any wrap of this epoch holds; 0: none. */
static int find_wrap(const tde_json *root, uint32_t epoch) {
  const tde_json *deks = tde_json_get(root, "deks");

  for (size_t i = 0; i < tde_json_count(deks); i++) {
    const tde_json *dek = tde_json_at(deks, i), *list = tde_json_get(dek, "wraps");
    if (tde_json_get_int(dek, "epoch", 0) != epoch) continue;
    for (size_t k = 0; k < tde_json_count(list); k++) {
      const char *text = tde_json_get_text(tde_json_at(list, k), "wrapped");
      for (int e = 1; text && e <= SCENE_EPOCHS; e++) {
        if (strcmp(text, wraps[e]) == 0) return e;
      }
    }
  }
  return 0;
}

static tde_class fixed_unwrap(void *ctx, const tde_key_params *params,
                              const uint8_t uuid[TDE_UUID_BYTES], const char *doc, size_t ndoc,
                              uint32_t epoch, uint8_t *dek, tde_status *st) {
  tde_json *root = NULL;
  tde_keydoc *kd = NULL;
  tde_class c = tde_keydoc_parse(doc, ndoc, &kd, st);
  int e = 0;

  (void)ctx;
  (void)params;
  (void)uuid;
  tde_keydoc_free(kd);
  if (c) return c;
  FUZZ_ASSERT(tde_json_parse(doc, ndoc, "doc", &root, st) == TDE_OK);
  e = find_wrap(root, epoch);
  tde_json_free(root);
  if (!e) return tde_fail(st, TDE_WRONG_KEY, "none", "not a DEK that this key wrapped");
  memcpy(dek, scene_dek((uint32_t)e), TDE_KEY_BYTES);
  return TDE_OK;
}

/* ---- what was ever written ---- */

#define SEEN_SLOTS (1u << 16)
static uint64_t seen[SEEN_SLOTS];
static unsigned nseen;
static scene *building;

static uint64_t seen_key(const scene *s, tde_role role, uint64_t index, const uint8_t *p,
                         size_t n) {
  uint64_t place[3] = {(uint64_t)(s - scenes), (uint64_t)role, index};
  return fuzz_hash(fuzz_hash(n, place, sizeof(place)), p, n) | 1;
}

static uint64_t *seen_slot(uint64_t key) {
  unsigned i = (unsigned)(key >> 20) % SEEN_SLOTS;
  while (seen[i] && seen[i] != key) i = (i + 1) % SEEN_SLOTS;
  return &seen[i];
}

int scene_seen(const scene *s, tde_role role, uint64_t index, const uint8_t *p, size_t n) {
  return *seen_slot(seen_key(s, role, index, p, n)) != 0;
}

static void note(tde_role role, uint64_t index, const uint8_t *p, size_t n) {
  uint64_t key = seen_key(building, role, index, p, n), *slot = seen_slot(key);

  if (*slot) return;
  FUZZ_ASSERT(++nseen < SEEN_SLOTS / 2);
  *slot = key;
}

int scene_open_record(const scene *s, tde_role role, uint64_t i, const uint8_t *salt,
                      const uint8_t *record, uint32_t n, uint8_t *out) {
  uint32_t epoch = tde_unit_epoch(record);
  tde_unit_place at = {(uint8_t)role, i, role == TDE_ROLE_MAIN ? NULL : salt};
  tde_aead *aead;
  tde_class c;

  if (epoch < 1 || epoch > SCENE_EPOCHS) return 0;
  FUZZ_ASSERT(tde_aead_new(s->keys[epoch].role[role], NULL, &aead, NULL) == TDE_OK);
  c = tde_unit_open(aead, &at, record, n, out);
  tde_aead_free(aead);
  return c == TDE_OK;
}

/* Splits content that starts at byte `from` of the database into chunks. */
static void note_main(uint64_t from, const uint8_t *p, size_t n) {
  uint32_t chunk = building->chunk;
  for (size_t k = 0; k + chunk <= n; k += chunk) {
    note(TDE_ROLE_MAIN, (from + k) / chunk, p + k, chunk);
  }
}

/* The scene's identity, once its header is there. */
static int learn(const mem_file *f) {
  tde_header h;
  tde_slot_info info;
  int ok = f->size >= TDE_HEADER_BYTES && tde_slot_parse(f->data, &h, &info) == TDE_OK;

  if (!ok) return 0;
  if (memcmp(building->uuid, h.uuid, TDE_UUID_BYTES) != 0) {
    memcpy(building->uuid, h.uuid, TDE_UUID_BYTES);
    for (uint32_t e = 1; e <= SCENE_EPOCHS; e++)
      fuzz_derive(h.uuid, scene_dek(e), &building->keys[e]);
  }
  tde_header_clear(&h);
  return 1;
}

static tde_role role_of_name(const char *name) {
  if (strcmp(name, scene_file[SCENE_MAIN]) == 0) return TDE_ROLE_MAIN;
  return strcmp(name, scene_file[SCENE_WAL]) == 0 ? TDE_ROLE_WAL : TDE_ROLE_NONE;
}

static void on_write(mem_file *f, size_t at, size_t n) {
  tde_role role = role_of_name(f->name);
  tde_geometry g;
  tde_prefix p;
  uint8_t out[TDE_UNIT_MAX];
  const uint8_t *salt = NULL;
  uint64_t units, rest;

  if (role == TDE_ROLE_NONE || !learn(mem_find(scene_file[SCENE_MAIN], 0))) return;
  if (role == TDE_ROLE_WAL) {
    if (f->size < TDE_PREFIX_BYTES || tde_prefix_parse(f->data, role, &p) != TDE_PREFIX_OK) return;
    salt = p.salt;
    tde_geometry_init(&g, role, p.unit_size);
  } else {
    tde_geometry_init(&g, role, building->unit);
  }
  units = tde_units_in(&g, f->size, &rest);
  for (uint64_t i = 0; i < units; i++) {
    uint64_t where = tde_unit_physical(&g, i);
    uint32_t size = i ? g.unit : g.first;
    if (where + size + TDE_UNIT_OVERHEAD <= at || where >= at + n) continue;
    if (!scene_open_record(building, role, i, salt, f->data + where, size, out)) continue;
    if (role == TDE_ROLE_MAIN) {
      note_main(i * size, out, size);
      continue;
    }
    note(role, i, out, size);
    if (i) {
      note_main((uint64_t)(tde_get32be(out) - 1) * building->page, out + TDE_WAL_FRAME_HEAD,
                size - TDE_WAL_FRAME_HEAD);
    }
  }
}

/* ---- rows ---- */

#define ROW_SECRET UINT64_C(0x6d0f27bd9c2b9a13)

static int64_t row_mac(int64_t id, int64_t v, const char *data, size_t n) {
  int64_t head[2] = {id, v};
  return (int64_t)fuzz_hash(fuzz_hash(ROW_SECRET, head, sizeof(head)), data, n);
}

static uint64_t weigh(int64_t mac) {
  return fuzz_hash(7, &mac, sizeof(mac));
}

uint64_t scene_row(int64_t id, int64_t v, const char *data) {
  return weigh(row_mac(id, v, data, strlen(data)));
}

static int read_schema(sqlite3 *db, uint64_t *state, int *n) {
  sqlite3_stmt *q = NULL;
  int rc = sqlite3_prepare_v2(db, "SELECT type, name, tbl_name, sql FROM sqlite_schema", -1, &q,
                              NULL);

  *n = 0;
  *state = 0;
  while (rc == SQLITE_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
    uint64_t h = 11;
    for (int i = 0; i < 4; i++) {
      const char *text = (const char *)sqlite3_column_text(q, i);
      h = fuzz_hash(h + (uint64_t)i, text ? text : "", text ? strlen(text) : 0);
    }
    *state += h;
    ++*n;
    rc = SQLITE_OK;
  }
  sqlite3_finalize(q);
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

int scene_read(sqlite3 *db, int trusting, uint64_t *state) {
  sqlite3_stmt *q = NULL;
  int n, rc = read_schema(db, state, &n);

  if (rc || n == 0) return rc;
  rc = sqlite3_prepare_v2(db, "SELECT id, v, mac, data FROM t", -1, &q, NULL);
  while (rc == SQLITE_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
    const char *data = (const char *)sqlite3_column_text(q, 3);
    int64_t mac = sqlite3_column_int64(q, 2);
    size_t len = (size_t)sqlite3_column_bytes(q, 3);
    if (!trusting) {
      FUZZ_ASSERT(data && mac == row_mac(sqlite3_column_int64(q, 0), sqlite3_column_int64(q, 1),
                                         data, len));
    }
    *state += weigh(mac);
    rc = SQLITE_OK;
  }
  sqlite3_finalize(q);
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static int sum_pairs(sqlite3 *db, const char *sql, uint64_t *sum) {
  sqlite3_stmt *q = NULL;
  int rc = sqlite3_prepare_v2(db, sql, -1, &q, NULL);

  *sum = 0;
  while (rc == SQLITE_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
    int64_t pair[2] = {sqlite3_column_int64(q, 0), sqlite3_column_int64(q, 1)};
    *sum += fuzz_hash(3, pair, sizeof(pair));
    rc = SQLITE_OK;
  }
  sqlite3_finalize(q);
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

int scene_index_agrees(sqlite3 *db) {
  uint64_t table, index;

  if (sum_pairs(db, "SELECT id, v FROM t NOT INDEXED", &table) ||
      sum_pairs(db, "SELECT id, v FROM t INDEXED BY tv ORDER BY v", &index)) {
    return -1;
  }
  return table == index;
}

int scene_insert(sqlite3 *db, int64_t id, int64_t v, const char *data) {
  sqlite3_stmt *q = NULL;
  int rc = sqlite3_prepare_v2(db, "INSERT OR REPLACE INTO t VALUES(?, ?, ?, ?)", -1, &q, NULL);

  if (rc == SQLITE_OK) {
    sqlite3_bind_int64(q, 1, id);
    sqlite3_bind_int64(q, 2, v);
    sqlite3_bind_int64(q, 3, row_mac(id, v, data, strlen(data)));
    sqlite3_bind_text(q, 4, data, -1, SQLITE_TRANSIENT);
    (void)sqlite3_step(q);
    rc = sqlite3_finalize(q);
  }
  return rc;
}

/* ---- building ---- */

static void must(sqlite3 *db, const char *sql) {
  FUZZ_ASSERT(sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK);
}

int scene_open(int flags, sqlite3 **db) {
  return sqlite3_open_v2("file:/db?vfs=tde", db, flags | SQLITE_OPEN_URI, NULL);
}

static sqlite3 *open_new(const char *setup) {
  sqlite3 *db;

  FUZZ_ASSERT(scene_open(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &db) == SQLITE_OK);
  must(db, setup);
  return db;
}

static void note_state(sqlite3 *db) {
  scene *s = building;

  FUZZ_ASSERT(s->nstates < SCENE_STATES);
  FUZZ_ASSERT(scene_read(db, 0, &s->state[s->nstates]) == SQLITE_OK);
  s->nstates++;
}

static void put_rows(sqlite3 *db, int txn, int n) {
  char data[128];

  for (int i = 0; i < n; i++) {
    int id = (txn * 7 + i * 3) % 60;
    (void)sqlite3_snprintf(sizeof(data), data, MEM_MARK "%d.%d.%.*c", txn, id, 40 + id % 30, 'x');
    FUZZ_ASSERT(scene_insert(db, id, txn * 100 + i, data) == SQLITE_OK);
  }
}

static void transactions(sqlite3 *db, int from, int to) {
  for (int k = from; k < to; k++) {
    must(db, "BEGIN");
    put_rows(db, k, 12);
    must(db, "COMMIT");
    note_state(db);
  }
}

static void make_table(sqlite3 *db) {
  must(db,
       "CREATE TABLE t(id INTEGER PRIMARY KEY, v INT, mac INT, data TEXT);"
       "CREATE INDEX tv ON t(v)");
  note_state(db);
}

static void keep(scene_image *to) {
  for (int i = 0; i < SCENE_FILES; i++) {
    mem_file *f = mem_find(scene_file[i], 0);
    free(to[i].data);
    memset(&to[i], 0, sizeof(to[i]));
    if (!f) continue;
    to[i].exists = 1;
    to[i].size = f->size;
    to[i].data = malloc(f->size + 1);
    FUZZ_ASSERT(to[i].data != NULL);
    if (f->size) memcpy(to[i].data, f->data, f->size);
  }
}

static void build_clean(scene *s) {
  sqlite3 *db = open_new("PRAGMA page_size=1024");

  make_table(db);
  transactions(db, 0, 2);
  keep(s->older);
  transactions(db, 2, 5);
  sqlite3_close(db);
  keep(s->now);
  s->first = s->nstates - 1;
}

/* A WAL with live frames, and behind them those of an older generation. */
static void build_wal(scene *s) {
  sqlite3 *db = open_new(
      "PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");

  make_table(db);
  transactions(db, 0, 5);
  keep(s->older);
  must(db, "PRAGMA wal_checkpoint(RESTART)");
  s->first = s->nstates - 1;
  transactions(db, 5, 8);
  keep(s->now);
  sqlite3_close(db);
}

/* Leaves the files as they are in a transaction whose pages have begun to go out, which has
** new rows and changes all short ones. */
static void die_in_transaction(scene *s, sqlite3 *db, int rows) {
  must(db, "BEGIN");
  put_rows(db, 9, rows);
  must(db, "UPDATE t SET v = v + 1000, mac = rowmac(id, v + 1000, data) WHERE id < 500");
  keep(s->now);
  must(db, "ROLLBACK");
  sqlite3_close(db);
  s->first = s->nstates - 1;
  s->hot = 1;
}

/* The process died in a transaction. */
static void build_hot(scene *s) {
  sqlite3 *db = open_new("PRAGMA page_size=1024; PRAGMA cache_size=2");

  make_table(db);
  transactions(db, 0, 2);
  keep(s->older);
  transactions(db, 2, 4);
  die_in_transaction(s, db, 30);
  FUZZ_ASSERT(s->now[SCENE_JOURNAL].size > 1024);
}

/* Pages smaller than a unit, the double-write areas in use. */
static void build_guard(scene *s) {
  sqlite3 *db = open_new("PRAGMA page_size=4096");

  make_table(db);
  transactions(db, 0, 2);
  must(db, "PRAGMA page_size=512; VACUUM; PRAGMA cache_size=2");
  keep(s->older);
  transactions(db, 2, 4);
  die_in_transaction(s, db, 20);
}

/* A journal that is void: journal_mode=PERSIST after the commit. */
static void build_persist(scene *s) {
  sqlite3 *db = open_new("PRAGMA page_size=2048; PRAGMA journal_mode=PERSIST");

  make_table(db);
  transactions(db, 0, 3);
  keep(s->older);
  transactions(db, 3, 5);
  sqlite3_close(db);
  keep(s->now);
  s->first = s->nstates - 1;
  FUZZ_ASSERT(s->now[SCENE_JOURNAL].size > 0);
}

/* Puts the second DEK epoch into the header, as a key rotation would. */
static void add_epoch(void) {
  mem_file *f = mem_find(scene_file[SCENE_MAIN], 0);
  tde_header h[2];
  tde_slot_info info;
  int newest;
  char doc[sizeof(doc2)];
  uint8_t key[TDE_KEY_BYTES];

  for (int i = 0; i < 2; i++) {
    FUZZ_ASSERT(tde_slot_parse(f->data + i * TDE_SLOT_STRIDE, &h[i], &info) == TDE_OK);
  }
  newest = h[1].sequence > h[0].sequence;
  memcpy(doc, doc2, sizeof(doc2));
  free(h[newest].doc);
  h[newest].doc = doc;
  h[newest].ndoc = sizeof(doc2) - 1;
  h[newest].epoch = 2;
  h[newest].sequence++;
  scene_header_key(h[newest].uuid, 2, doc, h[newest].ndoc, key);
  FUZZ_ASSERT(tde_slot_build(&h[newest], key, f->data + (size_t)!newest * TDE_SLOT_STRIDE) ==
              TDE_OK);
  h[newest].doc = NULL;
  tde_header_clear(&h[0]);
  tde_header_clear(&h[1]);
}

/* Units of two DEK epochs. */
static void build_epochs(scene *s) {
  sqlite3 *db = open_new("PRAGMA page_size=1024");

  make_table(db);
  transactions(db, 0, 3);
  sqlite3_close(db);
  keep(s->older);
  add_epoch();
  FUZZ_ASSERT(scene_open(SQLITE_OPEN_READWRITE, &db) == SQLITE_OK);
  transactions(db, 3, 5);
  sqlite3_close(db);
  keep(s->now);
  s->first = s->nstates - 1;
}

/* A header, and no page yet. */
static void build_empty(scene *s) {
  sqlite3 *db = open_new("PRAGMA page_size=4096; BEGIN IMMEDIATE; ROLLBACK");

  sqlite3_close(db);
  keep(s->older);
  keep(s->now);
  s->state[0] = STATE_EMPTY;
  s->nstates = 1;
}

/* Pages of several units. */
static void build_large(scene *s) {
  sqlite3 *db = open_new(
      "PRAGMA page_size=16384; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");

  make_table(db);
  transactions(db, 0, 1);
  must(db, "PRAGMA wal_checkpoint(TRUNCATE)");
  keep(s->older);
  s->first = s->nstates - 1;
  transactions(db, 1, 3);
  keep(s->now);
  sqlite3_close(db);
}

/* The same without a WAL; the file's last page holds rows. */
static void build_pages(scene *s) {
  sqlite3 *db = open_new("PRAGMA page_size=8192");

  make_table(db);
  transactions(db, 0, 1);
  keep(s->older);
  transactions(db, 1, 6);
  must(db, "BEGIN");
  for (int id = 100; id < 150; id++) {
    FUZZ_ASSERT(scene_insert(db, id, id,
                             MEM_MARK "to fill pages: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx") ==
                SQLITE_OK);
  }
  must(db, "COMMIT");
  note_state(db);
  sqlite3_close(db);
  keep(s->now);
  s->first = s->nstates - 1;
}

/* A row that ends in pages of its own: zeros in place of the last would go unnoticed,
** but for the row's checksum. */
static void long_row(sqlite3 *db, int id, int n) {
  char data[4000];

  (void)sqlite3_snprintf(sizeof(data), data, MEM_MARK "long %d %.*c", id, n, 'x');
  must(db, "BEGIN");
  FUZZ_ASSERT(scene_insert(db, id, id, data) == SQLITE_OK);
  must(db, "COMMIT");
  note_state(db);
}

/* Such rows at the end of the file, and behind them, in the WAL alone, others. */
static void build_long_wal(scene *s) {
  sqlite3 *db = open_new(
      "PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");

  make_table(db);
  transactions(db, 0, 1);
  keep(s->older);
  long_row(db, 501, 3000);
  must(db, "PRAGMA wal_checkpoint(TRUNCATE)");
  s->first = s->nstates - 1;
  transactions(db, 1, 2);
  long_row(db, 502, 1000);
  keep(s->now);
  sqlite3_close(db);
}

/* Such rows at the end of the file, below a hot journal. */
static void build_long_hot(scene *s) {
  sqlite3 *db = open_new("PRAGMA page_size=512; PRAGMA cache_size=2");

  make_table(db);
  transactions(db, 0, 2);
  keep(s->older);
  long_row(db, 501, 3000);
  die_in_transaction(s, db, 30);
}

scene scenes[] = {
    {.name = "clean", .build = build_clean, .page = 1024, .unit = 1024, .chunk = 1024},
    {.name = "wal", .build = build_wal, .page = 512, .unit = 512, .chunk = 512},
    {.name = "hot", .build = build_hot, .page = 1024, .unit = 1024, .chunk = 1024},
    {.name = "guard", .build = build_guard, .page = 512, .unit = 4096, .chunk = 512},
    {.name = "persist", .build = build_persist, .page = 2048, .unit = 2048, .chunk = 2048},
    {.name = "epochs", .build = build_epochs, .page = 1024, .unit = 1024, .chunk = 1024},
    {.name = "empty", .build = build_empty, .page = 4096, .unit = 4096, .chunk = 4096},
    {.name = "large", .build = build_large, .page = 16384, .unit = 4096, .chunk = 4096},
    {.name = "pages", .build = build_pages, .page = 8192, .unit = 4096, .chunk = 4096},
    {.name = "long-wal", .build = build_long_wal, .page = 512, .unit = 512, .chunk = 512},
    {.name = "long-hot", .build = build_long_hot, .page = 512, .unit = 512, .chunk = 512},
};
const int scene_count = sizeof(scenes) / sizeof(scenes[0]);

/* ---- set-up ---- */

static void sql_rowmac(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *data = (const char *)sqlite3_value_text(argv[2]);

  (void)argc;
  sqlite3_result_int64(ctx, row_mac(sqlite3_value_int64(argv[0]), sqlite3_value_int64(argv[1]),
                                    data ? data : "", (size_t)sqlite3_value_bytes(argv[2])));
}

static int on_connection(sqlite3 *db, char **error, const void *api) {
  (void)error;
  (void)api;
  return sqlite3_create_function(db, "rowmac", 3, SQLITE_UTF8, NULL, sql_rowmac, NULL, NULL);
}

int scene_healed;

/* No log line may show what a row holds. */
static void on_log(void *ctx, int code, const char *line) {
  (void)ctx;
  if (strstr(line, "free pages that a crash had torn")) scene_healed = 1;
  if (getenv("TDE_FUZZ_TRACE")) fprintf(stderr, "(%d) %s\n", code, line);
  FUZZ_ASSERT(strstr(line, MEM_MARK) == NULL);
}

void scene_restore(const scene *s) {
  mem_reset();
  scene_healed = 0;
  for (int i = 0; i < SCENE_FILES; i++) {
    mem_file *f;
    if (!s->now[i].exists) continue;
    f = mem_find(scene_file[i], 1);
    FUZZ_ASSERT(mem_resize(f, s->now[i].size) == 0);
    if (f->size) memcpy(f->data, s->now[i].data, f->size);
  }
}

static void parse_slots(scene *s) {
  tde_slot_info info;

  for (int i = 0; i < 2; i++) {
    (void)tde_slot_parse(s->now[SCENE_MAIN].data + (size_t)i * TDE_SLOT_STRIDE, &s->slot[i], &info);
  }
}

void scene_setup(void) {
  tde_key_source fixed = tde_wire;

  fixed.create = fixed_create;
  fixed.unwrap = fixed_unwrap;

  FUZZ_ASSERT(sqlite3_config(SQLITE_CONFIG_LOG, on_log, NULL) == SQLITE_OK);
  /* For speed: there is one thread. */
  FUZZ_ASSERT(sqlite3_config(SQLITE_CONFIG_SINGLETHREAD) == SQLITE_OK);
  FUZZ_ASSERT(sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0) == SQLITE_OK);
  FUZZ_ASSERT(sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 512, 20) == SQLITE_OK);
  FUZZ_ASSERT(sqlite3_initialize() == SQLITE_OK);
  mem_register();
  FUZZ_ASSERT(tde_vfs_register(&fixed, NULL) == SQLITE_OK);
  FUZZ_ASSERT(tde_register() == SQLITE_OK);
  FUZZ_ASSERT(sqlite3_auto_extension((void (*)(void))on_connection) == SQLITE_OK);
  for (int i = 0; i < scene_count; i++) {
    mem_reset();
    fuzz_random_seed((uint64_t)i + 1);
    building = &scenes[i];
    mem_on_write = on_write;
    scenes[i].build(&scenes[i]);
    mem_on_write = NULL;
    (void)learn(mem_find(scene_file[SCENE_MAIN], 0));
    parse_slots(&scenes[i]);
    for (int k = scenes[i].first; getenv("TDE_FUZZ_TRACE") && k < scenes[i].nstates; k++) {
      fprintf(stderr, "%s: state %d %016llx\n", scenes[i].name, k,
              (unsigned long long)scenes[i].state[k]);
    }
  }
}
