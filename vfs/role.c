/*
** role.c: roles and geometry; see role.h.
*/
#include "role.h"

#include "sqlite3ext.h"

/* Units of a main database that lie below the lock bytes. */
static uint64_t units_below_hole(const tde_geometry *g) {
  return (TDE_HOLE_START - g->base) / (g->unit + TDE_UNIT_OVERHEAD);
}

tde_role tde_role_of(int open_flags) {
  const int kinds = SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_TEMP_DB | SQLITE_OPEN_TRANSIENT_DB |
                    SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_TEMP_JOURNAL | SQLITE_OPEN_SUBJOURNAL |
                    SQLITE_OPEN_SUPER_JOURNAL | SQLITE_OPEN_WAL;

  switch (open_flags & kinds) {
    case SQLITE_OPEN_MAIN_DB:
      return TDE_ROLE_MAIN;
    case SQLITE_OPEN_WAL:
      return TDE_ROLE_WAL;
    case SQLITE_OPEN_MAIN_JOURNAL:
      return TDE_ROLE_JOURNAL;
    case SQLITE_OPEN_TEMP_DB:
    case SQLITE_OPEN_TRANSIENT_DB:
    case SQLITE_OPEN_TEMP_JOURNAL:
    case SQLITE_OPEN_SUBJOURNAL:
      return TDE_ROLE_TEMP;
    case SQLITE_OPEN_SUPER_JOURNAL:
      return TDE_ROLE_SUPER;
    default:
      return TDE_ROLE_NONE;
  }
}

const char *tde_role_name(int role) {
  switch (role) {
    case TDE_ROLE_MAIN:
      return "main";
    case TDE_ROLE_WAL:
      return "wal";
    case TDE_ROLE_JOURNAL:
      return "journal";
    case TDE_ROLE_TEMP:
      return "temp";
    case TDE_ROLE_SUPER:
      return "super-journal";
    default:
      return "unknown";
  }
}

void tde_geometry_init(tde_geometry *g, tde_role role, uint32_t unit_size) {
  g->role = (uint8_t)role;
  g->hole = 0;
  g->unit = unit_size;
  g->first = unit_size;
  g->base = 0;
  switch (role) {
    case TDE_ROLE_MAIN:
      g->base = TDE_HEADER_BYTES;
      g->hole = 1;
      break;
    case TDE_ROLE_WAL:
      g->base = TDE_PREFIX_BYTES;
      g->first = TDE_WAL_HEADER;
      break;
    case TDE_ROLE_JOURNAL:
      g->base = TDE_PREFIX_BYTES;
      g->unit = g->first = TDE_UNIT_JOURNAL;
      break;
    default:
      g->unit = g->first = TDE_UNIT_TEMP;
      break;
  }
}

uint32_t tde_main_unit_for(int64_t n) {
  if (n >= 512 && n <= 65536 && (n & (n - 1)) == 0) {
    return n < (int64_t)TDE_UNIT_MAIN_MAX ? (uint32_t)n : TDE_UNIT_MAIN_MAX;
  }
  return TDE_UNIT_MAIN_MAX;
}

uint64_t tde_unit_at(const tde_geometry *g, uint64_t off, uint32_t *within) {
  if (off < g->first) {
    *within = (uint32_t)off;
    return 0;
  }
  off -= g->first;
  *within = (uint32_t)(off % g->unit);
  return 1 + off / g->unit;
}

uint64_t tde_unit_start(const tde_geometry *g, uint64_t i) {
  return i ? g->first + (i - 1) * (uint64_t)g->unit : 0;
}

uint64_t tde_unit_physical(const tde_geometry *g, uint64_t i) {
  uint64_t record = (uint64_t)g->unit + TDE_UNIT_OVERHEAD;

  if (g->hole) {
    uint64_t below = units_below_hole(g);
    if (i >= below) return TDE_HOLE_START + TDE_HOLE_BYTES + (i - below) * record;
    return g->base + i * record;
  }
  return i ? g->base + g->first + TDE_UNIT_OVERHEAD + (i - 1) * record : g->base;
}

uint32_t tde_units_adjacent(const tde_geometry *g, uint64_t i, uint32_t n) {
  uint64_t first = tde_unit_physical(g, i), record = (uint64_t)g->unit + TDE_UNIT_OVERHEAD;

  while (n > 1 && tde_unit_physical(g, i + n - 1) != first + (n - 1) * record) n--;
  return n;
}

uint64_t tde_units_in(const tde_geometry *g, uint64_t lower_size, uint64_t *rest) {
  uint64_t record = (uint64_t)g->unit + TDE_UNIT_OVERHEAD, n, body;

  *rest = 0;
  if (lower_size <= g->base) return 0;
  if (g->hole) {
    uint64_t below = units_below_hole(g);
    if (lower_size > TDE_HOLE_START + TDE_HOLE_BYTES) {
      body = lower_size - (TDE_HOLE_START + TDE_HOLE_BYTES);
      *rest = body % record;
      return below + body / record;
    }
    if (lower_size >= g->base + below * record) return below;
  }
  body = lower_size - g->base;
  if (body < (uint64_t)g->first + TDE_UNIT_OVERHEAD) {
    *rest = body;
    return 0;
  }
  body -= (uint64_t)g->first + TDE_UNIT_OVERHEAD;
  n = 1 + body / record;
  *rest = body % record;
  return n;
}

uint64_t tde_lower_size(const tde_geometry *g, uint64_t n) {
  if (n == 0) return g->hole ? g->base : 0;
  return tde_unit_physical(g, n - 1) + tde_record_size(g, n - 1);
}
