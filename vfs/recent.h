/*
** recent.h: what key services answered a moment ago.
**
** Many databases may hang on one key, which is asked once for all of them. Only good
** answers and outages are shared: a denial is each database's own to find, since its
** header may name another key by now.
** Nothing here locks: the ring's lock does (keyring_int.h).
*/
#ifndef TDE_RECENT_H
#define TDE_RECENT_H

#include "../ext/base/crypto.h"
#include "../ext/base/status.h"

/* `key` names a protector together with whoever asks it. An answer of at most max_age milliseconds
** ago: when it was given, and it is in *st (code TDE_OK: it went well); or 0. now: milliseconds. */
int64_t tde_recent_get(const uint8_t key[TDE_HASH_BYTES], int64_t now, int64_t max_age,
                       tde_status *st);
/* Keeps the answer c, or forgets an earlier one if it is neither good nor an outage. */
void tde_recent_put(const uint8_t key[TDE_HASH_BYTES], int64_t now, tde_class c,
                    const tde_status *st);

#endif
