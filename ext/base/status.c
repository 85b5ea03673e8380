/*
** status.c: error reports.
**
** What must hold: every text is one line without control characters, because
** it ends up in logs and on terminals, and part of it (a service's error code,
** a key id) comes from outside. Nothing here allocates, so an out-of-memory
** report cannot fail.
*/
#include "status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The length of the UTF-8 sequence that a lead byte announces. */
static size_t sequence_length(unsigned char lead) {
  if (lead >= 0xf0) return 4;
  if (lead >= 0xe0) return 3;
  return lead >= 0xc0 ? 2 : 1;
}

/* Truncation counts bytes, so it can cut a character in two: the rest of a
** line would then be invalid UTF-8 to whoever reads it. */
static void drop_cut_character(char *text, size_t n) {
  size_t back = 0;
  while (back < n && back < 3 && ((unsigned char)text[n - 1 - back] & 0xc0) == 0x80) back++;
  if (back == n) return;
  size_t lead = n - 1 - back;
  if (sequence_length((unsigned char)text[lead]) > back + 1) text[lead] = 0;
}

void tde_clean_line(char *text) {
  size_t n = 0;
  for (; text[n]; n++) {
    unsigned char c = (unsigned char)text[n];
    if (c < 0x20 || c == 0x7f) text[n] = '?';
  }
  drop_cut_character(text, n);
}

tde_class tde_fail(tde_status *st, tde_class code, const char *remedy, const char *fmt, ...) {
  if (!st) return code;
  /* Built aside: the arguments may point into *st. */
  char message[sizeof st->message] = "";
  char step[sizeof st->remedy] = "";
  va_list ap;
  va_start(ap, fmt);
  if (vsnprintf(message, sizeof message, fmt, ap) < 0) message[0] = 0;
  va_end(ap);
  if (remedy) snprintf(step, sizeof step, "%s", remedy);
  tde_clean_line(message);
  tde_clean_line(step);
  st->code = code;
  memcpy(st->message, message, sizeof message);
  memcpy(st->remedy, step, sizeof step);
  return code;
}

void tde_also(tde_status *st, const char *fmt, ...) {
  size_t n = strlen(st->remedy);
  va_list ap;

  if (n > 0) n += (size_t)snprintf(st->remedy + n, sizeof st->remedy - n, "; ");
  if (n >= sizeof st->remedy) return;
  va_start(ap, fmt);
  (void)vsnprintf(st->remedy + n, sizeof st->remedy - n, fmt, ap);
  va_end(ap);
  tde_clean_line(st->remedy);
}

void tde_status_clear(tde_status *st) {
  if (st) memset(st, 0, sizeof *st);
}

const char *tde_class_name(tde_class code) {
  static const char *const names[] = {
      [TDE_OK] = "ok",
      [TDE_NOMEM] = "out-of-memory",
      [TDE_IO] = "io",
      [TDE_BUSY] = "busy",
      [TDE_RANDOM] = "random",
      [TDE_CRYPTO] = "crypto",
      [TDE_INTERNAL] = "internal",
      [TDE_MISUSE] = "misuse",
      [TDE_NOT_ENCRYPTED] = "not-encrypted",
      [TDE_NEWER_FORMAT] = "newer-format",
      [TDE_DAMAGED_HEADER] = "damaged-header",
      [TDE_TAMPERED] = "tampered",
      [TDE_TORN] = "torn",
      [TDE_TRUNCATED] = "truncated",
      [TDE_NOT_AUTHENTIC] = "not-authentic",
      [TDE_UNREACHABLE] = "unreachable",
      [TDE_THROTTLED] = "throttled",
      [TDE_UNAUTHENTICATED] = "unauthenticated",
      [TDE_DENIED] = "denied",
      [TDE_DISABLED] = "disabled",
      [TDE_MISSING] = "missing",
      [TDE_WRONG_KEY] = "wrong-key",
      [TDE_CORRUPT] = "corrupt",
      [TDE_UNSUPPORTED] = "unsupported",
      [TDE_MISCONFIGURED] = "misconfigured",
  };
  size_t i = (size_t)code;
  return i < sizeof names / sizeof names[0] && names[i] ? names[i] : "unknown";
}

int tde_class_is_outage(tde_class code) {
  return code == TDE_UNREACHABLE || code == TDE_THROTTLED;
}

const char *tde_errno_remedy(int err, const char *otherwise) {
  switch (err) {
    case ENOSPC:
    case EDQUOT:
      return "make room on the disk";
    case EFBIG:
      return "raise the limit on file sizes (ulimit -f), or choose a file system without it";
    case EMFILE:
    case ENFILE:
      return "close files, or raise the limit on open ones (ulimit -n)";
    default:
      return otherwise;
  }
}
