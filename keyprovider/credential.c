/*
** credential.c: see credential.h.
*/
#include "credential.h"

#include <stdlib.h>
#include <string.h>

#include "files.h"

const char *tde_credential_env(const char *name) {
  const char *v = secure_getenv(name);
  return v != NULL ? v : "";
}

/* Cuts the line end that an editor leaves. */
static void chomp(char *text) {
  size_t n = strlen(text);
  while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r')) text[--n] = 0;
}

tde_class tde_credential_file(const char *path, size_t max, char **out, size_t *n, tde_status *st) {
  size_t got = 0;
  tde_class rc = tde_file_read(path, TDE_FILE_GIVEN, max, out, &got, NULL, st);
  if (rc == TDE_MISSING || rc == TDE_DENIED) {
    /* A file that is not there says nothing about the key. */
    rc = tde_fail(st, TDE_MISCONFIGURED, "put the file there, or correct instance.json",
                  "the identity's file %s is missing or cannot be read", path);
  }
  if (rc != TDE_OK) return rc;
  chomp(*out);
  if (n != NULL) *n = strlen(*out);
  return TDE_OK;
}

tde_class tde_credential_workload(const char *path, const char *remedy, char **out,
                                  tde_status *st) {
  size_t n = 0;
  tde_class rc = tde_file_read(path, TDE_FILE_TRUSTED, TDE_CREDENTIAL_FILE_MAX, out, &n, NULL, st);
  if (rc == TDE_OK) {
    chomp(*out);
    return TDE_OK;
  }
  if (rc != TDE_MISSING && rc != TDE_DENIED) return rc;
  return tde_fail(st, TDE_MISCONFIGURED, remedy,
                  "the federated token file %.200s is missing or cannot be read", path);
}
