/*
** live.h: the connections open in the test program; see live.c.
*/
#ifndef SUITE_LIVE_H
#define SUITE_LIVE_H

/* Starts to follow connections opened from now on. Returns an SQLite code. */
int suite_live_start(void);

/* Makes every shim file of this database, its WAL and its journal write what
** it holds back. path: the database. */
void suite_live_flush(const char *path);

#endif
