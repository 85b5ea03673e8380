/*
** micro_checks.c: what the checks of many open databases cost the process itself, under a key
** source that answers at once.
**
** Prints microseconds per operation for 100, 1,000 and 10,000 databases under remote keys, of one
** host and of a host each: one check, a look while nothing is due, and an open and close beside
** them. Compare on one machine only.
*/
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ext/base/crypto.h"
#include "tests/unit/header.h"
#include "vfs/keyring.h"
#include "vfs/openfiles.h"
#include "vfs/watch.h"

#define MOST 10000

static int64_t check_ms;

static tde_class fake_unwrap(void *ctx, const tde_key_params *params, const uint8_t *uuid,
                             const char *doc, size_t ndoc, uint32_t epoch, uint8_t *dek,
                             tde_status *st) {
  (void)ctx, (void)params, (void)uuid, (void)ndoc, (void)st;
  dek_of(doc, epoch, dek);
  return TDE_OK;
}

static void fake_policy(void *ctx, const tde_key_params *params, tde_key_policy *out) {
  (void)ctx, (void)params;
  *out = (tde_key_policy){check_ms, 3600000, 1800000, 0};
}

static const tde_key_source fake = {NULL,        NULL,         fake_unwrap, describe_plainly,
                                    fake_policy, ignore_event, NULL,        NULL};

static tde_keys *keys[MOST];

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void must(int ok, const char *what) {
  if (ok) return;
  fprintf(stderr, "micro_checks: %s\n", what);
  exit(1);
}

static tde_keys *open_one(int id, int own_host) {
  tde_key_params params = {.path = "/nowhere"};
  tde_key_facts facts;
  tde_keys *k = NULL;
  tde_header h;
  char doc[80];

  (void)snprintf(doc, sizeof(doc), "https://v%d.example/keys/%d A", own_host ? id : 0, id);
  make_header(&h, (uint32_t)id, doc, 1);
  must(tde_keyring_unlock(&fake, &params, &h, 0, &facts, &k, NULL) == TDE_OK, "open");
  tde_header_clear(&h);
  return k;
}

/* Every database's check is due: one round of them. */
static double round_of_checks(int n) {
  double from;
  int64_t next;
  int ask;

  for (int i = 0; i < n; i++) tde_keyring_hurry(keys[i]);
  check_ms = 3600000;
  from = now_us();
  for (int i = 0; i < n; i++) {
    tde_keys *k = tde_keyring_due(tde_now_ms(), &next, &ask);
    must(k && ask, "nothing is due");
    (void)tde_keyring_check(k, &fake, NULL);
    tde_keyring_done(k);
  }
  return (now_us() - from) / n;
}

static double looks(int times) {
  double from = now_us();
  int64_t next;
  int ask;

  for (int i = 0; i < times; i++) must(!tde_keyring_due(tde_now_ms(), &next, &ask), "one is due");
  return (now_us() - from) / times;
}

static double openings(int times) {
  double from = now_us();

  for (int i = 0; i < times; i++) tde_keyring_release(open_one(MOST + 1, 0));
  return (now_us() - from) / times;
}

static double policies(int times) {
  double from = now_us();
  unsigned next = 0;

  for (int i = 0; i < times; i++) {
    do {
      next = tde_keyring_refresh_policies(&fake, next);
    } while (next);
  }
  return (now_us() - from) / times;
}

static void measure(int n, int own_host) {
  double round, look, open, policy;

  check_ms = 3600000;
  for (int i = 0; i < n; i++) keys[i] = open_one(i + 1, own_host);
  round = round_of_checks(n);
  look = looks(100);
  open = openings(1000);
  policy = policies(20);
  printf(
      "%6d databases, %s: check %8.2f us, look %8.2f us, open and close %6.2f us, policies %8.2f "
      "us\n",
      n, own_host ? "a host each" : "one host   ", round, look, open, policy);
  for (int i = 0; i < n; i++) tde_keyring_release(keys[i]);
}

int main(void) {
  must(tde_crypto_init(NULL) == TDE_OK, "no crypto");
  tde_watch_forbid();
  for (int own = 0; own < 2; own++) {
    for (int n = 100; n <= MOST; n *= 10) measure(n, own);
  }
  return 0;
}
