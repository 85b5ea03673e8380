/*
** admin.c: the tests' own way in, on a port of its own (README.md).
**
** Everything a test may want to see or change at run time. No authentication:
** it listens on the loopback interface, and there is nothing to protect.
*/
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kv.h"

static void bad(kv_request *r, const char *why) {
  kv_reply(r, 400, json_pack("{s:s}", "error", why));
}

static void done(kv_request *r) {
  kv_reply(r, 200, json_pack("{s:b}", "ok", 1));
}

static int64_t query_number(kv_request *r, const char *name) {
  const char *value = kv_query(r, name);

  return value ? strtoll(value, NULL, 10) : 0;
}

static void get_log(kv_request *r, json_t *body) {
  (void)body;
  kv_reply(r, 200,
           json_pack("{s:o}", "entries",
                     kv_log_get(query_number(r, "since"), kv_query(r, "operation"))));
}

static void clear_log(kv_request *r, json_t *body) {
  (void)body;
  kv_log_clear();
  done(r);
}

static void get_count(kv_request *r, json_t *body) {
  const char *operation = kv_query(r, "operation");

  (void)body;
  if (operation)
    kv_reply(r, 200, json_pack("{s:I}", "count", (json_int_t)kv_log_count(operation)));
  else
    kv_reply(r, 200, json_pack("{s:o}", "operations", kv_log_counts()));
}

static void clock_reply(kv_request *r, json_t *body) {
  json_t *advance = json_object_get(body, "advance"), *now = json_object_get(body, "now");

  if (json_is_true(json_object_get(body, "reset"))) kv_clock_offset = 0;
  if (json_is_integer(advance)) kv_clock_offset += json_integer_value(advance);
  if (json_is_integer(now)) kv_clock_offset += json_integer_value(now) - kv_now();
  kv_reply(
      r, 200,
      json_pack("{s:I,s:I}", "now", (json_int_t)kv_now(), "offset", (json_int_t)kv_clock_offset));
}

static void list_faults(kv_request *r, json_t *body) {
  (void)body;
  kv_reply(r, 200, json_pack("{s:o}", "faults", kv_fault_list()));
}

static void add_fault(kv_request *r, json_t *body) {
  const char *why;
  int64_t id = kv_fault_add(body, &why);

  if (id < 0)
    bad(r, why);
  else
    kv_reply(r, 200, json_pack("{s:I}", "id", (json_int_t)id));
}

static void remove_faults(kv_request *r, json_t *body) {
  (void)body;
  kv_fault_remove(query_number(r, "id"));
  done(r);
}

/* The listener's end waits for its connections, which may want the lock. */
static void unlisten(kv_listener which) {
  kv_unlock();
  kv_unlisten(which);
  kv_lock();
}

static void set_listeners(kv_request *r, json_t *body) {
  static const char *const names[] = {"https", "http"};
  const char *cert = json_string_value(json_object_get(body, "cert"));
  kv_certificate kind = cert ? kv_certificate_of(cert) : KV_GOOD;
  int i, rc = kind == KV_CERTIFICATES ? -1 : 0;

  for (i = 0; rc == 0 && i < 2; i++) {
    json_t *wanted = json_object_get(body, names[i]);

    if (!json_is_boolean(wanted)) continue;
    /* Another certificate needs another listener. */
    if (json_is_false(wanted) || (i == KV_HTTPS && cert)) unlisten((kv_listener)i);
    if (json_is_true(wanted) && !kv_listening[i]) rc |= kv_listen_again((kv_listener)i, kind);
  }
  if (rc != 0)
    bad(r, "the port could not be opened again, or there is no such certificate");
  else
    done(r);
}

static void set_grant(kv_request *r, json_t *body) {
  const char *vault = json_string_value(json_object_get(body, "vault"));
  const char *identity = json_string_value(json_object_get(body, "identity"));
  json_t *permissions = json_object_get(body, "permissions");
  kv_vault *v = vault ? kv_find_vault(vault) : NULL;

  if (!v || !identity || !kv_find_identity(identity) || !json_is_array(permissions)) {
    bad(r, "vault, identity and permissions are needed");
    return;
  }
  json_object_set_new(v->grants, identity, json_deep_copy(permissions));
  done(r);
}

static void revoke_tokens(kv_request *r, json_t *body) {
  (void)body;
  kv_transit_revoke();
  kv_revoke_tokens();
  done(r);
}

static void new_federated(kv_request *r, json_t *body) {
  const char *name = json_string_value(json_object_get(body, "identity"));
  json_t *seconds = json_object_get(body, "seconds");
  kv_identity *who = name ? kv_find_identity(name) : NULL;

  if (!who || kv_write_federated(who, seconds ? json_integer_value(seconds) : 3600) != 0)
    bad(r, "no such identity, or it has no federated record");
  else
    done(r);
}

static void quit(kv_request *r, json_t *body) {
  (void)body;
  done(r);
  kill(getpid(), SIGTERM);
}

static const struct {
  const char *method, *path;
  void (*serve)(kv_request *, json_t *);
} routes[] = {
    {"GET", "/admin/log", get_log},
    {"DELETE", "/admin/log", clear_log},
    {"GET", "/admin/count", get_count},
    {"GET", "/admin/clock", clock_reply},
    {"POST", "/admin/clock", clock_reply},
    {"GET", "/admin/fault", list_faults},
    {"POST", "/admin/fault", add_fault},
    {"DELETE", "/admin/fault", remove_faults},
    {"POST", "/admin/listen", set_listeners},
    {"POST", "/admin/grant", set_grant},
    {"POST", "/admin/tokens/revoke", revoke_tokens},
    {"POST", "/admin/federated-token", new_federated},
    {"POST", "/admin/transit", kv_transit_admin},
    {"POST", "/admin/quit", quit},
};

void kv_admin_serve(kv_request *r) {
  json_t *body = NULL;
  size_t i;

  for (i = 0; i < sizeof(routes) / sizeof(routes[0]); i++) {
    if (strcmp(routes[i].method, r->method) == 0 && strcmp(routes[i].path, r->path) == 0) break;
  }
  if (i == sizeof(routes) / sizeof(routes[0])) {
    kv_reply(r, 404, json_pack("{s:s}", "error", "no such route"));
    return;
  }
  body = r->nbody > 0 ? json_loads(r->body, 0, NULL) : json_object();
  if (json_is_object(body))
    routes[i].serve(r, body);
  else
    bad(r, "the body must be a JSON object");
  json_decref(body);
}
