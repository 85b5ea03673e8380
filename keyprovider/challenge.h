/*
** challenge.h: what a vault's first answer says about who gives tokens for it.
**
** A vault answers a request without a token with 401 and a challenge: RFC 6750
** section 3 with the parameters authorization and resource (or scope) that
** Azure Key Vault sends. Tenant and resource are remembered for each vault, so that
** the next operation begins with the token.
**
** Thread-safe; works on in a forked child.
*/
#ifndef TDE_CHALLENGE_H
#define TDE_CHALLENGE_H

#include "../ext/base/status.h"

/* Vaults whose tenant and resource are remembered. */
#define TDE_CHALLENGES_MAX 1024

/* What a challenge says, after the checks. */
typedef struct tde_challenge {
  char tenant[128];
  char resource[256];   /* "https://host" */
} tde_challenge;

/* Reads a WWW-Authenticate header of the vault at host (no port). The resource
** must be expected, or, when that is "", a domain that the vault lies below and that is within
** (the domain of vaults that the host is trusted for; "": any), or below it: else a stranger
** could ask for the token of another service, the parent domain's say. Only the tenant is taken of
** the authority it names. TDE_CORRUPT: malformed; TDE_MISCONFIGURED: another resource, which no vault
** asks for when it denies a key. */
tde_class tde_challenge_read(const char *header, const char *host, const char *expected,
                             const char *within, tde_challenge *out, tde_status *st);

struct tde_instance;

/* What is remembered of the vault at host; 0: nothing. Each instance learns for
** itself: it may reach another server under that name. */
int tde_challenge_get(const struct tde_instance *inst, const char *host, tde_challenge *out);
void tde_challenge_put(const struct tde_instance *inst, const char *host,
                       const tde_challenge *challenge);
/* It led to no token: the vault is asked anew. */
void tde_challenge_forget(const struct tde_instance *inst, const char *host);

/* Forgets every challenge. */
void tde_challenge_drop_cache(void);

#endif
