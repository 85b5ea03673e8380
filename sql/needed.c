/*
** needed.c: the keys that a backup needs; see needed.h.
**
** Each is looked for by its thumbprint: among the keys that the call names (to read, or as the new
** protector), then in the instance's key list and among its local keys, then it may be the
** instance's protector. A key under another id that holds the same material serves, too; where the
** thumbprint is that of a name, as there is no public part, the wrapped DEK tells which one does.
**
** Who asks: whom the call names; then who was named when the key was put on the instance's list;
** where the call names nobody also who the backup says, as far as the instance knows that one, and
** those who ask for the instance's own keys. One who is refused is no reason not to try the next.
*/
#include "needed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "subject.h"

SQLITE_EXTENSION_INIT3

static int same_material(const tde_key_info *a, const tde_key_info *b) {
  return memcmp(a->thumbprint, b->thumbprint, TDE_THUMB_BYTES) == 0;
}

/* ---- who asks ---- */

#define ASKERS_MAX 5

typedef struct askers {
  tde_keydoc_asker who[ASKERS_MAX];
  int n;
} askers;

/* Nobody by name is the instance's default one, whose name is said where it has one: a URI that
** says none leaves it to the header. */
static void add_asker(const tde_needed *k, const char *key_id, const char *identity,
                      const char *federated, askers *out) {
  const tde_identity *id = tde_instance_identity_for(k->inst, identity, key_id);
  const char *name = identity ? identity : id ? id->name : NULL;

  for (int i = 0; i < out->n; i++) {
    if (tde_same_text(out->who[i].identity, name) &&
        tde_same_text(out->who[i].federated_client_id, federated)) {
      return;
    }
  }
  out->who[out->n].identity = name;
  out->who[out->n++].federated_client_id = federated;
}

static int knows(const tde_needed *k, const char *identity) {
  return identity && tde_cloud_identity(tde_instance_cloud(k->inst), identity, NULL) != NULL;
}

/* Who may ask for this key, in turn. */
static void askers_of(const tde_needed *k, const char *id, askers *out) {
  const char *own = tde_instance_default_identity(k->inst);
  tde_keydoc_asker backup;
  char full[TDE_KEY_ID_MAX];
  int named = k->o->identity || k->o->federated_client_id;

  out->n = 0;
  if (named) {
    add_asker(k, id, k->o->identity ? k->o->identity : own, k->o->federated_client_id, out);
  }
  for (int i = 0; i < tde_instance_nkeys(k->inst); i++) {
    const char *noted = tde_instance_key_identity(k->inst, i);
    tde_key_full_id(tde_instance_key(k->inst, i), full);
    if (!knows(k, noted) || !tde_key_ids_match(id, full)) continue;
    add_asker(k, id, noted, NULL, out);
    break;
  }
  if (named) return;
  tde_keydoc_asker_of(k->doc, &backup);
  if (knows(k, backup.identity)) {
    add_asker(k, id, backup.identity, backup.federated_client_id, out);
  }
  add_asker(k, id, own, NULL, out);
  add_asker(k, id, NULL, NULL, out);
}

typedef tde_class (*question)(void *ctx, const tde_keydoc_asker *who, tde_status *st);

/* That is about who asks: somebody else may have more luck. */
static int is_refusal(tde_class c) {
  return c == TDE_UNAUTHENTICATED || c == TDE_DENIED || c == TDE_MISCONFIGURED;
}

/* Until one is not refused. When all are, what the first one was told stands. */
static tde_class ask_in_turn(const tde_needed *k, const char *id, question q, void *ctx,
                             tde_keydoc_asker *who, tde_status *st) {
  askers may = {.n = 0};

  askers_of(k, id, &may);
  for (int i = 0; i < may.n; i++) {
    tde_status one;
    tde_class c;
    tde_status_clear(&one);
    c = q(ctx, &may.who[i], &one);
    if (i && is_refusal(c)) continue;
    *who = may.who[i];
    *st = one;
    st->code = c;
    if (!is_refusal(c)) break;
  }
  return st->code;
}

/* ---- what is asked ---- */

typedef struct unwrapping {
  const tde_needed *k;
  const char *as;
  uint32_t epoch;
  uint8_t *dek;
} unwrapping;

static tde_class unwrap(void *ctx, const tde_keydoc_asker *who, tde_status *st) {
  const unwrapping *u = ctx;

  return tde_keydoc_unwrap_as(u->k->doc, u->k->inst, who, u->as, u->epoch, u->k->uuid, u->dek, st);
}

/* The newest epoch that a key wraps; 0: none. */
static uint32_t epoch_under(const tde_needed *k, const tde_key_info *key) {
  uint32_t epochs[TDE_EPOCHS_MAX];

  for (int i = tde_keydoc_epochs(k->doc, epochs, TDE_EPOCHS_MAX); i > 0; i--) {
    tde_key_info of;
    if (tde_keydoc_wrap_info(k->doc, epochs[i - 1], &of) && same_material(&of, key)) {
      return epochs[i - 1];
    }
  }
  return 0;
}

/* Does the key of this id unwrap what the backup holds under that one? */
static tde_class ask(const tde_needed *k, const tde_key_info *key, const char *as,
                     tde_keydoc_asker *who, tde_status *st) {
  unwrapping u = {k, as, epoch_under(k, key), tde_secret_alloc(TDE_KEY_BYTES)};

  tde_status_clear(st);
  if (!u.dek) {
    tde_nomem(st);
  } else if (u.epoch) {
    (void)ask_in_turn(k, as, unwrap, &u, who, st);
  }
  tde_secret_free(u.dek);
  return st->code;
}

typedef struct looking {
  const tde_needed *k;
  const char *id;
  tde_key_info *info;
} looking;

static tde_class get(void *ctx, const tde_keydoc_asker *who, tde_status *st) {
  const looking *l = ctx;

  return tde_provider_get(l->k->inst, l->id, who->identity, who->federated_client_id, l->info, st);
}

/* ---- one key ---- */

static void found(tde_needed_key *key, const tde_key_info *info, const char *where) {
  tde_key_full_id(info, key->as);
  key->where = where;
}

static void found_and_ask(const tde_needed *k, tde_needed_key *key, const tde_key_info *info,
                          const char *where) {
  found(key, info, where);
  key->was_asked = 1;
  (void)ask(k, &key->info, key->as, &key->who, &key->asked);
}

/* Of RSA keys the public part is known. Another thumbprint is that of a name
** (tde_opaque_thumbprint). */
static int is_opaque(const tde_key_info *info) {
  return strncmp(info->type, "RSA", 3) != 0;
}

/* Is it this one under another name, for all that its thumbprint says? Only the wrapped DEK can
** tell. */
static void try_opaque(const tde_needed *k, tde_needed_key *key, const tde_key_info *info,
                       const char *where) {
  char full[TDE_KEY_ID_MAX];
  tde_keydoc_asker who = {.identity = NULL};
  tde_status st;
  tde_class c;

  if (!is_opaque(&key->info) || strcmp(key->info.type, info->type) != 0) return;
  tde_key_full_id(info, full);
  c = ask(k, &key->info, full, &who, &st);
  if (c == TDE_OK) {
    found(key, info, where);
    key->who = who;
    key->was_asked = 1;
    tde_status_clear(&key->asked);
  } else if (c != TDE_WRONG_KEY && c != TDE_CORRUPT && c != TDE_MISSING) {
    key->tried = st;
  }
}

/* Takes a key of which is known what it is, if it fits. */
static void consider(const tde_needed *k, tde_needed_key *key, const tde_key_info *info,
                     const char *where) {
  if (same_material(info, &key->info)) {
    found_and_ask(k, key, info, where);
  } else {
    try_opaque(k, key, info, where);
  }
}

/* What is one of those that were given? Each is asked for once. */
static void look_at_given(const tde_needed *k, tde_given_key *g) {
  looking l = {k, g->id, &g->info};

  if (g->looked) return;
  g->looked = 1;
  (void)ask_in_turn(k, g->id, get, &l, &g->who, &g->why);
}

/* Is one of those that were given, under another id, the same material? */
static void look_in_given(tde_needed *k, tde_needed_key *key) {
  for (size_t i = 0; i < k->ngiven && !key->as[0]; i++) {
    tde_given_key *g = &k->given[i];
    if (tde_key_named(&key->info, g->id)) continue;
    look_at_given(k, g);
    /* That it is not there is told by its absence. */
    if (g->why.code && g->why.code != TDE_MISSING) key->tried = g->why;
    if (g->why.code == TDE_OK) consider(k, key, &g->info, "given");
    g->serves |= key->as[0] != 0;
  }
}

/* The instance's own store of keys is a list of its own. */
static int is_local(const char *key_id) {
  const tde_provider *p = tde_provider_find(key_id, NULL);
  return p && strcmp(p->name, "local") == 0;
}

static void look_in_store(const tde_needed *k, tde_needed_key *key, const char *id) {
  tde_key_info info;
  tde_status st;
  tde_class c;

  tde_status_clear(&st);
  c = tde_provider_get(k->inst, id, NULL, NULL, &info, &st);
  if (c == TDE_OK && same_material(&info, &key->info)) found_and_ask(k, key, &info, "instance");
  if (c && c != TDE_MISSING) key->tried = st;
}

static void look_at_protector(const tde_needed *k, tde_needed_key *key, const char *id) {
  tde_key_info info;

  if (tde_key_ids_match(tde_instance_protector(k->inst), id)) {
    found_and_ask(k, key, &key->info, "protector");
  } else if (tde_instance_protector_info(k->inst, &info)) {
    try_opaque(k, key, &info, "protector");
  }
}

static void look_in_instance(const tde_needed *k, tde_needed_key *key) {
  char full[TDE_KEY_ID_MAX];

  for (int i = 0; i < tde_instance_nkeys(k->inst) && !key->as[0]; i++) {
    consider(k, key, tde_instance_key(k->inst, i), "instance");
  }
  tde_key_full_id(&key->info, full);
  if (!key->as[0] && is_local(full)) look_in_store(k, key, full);
  if (!key->as[0]) look_at_protector(k, key, full);
}

/* Does a key id that was given name this key? So does that of the new database's protector. */
static int is_given(tde_needed *k, const tde_key_info *info) {
  int is = k->o->protector && tde_key_named(info, k->o->protector);

  for (size_t i = 0; i < k->ngiven; i++) {
    if (!tde_key_named(info, k->given[i].id)) continue;
    k->given[i].serves = 1;
    is = 1;
  }
  return is;
}

/* A key that was given by its id is this one, unless it only bears the name: then others
** may fit, and when none does, what it answered stands. */
static void look_for(tde_needed *k, tde_needed_key *key) {
  tde_needed_key named = *key;

  if (!k->inst) {
    key->tried = k->no_instance;
    return;
  }
  if (is_given(k, &key->info)) found_and_ask(k, &named, &key->info, "given");
  if (!named.as[0] || named.asked.code) {
    look_in_given(k, key);
    if (!key->as[0]) look_in_instance(k, key);
  }
  if (named.as[0] && (!key->as[0] || key->asked.code)) *key = named;
}

int tde_needed_look(tde_needed *k, tde_status *st) {
  tde_key_info infos[TDE_EPOCHS_MAX];

  k->ngiven = tde_json_count(k->o->keys);
  k->given = calloc(k->ngiven ? k->ngiven : 1, sizeof(*k->given));
  if (!k->given) {
    tde_nomem(st);
    return SQLITE_NOMEM;
  }
  for (size_t i = 0; i < k->ngiven; i++) k->given[i].id = tde_json_text_at(k->o->keys, i);
  k->n = tde_keydoc_needed(k->doc, infos, TDE_EPOCHS_MAX);
  for (int i = 0; i < k->n; i++) {
    memset(&k->key[i], 0, sizeof(k->key[i]));
    k->key[i].info = infos[i];
    look_for(k, &k->key[i]);
  }
  return SQLITE_OK;
}

void tde_needed_end(tde_needed *k) {
  free(k->given);
  k->given = NULL;
  k->ngiven = 0;
}

/* ---- what is missing ---- */

/* The keys that were given for nothing, by name as far as there is room. */
static void add_useless(const tde_needed *k, char *out, size_t size) {
  static const char begin[] = " (given, and not it: ";
  size_t used = strlen(out), left = 0;
  const char *before = begin;
  char more[40];

  for (size_t i = 0; i < k->ngiven; i++) {
    const char *id = k->given[i].id;
    if (k->given[i].serves) continue;
    if (left || used + strlen(before) + strlen(id) + sizeof(more) > size) {
      left++;
      continue;
    }
    used += (size_t)snprintf(out + used, size - used, "%s%s", before, id);
    before = ", ";
  }
  if (before == begin) return;
  (void)snprintf(more, sizeof(more), ", and %zu more)", left);
  (void)snprintf(out + used, size - used, "%s", left ? more : ")");
}

void tde_needed_remedy(const tde_needed *k, const tde_needed_key *key, char *out, size_t n) {
  if (!k->inst) {
    (void)snprintf(out, n,
                   "%.150s: name it, or put it back from its copy; for a key of a key service "
                   "tde_instance_set_identity() and tde_instance_add_key() make one",
                   key->tried.message);
  } else if (key->tried.code) {
    (void)snprintf(out, n, "%.200s: %.110s", key->tried.message, key->tried.remedy);
  } else if (is_local(key->info.base_id)) {
    (void)snprintf(out, n,
                   "copy keys/%.100s-%.64s.pem from the instance that had it into this one's "
                   "keys/, or restore that instance's directory",
                   key->info.base_id + strlen("local:"), key->info.version);
    add_useless(k, out, n);
  } else {
    (void)snprintf(out, n,
                   "add it with tde_instance_add_key(), or name it in the option \"keys\"; it need "
                   "not become a protector");
    add_useless(k, out, n);
  }
}

/* One more name, whole, where there is room for it. */
static int add_name(char *names, size_t size, const tde_key_info *info) {
  char full[TDE_KEY_ID_MAX], hex[2 * TDE_THUMB_SHOWN + 1], one[TDE_KEY_ID_MAX + 80];
  size_t used = strlen(names);
  const char *comma = used ? ", " : "";

  tde_key_full_id(info, full);
  tde_hex(info->thumbprint, TDE_THUMB_SHOWN, hex);
  (void)snprintf(one, sizeof(one), "%s%s (thumbprint %s)", comma, full, hex);
  if (used + strlen(one) >= size) {
    if (used) return 0;
    (void)snprintf(one, sizeof(one), "thumbprint %s", hex);
  }
  memcpy(names + used, one, strlen(one) + 1);
  return 1;
}

int tde_needed_missing(const tde_needed *k, tde_status *st) {
  char names[420] = "", more[60] = "", remedy[sizeof(st->remedy)];
  const tde_needed_key *why = NULL;
  int n = 0, named = 0;

  for (int i = 0; i < k->n; i++) {
    const tde_needed_key *key = &k->key[i];
    if (key->as[0]) continue;
    if (!why || (key->tried.code && !why->tried.code)) why = key;
    if (named == n) named += add_name(names, sizeof(names), &key->info);
    n++;
  }
  if (!n) return 0;
  tde_needed_remedy(k, why, remedy, sizeof(remedy));
  if (named < n) {
    (void)snprintf(more, sizeof(more), ", and %d more: tde_restore_check names all", n - named);
  }
  tde_fail(st, TDE_MISSING, remedy, "MissingKeyForRestore: %s%s", names, more);
  return 1;
}
