/*
** server.c: starting the test key server, and talking to its admin port.
*/
#include "server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REPLY_MAX (32 * 1024 * 1024)

extern char **environ;

static void nap(int ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
  nanosleep(&t, NULL);
}

/* A file's text, malloc'd; NULL when there is none. */
static char *file_text(const char *dir, const char *name) {
  char path[600];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  FILE *f = fopen(path, "r");
  char *text = f != NULL ? calloc(1, 65536) : NULL;
  if (text != NULL && fread(text, 1, 65535, f) == 0) text[0] = 0;
  if (f != NULL) fclose(f);
  return text;
}

static int read_ready(server *s) {
  tde_json *j = NULL;
  char *text = file_text(s->state, "ready.json");
  if (text == NULL || tde_json_parse(text, strlen(text), "file", &j, NULL) != TDE_OK) {
    free(text);
    return -1;
  }
  s->https = (int)tde_json_get_int(j, "https", 0);
  s->http = (int)tde_json_get_int(j, "http", 0);
  s->admin = (int)tde_json_get_int(j, "admin", 0);
  const char *header = tde_json_get_text(j, "identity_header");
  snprintf(s->identity_header, sizeof s->identity_header, "%s", header != NULL ? header : "");
  tde_json_free(j);
  free(text);
  return s->https > 0 && s->http > 0 && s->admin > 0 ? 0 : -1;
}

int server_start(server *s, const char *program, const char *config) {
  memset(s, 0, sizeof *s);
  const char *tmp = getenv("TMPDIR");
  snprintf(s->state, sizeof s->state, "%.200s/tde-azure-XXXXXX", tmp != NULL ? tmp : "/tmp");
  if (mkdtemp(s->state) == NULL) return -1;
  char *argv[] = {(char *)(uintptr_t)program, "--state", s->state, "--config",
                  (char *)(uintptr_t)config,  NULL};
  posix_spawn_file_actions_t acts;
  posix_spawn_file_actions_init(&acts);
  posix_spawn_file_actions_addopen(&acts, 1, "/dev/null", O_WRONLY, 0);
  int rc = posix_spawn(&s->pid, program, &acts, NULL, argv, environ);
  posix_spawn_file_actions_destroy(&acts);
  for (int i = 0; rc == 0 && i < 1200; i++) {
    if (read_ready(s) == 0) return 0;
    if (waitpid(s->pid, NULL, WNOHANG) != 0) break;
    nap(50);
  }
  fprintf(stderr, "the test key server %s did not start\n", program);
  return -1;
}

static int remove_one(const char *path, const struct stat *sb, int type, struct FTW *ftw) {
  (void)sb, (void)type, (void)ftw;
  return remove(path);
}

int server_stop(server *s) {
  int status = -1;
  kill(s->pid, SIGTERM);
  while (waitpid(s->pid, &status, 0) < 0 && errno == EINTR) {
  }
  nftw(s->state, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* ---- the admin port ---- */

static int connect_to(int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  a.sin_port = htons((uint16_t)port);
  if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0) return fd;
  close(fd);
  return -1;
}

/* Everything that the server says; malloc'd. */
static char *converse(int fd, const char *text) {
  size_t n = strlen(text), cap = 65536, got = 0;
  char *reply = malloc(cap);
  for (size_t at = 0; at < n;) {
    ssize_t k = write(fd, text + at, n - at);
    if (k <= 0) break;
    at += (size_t)k;
  }
  for (;;) {
    if (got + 1 == cap && cap < REPLY_MAX) reply = realloc(reply, cap *= 2);
    if (reply == NULL) abort();
    ssize_t k = read(fd, reply + got, cap - 1 - got);
    if (k <= 0) break;
    got += (size_t)k;
  }
  reply[got] = 0;
  return reply;
}

tde_json *server_admin(const server *s, const char *method, const char *path, const char *body) {
  char text[4096];
  tde_json *j = NULL;
  snprintf(text, sizeof text,
           "%s /admin/%s HTTP/1.0\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n%s", method,
           path, body != NULL ? strlen(body) : 0, body != NULL ? body : "");
  int fd = connect_to(s->admin);
  if (fd < 0) return NULL;
  char *reply = converse(fd, text), *at = strstr(reply, "\r\n\r\n");
  close(fd);
  int ok = strncmp(reply, "HTTP/1.", 7) == 0 && strncmp(reply + 8, " 200", 4) == 0 && at != NULL;
  if (ok) tde_json_parse(at + 4, strlen(at + 4), "reply", &j, NULL);
  free(reply);
  return j;
}

void server_do(const server *s, const char *method, const char *path, const char *body) {
  tde_json *j = server_admin(s, method, path, body);
  if (j == NULL) {
    printf("the key server does not take %s %s %s\n", method, path, body != NULL ? body : "");
    fflush(stdout);
    kill(s->pid, SIGTERM);
    exit(2);
  }
  tde_json_free(j);
}

int server_count(const server *s, const char *operation, int status) {
  char path[100];
  int n = 0;
  snprintf(path, sizeof path, "log?operation=%s", operation);
  tde_json *j = server_admin(s, "GET", path, NULL);
  const tde_json *entries = tde_json_get(j, "entries");
  for (size_t i = 0; i < tde_json_count(entries); i++) {
    n += status == 0 || tde_json_get_int(tde_json_at(entries, i), "status", 0) == status;
  }
  tde_json_free(j);
  return n;
}

/* ---- instances ---- */

#define CLIENT "\"client_id\":\"a0000000-0000-4000-8000-00000000000"

static const char identities[] = "\"secret\":{\"kind\":\"client_secret\"," CLIENT
                                 "1\",\"secret_file\":\"@app-secret/secret\"},"
                                 "\"secret-env\":{\"kind\":\"client_secret\"," CLIENT
                                 "1\",\"secret_env\":\"TDE_TEST_SECRET\"},"
                                 "\"certificate\":{\"kind\":\"client_certificate\"," CLIENT
                                 "2\",\"certificate_file\":\"@app-cert/certificate.pem\"},"
                                 "\"workload\":{\"kind\":\"workload_identity\"," CLIENT
                                 "3\",\"token_file\":\"@app-workload/federated-token\"},"
                                 "\"system\":{\"kind\":\"managed_identity\"},"
                                 "\"user\":{\"kind\":\"managed_identity\"," CLIENT
                                 "5\"},"
                                 "\"app-service\":{\"kind\":\"app_service\"," CLIENT
                                 "5\"},"
                                 "\"cross\":{\"kind\":\"federated\"," CLIENT
                                 "6\",\"via\":\"user\"},"
                                 "\"environment\":{\"kind\":\"environment\"},"
                                 "\"reader\":{\"kind\":\"client_secret\"," CLIENT
                                 "7\",\"secret_file\":\"@reader/secret\"},"
                                 "\"no-unwrap\":{\"kind\":\"client_secret\"," CLIENT
                                 "8\",\"secret_file\":\"@no-unwrap/secret\"},"
                                 "\"nobody\":{\"kind\":\"client_secret\"," CLIENT
                                 "a\",\"secret_file\":\"@nobody/secret\"}";

/* Copies text with the folder of identities for each '@'. */
static void put_identities(FILE *f, const server *s) {
  for (const char *p = identities; *p != 0; p++) {
    if (*p == '@')
      fprintf(f, "%s/identities/", s->state);
    else
      fputc(*p, f);
  }
}

const tde_instance *server_instance(const server *s, const char *name, int timeout_ms,
                                    const char *more) {
  char dir[400], path[500];
  const tde_instance *inst = NULL;
  tde_status st;
  snprintf(dir, sizeof dir, "%s/%s", s->state, name);
  mkdir(dir, 0700);
  snprintf(path, sizeof path, "%s/instance.json", dir);
  FILE *f = fopen(path, "w");
  if (f == NULL) return NULL;
  fprintf(f,
          "{\"version\":1,\"default_protector\":\"https://alpha.vault.localtest/keys/tde\","
          "\"allow_loopback_http\":true,"
          "\"http\":{\"timeout_ms\":%d,\"ca_file\":\"%s/ca.pem\",\"connect_to\":\"127.0.0.1:%d\"},"
          "\"azure\":{\"authority\":\"https://login.localtest:%d\","
          "\"imds_endpoint\":\"http://127.0.0.1:%d\","
          "\"vault_suffixes\":[\"vault.localtest\",\"managedhsm.localtest\"]},"
          "\"policy\":{\"allow_purgeable_keys\":true},\"identities\":{",
          timeout_ms, s->state, s->https, s->https, s->http);
  put_identities(f, s);
  fprintf(f, "}%s}", more);
  fclose(f);
  chmod(path, 0600);
  if (tde_instance_open(dir, 0, &inst, &st) != TDE_OK) printf("no instance: %s\n", st.message);
  return inst;
}

void server_environment(const server *s) {
  char text[400];
  snprintf(text, sizeof text, "%s/identities/app-secret", s->state);
  char *secret = file_text(text, "secret");
  if (secret != NULL) setenv("TDE_TEST_SECRET", secret, 1);
  free(secret);
  snprintf(text, sizeof text, "http://127.0.0.1:%d/msi/token", s->http);
  setenv("IDENTITY_ENDPOINT", text, 1);
  setenv("IDENTITY_HEADER", s->identity_header, 1);
}
