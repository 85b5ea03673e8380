/*
** logview.h: what stands in a database's WAL or rollback journal, for people and
** for the rotation rule: which protector's thumbprint a log is stamped with.
*/
#ifndef TDE_LOGVIEW_H
#define TDE_LOGVIEW_H

#include <stddef.h>

#include "tdevfs.h"

typedef struct tde_log_view {
  int exists;                   /* the file is there and not empty */
  int stamped;                  /* its prefix is whole; what follows is of that */
  int authentic;                /* ... and verifies under the database's key (open databases) */
  uint64_t bytes;               /* of the file */
  uint32_t epoch;               /* DEK epoch at the generation's start */
  uint32_t page_size;           /* WAL: of its frames; journal: 0 */
  uint64_t units;               /* whole records: frames of a WAL, 512-byte units of a journal */
  uint8_t salt[TDE_SALT_BYTES]; /* names the generation */
  uint8_t thumbprint[TDE_THUMB_BYTES];
  /* A WAL whose wal-index this connection has open. */
  int indexed;
  uint32_t frames;   /* committed */
  uint32_t restored; /* of these: in the database file already */
} tde_log_view;

/* Of an open database. Returns an SQLite code. */
int tde_file_log(tde_file *f, int journal, tde_log_view *out);
/* Of one that need not be open. vfs: the VFS below, NULL: the default one. */
int tde_log_peek(const char *path, const char *vfs, int journal, tde_log_view *out);

/* Which processes hold locks on the database's wal-index: "process 12, this process",
** or "" where the system does not tell. */
void tde_log_holders(const char *path, char *out, size_t n);

#endif
