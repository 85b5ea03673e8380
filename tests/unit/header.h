/*
** header.h: headers of databases that are no files, for unit tests of the key ring. Their key
** document is one line that ends with a byte: the DEK is this byte, but for its first, which is
** the epoch.
*/
#ifndef TDE_TESTS_UNIT_HEADER_H
#define TDE_TESTS_UNIT_HEADER_H

#include "../../ext/base/bytes.h"
#include "../../ext/base/crypto.h"
#include "../../vfs/header.h"
#include "../../vfs/keysource.h"
#include "unit.h"

static inline void dek_of(const char *doc, uint32_t epoch, uint8_t *dek) {
  memset(dek, strrchr(doc, ' ')[1], TDE_KEY_BYTES);
  dek[0] = (uint8_t)epoch;
}

/* What every document says: its first word is the key's id, of a key service; one epoch. */
static inline void facts_of(const char *doc, tde_key_facts *out) {
  memset(out, 0, sizeof(*out));
  (void)snprintf(out->key_id, sizeof(out->key_id), "%.*s", (int)strcspn(doc, " "), doc);
  out->remote = out->alone = out->nepochs = 1;
  out->epoch = out->epochs[0] = 1;
}

/* For a key source of a test: what facts_of says, and no interest in events. */
static inline tde_class describe_plainly(void *ctx, const char *doc, size_t ndoc,
                                         tde_key_facts *out, tde_status *st) {
  (void)ctx, (void)ndoc, (void)st;
  facts_of(doc, out);
  return TDE_OK;
}

static inline void ignore_event(void *ctx, const tde_key_params *params, const tde_key_event *e) {
  (void)ctx, (void)params, (void)e;
}

/* A header slot of database `id`, under this epoch alone, authenticated by its DEK; free it. */
static inline uint8_t *make_slot_of(uint32_t id, const char *doc, uint64_t sequence,
                                    uint32_t epoch) {
  uint8_t dek[TDE_KEY_BYTES], mac[TDE_KEY_BYTES], *slot = malloc(TDE_SLOT_BYTES);
  tde_header draft;

  memset(&draft, 0, sizeof(draft));
  memset(draft.uuid, (uint8_t)id, TDE_UUID_BYTES);
  tde_put32le(draft.uuid, id);
  draft.epoch = epoch;
  draft.sequence = sequence;
  draft.doc = (char *)doc;
  draft.ndoc = strlen(doc);
  dek_of(doc, epoch, dek);
  CHECK(tde_hkdf_sha256(draft.uuid, TDE_UUID_BYTES, dek, sizeof(dek),
                        (const uint8_t *)"sqlite-tde v1 header mac", 24, mac, sizeof(mac)) == 0);
  CHECK(tde_slot_build(&draft, mac, slot) == TDE_OK);
  return slot;
}

/* The same, parsed. */
static inline void make_header_of(tde_header *h, uint32_t id, const char *doc, uint64_t sequence,
                                  uint32_t epoch) {
  uint8_t *slot = make_slot_of(id, doc, sequence, epoch);
  tde_slot_info info;

  CHECK(tde_slot_parse(slot, h, &info) == TDE_OK);
  free(slot);
}

static inline uint8_t *make_slot(uint32_t id, const char *doc, uint64_t sequence) {
  return make_slot_of(id, doc, sequence, 1);
}

static inline void make_header(tde_header *h, uint32_t id, const char *doc, uint64_t sequence) {
  make_header_of(h, id, doc, sequence, 1);
}

#endif
