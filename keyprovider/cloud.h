/*
** cloud.h: how an instance reaches key services, and who it is toward them.
**
** Part of instance.json, read with it and constant afterwards: "allow_loopback_http",
** "http", "identities", "azure", and of "policy" what is no number. All of it is optional.
** PROVIDERS.md has the members, their defaults, and what each kind of identity needs: what
** changes here changes there. A secret never stands in the file itself; paths are absolute.
*/
#ifndef TDE_CLOUD_H
#define TDE_CLOUD_H

#include "json.h"
#include "provider.h"

/* The next step after an error in an instance's file. */
#define TDE_CORRECT_INSTANCE "correct it, or restore it from a backup of the instance directory"

/* What an instance file holds of ordinary ones; each change of it leaves them in memory. */
#define TDE_IDENTITIES_MAX 256
#define TDE_SUFFIXES_MAX 8
/* Members of "http", of "azure", of one of its domains of vaults, of an identity. */
#define TDE_HTTP_NAMES "connect_timeout_ms timeout_ms ca_file proxy_from_environment connect_to"
#define TDE_AZURE_NAMES "authority imds_endpoint ca_file api_version vault_suffixes"
#define TDE_SUFFIX_NAMES "suffix resource"
#define TDE_VAULT_NAMES "token_env address namespace mount role role_id"
#define TDE_AZURE_IDENTITY_NAMES "kind tenant client_id via secret_env secret_file certificate_file token_file"
#define TDE_IDENTITY_NAMES TDE_AZURE_IDENTITY_NAMES " " TDE_VAULT_NAMES
/* What must not stand there: a secret itself. */
#define TDE_IDENTITY_SECRETS "secret client_secret password certificate token secret_id"
/* Of "policy", beside the numbers of policy.h. */
#define TDE_POLICY_OTHER_NAMES "allow_purgeable_keys allow_exportable_keys"
#define TDE_CLOUD_PATH_MAX 1024

typedef enum tde_identity_kind {
  TDE_ID_MANAGED,
  TDE_ID_APP_SERVICE,
  TDE_ID_CLIENT_SECRET,
  TDE_ID_CLIENT_CERTIFICATE,
  TDE_ID_WORKLOAD,
  TDE_ID_FEDERATED,
  TDE_ID_ENVIRONMENT,
  TDE_ID_VAULT_TOKEN,   /* from here on: of HashiCorp Vault and OpenBao */
  TDE_ID_VAULT_APPROLE,
  TDE_ID_VAULT_JWT
} tde_identity_kind;

/* Its name in the instance file. */
const char *tde_identity_kind_name(tde_identity_kind kind);

/* "" where a member is absent. What is a pointer is the cloud's: a copy lives no longer. */
typedef struct tde_identity {
  char name[64];
  tde_identity_kind kind;
  char tenant[128];
  char client_id[128];
  char via[64];
  char secret_env[128];
  char *secret_file;
  char *certificate_file;
  char *token_file;
  char *token_env;
  char *address;                    /* of Vault: "https://host[:port]", the one spelling, no slash at its end */
  char *vault_namespace;            /* where it logs in: names with slashes between them */
  char *mount;                      /* of the auth method there; never "" for who logs in */
  char *role;                       /* the role, or an AppRole's role id */
} tde_identity;

/* A domain of vaults that the instance trusts. */
typedef struct tde_suffix {
  char name[128];
  char resource[256];               /* what tokens are for; "": https://name */
} tde_suffix;

/* How long a connection, and a request with all of its attempts, may take, in milliseconds, where the
** instance does not say. */
#define TDE_CONNECT_MS 5000
#define TDE_REQUEST_MS 30000

typedef struct tde_cloud {
  int allow_loopback_http;
  int proxy_from_environment;
  int connect_ms, total_ms;
  char ca_file[TDE_CLOUD_PATH_MAX];
  char connect_to[256];
  char authority[256];              /* no slash at its end */
  int authority_given;              /* 0: it is the default */
  char imds_endpoint[256];          /* no slash at its end */
  char api_version[32];
  tde_suffix suffixes[TDE_SUFFIXES_MAX];
  int nsuffixes;
  int allow_purgeable_keys;
  int allow_exportable_keys;
  tde_identity *ids;
  int nids;
} tde_cloud;

/* Reads root's members over the defaults. file is named in errors:
** TDE_MISCONFIGURED with the member, TDE_NOMEM. Free out with tde_cloud_free
** also after a failure. */
tde_class tde_cloud_read(const tde_json *root, const char *file, tde_cloud *out, tde_status *st);
void tde_cloud_free(tde_cloud *c);

/* The identity of that name. NULL name: the one named "default", or the only
** one there is. NULL with st set when there is none (TDE_MISCONFIGURED). */
const tde_identity *tde_cloud_identity(const tde_cloud *c, const char *name, tde_status *st);

/* The same, whom keys of this id may be asked for by, as the provider of the key says (its serves()).
** NULL name: the one named "default" if it may, or the only one that may. NULL: none, or not that one. */
const tde_identity *tde_cloud_asker(const tde_cloud *c, const char *name, const tde_provider *p,
                                    const char *key_id);

/* "https://host[:port]" in lower case, whose port is left out when it is https's own: cuts that out, and
** a slash at the end. 0: it is of another form. */
int tde_https_address(char *text);
/* Names with one slash between them, as Vault's paths are: each of letters, digits, '_', '-' and '.',
** the last two not at either end of it. */
int tde_name_path(const char *text, size_t n);

/* True for a name of letters, digits, '.', '_' and '-': tenants, client ids. */
int tde_plain_name(const char *text);
/* A code or an id of a service's answer (or NULL), which is a name. What is none, or is longer,
** is left out: it could be anything, a token too. */
void tde_copy_code(char *out, size_t cap, const char *text);
/* True for SCHEME://host[:port] and nothing more; a slash at the end is cut off. */
int tde_endpoint_valid(char *text);
/* True for a host in lower case: letters, digits, '-', labels between dots. */
int tde_host_valid(const char *host, size_t n);
/* True when host is "label.suffix", with one label or more. */
int tde_host_below(const char *host, const char *suffix);
/* The instance's entry that allows this host, or NULL. */
const tde_suffix *tde_cloud_suffix(const tde_cloud *c, const char *host);

#endif
