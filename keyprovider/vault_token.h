/*
** vault_token.h: tokens of HashiCorp Vault and OpenBao.
**
** A token is of one identity, and for the address that this identity names alone. One that an
** identity logs in for is kept by token_cache.h, and renewed or fetched anew before its lease ends;
** one that stands in a file or a variable is read each time.
**
** Protocol facts: the HTTP API's reference, "HTTP API" (X-Vault-Token, X-Vault-Request, namespaces as a
** part of the path, {"errors": [...]}, status codes); "AppRole auth method (API)", login with role_id and
** secret_id; "Kubernetes auth method (API)" and "JWT/OIDC auth method (API)", login with role and jwt;
** "Token auth method (API)", renew-self. Each answers {"auth": {"client_token", "lease_duration", ...}}.
**
** A flow belongs to one operation and its thread.
*/
#ifndef TDE_VAULT_TOKEN_H
#define TDE_VAULT_TOKEN_H

#include "cloud.h"
#include "provider.h"

/* A renewal that gives less than this (seconds) is near the token's end: a new login gives more. */
#define TDE_VAULT_RENEWAL_MIN 300

/* A token younger than this (seconds) has what rights there are: a login leaves a lease behind, and all
** databases of a process may be refused at once. */
#define TDE_VAULT_FRESH 5

typedef struct tde_vault_flow tde_vault_flow;

/* id: of op's instance, and it serves the key that op is about. NULL with st set: TDE_NOMEM, TDE_CRYPTO. */
tde_vault_flow *tde_vault_flow_new(const tde_op *op, const tde_identity *id, tde_status *st);
/* DONE: the token is there. SEND: req asks for one; hand the reply to tde_vault_flow_reply. */
tde_step tde_vault_flow_start(tde_vault_flow *f, tde_request *req, tde_status *st);
tde_step tde_vault_flow_reply(tde_vault_flow *f, const tde_reply *reply, tde_request *req,
                              tde_status *st);
/* The request got no reply, as st says: an older token that is still good serves. */
tde_step tde_vault_flow_unanswered(tde_vault_flow *f, const tde_status *st);
/* The token was refused, and is dropped. invalid: by what was said, and not just what was asked with it.
** 0: another one would fare no better, or there is none to be had. */
int tde_vault_flow_drop(tde_vault_flow *f, int invalid);
/* Also ends what the flow had begun and others wait for. NULL is allowed. */
void tde_vault_flow_free(tde_vault_flow *f);

/* Begins a request to Vault with this path below /v1/, and the flow's token, if it has one. */
tde_class tde_vault_request(const tde_vault_flow *f, const char *method, const char *path,
                            tde_request *req, tde_status *st);
/* The identity, for messages. */
const tde_identity *tde_vault_flow_identity(const tde_vault_flow *f);

/* Is this an error of Vault's, by its form, {"errors": [...]}? */
int tde_vault_is_error(const tde_reply *reply);
/* Does one of its errors have these words? (They are prose, and go into no message.) */
int tde_vault_says(const tde_reply *reply, const char *words);
/* Replies that say nothing about who asks or what for: TDE_UNREACHABLE, TDE_THROTTLED. TDE_OK: it is none. */
tde_class tde_vault_outage(const tde_reply *reply, const char *address, tde_status *st);

#endif
