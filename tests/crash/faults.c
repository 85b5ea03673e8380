/*
** faults.c: the Nth allocation, I/O call, random draw fails, for every N.
**
** Each job is prepared on the simulated disk (disk.h) without faults; then the
** Nth call of one kind fails, once or from then on, and N grows until nothing
** fails any more. After each:
**
**  - the error code is one that fits the fault; what reported SQLITE_OK has
**    happened;
**  - the same connection goes on once the fault is gone; or the process dies then, and
**    what was told to be rolled back does not come back;
**  - after closing it, no file is open and SQLite's memory is all given back
**    (ASan's leak check covers the rest);
**  - a new connection finds the state before or after the transaction at work,
**    PRAGMA integrity_check and tde_verify() clean.
**
** The product's objects are linked with malloc and its kin renamed to the
** fault_ functions below (crash.mk), so that the harness's own allocations do
** not fail. The clock is renamed, too: the key ring's idle entries expire, and
** each cold job fetches its key anew.
*/
#include <getopt.h>
#include <jansson.h>
#include <openssl/crypto.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../ext/base/crypto.h"
#include "../../ext/base/secret.h"
#include "../../ext/tde.h"
#include "../../vfs/watch.h"
#include "crashvfs.h"
#include "run.h"
#include "scratch.h"

/* ---- kinds ---- */

typedef enum kind_class { MEMORY, RANDOM, INPUT_OUTPUT } kind_class;

typedef struct kind {
  const char *name;
  kind_class cls;
  unsigned disk; /* disk_op, or 0 */
} kind;

static const kind kinds[] = {
    {"sqlite-malloc", MEMORY, 0},
    {"libc-malloc", MEMORY, 0},
    {"base-alloc", MEMORY, 0},
    {"openssl-malloc", MEMORY, 0},
    {"random", RANDOM, 0},
    {"read", INPUT_OUTPUT, DISK_READ},
    {"short-read", INPUT_OUTPUT, DISK_SHORT},
    {"write", INPUT_OUTPUT, DISK_WRITE},
    {"full", INPUT_OUTPUT, DISK_FULL},
    {"sync", INPUT_OUTPUT, DISK_SYNC},
    {"truncate", INPUT_OUTPUT, DISK_TRUNCATE},
    {"size", INPUT_OUTPUT, DISK_SIZE},
    {"lock", INPUT_OUTPUT, DISK_LOCK},
    {"shm-map", INPUT_OUTPUT, DISK_SHMMAP},
    {"shm-lock", INPUT_OUTPUT, DISK_SHMLOCK},
    {"open", INPUT_OUTPUT, DISK_OPEN},
    {"delete", INPUT_OUTPUT, DISK_DELETE},
    {"access", INPUT_OUTPUT, DISK_ACCESS},
    {"name", INPUT_OUTPUT, DISK_NAME},
    {"map", INPUT_OUTPUT, DISK_MAP},
    {"any-io", INPUT_OUTPUT, ((DISK_NAME << 1) - 1) | DISK_MAP},
};
#define NKINDS (int)(sizeof(kinds) / sizeof(kinds[0]))
#define NEVER 1000000000
enum { SQLITE_MALLOC, LIBC_MALLOC, BASE_ALLOC, OPENSSL_MALLOC, RANDOM_DRAW };

/* The counter of the kinds that are not the disk's. */
static struct {
  int kind; /* index, or -1 */
  long nth;
  int persistent, hits;
} armed = {.kind = -1};

static int fault_now(int k) {
  if (armed.kind != k) return 0;
  if (armed.nth > 1) {
    armed.nth--;
    return 0;
  }
  if (armed.hits && !armed.persistent) return 0;
  armed.hits++;
  return 1;
}

static void arm(int k, long nth, int persistent) {
  armed.kind = kinds[k].disk ? -1 : k;
  armed.nth = nth;
  armed.persistent = persistent;
  armed.hits = 0;
  disk_fault(kinds[k].disk, nth, persistent);
}

static int disarm(void) {
  int hits = armed.hits + disk_fault_hits();
  armed.kind = -1;
  disk_fault(0, 0, 0);
  return hits;
}

/* ---- what the product and its libraries call ---- */

void *fault_malloc(size_t n);
void *fault_calloc(size_t n, size_t m);
void *fault_realloc(void *p, size_t n);
char *fault_strdup(const char *s);
int fault_clock_gettime(clockid_t id, struct timespec *ts);

void *fault_malloc(size_t n) {
  return fault_now(LIBC_MALLOC) ? NULL : malloc(n);
}

void *fault_calloc(size_t n, size_t m) {
  return fault_now(LIBC_MALLOC) ? NULL : calloc(n, m);
}

void *fault_realloc(void *p, size_t n) {
  return fault_now(LIBC_MALLOC) ? NULL : realloc(p, n);
}

char *fault_strdup(const char *s) {
  return fault_now(LIBC_MALLOC) ? NULL : strdup(s);
}

static time_t clock_ahead;

int fault_clock_gettime(clockid_t id, struct timespec *ts) {
  int rc = clock_gettime(id, ts);
  ts->tv_sec += clock_ahead;
  return rc;
}

static int base_alloc(size_t n) {
  (void)n;
  return fault_now(BASE_ALLOC);
}

static int random_draw(size_t n) {
  (void)n;
  return fault_now(RANDOM_DRAW);
}

static void *openssl_malloc(size_t n, const char *file, int line) {
  (void)file;
  (void)line;
  if (n == 0 || fault_now(OPENSSL_MALLOC)) return NULL;
  return malloc(n);
}

static void *openssl_realloc(void *p, size_t n, const char *file, int line) {
  (void)file;
  (void)line;
  if (n && fault_now(OPENSSL_MALLOC)) return NULL;
  return realloc(p, n);
}

static void openssl_free(void *p, const char *file, int line) {
  (void)file;
  (void)line;
  free(p);
}

static sqlite3_mem_methods mem_below;

static void *sqlite_malloc(int n) {
  return fault_now(SQLITE_MALLOC) ? NULL : mem_below.xMalloc(n);
}

static void *sqlite_realloc(void *p, int n) {
  return fault_now(SQLITE_MALLOC) ? NULL : mem_below.xRealloc(p, n);
}

static int verbose;

static void log_line(void *p, int code, const char *text) {
  (void)p;
  if (verbose) (void)fprintf(stderr, "    log (%d) %s\n", code, text);
}

static int install(void) {
  sqlite3_mem_methods m;
  int rc;

  if (!CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free)) return 1;
  json_set_alloc_funcs(fault_malloc, free);
  rc = sqlite3_config(SQLITE_CONFIG_GETMALLOC, &mem_below);
  m = mem_below;
  m.xMalloc = sqlite_malloc;
  m.xRealloc = sqlite_realloc;
  if (rc == SQLITE_OK) rc = sqlite3_config(SQLITE_CONFIG_MALLOC, &m);
  if (rc == SQLITE_OK) rc = sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 0, 0);
  if (rc == SQLITE_OK) rc = sqlite3_config(SQLITE_CONFIG_URI, 1);
  if (rc == SQLITE_OK) rc = sqlite3_config(SQLITE_CONFIG_LOG, log_line, NULL);
  if (rc == SQLITE_OK) rc = crash_vfs_register();
  if (rc == SQLITE_OK) rc = tde_register();
  tde_watch_forbid(); /* faults are counted: nobody else may meet them */
  tde_test_alloc_hook = base_alloc;
  tde_test_random_hook = random_draw;
  return rc;
}

/* ---- jobs ---- */

/* In the scenario: first is the preparation, mix the job, letters in order
** (run.h); and here V: tde_verify(), S: tde_status(). */
typedef struct job {
  scenario sc;
  int cold;    /* the job begins with opening the database, the key not at hand */
  long outage; /* the preparation ends with an outage at this operation of a large
               ** transaction: the job begins with recovery */
} job;

#define SC(name, journal, sync, page, cache, attach, slack, first, mix) \
  { name, journal, sync, page, cache, 30, 0, attach, slack, 0, 0, first, mix, 0, 1, 0 }

/* locking_mode=EXCLUSIVE from the start: the wal-index is in SQLite's own memory. */
#define EXCLUSIVE_WAL(name, first, mix) \
  { name, "wal", "FULL", 4096, 5, 30, 0, 0, 0, 1, 0, first, mix, 0, 1, 0 }

static const job jobs[] = {
    {SC("create", "delete", "EXTRA", 1024, 50, 0, 0, "", ""), 2, 0},
    {SC("create-wal", "wal", "FULL", 1024, 50, 0, 0, "", ""), 2, 0},
    {SC("open-read", "delete", "EXTRA", 1024, 50, 0, 0, "tt", "S"), 1, 0},
    {SC("open-read-wal", "wal", "FULL", 1024, 50, 0, 0, "tt", "S"), 1, 0},
    {SC("write", "delete", "EXTRA", 1024, 50, 0, 0, "t", "ttr"), 0, 0},
    {SC("write-truncate", "truncate", "FULL", 1024, 50, 0, 0, "t", "tt"), 0, 0},
    {SC("write-persist", "persist", "FULL", 4096, 50, 0, 0, "t", "tt"), 0, 0},
    {SC("write-off", "delete", "OFF", 1024, 50, 0, 0, "t", "ttr"), 0, 0},
    {SC("wal-off", "wal", "OFF", 1024, 50, 0, 0, "t", "ttr"), 0, 0},
    {SC("spill", "delete", "EXTRA", 4096, 5, 0, 0, "t", "bs"), 0, 0},
    {SC("spill-rollback", "persist", "EXTRA", 4096, 5, 0, 0, "bt", "r"), 0, 0},
    {SC("wal", "wal", "FULL", 1024, 50, 0, 0, "t", "ttr"), 0, 0},
    {SC("wal-spill", "wal", "FULL", 4096, 5, 0, 0, "t", "bs"), 0, 0},
    {EXCLUSIVE_WAL("exclusive-wal", "t", "tPtr"), 0, 0},
    {EXCLUSIVE_WAL("recover-exclusive-wal", "tb", "tT"), 1, 12},
    {SC("checkpoint", "wal", "FULL", 4096, 50, 0, 0, "tttt", "PtT"), 0, 0},
    {SC("recover", "delete", "EXTRA", 4096, 5, 0, 0, "b", "t"), 1, 40},
    {SC("recover-wal", "wal", "FULL", 1024, 5, 0, 0, "tb", "tT"), 1, 12},
    {SC("vacuum", "delete", "EXTRA", 1024, 50, 0, 0, "td", "v"), 0, 0},
    {SC("vacuum-wal", "wal", "FULL", 4096, 50, 0, 0, "td", "v"), 0, 0},
    {SC("page-size", "delete", "EXTRA", 4096, 50, 0, 0, "t", "qt"), 0, 0},
    {SC("small-pages", "delete", "EXTRA", 4096, 50, 0, 0, "tq", "t"), 0, 0},
    {SC("attach", "delete", "EXTRA", 1024, 50, 1, 0, "t", "t"), 0, 0},
    {SC("restore", "delete", "EXTRA", 1024, 50, 0, 0, "t", "B"), 0, 0},
    {SC("restore-wal", "wal", "FULL", 1024, 50, 0, 0, "t", "B"), 0, 0},
    {SC("map", "delete", "EXTRA", 4096, 5, 0, 0, "tbM", "Mbtr"), 0, 0},
    {SC("map-wal", "wal", "FULL", 1024, 5, 0, 0, "tbMT", "MbTt"), 0, 0},
    {SC("map-vacuum", "delete", "EXTRA", 4096, 5, 0, 0, "bMd", "vMb"), 0, 0},
    {SC("verify", "delete", "EXTRA", 1024, 50, 0, 0, "t", "VS"), 0, 0},
    {SC("verify-wal", "wal", "FULL", 1024, 50, 0, 0, "t", "VS"), 0, 0},
    {SC("header", "delete", "EXTRA", 1024, 50, 0, 0, "t", "hh"), 0, 0},
    {SC("protector", "delete", "EXTRA", 1024, 50, 0, 0, "t", "mt"), 0, 0},
    {SC("protector-wal", "wal", "FULL", 1024, 50, 0, 0, "t", "mt"), 0, 0},
    {SC("dek", "delete", "EXTRA", 1024, 50, 0, 0, "t", "gt"), 0, 0},
    {SC("dek-wal", "wal", "FULL", 1024, 50, 0, 0, "t", "gt"), 0, 0},
    {SC("backup", "delete", "EXTRA", 1024, 50, 0, 0, "t", "C"), 0, 0},
    {SC("backup-wal", "wal", "FULL", 1024, 50, 0, 0, "t", "C"), 0, 0},
    {SC("copy", "delete", "EXTRA", 1024, 50, 0, 0, "t", "Y"), 0, 0},
    {SC("new-secondary", "wal", "FULL", 1024, 50, 0, 0, "t", "Z"), 0, 0},
    {SC("sync-secondary", "delete", "EXTRA", 1024, 50, 0, 0, "tyt", "yt"), 0, 0},
    {SC("restore-to", "delete", "EXTRA", 1024, 50, 0, 0, "tAt", "D"), 0, 0},
    {SC("encrypt", "delete", "EXTRA", 1024, 50, 0, 0, "t", "E"), 0, 0},
    {SC("encrypt-wal", "wal", "FULL", 1024, 50, 0, 0, "t", "E"), 0, 0},
    {SC("encrypt-to", "delete", "EXTRA", 1024, 50, 0, 0, "t", "O"), 0, 0},
    {SC("decrypt-to", "delete", "EXTRA", 1024, 50, 0, 0, "t", "U"), 0, 0},
};
#define NJOBS (int)(sizeof(jobs) / sizeof(jobs[0]))

static struct {
  const char *job, *kind;
  long nth;
  int persistent, coarse, plain;
} opt;

static char root[256], disk_dir[300];
static int looks_cut; /* short reads: tde_verify() may say that the file is cut */
static long fired, failures;
static const char *when;

static int converts(const job *j) {
  return strpbrk(j->sc.mix, "EOU") != NULL;
}

static void ask(run *r, const char *sql, const char *want) {
  sqlite3_stmt *q = NULL;
  const char *got = NULL;
  int rc;

  if (r->stop) return;
  rc = sqlite3_prepare_v2(r->db, sql, -1, &q, NULL);
  if (rc == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW)
    got = (const char *)sqlite3_column_text(q, 0);
  if (got && !strstr(got, want) && !looks_cut) run_fail(r, "%s answered %.300s", sql, got);
  rc = sqlite3_finalize(q);
  if (rc) {
    r->stop = 1;
    if (r->tolerant && !r->rc) r->rc = sqlite3_extended_errcode(r->db);
    if (!r->tolerant) run_fail(r, "%s: %s", sql, sqlite3_errmsg(r->db));
  }
}

static void step(run *r, char letter) {
  if (opt.plain && strchr("VShmgACDYZy", letter)) return;
  if (letter == 'V') {
    ask(r, "SELECT tde_verify()", "\"ok\":true");
  } else if (letter == 'S') {
    ask(r, "SELECT tde_status()", "\"state\"");
  } else {
    run_step(r, letter);
  }
}

/* Up to the moment before the job. */
static void prepare(run *r, const job *j) {
  disk_format();
  crash_vfs_seed(5);
  run_init(r, &j->sc, 5, !opt.plain, disk_dir);
  if (strpbrk(j->sc.mix, "EO")) {
    r->tde = 0;
    r->main_form = FORM_PLAIN;
  }
  if (j->cold == 2) return; /* from nothing */
  if (run_connect(r, 0) == 0) {
    run_set_journal(r);
    run_make_schema(r);
  }
  for (const char *p = j->sc.first; *p && !r->stop; p++) run_step(r, *p);
  if (j->outage && !r->stop) {
    disk_power_fails_at(j->outage);
    run_step(r, 'b');
    if (!disk_dead()) run_fail(r, "the outage of the preparation did not come");
    run_close(r);
    disk_power_on(3);
    r->stop = r->why[0] != 0;
  }
  if (j->cold) run_close(r);
}

static void perform(run *r, const job *j) {
  if (j->cold && run_connect(r, 0) == 0) {
    if (j->cold == 1) {
      int txn, rc;
      char why[200];
      if (model_compare(r->db, "main", &r->m, r->top, &txn, &rc, why, sizeof(why)) < 0) {
        r->stop = 1;
        r->rc = rc ? sqlite3_extended_errcode(r->db) : 0;
      } else {
        r->floor = r->committed = r->top = txn;
      }
    }
    run_set_journal(r);
    run_make_schema(r);
  }
  for (const char *p = j->sc.mix; *p && !r->stop; p++) step(r, *p);
}

/* ---- after a fault ---- */

static int code_fits(const kind *k, const job *j, int rc) {
  switch (rc & 0xff) {
    case SQLITE_ERROR:
      return converts(j) && k->cls == RANDOM; /* a message tells */
    case SQLITE_NOMEM:
      return k->cls == MEMORY || (k->disk & DISK_SHMMAP);
    case SQLITE_IOERR:
      /* OpenSSL does not say why it failed. */
      if (k->cls == MEMORY) return rc == SQLITE_IOERR_NOMEM || k == &kinds[OPENSSL_MALLOC];
      return rc != SQLITE_IOERR_AUTH || k->cls == RANDOM;
    case SQLITE_FULL:
    case SQLITE_BUSY:
      return k->cls == INPUT_OUTPUT;
    case SQLITE_CANTOPEN:
      return k->cls == INPUT_OUTPUT;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return (k->disk & DISK_SHORT) != 0; /* as in plain SQLite: the file looks cut */
    default:
      return 0;
  }
}

/* The process dies: what the connection took for rolled back stays so, and what it took for
** committed. */
static void die(run *r) {
  if (!r->db || r->stop) return;
  when = "after the process died";
  disk_power_fails_at(1); /* nothing that a close would write is written */
  run_close(r);
  disk_process_died();
}

/* The connection that saw the fault goes on without it, or ends without a word. */
static void same_connection(run *r, const job *j, int dies) {
  if (!r->db || converts(j)) return;
  when = "on the same connection";
  r->stop = 0;
  r->tolerant = 0;
  clock_ahead += 10; /* an inaccessible database asks again a second later */
  if (!sqlite3_get_autocommit(r->db)) (void)sqlite3_exec(r->db, "ROLLBACK", NULL, NULL, NULL);
  /* A failed open or PRAGMA may have left settings behind that this does not
  ** need: what counts is that reading and writing go on. */
  if (run_resolve(r)) return;
  if (dies) {
    die(r);
  } else if (r->committed > 0) {
    run_step(r, 't');
  }
}

static void new_connection(run *r, const job *j) {
  r->stop = r->why[0] != 0;
  r->tolerant = 0;
  if (r->stop) return;
  when = "on a new connection";
  if (converts(j) || r->out_form >= 0) {
    if (disk_export()) run_fail(r, "the files could not be exported");
    run_verify(r);
    return;
  }
  if (run_connect(r, 0) == 0 && run_resolve(r) == 0) {
    if (!r->sc->attach && strcmp(r->journal, "wal") == 0) {
      (void)run_exec(r, r->db, "PRAGMA journal_mode=DELETE");
    }
    run_check_whole(r, 0);
    if (r->committed > 0 && !r->stop) run_step(r, 't');
  }
  run_close(r);
}

/* One fault. 1: it fired. */
static int one(const job *j, int k, long nth, int persistent) {
  static run r;
  sqlite3_int64 used = sqlite3_memory_used();
  int hits, rc;

  prepare(&r, j);
  if (r.why[0]) {
    (void)printf("FAIL %s: preparation: %s\n", j->sc.name, r.why);
    run_close(&r);
    failures++;
    return 0;
  }
  if (j->cold) clock_ahead += 100000;
  when = "at the fault";
  looks_cut = (kinds[k].disk & DISK_SHORT) != 0;
  r.tolerant = 1;
  r.verbose = verbose;
  arm(k, nth, persistent);
  perform(&r, j);
  hits = disarm();
  looks_cut = 0;
  rc = r.rc;
  if (rc && !hits) run_fail(&r, "an error without a fault: %d", rc);
  if (rc && hits && !code_fits(&kinds[k], j, rc))
    run_fail(&r, "the error code is %d (%s)", rc, sqlite3_errstr(rc));
  /* A page that was read short stays in the cache as it was read, in plain
  ** SQLite, too. */
  if (!r.why[0] && rc && (rc & 0xff) != SQLITE_CORRUPT) {
    /* What only could not be synced, a recovery finds, in plain SQLite, too. */
    same_connection(
        &r, j, (kinds[k].disk & (DISK_WRITE | DISK_FULL)) && nth % 2 && rc != SQLITE_IOERR_FSYNC);
  }
  run_close(&r);
  if (crash_vfs_open_files()) run_fail(&r, "%d files stayed open", crash_vfs_open_files());
  new_connection(&r, j);
  run_close(&r);
  if (!r.why[0] && sqlite3_memory_used() != used) {
    run_fail(&r, "%lld bytes of SQLite's memory are not given back",
             (long long)(sqlite3_memory_used() - used));
  }
  if (r.why[0]) {
    failures++;
    (void)printf("FAIL %s, %s %ld%s (code %d), %s: %s\n  replay: -s %s -f %s -i %ld%s -v\n",
                 j->sc.name, kinds[k].name, nth, persistent ? " and later" : "", rc, when, r.why,
                 j->sc.name, kinds[k].name, nth, persistent ? " -P" : "");
    (void)fflush(stdout);
  }
  if (hits) fired++;
  return hits > 0;
}

/* ---- the sweeps ---- */

/* A plain source that is read short is a shorter source: SQLite has nothing to
** notice it by. */
static int senseless(const job *j, int k) {
  return kinds[k].disk == DISK_SHORT && strpbrk(j->sc.mix, "EO") != NULL;
}

static void sweep(const job *j, int k) {
  long before = failures;

  for (int persistent = 0; persistent < 2; persistent++) {
    long n = 1;
    while (one(j, k, n, persistent) && failures - before < 5) {
      n += opt.coarse ? 1 + n / opt.coarse : 1;
    }
  }
}

static int make_root(void) {
  if (scratch_make("faults", root, sizeof(root))) return 1;
  (void)snprintf(disk_dir, sizeof(disk_dir), "%s/disk", root);
  if (mkdir(disk_dir, 0700)) return 1;
  disk_mount(disk_dir);
  return 0;
}

/* A decimal argument; what is none counts as 0. */
static long number(const char *text) {
  return strtol(text, NULL, 10);
}

static int parse(int argc, char **argv) {
  int c;

  while ((c = getopt(argc, argv, "s:f:i:Pc:pv")) != -1) {
    switch (c) {
      case 's':
        opt.job = optarg;
        break;
      case 'f':
        opt.kind = optarg;
        break;
      case 'i':
        opt.nth = number(optarg);
        break;
      case 'P':
        opt.persistent = 1;
        break;
      case 'c':
        opt.coarse = (int)number(optarg);
        break;
      case 'p':
        opt.plain = 1;
        break;
      case 'v':
        disk_trace(verbose++);
        break;
      default:
        (void)fprintf(stderr,
                      "usage: faults [-s job] [-f kind] [-i nth [-P persistent]] "
                      "[-c 1/step] [-p plain SQLite] [-v]\n");
        return 1;
    }
  }
  return 0;
}

int main(int argc, char **argv) {
  if (parse(argc, argv)) return 2;
  if (make_root() || install()) {
    (void)fprintf(stderr, "faults: could not start\n");
    return 2;
  }
  if (run_make_keys()) {
    (void)fprintf(stderr, "faults: no second key could be made\n");
    return 2;
  }
  for (int i = 0; i < NJOBS; i++) {
    if (opt.job && strcmp(opt.job, jobs[i].sc.name)) continue;
    if (opt.plain && converts(&jobs[i])) continue;
    /* Once without a fault: the instance is made, OpenSSL has what it keeps. */
    (void)one(&jobs[i], RANDOM_DRAW, NEVER, 0);
    for (int k = 0; k < NKINDS; k++) {
      if (opt.kind && strcmp(opt.kind, kinds[k].name)) continue;
      if (senseless(&jobs[i], k)) continue;
      if (opt.nth) {
        (void)one(&jobs[i], k, opt.nth, opt.persistent);
      } else {
        sweep(&jobs[i], k);
      }
      /* Nothing stays broken in this process. */
      if (!opt.nth) (void)one(&jobs[i], RANDOM_DRAW, NEVER, 0);
    }
  }
  disk_format();
  (void)sqlite3_shutdown();
  scratch_remove(root);
  (void)printf("%ld faults of %d kinds in %d jobs\n", fired, NKINDS, NJOBS);
  (void)printf("%ld passed, %ld failed, 0 skipped\n", fired - failures, failures);
  return failures != 0;
}
