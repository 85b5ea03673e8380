/*
** provider.h: who wraps and unwraps a DEK.
**
** A provider is a constant table. Its operations do no network I/O: start()
** builds a request, reply() parses what came back, and each says whether the
** operation is done or has another request to send (a token, then the key).
** The driver in registry.c owns the loop and http.c the socket; a provider
** without a network (local files, a PKCS#11 token) finishes in start().
** PROVIDERS.md tells how to add one.
**
** The KEK never enters the process where the service can wrap. A DEK lives in
** secret memory (ext/base/secret.h) only.
**
** Thread-safety: a table is constant and its functions are called from any
** thread; an operation belongs to one thread.
*/
#ifndef TDE_PROVIDER_H
#define TDE_PROVIDER_H

#include <stddef.h>
#include <stdint.h>

#include "../ext/base/limits.h"
#include "../ext/base/status.h"

struct tde_instance; /* instance.h */
struct tde_identity; /* cloud.h */

typedef enum tde_op_kind {
  TDE_OP_GET,    /* public part, thumbprint, attributes of one key version */
  TDE_OP_WRAP,   /* wraps op->dek */
  TDE_OP_UNWRAP, /* unwraps op->wrapped into op->dek */
  TDE_OP_LATEST, /* the version that a versionless id means now */
  TDE_OP_VERSIONS /* every version of the key, into op->versions; the id's own does not count */
} tde_op_kind;

/* What is known of one version of a key. In a list of versions, type,
** algorithm and thumbprint are empty where the service's list does not tell them:
** ask for the version itself (TDE_OP_GET). */
typedef struct tde_key_info {
  char base_id[TDE_KEY_ID_MAX];   /* the id without its version */
  char version[TDE_KEY_VERSION_MAX];
  char type[32];                  /* "RSA-3072", "RSA-HSM-2048", "AES-256", ... */
  char algorithm[32];             /* what wraps: "RSA-OAEP-256", ... */
  uint8_t thumbprint[TDE_THUMB_BYTES]; /* SHA-256 of the RFC 7638 form */
  int64_t created;                /* Unix time, 0: unknown */
  int64_t not_before;             /* 0: none */
  int64_t expires;                /* 0: none */
  int enabled;
} tde_key_info;

/* Versions that one list may hold. */
#define TDE_VERSIONS_MAX 1000
/* Requests that one operation may send (token, key, one retry of each after a
** refused token, a versions list in pages of 25): a service that asks for more is
** stopped, whatever it replies. */
#define TDE_OP_REQUESTS_MAX 64

/* One request to a key service. The provider fills it; the driver frees it
** (tde_request_clear) once it is sent, so nothing in it may be borrowed but
** method. Headers carry tokens and a body may carry a DEK: those strings are
** secret memory. */
typedef struct tde_request {
  const char *method;             /* "GET" or "POST"; a literal */
  char *url;                      /* malloc'd */
  char **headers;                 /* malloc'd array, NULL at the end; may be NULL; each
                                  ** "Name: value" from tde_secret_alloc */
  char *body;                     /* from tde_secret_alloc; may be NULL */
  size_t nbody;
  int max_ms;                     /* not worth waiting longer for; 0: the instance's timeout */
} tde_request;

/* Frees what a request holds and zeroes it. */
void tde_request_clear(tde_request *req);

/* What came back. Filled by the sender; the driver calls release (which may be
** NULL) once the provider has read it, so a provider copies what it keeps. */
typedef struct tde_reply {
  int status;                     /* HTTP status */
  const char *body;               /* may hold a DEK or a token: the sender's secret memory */
  size_t nbody;
  /* A reply header's value, or NULL; case-insensitive. */
  const char *(*header)(const struct tde_reply *reply, const char *name);
  void (*release)(struct tde_reply *reply);
  void *impl;                     /* the sender's own */
} tde_reply;

/* The value of that header, or NULL: also of a reply whose sender knows no headers. */
static inline const char *tde_reply_header(const tde_reply *reply, const char *name) {
  return reply->header != NULL ? reply->header(reply, name) : NULL;
}

typedef enum tde_step { TDE_STEP_DONE, TDE_STEP_SEND, TDE_STEP_FAILED } tde_step;

/* One operation in flight. In: kind, instance, identity, base_id, version,
** for WRAP dek, for UNWRAP wrapped and algorithm, and context. Out: info,
** and wrapped or dek; for VERSIONS the list. */
typedef struct tde_op {
  tde_op_kind kind;
  const struct tde_instance *instance;
  const char *identity;           /* named identity, or NULL */
  const char *federated_client_id;/* or NULL */
  char base_id[TDE_KEY_ID_MAX];
  char version[TDE_KEY_VERSION_MAX];              /* "" : latest */
  uint8_t context[TDE_UUID_BYTES];/* the database's UUID, where a service binds one */
  char algorithm[32];
  uint8_t *dek;                   /* TDE_KEY_BYTES of secret memory, caller's */
  uint8_t wrapped[TDE_WRAPPED_MAX];
  size_t nwrapped;
  tde_key_info info;
  tde_key_info *versions;         /* newest first; the caller frees it with free() */
  size_t nversions;               /* at least 1 after a success */
  int patient;                    /* not sent to a host that asked to be left alone until later */
  int64_t until;                  /* tde_boot_ms() at which several operations must have ended; 0: none */
  int64_t deadline;               /* set by the driver: tde_boot_ms() at which it all must have ended */
  void *state;                    /* the provider's own, freed by its finish() */
} tde_op;

typedef struct tde_provider {
  const char *name;               /* "local", "azure", ... */
  /* True when the key id is this provider's; looks at its form alone. */
  int (*matches)(const char *key_id);
  /* Validates an id and splits it; version becomes "" when it names none. base_id gets the
  ** one spelling that this key has, whatever others its service takes for the same. */
  tde_class (*parse_id)(const char *key_id, char base_id[TDE_KEY_ID_MAX], char version[TDE_KEY_VERSION_MAX],
                        tde_status *st);
  /* Begins: fills req and returns TDE_STEP_SEND, or finishes at once. */
  tde_step (*start)(tde_op *op, tde_request *req, tde_status *st);
  /* Parses a reply; may ask for another request. NULL: start() never sends. */
  tde_step (*reply)(tde_op *op, const tde_reply *reply, tde_request *req, tde_status *st);
  /* Frees op->state; NULL when there never is any. */
  void (*finish)(tde_op *op);
  /* A request got no reply; st says why. May go on all the same: DONE, or another
  ** request. NULL: the operation fails as st says. */
  tde_step (*unanswered)(tde_op *op, tde_request *req, tde_status *st);
  /* Is this identity of those that ask this provider's service for this key? NULL: each is. */
  int (*serves)(const char *key_id, const struct tde_identity *id);
} tde_provider;

/* Milliseconds on a clock that neither jumps nor stops while the machine sleeps. */
int64_t tde_boot_ms(void);

/* When an operation that begins now must have ended: twice the instance's timeout. */
int64_t tde_op_deadline(const struct tde_instance *inst);

/* How a request is sent: one exchange under the one transport policy, retries
** included. An HTTP error status is a reply (TDE_OK), not a failure; a failure
** is TDE_UNREACHABLE, TDE_MISCONFIGURED, ... with st set. The network module
** sets tde_http_sender once at start-up; while it is NULL, a provider that
** wants to send fails with TDE_UNSUPPORTED. */
typedef tde_class (*tde_http_send_fn)(const struct tde_op *op, const tde_request *req,
                                      tde_reply *reply, tde_status *st);
extern _Atomic(tde_http_send_fn) tde_http_sender;

/* The provider of this key id, or NULL with st set (TDE_UNSUPPORTED). */
const tde_provider *tde_provider_find(const char *key_id, tde_status *st);

/* Is this a key's id, as far as its form shows? *remote: of a key service. */
tde_class tde_key_id_parse(const char *key_id, int *remote, tde_status *st);

/* Do two ids name the same key, however each is spelt? Of one version, where both name
** one (versions are compared without case: what differs by that alone counts as the same). */
int tde_key_ids_match(const char *a, const char *b);

/* The same of two key versions. */
int tde_key_same_version(const tde_key_info *a, const tde_key_info *b);

/* The whole id of a key version: "base/version", as op->info names it. */
void tde_key_full_id(const tde_key_info *info, char out[TDE_KEY_ID_MAX]);

/* For providers: the thumbprint of a key without a public part. SHA-256 of
** provider, key id and version, a line feed after each; the parts are printable,
** so none runs into the next. id is the one spelling that the provider gives the key. */
tde_class tde_opaque_thumbprint(const char *provider, const char *id, const char *version,
                                uint8_t out[TDE_THUMB_BYTES], tde_status *st);

/* For providers: adds one to op->versions. TDE_UNSUPPORTED: more than
** TDE_VERSIONS_MAX; TDE_NOMEM. The driver sorts them, and frees them after a failure. */
tde_class tde_op_add_version(tde_op *op, const tde_key_info *info, tde_status *st);

/* Runs one operation to its end, within twice the instance's timeout whatever
** the service does; no lock is held meanwhile, and the caller must
** hold none. key_id may name a version or none; op->base_id and op->version are
** set from it. On failure st carries class, key id and next step; an UNWRAP's
** op->dek is wiped (a WRAP's is the caller's live key and stays). */
tde_class tde_provider_run(tde_op *op, const char *key_id, tde_status *st);
/* As tde_provider_run with the provider named, whatever its matches() says. */
tde_class tde_provider_run_with(const tde_provider *provider, tde_op *op, const char *key_id,
                                tde_status *st);

/* Looks at one key version (TDE_OP_GET), asked as identity (NULL: none is named; likewise
** federated_client_id). *info is what the service said, zeros in what it did not say, also after
** a failure. */
tde_class tde_provider_get(const struct tde_instance *inst, const char *key_id,
                           const char *identity, const char *federated_client_id,
                           tde_key_info *info, tde_status *st);

/* How the last operation on a key version (none named: on any of its versions) ended in this
** process, for people. Returns 0 when there was none that is remembered. */
typedef struct tde_key_outcome {
  tde_class code;
  int64_t at;          /* Unix time */
  int http_status;
  char message[256];
} tde_key_outcome;
int tde_provider_outcome(const char *key_id, tde_key_outcome *out);

/* Checks the table's mandatory entries at start-up; one provider's for tests. */
tde_class tde_providers_check(tde_status *st);
tde_class tde_provider_check(const tde_provider *provider, tde_status *st);

/* The rows of the table in registry.c. */
extern const tde_provider tde_provider_local;
extern const tde_provider tde_provider_azure;
extern const tde_provider tde_provider_vault;

#endif
