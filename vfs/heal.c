/*
** heal.c: free pages that a crash tore and no journal restores.
**
** SQLite does not journal a page that was free when the transaction began (its
** old content does not matter: PAGER_GET_NOCONTENT in btree.c): a leaf of the
** free list, or a page behind the database's last one, where a commit that was
** cut short left the file longer than it has to be. If the power fails while
** such a page is written, its unit is torn, and the rollback leaves it so; if the
** transaction made the file shorter, the rollback leaves its place without a record
** (sealed.c, fill_gap).
** Plain SQLite never looks at its content again; here nobody could copy the
** database any more, since a backup reads free pages, too.
**
** So when the rollback is done and before its journal goes, these pages are
** looked at, and each whose unit does not open is sealed as zeros. What must
** hold: only pages that the authenticated free list or page count calls free
** are ever replaced; trunk pages of the list are journaled and must open.
*/
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

typedef struct healer {
  tde_file *f;
  uint32_t page_size;
  uint32_t pages; /* in the file */
  uint32_t healed;
  uint8_t *page; /* a trunk */
  uint8_t *unit; /* record and plaintext of a leaf's unit */
} healer;

/* A rollback is at its end, or a write failed: the only times to look. */
static int is_due(const tde_file *f) {
  const tde_db *db = f->db;

  if (db->state != TDE_STATE_ONLINE || !db->header.unit_size || db->wal) return 0;
  return tde_db_alone(db) && (db->write_failed || tde_db_rolls_back(db));
}

/* Does every unit of this page open? */
static int page_opens(healer *h, uint32_t number, int *rc) {
  tde_sealed *s = &h->f->s;
  uint64_t first = (uint64_t)(number - 1) * h->page_size / s->geo.unit;
  uint32_t record = s->geo.unit + TDE_UNIT_OVERHEAD;

  for (uint64_t i = first; i < first + h->page_size / s->geo.unit; i++) {
    uint32_t got;
    int torn;
    tde_class c;
    *rc = tde_sealed_fetch(s, i, 1, h->unit, &got, &torn);
    if (*rc == SQLITE_IOERR_SHORT_READ) {
      *rc = SQLITE_OK;
      return !torn; /* beyond the end: nothing is there */
    }
    if (*rc) return 0;
    c = tde_sealed_open_record(s, i, h->unit, h->unit + record);
    if (c == TDE_TAMPERED) return 0;
    if (c) {
      *rc = tde_class_rc(c);
      return 0;
    }
  }
  return 1;
}

static int heal_page(healer *h, uint32_t number) {
  uint8_t *zeros;
  int rc = SQLITE_OK;

  if (number < 2 || number > h->pages || page_opens(h, number, &rc) || rc) return rc;
  zeros = sqlite3_malloc64(h->page_size);
  if (!zeros) return SQLITE_NOMEM;
  memset(zeros, 0, h->page_size);
  rc = tde_sealed_write(&h->f->s, zeros, h->page_size, (uint64_t)(number - 1) * h->page_size);
  sqlite3_free(zeros);
  if (rc == SQLITE_OK) h->healed++;
  return rc;
}

/* Walks the free list from its first trunk. */
static int walk(healer *h, uint32_t trunk, uint32_t left) {
  int rc = SQLITE_OK;

  while (rc == SQLITE_OK && trunk >= 2 && trunk <= h->pages && left > 0) {
    uint32_t leaves;
    rc = tde_sealed_read(&h->f->s, h->page, h->page_size, (uint64_t)(trunk - 1) * h->page_size, 0);
    if (rc) break;
    left--;
    leaves = tde_get32be(h->page + 4);
    if (leaves > h->page_size / 4 - 2) break; /* corrupt: SQLite will say so */
    for (uint32_t i = 0; rc == SQLITE_OK && i < leaves && left > 0; i++, left--) {
      rc = heal_page(h, tde_get32be(h->page + 8 + 4 * i));
    }
    trunk = tde_get32be(h->page);
  }
  return rc;
}

static int start(healer *h, const uint8_t *head) {
  tde_sealed *s = &h->f->s;
  uint64_t size = 0;
  uint32_t last;
  int rc = tde_sealed_size(s, &size);

  h->page_size = tde_stated_page_size(head);
  /* Pages smaller than a unit are guarded: they are never torn. */
  if (rc || h->page_size < s->geo.unit || (h->page_size & (h->page_size - 1))) return rc;
  h->pages = (uint32_t)(size / h->page_size);
  h->page = sqlite3_malloc64(h->page_size);
  h->unit = sqlite3_malloc64(2 * (size_t)s->geo.unit + TDE_UNIT_OVERHEAD);
  if (!h->page || !h->unit) return SQLITE_NOMEM;
  rc = walk(h, tde_get32be(head + TDE_DBHEAD_FIRST_TRUNK),
            tde_get32be(head + TDE_DBHEAD_FREE_PAGES));
  last = tde_stated_pages(head);
  while (rc == SQLITE_OK && last && last < h->pages) rc = heal_page(h, ++last);
  return rc;
}

int tde_heal_free_pages(tde_file *f) {
  uint8_t head[TDE_DBHEAD_BYTES];
  healer h;
  int rc;

  if (!is_due(f)) return SQLITE_OK;
  memset(&h, 0, sizeof(h));
  h.f = f;
  rc = tde_sealed_read(&f->s, head, sizeof(head), 0, 0);
  if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_OK; /* rolled back to nothing */
  if (rc == SQLITE_OK) rc = start(&h, head);
  if (rc == SQLITE_OK) rc = tde_sealed_flush(&f->s);
  if (rc == SQLITE_OK) f->db->write_failed = 0;
  if (rc == SQLITE_OK && h.healed) {
    tde_log(TDE_LOG_NOTICE, "%s: %u free pages that a crash had torn were sealed anew", f->path,
            h.healed);
  }
  if (h.unit) tde_wipe(h.unit, 2 * (size_t)f->s.geo.unit + TDE_UNIT_OVERHEAD);
  if (h.page) tde_wipe(h.page, h.page_size);
  sqlite3_free(h.unit);
  sqlite3_free(h.page);
  return rc;
}
