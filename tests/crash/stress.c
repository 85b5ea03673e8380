/*
** stress.c: several processes, each with several connections, do anything that may be done
** with one database, at random, and are killed, or stopped for a while, at any moment.
**
** Each connection, an actor, is the only one to change its own rows, and keeps in memory
** which ones it has. Its transaction n also sets progress(w) to n. Before COMMIT the digest
** of its rows as they will be goes to a board that all processes share, and n after it. So
** whoever reads, at any moment, in any transaction, can tell that
**
**  - each actor's n is at least what was reported committed when the reader began, and no
**    more than what was begun when it had read;
**  - the rows are those of n, byte for byte: nothing of a transaction that was rolled back,
**    no half of one, nothing older;
**  - a second look in the same transaction shows the same.
**
** Between transactions, and within, actors spill pages, roll back, undo statements and
** savepoints, checkpoint, change the journal mode, the page size and the keys, vacuum, back
** up and copy (the copy is read by the same rules), hold a snapshot or an exclusive lock,
** close and open again; and somebody without the extension looks. In some campaigns each
** transaction changes a second database, too.
**
** The operating system keeps what was written, so this holds with any setting of
** synchronous. What an outage leaves is crash.c's.
*/
#include <dirent.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "actor.h"
#include "crowd.h"
#include "disk.h"
#include "model.h"
#include "scratch.h"

#define ACTIONS 12 /* kills and stops of one campaign */
#define HANG_S 30

board *shared;
plan now;
char root[256], path[300], other[300];
int plain, threads, process;
uint64_t campaign_seed, life;
static int verbose, keep;

/* ---- a process ---- */

static int goes_on(void) {
  return !__atomic_load_n(&shared->finish, __ATOMIC_SEQ_CST);
}

static void *run_actor(void *p) {
  while (goes_on()) actor_step(p);
  actor_leave(p);
  return NULL;
}

/* One that keeps others out goes on more often. */
static actor *choose(rng *r, actor *actors) {
  for (int i = 0; i < EACH; i++) {
    if (actors[i].at == WRITING && rng_below(r, 3)) return &actors[i];
  }
  return &actors[rng_below(r, EACH)];
}

static void run_process(void) {
  static actor actors[EACH];
  rng r = {campaign_seed ^ life};
  pthread_t id[EACH];

  crowd_start(plain, verbose > 1);
  for (int i = 0; i < EACH; i++) actor_arrive(&actors[i], process * EACH + i);
  for (int i = 0; threads && i < EACH; i++) {
    if (pthread_create(&id[i], NULL, run_actor, &actors[i])) abort();
  }
  for (int i = 0; threads && i < EACH; i++) (void)pthread_join(id[i], NULL);
  while (goes_on()) actor_step(choose(&r, actors));
  for (int i = 0; !threads && i < EACH; i++) actor_leave(&actors[i]);
  _exit(shared->complaint[0] != 0);
}

static void must(sqlite3 *db, const char *sql) {
  if (sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK) return;
  complain("%s: %s", sql, sqlite3_errmsg(db));
  _exit(1);
}

_Static_assert(ACTORS == 6, "create() makes a row for each");

static void create(void) {
  sqlite3 *db = NULL;
  char sql[600];
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;

  crowd_start(plain, verbose > 1);
  if (actor_open_file(path, actor_main_is_sealed(), flags, &db))
    complain("create: %s", sqlite3_errmsg(db));
  (void)snprintf(sql, sizeof(sql),
                 "PRAGMA page_size=%d; PRAGMA auto_vacuum=%d; CREATE TABLE t(id INTEGER PRIMARY "
                 "KEY, seed INT, len INT, body BLOB); CREATE INDEX ts ON t(seed); CREATE INDEX tb "
                 "ON t(substr(body,1,200)); CREATE TABLE progress(w INTEGER PRIMARY KEY, n INT);"
                 "INSERT INTO progress VALUES(0,0),(1,0),(2,0),(3,0),(4,0),(5,0)",
                 now.page_size, now.auto_vacuum);
  must(db, sql);
  if (now.small) {
    (void)snprintf(sql, sizeof(sql), "PRAGMA page_size=%d; VACUUM", now.small);
    must(db, sql);
  }
  if (actor_main_is_sealed() && !shared->second_key) {
    must(db, "SELECT tde_instance_new_key('second')");
    shared->second_key = 1;
  }
  if (!plain) {
    must(db, now.losses ? "SELECT tde_instance_set_policy('check_interval_s', 1)"
                        : "SELECT tde_instance_set_policy('check_interval_s', 300)");
  }
  (void)snprintf(sql, sizeof(sql), "PRAGMA journal_mode=%s", now.journal);
  must(db, sql);
  (void)sqlite3_close(db);
  db = NULL;
  if (now.pair) {
    if (actor_open_file(other, !plain && now.pair != OTHER_PLAIN, flags, &db)) complain("create");
    must(db,
         "CREATE TABLE other(w INTEGER PRIMARY KEY, n INT, body);"
         "INSERT INTO other VALUES(0,0,0),(1,0,0),(2,0,0),(3,0,0),(4,0,0),(5,0,0)");
    (void)sqlite3_close(db);
  }
  _exit(shared->complaint[0] != 0);
}

/* With everybody else dead: all is there, whole, and goes on. */
static void inspect(void) {
  static actor a;

  crowd_start(plain, verbose > 1);
  threads = 1; /* nobody here to wait for */
  actor_arrive(&a, 0);
  crowd_expect(a.db, "PRAGMA main.integrity_check", "ok");
  if (rng_below(&a.r, 2)) (void)actor_try(&a, "PRAGMA main.wal_checkpoint(TRUNCATE)");
  if (actor_main_is_sealed()) crowd_expect(a.db, "SELECT tde_verify()", "\"ok\":true");
  (void)sqlite3_close(a.db);
  _exit(shared->complaint[0] != 0);
}

/* ---- the parent ---- */

/* With everybody dead: no file of a sealed database may hold a row's text. */
static void search_for_plaintext(const char *file) {
  static const char *const ends[] = {"", "-journal", "-wal"};
  char name[500];

  for (int i = 0; i < 3; i++) {
    struct stat st;
    FILE *f;
    char *all;

    (void)snprintf(name, sizeof(name), "%s%s", file, ends[i]);
    if (stat(name, &st) || !(f = fopen(name, "rb"))) continue;
    all = malloc((size_t)st.st_size + 1);
    if (all && fread(all, 1, (size_t)st.st_size, f) == (size_t)st.st_size &&
        memmem(all, (size_t)st.st_size, MODEL_MARK, strlen(MODEL_MARK))) {
      complain("%s holds plaintext", name);
    }
    free(all);
    (void)fclose(f);
  }
}

static rng draw_plan(uint64_t seed) {
  static const int pages[] = {512, 1024, 4096, 4096, 4096, 8192, 65536};
  static const char *const journals[] = {"WAL", "WAL", "WAL", "DELETE", "TRUNCATE", "PERSIST"};

  rng all = {seed}, *r = &all;

  memset(&now, 0, sizeof(now));
  now.page_size = pages[rng_below(r, 7)];
  now.small = rng_below(r, 4) ? 0 : 512 << rng_below(r, 2);
  if (now.small) now.page_size = 4096;
  now.auto_vacuum = rng_below(r, 2) ? 0 : 1 + (int)rng_below(r, 2);
  now.rows = rng_below(r, 2) ? 12 : ROWS;
  now.journal = journals[rng_below(r, 6)];
  now.modes = rng_below(r, 3) == 0;
  now.keys = rng_below(r, 4) ? 20 << rng_below(r, 4) : 0;
  now.pair = rng_below(r, 6) == 0 ? 1 + rng_below(r, 3) : ALONE;
  now.losses = !plain && rng_below(r, 6) == 0;
  /* Of two connections of one process that wait for each other, none would be killed. */
  now.gentle = rng_below(r, 6) == 0 && !now.pair;
  if (now.pair) now.journal = journals[3 + rng_below(r, 3)];
  /* A plain file is the unix VFS's alone, and its threads' (vfs/locks.c). */
  if (now.pair && threads && !plain) now.pair = BOTH_SEALED;
  return all;
}

static const char *plan_text(void) {
  static char text[200];

  (void)snprintf(text, sizeof(text),
                 "pages of %d%s, auto_vacuum %d, %d rows, %s%s, keys %d, pair %d%s%s",
                 now.small ? now.small : now.page_size, now.small ? " (below a unit)" : "",
                 now.auto_vacuum, now.rows, now.journal, now.modes ? " and others" : "", now.keys,
                 (int)now.pair, now.losses ? ", key losses" : "", now.gentle ? ", gentle" : "");
  return text;
}

static pid_t pids[PROCESSES];

/* Also those that have killed themselves, or failed. */
static void start_missing(void) {
  for (int i = 0; i < PROCESSES; i++) {
    if (pids[i]) continue;
    process = i;
    life++;
    pids[i] = crowd_child(run_process);
  }
}

static void kill_all(void) {
  for (int i = 0; i < PROCESSES; i++) crowd_kill(&pids[i]);
}

/* Everybody makes progress, or hangs. */
static void look_for_hangs(long *steps, int *idle_us, int waited_us) {
  for (int i = 0; i < PROCESSES; i++) {
    long there = __atomic_load_n(&shared->steps[i], __ATOMIC_RELAXED);
    idle_us[i] = there == steps[i] ? idle_us[i] + waited_us : 0;
    steps[i] = there;
    if (idle_us[i] > HANG_S * 1000000) complain("process %d has done nothing for %d s", i, HANG_S);
  }
}

/* Everybody closes. */
static void finish_all(void) {
  int there = 1, status;

  __atomic_store_n(&shared->finish, 1, __ATOMIC_SEQ_CST);
  for (int ms = 0; there && ms < HANG_S * 1000; ms++) {
    there = 0;
    for (int i = 0; i < PROCESSES; i++) {
      if (pids[i] && waitpid(pids[i], &status, WNOHANG) == pids[i]) {
        if (status) complain("process %d ended with 0x%x", i, (unsigned)status);
        pids[i] = 0;
      }
      there |= pids[i] != 0;
    }
    if (there) (void)usleep(1000);
  }
  if (there) complain("a process that was to end is there after %d s", HANG_S);
}

static void inspect_all(void) {
  if (now.gentle) finish_all();
  kill_all();
  shared->finish = 0;
  if (shared->complaint[0]) return;
  if (actor_main_is_sealed()) search_for_plaintext(path);
  if (now.pair == BOTH_SEALED || now.pair == MAIN_PLAIN) {
    if (!plain) search_for_plaintext(other);
  }
  life++;
  crowd_join(crowd_child(inspect), "the inspection");
}

/* Renames the instance's keys, or gives them their names back. */
static void move_keys(int away) {
  char folder[300], from[600], to[700];
  struct dirent *e;
  DIR *d;

  (void)snprintf(folder, sizeof(folder), "%s/instance/keys", root);
  d = opendir(folder);
  while (d && (e = readdir(d))) {
    size_t n = strlen(e->d_name);
    (void)snprintf(from, sizeof(from), "%s/%s", folder, e->d_name);
    if (away && n > 4 && strcmp(e->d_name + n - 4, ".pem") == 0) {
      (void)snprintf(to, sizeof(to), "%s.away", from);
      (void)rename(from, to);
    } else if (!away && n > 5 && strcmp(e->d_name + n - 5, ".away") == 0) {
      (void)snprintf(to, sizeof(to), "%.*s", (int)(strlen(from) - 5), from);
      (void)rename(from, to);
    }
  }
  if (d) (void)closedir(d);
  __atomic_store_n(&shared->back, away ? 0 : actor_clock(), __ATOMIC_SEQ_CST);
}

/* Those that begin meanwhile have no key; who has one keeps it for a second or two. */
static void lose_keys(rng *r) {
  int us = rng_below(r, 3) ? 1000 << rng_below(r, 8) : 3200000;

  move_keys(1);
  (void)usleep((unsigned)us / 2);
  if (!now.gentle && rng_below(r, 2)) crowd_kill(&pids[rng_below(r, PROCESSES)]);
  start_missing();
  (void)usleep((unsigned)us / 2);
  move_keys(0);
}

static void disturb(rng *r) {
  int victim = (int)rng_below(r, PROCESSES);

  if (now.losses && rng_below(r, 3) == 0) {
    lose_keys(r);
    return;
  }
  switch (rng_below(r, 8)) {
    case 0:
      inspect_all();
      break;
    case 1:
    case 2:
    case 3: /* others meet its locks for a while */
      (void)kill(pids[victim], SIGSTOP);
      (void)usleep(1000 + rng_below(r, 60000));
      (void)kill(pids[victim], now.gentle || rng_below(r, 2) ? SIGCONT : SIGKILL);
      (void)kill(pids[victim], SIGCONT);
      break;
    default:
      if (!now.gentle) crowd_kill(&pids[victim]);
  }
}

/* Reaps what has ended meanwhile, so that it is started again. */
static void reap(void) {
  for (int i = 0; i < PROCESSES; i++) {
    int status;
    if (!pids[i] || waitpid(pids[i], &status, WNOHANG) != pids[i]) continue;
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) {
      complain("process %d died of signal %d", i, WTERMSIG(status));
    } else if (WIFEXITED(status) && !shared->complaint[0]) {
      complain("process %d ended with %d", i, WEXITSTATUS(status));
    }
    pids[i] = 0;
  }
}

/* All but the instance: copies whose maker was killed bear names of their own. */
static void forget_files(void) {
  DIR *d = opendir(root);
  struct dirent *e;
  char file[600];

  while (d && (e = readdir(d))) {
    (void)snprintf(file, sizeof(file), "%s/%s", root, e->d_name);
    if (e->d_type == DT_REG) (void)unlink(file);
  }
  if (d) (void)closedir(d);
}

static void campaign(uint64_t seed) {
  rng r = draw_plan(seed);
  long steps[PROCESSES] = {0};
  int idle_us[PROCESSES] = {0};

  forget_files();
  memset(shared, 0, offsetof(board, second_key));
  shared->complaint[0] = 0;
  for (int w = 0; w < ACTORS; w++) shared->ring[w][0].digest = 1;
  campaign_seed = rng_next(&r);
  crowd_join(crowd_child(create), "the creation");
  for (int i = 0; i < ACTIONS && !shared->complaint[0]; i++) {
    int us = 2000 + (int)rng_below(&r, 1u << (11 + rng_below(&r, 8)));
    start_missing();
    (void)usleep((unsigned)us);
    look_for_hangs(steps, idle_us, us);
    reap();
    start_missing();
    if (!shared->complaint[0]) disturb(&r);
    reap();
  }
  inspect_all();
}

static int prepare(void) {
  if (scratch_make("stress", root, sizeof(root))) return 1;
  (void)snprintf(path, sizeof(path), "%s/app.db", root);
  (void)snprintf(other, sizeof(other), "%s/other.db", root);
  shared = crowd_memory(sizeof(*shared));
  if (!shared) return 1;
  crowd_hear(shared->complaint);
  return 0;
}

static int usage(void) {
  (void)fprintf(stderr,
                "usage: stress [-n campaigns] [-i seed] [-r the same again] [-m text in the plan] "
                "[-t threads] "
                "[-p plain] [-k keep] [-v [-v]]\n");
  return 2;
}

int main(int argc, char **argv) {
  int campaigns = 10, c, failed = 0, done = 0, repeat = 0;
  uint64_t seed = 1;
  const char *only = NULL;

  while ((c = getopt(argc, argv, "n:i:m:rtpkv")) != -1) {
    if (c == 'n')
      campaigns = (int)crowd_number(optarg);
    else if (c == 'i')
      seed = strtoull(optarg, NULL, 10);
    else if (c == 'm')
      only = optarg;
    else if (c == 'r')
      repeat = 1;
    else if (c == 't')
      threads = 1;
    else if (c == 'p')
      plain = 1;
    else if (c == 'k')
      keep = 1;
    else if (c == 'v')
      verbose++;
    else
      return usage();
  }
  if (prepare()) {
    perror("stress");
    return 2;
  }
  for (; done < campaigns && failed < 10 && !(keep && failed); done++, seed += !repeat) {
    while (only && (draw_plan(seed), !strstr(plan_text(), only))) seed++;
    campaign(seed);
    if (verbose) {
      (void)fprintf(stderr,
                    "%s: %ld commits, %ld looks, %ld key changes, %ld copies, %ld refusals\n",
                    plan_text(), shared->commits, shared->looks, shared->keys, shared->copies,
                    shared->refusals);
    }
    if (!shared->complaint[0]) continue;
    failed++;
    (void)printf("FAIL %s\n  %s\n  again: %s -i %llu -r -n 50%s%s\n", shared->complaint,
                 plan_text(), argv[0], (unsigned long long)seed, threads ? " -t" : "",
                 plain ? " -p" : "");
    (void)fflush(stdout);
  }
  if (keep && failed)
    (void)printf("  its files are kept in %s\n", root);
  else
    scratch_remove(root);
  (void)printf("%d passed, %d failed, 0 skipped\n", done - failed, failed);
  return failed != 0;
}
