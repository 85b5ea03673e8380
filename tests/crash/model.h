/*
** model.h: what a database must hold.
**
** A transaction n changes some rows and sets meta.txn to n. The model keeps
** the rows after each transaction. A row's body follows from its id, its
** transaction and its length, so a database is compared byte for byte with the
** state that its meta.txn names: a half transaction can not pass.
*/
#ifndef CRASH_MODEL_H
#define CRASH_MODEL_H

#include <sqlite3.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_IDS 200
#define MODEL_TXNS 80
#define MODEL_BODY_MAX 20000
/* Begins each body: it must never be met in a file below the shim. */
#define MODEL_MARK "Plaintext-Marker"

typedef struct state {
  uint32_t txn[MODEL_IDS]; /* 0: no such row */
  uint16_t len[MODEL_IDS];
} state;

typedef struct model {
  state after[MODEL_TXNS + 1]; /* [0]: nothing at all */
} model;

#define MODEL_SCHEMA(s)                                      \
  "CREATE TABLE " s                                          \
  ".t(id INTEGER PRIMARY KEY, txn INT, len INT, body BLOB);" \
  "CREATE INDEX " s                                          \
  ".t_txn ON t(txn, id);"                                    \
  "CREATE INDEX " s                                          \
  ".t_body ON t(substr(body, 1, 40));"                       \
  "CREATE TABLE " s                                          \
  ".meta(k INTEGER PRIMARY KEY, txn INT);"                   \
  "INSERT INTO " s ".meta VALUES(1, 1)"

/* A row's body into out (MODEL_BODY_MAX bytes). len >= 24. */
void model_body(uint32_t id, uint32_t txn, uint32_t len, uint8_t *out);

/* Compares a schema ("main", ...) with the model. 0: it is the state after
** transaction *txn. 1: it is none, and why says so. An SQL error is -1, its
** code in *rc. */
int model_compare(sqlite3 *db, const char *schema, const model *m, int ntxn, int *txn, int *rc,
                  char *why, size_t nwhy);

#endif
