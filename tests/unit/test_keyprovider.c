/*
** test_keyprovider.c: JSON door, provider driver, local keys, instance, key
** document.
**
** Each test works in its own directory below one temporary directory. What
** needs an ordinary user (permissions) runs in a child that gives root up; the
** child's exit status tells the line that failed.
*/
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ext/base/bytes.h"
#include "ext/base/crypto.h"
#include "ext/base/secret.h"
#include "keyprovider/files.h"
#include "keyprovider/instance.h"
#include "keyprovider/instance_edit.h"
#include "keyprovider/json.h"
#include "keyprovider/keydoc.h"
#include "keyprovider/local.h"
#include "keyprovider/rsa.h"
#include "tests/unit/keydoc.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

#define NOBODY 65534
#define PATH_BYTES 512

extern char **environ;
static char root_dir[256];
static const uint8_t uuid[TDE_UUID_BYTES] = "0123456789abcde";
static const tde_keydoc_asker nobody = {.identity = NULL};

/* Google's Project Wycheproof, rsa_oaep_2048_sha256_mgf1sha256, tcId 7: a
** message of 32 bytes, e0 to ff, without a label. */
static const char vector_pem[] =
    "-----BEGIN RSA PRIVATE KEY-----\n"
    "MIIEowIBAAKCAQEAorRRoH0KpfluRVZxUTVQUUqKW0YuvvcXCU+h/ugiJOY3+XRt\n"
    "P3yv0xh42AMltu9aFwD2WQO0aUKeidbqyIRQl7WrOTGJ25JRLtincRoSU/rNIPec\n"
    "Fegkfz0+QuRuSMmOJUov6XZTE6A+/48X4aApOXofomqNzib0kO2BKZYV2YFMItph\n"
    "BCjgnH2WWFlCZvXAIdD87KCNlFoSvoLeTR7Oa0wDFFtdNJXU7VQR64eNrwX9evw+\n"
    "Ca2g8RJkIvWQl1oZaYFvSGmLy7obTZyuedRg2Pn4Xnl1AF2bwixOWsD3waRdElaa\n"
    "YoB9O5oC5aUw53MGb0U9H1tMLpz3ggKD90K51QIDAQABAoIBAHYn7vNWeyonJo5S\n"
    "BT7NMcOnFyzLndzugZswals8ZrdXPKT6iO/G88SgC/oK5xOfZFQ6Taw9BYI/b/R3\n"
    "z87IT+KsemixcgSzkCMuEQMQxOiZxOfBCWfbSs3gQtu/GdvgC0tHQd4QIKqq/7UF\n"
    "THl8nxNvfZOsP8jK/2ZUJC14IevuUXv1N/RDZqD91FrgW5kJwubMHtkoHv9Dmfds\n"
    "lrliM+wprgu/DXUrI0/BlzifUQUKoazQHAdMOsj7256otlGpWZXo20rVxDtshnPl\n"
    "oSbn7pS43/TFr8ASWbyNp2lQuub4uucV9QmFsNb2bQTG/vO3AHIO7NzfFxu3sey+\n"
    "conEZ8ECgYEA3EMQUPeC6JT7UkgkfZjLfVi40eJPO1XQQcVuTeCGsNW7AovaQu61\n"
    "0jTVaB5YCdQV5qKJrUz794+Xj2w1gU9Q7r/xxbgKafeI6B5rq13ap4Np1lnRQ+xv\n"
    "F+eYE6V1z62cVpFWuQET4ukRCtnntIock0im5lMyEZEpDqNs+zpbGPECgYEAvRqB\n"
    "55d/mJgSInOuMiK1mOpfsZ606rw4MIpeMhlmA7LlAP+3n1uIaBZhHevEcvrEVUQH\n"
    "C+sFfJQTeKaGivO3oD0/mIDsR9XgiblPveVCq6mujXLFcIjXq/WxMfOQmPe8Fg+Q\n"
    "U2q8lJL9Tgbz7XKZ1Ll7sDZ3IH2VZp8UDPvCDyUCgYEAqUtSiyjykVmRIdkZUv/R\n"
    "x/IdfBR52Z1HiIX7Fhhw7hIYvwhHJhLb5Ul+jZxlBojgnHhpYa4+LDVNxIrjRRR1\n"
    "nEwjxFiEiJYdwGtBTmHA4ef7vSkj0xUy/iifltoiBxHljBQBmAjgBBQnaTO7B+Tv\n"
    "ubSps3ZWkXIFIJ8z8JUV18ECgYA68OcqkzrvCf8lA994uv7VMcAv8aK8Q3xUDNy9\n"
    "StNUNc9RF2NZZUNIBimxFMp/eA/376MuoMtuAA1tnqHy73H9nPmUhCKhZVV+N+dV\n"
    "7f5w2QuSBQLrR4vJimP3iM46D4Vtbt5yUaODv6j6SAqBqSWvezzFOMS6uMn3WX/7\n"
    "aAEdjQKBgCZA+/vP77Fj7nqHtkg6Zu5B+VbZD6ink5v8BC7gkksbeZPQRF91jVGT\n"
    "PoUXnAMgsMlotIqRw4tb6SPhCXwMVi+I1CKUtqJ1m6+lQop08ScIdORfb8xg8hYC\n"
    "3l7M0UPPMSQfWSG1rTmD+1TvF747KFNn5QyZnGcke1Uv5L/OlF97\n"
    "-----END RSA PRIVATE KEY-----\n";
static const char vector_wrapped[] =
    "096958786ee7972050d67a9e4b69d6c6af7db7cc674386df725770dd29129b826e39552330104c8d"
    "71e6cc3a3014dd2f61b54153af51b0438d447ee939f9e3c13bb8b00a37dea6a068f6c9d27e848b1b"
    "e7a1eeeb3ee50b78036fba95ae46948ca5b13f356ea24db10f60dc09e4b8bad8f766b668ef725244"
    "32080a0ce00ed676d6d5e354984b1078520412525848156d06f0652469f95791baa3d9a798ae5370"
    "94f76f976faecd5c9ce0c930a75910c63dacf63485cb4b5e7bdbcf4d80e74037eaa1a8fe4b52930b"
    "ec6be99cf6ac88cf5878dbf6859d456a95dbc34654eec425de84ca2a535d517403a9aada827e7d00"
    "93ecfc97ed056a7652825e9a45cb2dcb";
#define VECTOR_VERSION "78bc7b73229b70330748bff52db56b894cdf646f"

/* ---- helpers ---- */

/* In a child: leaves with the line's number (shortened) instead of going on. */
#define CHILD_REQUIRE(x)                                                  \
  do {                                                                    \
    if (!(x)) {                                                           \
      printf("%s:%d: failed in child: %s\n", __FILE__, __LINE__, #x);      \
      fflush(stdout);                                                     \
      _exit(1);                                                           \
    }                                                                     \
  } while (0)

/* In place of the library's: fails for folders while this is set, for files with that error. */
static int folders_fail, files_fail;
int fsync(int fd) {
  struct stat sb;
  if (files_fail && fstat(fd, &sb) == 0 && S_ISREG(sb.st_mode)) {
    errno = files_fail;
    return -1;
  }
  if (folders_fail && fstat(fd, &sb) == 0 && S_ISDIR(sb.st_mode)) {
    errno = EIO;
    return -1;
  }
  return (int)syscall(SYS_fsync, fd);
}

/* In place of the library's: a new folder is as old as what took its name would be. */
static int made_before = -1; /* seconds before its parent's last change; -1: as it is */
int mkdirat(int dirfd, const char *path, mode_t mode) {
  struct stat sb;
  int rc = (int)syscall(SYS_mkdirat, dirfd, path, mode);
  if (rc == 0 && made_before >= 0 && fstat(dirfd, &sb) == 0) {
    struct timespec at = {sb.st_mtim.tv_sec - made_before, sb.st_mtim.tv_nsec};
    rc = utimensat(dirfd, path, (struct timespec[]){at, at}, 0);
  }
  return rc;
}

static int child_ok(pid_t pid) {
  int status = -1;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static pid_t fork_child(void) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) alarm(120); /* a hang is a failure, not a stuck test run */
  return pid;
}

static void fresh_dir(char out[PATH_BYTES], const char *name) {
  snprintf(out, PATH_BYTES, "%s/%s", root_dir, name);
  mkdir(out, 0700);
}

static int put_file(const char *path, const char *text, mode_t mode) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return -1;
  size_t n = strlen(text);
  int bad = write(fd, text, n) != (ssize_t)n || fchmod(fd, mode) != 0;
  return close(fd) != 0 || bad ? -1 : 0;
}

static int copy_file(const char *from, const char *to) {
  char buf[65536];
  int fd = open(from, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t n = read(fd, buf, sizeof buf - 1);
  close(fd);
  if (n < 0) return -1;
  buf[n] = 0;
  return put_file(to, buf, 0600);
}

/* The instance that most tests share: one key pair made, not twenty. */
static const tde_instance *shared_instance(void) {
  static const tde_instance *inst;
  char dir[PATH_BYTES];
  tde_status st;
  fresh_dir(dir, "shared");
  tde_status_clear(&st);
  if (tde_instance_open(dir, 1, &inst, &st) != TDE_OK) {
    printf("no instance: %s; %s\n", st.message, st.remedy);
    exit(1);
  }
  return inst;
}

static const char *smk_version(const tde_instance *inst) {
  const char *slash = strchr(tde_instance_smk(inst), '/');
  return slash != NULL ? slash + 1 : "";
}

static void smk_file(const tde_instance *inst, char out[PATH_BYTES]) {
  snprintf(out, PATH_BYTES, "%.300s/keys/smk-%.40s.pem", tde_instance_dir(inst), smk_version(inst));
}

/* An instance of its own directory that has the shared one's key. */
static const tde_instance *copied_instance(const char *name) {
  const tde_instance *from = shared_instance(), *inst = NULL;
  char dir[PATH_BYTES], keys[PATH_BYTES + 8], a[PATH_BYTES], b[PATH_BYTES + 64];
  fresh_dir(dir, name);
  snprintf(keys, sizeof keys, "%s/keys", dir);
  mkdir(keys, 0700);
  smk_file(from, a);
  snprintf(b, sizeof b, "%s/smk-%.40s.pem", keys, smk_version(from));
  CHECK(copy_file(a, b) == 0);
  snprintf(a, sizeof a, "%.300s/instance.json", tde_instance_dir(from));
  snprintf(b, sizeof b, "%s/instance.json", dir);
  CHECK(copy_file(a, b) == 0);
  CHECK(tde_instance_open(dir, 0, &inst, NULL) == TDE_OK);
  return inst;
}

static int count_files(const char *dir, const char *prefix) {
  int n = 0;
  DIR *d = opendir(dir);
  if (d == NULL) return -1;
  for (struct dirent *e; (e = readdir(d)) != NULL;) {
    n += strncmp(e->d_name, prefix, strlen(prefix)) == 0;
  }
  closedir(d);
  return n;
}

static void op_init(tde_op *op, tde_op_kind kind, const tde_instance *inst, uint8_t *dek) {
  memset(op, 0, sizeof *op);
  op->kind = kind;
  op->instance = inst;
  op->dek = dek;
}

/* ---- json ---- */

static tde_class parse(const char *text, tde_status *st) {
  tde_json *j = NULL;
  tde_status_clear(st);
  tde_class rc = tde_json_parse(text, strlen(text), "thing", &j, st);
  CHECK((rc == TDE_OK) == (j != NULL));
  tde_json_free(j);
  return rc;
}

static void json_rejects(void) {
  static const char *const bad[] = {
      "",        "{",          "{\"a\":1}x",       "{\"a\":1,\"a\":2}", "[1,]",     "nul",
      "{\"a\"}", "\"text\"",   "{\"a\":\"\\u0000\"}", "{\"a\":\"\xff\"}",  "[1e999]",
      "[92233720368547758080]", "[01]", "[-]", "[1.]", "[.5]", "[1e]", "[+1]", "[\"\\x\"]",
      "[\"\\u12g4\"]", "[\"\\udc00\"]", "[\"\\ud800\\u0041\"]", "[\"\t\"]", "[\"", "[\"\\", "[tru]",
      "[truex]", "[1 2]", "{,}", "{\"a\":}", "{\"a\" 1}", "{1:2}", "{\"a\":1,}", "[", "[1", "]", "[}",
      "\xef\xbb\xbf[]", "[1]]", "[NaN]", "[\"a\" \"b\"]", "[\"\xc0\x80\"]", "[\"\xed\xa0\x80\"]",
      "{\"a\":{\"b\":1,\"b\":1}}", "[\"\\ud800\"]",
  };
  tde_status st;
  for (size_t i = 0; i < COUNT(bad); i++) {
    if (!CHECK(parse(bad[i], &st) == TDE_CORRUPT)) printf("  %s\n", bad[i]);
    CHECK(strstr(st.message, "thing") != NULL);
  }
  CHECK(parse("{\"token\": SECRETSECRET}", &st) == TDE_CORRUPT);
  CHECK(strstr(st.message, "SECRET") == NULL && strstr(st.message, "near byte 10") != NULL);
  tde_json *j = NULL;
  CHECK(tde_json_parse("{\"a\":\"b\0c\"}", 11, "x", &j, NULL) == TDE_CORRUPT && j == NULL);
  CHECK(tde_json_parse(NULL, 0, "x", &j, &st) == TDE_CORRUPT && j == NULL);
}

/* What the check of the form accepts, the library accepts: else the library's
** syntax errors could not be taken for missing memory. */
static void json_accepts(void) {
  static const char *const good[] = {
      " [ ] ", "{}", "[0,-0,10,-1.5e+3,2E-7,1e5]", "[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e4\\ud83d\\ude00\"]",
      "\t{\"a\" : [ true , false , null ] ,\r\n\"\" : { } }\n", "[9223372036854775807]", "[\"\x7f\"]",
      "[1,[2,[3]],{\"a\":{\"b\":[]}}]", "[-9223372036854775808,-1,\"\\u0041\\u07ff\\uffff\"]",
  };
  tde_status st;
  for (size_t i = 0; i < COUNT(good); i++) {
    if (!CHECK(parse(good[i], &st) == TDE_OK)) printf("  %s: %s\n", good[i], st.message);
  }
}

static void json_depth(void) {
  char deep[400];
  tde_status st;
  for (int n = TDE_JSON_DEPTH_MAX; n <= TDE_JSON_DEPTH_MAX + 1; n++) {
    memset(deep, '[', (size_t)n);
    memset(deep + n, ']', (size_t)n);
    deep[2 * n] = 0;
    CHECK(parse(deep, &st) == (n == TDE_JSON_DEPTH_MAX ? TDE_OK : TDE_CORRUPT));
  }
  /* Brackets in a text do not count; an escaped quote does not end it. */
  memset(deep, '[', sizeof deep);
  memcpy(deep, "[\"\\\"", 4);
  memcpy(deep + 200, "\"]", 3);
  CHECK(parse(deep, &st) == TDE_OK);
}

static void json_round_trip(void) {
  static const char text[] = "{\"z\":1,\"a\":[true,null,\"\xc3\xa4/\"],\"m\":{\"k\":-5}}";
  tde_json *j = NULL;
  size_t n = 0;
  REQUIRE(tde_json_parse(text, strlen(text), "x", &j, NULL) == TDE_OK);
  tde_json *copy = tde_json_copy(j);
  CHECK(tde_json_set_int(copy, "z", 2) == 0);
  char *out = tde_json_text(j, &n);
  CHECK(out != NULL && n == strlen(text) && strcmp(out, text) == 0);
  free(out);
  CHECK(tde_json_get_int(copy, "z", 0) == 2 && tde_json_get_int(j, "z", 0) == 1);
  CHECK(tde_json_get_int(j, "a", 7) == 7 && tde_json_get_int(j, "none", 8) == 8);
  CHECK(tde_json_get_text(j, "z") == NULL && tde_json_get_bool(j, "z", 1) == 1);
  const tde_json *a = tde_json_get(j, "a");
  CHECK(tde_json_is_array(a) && tde_json_count(a) == 3 && !tde_json_is_object(a));
  CHECK(tde_json_is_bool(tde_json_at(a, 0)) && tde_json_is_null(tde_json_at(a, 1)));
  CHECK(tde_json_is_text(tde_json_at(a, 2)) && tde_json_at(a, 3) == NULL);
  CHECK(tde_json_is_int(tde_json_get(j, "z")) && !tde_json_is_int(a) && !tde_json_is_text(NULL));
  CHECK(tde_json_get(a, "x") == NULL && tde_json_count(j) == 0);
  tde_json_free(copy);
  tde_json_free(j);
}

/* A path may be no UTF-8: what is none is shown as U+FFFD. */
static void json_of_other_bytes(void) {
  static const char *const texts[][2] = {
      {"\xc3", "\xef\xbf\xbd"},
      {"a\xff" "b", "a\xef\xbf\xbd" "b"},
      {"\xc3\xa9\xe9", "\xc3\xa9\xef\xbf\xbd"},
      {"\xe2\x82\xac\xe2\x82", "\xe2\x82\xac\xef\xbf\xbd\xef\xbf\xbd"},
      {"\xf0\x9f\x98\x80\x80", "\xf0\x9f\x98\x80\xef\xbf\xbd"},
      {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},                             /* overlong */
      {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},             /* surrogate */
      {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* too high */
  };
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
    tde_json *o = tde_json_object();
    CHECK(tde_json_set_text(o, "t", texts[i][0]) == 0);
    if (!CHECK(strcmp(tde_json_get_text(o, "t"), texts[i][1]) == 0)) printf("  text %zu\n", i);
    tde_json_free(o);
  }
}

static void json_builders(void) {
  size_t n = 0;
  tde_json *o = tde_json_object(), *arr = tde_json_array();
  CHECK(tde_json_append_text(arr, "one") == 0 && tde_json_append(arr, tde_json_object()) == 0);
  CHECK(tde_json_append(arr, NULL) != 0 && tde_json_append_text(arr, "\xff") != 0);
  CHECK(tde_json_remove_at(arr, 1) == 0 && tde_json_remove_at(arr, 1) != 0);
  CHECK(tde_json_set_text(o, "t", "v") == 0 && tde_json_set_text(o, "n", NULL) == 0);
  CHECK(tde_json_set_bool(o, "b", 1) == 0);
  CHECK(tde_json_set_json(o, "arr", arr) == 0 && tde_json_set_json(o, "x", NULL) != 0);
  CHECK(tde_json_set_json(NULL, "x", tde_json_object()) != 0); /* and frees it */
  CHECK(tde_json_get_bool(o, "b", 0) == 1);
  char *text = tde_json_text(o, &n);
  CHECK(text != NULL && strcmp(text, "{\"t\":\"v\",\"n\":null,\"b\":true,\"arr\":[\"one\"]}") == 0);
  free(text);
  text = tde_json_pretty(o, &n);
  CHECK(text != NULL && strchr(text, '\n') != NULL && n == strlen(text));
  free(text);
  tde_json_free(o);
  tde_json_free(NULL);
}

/* ---- the driver, with a provider and a sender of the test's own ---- */

static struct {
  int starts, replies, finishes, sends, releases;
  int rounds;          /* requests to ask for */
  tde_step last;       /* what the last reply says */
  tde_class fail_with; /* set with TDE_STEP_FAILED; TDE_OK: says nothing */
  tde_class send_with;
  int no_version, no_wrapped;
  int nversions, same_version; /* of a list */
} fake;

static int fake_matches(const char *id) {
  return strncmp(id, "fake:", 5) == 0;
}

static tde_class fake_parse(const char *id, char base[TDE_KEY_ID_MAX], char version[128],
                            tde_status *st) {
  if (strcmp(id, "fake:bad") == 0) return tde_fail(st, TDE_MISCONFIGURED, NULL, "bad id");
  snprintf(base, TDE_KEY_ID_MAX, "%s", id);
  snprintf(version, 128, "v1");
  return TDE_OK;
}

static tde_step fake_ask(tde_request *req) {
  req->method = "POST";
  req->url = strdup("https://kms.test/");
  req->headers = calloc(2, sizeof *req->headers);
  req->headers[0] = tde_secret_alloc(32);
  snprintf(req->headers[0], 32, "Authorization: x");
  req->body = tde_secret_alloc(8);
  req->nbody = 8;
  return TDE_STEP_SEND;
}

static void fake_list(tde_op *op, tde_status *st) {
  for (int i = 0; i < fake.nversions; i++) {
    tde_key_info info = {.base_id = "fake:k", .created = i % 3};
    if (!fake.no_version) snprintf(info.version, sizeof info.version, "v%04d", fake.same_version ? 0 : i);
    if (tde_op_add_version(op, &info, st) != TDE_OK) fake.last = TDE_STEP_FAILED;
  }
}

static tde_step fake_end(tde_op *op, tde_status *st) {
  if (op->kind == TDE_OP_VERSIONS) fake_list(op, st);
  if (!fake.no_version) {
    snprintf(op->info.base_id, sizeof op->info.base_id, "%s", op->base_id);
    snprintf(op->info.version, sizeof op->info.version, "%s", op->version);
  }
  if (op->kind == TDE_OP_WRAP && !fake.no_wrapped) op->nwrapped = 5;
  if (op->kind == TDE_OP_UNWRAP) memset(op->dek, 0x77, TDE_KEY_BYTES);
  if (fake.last == TDE_STEP_FAILED && fake.fail_with != TDE_OK) {
    tde_fail(st, fake.fail_with, NULL, "it failed");
  }
  return fake.last;
}

static tde_step fake_start(tde_op *op, tde_request *req, tde_status *st) {
  fake.starts++;
  op->state = malloc(10);
  return fake.rounds > 0 ? fake_ask(req) : fake_end(op, st);
}

static tde_step fake_reply(tde_op *op, const tde_reply *reply, tde_request *req, tde_status *st) {
  CHECK(reply->status == 200 && reply->nbody == 2);
  fake.replies++;
  return fake.replies < fake.rounds ? fake_ask(req) : fake_end(op, st);
}

static void fake_finish(tde_op *op) {
  fake.finishes++;
  free(op->state);
}

static void fake_release(tde_reply *reply) {
  fake.releases++;
  free(reply->impl);
}

static tde_class fake_send(const tde_op *op, const tde_request *req, tde_reply *reply,
                           tde_status *st) {
  CHECK(op->state != NULL && strcmp(req->url, "https://kms.test/") == 0 && req->nbody == 8);
  fake.sends++;
  reply->impl = malloc(2);
  reply->body = reply->impl;
  reply->nbody = 2;
  reply->status = 200;
  reply->release = fake_release;
  return fake.send_with == TDE_OK ? TDE_OK : tde_fail(st, fake.send_with, NULL, "no answer");
}

static const tde_provider fake_provider = {.name = "fake", .matches = fake_matches, .parse_id = fake_parse,
                                           .start = fake_start, .reply = fake_reply, .finish = fake_finish};

static tde_class fake_run(tde_op_kind kind, int rounds, tde_op *op, uint8_t *dek, tde_status *st) {
  fake.starts = fake.replies = fake.finishes = fake.sends = fake.releases = 0;
  fake.rounds = rounds;
  op_init(op, kind, NULL, dek);
  op->nwrapped = kind == TDE_OP_UNWRAP ? 5 : 0;
  memset(dek, 0x11, TDE_KEY_BYTES);
  tde_http_sender = fake_send;
  tde_class rc = tde_provider_run_with(&fake_provider, op, "fake:k", st);
  tde_http_sender = NULL;
  CHECK(fake.finishes == 1 && fake.releases == fake.sends && op->state == NULL);
  return rc;
}

static void driver_loop(void) {
  uint8_t dek[TDE_KEY_BYTES];
  tde_status st;
  tde_op op;
  memset(&fake, 0, sizeof fake);
  CHECK(fake_run(TDE_OP_GET, 0, &op, dek, &st) == TDE_OK && fake.sends == 0);
  CHECK(strcmp(op.info.version, "v1") == 0 && strcmp(op.base_id, "fake:k") == 0);
  CHECK(fake_run(TDE_OP_UNWRAP, 3, &op, dek, &st) == TDE_OK && fake.sends == 3);
  CHECK(dek[0] == 0x77 && st.code == TDE_OK);
  CHECK(op.deadline > tde_boot_ms() + 50000 && op.deadline <= tde_boot_ms() + 60000);
  CHECK(fake_run(TDE_OP_WRAP, TDE_OP_REQUESTS_MAX, &op, dek, &st) == TDE_OK);
  CHECK(fake_run(TDE_OP_UNWRAP, 1000, &op, dek, &st) == TDE_CORRUPT);
  CHECK(fake.sends == TDE_OP_REQUESTS_MAX && tde_all_zero(dek, sizeof dek));
}

static void driver_versions(void) {
  uint8_t dek[TDE_KEY_BYTES];
  tde_status st;
  tde_op op;
  memset(&fake, 0, sizeof fake);
  fake.nversions = TDE_VERSIONS_MAX;
  CHECK(fake_run(TDE_OP_VERSIONS, 2, &op, dek, &st) == TDE_OK);
  REQUIRE(op.nversions == TDE_VERSIONS_MAX && op.versions != NULL);
  CHECK(op.versions[0].created == 2 && strcmp(op.versions[0].version, "v0998") == 0);
  CHECK(op.versions[TDE_VERSIONS_MAX - 1].created == 0);
  for (size_t i = 1; i < op.nversions; i++) {
    const tde_key_info *a = &op.versions[i - 1], *b = &op.versions[i];
    CHECK(a->created > b->created || (a->created == b->created && strcmp(a->version, b->version) > 0));
  }
  free(op.versions);
  fake.nversions++;
  CHECK(fake_run(TDE_OP_VERSIONS, 1, &op, dek, &st) == TDE_UNSUPPORTED && op.versions == NULL);
  fake.last = TDE_STEP_DONE;
  fake.nversions = 0;
  CHECK(fake_run(TDE_OP_VERSIONS, 1, &op, dek, &st) == TDE_MISSING && op.nversions == 0);
  CHECK(st.remedy[0] != 0 && strcmp(st.key_id, "fake:k") == 0);
  fake.nversions = 2;
  fake.same_version = 1;
  CHECK(fake_run(TDE_OP_VERSIONS, 1, &op, dek, &st) == TDE_CORRUPT && op.versions == NULL);
  fake.no_version = 1;
  CHECK(fake_run(TDE_OP_VERSIONS, 1, &op, dek, &st) == TDE_INTERNAL && op.versions == NULL);
  CHECK(dek[0] == 0x11);
}

static void driver_failures(void) {
  uint8_t dek[TDE_KEY_BYTES];
  tde_status st;
  tde_op op;
  memset(&fake, 0, sizeof fake);
  fake.send_with = TDE_UNREACHABLE;
  CHECK(fake_run(TDE_OP_UNWRAP, 2, &op, dek, &st) == TDE_UNREACHABLE && fake.replies == 0);
  CHECK(tde_all_zero(dek, sizeof dek) && strcmp(st.key_id, "fake:k") == 0 && st.remedy[0] != 0);
  fake.send_with = TDE_OK;
  fake.last = TDE_STEP_FAILED;
  for (int c = TDE_NOMEM; c <= TDE_MISCONFIGURED; c++) {
    fake.fail_with = (tde_class)c;
    CHECK(fake_run(TDE_OP_UNWRAP, 1, &op, dek, &st) == (tde_class)c && st.code == (tde_class)c);
    CHECK(tde_all_zero(dek, sizeof dek) && st.remedy[0] != 0);
  }
  /* A wrap's input is the caller's live key: a failed wrap must not take it. */
  CHECK(fake_run(TDE_OP_WRAP, 1, &op, dek, &st) != TDE_OK && dek[0] == 0x11 && op.nwrapped == 0);
  fake.fail_with = TDE_OK;
  CHECK(fake_run(TDE_OP_GET, 1, &op, dek, &st) == TDE_INTERNAL);
  fake.last = TDE_STEP_DONE;
  fake.no_wrapped = 1;
  CHECK(fake_run(TDE_OP_WRAP, 0, &op, dek, &st) == TDE_INTERNAL);
  fake.no_version = 1;
  CHECK(fake_run(TDE_OP_GET, 0, &op, dek, &st) == TDE_INTERNAL);
  CHECK(fake_run(TDE_OP_LATEST, 0, &op, dek, NULL) == TDE_INTERNAL);
}

static void driver_input(void) {
  uint8_t dek[TDE_KEY_BYTES];
  tde_status st;
  tde_op op;
  tde_provider p = fake_provider;
  memset(&fake, 0, sizeof fake);
  fake.rounds = 1;
  op_init(&op, TDE_OP_GET, NULL, NULL);
  CHECK(tde_provider_run_with(&p, &op, "fake:k", &st) == TDE_UNSUPPORTED);
  CHECK(strcmp(st.message, "this build has no network transport") == 0);
  CHECK(tde_provider_run_with(&p, &op, "fake:bad", &st) == TDE_MISCONFIGURED);
  CHECK(strcmp(st.key_id, "fake:bad") == 0);
  p.reply = NULL;
  tde_http_sender = fake_send;
  CHECK(tde_provider_run_with(&p, &op, "fake:k", &st) == TDE_INTERNAL && fake.sends == 0);
  tde_http_sender = NULL;
  op_init(&op, TDE_OP_WRAP, NULL, NULL);
  CHECK(tde_provider_run_with(&p, &op, "fake:k", &st) == TDE_MISUSE);
  op_init(&op, TDE_OP_UNWRAP, NULL, dek);
  CHECK(tde_provider_run_with(&p, &op, "fake:k", &st) == TDE_MISUSE);
  op.nwrapped = TDE_WRAPPED_MAX + 1;
  CHECK(tde_provider_run_with(&p, &op, "fake:k", &st) == TDE_MISUSE);
  op.kind = (tde_op_kind)99;
  CHECK(tde_provider_run_with(&p, &op, "fake:k", &st) == TDE_MISUSE);
}

static void provider_table(void) {
  tde_status st;
  char long_id[TDE_KEY_ID_MAX + 8];
  CHECK(tde_providers_check(&st) == TDE_OK);
  tde_provider p = fake_provider;
  CHECK(tde_provider_check(&p, &st) == TDE_OK);
  p.name = NULL;
  CHECK(tde_provider_check(&p, &st) == TDE_INTERNAL);
  p = fake_provider, p.matches = NULL;
  CHECK(tde_provider_check(&p, &st) == TDE_INTERNAL);
  p = fake_provider, p.parse_id = NULL;
  CHECK(tde_provider_check(&p, &st) == TDE_INTERNAL);
  p = fake_provider, p.start = NULL;
  CHECK(tde_provider_check(&p, &st) == TDE_INTERNAL && strstr(st.message, "fake") != NULL);
  CHECK(tde_provider_find("local:a", &st) == &tde_provider_local);
  CHECK(tde_provider_find("nobody:a", &st) == NULL && st.code == TDE_UNSUPPORTED);
  CHECK(tde_provider_find("", &st) == NULL && st.code == TDE_MISCONFIGURED);
  CHECK(tde_provider_find(NULL, &st) == NULL && st.code == TDE_MISCONFIGURED);
  CHECK(tde_provider_find("local:a\nb", &st) == NULL && st.code == TDE_MISCONFIGURED);
  memset(long_id, 'a', sizeof long_id);
  long_id[sizeof long_id - 1] = 0;
  CHECK(tde_provider_find(long_id, &st) == NULL && st.code == TDE_MISCONFIGURED);
  tde_op op;
  uint8_t dek[TDE_KEY_BYTES];
  memset(dek, 1, sizeof dek);
  op_init(&op, TDE_OP_UNWRAP, NULL, dek);
  op.versions = &(tde_key_info){.version = "none"};
  op.nversions = 1;
  CHECK(tde_provider_run(&op, "nobody:a", NULL) == TDE_UNSUPPORTED && tde_all_zero(dek, 32));
  CHECK(op.versions == NULL && op.nversions == 0);
}

static void full_ids(void) {
  char out[TDE_KEY_ID_MAX];
  tde_key_info info = {.base_id = "local:a", .version = "v"};
  tde_key_full_id(&info, out);
  CHECK(strcmp(out, "local:a/v") == 0);
  info.version[0] = 0;
  tde_key_full_id(&info, out);
  CHECK(strcmp(out, "local:a") == 0);
  memset(info.base_id, 'x', sizeof info.base_id);
  memset(info.version, 'y', sizeof info.version);
  tde_key_full_id(&info, out);
  CHECK(strlen(out) == TDE_KEY_ID_MAX - 1 && strchr(out, '/') == NULL);
}

/* ---- RSA ---- */

static void rsa_thumbprint(void) {
  /* RFC 7638 section 3.1. */
  static const char n64[] =
      "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJEC"
      "PebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2Qvz"
      "qY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZ"
      "u0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
  uint8_t n[260] = {0}, out[TDE_THUMB_BYTES];
  static const uint8_t e[] = {0, 1, 0, 1};
  char text[64];
  REQUIRE(tde_unbase64url(n64, strlen(n64), n + 1, sizeof n - 1) == 256);
  for (int lead = 0; lead < 2; lead++) { /* a leading zero byte does not count */
    CHECK(tde_rsa_thumbprint(n + lead, 257 - (size_t)lead, e + lead, 4 - (size_t)lead, out, NULL) ==
          TDE_OK);
    tde_base64url(out, sizeof out, text);
    CHECK(strcmp(text, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs") == 0);
  }
  uint8_t big[513];
  memset(big, 1, sizeof big);
  CHECK(tde_rsa_thumbprint(big, sizeof big, e, 4, out, NULL) == TDE_CORRUPT);
  CHECK(tde_rsa_thumbprint(big, 0, e, 4, out, NULL) == TDE_CORRUPT);
  CHECK(tde_rsa_thumbprint(big, 256, e, 1, out, NULL) == TDE_CORRUPT);
  CHECK(tde_rsa_thumbprint(big, 256, big, 9, out, NULL) == TDE_CORRUPT);
}

static void rsa_kinds(void) {
  tde_key_info info;
  EVP_PKEY *small = EVP_RSA_gen(1024), *ec = EVP_EC_gen("P-256"), *four = NULL;
  memset(&info, 0, sizeof info);
  CHECK(tde_rsa_info(small, &info, NULL) == TDE_UNSUPPORTED);
  CHECK(tde_rsa_info(ec, &info, NULL) == TDE_UNSUPPORTED);
  CHECK(tde_rsa_generate(4096, &four, NULL) == TDE_OK);
  CHECK(tde_rsa_info(four, &info, NULL) == TDE_OK && strcmp(info.type, "RSA-4096") == 0);
  uint8_t wrapped[TDE_WRAPPED_MAX], dek[TDE_KEY_BYTES] = "four thousand bits";
  uint8_t *got = tde_secret_alloc(TDE_KEY_BYTES);
  size_t n = 0;
  CHECK(tde_rsa_wrap(four, dek, wrapped, &n, NULL) == TDE_OK && n == 512);
  CHECK(tde_rsa_unwrap(four, wrapped, n, got, NULL) == TDE_OK && tde_equal(got, dek, 32));
  CHECK(tde_rsa_wrap(ec, dek, wrapped, &n, NULL) == TDE_CRYPTO && n == 0);
  CHECK(ERR_peek_error() == 0); /* the host's error queue stays as it was */
  tde_secret_free(got);
  EVP_PKEY_free(small);
  EVP_PKEY_free(ec);
  EVP_PKEY_free(four);
}

/* What the padding holds must be a DEK, not merely something. */
static void rsa_not_a_dek(void) {
  EVP_PKEY *key = NULL;
  uint8_t wrapped[TDE_WRAPPED_MAX], long_plain[33] = {1}, *got = tde_secret_alloc(TDE_KEY_BYTES);
  REQUIRE(tde_rsa_generate(2048, &key, NULL) == TDE_OK);
  for (size_t len = 0; len <= 33; len += 11) {
    size_t n = sizeof wrapped;
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(key, NULL);
    CHECK(EVP_PKEY_encrypt_init(ctx) == 1 && EVP_PKEY_CTX_set_rsa_padding(ctx, 4) == 1);
    CHECK(EVP_PKEY_CTX_set_rsa_oaep_md(ctx, EVP_sha256()) == 1);
    CHECK(EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, EVP_sha256()) == 1);
    CHECK(EVP_PKEY_encrypt(ctx, wrapped, &n, long_plain, len) == 1);
    EVP_PKEY_CTX_free(ctx);
    CHECK(tde_rsa_unwrap(key, wrapped, n, got, NULL) == TDE_CORRUPT && tde_all_zero(got, 32));
  }
  EVP_PKEY_free(key);
  tde_secret_free(got);
}

/* ---- local keys ---- */

static void local_ids(void) {
  static const char *const bad[] = {
      "local:", "local:A", "local:a_b", "local:../x", "local:a/", "local:a/b", "local:a//",
      "local:smk/78bc7b73229b70330748bff52db56b894cdf646f0", "local:smk/78BC7B73229B70330748BFF52DB56B894CDF646F",
      "local:smk/78bc7b73229b70330748bff52db56b894cdf646f/x", "local:abcdefghijabcdefghijabcdefghijabc", "local:a b",
      "local:a.pem", "other:a", "local:/78bc7b73229b70330748bff52db56b894cdf646f", "local:a%2f", "local:\xc3\xa4"};
  char base[TDE_KEY_ID_MAX], version[128];
  tde_status st;
  for (size_t i = 0; i < COUNT(bad); i++) {
    if (!CHECK(tde_provider_local.parse_id(bad[i], base, version, &st) == TDE_MISCONFIGURED)) {
      printf("  %s\n", bad[i]);
    }
  }
  CHECK(tde_provider_local.parse_id("local:abcdefghijabcdefghijabcdefghij-9", base, version, &st) ==
        TDE_OK);
  CHECK(version[0] == 0);
  CHECK(tde_provider_local.parse_id("local:a-1/" VECTOR_VERSION, base, version, &st) == TDE_OK);
  CHECK(strcmp(base, "local:a-1") == 0 && strcmp(version, VECTOR_VERSION) == 0);
}

static void local_round_trip(void) {
  const tde_instance *inst = shared_instance();
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES), *got = tde_secret_alloc(TDE_KEY_BYTES);
  tde_op wrap, unwrap;
  tde_status st;
  CHECK(tde_random(dek, TDE_KEY_BYTES, NULL) == TDE_OK);
  const char *ids[] = {tde_instance_protector(inst), "local:smk"};
  for (size_t i = 0; i < COUNT(ids); i++) {
    op_init(&wrap, TDE_OP_WRAP, inst, dek);
    CHECK(tde_provider_run(&wrap, ids[i], &st) == TDE_OK && wrap.nwrapped == 384);
    CHECK(strcmp(wrap.info.type, "RSA-3072") == 0 && wrap.info.enabled);
    CHECK(strcmp(wrap.info.version, smk_version(inst)) == 0);
    CHECK(strcmp(wrap.info.algorithm, "RSA-OAEP-256") == 0 && wrap.info.created > 1600000000);
    op_init(&unwrap, TDE_OP_UNWRAP, inst, got);
    memcpy(unwrap.wrapped, wrap.wrapped, wrap.nwrapped);
    unwrap.nwrapped = wrap.nwrapped;
    memset(got, 0, TDE_KEY_BYTES);
    CHECK(tde_provider_run(&unwrap, ids[i], &st) == TDE_OK && tde_equal(got, dek, 32));
  }
  tde_op latest;
  op_init(&latest, TDE_OP_LATEST, inst, NULL);
  CHECK(tde_provider_run(&latest, "local:smk", &st) == TDE_OK);
  CHECK(strcmp(latest.info.version, smk_version(inst)) == 0);
  snprintf(unwrap.algorithm, sizeof unwrap.algorithm, "RSA1_5");
  CHECK(tde_provider_run(&unwrap, ids[0], &st) == TDE_UNSUPPORTED && tde_all_zero(got, 32));
  op_init(&latest, TDE_OP_GET, NULL, NULL);
  CHECK(tde_provider_run(&latest, "local:smk", &st) == TDE_MISUSE);
  tde_secret_free(dek);
  tde_secret_free(got);
}

/* Every way of damaging a wrapped key ends in an error and in no DEK. */
static void local_tampered(void) {
  const tde_instance *inst = shared_instance();
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES), *got = tde_secret_alloc(TDE_KEY_BYTES);
  tde_op wrap, op;
  tde_status st;
  CHECK(tde_random(dek, TDE_KEY_BYTES, NULL) == TDE_OK);
  op_init(&wrap, TDE_OP_WRAP, inst, dek);
  REQUIRE(tde_provider_run(&wrap, "local:smk", &st) == TDE_OK);
  for (size_t i = 0; i < wrap.nwrapped; i += 13) {
    op_init(&op, TDE_OP_UNWRAP, inst, got);
    memcpy(op.wrapped, wrap.wrapped, wrap.nwrapped);
    op.nwrapped = wrap.nwrapped;
    op.wrapped[i] ^= (uint8_t)(1u << (i % 8));
    memset(got, 0x55, TDE_KEY_BYTES);
    CHECK(tde_provider_run(&op, "local:smk", &st) == TDE_WRONG_KEY && tde_all_zero(got, 32));
    CHECK(strcmp(st.key_id, "local:smk") == 0 && st.remedy[0] != 0);
  }
  for (size_t n = 1; n < TDE_WRAPPED_MAX; n += 383) {
    op_init(&op, TDE_OP_UNWRAP, inst, got);
    op.nwrapped = n == 384 ? 385 : n;
    CHECK(tde_provider_run(&op, "local:smk", &st) == TDE_CORRUPT);
  }
  CHECK(ERR_peek_error() == 0);
  tde_secret_free(dek);
  tde_secret_free(got);
}

/* A published vector, through the provider, from a PEM file put in by hand. */
static void local_vector(void) {
  const tde_instance *inst = copied_instance("vector");
  char path[PATH_BYTES];
  uint8_t *got = tde_secret_alloc(TDE_KEY_BYTES);
  tde_op op;
  tde_status st;
  snprintf(path, sizeof path, "%.300s/keys/kat-" VECTOR_VERSION ".pem", tde_instance_dir(inst));
  REQUIRE(put_file(path, vector_pem, 0600) == 0);
  op_init(&op, TDE_OP_UNWRAP, inst, got);
  op.nwrapped = 256;
  REQUIRE(tde_unhex(vector_wrapped, op.wrapped, 256) == 0);
  CHECK(tde_provider_run(&op, "local:kat/" VECTOR_VERSION, &st) == TDE_OK);
  for (int i = 0; i < TDE_KEY_BYTES; i++) CHECK(got[i] == 0xe0 + i);
  CHECK(strcmp(op.info.type, "RSA-2048") == 0);
  /* Another key's wrapped DEK of the same length, under this key. */
  EVP_PKEY *other = NULL;
  REQUIRE(tde_rsa_generate(2048, &other, NULL) == TDE_OK);
  CHECK(tde_rsa_wrap(other, got, op.wrapped, &op.nwrapped, NULL) == TDE_OK);
  CHECK(tde_provider_run(&op, "local:kat", &st) == TDE_WRONG_KEY && tde_all_zero(got, 32));
  EVP_PKEY_free(other);
  tde_secret_free(got);
}

static int run_openssl(const char *const argv[]) {
  pid_t pid = -1;
  int status = -1;
  posix_spawn_file_actions_t acts;
  posix_spawn_file_actions_init(&acts);
  posix_spawn_file_actions_addopen(&acts, 2, "/dev/null", O_WRONLY, 0);
  int rc = posix_spawnp(&pid, "openssl", &acts, NULL, (char *const *)(uintptr_t)argv, environ);
  posix_spawn_file_actions_destroy(&acts);
  if (rc != 0) return -1;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int pkeyutl(const char *mode, const char *key, const char *in, const char *out) {
  const char *const argv[] = {"openssl", "pkeyutl", mode, "-inkey", key, "-in", in, "-out", out,
                              "-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256",
                              "-pkeyopt", "rsa_mgf1_md:sha256", NULL};
  return run_openssl(argv);
}

static int file_bytes(const char *path, uint8_t *buf, size_t n, int write_it) {
  int fd = open(path, write_it ? O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC : O_RDONLY | O_CLOEXEC, 0600);
  if (fd < 0) return -1;
  ssize_t k = write_it ? write(fd, buf, n) : read(fd, buf, n);
  close(fd);
  return (int)k;
}

static void local_openssl_command(void) {
  static const char *const version[] = {"openssl", "version", "-v", NULL};
  const tde_instance *inst = shared_instance();
  char key[PATH_BYTES], a[PATH_BYTES], b[PATH_BYTES];
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES), *got = tde_secret_alloc(TDE_KEY_BYTES), back[64];
  tde_op op;
  if (run_openssl(version) != 0) {
    tde_secret_free(dek);
    tde_secret_free(got);
    SKIP("the openssl command is missing");
  }
  smk_file(inst, key);
  snprintf(a, sizeof a, "%s/in.bin", root_dir);
  snprintf(b, sizeof b, "%s/out.bin", root_dir);
  CHECK(tde_random(dek, TDE_KEY_BYTES, NULL) == TDE_OK);
  /* We wrap, the command unwraps. */
  op_init(&op, TDE_OP_WRAP, inst, dek);
  CHECK(tde_provider_run(&op, "local:smk", NULL) == TDE_OK);
  CHECK(file_bytes(a, op.wrapped, op.nwrapped, 1) == (int)op.nwrapped);
  CHECK(pkeyutl("-decrypt", key, a, b) == 0);
  CHECK(file_bytes(b, back, sizeof back, 0) == TDE_KEY_BYTES && tde_equal(back, dek, 32));
  /* The command wraps, we unwrap. */
  CHECK(file_bytes(a, dek, TDE_KEY_BYTES, 1) == TDE_KEY_BYTES);
  CHECK(pkeyutl("-encrypt", key, a, b) == 0);
  op_init(&op, TDE_OP_UNWRAP, inst, got);
  int n = file_bytes(b, op.wrapped, sizeof op.wrapped, 0);
  op.nwrapped = n > 0 ? (size_t)n : 0;
  CHECK(n == 384 && tde_provider_run(&op, "local:smk", NULL) == TDE_OK && tde_equal(got, dek, 32));
  tde_secret_free(dek);
  tde_secret_free(got);
}

static tde_class get_smk(const tde_instance *inst, tde_status *st) {
  tde_op op;
  op_init(&op, TDE_OP_GET, inst, NULL);
  return tde_provider_run(&op, tde_instance_smk(inst), st);
}

/* Each bad state of a key file, first with the good key in the cache. */
static void local_bad_files(void) {
  const tde_instance *inst = copied_instance("badfiles");
  char path[PATH_BYTES], other[PATH_BYTES + 8], good[PATH_BYTES];
  tde_status st;
  smk_file(inst, path);
  smk_file(shared_instance(), good);
  CHECK(get_smk(inst, &st) == TDE_OK);
  static const mode_t modes[] = {0640, 0604, 0620, 0602, 0610, 0601};
  for (size_t i = 0; i < COUNT(modes); i++) {
    CHECK(chmod(path, modes[i]) == 0);
    CHECK(get_smk(inst, &st) == TDE_MISCONFIGURED && strstr(st.message, path) != NULL);
    CHECK(strstr(st.remedy, "chmod") != NULL);
  }
  CHECK(chmod(path, 0400) == 0 && get_smk(inst, &st) == TDE_OK && chmod(path, 0600) == 0);
  CHECK(put_file(path, vector_pem, 0600) == 0);
  CHECK(get_smk(inst, &st) == TDE_WRONG_KEY && strstr(st.message, VECTOR_VERSION) != NULL);
  CHECK(put_file(path, "no key at all", 0600) == 0 && get_smk(inst, &st) == TDE_CORRUPT);
  CHECK(put_file(path, "", 0600) == 0 && get_smk(inst, &st) == TDE_MISCONFIGURED);
  CHECK(truncate(path, 16385) == 0 && get_smk(inst, &st) == TDE_MISCONFIGURED);
  CHECK(unlink(path) == 0 && get_smk(inst, &st) == TDE_MISSING);
  CHECK(strstr(st.message, smk_version(inst)) != NULL && strstr(st.message, "badfiles") != NULL);
  CHECK(strstr(st.remedy, "copy the instance directory") != NULL);
  CHECK(strstr(st.remedy, "tde_instance=") != NULL && strstr(st.key_id, "local:smk/") != NULL);
  CHECK(symlink(good, path) == 0 && get_smk(inst, &st) == TDE_MISCONFIGURED && unlink(path) == 0);
  CHECK(mkfifo(path, 0600) == 0 && get_smk(inst, &st) == TDE_MISCONFIGURED && unlink(path) == 0);
  CHECK(mkdir(path, 0700) == 0 && get_smk(inst, &st) == TDE_MISCONFIGURED && rmdir(path) == 0);
  CHECK(copy_file(good, path) == 0 && get_smk(inst, &st) == TDE_OK);
  snprintf(other, sizeof other, "%s.away", path);
  /* A key whose file is gone leaves memory, too. */
  int cached = tde_local_cached_keys();
  CHECK(cached > 0 && rename(path, other) == 0 && get_smk(inst, &st) == TDE_MISSING);
  CHECK(tde_local_cached_keys() == cached - 1);
  CHECK(rename(other, path) == 0 && get_smk(inst, &st) == TDE_OK);
}

/* A PEM that wants a password must not ask the terminal for one. */
static void local_encrypted_pem(void) {
  const tde_instance *inst = copied_instance("password");
  char path[PATH_BYTES];
  tde_status st;
  EVP_PKEY *key = NULL;
  REQUIRE(tde_rsa_generate(2048, &key, NULL) == TDE_OK);
  smk_file(inst, path);
  FILE *f = fopen(path, "w");
  REQUIRE(f != NULL);
  CHECK(PEM_write_PKCS8PrivateKey(f, key, EVP_aes_256_cbc(), "pw", 2, NULL, NULL) == 1);
  fclose(f);
  CHECK(get_smk(inst, &st) == TDE_CORRUPT && ERR_peek_error() == 0);
  f = fopen(path, "w");
  REQUIRE(f != NULL);
  CHECK(PEM_write_PUBKEY(f, key) == 1);
  fclose(f);
  CHECK(get_smk(inst, &st) == TDE_CORRUPT);
  EVP_PKEY_free(key);
}

/* From here on no file can be opened. (The hard limit stays: valgrind lets nobody at it.) */
static int no_descriptors(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  limit.rlim_cur = 0;
  return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

/* With no descriptor to be had, only a cached key can answer. */
static void local_cache_keeps_parse_away(void) {
  const tde_instance *inst = copied_instance("cache");
  tde_local_drop_cache();
  CHECK(get_smk(inst, NULL) == TDE_OK);
  pid_t pid = fork_child();
  if (pid == 0) {
    tde_status st;
    CHILD_REQUIRE(no_descriptors());
    for (int i = 0; i < 1000; i++) CHILD_REQUIRE(get_smk(inst, &st) == TDE_OK);
    tde_local_drop_cache();
    CHILD_REQUIRE(get_smk(inst, &st) == TDE_IO);
    /* The cause and its remedy are told, not the disk's. */
    CHILD_REQUIRE(strstr(st.message, "Too many open files") != NULL && strstr(st.remedy, "ulimit -n") != NULL);
    tde_key_info info;
    CHILD_REQUIRE(tde_local_latest(tde_instance_dir(inst), "smk", &info, &st) == TDE_IO);
    CHILD_REQUIRE(strstr(st.message, "Too many open files") != NULL && strstr(st.remedy, "ulimit -n") != NULL);
    _exit(0);
  }
  CHECK(child_ok(pid));
}

static void local_cache_is_bounded(void) {
  const tde_instance *insts[TDE_LOCAL_KEYS_MAX + 4];
  char name[32];
  tde_status st;
  tde_local_drop_cache();
  for (size_t i = 0; i < COUNT(insts); i++) {
    snprintf(name, sizeof name, "many%zu", i);
    insts[i] = copied_instance(name);
    CHECK(get_smk(insts[i], &st) == TDE_OK);
  }
  CHECK(tde_local_cached_keys() == TDE_LOCAL_KEYS_MAX);
  pid_t pid = fork_child();
  if (pid == 0) {
    CHILD_REQUIRE(no_descriptors());
    /* The oldest made way, the newest are there. */
    for (size_t i = 0; i < 4; i++) CHILD_REQUIRE(get_smk(insts[i], &st) == TDE_IO);
    for (size_t i = 4; i < COUNT(insts); i++) CHILD_REQUIRE(get_smk(insts[i], &st) == TDE_OK);
    _exit(0);
  }
  CHECK(child_ok(pid));
}

static void local_latest(void) {
  const tde_instance *inst = copied_instance("latest");
  const char *dir = tde_instance_dir(inst);
  char path[PATH_BYTES];
  tde_key_info made, info;
  tde_status st;
  CHECK(tde_local_latest(dir, "mine", &info, &st) == TDE_MISSING);
  REQUIRE(tde_local_create(dir, "mine", &made, &st) == TDE_OK);
  CHECK(tde_local_latest(dir, "mine", &info, &st) == TDE_OK);
  CHECK(memcmp(info.thumbprint, made.thumbprint, TDE_THUMB_BYTES) == 0);
  CHECK(info.created == made.created && strcmp(info.version, made.version) == 0);
  char hex[2 * TDE_THUMB_SHOWN + 1];
  tde_hex(made.thumbprint, TDE_THUMB_SHOWN, hex);
  CHECK(strcmp(hex, made.version) == 0);
  /* An older key by its own date, whatever the file's time says. */
  char dated[8192];
  snprintf(dated, sizeof dated, "created: 1000\n%s", vector_pem);
  snprintf(path, sizeof path, "%.300s/keys/mine-" VECTOR_VERSION ".pem", dir);
  CHECK(put_file(path, dated, 0600) == 0 && tde_local_latest(dir, "mine", &info, &st) == TDE_OK);
  CHECK(strcmp(info.version, made.version) == 0);
  snprintf(dated, sizeof dated, "created: %lld\n%s", (long long)made.created + 5, vector_pem);
  CHECK(put_file(path, dated, 0600) == 0 && tde_local_latest(dir, "mine", &info, &st) == TDE_OK);
  CHECK(strcmp(info.version, VECTOR_VERSION) == 0);
  /* The list names all of them, newest first, whatever the id names. */
  tde_op op;
  op_init(&op, TDE_OP_VERSIONS, inst, NULL);
  CHECK(tde_provider_run(&op, "local:mine/" VECTOR_VERSION, &st) == TDE_OK);
  REQUIRE(op.nversions == 2);
  CHECK(strcmp(op.versions[0].version, VECTOR_VERSION) == 0 &&
        strcmp(op.versions[1].version, made.version) == 0);
  CHECK(strcmp(op.versions[0].base_id, "local:mine") == 0 && op.versions[0].enabled &&
        strcmp(op.versions[0].type, "RSA-2048") == 0);
  CHECK(memcmp(op.versions[1].thumbprint, made.thumbprint, TDE_THUMB_BYTES) == 0);
  free(op.versions);
  CHECK(tde_provider_run(&op, "local:none", &st) == TDE_MISSING && op.versions == NULL);
  /* A version that cannot be read might be the newest: an error, not skipped. */
  CHECK(chmod(path, 0644) == 0 && tde_local_latest(dir, "mine", &info, &st) == TDE_MISCONFIGURED);
  CHECK(tde_provider_run(&op, "local:mine", &st) == TDE_MISCONFIGURED && op.versions == NULL);
  CHECK(unlink(path) == 0);
  /* Names that are none of this key's. */
  snprintf(path, sizeof path, "%.300s/keys/mine-x-" VECTOR_VERSION ".pem", dir);
  CHECK(put_file(path, "x", 0600) == 0);
  snprintf(path, sizeof path, "%.300s/keys/mine-" VECTOR_VERSION ".pem~", dir);
  CHECK(put_file(path, "x", 0600) == 0);
  CHECK(tde_local_latest(dir, "mine", &info, &st) == TDE_OK);
  CHECK(strcmp(info.version, made.version) == 0);
  /* One made later is the newest, whatever the clock says of the others. */
  snprintf(path, sizeof path, "%.300s/keys/mine-" VECTOR_VERSION ".pem", dir);
  snprintf(dated, sizeof dated, "created: %lld\n%s", (long long)made.created + 5000, vector_pem);
  CHECK(put_file(path, dated, 0600) == 0);
  for (int i = 0; i < 3; i++) {
    REQUIRE(tde_local_create(dir, "mine", &made, &st) == TDE_OK);
    CHECK(tde_local_latest(dir, "mine", &info, &st) == TDE_OK);
    CHECK(strcmp(info.version, made.version) == 0 && info.created == made.created);
  }
  CHECK(tde_local_create(dir, "No", &info, &st) == TDE_MISUSE);
  CHECK(tde_local_create("/nonexistent", "no", &info, &st) == TDE_MISSING);
}

static void files_never_overwritten(void) {
  char dir[PATH_BYTES], path[PATH_BYTES + 8], *text = NULL;
  size_t n = 0;
  struct stat sb;
  tde_status st;
  fresh_dir(dir, "files");
  snprintf(path, sizeof path, "%s/a", dir);
  mode_t old = umask(0277); /* a host's odd umask does not matter */
  CHECK(tde_file_create(dir, "a", "one", 3, &st) == TDE_OK);
  umask(old);
  CHECK(stat(path, &sb) == 0 && (sb.st_mode & 07777) == 0600 && sb.st_nlink == 1);
  CHECK(tde_file_create(dir, "a", "two", 3, &st) == TDE_BUSY);
  CHECK(tde_file_read(path, TDE_FILE_SECRET, 100, &text, &n, NULL, &st) == TDE_OK);
  CHECK(n == 3 && strcmp(text, "one") == 0);
  tde_secret_free(text);
  CHECK(tde_file_read(path, TDE_FILE_SECRET, 2, &text, &n, NULL, &st) == TDE_MISCONFIGURED);
  CHECK(text == NULL && count_files(dir, ".new-") == 0);
  CHECK(tde_file_create("/nonexistent/x", "a", "one", 3, &st) == TDE_MISSING);
  CHECK(tde_file_create("/proc", "a", "one", 3, &st) != TDE_OK);
  CHECK(tde_dir_make(dir, &st) == TDE_OK && tde_dir_make("/nonexistent/x", &st) == TDE_MISSING);
}

static void a_full_disk(void) {
  static const int errors[] = {ENOSPC, EDQUOT, EIO};
  char dir[PATH_BYTES];
  tde_status st;
  fresh_dir(dir, "full");
  for (size_t i = 0; i < COUNT(errors); i++) {
    files_fail = errors[i];
    CHECK(tde_file_create(dir, "a", "one", 3, &st) == TDE_IO && count_files(dir, ".new-") == 0);
    files_fail = 0;
    CHECK((strstr(st.remedy, "make room on the disk") != NULL) == (errors[i] != EIO));
  }
}

/* The entry of a file is not durable: a new one is taken back, of a change the truth is told. */
static void folders_that_can_not_be_synced(void) {
  char dir[PATH_BYTES], path[PATH_BYTES + 8], *text = NULL;
  size_t n = 0;
  tde_status st;
  a_full_disk();
  fresh_dir(dir, "unsynced");
  snprintf(path, sizeof path, "%s/a", dir);
  folders_fail = 1;
  CHECK(tde_file_create(dir, "a", "one", 3, &st) == TDE_IO && strstr(st.message, "cannot sync") != NULL);
  CHECK(access(path, F_OK) != 0 && count_files(dir, ".new-") == 0);
  folders_fail = 0;
  REQUIRE(tde_file_create(dir, "a", "one", 3, &st) == TDE_OK);
  folders_fail = 1;
  CHECK(tde_file_replace(dir, "a", "two", 3, &st) == TDE_IO && strstr(st.message, "was written") != NULL &&
        strstr(st.remedy, "the change holds") != NULL);
  CHECK(tde_dir_make(dir, &st) == TDE_IO); /* it may never have been synced */
  folders_fail = 0;
  REQUIRE(tde_file_read(path, TDE_FILE_SECRET, 100, &text, &n, NULL, &st) == TDE_OK);
  CHECK(n == 3 && strcmp(text, "two") == 0);
  tde_secret_free(text);
}

/* A umask that takes rights from the owner: of a daemon, say, that is to make no programs. */
static void folders_under_an_odd_umask(void) {
  static const mode_t masks[] = {0177, 0777};
  char dir[PATH_BYTES], path[PATH_BYTES + 16];
  const tde_instance *inst = NULL;
  struct stat sb;
  tde_status st;
  fresh_dir(dir, "masked");
  for (size_t i = 0; i < COUNT(masks); i++) {
    snprintf(path, sizeof path, "%s/%zu", dir, i);
    mode_t old = umask(masks[i]);
    CHECK(tde_dir_make(path, &st) == TDE_OK);
    umask(old);
    CHECK(stat(path, &sb) == 0 && (sb.st_mode & 07777) == 0700);
  }
  snprintf(path, sizeof path, "%s/inst", dir);
  mode_t old = umask(0377);
  CHECK(tde_instance_open(path, 1, &inst, &st) == TDE_OK);
  umask(old);
  CHECK(stat(path, &sb) == 0 && (sb.st_mode & 07777) == 0700);
  /* Nor would a lock be of use that its maker cannot open again. */
  snprintf(path, sizeof path, "%s/inst/.lock", dir);
  CHECK(stat(path, &sb) == 0 && (sb.st_mode & 07777) == 0600);
}

/* What root makes in another's folder is that one's, unless an older folder, of root's perhaps, has
** got its name. Times may be as coarse as two seconds. */
static void folders_for_their_parent(void) {
  static const struct {
    int before, given;
  } cases[] = {{0, 1}, {1, 1}, {5, 1}, {6, 0}, {86400, 0}};
  char dir[PATH_BYTES], path[PATH_BYTES + 16];
  struct stat sb;
  tde_status st;
  if (geteuid() != 0) SKIP("not root");
  fresh_dir(dir, "theirs");
  REQUIRE(chown(dir, NOBODY, NOBODY) == 0);
  for (size_t i = 0; i < COUNT(cases); i++) {
    snprintf(path, sizeof path, "%s/%zu", dir, i);
    made_before = cases[i].before;
    tde_class rc = tde_dir_make(path, &st);
    made_before = -1;
    int good = stat(path, &sb) == 0 && sb.st_uid == (cases[i].given ? NOBODY : 0) &&
               rc == (cases[i].given ? TDE_OK : TDE_IO) &&
               (cases[i].given || strstr(st.message, "replaced meanwhile") != NULL);
    if (!CHECK(good)) printf("  %d\n", cases[i].before);
  }
}

/* ---- instance ---- */

static void instance_first_use(void) {
  char dir[PATH_BYTES], path[PATH_BYTES + 32];
  const char *id;
  const tde_instance *inst = NULL, *again = NULL;
  struct stat sb;
  tde_status st;
  snprintf(dir, sizeof dir, "%s/first", root_dir);
  CHECK(tde_instance_open(dir, 0, &inst, &st) == TDE_MISSING && inst == NULL);
  CHECK(strstr(st.message, dir) != NULL && strstr(st.remedy, "TDE_INSTANCE") != NULL);
  CHECK(access(dir, F_OK) != 0);
  REQUIRE(tde_instance_open(dir, 1, &inst, &st) == TDE_OK);
  CHECK(strcmp(tde_instance_dir(inst), dir) == 0 && tde_instance_is_service_managed(inst));
  id = tde_instance_protector(inst);
  CHECK(strcmp(id, tde_instance_smk(inst)) == 0);
  CHECK(strncmp(id, "local:smk/", 10) == 0 && strlen(id) == 50);
  CHECK(stat(dir, &sb) == 0 && (sb.st_mode & 07777) == 0700);
  snprintf(path, sizeof path, "%s/keys", dir);
  CHECK(stat(path, &sb) == 0 && (sb.st_mode & 07777) == 0700);
  CHECK(count_files(path, "smk-") == 1 && count_files(path, ".new-") == 0);
  snprintf(path, sizeof path, "%s/instance.json", dir);
  CHECK(stat(path, &sb) == 0 && (sb.st_mode & 07777) == 0600);
  smk_file(inst, path);
  CHECK(stat(path, &sb) == 0 && (sb.st_mode & 07777) == 0600);
  CHECK(tde_instance_open(dir, 0, &again, &st) == TDE_OK && again == inst);
  snprintf(path, sizeof path, "%s/./first//", root_dir);
  CHECK(tde_instance_open(path, 0, &again, &st) == TDE_OK && again == inst);
  snprintf(path, sizeof path, "%s/nowhere/deeper", root_dir);
  CHECK(tde_instance_open(path, 1, &again, &st) == TDE_MISSING && again == NULL);
  CHECK(st.remedy[0] != 0);
}

/* A daemon goes to another directory: there would be a second instance, with other keys. */
static void a_relative_variable(void) {
  const tde_instance *first = NULL, *inst = NULL;
  char dir[PATH_BYTES], cwd[PATH_BYTES], want[PATH_BYTES + 16];
  tde_status st;
  fresh_dir(dir, "goes");
  REQUIRE(getcwd(cwd, sizeof cwd) != NULL && chdir(dir) == 0);
  setenv("TDE_INSTANCE", "./keys-of-all", 1);
  CHECK(tde_instance_open(NULL, 1, &first, &st) == TDE_OK);
  CHECK(chdir("/") == 0 && tde_instance_open(NULL, 0, &inst, &st) == TDE_OK && inst == first);
  CHECK(tde_instance_open("keys-of-all", 0, &inst, &st) == TDE_MISSING); /* an argument means now */
  setenv("TDE_INSTANCE", "keys-of-all", 1); /* another text, too */
  CHECK(tde_instance_open(NULL, 0, &inst, &st) == TDE_MISSING);
  CHECK(strstr(st.message, " /keys-of-all") != NULL);
  setenv("TDE_INSTANCE", "./keys-of-all", 1);
  CHECK(tde_instance_open(NULL, 0, &inst, &st) == TDE_OK && inst == first);
  snprintf(want, sizeof want, "%s/keys-of-all", dir);
  CHECK(strcmp(tde_instance_dir(first), want) == 0);
  setenv("TDE_INSTANCE", want, 1);
  CHECK(tde_instance_open(NULL, 0, &inst, &st) == TDE_OK && inst == first);
  unsetenv("TDE_INSTANCE");
  CHECK(chdir(cwd) == 0);
}

static void instance_where(void) {
  const tde_instance *shared = shared_instance(), *inst = NULL;
  char home[PATH_BYTES], cwd[PATH_BYTES], want[PATH_BYTES + 64];
  tde_status st;
  a_relative_variable();
  fresh_dir(home, "home");
  REQUIRE(getcwd(cwd, sizeof cwd) != NULL);
  setenv("TDE_INSTANCE", tde_instance_dir(shared), 1);
  CHECK(tde_instance_open(NULL, 0, &inst, &st) == TDE_OK && inst == shared);
  CHECK(tde_instance_open("", 0, &inst, &st) == TDE_OK && inst == shared);
  CHECK(tde_instance_open(home, 0, &inst, &st) == TDE_MISSING); /* the argument goes first */
  CHECK(chdir(root_dir) == 0 && tde_instance_open("shared", 0, &inst, &st) == TDE_OK);
  CHECK(inst == shared && chdir(cwd) == 0);
  unsetenv("TDE_INSTANCE");
  unsetenv("XDG_DATA_HOME");
  unsetenv("HOME");
  CHECK(tde_instance_open(NULL, 1, &inst, &st) == TDE_MISCONFIGURED);
  CHECK(strstr(st.message, "HOME") != NULL && strstr(st.remedy, "tde_instance") != NULL);
  CHECK(strstr(st.remedy, "TDE_INSTANCE") != NULL);
  setenv("HOME", "relative", 1);
  CHECK(tde_instance_open(NULL, 1, &inst, &st) == TDE_MISCONFIGURED);
  setenv("HOME", home, 1);
  setenv("XDG_DATA_HOME", "relative", 1); /* ignored, as its specification says */
  snprintf(want, sizeof want, "%s/.local/share/sqlite-tde", home);
  CHECK(tde_instance_open(NULL, 0, &inst, &st) == TDE_MISSING && strstr(st.message, want) != NULL);
  REQUIRE(tde_instance_open(NULL, 1, &inst, &st) == TDE_OK);
  CHECK(strcmp(tde_instance_dir(inst), want) == 0);
  snprintf(want, sizeof want, "%s/data", root_dir);
  setenv("XDG_DATA_HOME", want, 1);
  CHECK(tde_instance_open(NULL, 0, &inst, &st) == TDE_MISSING && strstr(st.message, want) != NULL);
  char long_path[TDE_PATH_MAX + 10];
  memset(long_path, 'a', sizeof long_path);
  long_path[sizeof long_path - 1] = 0;
  CHECK(tde_instance_open(long_path, 1, &inst, &st) == TDE_MISCONFIGURED);
}

#define V40 "0123456789012345678901234567890123456789"
#define SMK_OK "\"service_managed_key\":{\"name\":\"smk\",\"version\":\"" V40 "\",\"created\":1}"

static void instance_bad_files(void) {
  static const struct {
    const char *text, *field;
  } bad[] = {
      {"", "bytes long"},
      {"nonsense", "JSON"},
      {"[]", "object"},
      {"{}", "\"version\""},
      {"{\"version\":\"1\"}", "\"version\""},
      {"{\"version\":0}", "\"version\""},
      {"{\"version\":2}", "\"version\""},
      {"{\"version\":1}", "default_protector"},
      {"{\"version\":1,\"version\":1}", "JSON"},
      {"{\"version\":1,\"default_protector\":7," SMK_OK "}", "default_protector"},
      {"{\"version\":1,\"default_protector\":\"nobody:x\"," SMK_OK "}", "default_protector"},
      {"{\"version\":1,\"default_protector\":\"local:../x\"," SMK_OK "}", "default_protector"},
      {"{\"version\":1,\"default_protector\":\"service-managed\"}", "service_managed_key"},
      {"{\"version\":1,\"default_protector\":\"service-managed\",\"service_managed_key\":[]}",
       "service_managed_key"},
      {"{\"version\":1,\"default_protector\":\"service-managed\",\"service_managed_key\":{}}", "name"},
      {"{\"version\":1,\"default_protector\":\"service-managed\",\"service_managed_key\":"
       "{\"name\":\"smk\"}}",
       "service_managed_key.version"},
      {"{\"version\":1,\"default_protector\":\"service-managed\",\"service_managed_key\":"
       "{\"name\":\"smk\",\"version\":\"" V40 "\"}}",
       "created"},
      {"{\"version\":1,\"default_protector\":\"service-managed\",\"service_managed_key\":"
       "{\"name\":\"../x\",\"version\":\"" V40 "\",\"created\":1}}",
       "service_managed_key"},
      {"{\"version\":1,\"default_protector\":\"service-managed\",\"service_managed_key\":"
       "{\"name\":\"smk\",\"version\":\"12\",\"created\":1}}",
       "service_managed_key"},
  };
  char dir[PATH_BYTES], path[PATH_BYTES + 32];
  const tde_instance *inst = NULL;
  tde_status st;
  fresh_dir(dir, "badinst");
  snprintf(path, sizeof path, "%s/instance.json", dir);
  for (size_t i = 0; i < COUNT(bad); i++) {
    CHECK(put_file(path, bad[i].text, 0600) == 0);
    /* create makes no difference: a wrong file is never replaced. */
    int ok = CHECK(tde_instance_open(dir, 1, &inst, &st) == TDE_MISCONFIGURED && inst == NULL);
    ok &= CHECK(strstr(st.message, path) != NULL && strstr(st.message, bad[i].field) != NULL);
    if (!CHECK(st.remedy[0] != 0) || !ok) printf("  case %zu: %s; %s\n", i, st.message, st.remedy);
  }
  char keys[PATH_BYTES + 8];
  snprintf(keys, sizeof keys, "%s/keys", dir);
  CHECK(access(keys, F_OK) != 0);
}

static void instance_permissions(void) {
  const char *good = "{\"version\":1,\"default_protector\":\"service-managed\"," SMK_OK "}";
  char dir[PATH_BYTES], path[PATH_BYTES + 32], file[PATH_BYTES];
  const tde_instance *inst = NULL;
  tde_status st;
  fresh_dir(dir, "perms");
  snprintf(path, sizeof path, "%s/instance.json", dir);
  CHECK(put_file(path, good, 0644) == 0 && tde_instance_open(dir, 0, &inst, &st) == TDE_OK);
  static const mode_t modes[] = {0620, 0602, 0666};
  for (size_t i = 0; i < COUNT(modes); i++) {
    CHECK(chmod(path, modes[i]) == 0);
    CHECK(tde_instance_open(dir, 0, &inst, &st) == TDE_MISCONFIGURED);
    CHECK(strstr(st.message, path) != NULL && strstr(st.remedy, "chmod") != NULL);
  }
  CHECK(chmod(path, 0600) == 0 && chmod(dir, 0770) == 0);
  CHECK(tde_instance_open(dir, 0, &inst, &st) == TDE_MISCONFIGURED && chmod(dir, 0700) == 0);
  CHECK(tde_instance_open(dir, 0, &inst, &st) == TDE_OK);
  CHECK(truncate(path, TDE_INSTANCE_TEXT_MAX + 1) == 0);
  CHECK(tde_instance_open(dir, 0, &inst, &st) == TDE_MISCONFIGURED);
  CHECK(unlink(path) == 0 && mkdir(path, 0700) == 0);
  CHECK(tde_instance_open(dir, 1, &inst, &st) == TDE_MISCONFIGURED && rmdir(path) == 0);
  snprintf(file, sizeof file, "%s/plainfile", root_dir);
  CHECK(put_file(file, "x", 0600) == 0);
  CHECK(tde_instance_open(file, 1, &inst, &st) == TDE_MISCONFIGURED);
  CHECK(strstr(st.message, "not a directory") != NULL);
}

static void instance_changes(void) {
  char dir[PATH_BYTES], path[PATH_BYTES + 32];
  const tde_instance *one = NULL, *two = NULL, *three = NULL;
  fresh_dir(dir, "changes");
  snprintf(path, sizeof path, "%s/instance.json", dir);
  const char *a = "{\"version\":1,\"default_protector\":\"service-managed\"," SMK_OK ",\"later\":[1]}";
  const char *b = "{\"version\":1,\"default_protector\":\"local:mine\"}";
  CHECK(put_file(path, a, 0600) == 0 && tde_instance_open(dir, 0, &one, NULL) == TDE_OK);
  CHECK(put_file(path, b, 0600) == 0 && tde_instance_open(dir, 0, &two, NULL) == TDE_OK);
  REQUIRE(one != NULL && two != NULL && one != two);
  CHECK(strcmp(tde_instance_protector(two), "local:mine") == 0);
  CHECK(!tde_instance_is_service_managed(two) && tde_instance_smk(two)[0] == 0);
  /* The old state is as it was. */
  CHECK(strcmp(tde_instance_protector(one), "local:smk/" V40) == 0);
  /* Content seen before is the state of before: going to and fro costs nothing. */
  for (int i = 0; i < 3; i++) {
    CHECK(put_file(path, a, 0600) == 0 && tde_instance_open(dir, 0, &three, NULL) == TDE_OK);
    CHECK(three == one);
    CHECK(tde_instance_open(dir, 0, &three, NULL) == TDE_OK && three == one);
    CHECK(put_file(path, b, 0600) == 0 && tde_instance_open(dir, 0, &three, NULL) == TDE_OK);
    CHECK(three == two);
  }
  CHECK(unlink(path) == 0 && tde_instance_open(dir, 0, &three, NULL) == TDE_MISSING);
}

/* Where times of change are coarse (here: by the kernel's tick) each of two changes in place that
** follow one another at once is noticed, though nothing but the content differs. */
static void instance_changes_at_once(void) {
  char dir[PATH_BYTES], path[PATH_BYTES + 32], text[200];
  fresh_dir(dir, "at-once");
  snprintf(path, sizeof path, "%s/instance.json", dir);
  pid_t pid = fork_child();
  if (pid == 0) {
    const tde_instance *inst = NULL;
    /* Where mounts are not to be had it is one of a fine clock, as likely as not. */
    if (unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
        mount("none", dir, "ramfs", 0, NULL) == 0) {
      CHILD_REQUIRE(chmod(dir, 0700) == 0);
    }
    for (int i = 0; i < 100; i++) {
      snprintf(text, sizeof text, "{\"version\":1,\"default_protector\":\"local:k%03d\"}", i);
      CHILD_REQUIRE(put_file(path, text, 0600) == 0 && tde_instance_open(dir, 0, &inst, NULL) == TDE_OK);
      CHILD_REQUIRE(strncmp(strchr(text, 'k'), tde_instance_protector(inst) + 6, 4) == 0);
    }
    /* Once that is some time ago the file is not read any more. */
    usleep(2100000);
    CHILD_REQUIRE(tde_instance_open(dir, 0, &inst, NULL) == TDE_OK && no_descriptors());
    CHILD_REQUIRE(tde_instance_open(dir, 0, &inst, NULL) == TDE_OK);
    _exit(0);
  }
  CHECK(child_ok(pid));
}

/* n processes at once. With lock_broken, the lock file cannot be had: then the
** link alone decides, and each makes a key pair. */
static void race(const char *name, int n, int lock_broken) {
  enum { N = 8 };
  char dir[PATH_BYTES], path[PATH_BYTES + 16], ids[N][64];
  int gate[2], out[2];
  pid_t pids[N];
  tde_status st;
  fresh_dir(dir, name);
  snprintf(path, sizeof path, "%s/.lock", dir);
  if (lock_broken) CHECK(mkdir(path, 0700) == 0);
  REQUIRE(pipe(gate) == 0 && pipe(out) == 0);
  for (int i = 0; i < n; i++) {
    pids[i] = fork_child();
    if (pids[i] != 0) continue;
    const tde_instance *inst = NULL;
    char c, line[64] = "";
    close(gate[1]);
    CHILD_REQUIRE(read(gate[0], &c, 1) == 0); /* all start together */
    CHILD_REQUIRE(tde_instance_open(dir, 1, &inst, &st) == TDE_OK);
    CHILD_REQUIRE(get_smk(inst, &st) == TDE_OK);
    snprintf(line, sizeof line, "%.63s", tde_instance_protector(inst));
    CHILD_REQUIRE(write(out[1], line, sizeof line) == sizeof line);
    _exit(0);
  }
  close(gate[0]);
  close(gate[1]);
  for (int i = 0; i < n; i++) CHECK(child_ok(pids[i]));
  close(out[1]);
  for (int i = 0; i < n; i++) {
    CHECK(read(out[0], ids[i], sizeof ids[i]) == sizeof ids[i] && strcmp(ids[i], ids[0]) == 0);
  }
  close(out[0]);
  snprintf(path, sizeof path, "%s/keys", dir);
  if (!lock_broken) CHECK(count_files(path, "smk-") == 1);
  CHECK(count_files(path, ".new-") == 0 && count_files(dir, ".new-") == 0);
}

static void instance_race(void) {
  race("race", 8, 0);
}

static void instance_race_unlocked(void) {
  race("race2", 4, 1);
}

static void instance_interrupted(void) {
  char dir[PATH_BYTES], keys[PATH_BYTES + 8], path[PATH_BYTES + 80];
  const tde_instance *inst = NULL;
  tde_key_info made;
  tde_status st;
  /* A key without an instance file is used. */
  fresh_dir(dir, "crash1");
  REQUIRE(tde_local_create(dir, "smk", &made, &st) == TDE_OK);
  snprintf(path, sizeof path, "%s/keys/.new-0011223344556677", dir);
  CHECK(put_file(path, "half a key", 0600) == 0);
  CHECK(tde_instance_open(dir, 1, &inst, &st) == TDE_OK);
  CHECK(inst != NULL && strcmp(smk_version(inst), made.version) == 0);
  /* A damaged one is superseded, and stays where it is. */
  fresh_dir(dir, "crash2");
  snprintf(keys, sizeof keys, "%s/keys", dir);
  CHECK(mkdir(keys, 0700) == 0);
  snprintf(path, sizeof path, "%s/smk-" V40 ".pem", keys);
  CHECK(put_file(path, "garbage", 0600) == 0);
  CHECK(tde_instance_open(dir, 1, &inst, &st) == TDE_OK && get_smk(inst, &st) == TDE_OK);
  CHECK(access(path, F_OK) == 0 && count_files(keys, "smk-") == 2);
  /* One that others can read is an error: a person must decide. */
  fresh_dir(dir, "crash3");
  snprintf(keys, sizeof keys, "%s/keys", dir);
  CHECK(mkdir(keys, 0700) == 0);
  snprintf(path, sizeof path, "%s/smk-" VECTOR_VERSION ".pem", keys);
  CHECK(put_file(path, vector_pem, 0644) == 0);
  CHECK(tde_instance_open(dir, 1, &inst, &st) == TDE_MISCONFIGURED);
  CHECK(strstr(st.message, path) != NULL);
}

static void instance_killed(void) {
  char dir[PATH_BYTES], name[32];
  const tde_instance *inst = NULL;
  tde_status st;
  for (int i = 0; i < 4; i++) {
    struct timespec nap = {0, (long)i * 130000000L};
    snprintf(name, sizeof name, "kill%d", i);
    fresh_dir(dir, name);
    pid_t pid = fork_child();
    if (pid == 0) {
      tde_instance_open(dir, 1, &inst, NULL);
      _exit(0);
    }
    nanosleep(&nap, NULL);
    kill(pid, SIGKILL);
    child_ok(pid);
    CHECK(tde_instance_open(dir, 1, &inst, &st) == TDE_OK && get_smk(inst, &st) == TDE_OK);
  }
}

/* As an ordinary user: what root would be let through. */
static void as_ordinary_user(void) {
  char dir[PATH_BYTES], ro[PATH_BYTES + 8], made[PATH_BYTES + 16], path[PATH_BYTES + 128];
  int root = geteuid() == 0;
  fresh_dir(dir, "user");
  CHECK(chmod(root_dir, 0711) == 0);
  if (root) CHECK(chown(dir, NOBODY, NOBODY) == 0);
  snprintf(ro, sizeof ro, "%s/ro", dir);
  snprintf(made, sizeof made, "%s/made", dir);
  pid_t pid = fork_child();
  if (pid == 0) {
    const tde_instance *inst = NULL;
    tde_status st;
    if (root) CHILD_REQUIRE(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
    CHILD_REQUIRE(mkdir(ro, 0500) == 0);
    CHILD_REQUIRE(tde_instance_open(ro, 1, &inst, &st) == TDE_DENIED && inst == NULL);
    CHILD_REQUIRE(strstr(st.message, ro) != NULL && st.remedy[0] != 0);
    snprintf(path, sizeof path, "%s/below", ro);
    CHILD_REQUIRE(tde_instance_open(path, 1, &inst, &st) == TDE_DENIED);
    CHILD_REQUIRE(tde_instance_open(made, 1, &inst, &st) == TDE_OK && get_smk(inst, &st) == TDE_OK);
    smk_file(inst, path);
    CHILD_REQUIRE(chmod(path, 0) == 0 && get_smk(inst, &st) == TDE_DENIED);
    CHILD_REQUIRE(chmod(path, 0600) == 0 && get_smk(inst, &st) == TDE_OK);
    snprintf(path, sizeof path, "%s/instance.json", made);
    CHILD_REQUIRE(chmod(path, 0) == 0 && tde_instance_open(made, 1, &inst, &st) == TDE_DENIED);
    CHILD_REQUIRE(chmod(path, 0600) == 0 && tde_instance_open(made, 1, &inst, &st) == TDE_OK);
    /* An instance that may be read and not written works. */
    CHILD_REQUIRE(chmod(made, 0500) == 0 && tde_instance_open(made, 1, &inst, &st) == TDE_OK);
    /* To change it is denied, whether it has its lock file or came without. Nobody else is blamed. */
    CHILD_REQUIRE(tde_instance_set_policy(made, "check_interval_s", 5, &st) == TDE_DENIED);
    snprintf(path, sizeof path, "%s/.lock", made);
    CHILD_REQUIRE(chmod(made, 0700) == 0 && unlink(path) == 0 && chmod(made, 0500) == 0);
    CHILD_REQUIRE(tde_instance_set_policy(made, "check_interval_s", 5, &st) == TDE_DENIED);
    CHILD_REQUIRE(strstr(st.message, "Permission denied") != NULL && strstr(st.message, "another process") == NULL);
    _exit(0);
  }
  CHECK(child_ok(pid));
}

static void owned_by_another(void) {
  char dir[PATH_BYTES], path[PATH_BYTES + 128];
  const tde_instance *inst = NULL;
  tde_status st;
  if (geteuid() != 0) SKIP("needs root to give a file to another user");
  fresh_dir(dir, "owner");
  CHECK(chmod(root_dir, 0711) == 0);
  REQUIRE(tde_instance_open(dir, 1, &inst, &st) == TDE_OK);
  CHECK(chown(dir, NOBODY, NOBODY) == 0);
  snprintf(path, sizeof path, "%s/keys", dir);
  CHECK(chown(path, NOBODY, NOBODY) == 0);
  CHECK(get_smk(inst, &st) == TDE_OK); /* root reads anybody's, and caches it */
  for (int step = 0; step < 2; step++) {
    pid_t pid = fork_child();
    if (pid == 0) {
      CHILD_REQUIRE(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
      /* Step 0: the key is root's. Its being cached does not help. */
      tde_class rc = get_smk(inst, &st);
      CHILD_REQUIRE(rc == (step == 0 ? TDE_DENIED : TDE_OK));
      _exit(0);
    }
    CHECK(child_ok(pid));
    smk_file(inst, path);
    CHECK(chown(path, NOBODY, NOBODY) == 0);
  }
  /* The check of its own, apart from what the kernel lets through. */
  struct stat sb;
  smk_file(inst, path);
  CHECK(stat(path, &sb) == 0);
  sb.st_uid = 12345;
  pid_t pid = fork_child();
  if (pid == 0) {
    CHILD_REQUIRE(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
    CHILD_REQUIRE(tde_file_check(&sb, TDE_FILE_SECRET, path, &st) == TDE_MISCONFIGURED);
    CHILD_REQUIRE(strstr(st.remedy, "chown") != NULL);
    CHILD_REQUIRE(tde_file_check(&sb, TDE_FILE_TRUSTED, path, &st) == TDE_MISCONFIGURED);
    sb.st_uid = 0;
    CHILD_REQUIRE(tde_file_check(&sb, TDE_FILE_SECRET, path, &st) == TDE_MISCONFIGURED);
    CHILD_REQUIRE(tde_file_check(&sb, TDE_FILE_TRUSTED, path, &st) == TDE_OK);
    _exit(0);
  }
  CHECK(child_ok(pid));
}

/* A host that takes the time which is left, and says nothing. */
static int asked_hosts;
static tde_class silent_send(const tde_op *op, const tde_request *req, tde_reply *reply,
                             tde_status *st) {
  int64_t now = tde_boot_ms(), end = now + 200;
  (void)reply;
  asked_hosts++;
  if (op->deadline < end) end = op->deadline;
  if (end > now) usleep((useconds_t)(end - now) * 1000);
  return tde_fail(st, TDE_UNREACHABLE, NULL, "%.60s does not answer", req->url);
}

/* Sixteen wraps under keys of hosts that do not answer hold an opening as long as one does. */
static void wraps_of_hosts_that_do_not_answer(void) {
  static const char wrap[] =
      "%s{\"key_id\":\"https://v%d.vault.azure.net/keys/k\",\"version\":\"a\",\"type\":\"RSA-2048\","
      "\"algorithm\":\"RSA-OAEP-256\",\"thumbprint\":\"%064d\",\"wrapped\":\"AAEC\",\"created\":5}";
  static const char config[] =
      "{\"version\":1,\"default_protector\":\"https://v.vault.azure.net/keys/k\","
      "\"http\":{\"timeout_ms\":200},\"identities\":{\"default\":{\"kind\":\"managed_identity\"}}}";
  static const char begins[] =
      "{\"version\":1,\"mode\":\"database\",\"epoch\":1,\"deks\":[{\"epoch\":1,\"created\":1,\"wraps\":[";
  char dir[PATH_BYTES], path[PATH_BYTES + 32], text[8192];
  const tde_instance *inst = NULL;
  tde_keydoc *doc = NULL;
  tde_status st;
  fresh_dir(dir, "silent");
  snprintf(path, sizeof path, "%s/instance.json", dir);
  CHECK(put_file(path, config, 0600) == 0);
  REQUIRE(tde_instance_open(dir, 0, &inst, &st) == TDE_OK);
  size_t n = (size_t)snprintf(text, sizeof text, "%s", begins);
  for (int i = 0; i < TDE_KEYDOC_WRAPS_MAX; i++) {
    n += (size_t)snprintf(text + n, sizeof text - n, wrap, i > 0 ? "," : "", i, i);
  }
  n += (size_t)snprintf(text + n, sizeof text - n, "]}],\"keys\":[],\"identity\":null}");
  REQUIRE(n < sizeof text && tde_keydoc_parse(text, n, &doc, &st) == TDE_OK);
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  int64_t begun = tde_boot_ms();
  tde_http_sender = silent_send;
  CHECK(unwrap_plainly(doc, inst, 1, uuid, dek, &st) == TDE_UNREACHABLE);
  tde_http_sender = NULL;
  CHECK(tde_boot_ms() - begun < 1000 && asked_hosts >= 2);
  tde_secret_free(dek);
  tde_keydoc_free(doc);
}

static int given(const char *path) {
  char *text = NULL;
  size_t n = 0;
  tde_status st;
  tde_class rc = tde_file_read(path, TDE_FILE_GIVEN, 100, &text, &n, NULL, &st);
  tde_secret_free(text);
  return rc == TDE_OK;
}

/* Secrets as a platform puts them: links, files of root's, modes that nobody can change. */
static void secrets_that_a_platform_gives(void) {
  char dir[PATH_BYTES], file[PATH_BYTES + 16], link[PATH_BYTES + 16];
  fresh_dir(dir, "given");
  CHECK(chmod(root_dir, 0711) == 0 && chmod(dir, 0755) == 0);
  snprintf(file, sizeof file, "%s/secret", dir);
  snprintf(link, sizeof link, "%s/link", dir);
  CHECK(put_file(file, "x", 0600) == 0 && symlink("secret", link) == 0);
  CHECK(given(file) && given(link));
  CHECK(chmod(file, 0640) == 0 && !given(file) && !given(link)); /* our own to close */
  if (geteuid() != 0) SKIP("needs root to give a file to another user");
  pid_t pid = fork_child();
  if (pid == 0) {
    CHILD_REQUIRE(chmod(file, 0444) == 0 && chown(file, 0, 0) == 0);
    CHILD_REQUIRE(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
    CHILD_REQUIRE(given(file) && given(link));
    _exit(0);
  }
  CHECK(child_ok(pid));
  for (mode_t open_to = 020; open_to > 0; open_to = open_to == 020 ? 002 : 0) {
    pid = fork_child();
    if (pid == 0) {
      CHILD_REQUIRE(chmod(file, 0444 | open_to) == 0);
      CHILD_REQUIRE(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
      CHILD_REQUIRE(!given(file) && !given(link));
      _exit(0);
    }
    CHECK(child_ok(pid));
  }
  CHECK(chmod(file, 0444) == 0 && !given(file));
  pid = fork_child();
  if (pid == 0) {
    /* Where mounts are not to be had there is nothing to be seen. */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount(dir, dir, NULL, MS_BIND, NULL) != 0 ||
        mount(NULL, dir, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) != 0) {
      _exit(0);
    }
    CHILD_REQUIRE(given(file) && given(link));
    _exit(0);
  }
  CHECK(child_ok(pid));
}

/* ---- key document ---- */

#define T64 V40 "012345678901234567890123"
#define WRAP "{\"key_id\":\"local:smk\",\"version\":\"" V40 "\",\"type\":\"RSA-3072\"," \
             "\"algorithm\":\"RSA-OAEP-256\",\"thumbprint\":\"" T64 "\",\"wrapped\":\"AAEC\"," \
             "\"created\":5}"
static const char template_doc[] =
    "{\"version\":1,\"mode\":\"inherit\",\"epoch\":2,\"deks\":[{\"epoch\":2,\"created\":4,\"wraps\":"
    "[" WRAP "]},{\"epoch\":1,\"created\":3,\"wraps\":[" WRAP "],\"x\":1}],\"keys\":[{\"key_id\":"
    "\"local:smk\",\"version\":\"" V40 "\",\"type\":\"RSA-3072\",\"thumbprint\":\"" T64 "\","
    "\"created\":5,\"added\":6,\"first_used\":7,\"last_used\":8}],\"identity\":{\"name\":\"\xc3\xa4\","
    "\"federated_client_id\":null},\"auto_rotation\":{\"enabled\":false,\"y\":2},\"events\":[{"
    "\"time\":9,\"event\":\"create\",\"key_id\":\"\",\"outcome\":\"ok\"}],\"later\":{\"z\":[3]}}";

/* template_doc with the nth occurrence of a text replaced; malloc'd. */
static char *edited(const char *find, int nth, const char *put) {
  const char *at = template_doc;
  for (int i = 0; (at = strstr(at, find)) != NULL && i < nth; i++) at++;
  if (at == NULL) return NULL;
  size_t head = (size_t)(at - template_doc), size = sizeof template_doc + strlen(put);
  char *out = malloc(size);
  snprintf(out, size, "%.*s%s%s", (int)head, template_doc, put, at + strlen(find));
  return out;
}

static const char long256[] =
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/* Edits of the document, each with the field that the message has to name. */
static const struct {
  const char *find;
  int nth;
  const char *put, *field;
} malformed[] = {
    {"\"version\":1", 0, "\"version\":\"1\"", "version"},
    {"\"version\":1", 0, "\"version\":-1", "version"},
    {"\"version\":1,", 0, "", "version"},
    {"inherit", 0, "other", "mode"},
    {"\"inherit\"", 0, "null", "mode"},
    {"\"epoch\":2", 0, "\"epoch\":3", "epoch"},
    {"\"epoch\":2", 0, "\"epoch\":-2", "epoch"},
    {"\"epoch\":2", 0, "\"epoch\":2.0", "epoch"},
    {"\"epoch\":1", 0, "\"epoch\":2", "deks[1].epoch is there twice"},
    {"\"epoch\":1", 0, "\"epoch\":0", "deks[1].epoch"},
    {"\"epoch\":1", 0, "\"epoch\":4294967296", "deks[1].epoch"},
    {"\"epoch\":1", 0, "\"epoch\":null", "deks[1].epoch"},
    {"\"deks\":[", 0, "\"deks\":[7,", "deks[0]"},
    {"\"deks\":", 0, "\"deks\":{},\"deks2\":", "deks"},
    {"\"deks\":", 0, "\"deks\":[],\"deks2\":", "deks"},
    {"\"created\":4", 0, "\"created\":-4", "deks[0].created"},
    {"\"created\":4,", 0, "", "deks[0].created"},
    {"\"wraps\":", 0, "\"wraps\":[],\"w\":", "deks[0].wraps"},
    {"\"wraps\":", 1, "\"wraps\":7,\"w\":", "deks[1].wraps"},
    {"\"wraps\":[", 1, "\"wraps\":[null,", "deks[1].wraps[0]"},
    {"\"local:smk\"", 0, "7", "deks[0].wraps[0].key_id"},
    {"\"local:smk\"", 1, "\"\"", "deks[1].wraps[0].key_id"},
    {"\"local:smk\"", 1, "\"a\\nb\"", "deks[1].wraps[0].key_id"},
    {"\"" V40 "\"", 0, "\"\"", "deks[0].wraps[0].version"},
    {"\"" V40 "\"", 0, long256, "JSON"},
    {"\"RSA-3072\"", 0, "\"12345678901234567890123456789012\"", "deks[0].wraps[0].type"},
    {"\"RSA-OAEP-256\"", 0, "null", "deks[0].wraps[0].algorithm"},
    {"\"RSA-OAEP-256\"", 0, "\"12345678901234567890123456789012\"", "algorithm"},
    {T64, 0, V40, "deks[0].wraps[0].thumbprint"},
    {T64, 0, V40 "01234567890123456789012g", "thumbprint"},
    {"\"AAEC\"", 0, "\"AAEC=\"", "deks[0].wraps[0].wrapped"},
    {"\"AAEC\"", 0, "\"AA+/\"", "wrapped"},
    {"\"AAEC\"", 0, "\"AAECA\"", "wrapped"},
    {"\"AAEC\"", 0, "\"\"", "wrapped"},
    {"\"AAEC\"", 0, "[]", "wrapped"},
    {"\"AAEC\"", 0, "\"AA EC\"", "wrapped"},
    {"\"keys\":[", 0, "\"keys\":[7,", "keys[0]"},
    {"\"keys\":", 0, "\"keys\":{},\"k\":", "keys"},
    {"\"added\":6", 0, "\"added\":\"6\"", "keys[0].added"},
    {"\"first_used\":7", 0, "\"first_used\":null", "keys[0].first_used"},
    {"\"last_used\":8", 0, "\"last_used\":-8", "keys[0].last_used"},
    {"\"identity\":", 0, "\"identity\":7,\"i\":", "identity"},
    {"\"name\":\"\xc3\xa4\"", 0, "\"name\":\"\"", "identity.name"},
    {"\"name\":\"\xc3\xa4\"", 0, "\"name\":null", "identity.name"},
    {"\"federated_client_id\":null", 0, "\"federated_client_id\":5", "federated_client_id"},
    {"\"enabled\":false", 0, "\"enabled\":0", "auto_rotation.enabled"},
    {"\"auto_rotation\":", 0, "\"auto_rotation\":[],\"a\":", "auto_rotation"},
    {"\"events\":[", 0, "\"events\":[[],", "events[0]"},
    {"\"events\":", 0, "\"events\":\"\",\"e\":", "events"},
    {"\"time\":9", 0, "\"time\":9e1", "events[0].time"},
    {"\"create\"", 0, "\"\"", "events[0].event"},
    {"\"outcome\":\"ok\"", 0, "\"outcome\":false", "events[0].outcome"},
    {"\"later\":", 0, "\"instance\":7,\"l\":", "instance"},
    {"\"later\":", 0, "\"instance\":{\"id\":\"a b\"},\"l\":", "instance.id"},
    {"\"later\":", 0, "\"instance\":{\"id\":\"a\",\"identity\":5},\"l\":", "instance.identity"},
    {"\"later\":", 0, "\"mode\":", "JSON"},
};

static void keydoc_malformed(void) {
  tde_status st;
  tde_keydoc *doc = NULL;
  for (size_t i = 0; i < COUNT(malformed); i++) {
    char *text = edited(malformed[i].find, malformed[i].nth, malformed[i].put);
    REQUIRE(text != NULL);
    tde_status_clear(&st);
    int ok = tde_keydoc_parse(text, strlen(text), &doc, &st) == TDE_CORRUPT && doc == NULL;
    if (!CHECK(ok && strstr(st.message, malformed[i].field) != NULL)) {
      printf("  case %zu (%s): %s\n", i, malformed[i].put, st.message);
    }
    tde_keydoc_free(doc);
    free(text);
  }
  char *newer = edited("\"version\":1", 0, "\"version\":2");
  CHECK(tde_keydoc_parse(newer, strlen(newer), &doc, &st) == TDE_NEWER_FORMAT);
  free(newer);
  CHECK(tde_keydoc_parse("[]", 2, &doc, &st) == TDE_CORRUPT);
  CHECK(tde_keydoc_parse("", 0, &doc, &st) == TDE_CORRUPT);
  tde_keydoc_free(NULL);
}

/* A document built from parts, for bounds that an edit does not reach. */
static tde_class built(int ndeks, int nwraps, size_t nwrapped, size_t nkey_id, tde_keydoc **doc,
                       tde_status *st) {
  static char text[200000];
  char wrapped[4096], key_id[1024];
  size_t n = 0;
  memset(wrapped, 'A', sizeof wrapped);
  wrapped[nwrapped] = 0;
  memset(key_id, 'k', sizeof key_id);
  key_id[nkey_id] = 0;
  n += (size_t)snprintf(text, sizeof text, "{\"version\":1,\"mode\":\"database\",\"epoch\":1,\"deks\":[");
  for (int d = 0; d < ndeks; d++) {
    n += (size_t)snprintf(text + n, sizeof text - n, "%s{\"epoch\":%d,\"created\":0,\"wraps\":[",
                          d ? "," : "", ndeks - d);
    for (int w = 0; w < nwraps; w++) {
      n += (size_t)snprintf(text + n, sizeof text - n,
                            "%s{\"key_id\":\"%s\",\"version\":\"v\",\"type\":\"t\",\"algorithm\":\"a\","
                            "\"thumbprint\":\"" T64 "\",\"wrapped\":\"%s\",\"created\":0}",
                            w ? "," : "", key_id, wrapped);
    }
    n += (size_t)snprintf(text + n, sizeof text - n, "]}");
  }
  n += (size_t)snprintf(text + n, sizeof text - n, "]}");
  *doc = NULL;
  tde_status_clear(st);
  return tde_keydoc_parse(text, n, doc, st);
}

static void keydoc_bounds(void) {
  tde_keydoc *doc = NULL;
  tde_status st;
  uint32_t epochs[TDE_EPOCHS_MAX];
  CHECK(built(16, 2, 512, 20, &doc, &st) == TDE_OK);
  CHECK(tde_keydoc_epochs(doc, epochs, TDE_EPOCHS_MAX) == 16);
  for (uint32_t i = 0; i < 16; i++) CHECK(epochs[i] == i + 1); /* ascending */
  uint32_t two[2] = {0, 0};
  CHECK(tde_keydoc_epochs(doc, two, 2) == 16 && two[1] == 2);
  CHECK(tde_keydoc_epoch(doc) == 1 && strcmp(tde_keydoc_mode(doc), "database") == 0);
  tde_keydoc_free(doc);
  CHECK(built(17, 1, 512, 20, &doc, &st) == TDE_CORRUPT && strstr(st.message, "deks"));
  CHECK(built(1, 16, 512, 20, &doc, &st) == TDE_OK);
  tde_keydoc_free(doc);
  CHECK(built(1, 17, 512, 20, &doc, &st) == TDE_CORRUPT && strstr(st.message, "wraps"));
  CHECK(built(1, 1, 2731, 20, &doc, &st) == TDE_OK); /* 2048 bytes */
  tde_keydoc_free(doc);
  CHECK(built(1, 1, 2732, 20, &doc, &st) == TDE_CORRUPT && strstr(st.message, "wrapped"));
  CHECK(built(1, 1, 4, 509, &doc, &st) == TDE_OK); /* with "/v" the whole id */
  tde_keydoc_free(doc);
  CHECK(built(1, 1, 4, 510, &doc, &st) == TDE_CORRUPT && strstr(st.message, "key_id"));
  CHECK(built(1, 1, 4, 600, &doc, &st) == TDE_CORRUPT && strstr(st.message, "key_id"));
  CHECK(built(16, 4, 512, 20, &doc, &st) == TDE_CORRUPT && strstr(st.message, "bytes long"));
}

static void keydoc_unknown_members_survive(void) {
  tde_keydoc *doc = NULL;
  char *text = NULL;
  size_t n = 0;
  tde_key_info info;
  REQUIRE(tde_keydoc_parse(template_doc, strlen(template_doc), &doc, NULL) == TDE_OK);
  CHECK(tde_keydoc_text(doc, &text, &n, NULL) == TDE_OK);
  CHECK(text != NULL && n == strlen(template_doc) && strcmp(text, template_doc) == 0);
  free(text);
  CHECK(tde_keydoc_protector(doc, &info, NULL) == TDE_OK && info.thumbprint[0] == 0x01);
  CHECK(strcmp(info.base_id, "local:smk") == 0 && strcmp(info.version, V40) == 0);
  CHECK(strcmp(info.type, "RSA-3072") == 0 && strcmp(info.algorithm, "RSA-OAEP-256") == 0);
  tde_keydoc_free(doc);
}

/* The last wrap of the current epoch is the protector. */
static void keydoc_protector_is_last(void) {
  char *text = edited("\"wraps\":[", 0, "\"wraps\":[{\"key_id\":\"local:old\",\"version\":\"v\","
                      "\"type\":\"t\",\"algorithm\":\"a\",\"thumbprint\":\"" T64 "\",\"wrapped\":"
                      "\"AA\",\"created\":0},");
  tde_keydoc *doc = NULL;
  tde_key_info info;
  REQUIRE(tde_keydoc_parse(text, strlen(text), &doc, NULL) == TDE_OK);
  CHECK(tde_keydoc_protector(doc, &info, NULL) == TDE_OK);
  CHECK(strcmp(info.base_id, "local:smk") == 0);
  tde_keydoc_free(doc);
  free(text);
}

static char *with_events(int count, size_t outcome, size_t filler) {
  size_t size = 200000, n = 0;
  char *text = malloc(size), pad[256];
  const char *at = strstr(template_doc, "\"events\":[");
  memset(pad, 'o', sizeof pad);
  pad[outcome] = 0;
  n += (size_t)snprintf(text, size, "%.*s\"events\":[", (int)(at - template_doc), template_doc);
  for (int i = 0; i < count; i++) {
    n += (size_t)snprintf(text + n, size - n,
                          "%s{\"time\":%d,\"event\":\"e\",\"key_id\":\"\",\"outcome\":\"%s\"}",
                          i ? "," : "", i, pad);
  }
  n += (size_t)snprintf(text + n, size - n, "],\"filler\":\"");
  memset(text + n, 'f', filler);
  n += filler;
  snprintf(text + n, size - n, "\"}");
  return text;
}

/* The ring keeps the newest. */
static void keydoc_events_trimmed(void) {
  tde_keydoc *doc = NULL;
  tde_json *j = NULL;
  size_t n = 0;
  char *out = NULL, *text = with_events(50, 10, 0);
  REQUIRE(tde_keydoc_parse(text, strlen(text), &doc, NULL) == TDE_OK);
  CHECK(tde_keydoc_text(doc, &out, &n, NULL) == TDE_OK);
  REQUIRE(tde_json_parse(out, n, "x", &j, NULL) == TDE_OK);
  const tde_json *events = tde_json_get(j, "events");
  CHECK(tde_json_count(events) == 32);
  CHECK(tde_json_get_int(tde_json_at(events, 0), "time", -1) == 18);
  CHECK(tde_json_get_int(tde_json_at(events, 31), "time", -1) == 49);
  tde_json_free(j);
  tde_keydoc_free(doc);
  free(text);
  free(out);
  /* A text just at the bound is written whole; one byte more is not read. */
  size_t base = 0;
  text = with_events(1, 1, 0);
  base = strlen(text);
  free(text);
  text = with_events(1, 1, TDE_KEYDOC_TEXT_MAX - base);
  CHECK(strlen(text) == TDE_KEYDOC_TEXT_MAX);
  CHECK(tde_keydoc_parse(text, strlen(text), &doc, NULL) == TDE_OK);
  CHECK(tde_keydoc_text(doc, &out, &n, NULL) == TDE_OK && n == TDE_KEYDOC_TEXT_MAX);
  tde_keydoc_free(doc);
  free(text);
  free(out);
  text = with_events(1, 1, TDE_KEYDOC_TEXT_MAX - base + 1);
  CHECK(tde_keydoc_parse(text, strlen(text), &doc, NULL) == TDE_CORRUPT);
  free(text);
}

static unsigned rng_state = 12345;
static unsigned rng(void) {
  rng_state = rng_state * 1103515245u + 12345u;
  return rng_state >> 8;
}

/* Whatever the bytes: an error, or a document that can be used and written. */
static void keydoc_hostile(void) {
  char text[sizeof template_doc];
  int accepted = 0;
  for (int i = 0; i < 20000; i++) {
    tde_keydoc *doc = NULL;
    tde_status st;
    char *out = NULL;
    size_t n = strlen(template_doc), k = 0;
    memcpy(text, template_doc, sizeof text);
    for (unsigned f = rng() % 4 + 1; f > 0; f--) {
      static const char pool[] = "{}[]\",:0129-.eE\\ntfau \x7f\xff";
      size_t at = rng() % n;
      if (rng() % 8 == 0) n = at + 1;
      text[at] = rng() % 3 == 0 ? (char)rng() : pool[rng() % (sizeof pool - 1)];
    }
    tde_status_clear(&st);
    if (tde_keydoc_parse(text, n, &doc, &st) != TDE_OK) {
      CHECK(doc == NULL && st.message[0] != 0 && (st.code == TDE_CORRUPT || st.code == TDE_NEWER_FORMAT));
      continue;
    }
    tde_key_info info;
    accepted++;
    CHECK(tde_keydoc_protector(doc, &info, NULL) == TDE_OK && tde_keydoc_epoch(doc) > 0);
    CHECK(tde_keydoc_text(doc, &out, &k, NULL) == TDE_OK && k > 0);
    tde_keydoc_free(doc);
    CHECK(tde_keydoc_parse(out, k, &doc, NULL) == TDE_OK);
    tde_keydoc_free(doc);
    free(out);
  }
  CHECK(accepted > 100); /* or the mutations are too wild to test anything */
}

static void keydoc_create_and_unwrap(void) {
  const tde_instance *inst = shared_instance();
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES), *got = tde_secret_alloc(TDE_KEY_BYTES);
  uint8_t *second = tde_secret_alloc(TDE_KEY_BYTES);
  tde_keydoc *doc = NULL, *again = NULL;
  tde_key_info info;
  tde_status st;
  char *text = NULL;
  size_t n = 0;
  const char *dir = tde_instance_dir(inst);
  const tde_keydoc_asker myself = {.identity = "myself"};
  static const char managed[] = "{\"kind\":\"managed_identity\"}";
  REQUIRE(tde_instance_set_identity(dir, "myself", managed, &st) == TDE_OK);
  REQUIRE(tde_instance_open(dir, 0, &inst, &st) == TDE_OK);
  REQUIRE(tde_keydoc_create(inst, NULL, &myself, uuid, dek, &doc, &st) == TDE_OK);
  CHECK(!tde_all_zero(dek, TDE_KEY_BYTES) && strcmp(tde_keydoc_mode(doc), "inherit") == 0);
  CHECK(tde_keydoc_epoch(doc) == 1 && tde_keydoc_protector(doc, &info, &st) == TDE_OK);
  CHECK(strcmp(info.version, smk_version(inst)) == 0 && strcmp(info.type, "RSA-3072") == 0);
  CHECK(tde_keydoc_text(doc, &text, &n, &st) == TDE_OK && strstr(text, "\"name\":\"myself\"") != NULL);
  CHECK(n == strlen(text) && tde_keydoc_parse(text, n, &again, &st) == TDE_OK);
  CHECK(unwrap_plainly(again, inst, 1, uuid, got, &st) == TDE_OK && tde_equal(got, dek, 32));
  CHECK(unwrap_plainly(again, inst, 2, uuid, got, &st) == TDE_CORRUPT && tde_all_zero(got, 32));
  tde_keydoc_free(doc);
  tde_keydoc_free(again);
  free(text);
  CHECK(tde_keydoc_create(inst, "local:smk", &nobody, uuid, second, &doc, &st) == TDE_OK);
  CHECK(!tde_equal(dek, second, 32) && strcmp(tde_keydoc_mode(doc), "database") == 0);
  tde_keydoc_free(doc);
  /* Failures leave nothing behind. */
  CHECK(tde_keydoc_create(inst, "local:none", &nobody, uuid, dek, &doc, &st) == TDE_MISSING);
  CHECK(doc == NULL && tde_all_zero(dek, 32) && strcmp(st.key_id, "local:none") == 0);
  CHECK(tde_keydoc_create(inst, "nobody:x", &nobody, uuid, dek, &doc, &st) == TDE_UNSUPPORTED);
  const tde_keydoc_asker stranger = {.identity = "stranger"};
  CHECK(tde_keydoc_create(inst, NULL, &stranger, uuid, dek, &doc, &st) == TDE_MISCONFIGURED);
  CHECK(doc == NULL && strstr(st.message, "no identity named stranger") != NULL);
  tde_secret_free(dek);
  tde_secret_free(got);
  tde_secret_free(second);
}

/* The document of a real wrap, its JSON, and the wrap within it. */
static tde_json *real_json(const tde_instance *inst, uint8_t *dek) {
  tde_keydoc *doc = NULL;
  tde_json *j = NULL;
  char *text = NULL;
  size_t n = 0;
  CHECK(tde_keydoc_create(inst, NULL, &nobody, uuid, dek, &doc, NULL) == TDE_OK);
  CHECK(tde_keydoc_text(doc, &text, &n, NULL) == TDE_OK);
  CHECK(tde_json_parse(text, n, "x", &j, NULL) == TDE_OK);
  tde_keydoc_free(doc);
  free(text);
  return j;
}

static tde_class unwrap_json(const tde_json *j, const tde_instance *inst, uint8_t *dek,
                             tde_status *st) {
  size_t n = 0;
  char *text = tde_json_text(j, &n);
  tde_keydoc *doc = NULL;
  tde_status_clear(st);
  memset(dek, 0x55, TDE_KEY_BYTES);
  tde_class rc = tde_keydoc_parse(text, n, &doc, st);
  CHECK(rc == TDE_OK);
  if (rc == TDE_OK) rc = unwrap_plainly(doc, inst, 1, uuid, dek, st);
  CHECK(rc == TDE_OK || tde_all_zero(dek, TDE_KEY_BYTES));
  tde_keydoc_free(doc);
  free(text);
  return rc;
}

static void keydoc_unwrap_failures(void) {
  const tde_instance *inst = copied_instance("unwrap");
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES), *got = tde_secret_alloc(TDE_KEY_BYTES);
  tde_json *j = real_json(inst, dek);
  tde_json *wraps = tde_json_get(tde_json_at(tde_json_get(j, "deks"), 0), "wraps");
  tde_json *wrap = tde_json_at(wraps, 0), *good = tde_json_copy(wrap);
  tde_status st;
  char path[PATH_BYTES], changed[4096];
  CHECK(unwrap_json(j, inst, got, &st) == TDE_OK && tde_equal(got, dek, 32));
  /* Newest first, then the older: the bad one is passed over. */
  tde_json *bad = tde_json_copy(wrap);
  tde_json_set_text(bad, "version", V40);
  tde_json_append(wraps, bad);
  CHECK(unwrap_json(j, inst, got, &st) == TDE_OK && tde_equal(got, dek, 32));
  tde_json_append(wraps, tde_json_copy(good));
  tde_json_set_text(tde_json_at(wraps, 0), "key_id", "nobody:x");
  CHECK(unwrap_json(j, inst, got, &st) == TDE_OK && tde_equal(got, dek, 32));
  tde_json_remove_at(wraps, 2);
  CHECK(unwrap_json(j, inst, got, &st) == TDE_UNSUPPORTED); /* the last one tried */
  tde_json_set_text(tde_json_at(wraps, 0), "key_id", "local:smk");
  tde_json_remove_at(wraps, 1);
  snprintf(changed, sizeof changed, "%s", tde_json_get_text(wrap, "wrapped"));
  changed[100] = changed[100] == 'A' ? 'B' : 'A';
  tde_json_set_text(wrap, "wrapped", changed);
  CHECK(unwrap_json(j, inst, got, &st) == TDE_WRONG_KEY && st.remedy[0] != 0);
  CHECK(strcmp(st.key_id, tde_instance_smk(inst)) == 0);
  tde_json_set_text(wrap, "wrapped", "AAEC");
  CHECK(unwrap_json(j, inst, got, &st) == TDE_CORRUPT);
  tde_json_set_text(wrap, "algorithm", "RSA1_5");
  CHECK(unwrap_json(j, inst, got, &st) == TDE_UNSUPPORTED);
  tde_json_set_text(wrap, "key_id", "local:../../etc");
  CHECK(unwrap_json(j, inst, got, &st) == TDE_MISCONFIGURED);
  tde_json_set_text(wrap, "key_id", "nobody:x");
  CHECK(unwrap_json(j, inst, got, &st) == TDE_UNSUPPORTED);
  /* The key file vanishes: named, with what to do. */
  tde_json_append(wraps, good);
  tde_json_remove_at(wraps, 0);
  smk_file(inst, path);
  CHECK(unwrap_json(j, inst, got, &st) == TDE_OK && unlink(path) == 0);
  CHECK(unwrap_json(j, inst, got, &st) == TDE_MISSING);
  CHECK(strcmp(st.key_id, tde_instance_smk(inst)) == 0 && strstr(st.message, "unwrap") != NULL);
  CHECK(strstr(st.remedy, smk_version(inst)) != NULL && strstr(st.remedy, "tde_instance=") != NULL);
  /* No memory of the old key in the message, no secret either way. */
  tde_json_free(j);
  tde_secret_free(dek);
  tde_secret_free(got);
}

/* A wrap whose key answers "later" must not be hidden by an older wrap's "no".
** Without descriptors the newest wrap's file cannot be opened (I/O), and the
** older wrap's key is of nobody's kind. */
static void keydoc_passing_failure_wins(void) {
  const tde_instance *inst = copied_instance("passing");
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES), *got = tde_secret_alloc(TDE_KEY_BYTES);
  tde_json *j = real_json(inst, dek);
  tde_json *wraps = tde_json_get(tde_json_at(tde_json_get(j, "deks"), 0), "wraps");
  tde_json *newest = tde_json_copy(tde_json_at(wraps, 0));
  tde_json_set_text(tde_json_at(wraps, 0), "key_id", "nobody:x");
  tde_json_append(wraps, newest);
  pid_t pid = fork_child();
  if (pid == 0) {
    tde_status st;
    tde_local_drop_cache();
    CHILD_REQUIRE(no_descriptors());
    CHILD_REQUIRE(unwrap_json(j, inst, got, &st) == TDE_IO);
    CHILD_REQUIRE(strcmp(st.key_id, tde_instance_smk(inst)) == 0);
    _exit(0);
  }
  CHECK(child_ok(pid));
  tde_json_free(j);
  tde_secret_free(dek);
  tde_secret_free(got);
}

/* ---- out of memory, at each allocation of the JSON library in turn ---- */

static _Thread_local long fail_at, allocations;
static _Thread_local int fail_once;

static void *failing_malloc(size_t n) {
  allocations++;
  if (fail_at == 0 || allocations < fail_at) return malloc(n);
  return allocations > fail_at && fail_once ? malloc(n) : NULL;
}

/* After one failed allocation the library goes on with a text that is cut off: what
** was read is either the whole or nothing. */
static void json_short_of_memory(void) {
  int done = 0;
  json_set_alloc_funcs(failing_malloc, free);
  fail_once = 1;
  for (long i = 1; !done && i < 5000; i++) {
    tde_json *j = NULL;
    tde_status st;
    fail_at = i;
    allocations = 0;
    tde_class rc = tde_json_parse(template_doc, strlen(template_doc), "document", &j, &st);
    done = fail_at > allocations;
    fail_at = 0;
    if (!CHECK(rc == (done ? TDE_OK : TDE_NOMEM))) printf("  at %ld: %d\n", i, rc);
    tde_json_free(j);
  }
  CHECK(done);
  fail_once = 0;
  json_set_alloc_funcs(malloc, free);
}

static void json_out_of_memory(void) {
  const tde_instance *inst = shared_instance();
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  int done = 0;
  json_set_alloc_funcs(failing_malloc, free);
  for (long i = 1; !done && i < 5000; i++) {
    tde_keydoc *doc = NULL;
    tde_status st;
    char *text = NULL;
    size_t n = 0;
    fail_at = i;
    allocations = 0;
    tde_class rc = tde_keydoc_parse(template_doc, strlen(template_doc), &doc, &st);
    if (rc == TDE_OK) rc = tde_keydoc_text(doc, &text, &n, &st);
    done = fail_at > allocations;
    fail_at = 0;
    if (!CHECK(rc == (done ? TDE_OK : TDE_NOMEM))) printf("  at %ld: %d %s\n", i, rc, st.message);
    CHECK(done || text == NULL);
    tde_keydoc_free(doc);
    free(text);
  }
  CHECK(done);
  done = 0;
  for (long i = 1; !done && i < 5000; i += 7) { /* each try costs RSA operations */
    tde_keydoc *doc = NULL;
    tde_status st;
    fail_at = i;
    allocations = 0;
    tde_class rc = tde_keydoc_create(inst, NULL, &nobody, uuid, dek, &doc, &st);
    done = fail_at > allocations;
    fail_at = 0;
    CHECK(rc == (done ? TDE_OK : TDE_NOMEM) && (done || (doc == NULL && tde_all_zero(dek, 32))));
    tde_keydoc_free(doc);
  }
  CHECK(done);
  json_set_alloc_funcs(malloc, free);
  tde_secret_free(dek);
}

/* ---- threads and forks ---- */

static struct {
  const char *dir, *doc_text;
  size_t doc_n;
  const uint8_t *dek;
  atomic_int stop, failures, rounds, ready;
} crowd;

static void *crowd_member(void *arg) {
  uint8_t *got = tde_secret_alloc(TDE_KEY_BYTES);
  (void)arg;
  for (int i = 0; i < 40 && !crowd.stop; i++) {
    const tde_instance *inst = NULL;
    tde_keydoc *doc = NULL;
    int ok = tde_instance_open(crowd.dir, 1, &inst, NULL) == TDE_OK &&
             tde_keydoc_parse(crowd.doc_text, crowd.doc_n, &doc, NULL) == TDE_OK &&
             unwrap_plainly(doc, inst, 1, uuid, got, NULL) == TDE_OK &&
             tde_equal(got, crowd.dek, TDE_KEY_BYTES);
    if (!ok) crowd.failures++;
    crowd.rounds++;
    tde_keydoc_free(doc);
  }
  tde_secret_free(got);
  return NULL;
}

/* Makes the file look changed, and drops keys under the others' feet. */
static void *crowd_disturber(void *arg) {
  char path[PATH_BYTES];
  (void)arg;
  snprintf(path, sizeof path, "%.400s/instance.json", crowd.dir);
  while (!crowd.stop) {
    struct timespec nap = {0, 2000000};
    if (utimensat(AT_FDCWD, path, NULL, 0) != 0) crowd.failures++;
    tde_local_drop_cache();
    nanosleep(&nap, NULL);
  }
  return NULL;
}

static void crowd_setup(const char *name, uint8_t *dek, char **text) {
  const tde_instance *inst = copied_instance(name);
  tde_keydoc *doc = NULL;
  CHECK(tde_keydoc_create(inst, NULL, &nobody, uuid, dek, &doc, NULL) == TDE_OK);
  CHECK(tde_keydoc_text(doc, text, &crowd.doc_n, NULL) == TDE_OK);
  tde_keydoc_free(doc);
  crowd.dir = tde_instance_dir(inst);
  crowd.doc_text = *text;
  crowd.dek = dek;
  crowd.stop = crowd.failures = crowd.rounds = 0;
}

static void threads_together(void) {
  pthread_t members[6], disturber;
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  char *text = NULL;
  crowd_setup("crowd", dek, &text);
  for (size_t i = 0; i < COUNT(members); i++) {
    REQUIRE(pthread_create(&members[i], NULL, crowd_member, NULL) == 0);
  }
  REQUIRE(pthread_create(&disturber, NULL, crowd_disturber, NULL) == 0);
  for (size_t i = 0; i < COUNT(members); i++) pthread_join(members[i], NULL);
  crowd.stop = 1;
  pthread_join(disturber, NULL);
  CHECK(crowd.failures == 0 && crowd.rounds == 240);
  free(text);
  tde_secret_free(dek);
}

static void *first_user(void *arg) {
  const tde_instance **out = arg;
  if (tde_instance_open(crowd.dir, 1, out, NULL) != TDE_OK) crowd.failures++;
  return NULL;
}

static void threads_first_use(void) {
  pthread_t t[4];
  const tde_instance *got[4] = {NULL};
  char dir[PATH_BYTES];
  fresh_dir(dir, "first-threads");
  crowd.dir = dir;
  crowd.failures = 0;
  for (size_t i = 0; i < COUNT(t); i++) REQUIRE(pthread_create(&t[i], NULL, first_user, &got[i]) == 0);
  for (size_t i = 0; i < COUNT(t); i++) pthread_join(t[i], NULL);
  CHECK(crowd.failures == 0 && got[0] != NULL);
  for (size_t i = 1; i < COUNT(t); i++) CHECK(got[i] == got[0]);
}

/* Takes both locks as often as it can, and allocates nothing: the address
** sanitizer's own allocator does not survive a fork while another thread is
** within it. A thread's start allocates: no fork before all are ready. */
static void *lock_user(void *arg) {
  const tde_instance *inst = arg;
  crowd.ready++;
  while (!crowd.stop) {
    const tde_instance *again = NULL;
    if (tde_instance_open(crowd.dir, 0, &again, NULL) != TDE_OK || again != inst) crowd.failures++;
    if (get_smk(inst, NULL) != TDE_OK) crowd.failures++;
  }
  return NULL;
}

/* Forks while other threads hold the locks: a child must not wait for threads
** that it does not have. */
static void forks_in_a_crowd(void) {
  pthread_t members[3];
  const tde_instance *inst = copied_instance("forks");
  crowd.dir = tde_instance_dir(inst);
  crowd.stop = crowd.failures = crowd.ready = 0;
  CHECK(get_smk(inst, NULL) == TDE_OK);
  for (size_t i = 0; i < COUNT(members); i++) {
    REQUIRE(pthread_create(&members[i], NULL, lock_user, (void *)(uintptr_t)inst) == 0);
  }
  while (crowd.ready < (int)COUNT(members)) sched_yield();
  for (int i = 0; i < 300; i++) {
    pid_t pid = fork_child();
    if (pid == 0) {
      const tde_instance *again = NULL;
      alarm(90);
      CHILD_REQUIRE(tde_instance_open(crowd.dir, 0, &again, NULL) == TDE_OK && again == inst);
      CHILD_REQUIRE(get_smk(inst, NULL) == TDE_OK);
      tde_local_drop_cache();
      CHILD_REQUIRE(i % 30 != 0 || get_smk(inst, NULL) == TDE_OK);
      _exit(0);
    }
    if (!CHECK(child_ok(pid))) break;
  }
  crowd.stop = 1;
  for (size_t i = 0; i < COUNT(members); i++) pthread_join(members[i], NULL);
  CHECK(crowd.failures == 0);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"json_rejects", json_rejects},             {"json_accepts", json_accepts},
      {"json_depth", json_depth},
      {"json_round_trip", json_round_trip},
      {"json_of_other_bytes", json_of_other_bytes},
      {"json_builders", json_builders},
      {"driver_loop", driver_loop},
      {"driver_versions", driver_versions},
      {"driver_failures", driver_failures},
      {"driver_input", driver_input},
      {"provider_table", provider_table},
      {"full_ids", full_ids},
      {"rsa_thumbprint", rsa_thumbprint},
      {"rsa_kinds", rsa_kinds},
      {"rsa_not_a_dek", rsa_not_a_dek},
      {"local_ids", local_ids},
      {"local_round_trip", local_round_trip},
      {"local_tampered", local_tampered},
      {"local_vector", local_vector},
      {"local_openssl_command", local_openssl_command},
      {"local_bad_files", local_bad_files},
      {"local_encrypted_pem", local_encrypted_pem},
      {"local_cache_keeps_parse_away", local_cache_keeps_parse_away},
      {"local_cache_is_bounded", local_cache_is_bounded},
      {"local_latest", local_latest},
      {"files_never_overwritten", files_never_overwritten},
      {"folders_that_can_not_be_synced", folders_that_can_not_be_synced},
      {"folders_under_an_odd_umask", folders_under_an_odd_umask},
      {"folders_for_their_parent", folders_for_their_parent},
      {"instance_first_use", instance_first_use},
      {"instance_where", instance_where},
      {"instance_bad_files", instance_bad_files},
      {"instance_permissions", instance_permissions},
      {"instance_changes", instance_changes},
      {"instance_changes_at_once", instance_changes_at_once},
      {"instance_race", instance_race},           {"instance_race_unlocked", instance_race_unlocked},
      {"instance_interrupted", instance_interrupted},
      {"instance_killed", instance_killed},
      {"as_ordinary_user", as_ordinary_user},
      {"owned_by_another", owned_by_another},
      {"secrets_that_a_platform_gives", secrets_that_a_platform_gives},
      {"wraps_of_hosts_that_do_not_answer", wraps_of_hosts_that_do_not_answer},
      {"keydoc_malformed", keydoc_malformed},
      {"keydoc_bounds", keydoc_bounds},
      {"keydoc_unknown_members_survive", keydoc_unknown_members_survive},
      {"keydoc_protector_is_last", keydoc_protector_is_last},
      {"keydoc_events_trimmed", keydoc_events_trimmed},
      {"keydoc_hostile", keydoc_hostile},
      {"keydoc_create_and_unwrap", keydoc_create_and_unwrap},
      {"keydoc_unwrap_failures", keydoc_unwrap_failures},
      {"keydoc_passing_failure_wins", keydoc_passing_failure_wins},
      {"json_short_of_memory", json_short_of_memory},
      {"json_out_of_memory", json_out_of_memory},
      {"threads_together", threads_together},
      {"threads_first_use", threads_first_use},
      {"forks_in_a_crowd", forks_in_a_crowd},
  };
  const char *tmp = getenv("TMPDIR");
  tde_status st;
  snprintf(root_dir, sizeof root_dir, "%.200s/tde-keys-XXXXXX", tmp != NULL && tmp[0] == '/' ? tmp : "/tmp");
  if (mkdtemp(root_dir) == NULL || tde_crypto_init(&st) != TDE_OK) {
    printf("cannot start\n0 passed, 1 failed, 0 skipped\n");
    return 1;
  }
  int rc = unit_main(argc, argv, tests, COUNT(tests));
  tde_local_drop_cache();
  remove_tree(root_dir);
  return rc;
}
