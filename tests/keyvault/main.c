/*
** main.c: the test key server's start and end.
**
** Makes its CA and certificate, loads the configuration, opens three loopback
** ports, writes what a client must know to the state folder, ready.json last,
** and serves until SIGTERM or SIGINT.
*/
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kv.h"

const char *kv_state;
int64_t kv_clock_offset;
static kv_tls tls[KV_CERTIFICATES];

int64_t kv_real_ms(void) {
  struct timespec t;

  clock_gettime(CLOCK_REALTIME, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int64_t kv_now(void) {
  return kv_real_ms() / 1000 + kv_clock_offset;
}

void kv_time_text(int64_t t, char *out) {
  time_t when = (time_t)t;
  struct tm tm;

  gmtime_r(&when, &tm);
  strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

/* Makes the folders above path, below the state folder too. */
static void make_parents(char *path) {
  char *at = path;

  while ((at = strchr(at + 1, '/')) != NULL) {
    *at = 0;
    mkdir(path, 0700);
    *at = '/';
  }
}

int kv_write_file(const char *name, const char *text) {
  char path[1000], part[1010];
  size_t n = strlen(text);
  ssize_t wrote;
  int fd;

  snprintf(path, sizeof(path), "%s/%s", kv_state, name);
  make_parents(path);
  snprintf(part, sizeof(part), "%s.part", path);
  fd = open(part, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (fd < 0) {
    fprintf(stderr, "keyvault: %s: %s\n", part, strerror(errno));
    return -1;
  }
  wrote = write(fd, text, n);
  if (close(fd) != 0 || wrote != (ssize_t)n) return -1;
  return rename(part, path);
}

int kv_listen_again(kv_listener which, kv_certificate certificate) {
  return kv_listen(which, which == KV_HTTPS ? &tls[certificate] : NULL);
}

static int write_ready(void) {
  char env[2000], authority[100], *text;
  json_t *ready;
  int rc;

  snprintf(authority, sizeof(authority), "https://" KV_LOGIN ":%u", kv_port[KV_HTTPS]);
  snprintf(env, sizeof(env),
           "export KV_STATE='%s' KV_HTTPS=%u KV_HTTP=%u KV_ADMIN=%u\n"
           "export KV_AUTHORITY='%s' KV_CA='%s/ca.pem' KV_IDENTITY_HEADER='%s'\n",
           kv_state, kv_port[KV_HTTPS], kv_port[KV_HTTP], kv_port[KV_ADMIN], authority, kv_state,
           kv_identity_header);
  if (kv_write_file("env.sh", env) != 0) return -1;
  ready = json_pack("{s:i,s:i,s:i,s:s,s:s,s:s,s:s,s:i}", "https", (int)kv_port[KV_HTTPS], "http",
                    (int)kv_port[KV_HTTP], "admin", (int)kv_port[KV_ADMIN], "authority", authority,
                    "suffix", KV_SUFFIX, "resource", "https://" KV_SUFFIX, "identity_header",
                    kv_identity_header, "pid", (int)getpid());
  text = json_dumps(ready, JSON_INDENT(2));
  json_decref(ready);
  rc = text ? kv_write_file("ready.json", text) : -1;
  free(text);
  return rc;
}

static int usage(void) {
  fprintf(stderr,
          "usage: keyvault --state DIR --config FILE [--https PORT] [--http PORT]\n"
          "         [--admin PORT] [--cert good|expired|wrong-host|unknown-ca]\n");
  return 2;
}

static int read_options(int argc, char **argv, const char **config, kv_certificate *cert) {
  static const struct option options[] = {{"state", required_argument, NULL, 's'},
                                          {"config", required_argument, NULL, 'c'},
                                          {"https", required_argument, NULL, 'S'},
                                          {"http", required_argument, NULL, 'H'},
                                          {"admin", required_argument, NULL, 'A'},
                                          {"cert", required_argument, NULL, 'C'},
                                          {NULL, 0, NULL, 0}};
  int c;

  while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
    if (c == 's')
      kv_state = optarg;
    else if (c == 'c')
      *config = optarg;
    else if (c == 'S')
      kv_port[KV_HTTPS] = (unsigned)strtoul(optarg, NULL, 10);
    else if (c == 'H')
      kv_port[KV_HTTP] = (unsigned)strtoul(optarg, NULL, 10);
    else if (c == 'A')
      kv_port[KV_ADMIN] = (unsigned)strtoul(optarg, NULL, 10);
    else if (c == 'C')
      *cert = kv_certificate_of(optarg);
    else
      return -1;
  }
  return kv_state && *config && *cert != KV_CERTIFICATES && optind == argc ? 0 : -1;
}

static int start(const char *config, kv_certificate cert) {
  char path[1000], *ca = NULL;
  int rc;

  snprintf(path, sizeof(path), "%s/ready.json", kv_state);
  (void)unlink(path);
  kv_random_hex(kv_identity_header, 20);
  if (kv_store_load(config) != 0) return -1;
  rc = kv_tls_make(tls, &ca);
  if (rc == 0) rc = kv_write_file("ca.pem", ca);
  free(ca);
  if (rc != 0) return -1;
  if (kv_listen(KV_HTTPS, &tls[cert]) != 0 || kv_listen(KV_HTTP, NULL) != 0 ||
      kv_listen(KV_ADMIN, NULL) != 0) {
    fprintf(stderr, "keyvault: a port could not be opened\n");
    return -1;
  }
  return write_ready();
}

int main(int argc, char **argv) {
  const char *config = NULL;
  kv_certificate cert = KV_GOOD;
  sigset_t wanted;
  int signal_, rc = 1, i;

  if (read_options(argc, argv, &config, &cert) != 0) return usage();
  /* Before any thread: all of them leave these to sigwait. */
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGTERM);
  sigaddset(&wanted, SIGINT);
  sigprocmask(SIG_BLOCK, &wanted, NULL);
  signal(SIGPIPE, SIG_IGN);
  if (start(config, cert) == 0) {
    printf("keyvault: https %u, http %u, admin %u, state %s\n", kv_port[KV_HTTPS], kv_port[KV_HTTP],
           kv_port[KV_ADMIN], kv_state);
    fflush(stdout);
    sigwait(&wanted, &signal_);
    rc = 0;
  }
  kv_unlisten(KV_ADMIN);
  kv_unlisten(KV_HTTP);
  kv_unlisten(KV_HTTPS);
  kv_log_clear();
  kv_fault_free();
  kv_store_free();
  for (i = 0; i < KV_CERTIFICATES; i++) {
    free(tls[i].key);
    free(tls[i].chain);
  }
  return rc;
}
