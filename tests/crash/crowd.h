/*
** crowd.h: what the programs have in common that let processes work on one database and
** kill them: the first complaint of any of them, waiting, children.
**
** No process that is forked has an open connection, and the parent never opens a database:
** every process fetches its keys anew.
*/
#ifndef CRASH_CROWD_H
#define CRASH_CROWD_H

#include <sqlite3.h>
#include <sys/types.h>

#define CROWD_COMPLAINT 800

/* Memory that all children share, zeroed. NULL when there is none. */
void *crowd_memory(size_t n);

/* Where complaints go: CROWD_COMPLAINT bytes of shared memory. The first counts. */
void crowd_hear(char *complaint);
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* In a child, before anything else: SQLite's log goes to stderr if so wished, the extension
** is registered unless plain. Ends the process where it can not be. */
void crowd_start(int plain, int verbose);

/* What the extension has last written to SQLite's log in this process, or "". */
const char *crowd_last_words(void);

/* A busy handler that sleeps less than SQLite's own; p: (void *)times, how often at most. */
int crowd_wait(void *p, int times);

/* 1: what the connection met only says to come again. */
int crowd_passing(sqlite3 *db);

/* The first column of the statement's first row, or the error message. An error, or SQLITE_OK:
** there was a row. */
int crowd_ask(sqlite3 *db, const char *sql, char *out, size_t n);
/* Complains unless the first column of the first row contains want. */
void crowd_expect(sqlite3 *db, const char *sql, const char *want);

/* A child that runs run(), which must not return. */
pid_t crowd_child(void (*run)(void));
/* Kills a child and forgets it; complains when it had died of something else. */
void crowd_kill(pid_t *pid);
/* Waits for a child, and complains when it failed. */
void crowd_join(pid_t pid, const char *what);

/* Somebody without the extension opens an encrypted database, *db, which is the caller's to close,
** and tries to read and to checkpoint it. 1: it can be read. */
int crowd_stranger(const char *file, sqlite3 **db);

/* Removes a database's file, and what lies beside it. */
void crowd_remove_database(const char *file);

/* A decimal argument; what is none counts as 0. */
long crowd_number(const char *text);

#endif
