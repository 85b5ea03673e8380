/*
** keyring_ask.c: asks the key service for the DEKs of an entry, and does to the entry what the
** answer wants; see keyring_int.h.
*/
#include <stdatomic.h>
#include <stdio.h>

#include "../ext/base/secret.h"
#include "keyring_int.h"
#include "openfiles.h"
#include "recent.h"

void tde_fetched_clear(tde_fetched *f) {
  for (int i = 0; i < f->n; i++) tde_epoch_wipe(&f->epochs[i]);
  f->n = 0;
}

static tde_class fetch_epoch(const tde_key_source *source, const tde_key_params *params,
                             const tde_header *h, uint32_t epoch, tde_fetched *out,
                             tde_status *st) {
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  tde_class c;

  if (!dek) {
    return tde_fail(st, TDE_NOMEM, "close other databases or give the process more memory",
                    "no memory for the database's key");
  }
  c = source->unwrap(source->ctx, params, h->uuid, h->doc, h->ndoc, epoch, dek, st);
  if (c == TDE_OK) {
    c = tde_epoch_derive(h->uuid, epoch, dek, &out->epochs[out->n]);
    if (c) {
      (void)tde_fail(st, c, NULL, "the keys of epoch %u could not be derived", epoch);
    } else {
      out->n++;
    }
  }
  tde_secret_free(dek);
  return c;
}

static tde_class not_installed(tde_class c, tde_status *st) {
  if (c == TDE_NOMEM) return tde_fail(st, c, NULL, "no memory for the database's key");
  return tde_fail(st, c, "close all connections to the database, and open it again",
                  "the file was replaced while it was open: its keys are not those in use here");
}

tde_class tde_fetched_install(tde_keys *k, tde_fetched *got, tde_status *st) {
  tde_class c = TDE_OK;

  for (int i = 0; c == TDE_OK && i < got->n; i++) {
    c = tde_epochs_install(&k->epochs, &k->facts, &got->epochs[i]);
  }
  return c ? not_installed(c, st) : TDE_OK;
}

tde_class tde_fetched_verify(const tde_fetched *got, const tde_epochs *s, const tde_header *h,
                             const tde_key_facts *facts, tde_status *st) {
  uint8_t key[TDE_KEY_BYTES];
  tde_class c;

  if (h->epoch != facts->epoch) {
    return tde_fail(st, TDE_NOT_AUTHENTIC, "restore the file from a backup",
                    "the header is under epoch %u, its key document under %u", h->epoch,
                    facts->epoch);
  }
  c = tde_epochs_header_key(s, 0, got->epochs, got->n, facts, key);
  if (c == TDE_OK) c = tde_header_check_mac(h, key);
  tde_wipe(key, sizeof(key));
  if (c == TDE_WRONG_KEY) {
    return tde_fail(st, TDE_NOT_AUTHENTIC,
                    "restore the file from a backup; the key itself answered",
                    "key %s unwraps a DEK that does not verify this header", facts->key_id);
  }
  if (c) return tde_fail(st, c, NULL, "the header's authentication could not be computed");
  return TDE_OK;
}

tde_class tde_ask_describe(const tde_key_source *source, const tde_header *h, tde_key_facts *facts,
                           tde_status *st) {
  tde_class c = source->describe(source->ctx, h->doc, h->ndoc, facts, st);

  if (c != TDE_CORRUPT) return c;
  if (st) st->code = TDE_NOT_AUTHENTIC;
  return TDE_NOT_AUTHENTIC;
}

tde_class tde_ask_epochs(const tde_key_source *source, const tde_key_params *params,
                         const tde_header *h, const uint32_t *epochs, int n, tde_fetched *out,
                         tde_status *st) {
  tde_key_params shared = *params; /* borrowed */
  int64_t until = 0;
  tde_class c = TDE_OK;

  shared.until = &until;
  out->n = 0;
  for (int i = 0; c == TDE_OK && i < n; i++) {
    c = fetch_epoch(source, &shared, h, epochs[i], out, st);
  }
  if (c) tde_fetched_clear(out);
  return c;
}

/* A request for the entry's key ended with this class. */
static void heard(const tde_keys *k, const tde_key_params *as, tde_class c) {
  if (!k->facts.remote) return;
  tde_ring_lock();
  tde_lanes_heard(as->as_key ? as->as_key : k->facts.key_id, c);
  tde_ring_unlock();
}

tde_class tde_ask_all(const tde_keys *k, const tde_key_source *source, const tde_key_params *params,
                      tde_fetched *out, tde_status *st) {
  static const tde_epochs none;
  const tde_key_facts *facts = &k->facts;
  tde_class c = tde_ask_epochs(source, params, &k->header, facts->epochs, facts->nepochs, out, st);

  if (c == TDE_OK) c = tde_fetched_verify(out, &none, &k->header, facts, st);
  if (c) tde_fetched_clear(out);
  heard(k, params, c);
  return c;
}

void tde_ask_tell(const tde_keys *k, const tde_key_source *source, const char *what,
                  const tde_status *st) {
  tde_key_event e = {what, k->uuid, k->facts.key_id, k->facts.key_version, st};
  if (what) source->event(source->ctx, &k->params, &e);
}

void tde_ask_as(tde_key_params *params, const tde_key_params *caller) {
  params->as_key = caller->as_key;
  params->as_identity = caller->as_identity;
  params->as_federated = caller->as_federated;
}

void tde_ask_keep_way(tde_keys *k, const tde_key_params *caller) {
  tde_key_params way = {0};

  if (tde_key_params_same_way(&k->params, caller)) return;
  if (!tde_key_params_copy_way(&way, caller)) tde_key_params_forget_way(&way);
  tde_ring_lock(); /* somebody may be copying them */
  tde_key_params_forget_way(&k->params);
  k->params.as_key = way.as_key;
  k->params.as_identity = way.as_identity;
  k->params.as_federated = way.as_federated;
  tde_ring_unlock();
}

void tde_ask_end(tde_keys *k) {
  tde_ring_lock();
  tde_entry_end_busy(k);
  tde_ring_unlock();
}

/* ---- answers ---- */

static const char *act_name(tde_access before, tde_access after) {
  if (before == after) return NULL;
  switch (after) {
    case TDE_ACCESS_LIVE:
      return before == TDE_ACCESS_GRACE ? "outage-over" : "healed";
    case TDE_ACCESS_GRACE:
      return "outage";
    case TDE_ACCESS_WAITING:
      return "grace-over";
    case TDE_ACCESS_LOST:
      return "key-lost";
    case TDE_ACCESS_CLOSED:
      return "heal-window-over";
  }
  return NULL;
}

/* The answer was about a DEK that has gone since it was asked for (tde_keyring_overdue). */
static tde_class gone(tde_status *st) {
  return tde_fail(st, TDE_BUSY, "try again",
                  "the key was not answered for in time: it is asked for anew");
}

tde_lease_act tde_answer(tde_keys *k, const tde_key_source *source, tde_class c, int forced,
                         tde_fetched *got, tde_status *st) {
  tde_access before;
  tde_lease_act act;
  const char *what;
  int64_t now = tde_now_ms();

  tde_ring_lock();
  before = k->lease.access;
  if (c == TDE_OK && got->n == 0 && !tde_access_is_live(before)) c = gone(st);
  /* An interval goes from when the key service said so, or did not. */
  act = tde_lease_answer(&k->lease, c, forced, got->at && !c ? got->at : now, &k->policy);
  if (got->at && c) tde_lease_heard(&k->lease, got->at, &k->policy);
  if (act == TDE_LEASE_HEAL) {
    tde_class installed = tde_fetched_install(k, got, st);
    if (installed) { /* not healed after all */
      c = installed;
      tde_epochs_wipe(&k->epochs);
      tde_lease_refused(&k->lease, c, tde_now_ms(), &k->policy);
      act = TDE_LEASE_KEEP;
    }
  }
  if (act == TDE_LEASE_WIPE) tde_epochs_wipe(&k->epochs);
  if (c) {
    k->last = *st;
    k->last.code = c;
  } else {
    tde_status_clear(&k->last);
  }
  what = act_name(before, k->lease.access);
  tde_entry_publish(k);
  tde_ring_unlock();
  if (act == TDE_LEASE_WIPE) tde_openfiles_wipe(k, k->params.path);
  tde_ask_tell(k, source, what, c ? st : NULL);
  tde_ask_end(k);
  return act;
}

tde_class tde_answer_first(tde_keys *k, tde_class c, tde_fetched *got, tde_status *st) {
  tde_ring_lock();
  if (c == TDE_OK) c = tde_fetched_install(k, got, st);
  if (c == TDE_OK) {
    tde_lease_begin(&k->lease, tde_now_ms(), &k->policy);
    tde_status_clear(&k->last);
  } else {
    tde_epochs_wipe(&k->epochs);
    tde_lease_refused(&k->lease, c, tde_now_ms(), &k->policy);
    k->last = *st;
    k->last.code = c;
  }
  tde_entry_publish(k);
  tde_entry_end_busy(k);
  tde_ring_unlock();
  return c;
}

tde_lease_act tde_answer_none(tde_keys *k, const tde_key_source *source,
                              tde_lease_act (*pass)(tde_lease *, int64_t, const tde_key_policy *),
                              tde_access *after) {
  tde_access before;
  tde_lease_act act;

  tde_ring_lock();
  before = k->lease.access;
  act = pass(&k->lease, tde_now_ms(), &k->policy);
  if (act == TDE_LEASE_WIPE) tde_epochs_wipe(&k->epochs);
  *after = k->lease.access;
  tde_entry_publish(k);
  tde_ring_unlock();
  if (act == TDE_LEASE_WIPE) tde_openfiles_wipe(k, k->params.path);
  tde_ask_tell(k, source, act_name(before, *after), &k->last);
  return act;
}

/* ---- questions that share what others heard ---- */

/* An outage that another database met this short a time ago is not waited for again. */
#define OUTAGE_SHARED_MS 900

/* Names the protector together with whoever asks it: another identity, or application in
** another tenant, may be let in where this one is not. False: what is heard is no answer of that
** protector, or not for sure. */
static int recent_key(const tde_keys *k, uint8_t key[TDE_HASH_BYTES]) {
  char text[2 * TDE_KEY_ID_MAX + TDE_PATH_MAX];
  int n = snprintf(text, sizeof(text), "%s\n%s\n%s\n%s\n%s", k->facts.key_id, k->facts.key_version,
                   k->facts.identity, k->facts.federated_client_id,
                   k->params.instance ? k->params.instance : "");
  return k->facts.alone && n > 0 && n < (int)sizeof(text) &&
         tde_sha256(text, (size_t)n, key) == TDE_OK;
}

static int64_t recent_get(const uint8_t key[TDE_HASH_BYTES], int64_t max_age, tde_status *st) {
  int64_t found;

  tde_ring_lock();
  found = tde_recent_get(key, tde_now_ms(), max_age, st);
  tde_ring_unlock();
  return found;
}

static void recent_put(const uint8_t key[TDE_HASH_BYTES], tde_class c, const tde_status *st) {
  tde_ring_lock();
  tde_recent_put(key, tde_now_ms(), c, st);
  tde_ring_unlock();
}

/* Is the DEK that came back the one in use? */
static tde_class compare(tde_keys *k, const tde_fetched *got, tde_status *st) {
  const tde_epoch_keys *e;
  int same = 0, is_gone;

  tde_ring_lock();
  e = tde_epochs_find(&k->epochs, k->header.epoch);
  if (e && e->dek && got->n == 1) same = tde_equal(e->dek, got->epochs[0].dek, TDE_KEY_BYTES);
  is_gone = !atomic_load(&k->live);
  tde_ring_unlock();
  if (same) return TDE_OK;
  if (is_gone) return gone(st);
  return tde_fail(st, TDE_WRONG_KEY, "use the key that wrapped this database's DEK",
                  "the protector unwraps something else than this database's DEK");
}

tde_class tde_ask_live(tde_keys *k, const tde_key_source *source, int fresh,
                       const tde_key_params *caller, tde_fetched *got, tde_status *st) {
  uint8_t key[TDE_HASH_BYTES];
  tde_key_params params = k->params; /* borrowed: the entry is busy */
  tde_class c;
  int named;

  if (caller) tde_ask_as(&params, caller);
  params.insist = fresh;
  named = !params.as_key && recent_key(k, key);
  got->at = named && !fresh ? recent_get(key, k->policy.check_ms / 2, st) : 0;
  if (got->at) return st->code;
  c = tde_ask_epochs(source, &params, &k->header, &k->header.epoch, 1, got, st);
  heard(k, &params, c);
  if (c == TDE_OK) c = compare(k, got, st);
  tde_fetched_clear(got);
  if (named) recent_put(key, c, st);
  return c;
}

tde_class tde_ask_absent(tde_keys *k, const tde_key_source *source, tde_fetched *got,
                         tde_status *st) {
  uint8_t key[TDE_HASH_BYTES];
  int named = !k->params.as_key && recent_key(k, key);
  tde_class c;

  if (named && recent_get(key, OUTAGE_SHARED_MS, st) && st->code) return st->code;
  c = tde_ask_all(k, source, &k->params, got, st);
  if (c && named) recent_put(key, c, st);
  return c;
}
