/*
** role.h: which role a file has and how its units lie. Pure.
**
** A role comes from the flags that SQLite opens a file with. What is not known
** here is refused: nothing is written in plaintext by default.
*/
#ifndef TDE_ROLE_H
#define TDE_ROLE_H

#include <stdint.h>

#include "../ext/base/limits.h"
#include "unit.h"

typedef enum tde_role {
  TDE_ROLE_NONE = 0, /* refused */
  TDE_ROLE_MAIN = 1,
  TDE_ROLE_WAL = 2,
  TDE_ROLE_JOURNAL = 3,
  TDE_ROLE_TEMP = 4, /* temp database, statement journal, sorter, ... */
  TDE_ROLE_SUPER = 5 /* super-journal: file names only, plain by design */
} tde_role;
#define TDE_ROLE_KEYS 3 /* the first roles have keys of their own for each DEK */

/* The role of a file opened with these SQLITE_OPEN_* flags. */
tde_role tde_role_of(int open_flags);
const char *tde_role_name(int role);

#define TDE_HEADER_BYTES 65536u /* a main database's header */
#define TDE_PREFIX_BYTES 128u   /* a WAL's or journal's prefix */
#define TDE_UNIT_MAIN_MAX 4096u /* largest unit of a main database */
#define TDE_UNIT_JOURNAL 512u   /* SQLite's journal sector */
#define TDE_UNIT_TEMP 4096u
#define TDE_WAL_HEADER 32u     /* SQLite's WAL header: unit 0 of a WAL */
#define TDE_WAL_FRAME_HEAD 24u /* SQLite's frame header */
#define TDE_UNIT_MAX (65536u + TDE_WAL_FRAME_HEAD)

/* SQLite's lock bytes in the lower file: a main database keeps no data here. (Tests have them
** elsewhere, so that a small database reaches behind them.) */
#ifndef TDE_HOLE_START
#define TDE_HOLE_START 0x40000000ull
#endif
#define TDE_HOLE_BYTES 0x10000ull

typedef struct tde_geometry {
  uint8_t role;
  uint8_t hole;   /* skip the lock bytes */
  uint32_t base;  /* physical offset of unit 0 */
  uint32_t first; /* size of unit 0; differs from unit in a WAL */
  uint32_t unit;  /* size of every other unit */
} tde_geometry;

/* unit_size: main: U; WAL: 24 + page size; journal, temp: ignored. */
void tde_geometry_init(tde_geometry *g, tde_role role, uint32_t unit_size);

/* The unit size of a new main database whose first write has n bytes. */
uint32_t tde_main_unit_for(int64_t n);

/* Size of unit i in bytes, and of its record. */
static inline uint32_t tde_unit_size(const tde_geometry *g, uint64_t i) {
  return i ? g->unit : g->first;
}
static inline uint32_t tde_record_size(const tde_geometry *g, uint64_t i) {
  return tde_unit_size(g, i) + TDE_UNIT_OVERHEAD;
}

/* The unit that holds the logical offset; *within gets the place in it. */
uint64_t tde_unit_at(const tde_geometry *g, uint64_t off, uint32_t *within);
/* Logical offset at which unit i starts. */
uint64_t tde_unit_start(const tde_geometry *g, uint64_t i);
/* Physical offset of unit i's record. */
uint64_t tde_unit_physical(const tde_geometry *g, uint64_t i);
/* How many of the units i, i + 1, ..., at most n, lie one behind the other in the lower file: what
** one read can take. (Between two of a main database SQLite's lock bytes lie.) */
uint32_t tde_units_adjacent(const tde_geometry *g, uint64_t i, uint32_t n);
/* Whole records in a lower file of this size; *rest gets the bytes after them
** that belong to an incomplete record. */
uint64_t tde_units_in(const tde_geometry *g, uint64_t lower_size, uint64_t *rest);
/* The lower size of a file of n whole units (0 for a main file: the header). */
uint64_t tde_lower_size(const tde_geometry *g, uint64_t n);

#endif
