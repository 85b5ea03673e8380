/*
** lanes.h: whose turn it is to be asked in the background.
**
** A key service that hangs keeps whoever asks it waiting for as long as a request may take.
** What bounds the harm to others:
**  - each host of key services has one lane, in which one check at a time is made: the rest
**    of its databases stand in line, the longest due first;
**  - hosts that did not answer the last time have TDE_LANES_SILENT of the TDE_LANES lanes
**    together. So a host keeps a thread from the others once, for one request, when it falls
**    silent, and after that does not.
** A database whose host answers waits for a thread only while TDE_LANES hosts fall silent at
** the same time.
** Nothing here locks: keyring.c's lock does.
*/
#ifndef TDE_LANES_H
#define TDE_LANES_H

#include <stdint.h>

#include "../ext/base/status.h"

/* As many checks are under way at once: the threads of watch.c. */
#define TDE_LANES 4
#define TDE_LANES_SILENT 2

typedef enum tde_lane {
  TDE_LANE_FREE,
  TDE_LANE_TAKEN,
  TDE_LANE_STUCK /* nothing moves: the host is silent, or a request of it goes on for long */
} tde_lane;

/* A request that goes on for so long, in milliseconds, is not waited for any more by those who
** stand in line: they take it for an outage. */
#define TDE_LANE_STUCK_MS 2000

/* May the host of this key be asked now (milliseconds)? */
tde_lane tde_lanes_look(const char *key_id, int64_t now);
/* `who` asks it, until it leaves. To leave without having entered is allowed. */
void tde_lanes_enter(const void *who, const char *key_id, int64_t now);
void tde_lanes_leave(const void *who);
/* A request for a key of that host ended so. */
void tde_lanes_heard(const char *key_id, tde_class c);
/* Have both keys one host: the authority of an https id, else what stands before the colon? */
int tde_lanes_same(const char *a, const char *b);
/* In a forked child, where nobody asks yet. */
void tde_lanes_clear(void);

#endif
