/*
** files.h: databases for the tamper tests, as images in memory, and what SQL
** sees of them when their files have been changed.
**
** A test builds a database once, keeps its files as images, and then for each
** case writes them anew or changes a byte in place and opens the database
** through the shim. One other connection (keep_key) holds the key, so that no
** case has to unwrap it again; no connection is open on a file while a test
** writes to it through another descriptor, except where a test says so.
*/
#ifndef TDE_TAMPER_FILES_H
#define TDE_TAMPER_FILES_H

#include <sqlite3.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Layout, as FORMAT.md has it; not taken from the extension's headers. */
#define HEADER 65536u
#define HALF 32768u
#define SLOT 27648u
#define PREFIX 128u
#define OVERHEAD 48u
#define JOURNAL_UNIT 512u

typedef struct image {
  uint8_t *p;
  size_t n;
} image;

/* A name in the scratch directory; one of 8 buffers that take turns. */
const char *at(const char *name);
int scratch_make(void);
void scratch_remove(void);

/* The whole file; p is NULL when it cannot be read. Free with image_free. */
image image_load(const char *name);
image image_copy(const image *i);
void image_free(image *i);
/* Writes the file anew. */
void image_store(const image *i, const char *name);
void file_remove(const char *name);
/* Database, WAL, journal and wal-index: none stays. */
void database_remove(const char *name);

/* A connection through the shim. */
sqlite3 *open_tde(const char *name);
/* Runs SQL; reports a failed check when it fails. */
void must(sqlite3 *db, const char *sql);
/* The content as a digest; *rc gets the extended code of what failed. */
uint64_t content_of(sqlite3 *db, int *rc);
/* Opens, reads everything, closes, leaving a WAL as it is. */
uint64_t content_at(const char *name, int *rc);
/* Keeps the key of this database's copy in memory until the next call (NULL: none). */
void keep_key(const char *name);

/* A table of rows that are a function of their number and of version, with an
** index; everything in one transaction. */
void fill(sqlite3 *db, int rows, int version);
/* Such a table of a short row and a long one, which ends the file: of 2 * bytes
** characters, in overflow pages. */
void fill_long(sqlite3 *db, int bytes);

static inline uint32_t get32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline void put32(uint8_t *p, uint32_t v) {
  for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i);
}
/* Offset of a unit's record in each role's file; of main, below the lock bytes. */
static inline size_t main_at(uint32_t unit, size_t i) {
  return HEADER + i * (unit + OVERHEAD);
}
static inline size_t frame_at(uint32_t page, size_t k) { /* k from 1 */
  return 208 + (k - 1) * (24 + page + OVERHEAD);
}
static inline size_t journal_at(size_t i) {
  return PREFIX + i * (JOURNAL_UNIT + OVERHEAD);
}

#endif
