/*
** lanes.c: whose turn it is to be asked in the background; see lanes.h.
*/
#include "lanes.h"

#include <string.h>

#include "lease.h"

/* A name of the domain system and a port fit in; of two longer ones that begin alike one waits
** for the other. */
#define HOST_MAX 264
/* Silent hosts are known by hashes, in so many sets: some thousand find room. Of more in one set the
** first are forgotten, and found out anew. Two of one hash are taken for one. */
#define SILENT_SETS 1024
#define SILENT_WAYS 8

typedef struct host {
  size_t n; /* 0: none */
  char name[HOST_MAX];
} host;

static struct {
  const void *who; /* NULL: free */
  int64_t since;
  int silent; /* when it was entered */
  host host;
} lanes[TDE_LANES];

static uint64_t silent[SILENT_SETS][SILENT_WAYS]; /* 0: none */
static unsigned next_silent;

static host host_of(const char *key_id) {
  static const char https[] = "https://";
  host h = {0, ""};

  if (strncmp(key_id, https, sizeof(https) - 1) == 0) {
    h.n = sizeof(https) - 1 + strcspn(key_id + sizeof(https) - 1, "/");
  } else {
    h.n = strcspn(key_id, ":");
  }
  if (h.n > HOST_MAX) h.n = HOST_MAX;
  memcpy(h.name, key_id, h.n);
  return h;
}

static int same(const host *a, const host *b) {
  return a->n == b->n && memcmp(a->name, b->name, a->n) == 0;
}

static uint64_t hash_of(const host *h) {
  uint64_t x = UINT64_C(14695981039346656037); /* FNV-1a */

  for (size_t i = 0; i < h->n; i++) x = (x ^ (uint8_t)h->name[i]) * UINT64_C(1099511628211);
  return x ? x : 1;
}

/* The place of this hash in its set; of 0: a free one. NULL: there is none. */
static uint64_t *find_silent(uint64_t hash, uint64_t what) {
  uint64_t *set = silent[hash % SILENT_SETS];

  for (int i = 0; i < SILENT_WAYS; i++) {
    if (set[i] == what) return &set[i];
  }
  return NULL;
}

static int is_known_silent(const host *h) {
  uint64_t hash = hash_of(h);
  return find_silent(hash, hash) != NULL;
}

tde_lane tde_lanes_look(const char *key_id, int64_t now) {
  host h = host_of(key_id);
  int is_silent = is_known_silent(&h), others = 0;

  for (int i = 0; i < TDE_LANES; i++) {
    if (!lanes[i].who) continue;
    if (same(&lanes[i].host, &h)) {
      return is_silent || now - lanes[i].since >= TDE_LANE_STUCK_MS ? TDE_LANE_STUCK
                                                                    : TDE_LANE_TAKEN;
    }
    others += lanes[i].silent;
  }
  return is_silent && others >= TDE_LANES_SILENT ? TDE_LANE_STUCK : TDE_LANE_FREE;
}

void tde_lanes_enter(const void *who, const char *key_id, int64_t now) {
  for (int i = 0; i < TDE_LANES; i++) {
    if (lanes[i].who) continue;
    lanes[i].who = who;
    lanes[i].since = now;
    lanes[i].host = host_of(key_id);
    lanes[i].silent = is_known_silent(&lanes[i].host);
    return;
  }
}

void tde_lanes_leave(const void *who) {
  for (int i = 0; i < TDE_LANES; i++) {
    if (lanes[i].who == who) lanes[i].who = NULL;
  }
}

void tde_lanes_heard(const char *key_id, tde_class c) {
  host h = host_of(key_id);
  uint64_t hash = hash_of(&h), *known = find_silent(hash, hash);

  if (tde_class_is_outage(c)) {
    if (known) return;
    known = find_silent(hash, 0);
    if (!known) known = &silent[hash % SILENT_SETS][next_silent++ % SILENT_WAYS];
    *known = hash;
  } else if (known && (c == TDE_OK || tde_class_is_denial(c))) {
    *known = 0;
  }
}

int tde_lanes_same(const char *a, const char *b) {
  host x = host_of(a), y = host_of(b);
  return same(&x, &y);
}

void tde_lanes_clear(void) {
  for (int i = 0; i < TDE_LANES; i++) lanes[i].who = NULL;
}
