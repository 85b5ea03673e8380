/*
** vault.c: the provider of keys in the Transit engine of HashiCorp Vault and OpenBao.
**
** An operation goes: a token (vault_token.c), then the key, then what is asked of it. A wrap looks
** at the key first (whoever may create keys would make a missing one by encrypting under it), and
** looks after it whether the wrapped DEK is bound to its database: a server older than associated
** data passes it over, and one that knows it would not give the DEK back. A refused token
** is dropped and fetched once more.
**
** What must hold:
**  - Nothing is sent to an address that no identity of the instance names: a key id may come from a
**    forged header.
**  - A DEK leaves in a request's secret memory and comes back into op->dek; the JSON library never
**    sees it.
**  - A reply about another key, or with another version than was asked for, is corrupt, whatever
**    else it holds.
**  - A key that can be deleted, or that can leave Vault, never wraps, unless the instance says so.
**  - Outages and denials are told apart by the HTTP status first, Vault's words second; these are in no
**    message. Only Vault itself can deny: who else answers in its place makes an outage.
*/
#include "vault.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "instance.h"
#include "request.h"
#include "rsa.h"
#include "vault_token.h"

#define SCHEME "vault:"
#define SCHEME_LEN 6
#define NAME_MAX_LEN 127
#define PATH_MAX_LEN 255
#define VERSION_MAX 2147483647
#define BOUND_TO "sqlite-tde:" /* and the database's UUID */
/* Nonce, DEK and tag: 96 bits of the one in both, RFC 5116 section 5.1 and RFC 8439 section 2.8. */
#define AEAD_BYTES (12 + TDE_KEY_BYTES + 16)
#define CIPHERTEXT_MAX (4 * ((512 + 2) / 3) + 1)
#define KEY_KINDS \
  "use a key of type aes256-gcm96, chacha20-poly1305, rsa-2048, rsa-3072 or rsa-4096"
#define LOOK_AT_ADDRESS "try again; if it stays so, check what answers at this address"

/* ---- key ids ---- */

typedef struct key_parts {
  char address[272];           /* "https://host[:port]" */
  char path[PATH_MAX_LEN + 1]; /* namespaces and mount */
  char name[NAME_MAX_LEN + 1];
  char version[12];
} key_parts;

/* At most TDE_VAULT_PATH_MAX names. */
static int path_valid(const char *p, size_t n) {
  int names = 1;
  for (size_t i = 0; i < n; i++) names += p[i] == '/';
  return tde_name_path(p, n) && names <= TDE_VAULT_PATH_MAX;
}

/* A number from 1 on, in its one spelling. */
static int version_valid(const char *p) {
  size_t n = strspn(p, "0123456789");
  return n > 0 && n <= 10 && p[n] == 0 && p[0] != '0' && strtoll(p, NULL, 10) <= VERSION_MAX;
}

/* 0: the id has another form. */
static int split_id(const char *id, key_parts *out) {
  const char *address = id + SCHEME_LEN;
  memset(out, 0, sizeof *out);
  if (strncmp(id, SCHEME "https://", SCHEME_LEN + 8) != 0 || strlen(id) >= TDE_KEY_ID_MAX) return 0;
  const char *path = strchr(address + 8, '/');
  /* The first one: no name of a path is "keys". */
  const char *keys = path != NULL ? strstr(path, "/keys/") : NULL;
  if (keys == NULL || keys == path) return 0;
  if (!tde_copy_part(out->address, sizeof out->address, address, (size_t)(path - address)) ||
      !tde_https_address(out->address)) {
    return 0;
  }
  path++;
  if (!tde_copy_part(out->path, sizeof out->path, path, (size_t)(keys - path)) ||
      !path_valid(out->path, strlen(out->path))) {
    return 0;
  }
  const char *name = keys + 6, *cut = strchr(name, '/');
  size_t nname = cut != NULL ? (size_t)(cut - name) : strlen(name);
  if (!tde_name_path(name, nname) || memchr(name, '/', nname) != NULL ||
      !tde_copy_part(out->name, sizeof out->name, name, nname))
    return 0;
  if (cut == NULL) return 1;
  return version_valid(cut + 1) &&
         tde_copy_part(out->version, sizeof out->version, cut + 1, strlen(cut + 1));
}

static int vault_matches(const char *key_id) {
  return strncmp(key_id, SCHEME, SCHEME_LEN) == 0;
}

static tde_class vault_parse_id(const char *key_id, char base_id[TDE_KEY_ID_MAX], char version[128],
                                tde_status *st) {
  key_parts k;
  base_id[0] = version[0] = 0;
  int n = -1;
  if (split_id(key_id, &k)) {
    n = snprintf(base_id, TDE_KEY_ID_MAX, SCHEME "%s/%s/keys/%s", k.address, k.path, k.name);
  }
  if (n < 0 || n >= TDE_KEY_ID_MAX) {
    base_id[0] = 0;
    return tde_fail(
        st, TDE_MISCONFIGURED,
        "write vault:https://HOST:PORT/transit/keys/NAME or .../keys/NAME/VERSION (a number), the "
        "host in "
        "lower case, a namespace before the mount: https://HOST:PORT/NAMESPACE/transit/keys/NAME",
        "the key id %.200s is not that of a key in Vault's Transit engine", key_id);
  }
  memcpy(version, k.version, sizeof k.version);
  return TDE_OK;
}

/* ---- who asks ---- */

static int vault_serves(const char *key_id, const tde_identity *id) {
  key_parts k;
  return id->kind >= TDE_ID_VAULT_TOKEN && split_id(key_id, &k) &&
         strcmp(k.address, id->address) == 0;
}

/* Nobody may ask at this address: nothing is sent there. */
static tde_class nobody(const tde_op *op, const key_parts *k, tde_status *st) {
  const tde_cloud *c = tde_instance_cloud(op->instance);
  char remedy[320];
  const tde_identity *id = op->identity != NULL ? tde_cloud_identity(c, op->identity, st) : NULL;
  if (op->identity != NULL && id == NULL) return TDE_MISCONFIGURED;
  if (id != NULL) {
    snprintf(remedy, sizeof remedy,
             "name an identity whose \"address\" is %.120s, or none, and let the instance choose: "
             "tde_set_identity(NULL)",
             k->address);
    return tde_fail(st, TDE_MISCONFIGURED, remedy,
                    "the identity %s, of kind %s, is not for the Vault at %.200s: nothing "
                    "was sent to it",
                    id->name, tde_identity_kind_name(id->kind), k->address);
  }
  snprintf(remedy, sizeof remedy,
           "if it is yours, add one (of several, name one default): "
           "tde_instance_set_identity('vault', '{\"kind\": "
           "\"vault_approle\", \"address\": \"%.110s\", \"role_id\": \"...\", \"secret_file\": "
           "\"/...\"}')",
           k->address);
  return tde_fail(
      st, TDE_MISCONFIGURED, remedy,
      "the instance has no identity for the Vault at %.200s, or several: nothing was sent to it",
      k->address);
}

/* ---- an operation ---- */

typedef enum vt_stage { STAGE_KEY, STAGE_OP, STAGE_BOUND } vt_stage;

typedef struct vt {
  key_parts key;
  vt_stage stage;
  tde_vault_flow *flow;
  int in_token;    /* the request under way is the flow's */
  int tried_again; /* a token was refused already */
} vt;

static int is_wrap(const tde_op *op) {
  return op->kind == TDE_OP_WRAP;
}

/* How the key wraps: as the wrapped DEK's header says, or as a look at the key said. */
static int is_aead(const tde_op *op) {
  return strcmp(is_wrap(op) ? op->info.algorithm : op->algorithm, TDE_RSA_OAEP_256) != 0;
}

/* The request of this stage as Vault's paths name it: what a policy must permit. */
static const char *verb(const tde_op *op, vt_stage stage) {
  if (stage == STAGE_KEY) return "keys";
  return is_wrap(op) && stage == STAGE_OP ? "encrypt" : "decrypt";
}

/* {"ciphertext":"vault:vN:..."}, or {"plaintext":"...","key_version":N}; both with what it is bound to,
** which the look whether it is leaves out. */
static tde_class fill_body(const tde_op *op, vt_stage stage, tde_request *req, tde_status *st) {
  char bound[sizeof BOUND_TO + 36];
  tde_sbuf s;
  tde_sbuf_init(&s, 4096);
  if (is_wrap(op) && stage == STAGE_OP) {
    tde_sbuf_add(&s, "{\"plaintext\":\"");
    tde_sbuf_base64(&s, op->dek, TDE_KEY_BYTES);
    tde_sbuf_add(&s, "\",\"key_version\":");
    tde_sbuf_add(&s, op->version);
  } else {
    tde_sbuf_add(&s, "{\"ciphertext\":\"vault:v");
    tde_sbuf_add(&s, op->version);
    tde_sbuf_add(&s, ":");
    tde_sbuf_base64(&s, op->wrapped, op->nwrapped);
    tde_sbuf_add(&s, "\"");
  }
  if (is_aead(op) && stage == STAGE_OP) {
    snprintf(bound, sizeof bound, BOUND_TO);
    tde_uuid_text(op->context, bound + sizeof BOUND_TO - 1);
    tde_sbuf_add(&s, ",\"associated_data\":\"");
    tde_sbuf_base64(&s, (const uint8_t *)bound, strlen(bound));
    tde_sbuf_add(&s, "\"");
  }
  tde_sbuf_add(&s, "}");
  return tde_request_body(req, &s, "application/json", st);
}

static tde_step call_vault(tde_op *op, tde_request *req, tde_status *st) {
  vt *v = op->state;
  char path[PATH_MAX_LEN + NAME_MAX_LEN + 16];
  int get = v->stage == STAGE_KEY;
  snprintf(path, sizeof path, "%s/%s/%s", v->key.path, verb(op, v->stage), v->key.name);
  v->in_token = 0;
  tde_class rc = tde_vault_request(v->flow, get ? "GET" : "POST", path, req, st);
  if (rc == TDE_OK && !get) rc = fill_body(op, v->stage, req, st);
  return rc == TDE_OK ? TDE_STEP_SEND : TDE_STEP_FAILED;
}

static tde_step after_token(tde_op *op, tde_step step, tde_request *req, tde_status *st) {
  vt *v = op->state;
  v->in_token = step == TDE_STEP_SEND;
  return step == TDE_STEP_DONE ? call_vault(op, req, st) : step;
}

/* What cannot be asked. */
static tde_class check_op(const tde_op *op, tde_status *st) {
  if (op->instance == NULL)
    return tde_fail(st, TDE_MISUSE, NULL, "a key in Vault needs an instance");
  if (op->federated_client_id != NULL && op->federated_client_id[0] != 0) {
    return tde_fail(st, TDE_MISCONFIGURED, "leave it out: tde_set_identity(name)",
                    "a federated client id is for keys in Azure, not in Vault");
  }
  if (op->kind != TDE_OP_UNWRAP) return TDE_OK;
  if (op->version[0] == 0)
    return tde_fail(st, TDE_MISUSE, NULL, "an unwrap in Vault needs the key's version");
  if (!is_aead(op)) {
    if (op->nwrapped == 256 || op->nwrapped == 384 || op->nwrapped == 512) return TDE_OK;
  } else if (strcmp(op->algorithm, "aes256-gcm96") != 0 &&
             strcmp(op->algorithm, "chacha20-poly1305") != 0) {
    return tde_fail(st, TDE_UNSUPPORTED, NULL, "keys in Vault do not unwrap with %s here",
                    op->algorithm);
  } else if (op->nwrapped == AEAD_BYTES) {
    return TDE_OK;
  }
  return tde_fail(st, TDE_CORRUPT, NULL, "the wrapped key has a length that %s does not make",
                  op->algorithm);
}

static tde_step vault_start(tde_op *op, tde_request *req, tde_status *st) {
  if (check_op(op, st) != TDE_OK) return TDE_STEP_FAILED;
  vt *v = op->state = calloc(1, sizeof *v);
  if (v == NULL) {
    tde_nomem(st);
    return TDE_STEP_FAILED;
  }
  /* parse_id made base_id, so this does not fail. */
  split_id(op->base_id, &v->key);
  if (op->kind == TDE_OP_LATEST || op->kind == TDE_OP_VERSIONS) op->version[0] = 0;
  v->stage = op->kind == TDE_OP_UNWRAP ? STAGE_OP : STAGE_KEY;
  const tde_identity *id = tde_cloud_asker(tde_instance_cloud(op->instance), op->identity,
                                           &tde_provider_vault, op->base_id);
  if (id == NULL) {
    nobody(op, &v->key, st);
    return TDE_STEP_FAILED;
  }
  v->flow = tde_vault_flow_new(op, id, st);
  if (v->flow == NULL) return TDE_STEP_FAILED;
  return after_token(op, tde_vault_flow_start(v->flow, req, st), req, st);
}

static void vault_finish(tde_op *op) {
  vt *v = op->state;
  if (v == NULL) return;
  tde_vault_flow_free(v->flow);
  free(v);
}

/* ---- errors ---- */

static tde_class corrupt(tde_status *st, const char *what) {
  return tde_fail(st, TDE_CORRUPT, LOOK_AT_ADDRESS, "Vault's reply %s", what);
}

/* A path of the key, as a command or a policy names it: in general terms where it is a long one. */
static const char *place(const vt *v, const char *what, char out[140]) {
  int n = snprintf(out, 140, "%.100s/%s/%.100s", v->key.path, what, v->key.name);
  if (n >= 140 || strlen(v->key.path) > 100 || strlen(v->key.name) > 100)
    snprintf(out, 140, "PATH/%s/NAME", what);
  return out;
}

/* The request's path and the line that a policy lacks. */
static tde_class forbidden(const tde_op *op, const tde_reply *reply, tde_status *st) {
  const vt *v = op->state;
  const tde_identity *id = tde_vault_flow_identity(v->flow);
  const char *what = verb(op, v->stage);
  char remedy[320], at[140];
  if (tde_vault_says(reply, "invalid token") || tde_vault_says(reply, "bad token")) {
    return tde_fail(st, TDE_UNAUTHENTICATED,
                    id->kind == TDE_ID_VAULT_TOKEN
                        ? "put a new token there: this one has expired or was revoked"
                        : "see why tokens of this login are not taken (vault token lookup)",
                    "the Vault at %.200s does not take the token of the identity %s (403)",
                    v->key.address, id->name);
  }
  snprintf(remedy, sizeof remedy,
           "add to a policy of the identity %.63s: path \"%s\" { capabilities = [\"%s\"] }%s",
           id->name, place(v, what, at), v->stage == STAGE_KEY ? "read" : "update",
           id->kind == TDE_ID_VAULT_TOKEN ? "; or its token has expired" : "");
  return tde_fail(st, TDE_DENIED, remedy, "Vault denies %.100s/%s/%.127s to the identity %s (%d)",
                  v->key.path, what, v->key.name, id->name, reply->status);
}

static tde_class missing_key(const vt *v, int status, tde_status *st) {
  return tde_fail(st, TDE_MISSING,
                  "restore the key from a backup of it or of Vault, or correct the key's id",
                  "Vault has no key %.127s at %.127s (%d)", v->key.name, v->key.path, status);
}

static tde_class missing_version(const tde_op *op, tde_status *st) {
  const vt *v = op->state;
  return tde_fail(st, TDE_MISSING,
                  "restore the key from a backup that has it, or correct the key's id",
                  "the key %.127s in Vault has no version %.11s: the key is an older one, another "
                  "one, or was trimmed",
                  v->key.name, op->version);
}

static tde_class too_old(const tde_op *op, const char *which, tde_status *st) {
  const vt *v = op->state;
  char remedy[320], at[140];
  snprintf(remedy, sizeof remedy, "lower it: vault write %s/config %s=%.11s", place(v, "keys", at),
           which, op->version);
  return tde_fail(st, TDE_DISABLED, remedy,
                  "the version %.11s of the key %.127s in Vault is below %s", op->version,
                  v->key.name, which);
}

/* 404 of a path that no engine serves names it; that of a key has no errors. */
static tde_class absent(const tde_op *op, const tde_reply *reply, tde_status *st) {
  const vt *v = op->state;
  if (!tde_vault_says(reply, "no handler for route") &&
      !tde_vault_says(reply, "unsupported path")) {
    return missing_key(v, reply->status, st);
  }
  return tde_fail(
      st, TDE_MISSING,
      "enable the Transit engine there, restore it from a backup of Vault, or correct the key's id",
      "Vault has no Transit engine at %.200s (%d)", v->key.path, reply->status);
}

/* 400: what was asked for cannot be done, for one of these reasons. */
static tde_class rejected(const tde_op *op, const tde_reply *reply, tde_status *st) {
  const vt *v = op->state;
  if (tde_vault_says(reply, "key not found") || tde_vault_says(reply, "policy not found") ||
      tde_vault_says(reply, "deleted")) {
    return missing_key(v, reply->status, st);
  }
  if (tde_vault_says(reply, "(too old)")) return too_old(op, "min_decryption_version", st);
  if (tde_vault_says(reply, "less than the minimum encryption key version")) {
    return too_old(op, "min_encryption_version", st);
  }
  if (tde_vault_says(reply, "too new") || tde_vault_says(reply, "higher than the latest"))
    return missing_version(op, st);
  if (v->stage == STAGE_OP && op->kind == TDE_OP_UNWRAP) {
    return tde_fail(st, TDE_WRONG_KEY,
                    "use the key version that wrapped it, or restore the database from a backup",
                    "the key %.127s in Vault does not unwrap what the header holds (%d)",
                    v->key.name, reply->status);
  }
  return tde_fail(st, TDE_UNSUPPORTED, KEY_KINDS, "Vault does not take the request %s (%d)",
                  verb(op, v->stage), reply->status);
}

/* Every status but 200. */
static tde_class refused(const tde_op *op, const tde_reply *reply, tde_status *st) {
  const vt *v = op->state;
  int s = reply->status;
  st->http_status = s;
  /* An RSA key says so of what is not its own as of a fault of Vault's. */
  if (s == 500 && v->stage == STAGE_OP && op->kind == TDE_OP_UNWRAP &&
      tde_vault_says(reply, "failed to RSA decrypt")) {
    return rejected(op, reply, st);
  }
  tde_class rc = tde_vault_outage(reply, v->key.address, st);
  if (rc != TDE_OK) return rc;
  switch (s) {
    case 400:
      return rejected(op, reply, st);
    case 401:
    case 403:
    case 423:
      return forbidden(op, reply, st);
    case 404:
      return absent(op, reply, st);
    case 405:
      return tde_fail(st, TDE_UNSUPPORTED,
                      "correct the key's id: PATH is where a Transit engine is mounted",
                      "what is mounted in Vault at %.200s is no Transit engine (405)", v->key.path);
    default:
      break;
  }
  if (s >= 400) {
    return tde_fail(st, TDE_UNSUPPORTED, KEY_KINDS, "Vault does not take the request %s (%d)",
                    verb(op, v->stage), s);
  }
  return tde_fail(st, TDE_CORRUPT, "check what answers at this address",
                  "Vault replied with status %d", s);
}

/* ---- the key ---- */

/* "2006-01-02T15:04:05.999999999Z", or with an offset. 0: not known. */
static int64_t rfc3339(const char *text) {
  struct tm t;
  long hours, minutes;
  memset(&t, 0, sizeof t);
  const char *p = text != NULL ? strptime(text, "%Y-%m-%dT%H:%M:%S", &t) : NULL;
  if (p == NULL) return 0;
  if (*p == '.') p += 1 + strspn(p + 1, "0123456789");
  int64_t at = (int64_t)timegm(&t);
  if ((*p == '+' || *p == '-') && strlen(p) == 6 && p[3] == ':') {
    hours = strtol(p + 1, NULL, 10);
    minutes = strtol(p + 4, NULL, 10);
    at -= (*p == '-' ? -1 : 1) * (hours * 3600 + minutes * 60);
  } else if (strcmp(p, "Z") != 0) {
    return 0;
  }
  return at > 0 ? at : 0;
}

/* type, algorithm and thumbprint of an RSA key version, of the size that the key's type says. */
static tde_class read_rsa(const tde_json *entry, const char *type, tde_key_info *info,
                          tde_status *st) {
  const char *pem = tde_json_get_text(entry, "public_key");
  char want[16];
  ERR_set_mark();
  BIO *bio = pem != NULL ? BIO_new_mem_buf(pem, -1) : NULL;
  EVP_PKEY *key = bio != NULL ? PEM_read_bio_PUBKEY(bio, NULL, tde_no_password, NULL) : NULL;
  BIO_free(bio);
  ERR_pop_to_mark();
  if (key == NULL) return corrupt(st, "holds no RSA public key");
  tde_class rc = tde_rsa_info(key, info, st);
  EVP_PKEY_free(key);
  snprintf(want, sizeof want, "RSA-%.4s", type + 4);
  if (rc == TDE_UNSUPPORTED || (rc == TDE_OK && strcmp(info->type, want) != 0)) {
    return corrupt(st, "holds a public key of another size than the key's type");
  }
  return rc;
}

static tde_class read_version(const tde_op *op, const tde_json *key, const char *version,
                              tde_key_info *info, tde_status *st) {
  const char *type = tde_json_get_text(key, "type");
  const tde_json *entry = tde_json_get(tde_json_get(key, "keys"), version);
  memset(info, 0, sizeof *info);
  memcpy(info->base_id, op->base_id, sizeof info->base_id);
  snprintf(info->version, sizeof info->version, "%s", version);
  if (strncmp(type, "rsa-", 4) == 0) {
    /* One that decrypts nothing any more is not shown. */
    if (entry == NULL) return TDE_OK;
    tde_class rc = read_rsa(entry, type, info, st);
    info->created = rfc3339(tde_json_get_text(entry, "creation_time"));
    info->enabled = 1;
    return rc;
  }
  snprintf(info->type, sizeof info->type, "%s", type);
  snprintf(info->algorithm, sizeof info->algorithm, "%s", type);
  info->enabled = entry != NULL;
  if (entry != NULL) {
    info->created = tde_json_is_int(entry) ? tde_json_get_int(tde_json_get(key, "keys"), version, 0)
                                           : rfc3339(tde_json_get_text(entry, "creation_time"));
    if (info->created < 0) info->created = 0;
  }
  return tde_opaque_thumbprint("vault", info->base_id, info->version, info->thumbprint, st);
}

/* Is this the key that was asked for, of a kind that serves? */
static tde_class check_key(const tde_op *op, const tde_json *key, tde_status *st) {
  const vt *v = op->state;
  const char *type = tde_json_get_text(key, "type"), *name = tde_json_get_text(key, "name");
  if (type == NULL || !tde_json_is_object(tde_json_get(key, "keys")))
    return corrupt(st, "describes no key");
  if (name != NULL && strcmp(name, v->key.name) != 0) return corrupt(st, "is about another key");
  if (!tde_is_one_of(type, "aes256-gcm96 chacha20-poly1305 rsa-2048 rsa-3072 rsa-4096")) {
    return tde_fail(st, TDE_UNSUPPORTED, KEY_KINDS,
                    "the key %.127s in Vault is of another type than can wrap here", v->key.name);
  }
  if (tde_json_get_bool(key, "derived", 0) || tde_json_get_bool(key, "convergent_encryption", 0)) {
    return tde_fail(st, TDE_UNSUPPORTED,
                    "make a key without derivation: vault write -f PATH/keys/NAME derived=false",
                    "the key %.127s in Vault is a derived one", v->key.name);
  }
  int64_t latest = tde_json_get_int(key, "latest_version", 0);
  if (latest < 1 || latest > VERSION_MAX)
    return corrupt(st, "does not say which version is the latest");
  return TDE_OK;
}

/* A flag that is not there counts as the worse: it is what makes a key unfit. */
static int says_no(const tde_json *key, const char *name) {
  return tde_json_is_bool(tde_json_get(key, name)) && !tde_json_get_bool(key, name, 1);
}

static tde_class may_wrap(const tde_op *op, const tde_json *key, tde_status *st) {
  const vt *v = op->state;
  const tde_cloud *c = tde_instance_cloud(op->instance);
  char remedy[320], at[140];
  if (!op->info.enabled) return too_old(op, "min_decryption_version", st);
  if (strtoll(op->version, NULL, 10) < tde_json_get_int(key, "min_encryption_version", 0)) {
    return too_old(op, "min_encryption_version", st);
  }
  if (!c->allow_purgeable_keys && !says_no(key, "deletion_allowed")) {
    snprintf(remedy, sizeof remedy,
             "forbid it: vault write %s/config deletion_allowed=false; or let such keys wrap "
             "(tde_instance_set_policy('allow_purgeable_keys', 1))",
             place(v, "keys", at));
    return tde_fail(st, TDE_MISCONFIGURED, remedy,
                    "the key %.127s in Vault could be deleted, and every database with it",
                    v->key.name);
  }
  if (!c->allow_exportable_keys &&
      (!says_no(key, "exportable") || !says_no(key, "allow_plaintext_backup"))) {
    return tde_fail(st, TDE_MISCONFIGURED,
                    "use another key, since this cannot be undone; or let such keys wrap "
                    "(tde_instance_set_policy('allow_exportable_keys', 1))",
                    "the key %.127s in Vault could be exported (exportable, "
                    "allow_plaintext_backup), and would open every "
                    "database without it",
                    v->key.name);
  }
  return TDE_OK;
}

static tde_class read_key(tde_op *op, const tde_json *key, tde_status *st) {
  int64_t latest = tde_json_get_int(key, "latest_version", 0);
  if (op->version[0] == 0) snprintf(op->version, sizeof op->version, "%d", (int)latest);
  int64_t version = strtoll(op->version, NULL, 10);
  if (version > latest || version < tde_json_get_int(key, "min_available_version", 0))
    return missing_version(op, st);
  if (version >= tde_json_get_int(key, "min_decryption_version", 0) &&
      tde_json_get(tde_json_get(key, "keys"), op->version) == NULL) {
    return missing_version(op, st);
  }
  tde_class rc = read_version(op, key, op->version, &op->info, st);
  return rc == TDE_OK && is_wrap(op) ? may_wrap(op, key, st) : rc;
}

static tde_class read_list(tde_op *op, const tde_json *key, tde_status *st) {
  const tde_json *keys = tde_json_get(key, "keys");
  tde_class rc = TDE_OK;
  for (size_t i = 0; rc == TDE_OK && i < tde_json_members(keys); i++) {
    const char *version = tde_json_member_name(keys, i);
    tde_key_info info;
    if (!version_valid(version)) return corrupt(st, "lists what is no version");
    rc = read_version(op, key, version, &info, st);
    if (rc == TDE_OK) rc = tde_op_add_version(op, &info, st);
  }
  return rc;
}

static tde_step on_key(tde_op *op, const tde_reply *reply, tde_request *req, tde_status *st) {
  vt *v = op->state;
  tde_json *root = NULL;
  tde_class rc = tde_json_parse(reply->body, reply->nbody, "reply of Vault", &root, st);
  if (rc == TDE_CORRUPT) rc = corrupt(st, "is not valid JSON");
  const tde_json *key = tde_json_get(root, "data");
  if (rc == TDE_OK) rc = check_key(op, key, st);
  if (rc == TDE_OK)
    rc = op->kind == TDE_OP_VERSIONS ? read_list(op, key, st) : read_key(op, key, st);
  tde_json_free(root);
  if (rc != TDE_OK) return TDE_STEP_FAILED;
  if (!is_wrap(op)) return TDE_STEP_DONE;
  v->stage = STAGE_OP;
  return call_vault(op, req, st);
}

/* ---- what it gives ---- */

/* A member of "data" that is a text. */
static tde_class find_text(const tde_reply *reply, const char *name, tde_json_span *out,
                           tde_status *st) {
  tde_class rc = tde_json_find_in(reply->body, reply->nbody, "reply of Vault", "data", name, out,
                                  st);
  if (rc == TDE_OK && out->is_text) return TDE_OK;
  return rc == TDE_NOMEM ? rc : corrupt(st, "lacks what was asked for");
}

/* "vault:vN:" and the wrapped DEK, N being the version that was asked for. */
static tde_class take_wrapped(tde_op *op, const tde_reply *reply, tde_status *st) {
  tde_json_span text;
  char head[32];
  tde_class rc = find_text(reply, "ciphertext", &text, st);
  if (rc != TDE_OK) return rc;
  int n = snprintf(head, sizeof head, "vault:v%.11s:", op->version);
  if (text.n <= (size_t)n || memcmp(text.at, head, (size_t)n) != 0) {
    return corrupt(st, "holds what another version of the key wrapped");
  }
  long got = tde_unbase64(text.at + n, text.n - (size_t)n, op->wrapped, sizeof op->wrapped);
  long want = is_aead(op) ? AEAD_BYTES : strtol(op->info.type + 4, NULL, 10) / 8;
  if (got != want) return corrupt(st, "holds a wrapped key of a wrong length");
  op->nwrapped = (size_t)got;
  return TDE_OK;
}

static tde_class take_dek(tde_op *op, const tde_reply *reply, tde_status *st) {
  tde_json_span text;
  tde_class rc = find_text(reply, "plaintext", &text, st);
  if (rc != TDE_OK) return rc;
  if (tde_unbase64(text.at, text.n, op->dek, TDE_KEY_BYTES) != TDE_KEY_BYTES) {
    return corrupt(st, "holds something that is no DEK");
  }
  memcpy(op->info.base_id, op->base_id, sizeof op->info.base_id);
  memcpy(op->info.version, op->version, sizeof op->info.version);
  return TDE_OK;
}

/* The wrapped DEK was asked for without what it is bound to, and must not have been given. */
static tde_step on_bound(tde_op *op, const tde_reply *reply, tde_status *st) {
  if (reply->status == 400 && tde_vault_is_error(reply)) return TDE_STEP_DONE;
  if (reply->status == 200) {
    tde_fail(st, TDE_UNSUPPORTED, "use Vault 1.13 or newer, or OpenBao; or an RSA key",
             "this Vault does not bind what it wraps to its database (associated_data)");
  } else {
    refused(op, reply, st);
  }
  return TDE_STEP_FAILED;
}

static tde_step on_result(tde_op *op, const tde_reply *reply, tde_request *req, tde_status *st) {
  vt *v = op->state;
  if (!is_wrap(op)) return take_dek(op, reply, st) == TDE_OK ? TDE_STEP_DONE : TDE_STEP_FAILED;
  if (take_wrapped(op, reply, st) != TDE_OK) return TDE_STEP_FAILED;
  if (!is_aead(op)) return TDE_STEP_DONE;
  v->stage = STAGE_BOUND;
  return call_vault(op, req, st);
}

static tde_step vault_reply(tde_op *op, const tde_reply *reply, tde_request *req, tde_status *st) {
  vt *v = op->state;
  if (v->in_token) return after_token(op, tde_vault_flow_reply(v->flow, reply, req, st), req, st);
  if (reply->status == 403 && !v->tried_again && tde_vault_is_error(reply)) {
    /* Of a token that has ended, and of what it does not permit, Vault says the same. */
    v->tried_again = 1;
    if (tde_vault_flow_drop(v->flow, tde_vault_says(reply, "invalid token")))
      return after_token(op, tde_vault_flow_start(v->flow, req, st), req, st);
  }
  if (v->stage == STAGE_BOUND) return on_bound(op, reply, st);
  if (reply->status != 200) {
    refused(op, reply, st);
    return TDE_STEP_FAILED;
  }
  return v->stage == STAGE_KEY ? on_key(op, reply, req, st) : on_result(op, reply, req, st);
}

/* Only a token can be had from elsewhere than from a reply. */
static tde_step vault_unanswered(tde_op *op, tde_request *req, tde_status *st) {
  vt *v = op->state;
  if (!v->in_token) return TDE_STEP_FAILED;
  return after_token(op, tde_vault_flow_unanswered(v->flow, st), req, st);
}

const tde_provider tde_provider_vault = {
    .name = "vault",
    .matches = vault_matches,
    .parse_id = vault_parse_id,
    .start = vault_start,
    .reply = vault_reply,
    .finish = vault_finish,
    .unanswered = vault_unanswered,
    .serves = vault_serves,
};
