/*
** keydoc_int.h: what the two halves of the key document share: keydoc.c reads,
** keydoc_edit.c changes. For these two alone.
*/
#ifndef TDE_KEYDOC_INT_H
#define TDE_KEYDOC_INT_H

#include "json.h"
#include "keydoc.h"

#define TDE_KEYDOC_WRAPPED_TEXT (4 * ((TDE_WRAPPED_MAX + 2) / 3) + 1)

struct tde_keydoc {
  tde_json *root;
  uint32_t epoch;
  int nepochs;
  uint32_t epochs[TDE_EPOCHS_MAX]; /* ascending */
};

/* The entry of deks[], borrowed; NULL: no such epoch. */
tde_json *tde_keydoc_dek_of(const tde_keydoc *doc, uint32_t epoch);
/* Of a wrap or of an entry of the key list. */
void tde_keydoc_info_of(const tde_json *wrap, tde_key_info *info);
/* Prepares an operation in the name of whoever asks. */
void tde_keydoc_operation(tde_op *op, tde_op_kind kind, const tde_instance *inst,
                          const tde_keydoc_asker *who, const uint8_t uuid[TDE_UUID_BYTES],
                          uint8_t *dek);

#endif
