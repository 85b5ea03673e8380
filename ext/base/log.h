/*
** log.h: where one-line diagnostics go.
**
** The base does not know SQLite, so the extension sets the sink (sqlite3_log).
** Before that, lines are dropped. A line never holds key material, a token or
** page content; `make lint` looks for it.
*/
#ifndef TDE_LOG_H
#define TDE_LOG_H

#include "status.h"

typedef enum tde_level { TDE_LOG_NOTICE = 0, TDE_LOG_WARNING = 1, TDE_LOG_ERROR = 2 } tde_level;

typedef void (*tde_log_sink)(tde_level level, const char *line);

void tde_log_set_sink(tde_log_sink sink);
void tde_log(tde_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* "[class] subject: message", and "next step: remedy" on a line of its own:
** SQLite's log cuts a line at 210 bytes. subject may be NULL. */
void tde_log_status(tde_level level, const char *subject, const tde_status *st);

#endif
