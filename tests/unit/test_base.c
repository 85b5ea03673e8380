/*
** test_base.c: status, bytes, log, secret memory and the probe of mapped memory.
*/
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ext/base/bytes.h"
#include "ext/base/log.h"
#include "ext/base/probe.h"
#include "ext/base/secret.h"
#include "ext/base/status.h"
#include "tests/unit/unit.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* ---- status ------------------------------------------------------------ */

static void status_texts(void) {
  tde_status st;
  tde_status_clear(NULL);
  memset(&st, 0x5a, sizeof st);
  tde_status_clear(&st);
  CHECK(st.code == TDE_OK && st.message[0] == 0 && st.http_status == 0);
  snprintf(st.key_id, sizeof st.key_id, "kept");
  CHECK(tde_fail(&st, TDE_DENIED, "do\tthis", "got %d\nlines\x7f \xc3\xa4", 2) == TDE_DENIED);
  CHECK(st.code == TDE_DENIED);
  CHECK(strcmp(st.message, "got 2?lines? \xc3\xa4") == 0);
  CHECK(strcmp(st.remedy, "do?this") == 0);
  CHECK(strcmp(st.key_id, "kept") == 0);
  /* The arguments may come from the status itself. */
  tde_fail(&st, TDE_IO, st.remedy, "open: %s", st.message);
  CHECK(strcmp(st.message, "open: got 2?lines? \xc3\xa4") == 0);
  CHECK(strcmp(st.remedy, "do?this") == 0);
  tde_fail(&st, TDE_IO, NULL, "x");
  CHECK(st.remedy[0] == 0);
  CHECK(tde_fail(NULL, TDE_BUSY, NULL, "x") == TDE_BUSY);
}

static void status_other_steps(void) {
  tde_status st;
  tde_status_clear(&st);
  tde_fail(&st, TDE_IO, "do this", "x");
  tde_also(&st, "or\tthat %d", 2);
  CHECK(strcmp(st.remedy, "do this; or?that 2") == 0);
  CHECK(strcmp(st.message, "x") == 0 && st.code == TDE_IO);
  for (int i = 0; i < 200; i++) tde_also(&st, "\xe2\x82\xac");
  size_t n = strlen(st.remedy); /* full, and with no half of a character */
  CHECK(n < sizeof st.remedy && n > sizeof st.remedy - 8);
  CHECK(((unsigned char)st.remedy[n - 1] & 0x80) == 0 || memcmp(st.remedy + n - 3, "\xe2\x82\xac", 3) == 0);
}

static void status_truncation(void) {
  tde_status st;
  char longer[sizeof st.message + 40];
  tde_status_clear(&st);
  for (size_t pad = 0; pad < 4; pad++) {
    /* The cut falls on each byte of a three-byte character. */
    memset(longer, 'a', pad);
    for (size_t i = pad; i + 3 < sizeof longer; i += 3) memcpy(longer + i, "\xe2\x82\xac", 4);
    tde_fail(&st, TDE_IO, NULL, "%s", longer);
    size_t n = strlen(st.message);
    CHECK(n < sizeof st.message && n > sizeof st.message - 5);
    CHECK((n - pad) % 3 == 0);
    CHECK(memcmp(st.message, longer, n) == 0);
  }
  char stray[] = "\x80\x80\x80\x80";
  tde_clean_line(stray); /* not UTF-8 at all: nothing to cut, nothing overrun */
  CHECK(strlen(stray) == 4);
}

static void status_classes(void) {
  static const char *const names[] = {
      "ok",           "out-of-memory", "io",             "busy",        "random",
      "crypto",       "internal",      "misuse",         "not-encrypted", "newer-format",
      "damaged-header", "tampered",    "torn",           "truncated",   "not-authentic", "unreachable",
      "throttled",    "unauthenticated", "denied",       "disabled",    "missing",
      "wrong-key",    "corrupt",       "unsupported",    "misconfigured"};
  CHECK(COUNT(names) == TDE_MISCONFIGURED + 1);
  for (size_t i = 0; i < COUNT(names); i++) {
    CHECK(strcmp(tde_class_name((tde_class)i), names[i]) == 0);
    CHECK(tde_class_is_outage((tde_class)i) == (i == TDE_UNREACHABLE || i == TDE_THROTTLED));
  }
  CHECK(strcmp(tde_class_name((tde_class)999), "unknown") == 0);
}

/* ---- log --------------------------------------------------------------- */

static char last_line[2048];
static int last_level, nlines;

static void catch_line(tde_level level, const char *line) {
  snprintf(last_line, sizeof last_line, "%s", line);
  last_level = (int)level;
  nlines++;
  errno = EIO;
}

static void log_lines(void) {
  tde_status st;
  tde_log(TDE_LOG_ERROR, "dropped");
  tde_log_set_sink(catch_line);
  nlines = 0;
  errno = ENOENT;
  tde_log(TDE_LOG_WARNING, "a\r\nb %s", "c");
  CHECK(errno == ENOENT);
  CHECK(nlines == 1 && last_level == TDE_LOG_WARNING && strcmp(last_line, "a??b c") == 0);
  tde_status_clear(&st);
  tde_fail(&st, TDE_UNREACHABLE, "wait", "no answer");
  tde_log_status(TDE_LOG_ERROR, "app.db", &st);
  CHECK(nlines == 3 && last_level == TDE_LOG_NOTICE && strcmp(last_line, "next step: wait") == 0);
  tde_fail(&st, TDE_UNREACHABLE, NULL, "no answer");
  tde_log_status(TDE_LOG_ERROR, NULL, &st);
  CHECK(nlines == 4 && strcmp(last_line, "[unreachable] no answer") == 0);
  tde_log_set_sink(NULL);
  tde_log(TDE_LOG_ERROR, "dropped");
  CHECK(nlines == 4);
}

/* ---- bytes ------------------------------------------------------------- */

static void bytes_integers(void) {
  static const uint8_t b[8] = {0x81, 0x02, 0x03, 0xf4, 0x05, 0x06, 0x07, 0xf8};
  uint8_t w[8];
  CHECK(tde_get32le(b) == UINT32_C(0xf4030281));
  CHECK(tde_get64le(b) == UINT64_C(0xf8070605f4030281));
  CHECK(tde_get32be(b) == UINT32_C(0x810203f4));
  tde_put32le(w, UINT32_C(0xf4030281));
  CHECK(memcmp(w, b, 4) == 0);
  tde_put64le(w, UINT64_C(0xf8070605f4030281));
  CHECK(memcmp(w, b, 8) == 0);
  uint8_t z[100] = {0};
  CHECK(tde_all_zero(NULL, 0) && tde_all_zero(z, 1) && tde_all_zero(z, sizeof z));
  for (size_t i = 0; i < sizeof z; i++) {
    z[i] = 0x10;
    CHECK(!tde_all_zero(z, sizeof z));
    CHECK(tde_all_zero(z, i));
    z[i] = 0;
  }
}

static void bytes_hex(void) {
  static const uint8_t b[4] = {0x00, 0x1f, 0xa0, 0xff};
  uint8_t w[4];
  char text[41];
  tde_hex(b, 4, text);
  CHECK(strcmp(text, "001fa0ff") == 0);
  tde_hex(b, 0, text);
  CHECK(text[0] == 0);
  CHECK(tde_unhex("001FA0fF", w, 4) == 0 && memcmp(w, b, 4) == 0);
  CHECK(tde_unhex("", w, 0) == 0);
  static const char *const bad[] = {"", "0", "001fa0f", "001fa0ff0", "001fa0fg", " 01fa0ff",
                                    "001fa0f ", "0x1fa0ff", "-01fa0ff", "001fa0f\xb5"};
  for (size_t i = 0; i < COUNT(bad); i++) CHECK(tde_unhex(bad[i], w, 4) == -1);
  uint8_t uuid[16];
  for (int i = 0; i < 16; i++) uuid[i] = (uint8_t)(i * 17);
  tde_uuid_text(uuid, text);
  CHECK(strcmp(text, "00112233-4455-6677-8899-aabbccddeeff") == 0);
}

static void bytes_base64url(void) {
  /* RFC 4648, section 10, without the padding. */
  static const char *const rfc[][2] = {{"", ""},         {"f", "Zg"},        {"fo", "Zm8"},
                                       {"foo", "Zm9v"},  {"foob", "Zm9vYg"}, {"fooba", "Zm9vYmE"},
                                       {"foobar", "Zm9vYmFy"}};
  uint8_t out[256];
  char text[400];
  for (size_t i = 0; i < COUNT(rfc); i++) {
    size_t n = strlen(rfc[i][0]);
    tde_base64url((const uint8_t *)rfc[i][0], n, text);
    CHECK(strcmp(text, rfc[i][1]) == 0);
    CHECK(tde_unbase64url(text, strlen(text), out, n) == (long)n);
    CHECK(memcmp(out, rfc[i][0], n) == 0);
    if (n) CHECK(tde_unbase64url(text, strlen(text), out, n - 1) == -1);
  }
  static const uint8_t high[3] = {0xfb, 0xff, 0xbf};
  tde_base64url(high, 3, text);
  CHECK(strcmp(text, "-_-_") == 0);
  static const char *const bad[] = {"Z",    "Zg==", "Zg=", "Zm9vY", "Zm 9", "Zm9\n", "Zh", "Zm9",
                                    "+_-_", "-/-_", "Zm9v\xc3\xa4", "Zg.."};
  for (size_t i = 0; i < COUNT(bad); i++) {
    CHECK(tde_unbase64url(bad[i], strlen(bad[i]), out, sizeof out) == -1);
  }
  CHECK(tde_unbase64url("Zm9v\0mFy", 8, out, sizeof out) == -1);
  uint8_t all[256];
  for (size_t n = 0; n <= sizeof all; n++) {
    for (size_t i = 0; i < n; i++) all[i] = (uint8_t)(i * 7 + n);
    tde_base64url(all, n, text);
    CHECK(tde_unbase64url(text, strlen(text), out, sizeof out) == (long)n);
    CHECK(memcmp(out, all, n) == 0);
  }
}

static void bytes_base64(void) {
  /* RFC 4648, section 10. */
  static const char *const rfc[][2] = {{"", ""},         {"f", "Zg=="},        {"fo", "Zm8="},
                                       {"foo", "Zm9v"},  {"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="},
                                       {"foobar", "Zm9vYmFy"}};
  static const char *const bad[] = {"Z",    "Zg",   "Zg=",  "Zm8",  "Zm9vY===", "====", "Zg==Zg==", "Zm 9", "Zm9\n",
                                    "Zh==", "-_-_", "Zm9v=", "Z===", "Zg=g",     "=Zg=", "Zm9"};
  uint8_t out[256], all[256];
  char text[400];
  for (size_t i = 0; i < COUNT(rfc); i++) {
    size_t n = strlen(rfc[i][0]);
    tde_base64((const uint8_t *)rfc[i][0], n, text);
    CHECK(strcmp(text, rfc[i][1]) == 0);
    CHECK(tde_unbase64(text, strlen(text), out, n) == (long)n && memcmp(out, rfc[i][0], n) == 0);
    if (n) CHECK(tde_unbase64(text, strlen(text), out, n - 1) == -1);
  }
  static const uint8_t high[3] = {0xfb, 0xff, 0xbf};
  tde_base64(high, 3, text);
  CHECK(strcmp(text, "+/+/") == 0);
  for (size_t i = 0; i < COUNT(bad); i++) {
    CHECK(tde_unbase64(bad[i], strlen(bad[i]), out, sizeof out) == -1);
  }
  for (size_t n = 0; n <= sizeof all; n++) {
    for (size_t i = 0; i < n; i++) all[i] = (uint8_t)(i * 7 + n);
    tde_base64(all, n, text);
    CHECK(strlen(text) == 4 * ((n + 2) / 3));
    CHECK(tde_unbase64(text, strlen(text), out, sizeof out) == (long)n && memcmp(out, all, n) == 0);
  }
}

/* ---- secret ------------------------------------------------------------ */

static int is_zero(const void *p, size_t n) {
  return tde_all_zero(p, n);
}

static void secret_blocks(void) {
  CHECK(tde_secret_alloc(0) == NULL);
  CHECK(tde_secret_alloc(65537) == NULL);
  tde_secret_free(NULL);
  for (size_t n = 1; n <= 65536; n = n < 40 ? n + 1 : n * 2 - (n & 1)) {
    unsigned char *p = tde_secret_alloc(n), *q = tde_secret_alloc(n);
    REQUIRE(p && q && p != q);
    CHECK(is_zero(p, n) && is_zero(q, n));
    CHECK((uintptr_t)p % 16 == 0);
    memset(p, 0xaa, n);
    CHECK(is_zero(q, n));
    tde_secret_free(p);
    CHECK(n > 32768 || is_zero(p, n)); /* its region is still there: q lives in it */
    unsigned char *r = tde_secret_alloc(n);
    REQUIRE(r);
    CHECK(is_zero(r, n));
    tde_secret_free(q);
    tde_secret_free(r);
  }
}

static void secret_many(void) {
  enum { N = 3000 };
  static unsigned char *p[N];
  for (int i = 0; i < N; i++) {
    p[i] = tde_secret_alloc(64);
    REQUIRE(p[i] && is_zero(p[i], 64));
    memset(p[i], i % 255 + 1, 64);
  }
  for (int i = 0; i < N; i++) CHECK(p[i][0] == i % 255 + 1 && p[i][63] == i % 255 + 1);
  for (int i = 0; i < N; i += 2) tde_secret_free(p[i]);
  for (int i = 0; i < N; i += 2) {
    p[i] = tde_secret_alloc(33);
    REQUIRE(p[i] && is_zero(p[i], 64));
  }
  for (int i = 0; i < N; i++) tde_secret_free(p[i]);
}

/* msync tells whether a page is mapped. */
static void secret_gives_back(void) {
  enum { N = 200 };
  static char *p[N];
  int mapped = 0;
  for (int i = 0; i < N; i++) REQUIRE((p[i] = tde_secret_alloc(65536)) != NULL);
  for (int i = 0; i < N; i++) mapped += msync(p[i], 1, MS_ASYNC) == 0;
  CHECK(mapped == N);
  for (int i = 0; i < N; i++) tde_secret_free(p[i]);
  mapped = 0;
  for (int i = 0; i < N; i++) mapped += msync(p[i], 1, MS_ASYNC) == 0;
  CHECK(mapped <= 1); /* one empty region stays */
}

/* Runs f in a child; returns the wait status. */
static int in_child(void (*f)(void *), void *arg) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    f(arg);
    unit_child_exit(1);
  }
  int status = -1;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return -1;
  return status;
}

static void touch(void *p) {
  if (!freopen("/dev/null", "w", stderr)) _exit(9);
  *(volatile char *)p = 1;
}

static int faults(void *p) {
  int status = in_child(touch, p);
  return WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0);
}

static void secret_guards(void) {
  char *p = tde_secret_alloc(65536);
  REQUIRE(p);
  CHECK(!faults(p));
  CHECK(!faults(p + 65535));
  CHECK(faults(p - 1));
  CHECK(faults(p + 65536));
  tde_secret_free(p);
}

/* True when the mapping that holds p carries the flag (see proc(5), VmFlags). */
static int has_flag(const void *p, const char *flag) {
  char line[512];
  int inside = 0, found = 0;
  FILE *f = fopen("/proc/self/smaps", "r");
  while (f && !found && fgets(line, sizeof line, f)) {
    unsigned long lo, hi;
    if (sscanf(line, "%lx-%lx ", &lo, &hi) == 2) inside = (uintptr_t)p >= lo && (uintptr_t)p < hi;
    if (inside && strncmp(line, "VmFlags:", 8) == 0) {
      found = 1;
      inside = strstr(line, flag) != NULL;
    }
  }
  if (f) fclose(f);
  return found && inside;
}

static void secret_flags(void) {
  void *p = tde_secret_alloc(100);
  REQUIRE(p);
  if (access("/proc/self/smaps", R_OK) == 0) {
    CHECK(has_flag(p, " dd"));
    CHECK(SANITIZED || !tde_secret_locked() || has_flag(p, " lo"));
  }
  tde_secret_free(p);
}

static void without_memlock(void *arg) {
  struct rlimit none = {0, 0};
  (void)arg;
  tde_log_set_sink(catch_line);
  nlines = 0;
  if (setrlimit(RLIMIT_MEMLOCK, &none) || (geteuid() == 0 && setresuid(65534, 65534, 65534))) {
    _exit(77);
  }
  void *keep[20];
  for (int i = 0; i < 20; i++) { /* several regions, one warning */
    if (!(keep[i] = tde_secret_alloc(65536))) _exit(1);
    memset(keep[i], 1, 65536);
  }
  if (tde_secret_locked()) _exit(2);
  if (nlines != 1 || last_level != TDE_LOG_WARNING) _exit(3);
  for (int i = 0; i < 20; i++) tde_secret_free(keep[i]);
}

static void secret_unlocked_warns_once(void) {
  if (SANITIZED) SKIP("sanitizers turn mlock into nothing");
  int status = in_child(without_memlock, NULL);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) SKIP("cannot give up the right to lock");
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int was_locked;
static unsigned char *whole_region;

static void child_allocates(void *arg) {
  unsigned char *p = arg;
  if (p[0] != 7) _exit(1); /* inherited */
  if (tde_secret_locked()) _exit(2);
  unsigned char *q = tde_secret_alloc(64);
  if (!q) _exit(3);
  /* What it inherited, too, also where no block of that is free. */
  if (was_locked && !tde_secret_locked()) _exit(4);
  if (was_locked && !SANITIZED && access("/proc/self/smaps", R_OK) == 0 &&
      (!has_flag(p, " lo") || !has_flag(whole_region, " lo"))) {
    _exit(5);
  }
  tde_secret_free(q);
  tde_secret_free(p);
}

static void secret_fork(void) {
  unsigned char *p = tde_secret_alloc(64);
  whole_region = tde_secret_alloc(65536);
  REQUIRE(p && whole_region);
  memset(p, 7, 64);
  was_locked = tde_secret_locked();
  int status = in_child(child_allocates, p);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  tde_secret_free(whole_region);
  CHECK(p[0] == 7 && p[63] == 7);
  tde_secret_free(p);
}

static void secret_double_free(void) {
  unsigned char *p = tde_secret_alloc(64), *q = tde_secret_alloc(64);
  REQUIRE(p && q);
  tde_log_set_sink(catch_line);
  nlines = 0;
  memset(q, 9, 64);
  tde_secret_free(p);
  CHECK(nlines == 0);
  tde_secret_free(p);
  CHECK(nlines == 1 && last_level == TDE_LOG_ERROR);
  tde_secret_free(q + 1);
  CHECK(nlines == 2 && q[0] == 9);
  tde_log_set_sink(NULL);
  tde_secret_free(q);
}

static int refuse(size_t n) {
  (void)n;
  return 1;
}

static void secret_out_of_memory(void) {
  tde_test_alloc_hook = refuse;
  CHECK(tde_secret_alloc(64) == NULL);
  tde_test_alloc_hook = NULL;
  void *p = tde_secret_alloc(64);
  CHECK(p != NULL);
  tde_secret_free(p);
}

static void *churn(void *arg) {
  unsigned seed = *(unsigned *)arg;
  unsigned char *p[32] = {0};
  size_t n[32] = {0};
  for (int i = 0; i < 20000; i++) {
    seed = seed * 1103515245u + 12345u;
    unsigned k = seed >> 16 & 31;
    if (p[k]) {
      CHECK(p[k][0] == (unsigned char)(k + 1) && p[k][n[k] - 1] == (unsigned char)(k + 1));
      tde_secret_free(p[k]);
      p[k] = NULL;
      continue;
    }
    n[k] = 1 + (seed >> 8) % (k == 0 ? 65536 : 300);
    p[k] = tde_secret_alloc(n[k]);
    if (!CHECK(p[k] != NULL)) break;
    CHECK(p[k][0] == 0 && p[k][n[k] - 1] == 0);
    memset(p[k], (int)k + 1, n[k]);
  }
  for (int k = 0; k < 32; k++) tde_secret_free(p[k]);
  return NULL;
}

static void secret_threads(void) {
  pthread_t t[4];
  unsigned seed[4] = {1, 2, 3, 4};
  for (int i = 0; i < 4; i++) REQUIRE(pthread_create(&t[i], NULL, churn, &seed[i]) == 0);
  for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
}

static void secret_compare(void) {
  unsigned char a[40], b[40];
  memset(a, 3, sizeof a);
  memset(b, 3, sizeof b);
  CHECK(tde_equal(a, b, sizeof a) && tde_equal(a, b, 0));
  for (size_t i = 0; i < sizeof a; i++) {
    b[i] ^= 0x80;
    CHECK(!tde_equal(a, b, sizeof a));
    b[i] ^= 0x80;
  }
  tde_wipe(a, 39);
  CHECK(is_zero(a, 39) && a[39] == 3);
  tde_wipe(NULL, 0);
}

/* ---- probing of mapped memory ------------------------------------------ */

#define PROBE_PAGES 7

/* Maps a file's pages, of which the first `there` exist. MAP_FAILED: it could not. */
static uint8_t *map_of_pages(size_t page, size_t there) {
  FILE *f = tmpfile();

  if (f == NULL) return MAP_FAILED;
  if (ftruncate(fileno(f), (off_t)(there * page)) != 0) {
    fclose(f);
    return MAP_FAILED;
  }
  uint8_t *p = mmap(NULL, PROBE_PAGES * page, PROT_READ, MAP_SHARED, fileno(f), 0);
  fclose(f);
  return p;
}

/* To touch what is said not to be readable here ends the process with SIGBUS. */
static void probe_of_a_file_that_ends(void) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  if (!tde_probe_works()) SKIP("no Linux, or under valgrind");
  for (size_t there = 0; there <= PROBE_PAGES; there++) {
    uint8_t *p = map_of_pages(page, there);
    REQUIRE(p != MAP_FAILED);
    for (size_t from = 0; from < PROBE_PAGES; from++) {
      for (size_t to = from + 1; to <= PROBE_PAGES; to++) {
        size_t n = (to - from) * page;
        CHECK(tde_readable(p + from * page, n) == (to <= there));
        CHECK(tde_readable(p + from * page + page - 16, n - page + 16) == (to <= there));
        CHECK(tde_readable(p + from * page, n - page + 1) == (to <= there));
        CHECK(tde_readable(p + from * page + page - 1, n - page + 1) == (to <= there));
      }
    }
    munmap(p, PROBE_PAGES * page);
  }
}

static void probe_of_memory_without_access(void) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  uint8_t *p = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  sigset_t before, after;
  if (!tde_probe_works()) SKIP("no Linux, or under valgrind");
  REQUIRE(p != MAP_FAILED);
  memset(p, 0xff, 3 * page); /* read as a mask: every signal */
  REQUIRE(pthread_sigmask(SIG_SETMASK, NULL, &before) == 0);
  errno = 4711;
  CHECK(tde_readable(p, 3 * page) && tde_readable(p + 1, 1));
  REQUIRE(mprotect(p + page, page, PROT_NONE) == 0);
  CHECK(tde_readable(p, page) && tde_readable(p + 2 * page, page));
  CHECK(!tde_readable(p, page + 1) && !tde_readable(p, 3 * page));
  CHECK(!tde_readable(p + page, 1) && !tde_readable(p + 2 * page - 1, 2));
  CHECK(errno == 4711); /* neither this nor the signals are touched */
  REQUIRE(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
  for (int sig = 1; sig <= SIGRTMAX; sig++) {
    CHECK(sigismember(&before, sig) == sigismember(&after, sig));
  }
  munmap(p, 3 * page);
  CHECK(!tde_readable(p, 1));
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"status_texts", status_texts},
      {"status_other_steps", status_other_steps},
      {"status_truncation", status_truncation},
      {"status_classes", status_classes},
      {"log_lines", log_lines},
      {"bytes_integers", bytes_integers},
      {"bytes_hex", bytes_hex},
      {"bytes_base64url", bytes_base64url},
      {"bytes_base64", bytes_base64},
      /* Before those that may reach a user's limit, and have the one warning. */
      {"secret_unlocked_warns_once", secret_unlocked_warns_once},
      {"secret_blocks", secret_blocks},
      {"secret_many", secret_many},
      {"secret_gives_back", secret_gives_back},
      {"secret_guards", secret_guards},
      {"secret_flags", secret_flags},
      {"secret_fork", secret_fork},
      {"secret_double_free", secret_double_free},
      {"secret_out_of_memory", secret_out_of_memory},
      {"secret_threads", secret_threads},
      {"secret_compare", secret_compare},
      {"probe_of_a_file_that_ends", probe_of_a_file_that_ends},
      {"probe_of_memory_without_access", probe_of_memory_without_access},
  };
  return unit_main(argc, argv, tests, COUNT(tests));
}
