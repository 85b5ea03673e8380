/*
** token_cache.h: the tokens of a process, for every service that gives some.
**
** The cache keeps a token until shortly before it expires, on a clock that does not jump. Of all
** callers who need the same new token, one asks for it (it has the claim) and the others wait for
** its result; no lock is held meanwhile. A want belongs to one operation and its thread; the
** cache is shared.
*/
#ifndef TDE_TOKEN_CACHE_H
#define TDE_TOKEN_CACHE_H

#include "json.h"
#include "provider.h"

/* Tokens that the cache keeps; the one used the longest time ago makes way. */
#define TDE_TOKENS_MAX 1024
/* Renewed this many seconds before the end, or at half of a shorter life. Until
** the end the old token serves when there is no new one within this time. */
#define TDE_TOKEN_EARLY 300
#define TDE_TOKEN_HURRY_MS 3000
/* Bytes of the longest token that is accepted. */
#define TDE_TOKEN_TEXT_MAX 16384

/* One token: what is wanted, and what is held of the cache. */
typedef struct tde_want {
  uint8_t key[TDE_HASH_BYTES]; /* what makes one token another, hashed */
  uint64_t claim;              /* 0: none */
  int renewing;                /* an older token serves meanwhile */
  uint64_t serial;             /* of text */
  int64_t since;               /* when it was given, in seconds of tde_boot_ms() */
  char *text;                  /* the token: secret memory, the want's own (tde_secret_free) */
} tde_want;

typedef enum tde_want_outcome { TDE_WANT_READY, TDE_WANT_LEAD, TDE_WANT_FAILED } tde_want_outcome;

/* READY: w->text is the token. LEAD: the caller asks for it, and settles. FAILED, as st says: who
** asked for it failed, or did not end by the deadline (tde_boot_ms()). */
tde_want_outcome tde_want_token(tde_want *w, int64_t deadline, tde_status *st);
/* Ends w's claim with a token of this life in seconds, which w->text becomes. */
tde_class tde_want_settle(tde_want *w, const char *text, size_t n, int64_t life, tde_status *st);
/* Ends w's claim, if it has one, with this failure. An old token that is still
** good goes on serving; the next renewal waits a moment. */
void tde_want_settle_failed(tde_want *w, const tde_status *st);
/* True when an older token, still good, could be taken instead of a failure. */
int tde_want_old(tde_want *w);
/* A service refused this token: it leaves the cache, unless a newer one is there already. */
void tde_want_drop(tde_want *w);

/* A token goes into a header: visible ASCII only (RFC 6750 section 2.1). */
int tde_token_form(const char *text, size_t n);
/* How long it lives: digits, as a number or as a text. -1: malformed. */
int64_t tde_token_seconds(const tde_json_span *v);

/* Wipes every cached token. */
void tde_token_drop_cache(void);

#endif
