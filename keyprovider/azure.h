/*
** azure.h: the provider of keys in Azure Key Vault and Managed HSM.
**
** Key ids are `https://VAULT.SUFFIX/keys/NAME[/VERSION]`, with an optional
** :PORT. VAULT.SUFFIX is a host in lower case that the instance allows, NAME is 1 to
** 127 of letters, digits and '-', VERSION 1 to 64 letters and digits.
**
** Protocol: Azure Key Vault REST API 7.4 (get key, get key versions, wrap key, unwrap key).
*/
#ifndef TDE_AZURE_H
#define TDE_AZURE_H

#include "cloud.h"
#include "provider.h"

/* Whether the instance allows this host: below an official suffix or one of its
** own, or the host of a key that it names (tde_instance_key_at). */
int tde_azure_host_allowed(const struct tde_instance *inst, const char *host);

#endif
