/*
** keyring_unlock.c: the keys of a header that a connection read: found among the live ones, or
** fetched; see keyring.h.
*/
#include <stdatomic.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "keyring_int.h"
#include "openfiles.h"
#include "watch.h"

/* What a connection wants. */
typedef struct request {
  const tde_key_source *source;
  const tde_key_params *params;
  tde_key_policy policy;
  const tde_header *header;
  const tde_key_facts *facts; /* what the header says */
  int forced;                 /* a revalidation */
  tde_status *st;
} request;

/* ---- finding; the lock is held ---- */

/* Is the entry about this file? A copy of it that lies elsewhere has the same UUID and
** DEK, and may get another protector and another DEK in the same epoch. Who comes through
** another instance has not shown that its keys let it in. */
static int is_of(const tde_keys *k, const tde_header *h, const tde_key_params *params) {
  return memcmp(k->uuid, h->uuid, TDE_UUID_BYTES) == 0 &&
         tde_same_text(k->params.path, params->path) &&
         tde_same_text(k->params.instance, params->instance);
}

/* Nobody looked after it, and its check is overdue: its key is asked before it is used. And who
** asks in a way of its own would have the next check ask in another. */
static int usable(const tde_keys *k, const tde_key_params *params, int forced) {
  if (!atomic_load(&k->live)) return 0;
  if (tde_entry_is_attended(k)) return 1;
  return tde_now_ms() < k->lease.due_at && !k->unproved &&
         (forced || !params->as_key || tde_key_params_same_way(&k->params, params));
}

/* A live entry that verified exactly this header before: nothing to parse and
** nothing to compute. With a reference; or NULL. */
static tde_keys *find_known(const tde_header *h, const tde_key_params *params) {
  for (tde_keys *k = tde_ring_of(h->uuid); k; k = k->next) {
    if (is_of(k, h, params) && usable(k, params, 0) &&
        memcmp(k->header.sha, h->sha, TDE_HASH_BYTES) == 0) {
      tde_entry_take(k);
      return k;
    }
  }
  return NULL;
}

/* Read before the header that the entry goes by was written, or of an older copy: see
** tde_keyring_ahead. */
static int is_older(const tde_keys *k, const tde_header *h) {
  return k->header.doc && h->sequence < k->header.sequence;
}

/* Are its keys, of the same protector, those of the header? */
static int opens(const tde_keys *k, const request *r) {
  uint32_t lacking[TDE_EPOCHS_MAX];

  return tde_facts_same_protector(&k->facts, r->facts) &&
         !tde_entry_is_ahead(k, r->header, r->facts) &&
         tde_epochs_missing(&k->epochs, r->facts, lacking) == 0 &&
         tde_entry_verifies(k, 0, r->header, r->facts);
}

/* A live entry that opens the header, with a reference; or NULL. */
static tde_keys *find_live(const request *r) {
  for (tde_keys *k = tde_ring_of(r->header->uuid); k; k = k->next) {
    if (!is_of(k, r->header, r->params) || !usable(k, r->params, r->forced)) continue;
    if (!opens(k, r)) continue;
    if (!tde_entry_is_busy(k) && !(k->refs > 0 && is_older(k, r->header)) &&
        !tde_entry_note_header(k, r->header, r->facts)) {
      continue;
    }
    tde_entry_take(k);
    return k;
  }
  return NULL;
}

/* A live entry that opens the header, but whose check is overdue: not usable. NULL: there is none. */
static tde_keys *find_overdue(const request *r) {
  for (tde_keys *k = tde_ring_of(r->header->uuid); k; k = k->next) {
    if (is_of(k, r->header, r->params) && atomic_load(&k->live) && !usable(k, r->params, 0) &&
        (!r->params->as_key || tde_key_params_same_way(&k->params, r->params)) && opens(k, r)) {
      return k;
    }
  }
  return NULL;
}

/* An entry without its DEK that was asked for in the same way; a revalidation brings back
** any. */
static tde_keys *find_absent(const request *r) {
  for (tde_keys *k = tde_ring_of(r->header->uuid); k; k = k->next) {
    if (is_of(k, r->header, r->params) && !atomic_load(&k->live) &&
        tde_facts_same_protector(&k->facts, r->facts) &&
        (r->forced || tde_key_params_same_way(&k->params, r->params))) {
      return k;
    }
  }
  return NULL;
}

/* ---- unlocking ---- */

/* A key that needs no network is asked for again by whoever begins a
** transaction, at most this often. */
#define LOCAL_RETRY_MS 1000

/* What unlock does with an entry that is there, or new. PLAN_AGAIN: it got its DEK from somebody
** else, for a header which may be another one: it is looked for as any live entry. */
typedef enum plan { PLAN_ASK, PLAN_AGAIN, PLAN_FAIL } plan;

/* What needs a network is asked for by a thread, if there can be one. */
static int may_ask_again(const tde_keys *k, int64_t now) {
  if (k->facts.remote) return now >= k->lease.due_at && !tde_watch_kick();
  return now >= k->lease.due_at || now - k->lease.checked_at >= LOCAL_RETRY_MS;
}

/* The lock is held, and k has our reference. */
static plan plan_absent(tde_keys *k, const request *r) {
  int first = k->lease.checked_at == 0;

  if (tde_entry_is_busy(k) && (first || r->forced)) {
    while (tde_entry_is_busy(k)) tde_ring_wait();
    if (!atomic_load(&k->live) && !r->forced) return PLAN_FAIL; /* the outcome waited for */
  }
  if (atomic_load(&k->live)) return PLAN_AGAIN;
  if (tde_entry_is_busy(k)) return PLAN_FAIL;
  if (memcmp(k->header.sha, r->header->sha, TDE_HASH_BYTES) != 0) {
    /* Somebody changed the keys, or revalidated. */
    if (!tde_entry_note_header(k, r->header, r->facts)) return PLAN_FAIL;
    tde_lease_reopen(&k->lease, tde_now_ms());
    tde_entry_publish(k);
  }
  /* Without an answer to the first question: who asked it is in the process that this one was
  ** forked from. */
  if (!r->forced && k->lease.checked_at) {
    int64_t now = tde_now_ms();
    (void)tde_lease_tick(&k->lease, now, &k->policy);
    tde_entry_publish(k);
    if (k->lease.access == TDE_ACCESS_CLOSED || !may_ask_again(k, now)) return PLAN_FAIL;
  }
  tde_entry_set_busy(k);
  return PLAN_ASK;
}

/* Tells of a revalidation. A failure is that of the key that was asked, which the caller may have named. */
static void tell_revalidation(const tde_keys *k, const request *r, tde_class c) {
  const char *named = c ? r->params->as_key : NULL;
  tde_key_event e = {"revalidate", k->uuid, named ? named : k->facts.key_id,
                     named ? "" : k->facts.key_version, c ? r->st : NULL};

  r->source->event(r->source->ctx, &k->params, &e);
}

/* That a key which the caller of a revalidation named does not fit says nothing of the entry's own,
** nor ends what is waited out. */
static int counts(const tde_keys *k, const request *r, tde_class c) {
  return c == TDE_OK || !r->forced || tde_key_params_same_way(&k->params, r->params);
}

/* Asks for a busy entry's DEKs, and applies the answer. The lock is not held. */
static tde_class ask_all(tde_keys *k, const request *r) {
  tde_fetched got = {0};
  int first = k->lease.checked_at == 0;
  tde_key_params params = k->params; /* borrowed: the entry is busy */
  tde_class c;

  tde_status_clear(r->st);
  tde_ask_as(&params, r->params);
  params.insist = r->forced;
  c = tde_ask_all(k, r->source, &params, &got, r->st);
  if (c) r->st->code = c;
  if (c == TDE_OK) tde_ask_keep_way(k, r->params);
  if (first) {
    tde_ask_tell(k, r->source, "unwrap", c ? r->st : NULL);
    c = tde_answer_first(k, c, &got, r->st);
  } else {
    if (r->forced) tell_revalidation(k, r, c);
    if (counts(k, r, c)) {
      (void)tde_answer(k, r->source, c, r->forced, &got, r->st);
    } else {
      tde_ask_end(k);
    }
  }
  tde_fetched_clear(&got);
  return c;
}

/* Failures that say nothing of the key: there is nothing to wait for. */
static int keeps_entry(tde_class c) {
  return c != TDE_NOMEM && c != TDE_CRYPTO && c != TDE_RANDOM && c != TDE_INTERNAL;
}

/* An entry for which nobody asked yet, busy; NULL: no memory. */
static tde_keys *begin_entry(const request *r) {
  tde_keys *k = tde_entry_new(r->header->uuid, r->params, &r->policy);

  if (k && !tde_entry_note_header(k, r->header, r->facts)) {
    tde_entry_free(k);
    k = NULL;
  }
  if (!k) return NULL;
  tde_entry_set_busy(k);
  tde_entry_link(k);
  return k;
}

/* The lock is held on entry and on return. *out NULL and TDE_OK: look again. */
static tde_class unlock_absent(const request *r, tde_keys **out) {
  tde_keys *k = find_absent(r);
  plan p = PLAN_ASK;
  tde_class c = TDE_OK;

  if (k) {
    tde_entry_take(k);
    *(tde_entry_is_busy(k) ? &k->next_policy : &k->policy) = r->policy;
    tde_entry_stand(k);
    p = plan_absent(k, r);
  } else {
    k = begin_entry(r);
    if (!k) return tde_fail(r->st, TDE_NOMEM, NULL, "no memory for the database's key");
  }
  *out = p == PLAN_AGAIN ? NULL : k;
  if (p == PLAN_AGAIN) tde_entry_drop(k);
  if (p == PLAN_FAIL) c = tde_entry_not_live(k, r->st);
  if (p != PLAN_ASK) return c;
  tde_ring_unlock();
  c = ask_all(k, r);
  tde_ring_lock();
  if (c == TDE_OK && !atomic_load(&k->live)) c = tde_entry_not_live(k, r->st);
  if (c && !keeps_entry(c)) {
    tde_entry_drop(k);
    *out = NULL;
  }
  return c;
}

/* A revalidation of a live entry that is not busy: its protector is asked at once. The lock is
** held on entry and on return. */
static tde_class ask_live_now(tde_keys *k, const request *r) {
  tde_fetched got = {0};
  tde_class c;
  int applies;

  tde_entry_set_busy(k);
  tde_ring_unlock();
  tde_status_clear(r->st);
  c = tde_ask_live(k, r->source, 1, r->params, &got, r->st);
  if (c == TDE_OK) tde_ask_keep_way(k, r->params);
  tell_revalidation(k, r, c);
  applies = counts(k, r, c);
  if (applies) (void)tde_answer(k, r->source, c, 0, &got, r->st);
  tde_fetched_clear(&got);
  tde_ring_lock();
  if (!applies) tde_entry_end_busy(k);
  return c;
}

/* An overdue entry is asked about before it is used. Nobody waits for a second denial where no
** transaction is under way; an outage has its grace, as at any check. The lock is held on entry
** and on return. */
static tde_class prove(tde_keys *k, const request *r) {
  tde_fetched got = {0};
  tde_class c;

  /* Without memory the next check takes the header. */
  if (k->refs == 0 || !is_older(k, r->header)) {
    (void)tde_entry_note_header(k, r->header, r->facts);
  }
  tde_entry_take(k);
  k->unproved = 1;
  tde_entry_set_busy(k);
  k->policy = r->policy;
  tde_ring_unlock();
  c = tde_ask_live(k, r->source, 0, NULL, &got, r->st);
  tde_ask_tell(k, r->source, "unwrap", c ? r->st : NULL);
  if (tde_class_is_denial(c)) {
    (void)tde_answer_first(k, c, &got, r->st);
    tde_openfiles_wipe(k, k->params.path);
  } else {
    (void)tde_answer(k, r->source, c, 0, &got, r->st);
  }
  tde_fetched_clear(&got);
  tde_ring_lock();
  return atomic_load(&k->live) ? TDE_OK : tde_entry_not_live(k, r->st);
}

/* A live entry, asked about where nobody did in time: *c tells how that went. NULL: there is none.
** The lock is held on entry and on return. */
static tde_keys *take_live(const request *r, tde_class *c) {
  for (;;) {
    tde_keys *k = find_live(r);
    if (k || r->forced) return k;
    k = find_overdue(r);
    if (!k) return NULL;
    if (!tde_entry_is_busy(k)) {
      *c = prove(k, r);
      return k;
    }
    tde_ring_wait();
  }
}

/* *out NULL: there is none, or it was lost while we waited for who asked about it. The lock is held
** on entry and on return. */
static tde_class unlock_live(const request *r, tde_keys **out) {
  tde_class c = TDE_OK;
  tde_keys *k = take_live(r, &c);

  *out = k;
  if (k) tde_entry_note_use(k);
  if (!k || !r->forced) return c;
  while (tde_entry_is_busy(k)) tde_ring_wait();
  if (atomic_load(&k->live)) return ask_live_now(k, r);
  *out = NULL;
  tde_entry_drop(k);
  return TDE_OK;
}

tde_class tde_keyring_unlock(const tde_key_source *source, const tde_key_params *params,
                             const tde_header *header, int forced, tde_key_facts *facts,
                             tde_keys **out, tde_status *st) {
  tde_status local;
  request r = {.source = source,
               .params = params,
               .header = header,
               .facts = facts,
               .forced = forced,
               .st = st ? st : &local};
  tde_class c = TDE_OK;

  tde_ring_lock();
  tde_ring_expire_idle();
  *out = forced ? NULL : find_known(header, params);
  if (*out) {
    *facts = (*out)->facts;
    tde_entry_note_use(*out);
  }
  tde_ring_unlock();
  if (*out) return TDE_OK;

  tde_status_clear(r.st);
  c = tde_ask_describe(source, header, facts, r.st);
  if (c) return c;
  source->policy(source->ctx, params, &r.policy);
  tde_ring_lock();
  do {
    c = unlock_live(&r, out);
    if (!*out) c = unlock_absent(&r, out);
  } while (!*out && c == TDE_OK);
  tde_ring_unlock();
  return c;
}

tde_class tde_keyring_adopt(const tde_key_source *source, const tde_key_params *params,
                            const uint8_t uuid[TDE_UUID_BYTES], uint32_t epoch, const uint8_t *dek,
                            tde_keys **out, tde_status *st) {
  tde_key_policy policy;
  tde_epoch_keys e;
  tde_keys *k;
  tde_class c;

  *out = NULL;
  source->policy(source->ctx, params, &policy);
  k = tde_entry_new(uuid, params, &policy);
  if (!k) return tde_fail(st, TDE_NOMEM, NULL, "no memory for the database's key");
  tde_key_params_forget_way(&k->params); /* it is under the key that it was made with */
  c = tde_epoch_derive(uuid, epoch, dek, &e);
  if (c == TDE_OK) c = tde_epochs_install(&k->epochs, &k->facts, &e);
  if (c) {
    tde_epoch_wipe(&e);
    tde_entry_free(k);
    return tde_fail(st, c, NULL, "the new database's keys could not be derived");
  }
  tde_ring_lock();
  tde_lease_begin(&k->lease, tde_now_ms(), &policy);
  tde_entry_link(k);
  tde_entry_publish(k);
  tde_ring_unlock();
  *out = k;
  return TDE_OK;
}

/* ---- another header of the same database ---- */

/* Stale epochs' keys that verify the header after all are this database's. */
static void confirm_epochs(tde_keys *k, const tde_header *h, const tde_key_facts *facts) {
  if (!tde_entry_verifies(k, 1, h, facts)) return;
  for (int i = 0; i < facts->nepochs; i++) tde_epochs_any(&k->epochs, facts->epochs[i])->stale = 0;
}

/* Takes a header that the entry's keys verify. The lock is held. */
static tde_class take_header(tde_keys *k, const tde_header *h, const tde_key_facts *facts,
                             int proved, tde_status *st) {
  int taken;

  /* Busy: the next check takes it. */
  if (tde_entry_is_busy(k) || (!proved && is_older(k, h))) return TDE_OK;
  if (!proved && k->header.doc && !tde_facts_same_protector(&k->facts, facts)) {
    /* Nobody asked this protector yet: soon. */
    k->lease.due_at = tde_now_ms();
  }
  taken = tde_entry_note_header(k, h, facts);
  tde_entry_publish(k);
  return taken ? TDE_OK : tde_nomem(st);
}

tde_class tde_keyring_follow(tde_keys *keys, const tde_key_source *source,
                             const tde_key_params *params, const tde_header *header, int proved,
                             tde_key_facts *facts, tde_status *st) {
  uint32_t lacking[TDE_EPOCHS_MAX];
  tde_fetched got = {0};
  tde_class c;
  int n, known;

  tde_ring_lock();
  known = atomic_load(&keys->live) && memcmp(keys->header.sha, header->sha, TDE_HASH_BYTES) == 0;
  if (known) *facts = keys->facts;
  tde_ring_unlock();
  if (known) return TDE_OK;
  if (memcmp(keys->uuid, header->uuid, TDE_UUID_BYTES) != 0) {
    return tde_fail(st, TDE_NOT_AUTHENTIC, NULL, "the header is another database's");
  }
  c = tde_ask_describe(source, header, facts, st);
  if (c) return c;
  tde_ring_lock();
  confirm_epochs(keys, header, facts);
  n = tde_epochs_missing(&keys->epochs, facts, lacking);
  tde_ring_unlock();
  if (n) c = tde_ask_epochs(source, params, header, lacking, n, &got, st);
  tde_ring_lock();
  if (c == TDE_OK && !atomic_load(&keys->live)) c = tde_entry_not_live(keys, st);
  if (c == TDE_OK) c = tde_fetched_verify(&got, &keys->epochs, header, facts, st);
  if (c == TDE_OK) c = tde_fetched_install(keys, &got, st);
  if (c == TDE_OK) c = take_header(keys, header, facts, proved, st);
  tde_ring_unlock();
  tde_fetched_clear(&got);
  return c;
}

uint64_t tde_keyring_ahead(const tde_keys *keys, const tde_header *h) {
  uint64_t at;

  tde_ring_lock();
  at = is_older(keys, h) ? keys->header.sequence : 0;
  tde_ring_unlock();
  return at;
}

tde_class tde_keyring_go_back(tde_keys *keys, const tde_header *header, uint64_t from,
                              const tde_key_facts *facts, tde_status *st) {
  tde_class c = TDE_OK;

  tde_ring_lock();
  /* Gone on meanwhile: then the file has a newer one again. */
  if (keys->header.doc && keys->header.sequence == from && !tde_entry_is_busy(keys)) {
    if (!tde_facts_same_protector(&keys->facts, facts)) keys->lease.due_at = tde_now_ms();
    c = tde_entry_note_header(keys, header, facts)
            ? TDE_OK
            : tde_fail(st, TDE_NOMEM, NULL, "no memory for the database's key");
    tde_entry_publish(keys);
  }
  tde_ring_unlock();
  return c;
}
