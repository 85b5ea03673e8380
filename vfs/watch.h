/*
** watch.h: asks key services about the DEKs of open databases in the background.
**
** A thread of the process's own, started when there is something to ask over a
** network, or when a check is overdue; a few more join it while a key service
** keeps it waiting. It never holds a lock that a query needs while it waits. It
** ends with the process, bounded in time; a forked child starts its own, when it first
** uses a database there.
**
** Where no thread can be started the check is made at the begin of a transaction, and so is
** the first one of a local key: who opens databases under local keys for a moment gets no
** thread for it. Until a transaction begins, nobody asks about those.
*/
#ifndef TDE_WATCH_H
#define TDE_WATCH_H

#include "keyring.h"

/* A check is due at this time; start: a thread is to be there by then. */
void tde_watch_note(int64_t due, int start);
/* A transaction begins and a check is overdue. Returns 0 where no thread looks
** after it. */
int tde_watch_kick(void);

/* What is to be done for an open database beside checks (a new version of its
** protector, the instance's new default protector): called from a thread of the
** watch, with no lock held, after each check that left the database its key (also in Grace: who
** can not reach a key service may move away from it), if this process has the database open for
** writing. Set once at start-up. */
typedef void (*tde_watch_job)(const uint8_t uuid[TDE_UUID_BYTES], const tde_key_facts *facts,
                              const tde_key_params *params);
void tde_watch_set_job(tde_watch_job job);

/* For tests: no thread is started any more. */
void tde_watch_forbid(void);
/* For tests: threads running now. */
int tde_watch_threads(void);

#endif
