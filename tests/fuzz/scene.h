/*
** scene.h: small encrypted databases in known situations, made at start-up.
**
** A scene is the files of one database (main, WAL, journal) as they lie on disk
** at one moment, and everything that is known of it: each state that it went
** through, each content that each place ever had. Its DEKs are fixed and come
** from a key source of its own, so that the fuzzer can also make hostile bytes
** that are authentic.
*/
#ifndef FUZZ_SCENE_H
#define FUZZ_SCENE_H

#include <sqlite3.h>

#include "../../vfs/header.h"
#include "fuzz.h"
#include "memvfs.h"

enum { SCENE_MAIN, SCENE_WAL, SCENE_JOURNAL, SCENE_FILES };
#define SCENE_STATES 32
#define SCENE_EPOCHS 2
#define STATE_EMPTY 0 /* no schema at all */

typedef struct scene_image {
  int exists;
  uint8_t *data;
  size_t size;
} scene_image;

typedef struct scene {
  const char *name;
  void (*build)(struct scene *s);
  uint32_t page;  /* SQLite's page size */
  uint32_t unit;  /* U */
  uint32_t chunk; /* the smaller: what is compared */
  int hot;        /* the journal is hot */
  uint8_t uuid[TDE_UUID_BYTES];
  fuzz_keys keys[SCENE_EPOCHS + 1]; /* by epoch */
  tde_header slot[2];               /* as in now; doc NULL: none */
  scene_image now[SCENE_FILES];
  scene_image older[SCENE_FILES]; /* of the same database, before */
  uint64_t state[SCENE_STATES];   /* after each transaction */
  int nstates, first;             /* first .. nstates - 1 may be met */
} scene;

extern scene scenes[];
extern const int scene_count;
extern int scene_healed; /* free pages were sealed as zeros since scene_restore (vfs/heal.c) */
extern const char *const scene_file[SCENE_FILES];

/* Registers VFS, shim and key source, and makes every scene. */
void scene_setup(void);
/* The DEK of an epoch, the same for every scene. */
const uint8_t *scene_dek(uint32_t epoch);
/* The key of the HMAC of a header with this document (FORMAT.md, Keys). */
void scene_header_key(const uint8_t uuid[TDE_UUID_BYTES], uint32_t epoch, const char *doc,
                      size_t ndoc, uint8_t out[TDE_KEY_BYTES]);
/* Puts a scene's files into the VFS. */
void scene_restore(const scene *s);

/* Opens the database through the shim; flags as of sqlite3_open_v2. */
int scene_open(int flags, sqlite3 **db);
/* What the database holds now, as one number. trusting: do not ask whether
** each row is one that was written. Returns an SQLite code; *state is set when
** it is SQLITE_OK. */
int scene_read(sqlite3 *db, int trusting, uint64_t *state);
/* Whether the index says what the table says: 1 or 0; -1: one can not be read. */
int scene_index_agrees(sqlite3 *db);
/* A row as scene_read counts it, so that state + row is the state after. */
uint64_t scene_row(int64_t id, int64_t v, const char *data);
/* An INSERT of row id. */
int scene_insert(sqlite3 *db, int64_t id, int64_t v, const char *data);

/* True when unit or frame index of this role ever held these bytes. In the
** main database, index counts chunks. */
int scene_seen(const scene *s, tde_role role, uint64_t index, const uint8_t *p, size_t n);
/* Opens a record of scene s as it lies in a file (record i; salt as in the
** prefix of that file). 1 when it is authentic. */
int scene_open_record(const scene *s, tde_role role, uint64_t i, const uint8_t *salt,
                      const uint8_t *record, uint32_t n, uint8_t *out);

#endif
