/*
** challenge.c: the challenges of vaults; challenge.h tells the rules.
**
** What must hold: what a challenge says is a stranger's word until it is checked,
** and nothing of it is kept before; the mutex is held for copying only.
*/
#include "challenge.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "../ext/base/bytes.h"
#include "cloud.h"

#define SCHEME "https://"
#define SCHEME_LEN 8

/* ---- what is remembered ---- */

static struct {
  pthread_mutex_t mutex;
  pthread_once_t once;
  unsigned next;
  struct known_vault {
    const struct tde_instance *inst; /* NULL: free */
    char host[254];
    tde_challenge challenge;
  } at[TDE_CHALLENGES_MAX];
} known = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void raw_lock(void) {
  pthread_mutex_lock(&known.mutex);
}

static void known_unlock(void) {
  pthread_mutex_unlock(&known.mutex);
}

/* A child forked while another thread holds the mutex would never get it. */
static void known_once(void) {
  pthread_atfork(raw_lock, known_unlock, known_unlock);
}

static void known_lock(void) {
  pthread_once(&known.once, known_once);
  raw_lock();
}

/* Its place, or NULL. An instance's address is never another's: they are not freed. */
static struct known_vault *find(const struct tde_instance *inst, const char *host) {
  for (int i = 0; i < TDE_CHALLENGES_MAX; i++) {
    if (known.at[i].inst == inst && strcmp(known.at[i].host, host) == 0) return &known.at[i];
  }
  return NULL;
}

int tde_challenge_get(const struct tde_instance *inst, const char *host, tde_challenge *out) {
  known_lock();
  const struct known_vault *v = find(inst, host);
  if (v != NULL) *out = v->challenge;
  known_unlock();
  return v != NULL;
}

void tde_challenge_put(const struct tde_instance *inst, const char *host,
                       const tde_challenge *challenge) {
  known_lock();
  struct known_vault *v = find(inst, host);
  if (v == NULL) {
    v = &known.at[known.next];
    known.next = (known.next + 1) % TDE_CHALLENGES_MAX;
  }
  v->inst = inst;
  snprintf(v->host, sizeof v->host, "%s", host);
  v->challenge = *challenge;
  known_unlock();
}

void tde_challenge_forget(const struct tde_instance *inst, const char *host) {
  known_lock();
  struct known_vault *v = find(inst, host);
  if (v != NULL) v->inst = NULL;
  known_unlock();
}

void tde_challenge_drop_cache(void) {
  known_lock();
  for (int i = 0; i < TDE_CHALLENGES_MAX; i++) known.at[i].inst = NULL;
  known.next = 0;
  known_unlock();
}

/* ---- reading one ---- */

/* The value of a parameter of a challenge, quoted or not; 0 when absent or
** too long. */
static int parameter(const char *header, const char *name, char *out, size_t cap) {
  const char *p = header;
  while (*p != 0) {
    p += strspn(p, " \t,");
    size_t nname = strcspn(p, "=, \t");
    if (p[nname] != '=') {
      if (nname == 0 && *p != 0) return 0;
      p += nname;
      continue;
    }
    const char *v = p + nname + 1;
    int quoted = *v == '"';
    v += quoted;
    size_t n = strcspn(v, quoted ? "\"" : ", \t");
    if (quoted && v[n] != '"') return 0;
    if (nname == strlen(name) && strncasecmp(p, name, nname) == 0) {
      return n > 0 && tde_copy_part(out, cap, v, n);
    }
    p = v + n + quoted;
  }
  return 0;
}

/* A scope is a resource with this tail. */
static void trim_scope(char *resource) {
  static const char scope[] = "/.default";
  size_t n = strlen(resource);
  if (n > sizeof scope - 1 && strcmp(resource + n - (sizeof scope - 1), scope) == 0) {
    resource[n -= sizeof scope - 1] = 0;
  }
  if (n > 0 && resource[n - 1] == '/') resource[--n] = 0;
}

/* The host of "https://host"; NULL when it is something else. */
static const char *resource_host(const char *resource) {
  if (strncmp(resource, SCHEME, SCHEME_LEN) != 0) return NULL;
  const char *host = resource + SCHEME_LEN;
  /* A top-level domain is above everything: no vault's domain is that short. */
  return tde_host_valid(host, strlen(host)) && strchr(host, '.') != NULL ? host : NULL;
}

static tde_class bad_challenge(tde_status *st) {
  return tde_fail(st, TDE_CORRUPT, "check what answers at the vault's address",
                  "the vault's challenge is missing or malformed");
}

/* Whether the vault may ask for a token for this resource. */
static tde_class check_resource(const char *resource, const char *host, const char *expected,
                                const char *within, tde_status *st) {
  const char *domain = resource_host(resource);
  int ok = domain != NULL && tde_host_below(host, domain) &&
           (within[0] == 0 || strcmp(domain, within) == 0 || tde_host_below(domain, within));
  if (expected[0] != 0) ok = strcmp(resource, expected) == 0;
  else if (domain == NULL) return bad_challenge(st);
  if (ok) return TDE_OK;
  return tde_fail(st, TDE_MISCONFIGURED,
                  "check the vault's address, a gateway before it that wants a login of its own, and "
                  "\"resource\" in azure.vault_suffixes if the vault is below one of those: no token was sent",
                  "%.100s asks for a token for %.100s, which it does not belong to", host,
                  domain != NULL ? domain : "another service");
}

tde_class tde_challenge_read(const char *header, const char *host, const char *expected,
                             const char *within, tde_challenge *out, tde_status *st) {
  char authority[512];
  memset(out, 0, sizeof *out);
  if (header == NULL || strlen(header) > 4096 || strncasecmp(header, "Bearer ", 7) != 0) {
    return bad_challenge(st);
  }
  header += 7;
  if (!parameter(header, "authorization", authority, sizeof authority) &&
      !parameter(header, "authorization_uri", authority, sizeof authority)) {
    return bad_challenge(st);
  }
  if (!parameter(header, "resource", out->resource, sizeof out->resource) &&
      !parameter(header, "scope", out->resource, sizeof out->resource)) {
    return bad_challenge(st);
  }
  const char *slash = strncmp(authority, SCHEME, SCHEME_LEN) == 0
                          ? strchr(authority + SCHEME_LEN, '/')
                          : NULL;
  size_t n = slash != NULL ? strcspn(slash + 1, "/?#") : 0;
  if (n == 0 || !tde_copy_part(out->tenant, sizeof out->tenant, slash + 1, n) ||
      !tde_plain_name(out->tenant) || out->tenant[0] == '.') {
    return bad_challenge(st);
  }
  trim_scope(out->resource);
  return check_resource(out->resource, host, expected, within, st);
}
