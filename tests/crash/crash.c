/*
** crash.c: thousands of power failures, each chosen by a number.
**
** Number i of a scenario is workload i / 8 with the power failing at an
** operation drawn from i. After the outage the surviving files are looked at
** with the real VFS (run_verify); in every third case there is a second life on
** the simulated disk before, with recovery and further work, and a second
** outage. Plain SQLite goes through the same: where it survives, the encrypted
** database must; where it does not, the model of the disk is wrong.
**
** --sweep fails at every single operation in turn instead.
*/
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../ext/tde.h"
#include "../../vfs/watch.h"
#include "crashvfs.h"
#include "run.h"
#include "scratch.h"

#define PER_WORKLOAD 8
#define JOBS_MAX 16

/* What the jobs tell the parent; in shared memory, so that a job that dies
** still says where. */
typedef struct report {
  volatile long outages, control, failures, lives;
  volatile char at[160];
} report;

static struct {
  const char *scenario;
  long first, count;
  int modes; /* bit 0: plain, bit 1: tde */
  int verbose, jobs, sweep, keep;
  long op, seed; /* one outage of a sweep; 0: all */
  const char *self;
  char root[256], disk[300];
} opt = {.count = 300, .modes = 3, .jobs = 1};

static report *reports;

/* ---- one outage ---- */

typedef struct outcome {
  const scenario *sc;
  long i;
  int tde;
  long op;       /* the power failed here, */
  long of;       /* of so many operations */
  uint64_t seed; /* of what survives */
} outcome;

static void print_failure(const outcome *o, const run *r, const char *when) {
  (void)printf(
      "FAIL %s %ld (%s), outage at operation %ld of %ld, %s: %s\n"
      "  replay: %s -s %s -i %ld -n 1 -m %s -v",
      o->sc->name, o->i, o->tde ? "encrypted" : "plain", o->op, o->of, when, r->why, opt.self,
      o->sc->name, o->i, o->tde ? "tde" : "plain");
  if (opt.sweep) (void)printf(" --sweep --op %ld --seed %ld", o->op, (long)o->seed);
  (void)printf("\n");
  (void)fflush(stdout);
}

/* How many operations a workload has when nothing happens. 0: it failed. */
static long measure(run *r, outcome *o, uint64_t workload, int verbose) {
  disk_format();
  crash_vfs_seed(workload);
  run_init(r, o->sc, workload, o->tde, opt.disk);
  r->verbose = verbose;
  disk_trace(verbose > 1);
  run_life(r, 1, 0);
  o->of = disk_ops();
  if (r->why[0] && verbose < opt.verbose) return measure(r, o, workload, opt.verbose);
  if (r->why[0]) {
    print_failure(o, r, "without any outage");
    return 0;
  }
  return o->of;
}

/* The same workload is measured once for all outages in it. */
static long operations(run *r, outcome *o, uint64_t workload) {
  static const scenario *sc[2];
  static uint64_t of[2];
  static long n[2];

  if (sc[o->tde] != o->sc || of[o->tde] != workload) {
    n[o->tde] = measure(r, o, workload, 0);
    sc[o->tde] = o->sc;
    of[o->tde] = workload;
  }
  return n[o->tde];
}

static int leaked(run *r) {
  static const char mark[] = MODEL_MARK;
  const char *where;
  const char *plain = r->sc->attach == 2 ? "second" : NULL;

  if (!r->tde || r->main_form != FORM_SEALED || r->out_form == FORM_PLAIN) return 0;
  if (!disk_holds(mark, sizeof(mark) - 1, plain, &where)) return 0;
  run_fail(r, "%s holds plaintext", where);
  return 1;
}

/* The power comes back. */
static void restart(run *r, uint64_t seed) {
  if (crash_vfs_open_files()) run_fail(r, "%d files stayed open", crash_vfs_open_files());
  if (r->sc->death) {
    disk_process_died();
  } else {
    disk_power_on(seed);
  }
  if (!r->why[0]) (void)leaked(r);
}

static int one_outage(run *r, outcome *o, uint64_t workload) {
  uint64_t seed = o->seed;
  rng pick = {seed * 77 + 5};
  const char *when = "at first";
  int lives = run_ends(o->sc) || rng_below(&pick, 3) ? 0 : 1 + (int)rng_below(&pick, 2);

  disk_format();
  crash_vfs_seed(workload);
  run_init(r, o->sc, workload, o->tde, opt.disk);
  r->verbose = opt.verbose;
  disk_trace(opt.verbose > 1);
  run_life(r, 1, o->op);
  if (!r->why[0]) restart(r, seed);
  for (int life = 0; life < lives && !r->why[0]; life++) {
    long op = 1 + (long)rng_below(&pick, 1u << (1 + rng_below(&pick, 7)));
    when = "in a later life";
    if (opt.verbose) (void)fprintf(stderr, "--- life %d, outage at %ld\n", life + 2, op);
    crash_vfs_seed(seed + (uint64_t)life);
    run_life(r, 0, op);
    if (!r->why[0]) restart(r, seed + 1000 + (uint64_t)life);
  }
  if (!r->why[0]) {
    when = "on the real disk";
    if (opt.verbose) (void)fprintf(stderr, "--- real disk\n");
    disk_time_passes(); /* no DEK is left in the process: the header must give it */
    if (disk_export()) {
      run_fail(r, "the files could not be written to %s: %s", opt.disk, strerror(errno));
    } else {
      run_verify(r);
    }
  }
  if (r->why[0]) print_failure(o, r, when);
  return r->why[0] != 0;
}

/* ---- many ---- */

static void tell(report *rep, const outcome *o) {
  (void)snprintf((char *)rep->at, sizeof(rep->at), "%s -i %ld -m %s", o->sc->name, o->i,
                 o->tde ? "tde" : "plain");
}

static void numbered(report *rep, const scenario *sc, long i) {
  static run r;

  for (int tde = 0; tde < 2; tde++) {
    outcome o = {sc, i, tde, 0, 0, (uint64_t)i};
    uint64_t workload = (uint64_t)(i / PER_WORKLOAD);
    rng pick = {(uint64_t)i * 1000 + 3};
    if (!(opt.modes & (1 << tde)) || (sc->tde_only && !tde)) continue;
    tell(rep, &o);
    o.of = operations(&r, &o, workload);
    if (o.of) o.op = 1 + (long)rng_below(&pick, (uint32_t)o.of);
    if (!o.of || one_outage(&r, &o, workload)) rep->failures++;
    if (tde) {
      rep->outages++;
    } else {
      rep->control++;
    }
  }
}

/* Workload i, the power failing at each operation in turn, each with a few
** ways of what survives. */
static void sweep(report *rep, const scenario *sc, long i, int job) {
  static run r;
  const int ways = 6;

  for (int tde = 0; tde < 2; tde++) {
    outcome o = {sc, i, tde, 0, 0, (uint64_t)i};
    if (!(opt.modes & (1 << tde)) || (sc->tde_only && !tde)) continue;
    tell(rep, &o);
    o.of = operations(&r, &o, (uint64_t)i);
    if (!o.of) {
      rep->failures++;
      rep->outages++; /* the one that could not be */
    }
    for (long op = 1; op <= o.of; op++) {
      if (op % opt.jobs != job || (opt.op && op != opt.op)) continue;
      for (int w = 0; w < ways; w++) {
        o.op = op;
        o.seed = (uint64_t)(op * ways + w);
        if (opt.op && opt.seed != (long)o.seed) continue;
        if (one_outage(&r, &o, (uint64_t)i)) rep->failures++;
        if (tde) {
          rep->outages++;
        } else {
          rep->control++;
        }
      }
    }
  }
}

static int wanted(const scenario *sc) {
  return !opt.scenario || strcmp(opt.scenario, sc->name) == 0;
}

static void work(int job) {
  report *rep = &reports[job];
  int n = opt.scenario ? 1 : nscenarios;
  long each = opt.sweep ? opt.count : (opt.count + n - 1) / n;

  for (int s = 0; s < nscenarios; s++) {
    if (!wanted(&scenarios[s])) continue;
    for (long i = opt.first; i < opt.first + each; i++) {
      if (opt.sweep) {
        sweep(rep, &scenarios[s], i, job);
      } else if ((i / PER_WORKLOAD + s) % opt.jobs == job) {
        numbered(rep, &scenarios[s], i);
      }
    }
  }
}

static void log_line(void *p, int code, const char *text) {
  (void)p;
  if (opt.verbose) (void)fprintf(stderr, "  log (%d) %s\n", code, text);
}

static int start_job(int job) {
  (void)snprintf(opt.disk, sizeof(opt.disk), "%s/disk%d", opt.root, job);
  if (mkdir(opt.disk, 0700)) return 1;
  disk_mount(opt.disk);
  (void)sqlite3_config(SQLITE_CONFIG_LOG, log_line, NULL);
  (void)sqlite3_config(SQLITE_CONFIG_URI, 1);
  if (crash_vfs_register() || tde_register()) {
    (void)fprintf(stderr, "crash: the VFSes could not be registered\n");
    return 1;
  }
  tde_watch_forbid();                       /* the disk has one user at a time */
  if (run_make_keys() && run_make_keys()) { /* another job may have been at it */
    (void)fprintf(stderr, "crash: no second key could be made\n");
    return 1;
  }
  work(job);
  disk_format();
  return 0;
}

/* ---- the program ---- */

static int usage(void) {
  (void)fprintf(
      stderr,
      "usage: crash [-s scenario] [-i first] [-n count] [-m tde|plain|both] [-j jobs]\n"
      "             [--sweep [--op n --seed n]] [-k keep files] [-v trace] [-l list scenarios]\n");
  return 2;
}

/* A decimal argument; what is none counts as 0. */
static long number(const char *text) {
  return strtol(text, NULL, 10);
}

static int parse(int argc, char **argv) {
  static const struct option longs[] = {
      {"sweep", 0, NULL, 'w'}, {"op", 1, NULL, 'o'}, {"seed", 1, NULL, 'S'}, {NULL, 0, NULL, 0}};
  int c;

  opt.self = argv[0];
  while ((c = getopt_long(argc, argv, "s:i:n:m:j:vkl", longs, NULL)) != -1) {
    switch (c) {
      case 's':
        opt.scenario = optarg;
        break;
      case 'i':
        opt.first = number(optarg);
        break;
      case 'n':
        opt.count = number(optarg);
        break;
      case 'm':
        opt.modes = strcmp(optarg, "tde") == 0 ? 2 : strcmp(optarg, "plain") == 0 ? 1 : 3;
        break;
      case 'j':
        opt.jobs = (int)number(optarg);
        break;
      case 'v':
        opt.verbose++;
        break;
      case 'k':
        opt.keep = 1;
        break;
      case 'w':
        opt.sweep = 1;
        break;
      case 'o':
        opt.op = number(optarg);
        break;
      case 'S':
        opt.seed = number(optarg);
        break;
      case 'l':
        for (int i = 0; i < nscenarios; i++) (void)printf("%s\n", scenarios[i].name);
        exit(0);
      default:
        return usage();
    }
  }
  for (int i = 0; opt.scenario && i < nscenarios; i++) {
    if (wanted(&scenarios[i])) return 0;
  }
  if (opt.jobs < 1 || opt.jobs > JOBS_MAX) return usage();
  return opt.scenario ? usage() : 0;
}

static int run_jobs(void) {
  pid_t pid[JOBS_MAX];
  int died = 0;

  for (int j = 0; j < opt.jobs; j++) {
    (void)fflush(stdout);
    pid[j] = fork();
    if (pid[j] == 0) exit(start_job(j));
  }
  for (int j = 0; j < opt.jobs; j++) {
    int status = 0;
    if (pid[j] < 0 || waitpid(pid[j], &status, 0) < 0 || status != 0) {
      (void)printf("FAIL a job ended with status 0x%x at: -s %s\n", (unsigned)status,
                   (const char *)reports[j].at);
      died++;
    }
  }
  return died;
}

int main(int argc, char **argv) {
  long outages = 0, control = 0, failures = 0;

  if (parse(argc, argv)) return 2;
  reports = mmap(NULL, sizeof(report) * JOBS_MAX, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (reports == MAP_FAILED || scratch_make("crash", opt.root, sizeof(opt.root))) {
    perror("crash");
    return 2;
  }
  failures = run_jobs();
  for (int j = 0; j < opt.jobs; j++) {
    outages += reports[j].outages;
    control += reports[j].control;
    failures += reports[j].failures;
  }
  if (opt.keep) {
    (void)printf("files kept in %s\n", opt.root);
  } else {
    scratch_remove(opt.root);
  }
  (void)printf("%ld outages with encryption, %ld with plain SQLite as control\n", outages, control);
  (void)printf("%ld passed, %ld failed, 0 skipped\n", outages + control - failures, failures);
  return failures != 0;
}
