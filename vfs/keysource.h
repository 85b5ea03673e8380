/*
** keysource.h: how the shim asks for keys.
**
** vfs/ knows no key provider. ext/wire.c fills this struct once at start-up;
** the shim hands over the database's UUID, the key document from its header
** (opaque bytes here) and what the URI said, and gets a DEK in secret memory.
** The callbacks may do network I/O: they are called with no lock of the shim
** held that another database could need.
*/
#ifndef TDE_KEYSOURCE_H
#define TDE_KEYSOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "../ext/base/limits.h"
#include "../ext/base/status.h"

/* What the URI said of keys. Each string may be NULL; owned by the file. */
typedef struct tde_key_params {
  char *instance;  /* tde_instance= */
  char *protector; /* tde_protector=, for a new database */
  char *identity;  /* tde_identity=, for a new database */
} tde_key_params;

/* What the key document says, without any key. */
typedef struct tde_key_facts {
  char key_id[TDE_KEY_ID_MAX];
  char key_version[128];
  char mode[16];
  uint8_t thumbprint[TDE_THUMB_BYTES];
  uint32_t epoch; /* the current one */
  int nepochs;
  uint32_t epochs[TDE_EPOCHS_MAX]; /* ascending */
} tde_key_facts;

typedef struct tde_key_source {
  void *ctx;
  /* A new database: draws a DEK into dek (secret memory of the caller),
  ** wraps it, returns the key document (malloc'd). */
  tde_class (*create)(void *ctx, const tde_key_params *params, const uint8_t uuid[TDE_UUID_BYTES],
                      uint8_t *dek, char **doc, size_t *ndoc, tde_status *st);
  /* Unwraps the DEK of one epoch into dek. */
  tde_class (*unwrap)(void *ctx, const tde_key_params *params, const uint8_t uuid[TDE_UUID_BYTES],
                      const char *doc, size_t ndoc, uint32_t epoch, uint8_t *dek, tde_status *st);
  /* Reads the document; TDE_CORRUPT when it is malformed. */
  tde_class (*describe)(void *ctx, const char *doc, size_t ndoc, tde_key_facts *out,
                        tde_status *st);
} tde_key_source;

#endif
