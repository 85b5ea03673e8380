/*
** log.c: what was asked, one entry a request, oldest first.
**
** An entry holds no header, no body and no token. The oldest go when there are
** more than LOG_MAX.
*/
#include <string.h>

#include "kv.h"

#define LOG_MAX 50000

static json_t *entries;
static int64_t next_seq = 1;

void kv_log_add(const kv_request *r) {
  if (!entries) entries = json_array();
  if (json_array_size(entries) >= LOG_MAX) {
    json_t *fewer = json_array();
    size_t i;

    for (i = LOG_MAX / 2; i < LOG_MAX; i++) json_array_append(fewer, json_array_get(entries, i));
    json_decref(entries);
    entries = fewer;
  }
  json_array_append_new(
      entries,
      json_pack("{s:I,s:s,s:I,s:I,s:s,s:s,s:s,s:s,s:s,s:s*,s:i,s:s*}", "seq", next_seq++,
                "request_id", r->id, "ms", r->began, "took_ms", kv_real_ms() - r->began, "listener",
                r->listener == KV_HTTPS ? "https" : "http", "method", r->method, "host", r->host,
                "target", r->target, "operation", r->operation ? r->operation : "unknown",
                "identity", r->identity[0] ? r->identity : NULL, "status", r->status, "fault",
                r->fault_spec ? json_string_value(json_object_get(r->fault_spec, "fault")) : NULL));
}

static const char *operation_of(json_t *entry) {
  return json_string_value(json_object_get(entry, "operation"));
}

json_t *kv_log_get(int64_t since, const char *operation) {
  json_t *out = json_array(), *entry;
  size_t i;

  json_array_foreach(entries, i, entry) {
    if (json_integer_value(json_object_get(entry, "seq")) <= since) continue;
    if (!operation || strcmp(operation_of(entry), operation) == 0) json_array_append(out, entry);
  }
  return out;
}

int64_t kv_log_count(const char *operation) {
  json_t *entry;
  size_t i;
  int64_t n = 0;

  json_array_foreach(entries, i, entry) n += strcmp(operation_of(entry), operation) == 0;
  return n;
}

json_t *kv_log_counts(void) {
  json_t *out = json_object(), *entry;
  size_t i;

  json_array_foreach(entries, i, entry) {
    json_t *so_far = json_object_get(out, operation_of(entry));

    json_object_set_new(out, operation_of(entry), json_integer(json_integer_value(so_far) + 1));
  }
  return out;
}

void kv_log_clear(void) {
  json_decref(entries);
  entries = NULL;
}
