/*
** leakvfs.h: a VFS for tests that looks at everything written through it.
**
** It stacks on the default VFS and is named "leak". Standing below the shim it
** sees what would reach the disk; opened directly it sees what plain SQLite
** writes, which is the positive control. After each xWrite it reads the place
** back, with a marker's length on both sides, so that a marker that comes in
** two writes is seen, too. Shared memory is looked at whenever a lock on it is
** let go.
**
** The tallies are in memory that forked children share. Not thread-safe.
*/
#ifndef TDE_LEAKVFS_H
#define TDE_LEAKVFS_H

#include <stddef.h>
#include <stdint.h>

/* What is looked for: texts of 8 bytes that the workload puts everywhere, and
** one that SQLite puts at the start of each database. */
#define MARKER_BYTES 8
typedef enum marker {
  MARK_ROW,
  MARK_KEY,
  MARK_BLOB,
  MARK_TEMP, /* content of rows */
  MARK_SCHEMA,
  MARK_TEMP_SCHEMA, /* names of tables and columns */
  MARK_PATH,        /* part of each file's path */
  MARK_FORMAT,      /* "SQLite f" */
  MARKERS
} marker;
extern const char *const marker_text[MARKERS];

/* A file's role, from its SQLITE_OPEN_* flag. */
typedef enum leak_role {
  LEAK_MAIN_DB,
  LEAK_TEMP_DB,
  LEAK_TRANSIENT_DB,
  LEAK_MAIN_JOURNAL,
  LEAK_TEMP_JOURNAL,
  LEAK_SUBJOURNAL,
  LEAK_SUPER_JOURNAL,
  LEAK_WAL,
  LEAK_SHM,
  LEAK_UNKNOWN,
  LEAK_IGNORED, /* files whose path leak_ignore named */
  LEAK_ROLES
} leak_role;
extern const char *const leak_role_name[LEAK_ROLES];

typedef struct leak_tally {
  uint64_t writes, bytes; /* bytes written, or for SHM looked at */
  uint64_t hits[MARKERS]; /* writes that showed the marker */
} leak_tally;

/* Registers "leak" and makes it the default. Returns an SQLite code. */
int leak_register(void);
/* Files whose path has this text in it are counted as LEAK_IGNORED. */
void leak_ignore(const char *part);
void leak_reset(void);
const leak_tally *leak_tally_of(leak_role role);
/* Hits of every marker but those of the mask (1 << marker). */
uint64_t leak_hits(leak_role role, unsigned except);
/* The first marker in n bytes, or MARKERS. */
marker leak_find(const void *p, size_t n);

#endif
