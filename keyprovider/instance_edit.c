/*
** instance_edit.c: changes of an instance; see instance_edit.h.
*/
#include "instance_edit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"
#include "json.h"
#include "keydoc.h"
#include "local.h"

/* Tells the instance's own sink how a change ended. */
static void tell(const char *path, const char *event, const char *key_id, const char *version,
                 tde_class rc, const tde_status *st) {
  const tde_instance *inst = tde_instance_now_or_last(path);
  tde_event e;
  if (inst == NULL) return;
  tde_event_fill(&e, event, NULL, tde_instance_dir(inst), key_id, version, rc != TDE_OK ? st : NULL);
  e.code = rc;
  tde_event_emit(tde_instance_audit(inst), &e, NULL);
}

/* Before a change: where the audit is required, it must be possible to tell. */
static tde_class announce(const char *path, const char *event, const char *key_id,
                          const char *version, tde_status *st) {
  const tde_instance *inst;
  tde_event e;
  tde_class rc = tde_instance_open(path, 1, &inst, st);
  if (rc != TDE_OK) {
    tell(path, event, key_id, version, rc, st);
    return rc;
  }
  tde_event_fill(&e, event, NULL, tde_instance_dir(inst), key_id, version, NULL);
  return tde_event_announce(tde_instance_audit(inst), &e, st);
}

/* ---- asking a key service, before anything is changed ---- */

/* Wraps and unwraps a random key, which then goes. */
static tde_class probe(const tde_instance *inst, const char *key_id, const char *identity,
                       tde_key_info *info, tde_status *st) {
  static const uint8_t nobody[TDE_UUID_BYTES];
  tde_keydoc_asker who = {.identity = identity};
  uint8_t *trial = tde_secret_alloc(TDE_KEY_BYTES);
  tde_op *wrap = calloc(1, sizeof *wrap);
  tde_class rc = trial != NULL && wrap != NULL ? tde_random(trial, TDE_KEY_BYTES, st) : tde_nomem(st);
  if (rc == TDE_OK) rc = tde_keydoc_wrap(inst, key_id, &who, nobody, trial, wrap, st);
  if (rc == TDE_OK) *info = wrap->info;
  tde_secret_free(trial);
  free(wrap);
  return rc;
}

/* ---- the default protector ---- */

typedef struct protector_change {
  const char *key_id; /* as it was given, or TDE_SERVICE_MANAGED */
  const char *identity;
  tde_key_info found; /* by its trial; version "": service-managed */
  tde_key_info smk;   /* made for this change; version "" : there was one */
} protector_change;

/* A key version with so many bytes of its thumbprint: TDE_THUMB_BYTES as instance.json holds it.
** NULL: no memory. */
static tde_json *key_object(const tde_key_info *info, size_t nthumb) {
  tde_json *e = tde_json_object();
  if (!(tde_key_put(e, info, nthumb) | tde_json_set_int(e, "created", info->created))) return e;
  tde_json_free(e);
  return NULL;
}

/* The version that the trial found, and when: databases that inherit go there which were wrapped
** before, whatever versions come later. */
static int set_found(tde_json *root, const tde_key_info *found) {
  if (found->version[0] == 0) return tde_json_unset(root, "default_protector_key");
  tde_json *key = key_object(found, TDE_THUMB_BYTES);
  int failed = tde_json_set_int(key, "set", (int64_t)time(NULL));
  return failed | tde_json_set_json(root, "default_protector_key", key);
}

static tde_class apply_protector(void *ctx, tde_json *root, tde_status *st) {
  const protector_change *c = ctx;
  int failed = tde_json_set_text(root, "default_protector", c->key_id);
  failed |= c->identity != NULL ? tde_json_set_text(root, "default_identity", c->identity)
                                : tde_json_unset(root, "default_identity");
  failed |= set_found(root, &c->found);
  if (c->smk.version[0] != 0) {
    tde_json *key = tde_json_object();
    failed |= tde_json_set_text(key, "name", TDE_SMK_NAME) |
              tde_json_set_text(key, "version", c->smk.version) |
              tde_json_set_int(key, "created", c->smk.created);
    failed |= tde_json_set_json(root, "service_managed_key", key);
  }
  return failed ? tde_nomem(st) : TDE_OK;
}

/* Makes the service-managed key; one that an earlier try left is taken. */
static tde_class make_smk(const tde_instance *inst, protector_change *c, char full[TDE_KEY_ID_MAX],
                          tde_status *st) {
  tde_class rc = tde_instance_smk_ready(tde_instance_dir(inst), &c->smk, st);
  if (rc == TDE_OK) tde_key_full_id(&c->smk, full);
  return rc;
}

static int is_remote(const char *key_id) {
  int remote = 0;
  return tde_key_id_parse(key_id, &remote, NULL) == TDE_OK && remote;
}

/* An unset variable is not the default identity. Before an instance is made. */
static tde_class check_identity(const char *identity, tde_status *st) {
  if (identity == NULL || identity[0] != 0) return TDE_OK;
  return tde_fail(st, TDE_MISUSE, "name one of the instance's identities, or give NULL",
                  "the identity is empty");
}

/* One that the instance has, whether the key needs it or not: it would be missing later. */
static tde_class check_named(const tde_instance *inst, const char *identity, tde_status *st) {
  if (identity == NULL || tde_cloud_identity(tde_instance_cloud(inst), identity, NULL) != NULL) {
    return TDE_OK;
  }
  return tde_fail(st, TDE_MISUSE, "name one that tde_instance() shows, or add it (tde_instance_set_identity)",
                  "the instance has no identity named %.100s", identity);
}

tde_class tde_instance_set_protector(const char *path, const char *key_id, const char *identity,
                                     char full[TDE_KEY_ID_MAX], tde_status *st) {
  static const char event[] = "set-instance-protector";
  const tde_instance *inst;
  protector_change change = {.key_id = key_id, .identity = identity};
  tde_key_info info;
  memset(&info, 0, sizeof info);
  snprintf(full, TDE_KEY_ID_MAX, "local:" TDE_SMK_NAME);
  tde_class rc = check_identity(identity, st);
  if (rc == TDE_OK) rc = tde_instance_open(path, 1, &inst, st);
  if (rc == TDE_OK) rc = check_named(inst, identity, st);
  if (rc != TDE_OK) return rc;
  int managed = strcmp(key_id, TDE_SERVICE_MANAGED) == 0;
  int make = managed && tde_instance_smk(inst)[0] == 0;
  if (!make) {
    rc = probe(inst, managed ? tde_instance_smk(inst) : key_id, managed ? NULL : identity, &info, st);
    if (rc == TDE_OK) tde_key_full_id(&info, full);
    if (rc == TDE_OK && !managed) change.found = info;
    if (rc != TDE_OK) tell(path, event, managed ? tde_instance_smk(inst) : key_id, "", rc, st);
  }
  /* Before a key is made, too. */
  if (rc == TDE_OK) rc = announce(path, event, full, "", st);
  if (rc != TDE_OK) return rc;
  if (make) rc = make_smk(inst, &change, full, st);
  if (rc == TDE_OK) rc = tde_instance_change(path, apply_protector, &change, st);
  tell(path, event, full, "", rc, st);
  return rc;
}

/* ---- the key list ---- */

typedef struct addition {
  const tde_key_info *info;
  const char *identity; /* who saw it; NULL: nobody was named */
} addition;

static tde_class apply_add(void *ctx, tde_json *root, tde_status *st) {
  const addition *a = ctx;
  const tde_key_info *info = a->info;
  tde_json *keys = tde_json_get(root, "keys");
  for (size_t i = 0; i < tde_json_count(keys); i++) {
    const tde_json *have = tde_json_at(keys, i);
    const char *id = tde_json_get_text(have, "key_id"), *ver = tde_json_get_text(have, "version");
    if (id == NULL || ver == NULL || !tde_key_ids_match(id, info->base_id) ||
        strcmp(ver, info->version) != 0) {
      continue;
    }
    return tde_fail(st, TDE_MISUSE, "nothing needs to be done",
                    "the instance's key list has this key already: %.200s/%.64s, thumbprint %.40s",
                    info->base_id, info->version, tde_json_get_text(have, "thumbprint"));
  }
  tde_json *e = key_object(info, TDE_THUMB_BYTES);
  int failed = tde_json_set_int(e, "added", (int64_t)time(NULL));
  if (a->identity != NULL) failed |= tde_json_set_text(e, "identity", a->identity);
  if (keys == NULL) {
    failed |= tde_json_set_json(root, "keys", tde_json_array());
    keys = tde_json_get(root, "keys");
  }
  failed |= tde_json_append(keys, e);
  return failed ? tde_nomem(st) : TDE_OK;
}

tde_class tde_instance_add_key(const char *path, const char *key_id, const char *identity,
                               tde_key_info *info, tde_status *st) {
  static const char event[] = "add-instance-key";
  const tde_instance *inst;
  addition a = {info, identity};
  tde_class rc = check_identity(identity, st);
  if (rc == TDE_OK) rc = tde_instance_open(path, 1, &inst, st);
  if (rc == TDE_OK) rc = check_named(inst, identity, st);
  if (rc != TDE_OK) return rc;
  rc = tde_provider_get(inst, key_id, identity, NULL, info, st);
  if (rc == TDE_OK && !info->enabled) {
    if (st != NULL) tde_key_full_id(info, st->key_id);
    rc = tde_fail(st, TDE_DISABLED, "enable the key version first",
                  "the key %.300s is disabled: it could read nothing", info->base_id);
  }
  if (rc != TDE_OK) tell(path, event, key_id, "", rc, st);
  if (rc == TDE_OK) rc = announce(path, event, info->base_id, info->version, st);
  if (rc != TDE_OK) return rc;
  rc = tde_instance_change(path, apply_add, &a, st);
  tell(path, event, info->base_id, info->version, rc, st);
  return rc;
}

typedef struct removal {
  const char *key;
  const char *protector;       /* key id of the default protector */
  tde_key_info protector_info; /* base id "": not known */
  int removed;
} removal;

/* Does what is to be removed name the default protector, by an id or its thumbprint? */
static int names_protector(const removal *r) {
  return tde_key_ids_match(r->key, r->protector) ||
         (r->protector_info.base_id[0] != 0 && tde_key_named(&r->protector_info, r->key));
}

static tde_class in_use(const removal *r, tde_status *st) {
  return tde_fail(st, TDE_MISUSE, "set another protector first (tde_instance_set_protector)",
                  "the key %.300s is in use: it is the instance's default protector", r->protector);
}

static void info_of(const tde_json *e, tde_key_info *info) {
  const char *id = tde_json_get_text(e, "key_id"), *ver = tde_json_get_text(e, "version");
  const char *thumb = tde_json_get_text(e, "thumbprint");
  memset(info, 0, sizeof *info);
  snprintf(info->base_id, sizeof info->base_id, "%s", id != NULL ? id : "");
  snprintf(info->version, sizeof info->version, "%s", ver != NULL ? ver : "");
  if (thumb == NULL || tde_unhex(thumb, info->thumbprint, TDE_THUMB_BYTES) != 0) {
    memset(info->thumbprint, 0, TDE_THUMB_BYTES);
  }
}

static tde_class apply_removal(void *ctx, tde_json *root, tde_status *st) {
  removal *r = ctx;
  tde_json *keys = tde_json_get(root, "keys");
  tde_key_info info;
  r->removed = 0;
  for (size_t i = tde_json_count(keys); i > 0; i--) {
    info_of(tde_json_at(keys, i - 1), &info);
    if (!tde_key_named(&info, r->key)) continue;
    if (tde_key_named(&info, r->protector)) return in_use(r, st);
    tde_json_remove_at(keys, i - 1);
    r->removed++;
  }
  if (r->removed > 0) return TDE_OK;
  if (names_protector(r)) return in_use(r, st);
  return tde_fail(st, TDE_MISSING, "tde_instance_keylist() shows what the list has",
                  "the instance's key list has no key %.300s", r->key);
}

tde_class tde_instance_remove_key(const char *path, const char *key, int *removed,
                                  tde_status *st) {
  static const char event[] = "remove-instance-key";
  const tde_instance *inst;
  removal r = {.key = key};
  tde_class rc = tde_instance_open(path, 0, &inst, st);
  if (rc == TDE_OK) {
    r.protector = tde_instance_protector(inst);
    (void)tde_instance_protector_info(inst, &r.protector_info);
  } else {
    tell(path, event, key, "", rc, st);
  }
  if (rc == TDE_OK) rc = announce(path, event, key, "", st);
  *removed = 0;
  if (rc != TDE_OK) return rc;
  rc = tde_instance_change(path, apply_removal, &r, st);
  *removed = r.removed;
  tell(path, event, key, "", rc, st);
  return rc;
}

tde_class tde_instance_new_key(const char *path, const char *name, tde_key_info *info,
                               tde_status *st) {
  const tde_instance *inst;
  tde_class rc = tde_local_check_name(name, st); /* first: nothing is made for a wrong one */
  if (rc == TDE_OK && strcmp(name, TDE_SMK_NAME) == 0) {
    rc = tde_fail(st, TDE_MISUSE, "choose another name",
                  "the name smk is that of the service-managed key");
  }
  char id[TDE_KEY_ID_MAX];
  snprintf(id, sizeof id, "local:%.200s", name);
  if (rc == TDE_OK) rc = announce(path, "new-local-key", id, "", st);
  if (rc == TDE_OK) rc = tde_instance_open(path, 1, &inst, st);
  if (rc != TDE_OK) return rc;
  rc = tde_local_create(tde_instance_dir(inst), name, info, st);
  tell(path, "new-local-key", id, rc == TDE_OK ? info->version : "", rc, st);
  return rc;
}

/* ---- policy, identities, audit ---- */

/* An object's member, made when it is absent. */
static tde_json *member_of(tde_json *root, const char *name) {
  if (tde_json_get(root, name) == NULL &&
      tde_json_set_json(root, name, tde_json_object()) != 0) {
    return NULL;
  }
  return tde_json_get(root, name);
}

typedef struct setting {
  const char *path; /* of the instance */
  const char *name;
  int64_t number;
  tde_json *value; /* NULL: remove */
} setting;

static int is_flag(const char *name) {
  return tde_is_one_of(name, TDE_POLICY_OTHER_NAMES);
}

static tde_class apply_policy(void *ctx, tde_json *root, tde_status *st) {
  const setting *s = ctx;
  tde_json *policy = member_of(root, "policy");
  int failed = is_flag(s->name) ? tde_json_set_bool(policy, s->name, s->number != 0)
                                : tde_json_set_int(policy, s->name, s->number);
  return failed ? tde_nomem(st) : TDE_OK;
}

/* Is there such a member, and may it have this value? */
static tde_class check_policy(const char *name, int64_t value, tde_status *st) {
  char names[320] = "its members are: ";
  for (int i = 0; i < tde_policy_nitems; i++) {
    const tde_policy_item *item = &tde_policy_items[i];
    size_t n = strlen(names);
    snprintf(names + n, sizeof names - n, "%s, ", item->name);
    if (strcmp(item->name, name) != 0) continue;
    if (value >= item->min && value <= item->max) return TDE_OK;
    return tde_fail(st, TDE_MISUSE, "choose a value within the bounds",
                    "%s is a number of seconds from %lld to %lld, not %lld", name,
                    (long long)item->min, (long long)item->max, (long long)value);
  }
  if (!is_flag(name)) {
    size_t n = strlen(names);
    tde_json_name_list(" ", TDE_POLICY_OTHER_NAMES, names + n - 1, sizeof names - n + 1);
    return tde_fail(st, TDE_MISUSE, names, "the policy has no member %.60s", name);
  }
  if (value == 0 || value == 1) return TDE_OK;
  return tde_fail(st, TDE_MISUSE, "give 0 or 1", "%s is 0 or 1, not %lld", name, (long long)value);
}

tde_class tde_instance_set_policy(const char *path, const char *name, int64_t value,
                                  tde_status *st) {
  setting s = {.name = name, .number = value};
  tde_class rc = check_policy(name, value, st);
  if (rc == TDE_OK) rc = announce(path, "set-policy", "", "", st);
  if (rc != TDE_OK) return rc;
  rc = tde_instance_change(path, apply_policy, &s, st);
  tell(path, "set-policy", "", "", rc, st);
  return rc;
}

/* Under the lock, so that what is opened is what is changed. Who asks for a key service's key
** stays: every database that inherits it would be lost within the check interval. */
static tde_class check_asker(const setting *s, tde_status *st) {
  const tde_instance *inst;
  if (tde_instance_open(s->path, 0, &inst, NULL) != TDE_OK) return TDE_OK; /* not made yet */
  const char *protector = tde_instance_protector(inst), *asker = tde_instance_asker(inst, protector);
  if (asker == NULL || strcmp(asker, s->name) != 0 || !is_remote(protector)) return TDE_OK;
  return tde_fail(st, TDE_MISUSE,
                  "set another protector first, or this one with another identity "
                  "(tde_instance_set_protector), and see that no database names it any more "
                  "(tde_status(), identity): those that have not followed yet may, and those that "
                  "have an identity of their own",
                  "the identity %.63s asks for the instance's default protector, the key %.300s", s->name,
                  protector);
}

static tde_class apply_identity(void *ctx, tde_json *root, tde_status *st) {
  setting *s = ctx;
  tde_json *ids = member_of(root, "identities");
  if (s->value == NULL) {
    tde_class rc = check_asker(s, st);
    if (rc != TDE_OK) return rc;
    if (tde_json_get(ids, s->name) == NULL) {
      return tde_fail(st, TDE_MISSING, "tde_instance() shows the identities",
                      "the instance has no identity named %.60s", s->name);
    }
    return tde_json_unset(ids, s->name) ? tde_nomem(st) : TDE_OK;
  }
  return tde_json_set_json(ids, s->name, tde_json_copy(s->value)) ? tde_nomem(st) : TDE_OK;
}

static tde_class apply_audit(void *ctx, tde_json *root, tde_status *st) {
  setting *s = ctx;
  int failed = s->value == NULL ? tde_json_unset(root, "audit")
                                : tde_json_set_json(root, "audit", tde_json_copy(s->value));
  return failed ? tde_nomem(st) : TDE_OK;
}

/* A member that does not exist is a misspelt one, which would be passed over. (A secret in
** the file itself has an error of its own: cloud.c.) */
static tde_class check_members(const tde_json *value, const char *what, const char *names,
                               tde_status *st) {
  char list[320];
  tde_json_name_list("its members are: ", names, list, sizeof list);
  for (size_t i = 0; i < tde_json_members(value); i++) {
    const char *name = tde_json_member_name(value, i);
    if (!tde_is_one_of(name, names) &&
        !tde_is_one_of(name, TDE_IDENTITY_SECRETS)) {
      return tde_fail(st, TDE_MISUSE, list, "%s has no member \"%.60s\"", what, name);
    }
  }
  return TDE_OK;
}

/* Parses json (NULL: none) as an object with these members. */
static tde_class parse_setting(setting *s, const char *json, const char *what, const char *names,
                               tde_status *st) {
  tde_class rc = TDE_OK;
  if (json == NULL) return TDE_OK;
  rc = tde_json_parse(json, strlen(json), "argument", &s->value, st);
  if (rc == TDE_CORRUPT) rc = tde_fail(st, TDE_MISUSE, "give a JSON object", "%s", st->message);
  if (rc == TDE_OK && !tde_json_is_object(s->value)) {
    char list[320];
    tde_json_name_list("its members are: ", names, list, sizeof list);
    rc = tde_fail(st, TDE_MISUSE, list, "%s is no JSON object", what);
  }
  return rc == TDE_OK ? check_members(s->value, what, names, st) : rc;
}

tde_class tde_instance_set_identity(const char *path, const char *name, const char *json,
                                    tde_status *st) {
  setting s = {.path = path, .name = name};
  tde_class rc = parse_setting(&s, json, "the identity", TDE_IDENTITY_NAMES, st);
  if (rc == TDE_OK) rc = tde_instance_change_fits(path, apply_identity, &s, st);
  if (rc == TDE_OK) rc = announce(path, "set-instance-identity", "", "", st);
  if (rc == TDE_OK) {
    rc = tde_instance_change(path, apply_identity, &s, st);
    tell(path, "set-instance-identity", "", "", rc, st);
  }
  tde_json_free(s.value);
  return rc;
}

/* A sink that is to be the instance's. */
typedef struct new_sink {
  tde_audit audit;
  int made;  /* its file was not there */
  int begun; /* it has the line that the change begins */
} new_sink;

static void fill_set_audit(tde_event *e, const char *dir, const tde_status *st) {
  tde_event_fill(e, "set-audit", NULL, dir, "", "", st);
}

/* The sink to be: no file of something else, and one that can be written, whether it is required
** or not: who names it expects lines in it. (The old one need not: it may be what is to be mended.) */
static tde_class try_sink(const tde_json *value, const char *dir, new_sink *sink, tde_status *st) {
  char file[TDE_PATH_MAX + 16];
  tde_json *root = tde_json_object();
  struct stat sb;
  tde_event e;
  tde_status inner;
  tde_class rc = tde_json_set_json(root, "audit", tde_json_copy(value)) ? tde_nomem(st) : TDE_OK;
  tde_status_clear(&inner);
  snprintf(file, sizeof file, "%s/instance.json", dir);
  if (rc == TDE_OK && tde_audit_read(root, file, &sink->audit, &inner) == TDE_OK) {
    tde_audit *audit = &sink->audit;
    fill_set_audit(&e, dir, NULL);
    audit->required |= audit->file[0] != 0;
    sink->made = audit->file[0] != 0 && lstat(audit->file, &sb) != 0 && errno == ENOENT;
    rc = tde_audit_look(audit, st);
    if (rc == TDE_OK) rc = tde_event_announce(audit, &e, st);
    sink->begun = rc == TDE_OK && audit->required;
  } /* else the change itself tells what is wrong */
  tde_json_free(root);
  return rc;
}

/* What begins there was not to be: a file that was made for it goes, another one says so. */
static void give_up_sink(const new_sink *sink, const tde_audit *old, const char *dir, tde_class rc,
                         const tde_status *st) {
  tde_event e;
  if (sink->made) {
    tde_audit_take_back(&sink->audit);
  } else if (sink->begun && strcmp(sink->audit.file, old->file) != 0) {
    fill_set_audit(&e, dir, st);
    e.code = rc;
    (void)tde_event_emit(&sink->audit, &e, NULL);
  }
}

/* The sink that was there hears of it, too. */
static void tell_old_sink(const tde_audit *old, const char *path) {
  const tde_instance *inst;
  tde_event e;
  if (tde_instance_open(path, 0, &inst, NULL) != TDE_OK) return;
  if (old->file[0] == 0 || strcmp(old->file, tde_instance_audit(inst)->file) == 0) return;
  fill_set_audit(&e, tde_instance_dir(inst), NULL);
  (void)tde_event_emit(old, &e, NULL);
}

/* From the old sink to the one of value; NULL: none. */
static tde_class change_sink(const char *path, setting *s, const tde_instance *inst, tde_status *st) {
  const tde_audit old = *tde_instance_audit(inst);
  new_sink sink;
  memset(&sink, 0, sizeof sink);
  tde_class rc = s->value != NULL ? try_sink(s->value, tde_instance_dir(inst), &sink, st) : TDE_OK;
  if (rc == TDE_OK) rc = tde_instance_change(path, apply_audit, s, st);
  if (rc != TDE_OK) give_up_sink(&sink, &old, tde_instance_dir(inst), rc, st);
  if (rc == TDE_OK) tell_old_sink(&old, path);
  tell(path, "set-audit", "", "", rc, st);
  return rc;
}

tde_class tde_instance_set_audit(const char *path, const char *json, tde_status *st) {
  const tde_instance *inst;
  setting s = {.name = "audit"};
  tde_class rc = parse_setting(&s, json, "the audit", TDE_AUDIT_NAMES, st);
  if (rc == TDE_OK) rc = tde_instance_change_fits(path, apply_audit, &s, st);
  if (rc == TDE_OK) rc = tde_instance_open(path, 1, &inst, st);
  if (rc == TDE_OK) rc = change_sink(path, &s, inst, st);
  tde_json_free(s.value);
  return rc;
}

/* ---- showing ---- */

static tde_json *describe_identities(const tde_cloud *c) {
  tde_json *all = tde_json_object();
  int failed = 0;
  for (int i = 0; i < c->nids; i++) {
    const tde_identity *id = &c->ids[i];
    tde_json *o = tde_json_object();
    failed |= tde_json_set_text(o, "kind", tde_identity_kind_name(id->kind));
    const struct {
      const char *name, *value;
    } members[] = {{"address", id->address},         {"namespace", id->vault_namespace},
                   {"mount", id->mount},             {id->kind == TDE_ID_VAULT_APPROLE ? "role_id" : "role", id->role},
                   {"tenant", id->tenant},           {"client_id", id->client_id},
                   {"via", id->via},                 {"secret_file", id->secret_file},
                   {"secret_env", id->secret_env},   {"certificate_file", id->certificate_file},
                   {"token_file", id->token_file},   {"token_env", id->token_env}};
    for (size_t k = 0; k < sizeof members / sizeof members[0]; k++) {
      if (members[k].value[0] != 0) failed |= tde_json_set_text(o, members[k].name, members[k].value);
    }
    failed |= tde_json_set_json(all, id->name, o);
  }
  if (!failed) return all;
  tde_json_free(all);
  return NULL;
}

static tde_json *describe_audit(const tde_audit *a) {
  tde_json *o = tde_json_object();
  int failed = tde_json_set_text(o, "file", a->file[0] != 0 ? a->file : NULL) |
               tde_json_set_int(o, "max_bytes", a->max_bytes) |
               tde_json_set_int(o, "keep", a->keep) | tde_json_set_bool(o, "sync", a->sync) |
               tde_json_set_bool(o, "syslog", a->syslog) |
               tde_json_set_bool(o, "required", a->required);
  if (!failed) return o;
  tde_json_free(o);
  return NULL;
}

tde_json *tde_instance_describe(const tde_instance *inst) {
  const char *protector = tde_instance_protector(inst);
  tde_json *o = tde_json_object(), *policy = tde_json_object();
  int failed = 0;
  for (int i = 0; i < tde_policy_nitems; i++) {
    const tde_policy_item *item = &tde_policy_items[i];
    const char *at = (const char *)tde_instance_policy(inst) + item->at;
    failed |= tde_json_set_int(policy, item->name, *(const int64_t *)(const void *)at);
  }
  failed |= tde_json_set_bool(policy, "allow_purgeable_keys",
                              tde_instance_cloud(inst)->allow_purgeable_keys);
  failed |= tde_json_set_bool(policy, "allow_exportable_keys",
                              tde_instance_cloud(inst)->allow_exportable_keys);
  failed |= tde_json_set_text(o, "path", tde_instance_dir(inst)) |
            tde_json_set_text(o, "id", tde_instance_id(inst)[0] != 0 ? tde_instance_id(inst) : NULL) |
            tde_json_set_text(o, "default_protector",
                              tde_instance_is_service_managed(inst) ? TDE_SERVICE_MANAGED
                                                                    : protector) |
            tde_json_set_text(o, "protector_key_id", protector) |
            tde_json_set_text(o, "default_identity", tde_instance_default_identity(inst)) |
            tde_json_set_text(o, "service_managed_key",
                              tde_instance_smk(inst)[0] != 0 ? tde_instance_smk(inst) : NULL);
  failed |= tde_json_set_json(o, "keys", tde_instance_keylist(inst));
  failed |= tde_json_set_json(o, "identities", describe_identities(tde_instance_cloud(inst)));
  failed |= tde_json_set_json(o, "policy", policy);
  failed |= tde_json_set_json(o, "audit", describe_audit(tde_instance_audit(inst)));
  if (tde_json_count(tde_instance_unknown(inst)) > 0) {
    failed |= tde_json_set_json(o, "unknown", tde_json_copy(tde_instance_unknown(inst)));
  }
  if (!failed) return o;
  tde_json_free(o);
  return NULL;
}

/* One key of the list. */
static tde_json *key_row(const tde_key_info *k, int is_protector) {
  tde_json *o = key_object(k, TDE_THUMB_SHOWN);
  if (tde_json_set_bool(o, "is_protector", is_protector) == 0) return o;
  tde_json_free(o);
  return NULL;
}

/* The default protector where the list does not have it. */
static tde_json *protector_row(const tde_instance *inst, const char *protector) {
  tde_key_info info;
  if (tde_instance_protector_info(inst, &info)) return key_row(&info, 1);
  tde_json *o = tde_json_object();
  int failed = tde_json_set_text(o, "key_id", protector) | tde_json_set_text(o, "version", NULL) |
               tde_json_set_text(o, "type", NULL) | tde_json_set_text(o, "thumbprint", NULL) |
               tde_json_set_text(o, "created", NULL) | tde_json_set_bool(o, "is_protector", 1);
  if (!failed) return o;
  tde_json_free(o);
  return NULL;
}

tde_json *tde_instance_keylist(const tde_instance *inst) {
  const char *protector = tde_instance_protector(inst);
  tde_json *list = tde_json_array();
  int failed = 0, shown = 0;
  for (int i = 0; i < tde_instance_nkeys(inst); i++) {
    const tde_key_info *k = tde_instance_key(inst, i);
    int is_protector = tde_key_named(k, protector);
    failed |= tde_json_append(list, key_row(k, is_protector));
    shown |= is_protector;
  }
  if (!shown) failed |= tde_json_append(list, protector_row(inst, protector));
  if (!failed) return list;
  tde_json_free(list);
  return NULL;
}
