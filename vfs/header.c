/*
** header.c: parses and builds header slots and prefixes; see header.h.
**
** Everything read here comes from a file that an attacker may have written:
** each length is checked before it is used, and nothing is trusted before the
** HMAC is.
*/
#include "header.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"

/* The line endings catch a transfer in text mode, as in a PNG file. */
const uint8_t tde_header_magic[16] = {'S', 'Q', 'L',  'i',  't',  'e',  '-', 'T',
                                      'D', 'E', '\r', '\n', 0x1a, '\n', 0,   0};
/* SQLite without the extension must leave the logs of a database that it can not read alone. A
** WAL that it takes for none it deletes as it closes, one of a version that it does not know it
** does not touch (wal.c, walIndexRecover): so this is its magic, a version that is none of its,
** and a page size. A journal whose first byte is zero is no hot one to it (pager.c,
** hasHotJournal); any other it plays back, finds no page in it, and deletes. The last byte of
** either name is the format's version. */
#define LOG_MAGIC 12
static const uint8_t wal_magic[LOG_MAGIC] = {
    0x37, 0x7f, 0x06, 0x82, 'T', 'D', 'E', TDE_FORMAT_VERSION, 0, 0, 0x10, 0};
static const uint8_t journal_magic[LOG_MAGIC] = {0,   'S', 'Q', 'L', 'i', 't',
                                                 'e', '-', 'T', 'D', 'E', TDE_FORMAT_VERSION};

const uint8_t tde_redo_magic[16] = {'S', 'Q', 'L', 'i', 't', 'e', '-',  'T',
                                    'D', 'E', '-', 'L', 'O', 'G', '\r', '\n'};

int tde_is_log_magic(const uint8_t b[16]) {
  return memcmp(b, wal_magic, LOG_MAGIC) == 0 || memcmp(b, journal_magic, LOG_MAGIC) == 0 ||
         memcmp(b, tde_redo_magic, sizeof(tde_redo_magic)) == 0;
}

/* Offsets in the fixed part of a slot. */
enum {
  S_MAGIC = 0,
  S_VERSION = 16,
  S_HEADER = 20,
  S_SLOT = 24,
  S_UNIT = 28,
  S_SEQ = TDE_SLOT_SEQUENCE_AT,
  S_UUID = 40,
  S_NDOC = 56,
  S_EPOCH = 60,
  S_MAC = 64,
  S_SHA = 96
};
/* Offsets in a prefix. */
enum {
  P_MAGIC = 0,
  P_EPOCH = 12,
  P_UNIT = 16,
  P_SUM = 20,
  P_CHAIN = 24,
  P_UUID = 32,
  P_SALT = 48,
  P_THUMB = 64,
  P_MAC = 96
};

void tde_header_clear(tde_header *h) {
  free(h->doc);
  memset(h, 0, sizeof(*h));
}

static tde_class found(tde_slot_info *info, tde_class c, const char *what) {
  (void)snprintf(info->found, sizeof(info->found), "%s", what);
  return c;
}

static int unit_size_ok(uint32_t u) {
  return u == 0 || (u >= 512 && u <= TDE_UNIT_MAIN_MAX && (u & (u - 1)) == 0);
}

/* SHA-256 over the fixed part before the digest, and the document. */
static tde_class slot_digest(const uint8_t *slot, size_t ndoc, uint8_t out[TDE_HASH_BYTES]) {
  return tde_sha256_2(slot, S_SHA, slot + TDE_SLOT_FIXED, ndoc, out);
}

/* The bytes of a slot that its fixed part says are used; 0: no slot. */
uint32_t tde_slot_used(const uint8_t fixed[TDE_SLOT_FIXED]) {
  uint32_t ndoc = tde_get32le(fixed + S_NDOC);

  if (memcmp(fixed + S_MAGIC, tde_header_magic, sizeof(tde_header_magic)) != 0) return 0;
  return ndoc <= TDE_DOC_MAX ? TDE_SLOT_FIXED + ndoc : 0;
}

const uint8_t *tde_slot_uuid(const uint8_t *slot) {
  return slot + S_UUID;
}

int tde_slot_equals(const uint8_t *slot, const tde_header *h) {
  return memcmp(slot, h->maced, TDE_SLOT_MACED) == 0 && tde_get32le(slot + S_NDOC) == h->ndoc &&
         memcmp(slot + S_MAC, h->mac, sizeof(h->mac)) == 0 &&
         memcmp(slot + S_SHA, h->sha, sizeof(h->sha)) == 0 &&
         memcmp(slot + TDE_SLOT_FIXED, h->doc, h->ndoc) == 0;
}

/* Is the checksum that of these bytes? info says why not. */
static tde_class check_digest(const uint8_t *slot, size_t ndoc, tde_slot_info *info) {
  uint8_t digest[TDE_HASH_BYTES];
  tde_class c = slot_digest(slot, ndoc, digest);

  if (c) return found(info, c, "not checked: out of memory");
  if (memcmp(digest, slot + S_SHA, sizeof(digest)) == 0) return TDE_OK;
  return found(info, TDE_DAMAGED_HEADER, "checksum does not match");
}

static tde_class parse(const uint8_t *slot, int again, tde_header *out, tde_slot_info *info) {
  uint32_t ndoc;
  tde_class c;

  memset(out, 0, sizeof(*out));
  memset(info, 0, sizeof(*info));
  if (memcmp(slot + S_MAGIC, tde_header_magic, sizeof(tde_header_magic)) != 0) {
    return found(info, TDE_DAMAGED_HEADER,
                 tde_all_zero(slot, TDE_SLOT_FIXED) ? "all zero" : "no magic number");
  }
  out->version = tde_get32le(slot + S_VERSION);
  if (out->version > TDE_FORMAT_VERSION) {
    (void)snprintf(info->found, sizeof(info->found), "format version %u", out->version);
    return TDE_NEWER_FORMAT;
  }
  ndoc = tde_get32le(slot + S_NDOC);
  out->unit_size = tde_get32le(slot + S_UNIT);
  if (out->version == 0 || tde_get32le(slot + S_HEADER) != TDE_HEADER_BYTES ||
      tde_get32le(slot + S_SLOT) != TDE_SLOT_BYTES || ndoc == 0 || ndoc > TDE_DOC_MAX ||
      !unit_size_ok(out->unit_size)) {
    return found(info, TDE_DAMAGED_HEADER, "sizes out of range");
  }
  c = again ? TDE_OK : check_digest(slot, ndoc, info);
  if (c) return c;
  out->doc = malloc((size_t)ndoc + 1);
  if (!out->doc) return found(info, TDE_NOMEM, "not read: out of memory");
  memcpy(out->doc, slot + TDE_SLOT_FIXED, ndoc);
  out->doc[ndoc] = 0;
  out->ndoc = ndoc;
  out->sequence = tde_get64le(slot + S_SEQ);
  out->epoch = tde_get32le(slot + S_EPOCH);
  memcpy(out->uuid, slot + S_UUID, sizeof(out->uuid));
  memcpy(out->maced, slot, TDE_SLOT_MACED);
  memcpy(out->mac, slot + S_MAC, sizeof(out->mac));
  memcpy(out->sha, slot + S_SHA, sizeof(out->sha));
  info->valid = 1;
  info->sequence = out->sequence;
  return found(info, TDE_OK, "valid");
}

tde_class tde_slot_parse(const uint8_t *slot, tde_header *out, tde_slot_info *info) {
  return parse(slot, 0, out, info);
}

tde_class tde_slot_parse_again(const uint8_t *slot, tde_header *out, tde_slot_info *info) {
  return parse(slot, 1, out, info);
}

tde_class tde_header_check_mac(const tde_header *h, const uint8_t mac_key[TDE_KEY_BYTES]) {
  uint8_t mac[TDE_HASH_BYTES];
  tde_class c = tde_hmac_sha256(mac_key, TDE_KEY_BYTES, h->maced, TDE_SLOT_MACED, h->doc, h->ndoc,
                                mac);

  if (c) return c;
  return tde_equal(mac, h->mac, sizeof(mac)) ? TDE_OK : TDE_WRONG_KEY;
}

tde_class tde_slot_build(const tde_header *h, const uint8_t mac_key[TDE_KEY_BYTES], uint8_t *slot) {
  tde_class c;

  if (h->ndoc == 0 || h->ndoc > TDE_DOC_MAX || !unit_size_ok(h->unit_size)) return TDE_INTERNAL;
  memset(slot, 0, TDE_SLOT_BYTES);
  memcpy(slot + S_MAGIC, tde_header_magic, sizeof(tde_header_magic));
  tde_put32le(slot + S_VERSION, TDE_FORMAT_VERSION);
  tde_put32le(slot + S_HEADER, TDE_HEADER_BYTES);
  tde_put32le(slot + S_SLOT, TDE_SLOT_BYTES);
  tde_put32le(slot + S_UNIT, h->unit_size);
  tde_put64le(slot + S_SEQ, h->sequence);
  memcpy(slot + S_UUID, h->uuid, sizeof(h->uuid));
  tde_put32le(slot + S_NDOC, (uint32_t)h->ndoc);
  tde_put32le(slot + S_EPOCH, h->epoch);
  memcpy(slot + TDE_SLOT_FIXED, h->doc, h->ndoc);
  c = tde_hmac_sha256(mac_key, TDE_KEY_BYTES, slot, TDE_SLOT_MACED, h->doc, h->ndoc, slot + S_MAC);
  if (c) return c;
  return slot_digest(slot, h->ndoc, slot + S_SHA);
}

static const uint8_t *prefix_magic(tde_role role) {
  return role == TDE_ROLE_WAL ? wal_magic : journal_magic;
}

/* The checksum that tells a prefix torn by a crash from one of another
** database: SHA-256 over everything but both checksums. */
static tde_class prefix_sum(const uint8_t *b, uint8_t sum[TDE_HASH_BYTES]) {
  return tde_sha256_2(b, P_SUM, b + P_UUID, TDE_PREFIX_BYTES - P_UUID, sum);
}

static tde_class prefix_mac(const uint8_t *b, const uint8_t *mac_key, uint8_t mac[TDE_HASH_BYTES]) {
  return tde_hmac_sha256(mac_key, TDE_KEY_BYTES, b, P_SUM, b + P_UUID, P_MAC - P_UUID, mac);
}

/* The checksum of SQLite's WAL header (wal.c, walChecksumBytes), over what stands before it. */
static void prefix_chain(const uint8_t *b, uint8_t out[P_UUID - P_CHAIN]) {
  uint32_t s1 = 0, s2 = 0;

  for (int i = 0; i < P_CHAIN; i += 8) {
    s1 += tde_get32le(b + i) + s2;
    s2 += tde_get32le(b + i + 4) + s1;
  }
  tde_put32be(out, s1);
  tde_put32be(out + 4, s2);
}

tde_prefix_found tde_prefix_parse(const uint8_t b[TDE_PREFIX_BYTES], tde_role role,
                                  tde_prefix *out) {
  uint8_t sum[TDE_HASH_BYTES], chain[P_UUID - P_CHAIN];

  memset(out, 0, sizeof(*out));
  if (tde_all_zero(b, TDE_PREFIX_BYTES)) return TDE_PREFIX_NONE;
  if (memcmp(b + P_MAGIC, prefix_magic(role), LOG_MAGIC) != 0) return TDE_PREFIX_FOREIGN;
  if (prefix_sum(b, sum)) return TDE_PREFIX_UNKNOWN;
  prefix_chain(b, chain);
  if (memcmp(sum, b + P_SUM, P_CHAIN - P_SUM) != 0 ||
      memcmp(chain, b + P_CHAIN, sizeof(chain)) != 0)
    return TDE_PREFIX_FOREIGN;
  out->epoch = tde_get32le(b + P_EPOCH);
  out->unit_size = tde_get32le(b + P_UNIT);
  memcpy(out->uuid, b + P_UUID, sizeof(out->uuid));
  memcpy(out->salt, b + P_SALT, sizeof(out->salt));
  memcpy(out->thumbprint, b + P_THUMB, sizeof(out->thumbprint));
  return TDE_PREFIX_OK;
}

tde_class tde_prefix_build(const tde_prefix *p, tde_role role, const uint8_t mac_key[TDE_KEY_BYTES],
                           uint8_t b[TDE_PREFIX_BYTES]) {
  uint8_t sum[TDE_HASH_BYTES];
  tde_class c;

  memset(b, 0, TDE_PREFIX_BYTES);
  memcpy(b + P_MAGIC, prefix_magic(role), LOG_MAGIC);
  tde_put32le(b + P_EPOCH, p->epoch);
  tde_put32le(b + P_UNIT, p->unit_size);
  memcpy(b + P_UUID, p->uuid, sizeof(p->uuid));
  memcpy(b + P_SALT, p->salt, sizeof(p->salt));
  memcpy(b + P_THUMB, p->thumbprint, sizeof(p->thumbprint));
  c = prefix_mac(b, mac_key, b + P_MAC);
  if (c == TDE_OK) c = prefix_sum(b, sum);
  if (c == TDE_OK) memcpy(b + P_SUM, sum, P_CHAIN - P_SUM);
  prefix_chain(b, b + P_CHAIN);
  return c;
}

tde_class tde_prefix_check_mac(const uint8_t b[TDE_PREFIX_BYTES],
                               const uint8_t mac_key[TDE_KEY_BYTES]) {
  uint8_t mac[TDE_HASH_BYTES];
  tde_class c = prefix_mac(b, mac_key, mac);

  if (c) return c;
  return tde_equal(mac, b + P_MAC, sizeof(mac)) ? TDE_OK : TDE_WRONG_KEY;
}
