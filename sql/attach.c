/*
** attach.c: what is refused of ATTACH, VACUUM INTO and VACUUM; see attach.h.
**
** SQLite tells the VFS which connection opens a file (SQLITE_FCNTL_PDB), not in which
** statement; the one that runs tells that. It is asked in the midst of SQLite's open, where
** locks of a shared cache are held: what takes such a lock must not be called here.
*/
#include "attach.h"

#include <string.h>

#include "../vfs/tdevfs.h"

SQLITE_EXTENSION_INIT3

/* Is this a byte of a word, as SQLite sees it? */
static int in_word(char b) {
  return (b & 0x80) || b == '_' || b == '$' || (b >= '0' && b <= '9') || (b >= 'A' && b <= 'Z') ||
         (b >= 'a' && b <= 'z');
}

static size_t word(const char *sql) {
  size_t n = 0;

  while (in_word(sql[n])) n++;
  return n;
}

/* Behind what may stand before a word: space, comments, a byte order mark. */
static const char *skip(const char *sql) {
  const char *end;

  for (;;) {
    sql += strspn(sql, " \t\r\n\f;");
    if (strncmp(sql, "--", 2) == 0) {
      sql += strcspn(sql, "\n");
    } else if (strncmp(sql, "\xef\xbb\xbf", 3) == 0) {
      sql += 3;
    } else if (strncmp(sql, "/*", 2) == 0) {
      end = strstr(sql + 2, "*/");
      sql = end ? end + 2 : sql + strlen(sql);
    } else {
      return sql;
    }
  }
}

/* Does the text go on with this word? Then *rest is what follows it. */
static int begins(const char *sql, const char *with, const char **rest) {
  size_t n = strlen(with);

  sql = skip(sql);
  if (word(sql) != n || sqlite3_strnicmp(sql, with, (int)n) != 0) return 0;
  *rest = skip(sql + n);
  return 1;
}

/* The name of the schema that VACUUM copies: what stands between it and INTO. */
static char *vacuumed(const char *rest) {
  char quote = rest[0] == '[' ? ']' : rest[0], *name, *to;
  const char *in;

  if (!quote || begins(rest, "INTO", &in)) return sqlite3_mprintf("main");
  if (!strchr("\"'`]", quote)) {
    return sqlite3_mprintf("%.*s", (int)word(rest), rest);
  }
  name = sqlite3_mprintf("%s", rest + 1);
  for (in = to = name; name && *in; in++) {
    if (*in == quote && *++in != quote) break; /* doubled, it stands for itself */
    *to++ = *in;
  }
  if (name) *to = 0;
  return name;
}

/* What runs on the connection. *schema: the one that VACUUM copies, the caller's, or NULL;
** *attaches: ATTACH runs, which VACUUM INTO does, too. */
static tde_class running(sqlite3 *db, char **schema, int *attaches) {
  const char *sql, *rest;
  sqlite3_stmt *s;

  *schema = NULL;
  *attaches = 0;
  for (s = sqlite3_next_stmt(db, NULL); s; s = sqlite3_next_stmt(db, s)) {
    sql = sqlite3_stmt_busy(s) ? sqlite3_sql(s) : NULL;
    if (!sql) continue;
    *attaches |= begins(sql, "ATTACH", &rest);
    if (!begins(sql, "VACUUM", &rest)) continue;
    *schema = vacuumed(rest);
    return *schema ? TDE_OK : TDE_NOMEM;
  }
  return TDE_OK;
}

/* Is the database under a protector of its own, not the instance's default one? */
static int has_own_protector(tde_file *f) {
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  int own = 1;

  if (info) {
    tde_file_info_get(f, 0, info);
    own = strcmp(info->facts.mode, "database") == 0;
  }
  sqlite3_free(info);
  return own;
}

static tde_class check(const char *from, int copies, const char *path, const char *instance,
                       tde_status *st) {
  const char *why = NULL, *has;
  tde_file *f = tde_file_named(from);

  if (!f && (from || !copies)) return TDE_OK;
  has = f ? tde_file_instance(f) : NULL;
  if (!f) { /* its name was not understood: what is not known is not let through */
    why = "the database that is copied cannot be told from the statement";
  } else if (has && instance && strcmp(has, instance) != 0) {
    why = "the database of this connection has another instance";
  } else if (copies && has_own_protector(f)) {
    why = "the database that is copied has a protector of its own";
  }
  if (!why) return TDE_OK;
  return tde_fail(
      st, TDE_MISCONFIGURED,
      copies ? "name tde_instance= or tde_protector= in the URI of VACUUM INTO, or use tde_copy() "
               "(an empty file may have stayed: remove it, or use another name)"
             : "name tde_instance= or tde_protector= in the URI of ATTACH (an empty file may have "
               "stayed)",
      "%s: would be a new database under the default instance's key, but %s", path, why);
}

tde_class tde_attach_check(sqlite3 *db, const char *path, const char *instance, tde_status *st) {
  char *schema = NULL;
  int attaches = 0;
  tde_class c = running(db, &schema, &attaches);

  if (c) return tde_fail(st, c, NULL, "out of memory");
  if (schema || attaches) {
    c = check(sqlite3_db_filename(db, schema ? schema : "main"), schema != NULL, path, instance,
              st);
  }
  sqlite3_free(schema);
  return c;
}

tde_class tde_attach_vacuum_check(sqlite3 *db, const char *path, tde_status *st) {
  const char *copied;
  char *schema = NULL;
  int attaches = 0;
  tde_class c = running(db, &schema, &attaches);

  if (c) return tde_fail(st, c, NULL, "out of memory");
  copied = schema ? sqlite3_db_filename(db, schema) : NULL;
  if (copied && copied != sqlite3_db_filename(db, "main") && strcmp(copied, path) == 0) {
    c = tde_fail(
        st, TDE_MISUSE,
        "open it as a connection's main database and VACUUM there, or make tde the default "
        "VFS (tde_default) before this connection is opened",
        "%s: VACUUM would copy it in plain, to a temporary file of the main database's VFS", path);
  }
  sqlite3_free(schema);
  return c;
}
