/*
** azure.h: the provider of keys in Azure Key Vault and Managed HSM.
**
** Key ids are `https://VAULT.SUFFIX/keys/NAME[/VERSION]`, with an optional
** :PORT. VAULT.SUFFIX is a host in lower case that the instance allows, NAME is 1 to
** 127 of letters, digits and '-', VERSION 1 to 64 letters and digits.
**
** Protocol: Azure Key Vault REST API 7.4 (get key, get key versions, wrap key, unwrap key);
** challenges are RFC 6750 section 3 with the parameters authorization and
** resource (or scope) that the service sends.
*/
#ifndef TDE_AZURE_H
#define TDE_AZURE_H

#include "cloud.h"
#include "provider.h"

/* Vaults whose tenant and resource are remembered. */
#define TDE_CHALLENGES_MAX 64

/* What a challenge says, after the checks. */
typedef struct tde_challenge {
  char tenant[128];
  char resource[256];   /* "https://host" */
} tde_challenge;

/* Reads a WWW-Authenticate header of the vault at host (no port). The vault
** must lie below the resource's domain, so that a stranger cannot ask for
** another service's token. Only the tenant is taken of the authority it names.
** TDE_CORRUPT: malformed; TDE_DENIED: another resource. */
tde_class tde_azure_challenge(const char *header, const char *host, tde_challenge *out,
                              tde_status *st);

/* Whether the instance allows this host: below an official suffix or one of its
** own, or the host of its default protector. */
int tde_azure_host_allowed(const struct tde_instance *inst, const char *host);

/* Forgets every challenge. */
void tde_azure_drop_cache(void);

#endif
