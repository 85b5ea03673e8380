/*
** format.c: fuzz targets for header slot, log prefix and unit.
**
** The first byte of a slot's or a prefix's input says how the bytes come about:
** as they are, or as a valid one with edits, and whether SHA-256 and HMAC are
** made to fit (the parser behind them must be as robust). What must hold: a
** result is "good" exactly when an independent computation says so.
*/
#include <stdlib.h>

#include "../../ext/base/bytes.h"
#include "../../ext/base/crypto.h"
#include "../../vfs/header.h"
#include "../../vfs/unit.h"
#include "fuzz.h"

#define HOW_TEMPLATE 1
#define HOW_SHA 2
#define HOW_MAC 4

static uint8_t mac_key[TDE_KEY_BYTES];
static tde_aead *aead;

static void setup(void) {
  FUZZ_ASSERT(tde_crypto_init(NULL) == TDE_OK);
  memset(mac_key, 0x5a, sizeof(mac_key));
  FUZZ_ASSERT(tde_aead_new(mac_key, NULL, &aead, NULL) == TDE_OK);
}

/* ---- header slot ---- */

static void fix_slot(uint8_t *slot, int how) {
  size_t ndoc = tde_get32le(slot + 56);

  if (ndoc > TDE_DOC_MAX) return;
  if (how & HOW_MAC) {
    fuzz_hmac(mac_key, slot, TDE_SLOT_MACED, slot + TDE_SLOT_FIXED, ndoc, slot + 64);
  }
  if (how & HOW_SHA) fuzz_sha256(slot, 96, slot + TDE_SLOT_FIXED, ndoc, slot + 96);
}

static void check_good_slot(const uint8_t *slot, const tde_header *h) {
  uint8_t digest[TDE_HASH_BYTES], *again = malloc(TDE_SLOT_BYTES);
  tde_header h2;
  tde_slot_info info;
  int authentic;

  FUZZ_ASSERT(again != NULL);
  FUZZ_ASSERT(h->ndoc >= 1 && h->ndoc <= TDE_DOC_MAX && h->doc[h->ndoc] == 0);
  FUZZ_ASSERT(memcmp(h->doc, slot + TDE_SLOT_FIXED, h->ndoc) == 0);
  FUZZ_ASSERT(h->unit_size == 0 || (h->unit_size >= 512 && h->unit_size <= 4096 &&
                                    (h->unit_size & (h->unit_size - 1)) == 0));
  fuzz_sha256(slot, 96, slot + TDE_SLOT_FIXED, h->ndoc, digest);
  FUZZ_ASSERT(memcmp(digest, slot + 96, sizeof(digest)) == 0);
  fuzz_hmac(mac_key, slot, TDE_SLOT_MACED, h->doc, h->ndoc, digest);
  authentic = memcmp(digest, slot + 64, sizeof(digest)) == 0;
  FUZZ_ASSERT(tde_header_check_mac(h, mac_key) == (authentic ? TDE_OK : TDE_WRONG_KEY));

  FUZZ_ASSERT(tde_slot_build(h, mac_key, again) == TDE_OK);
  FUZZ_ASSERT(tde_slot_parse(again, &h2, &info) == TDE_OK && info.valid);
  FUZZ_ASSERT(tde_header_check_mac(&h2, mac_key) == TDE_OK);
  FUZZ_ASSERT(h2.sequence == h->sequence && h2.epoch == h->epoch && h2.ndoc == h->ndoc &&
              h2.unit_size == h->unit_size && memcmp(h2.uuid, h->uuid, sizeof(h->uuid)) == 0 &&
              memcmp(h2.doc, h->doc, h->ndoc) == 0);
  tde_header_clear(&h2);
  free(again);
}

static void run_slot(const uint8_t *data, size_t size) {
  static char doc[] = "{\"version\":1,\"mode\":\"inherit\",\"epoch\":1}";
  fuzz_reader r = {data, size};
  int how = fuzz_u8(&r);
  uint8_t *slot = calloc(1, TDE_SLOT_BYTES);
  tde_header h;
  tde_slot_info info;
  tde_class c;

  FUZZ_ASSERT(slot != NULL);
  if (how & HOW_TEMPLATE) {
    memset(&h, 0, sizeof(h));
    h.unit_size = 1024;
    h.sequence = 3;
    h.epoch = 1;
    h.doc = doc;
    h.ndoc = sizeof(doc) - 1;
    FUZZ_ASSERT(tde_slot_build(&h, mac_key, slot) == TDE_OK);
    fuzz_edit(&r, slot, TDE_SLOT_BYTES);
  } else {
    memcpy(slot, r.p, r.n < TDE_SLOT_BYTES ? r.n : TDE_SLOT_BYTES);
  }
  fix_slot(slot, how);
  c = tde_slot_parse(slot, &h, &info);
  FUZZ_ASSERT(c == TDE_OK || c == TDE_NEWER_FORMAT || c == TDE_DAMAGED_HEADER);
  FUZZ_ASSERT(info.valid == (c == TDE_OK));
  FUZZ_ASSERT(info.found[0] && strnlen(info.found, sizeof(info.found)) < sizeof(info.found));
  if (c == TDE_OK) {
    check_good_slot(slot, &h);
  } else {
    FUZZ_ASSERT(h.doc == NULL);
  }
  tde_header_clear(&h);
  free(slot);
}

static const char *const slot_words[] = {"SQLite-TDE\r\n\x1a\n", NULL};
const fuzz_target fuzz_slot = {"slot", setup, run_slot, 512, slot_words};

/* ---- prefix of a WAL or journal ---- */

static void run_prefix(const uint8_t *data, size_t size) {
  fuzz_reader r = {data, size};
  int how = fuzz_u8(&r);
  tde_role role = how & 8 ? TDE_ROLE_JOURNAL : TDE_ROLE_WAL;
  uint8_t *b = calloc(1, TDE_PREFIX_BYTES), again[TDE_PREFIX_BYTES], mac[TDE_HASH_BYTES];
  uint8_t sum[TDE_HASH_BYTES], chain[8];
  tde_prefix p;
  tde_prefix_found found;

  FUZZ_ASSERT(b != NULL);
  if (how & HOW_TEMPLATE) {
    memset(&p, 0x11, sizeof(p));
    p.epoch = 1;
    p.unit_size = role == TDE_ROLE_WAL ? 4096 + 24 : 512;
    FUZZ_ASSERT(tde_prefix_build(&p, role, mac_key, b) == TDE_OK);
    fuzz_edit(&r, b, TDE_PREFIX_BYTES);
  } else {
    memcpy(b, r.p, r.n < TDE_PREFIX_BYTES ? r.n : TDE_PREFIX_BYTES);
  }
  fuzz_prefix_mac(mac_key, b, mac);
  if (how & HOW_MAC) memcpy(b + 96, mac, sizeof(mac));
  fuzz_prefix_sum(b, sum);
  if (how & HOW_SHA) memcpy(b + 20, sum, 4);
  fuzz_prefix_chain(b, chain);
  if (how & HOW_SHA) memcpy(b + 24, chain, sizeof(chain));
  found = tde_prefix_parse(b, role, &p);
  FUZZ_ASSERT((found == TDE_PREFIX_NONE) == tde_all_zero(b, TDE_PREFIX_BYTES));
  FUZZ_ASSERT(tde_prefix_check_mac(b, mac_key) ==
              (memcmp(mac, b + 96, sizeof(mac)) == 0 ? TDE_OK : TDE_WRONG_KEY));
  if (found == TDE_PREFIX_OK) {
    FUZZ_ASSERT(memcmp(sum, b + 20, 4) == 0 && memcmp(chain, b + 24, sizeof(chain)) == 0);
    /* Nothing in the prefix is outside what the parser hands over. */
    FUZZ_ASSERT(tde_prefix_build(&p, role, mac_key, again) == TDE_OK);
    FUZZ_ASSERT(memcmp(again, b, 20) == 0 && memcmp(again + 32, b + 32, 64) == 0);
    FUZZ_ASSERT(tde_prefix_parse(again, role, &p) == TDE_PREFIX_OK);
    FUZZ_ASSERT(tde_prefix_check_mac(again, mac_key) == TDE_OK);
    FUZZ_ASSERT(tde_prefix_parse(b, role == TDE_ROLE_WAL ? TDE_ROLE_JOURNAL : TDE_ROLE_WAL, &p) ==
                TDE_PREFIX_FOREIGN);
  }
  free(b);
}

static const char *const prefix_words[] = {"TDE\x01", "SQLite-TDE\x01", NULL};
const fuzz_target fuzz_prefix = {"prefix", setup, run_prefix, 160, prefix_words};

/* ---- unit ----
** Input: size, role (1); how (1); index (4); pad (2); then the record, or the
** edits of a sealed one. A record that is not the sealed one, or stands
** elsewhere, must not open, and nothing of it may come out. */

static int same_place(const tde_unit_place *a, const tde_unit_place *b, const uint8_t *salt_a,
                      const uint8_t *salt_b) {
  return a->role == b->role && a->index == b->index && memcmp(salt_a, salt_b, TDE_SALT_BYTES) == 0;
}

static void run_unit(const uint8_t *data, size_t size) {
  static const uint32_t sizes[8] = {32, 512, 536, 1024, 2048, 4096, 4120, 65560};
  fuzz_reader r = {data, size};
  uint8_t first = fuzz_u8(&r), how = fuzz_u8(&r), salt[2][TDE_SALT_BYTES];
  uint32_t n = sizes[first & 7], pad;
  tde_unit_place at = {(uint8_t)(first >> 4), fuzz_u32(&r), salt[0]}, there = at;
  uint8_t *record = calloc(1, n + TDE_UNIT_OVERHEAD), *whole = malloc(n + TDE_UNIT_OVERHEAD);
  uint8_t *plain = malloc(n), *out = malloc(n), *to = how & 2 ? record + TDE_UNIT_HEAD : out;
  tde_class c;
  int good;

  FUZZ_ASSERT(record && whole && plain && out);
  memset(salt, 0, sizeof(salt));
  memset(plain, 0xa5, n);
  memset(out, 0xee, n);
  pad = fuzz_u16(&r) % (n + 1);
  FUZZ_ASSERT(tde_unit_seal(aead, &at, 1, pad, plain, whole, n) == TDE_OK);
  if (how & HOW_TEMPLATE) {
    memcpy(record, whole, n + TDE_UNIT_OVERHEAD);
    if (how & 4) there.index ^= (uint64_t)1 << (how >> 5 << 3);
    if (how & 8) there.role ^= 1;
    if (how & 16) salt[1][how >> 5] = 1, there.salt = salt[1];
    fuzz_edit(&r, record, n + TDE_UNIT_OVERHEAD);
  } else {
    memcpy(record, r.p, r.n < n + TDE_UNIT_OVERHEAD ? r.n : n + TDE_UNIT_OVERHEAD);
  }
  good = memcmp(record, whole, n + TDE_UNIT_OVERHEAD) == 0 &&
         same_place(&at, &there, salt[0], there.salt);
  c = tde_unit_open(aead, &there, record, n, to);
  FUZZ_ASSERT(c == (good ? TDE_OK : TDE_TAMPERED));
  FUZZ_ASSERT(good ? memcmp(to, plain, n) == 0 : tde_all_zero(to, n));
  free(record);
  free(whole);
  free(plain);
  free(out);
}

const fuzz_target fuzz_unit = {"unit", setup, run_unit, 256, NULL};
