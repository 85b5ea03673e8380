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
**
** A process may have ten thousand databases, at one host or at as many: who is first is found
** without a look at each. A line keeps its turns in heaps, by when they are to be looked at and
** what for; and the lines whose lane is free are kept in heaps by the firsts of theirs, those of
** silent hosts apart from the rest, since they wait together. A line whose lane is taken is in
** none of these: there are at most TDE_LANES.
** Nothing here locks: the ring's lock does (keyring_int.h). In a forked child nobody stands in line or asks.
*/
#ifndef TDE_LANES_H
#define TDE_LANES_H

#include <stdint.h>

#include "../ext/base/status.h"
#include "heap.h"

/* As many checks are under way at once: the threads of watch.c. */
#define TDE_LANES 4
#define TDE_LANES_SILENT 2

/* A request that goes on for so long, in milliseconds, is not waited for any more by those who
** stand in line: they take it for an outage. */
#define TDE_LANE_STUCK_MS 2000

typedef struct tde_line tde_line;

/* Somebody's place in a line; all zero: in none. */
typedef struct tde_turn {
  tde_line *line;
  uint64_t process; /* that stands there */
  tde_heap_node ask, pass;
} tde_turn;

/* When a turn comes, in milliseconds; INT64_MAX: never. */
typedef struct tde_turn_times {
  int64_t ask;  /* from here on, while the lane is free */
  int first;    /* ... before others whose time has come */
  int64_t pass; /* is passed over then (tde_lease_pass), while the lane is not free */
  int if_stuck; /* ... and only if nothing moves there: the host is silent, or a request of it goes
                ** on for long */
} tde_turn_times;

/* Whoever may stand in line brings a line, and takes one away in the end (malloc'd): so there is
** one for each host, without memory that might be lacking at the wrong moment. */
void tde_lanes_bring(tde_line *line);
tde_line *tde_lanes_take_away(void);
tde_line *tde_lanes_new_line(void); /* NULL: no memory */

/* Stands in line at the host of this key, at another one before; or has other times. NULL: a local
** key, which waits for nobody. */
void tde_lanes_stand(tde_turn *t, const char *key_id, const tde_turn_times *when);
void tde_lanes_step_out(tde_turn *t);
/* Whose turn it is: to be asked, or else (*ask 0) to be passed over, which takes no time. NULL:
** nobody's. */
tde_turn *tde_lanes_first(int64_t now, int *ask);
/* When to look again: when the next turn comes, which may be past. INT64_MAX: with no time. */
int64_t tde_lanes_next(int64_t now);

/* Who stands in line is asked from here on, and does not stand there until it has left the lane. To
** leave without having entered is allowed. */
void tde_lanes_enter(tde_turn *t, int64_t now);
void tde_lanes_leave(const tde_turn *t);
/* Whoever has left the lane of this key's host before it asked, and stands in no line, enters it
** again. 0: it is not free. NULL: a local key. */
int tde_lanes_return(tde_turn *t, const char *key_id, int64_t now);
/* A request for a key of that host ended so. */
void tde_lanes_heard(const char *key_id, tde_class c);

#endif
