/*
** lanes.c: whose turn it is to be asked in the background; see lanes.h.
*/
#include "lanes.h"

#include <string.h>

#include "lease.h"

/* A name of the domain system and a port fit in; of two longer ones that begin alike one waits
** for the other. */
#define HOST_MAX 264
/* More silent hosts than that are forgotten in turn, and found out anew. */
#define SILENT_KNOWN 64

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

static host silent[SILENT_KNOWN];
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

static host *find_silent(const host *h) {
  for (int i = 0; h->n && i < SILENT_KNOWN; i++) {
    if (same(&silent[i], h)) return &silent[i];
  }
  return NULL;
}

tde_lane tde_lanes_look(const char *key_id, int64_t now) {
  host h = host_of(key_id);
  int is_silent = find_silent(&h) != NULL, others = 0;

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
    lanes[i].silent = find_silent(&lanes[i].host) != NULL;
    return;
  }
}

void tde_lanes_leave(const void *who) {
  for (int i = 0; i < TDE_LANES; i++) {
    if (lanes[i].who == who) lanes[i].who = NULL;
  }
}

void tde_lanes_heard(const char *key_id, tde_class c) {
  host h = host_of(key_id), *known = find_silent(&h);

  if (tde_class_is_outage(c)) {
    if (!known) silent[next_silent++ % SILENT_KNOWN] = h;
  } else if (known && (c == TDE_OK || tde_class_is_denial(c))) {
    known->n = 0;
  }
}

int tde_lanes_same(const char *a, const char *b) {
  host x = host_of(a), y = host_of(b);
  return same(&x, &y);
}

void tde_lanes_clear(void) {
  for (int i = 0; i < TDE_LANES; i++) lanes[i].who = NULL;
}
