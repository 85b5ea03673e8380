/*
** vault_token.c: logs in to HashiCorp Vault and OpenBao.
**
** What must hold:
**  - A token, a secret id and a JWT go to the identity's own address, and nowhere else.
**  - They are in secret memory, from the file or the reply on, and in no message.
**  - A claim (token_cache.h) that is taken is settled in every case.
**  - A login that Vault refuses is a denial of who asks; what does not come from Vault is an outage.
*/
#include "vault_token.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"
#include "credential.h"
#include "instance.h"
#include "request.h"
#include "token_cache.h"

#define PATH_MAX_BYTES 640
#define FOREVER 86400 /* seconds that a token without an end is kept for before the next login */

struct tde_vault_flow {
  const tde_identity *id;
  tde_want want;
  int renewing; /* the request under way renews want.text; else it logs in */
  int64_t deadline;
};

/* ---- replies of either kind ---- */

/* Does an error of the reply have these words (NULL: none)? *form: is it one of Vault's? */
static int look_for(const tde_reply *reply, const char *words, int *form) {
  tde_json *root = NULL;
  int found = 0;
  *form = 0;
  if (tde_json_parse(reply->body, reply->nbody, "reply", &root, NULL) != TDE_OK) return 0;
  const tde_json *errors = tde_json_get(root, "errors");
  *form = tde_json_is_array(errors);
  for (size_t i = 0; *form && words != NULL && !found && i < tde_json_count(errors); i++) {
    const char *text = tde_json_text_at(errors, i);
    found = text != NULL && strstr(text, words) != NULL;
  }
  tde_json_free(root);
  return found;
}

int tde_vault_is_error(const tde_reply *reply) {
  int form;
  (void)look_for(reply, NULL, &form);
  return form;
}

int tde_vault_says(const tde_reply *reply, const char *words) {
  int form;
  return look_for(reply, words, &form);
}

tde_class tde_vault_outage(const tde_reply *reply, const char *address, tde_status *st) {
  int s = reply->status;
  st->http_status = s;
  if (s == 429)
    return tde_fail(st, TDE_THROTTLED, NULL, "the Vault at %.200s is busy (429)", address);
  if (s == 503 && tde_vault_says(reply, "sealed")) {
    return tde_fail(st, TDE_UNREACHABLE, "unseal it (vault operator unseal, bao operator unseal)",
                    "the Vault at %.200s is sealed (503)", address);
  }
  if (s >= 300 && s < 400) {
    return tde_fail(
        st, TDE_UNREACHABLE,
        "name the address of the active node, or of the load balancer before it",
        "the Vault at %.200s sends to another address (%d), which is not followed: a standby node",
        address, s);
  }
  /* 412: what was just written is not here yet. 472, 473: a standby's. */
  if (s == 408 || s == 412 || s == 472 || s == 473 || s >= 500) {
    return tde_fail(st, TDE_UNREACHABLE, NULL,
                    "the Vault at %.200s cannot serve the request now (%d)", address, s);
  }
  if (s >= 400 && !tde_vault_is_error(reply)) {
    return tde_fail(st, TDE_UNREACHABLE,
                    "look at the proxy, gateway or firewall between this machine and Vault",
                    "what answered for %.200s (%d) is not Vault", address, s);
  }
  return TDE_OK;
}

/* ---- requests ---- */

tde_class tde_vault_request(const tde_vault_flow *f, const char *method, const char *path,
                            tde_request *req, tde_status *st) {
  char url[PATH_MAX_BYTES + 300];
  snprintf(url, sizeof url, "%s/v1/%s", f->id->address, path);
  tde_class rc = tde_request_begin(req, method, url, st);
  if (rc == TDE_OK) rc = tde_request_header(req, "Accept", "application/json", NULL, st);
  /* An agent on the way may ask for it. */
  if (rc == TDE_OK) rc = tde_request_header(req, "X-Vault-Request", "true", NULL, st);
  if (rc == TDE_OK && f->want.text != NULL) {
    rc = tde_request_header(req, "X-Vault-Token", f->want.text, NULL, st);
  }
  return rc;
}

static const char *slash_after(const char *text) {
  return text[0] != 0 ? "/" : "";
}

/* What makes one token another: each text with its NUL, so that none runs into the next. */
static tde_class make_key(tde_vault_flow *f, const tde_op *op, tde_status *st) {
  const tde_identity *id = f->id;
  const char *const parts[] = {tde_identity_kind_name(id->kind),
                               id->name,
                               id->address,
                               id->vault_namespace,
                               id->mount,
                               id->role,
                               id->secret_file,
                               id->secret_env,
                               id->token_file,
                               tde_instance_dir(op->instance)};
  char text[TDE_PATH_MAX + 4 * TDE_CLOUD_PATH_MAX];
  size_t n = 0;
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
    size_t len = strlen(parts[i]) + 1;
    if (len > sizeof text - n) return tde_fail(st, TDE_INTERNAL, NULL, "an identity is too long");
    memcpy(text + n, parts[i], len);
    n += len;
  }
  if (tde_sha256(text, n, f->want.key) == TDE_OK) return TDE_OK;
  return tde_fail(st, TDE_CRYPTO, NULL, "the crypto library failed to hash an identity");
}

tde_vault_flow *tde_vault_flow_new(const tde_op *op, const tde_identity *id, tde_status *st) {
  tde_vault_flow *f = calloc(1, sizeof *f);
  if (f == NULL) {
    tde_nomem(st);
    return NULL;
  }
  f->id = id;
  f->deadline = op->deadline;
  if (make_key(f, op, st) == TDE_OK) return f;
  free(f);
  return NULL;
}

/* A secret of a file or of a variable: the caller's (tde_secret_free). workload: the platform's file. */
static tde_class read_proof(const char *file, const char *variable, int workload, char **out,
                            tde_status *st) {
  tde_class rc = TDE_OK;
  *out = NULL;
  if (workload) {
    rc = tde_credential_workload(file, "check \"token_file\" in instance.json", out, st);
  } else if (file[0] != 0) {
    rc = tde_credential_file(file, TDE_CREDENTIAL_FILE_MAX, out, NULL, st);
  } else {
    const char *v = tde_credential_env(variable);
    size_t n = strlen(v);
    *out = n > 0 && n < TDE_CREDENTIAL_FILE_MAX ? tde_secret_alloc(n + 1) : NULL;
    if (*out != NULL)
      memcpy(*out, v, n + 1);
    else if (n > 0 && n < TDE_CREDENTIAL_FILE_MAX)
      rc = tde_nomem(st);
  }
  if (rc == TDE_OK && *out == NULL) {
    rc = tde_fail(st, TDE_MISCONFIGURED, "set it in the environment of this process",
                  "the environment variable %s is not set, or too long", variable);
  }
  if (rc == TDE_OK && !tde_token_form(*out, strlen(*out))) {
    tde_secret_free(*out);
    *out = NULL;
    rc = tde_fail(st, TDE_MISCONFIGURED, "put the value alone there, on one line",
                  "what %s holds is no secret id or token of Vault's",
                  file[0] != 0 ? file : variable);
  }
  return rc;
}

/* {"role_id":"...","secret_id":"..."}, or {"role":"...","jwt":"..."}. */
static tde_class login_body(const tde_vault_flow *f, tde_request *req, tde_status *st) {
  const tde_identity *id = f->id;
  int jwt = id->kind == TDE_ID_VAULT_JWT;
  char *proof = NULL;
  tde_sbuf s;
  tde_class rc = read_proof(jwt ? id->token_file : id->secret_file, id->secret_env, jwt, &proof,
                            st);
  if (rc != TDE_OK) return rc;
  tde_sbuf_init(&s, TDE_FORM_MAX);
  tde_sbuf_add(&s, jwt ? "{\"role\":\"" : "{\"role_id\":\"");
  tde_sbuf_add(&s, id->role); /* a plain name */
  tde_sbuf_add(&s, jwt ? "\",\"jwt\":\"" : "\",\"secret_id\":\"");
  tde_sbuf_add(&s, proof); /* without quotes and backslashes */
  tde_sbuf_add(&s, "\"}");
  tde_secret_free(proof);
  return tde_request_body(req, &s, "application/json", st);
}

/* Nothing came of it, as st says. In an outage an older token that is still good serves. */
static tde_step ended(tde_vault_flow *f, const tde_status *st) {
  int outage = st != NULL && tde_class_is_outage(st->code);
  tde_status unknown;
  if (st == NULL || st->code == TDE_OK) {
    tde_status_clear(&unknown);
    tde_fail(&unknown, TDE_UNREACHABLE, NULL, "a login to Vault failed");
    st = &unknown;
  }
  tde_want_settle_failed(&f->want, st);
  if (outage && (f->want.text != NULL || tde_want_old(&f->want))) return TDE_STEP_DONE;
  return TDE_STEP_FAILED;
}

static tde_step ask_login(tde_vault_flow *f, tde_request *req, tde_status *st) {
  const tde_identity *id = f->id;
  char path[PATH_MAX_BYTES];
  f->renewing = 0;
  tde_secret_free(f->want.text);
  f->want.text = NULL;
  snprintf(path, sizeof path, "%s%sauth/%s/login", id->vault_namespace,
           slash_after(id->vault_namespace), id->mount);
  tde_class rc = tde_vault_request(f, "POST", path, req, st);
  if (rc == TDE_OK) rc = login_body(f, req, st);
  if (f->want.renewing) req->max_ms = TDE_TOKEN_HURRY_MS;
  return rc == TDE_OK ? TDE_STEP_SEND : ended(f, st);
}

static tde_step ask_renewal(tde_vault_flow *f, tde_request *req, tde_status *st) {
  const tde_identity *id = f->id;
  char path[PATH_MAX_BYTES];
  tde_sbuf s;
  f->renewing = 1;
  snprintf(path, sizeof path, "%s%sauth/token/renew-self", id->vault_namespace,
           slash_after(id->vault_namespace));
  tde_class rc = tde_vault_request(f, "POST", path, req, st);
  tde_sbuf_init(&s, 8);
  tde_sbuf_add(&s, "{}");
  if (rc == TDE_OK) rc = tde_request_body(req, &s, "application/json", st);
  tde_sbuf_free(&s);
  req->max_ms = TDE_TOKEN_HURRY_MS;
  return rc == TDE_OK ? TDE_STEP_SEND : ended(f, st);
}

tde_step tde_vault_flow_start(tde_vault_flow *f, tde_request *req, tde_status *st) {
  if (f->id->kind == TDE_ID_VAULT_TOKEN) {
    tde_secret_free(f->want.text);
    tde_class rc = read_proof(f->id->token_file, f->id->token_env, 0, &f->want.text, st);
    return rc == TDE_OK ? TDE_STEP_DONE : TDE_STEP_FAILED;
  }
  switch (tde_want_token(&f->want, f->deadline, st)) {
    case TDE_WANT_READY:
      return TDE_STEP_DONE;
    case TDE_WANT_LEAD:
      if (f->want.renewing && tde_want_old(&f->want)) return ask_renewal(f, req, st);
      return ask_login(f, req, st);
    default:
      return TDE_STEP_FAILED;
  }
}

/* ---- replies ---- */

static tde_class malformed(tde_status *st, const char *what) {
  return tde_fail(
      st, TDE_CORRUPT,
      "check what answers at the identity's address, and that no second factor is asked for",
      "the reply to a login to Vault %s", what);
}

static tde_class accept(tde_vault_flow *f, const tde_reply *reply, int64_t *seconds,
                        tde_status *st) {
  static const char what[] = "reply to a login";
  tde_json_span text, life;
  tde_status inner;
  tde_class rc = tde_json_find_in(reply->body, reply->nbody, what, "auth", "client_token", &text,
                                  st);
  if (rc == TDE_CORRUPT) return malformed(st, "is not valid JSON");
  if (rc != TDE_OK || !text.is_text || !tde_token_form(text.at, text.n)) {
    return malformed(st, "holds no client_token of the right form");
  }
  *seconds = -1;
  if (tde_json_find_in(reply->body, reply->nbody, what, "auth", "lease_duration", &life, &inner) ==
      TDE_OK) {
    *seconds = tde_token_seconds(&life);
  }
  if (*seconds < 0) return malformed(st, "does not say how long the token lives");
  if (*seconds == 0) *seconds = FOREVER;
  if (f->renewing && *seconds < TDE_VAULT_RENEWAL_MIN) return TDE_OK;
  return tde_want_settle(&f->want, text.at, text.n, *seconds, st);
}

static tde_class refused(const tde_vault_flow *f, const tde_reply *reply, tde_status *st) {
  const tde_identity *id = f->id;
  char remedy[320];
  tde_class rc = tde_vault_outage(reply, id->address, st);
  if (rc != TDE_OK) return rc;
  if (reply->status < 400) return malformed(st, "has a status that none should have");
  if (id->kind == TDE_ID_VAULT_JWT) {
    snprintf(
        remedy, sizeof remedy,
        "check the role and what it is bound to, and that auth/%.100s takes tokens of this issuer",
        id->mount);
  } else {
    snprintf(remedy, sizeof remedy,
             "check the role id, and that the secret id is one of its own and not expired or used "
             "up (auth/%.100s)",
             id->mount);
  }
  return tde_fail(st, TDE_UNAUTHENTICATED, remedy,
                  "Vault at %.200s does not let the identity %s log in (%d)", id->address, id->name,
                  reply->status);
}

tde_step tde_vault_flow_reply(tde_vault_flow *f, const tde_reply *reply, tde_request *req,
                              tde_status *st) {
  int64_t seconds = 0;
  tde_class rc = reply->status == 200 ? accept(f, reply, &seconds, st) : refused(f, reply, st);
  if (rc == TDE_OK && (!f->renewing || seconds >= TDE_VAULT_RENEWAL_MIN)) return TDE_STEP_DONE;
  /* One that is not renewed any more is replaced. */
  if (f->renewing && !tde_class_is_outage(rc)) return ask_login(f, req, st);
  st->http_status = reply->status;
  return ended(f, st);
}

tde_step tde_vault_flow_unanswered(tde_vault_flow *f, const tde_status *st) {
  return ended(f, st);
}

const tde_identity *tde_vault_flow_identity(const tde_vault_flow *f) {
  return f->id;
}

int tde_vault_flow_drop(tde_vault_flow *f, int invalid) {
  char *now = NULL;
  if (f->id->kind != TDE_ID_VAULT_TOKEN) {
    if (!invalid && tde_boot_ms() / 1000 - f->want.since < TDE_VAULT_FRESH) return 0;
    tde_want_drop(&f->want);
    return 1;
  }
  /* Who puts it there may have put another one there by now. */
  if (read_proof(f->id->token_file, f->id->token_env, 0, &now, NULL) != TDE_OK) return 0;
  int other = f->want.text == NULL || strcmp(now, f->want.text) != 0;
  tde_secret_free(now);
  return other;
}

void tde_vault_flow_free(tde_vault_flow *f) {
  if (f == NULL) return;
  (void)ended(f, NULL);
  tde_secret_free(f->want.text);
  free(f);
}
