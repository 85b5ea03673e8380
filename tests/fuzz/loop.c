/*
** loop.c: the fuzz targets without libFuzzer: replays inputs, then mutates them.
**
**   loop TARGET [-runs=N] [-seed=S] [-crash=FILE] [FILE or FOLDER]...
**   loop -words=TARGET      the target's dictionary, in libFuzzer's form
**   loop -list              the targets
**
** Each FILE is run as it is; then N inputs that are mutations of them, the
** same for the same seed. It knows no coverage: it is for compilers without
** libFuzzer, and for a quick look that is the same everywhere. When a run fails,
** its input is left in FILE (default: crash-TARGET) and its seed is printed.
*/
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

static const fuzz_target *const targets[] = {
    &fuzz_slot,  &fuzz_prefix,   &fuzz_unit,    &fuzz_keydoc, &fuzz_json,
    &fuzz_keyid, &fuzz_instance, &fuzz_service, &fuzz_text,   &fuzz_db};
#define NTARGETS (sizeof(targets) / sizeof(targets[0]))

/* A run takes milliseconds. */
#define HANG_SECONDS 20
#define INPUTS_MAX 4096

typedef struct input {
  uint8_t *p;
  size_t n;
} input;

static input inputs[INPUTS_MAX];
static size_t ninputs;

/* The input that is running, for the handlers. */
static const uint8_t *now_data;
static size_t now_size;
static char crash_path[512], now_text[600];

/* ---- when a run fails ---- */

static void leave_input(void) {
  int fd = now_data ? open(crash_path, O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
  ssize_t ok = write(2, now_text, strlen(now_text));

  if (fd >= 0) {
    ok = write(fd, now_data, now_size);
    (void)close(fd);
  }
  (void)ok;
  now_data = NULL;
}

static void on_signal(int sig) {
  static const char hang[] = "the run did not end in time\n";

  if (sig == SIGALRM && write(2, hang, sizeof(hang) - 1) < 0) _exit(2);
  leave_input();
  (void)signal(sig, SIG_DFL);
  (void)raise(sig);
}

/* There when a sanitizer is. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void catch_failures(void) {
  static const int sigs[] = {SIGABRT, SIGALRM, SIGFPE, SIGILL};

  for (size_t i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++) (void)signal(sigs[i], on_signal);
  if (__sanitizer_set_death_callback) {
    __sanitizer_set_death_callback(leave_input);
  } else {
    (void)signal(SIGSEGV, on_signal);
    (void)signal(SIGBUS, on_signal);
  }
}

static void run_one(const fuzz_target *t, const uint8_t *data, size_t size) {
  now_data = data;
  now_size = size;
  (void)alarm(HANG_SECONDS);
  t->run(data, size);
  now_data = NULL;
}

/* ---- inputs ---- */

static void read_file(const char *path) {
  FILE *f = fopen(path, "rb");
  struct stat sb;
  input *in = &inputs[ninputs];

  if (!f || fstat(fileno(f), &sb) != 0 || ninputs == INPUTS_MAX) {
    fprintf(stderr, "%s: can not be read\n", path);
    exit(2);
  }
  in->n = (size_t)sb.st_size;
  in->p = malloc(in->n + 1);
  FUZZ_ASSERT(in->p && fread(in->p, 1, in->n, f) == in->n);
  (void)fclose(f);
  ninputs++;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

static void read_path(const char *path) {
  struct dirent **list = NULL;
  struct stat sb;
  char name[1024];
  int n;

  if (stat(path, &sb) == 0 && !S_ISDIR(sb.st_mode)) {
    read_file(path);
    return;
  }
  /* The same order everywhere, so that a seed means the same. */
  n = scandir(path, &list, NULL, by_name);
  for (int i = 0; i < n; i++) {
    (void)snprintf(name, sizeof(name), "%s/%s", path, list[i]->d_name);
    if (list[i]->d_name[0] != '.') read_file(name);
    free(list[i]);
  }
  free(list);
}

/* ---- mutation ---- */

static uint64_t state;

/* xorshift64*: apart from fuzz_random, which the runs themselves use. */
static size_t below(size_t n) {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return n ? (size_t)((state * UINT64_C(0x2545f4914f6cdd1d)) >> 33) % n : 0;
}

static void insert(uint8_t *b, size_t *n, size_t cap, const void *p, size_t len) {
  size_t at = below(*n + 1);

  if (*n + len > cap) return;
  memmove(b + at + len, b + at, *n - at);
  memcpy(b + at, p, len);
  *n += len;
}

static void mutate_once(const fuzz_target *t, uint8_t *b, size_t *n) {
  size_t at = below(*n), len, words = 0;
  uint8_t noise[8];

  for (size_t i = 0; i < sizeof(noise); i++) noise[i] = (uint8_t)below(256);
  while (t->words && t->words[words]) words++;
  switch (below(7)) {
    case 0:
      if (*n) b[at] ^= (uint8_t)(1u << below(8));
      break;
    case 1:
      if (*n) b[at] = (uint8_t)below(256);
      break;
    case 2:
      insert(b, n, t->max_len, noise, 1 + below(8));
      break;
    case 3:
      len = at + 1 + below(8) > *n ? *n - at : 1 + below(8);
      if (at + len > *n) len = *n - at;
      memmove(b + at, b + at + len, *n - at - len);
      *n -= len;
      break;
    case 4:
      if (ninputs) {
        const input *in = &inputs[below(ninputs)];
        size_t from = below(in->n), most = in->n - from;
        insert(b, n, t->max_len, in->p + from, below(most + 1));
      }
      break;
    case 5:
      if (words) {
        const char *word = t->words[below(words)];
        insert(b, n, t->max_len, word, strlen(word));
      }
      break;
    default:
      if (*n) *n = below(*n) + 1;
      break;
  }
}

static void fuzz(const fuzz_target *t, unsigned long runs, uint64_t seed) {
  uint8_t *b = malloc(t->max_len);

  FUZZ_ASSERT(b != NULL);
  for (unsigned long k = 0; k < runs; k++) {
    const input *in = ninputs ? &inputs[k % ninputs] : NULL;
    size_t n = in ? in->n : 0, times;
    uint8_t *exact;
    state = (seed * UINT64_C(1000003) + k + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;
    for (int i = 0; i < 4; i++) (void)below(2);
    if (n > t->max_len) n = t->max_len;
    if (n) memcpy(b, in->p, n);
    for (times = 1 + below(8); times; times--) mutate_once(t, b, &n);
    (void)snprintf(now_text, sizeof(now_text),
                   "\nFAILED: %s, seed %llu, run %lu; the input is in %s\n", t->name,
                   (unsigned long long)seed, k, crash_path);
    exact = malloc(n ? n : 1);
    FUZZ_ASSERT(exact != NULL);
    memcpy(exact, b, n);
    run_one(t, exact, n);
    free(exact);
  }
  free(b);
}

/* ---- the program ---- */

static const fuzz_target *find(const char *name) {
  for (size_t i = 0; i < NTARGETS; i++) {
    if (strcmp(targets[i]->name, name) == 0) return targets[i];
  }
  fprintf(stderr, "%s: no such target\n", name);
  exit(2);
}

static void print_words(const fuzz_target *t) {
  for (size_t i = 0; t->words && t->words[i]; i++) {
    (void)putchar('"');
    for (const char *p = t->words[i]; *p; p++) {
      if (*p < ' ' || *p > '~' || *p == '"' || *p == '\\') {
        printf("\\x%02x", (unsigned)(uint8_t)*p);
      } else {
        (void)putchar(*p);
      }
    }
    printf("\"\n");
  }
}

int main(int argc, char **argv) {
  const fuzz_target *t = NULL;
  unsigned long runs = 0;
  uint64_t seed = 1;

  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "-list") == 0) {
      for (size_t k = 0; k < NTARGETS; k++) printf("%s\n", targets[k]->name);
      return 0;
    }
    if (strncmp(argv[i], "-words=", 7) == 0) {
      print_words(find(argv[i] + 7));
      return 0;
    }
    if (strncmp(argv[i], "-runs=", 6) == 0) {
      runs = strtoul(argv[i] + 6, NULL, 10);
    } else if (strncmp(argv[i], "-seed=", 6) == 0) {
      seed = strtoull(argv[i] + 6, NULL, 10);
    } else if (strncmp(argv[i], "-crash=", 7) == 0) {
      (void)snprintf(crash_path, sizeof(crash_path), "%s", argv[i] + 7);
    } else if (!t) {
      t = find(argv[i]);
    } else {
      read_path(argv[i]);
    }
  }
  if (!t) {
    fprintf(stderr, "usage: %s TARGET [-runs=N] [-seed=S] [-crash=FILE] [FILE or FOLDER]...\n",
            argv[0]);
    return 2;
  }
  if (!crash_path[0]) (void)snprintf(crash_path, sizeof(crash_path), "crash-%s", t->name);
  catch_failures();
  if (t->setup) t->setup();
  for (size_t i = 0; i < ninputs; i++) {
    (void)snprintf(now_text, sizeof(now_text), "\nFAILED: %s, kept input %zu; it is in %s\n",
                   t->name, i + 1, crash_path);
    run_one(t, inputs[i].p, inputs[i].n);
  }
  fuzz(t, runs, seed);
  for (size_t i = 0; i < ninputs; i++) free(inputs[i].p);
  printf("%s: %zu kept inputs, %lu mutations\n", t->name, ninputs, runs);
  return 0;
}
