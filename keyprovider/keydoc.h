/*
** keydoc.h: the key document of one database, kept as JSON in its header.
**
** It says which keys the database needs: the DEK of each epoch in wrapped
** form, the wrapping key's id, version, algorithm and thumbprint, the key list
** with first and last use, identity, mode, auto-rotation and recent events. It
** is readable without any key. Whoever holds the DEK checks the header's MAC
** over it; until then nothing in it is trusted.
**
** Unknown members are kept when a document is changed and written back.
** keydoc.c tells the members.
**
** Thread-safety: a document belongs to one thread at a time.
*/
#ifndef TDE_KEYDOC_H
#define TDE_KEYDOC_H

#include "events.h"
#include "instance.h"

typedef struct tde_keydoc tde_keydoc;

/* Who asks a key service: the name of an identity of the instance (NULL: its
** default), and the client id that it acts for in another tenant (NULL: none).
** Borrowed from where it was taken. */
typedef struct tde_keydoc_asker {
  const char *identity;
  const char *federated_client_id;
  int patient;   /* as in tde_op */
  int64_t until; /* tde_boot_ms() by which all must be asked that belongs together; 0: nothing more does */
} tde_keydoc_asker;

/* Bounds of a document, in bytes of text and in entries. The text fits a header
** slot with room to spare; events beyond their bound make way, oldest first. */
#define TDE_KEYDOC_TEXT_MAX 27000
/* What tde_add_key() leaves free of it, events not counted: room for a wrap of a new DEK and for
** a protector with a longer id, which may take it. A copy whose text would not fit at all drops
** keys of its list until so much is free again (tde_keydoc_fit). */
#define TDE_KEYDOC_RESERVE 4000
#define TDE_KEYDOC_EVENTS_MAX 32
#define TDE_KEYDOC_WRAPS_MAX 16     /* of one epoch */

/* Parses and checks every field's type and bounds. TDE_CORRUPT names the field;
** TDE_NEWER_FORMAT: a later version of this product wrote it. */
tde_class tde_keydoc_parse(const char *text, size_t n, tde_keydoc **out, tde_status *st);
void tde_keydoc_free(tde_keydoc *doc);
/* Compact JSON, malloc'd, NUL-terminated; *n without the NUL. The oldest events
** are left out until it fits; TDE_UNSUPPORTED when it does not even then. */
tde_class tde_keydoc_text(const tde_keydoc *doc, char **text, size_t *n, tde_status *st);

/* A new database's document: draws a DEK into dek (TDE_KEY_BYTES of secret
** memory), wraps it under protector (NULL: the instance's default, mode
** "inherit"), and checks that the wrap unwraps to the same DEK. protector may
** name a version or none. TDE_DISABLED: the key is disabled, expired or not yet
** active, so it must not wrap. asker: who asks for it; where it says no identity, that is
** the instance's default. On failure dek is wiped and *out is NULL. */
tde_class tde_keydoc_create(const tde_instance *inst, const char *protector,
                            const tde_keydoc_asker *asker, const uint8_t uuid[TDE_UUID_BYTES],
                            uint8_t *dek, tde_keydoc **out, tde_status *st);

/* The members by which a key version is told everywhere: key_id, version, type, and so many bytes of
** its thumbprint. True: no memory. */
int tde_key_put(tde_json *obj, const tde_key_info *info, size_t nthumb);

/* Unwraps the DEK of one epoch through its provider into dek (secret memory), in the name of who
** (tde_keydoc_asker_of: whom the document names), or (as not NULL) under another key's id: of a key
** of the same material that is kept elsewhere.
** Its wraps are tried newest first; when all fail, st tells of the last one
** tried, except that a failure which may pass (an outage, memory, I/O) is never
** hidden by an older wrap's: it must not look like a denial. On failure dek is wiped. */
tde_class tde_keydoc_unwrap_as(const tde_keydoc *doc, const tde_instance *inst,
                               const tde_keydoc_asker *who, const char *as, uint32_t epoch,
                               const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, tde_status *st);
/* The same; *which gets the number of the wrap that was unwrapped (from 0). */
tde_class tde_keydoc_unwrap_which(const tde_keydoc *doc, const tde_instance *inst,
                                  const tde_keydoc_asker *who, const char *as, uint32_t epoch,
                                  const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, size_t *which,
                                  tde_status *st);
void tde_keydoc_asker_of(const tde_keydoc *doc, tde_keydoc_asker *out);

/* Facts for status and for stamping WAL and journal. */
/* Do both hold the same DEKs, wrapped by the same keys, byte for byte? */
int tde_keydoc_same_deks(const tde_keydoc *a, const tde_keydoc *b);
uint32_t tde_keydoc_epoch(const tde_keydoc *doc);           /* current DEK epoch */
/* Epochs in ascending order into out; returns their number. */
int tde_keydoc_epochs(const tde_keydoc *doc, uint32_t *out, int cap);
/* The current protector; info->base_id, version, type, algorithm, thumbprint. */
tde_class tde_keydoc_protector(const tde_keydoc *doc, tde_key_info *info, tde_status *st);
const char *tde_keydoc_mode(const tde_keydoc *doc);         /* "inherit" or "database" */
/* The id of the instance that a database inherits from. NULL: its document names none (it was made
** by an earlier version, or under an instance without an id), or it does not inherit. */
const char *tde_keydoc_inherits_from(const tde_keydoc *doc);
/* Is who asks its own, and not whom that instance's default had? Unknown counts as its own. */
int tde_keydoc_has_own_identity(const tde_keydoc *doc);
int tde_keydoc_regenerating(const tde_keydoc *doc);
int tde_keydoc_is_secondary(const tde_keydoc *doc);
int tde_keydoc_is_backup(const tde_keydoc *doc);
/* *checked: Unix time of the last look for a new version, 0: never. */
int tde_keydoc_auto_rotation(const tde_keydoc *doc, int64_t *checked);
/* Every thumbprint that some epoch is wrapped under now: what a restore needs. Into
** out, each once; returns their number. */
int tde_keydoc_needed(const tde_keydoc *doc, tde_key_info *out, int cap);
/* How many wraps the DEK of an epoch has. */
size_t tde_keydoc_wraps(const tde_keydoc *doc, uint32_t epoch);
/* The key that one epoch is wrapped under; false: no such epoch. */
int tde_keydoc_wrap_info(const tde_keydoc *doc, uint32_t epoch, tde_key_info *out);
/* The whole document, borrowed: for views. */
const tde_json *tde_keydoc_json(const tde_keydoc *doc);

/* ---- changing (keydoc_edit.c) ----
**
** A change is made to a parsed document, whose text then goes into the header.
** Those that return int return 0, or -1 when out of memory; a document after a
** failure is of no more use. No function here asks a key service but
** tde_keydoc_wrap and tde_keydoc_create. */

/* Probes a key as a protector: get, wrap of dek, unwrap to the same. *wrap gets
** the wrapped DEK and what is known of the key version. TDE_DISABLED: the key
** must not wrap. */
tde_class tde_keydoc_wrap(const tde_instance *inst, const char *key_id,
                          const tde_keydoc_asker *who, const uint8_t uuid[TDE_UUID_BYTES],
                          uint8_t *dek, tde_op *wrap, tde_status *st);
/* An existing epoch's DEK is wrapped by this key alone from now on. */
int tde_keydoc_set_wrap(tde_keydoc *doc, uint32_t epoch, const tde_op *wrap, int64_t now);
/* An epoch's wrap of this number (tde_keydoc_unwrap_which), alone, is to be unwrapped under
** this key from now on, which the caller has seen to do it. */
int tde_keydoc_move_wrap(tde_keydoc *doc, uint32_t epoch, size_t which, const tde_key_info *info);
/* A key is the protector from now on: it joins the key list, and the times of use
** are noted there. */
int tde_keydoc_use_key(tde_keydoc *doc, const tde_key_info *info, int64_t now);
/* mode: "database". One that inherits names the instance: tde_keydoc_inherit. */
int tde_keydoc_set_mode(tde_keydoc *doc, const char *mode);
/* It inherits from inst, with its default identity as it is now; tde_keydoc_set_identity is the
** caller's. */
int tde_keydoc_inherit(tde_keydoc *doc, const tde_instance *inst);
int tde_keydoc_set_identity(tde_keydoc *doc, const tde_keydoc_asker *who);
/* Adds a key that may read backups. TDE_MISUSE: it is there (the entry is shown). */
tde_class tde_keydoc_list_add(tde_keydoc *doc, const tde_key_info *info, int64_t now,
                              tde_status *st);
/* Removes one, named by key id (all its versions, or one) or by thumbprint (hex, 40
** digits or more). TDE_MISUSE: it is the protector; TDE_MISSING: no such entry. */
tde_class tde_keydoc_list_remove(tde_keydoc *doc, const char *key, tde_status *st);
int tde_keydoc_set_auto_rotation(tde_keydoc *doc, int on);
/* A look for a new version ended: error NULL: it went well. */
int tde_keydoc_rotation_checked(tde_keydoc *doc, int64_t now, int rotated, const char *error);
int tde_keydoc_add_event(tde_keydoc *doc, const tde_event *e);
/* A new DEK epoch, current from now on; the units of the old one are to be sealed
** anew. TDE_MISUSE: a regeneration is under way; TDE_UNSUPPORTED: no number left. */
tde_class tde_keydoc_begin_epoch(tde_keydoc *doc, const tde_op *wrap, int64_t units, int64_t now,
                                 tde_status *st);
int tde_keydoc_epoch_progress(tde_keydoc *doc, int64_t done, int64_t all);
/* No unit of an older epoch is left. */
int tde_keydoc_end_epoch(tde_keydoc *doc, int64_t now);
/* The DEK epochs of another document of the same database: wraps[i] is the wrap of
** epochs[i], NULL where this document has one. current becomes the current epoch;
** keep: epochs that are not named stay. */
int tde_keydoc_take_epochs(tde_keydoc *doc, const uint32_t *epochs, const tde_op *const *wraps,
                           int n, uint32_t current, int keep, int64_t now);
/* Adds the keys of another document's list that this one lacks, and until when they were in use there. */
int tde_keydoc_merge_list(tde_keydoc *doc, const tde_keydoc *from, int64_t now);
/* Where the text is too long: drops entries of the key list that wrap no DEK, oldest first,
** until the reserve is free. *dropped: how many. -1: out of memory. */
int tde_keydoc_fit(tde_keydoc *doc, int *dropped);
/* Where the reserve is not free: drops, oldest first, versions of this key that were protectors once and
** wrap no DEK now, each with an event, until it is. What somebody has put on the list stays, and other
** keys do. -1: out of memory. */
int tde_keydoc_drop_versions(tde_keydoc *doc, const tde_key_info *info, int64_t now);
/* Sets or (v NULL) removes a member that the format does not depend on: origin,
** backup, secondary, secondaries. Takes v over. */
int tde_keydoc_set_member(tde_keydoc *doc, const char *name, tde_json *v);

/* True when a key of the list or a protector is meant by this text: a key id
** with or without version, or a thumbprint. */
int tde_key_named(const tde_key_info *info, const char *key);

#endif
