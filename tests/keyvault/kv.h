/*
** kv.h: the test key server's own declarations.
**
** A stand-in for Azure Key Vault's data plane (REST, api-version 7.4), Microsoft
** Entra's token endpoint, the managed-identity endpoints, and the Transit engine of HashiCorp
** Vault and OpenBao, for tests only. It shares no code with the extension that is tested against it.
**
** What must hold:
**  - everything listens on 127.0.0.1; every secret is made at start and lies
**    in the state folder, mode 0600;
**  - store, faults, clock and log are touched only under the one lock that
**    http.c holds while a request is served (kv_pause gives it up meanwhile);
**  - no token, secret or message body enters the log.
*/
#ifndef KV_H
#define KV_H

#include <jansson.h>
#include <microhttpd.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KV_SUFFIX "vault.localtest"
#define KV_HSM_SUFFIX "managedhsm.localtest"
#define KV_LOGIN "login.localtest"
#define KV_TRANSIT "bao.localtest"
#define KV_CLUSTER_ISSUER "https://cluster.localtest"
#define KV_EXCHANGE "api://AzureADTokenExchange"
#define KV_API_VERSION "7.4"
#define KV_BODY_MAX (256 * 1024)
#define KV_PAGE_MAX 25

typedef enum { KV_HTTPS, KV_HTTP, KV_ADMIN, KV_LISTENERS } kv_listener;

typedef enum { KV_GOOD, KV_EXPIRED, KV_WRONG_HOST, KV_UNKNOWN_CA, KV_CERTIFICATES } kv_certificate;

typedef enum {
  KV_FAULT_NONE,
  KV_FAULT_REFUSE,
  KV_FAULT_HANG,
  KV_FAULT_SLOW,
  KV_FAULT_DRIP,
  KV_FAULT_STATUS,
  KV_FAULT_TRUNCATED,
  KV_FAULT_OVERSIZED,
  KV_FAULT_NOT_JSON,
  KV_FAULT_EMPTY,
  KV_FAULT_WRONG_KID,
  KV_FAULT_FLIP,
  KV_FAULT_REDIRECT,
  KV_FAULT_STRANGER
} kv_fault_kind;

/* One request and the reply to it. The strings of the request live as long as it. */
typedef struct {
  struct MHD_Connection *conn;
  kv_listener listener;
  char *path, *target; /* decoded path; path and query for the log */
  char host[256];      /* lower case, without the port */
  char method[12], id[37];
  char *body; /* NUL-terminated */
  size_t nbody;
  bool too_big;
  const char *operation; /* a literal; NULL until known */
  char identity[64];     /* the caller, for the log */
  int64_t began;         /* real time, milliseconds */
  kv_fault_kind fault;
  json_t *fault_spec;
  int status; /* the reply */
  json_t *reply;
  char *raw; /* a body instead of reply */
  size_t nraw;
  char challenge[512], location[600];
  int64_t retry_after; /* seconds; -1: none */
} kv_request;

typedef struct kv_version {
  char id[33], kty[16];
  EVP_PKEY *pkey;  /* NULL: a symmetric key */
  uint8_t oct[32]; /* of a symmetric key, noct bytes */
  size_t noct;
  json_t *ops, *tags;
  bool enabled;
  int64_t nbf, exp, created, updated; /* seconds; nbf and exp 0: none */
} kv_version;

typedef struct kv_key {
  char name[128];
  kv_version *versions; /* oldest first */
  size_t n;
  int64_t deleted, purge_at; /* seconds; 0: a live key */
  struct kv_key *next;
} kv_key;

typedef struct kv_vault {
  const char *name, *tenant; /* borrowed from conf */
  bool rbac, purge_protection, hsm;
  int64_t days;
  json_t *conf, *grants; /* grants: identity name to list of permissions */
  kv_key *keys;
  struct kv_vault *next;
} kv_vault;

typedef struct kv_identity {
  const char *name, *client_id, *object_id; /* borrowed from conf */
  json_t *conf;
  char *secret; /* NULL: none */
  X509 *certificate;
  struct kv_identity *next;
} kv_identity;

/* ---- main.c ---- */
extern const char *kv_state; /* the state folder */
/* The clock that tokens and attributes go by, in seconds; and the real one. */
int64_t kv_now(void);
int64_t kv_real_ms(void);
extern int64_t kv_clock_offset;
/* Writes a file of the state folder whole, mode 0600; 0 on success. */
int kv_write_file(const char *name, const char *text);
/* Seconds as "YYYY-MM-DDThh:mm:ssZ"; out gets 32 bytes. */
void kv_time_text(int64_t t, char *out);

/* ---- crypto.c: all that OpenSSL does. Results are malloc'ed; NULL on failure ---- */
char *kv_base64url(const uint8_t *p, size_t n);
uint8_t *kv_unbase64url(const char *text, size_t *n);
void kv_random_hex(char *out, size_t nbytes);
void kv_uuid(char out[37]);
/* compact JWS over claims (borrowed), RS256. */
char *kv_jwt_sign(EVP_PKEY *key, json_t *claims);
/* The claims when the signature (RS256 or PS256) is right. */
json_t *kv_jwt_verify(EVP_PKEY *key, const char *jwt);
/* Header (part 0) or claims (part 1), unverified. */
json_t *kv_jwt_part(const char *jwt, int part);
/* True when the header's x5t (SHA-1) or x5t#S256 is this certificate's. */
bool kv_jwt_names(const char *jwt, X509 *certificate);
/* RSA-OAEP (SHA-1) or RSA-OAEP-256, RFC 8017 section 7.1. */
/* AES key wrap, RFC 3394; NULL also when the integrity check fails. */
uint8_t *kv_aes_wrap(const kv_version *key, bool wrap, const uint8_t *in, size_t nin, size_t *nout);
uint8_t *kv_rsa(EVP_PKEY *key, bool wrap, bool sha256, const uint8_t *in, size_t nin, size_t *nout);
json_t *kv_public_jwk(const kv_version *key, const char *kid);
typedef struct {
  char *key, *chain; /* PEM, for the listener */
} kv_tls;
/* One of each kind; *ca: PEM, what clients shall trust. 0 on success. */
int kv_tls_make(kv_tls out[KV_CERTIFICATES], char **ca);
/* good, expired, wrong-host, unknown-ca; KV_CERTIFICATES: none of them. */
kv_certificate kv_certificate_of(const char *name);
/* A self-signed certificate for a client; pem: key and certificate. 0 on success. */
int kv_client_certificate(const char *name, X509 **cert, char **pem);

/* ---- store.c ---- */
extern kv_vault *kv_vaults;
extern EVP_PKEY *kv_authority_key, *kv_cluster_key;
int kv_store_load(const char *config);
void kv_store_free(void);
kv_vault *kv_find_vault(const char *name);
/* The vault that a host name means, with or without a port; NULL: of no vault. */
kv_vault *kv_vault_at(const char *host);
/* True when the host lies below a domain of vaults. */
bool kv_is_vault_host(const char *host);
/* vault.localtest or managedhsm.localtest; and what tokens for it are for. */
const char *kv_suffix(const kv_vault *vault);
const char *kv_resource(const kv_vault *vault);
/* "resource", without a slash at its end, is one that tokens are given for. */
bool kv_resource_known(const char *resource);
kv_identity *kv_find_identity(const char *name);
kv_identity *kv_find_client(const char *client_id);
/* client_id NULL: the default managed identity. */
kv_identity *kv_find_managed(const char *client_id);
bool kv_tenant_known(const char *tenant);
bool kv_in_tenant(const kv_identity *who, const char *tenant);
bool kv_granted(const kv_vault *vault, const char *identity, const char *permission);
kv_key *kv_find_key(kv_vault *vault, const char *name, bool deleted);
/* version NULL or empty: the latest. */
kv_version *kv_find_version(kv_key *key, const char *version);
/* Adds a version (and the key, when new): RSA, RSA-HSM or oct-HSM. oct: its bytes, NULL:
** random ones. NULL: no memory or no such size. */
kv_version *kv_add_version(kv_vault *vault, const char *name, const char *kty, int bits,
                           const uint8_t *oct);
void kv_drop_key(kv_vault *vault, kv_key *key);
int kv_write_federated(kv_identity *who, int64_t seconds);

/* ---- http.c ---- */
extern unsigned kv_port[KV_LISTENERS];
int kv_listen(kv_listener which, const kv_tls *tls);
/* On the port that it had. */
int kv_listen_again(kv_listener which, kv_certificate certificate);
void kv_unlisten(kv_listener which);
extern bool kv_listening[KV_LISTENERS];
const char *kv_header(kv_request *r, const char *name);
const char *kv_query(kv_request *r, const char *name);
void kv_reply(kv_request *r, int status, json_t *body); /* takes body */
/* Key Vault's error body; inner may be NULL. */
void kv_error(kv_request *r, int status, const char *code, const char *inner, const char *format,
              ...) __attribute__((format(printf, 5, 6)));
/* Waits with the lock given up; kv_interrupt ends every wait. */
void kv_pause(int64_t ms);
void kv_interrupt(void);
void kv_lock(void);
void kv_unlock(void);

/* ---- log.c ---- */
void kv_log_add(const kv_request *r);
json_t *kv_log_get(int64_t since, const char *operation);
json_t *kv_log_counts(void);
int64_t kv_log_count(const char *operation);
void kv_log_clear(void);

/* ---- fault.c ---- */
/* Takes the fault for this point of the request, if one is set. authenticated:
** the caller has proven who it is, or need not. True: the reply is made (or
** there is to be none), the operation must not be done. */
bool kv_fault_met(kv_request *r, bool authenticated);
/* What a fault does to a reply that is otherwise right. */
void kv_fault_bend(kv_request *r);
int64_t kv_fault_add(json_t *spec, const char **why); /* borrows spec; -1: refused */
json_t *kv_fault_list(void);
void kv_fault_remove(int64_t id); /* 0: all */
void kv_fault_free(void);

/* ---- the services: each fills in the reply ---- */
void kv_vault_serve(kv_request *r, kv_vault *vault); /* NULL: there is none of that name */
bool kv_vault_has(const char *operation);            /* is it one of a vault's? */
/* What a vault answers a request without a token with. */
void kv_challenge(kv_request *r, const kv_vault *vault);
void kv_login_serve(kv_request *r);
void kv_managed_serve(kv_request *r);
void kv_admin_serve(kv_request *r);

/* ---- transit.c: HashiCorp Vault and OpenBao ---- */
int kv_transit_load(json_t *document);
void kv_transit_free(void);
bool kv_is_transit_host(const char *host);
bool kv_transit_has(const char *operation);
void kv_transit_serve(kv_request *r);
void kv_transit_admin(kv_request *r, json_t *body);
/* why NULL: {"errors": []}. */
void kv_transit_error(kv_request *r, int status, const char *why);
void kv_transit_bend(kv_request *r);
/* Every token but those that never expire. */
void kv_transit_revoke(void);

/* ---- token.c ---- */
char *kv_issue(const kv_identity *who, const char *tenant, const char *audience, int64_t seconds);
/* Who presents this token at the vault; NULL, and why. */
kv_identity *kv_authenticate(const char *token, const kv_vault *vault, const char **why);
void kv_revoke_tokens(void);
/* An error in the form of the endpoint that was asked for a token; code may be NULL. */
void kv_token_error(kv_request *r, int status, const char *code, const char *why);
/* What App Service gives a process to prove itself with. */
extern char kv_identity_header[41];
void kv_issuer(const char *tenant, char *out, size_t n);

#endif
