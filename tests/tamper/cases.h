/*
** cases.h: the tests, each a function that returns how many of its cases came
** out wrong; the first few are printed. *cases gets their number.
*/
#ifndef TDE_TAMPER_CASES_H
#define TDE_TAMPER_CASES_H

#include <stdarg.h>
#include <stdio.h>

/* One test's count. */
typedef struct tally {
  unsigned cases, wrong;
} tally;

static inline void __attribute__((format(printf, 3, 4)))
judge(tally *t, int right, const char *format, ...) {
  va_list ap;

  t->cases++;
  if (right || t->wrong++ >= 5) return;
  va_start(ap, format);
  printf("  wrong: ");
  vprintf(format, ap);
  printf("\n");
  va_end(ap);
}

/* main.c: units of the main database, and the header */
tally main_bits(void);
tally main_fields(void);
tally main_moves(void);
tally main_replay(void);
tally main_length(void);
tally main_live_cut(void);
tally header_bits(void);
tally header_forged(void);
tally header_whole(void);
tally guard_areas(void);
/* logs.c: WAL and rollback journal */
tally wal_bits(void);
tally wal_live(void);
tally wal_moves(void);
tally wal_generations(void);
tally wal_replaced(void);
tally wal_index(void);
tally wal_length(void);
tally wal_main_cut(void);
tally journal_bits(void);
tally journal_moves(void);
tally journal_length(void);
tally journal_main_cut(void);
tally journal_free_cut(void);
/* pure.c: the unit and the layout by themselves */
tally unit_associated(void);
tally layout(void);

#endif
