/*
** keyring.h: the DEKs that are live in this process.
**
** One entry per database UUID and set of DEK epochs, shared by every
** connection of the process. Invariants:
**  - an entry's DEKs have verified the HMAC of the header they were fetched
**    for; a lookup verifies the caller's header again;
**  - no lock is held while a key service is asked; concurrent openers of one
**    database wait for the one fetch and share its outcome;
**  - key material stands in secret memory; an entry without users is wiped
**    after TDE_IDLE_SECONDS, or when more than TDE_IDLE_DEKS wait.
*/
#ifndef TDE_KEYRING_H
#define TDE_KEYRING_H

#include "../ext/base/crypto.h"
#include "header.h"
#include "keysource.h"

#define TDE_ROLE_KEYS 3 /* main, WAL, journal */

/* The keys of one DEK epoch. */
typedef struct tde_epoch_keys {
  uint32_t epoch;
  uint8_t *mac_key;                 /* secret memory */
  uint8_t *role_key[TDE_ROLE_KEYS]; /* secret memory; index role - 1 */
  tde_nonce_source *nonces[TDE_ROLE_KEYS];
} tde_epoch_keys;

typedef struct tde_keys tde_keys;

/* Finds or fetches the keys for this header and checks its HMAC. *out is a
** reference: release it with tde_keyring_release. facts gets what the key
** document says, on failure too where the document could be read. */
tde_class tde_keyring_unlock(const tde_key_source *source, const tde_key_params *params,
                             const tde_header *header, tde_key_facts *facts, tde_keys **out,
                             tde_status *st);

/* Takes a fresh DEK (secret memory; copied, the caller still frees its own)
** of a database being created into the ring. */
tde_class tde_keyring_adopt(const uint8_t uuid[TDE_UUID_BYTES], uint32_t epoch, const uint8_t *dek,
                            tde_keys **out, tde_status *st);

void tde_keyring_release(tde_keys *keys); /* NULL is allowed */

/* The keys of one epoch, or NULL. Valid while the reference is held. */
const tde_epoch_keys *tde_keys_epoch(const tde_keys *keys, uint32_t epoch);

/* DEKs live now, for status and tests. */
int tde_keyring_count(void);

#endif
