/*
** wire.c: joins vfs/ to keyprovider/. The only file that knows both.
**
** Each callback opens the instance that the URI names, and hands the key
** document over. Nothing is kept here.
*/
#include "wire.h"

#include <stdlib.h>
#include <string.h>

#include "../keyprovider/keydoc.h"
#include "../vfs/keysource.h"

static tde_class wire_create(void *ctx, const tde_key_params *params,
                             const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, char **doc,
                             size_t *ndoc, tde_status *st) {
  const tde_instance *inst;
  tde_keydoc *kd = NULL;
  tde_class c = tde_instance_open(params->instance, 1, &inst, st);

  (void)ctx;
  if (c == TDE_OK) {
    c = tde_keydoc_create(inst, params->protector, params->identity, uuid, dek, &kd, st);
  }
  if (c == TDE_OK) c = tde_keydoc_text(kd, doc, ndoc, st);
  tde_keydoc_free(kd);
  return c;
}

static tde_class wire_unwrap(void *ctx, const tde_key_params *params,
                             const uint8_t uuid[TDE_UUID_BYTES], const char *doc, size_t ndoc,
                             uint32_t epoch, uint8_t *dek, tde_status *st) {
  const tde_instance *inst;
  tde_keydoc *kd = NULL;
  tde_class c = tde_keydoc_parse(doc, ndoc, &kd, st);

  (void)ctx;
  /* Opening a database never makes an instance: a missing one means that the
  ** key is elsewhere, and the error says so. */
  if (c == TDE_OK) c = tde_instance_open(params->instance, 0, &inst, st);
  if (c == TDE_OK) c = tde_keydoc_unwrap(kd, inst, epoch, uuid, dek, st);
  tde_keydoc_free(kd);
  return c;
}

static tde_class wire_describe(void *ctx, const char *doc, size_t ndoc, tde_key_facts *out,
                               tde_status *st) {
  tde_keydoc *kd = NULL;
  tde_key_info info;
  tde_class c = tde_keydoc_parse(doc, ndoc, &kd, st);

  (void)ctx;
  memset(out, 0, sizeof(*out));
  if (c == TDE_OK) c = tde_keydoc_protector(kd, &info, st);
  if (c == TDE_OK) {
    const char *mode = tde_keydoc_mode(kd);
    size_t n = strlen(mode);
    memcpy(out->key_id, info.base_id, sizeof(out->key_id));
    memcpy(out->key_version, info.version, sizeof(out->key_version));
    memcpy(out->mode, mode, n < sizeof(out->mode) ? n : sizeof(out->mode) - 1);
    memcpy(out->thumbprint, info.thumbprint, TDE_THUMB_BYTES);
    out->epoch = tde_keydoc_epoch(kd);
    out->nepochs = tde_keydoc_epochs(kd, out->epochs, TDE_EPOCHS_MAX);
  }
  tde_keydoc_free(kd);
  return c;
}

const tde_key_source tde_wire = {NULL, wire_create, wire_unwrap, wire_describe};
