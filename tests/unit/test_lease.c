/*
** test_lease.c: leases (what becomes of a DEK when its key service answers, denies
** or is silent), and the key ring under a key source of the test's own.
*/
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "../../ext/base/crypto.h"
#include "../../ext/base/limits.h"
#include "../../ext/base/secret.h"
#include "../../vfs/keyring.h"
#include "../../vfs/openfiles.h"
#include "../../vfs/shim.h"
#include "../../vfs/watch.h"
#include "header.h"
#include "unit.h"

static const tde_key_policy policy = {300000, 86400000, 1800000, 0};

/* ---- leases: pure, with a clock of the test's own ---- */

static void steady(void) {
  tde_lease l;
  tde_lease_begin(&l, 1000, &policy);
  CHECK(l.access == TDE_ACCESS_LIVE && l.due_at == 301000);
  CHECK(tde_lease_answer(&l, TDE_OK, 0, 301000, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_LIVE && l.due_at == 601000 && l.since == 1000);
}

static void denial_is_confirmed(void) {
  static const tde_class denials[] = {TDE_UNAUTHENTICATED, TDE_DENIED, TDE_DISABLED, TDE_MISSING,
                                      TDE_WRONG_KEY};
  for (size_t i = 0; i < COUNT(denials); i++) {
    tde_lease l;
    tde_lease_begin(&l, 0, &policy);
    CHECK(tde_lease_answer(&l, denials[i], 0, 300000, &policy) == TDE_LEASE_KEEP);
    CHECK(l.access == TDE_ACCESS_LIVE && l.due_at == 302000);
    CHECK(tde_lease_answer(&l, denials[i], 0, 302000, &policy) == TDE_LEASE_WIPE);
    CHECK(l.access == TDE_ACCESS_LOST && l.since == 302000);
    CHECK(tde_lease_cutoff(&l, &policy) == 602000);
  }
}

static void denial_that_passes(void) {
  tde_lease l;
  tde_lease_begin(&l, 0, &policy);
  tde_lease_answer(&l, TDE_DENIED, 0, 300000, &policy);
  CHECK(tde_lease_answer(&l, TDE_OK, 0, 302000, &policy) == TDE_LEASE_KEEP);
  CHECK(tde_lease_answer(&l, TDE_DENIED, 0, 602000, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_LIVE); /* the first of two again */
}

/* Checks that do not come out even with the grace. */
static void grace_ends_between_checks(void) {
  static const tde_key_policy uneven = {700000, 1000000, 1800000, 0};
  tde_lease l;
  tde_lease_begin(&l, 0, &uneven);
  tde_lease_answer(&l, TDE_UNREACHABLE, 0, 700000, &uneven);
  tde_lease_answer(&l, TDE_UNREACHABLE, 0, 1400000, &uneven);
  CHECK(l.access == TDE_ACCESS_GRACE && l.due_at == 1700000);
}

static void outage_has_grace(void) {
  static const tde_class outages[] = {TDE_UNREACHABLE, TDE_THROTTLED,     TDE_NOMEM,      TDE_IO,
                                      TDE_CORRUPT,     TDE_MISCONFIGURED, TDE_UNSUPPORTED};
  for (size_t i = 0; i < COUNT(outages); i++) {
    tde_lease l;
    int64_t now = 300000;
    tde_lease_begin(&l, 0, &policy);
    CHECK(tde_lease_answer(&l, outages[i], 0, now, &policy) == TDE_LEASE_KEEP);
    CHECK(l.access == TDE_ACCESS_GRACE && l.since == now);
    while (l.due_at < now + 86400000 && l.access == TDE_ACCESS_GRACE) {
      CHECK(tde_lease_answer(&l, outages[i], 0, l.due_at, &policy) == TDE_LEASE_KEEP);
    }
    CHECK(l.due_at == now + 86400000); /* on time, whatever the interval */
    CHECK(tde_lease_tick(&l, l.due_at - 1, &policy) == TDE_LEASE_KEEP);
    CHECK(tde_lease_tick(&l, l.due_at, &policy) == TDE_LEASE_WIPE);
    CHECK(l.access == TDE_ACCESS_WAITING);
    /* It heals however long that took. */
    CHECK(tde_lease_answer(&l, TDE_OK, 0, now + 900000000, &policy) == TDE_LEASE_HEAL);
    CHECK(l.access == TDE_ACCESS_LIVE);
  }
}

static void outage_over(void) {
  tde_lease l;
  tde_lease_begin(&l, 0, &policy);
  tde_lease_answer(&l, TDE_UNREACHABLE, 0, 300000, &policy);
  CHECK(tde_lease_answer(&l, TDE_OK, 0, 600000, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_LIVE && l.since == 600000 && l.due_at == 900000);
}

static void denied_in_grace(void) {
  tde_lease l;
  tde_lease_begin(&l, 0, &policy);
  tde_lease_answer(&l, TDE_UNREACHABLE, 0, 300000, &policy);
  CHECK(tde_lease_answer(&l, TDE_DENIED, 0, 600000, &policy) == TDE_LEASE_KEEP);
  CHECK(tde_lease_answer(&l, TDE_DENIED, 0, 602000, &policy) == TDE_LEASE_WIPE);
  CHECK(l.access == TDE_ACCESS_LOST);
}

/* A denial that is to be confirmed meets an outage, as a throttled request: it is not forgotten, nor
** does the question wait for a whole interval. */
static void a_denial_outlives_an_outage(void) {
  tde_lease l;
  int64_t asked = 302000;
  int n = 0;
  tde_lease_begin(&l, 0, &policy);
  tde_lease_answer(&l, TDE_DENIED, 0, 300000, &policy);
  CHECK(tde_lease_answer(&l, TDE_THROTTLED, 0, asked, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_GRACE && l.since == asked && l.due_at == asked + 2000);
  CHECK(tde_lease_answer(&l, TDE_DENIED, 0, l.due_at, &policy) == TDE_LEASE_WIPE);
  CHECK(l.access == TDE_ACCESS_LOST);
  tde_lease_begin(&l, 0, &policy);
  tde_lease_answer(&l, TDE_DENIED, 0, 300000, &policy);
  for (; l.due_at < 300000 + 86400000; n++) tde_lease_answer(&l, TDE_THROTTLED, 0, l.due_at, &policy);
  CHECK(n < 86400 / 300 + 10); /* and no more often than the checks, in the end */
  tde_lease_begin(&l, 0, &policy);
  tde_lease_answer(&l, TDE_DENIED, 0, 300000, &policy);
  tde_lease_answer(&l, TDE_THROTTLED, 0, 302000, &policy);
  tde_lease_answer(&l, TDE_OK, 0, 304000, &policy);
  tde_lease_answer(&l, TDE_THROTTLED, 0, 604000, &policy);
  CHECK(l.due_at == 904000); /* nothing is to be confirmed any more */
}

static void heals_within_the_window(void) {
  tde_lease l;
  tde_lease_refused(&l, TDE_DENIED, 1000, &policy);
  CHECK(l.access == TDE_ACCESS_LOST && l.due_at == 2000);
  CHECK(tde_lease_answer(&l, TDE_DENIED, 0, 2000, &policy) == TDE_LEASE_KEEP);
  CHECK(l.due_at == 4000); /* 2 s on, then 4, 8, ... */
  CHECK(tde_lease_tick(&l, 1000 + 1799999, &policy) == TDE_LEASE_KEEP);
  CHECK(tde_lease_answer(&l, TDE_OK, 0, 1000 + 1799999, &policy) == TDE_LEASE_HEAL);
  CHECK(l.access == TDE_ACCESS_LIVE);
}

/* Nobody can be asked while others wait for the key service: Grace begins all the same, from when
** the check was due, and ends on time; and the check stays due. */
static void in_line_grace_goes_on(void) {
  tde_lease l;
  tde_lease_begin(&l, 0, &policy);
  CHECK(tde_lease_unasked(&l, 0, &policy) == INT64_MAX);
  CHECK(tde_lease_unasked(&l, 1, &policy) == 300000 + TDE_LINE_MS);
  CHECK(tde_lease_pass(&l, 310000, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_GRACE && l.since == 300000 && l.due_at == 300000);
  CHECK(tde_lease_unasked(&l, 0, &policy) == 300000 + 86400000);
  CHECK(tde_lease_pass(&l, 300000 + 86399999, &policy) == TDE_LEASE_KEEP);
  CHECK(tde_lease_pass(&l, 300000 + 86400000, &policy) == TDE_LEASE_WIPE);
  CHECK(l.access == TDE_ACCESS_WAITING && tde_lease_unasked(&l, 1, &policy) == INT64_MAX);
  tde_lease_refused(&l, TDE_DENIED, 0, &policy);
  CHECK(tde_lease_unasked(&l, 1, &policy) == policy.heal_ms);
  CHECK(tde_lease_pass(&l, policy.heal_ms, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_CLOSED && tde_lease_unasked(&l, 1, &policy) == INT64_MAX);
}

/* However late it is asked, a DEK serves for an interval and the grace. */
static void grace_counts_from_the_due_check(void) {
  tde_lease l;
  tde_lease_begin(&l, 0, &policy);
  CHECK(tde_lease_answer(&l, TDE_UNREACHABLE, 0, 500000, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_GRACE && l.since == 300000 && l.due_at == 800000);
  tde_lease_begin(&l, 0, &policy);
  CHECK(tde_lease_answer(&l, TDE_UNREACHABLE, 0, 300000 + 86400000, &policy) == TDE_LEASE_WIPE);
  CHECK(l.access == TDE_ACCESS_WAITING);
}

static void closes_after_the_window(void) {
  tde_lease l;
  tde_lease_refused(&l, TDE_DENIED, 1000, &policy);
  CHECK(tde_lease_tick(&l, 1801000, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_CLOSED && l.due_at == INT64_MAX);
  CHECK(tde_lease_answer(&l, TDE_OK, 0, 1801000, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_CLOSED);
  CHECK(tde_lease_answer(&l, TDE_DENIED, 1, 1802000, &policy) == TDE_LEASE_KEEP);
  CHECK(l.access == TDE_ACCESS_CLOSED);
  CHECK(tde_lease_answer(&l, TDE_OK, 1, 1803000, &policy) == TDE_LEASE_HEAL);
  CHECK(l.access == TDE_ACCESS_LIVE && l.due_at == 2103000);
}

static void checks_reach_the_window(void) {
  tde_lease l;
  tde_lease_refused(&l, TDE_DENIED, 0, &policy);
  while (l.access == TDE_ACCESS_LOST) {
    int64_t now = l.due_at;
    CHECK(now <= 1800000);
    tde_lease_tick(&l, now, &policy);
    if (l.access == TDE_ACCESS_LOST) tde_lease_answer(&l, TDE_DENIED, 0, now, &policy);
  }
  CHECK(l.since == 1800000);
}

/* Whatever becomes of the key after the loss, what was under way then has one interval. */
static void the_cutoff_stays(void) {
  tde_lease l;
  tde_lease_begin(&l, 0, &policy);
  tde_lease_answer(&l, TDE_UNREACHABLE, 0, 300000, &policy);
  CHECK(tde_lease_tick(&l, 300000 + 86400000, &policy) == TDE_LEASE_WIPE);
  CHECK(tde_lease_cutoff(&l, &policy) == 300000 + 86400000 + 300000);
  tde_lease_answer(&l, TDE_DENIED, 0, l.due_at, &policy);
  CHECK(l.access == TDE_ACCESS_LOST);
  CHECK(tde_lease_cutoff(&l, &policy) == 300000 + 86400000 + 300000);
  tde_lease_tick(&l, l.since + 1800000, &policy);
  CHECK(l.access == TDE_ACCESS_CLOSED);
  CHECK(tde_lease_cutoff(&l, &policy) == 300000 + 86400000 + 300000);
  tde_lease_reopen(&l, l.since + 1000);
  CHECK(tde_lease_cutoff(&l, &policy) == 300000 + 86400000 + 300000);
  CHECK(tde_lease_answer(&l, TDE_OK, 0, 90000000, &policy) == TDE_LEASE_HEAL);
  tde_lease_answer(&l, TDE_DENIED, 0, 90300000, &policy);
  CHECK(tde_lease_answer(&l, TDE_DENIED, 0, 90302000, &policy) == TDE_LEASE_WIPE);
  CHECK(tde_lease_cutoff(&l, &policy) == 90602000); /* another loss */
}

static void waits_out_an_outage_at_open(void) {
  tde_lease l;
  tde_lease_refused(&l, TDE_UNREACHABLE, 0, &policy);
  CHECK(l.access == TDE_ACCESS_WAITING);
  for (int i = 0; i < 100; i++) tde_lease_answer(&l, TDE_UNREACHABLE, 0, l.due_at, &policy);
  CHECK(l.access == TDE_ACCESS_WAITING && l.retry_ms == 300000);
  tde_lease_answer(&l, TDE_DENIED, 0, l.due_at, &policy);
  CHECK(l.access == TDE_ACCESS_LOST);
}

static void reopened_by_a_new_header(void) {
  tde_lease l;
  tde_lease_refused(&l, TDE_DENIED, 0, &policy);
  tde_lease_tick(&l, 1800000, &policy);
  tde_lease_reopen(&l, 1900000);
  CHECK(l.access == TDE_ACCESS_WAITING && l.due_at == 1900000);
  CHECK(tde_lease_answer(&l, TDE_OK, 0, 1900000, &policy) == TDE_LEASE_HEAL);
}

/* ---- the ring ---- */

/* The document is one line: "key [@epoch] [federated-client-id] dek-byte". What the source
** answers is set by the test. */
static struct {
  pthread_mutex_t mutex;
  tde_class answer;
  int asked, events;
  useconds_t delay; /* µs that an answer takes */
  char last_event[32];
  char refused[32]; /* documents that begin so are, "": none */
  char other;       /* what a DEK is of, whatever its document says; 0: what that says */
} fake = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static tde_class fake_unwrap(void *ctx, const tde_key_params *params, const uint8_t *uuid,
                             const char *doc, size_t ndoc, uint32_t epoch, uint8_t *dek,
                             tde_status *st) {
  (void)ctx, (void)params, (void)uuid, (void)ndoc, (void)epoch;
  pthread_mutex_lock(&fake.mutex);
  tde_class c = fake.answer;
  if (*fake.refused && strncmp(doc, fake.refused, strlen(fake.refused)) == 0) c = TDE_DENIED;
  fake.asked++;
  pthread_mutex_unlock(&fake.mutex);
  usleep(fake.delay);
  if (c) return tde_fail(st, c, "do", "the fake says no");
  dek_of(doc, epoch, dek);
  if (fake.other) memset(dek + 1, fake.other, TDE_KEY_BYTES - 1);
  return TDE_OK;
}

static tde_class fake_describe(void *ctx, const char *doc, size_t ndoc, tde_key_facts *out,
                               tde_status *st) {
  (void)ctx, (void)ndoc, (void)st;
  facts_of(doc, out);
  (void)snprintf(out->key_version, sizeof(out->key_version), "1");
  const char *second = strchr(doc, ' ') + 1;
  (void)snprintf(out->federated_client_id, sizeof(out->federated_client_id), "%.*s",
                 strchr(second, ' ') ? (int)strcspn(second, " ") : 0, second);
  const char *as = strstr(doc, "as:");
  (void)snprintf(out->identity, sizeof(out->identity), "%.*s", as ? (int)strcspn(as, " ") : 0,
                 as ? as : "");
  out->alone = strstr(doc, "wraps") == NULL;
  if (*second == '@') out->epoch = out->epochs[0] = (uint32_t)(second[1] - '0');
  return TDE_OK;
}

static tde_key_policy fast;
static atomic_int policies_read;
static void fake_policy(void *ctx, const tde_key_params *params, tde_key_policy *out) {
  (void)ctx, (void)params;
  policies_read++;
  *out = fast;
}

static void fake_event(void *ctx, const tde_key_params *params, const tde_key_event *e) {
  (void)ctx, (void)params;
  pthread_mutex_lock(&fake.mutex);
  fake.events++;
  (void)snprintf(fake.last_event, sizeof(fake.last_event), "%s", e->event);
  pthread_mutex_unlock(&fake.mutex);
}

static const tde_key_source source = {NULL,        NULL,       fake_unwrap, fake_describe,
                                      fake_policy, fake_event, NULL, NULL};
static tde_key_params params;

static tde_class unlock(const tde_header *h, int forced, tde_keys **keys, tde_status *st) {
  tde_key_facts facts;
  return tde_keyring_unlock(&source, &params, h, forced, &facts, keys, st);
}

static void set_answer(tde_class c) {
  pthread_mutex_lock(&fake.mutex);
  fake.answer = c;
  pthread_mutex_unlock(&fake.mutex);
}

static int asked(void) {
  pthread_mutex_lock(&fake.mutex);
  int n = fake.asked;
  fake.asked = 0;
  pthread_mutex_unlock(&fake.mutex);
  return n;
}

/* Checks the entry now, as a thread of the watch would. */
static tde_lease_act check_now(tde_keys *k, const tde_header *newer) {
  for (int i = 0; i < 200 && !tde_keyring_claim(k); i++) usleep(10000);
  return tde_keyring_check(k, &source, newer);
}

static void begin(void) {
  fast = (tde_key_policy){100, 400, 500, 0};
  fake.delay = 20000;
  fake.other = 0;
  set_answer(TDE_OK);
  asked();
}

static void *open_one(void *arg) {
  tde_keys *k = NULL;
  CHECK(unlock(arg, 0, &k, NULL) == TDE_OK);
  return k;
}

static void one_fetch_for_many(void) {
  tde_header h;
  pthread_t t[8];
  void *k[8];
  begin();
  make_header(&h, 1, "key:a A", 1);
  for (size_t i = 0; i < COUNT(t); i++) CHECK(pthread_create(&t[i], NULL, open_one, &h) == 0);
  for (size_t i = 0; i < COUNT(t); i++) pthread_join(t[i], &k[i]);
  CHECK(asked() == 1);
  for (size_t i = 0; i < COUNT(t); i++) {
    CHECK(k[i] == k[0]);
    tde_keyring_release(k[i]);
  }
  tde_header_clear(&h);
}

/* Who waits for another's outcome has read a header of its own, which is to verify, too. */
static void who_waits_proves_its_header(void) {
  tde_header h, newer, forged;
  tde_keys *k[3] = {NULL, NULL, NULL};
  pthread_t t;
  void *first = NULL;
  begin();
  make_header(&h, 90, "key:a A", 1);
  make_header(&newer, 90, "key:a A", 2);
  make_header(&forged, 90, "key:a A", 3);
  forged.mac[0] ^= 1;
  fake.delay = 300000;
  REQUIRE(pthread_create(&t, NULL, open_one, &h) == 0);
  usleep(100000);
  CHECK(unlock(&forged, 0, &k[1], NULL) == TDE_NOT_AUTHENTIC);
  pthread_join(t, &first);
  CHECK(first != k[1] && tde_keys_live(first));
  fake.delay = 0;
  CHECK(unlock(&newer, 0, &k[2], NULL) == TDE_OK && k[2] == first);
  for (int i = 1; i < 3; i++) tde_keyring_release(k[i]);
  tde_keyring_release(first);
  tde_header_clear(&h);
  tde_header_clear(&newer);
  tde_header_clear(&forged);
}

static void another_protector_is_asked(void) {
  tde_header now, backup;
  tde_keys *a = NULL, *b = NULL;
  begin();
  make_header(&now, 2, "key:new A", 2);
  make_header(&backup, 2, "key:old A", 1);
  CHECK(unlock(&now, 0, &a, NULL) == TDE_OK);
  set_answer(TDE_DENIED);
  CHECK(unlock(&backup, 0, &b, NULL) == TDE_DENIED);
  CHECK(b != NULL && b != a && !tde_keys_live(b) && tde_keys_live(a));
  tde_keyring_release(b);
  tde_keyring_release(a);
  tde_header_clear(&now);
  tde_header_clear(&backup);
}

/* Databases under one key share an answer if they ask as one and the same. What a document of
** several wraps hears may be another key's answer: it says nothing to others, nor they to it. */
static void who_asks_counts(void) {
  static const char *const docs[] = {"key:shared one A", "key:shared one A", "key:shared two A",
                                     "key:shared one wraps A", "key:shared three wraps A",
                                     "key:shared three A", "key:shared one as:other A",
                                     "key:shared one A"};
  tde_key_params elsewhere = {.instance = (char *)"elsewhere"};
  tde_key_facts facts;
  tde_header h[COUNT(docs)];
  tde_keys *k[COUNT(docs)];
  begin();
  fast.check_ms = 2000;
  for (size_t i = 0; i < COUNT(docs); i++) {
    make_header(&h[i], (uint32_t)(60 + i), docs[i], 1);
    REQUIRE(tde_keyring_unlock(&source, i == 7 ? &elsewhere : &params, &h[i], 0, &facts, &k[i],
                               NULL) == TDE_OK);
  }
  usleep(2100000);
  asked();
  CHECK(check_now(k[0], NULL) == TDE_LEASE_KEEP && asked() == 1);
  usleep(300000);
  CHECK(check_now(k[1], NULL) == TDE_LEASE_KEEP && asked() == 0);
  CHECK(tde_keys_due(k[1]) <= tde_keys_due(k[0])); /* it is as old as it was there */
  for (int i = 2; i < 8; i++) CHECK(check_now(k[i], NULL) == TDE_LEASE_KEEP && asked() == 1);
  for (size_t i = 0; i < COUNT(docs); i++) {
    tde_keyring_release(k[i]);
    tde_header_clear(&h[i]);
  }
}

/* An outage that another database met is as old as it was there, too. */
static void an_outage_heard_of_is_as_old(void) {
  tde_header h[2];
  tde_keys *k[2];
  begin();
  fast = (tde_key_policy){2000, 60000, 60000, 0};
  for (int i = 0; i < 2; i++) {
    make_header(&h[i], (uint32_t)(92 + i), "key:out A", 1);
    REQUIRE(unlock(&h[i], 0, &k[i], NULL) == TDE_OK);
  }
  usleep(2100000);
  set_answer(TDE_UNREACHABLE);
  asked();
  CHECK(check_now(k[0], NULL) == TDE_LEASE_KEEP && asked() == 1);
  usleep(500000);
  CHECK(check_now(k[1], NULL) == TDE_LEASE_KEEP && asked() == 0);
  CHECK(tde_keys_due(k[1]) <= tde_keys_due(k[0]));
  for (int i = 0; i < 2; i++) {
    tde_keyring_release(k[i]);
    tde_header_clear(&h[i]);
  }
}

/* What others hear does not stand for a denial's confirmation. */
static void who_was_denied_asks_itself(void) {
  tde_header h[2];
  tde_keys *k[2];
  begin();
  fast = (tde_key_policy){1000, 60000, 60000, 0};
  for (int i = 0; i < 2; i++) {
    make_header(&h[i], (uint32_t)(95 + i), "key:out A", 1);
    REQUIRE(unlock(&h[i], 0, &k[i], NULL) == TDE_OK);
  }
  usleep(1050000);
  set_answer(TDE_DENIED);
  CHECK(check_now(k[1], NULL) == TDE_LEASE_KEEP);
  set_answer(TDE_UNREACHABLE);
  CHECK(check_now(k[0], NULL) == TDE_LEASE_KEEP);
  set_answer(TDE_DENIED);
  asked();
  tde_keyring_hurry(k[1]);
  CHECK(check_now(k[1], NULL) == TDE_LEASE_WIPE && asked() == 1);
  for (int i = 0; i < 2; i++) {
    tde_keyring_release(k[i]);
    tde_header_clear(&h[i]);
  }
}

/* A DEK that one instance's keys unwrapped is not there for another instance. */
static void another_instance_is_asked(void) {
  tde_header h;
  tde_keys *a = NULL, *b = NULL, *idle = NULL;
  begin();
  make_header(&h, 70, "key:a A", 1);
  params.instance = "/one";
  REQUIRE(unlock(&h, 0, &a, NULL) == TDE_OK);
  params.instance = "/two";
  set_answer(TDE_DENIED);
  CHECK(unlock(&h, 0, &b, NULL) == TDE_DENIED && b != a);
  tde_keyring_release(b);
  tde_keyring_release(a);
  CHECK(unlock(&h, 0, &idle, NULL) == TDE_DENIED && idle != a);
  tde_keyring_release(idle);
  params.instance = NULL;
  tde_header_clear(&h);
}

static void loss_wipes_and_heals(void) {
  uint8_t copy[TDE_KEY_BYTES];
  tde_header h;
  tde_keys *k = NULL, *again = NULL;
  tde_aead *aead = NULL;
  tde_key_report r;
  tde_status st;
  begin();
  make_header(&h, 3, "key:a A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  set_answer(TDE_DENIED);
  CHECK(check_now(k, NULL) == TDE_LEASE_KEEP);
  CHECK(tde_keys_live(k));
  CHECK(check_now(k, NULL) == TDE_LEASE_WIPE);
  CHECK(!tde_keys_live(k) && strcmp(fake.last_event, "key-lost") == 0);
  CHECK(tde_keys_dek(k, 1, copy) == TDE_DENIED);
  CHECK(tde_keys_mac_key(k, 1, copy) == TDE_DENIED);
  CHECK(tde_keys_aead(k, 1, 1, &aead) == TDE_DENIED && aead == NULL);
  tde_keys_report(k, &r);
  CHECK(r.access == TDE_ACCESS_LOST && r.last.code == TDE_DENIED && r.until > 0);
  /* Opening it elsewhere in the process asks nobody. */
  asked();
  CHECK(unlock(&h, 0, &again, &st) == TDE_DENIED && again == k && asked() == 0);
  tde_keyring_release(again);
  set_answer(TDE_OK);
  CHECK(check_now(k, NULL) == TDE_LEASE_HEAL);
  CHECK(tde_keys_live(k) && strcmp(fake.last_event, "healed") == 0);
  CHECK(tde_keys_dek(k, 1, copy) == TDE_OK && copy[1] == 'A');
  tde_keyring_release(k);
  tde_header_clear(&h);
}

static int allocated;
static int count_allocations(size_t n) {
  (void)n;
  allocated++;
  return 0;
}

typedef struct sealed_text {
  uint8_t nonce[TDE_NONCE_BYTES], ct[16], tag[TDE_TAG_BYTES];
} sealed_text;

static void seal_text(tde_keys *k, sealed_text *t) {
  tde_aead *a = NULL;
  REQUIRE(tde_keys_aead(k, 1, TDE_ROLE_MAIN, &a) == TDE_OK);
  CHECK(tde_aead_seal(a, NULL, 0, (const uint8_t *)"sixteen letters.", 16, t->nonce, t->ct,
                      t->tag) == TDE_OK);
  tde_aead_free(a);
}

/* Opens it with an AEAD of its own, whose maker notes what it derived. False: that had
** been noted before, and was not to be derived. */
static int derives(tde_keys *k, const sealed_text *t, unsigned seen) {
  uint8_t back[16];
  tde_aead *a = NULL;
  if (!CHECK(tde_keys_aead(k, 1, TDE_ROLE_MAIN, &a) == TDE_OK)) return -1;
  allocated = 0;
  tde_test_alloc_hook = count_allocations;
  CHECK(tde_aead_open(a, NULL, 0, t->nonce, t->ct, 16, t->tag, back) == TDE_OK);
  tde_test_alloc_hook = NULL;
  CHECK(memcmp(back, "sixteen letters.", 16) == 0);
  tde_keys_note_derived(k, 1, seen, a);
  tde_aead_free(a);
  return allocated > 1; /* more than the derived key's own */
}

/* What one connection derived the next one knows, until the key is lost; and what is noted
** late is nobody's, for the key may have become another one since. */
static void derived_keys_go_with_the_key(void) {
  sealed_text t;
  tde_header h;
  tde_keys *k = NULL;
  tde_aead *late = NULL;
  unsigned seen;
  begin();
  make_header(&h, 71, "key:a A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  seen = *tde_keys_replaced(k);
  seal_text(k, &t);
  CHECK(derives(k, &t, seen) == 1);
  CHECK(derives(k, &t, seen) == 0);
  REQUIRE(tde_keys_aead(k, 1, TDE_ROLE_MAIN, &late) == TDE_OK); /* was told */
  set_answer(TDE_DENIED);
  CHECK(check_now(k, NULL) == TDE_LEASE_KEEP);
  CHECK(check_now(k, NULL) == TDE_LEASE_WIPE);
  tde_keys_note_derived(k, 1, seen, late); /* while the key is away */
  set_answer(TDE_OK);
  CHECK(check_now(k, NULL) == TDE_LEASE_HEAL);
  tde_keys_note_derived(k, 1, seen, late); /* of the time before */
  tde_keys_note_derived(k, 2, *tde_keys_replaced(k), late); /* no such epoch */
  CHECK(derives(k, &t, seen) == 1);
  CHECK(derives(k, &t, *tde_keys_replaced(k)) == 1);
  CHECK(derives(k, &t, *tde_keys_replaced(k)) == 0);
  tde_aead_free(late);
  tde_keyring_release(k);
  tde_header_clear(&h);
}

/* What the watch is to see to first: the database's number, 0: nothing. *k is taken. */
static uint32_t first_due(tde_keys **k, int *ask) {
  uint8_t uuid[TDE_UUID_BYTES];
  tde_key_facts facts;
  tde_key_params about;
  int64_t next;
  *k = tde_keyring_due(tde_now_ms(), &next, ask);
  if (!*k || tde_keys_about(*k, uuid, &facts, &about) != TDE_OK) return 0;
  tde_key_params_clear(&about);
  return tde_get32le(uuid);
}

/* Databases from `id` on, each under its own key at this host; due one so many ms after the other. */
static void open_at(const char *host, uint32_t id, int n, tde_keys **k, int apart) {
  for (int i = 0; i < n; i++) {
    tde_header h;
    char doc[80];
    (void)snprintf(doc, sizeof(doc), "https://%s/keys/%d A", host, i);
    make_header(&h, id + (uint32_t)i, doc, 1);
    CHECK(unlock(&h, 0, &k[i], NULL) == TDE_OK);
    tde_header_clear(&h);
    usleep(1000 * (useconds_t)apart);
  }
}

static void close_these(int n, tde_keys **k) {
  for (int i = 0; i < n; i++) tde_keyring_release(k[i]);
}

/* Due the longest goes first, a host is asked once at a time, and a denial is confirmed before
** anything else. */
static void order_of_checks(void) {
  tde_keys *k[5], *one, *two, *three;
  int ask;
  begin();
  fake.delay = 0;
  open_at("a.example", 30003, 3, k, 2);
  open_at("b.example:444", 30001, 2, k + 3, 2);
  usleep(150000);
  CHECK(first_due(&one, &ask) == 30003 && ask);
  CHECK(first_due(&two, &ask) == 30001 && ask);
  CHECK(first_due(&three, &ask) == 0); /* both hosts are being asked */
  set_answer(TDE_DENIED);
  CHECK(tde_keyring_check(two, &source, NULL) == TDE_LEASE_KEEP); /* once is not believed */
  set_answer(TDE_OK);
  tde_keyring_done(two);
  CHECK(first_due(&two, &ask) == 30002);
  CHECK(tde_keyring_check(two, &source, NULL) == TDE_LEASE_KEEP);
  tde_keyring_done(two);
  usleep(150000);
  CHECK(first_due(&two, &ask) == 30001); /* the confirmation */
  CHECK(first_due(&three, &ask) == 0);
  CHECK(tde_keyring_check(one, &source, NULL) == TDE_LEASE_KEEP);
  tde_keyring_done(one);
  CHECK(first_due(&one, &ask) == 30004);
  tde_keyring_check(one, &source, NULL);
  tde_keyring_done(one);
  tde_keyring_check(two, &source, NULL);
  tde_keyring_done(two);
  close_these(5, k);
}

/* Who stands in line behind a request that hangs is in its Grace meanwhile, which ends on time,
** and keeps the place. */
static void in_line_behind_a_hung_request(void) {
  tde_keys *k[3], *hung, *other;
  tde_key_report r;
  int ask;
  begin();
  fake.delay = 0;
  fast.grace_ms = 3000;
  open_at("hung.example", 30010, 3, k, 2);
  usleep(150000);
  CHECK(first_due(&hung, &ask) == 30010 && ask);
  CHECK(first_due(&other, &ask) == 0);
  usleep(2100000);
  for (uint32_t i = 1; i < 3; i++) {
    CHECK(first_due(&other, &ask) == 30010 + i && !ask);
    CHECK(tde_keyring_pass(other, &source) == TDE_LEASE_KEEP);
    tde_keyring_done(other);
    tde_keys_report(k[i], &r);
    CHECK(r.access == TDE_ACCESS_GRACE && r.last.code == TDE_UNREACHABLE);
    CHECK(strcmp(fake.last_event, "outage") == 0);
  }
  CHECK(first_due(&other, &ask) == 0);
  usleep(1000000);
  for (uint32_t i = 1; i < 3; i++) {
    CHECK(first_due(&other, &ask) == 30010 + i && !ask);
    CHECK(tde_keyring_pass(other, &source) == TDE_LEASE_WIPE);
    tde_keyring_done(other);
    CHECK(!tde_keys_live(k[i]));
  }
  CHECK(tde_keyring_check(hung, &source, NULL) == TDE_LEASE_KEEP);
  tde_keyring_done(hung);
  usleep(1100000);
  for (uint32_t i = 1; i < 3; i++) { /* it answers again: asked in turn */
    while (first_due(&other, &ask) == 30010) {
      tde_keyring_check(other, &source, NULL);
      tde_keyring_done(other);
    }
    CHECK(tde_keyring_check(other, &source, NULL) == TDE_LEASE_HEAL && ask);
    tde_keyring_done(other);
  }
  close_these(3, k);
}

/* Hosts that did not answer the last time have a part of the lanes together. */
static void silent_hosts_leave_lanes(void) {
  static const char *const hosts[] = {"s1.example", "s2.example", "s3.example", "s4.example"};
  tde_keys *k[5], *at[3];
  int ask;
  begin();
  fake.delay = 0;
  fast.grace_ms = 60000;
  for (uint32_t i = 0; i < 4; i++) open_at(hosts[i], 30020 + i, 1, k + i, 2);
  usleep(150000);
  set_answer(TDE_UNREACHABLE);
  for (uint32_t i = 0; i < 4; i++) {
    CHECK(first_due(&at[0], &ask) == 30020 + i);
    CHECK(tde_keyring_check(at[0], &source, NULL) == TDE_LEASE_KEEP);
    tde_keyring_done(at[0]);
  }
  set_answer(TDE_OK);
  usleep(2000); /* due after those */
  open_at("well.example", 30030, 1, k + 4, 2);
  usleep(150000);
  CHECK(first_due(&at[0], &ask) == 30020 && first_due(&at[1], &ask) == 30021);
  CHECK(first_due(&at[2], &ask) == 30030 && ask);
  for (int i = 0; i < 3; i++) {
    tde_keyring_check(at[i], &source, NULL);
    tde_keyring_done(at[i]);
  }
  close_these(5, k);
}

static double cpu_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* What a round of the checks of n databases costs this process, in milliseconds. */
static double round_of(int n, tde_keys **k) {
  double from;
  int ask;

  for (int i = 0; i < n; i++) tde_keyring_hurry(k[i]);
  from = cpu_ms();
  for (int i = 0; i < n; i++) {
    tde_keys *due;
    if (!CHECK(first_due(&due, &ask) != 0 && ask)) return 0;
    (void)tde_keyring_check(due, &source, NULL);
    tde_keyring_done(due);
  }
  return cpu_ms() - from;
}

/* A process may have ten thousand tenants: ten times as many cost about ten times as much. */
static void many_cost_no_more_each(void) {
  enum { FEW = 400, MANY = 4000 };
  static tde_keys *k[MANY];
  double few = 0, many;

  begin();
  fake.delay = 0;
  fast.check_ms = 3600000;
  open_at("many.example", 40000, FEW, k, 0);
  for (int i = 0; i < 3; i++) few += round_of(FEW, k) / 3;
  open_at("many.example", 40000 + FEW, MANY - FEW, k + FEW, 0);
  many = round_of(MANY, k);
  CHECK(many < 30 * few);
  if (many >= 30 * few) printf("%d: %.1f ms, %d: %.1f ms\n", FEW, few, MANY, many);
  close_these(MANY, k);
}

static void closed_until_revalidated(void) {
  tde_header h;
  tde_keys *k = NULL, *again = NULL;
  tde_status st;
  begin();
  make_header(&h, 4, "key:a A", 1);
  set_answer(TDE_MISSING);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_MISSING);
  REQUIRE(k != NULL);
  usleep(550000);
  (void)check_now(k, NULL);
  set_answer(TDE_OK);
  asked();
  CHECK(unlock(&h, 0, &again, &st) == TDE_MISSING && asked() == 0);
  CHECK(strstr(st.remedy, "tde_revalidate") != NULL);
  tde_keyring_release(again);
  CHECK(unlock(&h, 1, &again, &st) == TDE_OK && again == k && asked() == 1);
  CHECK(tde_keys_live(k));
  tde_keyring_release(again);
  tde_keyring_release(k);
  tde_header_clear(&h);
}

/* No thread asks for a key that is away: who opens the database does, when that is due. */
static void without_a_thread_who_opens_asks(void) {
  tde_header h;
  tde_keys *k = NULL, *again = NULL;
  begin();
  make_header(&h, 97, "key:a A", 1);
  set_answer(TDE_UNREACHABLE);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_UNREACHABLE && k != NULL);
  set_answer(TDE_OK);
  asked();
  CHECK(unlock(&h, 0, &again, NULL) == TDE_UNREACHABLE && again == k && asked() == 0);
  tde_keyring_release(again);
  usleep(150000);
  CHECK(unlock(&h, 0, &again, NULL) == TDE_OK && again == k && asked() == 1);
  tde_keyring_release(again);
  tde_keyring_release(k);
  tde_header_clear(&h);
}

static void *check_in_thread(void *k) {
  CHECK(tde_keyring_check(k, &source, NULL) == TDE_LEASE_WIPE);
  return NULL;
}

/* A revalidation that waits while a check finds the key lost brings it back. */
static int read_nothing(sqlite3_file *f, void *to, int n, sqlite3_int64 at) {
  (void)f, (void)at;
  memset(to, 0, (size_t)n);
  return SQLITE_IOERR_SHORT_READ;
}

/* Nor is there one for a connection that stays open: its next transaction asks. */
static void without_a_thread_a_transaction_asks(void) {
  static const sqlite3_io_methods methods = {.iVersion = 1, .xRead = read_nothing};
  sqlite3_file lower = {&methods};
  tde_keys *k = NULL;
  tde_header h;
  tde_file f;
  tde_db db;
  begin();
  make_header(&h, 101, "key:slow A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  memset(&f, 0, sizeof(f));
  memset(&db, 0, sizeof(db));
  f.db = &db;
  f.lower = &lower;
  db.file = &f;
  db.state = TDE_STATE_ONLINE;
  db.keys = k;
  db.fork = tde_fork_generation();
  tde_source = source;
  usleep(150000);
  asked();
  CHECK(tde_db_ask(&f) == SQLITE_OK && asked() == 1);
  CHECK(tde_db_ask(&f) == SQLITE_OK && asked() == 0);
  tde_keyring_release(k);
  tde_header_clear(&h);
}

static void a_revalidation_meets_a_loss(void) {
  tde_header h;
  tde_keys *k = NULL, *again = NULL;
  pthread_t t;
  begin();
  make_header(&h, 91, "key:a A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  set_answer(TDE_DENIED);
  CHECK(check_now(k, NULL) == TDE_LEASE_KEEP);
  fake.delay = 300000;
  for (int i = 0; i < 200 && !tde_keyring_claim(k); i++) usleep(10000);
  REQUIRE(pthread_create(&t, NULL, check_in_thread, k) == 0);
  usleep(100000);
  set_answer(TDE_OK);
  CHECK(unlock(&h, 1, &again, NULL) == TDE_OK && again == k && tde_keys_live(k));
  pthread_join(t, NULL);
  tde_keyring_release(again);
  tde_keyring_release(k);
  tde_header_clear(&h);
}

static void closed_until_the_header_changes(void) {
  tde_header h, revalidated;
  tde_keys *k = NULL, *again = NULL;
  begin();
  make_header(&h, 5, "key:a A", 1);
  make_header(&revalidated, 5, "key:a A", 2);
  set_answer(TDE_MISSING);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_MISSING);
  usleep(550000);
  (void)check_now(k, NULL);
  set_answer(TDE_OK);
  CHECK(unlock(&h, 0, &again, NULL) == TDE_MISSING && again == k);
  tde_keyring_release(again);
  /* Another process revalidated: the newer header says so. */
  CHECK(unlock(&revalidated, 0, &again, NULL) == TDE_OK && again == k);
  tde_keyring_release(again);
  tde_keyring_release(k);
  tde_header_clear(&h);
  tde_header_clear(&revalidated);
}

static void protector_changed_elsewhere(void) {
  tde_header h, rotated;
  tde_keys *k = NULL, *again = NULL;
  begin();
  make_header(&h, 6, "key:old A", 1);
  make_header(&rotated, 6, "key:new A", 2);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  /* The check goes by the header on disk: the old key may be gone by now. */
  CHECK(check_now(k, &rotated) == TDE_LEASE_KEEP);
  asked();
  CHECK(unlock(&rotated, 0, &again, NULL) == TDE_OK && again == k && asked() == 0);
  tde_keyring_release(again);
  tde_keyring_release(k);
  tde_header_clear(&h);
  tde_header_clear(&rotated);
}

/* Another process gave the database another DEK and another protector, and the old key is gone:
** that is no loss. */
static void dek_and_protector_changed_elsewhere(void) {
  uint8_t copy[TDE_KEY_BYTES];
  tde_header h, changed, forged;
  tde_keys *k = NULL;
  begin();
  make_header(&h, 16, "key:old A", 1);
  make_header_of(&changed, 16, "key:new @2 B", 2, 2);
  make_header_of(&forged, 16, "key:evil @2 C", 3, 2);
  forged.mac[0] ^= 1;
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  CHECK(check_now(k, &forged) == TDE_LEASE_KEEP && !tde_keys_has(k, 2));
  (void)snprintf(fake.refused, sizeof(fake.refused), "key:new");
  CHECK(check_now(k, &changed) == TDE_LEASE_KEEP && !tde_keys_has(k, 2)); /* unproved */
  (void)snprintf(fake.refused, sizeof(fake.refused), "key:old");
  CHECK(check_now(k, &changed) == TDE_LEASE_KEEP);
  CHECK(check_now(k, &changed) == TDE_LEASE_KEEP && tde_keys_live(k));
  CHECK(tde_keys_dek(k, 2, copy) == TDE_OK && copy[1] == 'B');
  fake.refused[0] = 0;
  tde_keyring_release(k);
  tde_header_clear(&h);
  tde_header_clear(&changed);
  tde_header_clear(&forged);
}

/* The slot in force is damaged, and so the older one is the newest whole: the DEK that it does not
** know is in use, and is what the slot is repaired with. */
/* Nobody answers, or could be asked, until the grace is over: the DEK is gone, not only refused. */
static void nothing_stays_when_the_grace_is_over(void) {
  tde_key_params named = {.path = (char *)"a silent one's"};
  tde_named_epochs one = {.n = 1, .epoch = {1}};
  uint8_t copy[TDE_KEY_BYTES];
  tde_key_facts facts;
  tde_header h;
  tde_file idle; /* a connection that nobody uses meanwhile */
  tde_db db;
  begin();
  make_header(&h, 98, "key:silent A", 1);
  memset(&idle, 0, sizeof(idle));
  memset(&db, 0, sizeof(db));
  idle.path = named.path;
  idle.db = &db;
  tde_openfiles_add(&idle);
  for (int asked_for = 0; asked_for < 2; asked_for++) {
    tde_keys *k = NULL;
    tde_aead *aead;
    set_answer(TDE_OK);
    REQUIRE(tde_keyring_unlock(&source, &named, &h, 0, &facts, &k, NULL) == TDE_OK);
    db.keys = k;
    tde_cryptor_init(&db.crypt[0], TDE_ROLE_MAIN, k, &one, 1);
    CHECK(tde_cryptor_get(&db.crypt[0], 1, &aead) == TDE_OK && db.crypt[0].n == 1);
    set_answer(TDE_UNREACHABLE);
    CHECK(check_now(k, NULL) == TDE_LEASE_KEEP);
    CHECK(tde_keys_dek(k, 1, copy) == TDE_OK);
    usleep(450000);
    for (int i = 0; i < 200 && !tde_keyring_claim(k); i++) usleep(10000);
    (void)(asked_for ? tde_keyring_check(k, &source, NULL) : tde_keyring_pass(k, &source));
    CHECK(!tde_keys_live(k) && tde_keys_dek(k, 1, copy) != TDE_OK);
    CHECK(db.crypt[0].n == 0); /* nor does what was derived from it stay */
    tde_keyring_release(k);
  }
  tde_openfiles_remove(&idle);
  tde_header_clear(&h);
}

/* The key of this name is another one by now: what it unwraps is not the DEK that is in use. */
static void a_key_that_unwraps_another_dek_is_a_denial(void) {
  tde_key_report r;
  tde_header h;
  tde_keys *k = NULL;
  begin();
  make_header(&h, 97, "key:another A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  fake.other = 'B';
  CHECK(check_now(k, NULL) == TDE_LEASE_KEEP); /* one alone is not believed */
  tde_keys_report(k, &r);
  CHECK(r.last.code == TDE_WRONG_KEY);
  CHECK(check_now(k, NULL) == TDE_LEASE_WIPE && !tde_keys_live(k));
  tde_keyring_release(k);
  tde_header_clear(&h);
}

/* The header's key is away, and was asked for just now: that says nothing of another one that the
** caller names. */
static void who_names_a_key_is_not_told_of_the_header_s(void) {
  tde_key_params named = {.as_key = (char *)"key:named"};
  tde_key_facts facts;
  tde_header h;
  tde_keys *k = NULL, *own = NULL;
  begin();
  make_header(&h, 96, "key:a A", 1);
  set_answer(TDE_DENIED);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_DENIED);
  set_answer(TDE_OK);
  CHECK(tde_keyring_unlock(&source, &named, &h, 0, &facts, &own, NULL) == TDE_OK);
  CHECK(own && own != k && tde_keys_live(own));
  tde_keyring_release(own);
  tde_keyring_release(k);
  tde_header_clear(&h);
  /* Nor is one that is at hand, and that nobody uses, the one that was named. */
  fast.check_ms = 100000;
  make_header(&h, 102, "key:a A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  tde_keyring_release(k);
  asked();
  CHECK(tde_keyring_unlock(&source, &named, &h, 0, &facts, &own, NULL) == TDE_OK && asked() == 1);
  tde_keyring_release(own);
  tde_header_clear(&h);
}

/* Two files of one UUID are a database and its copy: each has its own keys. */
static void another_file_is_asked_for(void) {
  tde_key_params beside = {.path = (char *)"a copy"};
  tde_key_facts facts;
  tde_header h;
  tde_keys *k = NULL, *copy = NULL;
  begin();
  make_header(&h, 103, "key:a A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  asked();
  REQUIRE(tde_keyring_unlock(&source, &beside, &h, 0, &facts, &copy, NULL) == TDE_OK);
  CHECK(copy != k && asked() == 1);
  tde_keyring_release(copy);
  tde_keyring_release(k);
  tde_header_clear(&h);
}

/* What this AEAD seals, one of the ring's present keys of the epoch opens. */
static int seals_under(tde_keys *k, uint32_t epoch, tde_aead *a) {
  uint8_t nonce[TDE_NONCE_BYTES], ct[16], tag[TDE_TAG_BYTES], back[16];
  tde_aead *now = NULL;
  int ok = tde_aead_seal(a, NULL, 0, (const uint8_t *)"sixteen letters.", 16, nonce, ct, tag) == TDE_OK &&
           tde_keys_aead(k, epoch, TDE_ROLE_MAIN, &now) == TDE_OK &&
           tde_aead_open(now, NULL, 0, nonce, ct, 16, tag, back) == TDE_OK;
  tde_aead_free(now);
  return ok;
}

/* An older copy of the file comes back. Whoever opens it is not given the keys of the file that is in
** use; once that is known to be the older one, its epochs beyond are of another history, whose numbers
** come again; and if it is put right, its DEK is still known. */
static void an_older_copy_has_another_history(void) {
  tde_named_epochs named = {.n = 2, .epoch = {1, 2}};
  uint8_t dek[TDE_KEY_BYTES], now[TDE_KEY_BYTES];
  tde_header old, again, h;
  tde_key_facts facts;
  tde_keys *k = NULL, *other = NULL;
  tde_cryptor c;
  tde_aead *a;
  begin();
  fast.check_ms = 100000;
  make_header(&old, 104, "key:a A", 1);
  make_header_of(&h, 104, "key:a @2 B", 2, 2);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  REQUIRE(tde_keyring_follow(k, &source, &params, &old, 0, &facts, NULL) == TDE_OK);
  REQUIRE(tde_keys_has(k, 1) && tde_keys_has(k, 2) && tde_keyring_ahead(k, &old) == 2);
  CHECK(unlock(&old, 0, &other, NULL) == TDE_OK && other != k);
  tde_keyring_discard(other);
  tde_cryptor_init(&c, TDE_ROLE_MAIN, k, &named, 2);
  CHECK(tde_cryptor_get(&c, 2, &a) == TDE_OK && seals_under(k, 2, a));
  REQUIRE(tde_keyring_go_back(k, &old, 2, &facts, NULL) == TDE_OK);
  CHECK(!tde_keys_has(k, 2));
  make_header(&again, 104, "key:a A", 3); /* that history goes on */
  CHECK(unlock(&again, 0, &other, NULL) == TDE_OK && other == k);
  tde_keyring_release(other);
  CHECK(tde_keyring_go_back(k, &old, 3, (facts_of("key:a A", &facts), &facts), NULL) == TDE_OK);
  asked();
  CHECK(tde_keyring_follow(k, &source, &params, &h, 0, &facts, NULL) == TDE_OK && asked() == 0);
  CHECK(tde_keys_dek(k, 2, now) == TDE_OK && now[1] == 'B');
  REQUIRE(tde_keyring_go_back(k, &old, 2, (facts_of("key:a A", &facts), &facts), NULL) == TDE_OK);
  memset(dek, 'C', sizeof(dek));
  CHECK(tde_keys_add_epoch(k, 2, dek, 0) == TDE_OK);
  CHECK(tde_cryptor_get(&c, 2, &a) == TDE_OK && seals_under(k, 2, a)); /* not what was derived before */
  memset(dek, 'D', sizeof(dek)); /* that header was not written: the next try */
  CHECK(tde_keys_add_epoch(k, 2, dek, 1) == TDE_OK);
  CHECK(tde_keys_dek(k, 2, now) == TDE_OK && now[1] == 'D');
  tde_cryptor_clear(&c);
  tde_keyring_release(k);
  tde_header_clear(&h);
  tde_header_clear(&old);
  tde_header_clear(&again);
}

static void a_check_does_not_go_back(void) {
  tde_header h, older;
  tde_keys *k = NULL;
  begin();
  make_header(&older, 94, "key:a A", 1);
  make_header_of(&h, 94, "key:a @2 B", 2, 2);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  CHECK(check_now(k, &older) == TDE_LEASE_KEEP);
  CHECK(tde_keys_has(k, 2) && tde_keyring_ahead(k, &older) == 2);
  tde_keyring_release(k);
  tde_header_clear(&h);
  tde_header_clear(&older);
}

/* What is told of a moment does not change with the time at which it is asked for. */
static void a_moment_stays_the_same(void) {
  tde_key_report a, b;
  tde_header h;
  tde_keys *k = NULL;
  begin();
  fast.check_ms = 600000;
  make_header(&h, 17, "key:a A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  tde_keys_report(k, &a);
  for (int i = 0; i < 60; i++) {
    usleep(20000);
    tde_keys_report(k, &b);
    CHECK(b.since == a.since && b.checked_at == a.checked_at && b.next_check == a.next_check);
  }
  tde_keyring_release(k);
  tde_header_clear(&h);
}

static void a_forged_header_is_not_followed(void) {
  tde_header h, forged, others;
  tde_key_facts facts;
  tde_key_report r;
  tde_keys *k = NULL;
  begin();
  make_header(&h, 7, "key:a A", 1);
  make_header(&forged, 7, "key:evil B", 9);
  make_header_of(&others, 8, "key:evil @2 B", 9, 2);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  CHECK(tde_keyring_follow(k, &source, &params, &forged, 0, &facts, NULL) == TDE_NOT_AUTHENTIC);
  CHECK(check_now(k, &forged) == TDE_LEASE_KEEP);
  CHECK(tde_keys_live(k));
  tde_keys_report(k, &r);
  CHECK(r.last.code == TDE_OK); /* it was not asked as that header says */
  /* Another database's, whoever can open that. */
  CHECK(check_now(k, &others) == TDE_LEASE_KEEP && !tde_keys_has(k, 2));
  CHECK(tde_keyring_follow(k, &source, &params, &others, 0, &facts, NULL) == TDE_NOT_AUTHENTIC);
  CHECK(!tde_keys_has(k, 2));
  tde_keyring_release(k);
  tde_header_clear(&h);
  tde_header_clear(&forged);
  tde_header_clear(&others);
}

/* Nobody used the key for longer than a check may be late: it is asked for before it is used again,
** and only for a header that it verifies. */
static void who_comes_back_late_proves_its_header(void) {
  uint8_t copy[TDE_KEY_BYTES];
  tde_header h, changed;
  tde_keys *k = NULL, *bad = NULL;
  begin();
  make_header(&h, 99, "key:late A", 1);
  make_header(&changed, 99, "key:late A", 1);
  changed.sha[0] ^= 1;
  changed.mac[0] ^= 1;
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  tde_keyring_release(k);
  usleep(150000);
  CHECK(unlock(&changed, 0, &bad, NULL) == TDE_NOT_AUTHENTIC && bad != k);
  tde_keyring_release(bad);
  set_answer(TDE_DENIED);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_DENIED);
  CHECK(!tde_keys_live(k) && tde_keys_dek(k, 1, copy) != TDE_OK);
  tde_keyring_release(k);
  tde_header_clear(&h);
  tde_header_clear(&changed);
}

/* A header that names another protector of the same DEK: that one is asked soon, whether the header
** is a newer one or an older one that came back. */
static void another_protector_is_asked_soon(void) {
  tde_key_facts facts;
  tde_header h[2];
  tde_keys *k = NULL;
  begin();
  fast.check_ms = 100000;
  make_header(&h[0], 100, "key:first A", 1);
  make_header(&h[1], 100, "key:second A", 2);
  REQUIRE(unlock(&h[0], 0, &k, NULL) == TDE_OK);
  CHECK(tde_keys_due(k) > tde_now_ms() + 50000);
  CHECK(tde_keyring_follow(k, &source, &params, &h[1], 0, &facts, NULL) == TDE_OK);
  CHECK(tde_keys_due(k) <= tde_now_ms());
  CHECK(check_now(k, NULL) == TDE_LEASE_KEEP && tde_keys_due(k) > tde_now_ms() + 50000);
  facts_of("key:first A", &facts);
  CHECK(tde_keyring_go_back(k, &h[0], 2, &facts, NULL) == TDE_OK);
  CHECK(tde_keys_due(k) <= tde_now_ms());
  tde_keyring_release(k);
  for (int i = 0; i < 2; i++) tde_header_clear(&h[i]);
}

static void idle_keys_are_not_trusted_for_long(void) {
  tde_header h;
  tde_keys *k = NULL;
  begin();
  make_header(&h, 8, "key:a A", 1);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_OK);
  tde_keyring_release(k);
  asked();
  CHECK(unlock(&h, 0, &k, NULL) == TDE_OK && asked() == 0);
  tde_keyring_release(k);
  usleep(150000); /* longer than the check interval: nobody looked meanwhile */
  set_answer(TDE_DENIED);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_DENIED);
  tde_keyring_release(k);
  tde_header_clear(&h);
}

/* Who opens and closes a database for each request has the grace, too; on time, and a denial is
** believed at once. */
static void an_outage_at_an_open_has_its_grace(void) {
  tde_key_report r;
  tde_header h;
  tde_keys *k = NULL;
  begin();
  make_header(&h, 80, "key:idle A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  for (int i = 0; i < 2; i++) {
    tde_keyring_release(k);
    usleep(150000);
    set_answer(TDE_UNREACHABLE);
    asked();
    REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK && k != NULL);
    tde_keys_report(k, &r);
    CHECK(r.access == TDE_ACCESS_GRACE && asked() == 1);
  }
  tde_keyring_release(k);
  usleep(350000);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_UNREACHABLE && !tde_keys_live(k));
  set_answer(TDE_OK);
  usleep(1000000); /* the outage is not shared any more */
  CHECK(check_now(k, NULL) == TDE_LEASE_HEAL);
  tde_keyring_release(k);
  usleep(150000);
  set_answer(TDE_UNREACHABLE);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_OK);
  tde_keyring_release(k);
  usleep(150000);
  set_answer(TDE_DENIED);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_DENIED && !tde_keys_live(k));
  tde_keyring_release(k);
  tde_header_clear(&h);
}

static void *open_refused(void *arg) {
  tde_keys *k = NULL;
  CHECK(unlock(arg, 0, &k, NULL) == TDE_DENIED);
  return k;
}

/* Nobody goes ahead while another who opens it asks. */
static void an_overdue_key_is_waited_for(void) {
  tde_header h;
  tde_keys *k = NULL;
  pthread_t t[4];
  void *refused[4];
  begin();
  make_header(&h, 81, "key:idle A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  tde_keyring_release(k);
  usleep(150000);
  set_answer(TDE_DENIED);
  fake.delay = 200000;
  asked();
  for (size_t i = 0; i < COUNT(t); i++) {
    CHECK(pthread_create(&t[i], NULL, open_refused, &h) == 0);
    usleep(20000);
  }
  for (size_t i = 0; i < COUNT(t); i++) pthread_join(t[i], &refused[i]);
  CHECK(asked() == 1);
  for (size_t i = 0; i < COUNT(t); i++) tde_keyring_release(refused[i]);
  tde_header_clear(&h);
}

/* Did it go well in a forked child? */
static int in_child(int (*run)(void *), void *arg) {
  int status = 1;
  pid_t pid;
  fflush(stdout);
  pid = fork();
  if (pid == 0) unit_child_exit(run(arg));
  return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

static int opens(void *arg) {
  tde_keys *k = NULL;
  return unlock(arg, 0, &k, NULL) == TDE_OK && tde_keys_live(k);
}

static int is_checking(void *arg) {
  tde_key_report r;
  tde_keys_report(arg, &r);
  return r.checking;
}

static int is_not_checking(void *arg) {
  return !is_checking(arg);
}

/* Nor is a request that the parent's thread has under way the child's. */
static void a_child_tells_of_no_request_of_its_parent(void) {
  tde_keys *k, *due;
  int ask;
  begin();
  fake.delay = 0;
  open_at("a.example", 30040, 1, &k, 0);
  usleep(150000);
  CHECK(first_due(&due, &ask) == 30040 && due == k);
  CHECK(is_checking(k));
  CHECK(in_child(is_not_checking, k));
  CHECK(tde_keyring_check(due, &source, NULL) == TDE_LEASE_KEEP);
  tde_keyring_done(due);
  tde_keyring_release(k);
}

/* The key of a database that was not made after all stays for nobody. */
static void a_database_that_was_not_made_leaves_no_key(void) {
  uint8_t uuid[TDE_UUID_BYTES] = {0x77, 0x66}, *dek = tde_secret_alloc(TDE_KEY_BYTES);
  tde_key_params about = {.path = "/nowhere"};
  tde_keys *k = NULL;
  int before = tde_keyring_count();
  begin();
  REQUIRE(dek != NULL);
  memset(dek, 7, TDE_KEY_BYTES);
  CHECK(tde_keyring_adopt(&source, &about, uuid, 1, dek, &k, NULL) == TDE_OK);
  CHECK(tde_keyring_count() == before + 1);
  tde_keyring_discard(k);
  CHECK(tde_keyring_count() == before);
  tde_secret_free(dek);
}

/* The parent's thread that asks for the first time is not in the child: who opens it there asks. */
static void a_fork_during_the_first_question(void) {
  tde_header h;
  pthread_t t;
  void *k = NULL;
  begin();
  make_header(&h, 82, "key:a A", 1);
  fake.delay = 300000;
  CHECK(pthread_create(&t, NULL, open_one, &h) == 0);
  usleep(100000);
  CHECK(in_child(opens, &h));
  pthread_join(t, &k);
  tde_keyring_release(k);
  tde_header_clear(&h);
}

/* In a child, of two databases of the parent, whose checks are due. */
static int asks_for_one_alone(void *arg) {
  tde_header *h = arg;
  tde_keys *k = NULL, *due;
  int ask, ok = first_due(&due, &ask) == 0;
  asked();
  ok &= unlock(&h[0], 0, &k, NULL) == TDE_OK && asked() == 1; /* before it is used */
  ok &= first_due(&due, &ask) == 0;
  usleep(150000);
  ok &= first_due(&due, &ask) == 83 && due == k;
  ok &= tde_keyring_check(due, &source, NULL) == TDE_LEASE_KEEP;
  tde_keyring_done(due);
  ok &= first_due(&due, &ask) == 0;
  set_answer(TDE_DENIED);
  return ok && unlock(&h[1], 0, &k, NULL) == TDE_DENIED;
}

/* What a connection that came over the fork uses is checked from then on. */
static int asks_for_what_it_uses(void *arg) {
  tde_keys *k = arg, *due;
  int ask, ok = tde_keyring_use_here(k, 1);
  set_answer(TDE_OK);
  ok &= tde_keyring_check(k, &source, NULL) == TDE_LEASE_KEEP;
  usleep(150000);
  return ok && !tde_keyring_use_here(k, 1) && first_due(&due, &ask) && due == k;
}

static void a_child_asks_for_what_it_uses(void) {
  tde_header h[2];
  tde_keys *k[2];
  begin();
  make_header(&h[0], 83, "key:a A", 1);
  make_header(&h[1], 84, "key:b A", 1);
  for (int i = 0; i < 2; i++) REQUIRE(unlock(&h[i], 0, &k[i], NULL) == TDE_OK);
  usleep(150000);
  CHECK(in_child(asks_for_one_alone, h));
  CHECK(in_child(asks_for_what_it_uses, k[1]));
  close_these(2, k);
  for (int i = 0; i < 2; i++) tde_header_clear(&h[i]);
}

/* Opens database `id` and closes it. */
static void visit(uint32_t id) {
  tde_header h;
  tde_keys *k = NULL;
  make_header(&h, id, "key:a A", 1);
  CHECK(unlock(&h, 0, &k, NULL) == TDE_OK);
  tde_keyring_release(k);
  tde_header_clear(&h);
}

static void the_longest_idle_goes_first(void) {
  uint32_t first = 1000, last = first + TDE_IDLE_DEKS;
  begin();
  fast.check_ms = 60000;
  fake.delay = 0;
  for (uint32_t id = first; id < last; id++) visit(id);
  asked();
  CHECK(tde_keyring_count() == TDE_IDLE_DEKS);
  visit(first); /* not the longest idle any more */
  CHECK(asked() == 0);
  visit(last); /* one too many */
  CHECK(asked() == 1 && tde_keyring_count() == TDE_IDLE_DEKS);
  visit(first);
  visit(last);
  visit(first + 2);
  CHECK(asked() == 0);
  visit(first + 1);
  CHECK(asked() == 1);
}

static void epochs_come_and_go(void) {
  uint8_t dek[TDE_KEY_BYTES], copy[TDE_KEY_BYTES];
  tde_header h;
  tde_keys *k = NULL;
  begin();
  make_header(&h, 9, "key:a A", 1);
  REQUIRE(unlock(&h, 0, &k, NULL) == TDE_OK);
  memset(dek, 200, sizeof(dek));
  REQUIRE(tde_keys_add_epoch(k, 200, dek, 1) == TDE_OK);
  for (uint32_t e = 2; e < 60; e++) {
    memset(dek, (int)e, sizeof(dek));
    REQUIRE(tde_keys_add_epoch(k, e, dek, 0) == TDE_OK);
    CHECK(tde_keys_dek(k, e, copy) == TDE_OK && copy[0] == e);
    CHECK(tde_keys_has(k, 1));   /* named by the header: it stays */
    CHECK(tde_keys_has(k, 200)); /* is to be named */
  }
  memset(dek, 201, sizeof(dek)); /* a number that stands for a DEK stands for no other one */
  CHECK(tde_keys_add_epoch(k, 1, dek, 0) == TDE_WRONG_KEY);
  CHECK(tde_keys_dek(k, 1, copy) == TDE_OK && copy[1] == 'A');
  tde_keyring_release(k);
  tde_header_clear(&h);
}

/* The header on disk does not name a new epoch before it is written: who goes by that
** header meanwhile lets the epoch be, and takes the database for the same. */
static void a_pending_epoch_stays(void) {
  uint8_t *slot[3] = {make_slot(13, "key:a A", 1), make_slot(13, "key:a A", 2),
                      make_slot(13, "key:a A", 3)};
  uint8_t dek[TDE_KEY_BYTES];
  tde_key_facts facts;
  tde_slot_info info;
  tde_header h[3];
  tde_keys *k = NULL, *again = NULL;
  begin();
  memset(dek, 2, sizeof(dek));
  for (int i = 0; i < 3; i++) REQUIRE(tde_slot_parse(slot[i], &h[i], &info) == TDE_OK);
  REQUIRE(unlock(&h[0], 0, &k, NULL) == TDE_OK);
  REQUIRE(tde_keys_add_epoch(k, 2, dek, 1) == TDE_OK);
  asked();
  REQUIRE(tde_keyring_follow(k, &source, &params, &h[1], 1, &facts, NULL) == TDE_OK);
  CHECK(tde_keys_has(k, 2));
  REQUIRE(unlock(&h[2], 0, &again, NULL) == TDE_OK);
  CHECK(again == k && asked() == 0);
  tde_keys_abandon_epochs(k, &facts);
  CHECK(!tde_keys_has(k, 2) && tde_keys_has(k, 1));
  REQUIRE(tde_keys_add_epoch(k, 2, dek, 0) == TDE_OK);
  CHECK(tde_keys_has(k, 2));
  REQUIRE(tde_keyring_follow(k, &source, &params, &h[0], 0, &facts, NULL) == TDE_OK);
  CHECK(tde_keys_has(k, 2)); /* a thread that was slow read the header of before */
  REQUIRE(tde_keyring_go_back(k, &h[0], tde_keyring_ahead(k, &h[0]), &facts, NULL) == TDE_OK);
  CHECK(!tde_keys_has(k, 2)); /* of a state that the file has left */
  tde_keyring_release(again);
  tde_keyring_release(k);
  for (int i = 0; i < 3; i++) tde_header_clear(&h[i]);
  for (int i = 0; i < 3; i++) free(slot[i]);
}

/* An entry goes back to an older header if the file did, and nobody was faster. */
static void an_older_header_waits_for_the_file(void) {
  uint8_t *slot[3] = {make_slot(14, "key:a A", 1), make_slot(14, "key:a A", 2),
                      make_slot(14, "key:a A", 3)};
  tde_key_facts facts;
  tde_slot_info info;
  tde_header h[3];
  tde_keys *k = NULL, *again = NULL;
  uint64_t ahead;
  begin();
  for (int i = 0; i < 3; i++) REQUIRE(tde_slot_parse(slot[i], &h[i], &info) == TDE_OK);
  REQUIRE(unlock(&h[1], 0, &k, NULL) == TDE_OK);
  CHECK(tde_keyring_ahead(k, &h[1]) == 0 && tde_keyring_ahead(k, &h[2]) == 0);
  REQUIRE(unlock(&h[0], 0, &again, NULL) == TDE_OK && again == k); /* another who opens it */
  REQUIRE(tde_keyring_follow(k, &source, &params, &h[0], 0, &facts, NULL) == TDE_OK); /* who has it open */
  ahead = tde_keyring_ahead(k, &h[0]);
  CHECK(ahead == 2);
  REQUIRE(tde_keyring_follow(k, &source, &params, &h[2], 0, &facts, NULL) == TDE_OK);
  REQUIRE(tde_keyring_go_back(k, &h[0], ahead, &facts, NULL) == TDE_OK);
  CHECK(tde_keyring_ahead(k, &h[0]) == 3); /* it had gone on */
  REQUIRE(tde_keyring_go_back(k, &h[0], 3, &facts, NULL) == TDE_OK);
  CHECK(tde_keyring_ahead(k, &h[0]) == 0);
  tde_keyring_release(again);
  tde_keyring_release(k);
  REQUIRE(unlock(&h[1], 0, &k, NULL) == TDE_OK);
  tde_keyring_release(k);
  REQUIRE(unlock(&h[0], 0, &k, NULL) == TDE_OK); /* nobody uses it: nobody is overtaken */
  CHECK(tde_keyring_ahead(k, &h[0]) == 0);
  tde_keyring_release(k);
  for (int i = 0; i < 3; i++) tde_header_clear(&h[i]);
  for (int i = 0; i < 3; i++) free(slot[i]);
}

/* Which of the two is known: bits 0 and 1. */
static int known(const uint8_t *a, const uint8_t *b) {
  const uint8_t *const both[2] = {a, b};
  int k[2];
  tde_keyring_known_slots(both, k);
  return k[0] | k[1] << 1;
}

static void only_the_very_bytes_are_known(void) {
  uint8_t *slot[4] = {make_slot(11, "key:a A", 1), make_slot(11, "key:bb A", 2),
                      make_slot(11, "key:bb A", 3), make_slot(12, "key:bb A", 2)};
  tde_key_facts facts;
  tde_slot_info info;
  tde_header h[3];
  tde_keys *k = NULL;
  begin();
  for (int i = 0; i < 3; i++) REQUIRE(tde_slot_parse(slot[i], &h[i], &info) == TDE_OK);
  CHECK(known(slot[0], slot[1]) == 0);
  REQUIRE(unlock(&h[1], 0, &k, NULL) == TDE_OK);
  CHECK(known(slot[0], slot[1]) == 2); /* the header in force */
  tde_keyring_note_other(k, &h[0]);
  CHECK(known(slot[0], slot[1]) == 3);
  for (size_t i = 0; i < TDE_SLOT_FIXED + h[0].ndoc; i++) {
    slot[0][i] ^= 0x10;
    CHECK(known(slot[0], slot[1]) == 2);
    slot[0][i] ^= 0x10;
  }
  for (size_t i = 0; i < TDE_SLOT_FIXED + h[1].ndoc; i++) {
    slot[1][i] ^= 1;
    CHECK(known(slot[0], slot[1]) == 1);
    slot[1][i] ^= 1;
  }
  CHECK(known(slot[3], slot[3]) == 0); /* another database's */
  /* A newer one: that before it is the other slot from now on, with the same document. */
  REQUIRE(tde_keyring_follow(k, &source, &params, &h[2], 1, &facts, NULL) == TDE_OK);
  CHECK(known(slot[1], slot[2]) == 3 && known(slot[0], slot[0]) == 0);
  tde_keyring_note_other(k, &h[1]);
  CHECK(known(slot[1], slot[2]) == 3);
  tde_keyring_release(k);
  CHECK(known(slot[1], slot[2]) == 3); /* idle */
  for (int i = 0; i < 3; i++) tde_header_clear(&h[i]);
  for (int i = 0; i < 4; i++) free(slot[i]);
}

/* Each database has an instance of its own, and the policy of all is made stricter. */
static void policies_of_many_instances(void) {
  enum { N = 1000, FIRST = 20000 };
  static tde_keys *k[N];
  tde_key_report r;
  unsigned at = 0;
  int calls = 0;

  begin();
  fake.delay = 0;
  fast.check_ms = 600000;
  for (uint32_t i = 0; i < N; i++) {
    tde_header h;
    char name[32];
    (void)snprintf(name, sizeof(name), "/instance/%u", i / 2);
    params.instance = name;
    make_header(&h, FIRST + i, "key:a A", 1);
    REQUIRE(unlock(&h, 0, &k[i], NULL) == TDE_OK);
    tde_header_clear(&h);
  }
  params.instance = NULL;
  fast.check_ms = 30000;
  policies_read = 0;
  do {
    at = tde_keyring_refresh_policies(&source, at);
    calls++;
  } while (at && calls < 100);
  CHECK(at == 0 && calls > 1);
  CHECK(policies_read >= N / 2 && policies_read <= N);
  for (int i = 0; i < N; i++) {
    tde_keys_report(k[i], &r);
    CHECK(r.next_check - r.checked_at <= 31);
    tde_keyring_release(k[i]);
  }
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"steady", steady},
      {"denial_is_confirmed", denial_is_confirmed},
      {"denial_that_passes", denial_that_passes},
      {"outage_has_grace", outage_has_grace},
      {"grace_ends_between_checks", grace_ends_between_checks},
      {"outage_over", outage_over},
      {"denied_in_grace", denied_in_grace},
      {"a_denial_outlives_an_outage", a_denial_outlives_an_outage},
      {"heals_within_the_window", heals_within_the_window},
      {"in_line_grace_goes_on", in_line_grace_goes_on},
      {"grace_counts_from_the_due_check", grace_counts_from_the_due_check},
      {"closes_after_the_window", closes_after_the_window},
      {"checks_reach_the_window", checks_reach_the_window},
      {"the_cutoff_stays", the_cutoff_stays},
      {"waits_out_an_outage_at_open", waits_out_an_outage_at_open},
      {"reopened_by_a_new_header", reopened_by_a_new_header},
      {"one_fetch_for_many", one_fetch_for_many},
      {"who_waits_proves_its_header", who_waits_proves_its_header},
      {"another_protector_is_asked", another_protector_is_asked},
      {"who_asks_counts", who_asks_counts},
      {"an_outage_heard_of_is_as_old", an_outage_heard_of_is_as_old},
      {"who_was_denied_asks_itself", who_was_denied_asks_itself},
      {"another_instance_is_asked", another_instance_is_asked},
      {"loss_wipes_and_heals", loss_wipes_and_heals},
      {"derived_keys_go_with_the_key", derived_keys_go_with_the_key},
      {"order_of_checks", order_of_checks},
      {"in_line_behind_a_hung_request", in_line_behind_a_hung_request},
      {"silent_hosts_leave_lanes", silent_hosts_leave_lanes},
      {"many_cost_no_more_each", many_cost_no_more_each},
      {"closed_until_revalidated", closed_until_revalidated},
      {"without_a_thread_who_opens_asks", without_a_thread_who_opens_asks},
      {"without_a_thread_a_transaction_asks", without_a_thread_a_transaction_asks},
      {"a_revalidation_meets_a_loss", a_revalidation_meets_a_loss},
      {"closed_until_the_header_changes", closed_until_the_header_changes},
      {"protector_changed_elsewhere", protector_changed_elsewhere},
      {"dek_and_protector_changed_elsewhere", dek_and_protector_changed_elsewhere},
      {"nothing_stays_when_the_grace_is_over", nothing_stays_when_the_grace_is_over},
      {"a_key_that_unwraps_another_dek_is_a_denial", a_key_that_unwraps_another_dek_is_a_denial},
      {"who_names_a_key_is_not_told_of_the_header_s", who_names_a_key_is_not_told_of_the_header_s},
      {"another_file_is_asked_for", another_file_is_asked_for},
      {"an_older_copy_has_another_history", an_older_copy_has_another_history},
      {"a_check_does_not_go_back", a_check_does_not_go_back},
      {"a_moment_stays_the_same", a_moment_stays_the_same},
      {"a_forged_header_is_not_followed", a_forged_header_is_not_followed},
      {"who_comes_back_late_proves_its_header", who_comes_back_late_proves_its_header},
      {"another_protector_is_asked_soon", another_protector_is_asked_soon},
      {"idle_keys_are_not_trusted_for_long", idle_keys_are_not_trusted_for_long},
      {"an_outage_at_an_open_has_its_grace", an_outage_at_an_open_has_its_grace},
      {"an_overdue_key_is_waited_for", an_overdue_key_is_waited_for},
      {"a_fork_during_the_first_question", a_fork_during_the_first_question},
      {"a_child_tells_of_no_request_of_its_parent", a_child_tells_of_no_request_of_its_parent},
      {"a_database_that_was_not_made_leaves_no_key", a_database_that_was_not_made_leaves_no_key},
      {"a_child_asks_for_what_it_uses", a_child_asks_for_what_it_uses},
      {"the_longest_idle_goes_first", the_longest_idle_goes_first},
      {"epochs_come_and_go", epochs_come_and_go},
      {"a_pending_epoch_stays", a_pending_epoch_stays},
      {"an_older_header_waits_for_the_file", an_older_header_waits_for_the_file},
      {"policies_of_many_instances", policies_of_many_instances},
      {"only_the_very_bytes_are_known", only_the_very_bytes_are_known},
  };
  if (tde_crypto_init(NULL) != TDE_OK) return 2;
  tde_watch_forbid();
  return unit_main(argc, argv, tests, COUNT(tests));
}
