/*
** keyring_policies.c: the instances' policies, read anew: each once, however many entries go by it,
** and while no lock is held. See keyring.h.
*/
#include <stdlib.h>
#include <string.h>

#include "keyring_int.h"

/* Policies by instance, in order of the names, while they are read. */
#define INSTANCES 256
typedef struct policies {
  int n;
  struct {
    char *instance; /* "" : the default one */
    tde_key_policy policy;
  } of[INSTANCES];
} policies;

/* Where the instance stands, or would stand. */
static int place_of(const policies *p, const char *instance) {
  int low = 0, high = p->n;

  while (low < high) {
    int mid = (low + high) / 2;
    if (strcmp(p->of[mid].instance, instance) < 0) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  return low;
}

static int stands_at(const policies *p, int i, const char *instance) {
  return i < p->n && p->of[i].instance && strcmp(p->of[i].instance, instance) == 0;
}

static int policy_of(const policies *p, const char *instance) {
  const char *name = instance ? instance : "";
  int i = place_of(p, name);
  return stands_at(p, i, name) ? i : -1;
}

/* False: it does not fit in, or there is no memory. */
static int add_instance(policies *p, const char *instance) {
  const char *name = instance ? instance : "";
  int i = place_of(p, name);
  char *copy;

  if (stands_at(p, i, name)) return 1;
  copy = p->n < INSTANCES ? strdup(name) : NULL;
  if (!copy) return 0;
  memmove(&p->of[i + 1], &p->of[i], (size_t)(p->n - i) * sizeof(p->of[0]));
  p->of[i].instance = copy;
  p->n++;
  return 1;
}

/* Of ten thousand entries so many buckets hold some hundred: openers are let in between. */
#define SLICE 256

static unsigned end_of_slice(unsigned from, unsigned to) {
  return to - from < SLICE ? to : from + SLICE;
}

/* The instances of these buckets, as many as fit in. Returns where it ended: behind the last bucket
** that is in as a whole. The lock is held. */
static unsigned collect_slice(policies *p, unsigned from, unsigned to) {
  for (unsigned b = from; b < to; b++) {
    for (const tde_keys *k = tde_ring_bucket(b); k; k = k->next) {
      if (!add_instance(p, k->params.instance)) return b;
    }
  }
  return to;
}

/* ... of all from `from` on; and it ends behind that one at least. */
static unsigned collect_instances(policies *p, unsigned from) {
  unsigned b = from, end;

  do {
    end = end_of_slice(b, TDE_RING_BUCKETS);
    tde_ring_lock();
    b = collect_slice(p, b, end);
    tde_ring_unlock();
  } while (b == end && b < TDE_RING_BUCKETS);
  return b > from ? b : from + 1;
}

/* Those whose instances were not collected wait for their checks, which read the policy,
** too. The lock is held. */
static void apply_policies(const policies *p, unsigned from, unsigned to) {
  for (unsigned b = from; b < to; b++) {
    for (tde_keys *k = tde_ring_bucket(b); k; k = k->next) {
      int i = policy_of(p, k->params.instance);
      if (i < 0) continue;
      if (tde_entry_is_busy(k)) {
        k->next_policy = p->of[i].policy; /* its check goes by the old one */
      } else {
        tde_entry_apply_policy(k, &p->of[i].policy);
      }
    }
  }
}

unsigned tde_keyring_refresh_policies(const tde_key_source *source, unsigned from) {
  policies *p = calloc(1, sizeof(*p));
  unsigned to;

  if (!p) return 0;
  to = collect_instances(p, from);
  for (int i = 0; i < p->n; i++) {
    tde_key_params params = {.instance = p->of[i].instance};
    source->policy(source->ctx, &params, &p->of[i].policy);
  }
  for (unsigned b = from; b < to; b += SLICE) {
    tde_ring_lock();
    apply_policies(p, b, end_of_slice(b, to));
    tde_ring_unlock();
  }
  for (int i = 0; i < p->n; i++) free(p->of[i].instance);
  free(p);
  return to < TDE_RING_BUCKETS ? to : 0;
}
