/*
** walindex.c: what SQLite's wal-index says, read from the memory that the lower VFS maps.
**
** It is SQLite's alone to write, and not sealed. It tells:
**  - which generation a WAL is of without a read: its salts change before another generation
**    is begun. (wal.c: whoever writes a WAL header found mxFrame 0; frames once committed,
**    mxFrame becomes 0 by walRestartHdr alone, which puts new salts in the wal-index first. So
**    while it names frames under salts with which it named some when the prefix was read, the
**    prefix is the same. With mxFrame 0 the salts say nothing: a writer that died, or rolled
**    back, leaves a WAL header, and the next one writes another under the same salts.)
**  - of which page a frame is: SQLite looks a page's frame up there (walFindFrame).
**
** It begins in the lower file's second region. In the first one stands a sign for SQLite
** without the extension, for which the wal-index would be as good as for SQLite above the shim,
** though neither the log nor the database is: of a version that it does not know (wal.c,
** walIndexReadHdr), at which it stops, with SQLITE_CANTOPEN, before it reads a frame, or
** copies one into the database, or deletes the log as it closes. Without a log there it may have
** put a header of its own in the sign's place: so whoever takes the write lock looks at it, under
** the lock that a recovery needs, before there is a frame.
**
** What must hold: the pointers are used while this connection has the regions mapped, between
** xShmMap and xShmUnmap. ThreadSanitizer sees SQLite's memcpy of another thread race with
** these reads, as SQLite itself lets it.
*/
#include <string.h>

#include "shim.h"

SQLITE_EXTENSION_INIT3

/* Regions are of 32 KiB. Each has, behind the head in the first, the pages of 4096 frames
** less what the head takes, and then a hash table (wal.c: WALINDEX_HDR_SIZE, walHashGet). */
#define INDEX_HEAD_WORDS 34
#define REGION_WORDS 4096

/* The sign: struct WalIndexHdr of wal.c, in the host's byte order, with its checksum. */
#define SIGN_WORDS (TDE_INDEX_COPY / 4)
static void make_sign(uint32_t sign[SIGN_WORDS]) {
  const uint16_t page_size = 4096;
  uint32_t s1 = 0, s2 = 0;

  memset(sign, 0, TDE_INDEX_COPY);
  sign[0] = TDE_INDEX_SIGN;
  memset((char *)sign + TDE_INDEX_IS_INIT, 1, 1);
  memcpy((char *)sign + TDE_INDEX_PAGE_SIZE, &page_size, sizeof(page_size));
  for (int i = 0; i < SIGN_WORDS - 2; i += 2) {
    s1 += sign[i] + s2;
    s2 += sign[i + 1] + s1;
  }
  sign[SIGN_WORDS - 2] = s1;
  sign[SIGN_WORDS - 1] = s2;
}

/* Whoever puts a header of its own there writes all of it, under the same lock. The second copy
** first, as SQLite does: who reads meanwhile sees that they differ. */
__attribute__((no_sanitize("thread"))) void tde_index_sign(tde_file *f) {
  volatile uint32_t *at = f->db->index_sign;
  uint32_t sign[SIGN_WORDS];

  if (!at || (at[0] == TDE_INDEX_SIGN && at[SIGN_WORDS] == TDE_INDEX_SIGN)) return;
  make_sign(sign);
  for (int i = 0; i < SIGN_WORDS; i++) at[SIGN_WORDS + i] = sign[i];
  LOWER(f)->xShmBarrier(f->lower);
  for (int i = 0; i < SIGN_WORDS; i++) at[i] = sign[i];
}

/* Remembers where a region of SQLite's is. */
static int remember(tde_db *db, int region, const volatile void *p) {
  const volatile char **more;

  if (region == 0) {
    db->index = p;
    return SQLITE_OK;
  }
  if (region > db->index_more_n) {
    more = sqlite3_realloc64(db->index_more, (uint64_t)region * sizeof(*more));
    if (!more) return SQLITE_NOMEM;
    for (int i = db->index_more_n; i < region; i++) more[i] = NULL;
    db->index_more = more;
    db->index_more_n = region;
  }
  db->index_more[region - 1] = p;
  return SQLITE_OK;
}

int tde_index_map(tde_file *f, int region, int size, int extend, void volatile **out) {
  void volatile *sign = NULL;
  int rc = LOWER(f)->xShmMap(f->lower, region + 1, size, extend, out), rc2 = SQLITE_OK;

  /* What can only be read is mapped, too (wal.c, walIndexPageRealloc). */
  if (rc && rc != SQLITE_READONLY) return rc;
  if (*out && rc == SQLITE_OK && !f->db->index_sign) {
    rc2 = LOWER(f)->xShmMap(f->lower, 0, size, 0, &sign);
    f->db->index_sign = sign;
  }
  if (rc2 == SQLITE_OK) rc2 = remember(f->db, region, *out);
  if (rc2) *out = NULL; /* SQLite asks again for what it was not given (wal.c, walIndexPage) */
  return rc2 ? rc2 : rc;
}

void tde_index_unmapped(tde_db *db) {
  sqlite3_free(db->index_more);
  db->index_more = NULL;
  db->index_more_n = 0;
  db->index = NULL;
  db->index_sign = NULL;
}

__attribute__((no_sanitize("thread"))) int tde_index_salt(const tde_db *db,
                                                          uint8_t out[TDE_INDEX_SALT]) {
  const volatile char *head = db->index;
  const volatile uint32_t *frames, *salt;
  uint32_t now[2];

  if (!head) return 0;
  frames = (const volatile uint32_t *)(head + TDE_INDEX_MX_FRAME);
  salt = (const volatile uint32_t *)(head + TDE_INDEX_SALT_AT);
  now[0] = salt[0];
  now[1] = salt[1];
  memcpy(out, now, sizeof(now));
  return frames[0] > 0 && frames[0] == frames[TDE_INDEX_COPY / 4] &&
         now[0] == salt[TDE_INDEX_COPY / 4] && now[1] == salt[TDE_INDEX_COPY / 4 + 1];
}

/* Where the page of a frame stands; NULL: that region is not mapped. db->index is there. */
static inline const volatile uint32_t *entry(const tde_db *db, uint64_t frame) {
  uint64_t word = INDEX_HEAD_WORDS + frame - 1, region = word / REGION_WORDS;
  const volatile char *p = db->index;

  if (region > 0) p = region <= (uint64_t)db->index_more_n ? db->index_more[region - 1] : NULL;
  return p ? (const volatile uint32_t *)p + word % REGION_WORDS : NULL;
}

__attribute__((no_sanitize("thread"))) int tde_index_page(const tde_db *db, uint64_t frame,
                                                          uint32_t *page) {
  const volatile uint32_t *at = db->index ? entry(db, frame) : NULL;

  *page = at ? *at : 0;
  return db->index != NULL;
}

__attribute__((no_sanitize("thread"))) int tde_index_has(const tde_db *db, uint64_t frame,
                                                         uint32_t page,
                                                         const uint8_t salt[TDE_INDEX_SALT]) {
  const volatile uint32_t *at;
  uint32_t want[2];

  if (!db->index) return 0;
  at = (const volatile uint32_t *)(db->index + TDE_INDEX_SALT_AT);
  memcpy(want, salt, sizeof(want));
  if (at[0] != want[0] || at[1] != want[1]) return 0;
  at = entry(db, frame);
  return at && *at == page;
}

uint32_t tde_wal_index(const tde_file *main_file, uint32_t *pages) {
  const volatile char *head = main_file->db->index;

  if (pages) *pages = head ? *(const volatile uint32_t *)(head + TDE_INDEX_PAGES) : 0;
  return head ? *(const volatile uint32_t *)(head + TDE_INDEX_MX_FRAME) : 0;
}

uint32_t tde_wal_restored(const tde_file *main_file) {
  return *(const volatile uint32_t *)(main_file->db->index + TDE_INDEX_BACKFILL);
}

uint32_t tde_wal_pages(const tde_file *main_file) {
  const tde_db *db = main_file->db;
  uint32_t pages = 0;

  if (db->index) {
    (void)tde_wal_index(main_file, &pages);
  } else if (db->wal && db->wal->gen.valid) {
    pages = db->wal->gen.pages;
  }
  return pages;
}
