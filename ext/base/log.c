/*
** log.c: one-line diagnostics, handed to the sink.
**
** What must hold: callable from any thread and under any lock of the product's
** callers (it takes none and allocates nothing), and it leaves errno alone, so
** that a warning between a failed system call and its report does no harm.
*/
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

static _Atomic(tde_log_sink) current_sink;

void tde_log_set_sink(tde_log_sink sink) {
  atomic_store_explicit(&current_sink, sink, memory_order_release);
}

void tde_log(tde_level level, const char *fmt, ...) {
  tde_log_sink sink = atomic_load_explicit(&current_sink, memory_order_acquire);
  if (!sink) return;
  int saved = errno;
  char line[1200];
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(line, sizeof line, fmt, ap);
  va_end(ap);
  if (n > 0) {
    tde_clean_line(line);
    sink(level, line);
  }
  errno = saved;
}

void tde_log_status(tde_level level, const char *subject, const tde_status *st) {
  tde_log(level, "[%s] %s%s%s", tde_class_name(st->code), subject ? subject : "",
          subject ? ": " : "", st->message);
  if (st->remedy[0]) tde_log(TDE_LOG_NOTICE, "next step: %s", st->remedy);
}
