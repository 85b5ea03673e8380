/*
** sealed.h: one sealed-unit file. Every role uses it.
**
** Above, SQLite reads and writes any range; below, whole records of units
** stand at fixed places. In between:
**
**  run   a sequence of sealed records, physically adjacent, not yet written.
**        It holds ciphertext. One lower xWrite carries it. It may wait only
**        where nobody else can look: private files, a WAL's uncommitted tail,
**        a main database under EXCLUSIVE. The owner decides when to flush.
**  cur   one unit of plaintext that is partly written. When its bytes are
**        complete it is sealed into the run; when something else needs the
**        place first, the missing bytes come from the unit's old content.
**
** Invariants:
**  - no plaintext reaches the lower file;
**  - a read sees every byte written before, pending or not;
**  - a failed flush keeps the run: nothing is forgotten that was accepted;
**  - a unit that does not open never yields a byte of itself.
*/
#ifndef TDE_SEALED_H
#define TDE_SEALED_H

#include "cryptor.h"
#include "role.h"
#include "sqlite3ext.h"
#include "tdevfs.h"

/* One lower call stays below this: the unix VFS masks lengths with 0x1ffff.
** The largest single write is a 64 KiB page in 512-byte units: 71,680 bytes. */
#define TDE_RUN_MAX (72u * 1024u)

/* Records that are fetched at once where many are looked at: some 64 KiB of the largest unit. */
#define TDE_FETCH_UNITS 15

/* What the owner of a sealed file decides. */
typedef struct tde_sealed_hooks {
  /* Before any lower write (a main database's journal must go first). */
  int (*before_write)(void *ctx);
  /* A main unit that holds several pages is about to be written: keep its new
  ** record durable elsewhere first. NULL: not needed in this role. */
  int (*guard)(void *ctx, uint64_t index, const uint8_t *record, uint32_t n);
  /* The guard's copy of a record that does not open, or SQLITE_NOTFOUND. */
  int (*salvage)(void *ctx, uint64_t index, uint8_t *record, uint32_t n);
  /* A main unit's place has no record (fill_gap), and its bytes lo to hi alone are being
  ** written: SQLITE_OK where the WAL has all the others, SQLITE_NOTFOUND: it has not. Asked
  ** only while gap_page is set. */
  int (*absent)(void *ctx, uint64_t index, uint32_t lo, uint32_t hi);
  /* A unit that does not open: log it, and say what the read returns. */
  int (*bad)(void *ctx, uint64_t index, tde_class c);
  /* A unit that can not be sealed: log it, and say what the write returns. */
  int (*unsealed)(void *ctx, uint64_t index, tde_class c);
  /* Takes off *size, of the lower file, what stands behind the records and is none. NULL:
  ** nothing ever does. */
  int (*trim)(void *ctx, sqlite3_int64 *size);
  /* A record names a DEK epoch that is not known: TDE_OK when it is now, TDE_TAMPERED: nobody
  ** wrote under it, other classes: its key is not to be had. NULL: no other epochs in this
  ** role. */
  tde_class (*learn)(void *ctx, uint32_t epoch);
  /* Copies from a map of the lower file what of it is mapped. Asked only for whole pages
  ** that SQLite reads, as far as `mapped` says. */
  int (*copy)(void *ctx, uint64_t at, uint32_t n, uint8_t *to);
  /* Is it sure that nobody is writing unit i now, here or elsewhere? Asked of main files alone. */
  int (*at_rest)(void *ctx, uint64_t index);
} tde_sealed_hooks;

/* What another process may be writing is looked at again so often, first after so long and each
** time after twice as long: 51 ms in all. */
#define TDE_REREADS 8
#define TDE_REREAD_USEC 200

/* SQLite's frame header up to the page's checksum: no content (file format, section 4.1). */
#define TDE_UNIT_LEAD 16

typedef struct tde_sealed {
  sqlite3_file *lower;
  const tde_sealed_hooks *hooks;
  void *ctx;
  tde_geometry geo;
  tde_cryptor *crypt;
  tde_counters *counters;
  uint8_t salt[TDE_SALT_BYTES];     /* of this generation; zeros: none */
  uint32_t epoch;                   /* of this generation: its units are sealed under it.
                                    ** 0: under the current one */
  uint8_t prefix[TDE_PREFIX_BYTES]; /* written in front of unit 0 */
  uint8_t prefix_pending;

  uint8_t mapped;      /* which reads ask the owner for its map: TDE_MAPPED_... */
  uint8_t size_known;  /* nunits and last_pad hold */
  uint32_t gap_page;   /* main: bytes of a page while gaps are to be left, else 0: fill_gap */
  uint64_t known_end;  /* main: so long the file was under this lock; 0: not known */
  uint8_t hopeless;    /* main: units that did not open however often they were read */
  uint8_t small_pages; /* main: pages are smaller than U: look at pad */
  uint8_t guarding;    /* ... or were, in this transaction: guard each unit */
  uint8_t pad_seen;    /* the last unit was looked at once */
  uint64_t nunits;
  uint32_t last_pad;
  uint32_t tail; /* bytes of an incomplete record behind the last one */

  uint64_t own_from, own_to; /* log: units sealed by this handle, this generation */

  uint8_t cur_active, cur_dirty;
  uint64_t cur_index;
  uint32_t cur_lo, cur_hi; /* written bytes of cur */
  uint8_t *cur;
  uint32_t cur_cap;

  uint8_t *run; /* TDE_PREFIX_BYTES of room, then records */
  uint32_t run_cap, run_len, run_units;
  uint64_t run_first;

  uint8_t *scratch; /* records read */
  uint32_t scratch_cap;
  uint64_t ahead_first; /* main: records read ahead, in `ahead` */
  uint32_t ahead_units;
  uint8_t *ahead;
  uint64_t next_expected;      /* the unit after the one read last */
  uint32_t in_sequence;        /* reads in a row that began there */
  uint8_t lead[TDE_UNIT_LEAD]; /* log: the first bytes of the unit of which a part was read last */
  uint8_t lead_read;
  uint8_t *plain; /* one opened unit; wiped after use */
  uint32_t plain_cap;
} tde_sealed;

#define TDE_MAPPED_SINGLE 1 /* those that nothing is read ahead for */
#define TDE_MAPPED_ALL 2

/* Read flags. */
#define TDE_READ_LENIENT 1 /* a unit that does not open reads as zeros */
#define TDE_READ_SHORT 2   /* ... ends the read with SQLITE_IOERR_SHORT_READ */
#define TDE_READ_PROBE 4   /* ... ends the read with SQLITE_NOTFOUND, and no word of it */

void tde_sealed_init(tde_sealed *s, sqlite3_file *lower, tde_role role, uint32_t unit,
                     tde_cryptor *crypt, tde_counters *counters, const tde_sealed_hooks *hooks,
                     void *ctx);
void tde_sealed_clear(tde_sealed *s); /* frees buffers; drops what is pending */

int tde_sealed_read(tde_sealed *s, uint8_t *buf, uint32_t n, uint64_t off, int flags);
int tde_sealed_write(tde_sealed *s, const uint8_t *buf, uint32_t n, uint64_t off);
/* Seals the partial unit into the run. */
int tde_sealed_settle(tde_sealed *s);
/* Settles and writes the run. */
int tde_sealed_flush(tde_sealed *s);
int tde_sealed_truncate(tde_sealed *s, uint64_t size);
int tde_sealed_size(tde_sealed *s, uint64_t *size);
/* Forgets everything pending. */
void tde_sealed_drop(tde_sealed *s);
/* Forgets what other connections may change from here on: a transaction ended
** or began. */
void tde_sealed_forget(tde_sealed *s);
static inline int tde_sealed_pending(const tde_sealed *s) {
  return s->run_units > 0 || (s->cur_active && s->cur_dirty);
}
/* True when this handle wrote unit i of the log: it must be there. */
static inline int tde_sealed_own(const tde_sealed *s, uint64_t i) {
  return i >= s->own_from && i < s->own_to;
}
/* True when unit i waits in the run. */
static inline int tde_sealed_in_run(const tde_sealed *s, uint64_t i) {
  return s->run_units && i >= s->run_first && i < s->run_first + s->run_units;
}

/* Makes room in scratch, or in scratch and plain, for one unit of n bytes. */
int tde_sealed_scratch(tde_sealed *s, uint32_t n);
int tde_sealed_buffers(tde_sealed *s, uint32_t n);
/* Gives plain back: many databases are open that nobody reads for long. */
void tde_sealed_trim(tde_sealed *s);
/* Opens one record (tde_record_size bytes) of unit i into out. */
tde_class tde_sealed_open_record(tde_sealed *s, uint64_t i, const uint8_t *record, uint8_t *out);
/* Unit i of a main file did not open. Reads its record again, with pauses where somebody may be writing
** it, and opens it into out. TDE_TAMPERED: it does not. */
tde_class tde_sealed_again(tde_sealed *s, uint64_t i, uint8_t *record, uint8_t *out);
/* Reads `count` records from the lower file, from unit i on. SQLITE_IOERR_SHORT_READ: it has *got of
** them alone; with *torn set it ends inside the next one. */
int tde_sealed_fetch(tde_sealed *s, uint64_t i, uint32_t count, uint8_t *record, uint32_t *got,
                     int *torn);

#endif
