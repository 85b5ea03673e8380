/*
** fault.c: what goes wrong, and when.
**
** A fault names a route (an operation of the log, or "*"); it may be narrowed to
** a vault, let some requests pass, and end by itself. The first that fits, in
** the order in which they were set, is taken.
*/
#include <stdlib.h>
#include <string.h>

#include "kv.h"

#define HANG_MS 600000

static const struct {
  const char *name;
  kv_fault_kind kind;
  int status;
  const char *code, *inner;
} kinds[] = {
    {"refuse", KV_FAULT_REFUSE, 0, NULL, NULL},
    {"hang", KV_FAULT_HANG, 0, NULL, NULL},
    {"slow", KV_FAULT_SLOW, 0, NULL, NULL},
    {"drip", KV_FAULT_DRIP, 0, NULL, NULL},
    {"truncated", KV_FAULT_TRUNCATED, 0, NULL, NULL},
    {"oversized", KV_FAULT_OVERSIZED, 0, NULL, NULL},
    {"not-json", KV_FAULT_NOT_JSON, 0, NULL, NULL},
    {"empty", KV_FAULT_EMPTY, 0, NULL, NULL},
    {"wrong-kid", KV_FAULT_WRONG_KID, 0, NULL, NULL},
    {"flip", KV_FAULT_FLIP, 0, NULL, NULL},
    {"redirect", KV_FAULT_REDIRECT, 307, NULL, NULL},
    {"stranger", KV_FAULT_STRANGER, 403, NULL, NULL},
    {"status", KV_FAULT_STATUS, 500, "InternalServerError", NULL},
    {"401", KV_FAULT_STATUS, 401, "Unauthorized", NULL},
    {"403", KV_FAULT_STATUS, 403, "Forbidden", "AccessDenied"},
    {"404", KV_FAULT_STATUS, 404, "KeyNotFound", NULL},
    {"409", KV_FAULT_STATUS, 409, "Conflict", "ObjectIsDeletedButRecoverable"},
    {"429", KV_FAULT_STATUS, 429, "Throttled", NULL},
    {"500", KV_FAULT_STATUS, 500, "InternalServerError", NULL},
    {"503", KV_FAULT_STATUS, 503, "ServiceUnavailable", NULL},
};

static json_t *faults;
static int64_t next_id = 1;

static int kind_of(const char *name) {
  size_t i;

  for (i = 0; name && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
    if (strcmp(kinds[i].name, name) == 0) return (int)i;
  }
  return -1;
}

static const char *text(json_t *spec, const char *name) {
  return json_string_value(json_object_get(spec, name));
}

static int64_t number(json_t *spec, const char *name, int64_t otherwise) {
  json_t *value = json_object_get(spec, name);

  return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

/* One that no request ever has would let a test pass without its fault. */
static bool is_route(const char *name) {
  static const char *const others[] = {"*", "token", "openid", "discovery", "imds", "appService"};
  size_t i;

  for (i = 0; name && i < sizeof(others) / sizeof(others[0]); i++) {
    if (strcmp(others[i], name) == 0) return true;
  }
  return kv_vault_has(name) || kv_transit_has(name);
}

int64_t kv_fault_add(json_t *spec, const char **why) {
  static const char *const known[] = {
      "route",  "fault", "vault", "times",   "after",       "any",       "ms",       "bytes",
      "status", "code",  "inner", "message", "retry_after", "challenge", "location", "part"};
  const char *name;
  json_t *value, *copy;
  size_t i;

  *why = "a fault needs a known route and a known fault";
  if (!is_route(text(spec, "route")) || kind_of(text(spec, "fault")) < 0) return -1;
  *why = "a member of the fault is not known";
  json_object_foreach(spec, name, value) {
    for (i = 0; i < sizeof(known) / sizeof(known[0]) && strcmp(known[i], name) != 0; i++) {
    }
    if (i == sizeof(known) / sizeof(known[0])) return -1;
  }
  if (!faults) faults = json_array();
  copy = json_deep_copy(spec);
  json_object_set_new(copy, "id", json_integer(next_id));
  json_object_set_new(copy, "fired", json_integer(0));
  json_array_append_new(faults, copy);
  return next_id++;
}

json_t *kv_fault_list(void) {
  return faults ? json_deep_copy(faults) : json_array();
}

void kv_fault_remove(int64_t id) {
  size_t i;

  for (i = json_array_size(faults); i-- > 0;) {
    if (id == 0 || number(json_array_get(faults, i), "id", 0) == id) json_array_remove(faults, i);
  }
  kv_interrupt();
}

/* Counts down what the fault lets pass and how often it fires. */
static bool due(json_t *f) {
  int64_t after = number(f, "after", 0), times = number(f, "times", 0);
  int64_t fired = number(f, "fired", 0);

  if (after > 0) {
    json_object_set_new(f, "after", json_integer(after - 1));
    return false;
  }
  if (times > 0 && fired >= times) return false;
  json_object_set_new(f, "fired", json_integer(fired + 1));
  return true;
}

static json_t *find(const kv_request *r, bool authenticated) {
  const kv_vault *at = kv_vault_at(r->host);
  const char *vault;
  size_t i;
  json_t *f;

  json_array_foreach(faults, i, f) {
    if (strcmp(text(f, "route"), "*") != 0 && strcmp(text(f, "route"), r->operation) != 0) continue;
    if (!authenticated && !json_is_true(json_object_get(f, "any"))) continue;
    vault = text(f, "vault");
    if (vault && (!at || strcmp(at->name, vault) != 0)) continue;
    if (due(f)) return f;
  }
  return NULL;
}

static void raw_reply(kv_request *r, int status, const char *start, size_t padding) {
  size_t n = strlen(start);

  r->status = status;
  r->raw = malloc(n + padding + 3);
  if (!r->raw) return;
  memcpy(r->raw, start, n);
  if (padding > 0) {
    memset(r->raw + n, 'A', padding);
    memcpy(r->raw + n + padding, "\"}", 3);
    n += padding + 2;
  }
  r->nraw = n;
}

static void status_reply(kv_request *r, json_t *f, int k) {
  const char *code = text(f, "code"), *inner = text(f, "inner"), *message = text(f, "message");
  int status = (int)number(f, "status", kinds[k].status);

  if (!inner && !code) inner = kinds[k].inner;
  if (!message) message = "The fault that was asked for.";
  r->retry_after = number(f, "retry_after", -1);
  if (kv_is_transit_host(r->host)) {
    kv_transit_error(r, status, message);
    return;
  }
  if (!kv_is_vault_host(r->host)) {
    kv_token_error(r, status, code, message);
    return;
  }
  if (json_is_true(json_object_get(f, "challenge")) || status == 401) {
    kv_vault *v = kv_vault_at(r->host);

    kv_challenge(r, v ? v : kv_vaults);
  }
  kv_error(r, status, code ? code : kinds[k].code, inner, "%s", message);
}

bool kv_fault_met(kv_request *r, bool authenticated) {
  json_t *f = r->fault_spec ? NULL : find(r, authenticated);
  const char *location;
  int k;

  if (!f) return false;
  r->fault_spec = json_deep_copy(f);
  f = r->fault_spec;
  k = kind_of(text(f, "fault"));
  r->fault = kinds[k].kind;
  switch (r->fault) {
    case KV_FAULT_HANG:
      kv_pause(number(f, "ms", HANG_MS));
      r->fault = KV_FAULT_REFUSE;
      return true;
    case KV_FAULT_SLOW:
      kv_pause(number(f, "ms", 1000));
      return false;
    case KV_FAULT_REFUSE:
      return true;
    case KV_FAULT_STATUS:
      status_reply(r, f, k);
      return true;
    case KV_FAULT_EMPTY:
      raw_reply(r, 200, "", 0);
      return true;
    case KV_FAULT_NOT_JSON:
      raw_reply(r, 200, "<html><body><h1>Proxy</h1></body></html>", 0);
      return true;
    case KV_FAULT_STRANGER:
      raw_reply(r, (int)number(f, "status", 403), "<html><body><h1>Proxy</h1></body></html>", 0);
      snprintf(r->challenge, sizeof(r->challenge), "%s", text(f, "challenge") ? text(f, "challenge") : "");
      return true;
    case KV_FAULT_OVERSIZED:
      raw_reply(r, 200, "{\"value\":\"", (size_t)number(f, "bytes", 8 << 20));
      return true;
    case KV_FAULT_REDIRECT:
      location = text(f, "location");
      if (location)
        snprintf(r->location, sizeof(r->location), "%s", location);
      else
        snprintf(r->location, sizeof(r->location), "https://elsewhere." KV_SUFFIX ":%u%s",
                 kv_port[KV_HTTPS], r->path);
      kv_reply(r, (int)number(f, "status", 307), NULL);
      return true;
    default:
      return false;
  }
}

/* The member that carries bytes: of a wrap's reply, or of a key. */
static void flip_bit(json_t *object, const char *name) {
  const char *was = text(object, name);
  size_t n = 0;
  uint8_t *bytes = was ? kv_unbase64url(was, &n) : NULL;
  char *now = NULL;

  if (bytes && n > 0) {
    bytes[n / 2] ^= 1;
    now = kv_base64url(bytes, n);
  }
  if (now) json_object_set_new(object, name, json_string(now));
  free(now);
  free(bytes);
}

/* A token's signature becomes another's. */
static void flip_token(json_t *object) {
  const char *was = text(object, "access_token");
  char *now = was ? strdup(was) : NULL, *at = now ? strrchr(now, '.') : NULL;

  if (at && at[1]) {
    at[1] = at[1] == 'A' ? 'B' : 'A';
    json_object_set_new(object, "access_token", json_string(now));
  }
  free(now);
}

/* Another version's id, or with "part":"name" another key's. */
static void bend_kid(json_t *holder, bool name) {
  const char *kid = text(holder, "kid"), *keys = kid ? strstr(kid, "/keys/") : NULL;
  char *other = keys ? strdup(kid) : NULL, *at;

  if (!other) return;
  at = name ? other + (keys - kid) + 6 : other + strlen(other) - 1;
  *at = *at == '0' ? '1' : '0';
  json_object_set_new(holder, "kid", json_string(other));
  free(other);
}

static void bend(kv_request *r) {
  json_t *key = json_object_get(r->reply, "key"), *holder = key ? key : r->reply;
  json_t *list = json_object_get(r->reply, "value");
  const char *part = text(r->fault_spec, "part");

  if (json_is_array(list)) holder = json_array_get(list, 0);
  if (r->fault == KV_FAULT_FLIP) {
    flip_bit(holder, "value");
    flip_bit(holder, "n");
    flip_token(holder);
  }
  if (r->fault == KV_FAULT_WRONG_KID) bend_kid(holder, part && strcmp(part, "name") == 0);
}

void kv_fault_bend(kv_request *r) {
  if (kv_is_transit_host(r->host))
    kv_transit_bend(r);
  else
    bend(r);
}

void kv_fault_free(void) {
  json_decref(faults);
  faults = NULL;
}
