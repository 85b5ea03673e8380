/*
** cryptor.h: the AEADs of one role on one file handle, one for each DEK epoch
** that it has met. Belongs to one thread at a time, as the handle does.
*/
#ifndef TDE_CRYPTOR_H
#define TDE_CRYPTOR_H

#include "keyring.h"

/* The epochs that a file's header names. */
typedef struct tde_named_epochs {
  int n;
  uint32_t epoch[TDE_EPOCHS_MAX];
} tde_named_epochs;

typedef struct tde_cryptor {
  uint8_t role;
  uint32_t current; /* the epoch that new units are sealed under */
  tde_keys *keys;   /* borrowed; NULL for a temp file */
  const tde_named_epochs *named; /* of the file; borrowed. NULL for a temp file */
  const atomic_uint *replaced; /* tde_keys_replaced; NULL for a temp file */
  unsigned seen;               /* that, when the AEADs were made */
  int n, last;
  struct {
    uint32_t epoch;
    tde_aead *aead;
  } list[TDE_EPOCHS_MAX];
} tde_cryptor;

/* named: of the header that the file has, whatever else the keys know: the ring keeps a dropped
** DEK for as long as the process lives, for there may be a backup that needs it. */
void tde_cryptor_init(tde_cryptor *c, tde_role role, tde_keys *keys, const tde_named_epochs *named,
                      uint32_t current);
int tde_epoch_is_named(const tde_named_epochs *named, uint32_t epoch);
/* A temp file's: a random key that exists in memory alone. */
tde_class tde_cryptor_init_temp(tde_cryptor *c, tde_status *st);
void tde_cryptor_clear(tde_cryptor *c);
/* Forgets the AEADs; they are made again when the keys are there. */
void tde_cryptor_wipe(tde_cryptor *c);

/* Forgets the AEADs of epochs that the header names no more: it has just changed. */
void tde_cryptor_prune(tde_cryptor *c);

/* The AEAD of an epoch. TDE_WRONG_KEY: no such epoch in the file's header; another
** class: the key is away. */
tde_class tde_cryptor_get(tde_cryptor *c, uint32_t epoch, tde_aead **out);

#endif
