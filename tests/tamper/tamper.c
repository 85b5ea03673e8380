/*
** tamper.c: every bit of every kind of sealed byte flipped; units moved, cut
** off, replayed. See main.c, logs.c and pure.c for what must hold.
*/
#include <time.h>
#include <unistd.h>

#include "../../ext/tde.h"
#include "../unit/unit.h"
#include "cases.h"
#include "files.h"

/* The shim waits a moment before it reads a unit that does not open again, in
** case a writer is at work. None is here, and 100,000 waits are minutes. This
** takes the C library's place. */
int usleep(useconds_t n) {
  (void)n;
  return 0;
}

#define TEST(name)                                                                 \
  static void test_##name(void) {                                                  \
    struct timespec a, b;                                                          \
    tally t;                                                                       \
    clock_gettime(CLOCK_MONOTONIC, &a);                                            \
    t = name();                                                                    \
    clock_gettime(CLOCK_MONOTONIC, &b);                                            \
    printf("  %-16s %6u cases, %u wrong, %.1f s\n", #name, t.cases, t.wrong,       \
           (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9); \
    CHECK(t.cases > 0 && t.wrong == 0);                                            \
  }

#define TESTS(X)                                                                             \
  X(unit_associated)                                                                         \
  X(layout)                                                                                  \
  X(main_bits)                                                                               \
  X(main_fields) X(main_moves) X(main_replay) X(main_length) X(header_bits) X(header_forged) \
      X(header_whole) X(guard_areas) X(wal_bits) X(wal_live) X(wal_moves) X(wal_generations) \
          X(wal_replaced) X(wal_index) X(wal_length) X(wal_main_cut) X(journal_bits)         \
              X(journal_moves) X(journal_length) X(journal_main_cut) X(journal_free_cut)     \
                  X(main_live_cut)

TESTS(TEST)

#define ROW(name) {#name, test_##name},
static const unit_test tests[] = {TESTS(ROW)};

static void no_log(void *ctx, int code, const char *text) {
  (void)ctx;
  (void)code;
  (void)text;
}

int main(int argc, char **argv) {
  int rc;

  if (scratch_make() != 0) return 2;
  sqlite3_config(SQLITE_CONFIG_LOG, no_log, NULL);
  if (tde_register() != SQLITE_OK) return 2;
  rc = unit_main(argc, argv, tests, COUNT(tests));
  scratch_remove();
  return rc;
}
