/*
** test_http.c: the transport policy, against a server in the same process.
**
** The server answers each request with the next text of a script, over plain
** TCP or TLS with a certificate made for the test. What it received is kept, so
** that a test can tell what was sent and what was not.
*/
#include <arpa/inet.h>
#include <errno.h>
#include <grp.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "ext/base/crypto.h"
#include "keyprovider/http.h"
#include "keyprovider/instance.h"
#include "keyprovider/request.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

#define OK_REPLY "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Ms-Request-Id: r-1\r\n\r\nhi"
#define BUSY_REPLY "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"

static char root_dir[256];

/* ---- the server ---- */

typedef struct server {
  int fd, port, quit;
  pthread_t thread;
  SSL_CTX *tls;
  const char *const *script; /* the last one is repeated; "": hang up; "HANG": say nothing */
  int nscript;
  atomic_int requests, connections;
  pthread_mutex_t mutex; /* of got */
  char got[16384];       /* the last request */
} server;

/* A copy of the last request, until the next call. */
static const char *got(server *s) {
  static char text[16384];
  pthread_mutex_lock(&s->mutex);
  memcpy(text, s->got, sizeof text);
  pthread_mutex_unlock(&s->mutex);
  return text;
}

typedef struct peer {
  int fd;
  SSL *ssl;
} peer;

static int peer_read(const peer *p, char *buf, int n) {
  return p->ssl != NULL ? SSL_read(p->ssl, buf, n) : (int)read(p->fd, buf, (size_t)n);
}

static void peer_write(const peer *p, const char *text, size_t n) {
  while (n > 0) {
    int k = p->ssl != NULL ? SSL_write(p->ssl, text, (int)n)
                           : (int)send(p->fd, text, n, MSG_NOSIGNAL);
    if (k <= 0) return;
    text += k, n -= (size_t)k;
  }
}

/* Reads one request with its body into s->got; 0 at the end. */
static int read_request(server *s, const peer *p) {
  char text[16384] = "";
  size_t n = 0;
  while (n + 1 < sizeof text) {
    int k = peer_read(p, text + n, (int)(sizeof text - 1 - n));
    if (k <= 0) return 0;
    n += (size_t)k;
    text[n] = 0;
    const char *end = strstr(text, "\r\n\r\n"), *len = strstr(text, "Content-Length: ");
    size_t body = len != NULL && len < end ? strtoul(len + 16, NULL, 10) : 0;
    if (end != NULL && n >= (size_t)(end + 4 - text) + body) {
      pthread_mutex_lock(&s->mutex);
      memcpy(s->got, text, sizeof text);
      pthread_mutex_unlock(&s->mutex);
      return 1;
    }
  }
  return 0;
}

static void serve_peer(server *s, const peer *p) {
  while (!s->quit && read_request(s, p)) {
    int i = s->requests++;
    const char *text = s->script[i < s->nscript ? i : s->nscript - 1];
    if (text[0] == 0) return;
    if (strcmp(text, "HANG") == 0) {
      struct pollfd w = {p->fd, POLLIN, 0};
      poll(&w, 1, 5000);
      return;
    }
    peer_write(p, text, strlen(text));
    if (strstr(text, "Connection: close") != NULL) return;
  }
}

static void *serve(void *arg) {
  server *s = arg;
  for (;;) {
    peer p = {accept(s->fd, NULL, NULL), NULL};
    if (p.fd < 0) return NULL;
    s->connections++;
    int ok = 1;
    if (s->tls != NULL) {
      p.ssl = SSL_new(s->tls);
      SSL_set_fd(p.ssl, p.fd);
      ok = SSL_accept(p.ssl) == 1;
    }
    if (ok) serve_peer(s, &p);
    if (ok && p.ssl != NULL) SSL_shutdown(p.ssl);
    SSL_free(p.ssl);
    ERR_clear_error();
    close(p.fd);
  }
}

static void server_start(server *s, SSL_CTX *tls, const char *const *script, int n) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t len = sizeof a;
  memset(s, 0, sizeof *s);
  pthread_mutex_init(&s->mutex, NULL);
  s->tls = tls;
  s->script = script;
  s->nscript = n;
  s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(bind(s->fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(s->fd, 16) == 0);
  CHECK(getsockname(s->fd, (struct sockaddr *)&a, &len) == 0);
  s->port = ntohs(a.sin_port);
  CHECK(pthread_create(&s->thread, NULL, serve, s) == 0);
}

static void server_stop(server *s) {
  tde_http_drop_pool(); /* so that the server is not left waiting on a kept connection */
  shutdown(s->fd, SHUT_RDWR);
  pthread_join(s->thread, NULL);
  close(s->fd);
}

/* ---- instances and requests ---- */

static const tde_instance *instance(const char *name, const char *members) {
  char dir[512], path[600];
  const tde_instance *inst = NULL;
  tde_status st;
  snprintf(dir, sizeof dir, "%s/%s", root_dir, name);
  mkdir(dir, 0700);
  snprintf(path, sizeof path, "%s/instance.json", dir);
  FILE *f = fopen(path, "w");
  if (f == NULL) return NULL;
  fprintf(f, "{\"version\":1,\"default_protector\":\"https://v.vault.azure.net/keys/k\"%s}", members);
  fclose(f);
  chmod(path, 0600);
  if (tde_instance_open(dir, 0, &inst, &st) != TDE_OK) printf("%s\n", st.message);
  return inst;
}

static const tde_instance *plain(void) {
  static const tde_instance *inst;
  if (inst == NULL) {
    inst = instance("plain", ",\"allow_loopback_http\":true,\"http\":{\"timeout_ms\":3000}");
  }
  return inst;
}

typedef struct answer {
  tde_class rc;
  int status;
  char body[64], id[64];
  tde_status st;
} answer;

/* The server serves one connection at a time: where another one than the kept
** one is needed, that must end. */
static int fresh_connection;

static int max_ms, op_ms; /* of the next request, and left for its operation; 0: no such bound */
static int patient;       /* the next operation is */

static answer ask(const tde_instance *inst, const char *method, const char *url) {
  tde_op op;
  tde_request req;
  tde_reply reply;
  answer a;
  memset(&op, 0, sizeof op);
  memset(&req, 0, sizeof req);
  memset(&reply, 0, sizeof reply);
  memset(&a, 0, sizeof a);
  op.instance = inst;
  op.patient = patient;
  if (op_ms > 0) op.deadline = tde_boot_ms() + op_ms;
  if (fresh_connection) tde_http_drop_pool();
  CHECK(tde_request_begin(&req, method, url, NULL) == TDE_OK);
  CHECK(tde_request_header(&req, "Authorization", "Bearer ", "SECRET-TOKEN", NULL) == TDE_OK);
  if (strcmp(method, "POST") == 0) {
    tde_sbuf s;
    tde_sbuf_init(&s, 64);
    tde_sbuf_add(&s, "SECRET-BODY");
    CHECK(tde_request_body(&req, &s, "text/plain", NULL) == TDE_OK);
  }
  req.max_ms = max_ms;
  a.rc = tde_http_send(&op, &req, &reply, &a.st);
  a.status = reply.status;
  if (a.rc == TDE_OK) {
    snprintf(a.body, sizeof a.body, "%.60s", reply.body);
    const char *id = reply.header(&reply, "x-ms-request-id");
    snprintf(a.id, sizeof a.id, "%.60s", id != NULL ? id : "");
    CHECK(reply.header(&reply, "absent") == NULL);
    reply.release(&reply);
  }
  tde_request_clear(&req);
  CHECK(strstr(a.st.message, "SECRET") == NULL && strstr(a.st.remedy, "SECRET") == NULL);
  return a;
}

static answer ask_port(const tde_instance *inst, const char *method, int port) {
  char url[128];
  snprintf(url, sizeof url, "http://127.0.0.1:%d/x?y=1", port);
  return ask(inst, method, url);
}

static long long ms_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* ---- tests ---- */

static void url_policy(void) {
  static const struct {
    const char *url;
    int strict, lax;
  } all[] = {
      {"https://v.vault.azure.net/keys/k", 1, 1},
      {"http://v.vault.azure.net/keys/k", 0, 0},
      {"http://127.0.0.1:80/", 0, 1},
      {"http://127.9.9.9/", 0, 1},
      {"http://[::1]:1/", 0, 1},
      {"http://localhost/", 0, 1},
      {"http://localhost.evil.example/", 0, 0},
      {"http://127.0.0.1.evil.example/", 0, 0},
      {"http://127.0.0.1@evil.example/", 0, 0},
      {"https://user@v.vault.azure.net/", 0, 0},
      {"https://v.vault.azure.net/#x", 0, 0},
      {"http://169.254.169.254/metadata/identity/oauth2/token?a=b", 1, 1},
      {"http://169.254.169.254:81/metadata/identity/oauth2/token", 0, 0},
      {"http://169.254.169.254/metadata/instance", 0, 0},
      {"http://169.254.169.253/metadata/identity/oauth2/token", 0, 0},
      {"ftp://127.0.0.1/", 0, 0},
      {"file:///etc/passwd", 0, 0},
      {"127.0.0.1", 0, 0},
      {"", 0, 0},
  };
  tde_op strict = {.instance = instance("strict", "")}, lax = {.instance = plain()};
  int is_plain;
  for (size_t i = 0; i < COUNT(all); i++) {
    int a = tde_http_url_check(&strict, all[i].url, &is_plain, NULL) == TDE_OK;
    int b = tde_http_url_check(&lax, all[i].url, &is_plain, NULL) == TDE_OK;
    if (a != all[i].strict || b != all[i].lax) printf("%s: %d %d\n", all[i].url, a, b);
    CHECK(a == all[i].strict && b == all[i].lax);
  }
  /* App Service names its endpoint; only addresses that no router of the Internet's knows count. */
  static const struct {
    const char *endpoint;
    int allowed;
  } named[] = {{"http://172.16.6.3:8081/msi/token", 1},  {"http://10.0.0.1/msi/token", 1},
               {"http://172.31.255.1/msi/token", 1},     {"http://192.168.3.1/msi/token", 1},
               {"http://172.32.0.1/msi/token", 0},       {"http://172.15.0.1/msi/token", 0},
               {"http://192.169.0.1/msi/token", 0},      {"http://11.0.0.1/msi/token", 0},
               {"http://10.0.0.1.example/msi/token", 0}, {"http://u@10.0.0.1/msi/token", 0}};
  for (size_t i = 0; i < COUNT(named); i++) {
    setenv("IDENTITY_ENDPOINT", named[i].endpoint, 1);
    int a = tde_http_url_check(&strict, named[i].endpoint, &is_plain, NULL) == TDE_OK;
    if (a != named[i].allowed) printf("%s: %d\n", named[i].endpoint, a);
    CHECK(a == named[i].allowed);
  }
  CHECK(tde_http_url_check(&strict, "http://172.16.6.3:8081/msi/token", &is_plain, NULL) != TDE_OK);
  setenv("IDENTITY_ENDPOINT", "http://169.254.129.2:8081/msi/token", 1);
  const char *url = "http://169.254.129.2:8081/msi/token?resource=r";
  CHECK(tde_http_url_check(&strict, url, &is_plain, NULL) == TDE_OK && is_plain);
  CHECK(tde_http_url_check(&strict, "http://169.254.129.2:8081/msi/tokens", &is_plain, NULL) != TDE_OK);
  setenv("IDENTITY_ENDPOINT", "http://evil.example/msi/token", 1);
  CHECK(tde_http_url_check(&strict, "http://evil.example/msi/token", &is_plain, NULL) != TDE_OK);
  unsetenv("IDENTITY_ENDPOINT");
}

static void exchange_and_reuse(void) {
  static const char *const script[] = {OK_REPLY};
  server s;
  server_start(&s, NULL, script, 1);
  answer a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_OK && a.status == 200 && strcmp(a.body, "hi") == 0 && strcmp(a.id, "r-1") == 0);
  CHECK(strstr(got(&s), "Authorization: Bearer SECRET-TOKEN\r\n") != NULL);
  a = ask_port(plain(), "POST", s.port);
  CHECK(a.rc == TDE_OK && strstr(got(&s), "\r\n\r\nSECRET-BODY") != NULL);
  CHECK(strncmp(got(&s), "POST /x?y=1 HTTP/1.1\r\n", 22) == 0 && strstr(got(&s), "Expect") == NULL);
  for (int i = 0; i < 5; i++) ask_port(plain(), "GET", s.port);
  CHECK(s.requests == 7 && s.connections == 1);
  server_stop(&s);
}

static void retries(void) {
  static const char *const busy[] = {BUSY_REPLY, "", OK_REPLY};
  static const char *const always[] = {BUSY_REPLY};
  static const char *const denied[] = {"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", OK_REPLY};
  static const char *const later[] = {
      "HTTP/1.1 429 Slow\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n", OK_REPLY};
  static const char *const much_later[] = {
      "HTTP/1.1 429 Slow\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n", OK_REPLY};
  server s;
  server_start(&s, NULL, busy, 3);
  answer a = ask_port(plain(), "POST", s.port);
  CHECK(a.rc == TDE_OK && a.status == 200 && s.requests >= 3);
  server_stop(&s);
  server_start(&s, NULL, always, 1);
  a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_OK && a.status == 503 && s.requests == TDE_HTTP_TRIES);
  server_stop(&s);
  server_start(&s, NULL, denied, 2);
  a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_OK && a.status == 403 && s.requests == 1);
  server_stop(&s);
  server_start(&s, NULL, later, 2);
  long long t = ms_now();
  a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_OK && a.status == 200 && ms_now() - t >= 990);
  server_stop(&s);
  server_start(&s, NULL, much_later, 2);
  t = ms_now();
  a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_OK && a.status == 429 && s.requests == 1 && ms_now() - t < 900);
  server_stop(&s);
}

/* A host that asked for more than is waited for is left alone by all who can wait. */
static void left_alone(void) {
  static const char *const script[] = {
      "HTTP/1.1 429 Slow\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n", OK_REPLY,
      "HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n", OK_REPLY};
  static const char *const other[] = {OK_REPLY};
  server s, b;
  server_start(&s, NULL, script, 4);
  server_start(&b, NULL, other, 1);
  patient = 1;
  CHECK(ask_port(plain(), "GET", s.port).status == 429 && s.requests == 1);
  answer a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_THROTTLED && a.st.http_status == 429 && s.requests == 1);
  CHECK(strstr(a.st.message, "for 60 more seconds") != NULL && strstr(a.st.remedy, "tde_revalidate") != NULL);
  CHECK(ask_port(plain(), "GET", b.port).status == 200);
  /* By hand it is asked; what it answers then counts for all. */
  patient = 0;
  CHECK(ask_port(plain(), "GET", s.port).status == 200 && s.requests == 2);
  patient = 1;
  max_ms = 500; /* no time for another try */
  CHECK(ask_port(plain(), "GET", s.port).status == 503 && s.requests == 3);
  a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_UNREACHABLE && a.st.http_status == 503 && s.requests == 3);
  usleep(2100000);
  CHECK(ask_port(plain(), "GET", s.port).status == 200 && s.requests == 4);
  patient = max_ms = 0;
  server_stop(&s);
  server_stop(&b);
}

static void no_redirect(void) {
  static const char *const target[] = {OK_REPLY};
  char text[256];
  const char *const script[] = {text};
  server a, b;
  server_start(&b, NULL, target, 1);
  snprintf(text, sizeof text,
           "HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n", b.port);
  server_start(&a, NULL, script, 1);
  answer r = ask_port(plain(), "POST", a.port);
  CHECK(r.rc == TDE_OK && r.status == 307 && b.requests == 0);
  server_stop(&a);
  server_stop(&b);
}

static void deadlines(void) {
  static const char *const hang[] = {"HANG"};
  server s;
  server_start(&s, NULL, hang, 1);
  const tde_instance *inst =
      instance("hasty", ",\"allow_loopback_http\":true,\"http\":{\"timeout_ms\":400}");
  long long t = ms_now();
  answer a = ask_port(inst, "GET", s.port);
  CHECK(a.rc == TDE_UNREACHABLE && ms_now() - t < 1500 && ms_now() - t >= 350);
  /* A request may be in more of a hurry than the instance. */
  t = ms_now();
  max_ms = 300;
  a = ask_port(plain(), "GET", s.port);
  max_ms = 0;
  CHECK(a.rc == TDE_UNREACHABLE && ms_now() - t < 1500 && ms_now() - t >= 250);
  /* So may an operation that has spent its time on earlier requests. */
  t = ms_now();
  op_ms = 300;
  a = ask_port(plain(), "GET", s.port);
  op_ms = 0;
  CHECK(a.rc == TDE_UNREACHABLE && ms_now() - t < 1500 && ms_now() - t >= 250);
  server_stop(&s);
  /* Nobody listens there any more. */
  a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_UNREACHABLE && strstr(a.st.message, "127.0.0.1") != NULL);
}

static void bad_replies(void) {
  static const char *const truncated[] = {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nSECRET"};
  static const char *const no_http[] = {"SECRET\r\n\r\nConnection: close"};
  static const char *const close_now[] = {""};
  static const char *const continued[] = {
      "HTTP/1.1 100 Continue\r\nX-Ms-Request-Id: wrong\r\n\r\n" OK_REPLY};
  server s;
  server_start(&s, NULL, truncated, 1);
  answer a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_UNREACHABLE && a.body[0] == 0);
  server_stop(&s);
  server_start(&s, NULL, no_http, 1);
  a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_CORRUPT);
  server_stop(&s);
  server_start(&s, NULL, close_now, 1);
  a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_UNREACHABLE && s.requests >= TDE_HTTP_TRIES);
  server_stop(&s);
  server_start(&s, NULL, continued, 1);
  a = ask_port(plain(), "GET", s.port);
  CHECK(a.rc == TDE_OK && a.status == 200 && strcmp(a.id, "r-1") == 0);
  server_stop(&s);
}

/* A reply of this head and nbody bytes. */
static answer huge(const char *head, size_t nbody) {
  size_t n = strlen(head);
  char *text = calloc(1, n + nbody + 1);
  const char *const script[] = {text};
  server s;
  memcpy(text, head, n);
  memset(text + n, 'x', nbody);
  server_start(&s, NULL, script, 1);
  answer a = ask_port(plain(), "GET", s.port);
  server_stop(&s);
  free(text);
  return a;
}

static void sizes(void) {
  answer a = huge("HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n", TDE_HTTP_BODY_MAX);
  CHECK(a.rc == TDE_OK && strncmp(a.body, "xxxx", 4) == 0);
  a = huge("HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n", 70000);
  CHECK(a.rc == TDE_OK);
  a = huge("HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n", TDE_HTTP_BODY_MAX + 1);
  CHECK(a.rc == TDE_CORRUPT && strstr(a.st.message, "larger") != NULL);
  a = huge("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", 3 * TDE_HTTP_BODY_MAX);
  CHECK(a.rc == TDE_CORRUPT);
  a = huge("HTTP/1.1 200 OK\r\nX: ", 90000);
  CHECK(a.rc != TDE_OK);
}

/* ---- TLS ---- */

static int add_ext(X509 *cert, int nid, const char *value) {
  X509V3_CTX ctx;
  X509V3_set_ctx_nodb(&ctx);
  X509V3_set_ctx(&ctx, cert, cert, NULL, NULL, 0);
  X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
  int ok = e != NULL && X509_add_ext(cert, e, -1) == 1;
  X509_EXTENSION_free(e);
  return ok;
}

/* A server's context with a self-signed certificate for name, written to path
** as the authority to trust. */
static SSL_CTX *tls_context(const char *name, const char *path, long days) {
  EVP_PKEY *key = EVP_RSA_gen(2048);
  X509 *cert = X509_new();
  char san[128];
  snprintf(san, sizeof san, "DNS:%s", name);
  X509_set_version(cert, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 1 + random());
  X509_gmtime_adj(X509_getm_notBefore(cert), -86400 * 30);
  X509_gmtime_adj(X509_getm_notAfter(cert), 86400 * days);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                             (const unsigned char *)"test", -1, -1, 0);
  X509_set_issuer_name(cert, X509_get_subject_name(cert));
  X509_set_pubkey(cert, key);
  CHECK(add_ext(cert, NID_basic_constraints, "critical,CA:TRUE"));
  CHECK(add_ext(cert, NID_subject_alt_name, san));
  CHECK(X509_sign(cert, key, EVP_sha256()) > 0);
  FILE *f = fopen(path, "w");
  CHECK(f != NULL && PEM_write_X509(f, cert) == 1);
  if (f != NULL) fclose(f);
  SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
  CHECK(SSL_CTX_use_certificate(ctx, cert) == 1 && SSL_CTX_use_PrivateKey(ctx, key) == 1);
  X509_free(cert);
  EVP_PKEY_free(key);
  return ctx;
}

static const tde_instance *tls_instance(const char *name, const char *ca, int port) {
  char members[900];
  snprintf(members, sizeof members,
           ",\"http\":{\"timeout_ms\":3000,\"connect_to\":\"127.0.0.1:%d\"%s%s%s}", port,
           ca[0] != 0 ? ",\"ca_file\":\"" : "", ca, ca[0] != 0 ? "\"" : "");
  return instance(name, members);
}

static void tls(void) {
  static const char *const script[] = {OK_REPLY};
  static const char url[] = "https://v.vault.localtest/keys/k";
  char ca[512], other[512];
  server s;
  snprintf(ca, sizeof ca, "%s/ca.pem", root_dir);
  snprintf(other, sizeof other, "%s/other.pem", root_dir);
  SSL_CTX *ctx = tls_context("v.vault.localtest", ca, 30), *stranger = tls_context("x", other, 30);
  server_start(&s, ctx, script, 1);
  answer a = ask(tls_instance("tls", ca, s.port), "POST", url);
  if (a.rc != TDE_OK) printf("%s\n", a.st.message);
  CHECK(a.rc == TDE_OK && a.status == 200 && s.requests == 1);
  a = ask(tls_instance("tls", ca, s.port), "POST", url);
  CHECK(a.rc == TDE_OK && s.connections == 1);
  /* A connection that one instance trusts is not another's: this one, which knows other
  ** authorities, gets no answer, since the server is busy with the kept connection. */
  char hasty[700];
  snprintf(hasty, sizeof hasty, ",\"http\":{\"timeout_ms\":400,\"connect_to\":\"127.0.0.1:%d\",\"ca_file\":\"%s\"}",
           s.port, other);
  a = ask(instance("tls-other", hasty), "POST", url);
  CHECK(a.rc == TDE_UNREACHABLE && s.requests == 2);
  /* The host, the issuer, the system's authorities; no request gets out. */
  fresh_connection = 1;
  a = ask(tls_instance("tls", ca, s.port), "POST", "https://w.vault.localtest/keys/k");
  CHECK(a.rc == TDE_UNREACHABLE && strstr(a.st.message, "certificate") != NULL);
  a = ask(tls_instance("tls2", other, s.port), "POST", url);
  CHECK(a.rc == TDE_UNREACHABLE && strstr(a.st.message, "certificate") != NULL);
  a = ask(tls_instance("tls3", "", s.port), "POST", url);
  CHECK(a.rc == TDE_UNREACHABLE && strstr(a.st.message, "certificate") != NULL);
  a = ask(tls_instance("tls4", "/nonexistent/ca.pem", s.port), "POST", url);
  CHECK(a.rc == TDE_MISCONFIGURED);
  CHECK(s.requests == 2);
  fresh_connection = 0;
  server_stop(&s);
  SSL_CTX_set_max_proto_version(ctx, TLS1_1_VERSION);
  SSL_CTX_set_min_proto_version(ctx, TLS1_VERSION);
  SSL_CTX_set_security_level(ctx, 0);
  server_start(&s, ctx, script, 1);
  a = ask(tls_instance("tls5", ca, s.port), "POST", url);
  CHECK(a.rc == TDE_UNREACHABLE && s.requests == 0);
  server_stop(&s);
  SSL_CTX_free(ctx);
  ctx = tls_context("v.vault.localtest", ca, -1);
  server_start(&s, ctx, script, 1);
  a = ask(tls_instance("tls6", ca, s.port), "POST", url);
  CHECK(a.rc == TDE_UNREACHABLE && strstr(a.st.message, "certificate") != NULL && s.requests == 0);
  server_stop(&s);
  SSL_CTX_free(ctx);
  SSL_CTX_free(stranger);
}

static void no_proxy(void) {
  static const char *const script[] = {OK_REPLY};
  static const char *const no_tunnel[] = {"HTTP/1.1 403 No\r\nConnection: close\r\n\r\n"};
  static const char *const no_password[] = {
      "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\nConnection: close\r\n\r\n"};
  server s, proxy;
  char text[64];
  server_start(&s, NULL, script, 1);
  server_start(&proxy, NULL, no_tunnel, 1);
  snprintf(text, sizeof text, "http://127.0.0.1:%d", proxy.port);
  setenv("http_proxy", text, 1);
  setenv("https_proxy", text, 1);
  CHECK(ask_port(plain(), "GET", s.port).rc == TDE_OK);
  CHECK(s.requests == 1);
  ask(instance("direct", ",\"http\":{\"timeout_ms\":300,\"connect_to\":\"127.0.0.1:1\"}"), "GET",
      "https://v.vault.localtest/");
  CHECK(proxy.requests == 0);
  /* The same with the environment's proxy allowed does ask it: the check above can fail. */
  answer a = ask(instance("proxied", ",\"http\":{\"timeout_ms\":300,\"proxy_from_environment\":true}"),
                 "GET", "https://v.vault.localtest/");
  CHECK(a.rc == TDE_UNREACHABLE && strstr(a.st.message, "proxy") != NULL && strstr(a.st.message, "(403)") != NULL);
  CHECK(strstr(a.st.message, "v.vault.localtest") != NULL && strstr(a.st.remedy, "no_proxy") != NULL);
  CHECK(proxy.requests >= 1 && strncmp(got(&proxy), "CONNECT v.vault.localtest:443 ", 30) == 0);
  CHECK(strstr(got(&proxy), "SECRET") == NULL);
  proxy.script = no_password;
  a = ask(instance("password", ",\"http\":{\"timeout_ms\":300,\"proxy_from_environment\":true}"), "GET",
          "https://v.vault.localtest/");
  CHECK(a.rc == TDE_UNREACHABLE && strstr(a.st.message, "(407)") != NULL && strstr(a.st.remedy, "password") != NULL);
  unsetenv("http_proxy");
  unsetenv("https_proxy");
  server_stop(&s);
  server_stop(&proxy);
}

/* ---- a set-user-id program ---- */

#define NOT_SECURE 77

/* The program, started anew: what the environment names is up to whoever started it. */
static int be_program(void) {
  if (geteuid() != 0) return NOT_SECURE;
  answer a = ask(instance("program", ",\"http\":{\"timeout_ms\":300,\"proxy_from_environment\":true,"
                                     "\"connect_to\":\"127.0.0.1:1\"}"),
                 "GET", "https://v.vault.localtest/");
  return a.rc == TDE_UNREACHABLE ? 0 : 1;
}

static int run_program(const char *path, int stranger) {
  int status = -1;
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    char *const args[] = {(char *)(uintptr_t)path, (char *)(uintptr_t)"--program", NULL};
    if (stranger && (setgroups(0, NULL) != 0 || setgid(65534) != 0 || setuid(65534) != 0)) _exit(2);
    execv(path, args);
    _exit(NOT_SECURE);
  }
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int copy_self(const char *to) {
  char buf[65536];
  size_t n;
  FILE *in = fopen("/proc/self/exe", "rb"), *out = fopen(to, "wb");
  int ok = in != NULL && out != NULL;
  while (ok && (n = fread(buf, 1, sizeof buf, in)) > 0) ok = fwrite(buf, 1, n, out) == n;
  if (in != NULL) fclose(in);
  if (out != NULL) ok &= fclose(out) == 0;
  return ok && chmod(to, 04755) == 0;
}

/* Neither the proxy of a stranger's environment is asked there, nor does the library write the keys
** of TLS sessions where that environment says, with the program's rights. */
static void set_user_id(void) {
  static const char *const no_tunnel[] = {"HTTP/1.1 403 No\r\nConnection: close\r\n\r\n"};
  char program[300], keys[300], text[64];
  server proxy;
  if (geteuid() != 0) SKIP("only root makes a set-user-id program of root's");
  snprintf(program, sizeof program, "%s/program", root_dir);
  snprintf(keys, sizeof keys, "%s/keys", root_dir);
  REQUIRE(copy_self(program) && chmod(root_dir, 0711) == 0);
  server_start(&proxy, NULL, no_tunnel, 1);
  snprintf(text, sizeof text, "http://127.0.0.1:%d", proxy.port);
  setenv("https_proxy", text, 1);
  setenv("SSLKEYLOGFILE", keys, 1);
  int rc = run_program(program, 1);
  CHECK((rc == 0 || rc == NOT_SECURE) && proxy.requests == 0 && access(keys, F_OK) != 0);
  /* The same by root itself does both: the check above can fail. */
  CHECK(rc == NOT_SECURE || run_program(program, 0) == 0);
  CHECK(rc == NOT_SECURE || (proxy.requests >= 1 && access(keys, F_OK) == 0));
  unsetenv("https_proxy");
  unsetenv("SSLKEYLOGFILE");
  server_stop(&proxy);
  if (rc == NOT_SECURE) SKIP("set-user-id has no effect here");
}

/* ---- threads, forks, signals ---- */

static int shared_port;
static atomic_int good;

static void *asker(void *arg) {
  (void)arg;
  for (int i = 0; i < 5; i++) {
    /* The server takes one connection at a time: wait for a turn. */
    answer a = ask_port(plain(), "GET", shared_port);
    good += a.rc == TDE_OK && a.status == 200;
  }
  return NULL;
}

static void threads(void) {
  static const char *const script[] = {
      "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"};
  pthread_t t[12];
  server s;
  server_start(&s, NULL, script, 1);
  shared_port = s.port;
  good = 0;
  plain();
  for (size_t i = 0; i < COUNT(t); i++) CHECK(pthread_create(&t[i], NULL, asker, NULL) == 0);
  for (size_t i = 0; i < COUNT(t); i++) pthread_join(t[i], NULL);
  CHECK(good == 5 * (int)COUNT(t));
  server_stop(&s);
}

static void forked(void) {
  static const char *const script[] = {OK_REPLY};
  server s, t;
  server_start(&s, NULL, script, 1);
  server_start(&t, NULL, script, 1);
  const tde_instance *hasty =
      instance("forked", ",\"allow_loopback_http\":true,\"http\":{\"timeout_ms\":400}");
  CHECK(ask_port(plain(), "GET", s.port).rc == TDE_OK);
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    alarm(20);
    /* The server is busy with the parent's connection: a child that used it
    ** would get an answer there, one of its own gets none. */
    answer a = ask_port(hasty, "GET", s.port);
    if (a.rc == TDE_OK) unit_child_exit(0);
    a = ask_port(plain(), "GET", t.port);
    unit_child_exit(a.rc == TDE_OK);
  }
  int status = -1;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(ask_port(plain(), "GET", s.port).rc == TDE_OK && s.connections == 1);
  server_stop(&s);
  server_stop(&t);
}

static void signals_as_found(void) {
  static const char *const script[] = {"", OK_REPLY};
  sigset_t before, after;
  server s;
  signal(SIGPIPE, SIG_DFL);
  server_start(&s, NULL, script, 2);
  pthread_sigmask(SIG_BLOCK, NULL, &before);
  CHECK(ask_port(plain(), "POST", s.port).rc == TDE_OK);
  pthread_sigmask(SIG_BLOCK, NULL, &after);
  CHECK(sigismember(&before, SIGPIPE) == sigismember(&after, SIGPIPE));
  server_stop(&s);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"url_policy", url_policy},   {"exchange_and_reuse", exchange_and_reuse},
      {"retries", retries},         {"left_alone", left_alone},
      {"no_redirect", no_redirect}, {"deadlines", deadlines},
      {"bad_replies", bad_replies}, {"sizes", sizes},
      {"tls", tls},                 {"no_proxy", no_proxy},
      {"threads", threads},         {"forked", forked},
      {"signals_as_found", signals_as_found}, {"set_user_id", set_user_id},
  };
  snprintf(root_dir, sizeof root_dir, "/tmp/tde-http-XXXXXX");
  if (mkdtemp(root_dir) == NULL || tde_crypto_init(NULL) != TDE_OK) return 1;
  signal(SIGPIPE, SIG_IGN); /* the test's own server writes to closed sockets */
  int program = argc > 1 && strcmp(argv[1], "--program") == 0;
  int rc = program ? be_program() : unit_main(argc, argv, tests, COUNT(tests));
  remove_tree(root_dir);
  return rc;
}
