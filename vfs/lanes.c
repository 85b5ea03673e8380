/*
** lanes.c: whose turn it is to be asked in the background; see lanes.h.
*/
#include "lanes.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/crypto.h"
#include "lease.h"

/* A name of the domain system and a port fit in; of two longer ones that begin alike one waits
** for the other. */
#define HOST_MAX 264
/* Silent hosts are known by hashes, in so many sets: some thousand find room. Of more in one set the
** first are forgotten, and found out anew. Two of one hash are taken for one. */
#define SILENT_SETS 1024
#define SILENT_WAYS 8

typedef struct host {
  uint64_t hash;
  size_t n;
  char name[HOST_MAX];
} host;

/* What turns are kept for: to be asked, some before others; to be passed over whenever the lane is
** not free, or if nothing moves there. */
enum { ASK_FIRST, ASK, PASS, PASS_STUCK, HEAPS };

struct tde_line {
  tde_line *next; /* of the same bucket, or spare */
  host host;
  int silent; /* the host did not answer the last time */
  int taken;  /* its lane */
  int turns;
  tde_heap heap[HEAPS];
  tde_heap_node rank[HEAPS]; /* by the least key of each of its heaps */
};

#define BUCKETS 4096
static tde_line *buckets[BUCKETS], *spare;
static tde_line local; /* has no lane: never taken */
/* Lines whose lane is not taken: of hosts that answer, and of silent ones. */
static tde_heap ranked[2][HEAPS];
static uint64_t process; /* whose turns stand in line */

static struct {
  const tde_turn *who; /* NULL: free */
  tde_line *line;
  int64_t since;
  int silent; /* when it was entered */
} lanes[TDE_LANES];

static uint64_t silent[SILENT_SETS][SILENT_WAYS]; /* 0: none */
static unsigned next_silent;

/* ---- hosts ---- */

static uint64_t hash_of(const char *name, size_t n) {
  uint64_t x = UINT64_C(14695981039346656037); /* FNV-1a */

  for (size_t i = 0; i < n; i++) x = (x ^ (uint8_t)name[i]) * UINT64_C(1099511628211);
  return x ? x : 1;
}

/* The authority of an https id, else what stands before the colon. */
static host host_of(const char *key_id) {
  static const char https[] = "https://";
  host h;

  if (strncmp(key_id, https, sizeof(https) - 1) == 0) {
    h.n = sizeof(https) - 1 + strcspn(key_id + sizeof(https) - 1, "/");
  } else {
    h.n = strcspn(key_id, ":");
  }
  if (h.n > HOST_MAX) h.n = HOST_MAX;
  memcpy(h.name, key_id, h.n);
  h.hash = hash_of(h.name, h.n);
  return h;
}

static int same(const host *a, const host *b) {
  return a->hash == b->hash && a->n == b->n && memcmp(a->name, b->name, a->n) == 0;
}

/* The place of this hash in its set; of 0: a free one. NULL: there is none. */
static uint64_t *find_silent(uint64_t hash, uint64_t what) {
  uint64_t *set = silent[hash % SILENT_SETS];

  for (int i = 0; i < SILENT_WAYS; i++) {
    if (set[i] == what) return &set[i];
  }
  return NULL;
}

static void set_silent(uint64_t hash, int is_silent) {
  uint64_t *known = find_silent(hash, hash);

  if (!is_silent) {
    if (known) *known = 0;
    return;
  }
  if (known) return;
  known = find_silent(hash, 0);
  if (!known) known = &silent[hash % SILENT_SETS][next_silent++ % SILENT_WAYS];
  *known = hash;
}

/* ---- lines ---- */

/* What the parent of a forked child had in its lines is not in the child's. */
static void forget(void) {
  for (unsigned b = 0; b < BUCKETS; b++) {
    while (buckets[b]) {
      tde_line *l = buckets[b];
      buckets[b] = l->next;
      tde_lanes_bring(l);
    }
  }
  memset(&local, 0, sizeof(local));
  memset(ranked, 0, sizeof(ranked));
  memset(lanes, 0, sizeof(lanes));
}

static void of_this_process(void) {
  uint64_t now = tde_fork_generation();

  if (process == now) return;
  forget();
  process = now;
}

tde_line *tde_lanes_new_line(void) {
  return malloc(sizeof(tde_line));
}

void tde_lanes_bring(tde_line *line) {
  line->next = spare;
  spare = line;
}

tde_line *tde_lanes_take_away(void) {
  tde_line *l;

  of_this_process();
  l = spare;
  spare = l->next;
  return l;
}

/* The place of the host's line, or of NULL, where it is put. */
static tde_line **find_line(const host *h) {
  tde_line **at = &buckets[h->hash % BUCKETS];

  while (*at && !same(&(*at)->host, h)) at = &(*at)->next;
  return at;
}

static int is_line_of(const tde_line *l, const char *key_id) {
  host h;

  if (!key_id || l == &local) return !key_id && l == &local;
  h = host_of(key_id);
  return same(&l->host, &h);
}

static tde_line *line_of(const char *key_id) {
  tde_line **at, *l;
  host h;

  if (!key_id) return &local;
  h = host_of(key_id);
  at = find_line(&h);
  l = *at;
  if (l) return l;
  l = spare;
  spare = l->next;
  memset(l, 0, sizeof(*l));
  l->host = h;
  l->silent = find_silent(h.hash, h.hash) != NULL;
  *at = l;
  return l;
}

/* Its place among the lines, after any change. A line without turns whose lane is free is none. */
static void rank(tde_line *l) {
  for (int i = 0; i < HEAPS; i++) {
    tde_heap_put(&ranked[l->silent][i], &l->rank[i],
                 l->taken ? INT64_MAX : tde_heap_least(&l->heap[i]));
  }
  if (l->turns == 0 && !l->taken && l != &local) {
    *find_line(&l->host) = l->next;
    tde_lanes_bring(l);
  }
}

static void renew(tde_turn *t) {
  of_this_process();
  if (t->process == process) return;
  memset(t, 0, sizeof(*t));
  t->process = process;
}

void tde_lanes_step_out(tde_turn *t) {
  tde_line *l;

  renew(t);
  l = t->line;
  if (!l) return;
  tde_heap_put(NULL, &t->ask, INT64_MAX);
  tde_heap_put(NULL, &t->pass, INT64_MAX);
  t->line = NULL;
  l->turns--;
  rank(l);
}

void tde_lanes_stand(tde_turn *t, const char *key_id, const tde_turn_times *when) {
  tde_line *l;

  renew(t);
  if (t->line && !is_line_of(t->line, key_id)) tde_lanes_step_out(t);
  l = t->line ? t->line : line_of(key_id);
  if (!t->line) l->turns++;
  t->line = l;
  tde_heap_put(&l->heap[when->first ? ASK_FIRST : ASK], &t->ask, when->ask);
  tde_heap_put(&l->heap[when->if_stuck ? PASS_STUCK : PASS], &t->pass, when->pass);
  rank(l);
}

/* ---- turns ---- */

/* Do silent hosts have all the lanes that they may have? */
static int silent_wait(void) {
  int n = 0;

  for (int i = 0; i < TDE_LANES; i++) n += lanes[i].who && lanes[i].silent;
  return n >= TDE_LANES_SILENT;
}

/* Nothing moves there: the host is silent, or its request goes on for long. */
static int is_stuck(int lane, int64_t now) {
  return lanes[lane].line->silent || now - lanes[lane].since >= TDE_LANE_STUCK_MS;
}

/* The first of these lines. */
static tde_line *first_line(const tde_heap *of, int heap) {
  return of->top ? (tde_line *)((char *)(of->top - heap) - offsetof(tde_line, rank)) : NULL;
}

/* Whose turn it is in this heap of a line; NULL: nobody's. */
static tde_turn *turn_of(const tde_line *l, int heap, int64_t now) {
  tde_heap_node *top = l ? l->heap[heap].top : NULL;

  if (!top || top->key > now) return NULL;
  return (tde_turn *)((char *)top -
                      (heap <= ASK ? offsetof(tde_turn, ask) : offsetof(tde_turn, pass)));
}

/* ... of those that may be asked, in this heap. */
static tde_turn *turn_to_ask(int heap, int64_t now) {
  int of_silent = !silent_wait() &&
                  tde_heap_least(&ranked[1][heap]) < tde_heap_least(&ranked[0][heap]);

  return turn_of(first_line(&ranked[of_silent][heap], heap), heap, now);
}

/* ... of those whose lane is not free. */
static tde_turn *turn_to_pass(int64_t now) {
  tde_turn *t = NULL;

  for (int i = 0; i < TDE_LANES && !t; i++) {
    if (!lanes[i].who) continue;
    t = turn_of(lanes[i].line, PASS, now);
    if (!t && is_stuck(i, now)) t = turn_of(lanes[i].line, PASS_STUCK, now);
  }
  for (int heap = PASS; heap <= PASS_STUCK && !t && silent_wait(); heap++) {
    t = turn_of(first_line(&ranked[1][heap], heap), heap, now);
  }
  return t;
}

tde_turn *tde_lanes_first(int64_t now, int *ask) {
  tde_turn *t;

  of_this_process();
  t = turn_to_ask(ASK_FIRST, now);
  if (!t) t = turn_to_ask(ASK, now);
  *ask = t != NULL;
  return t ? t : turn_to_pass(now);
}

static int64_t earlier(int64_t a, int64_t b) {
  return a < b ? a : b;
}

static int64_t next_to_ask(const tde_heap heaps[HEAPS]) {
  return earlier(tde_heap_least(&heaps[ASK_FIRST]), tde_heap_least(&heaps[ASK]));
}

/* Where a lane is not free. That it gets stuck, or free, nobody tells. */
static int64_t next_to_pass(const tde_heap heaps[HEAPS], int stuck, int64_t now) {
  int64_t due = next_to_ask(heaps), at = tde_heap_least(&heaps[PASS]);

  if (stuck) at = earlier(at, tde_heap_least(&heaps[PASS_STUCK]));
  return earlier(at, due > now ? due : now + TDE_LANE_STUCK_MS);
}

int64_t tde_lanes_next(int64_t now) {
  int64_t at;

  of_this_process();
  at = next_to_ask(ranked[0]);
  at = earlier(at, silent_wait() ? next_to_pass(ranked[1], 1, now) : next_to_ask(ranked[1]));
  for (int i = 0; i < TDE_LANES; i++) {
    if (lanes[i].who) at = earlier(at, next_to_pass(lanes[i].line->heap, is_stuck(i, now), now));
  }
  return at;
}

/* ---- lanes ---- */

static void take_lane(const tde_turn *t, tde_line *l, int64_t now) {
  for (int i = 0; i < TDE_LANES; i++) {
    if (lanes[i].who) continue;
    lanes[i].who = t;
    lanes[i].line = l;
    lanes[i].since = now;
    lanes[i].silent = l->silent;
    l->taken = 1;
    break;
  }
}

void tde_lanes_enter(tde_turn *t, int64_t now) {
  renew(t);
  if (t->line && t->line != &local) take_lane(t, t->line, now);
  tde_lanes_step_out(t);
}

int tde_lanes_return(tde_turn *t, const char *key_id, int64_t now) {
  tde_line *l;
  int is_free;

  if (!key_id) return 1;
  renew(t);
  l = line_of(key_id);
  is_free = !l->taken && !(l->silent && silent_wait());
  if (is_free) take_lane(t, l, now);
  rank(l);
  return is_free;
}

void tde_lanes_leave(const tde_turn *t) {
  of_this_process();
  for (int i = 0; i < TDE_LANES; i++) {
    if (lanes[i].who != t) continue;
    lanes[i].who = NULL;
    lanes[i].line->taken = 0;
    rank(lanes[i].line);
  }
}

void tde_lanes_heard(const char *key_id, tde_class c) {
  int is_silent = tde_class_is_outage(c);
  host h = host_of(key_id);
  tde_line *l;

  if (!is_silent && c != TDE_OK && !tde_class_is_denial(c)) return;
  of_this_process();
  set_silent(h.hash, is_silent);
  l = *find_line(&h);
  if (!l) return;
  l->silent = is_silent;
  rank(l);
}
