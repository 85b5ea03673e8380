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

#include "instance.h"

typedef struct tde_keydoc tde_keydoc;

/* Bounds of a document, in bytes of text and in entries. The text fits a header
** slot with room to spare; events beyond their bound make way, oldest first. */
#define TDE_KEYDOC_TEXT_MAX 27000
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
** active, so it must not wrap. On failure dek is wiped and *out is NULL. */
tde_class tde_keydoc_create(const tde_instance *inst, const char *protector, const char *identity,
                            const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, tde_keydoc **out,
                            tde_status *st);

/* Unwraps the DEK of one epoch through its provider into dek (secret memory).
** Its wraps are tried newest first; when all fail, st tells of the last one
** tried, except that a failure which may pass (an outage, memory, I/O) is never
** hidden by an older wrap's: it must not look like a denial. On failure dek is wiped. */
tde_class tde_keydoc_unwrap(const tde_keydoc *doc, const tde_instance *inst, uint32_t epoch,
                            const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, tde_status *st);

/* Facts for status and for stamping WAL and journal. */
uint32_t tde_keydoc_epoch(const tde_keydoc *doc);           /* current DEK epoch */
/* Epochs in ascending order into out; returns their number. */
int tde_keydoc_epochs(const tde_keydoc *doc, uint32_t *out, int cap);
/* The current protector; info->base_id, version, type, algorithm, thumbprint. */
tde_class tde_keydoc_protector(const tde_keydoc *doc, tde_key_info *info, tde_status *st);
const char *tde_keydoc_mode(const tde_keydoc *doc);         /* "inherit" or "database" */

#endif
