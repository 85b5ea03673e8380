/*
** token.h: access tokens of Microsoft's identity platform.
**
** A token is for one identity, one tenant and one resource; token_cache.h keeps it.
**
** Protocol facts: Microsoft identity platform, OAuth 2.0 client credentials
** flow (secret, certificate, federated credential); Azure Instance Metadata
** Service, /metadata/identity/oauth2/token, api-version 2018-02-01; App Service
** managed identity, IDENTITY_ENDPOINT, api-version 2019-08-01; Azure Workload
** Identity, AZURE_FEDERATED_TOKEN_FILE.
**
** A flow belongs to one operation and its thread; the cache is shared.
*/
#ifndef TDE_TOKEN_H
#define TDE_TOKEN_H

#include "provider.h"
#include "token_cache.h"

typedef struct tde_token_flow tde_token_flow;

/* A flow for op's identity. tenant: of the vault, as its challenge tells;
** resource: "https://host". Both are copied, and were validated by the caller.
** NULL with st set: no such identity, another tenant's, out of memory. */
tde_token_flow *tde_token_flow_new(const tde_op *op, const char *tenant, const char *resource,
                                   tde_status *st);
/* DONE: the token is there, from the cache. SEND: req asks for one (or for an
** assertion first); hand the reply to tde_token_reply. */
tde_step tde_token_start(tde_token_flow *f, tde_request *req, tde_status *st);
tde_step tde_token_reply(tde_token_flow *f, const tde_reply *reply, tde_request *req,
                         tde_status *st);
/* The request got no reply, as st says: an older token that is still good serves. */
tde_step tde_token_unanswered(tde_token_flow *f, tde_request *req, tde_status *st);
/* The token: secret memory, lives as long as the flow. */
const char *tde_token_value(const tde_token_flow *f);
/* A service refused this token: it leaves the cache, unless a newer one is
** there already. */
void tde_token_drop(tde_token_flow *f);
/* Also ends what the flow had begun and others wait for. NULL is allowed. */
void tde_token_flow_free(tde_token_flow *f);

/* The identity's name, for messages. */
const char *tde_token_identity(const tde_token_flow *f);

#endif
