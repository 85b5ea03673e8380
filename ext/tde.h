/*
** tde.h: the public C interface, for programs that link sqlite-tde in instead
** of loading it as an extension.
**
** Static link: build/libtde.a with -lsqlite3 -lcrypto -lcurl -ljansson.
**
**     tde_register();                                   // once, before opening
**     sqlite3_open_v2("file:app.db?vfs=tde", &db,
**                     SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, 0);
**
** Every connection of the process then has the SQL functions, too.
*/
#ifndef TDE_H
#define TDE_H

#ifdef __cplusplus
extern "C" {
#endif

/* Registers the VFS "tde" on top of the default VFS and the SQL functions for
** every connection opened later. Idempotent, thread-safe. Returns an SQLite
** result code; SQLITE_OK also when it was registered already. */
int tde_register(void);

/* on != 0: makes "tde" the default VFS for connections opened later, so that
** no URI is needed; those that are open keep theirs, also for what they
** attach. on == 0: restores the default that was there before. Returns an
** SQLite result code. */
int tde_make_default(int on);

/* Told of long operations (encrypt, decrypt, verify, backup, restore, copy, a new
** DEK) some times a second, from the thread that runs them: what is done of how
** much, in units of the operation's own. A result other than 0 interrupts it, as
** sqlite3_interrupt does. NULL: nobody is told. The texts live until it returns.
** The callback uses no SQLite connection. */
void tde_set_progress(int (*callback)(void *ctx, const char *operation, const char *path,
                                      long long done, long long total),
                      void *ctx);

#ifdef __cplusplus
}
#endif
#endif
