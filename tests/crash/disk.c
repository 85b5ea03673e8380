/*
** disk.c: the disk that can lose its power; the model is told in disk.h.
*/
#include "disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECTOR 512
#define NAMES_MAX 64

typedef struct bytes {
  uint8_t *p;
  int64_t n, cap;
} bytes;

/* A write, or with data == NULL a truncation to off. */
typedef struct change {
  struct change *next;
  int64_t off;
  uint32_t n;
  uint8_t *data;
} change;

struct inode {
  inode *next;
  int nameless;
  bytes now, safe;
  change *first, **last;
  void *attachment;
};

typedef struct entry {
  char *name;
  inode *file;
} entry;

typedef struct directory {
  entry e[NAMES_MAX];
  int n;
} directory;

/* to NULL: from was created (file) or deleted (file NULL). */
typedef struct name_change {
  struct name_change *next;
  char *from, *to;
  inode *file;
  int moves; /* rename; else link */
} name_change;

static struct {
  char dir[512];
  inode *files;
  directory now, safe;
  name_change *first, **last;
  long ops, fail_at;
  int dead, trace;
  unsigned fault_mask;
  long fault_nth;
  int fault_persistent, fault_hits;
} disk;

/* ---- small things ---- */

uint64_t rng_next(rng *r) {
  uint64_t z = r->s += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

uint32_t rng_below(rng *r, uint32_t n) {
  return (uint32_t)(rng_next(r) >> 32) % n;
}

/* The harness itself runs out of memory: nothing sensible can follow. */
static void *need(void *p) {
  if (!p) {
    (void)fprintf(stderr, "disk: out of memory\n");
    abort();
  }
  return p;
}

static char *dup_text(const char *s) {
  size_t n = strlen(s) + 1;
  return memcpy(need(malloc(n)), s, n);
}

static void resize(bytes *b, int64_t n) {
  if (n > b->cap) {
    b->cap = n + n / 2 + 4096;
    b->p = need(realloc(b->p, (size_t)b->cap));
  }
  if (n > b->n) memset(b->p + b->n, 0, (size_t)(n - b->n));
  b->n = n;
}

static void put(bytes *b, const uint8_t *data, uint32_t n, int64_t off) {
  if (off + n > b->n) resize(b, off + n);
  if (n) memcpy(b->p + off, data, n);
}

/* ---- counting, power, faults ---- */

/* Counts a change. -1: the power is gone, or fails before this one is safe. */
static int count(const char *what, const char *name, long long a, long long b) {
  if (disk.dead) return -1;
  disk.ops++;
  if (disk.trace) {
    (void)fprintf(stderr, "op %ld %s %s %lld %lld%s\n", disk.ops, what, name ? name : "", a, b,
                  disk.ops == disk.fail_at ? "  <- the power fails" : "");
  }
  if (disk.ops != disk.fail_at) return 0;
  disk.dead = 1;
  return -1;
}

void disk_power_fails_at(long op) {
  disk.ops = 0;
  disk.fail_at = op;
}

long disk_ops(void) {
  return disk.ops;
}

int disk_dead(void) {
  return disk.dead;
}

void disk_trace(int on) {
  disk.trace = on;
}

void disk_fault(unsigned mask, long nth, int persistent) {
  disk.fault_mask = mask;
  disk.fault_nth = nth;
  disk.fault_persistent = persistent;
  disk.fault_hits = 0;
}

int disk_fault_hits(void) {
  return disk.fault_hits;
}

int disk_fault_now(unsigned op) {
  if (!(disk.fault_mask & op)) return 0;
  if (disk.fault_nth > 1) {
    disk.fault_nth--;
    return 0;
  }
  if (disk.fault_hits && !disk.fault_persistent) return 0;
  disk.fault_hits++;
  return 1;
}

/* ---- names ---- */

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void disk_mount(const char *dir) {
  (void)snprintf(disk.dir, sizeof(disk.dir), "%s/", dir);
  disk.last = &disk.first;
}

int disk_has(const char *path) {
  return path && disk.dir[0] && strncmp(path, disk.dir, strlen(disk.dir)) == 0;
}

static entry *lookup(directory *d, const char *name) {
  for (int i = 0; i < d->n; i++) {
    if (strcmp(d->e[i].name, name) == 0) return &d->e[i];
  }
  return NULL;
}

/* file NULL: removes the name. */
static void bind(directory *d, const char *name, inode *file) {
  entry *e = lookup(d, name);

  if (e && file) {
    e->file = file;
  } else if (e) {
    free(e->name);
    *e = d->e[--d->n];
  } else if (file) {
    if (d->n == NAMES_MAX) need(NULL);
    d->e[d->n].name = dup_text(name);
    d->e[d->n++].file = file;
  }
}

static void clear_directory(directory *d) {
  while (d->n) free(d->e[--d->n].name);
}

static void copy_directory(directory *to, const directory *from) {
  clear_directory(to);
  for (int i = 0; i < from->n; i++) bind(to, from->e[i].name, from->e[i].file);
}

static void forget_names(void) {
  name_change *c;

  while ((c = disk.first) != NULL) {
    disk.first = c->next;
    free(c->from);
    free(c->to);
    free(c);
  }
  disk.last = &disk.first;
}

static void note_name(const char *from, const char *to, inode *file, int moves) {
  name_change *c = need(calloc(1, sizeof(*c)));

  c->from = dup_text(from);
  c->to = to ? dup_text(to) : NULL;
  c->file = file;
  c->moves = moves;
  *disk.last = c;
  disk.last = &c->next;
}

static void apply_name(directory *d, const name_change *c) {
  if (c->to) bind(d, c->to, c->file);
  if (!c->to || c->moves) bind(d, c->from, c->to ? NULL : c->file);
}

inode *disk_find(const char *path) {
  entry *e = lookup(&disk.now, base_name(path));
  return e ? e->file : NULL;
}

static inode *new_inode(void) {
  inode *f = need(calloc(1, sizeof(*f)));

  f->last = &f->first;
  f->next = disk.files;
  disk.files = f;
  return f;
}

inode *disk_create_nameless(void) {
  inode *f = new_inode();
  f->nameless = 1;
  return f;
}

inode *disk_create(const char *path) {
  const char *name = base_name(path);
  inode *f;
  int rc;

  if (disk.dead) return NULL;
  rc = count("create", name, 0, 0);
  f = new_inode();
  note_name(name, NULL, f, 0);
  bind(&disk.now, name, f);
  return rc ? NULL : f;
}

int disk_unlink(const char *path) {
  const char *name = base_name(path);
  int rc;

  if (disk.dead) return -1;
  rc = count("delete", name, 0, 0);
  note_name(name, NULL, NULL, 0);
  bind(&disk.now, name, NULL);
  return rc;
}

static int second_name(const char *from, const char *to, int moves) {
  inode *f = disk_find(from);
  int rc;

  if (disk.dead || !f) return -1;
  rc = count(moves ? "rename" : "link", base_name(to), 0, 0);
  note_name(base_name(from), base_name(to), f, moves);
  bind(&disk.now, base_name(to), f);
  if (moves) bind(&disk.now, base_name(from), NULL);
  return rc;
}

int disk_link(const char *from, const char *to) {
  return second_name(from, to, 0);
}

int disk_rename(const char *from, const char *to) {
  return second_name(from, to, 1);
}

int disk_sync_names(void) {
  if (count("sync", "(directory)", 0, 0)) return -1;
  copy_directory(&disk.safe, &disk.now);
  forget_names();
  return 0;
}

/* ---- content ---- */

static const char *name_of(const inode *f) {
  for (int i = 0; i < disk.now.n; i++) {
    if (disk.now.e[i].file == f) return disk.now.e[i].name;
  }
  return "(unlinked)";
}

int64_t inode_size(const inode *f) {
  return f->now.n;
}

uint32_t inode_read(const inode *f, void *buf, uint32_t n, int64_t off) {
  int64_t there = f->now.n > off ? f->now.n - off : 0;
  if (there > n) there = n;
  if (there) memcpy(buf, f->now.p + off, (size_t)there);
  return (uint32_t)there;
}

static void note_change(inode *f, const uint8_t *data, uint32_t n, int64_t off) {
  change *c = need(calloc(1, sizeof(*c)));

  c->off = off;
  c->n = n;
  if (data) c->data = memcpy(need(malloc(n ? n : 1)), data, n);
  *f->last = c;
  f->last = &c->next;
}

static void forget_changes(inode *f) {
  change *c;

  while ((c = f->first) != NULL) {
    f->first = c->next;
    free(c->data);
    free(c);
  }
  f->last = &f->first;
}

int inode_write(inode *f, const void *buf, uint32_t n, int64_t off) {
  int rc = 0;

  if (disk.dead) return -1;
  if (!f->nameless) {
    rc = count("write", name_of(f), off, n);
    note_change(f, buf, n, off);
  }
  put(&f->now, buf, n, off);
  return rc;
}

int inode_truncate(inode *f, int64_t n) {
  int rc = 0;

  if (disk.dead) return -1;
  if (!f->nameless) {
    rc = count("truncate", name_of(f), n, 0);
    note_change(f, NULL, 0, n);
  }
  resize(&f->now, n);
  return rc;
}

int inode_sync(inode *f) {
  if (disk.dead) return -1;
  if (f->nameless) return 0;
  if (count("sync", name_of(f), 0, 0)) return -1;
  for (change *c = f->first; c; c = c->next) {
    if (c->data) {
      put(&f->safe, c->data, c->n, c->off);
    } else {
      resize(&f->safe, c->off);
    }
  }
  forget_changes(f);
  return 0;
}

void **inode_attachment(inode *f) {
  return &f->attachment;
}

/* ---- the power comes back ---- */

/* How this outage behaves, so that the seeds cover the mild and the wild. */
typedef struct outage {
  rng r;
  uint32_t survive, tear; /* of 100 */
  int garbage;
} outage;

static outage outage_of(uint64_t seed) {
  static const uint8_t survive[] = {0, 20, 50, 80, 100, 100};
  static const uint8_t tear[] = {0, 0, 10, 40};
  outage o;

  o.r.s = seed * 31 + 7;
  o.survive = survive[rng_below(&o.r, sizeof(survive))];
  o.tear = tear[rng_below(&o.r, sizeof(tear))];
  o.garbage = rng_below(&o.r, 3) == 0;
  return o;
}

/* A share of a write within one sector tears. */
static void tear(outage *o, bytes *b, const uint8_t *data, uint32_t n, int64_t off) {
  uint32_t cut = rng_below(&o->r, n + 1);

  if (off + n > b->n) resize(b, off + n);
  if (rng_below(&o->r, 2)) {
    memcpy(b->p + off, data, cut);
  } else {
    memcpy(b->p + off + cut, data + cut, n - cut);
  }
  if (o->garbage && rng_below(&o->r, 2)) {
    uint32_t from = rng_below(&o->r, n), m = 1 + rng_below(&o->r, n - from);
    for (uint32_t i = 0; i < m; i++) b->p[off + from + i] = (uint8_t)rng_next(&o->r);
  }
}

static void survive_write(outage *o, bytes *b, const change *c) {
  for (uint32_t at = 0; at < c->n;) {
    int64_t off = c->off + at;
    uint32_t n = SECTOR - (uint32_t)(off % SECTOR);
    if (n > c->n - at) n = c->n - at;
    if (rng_below(&o->r, 100) < o->tear) {
      tear(o, b, c->data + at, n, off);
    } else if (rng_below(&o->r, 100) < o->survive) {
      put(b, c->data + at, n, off);
    }
    at += n;
  }
  if (c->off + c->n > b->n && rng_below(&o->r, 2)) resize(b, c->off + c->n);
}

static void survive_inode(outage *o, inode *f) {
  for (change *c = f->first; c; c = c->next) {
    if (c->data) {
      survive_write(o, &f->safe, c);
    } else if (rng_below(&o->r, 100) < 50 + o->survive / 2) {
      resize(&f->safe, c->off);
    }
  }
  forget_changes(f);
  resize(&f->now, 0);
  put(&f->now, f->safe.p, (uint32_t)f->safe.n, 0);
}

/* A change happens when no earlier one of its names was lost, and luck has it. */
static void survive_names(outage *o) {
  const char *lost[2 * NAMES_MAX];
  int nlost = 0;

  for (name_change *c = disk.first; c; c = c->next) {
    int ok = rng_below(&o->r, 100) < 30 + o->survive / 2;
    for (int i = 0; i < nlost; i++) {
      if (strcmp(lost[i], c->from) == 0 || (c->to && strcmp(lost[i], c->to) == 0)) ok = 0;
    }
    if (ok) {
      apply_name(&disk.safe, c);
    } else if (nlost + 2 <= 2 * NAMES_MAX) {
      lost[nlost++] = c->from;
      if (c->to) lost[nlost++] = c->to;
    }
  }
  forget_names();
  copy_directory(&disk.now, &disk.safe);
}

void disk_power_on(uint64_t seed) {
  outage o = outage_of(seed);

  for (inode *f = disk.files; f; f = f->next) {
    if (!f->nameless) survive_inode(&o, f);
  }
  survive_names(&o);
  disk.dead = 0;
  disk.ops = disk.fail_at = 0;
}

void disk_process_died(void) {
  disk.dead = 0;
  disk.ops = disk.fail_at = 0;
}

void disk_format(void) {
  inode *f;

  while ((f = disk.files) != NULL) {
    disk.files = f->next;
    forget_changes(f);
    free(f->now.p);
    free(f->safe.p);
    free(f);
  }
  forget_names();
  clear_directory(&disk.now);
  clear_directory(&disk.safe);
  disk.dead = 0;
  disk.ops = disk.fail_at = 0;
}

/* ---- to the real disk ---- */

static int clear_real(void) {
  DIR *d = opendir(disk.dir);
  struct dirent *e;
  char path[1024];

  if (!d) return -1;
  while ((e = readdir(d)) != NULL) {
    if (e->d_name[0] == '.') continue;
    (void)snprintf(path, sizeof(path), "%s%s", disk.dir, e->d_name);
    if (unlink(path)) break; /* not unlinkat, which the product calls: posix.c */
  }
  (void)closedir(d);
  return e ? -1 : 0;
}

int disk_export(void) {
  char path[1024];

  if (clear_real()) return -1;
  for (int i = 0; i < disk.now.n; i++) {
    const bytes *b = &disk.now.e[i].file->now;
    FILE *out;
    int bad;
    (void)snprintf(path, sizeof(path), "%s%s", disk.dir, disk.now.e[i].name);
    out = fopen(path, "wb");
    if (!out) return -1;
    bad = b->n && fwrite(b->p, 1, (size_t)b->n, out) != (size_t)b->n;
    if (fclose(out) || bad) return -1;
  }
  return 0;
}

int disk_holds(const void *what, size_t n, const char *except, const char **where) {
  for (int i = 0; i < disk.now.n; i++) {
    const bytes *b = &disk.now.e[i].file->now;
    if (except && strncmp(disk.now.e[i].name, except, strlen(except)) == 0) continue;
    if (b->n && memmem(b->p, (size_t)b->n, what, n)) {
      *where = disk.now.e[i].name;
      return 1;
    }
  }
  return 0;
}
