/*
** sealed.c: one sealed-unit file; the design is told in sealed.h.
*/
#include "sealed.h"

#include <string.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"

SQLITE_EXTENSION_INIT3

/* A unit that fails is read again, each time after twice as long, for 51 ms in all: another
** process may be writing it (a page smaller than the unit beside a checkpoint, the sweep of
** a new DEK), and lose the processor meanwhile. Of a file with more such units than this
** every further one is read again for a short time only, and once without a pause where the
** locks say that nobody writes: who did when it was read is done. */
#define REREADS_SHORT 2
#define PATIENCE 8

/* Zeros to fill gaps with: a unit, or the place of a record. */
static const uint8_t zero_unit[TDE_UNIT_MAIN_MAX + TDE_UNIT_OVERHEAD];

static int private_file(const tde_sealed *s) {
  return s->geo.role == TDE_ROLE_TEMP || s->geo.role == TDE_ROLE_JOURNAL;
}

static int grow(uint8_t **p, uint32_t *cap, uint32_t want) {
  uint8_t *q;

  if (*cap >= want) return SQLITE_OK;
  q = sqlite3_malloc64(want);
  if (!q) return SQLITE_NOMEM;
  if (*p) sqlite3_free(*p);
  *p = q;
  *cap = want;
  return SQLITE_OK;
}

void tde_sealed_init(tde_sealed *s, sqlite3_file *lower, tde_role role, uint32_t unit,
                     tde_cryptor *crypt, tde_counters *counters, const tde_sealed_hooks *hooks,
                     void *ctx) {
  memset(s, 0, sizeof(*s));
  s->lower = lower;
  s->crypt = crypt;
  s->counters = counters;
  s->hooks = hooks;
  s->ctx = ctx;
  tde_geometry_init(&s->geo, role, unit);
}

void tde_sealed_drop(tde_sealed *s) {
  if (s->cur && s->cur_active) tde_wipe(s->cur + s->cur_lo, s->cur_hi - s->cur_lo);
  s->cur_active = s->cur_dirty = 0;
  s->run_units = s->run_len = 0;
  s->ahead_units = 0;
  s->prefix_pending = 0;
  s->size_known = 0;
}

void tde_sealed_clear(tde_sealed *s) {
  tde_sealed_drop(s);
  sqlite3_free(s->cur);
  sqlite3_free(s->run);
  sqlite3_free(s->scratch);
  sqlite3_free(s->ahead);
  sqlite3_free(s->plain);
  memset(s, 0, sizeof(*s));
}

/* Buffers beyond this are given back between transactions: thousands of
** databases may be open. */
#define KEEP_BYTES (16u * 1024u)

void tde_sealed_forget(tde_sealed *s) {
  s->ahead_units = 0;
  sqlite3_free(s->ahead);
  s->ahead = NULL;
  if (tde_sealed_pending(s)) return;
  s->size_known = 0;
  if (s->run_cap > KEEP_BYTES) {
    sqlite3_free(s->run);
    s->run = NULL;
    s->run_cap = 0;
  }
}

void tde_sealed_trim(tde_sealed *s) {
  sqlite3_free(s->plain);
  s->plain = NULL;
  s->plain_cap = 0;
}

int tde_sealed_scratch(tde_sealed *s, uint32_t n) {
  return grow(&s->scratch, &s->scratch_cap, n + TDE_UNIT_OVERHEAD);
}

int tde_sealed_buffers(tde_sealed *s, uint32_t n) {
  int rc = tde_sealed_scratch(s, n);
  return rc ? rc : grow(&s->plain, &s->plain_cap, n);
}

static tde_unit_place place_of(const tde_sealed *s, uint64_t i) {
  tde_unit_place at = {s->geo.role, i, s->salt};
  return at;
}

tde_class tde_sealed_open_record(tde_sealed *s, uint64_t i, const uint8_t *record, uint8_t *out) {
  tde_unit_place at = place_of(s, i);
  uint32_t epoch = tde_unit_epoch(record);
  tde_aead *aead;
  tde_class c = tde_cryptor_get(s->crypt, epoch, &aead);

  if (c == TDE_WRONG_KEY) { /* an epoch that is new here, or one that nobody wrote */
    c = s->hooks->learn ? s->hooks->learn(s->ctx, epoch) : TDE_TAMPERED;
    if (c == TDE_OK) c = tde_cryptor_get(s->crypt, epoch, &aead);
  }
  if (c == TDE_OK) c = tde_unit_open(aead, &at, record, tde_unit_size(&s->geo, i), out);
  if (c == TDE_OK) {
    s->counters->units_opened++;
  } else {
    memset(out, 0, tde_unit_size(&s->geo, i));
  }
  return c;
}

/* ---- the lower file ---- */

int tde_sealed_fetch(tde_sealed *s, uint64_t i, uint32_t count, uint8_t *record, uint32_t *got,
                     int *torn) {
  uint32_t want = tde_record_size(&s->geo, i) + (count - 1) * (s->geo.unit + TDE_UNIT_OVERHEAD);
  uint64_t at = tde_unit_physical(&s->geo, i), rest, units;
  sqlite3_int64 size = 0;
  int rc = s->lower->pMethods->xRead(s->lower, record, (int)want, (sqlite3_int64)at);

  s->counters->lower_reads++;
  *torn = 0;
  *got = count;
  if (rc != SQLITE_IOERR_SHORT_READ) return rc;
  /* The lower VFS zero-fills and does not say from where: ask for the size. */
  rc = s->lower->pMethods->xFileSize(s->lower, &size);
  if (rc) return rc;
  units = tde_units_in(&s->geo, (uint64_t)size, &rest);
  *got = units > i ? (units - i < count ? (uint32_t)(units - i) : count) : 0;
  *torn = rest != 0 && *got < count && i + *got == units;
  if (*got < count) return SQLITE_IOERR_SHORT_READ;
  /* All of it is there: the file has just grown, or the read was at fault. */
  rc = s->lower->pMethods->xRead(s->lower, record, (int)want, (sqlite3_int64)at);
  return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_IOERR_READ : rc;
}

/* Does the last unit of a main database say that it is full? A pad of zero needs no
** proof: a unit that does not open counts as full, too. */
static int last_is_full(tde_sealed *s, int *full) {
  uint8_t head[TDE_UNIT_HEAD];
  int rc = s->lower->pMethods->xRead(s->lower, head, sizeof(head),
                                     (sqlite3_int64)tde_unit_physical(&s->geo, s->nunits - 1));

  s->counters->lower_reads++;
  *full = rc == SQLITE_OK && tde_unit_pad(head) == 0;
  return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_OK : rc; /* it shrinks: the whole way */
}

static int load_size(tde_sealed *s) {
  sqlite3_int64 size = 0;
  uint64_t rest;
  int rc, full = 0;

  if (s->size_known) return SQLITE_OK;
  rc = s->lower->pMethods->xFileSize(s->lower, &size);
  if (rc == SQLITE_OK && s->hooks->trim) rc = s->hooks->trim(s->ctx, &size);
  if (rc) return rc;
  s->nunits = tde_units_in(&s->geo, (uint64_t)size, &rest);
  s->tail = (uint32_t)rest;
  s->last_pad = 0;
  s->size_known = 1;
  if (s->nunits && s->geo.role == TDE_ROLE_MAIN && (s->small_pages || !s->pad_seen)) {
    rc = last_is_full(s, &full);
    if (rc) {
      s->size_known = 0;
      return rc;
    }
    if (full) s->pad_seen = 1;
  }
  if (s->nunits && !full && (private_file(s) || s->small_pages || !s->pad_seen)) {
    /* The pad counts only when it is authentic: open the last unit. A unit
    ** that does not open (an older generation, a torn page before its hot
    ** journal is played back) counts as full. */
    uint32_t got;
    int torn;
    uint64_t last = s->nunits - 1;
    if (grow(&s->scratch, &s->scratch_cap, tde_record_size(&s->geo, last)) ||
        grow(&s->plain, &s->plain_cap, tde_unit_size(&s->geo, last))) {
      s->size_known = 0;
      return SQLITE_NOMEM;
    }
    rc = tde_sealed_fetch(s, last, 1, s->scratch, &got, &torn);
    if (rc == SQLITE_OK) {
      tde_class c = tde_sealed_open_record(s, last, s->scratch, s->plain);
      if (c == TDE_OK) s->last_pad = tde_unit_pad(s->scratch);
      if (s->last_pad && s->geo.role == TDE_ROLE_MAIN) s->small_pages = s->guarding = 1;
      if (c && c != TDE_TAMPERED) rc = tde_class_rc(c);
    }
    tde_wipe(s->plain, s->plain_cap);
    if (rc && rc != SQLITE_IOERR_SHORT_READ) {
      s->size_known = 0;
      return rc;
    }
    s->pad_seen = 1;
  }
  return SQLITE_OK;
}

int tde_sealed_size(tde_sealed *s, uint64_t *size) {
  uint64_t end;
  int rc;

  if (!private_file(s) && !tde_sealed_pending(s)) s->size_known = 0;
  rc = load_size(s);
  if (rc) return rc;
  end = s->nunits ? tde_unit_start(&s->geo, s->nunits) - s->last_pad : 0;
  if (s->tail && s->geo.role == TDE_ROLE_MAIN && !tde_sealed_pending(s)) {
    /* As in a plain file that ends within a page: the page is there, torn. */
    end += s->tail < s->geo.unit ? s->tail : s->geo.unit - 1;
  }
  if (s->cur_active && s->cur_dirty) {
    uint64_t tail = tde_unit_start(&s->geo, s->cur_index) + s->cur_hi;
    if (tail > end) end = tail;
  }
  *size = end;
  return SQLITE_OK;
}

/* ---- the run ---- */

static int flush_run(tde_sealed *s) {
  const uint8_t *from;
  uint64_t at;
  uint32_t n;
  int rc;

  if (!s->run_units) return SQLITE_OK;
  s->ahead_units = 0;
  if (s->hooks->before_write) {
    rc = s->hooks->before_write(s->ctx);
    if (rc) return rc;
  }
  from = s->run + TDE_PREFIX_BYTES;
  n = s->run_len;
  at = tde_unit_physical(&s->geo, s->run_first);
  if (s->prefix_pending && s->run_first == 0) {
    memcpy(s->run, s->prefix, TDE_PREFIX_BYTES);
    from = s->run;
    n += TDE_PREFIX_BYTES;
    at = 0;
  }
  rc = s->lower->pMethods->xWrite(s->lower, from, (int)n, (sqlite3_int64)at);
  s->counters->lower_writes++;
  if (rc) return rc;
  if (s->run_first == 0) s->prefix_pending = 0;
  s->run_units = s->run_len = 0;
  return SQLITE_OK;
}

/* Makes room for one more record behind the run. */
static int run_reserve(tde_sealed *s, uint32_t record) {
  uint32_t want = TDE_PREFIX_BYTES + s->run_len + record, cap;
  uint8_t *q;

  if (want <= s->run_cap) return SQLITE_OK;
  cap = s->run_cap ? s->run_cap * 4 : 2 * record + TDE_PREFIX_BYTES;
  if (cap < want) cap = want;
  if (cap > TDE_RUN_MAX + TDE_PREFIX_BYTES) cap = TDE_RUN_MAX + TDE_PREFIX_BYTES;
  if (cap < want) cap = want;
  q = sqlite3_realloc64(s->run, cap);
  if (!q) return SQLITE_NOMEM;
  s->run = q;
  s->run_cap = cap;
  return SQLITE_OK;
}

/* Where unit i's record goes in the run; flushes when it does not join. */
static int run_place(tde_sealed *s, uint64_t i, uint8_t **slot, int *append) {
  uint32_t record = tde_record_size(&s->geo, i);
  int rc;

  if (tde_sealed_in_run(s, i)) {
    *slot = s->run + TDE_PREFIX_BYTES +
            (tde_unit_physical(&s->geo, i) - tde_unit_physical(&s->geo, s->run_first));
    *append = 0;
    return SQLITE_OK;
  }
  if (s->run_units &&
      (i != s->run_first + s->run_units || s->run_len + record > TDE_RUN_MAX ||
       tde_unit_physical(&s->geo, i) != tde_unit_physical(&s->geo, s->run_first) + s->run_len)) {
    rc = flush_run(s);
    if (rc) return rc;
  }
  rc = run_reserve(s, record);
  if (rc) return rc;
  if (!s->run_units) s->run_first = i;
  *slot = s->run + TDE_PREFIX_BYTES + s->run_len;
  *append = 1;
  return SQLITE_OK;
}

/* Remembers that unit i was sealed here. */
static void note_own(tde_sealed *s, uint64_t i) {
  if (s->own_from == s->own_to || i > s->own_to || i + 1 < s->own_from) {
    s->own_from = i;
    s->own_to = i + 1;
    return;
  }
  if (i < s->own_from) s->own_from = i;
  if (i >= s->own_to) s->own_to = i + 1;
}

/* Seals unit i, of which the first len bytes lie within the file (pt is zero
** behind them). */
static int put_unit(tde_sealed *s, uint64_t i, const uint8_t *pt, uint32_t len) {
  uint32_t n = tde_unit_size(&s->geo, i), pad = n - len;
  uint32_t epoch = s->epoch ? s->epoch : s->crypt->current;
  tde_unit_place at = place_of(s, i);
  tde_aead *aead;
  uint8_t *slot, *to;
  tde_class c;
  int append, rc;

  c = tde_cryptor_get(s->crypt, epoch, &aead);
  if (c) return tde_class_rc(c);
  rc = run_place(s, i, &slot, &append);
  if (rc) return rc;
  to = slot;
  if (!append) {
    /* A record that waits in the run stays whole should sealing fail. */
    rc = grow(&s->scratch, &s->scratch_cap, n + TDE_UNIT_OVERHEAD);
    if (rc) return rc;
    to = s->scratch;
  }
  c = tde_unit_seal(aead, &at, epoch, pad, pt, to, n);
  if (c) return s->hooks->unsealed(s->ctx, i, c);
  if (!append) memcpy(slot, to, n + TDE_UNIT_OVERHEAD);
  s->counters->units_sealed++;
  note_own(s, i);
  if (append) {
    s->run_units++;
    s->run_len += n + TDE_UNIT_OVERHEAD;
  }
  if (s->size_known) {
    if (i >= s->nunits) {
      s->nunits = i + 1;
      s->last_pad = pad;
    } else if (i == s->nunits - 1) {
      s->last_pad = pad;
    }
  }
  return SQLITE_OK;
}

/* ---- the partial unit ---- */

/* Reads unit i's present content into s->plain. *len: its bytes within the
** file, 0 when it does not exist. */
static int load_unit(tde_sealed *s, uint64_t i, uint32_t *len) {
  uint32_t n = tde_unit_size(&s->geo, i), got;
  const uint8_t *record;
  int torn, rc;
  tde_class c;

  *len = 0;
  if (grow(&s->plain, &s->plain_cap, n)) return SQLITE_NOMEM;
  if (tde_sealed_in_run(s, i)) {
    record = s->run + TDE_PREFIX_BYTES +
             (tde_unit_physical(&s->geo, i) - tde_unit_physical(&s->geo, s->run_first));
  } else {
    if (s->geo.role != TDE_ROLE_WAL) {
      rc = load_size(s);
      if (rc) return rc;
      if (i >= s->nunits) return SQLITE_OK;
    }
    if (grow(&s->scratch, &s->scratch_cap, n + TDE_UNIT_OVERHEAD)) return SQLITE_NOMEM;
    rc = tde_sealed_fetch(s, i, 1, s->scratch, &got, &torn);
    if (rc == SQLITE_IOERR_SHORT_READ && !tde_sealed_own(s, i)) return SQLITE_OK;
    if (rc) return rc;
    record = s->scratch;
  }
  c = tde_sealed_open_record(s, i, record, s->plain);
  if (c == TDE_TAMPERED && s->hooks->salvage && record == s->scratch &&
      s->hooks->salvage(s->ctx, i, s->scratch, n + TDE_UNIT_OVERHEAD) == SQLITE_OK) {
    c = tde_sealed_open_record(s, i, record, s->plain);
  }
  if (c == TDE_TAMPERED && (s->geo.role == TDE_ROLE_WAL || s->geo.role == TDE_ROLE_JOURNAL) &&
      !tde_sealed_own(s, i)) {
    return SQLITE_OK; /* of an older generation: nothing is there */
  }
  if (c == TDE_TAMPERED && s->gap_page && record == s->scratch &&
      tde_all_zero(record, n + TDE_UNIT_OVERHEAD)) {
    rc = s->hooks->absent(s->ctx, i, s->cur_lo, s->cur_active ? s->cur_hi : 0);
    if (rc != SQLITE_NOTFOUND) return rc;
  }
  if (c) return s->hooks->bad(s->ctx, i, c);
  *len = n - tde_unit_pad(record);
  return SQLITE_OK;
}

/* Completes cur with the old content of its unit. *had: there was some. */
static int cur_complete(tde_sealed *s, int *had) {
  uint32_t len;
  int rc = load_unit(s, s->cur_index, &len);

  *had = 0;
  if (rc) return rc;
  *had = len > 0;
  if (s->cur_lo > 0) {
    uint32_t n = len < s->cur_lo ? len : s->cur_lo;
    if (n) memcpy(s->cur, s->plain, n);
    memset(s->cur + n, 0, s->cur_lo - n);
    s->cur_lo = 0;
  }
  if (len > s->cur_hi) {
    memcpy(s->cur + s->cur_hi, s->plain + s->cur_hi, len - s->cur_hi);
    s->cur_hi = len;
  }
  if (s->plain) tde_wipe(s->plain, s->plain_cap);
  return SQLITE_OK;
}

static int cur_start(tde_sealed *s, uint64_t i, uint32_t at) {
  if (grow(&s->cur, &s->cur_cap, tde_unit_size(&s->geo, i))) return SQLITE_NOMEM;
  s->cur_active = 1;
  s->cur_dirty = 0;
  s->cur_index = i;
  s->cur_lo = s->cur_hi = at;
  return SQLITE_OK;
}

static void cur_end(tde_sealed *s) {
  if (s->cur_active) tde_wipe(s->cur + s->cur_lo, s->cur_hi - s->cur_lo);
  s->cur_active = s->cur_dirty = 0;
}

/* Seals main unit i, which is durable in the guard before its place is overwritten. */
static int put_guarded(tde_sealed *s, uint64_t i, const uint8_t *pt, uint32_t len) {
  int rc = flush_run(s);

  if (rc == SQLITE_OK) rc = put_unit(s, i, pt, len);
  if (rc) return rc;
  if (s->hooks->before_write) rc = s->hooks->before_write(s->ctx);
  if (rc == SQLITE_OK) {
    rc = s->hooks->guard(s->ctx, i, s->run + TDE_PREFIX_BYTES, tde_record_size(&s->geo, i));
  }
  if (rc) {
    /* Unguarded it must not go out, now or later. The caller is told, and
    ** keeps what it has. */
    s->run_units = s->run_len = 0;
    s->size_known = 0;
    return rc;
  }
  return flush_run(s);
}

/* Seals unit i. A main unit that holds several pages is guarded: SQLite writes, and after a crash
** restores, one page of it and relies on the others, which a torn record would take
** along. */
static int put_safely(tde_sealed *s, uint64_t i, const uint8_t *pt, uint32_t len) {
  return s->guarding && s->hooks->guard ? put_guarded(s, i, pt, len) : put_unit(s, i, pt, len);
}

int tde_sealed_settle(tde_sealed *s) {
  uint32_t n;
  int rc, had = 0;

  if (!s->cur_active || !s->cur_dirty) return SQLITE_OK;
  n = tde_unit_size(&s->geo, s->cur_index);
  if (s->cur_lo > 0 || s->cur_hi < n) {
    rc = cur_complete(s, &had);
    if (rc) return rc;
  }
  memset(s->cur + s->cur_hi, 0, n - s->cur_hi);
  rc = put_safely(s, s->cur_index, s->cur, s->cur_hi);
  if (rc) return rc;
  s->cur_dirty = 0;
  if (!private_file(s)) cur_end(s);
  return SQLITE_OK;
}

int tde_sealed_flush(tde_sealed *s) {
  int rc = tde_sealed_settle(s);
  if (rc == SQLITE_OK) rc = flush_run(s);
  return rc;
}

/* ---- writing ---- */

/* Is unit i all that there is of SQLite's lock-byte page, or a part of it? That page is
** never written, in no journal mode: no log has it. */
static int lock_byte_unit(const tde_sealed *s, uint64_t i) {
  uint64_t at = tde_unit_start(&s->geo, i);
  return at + s->geo.unit > TDE_HOLE_START && at < TDE_HOLE_START + s->gap_page;
}

/* Leaves the places of the units from the end of file to unit i without a record: the
** zeros that a file system shows there open as no unit. The first may hold a part of one. */
static int leave_gap(tde_sealed *s, uint64_t i) {
  sqlite3_int64 first = (sqlite3_int64)tde_unit_physical(&s->geo, s->nunits);
  sqlite3_int64 last = (sqlite3_int64)tde_lower_size(&s->geo, i) - 1;
  int n = (int)tde_record_size(&s->geo, s->nunits);
  int rc = flush_run(s);

  if (rc == SQLITE_OK && s->hooks->before_write) rc = s->hooks->before_write(s->ctx);
  if (rc == SQLITE_OK) rc = s->lower->pMethods->xWrite(s->lower, zero_unit, n, first);
  if (rc == SQLITE_OK) rc = s->lower->pMethods->xWrite(s->lower, zero_unit, 1, last);
  s->counters->lower_writes += 2;
  s->size_known = 0;
  return rc ? rc : load_size(s);
}

/* Was the unit in the file when its end was noted under this lock? */
static int was_there(const tde_sealed *s, uint64_t i) {
  return s->geo.role == TDE_ROLE_MAIN && tde_unit_start(&s->geo, i) < s->known_end;
}

/* What lies between the end of file and unit i, to which a write goes, reads as zeros in
** SQLite: sealed zeros. They would make a loss authentic where the file was cut off, so
** the place stays without a record
**  - in WAL mode: every page up to the new end has been written into the WAL, and a
**    checkpoint passes over one (for an older reader's sake, or because a process died
**    within it) only while it is there;
**  - while a hot journal is played back: that brings back every page which the interrupted
**    transaction cut off, but those that were free, and heal.c seals these.
** The page of SQLite's lock bytes is in neither. Nothing would write it anew where an outage tore
** it: in both it is guarded.
** In a transaction of this connection's own the end is where it was when that began, or somebody has
** cut off what was there under this lock: that stays without a record, too. */
static int fill_gap(tde_sealed *s, uint64_t i) {
  int rc;

  if (s->geo.role == TDE_ROLE_WAL) return SQLITE_OK; /* SQLite leaves none there */
  rc = load_size(s);
  while (rc == SQLITE_OK && s->nunits < i) {
    uint64_t to = s->nunits + 1;
    if (!s->gap_page && !was_there(s, s->nunits)) {
      rc = put_unit(s, s->nunits, zero_unit, s->geo.unit);
      continue;
    }
    if (lock_byte_unit(s, s->nunits)) {
      rc = put_guarded(s, s->nunits, zero_unit, s->geo.unit);
      continue;
    }
    while (to < i && !lock_byte_unit(s, to) && (s->gap_page || was_there(s, to))) to++;
    rc = leave_gap(s, to);
  }
  return rc;
}

static int write_part(tde_sealed *s, uint64_t i, uint32_t at, const uint8_t *buf, uint32_t n) {
  uint32_t size = tde_unit_size(&s->geo, i);
  int rc = SQLITE_OK, had;

  if (s->cur_active && s->cur_index != i) {
    rc = tde_sealed_settle(s);
    if (rc) return rc;
    cur_end(s);
  }
  if (!s->cur_active) {
    rc = fill_gap(s, i);
    if (rc == SQLITE_OK) rc = cur_start(s, i, at);
    if (rc) return rc;
  }
  if (at > s->cur_hi || at + n < s->cur_lo) {
    rc = cur_complete(s, &had);
    if (rc) return rc;
    if (at > s->cur_hi) {
      memset(s->cur + s->cur_hi, 0, at - s->cur_hi); /* as in a sparse file */
      s->cur_hi = at;
    }
  }
  memcpy(s->cur + at, buf, n);
  if (at < s->cur_lo) s->cur_lo = at;
  if (at + n > s->cur_hi) s->cur_hi = at + n;
  s->cur_dirty = 1;
  if (s->cur_lo == 0 && s->cur_hi == size && at + n == size) {
    rc = put_safely(s, i, s->cur, size);
    if (rc == SQLITE_OK) cur_end(s);
  }
  return rc;
}

static int write_whole(tde_sealed *s, uint64_t i, const uint8_t *buf) {
  int rc;

  if (s->cur_active) {
    if (s->cur_index == i) {
      cur_end(s); /* overwritten */
    } else {
      rc = tde_sealed_settle(s);
      if (rc) return rc;
    }
  }
  rc = fill_gap(s, i);
  if (rc == SQLITE_OK) rc = put_safely(s, i, buf, tde_unit_size(&s->geo, i));
  return rc;
}

int tde_sealed_write(tde_sealed *s, const uint8_t *buf, uint32_t n, uint64_t off) {
  int rc = SQLITE_OK;

  while (n > 0 && rc == SQLITE_OK) {
    uint32_t at, m;
    uint64_t i = tde_unit_at(&s->geo, off, &at);
    uint32_t size = tde_unit_size(&s->geo, i);
    m = size - at < n ? size - at : n;
    rc = m == size ? write_whole(s, i, buf) : write_part(s, i, at, buf, m);
    buf += m;
    n -= m;
    off += m;
  }
  return rc;
}

/* ---- reading ---- */

tde_class tde_sealed_again(tde_sealed *s, uint64_t i, uint8_t *record, uint8_t *out) {
  int often = s->hopeless < PATIENCE ? TDE_REREADS : REREADS_SHORT, torn;
  int at_rest = s->hopeless >= PATIENCE && s->hooks->at_rest(s->ctx, i);
  tde_class c = TDE_TAMPERED;
  uint32_t got;

  for (int k = 0; k < (at_rest ? 1 : often) && c == TDE_TAMPERED; k++) {
    if (!at_rest) usleep(TDE_REREAD_USEC << k);
    if (tde_sealed_fetch(s, i, 1, record, &got, &torn) == SQLITE_OK) {
      c = tde_sealed_open_record(s, i, record, out);
    }
  }
  if (c == TDE_TAMPERED && s->hopeless < PATIENCE) s->hopeless++;
  return c;
}

/* A lower record that did not open: again, the guard's copy, or the end. */
static int reopen(tde_sealed *s, uint64_t i, tde_class c, uint8_t *out, int flags) {
  uint32_t n = tde_record_size(&s->geo, i), got;
  int torn;

  if (c == TDE_TAMPERED && s->geo.role == TDE_ROLE_MAIN) {
    c = tde_sealed_again(s, i, s->scratch, out);
  }
  /* No copy to be had: perhaps it was put in place meanwhile. */
  if (c == TDE_TAMPERED && s->hooks->salvage &&
      (s->hooks->salvage(s->ctx, i, s->scratch, n) == SQLITE_OK ||
       tde_sealed_fetch(s, i, 1, s->scratch, &got, &torn) == SQLITE_OK)) {
    c = tde_sealed_open_record(s, i, s->scratch, out);
  }
  if (c == TDE_OK) return SQLITE_OK;
  memset(out, 0, tde_unit_size(&s->geo, i));
  if (c == TDE_TAMPERED && (flags & TDE_READ_PROBE)) return SQLITE_NOTFOUND;
  if (c == TDE_TAMPERED && (flags & TDE_READ_SHORT)) return SQLITE_IOERR_SHORT_READ;
  if (c == TDE_TAMPERED && (flags & TDE_READ_LENIENT)) return SQLITE_OK;
  return s->hooks->bad(s->ctx, i, c);
}

/* A part of a log's unit is read: keeps what it begins with. */
static void keep_lead(tde_sealed *s, const uint8_t *unit) {
  if (s->geo.role != TDE_ROLE_WAL) return;
  memcpy(s->lead, unit, sizeof(s->lead));
  s->lead_read = 1;
}

/* Opens part of unit i, which is not in the lower file alone, into buf. */
static int read_pending(tde_sealed *s, uint64_t i, uint32_t at, uint8_t *buf, uint32_t n) {
  uint32_t len;
  int rc;

  if (s->cur_active && s->cur_index == i) {
    if (at >= s->cur_lo && at + n <= s->cur_hi) {
      if (s->cur_lo == 0 && at >= TDE_UNIT_LEAD) keep_lead(s, s->cur);
      memcpy(buf, s->cur + at, n);
      return SQLITE_OK;
    }
    if (s->cur_dirty) {
      rc = tde_sealed_settle(s);
      if (rc) return rc;
    }
    cur_end(s);
  }
  rc = load_unit(s, i, &len);
  if (rc == SQLITE_OK) {
    if (len) {
      keep_lead(s, s->plain);
      memcpy(buf, s->plain + at, n);
    } else {
      memset(buf, 0, n);
    }
    tde_wipe(s->plain, s->plain_cap);
  }
  return rc;
}

/* How many units from i on can be read whole in one lower call. */
static uint32_t batch_of(const tde_sealed *s, uint64_t i, uint32_t n) {
  uint32_t record = s->geo.unit + TDE_UNIT_OVERHEAD, count = 1;

  if (i == 0 && s->geo.first != s->geo.unit) return 1;
  while ((count + 1) * s->geo.unit <= n && (count + 1) * record <= TDE_RUN_MAX) {
    uint64_t j = i + count;
    if (tde_sealed_in_run(s, j) || (s->cur_active && s->cur_index == j)) break;
    if (tde_unit_physical(&s->geo, j) != tde_unit_physical(&s->geo, i) + count * record) break;
    count++;
  }
  return count;
}

/* ---- reading ahead ----
**
** A scan reads unit after unit; from the third on, a run of records is fetched
** with one lower read and kept as ciphertext until the transaction ends
** (tde_sealed_forget: SHARED is taken or given up, a wal-index lock is taken) or
** this connection writes. A unit of it is used only when SQLite asks for that
** page in this same transaction. That is sound: under SHARED nobody writes the
** file in rollback mode; in WAL mode a checkpoint writes only pages that this
** reader's snapshot has in the WAL, or has as they stand in the file already
** (wal.c: a checkpoint goes no further than any reader's mark, and a reader
** that uses no WAL holds checkpoints off). A page torn by the fetch is such a
** page: it is never asked for here. A unit that does not open is read anew.
*/
#define AHEAD_AFTER 3
#define AHEAD_UNITS TDE_FETCH_UNITS
#define AHEAD_PAGE (AHEAD_UNITS / 2) /* units of the largest page that gains by it */

static void note_sequence(tde_sealed *s, uint64_t i, uint32_t count) {
  s->in_sequence = i == s->next_expected ? s->in_sequence + 1 : 0;
  s->next_expected = i + count;
}

/* Do units follow each other, as in a scan? */
static int scanning(const tde_sealed *s) {
  return s->in_sequence >= AHEAD_AFTER;
}

/* Memory that cannot be had is an error, here as at any other read: who is short of
** it is told at the first read, not at some later one. */
static int ahead_room(tde_sealed *s, uint32_t count) {
  if (s->ahead || !scanning(s) || count > AHEAD_PAGE) return SQLITE_OK;
  s->ahead = sqlite3_malloc64((uint64_t)AHEAD_UNITS * (TDE_UNIT_MAIN_MAX + TDE_UNIT_OVERHEAD));
  return s->ahead ? SQLITE_OK : SQLITE_NOMEM;
}

/* The record of unit i if it was or can be read ahead; NULL otherwise. */
static const uint8_t *ahead_record(tde_sealed *s, uint64_t i) {
  uint32_t record = s->geo.unit + TDE_UNIT_OVERHEAD, got;
  uint64_t at = tde_unit_physical(&s->geo, i);
  int torn, rc;

  if (s->ahead_units && i >= s->ahead_first && i < s->ahead_first + s->ahead_units) {
    return s->ahead + (i - s->ahead_first) * record;
  }
  if (!scanning(s) || tde_sealed_pending(s) ||
      tde_unit_physical(&s->geo, i + AHEAD_UNITS - 1) != at + (AHEAD_UNITS - 1) * record) {
    return NULL;
  }
  s->ahead_units = 0;
  rc = tde_sealed_fetch(s, i, AHEAD_UNITS, s->ahead, &got, &torn);
  if ((rc && rc != SQLITE_IOERR_SHORT_READ) || got == 0) return NULL;
  s->ahead_first = i;
  s->ahead_units = got;
  return s->ahead;
}

/* Opens records that are at hand, as far as they open. Returns how many did. */
static uint32_t open_records(tde_sealed *s, uint64_t i, uint32_t count, const uint8_t *records,
                             uint8_t *buf) {
  uint32_t size = tde_unit_size(&s->geo, i), record = size + TDE_UNIT_OVERHEAD, k = 0;

  while (k < count &&
         tde_sealed_open_record(s, i + k, records + k * record, buf + k * size) == TDE_OK) {
    k++;
  }
  return k;
}

/* Opens units of a page from what was read ahead. Returns how many: the rest, and one
** that does not open, is read as usual. A page of many units gains nothing. */
static uint32_t open_ahead(tde_sealed *s, uint64_t i, uint32_t count, uint8_t *buf) {
  const uint8_t *ready = count <= AHEAD_PAGE ? ahead_record(s, i) : NULL;
  uint64_t left;

  if (!ready) return 0;
  left = s->ahead_first + s->ahead_units - i;
  return open_records(s, i, left < count ? (uint32_t)left : count, ready, buf);
}

/* Opens units of a page from the lower file's map. Returns how many: the rest is read
** as usual. */
static uint32_t open_mapped(tde_sealed *s, uint64_t i, uint32_t count, uint8_t *buf) {
  uint32_t n = count * tde_record_size(&s->geo, i);

  if (!s->hooks->copy(s->ctx, tde_unit_physical(&s->geo, i), n, s->scratch)) return 0;
  return open_records(s, i, count, s->scratch, buf);
}

/* Whole units in ways that cost less than a read of the lower file for each page, or
** none. *done: bytes delivered. */
static int read_cheaply(tde_sealed *s, uint64_t i, uint32_t count, uint8_t *buf, uint32_t *done) {
  uint32_t size = tde_unit_size(&s->geo, i), k = 0;
  int rc;

  note_sequence(s, i, count);
  if (s->mapped == TDE_MAPPED_ALL || (s->mapped && !scanning(s))) {
    if (grow(&s->scratch, &s->scratch_cap, count * (size + TDE_UNIT_OVERHEAD))) return SQLITE_NOMEM;
    k = open_mapped(s, i, count, buf);
  }
  if (k == 0) {
    rc = ahead_room(s, count);
    if (rc) return rc;
    k = open_ahead(s, i, count, buf);
  }
  if (k > 0) s->next_expected = i + k;
  *done = k * size;
  return SQLITE_OK;
}

/* Reads from the lower file: one part of a unit, or a batch of whole units.
** *done: bytes delivered. */
static int read_lower(tde_sealed *s, uint64_t i, uint32_t at, uint8_t *buf, uint32_t n, int flags,
                      uint32_t *done) {
  uint32_t size = tde_unit_size(&s->geo, i), record = size + TDE_UNIT_OVERHEAD, got, k;
  uint32_t whole = at == 0 && n >= size, count = whole ? batch_of(s, i, n) : 1;
  int torn, rc;

  *done = 0;
  if (s->geo.role == TDE_ROLE_MAIN && whole && !flags) {
    rc = read_cheaply(s, i, count, buf, done);
    if (rc || *done) return rc;
  }
  if (grow(&s->scratch, &s->scratch_cap, count * record)) return SQLITE_NOMEM;
  rc = tde_sealed_fetch(s, i, count, s->scratch, &got, &torn);
  if (rc && rc != SQLITE_IOERR_SHORT_READ) return rc;
  for (k = 0; k < got; k++) {
    uint8_t *out = whole ? buf + k * size : NULL;
    tde_class c;
    int rc2 = SQLITE_OK;
    if (!whole) {
      if (grow(&s->plain, &s->plain_cap, size)) return SQLITE_NOMEM;
      out = s->plain;
    }
    c = tde_sealed_open_record(s, i + k, s->scratch + k * record, out);
    if (c) {
      rc2 = reopen(s, i + k, c, out, flags);
      if (rc2 == SQLITE_OK && count > 1) {
        /* reopen used the scratch: what lies behind it is read anew */
        *done = (k + 1) * size;
        return SQLITE_OK;
      }
    }
    if (!whole) {
      keep_lead(s, s->plain);
      memcpy(buf, s->plain + at, n);
      tde_wipe(s->plain, size);
    }
    if (rc2) return rc2;
    *done += whole ? size : n;
  }
  if (got < count && torn) {
    if (flags) return SQLITE_IOERR_SHORT_READ;
    return s->hooks->bad(s->ctx, i + got, TDE_TORN);
  }
  return got < count ? SQLITE_IOERR_SHORT_READ : SQLITE_OK;
}

int tde_sealed_read(tde_sealed *s, uint8_t *buf, uint32_t n, uint64_t off, int flags) {
  uint32_t left = n;
  int rc = SQLITE_OK, shortened = 0;

  if (private_file(s)) {
    uint64_t size;
    rc = tde_sealed_size(s, &size);
    if (rc) return rc;
    if (off >= size) {
      left = 0;
      shortened = n > 0;
    } else if (off + n > size) {
      left = (uint32_t)(size - off);
      shortened = 1;
    }
  }
  memset(buf + left, 0, n - left);
  while (left > 0 && rc == SQLITE_OK) {
    uint32_t at, m, done;
    uint64_t i = tde_unit_at(&s->geo, off, &at);
    uint32_t size = tde_unit_size(&s->geo, i);
    m = size - at < left ? size - at : left;
    if (tde_sealed_in_run(s, i) || (s->cur_active && s->cur_index == i)) {
      rc = read_pending(s, i, at, buf, m);
      done = m;
    } else {
      rc = read_lower(s, i, at, buf, at == 0 && left >= size ? left : m, flags, &done);
    }
    if (rc && rc != SQLITE_IOERR_SHORT_READ) break;
    buf += done;
    left -= done;
    off += done;
  }
  if (rc) memset(buf, 0, left);
  return rc == SQLITE_OK && shortened ? SQLITE_IOERR_SHORT_READ : rc;
}

/* ---- truncation ---- */

/* What waits behind the new end, n units, need not be written; on a full disk it could not be.
** The lower file is not asked for its size: what waits before that end may be missing there. */
static void forget_behind(tde_sealed *s, uint64_t n) {
  if (s->cur_active && s->cur_index >= n) cur_end(s);
  if (!s->run_units || s->run_first + s->run_units <= n) return;
  if (s->size_known && s->nunits > n) {
    s->nunits = n;
    s->last_pad = 0;
  }
  if (s->run_first >= n) {
    s->run_units = s->run_len = 0;
    return;
  }
  s->run_units = (uint32_t)(n - s->run_first);
  s->run_len = (uint32_t)(tde_unit_physical(&s->geo, n - 1) + tde_record_size(&s->geo, n - 1) -
                          tde_unit_physical(&s->geo, s->run_first));
}

/* Makes unit i, the new last one, say that so many of its bytes count. (One that was the last
** before keeps the pad of then while the file grows behind it.) */
static int end_within(tde_sealed *s, uint64_t i, uint32_t keep) {
  uint32_t len, size = tde_unit_size(&s->geo, i);
  int rc = load_unit(s, i, &len);

  if (rc == SQLITE_OK && len && len != keep) rc = cur_start(s, i, 0);
  if (rc == SQLITE_OK && len && len != keep) {
    if (len > keep) len = keep;
    memcpy(s->cur, s->plain, len);
    memset(s->cur + len, 0, size - len);
    s->cur_hi = keep;
    rc = put_safely(s, i, s->cur, keep);
    cur_end(s);
    if (rc == SQLITE_OK) rc = flush_run(s);
  }
  if (s->plain) tde_wipe(s->plain, s->plain_cap);
  return rc;
}

static int grow_to(tde_sealed *s, uint64_t size) {
  static const uint8_t zero = 0;
  uint32_t at;
  uint64_t n = tde_unit_at(&s->geo, size - 1, &at) + 1;
  int rc = s->gap_page && n > s->nunits ? fill_gap(s, n) : tde_sealed_write(s, &zero, 1, size - 1);

  return rc == SQLITE_OK ? tde_sealed_flush(s) : rc;
}

int tde_sealed_truncate(tde_sealed *s, uint64_t size) {
  uint64_t now, n;
  uint32_t at = 0;
  int rc;

  n = size ? tde_unit_at(&s->geo, size - 1, &at) + 1 : 0;
  forget_behind(s, n);
  rc = tde_sealed_flush(s);
  if (rc == SQLITE_OK) rc = tde_sealed_size(s, &now);
  if (rc) return rc;
  cur_end(s);
  if (size > now) return grow_to(s, size);
  if (n && tde_unit_start(&s->geo, n) != size) {
    if (s->geo.role == TDE_ROLE_MAIN) s->small_pages = s->guarding = 1;
    rc = end_within(s, n - 1, at + 1);
  } else if (n && (private_file(s) || s->small_pages)) {
    rc = end_within(s, n - 1, tde_unit_size(&s->geo, n - 1));
  }
  if (rc == SQLITE_OK && s->hooks->before_write) rc = s->hooks->before_write(s->ctx);
  if (rc) return rc;
  rc = s->lower->pMethods->xTruncate(s->lower, (sqlite3_int64)tde_lower_size(&s->geo, n));
  s->size_known = 0;
  if (size < s->known_end) s->known_end = size;
  s->ahead_units = 0;
  return rc;
}
