/*
** keydoc.h: for unit tests of key documents.
*/
#ifndef TDE_TESTS_UNIT_KEYDOC_H
#define TDE_TESTS_UNIT_KEYDOC_H

#include "../../keyprovider/keydoc.h"

/* Unwraps in the name of whom the document names. */
static inline tde_class unwrap_plainly(const tde_keydoc *doc, const tde_instance *inst,
                                       uint32_t epoch, const uint8_t uuid[TDE_UUID_BYTES],
                                       uint8_t *dek, tde_status *st) {
  tde_keydoc_asker who;

  tde_keydoc_asker_of(doc, &who);
  return tde_keydoc_unwrap_as(doc, inst, &who, NULL, epoch, uuid, dek, st);
}

#endif
