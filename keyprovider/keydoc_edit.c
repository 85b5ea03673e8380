/*
** keydoc_edit.c: makes and changes key documents; keydoc.h tells the interface,
** keydoc.c the members.
**
** What must hold:
**  - a key becomes a protector only after it was looked at, wrapped the DEK, and
**    unwrapped it to the same bytes;
**  - whatever is changed, what is written goes through the parser again before it
**    gets into a header: it is held to the same rules as what is read;
**  - members that this version does not know are kept.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"
#include "keydoc_int.h"

/* ---- parts ---- */

int tde_key_put(tde_json *obj, const tde_key_info *info, size_t nthumb) {
  char thumb[2 * TDE_THUMB_BYTES + 1];
  tde_hex(info->thumbprint, nthumb, thumb);
  return tde_json_set_text(obj, "key_id", info->base_id) |
         tde_json_set_text(obj, "version", info->version) |
         tde_json_set_text(obj, "type", info->type) | tde_json_set_text(obj, "thumbprint", thumb);
}

/* The members that a wrap and a key-list entry share. */
static int put_key(tde_json *obj, const tde_key_info *info) {
  return tde_key_put(obj, info, TDE_THUMB_BYTES) | tde_json_set_int(obj, "created", info->created);
}

/* An array of one. */
static tde_json *only(tde_json *v) {
  tde_json *arr = tde_json_array();
  if (tde_json_append(arr, v) == 0) return arr;
  tde_json_free(arr);
  return NULL;
}

static tde_json *new_wrap(const tde_op *op, int64_t now) {
  char wrapped[TDE_KEYDOC_WRAPPED_TEXT];
  tde_json *wrap = tde_json_object();
  tde_base64url(op->wrapped, op->nwrapped, wrapped);
  int failed = put_key(wrap, &op->info);
  /* When the key was made is of interest; here "created" is when it wrapped. */
  failed |= tde_json_set_text(wrap, "algorithm", op->info.algorithm) |
            tde_json_set_text(wrap, "wrapped", wrapped) | tde_json_set_int(wrap, "created", now);
  if (!failed) return wrap;
  tde_json_free(wrap);
  return NULL;
}

static tde_json *new_dek(uint32_t epoch, const tde_op *op, int64_t now) {
  tde_json *dek = tde_json_object();
  int failed = tde_json_set_int(dek, "epoch", epoch) | tde_json_set_int(dek, "created", now);
  failed |= tde_json_set_json(dek, "wraps", only(new_wrap(op, now)));
  if (!failed) return dek;
  tde_json_free(dek);
  return NULL;
}

static tde_json *new_list_entry(const tde_key_info *info, int64_t now) {
  tde_json *key = tde_json_object();
  int failed = put_key(key, info) | tde_json_set_int(key, "added", now) |
               tde_json_set_int(key, "first_used", 0) | tde_json_set_int(key, "last_used", 0);
  if (!failed) return key;
  tde_json_free(key);
  return NULL;
}

/* ---- creating ---- */

/* An expired key still unwraps; a key that may not wrap must not become a
** protector. */
static tde_class may_wrap(const tde_key_info *info, tde_status *st) {
  int64_t now = (int64_t)time(NULL);
  const char *why = NULL;
  if (!info->enabled) why = "is disabled";
  else if (info->expires != 0 && now >= info->expires) why = "has expired";
  else if (info->not_before != 0 && now < info->not_before) why = "is not active yet";
  if (why == NULL) return TDE_OK;
  if (st != NULL) tde_key_full_id(info, st->key_id);
  return tde_fail(st, TDE_DISABLED, "use another key version, or change this one's dates or state",
                  "the key %.400s %s: it must not wrap a key", info->base_id, why);
}

tde_class tde_keydoc_wrap(const tde_instance *inst, const char *key_id,
                          const tde_keydoc_asker *who, const uint8_t uuid[TDE_UUID_BYTES],
                          uint8_t *dek, tde_op *wrap, tde_status *st) {
  char full[TDE_KEY_ID_MAX];
  tde_op op;
  tde_keydoc_operation(&op, TDE_OP_GET, inst, who, uuid, NULL);
  tde_class rc = tde_provider_run(&op, key_id, st);
  if (rc == TDE_OK) rc = may_wrap(&op.info, st);
  if (rc != TDE_OK) return rc;
  /* The version that was looked at, not what is the latest a moment later. */
  tde_key_full_id(&op.info, full);
  tde_keydoc_operation(wrap, TDE_OP_WRAP, inst, who, uuid, dek);
  rc = tde_provider_run(wrap, full, st);
  if (rc != TDE_OK) return rc;
  uint8_t *again = tde_secret_alloc(TDE_KEY_BYTES);
  if (again == NULL) return tde_nomem(st);
  tde_keydoc_operation(&op, TDE_OP_UNWRAP, inst, who, uuid, again);
  memcpy(op.wrapped, wrap->wrapped, wrap->nwrapped);
  op.nwrapped = wrap->nwrapped;
  memcpy(op.algorithm, wrap->info.algorithm, sizeof op.algorithm);
  rc = tde_provider_run(&op, full, st);
  if (rc == TDE_OK && !tde_equal(again, dek, TDE_KEY_BYTES)) {
    if (st != NULL) memcpy(st->key_id, full, sizeof full);
    rc = tde_fail(st, TDE_WRONG_KEY, "use another key",
                  "the key %.400s unwraps something else than it wrapped", full);
  }
  tde_secret_free(again);
  return rc;
}

/* Reads a document back as it will be read from a header. */
static tde_class reparse(tde_json *root, tde_keydoc **out, tde_status *st) {
  size_t n = 0;
  char *text = tde_json_text(root, &n);
  if (text == NULL) return tde_nomem(st);
  tde_class rc = tde_keydoc_parse(text, n, out, st);
  free(text);
  return rc;
}

/* The document of a wrap that is known to work. from: the instance that it inherits from, or NULL. */
static tde_class new_document(const tde_op *op, const tde_instance *from, const tde_keydoc_asker *who,
                              const uint8_t *uuid, tde_keydoc **out, tde_status *st) {
  int64_t now = (int64_t)time(NULL);
  tde_json *rotation = tde_json_object();
  tde_keydoc draft = {.root = tde_json_object(), .epoch = 1};
  tde_event created = {.time = now, .event = "create", .uuid = uuid};
  snprintf(created.key_id, sizeof created.key_id, "%s", op->info.base_id);
  snprintf(created.version, sizeof created.version, "%s", op->info.version);
  int failed = tde_json_set_int(draft.root, "version", 1) | tde_json_set_int(draft.root, "epoch", 1);
  failed |= from != NULL ? tde_keydoc_inherit(&draft, from) : tde_keydoc_set_mode(&draft, "database");
  failed |= tde_json_set_json(draft.root, "deks", only(new_dek(1, op, now)));
  failed |= tde_json_set_json(draft.root, "keys", tde_json_array());
  failed |= tde_keydoc_use_key(&draft, &op->info, now);
  failed |= tde_keydoc_set_identity(&draft, who);
  failed |= tde_json_set_bool(rotation, "enabled", 0);
  failed |= tde_json_set_json(draft.root, "auto_rotation", rotation);
  failed |= tde_json_set_json(draft.root, "events", tde_json_array());
  failed |= tde_keydoc_add_event(&draft, &created);
  tde_class rc = failed ? tde_nomem(st)
                        : reparse(draft.root, out, st);
  tde_json_free(draft.root);
  return rc;
}

/* Nobody is there who could be federated. */
static tde_class no_identity(const tde_instance *inst, tde_status *st) {
  (void)tde_cloud_identity(tde_instance_cloud(inst), tde_instance_default_identity(inst), st);
  return TDE_MISCONFIGURED;
}

tde_class tde_keydoc_create(const tde_instance *inst, const char *protector,
                            const tde_keydoc_asker *asker, const uint8_t uuid[TDE_UUID_BYTES],
                            uint8_t *dek, tde_keydoc **out, tde_status *st) {
  tde_keydoc_asker who = *asker;
  tde_op wrap;
  int inherits = protector == NULL;
  tde_class rc = TDE_OK;
  *out = NULL;
  memset(dek, 0, TDE_KEY_BYTES);
  if (who.identity != NULL) {
    if (!tde_cloud_identity(tde_instance_cloud(inst), who.identity, st)) return TDE_MISCONFIGURED;
  }
  if (inherits) {
    protector = tde_instance_protector(inst);
    if (who.identity == NULL) who.identity = tde_instance_default_identity(inst);
  } else {
    rc = tde_instance_may_protect(inst, protector, st);
  }
  /* One that is federated has a name. */
  if (who.identity == NULL && who.federated_client_id != NULL) {
    who.identity = tde_instance_asker(inst, protector);
    if (who.identity == NULL) return no_identity(inst, st);
  }
  if (rc == TDE_OK) rc = tde_random(dek, TDE_KEY_BYTES, st);
  if (rc == TDE_OK) rc = tde_keydoc_wrap(inst, protector, &who, uuid, dek, &wrap, st);
  if (rc == TDE_OK && inherits) tde_instance_need_id(&inst);
  if (rc == TDE_OK) rc = new_document(&wrap, inherits ? inst : NULL, &who, uuid, out, st);
  if (rc != TDE_OK) tde_wipe(dek, TDE_KEY_BYTES);
  return rc;
}

/* ---- protector and mode ---- */

int tde_keydoc_set_wrap(tde_keydoc *doc, uint32_t epoch, const tde_op *wrap, int64_t now) {
  tde_json *dek = tde_keydoc_dek_of(doc, epoch);
  if (dek == NULL) return -1;
  return tde_json_set_json(dek, "wraps", only(new_wrap(wrap, now)));
}

int tde_keydoc_move_wrap(tde_keydoc *doc, uint32_t epoch, size_t which, const tde_key_info *info) {
  tde_json *wraps = tde_json_get(tde_keydoc_dek_of(doc, epoch), "wraps");
  int failed = 0;
  if (which >= tde_json_count(wraps)) return -1;
  while (tde_json_count(wraps) > which + 1) failed |= tde_json_remove_at(wraps, which + 1);
  while (tde_json_count(wraps) > 1) failed |= tde_json_remove_at(wraps, 0);
  tde_json *left = tde_json_at(wraps, 0);
  int64_t wrapped_at = tde_json_get_int(left, "created", 0);
  return failed | put_key(left, info) | tde_json_set_int(left, "created", wrapped_at);
}

/* The key list, made when it is absent. */
static tde_json *list_of(tde_keydoc *doc) {
  tde_json *keys = tde_json_get(doc->root, "keys");
  if (keys == NULL && tde_json_set_json(doc->root, "keys", tde_json_array()) == 0) {
    keys = tde_json_get(doc->root, "keys");
  }
  return keys;
}

static tde_json *entry_of(tde_json *keys, const tde_key_info *info) {
  for (size_t i = 0; i < tde_json_count(keys); i++) {
    tde_json *e = tde_json_at(keys, i);
    tde_key_info have;
    tde_keydoc_info_of(e, &have);
    if (tde_key_same_version(&have, info)) return e;
  }
  return NULL;
}

int tde_keydoc_use_key(tde_keydoc *doc, const tde_key_info *info, int64_t now) {
  tde_json *keys = list_of(doc);
  if (keys == NULL) return -1;
  tde_json *e = entry_of(keys, info);
  if (e == NULL) {
    if (tde_json_append(keys, new_list_entry(info, now)) != 0) return -1;
    e = tde_json_at(keys, tde_json_count(keys) - 1);
  }
  /* As the wraps now spell it. */
  int failed = tde_json_set_text(e, "key_id", info->base_id);
  if (tde_json_get_int(e, "first_used", 0) == 0) failed |= tde_json_set_int(e, "first_used", now);
  /* Until now the others were in use; the protector's time goes on. */
  for (size_t i = 0; i < tde_json_count(keys); i++) {
    tde_json *other = tde_json_at(keys, i);
    if (other == e || tde_json_get_int(other, "first_used", 0) == 0) continue;
    if (tde_json_get_int(other, "last_used", 0) == 0) {
      failed |= tde_json_set_int(other, "last_used", now);
    }
  }
  return failed | tde_json_set_int(e, "last_used", 0);
}

int tde_keydoc_set_mode(tde_keydoc *doc, const char *mode) {
  return tde_json_set_text(doc->root, "mode", mode) | tde_json_unset(doc->root, "instance");
}

int tde_keydoc_inherit(tde_keydoc *doc, const tde_instance *inst) {
  const char *id = tde_instance_id(inst);
  int failed = tde_keydoc_set_mode(doc, "inherit");
  if (id[0] == 0) return failed;
  tde_json *from = tde_json_object();
  failed |= tde_json_set_text(from, "id", id) |
            tde_json_set_text(from, "identity", tde_instance_default_identity(inst));
  return failed | tde_json_set_json(doc->root, "instance", from);
}

int tde_keydoc_set_identity(tde_keydoc *doc, const tde_keydoc_asker *who) {
  if (who->identity == NULL) return tde_json_set_text(doc->root, "identity", NULL);
  tde_json *id = tde_json_object();
  int failed = tde_json_set_text(id, "name", who->identity) |
               tde_json_set_text(id, "federated_client_id", who->federated_client_id);
  return tde_json_set_json(doc->root, "identity", id) | failed;
}

/* ---- the key list ---- */

/* True when some epoch is wrapped under this very key version. */
static int is_protector(const tde_keydoc *doc, const tde_key_info *info) {
  tde_key_info needed[TDE_EPOCHS_MAX];
  int n = tde_keydoc_needed(doc, needed, TDE_EPOCHS_MAX);
  for (int i = 0; i < n; i++) {
    if (tde_key_same_version(&needed[i], info)) return 1;
  }
  return 0;
}

/* The text's length without the events, which make way. 0: out of memory. */
static size_t bare_size(const tde_keydoc *doc) {
  size_t n = 0;
  tde_json *copy = tde_json_copy(doc->root);
  char *text = copy != NULL && tde_json_unset(copy, "events") == 0 ? tde_json_text(copy, &n) : NULL;
  if (text == NULL) n = 0;
  free(text);
  tde_json_free(copy);
  return n;
}

/* The entry that was added first of those that wrap no DEK, wherever a list that was merged has it; the
** number of entries: there is none. */
static size_t oldest_unused(const tde_keydoc *doc, const tde_json *keys) {
  size_t n = tde_json_count(keys), oldest = n;
  int64_t since = INT64_MAX;
  for (size_t i = 0; i < n; i++) {
    tde_key_info info;
    int64_t added = tde_json_get_int(tde_json_at(keys, i), "added", 0);
    tde_keydoc_info_of(tde_json_at(keys, i), &info);
    if (added >= since || is_protector(doc, &info)) continue;
    oldest = i;
    since = added;
  }
  return oldest;
}

int tde_keydoc_fit(tde_keydoc *doc, int *dropped) {
  tde_json *keys = tde_json_get(doc->root, "keys");
  size_t size = bare_size(doc);
  *dropped = 0;
  if (size > 0 && size <= TDE_KEYDOC_TEXT_MAX) return 0;
  while (size > TDE_KEYDOC_TEXT_MAX - TDE_KEYDOC_RESERVE) {
    size_t i = oldest_unused(doc, keys);
    if (i == tde_json_count(keys)) return 0; /* whether it fits at all is told when it is written */
    tde_json_remove_at(keys, i);
    ++*dropped;
    size = bare_size(doc);
  }
  return size > 0 ? 0 : -1;
}

/* The oldest entry that is a former protector, of this key; the number of entries: there is none. */
static size_t oldest_version(const tde_keydoc *doc, const tde_json *keys, const char *base_id,
                             tde_key_info *info) {
  size_t i = 0, n = tde_json_count(keys);
  for (; i < n; i++) {
    const tde_json *e = tde_json_at(keys, i);
    tde_keydoc_info_of(e, info);
    if (tde_json_get_int(e, "last_used", 0) != 0 && strcmp(info->base_id, base_id) == 0 &&
        !is_protector(doc, info)) {
      break;
    }
  }
  return i;
}

int tde_keydoc_drop_versions(tde_keydoc *doc, const tde_key_info *info, int64_t now) {
  tde_json *keys = tde_json_get(doc->root, "keys");
  size_t size = bare_size(doc);
  int failed = 0;
  while (size > TDE_KEYDOC_TEXT_MAX - TDE_KEYDOC_RESERVE && !failed) {
    tde_event gone = {.time = now, .event = "remove-key"};
    tde_key_info old;
    size_t i = oldest_version(doc, keys, info->base_id, &old);
    if (i == tde_json_count(keys)) return 0;
    snprintf(gone.key_id, sizeof gone.key_id, "%s", old.base_id);
    snprintf(gone.version, sizeof gone.version, "%s", old.version);
    failed = tde_json_remove_at(keys, i) | tde_keydoc_add_event(doc, &gone);
    size = bare_size(doc);
  }
  return failed || size == 0 ? -1 : 0;
}

static tde_class has_already(const tde_key_info *info, const tde_json *e, tde_status *st) {
  time_t added = (time_t)tde_json_get_int(e, "added", 0);
  struct tm tm;
  char when[32];
  if (gmtime_r(&added, &tm) == NULL || strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", &tm) == 0) {
    snprintf(when, sizeof when, "some time");
  }
  return tde_fail(st, TDE_MISUSE, "nothing needs to be done",
                  "the key list has this key already: %.200s/%.64s, thumbprint %.40s, added at %s",
                  info->base_id, info->version, tde_json_get_text(e, "thumbprint"), when);
}

tde_class tde_keydoc_list_add(tde_keydoc *doc, const tde_key_info *info, int64_t now,
                              tde_status *st) {
  tde_json *keys = list_of(doc);
  if (keys == NULL) return tde_nomem(st);
  const tde_json *e = entry_of(keys, info);
  if (e != NULL) return has_already(info, e, st);
  if (tde_json_append(keys, new_list_entry(info, now)) != 0) {
    return tde_nomem(st);
  }
  size_t size = bare_size(doc);
  if (size == 0) return tde_nomem(st);
  if (size > TDE_KEYDOC_TEXT_MAX - TDE_KEYDOC_RESERVE) {
    return tde_fail(st, TDE_UNSUPPORTED, "remove keys that no backup needs (tde_remove_key)",
                    "the key list is full: the key document would be %zu bytes long, and %d of %d are "
                    "kept free for a new protector or DEK",
                    size, TDE_KEYDOC_RESERVE, TDE_KEYDOC_TEXT_MAX);
  }
  return TDE_OK;
}

tde_class tde_keydoc_list_remove(tde_keydoc *doc, const char *key, tde_status *st) {
  tde_json *keys = tde_json_get(doc->root, "keys");
  tde_key_info info;
  int found = 0;
  for (size_t i = 0; i < tde_json_count(keys); i++) {
    tde_keydoc_info_of(tde_json_at(keys, i), &info);
    if (!tde_key_named(&info, key)) continue;
    if (is_protector(doc, &info)) {
      return tde_fail(st, TDE_MISUSE, "set another protector first (tde_set_protector)",
                      "the key %.300s/%.64s is in use: it protects the database", info.base_id,
                      info.version);
    }
    found++;
  }
  if (found == 0) {
    return tde_fail(st, TDE_MISSING, "tde_keylist() shows what the list has",
                    "the key list has no key %.300s", key);
  }
  for (size_t i = tde_json_count(keys); i > 0; i--) {
    tde_keydoc_info_of(tde_json_at(keys, i - 1), &info);
    if (tde_key_named(&info, key)) tde_json_remove_at(keys, i - 1);
  }
  return TDE_OK;
}

/* ---- rotation ---- */

static tde_json *rotation_of(tde_keydoc *doc) {
  tde_json *r = tde_json_get(doc->root, "auto_rotation");
  if (r != NULL) return r;
  r = tde_json_object();
  if (tde_json_set_bool(r, "enabled", 0) != 0) {
    tde_json_free(r);
    return NULL;
  }
  if (tde_json_set_json(doc->root, "auto_rotation", r) != 0) return NULL;
  return tde_json_get(doc->root, "auto_rotation");
}

int tde_keydoc_set_auto_rotation(tde_keydoc *doc, int on) {
  tde_json *r = rotation_of(doc);
  return r != NULL ? tde_json_set_bool(r, "enabled", on) : -1;
}

int tde_keydoc_rotation_checked(tde_keydoc *doc, int64_t now, int rotated, const char *error) {
  tde_json *r = rotation_of(doc);
  if (r == NULL) return -1;
  int failed = tde_json_set_int(r, "checked", now) | tde_json_set_text(r, "error", error);
  if (rotated) failed |= tde_json_set_int(r, "rotated", now);
  if (error != NULL) failed |= tde_json_set_int(r, "failed", now);
  return failed;
}

tde_class tde_keydoc_begin_epoch(tde_keydoc *doc, const tde_op *wrap, int64_t units, int64_t now,
                                 tde_status *st) {
  tde_json *regen = tde_json_object();
  uint32_t next = doc->epoch + 1;
  if (tde_keydoc_regenerating(doc)) {
    tde_json_free(regen);
    return tde_fail(st, TDE_MISUSE, "run tde_rotate_dek() to go on with it",
                    "a regeneration of the DEK is under way");
  }
  if (next == 0 || tde_keydoc_dek_of(doc, next) != NULL) {
    tde_json_free(regen);
    return tde_fail(st, TDE_UNSUPPORTED, "copy the database with tde_copy()",
                    "no DEK epoch is left after %u", doc->epoch);
  }
  int failed = tde_json_append(tde_json_get(doc->root, "deks"), new_dek(next, wrap, now));
  failed |= tde_json_set_int(regen, "from", doc->epoch) | tde_json_set_int(regen, "to", next) |
            tde_json_set_int(regen, "started", now) | tde_json_set_int(regen, "done", 0) |
            tde_json_set_int(regen, "all", units);
  failed |= tde_json_set_json(doc->root, "regeneration", regen);
  failed |= tde_json_set_int(doc->root, "epoch", next);
  if (failed) return tde_nomem(st);
  doc->epoch = next;
  return TDE_OK;
}

int tde_keydoc_epoch_progress(tde_keydoc *doc, int64_t done, int64_t all) {
  tde_json *regen = tde_json_get(doc->root, "regeneration");
  if (regen == NULL) return 0;
  return tde_json_set_int(regen, "done", done) | tde_json_set_int(regen, "all", all);
}

int tde_keydoc_end_epoch(tde_keydoc *doc, int64_t now) {
  tde_json *deks = tde_json_get(doc->root, "deks");
  for (size_t i = tde_json_count(deks); i > 0; i--) {
    if (tde_json_get_int(tde_json_at(deks, i - 1), "epoch", 0) != (int64_t)doc->epoch) {
      tde_json_remove_at(deks, i - 1);
    }
  }
  return tde_json_unset(doc->root, "regeneration") |
         tde_json_set_int(doc->root, "regenerated", now);
}

int tde_keydoc_take_epochs(tde_keydoc *doc, const uint32_t *epochs, const tde_op *const *wraps,
                           int n, uint32_t current, int keep, int64_t now) {
  tde_json *deks = tde_json_get(doc->root, "deks");
  int failed = 0;
  for (int i = 0; i < n; i++) {
    if (tde_keydoc_dek_of(doc, epochs[i]) != NULL) continue;
    if (wraps[i] == NULL) return -1;
    failed |= tde_json_append(deks, new_dek(epochs[i], wraps[i], now));
  }
  for (size_t i = tde_json_count(deks); i > 0 && !keep; i--) {
    int64_t epoch = tde_json_get_int(tde_json_at(deks, i - 1), "epoch", 0);
    int named = 0;
    for (int k = 0; k < n; k++) named |= epoch == (int64_t)epochs[k];
    if (!named) tde_json_remove_at(deks, i - 1);
  }
  doc->epoch = current;
  return failed | tde_json_set_int(doc->root, "epoch", current);
}

/* Since when, and until when, a key was in use by the other document's database; what it is under has
** been so until now. */
static int merge_use(tde_json *mine, const tde_json *theirs, int64_t now) {
  int64_t first = tde_json_get_int(theirs, "first_used", 0);
  int64_t last = tde_json_get_int(theirs, "last_used", 0);
  int failed = 0;
  if (first == 0) return 0;
  if (last == 0) last = now;
  if (tde_json_get_int(mine, "first_used", 0) == 0) {
    failed |= tde_json_set_int(mine, "first_used", first);
  }
  if (tde_json_get_int(mine, "last_used", 0) < last) {
    failed |= tde_json_set_int(mine, "last_used", last);
  }
  return failed;
}

int tde_keydoc_merge_list(tde_keydoc *doc, const tde_keydoc *from, int64_t now) {
  tde_json *keys = list_of(doc);
  const tde_json *more = tde_json_get(from->root, "keys");
  int failed = keys == NULL;
  for (size_t i = 0; i < tde_json_count(more) && !failed; i++) {
    const tde_json *theirs = tde_json_at(more, i);
    tde_key_info info;
    tde_keydoc_info_of(theirs, &info);
    if (entry_of(keys, &info) == NULL) failed = tde_json_append(keys, tde_json_copy(theirs)) != 0;
    if (!failed && !is_protector(doc, &info)) {
      failed = merge_use(entry_of(keys, &info), theirs, now);
    }
  }
  return failed ? -1 : 0;
}

int tde_keydoc_set_member(tde_keydoc *doc, const char *name, tde_json *v) {
  return v != NULL ? tde_json_set_json(doc->root, name, v) : tde_json_unset(doc->root, name);
}

/* ---- events ---- */

int tde_keydoc_add_event(tde_keydoc *doc, const tde_event *e) {
  tde_json *events = tde_json_get(doc->root, "events"), *j = tde_json_object();
  char full[TDE_KEY_ID_MAX];
  tde_event_key(e, full);
  int failed = tde_json_set_int(j, "time", e->time) | tde_json_set_text(j, "event", e->event) |
               tde_json_set_text(j, "key_id", full) |
               tde_json_set_text(j, "outcome", tde_class_name(e->code));
  if (e->http_status != 0) failed |= tde_json_set_int(j, "http_status", e->http_status);
  if (e->service_code[0] != 0) failed |= tde_json_set_text(j, "service_code", e->service_code);
  if (e->request_id[0] != 0) failed |= tde_json_set_text(j, "request_id", e->request_id);
  if (events == NULL) {
    failed |= tde_json_set_json(doc->root, "events", tde_json_array());
    events = tde_json_get(doc->root, "events");
  }
  failed |= tde_json_append(events, j);
  while (!failed && tde_json_count(events) > TDE_KEYDOC_EVENTS_MAX) tde_json_remove_at(events, 0);
  return failed ? -1 : 0;
}
