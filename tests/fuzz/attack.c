/*
** attack.c: the edit script.
**
** One edit: a byte with operation (low half) and file (high half), then the
** operation's arguments. A place is a region (1) and an offset in it (2); regions
** are the header's slots and double-write areas or the prefix, then the records,
** so that few bits of the input lead everywhere. Offsets wrap around: each
** input means something.
*/
#include "attack.h"

#include <stdio.h>
#include <stdlib.h>

#include "../../ext/base/bytes.h"

enum {
  OP_XOR,
  OP_SET,
  OP_ZERO,
  OP_NOISE,
  OP_COPY,
  OP_SWAP,
  OP_MOVE,
  OP_RESIZE,
  OP_DELETE,
  OP_SHIFT,
  OP_DIGEST,
  OP_SIGN,
  OP_RESEAL,
  OP_FOREIGN,
  OP_REPLAY,
  OP_REPLAY_ALL
};

typedef struct target {
  attack *a;
  int which; /* SCENE_MAIN, ... */
  mem_file *f;
  tde_role role;
  tde_geometry g;
  uint64_t units;
} target;

static void aim(target *t, attack *a, int which) {
  static const tde_role roles[SCENE_FILES] = {TDE_ROLE_MAIN, TDE_ROLE_WAL, TDE_ROLE_JOURNAL};
  uint64_t rest;

  t->a = a;
  t->which = which;
  t->role = roles[which];
  t->f = mem_find(scene_file[which], 0);
  tde_geometry_init(&t->g, t->role,
                    t->role == TDE_ROLE_WAL ? a->s->page + TDE_WAL_FRAME_HEAD : a->s->unit);
  t->units = t->f ? tde_units_in(&t->g, t->f->size, &rest) : 0;
}

/* Where a region begins, and how long it is. */
static size_t region_at(const target *t, unsigned region, size_t *len) {
  unsigned fixed = t->role == TDE_ROLE_MAIN ? 4 : 1;
  uint64_t i;

  if (region < fixed || t->units == 0) {
    if (t->role != TDE_ROLE_MAIN) {
      *len = TDE_PREFIX_BYTES;
      return 0;
    }
    region &= 3;
    *len = region < 2 ? TDE_SLOT_BYTES : TDE_GUARD_BYTES;
    return (region & 1) * TDE_SLOT_STRIDE + (region < 2 ? 0 : TDE_SLOT_BYTES);
  }
  i = (region - fixed) % t->units;
  *len = (i ? t->g.unit : t->g.first) + TDE_UNIT_OVERHEAD;
  return (size_t)tde_unit_physical(&t->g, i);
}

static size_t place(const target *t, fuzz_reader *r) {
  size_t len, at = region_at(t, fuzz_u8(r), &len);
  return (at + fuzz_u16(r) % len) % t->f->size;
}

/* A length that stays within the file. */
static size_t length(const target *t, size_t at, size_t n) {
  return at + n > t->f->size ? t->f->size - at : n;
}

static void changed(target *t) {
  t->a->edits++;
  if (getenv("TDE_FUZZ_TRACE")) fprintf(stderr, "edit %d: %s\n", t->a->edits, scene_file[t->which]);
  if (t->which == SCENE_WAL) t->a->log = 1;
  /* Without its journal, a half-written transaction stays; plain SQLite has it
  ** no other way. */
  if (t->which == SCENE_JOURNAL && t->a->s->hot) t->a->mixed = 1;
}

static void op_bytes(target *t, int op, fuzz_reader *r) {
  size_t at = place(t, r), n;
  uint8_t seed;

  switch (op) {
    case OP_XOR:
      seed = fuzz_u8(r);
      t->f->data[at] ^= seed ? seed : 1;
      break;
    case OP_SET:
      n = length(t, at, 1 + (fuzz_u8(r) & 7));
      for (size_t i = 0; i < n; i++) t->f->data[at + i] = fuzz_u8(r);
      break;
    case OP_ZERO:
      memset(t->f->data + at, 0, length(t, at, fuzz_u16(r)));
      break;
    default:
      n = length(t, at, fuzz_u16(r));
      seed = fuzz_u8(r);
      for (size_t i = 0; i < n; i++) t->f->data[at + i] = (uint8_t)(fuzz_hash(seed, &i, sizeof(i)));
      break;
  }
  changed(t);
}

/* Copies one region onto another of the same file, or swaps the two. */
static void op_copy(target *t, int op, fuzz_reader *r) {
  size_t la, lb, a = region_at(t, fuzz_u8(r), &la), b = region_at(t, fuzz_u8(r), &lb);
  size_t n = la < lb ? la : lb;

  if (a == b || a + n > t->f->size || b + n > t->f->size) return;
  for (size_t i = 0; i < n; i++) {
    uint8_t x = t->f->data[b + i];
    t->f->data[b + i] = t->f->data[a + i];
    if (op == OP_SWAP) t->f->data[a + i] = x;
  }
  /* The older slot of the two is authentic, too: nothing can tell. */
  changed(t);
}

/* Bytes of one file over those of another. */
static void op_move(target *t, fuzz_reader *r) {
  target from;
  size_t at, src, n;

  aim(&from, t->a, fuzz_u8(r) % SCENE_FILES);
  if (!from.f || !from.f->size) return;
  at = place(t, r);
  src = place(&from, r);
  n = length(t, at, length(&from, src, fuzz_u16(r)));
  memmove(t->f->data + at, from.f->data + src, n);
  changed(t);
}

static void op_resize(target *t, fuzz_reader *r) {
  size_t len, at = region_at(t, fuzz_u8(r), &len), before = t->f->size;
  int8_t delta = (int8_t)fuzz_u8(r);
  int64_t size = (int64_t)at + delta;

  if (size < 0) size = 0;
  if (mem_resize(t->f, (size_t)size) || t->f->size == before) return;
  if (t->which == SCENE_MAIN) t->a->resized = 1;
  changed(t);
}

static void op_shift(target *t, fuzz_reader *r) {
  size_t at = place(t, r), n = length(t, at, 1 + fuzz_u16(r) % 8192);

  memmove(t->f->data + at, t->f->data + at + n, t->f->size - at - n);
  (void)mem_resize(t->f, t->f->size - n);
  if (t->which == SCENE_MAIN) t->a->resized = 1;
  changed(t);
}

/* Makes SHA-256, and with the key the HMAC, of a slot or prefix fit. */
static void op_sign(target *t, int sign, fuzz_reader *r) {
  size_t len, at = region_at(t, fuzz_u8(r) & 1, &len), ndoc;
  uint8_t *b = t->f->data + at;
  uint8_t key[TDE_KEY_BYTES];
  uint8_t sum[TDE_HASH_BYTES];
  uint32_t epoch;

  if (at + len > t->f->size) return;
  if (t->role != TDE_ROLE_MAIN) {
    epoch = tde_get32le(b + 12);
    if (sign) fuzz_prefix_mac(t->a->s->keys[epoch == 2 ? 2 : 1].mac, b, b + 96);
    fuzz_prefix_sum(b, sum);
    memcpy(b + 20, sum, 4);
    fuzz_prefix_chain(b, b + 24);
  } else {
    ndoc = tde_get32le(b + 56);
    if (ndoc > TDE_DOC_MAX) return;
    if (sign) {
      scene_header_key(b + 40, tde_get32le(b + 60), (const char *)b + TDE_SLOT_FIXED, ndoc, key);
      fuzz_hmac(key, b, TDE_SLOT_MACED, b + TDE_SLOT_FIXED, ndoc, b + 64);
    }
    fuzz_sha256(b, 96, b + TDE_SLOT_FIXED, ndoc, b + 96);
  }
  if (sign) t->a->forged = 1;
  changed(t);
}

/* Opens a record, changes its content and seals it again. */
static void op_reseal(target *t, fuzz_reader *r) {
  uint8_t out[TDE_UNIT_MAX], salt[TDE_SALT_BYTES] = {0}, *record;
  uint64_t i = t->units ? fuzz_u8(r) % t->units : 0;
  uint32_t n = i ? t->g.unit : t->g.first, at = fuzz_u16(r) % n, pad, epoch;
  tde_unit_place where = {(uint8_t)t->role, i, t->role == TDE_ROLE_MAIN ? NULL : salt};
  tde_aead *aead;

  if (!t->units) return;
  if (t->role != TDE_ROLE_MAIN) memcpy(salt, t->f->data + 48, sizeof(salt));
  record = t->f->data + tde_unit_physical(&t->g, i);
  if (!scene_open_record(t->a->s, t->role, i, salt, record, n, out)) return;
  epoch = tde_unit_epoch(record);
  for (size_t k = 1 + (fuzz_u8(r) & 7); k; k--, at = (at + 1) % n) out[at] = fuzz_u8(r);
  pad = fuzz_u16(r) % (n + 1);
  FUZZ_ASSERT(tde_aead_new(t->a->s->keys[epoch].role[t->role], NULL, &aead, NULL) == TDE_OK);
  FUZZ_ASSERT(tde_unit_seal(aead, &where, epoch, pad, out, record, n) == TDE_OK);
  tde_aead_free(aead);
  t->a->forged = 1;
  changed(t);
}

/* A region, or for a log the whole file, of another image. */
static void paste(target *t, const scene_image *img, unsigned region, int whole) {
  size_t len, at = region_at(t, region, &len);

  if (!img->size) return;
  if (whole) {
    if (!t->f) t->f = mem_find(scene_file[t->which], 1);
    if (mem_resize(t->f, img->size)) return;
    memcpy(t->f->data, img->data, img->size);
    if (t->which == SCENE_MAIN) t->a->resized = 1;
  } else {
    if (!t->f || at + len > t->f->size || at + len > img->size) return;
    memcpy(t->f->data + at, img->data + at, len);
  }
  changed(t);
}

/* Another database's. */
static void op_foreign(target *t, fuzz_reader *r) {
  const scene *from = &scenes[fuzz_u8(r) % 16 % scene_count];
  unsigned region = fuzz_u8(r);

  if (from == t->a->s) return;
  if (t->role == TDE_ROLE_MAIN && region < 2) t->a->crossed = 1;
  paste(t, &from->now[t->which], region, t->role != TDE_ROLE_MAIN && (region & 1));
}

static void op_replay(target *t, int whole, fuzz_reader *r) {
  t->a->mixed = 1;
  if (t->a->s->page > t->a->s->unit) t->a->halves = 1;
  paste(t, &t->a->s->older[t->which], fuzz_u8(r), whole);
}

static void op_delete(target *t) {
  changed(t);
  if (t->which == SCENE_MAIN) t->a->resized = 1;
  (void)mem_resize(t->f, 0);
  if (mem_open_count() == 0) t->f->exists = 0;
}

static void one(target *t, int op, fuzz_reader *r) {
  if (op == OP_FOREIGN) {
    op_foreign(t, r);
  } else if (op == OP_REPLAY || op == OP_REPLAY_ALL) {
    op_replay(t, op == OP_REPLAY_ALL, r);
  } else if (!t->f || !t->f->size) {
    return;
  } else if (op <= OP_NOISE) {
    op_bytes(t, op, r);
  } else if (op <= OP_SWAP) {
    op_copy(t, op, r);
  } else if (op == OP_MOVE) {
    op_move(t, r);
  } else if (op == OP_RESIZE) {
    op_resize(t, r);
  } else if (op == OP_DELETE) {
    op_delete(t);
  } else if (op == OP_SHIFT) {
    op_shift(t, r);
  } else if (op == OP_RESEAL) {
    op_reseal(t, r);
  } else {
    op_sign(t, op == OP_SIGN, r);
  }
}

void attack_apply(attack *a, fuzz_reader *r) {
  for (int i = 0; i < ATTACK_MAX && r->n; i++) {
    uint8_t b = fuzz_u8(r);
    target t;
    aim(&t, a, (b >> 4) % 4 % SCENE_FILES);
    one(&t, b & 15, r);
  }
}
