/*
** http.c: the only user of libcurl.
**
** What must hold, beside the policy in http.h:
**  - No lock is held during network I/O: the pool's mutex is held only while a
**    handle is taken or given back.
**  - Neither a reply's text nor a header's value gets into a message.
**  - A forked child never touches a connection that its parent also holds: two
**    processes in one TLS session would break it. It leaves the handles alone.
**  - The host's signals are left as they were: SIGPIPE is blocked for this
**    thread while the library writes (with CURLOPT_NOSIGNAL it does not do
**    so itself), and one that arose meanwhile is taken back.
**  - Our copies of tokens and keys (request headers, bodies, replies) are
**    wiped. The library's transfer buffers are its own; it frees them after
**    each transfer without wiping.
*/
#include "http.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/auxv.h>
#include <time.h>

#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"
#include "instance.h"

#define FIRST_BLOCK 4096
#define BACKOFF_BASE_MS 200
#define BACKOFF_CAP_MS 4000
#define RETRY_AFTER_CAP_MS 10000
#define HOLD_MAX_MS 60000    /* a host is left alone for no longer, whatever it asks for */
#define HOLDS 32             /* hosts that it is known of */
#define HOST_MAX 264         /* bytes of a host's name with its port, and a NUL */
#define IMDS_HOST "169.254.169.254"
#define IMDS_PATH "/metadata/identity/oauth2/token"

/* ---- the pool of handles ---- */

typedef struct slot {
  CURL *curl;
  int busy;
} slot;

static struct {
  pthread_mutex_t mutex;
  pthread_once_t once;
  CURLcode ready;
  uint64_t fork_generation; /* of the handles in slots */
  slot slots[TDE_HTTP_POOL];
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void raw_lock(void) {
  pthread_mutex_lock(&pool.mutex);
}

static void pool_unlock(void) {
  pthread_mutex_unlock(&pool.mutex);
}

/* A set-user-id program's environment is somebody else's. */
static int foreign_environment(void) {
  return getauxval(AT_SECURE) != 0;
}

static void pool_once(void) {
  /* The library would write the keys of its TLS sessions there, with the program's rights. */
  if (foreign_environment()) unsetenv("SSLKEYLOGFILE");
  pool.ready = curl_global_init(CURL_GLOBAL_DEFAULT);
  pthread_atfork(raw_lock, pool_unlock, pool_unlock);
}

static void pool_lock(void) {
  pthread_once(&pool.once, pool_once);
  raw_lock();
  uint64_t gen = tde_fork_generation();
  if (pool.fork_generation != gen) {
    /* The parent's handles: left as they are, see above. */
    if (pool.fork_generation != 0) memset(pool.slots, 0, sizeof pool.slots);
    pool.fork_generation = gen;
  }
}

/* A handle that is this thread's until handle_put; NULL: out of memory. */
static CURL *handle_get(void) {
  CURL *curl = NULL;
  slot *empty = NULL;
  pool_lock();
  CURLcode ready = pool.ready;
  for (int i = 0; i < TDE_HTTP_POOL && curl == NULL; i++) {
    slot *s = &pool.slots[i];
    if (s->curl == NULL && !s->busy && empty == NULL) empty = s;
    if (s->curl != NULL && !s->busy) {
      s->busy = 1;
      curl = s->curl;
    }
  }
  if (curl == NULL && empty != NULL) empty->busy = 1;
  pool_unlock();
  if (curl != NULL || ready != CURLE_OK) return curl;
  curl = curl_easy_init();
  if (empty != NULL) {
    pool_lock();
    empty->curl = curl;
    if (curl == NULL) empty->busy = 0;
    pool_unlock();
  }
  return curl;
}

static void handle_put(CURL *curl) {
  int kept = 0;
  /* Nothing of a request (pointers to secrets, options) outlives it; the
  ** connections and TLS sessions stay. */
  curl_easy_reset(curl);
  pool_lock();
  for (int i = 0; i < TDE_HTTP_POOL && !kept; i++) {
    if (pool.slots[i].curl == curl) {
      pool.slots[i].busy = 0;
      kept = 1;
    }
  }
  pool_unlock();
  if (!kept) curl_easy_cleanup(curl);
}

/* ---- SIGPIPE ---- */

typedef struct pipe_guard {
  sigset_t old;
  int pending; /* one was there before: it is the host's */
} pipe_guard;

static void pipe_block(pipe_guard *g) {
  sigset_t set, waiting;
  sigemptyset(&set);
  sigaddset(&set, SIGPIPE);
  sigpending(&waiting);
  g->pending = sigismember(&waiting, SIGPIPE) == 1;
  pthread_sigmask(SIG_BLOCK, &set, &g->old);
}

static void pipe_restore(const pipe_guard *g) {
  sigset_t set;
  struct timespec none = {0, 0};
  sigemptyset(&set);
  sigaddset(&set, SIGPIPE);
  if (!g->pending) {
    while (sigtimedwait(&set, NULL, &none) < 0 && errno == EINTR) {
    }
  }
  pthread_sigmask(SIG_SETMASK, &g->old, NULL);
}

void tde_http_drop_pool(void) {
  CURL *idle[TDE_HTTP_POOL];
  int n = 0;
  pipe_guard guard;
  pool_lock();
  for (int i = 0; i < TDE_HTTP_POOL; i++) {
    if (pool.slots[i].curl != NULL && !pool.slots[i].busy) {
      idle[n++] = pool.slots[i].curl;
      pool.slots[i].curl = NULL;
    }
  }
  pool_unlock();
  pipe_block(&guard); /* a TLS session says goodbye when it is closed */
  while (n > 0) curl_easy_cleanup(idle[--n]);
  pipe_restore(&guard);
}

/* ---- which URLs may be used ---- */

static const tde_cloud *cloud_of(const tde_op *op) {
  return op != NULL && op->instance != NULL ? tde_instance_cloud(op->instance) : NULL;
}

/* Literals only: a name could resolve to anything. "localhost" is resolved by
** the library itself, to loopback. */
static int is_loopback(const char *host) {
  struct in_addr a;
  if (strcmp(host, "localhost") == 0 || strcmp(host, "[::1]") == 0) return 1;
  return inet_pton(AF_INET, host, &a) == 1 && (ntohl(a.s_addr) >> 24) == 127;
}

/* Link-local (RFC 3927) or private (RFC 1918): App Service on Linux has had both. */
static int is_near(const char *host) {
  struct in_addr a;
  if (inet_pton(AF_INET, host, &a) != 1) return 0;
  uint32_t v = ntohl(a.s_addr);
  return v >> 16 == 0xA9FE || v >> 24 == 10 || v >> 20 == 0xAC1 || v >> 16 == 0xC0A8;
}

/* True when url is what IDENTITY_ENDPOINT names, with a query of its own. */
static int is_identity_endpoint(const char *url, const char *host) {
  const char *endpoint = secure_getenv("IDENTITY_ENDPOINT");
  size_t n = endpoint != NULL ? strcspn(endpoint, "?") : 0;
  return n > 0 && (is_loopback(host) || is_near(host)) && strncmp(url, endpoint, n) == 0 &&
         (url[n] == 0 || url[n] == '?');
}

static int plain_allowed(const tde_op *op, const char *url, const char *host, const char *port,
                         const char *path) {
  const tde_cloud *c = cloud_of(op);
  if (strcmp(host, IMDS_HOST) == 0 && strcmp(port, "80") == 0 && strcmp(path, IMDS_PATH) == 0) {
    return 1;
  }
  return (c != NULL && c->allow_loopback_http && is_loopback(host)) ||
         is_identity_endpoint(url, host);
}

tde_class tde_http_url_check(const tde_op *op, const char *url, int *plain, tde_status *st) {
  char *scheme = NULL, *host = NULL, *port = NULL, *path = NULL, *user = NULL, *frag = NULL;
  const char *why = NULL;
  *plain = 0;
  /* The library's own parser: what is checked is what is connected to. */
  CURLU *u = curl_url();
  if (u == NULL) return tde_nomem(st);
  CURLUcode rc = curl_url_set(u, CURLUPART_URL, url, 0);
  if (rc == CURLUE_OK) rc = curl_url_get(u, CURLUPART_SCHEME, &scheme, 0);
  if (rc == CURLUE_OK) rc = curl_url_get(u, CURLUPART_HOST, &host, 0);
  if (rc == CURLUE_OK) rc = curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT);
  if (rc == CURLUE_OK) rc = curl_url_get(u, CURLUPART_PATH, &path, 0);
  if (rc != CURLUE_OK) {
    why = "is malformed";
  } else if (curl_url_get(u, CURLUPART_USER, &user, 0) == CURLUE_OK ||
             curl_url_get(u, CURLUPART_FRAGMENT, &frag, 0) == CURLUE_OK) {
    why = "has a user name or a fragment";
  } else if (strcmp(scheme, "http") == 0) {
    *plain = 1;
    if (!plain_allowed(op, url, host, port, path)) why = "is not https";
  } else if (strcmp(scheme, "https") != 0) {
    why = "is not https";
  }
  if (why != NULL) {
    tde_fail(st, TDE_MISCONFIGURED,
             "use https; plain http is for loopback only, with \"allow_loopback_http\": true in "
             "instance.json",
             "the URL of a key service at %.100s %s", host != NULL ? host : "(no host)", why);
  }
  curl_free(scheme), curl_free(host), curl_free(port);
  curl_free(path), curl_free(user), curl_free(frag);
  curl_url_cleanup(u);
  return why == NULL ? TDE_OK : TDE_MISCONFIGURED;
}

/* ---- what comes back ---- */

typedef struct inbox {
  char *body;      /* secret memory up to TDE_SECRET_MAX, then malloc'd */
  size_t n, cap;
  char *headers;   /* "name\0value\0" one after the other, secret memory */
  size_t nheaders;
  int too_large, nomem;
} inbox;

static void block_free(char *p, size_t cap) {
  if (p == NULL) return;
  if (cap <= TDE_SECRET_MAX) {
    tde_secret_free(p);
  } else {
    tde_wipe(p, cap);
    free(p);
  }
}

static void inbox_clear(inbox *in) {
  block_free(in->body, in->cap);
  tde_secret_free(in->headers);
  memset(in, 0, sizeof *in);
}

/* Room for n bytes more and a NUL. A reply with a key or token is small and
** stays in secret memory; a larger one is only wiped. */
static int inbox_room(inbox *in, size_t n) {
  size_t cap = in->cap != 0 ? in->cap : FIRST_BLOCK;
  while (cap < in->n + n + 1) cap *= 2;
  if (cap == in->cap) return 0;
  char *p = cap <= TDE_SECRET_MAX ? tde_secret_alloc(cap) : malloc(cap);
  if (p == NULL) return -1;
  if (in->n > 0) memcpy(p, in->body, in->n);
  block_free(in->body, in->cap);
  in->body = p;
  in->cap = cap;
  return 0;
}

static size_t on_body(char *data, size_t size, size_t count, void *arg) {
  inbox *in = arg;
  size_t n = size * count;
  if (n > TDE_HTTP_BODY_MAX - in->n) {
    in->too_large = 1;
    return CURL_WRITEFUNC_ERROR;
  }
  if (inbox_room(in, n) != 0) {
    in->nomem = 1;
    return CURL_WRITEFUNC_ERROR;
  }
  memcpy(in->body + in->n, data, n);
  in->n += n;
  return n;
}

/* One header line. A status line begins a new block (after a 100 Continue):
** what came before does not count. */
static size_t on_header(char *data, size_t size, size_t count, void *arg) {
  inbox *in = arg;
  size_t all = size * count, n = all;
  if (n >= 5 && memcmp(data, "HTTP/", 5) == 0) {
    in->nheaders = 0;
    return all;
  }
  while (n > 0 && (data[n - 1] == '\r' || data[n - 1] == '\n' || data[n - 1] == ' ')) n--;
  const char *colon = memchr(data, ':', n);
  /* A NUL would shift names and values against each other. */
  if (colon == NULL || memchr(data, 0, n) != NULL) return all;
  size_t nname = (size_t)(colon - data), skip = nname + 1;
  while (skip < n && (data[skip] == ' ' || data[skip] == '\t')) skip++;
  if (in->headers == NULL) in->headers = tde_secret_alloc(TDE_HTTP_HEADERS_MAX);
  if (in->headers == NULL) {
    in->nomem = 1;
    return CURL_WRITEFUNC_ERROR;
  }
  if (nname + (n - skip) + 2 > TDE_HTTP_HEADERS_MAX - in->nheaders) {
    in->too_large = 1;
    return CURL_WRITEFUNC_ERROR;
  }
  char *p = in->headers + in->nheaders;
  memcpy(p, data, nname);
  p[nname] = 0;
  memcpy(p + nname + 1, data + skip, n - skip);
  p[nname + 1 + n - skip] = 0;
  in->nheaders += nname + n - skip + 2;
  return all;
}

static const char *inbox_header(const inbox *in, const char *name) {
  const char *p = in->headers, *end = p != NULL ? p + in->nheaders : NULL;
  while (p < end) {
    const char *value = p + strlen(p) + 1;
    if (strcasecmp(p, name) == 0) return value;
    p = value + strlen(value) + 1;
  }
  return NULL;
}

static const char *reply_header(const tde_reply *reply, const char *name) {
  return inbox_header(reply->impl, name);
}

static void reply_release(tde_reply *reply) {
  inbox_clear(reply->impl);
  free(reply->impl);
  reply->impl = NULL;
}

/* ---- one try ---- */

typedef struct exchange {
  const tde_request *req;
  const tde_cloud *cloud;    /* or NULL: the defaults */
  int plain;
  int64_t deadline;          /* tde_boot_ms() */
  long tunnel;               /* a proxy's answer to CONNECT; 0: none */
  struct curl_slist *headers;
  struct curl_slist *connect_to;
} exchange;

/* The list's nodes point at the request's own strings: no copy is made. */
static struct curl_slist *header_list(const tde_request *req, struct curl_slist *nodes,
                                      size_t cap) {
  size_t n = 0;
  static char no_expect[] = "Expect:";
  for (char **h = req->headers; h != NULL && *h != NULL && n + 1 < cap; h++) nodes[n++].data = *h;
  nodes[n++].data = no_expect;
  for (size_t i = 0; i < n; i++) nodes[i].next = i + 1 < n ? &nodes[i + 1] : NULL;
  return nodes;
}

static CURLcode set_security(CURL *curl, const exchange *x) {
  CURLcode rc = curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, x->plain ? "http" : "https");
  if (rc == CURLE_OK) {
    rc = curl_easy_setopt(curl, CURLOPT_SSLVERSION,
                          (long)CURL_SSLVERSION_TLSv1_2 | (long)CURL_SSLVERSION_MAX_DEFAULT);
  }
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
  int by_proxy = x->cloud != NULL && x->cloud->proxy_from_environment && !foreign_environment();
  if (rc == CURLE_OK && (x->plain || !by_proxy)) {
    rc = curl_easy_setopt(curl, CURLOPT_PROXY, "");
  }
  if (rc == CURLE_OK && x->cloud != NULL && x->cloud->ca_file[0] != 0) {
    rc = curl_easy_setopt(curl, CURLOPT_CAINFO, x->cloud->ca_file);
    if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_CAPATH, NULL);
  }
  return rc;
}

static atomic_int stopped;

void tde_http_stop(void) {
  atomic_store(&stopped, 1);
}

static _Thread_local tde_waiter waiter;

tde_waiter tde_http_waits(tde_waiter w) {
  tde_waiter before = waiter;
  waiter = w;
  return before;
}

static int is_given_up(void) {
  return waiter.given_up != NULL && waiter.given_up(waiter.ctx);
}

static int is_over(void) {
  return atomic_load(&stopped) || is_given_up();
}

/* Called by the library at least once a second. */
static int on_progress(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d) {
  (void)arg, (void)a, (void)b, (void)c, (void)d;
  return is_over();
}

static CURLcode set_request(CURL *curl, const exchange *x, inbox *in, int64_t left) {
  long connect = x->cloud != NULL ? x->cloud->connect_ms : TDE_CONNECT_MS;
  CURLcode rc = curl_easy_setopt(curl, CURLOPT_URL, x->req->url);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
#if LIBCURL_VERSION_NUM >= 0x075700
  /* Where the deadline comes while names are being resolved, that is not waited for. */
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_QUICK_EXIT, 1L);
#endif
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_USERAGENT, "sqlite-tde/" TDE_VERSION);
  if (rc == CURLE_OK) {
    rc = curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, connect < left ? connect : (long)left);
  }
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)left);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_WRITEDATA, in);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_HEADERDATA, in);
  if (rc == CURLE_OK) rc = curl_easy_setopt(curl, CURLOPT_HTTPHEADER, x->headers);
  if (rc == CURLE_OK && x->connect_to != NULL && !x->plain) {
    rc = curl_easy_setopt(curl, CURLOPT_CONNECT_TO, x->connect_to);
  }
  if (rc == CURLE_OK && strcmp(x->req->method, "POST") == 0) {
    rc = curl_easy_setopt(curl, CURLOPT_POST, 1L);
    if (rc == CURLE_OK) {
      rc = curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)x->req->nbody);
    }
    if (rc == CURLE_OK) {
      rc = curl_easy_setopt(curl, CURLOPT_POSTFIELDS, x->req->body != NULL ? x->req->body : "");
    }
  }
  return rc;
}

static CURLcode try_once(exchange *x, inbox *in, int *status) {
  long code = 0;
  pipe_guard guard;
  int64_t left = x->deadline - tde_boot_ms();
  if (left <= 0) return CURLE_OPERATION_TIMEDOUT;
  if (is_over()) return CURLE_ABORTED_BY_CALLBACK;
  pipe_block(&guard);
  CURL *curl = handle_get();
  CURLcode rc = curl != NULL ? set_security(curl, x) : CURLE_OUT_OF_MEMORY;
  if (rc == CURLE_OK) rc = set_request(curl, x, in, left);
  if (rc == CURLE_OK) rc = curl_easy_perform(curl);
  if (rc != CURLE_OK && curl != NULL) (void)curl_easy_getinfo(curl, CURLINFO_HTTP_CONNECTCODE, &x->tunnel);
  if (rc == CURLE_OK) rc = curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &code);
  if (curl != NULL) handle_put(curl);
  pipe_restore(&guard);
  *status = (int)code;
  return rc;
}

/* ---- hosts that asked to be left alone ----
**
** Many databases may have their keys in one vault. Where it answers with a Retry-After that is not
** waited for, the next one's check would ask it again, and be counted against it. A request that
** somebody makes by hand is sent all the same, and what is answered to it ends the wait. */

typedef struct hold {
  char host[HOST_MAX];
  int status;      /* that it asked with */
  int64_t until;   /* tde_boot_ms(); 0: free */
} hold;

static hold holds[HOLDS]; /* under the pool's mutex */

static void host_of(const char *url, char out[HOST_MAX]) {
  const char *from = strstr(url, "://");
  from = from != NULL ? from + 3 : url;
  snprintf(out, HOST_MAX, "%.*s", (int)strcspn(from, "/?"), from);
}

/* This host's place, or else the one that is free first. */
static hold *hold_place(const char *host) {
  hold *first = &holds[0];
  for (int i = 0; i < HOLDS; i++) {
    if (holds[i].until != 0 && strcmp(holds[i].host, host) == 0) return &holds[i];
    if (holds[i].until < first->until) first = &holds[i];
  }
  return first;
}

/* After a reply. asked: what its Retry-After names, in ms; -1: none. */
static void hold_note(const char *url, int status, int64_t asked) {
  char host[HOST_MAX];
  host_of(url, host);
  pool_lock();
  hold *h = hold_place(host);
  if ((status == 429 || status == 503) && asked > 0) {
    memcpy(h->host, host, sizeof host);
    h->status = status;
    h->until = tde_boot_ms() + (asked < HOLD_MAX_MS ? asked : HOLD_MAX_MS);
  } else if (strcmp(h->host, host) == 0) {
    h->until = 0;
  }
  pool_unlock();
}

/* TDE_OK: nothing keeps this request from being sent. */
static tde_class hold_check(const char *url, tde_status *st) {
  char host[HOST_MAX];
  int64_t left = 0;
  int status = 0;
  host_of(url, host);
  pool_lock();
  const hold *h = hold_place(host);
  if (strcmp(h->host, host) == 0) left = h->until - tde_boot_ms(), status = h->status;
  pool_unlock();
  if (left <= 0) return TDE_OK;
  if (st != NULL) st->http_status = status;
  return tde_fail(st, status == 429 ? TDE_THROTTLED : TDE_UNREACHABLE,
                  "wait, or have it asked at once: tde_revalidate()",
                  "%.200s is busy (%d), and wants to be left alone for %lld more seconds", host, status,
                  (long long)(left + 999) / 1000);
}

/* ---- retries ---- */

static int retry_status(int status) {
  return status == 429 || status == 500 || status == 502 || status == 503 || status == 504;
}

static int retry_code(CURLcode rc) {
  switch (rc) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_SSL_CONNECT_ERROR: return 1;
    default: return 0;
  }
}

/* Seconds or a date (RFC 9110 section 10.2.3), in ms; -1: absent or malformed. */
static int64_t retry_after_ms(const inbox *in) {
  const char *v = inbox_header(in, "Retry-After");
  if (v == NULL) return -1;
  if (v[0] >= '0' && v[0] <= '9') {
    char *end = NULL;
    long s = strtol(v, &end, 10);
    if (*end != 0 || s < 0) return -1;
    return s > 86400 ? 86400000 : (int64_t)s * 1000;
  }
  time_t at = curl_getdate(v, NULL);
  time_t now = time(NULL);
  if (at < 0) return -1;
  return at > now ? (int64_t)(at - now) * 1000 : 0;
}

/* Full jitter: anything from nothing to the doubling bound, so that many
** clients that failed together do not come back together. */
static int64_t backoff_ms(int try) {
  uint32_t r = 0;
  int64_t bound = (int64_t)BACKOFF_BASE_MS << try;
  if (bound > BACKOFF_CAP_MS) bound = BACKOFF_CAP_MS;
  if (tde_random(&r, sizeof r, NULL) != TDE_OK) return bound;
  return (int64_t)(r % (uint32_t)(bound + 1));
}

/* In naps, so that the end of the process, or of the waiter's patience, is noticed. */
static void sleep_until(int64_t at) {
  for (int64_t now = tde_boot_ms(); now < at && !is_over(); now = tde_boot_ms()) {
    int64_t ms = at - now < 100 ? at - now : 100;
    struct timespec t = {0, (long)ms * 1000000L};
    nanosleep(&t, NULL);
  }
}

/* Waits before another try; 0 when there is no time for one. */
static int wait_to_retry(const exchange *x, const inbox *in, int try) {
  int64_t asked = retry_after_ms(in), wait = backoff_ms(try);
  if (asked > RETRY_AFTER_CAP_MS) return 0;
  if (asked > wait) wait = asked;
  int64_t at = tde_boot_ms() + wait;
  if (at >= x->deadline) return 0;
  sleep_until(at);
  return 1;
}

static tde_class failed(CURLcode rc, const inbox *in, const exchange *x, tde_status *st) {
  char host[HOST_MAX];
  host_of(x->req->url, host);
  if (in->nomem || rc == CURLE_OUT_OF_MEMORY) return tde_nomem(st);
  if (in->too_large) {
    return tde_fail(st, TDE_CORRUPT, "check what answers at this address",
                    "the reply of %s is larger than %d bytes", host, TDE_HTTP_BODY_MAX);
  }
  if (x->tunnel >= 300) {
    return tde_fail(st, TDE_UNREACHABLE,
                    x->tunnel == 407
                        ? "write the proxy's user and password into its URL (https_proxy, all_proxy)"
                        : "permit the host in the proxy that https_proxy or all_proxy names, or except it in no_proxy",
                    "the proxy does not lead to %s (%ld)", host, x->tunnel);
  }
  switch (rc) {
    case CURLE_SSL_CACERT_BADFILE:
      return tde_fail(st, TDE_MISCONFIGURED, "correct \"ca_file\" in instance.json",
                      "the file of certificate authorities cannot be used");
    case CURLE_PEER_FAILED_VERIFICATION:
      return tde_fail(st, TDE_UNREACHABLE,
                      "check the service's certificate (name, dates, issuer), this machine's clock, and "
                      "\"ca_file\" in instance.json",
                      "the TLS certificate of %s is not valid: nothing was sent to it", host);
    case CURLE_COULDNT_RESOLVE_HOST:
      return tde_fail(st, TDE_UNREACHABLE,
                      "check the name (that of a deleted vault is gone) and this machine's DNS",
                      "the host name %s cannot be resolved", host);
    case CURLE_OPERATION_TIMEDOUT:
      return tde_fail(st, TDE_UNREACHABLE, NULL, "%s did not answer in time", host);
    case CURLE_ABORTED_BY_CALLBACK:
      if (!atomic_load(&stopped)) {
        return tde_fail(st, TDE_BUSY, "try again", "interrupted: %s was not waited for", host);
      }
      return tde_fail(st, TDE_UNREACHABLE, NULL, "%s was not waited for: the process ends", host);
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_BAD_CONTENT_ENCODING:
      return tde_fail(st, TDE_CORRUPT, "check what answers at this address",
                      "%s did not answer in HTTP", host);
    default:
      return tde_fail(st, TDE_UNREACHABLE, NULL, "cannot reach %s: %s", host,
                      curl_easy_strerror(rc));
  }
}

/* Tries until there is a reply that is not to be retried, or no try left. */
static tde_class run(exchange *x, tde_reply *reply, tde_status *st) {
  inbox *in = calloc(1, sizeof *in);
  int status = 0;
  CURLcode rc = CURLE_OK;
  if (in == NULL) return tde_nomem(st);
  for (int try = 0; try < TDE_HTTP_TRIES; try++) {
    inbox_clear(in);
    rc = try_once(x, in, &status);
    int again = rc == CURLE_OK ? retry_status(status) : retry_code(rc);
    if (!again || in->nomem || in->too_large || try + 1 == TDE_HTTP_TRIES) break;
    if (!wait_to_retry(x, in, try)) break;
  }
  if (rc == CURLE_OK && inbox_room(in, 0) != 0) rc = CURLE_OUT_OF_MEMORY;
  if (rc != CURLE_OK) {
    tde_class c = failed(rc, in, x, st);
    inbox_clear(in);
    free(in);
    return c;
  }
  in->body[in->n] = 0;
  hold_note(x->req->url, status, retry_after_ms(in));
  *reply = (tde_reply){status, in->body, in->n, reply_header, reply_release, in};
  return TDE_OK;
}

tde_class tde_http_send(const tde_op *op, const tde_request *req, tde_reply *reply,
                        tde_status *st) {
  struct curl_slist nodes[32];
  exchange x = {.req = req, .cloud = cloud_of(op)};
  char route[300];
  struct curl_slist to = {route, NULL};
  pool_lock(); /* the library is started before its first use, whatever that is */
  pool_unlock();
  tde_class rc = tde_http_url_check(op, req->url, &x.plain, st);
  if (rc == TDE_OK && op != NULL && op->patient) rc = hold_check(req->url, st);
  if (rc != TDE_OK) return rc;
  int most = x.cloud != NULL ? x.cloud->total_ms : TDE_REQUEST_MS;
  x.deadline = tde_boot_ms() + (req->max_ms > 0 && req->max_ms < most ? req->max_ms : most);
  if (op != NULL && op->deadline != 0 && op->deadline < x.deadline) x.deadline = op->deadline;
  x.headers = header_list(req, nodes, sizeof nodes / sizeof nodes[0]);
  if (x.cloud != NULL && x.cloud->connect_to[0] != 0) {
    /* "::" : every host and port. */
    snprintf(route, sizeof route, "::%s", x.cloud->connect_to);
    x.connect_to = &to;
  }
  return run(&x, reply, st);
}

void tde_http_install(void) {
  tde_http_sender = tde_http_send;
}
