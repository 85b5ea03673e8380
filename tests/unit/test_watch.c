/*
** test_watch.c: the threads that check keys in the background, under a key source of the test's
** own: who is asked when some key services hang, and what a fork waits for.
*/
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "../../ext/base/crypto.h"
#include "../../vfs/keyring.h"
#include "../../vfs/openfiles.h"
#include "../../vfs/shim.h"
#include "../../vfs/watch.h"
#include "header.h"
#include "unit.h"

/* The document: "https://HOST/keys/N B". A host whose name begins with "hung" keeps who asks
** waiting for hang_ms, and then did not answer. Others answer after delay_ms. */
static atomic_int hang_ms, delay_ms, check_ms, grace_ms, well_asked, hung_asked, hung_now, hung_most;
static atomic_int denied; /* by hosts that answer */

static tde_class ask_hung(tde_status *st) {
  int n = ++hung_now;
  hung_asked++;
  if (n > hung_most) hung_most = n;
  usleep((useconds_t)hang_ms * 1000);
  hung_now--;
  return tde_fail(st, TDE_UNREACHABLE, NULL, "no answer");
}

static tde_class fake_unwrap(void *ctx, const tde_key_params *params, const uint8_t *uuid,
                             const char *doc, size_t ndoc, uint32_t epoch, uint8_t *dek,
                             tde_status *st) {
  (void)ctx, (void)params, (void)uuid, (void)ndoc;
  if (hang_ms && strncmp(doc, "https://hung", 12) == 0) return ask_hung(st);
  well_asked++;
  usleep((useconds_t)delay_ms * 1000);
  if (denied) return tde_fail(st, TDE_DENIED, NULL, "no");
  dek_of(doc, epoch, dek);
  return TDE_OK;
}

static atomic_int policies_hang, policies_waited_for; /* of instances that are named */
static void fake_policy(void *ctx, const tde_key_params *params, tde_key_policy *out) {
  (void)ctx;
  if (params->instance && policies_hang) policies_waited_for++;
  while (params->instance && policies_hang) usleep(5000);
  *out = (tde_key_policy){params->instance ? 600000 : check_ms, grace_ms, 1800000, 0};
}

static const tde_key_source fake = {NULL,        NULL,         fake_unwrap, describe_plainly,
                                    fake_policy, ignore_event, NULL,        NULL};

/* The C library's, for a machine that may have slept. */
static _Atomic int64_t slept_ms, awake_ms;
int clock_gettime(clockid_t clock, struct timespec *t) {
  int rc = (int)syscall(SYS_clock_gettime, clock, t);
  if (clock == CLOCK_BOOTTIME) t->tv_sec += slept_ms / 1000;
  if (clock == CLOCK_MONOTONIC_COARSE) t->tv_sec += awake_ms / 1000; /* as keyring_check.c has it */
  return rc;
}

static void begin(int check) {
  check_ms = check;
  grace_ms = 3600000;
  hang_ms = delay_ms = denied = well_asked = hung_asked = hung_most = 0;
}

static char *file; /* of what is opened; or NULL, and then: */
static char *path; /* of what is opened, and its instance, whose checks are rare; or NULL */
static char *vfs;  /* below, of what is opened */

static tde_keys *open_one(const char *host, uint32_t id) {
  tde_key_params params = {.path = file ? file : path, .vfs = vfs, .instance = path};
  tde_key_facts facts;
  tde_keys *k = NULL;
  tde_header h;
  char doc[80];
  (void)snprintf(doc, sizeof(doc), "https://%s/keys/%u A", host, id);
  make_header(&h, id, doc, 1);
  CHECK(tde_keyring_unlock(&tde_source, &params, &h, 0, &facts, &k, NULL) == TDE_OK);
  tde_header_clear(&h);
  return k;
}

static int ms_since(int64_t from) {
  return (int)(tde_now_ms() - from);
}

/* How long until a denial of this entry's key is believed. */
static int ms_to_notice(tde_keys *k) {
  int64_t from = tde_now_ms();
  denied = 1;
  while (tde_keys_live(k) && ms_since(from) < 10000) usleep(5000);
  return ms_since(from);
}

static int within(int ms, atomic_int *value, int at_least) {
  for (int64_t from = tde_now_ms(); *value < at_least && ms_since(from) < ms;) usleep(5000);
  return *value >= at_least;
}

static int threads_become(int n, int ms) {
  for (int64_t from = tde_now_ms(); tde_watch_threads() != n && ms_since(from) < ms;) usleep(5000);
  return tde_watch_threads() == n;
}

/* Many databases of one host that hangs take one thread. */
static void a_hung_host_holds_up_no_other(void) {
  tde_keys *hung[8], *well;
  begin(200);
  for (uint32_t i = 0; i < COUNT(hung); i++) hung[i] = open_one("hung.example", 100 + i);
  well = open_one("well.example", 1);
  hang_ms = 1500;
  CHECK(within(3000, &hung_asked, 2));
  CHECK(ms_to_notice(well) < 1000);
  CHECK(hung_most == 1);
  for (size_t i = 0; i < COUNT(hung); i++) tde_keyring_release(hung[i]);
  tde_keyring_release(well);
  hang_ms = 0;
}

/* More hosts than there are threads: each keeps one waiting once. */
static void many_silent_hosts_hold_up_no_other(void) {
  tde_keys *hung[8], *well;
  begin(200);
  for (uint32_t i = 0; i < COUNT(hung); i++) {
    char host[40];
    (void)snprintf(host, sizeof(host), "hung%u.example", i);
    hung[i] = open_one(host, 200 + i);
  }
  well = open_one("well.example", 2);
  hang_ms = 1000;
  CHECK(within(10000, &hung_asked, COUNT(hung) + 3));
  CHECK(ms_to_notice(well) < 900);
  for (size_t i = 0; i < COUNT(hung); i++) tde_keyring_release(hung[i]);
  tde_keyring_release(well);
  hang_ms = 0;
}

/* One that is opened while the only thread is kept waiting. */
static void opened_while_the_thread_waits(void) {
  tde_keys *hung, *well;
  begin(200);
  hung = open_one("hung.example", 300);
  CHECK(threads_become(1, 15000));
  hang_ms = 3000;
  CHECK(within(3000, &hung_asked, 1));
  well = open_one("well.example", 3);
  CHECK(ms_to_notice(well) < 1000);
  tde_keyring_release(well);
  tde_keyring_release(hung);
  hang_ms = 0;
}

/* A thread that was not needed any more has left: what comes due later is not left to it. */
static void a_new_due_time_wakes_who_is_there(void) {
  tde_keys *k[3], *late;
  begin(100);
  delay_ms = 300;
  k[0] = open_one("a.example", 400);
  k[1] = open_one("b.example", 401);
  k[2] = open_one("c.example", 402);
  for (int i = 0; i < 100 && tde_watch_threads() < 2; i++) usleep(20000);
  CHECK(tde_watch_threads() >= 2);
  check_ms = 600000;
  CHECK(threads_become(1, 15000));
  check_ms = 200;
  well_asked = 0;
  late = open_one("late.example", 403);
  CHECK(within(1500, &well_asked, 2));
  tde_keyring_release(late);
  for (size_t i = 0; i < COUNT(k); i++) tde_keyring_release(k[i]);
}

/* While the machine slept, keys went on growing old, but not the nap of who checks them. */
static void after_a_sleep_who_naps_is_woken(void) {
  tde_keys *k;
  begin(600000);
  k = open_one("well.example", 600);
  CHECK(threads_become(1, 15000));
  usleep(200000);
  well_asked = 0;
  slept_ms += 700000;
  CHECK(tde_watch_kick());
  CHECK(within(1000, &well_asked, 1));
  tde_keyring_release(k);
}

/* All that is due stands in line behind one request that hangs, of the only thread: grace ends on
** time all the same. */
static void grace_ends_in_line(void) {
  tde_keys *k[4];
  int64_t from;
  int live;
  begin(600000);
  grace_ms = 1000;
  for (uint32_t i = 0; i < COUNT(k); i++) k[i] = open_one("hung.example", 700 + i);
  CHECK(threads_become(1, 15000));
  usleep(200000);
  hang_ms = 5000;
  slept_ms += 700000;
  from = tde_now_ms();
  CHECK(tde_watch_kick());
  do {
    usleep(20000);
    live = 0;
    for (size_t i = 0; i < COUNT(k); i++) live += tde_keys_live(k[i]);
  } while (live > 1 && ms_since(from) < 20000);
  CHECK(ms_since(from) < 4000);
  hang_ms = 0;
  for (size_t i = 0; i < COUNT(k); i++) tde_keyring_release(k[i]);
  while (hung_now) usleep(5000); /* a fork would wait for that */
}

static atomic_int job_ms, jobs, job_now;
static void slow_job(const uint8_t *uuid, const tde_key_facts *facts, const tde_key_params *about) {
  (void)uuid, (void)facts, (void)about;
  jobs++;
  job_now++;
  usleep((useconds_t)job_ms * 1000);
  job_now--;
}

/* A database's housekeeping may wait for another host, or for a lock: those whose keys are at its own
** host do not wait for that. */
static void a_job_holds_up_no_check(void) {
  static sqlite3_vfs lower;
  static char name[] = "/nowhere/job.db";
  tde_db db = {.opened = 2, .params.instance = name};
  /* plain: there is nothing below to read a header from. */
  tde_file f = {.path = name, .lower_vfs = &lower, .db = &db, .plain = 1};
  tde_keys *k, *well;
  begin(200);
  tde_openfiles_add(&f);
  tde_watch_set_job(slow_job);
  job_ms = 6000;
  path = name;
  k = open_one("well.example", 800);
  path = NULL;
  well = open_one("well.example", 801);
  tde_keyring_hurry(k);
  CHECK(within(3000, &jobs, 1));
  CHECK(ms_to_notice(well) < 4000);
  job_ms = 0;
  tde_watch_set_job(NULL);
  tde_openfiles_remove(&f);
  tde_keyring_release(k);
  tde_keyring_release(well);
  while (job_now) usleep(5000);
}

/* A fork waits for who is inside of a library, and that is soon over: nobody is waited for who
** waits for a lock that the fork has. */
static void a_fork_is_not_held_up(void) {
  enum { N = 60 };
  tde_keys *k[4];
  int slow = 0;
  begin(10);
  delay_ms = 5;
  for (uint32_t i = 0; i < COUNT(k); i++) {
    char host[40];
    (void)snprintf(host, sizeof(host), "f%u.example", i);
    k[i] = open_one(host, 500 + i);
  }
  for (int i = 0; i < N; i++) {
    int64_t from = tde_now_ms();
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) unit_child_exit(1);
    slow += ms_since(from) > 120;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    usleep(7000);
  }
  CHECK(slow < N / 10);
  for (size_t i = 0; i < COUNT(k); i++) tde_keyring_release(k[i]);
}

/* A child that is forked while one of the parent's threads asks about a database uses that, and closes
** it: nobody has it open there, and nobody asks about it. */
static void a_child_is_not_held_by_a_thread_of_its_parent(void) {
  tde_keys *k;
  int status = 0;
  pid_t pid;
  begin(200);
  k = open_one("hung.example", 550);
  hang_ms = 1500;
  CHECK(within(3000, &hung_asked, 1));
  pid = fork();
  if (pid == 0) {
    int asked, ok;
    hang_ms = hung_now = well_asked = 0;
    (void)tde_keyring_use_here(k, 0);
    ok = within(2000, &well_asked, 1);
    tde_keyring_release(k);
    usleep(300000); /* who asks just now is through */
    asked = well_asked;
    usleep(1000000);
    unit_child_exit(ok && well_asked == asked);
  }
  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
  hang_ms = 0;
  tde_keyring_release(k);
  while (hung_now) usleep(5000);
}

/* The process has no descriptor left to read the header with: another one may have given the
** database another key. A denial is not believed at once; but not for ever either. */
static void without_descriptors_a_denial_waits(void) {
  struct rlimit was, none;
  tde_keys *k;
  begin(100);
  file = "/proc/self/exe";
  k = open_one("well.example", 60);
  REQUIRE(k && getrlimit(RLIMIT_NOFILE, &was) == 0);
  none = was;
  none.rlim_cur = 3;
  CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
  denied = 1;
  usleep(350000);
  CHECK(tde_keys_live(k));
  for (int i = 0; i < 60 && tde_keys_live(k); i++) usleep(50000);
  CHECK(!tde_keys_live(k));
  CHECK(setrlimit(RLIMIT_NOFILE, &was) == 0);
  tde_keyring_release(k);
  file = NULL;
}

/* A VFS whose files can not be looked at while it hangs. */
static atomic_int files_hang, looking;
static int open_hanging(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *out) {
  (void)v, (void)name, (void)flags, (void)out;
  looking++;
  while (files_hang) usleep(5000);
  looking--;
  f->pMethods = NULL;
  return SQLITE_CANTOPEN;
}

/* Databases of a file system that hangs, at these hosts (a format, for a number), all being checked. */
static void open_hanging_files(int n, const char *host, tde_keys **k) {
  static char name[] = "/proc/self/exe", of[] = "hanging";
  static sqlite3_vfs hanging;
  if (!hanging.zName) hanging = *sqlite3_vfs_find(NULL);
  hanging.zName = of;
  hanging.xOpen = open_hanging;
  CHECK(sqlite3_vfs_register(&hanging, 0) == SQLITE_OK);
  files_hang = 1;
  file = name;
  vfs = of;
  for (int i = 0; i < n; i++) {
    char at[40];
    (void)snprintf(at, sizeof(at), host, i);
    k[i] = open_one(at, 900 + (uint32_t)i);
    tde_keyring_hurry(k[i]);
  }
  file = vfs = NULL;
  CHECK(within(3000, &looking, 1));
}

static void end_hanging_files(int n, tde_keys **k) {
  files_hang = 0;
  for (int i = 0; i < n; i++) tde_keyring_release(k[i]);
  while (looking) usleep(5000);
}

/* A file system that hangs keeps a check of one of its databases: those of the same key service whose
** files are elsewhere are checked, and so are others, however many it keeps. */
static void a_hung_file_holds_up_no_other(void) {
  tde_keys *hung[8], *well;
  begin(200);
  well = open_one("well.example", 950);
  open_hanging_files(1, "well.example", hung);
  usleep(3000000); /* a request would be taken for one that hangs */
  CHECK(ms_to_notice(well) < 4000);
  end_hanging_files(1, hung);
  tde_keyring_release(well);
}

static void many_hung_files_hold_up_no_other(void) {
  tde_keys *hung[8], *well;
  begin(200);
  well = open_one("well.example", 951);
  open_hanging_files(COUNT(hung), "f%d.example", hung);
  usleep(3000000);
  CHECK(ms_to_notice(well) < 4000);
  end_hanging_files(COUNT(hung), hung);
  tde_keyring_release(well);
}

/* An instance whose directory cannot be read, for it hangs, keeps the one thread that reads policies. */
static void a_hung_instance_holds_up_no_other(void) {
  static char name[] = "/nowhere/hangs";
  tde_keys *of_hung, *well;
  int64_t from;
  begin(200);
  path = name;
  of_hung = open_one("other.example", 960);
  path = NULL;
  well = open_one("well.example", 961);
  CHECK(threads_become(1, 15000));
  policies_hang = 1;
  CHECK(within(8000, &policies_waited_for, 1));
  denied = 1;
  for (from = tde_now_ms(); tde_keys_live(well) && ms_since(from) < 7000; usleep(50000)) {
    CHECK(tde_watch_kick()); /* as a transaction does */
  }
  CHECK(!tde_keys_live(well));
  while (ms_since(from) < 7000) usleep(50000);
  CHECK(policies_waited_for == 1);
  policies_hang = 0;
  tde_keyring_release(of_hung);
  tde_keyring_release(well);
}

/* All threads are kept, as by an instance directory whose file system hangs: no DEK outlives that for
** long, and what was being asked for then is asked for anew. */
/* Who uses the database is the one that looks: as a transaction begins, and within one, now and then. */
static void look_by_gate(tde_keys *k, int within_one) {
  tde_file f;
  tde_db db;
  memset(&f, 0, sizeof(f));
  memset(&db, 0, sizeof(db));
  f.db = &db;
  db.file = &f;
  db.state = TDE_STATE_ONLINE;
  db.keys = k;
  db.fork = tde_fork_generation();
  for (int i = 0; within_one && i < 200; i++) (void)tde_db_io_gate(&f, 0);
  if (!within_one) CHECK(tde_db_ask(&f) == SQLITE_OK);
}

static void an_overdue_key_goes(void) {
  tde_named_epochs one = {.n = 1, .epoch = {1}};
  uint8_t gone[TDE_KEY_BYTES];
  tde_aead *aead;
  tde_keys *k[8];
  tde_file idle; /* a connection that nobody uses meanwhile */
  tde_db db;
  begin(600000);
  path = (char *)"an overdue one";
  for (uint32_t i = 0; i < COUNT(k); i++) {
    char host[40];
    (void)snprintf(host, sizeof(host), "f%u.example", i);
    k[i] = open_one(host, 970 + i);
  }
  memset(&idle, 0, sizeof(idle));
  memset(&db, 0, sizeof(db));
  idle.path = path;
  idle.db = &db;
  db.keys = k[0];
  tde_cryptor_init(&db.crypt[0], TDE_ROLE_MAIN, k[0], &one, 1);
  CHECK(tde_cryptor_get(&db.crypt[0], 1, &aead) == TDE_OK && db.crypt[0].n == 1);
  tde_openfiles_add(&idle);
  delay_ms = 3000; /* from here on, of all */
  slept_ms += 600000 + grace_ms;
  well_asked = 0;
  CHECK(tde_watch_kick());
  CHECK(within(3000, &well_asked, 4));
  for (size_t i = 0; i < COUNT(k); i++) {
    tde_keyring_overdue(k[i]);
    CHECK(tde_keys_live(k[i]));
  }
  slept_ms += TDE_OVERDUE_MS; /* when nobody can ask */
  for (size_t i = 0; i < COUNT(k); i++) {
    tde_keyring_overdue(k[i]);
    CHECK(tde_keys_live(k[i]));
  }
  awake_ms += TDE_OVERDUE_MS;
  for (size_t i = 0; i < COUNT(k); i++) {
    look_by_gate(k[i], i % 2);
    CHECK(!tde_keys_live(k[i]) && tde_keys_dek(k[i], 1, gone) != TDE_OK);
  }
  CHECK(db.crypt[0].n == 0); /* nor does what was derived from it stay */
  tde_openfiles_remove(&idle);
  path = NULL;
  delay_ms = 0;
  for (int64_t from = tde_now_ms(); ms_since(from) < 15000;) {
    size_t live = 0;
    uint8_t dek[TDE_KEY_BYTES];
    for (size_t i = 0; i < COUNT(k); i++) {
      live += (size_t)tde_keys_live(k[i]);
      if (tde_keys_live(k[i])) CHECK(tde_keys_dek(k[i], 1, dek) == TDE_OK);
    }
    if (live == COUNT(k)) break;
    usleep(20000);
  }
  for (size_t i = 0; i < COUNT(k); i++) {
    CHECK(tde_keys_live(k[i]));
    tde_keyring_release(k[i]);
  }
}

static int read_nothing(sqlite3_file *f, void *to, int n, sqlite3_int64 at) {
  (void)f, (void)at;
  memset(to, 0, (size_t)n);
  return SQLITE_IOERR_SHORT_READ;
}

/* As a transaction begins on a connection that was open when the process forked. */
static int asks_at_once(tde_keys *k) {
  static const sqlite3_io_methods methods = {.iVersion = 1, .xRead = read_nothing};
  sqlite3_file lower = {&methods};
  tde_file f;
  tde_db db;
  int ok;
  memset(&f, 0, sizeof(f));
  memset(&db, 0, sizeof(db));
  f.db = &db;
  f.lower = &lower;
  db.file = &f;
  db.state = TDE_STATE_ONLINE;
  db.keys = k;
  db.fork = tde_fork_generation() + 1; /* the parent's */
  well_asked = 0;
  ok = tde_db_ask(&f) == SQLITE_OK && well_asked == 1;
  return ok && tde_db_ask(&f) == SQLITE_OK && well_asked == 1;
}

/* Nobody looked after the key since the fork: who uses it first waits for the answer. */
static void a_child_asks_before_it_uses_what_is_overdue(void) {
  int status = -1;
  tde_keys *k;
  pid_t pid;
  begin(600000);
  k = open_one("overdue.example", 990);
  slept_ms += 600001;
  fflush(stdout);
  pid = fork();
  if (pid == 0) unit_child_exit(asks_at_once(k));
  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
  tde_keyring_release(k);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"a_hung_host_holds_up_no_other", a_hung_host_holds_up_no_other},
      {"many_silent_hosts_hold_up_no_other", many_silent_hosts_hold_up_no_other},
      {"opened_while_the_thread_waits", opened_while_the_thread_waits},
      {"a_new_due_time_wakes_who_is_there", a_new_due_time_wakes_who_is_there},
      {"after_a_sleep_who_naps_is_woken", after_a_sleep_who_naps_is_woken},
      {"grace_ends_in_line", grace_ends_in_line},
      {"a_job_holds_up_no_check", a_job_holds_up_no_check},
      {"a_fork_is_not_held_up", a_fork_is_not_held_up},
      {"a_child_is_not_held_by_a_thread_of_its_parent",
       a_child_is_not_held_by_a_thread_of_its_parent},
      {"without_descriptors_a_denial_waits", without_descriptors_a_denial_waits},
      {"a_hung_file_holds_up_no_other", a_hung_file_holds_up_no_other},
      {"many_hung_files_hold_up_no_other", many_hung_files_hold_up_no_other},
      {"a_hung_instance_holds_up_no_other", a_hung_instance_holds_up_no_other},
      {"an_overdue_key_goes", an_overdue_key_goes},
      {"a_child_asks_before_it_uses_what_is_overdue", a_child_asks_before_it_uses_what_is_overdue},
  };
  if (tde_crypto_init(NULL) != TDE_OK) return 2;
  tde_source = fake;
  return unit_main(argc, argv, tests, COUNT(tests));
}
