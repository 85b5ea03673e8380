/*
** main.c: a main database's units and header, changed in every way.
**
** Must hold: a changed unit is SQLITE_IOERR_DATA, whatever bit of it it is; a
** unit opens at its place in its database alone; a damaged header slot is
** served from the other one. What the format cannot see is tested, too, so
** that it stays known: an older record of the same unit at the same place, and
** a file that is cut off right behind its header, which is an empty database.
*/
#include "cases.h"
#include "files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

/* A database of this page size: an image, and what it holds. */
static image made(uint32_t page, int rows, int version, uint64_t *content) {
  char sql[60];
  sqlite3 *db;
  int rc;

  database_remove("made.db");
  db = open_tde("made.db");
  snprintf(sql, sizeof(sql), "PRAGMA page_size=%u", page);
  must(db, sql);
  fill(db, rows, version);
  (void)sqlite3_close(db);
  keep_key("made.db");
  *content = content_at("made.db", &rc);
  if (rc) abort();
  return image_load("made.db");
}

static void put(int fd, const void *p, size_t n, size_t off) {
  if (pwrite(fd, p, n, (off_t)off) != (ssize_t)n) abort();
}

/* ---- units ---- */

static void every_bit(tally *t, const image *i, size_t from, size_t n) {
  int fd = open(at("case.db"), O_RDWR | O_CLOEXEC);

  for (size_t bit = 0; bit < 8 * n; bit++) {
    uint8_t b = i->p[from + bit / 8] ^ (uint8_t)(1u << bit % 8);
    int rc;
    put(fd, &b, 1, from + bit / 8);
    (void)content_at("case.db", &rc);
    put(fd, i->p + from + bit / 8, 1, from + bit / 8);
    judge(t, rc == SQLITE_IOERR_DATA, "byte %zu bit %zu of the record at %zu: code %d", bit / 8,
          bit % 8, from, rc);
  }
  close(fd);
}

tally main_bits(void) {
  static const struct {
    uint32_t page;
    size_t unit;
  } where[] = {{512, 0}, {512, 3}, {1024, 1}, {4096, 1}};
  tally t = {0, 0};

  for (size_t k = 0; k < sizeof(where) / sizeof(where[0]); k++) {
    uint32_t page = where[k].page;
    uint64_t content;
    image i = made(page, 8, 1, &content);
    int rc;
    image_store(&i, "case.db");
    every_bit(&t, &i, main_at(page, where[k].unit), page + OVERHEAD);
    /* Every bit was put back. */
    judge(&t, content_at("case.db", &rc) == content && rc == 0, "restored: code %d", rc);
    image_free(&i);
  }
  return t;
}

/* Stores an image and reads it: the code, and whether the content is as said. */
static int code_of(const image *i, uint64_t content, int *same) {
  int rc;
  database_remove("case.db");
  image_store(i, "case.db");
  *same = content_at("case.db", &rc) == content && rc == SQLITE_OK;
  return rc;
}

/* Each field of a record set to what an attacker might try. */
tally main_fields(void) {
  static const uint32_t values[] = {0,          1,          2,         48,         511,
                                    512,        513,        0xffffff,  0x01000000, 0x02000001,
                                    0x04000000, 0x80000000, 0xffffffff};
  uint64_t content;
  image i = made(512, 8, 1, &content);
  tally t = {0, 0};
  size_t r = main_at(512, 2), other = main_at(512, 3);
  int same, rc;

  for (int field = 0; field < 8; field += 4) {
    for (size_t k = 0; k < sizeof(values) / sizeof(values[0]); k++) {
      image c = image_copy(&i);
      uint32_t was = get32(c.p + r + field);
      put32(c.p + r + field, values[k]);
      rc = code_of(&c, content, &same);
      judge(&t, was == values[k] ? same : rc == SQLITE_IOERR_DATA, "%s = %u: code %d",
            field ? "pad" : "epoch", values[k], rc);
      image_free(&c);
    }
  }
  /* Nonce, ciphertext and tag, each taken from another unit; each of zeros. */
  static const struct {
    size_t off, n;
  } parts[] = {{8, 24}, {8, 12}, {20, 12}, {32, 512}, {544, 16}, {0, 560}};
  for (size_t k = 0; k < 2 * (sizeof(parts) / sizeof(parts[0])); k++) {
    size_t off = parts[k / 2].off, n = parts[k / 2].n;
    image c = image_copy(&i);
    if (k % 2) {
      memcpy(c.p + r + off, c.p + other + off, n);
    } else {
      memset(c.p + r + off, 0, n);
    }
    rc = code_of(&c, content, &same);
    if (off == 8 && n == 12 && k % 2) {
      /* Units of one run share the nonce's first half: then nothing changed. */
      int shared = memcmp(i.p + r + 8, i.p + other + 8, 12) == 0;
      judge(&t, shared ? same : rc == SQLITE_IOERR_DATA, "nonce prefix: code %d", rc);
    } else {
      judge(&t, rc == SQLITE_IOERR_DATA, "bytes %zu+%zu %s: code %d", off, n,
            k % 2 ? "of another unit" : "zero", rc);
    }
    image_free(&c);
  }
  image_free(&i);
  return t;
}

/* Every unit at every other place; units of another database, with its header
** and without; a clone's units at other places. */
tally main_moves(void) {
  uint64_t content, foreign_content;
  image foreign = made(512, 8, 1, &foreign_content), i = made(512, 8, 1, &content);
  size_t rec = 512 + OVERHEAD, n = (i.n - HEADER) / rec;
  tally t = {0, 0};
  int same, rc;

  for (size_t a = 0; a < n; a++) {
    for (size_t b = a + 1; b < n; b++) {
      image c = image_copy(&i);
      memcpy(c.p + main_at(512, a), i.p + main_at(512, b), rec);
      memcpy(c.p + main_at(512, b), i.p + main_at(512, a), rec);
      rc = code_of(&c, content, &same);
      judge(&t, rc == SQLITE_IOERR_DATA, "units %zu and %zu swapped: code %d", a, b, rc);
      image_free(&c);
    }
  }
  for (size_t a = 0; a < n && main_at(512, a) + rec <= foreign.n; a++) {
    image c = image_copy(&i);
    memcpy(c.p + main_at(512, a), foreign.p + main_at(512, a), rec);
    rc = code_of(&c, content, &same);
    judge(&t, rc == SQLITE_IOERR_DATA, "unit %zu of another database: code %d", a, rc);
    image_free(&c);
  }
  /* Another database's header, with the same UUID then and another key. */
  image c = image_copy(&i);
  memcpy(c.p, foreign.p, HEADER);
  rc = code_of(&c, content, &same);
  judge(&t, rc == SQLITE_IOERR_DATA, "another database's header: code %d", rc);
  /* Its units under this header. */
  image_free(&c);
  c = image_copy(&foreign);
  memcpy(c.p, i.p, HEADER);
  rc = code_of(&c, foreign_content, &same);
  judge(&t, rc == SQLITE_IOERR_DATA, "this header on another's units: code %d", rc);
  image_free(&c);
  image_free(&foreign);
  image_free(&i);
  return t;
}

/* What is accepted by design: an older record of the same unit at its place
** (an older copy of the whole file is no different), and so a clone's. */
tally main_replay(void) {
  uint64_t before, after, mixed;
  image old = made(4096, 8, 1, &before), now, c;
  tally t = {0, 0};
  sqlite3 *db;
  int same, rc;

  image_store(&old, "case.db");
  db = open_tde("case.db");
  must(db, "UPDATE t SET b = 'newer'");
  (void)sqlite3_close(db);
  after = content_at("case.db", &rc);
  judge(&t, rc == 0 && after != before, "the change: code %d", rc);
  now = image_load("case.db");
  /* Unit 1 is the table's leaf: its old record brings the old rows back. */
  c = image_copy(&now);
  memcpy(c.p + main_at(4096, 1), old.p + main_at(4096, 1), 4096 + OVERHEAD);
  (void)code_of(&c, before, &same);
  judge(&t, same, "an older unit at its place is accepted, by design");
  image_free(&c);
  /* The whole of the old file, of course, too. */
  (void)code_of(&old, before, &same);
  judge(&t, same, "an older file is accepted, by design");
  /* But not at another place. */
  c = image_copy(&now);
  memcpy(c.p + main_at(4096, 2), old.p + main_at(4096, 1), 4096 + OVERHEAD);
  mixed = 0;
  rc = code_of(&c, mixed, &same);
  judge(&t, rc == SQLITE_IOERR_DATA, "an older unit at another place: code %d", rc);
  image_free(&c);
  image_free(&old);
  image_free(&now);
  return t;
}

/* Cut near every 128th byte of the header, and behind it at every byte (every
** seventh of the larger file). */
static size_t cut_step(size_t n, int larger) {
  if (n < HEADER) return n % 128 == 0 ? 127 : 1;
  return larger && n > HEADER ? 7 : 1;
}

/* Cut short, and with bytes behind. */
tally main_length(void) {
  static const int pages[] = {512, 4096};
  tally t = {0, 0};
  int same, rc;

  for (int k = 0; k < 2; k++) {
    uint64_t content;
    image i = made((uint32_t)pages[k], 8, 1, &content);
    size_t whole = i.n;
    for (size_t n = 0; n < whole; n += cut_step(n, k)) {
      image c = {i.p, n};
      rc = code_of(&c, content, &same);
      /* Nothing behind the header: no table, as in a file that was emptied. */
      judge(&t, !same && (n > HEADER ? rc != SQLITE_OK && rc != SQLITE_ERROR : rc != SQLITE_OK),
            "cut to %zu of %zu bytes: code %d", n, whole, rc);
    }
    for (size_t more = 1; more < 3 * 4144; more += 97) {
      image c = {malloc(whole + more), whole + more};
      memcpy(c.p, i.p, whole);
      memset(c.p + whole, (int)more, more);
      rc = code_of(&c, content, &same);
      judge(&t, same, "%zu bytes more: code %d", more, rc);
      image_free(&c);
    }
    image_free(&i);
  }
  return t;
}

static sqlite3 *live_database(uint64_t *state) {
  sqlite3 *db;
  int rc;

  database_remove("case.db");
  db = open_tde("case.db");
  must(db, "PRAGMA page_size=512; PRAGMA synchronous=OFF");
  fill_long(db, 1500);
  *state = content_of(db, &rc);
  (void)sqlite3_close(db);
  db = open_tde("case.db");
  must(db, "PRAGMA synchronous=OFF");
  return db;
}

/* Cut off within a transaction, which has looked at the file's length before: what is gone
** does not read as zeros, and what a commit writes behind it does not make it authentic.
** (The descriptor that cuts takes this process's locks along; nobody else is there.) */
tally main_live_cut(void) {
  static const char *const begin[] = {"PRAGMA cache_size=2; BEGIN; SELECT a FROM t WHERE id = 1",
                                      "BEGIN IMMEDIATE; UPDATE t SET a = 'new' WHERE id = 1"};
  tally t = {0, 0};
  size_t size = HEADER + 512 + OVERHEAD;

  for (int k = 0; k < 2; k++) {
    for (size_t n = HEADER; n < size; n += 80) {
      uint64_t state, changed = 0, got;
      sqlite3 *db = live_database(&state);
      int rc;
      image i = image_load("case.db");
      size = i.n;
      image_free(&i);
      must(db, begin[k]);
      if (k == 1) changed = content_of(db, &rc);
      if (truncate(at("case.db"), (off_t)n) != 0) abort();
      if (k == 0) {
        got = content_of(db, &rc);
        judge(&t, rc != SQLITE_OK, "cut to %zu of %zu under a reader", n, size);
      } else {
        (void)sqlite3_exec(db,
                           "INSERT INTO t VALUES(9, 'more', hex(zeroblob(900)));"
                           "DELETE FROM t WHERE id = 9; COMMIT",
                           NULL, NULL, NULL);
      }
      (void)sqlite3_close(db);
      got = content_at("case.db", &rc);
      judge(&t, rc != SQLITE_OK || got == state || got == changed, "cut to %zu of %zu, then %s", n,
            size, k ? "a commit" : "the end");
    }
  }
  return t;
}

/* ---- header ---- */

static size_t slot_length(const image *i, int slot) {
  return 128 + get32(i->p + slot * HALF + 56);
}

/* Every bit of what counts in each slot: the other one serves. And bytes that
** nothing is in: no matter. */
tally header_bits(void) {
  uint64_t content;
  image i = made(512, 8, 1, &content);
  tally t = {0, 0};
  int fd, rc;

  image_store(&i, "case.db");
  fd = open(at("case.db"), O_RDWR | O_CLOEXEC);
  for (size_t byte = 0; byte < HEADER; byte++) {
    int used = byte % HALF < slot_length(&i, (int)(byte / HALF));
    for (int bit = 0; bit < (used ? 8 : byte % 16 == 0); bit++) {
      uint8_t b = i.p[byte] ^ (uint8_t)(1u << bit);
      uint64_t got;
      put(fd, &b, 1, byte);
      got = content_at("case.db", &rc);
      put(fd, i.p + byte, 1, byte);
      judge(&t, rc == 0 && got == content, "header byte %zu bit %d: code %d%s", byte, bit, rc,
            rc ? "" : ", other content");
    }
  }
  close(fd);
  image_free(&i);
  return t;
}

/* The same in both slots at once; a sample, each case unwraps the key twice. */
static void both_slots(tally *t, const image *i, uint64_t content, int forge) {
  size_t n = slot_length(i, 0) < slot_length(i, 1) ? slot_length(i, 0) : slot_length(i, 1);
  unsigned len;
  int same, rc;

  for (size_t bit = 0; bit < 8 * n; bit += bit / 8 < 128 ? 7 : 61) {
    image c = image_copy(i);
    if (forge && bit / 8 >= 96 && bit / 8 < 128) bit = 8 * 128; /* the sum itself */
    for (int s = 0; s < 2; s++) {
      uint8_t *slot = c.p + s * HALF, *copy;
      size_t doc = get32(slot + 56);
      slot[bit / 8] ^= (uint8_t)(1u << bit % 8);
      if (!forge) continue;
      /* An attacker can compute SHA-256, not the HMAC. */
      copy = malloc(96 + doc);
      memcpy(copy, slot, 96);
      memcpy(copy + 96, slot + 128, doc);
      EVP_Digest(copy, 96 + doc, slot + 96, &len, EVP_sha256(), NULL);
      free(copy);
    }
    rc = code_of(&c, content, &same);
    judge(t, rc == SQLITE_NOTADB || rc == SQLITE_CANTOPEN || rc == SQLITE_IOERR_AUTH,
          "byte %zu bit %zu of both slots%s: code %d", bit / 8, bit % 8,
          forge ? " under a good SHA-256" : "", rc);
    image_free(&c);
  }
}

/* Changes under a recomputed SHA-256: only the HMAC tells. The other slot serves
** or, when what changed is the key document, the change is refused. */
tally header_forged(void) {
  uint64_t content;
  image i = made(512, 8, 1, &content);
  tally t = {0, 0};
  unsigned len;
  int same, rc;

  for (int s = 0; s < 2; s++) {
    size_t doc = slot_length(&i, s) - 128;
    for (size_t bit = 0; bit < 8 * (96 + doc); bit += bit / 8 < 96 ? 1 : 29) {
      image c = image_copy(&i);
      uint8_t *slot = c.p + s * HALF, *copy = malloc(96 + doc);
      slot[bit / 8 < 96 ? bit / 8 : bit / 8 + 32] ^= (uint8_t)(1u << bit % 8);
      memcpy(copy, slot, 96);
      memcpy(copy + 96, slot + 128, doc);
      EVP_Digest(copy, 96 + doc, slot + 96, &len, EVP_sha256(), NULL);
      free(copy);
      rc = code_of(&c, content, &same);
      /* A forged document may name a key that is not there: that is an error. */
      judge(&t, same || (bit / 8 >= 96 && (rc == SQLITE_IOERR_AUTH || rc == SQLITE_CANTOPEN)),
            "slot %d byte %zu forged: code %d%s", s, bit / 8, rc, rc ? "" : ", other content");
      image_free(&c);
    }
  }
  both_slots(&t, &i, content, 0);
  both_slots(&t, &i, content, 1);
  image_free(&i);
  return t;
}

/* Whole slots and headers zeroed, filled, exchanged. */
tally header_whole(void) {
  uint64_t content;
  image i = made(1024, 8, 1, &content), c;
  tally t = {0, 0};
  int same, rc;

  for (int s = 0; s < 2; s++) {
    for (int fill_with = 0; fill_with <= 0xff; fill_with += 0xff) {
      c = image_copy(&i);
      memset(c.p + s * HALF, fill_with, HALF);
      rc = code_of(&c, content, &same);
      judge(&t, same, "slot %d filled with %d: code %d", s, fill_with, rc);
      image_free(&c);
    }
  }
  c = image_copy(&i);
  memcpy(c.p, i.p + HALF, HALF);
  memcpy(c.p + HALF, i.p, HALF);
  rc = code_of(&c, content, &same);
  judge(&t, same, "slots exchanged: code %d", rc);
  for (int fill_with = 0; fill_with <= 0xff; fill_with += 0xff) {
    memset(c.p, fill_with, HEADER);
    rc = code_of(&c, content, &same);
    judge(&t, rc == SQLITE_NOTADB, "header filled with %d: code %d", fill_with, rc);
  }
  image_free(&c);
  /* A damaged slot does not stay damaged: the next committed change mends it. */
  c = image_copy(&i);
  memset(c.p + HALF, 0, HALF);
  image_store(&c, "case.db");
  image_free(&c);
  sqlite3 *db = open_tde("case.db");
  fill(db, 8, 2);
  (void)sqlite3_close(db);
  c = image_load("case.db");
  memset(c.p, 0, HALF);
  rc = code_of(&c, content, &same);
  judge(&t, rc == SQLITE_OK && !same, "the other slot after a mended one: code %d", rc);
  image_free(&c);
  image_free(&i);
  return t;
}

/* The double-write areas give back the unit they name, and no other. */
tally guard_areas(void) {
  uint64_t content;
  image i = made(512, 8, 1, &content);
  size_t rec = 512 + OVERHEAD;
  tally t = {0, 0};
  int same, rc;

  for (int area = 0; area < 2; area++) {
    size_t place = SLOT + (size_t)area * HALF;
    for (uint8_t source = 0; source < 5; source++) {
      image c = image_copy(&i);
      memset(c.p + place, 0, 8);
      c.p[place] = 3; /* index + 1: unit 2 */
      memcpy(c.p + place + 8, i.p + main_at(512, source), rec);
      memset(c.p + main_at(512, 2) + 100, 0, 50);
      rc = code_of(&c, content, &same);
      judge(&t, source == 2 ? same : rc == SQLITE_IOERR_DATA,
            "area %d with unit %d for a damaged unit 2: code %d", area, source, rc);
      image_free(&c);
    }
    /* Garbage in an area does not matter to whole units. */
    image c = image_copy(&i);
    memset(c.p + place, 1, HALF - SLOT);
    rc = code_of(&c, content, &same);
    judge(&t, same, "area %d with garbage: code %d", area, rc);
    image_free(&c);
  }
  image_free(&i);
  return t;
}
