/*
** epochs.h: the keys of one database's DEK epochs, in secret memory.
**
** Invariants:
**  - the key of an epoch is never replaced by another one while it may be in use: what
**    was sealed under the one would be lost under the other;
**  - the nonce sources of an epoch outlive its keys, until the whole set is freed:
**    connections' AEADs refer to them.
** Nothing here locks: whoever has the set (keyring_int.h) does.
*/
#ifndef TDE_EPOCHS_H
#define TDE_EPOCHS_H

#include <stdatomic.h>

#include "../ext/base/crypto.h"
#include "keysource.h"
#include "role.h"

/* The keys of one epoch. Wiped: dek is NULL. stale: a header without this epoch has been
** met since, an older one (the file was put back from a copy): if the epoch comes again
** it may be another DEK. */
typedef struct tde_epoch_keys {
  uint32_t epoch;
  int stale;
  int pending; /* the header that names it is being written */
  uint8_t *dek;
  uint8_t *mac_key;
  uint8_t *role_key[TDE_ROLE_KEYS]; /* index role - 1 */
  tde_nonce_source *nonces[TDE_ROLE_KEYS];
  tde_derived *derived; /* of the role main, for the next AEAD; NULL: none yet */
} tde_epoch_keys;

typedef struct tde_retired_nonces tde_retired_nonces;

/* All zero: none. */
typedef struct tde_epochs {
  int n;
  tde_epoch_keys of[TDE_EPOCHS_MAX];
  tde_retired_nonces *old; /* of epochs that the database has left behind */
  atomic_uint replaced;    /* how often an epoch's keys became others: AEADs of it are void */
} tde_epochs;

/* Derives an epoch's keys from its DEK, which is copied (FORMAT.md, Keys). The caller
** wipes or installs them. TDE_NOMEM, TDE_CRYPTO: *out is wiped. */
tde_class tde_epoch_derive(const uint8_t *uuid, uint32_t epoch, const uint8_t *dek,
                           tde_epoch_keys *out);
void tde_epoch_wipe(tde_epoch_keys *e);

/* Does a key document name this epoch? */
int tde_facts_name_epoch(const tde_key_facts *facts, uint32_t epoch);

/* The epoch's entry, stale or not; NULL: there is none. */
tde_epoch_keys *tde_epochs_any(tde_epochs *s, uint32_t epoch);
/* The same, unless it is stale. */
const tde_epoch_keys *tde_epochs_find(const tde_epochs *s, uint32_t epoch);

/* Takes the keys of *from over, which is zero then. Where there is no room, an epoch that
** `named` does not name makes it. TDE_WRONG_KEY: the epoch has another key, which may be
** in use. TDE_CORRUPT: too many epochs. */
tde_class tde_epochs_install(tde_epochs *s, const tde_key_facts *named, tde_epoch_keys *from);

/* The key of a header's HMAC (FORMAT.md, Keys): every epoch that facts names has a part in it, so
** nobody adds a DEK of theirs to those of a database. Looks in `got`, then in s. stale: keys of
** stale epochs count, too. TDE_WRONG_KEY: one is not at hand. out is the caller's to wipe. */
tde_class tde_epochs_header_key(const tde_epochs *s, int stale, const tde_epoch_keys *got, int ngot,
                                const tde_key_facts *facts, uint8_t out[TDE_KEY_BYTES]);

/* Those that facts names and that are not at hand: how many, and which. */
int tde_epochs_missing(const tde_epochs *s, const tde_key_facts *facts,
                       uint32_t out[TDE_EPOCHS_MAX]);

/* Is there one behind `epoch` that facts does not name, and that is not pending? */
int tde_epochs_ahead(const tde_epochs *s, uint32_t epoch, const tde_key_facts *facts);
/* Those become stale, but for a pending one; one that facts names is pending no more. */
void tde_epochs_outdate(tde_epochs *s, uint32_t epoch, const tde_key_facts *facts);
/* The write did not come about: pending epochs that facts does not name become stale. */
void tde_epochs_abandon(tde_epochs *s, const tde_key_facts *facts);

/* The keys go, the nonce sources stay. */
void tde_epochs_wipe(tde_epochs *s);
/* Everything goes. */
void tde_epochs_free(tde_epochs *s);

#endif
