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
*/
#ifndef TDE_KEYDOC_H
#define TDE_KEYDOC_H

#include "instance.h"

typedef struct tde_keydoc tde_keydoc;

/* Parses and checks every field's type and bounds. TDE_CORRUPT names the field. */
tde_class tde_keydoc_parse(const char *text, size_t n, tde_keydoc **out, tde_status *st);
void tde_keydoc_free(tde_keydoc *doc);
/* Compact JSON, malloc'd, NUL-terminated; *n without the NUL. */
tde_class tde_keydoc_text(const tde_keydoc *doc, char **text, size_t *n, tde_status *st);

/* A new database's document: draws a DEK into dek (TDE_KEY_BYTES of secret
** memory), wraps it under protector (NULL: the instance's default, mode
** "inherit"), and checks that the wrap unwraps to the same DEK. */
tde_class tde_keydoc_create(const tde_instance *inst, const char *protector, const char *identity,
                            const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, tde_keydoc **out,
                            tde_status *st);

/* Unwraps the DEK of one epoch through its provider into dek (secret memory). */
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
