/*
** http.c: the listeners, one thread a connection, and how replies are sent.
**
** A request is served under the one lock; a fault's wait gives it up. What a
** fault does to the reply's bytes (cut short, dripping, none) is done here.
*/
#include <arpa/inet.h>
#include <ctype.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "kv.h"

unsigned kv_port[KV_LISTENERS];
bool kv_listening[KV_LISTENERS];
static struct MHD_Daemon *daemons[KV_LISTENERS];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t wait_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static unsigned long interrupts;

void kv_lock(void) {
  pthread_mutex_lock(&lock);
}

void kv_unlock(void) {
  pthread_mutex_unlock(&lock);
}

static void sleep_ms(int64_t ms) {
  struct timespec until;
  unsigned long began;

  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += ms / 1000;
  until.tv_nsec += (ms % 1000) * 1000000;
  if (until.tv_nsec >= 1000000000) {
    until.tv_sec++;
    until.tv_nsec -= 1000000000;
  }
  pthread_mutex_lock(&wait_lock);
  began = interrupts;
  while (interrupts == began && pthread_cond_timedwait(&wake, &wait_lock, &until) == 0) {
  }
  pthread_mutex_unlock(&wait_lock);
}

void kv_pause(int64_t ms) {
  kv_unlock();
  sleep_ms(ms);
  kv_lock();
}

void kv_interrupt(void) {
  pthread_mutex_lock(&wait_lock);
  interrupts++;
  pthread_cond_broadcast(&wake);
  pthread_mutex_unlock(&wait_lock);
}

const char *kv_header(kv_request *r, const char *name) {
  return MHD_lookup_connection_value(r->conn, MHD_HEADER_KIND, name);
}

const char *kv_query(kv_request *r, const char *name) {
  return MHD_lookup_connection_value(r->conn, MHD_GET_ARGUMENT_KIND, name);
}

void kv_reply(kv_request *r, int status, json_t *body) {
  json_decref(r->reply);
  r->status = status;
  r->reply = body;
}

void kv_error(kv_request *r, int status, const char *code, const char *inner, const char *format,
              ...) {
  char message[1500];
  va_list args;
  json_t *error;

  va_start(args, format);
  vsnprintf(message, sizeof(message), format, args);
  va_end(args);
  error = json_pack("{s:s,s:s}", "code", code, "message", message);
  if (inner) json_object_set_new(error, "innererror", json_pack("{s:s}", "code", inner));
  kv_reply(r, status, json_pack("{s:o}", "error", error));
}

/* ---- sending ---- */

typedef struct {
  char *body;
  size_t n, stop; /* bytes told, bytes sent */
  int64_t drip;   /* milliseconds a byte; 0: at once */
} slow_body;

static ssize_t read_body(void *cls, uint64_t pos, char *buf, size_t max) {
  slow_body *b = cls;
  size_t left = b->stop - (size_t)pos;

  if (left == 0) return MHD_CONTENT_READER_END_WITH_ERROR;
  if (b->drip > 0) {
    sleep_ms(b->drip);
    left = 1;
  }
  if (left > max) left = max;
  memcpy(buf, b->body + pos, left);
  return (ssize_t)left;
}

static void free_body(void *cls) {
  slow_body *b = cls;

  free(b->body);
  free(b);
}

/* Takes body. */
static struct MHD_Response *bent_response(const kv_request *r, char *body, size_t n) {
  slow_body *b = calloc(1, sizeof(*b));
  json_t *ms = json_object_get(r->fault_spec, "ms");

  if (!b) {
    free(body);
    return NULL;
  }
  b->body = body;
  b->n = b->stop = n;
  if (r->fault == KV_FAULT_DRIP)
    b->drip = json_is_integer(ms) ? json_integer_value(ms) : 100;
  else
    b->stop = n / 2;
  return MHD_create_response_from_callback(n, 1024, read_body, b, free_body);
}

static void add_headers(struct MHD_Response *response, const kv_request *r) {
  char number[32];

  MHD_add_response_header(response, "Content-Type",
                          r->raw ? "text/html" : "application/json; charset=utf-8");
  if (r->challenge[0]) MHD_add_response_header(response, "WWW-Authenticate", r->challenge);
  if (r->fault == KV_FAULT_STRANGER) return;
  MHD_add_response_header(response, "Cache-Control", "no-cache");
  if (r->location[0]) MHD_add_response_header(response, "Location", r->location);
  if (r->retry_after >= 0) {
    snprintf(number, sizeof(number), "%lld", (long long)r->retry_after);
    MHD_add_response_header(response, "Retry-After", number);
  }
  if (kv_is_transit_host(r->host)) return;
  MHD_add_response_header(response, "x-ms-request-id", r->id);
  if (r->listener == KV_HTTPS) MHD_add_response_header(response, "x-ms-keyvault-region", "local");
}

static enum MHD_Result send_reply(kv_request *r) {
  struct MHD_Response *response;
  enum MHD_Result result;
  char *body = r->raw;
  size_t n = r->nraw;

  if (r->fault == KV_FAULT_REFUSE) return MHD_NO;
  if (body) {
    r->raw = strdup("");
  } else {
    kv_fault_bend(r);
    body = r->reply ? json_dumps(r->reply, JSON_COMPACT) : strdup("");
    n = body ? strlen(body) : 0;
  }
  if (!body) return MHD_NO;
  if (r->fault == KV_FAULT_TRUNCATED || r->fault == KV_FAULT_DRIP)
    response = bent_response(r, body, n);
  else
    response = MHD_create_response_from_buffer(n, body, MHD_RESPMEM_MUST_FREE);
  if (!response) return MHD_NO;
  add_headers(response, r);
  result = MHD_queue_response(r->conn, (unsigned)r->status, response);
  MHD_destroy_response(response);
  return result;
}

/* ---- receiving ---- */

static enum MHD_Result add_argument(void *cls, enum MHD_ValueKind kind, const char *name,
                                    const char *value) {
  kv_request *r = cls;
  size_t was = strlen(r->target), more = strlen(name) + (value ? strlen(value) : 0) + 3;
  char *grown = realloc(r->target, was + more);

  (void)kind;
  if (!grown) return MHD_NO;
  r->target = grown;
  snprintf(grown + was, more, "%c%s%s%s", strchr(grown, '?') ? '&' : '?', name, value ? "=" : "",
           value ? value : "");
  return MHD_YES;
}

static void set_host(kv_request *r) {
  const char *host = kv_header(r, "Host");
  size_t i;

  for (i = 0; host && host[i] && host[i] != ':' && i + 1 < sizeof(r->host); i++)
    r->host[i] = (char)tolower((unsigned char)host[i]);
}

static void free_request(kv_request *r) {
  free(r->path);
  free(r->target);
  free(r->body);
  free(r->raw);
  json_decref(r->reply);
  json_decref(r->fault_spec);
  free(r);
}

static kv_request *new_request(struct MHD_Connection *conn, kv_listener which, const char *url,
                               const char *method) {
  kv_request *r = calloc(1, sizeof(*r));

  if (!r) return NULL;
  r->conn = conn;
  r->listener = which;
  r->retry_after = -1;
  r->began = kv_real_ms();
  r->path = strdup(url);
  r->target = strdup(url);
  r->body = strdup("");
  snprintf(r->method, sizeof(r->method), "%s", method);
  kv_uuid(r->id);
  if (!r->path || !r->target || !r->body) {
    free_request(r);
    return NULL;
  }
  set_host(r);
  MHD_get_connection_values(conn, MHD_GET_ARGUMENT_KIND, add_argument, r);
  return r;
}

static enum MHD_Result take_body(kv_request *r, const char *data, size_t n) {
  char *grown;

  if (r->nbody + n > KV_BODY_MAX) r->too_big = true;
  if (r->too_big) return MHD_YES;
  grown = realloc(r->body, r->nbody + n + 1);
  if (!grown) return MHD_NO;
  memcpy(grown + r->nbody, data, n);
  r->body = grown;
  r->nbody += n;
  grown[r->nbody] = 0;
  return MHD_YES;
}

static void serve_https(kv_request *r) {
  if (kv_is_transit_host(r->host))
    kv_transit_serve(r);
  else if (kv_is_vault_host(r->host))
    kv_vault_serve(r, kv_vault_at(r->host));
  else
    kv_login_serve(r);
}

static void serve(kv_request *r) {
  kv_lock();
  if (r->too_big)
    kv_error(r, 413, "RequestEntityTooLarge", NULL, "The request is too large.");
  else if (r->listener == KV_HTTPS)
    serve_https(r);
  else if (r->listener == KV_HTTP)
    kv_managed_serve(r);
  else
    kv_admin_serve(r);
  if (r->listener != KV_ADMIN) kv_log_add(r);
  kv_unlock();
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *conn, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *n, void **state) {
  kv_request *r = *state;
  enum MHD_Result result = MHD_YES;

  (void)version;
  if (!r) {
    *state = new_request(conn, *(kv_listener *)cls, url, method);
    return *state ? MHD_YES : MHD_NO;
  }
  if (*n > 0) {
    result = take_body(r, data, *n);
    *n = 0;
    return result;
  }
  serve(r);
  return send_reply(r);
}

static void on_completed(void *cls, struct MHD_Connection *conn, void **state,
                         enum MHD_RequestTerminationCode why) {
  (void)cls;
  (void)conn;
  (void)why;
  if (*state) free_request(*state);
  *state = NULL;
}

int kv_listen(kv_listener which, const kv_tls *tls) {
  static kv_listener names[KV_LISTENERS] = {KV_HTTPS, KV_HTTP, KV_ADMIN};
  unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)kv_port[which])};
  const union MHD_DaemonInfo *info;
  struct MHD_Daemon *d;

  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (tls)
    d = MHD_start_daemon(flags | MHD_USE_TLS, 0, NULL, NULL, on_request, &names[which],
                         MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&at, MHD_OPTION_NOTIFY_COMPLETED,
                         on_completed, NULL, MHD_OPTION_CONNECTION_TIMEOUT, 0u,
                         MHD_OPTION_HTTPS_MEM_KEY, tls->key, MHD_OPTION_HTTPS_MEM_CERT, tls->chain,
                         MHD_OPTION_HTTPS_PRIORITIES, "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2",
                         MHD_OPTION_END);
  else
    d = MHD_start_daemon(flags, 0, NULL, NULL, on_request, &names[which], MHD_OPTION_SOCK_ADDR,
                         (struct sockaddr *)&at, MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL,
                         MHD_OPTION_CONNECTION_TIMEOUT, 0u, MHD_OPTION_END);
  if (!d) return -1;
  info = MHD_get_daemon_info(d, MHD_DAEMON_INFO_BIND_PORT);
  /* At the first start, when nobody holds the lock: connections come at once, and read it
  ** under the lock. The main thread reads it later: not written when it stays. */
  if (info && kv_port[which] != info->port) {
    kv_lock();
    kv_port[which] = info->port;
    kv_unlock();
  }
  daemons[which] = d;
  kv_listening[which] = true;
  return 0;
}

/* Ends the connections, too: so never call it under the lock. */
void kv_unlisten(kv_listener which) {
  if (!kv_listening[which]) return;
  kv_interrupt();
  MHD_stop_daemon(daemons[which]);
  daemons[which] = NULL;
  kv_listening[which] = false;
}
