/*
** cloud.h: how an instance reaches key services, and who it is toward them.
**
** Part of instance.json, read with it and constant afterwards:
**   "allow_loopback_http": false,        plain http to 127.0.0.0/8, [::1], localhost: for tests
**   "http": {"connect_timeout_ms": 5000, "timeout_ms": 30000, "ca_file": "/...",
**            "proxy_from_environment": false, "connect_to": "host:port"},
**   "identities": {"NAME": {"kind": "...", ...}},
**   "azure": {"authority": "https://login.microsoftonline.com",
**             "imds_endpoint": "http://169.254.169.254",
**             "vault_suffixes": ["vault.example", {"suffix": "...", "resource": "..."}],
**             "ca_file": "/...", "api_version": "7.4"},
**   "policy": {"allow_purgeable_keys": false}
** All of it is optional. A suffix allows the vaults below that domain, whose token is for the
** domain itself (https://vault.example). Where it is for another resource (a domain of
** one's own in front of a vault, Azure Stack Hub), "resource" names it; then the
** domain alone may be a vault, too. ca_file replaces the system's certificate authorities;
** azure.ca_file is another name of http.ca_file. connect_to is where connections of https
** go instead of where the name resolves to (a private link, a test server); the
** certificate must still be that of the name.
**
** An identity has "kind", and of these what its kind needs:
**   managed_identity     "client_id" (none: the system-assigned one)
**   app_service          "client_id" (none: the system-assigned one)
**   client_secret        "client_id", "secret_file" or "secret_env"
**   client_certificate   "client_id", "certificate_file" (certificate and key, PEM)
**   workload_identity    "client_id", "token_file" (absent: the AZURE_* variables')
**   federated            "client_id", "via": the name of a managed identity
**   environment          nothing: AZURE_TENANT_ID, AZURE_CLIENT_ID and one of
**                        AZURE_CLIENT_SECRET, AZURE_CLIENT_CERTIFICATE_PATH,
**                        AZURE_FEDERATED_TOKEN_FILE
** and "tenant" (absent: the vault's, as its challenge tells). For workload_identity and
** environment, AZURE_AUTHORITY_HOST names the authority where "azure" does not. A secret never
** stands in the file itself; paths are absolute.
*/
#ifndef TDE_CLOUD_H
#define TDE_CLOUD_H

#include "json.h"
#include "provider.h"

/* What an instance file holds of ordinary ones; each change of it leaves them in memory. */
#define TDE_IDENTITIES_MAX 256
#define TDE_SUFFIXES_MAX 8
/* Members of an identity. */
#define TDE_IDENTITY_NAMES "kind tenant client_id via secret_env secret_file certificate_file token_file"
/* Of "policy", beside the numbers of policy.h. */
#define TDE_POLICY_OTHER_NAMES "allow_purgeable_keys"
#define TDE_CLOUD_PATH_MAX 1024

typedef enum tde_identity_kind {
  TDE_ID_MANAGED,
  TDE_ID_APP_SERVICE,
  TDE_ID_CLIENT_SECRET,
  TDE_ID_CLIENT_CERTIFICATE,
  TDE_ID_WORKLOAD,
  TDE_ID_FEDERATED,
  TDE_ID_ENVIRONMENT
} tde_identity_kind;

/* "" where a member is absent. Paths are the cloud's: a copy lives no longer. */
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
} tde_identity;

/* A domain of vaults that the instance trusts. */
typedef struct tde_suffix {
  char name[128];
  char resource[256];               /* what tokens are for; "": https://name */
} tde_suffix;

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

/* True for a name of letters, digits, '.', '_' and '-': tenants, client ids. */
int tde_plain_name(const char *text);
/* True for SCHEME://host[:port] and nothing more; a slash at the end is cut off. */
int tde_endpoint_valid(char *text);
/* True for a host in lower case: letters, digits, '-', labels between dots. */
int tde_host_valid(const char *host, size_t n);
/* True when host is "label.suffix", with one label or more. */
int tde_host_below(const char *host, const char *suffix);
/* The instance's entry that allows this host, or NULL. */
const tde_suffix *tde_cloud_suffix(const tde_cloud *c, const char *host);

#endif
