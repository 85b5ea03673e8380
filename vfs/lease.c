/*
** lease.c: how long a DEK may be used without its key service; see lease.h.
*/
#include "lease.h"

#include <string.h>

/* A denial is believed when it is repeated after this long. */
#define CONFIRM_MS 2000
/* The first pause before an absent DEK is asked for again; it doubles. */
#define RETRY_FIRST_MS 1000

const char *tde_lease_name(const tde_lease *l) {
  switch (l->access) {
    case TDE_ACCESS_LIVE:
      return "Online";
    case TDE_ACCESS_GRACE:
      return "Grace";
    case TDE_ACCESS_LOST:
      return l->had ? "KeyLost" : "Inaccessible";
    case TDE_ACCESS_WAITING:
    case TDE_ACCESS_CLOSED:
      return "Inaccessible";
  }
  return "Unknown";
}

int tde_class_is_denial(tde_class c) {
  switch (c) {
    case TDE_UNAUTHENTICATED:
    case TDE_DENIED:
    case TDE_DISABLED:
    case TDE_MISSING:
    case TDE_WRONG_KEY:
    case TDE_NOT_AUTHENTIC:
      return 1;
    default:
      return 0;
  }
}

static int64_t at_most(int64_t a, int64_t b) {
  return a < b ? a : b;
}

static void become(tde_lease *l, tde_access a, int64_t now) {
  if (l->access == a) return;
  if (tde_access_is_live(l->access)) l->lost_at = now;
  l->access = a;
  l->since = now;
  if (a != TDE_ACCESS_GRACE) l->denials = 0; /* an outage does not take it back */
  l->retry_ms = 0;
}

/* The next pause: it doubles, up to a check interval. */
static int64_t next_pause(tde_lease *l, int64_t first, const tde_key_policy *p) {
  l->retry_ms = at_most(l->retry_ms ? 2 * l->retry_ms : first, p->check_ms);
  return l->retry_ms;
}

/* Without a DEK: soon at first, then no more often than the checks. */
static void plan_retry(tde_lease *l, int64_t now, const tde_key_policy *p) {
  l->due_at = now + next_pause(l, RETRY_FIRST_MS, p);
  if (l->access == TDE_ACCESS_LOST) l->due_at = at_most(l->due_at, l->since + p->heal_ms);
}

void tde_lease_begin(tde_lease *l, int64_t now, const tde_key_policy *p) {
  memset(l, 0, sizeof(*l));
  l->access = TDE_ACCESS_LIVE;
  l->had = 1;
  l->checked_at = l->since = now;
  l->due_at = now + p->check_ms;
}

void tde_lease_refused(tde_lease *l, tde_class c, int64_t now, const tde_key_policy *p) {
  memset(l, 0, sizeof(*l));
  l->access = tde_class_is_denial(c) ? TDE_ACCESS_LOST : TDE_ACCESS_WAITING;
  l->checked_at = l->since = l->lost_at = now;
  plan_retry(l, now, p);
}

/* An answer while the DEK is live. */
static tde_lease_act answer_live(tde_lease *l, tde_class c, int64_t now, const tde_key_policy *p) {
  if (c == TDE_OK) {
    become(l, TDE_ACCESS_LIVE, now);
    l->denials = 0;
    l->due_at = now + p->check_ms;
    return TDE_LEASE_KEEP;
  }
  if (tde_class_is_denial(c)) {
    if (++l->denials < 2) {
      l->due_at = now + at_most(CONFIRM_MS, p->check_ms);
      return TDE_LEASE_KEEP;
    }
    become(l, TDE_ACCESS_LOST, now);
    plan_retry(l, now, p);
    return TDE_LEASE_WIPE;
  }
  become(l, TDE_ACCESS_GRACE, at_most(now, l->due_at));
  l->due_at = now + (l->denials ? next_pause(l, CONFIRM_MS, p) : p->check_ms);
  l->due_at = at_most(l->due_at, l->since + p->grace_ms);
  return tde_lease_tick(l, now, p);
}

tde_lease_act tde_lease_answer(tde_lease *l, tde_class c, int forced, int64_t now,
                               const tde_key_policy *p) {
  l->checked_at = now;
  if (tde_access_is_live(l->access)) return answer_live(l, c, now, p);
  if (l->access == TDE_ACCESS_CLOSED && !forced) return TDE_LEASE_KEEP;
  if (c == TDE_OK) {
    become(l, TDE_ACCESS_LIVE, now);
    l->had = 1;
    l->due_at = now + p->check_ms;
    return TDE_LEASE_HEAL;
  }
  if (l->access == TDE_ACCESS_CLOSED) return TDE_LEASE_KEEP; /* a revalidation that failed */
  if (l->access == TDE_ACCESS_WAITING && tde_class_is_denial(c)) become(l, TDE_ACCESS_LOST, now);
  plan_retry(l, now, p);
  return TDE_LEASE_KEEP;
}

void tde_lease_heard(tde_lease *l, int64_t at, const tde_key_policy *p) {
  l->checked_at = at;
  if (tde_access_is_live(l->access)) l->due_at = at_most(l->due_at, at + p->check_ms);
}

tde_lease_act tde_lease_tick(tde_lease *l, int64_t now, const tde_key_policy *p) {
  if (l->access == TDE_ACCESS_GRACE && now - l->since >= p->grace_ms) {
    become(l, TDE_ACCESS_WAITING, now);
    plan_retry(l, now, p);
    return TDE_LEASE_WIPE;
  }
  if (l->access == TDE_ACCESS_LOST && now - l->since >= p->heal_ms) {
    become(l, TDE_ACCESS_CLOSED, now);
    l->due_at = INT64_MAX;
  }
  return TDE_LEASE_KEEP;
}

int64_t tde_lease_unasked(const tde_lease *l, int stuck, const tde_key_policy *p) {
  switch (l->access) {
    case TDE_ACCESS_LIVE:
      return stuck ? l->due_at + TDE_LINE_MS : INT64_MAX;
    case TDE_ACCESS_GRACE:
      return l->since + p->grace_ms;
    case TDE_ACCESS_LOST:
      return l->since + p->heal_ms;
    case TDE_ACCESS_WAITING:
    case TDE_ACCESS_CLOSED:
      break;
  }
  return INT64_MAX;
}

tde_lease_act tde_lease_pass(tde_lease *l, int64_t now, const tde_key_policy *p) {
  if (l->access == TDE_ACCESS_LIVE) become(l, TDE_ACCESS_GRACE, at_most(now, l->due_at));
  return tde_lease_tick(l, now, p);
}

void tde_lease_reopen(tde_lease *l, int64_t now) {
  if (tde_access_is_live(l->access)) return;
  become(l, TDE_ACCESS_WAITING, now);
  l->retry_ms = 0;
  l->due_at = now;
}

int64_t tde_lease_cutoff(const tde_lease *l, const tde_key_policy *p) {
  return l->lost_at + p->check_ms;
}
