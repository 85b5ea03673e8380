/*
** lease.h: how long a DEK may be used without its key service. Pure.
**
** A DEK that was unwrapped is live on a lease: its protector is asked again
** every check interval. What comes of the answers:
**
**   Live     the last check went well
**   Grace    the key service does not answer (an outage): the DEK goes on
**            serving until the outage grace is over. It counts from when the check was
**            due that met the outage: from the last good answer on, a DEK serves for a check
**            interval and the grace, and no longer
**   Waiting  no DEK, and nobody denied it: an outage outlasted its grace, or
**            there was one when the database was opened. Heals by itself
**   Lost     the service denied the key, twice: the DEK is wiped. (At the opening
**            of a database once is enough: there is no DEK to lose.) Heals by itself
**            when the key is back within the heal window
**   Closed   the heal window is over: only a revalidation asks again
**
** This module decides; keyring.c keeps one lease an entry, under its lock, and
** watch.c asks. Times are milliseconds of one clock that does not jump
** (tde_now_ms). Rules 13 to 16 of the key lifecycle.
*/
#ifndef TDE_LEASE_H
#define TDE_LEASE_H

#include <stdint.h>

#include "../ext/base/status.h"
#include "keysource.h"

typedef enum tde_access {
  TDE_ACCESS_LIVE,
  TDE_ACCESS_GRACE,
  TDE_ACCESS_WAITING,
  TDE_ACCESS_LOST,
  TDE_ACCESS_CLOSED
} tde_access;

static inline int tde_access_is_live(tde_access a) {
  return a == TDE_ACCESS_LIVE || a == TDE_ACCESS_GRACE;
}

typedef struct tde_lease {
  tde_access access;
  int had;            /* the DEK was live once */
  int denials;        /* since the last good answer, while live */
  int64_t checked_at; /* the last answer */
  int64_t due_at;     /* the next check; INT64_MAX: none */
  int64_t since;      /* when this access began */
  int64_t lost_at;    /* when the DEK went, if it is away */
  int64_t retry_ms;   /* the last pause while there is no DEK, or a denial to be confirmed in Grace */
} tde_lease;

/* The name that people see: "Online", "Grace", "Inaccessible", "KeyLost" (of a DEK
** that this process had). */
const char *tde_lease_name(const tde_lease *l);

/* How it stands, for people. */
typedef struct tde_key_report {
  tde_access access;
  const char *name; /* as tde_lease_name has it */
  int checking;     /* the key service is being asked just now */
  int64_t since;    /* Unix times, 0: never */
  int64_t checked_at;
  int64_t next_check;
  int64_t until;   /* end of the grace or of the heal window, or 0 */
  tde_status last; /* of the last check; TDE_OK: it went well */
} tde_key_report;
/* What the owner of a DEK has to do. */
typedef enum tde_lease_act { TDE_LEASE_KEEP, TDE_LEASE_WIPE, TDE_LEASE_HEAL } tde_lease_act;

/* A DEK was fetched. */
void tde_lease_begin(tde_lease *l, int64_t now, const tde_key_policy *p);
/* The first fetch failed with this class. */
void tde_lease_refused(tde_lease *l, tde_class c, int64_t now, const tde_key_policy *p);
/* A check (or a new fetch) ended with this class. forced: a revalidation, which
** heals whatever the access. WIPE: the DEK must go. HEAL: the DEK that was
** fetched may be used from now on. */
tde_lease_act tde_lease_answer(tde_lease *l, tde_class c, int forced, int64_t now,
                               const tde_key_policy *p);
/* The answer was an outage that another database met at this time: the next check is due an interval
** after that. */
void tde_lease_heard(tde_lease *l, int64_t at, const tde_key_policy *p);
/* Time passed: WIPE when a grace is over; the heal window closes here, too. */
tde_lease_act tde_lease_tick(tde_lease *l, int64_t now, const tde_key_policy *p);
/* A check is due that cannot be made yet: others at the same key service are waited for. When
** something is to be done about it all the same: Grace and the heal window end on time, and
** stuck (nothing moves there) a Live one gets into its Grace, if it is overdue for TDE_LINE_MS.
** INT64_MAX: it waits. */
#define TDE_LINE_MS 2000
int64_t tde_lease_unasked(const tde_lease *l, int stuck, const tde_key_policy *p);
/* It is done. The check stays due: nothing was heard of this key. */
tde_lease_act tde_lease_pass(tde_lease *l, int64_t now, const tde_key_policy *p);
/* The header changed: what was lost or closed may be asked for again, now. */
void tde_lease_reopen(tde_lease *l, int64_t now);

/* A transaction that was under way at the loss may go on until here. */
int64_t tde_lease_cutoff(const tde_lease *l, const tde_key_policy *p);

/* Classes that deny the key. Everything else says nothing about it: the
** network, this machine's memory, a configuration that is being edited. */
int tde_class_is_denial(tde_class c);

#endif
