/*
** header.h: the two-slot header of a main database.
**
** The first 64 KiB of the lower file are two halves of 32 KiB. Each half holds
** a slot of 27 KiB and a double-write area of 5 KiB. A slot is a fixed part of
** 128 bytes and the key document. Validation is staged: magic, format version,
** sizes, SHA-256; the HMAC under a key derived from the DEK comes after
** unlocking. The newest slot that is whole counts. An update writes the other
** slot, syncs it and reads it back: a crash anywhere leaves the old one.
** FORMAT.md has the bytes.
**
** This module parses and builds; slots.c reads and writes, database_edit.c has the lock and
** the order.
*/
#ifndef TDE_HEADER_H
#define TDE_HEADER_H

#include <stddef.h>
#include <stdint.h>

#include "../ext/base/status.h"
#include "role.h"
#include "tdevfs.h"

#define TDE_FORMAT_VERSION 1u
#define TDE_SLOT_STRIDE 32768u
#define TDE_SLOT_BYTES 27648u
#define TDE_SLOT_FIXED 128u
#define TDE_SLOT_MACED 64u /* the fixed bytes that the HMAC covers */
#define TDE_DOC_MAX (TDE_SLOT_BYTES - TDE_SLOT_FIXED)
#define TDE_GUARD_BYTES (TDE_SLOT_STRIDE - TDE_SLOT_BYTES)

extern const uint8_t tde_header_magic[16];
extern const uint8_t tde_redo_magic[16]; /* of the log of a long change (redo.c) */
/* Does a file that begins with these 16 bytes belong to a database, as its WAL, its journal
** or the log of a long change? */
int tde_is_log_magic(const uint8_t b[16]);

/* One parsed slot. */
typedef struct tde_header {
  uint32_t version;
  uint32_t unit_size; /* 0: not fixed yet */
  uint64_t sequence;
  uint8_t uuid[TDE_UUID_BYTES];
  uint32_t epoch;                /* current DEK epoch */
  uint8_t maced[TDE_SLOT_MACED]; /* the fixed bytes under the HMAC */
  uint8_t mac[TDE_HASH_BYTES];
  uint8_t sha[TDE_HASH_BYTES]; /* of the whole slot: names its content */
  char *doc;                   /* malloc'd key document, NUL-terminated */
  size_t ndoc;
  int slot; /* 0 or 1: where it was found */
} tde_header;

void tde_header_clear(tde_header *h); /* frees the document */

/* The bytes of a slot that are used, from its fixed part: what has to be read.
** 0: no magic number, or a length out of range. */
uint32_t tde_slot_used(const uint8_t fixed[TDE_SLOT_FIXED]);

/* Where a slot's sequence number stands (8 bytes, LE). */
#define TDE_SLOT_SEQUENCE_AT 32u
/* Where it says whose it is. */
const uint8_t *tde_slot_uuid(const uint8_t *slot);

/* Parses one slot of TDE_SLOT_BYTES, of which only the used ones are looked
** at. info (not NULL) says what was found.
** TDE_OK, TDE_NEWER_FORMAT, TDE_DAMAGED_HEADER (any other defect), TDE_NOMEM. */
tde_class tde_slot_parse(const uint8_t *slot, tde_header *out, tde_slot_info *info);
/* The same for a slot that was found whole before, byte for byte (tde_slot_equals): its
** checksum is not computed again. */
tde_class tde_slot_parse_again(const uint8_t *slot, tde_header *out, tde_slot_info *info);
/* Are these the bytes that h was parsed from? */
int tde_slot_equals(const uint8_t *slot, const tde_header *h);

/* Checks the HMAC. TDE_OK or TDE_WRONG_KEY. */
tde_class tde_header_check_mac(const tde_header *h, const uint8_t mac_key[TDE_KEY_BYTES]);

/* Builds a slot of TDE_SLOT_BYTES (zero-filled to its end). h->doc, ndoc,
** unit_size, sequence, uuid and epoch are used. */
tde_class tde_slot_build(const tde_header *h, const uint8_t mac_key[TDE_KEY_BYTES], uint8_t *slot);

/* The prefix of a WAL or rollback journal. */
typedef struct tde_prefix {
  uint32_t epoch;
  uint32_t unit_size;
  uint8_t uuid[TDE_UUID_BYTES];
  uint8_t salt[TDE_SALT_BYTES];
  uint8_t thumbprint[TDE_THUMB_BYTES];
} tde_prefix;

typedef enum tde_prefix_found {
  TDE_PREFIX_NONE,    /* zeros or too short: no generation here */
  TDE_PREFIX_FOREIGN, /* no prefix of this role, or a torn one */
  TDE_PREFIX_UNKNOWN, /* could not be looked at (memory, crypto library) */
  TDE_PREFIX_OK       /* whole; its HMAC is still to be checked */
} tde_prefix_found;

tde_prefix_found tde_prefix_parse(const uint8_t b[TDE_PREFIX_BYTES], tde_role role,
                                  tde_prefix *out);
tde_class tde_prefix_build(const tde_prefix *p, tde_role role, const uint8_t mac_key[TDE_KEY_BYTES],
                           uint8_t b[TDE_PREFIX_BYTES]);
tde_class tde_prefix_check_mac(const uint8_t b[TDE_PREFIX_BYTES],
                               const uint8_t mac_key[TDE_KEY_BYTES]);

#endif
