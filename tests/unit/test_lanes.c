/*
** test_lanes.c: whose turn it is, against the rules of lanes.h by a look at everybody.
*/
#include <stdint.h>
#include <sys/wait.h>

#include "../../ext/base/crypto.h"
#include "../../vfs/lanes.h"
#include "../../vfs/lease.h"
#include "unit.h"

enum { HOSTS = 12, MEMBERS = 60, STEPS = 200000 };

typedef struct member {
  tde_turn turn;
  tde_turn_times when;
  int host; /* -1: a local key */
  int stands, asked;
} member;

/* What lanes.c is to know, plainly. */
static member members[MEMBERS];
static struct { int silent, since, taken, entered_silent; } hosts[HOSTS];
static int64_t now;
static int64_t stuck_by; /* which requests go on for long is told by this time */

static uint32_t state = 1;
static int draw(int n) {
  state = state * 1664525u + 1013904223u;
  return (int)((state >> 8) % (uint32_t)n);
}

static const char *key_of(const member *m) {
  static char key[64];
  if (m->host < 0) return NULL;
  (void)snprintf(key, sizeof(key), "https://h%d.example/keys/%d", m->host, (int)(m - members));
  return key;
}

static int taken_lanes(void) {
  int n = 0;
  for (int i = 0; i < HOSTS; i++) n += hosts[i].taken;
  return n;
}

static int silent_wait(void) {
  int n = 0;
  for (int i = 0; i < HOSTS; i++) n += hosts[i].taken && hosts[i].entered_silent;
  return n >= TDE_LANES_SILENT;
}

typedef enum lane { FREE, TAKEN, STUCK } lane;

static lane lane_of(const member *m) {
  if (m->host < 0) return FREE;
  if (hosts[m->host].taken) {
    int stuck = hosts[m->host].silent || stuck_by - hosts[m->host].since >= TDE_LANE_STUCK_MS;
    return stuck ? STUCK : TAKEN;
  }
  return hosts[m->host].silent && silent_wait() ? STUCK : FREE;
}

static int may_be_asked(const member *m) {
  return m->stands && m->when.ask <= now && lane_of(m) == FREE;
}

static int may_be_passed(const member *m) {
  lane l = lane_of(m);
  return m->stands && m->when.pass <= now && l != FREE && (l == STUCK || !m->when.if_stuck);
}

/* Does a go before b? */
static int before(const member *a, const member *b) {
  if (a->when.first != b->when.first) return a->when.first;
  return a->when.ask < b->when.ask;
}

static void check_first(member *m, int ask) {
  for (int i = 0; i < MEMBERS; i++) {
    if (may_be_asked(&members[i])) CHECK(ask && m && !before(&members[i], m));
    if (may_be_passed(&members[i])) CHECK(m != NULL);
  }
  if (m) CHECK(ask ? may_be_asked(m) : may_be_passed(m));
}

/* The first moment at which it is somebody's turn, if nobody does anything and no lane gets stuck;
** INT64_MAX: not for a while. */
static int64_t next_turn(void) {
  int64_t from = now, at = INT64_MAX;

  for (; now < from + 6000 && at == INT64_MAX; now += 10) {
    for (int i = 0; i < MEMBERS; i++) {
      if (may_be_asked(&members[i]) || may_be_passed(&members[i])) at = now;
    }
  }
  now = from;
  return at;
}

static int waits_in_lane(void) {
  int n = 0;
  for (int i = 0; i < MEMBERS; i++) {
    n += members[i].stands && members[i].when.ask <= now && lane_of(&members[i]) != FREE;
  }
  return n;
}

/* Nobody oversleeps a turn, nor that a lane gets stuck; and nobody is woken without need. */
static void check_next(void) {
  int64_t next = tde_lanes_next(now), turn = next_turn();
  if (turn != INT64_MAX) CHECK(next <= turn);
  if (waits_in_lane()) CHECK(next <= now + TDE_LANE_STUCK_MS);
  CHECK((next <= now) == (turn == now));
}

static void stand(member *m) {
  if (m->asked) return;
  m->host = draw(2 + draw(HOSTS)) - 1;
  m->when.ask = now - 500 + 10 * draw(200);
  m->when.first = draw(8) == 0;
  m->when.pass = draw(3) ? m->when.ask + 10 * draw(300) : INT64_MAX;
  m->when.if_stuck = draw(2);
  m->stands = 1;
  tde_lanes_stand(&m->turn, key_of(m), &m->when);
}

static void step_out(member *m) {
  tde_lanes_step_out(&m->turn);
  m->stands = 0;
}

static void leave(member *m) {
  tde_lanes_leave(&m->turn);
  if (m->asked) hosts[m->host].taken = 0;
  m->asked = 0;
}

static void enter(member *m) {
  if (m->host < 0) return;
  m->asked = 1;
  hosts[m->host].taken = 1;
  hosts[m->host].since = (int)now;
  hosts[m->host].entered_silent = hosts[m->host].silent;
}

static void serve(void) {
  int ask;
  tde_turn *t = tde_lanes_first(now, &ask);
  member *m = (member *)(void *)t; /* its first part */

  check_first(m, ask);
  check_next();
  if (!m) return;
  if (!ask) {
    step_out(m);
    return;
  }
  if (taken_lanes() == TDE_LANES && m->host >= 0) return;
  tde_lanes_enter(t, now);
  m->stands = 0;
  enter(m);
}

/* Who left its lane before it asked. */
static void come_back(member *m) {
  int may = lane_of(m) == FREE;

  if (m->stands || m->asked || (m->host >= 0 && taken_lanes() == TDE_LANES)) return;
  CHECK(tde_lanes_return(&m->turn, key_of(m), now) == may);
  if (may) enter(m);
}

static void hear(int host) {
  char key[64];
  tde_class c = draw(2) ? TDE_UNREACHABLE : draw(2) ? TDE_OK : draw(2) ? TDE_DENIED : TDE_NOMEM;
  (void)snprintf(key, sizeof(key), "https://h%d.example/", host);
  tde_lanes_heard(key, c);
  if (c == TDE_UNREACHABLE) {
    hosts[host].silent = 1;
  } else if (c != TDE_NOMEM) {
    hosts[host].silent = 0;
  }
}

static void bring_lines(int n) {
  for (int i = 0; i < n; i++) tde_lanes_bring(tde_lanes_new_line());
}

static void take_lines(int n) {
  for (int i = 0; i < n; i++) free(tde_lanes_take_away());
}

/* Whatever happens, whose turn it is and when the next one comes are as the rules have it. */
static void as_the_rules_have_it(void) {
  now = stuck_by = 10000;
  bring_lines(MEMBERS);
  for (int i = 0; i < STEPS && !unit_failures; i++) {
    member *m = &members[draw(1 + i / (STEPS / MEMBERS) % MEMBERS)]; /* more and more */
    switch (draw(6)) {
      case 0:
      case 1:
        stand(m);
        break;
      case 2:
        if (draw(4) == 0 && !m->asked) step_out(m);
        break;
      case 3:
        leave(m);
        if (draw(3) == 0) come_back(&members[draw(MEMBERS)]);
        break;
      case 4:
        if (draw(3) == 0) hear(draw(HOSTS));
        break;
      default:
        serve();
    }
    now += 10 * draw(8);
    stuck_by = now;
  }
  for (int i = 0; i < MEMBERS; i++) {
    leave(&members[i]);
    step_out(&members[i]);
  }
  for (int i = 0; i < HOSTS; i++) CHECK(!hosts[i].taken);
  take_lines(MEMBERS);
}

/* The forked child stands in no line, and begins its own. */
static void a_child_has_no_line(void) {
  member *m = &members[0];
  tde_turn_times due = {now, 0, INT64_MAX, 0};
  int ask, status = 1;
  pid_t pid;

  bring_lines(1);
  m->host = 1;
  tde_lanes_heard(key_of(m), TDE_OK);
  tde_lanes_stand(&m->turn, key_of(m), &due);
  pid = fork();
  if (pid == 0) {
    int ok = !tde_lanes_first(now, &ask) && tde_lanes_next(now) == INT64_MAX;
    tde_lanes_step_out(&m->turn);
    tde_lanes_stand(&m->turn, key_of(m), &due);
    unit_child_exit(ok && tde_lanes_first(now, &ask) == &m->turn && ask);
  }
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  CHECK(tde_lanes_first(now, &ask) == &m->turn && ask);
  step_out(m);
  take_lines(1);
}

enum { SILENT = 1000 };
static tde_turn many[SILENT + 1];

static void stand_at(int i, int host, int64_t at) {
  char key[64];
  tde_turn_times when = {at, 0, at + TDE_LINE_MS, 1};
  (void)snprintf(key, sizeof(key), "https://vault-%d.example/keys/k", host);
  tde_lanes_stand(&many[i], key, &when);
}

/* Also where a thousand customers' vaults are silent, the others have lanes. */
static void many_silent_hosts_leave_lanes(void) {
  char key[64];
  int ask;

  bring_lines(SILENT + 1);
  for (int i = 0; i < SILENT; i++) {
    (void)snprintf(key, sizeof(key), "https://vault-%d.example/keys/k", i);
    tde_lanes_heard(key, TDE_UNREACHABLE);
    stand_at(i, i, 1);
  }
  for (int i = 0; i < TDE_LANES_SILENT; i++) {
    tde_turn *t = tde_lanes_first(2, &ask);
    CHECK(t == &many[i] && ask);
    tde_lanes_enter(t, 2);
  }
  CHECK(!tde_lanes_first(2, &ask));
  stand_at(SILENT, SILENT, 1); /* it answers */
  CHECK(tde_lanes_first(2, &ask) == &many[SILENT] && ask);
  tde_lanes_step_out(&many[SILENT]);
  for (int i = TDE_LANES_SILENT; i < SILENT; i++) { /* all the others are passed over */
    CHECK(tde_lanes_first(1 + TDE_LINE_MS, &ask) == &many[i] && !ask);
    tde_lanes_step_out(&many[i]);
  }
  for (int i = 0; i < TDE_LANES_SILENT; i++) tde_lanes_leave(&many[i]);
  for (int i = 0; i < SILENT; i++) {
    (void)snprintf(key, sizeof(key), "https://vault-%d.example/keys/k", i);
    tde_lanes_heard(key, TDE_OK);
  }
  take_lines(SILENT + 1);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"as_the_rules_have_it", as_the_rules_have_it},
      {"a_child_has_no_line", a_child_has_no_line},
      {"many_silent_hosts_leave_lanes", many_silent_hosts_leave_lanes},
  };
  if (tde_crypto_init(NULL) != TDE_OK) return 2;
  return unit_main(argc, argv, tests, COUNT(tests));
}
