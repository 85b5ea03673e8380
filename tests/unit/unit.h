/*
** unit.h: what a unit test program needs, and no more.
**
** A program defines `static const unit_test tests[]` and ends with
** `return unit_main(argc, argv, tests, COUNT(tests))`. Each failed check
** prints one line with file and line; the last line of output is exactly
** "N passed, N failed, N skipped", and the exit status is 1 when a test
** failed. Arguments, if any, name the tests to run.
**
** CHECK goes on after a failure, REQUIRE leaves the function. Both may be used
** from several threads. A forked child ends with unit_child_exit, and the parent
** checks its status.
*/
#ifndef TDE_TESTS_UNIT_H
#define TDE_TESTS_UNIT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

typedef struct unit_test {
  const char *name;
  void (*run)(void);
} unit_test;

static atomic_int unit_failures; /* of the running test */
static const char *unit_skipped; /* its reason for skipping, or NULL */

static inline int unit_check(int ok, const char *what, const char *file, int line) {
  if (!ok) {
    unit_failures++;
    printf("%s:%d: failed: %s\n", file, line, what);
    fflush(stdout);
  }
  return ok;
}

#define CHECK(x) unit_check(!!(x), #x, __FILE__, __LINE__)
#define REQUIRE(x)        \
  do {                    \
    if (!CHECK(x)) return; \
  } while (0)
#define SKIP(why)       \
  do {                  \
    unit_skipped = why; \
    return;             \
  } while (0)

/* Ends a forked child with status 0 or 1. By exec, so that valgrind does not
** report what the parent's threads held as the child's leaks. */
static inline _Noreturn void unit_child_exit(int ok) {
  const char *path = ok ? "/bin/true" : "/bin/false";
  execl(path, path, (char *)NULL);
  _exit(ok ? 0 : 1);
}

static inline int unit_wanted(const char *name, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], name) == 0) return 1;
  }
  return argc < 2;
}

static inline int unit_main(int argc, char **argv, const unit_test *tests, size_t n) {
  int passed = 0, failed = 0, skipped = 0;
  for (size_t i = 0; i < n; i++) {
    if (!unit_wanted(tests[i].name, argc, argv)) continue;
    unit_failures = 0;
    unit_skipped = NULL;
    fflush(stdout);
    tests[i].run();
    if (unit_failures) {
      failed++;
      printf("FAIL %s\n", tests[i].name);
    } else if (unit_skipped) {
      skipped++;
      printf("skip %s: %s\n", tests[i].name, unit_skipped);
    } else {
      passed++;
    }
  }
  printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  fflush(stdout);
  return failed ? 1 : 0;
}

#endif
