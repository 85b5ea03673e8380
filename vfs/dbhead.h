/*
** dbhead.h: SQLite's own header at the start of page 1, as far as the shim reads it (SQLite file format,
** sections 1.3 and 1.5). It is sealed like any other content: header.h is about another one.
*/
#ifndef TDE_DBHEAD_H
#define TDE_DBHEAD_H

#include <stdint.h>
#include <string.h>

#include "../ext/base/bytes.h"

#define TDE_DBHEAD_BYTES 100
/* Offsets; numbers are big-endian, of four bytes where nothing else is said. */
#define TDE_DBHEAD_PAGE_SIZE 16     /* two bytes */
#define TDE_DBHEAD_WRITE_VERSION 18 /* a byte: 1, or 2 for WAL */
#define TDE_DBHEAD_READ_VERSION 19  /* likewise */
#define TDE_DBHEAD_COUNTER 24       /* of changes */
#define TDE_DBHEAD_PAGES 28         /* see tde_stated_pages */
#define TDE_DBHEAD_FIRST_TRUNK 32
#define TDE_DBHEAD_FREE_PAGES 36
#define TDE_DBHEAD_VALID_FOR 92 /* the change counter of whoever wrote the page count */

/* The page size, in which 1 stands for 65536; whatever else is there. */
static inline uint32_t tde_stated_page_size(const uint8_t *head) {
  uint32_t n = (uint32_t)head[TDE_DBHEAD_PAGE_SIZE] << 8 | head[TDE_DBHEAD_PAGE_SIZE + 1];
  return n == 1 ? 65536 : n;
}

/* The page count; 0 where it does not count, since one that does not write it changed the file. */
static inline uint32_t tde_stated_pages(const uint8_t *head) {
  if (memcmp(head + TDE_DBHEAD_COUNTER, head + TDE_DBHEAD_VALID_FOR, 4) != 0) return 0;
  return tde_get32be(head + TDE_DBHEAD_PAGES);
}

#endif
