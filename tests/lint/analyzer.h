/*
** analyzer.h: what the static analyzer is told beside the source.
**
** tde_fail returns the class that it is given, never TDE_OK; its body is in
** another file, so the analyzer would follow paths on which a failure counts as
** success. clang-tidy reads this in front of every file but status.c.
*/
#ifndef TDE_ANALYZER_H
#define TDE_ANALYZER_H

#include "ext/base/status.h"

#define tde_fail(st, code, ...) ((void)(tde_fail)((st), (code), __VA_ARGS__), (tde_class)(code))

#endif
