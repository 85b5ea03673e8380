/*
** keydoc.c: the key document of one database.
**
** The document is kept as the JSON it was read from, so that members which
** this version does not know survive. Its form:
**
**   version        1
**   mode           "inherit" | "database"
**   epoch          the current DEK epoch, 1..2^32-1
**   deks[]         epoch, created, wraps[]: key_id (base), version, type,
**                  algorithm, thumbprint (64 hex), wrapped (base64url), created
**   keys[]         the key list: key_id, version, type, thumbprint, created,
**                  added, first_used, last_used
**   instance       while it inherits: id of the instance, identity that its default had
**   identity       null | name, federated_client_id
**   auto_rotation  enabled, checked, rotated, failed, error
**   events[]       time, event, key_id, outcome, and what the service said; oldest first
**   regeneration   while units of an older DEK epoch are sealed anew: from, to,
**                  started, done, all
**   regenerated    when the last regeneration ended
**   origin         of a restored database or a copy: kind, uuid, time
**   backup         in a backup: time
**   secondary      in a secondary: of, created, synced
**   secondaries[]  of a primary: path, created, synced; temp: what its name ended in while it was made
**
** Times are Unix times, 0 for never or unknown. The current protector is the
** last wrap of the current epoch.
**
** What must hold: after tde_keydoc_parse, every field named above has its type
** and bounds, so the rest of the file reads without checking; the document is
** read before its MAC can be verified, so it may be anybody's work.
*/
#include "keydoc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "keydoc_int.h"

#define RESTORE_IT "restore the database from a backup"
#define FIELD_MAX 64

/* ---- checking a document ---- */

/* Where in the document we are, for messages: "deks[0].wraps[1]". */
typedef struct where {
  char path[FIELD_MAX];
  tde_status *st;
} where;

static tde_class bad(const where *w, const char *field, const char *what) {
  return tde_fail(w->st, TDE_CORRUPT, RESTORE_IT, "the key document is malformed: %s%s%s %s",
                  w->path, w->path[0] != 0 && field[0] != 0 ? "." : "", field, what);
}

static where inside(const where *w, const char *array, size_t i) {
  where in = {.st = w->st};
  snprintf(in.path, sizeof in.path, "%.30s%s%.16s[%u]", w->path, w->path[0] != 0 ? "." : "", array,
           (unsigned)(i & 0xffffu));
  return in;
}

/* A text of min..max printable ASCII characters. */
static tde_class check_text(const where *w, const tde_json *obj, const char *field, size_t min,
                            size_t max) {
  const char *text = tde_json_get_text(obj, field);
  if (text == NULL) return bad(w, field, "is missing or no text");
  size_t n = strlen(text);
  if (n < min || n > max) return bad(w, field, "has a wrong length");
  for (size_t i = 0; i < n; i++) {
    if (text[i] < ' ' || text[i] > '~') return bad(w, field, "holds an unprintable character");
  }
  return TDE_OK;
}

/* Identities are names that people give: any UTF-8. */
static tde_class check_name_or_null(const where *w, const tde_json *obj, const char *field,
                                    int null_allowed) {
  const tde_json *v = tde_json_get(obj, field);
  const char *text = tde_json_get_text(obj, field);
  if (null_allowed && (v == NULL || tde_json_is_null(v))) return TDE_OK;
  if (text == NULL || text[0] == 0 || strlen(text) > 255) {
    return bad(w, field, "is no text of 1 to 255 bytes");
  }
  return TDE_OK;
}

static tde_class check_time(const where *w, const tde_json *obj, const char *field) {
  return tde_json_get_int(obj, field, -1) >= 0 ? TDE_OK : bad(w, field, "is no Unix time");
}

static tde_class check_thumbprint(const where *w, const tde_json *obj) {
  uint8_t thumb[TDE_THUMB_BYTES];
  const char *text = tde_json_get_text(obj, "thumbprint");
  if (text != NULL && strlen(text) == 2 * TDE_THUMB_BYTES &&
      tde_unhex(text, thumb, TDE_THUMB_BYTES) == 0) {
    return TDE_OK;
  }
  return bad(w, "thumbprint", "is not 64 hexadecimal digits");
}

/* What a wrap and a key-list entry have in common. */
static tde_class check_key(const where *w, const tde_json *key) {
  if (!tde_json_is_object(key)) return bad(w, "", "is no object");
  tde_class rc = check_text(w, key, "key_id", 1, TDE_KEY_ID_MAX - 1);
  if (rc == TDE_OK) rc = check_text(w, key, "version", 1, sizeof((tde_key_info *)0)->version - 1);
  if (rc == TDE_OK) rc = check_text(w, key, "type", 1, sizeof((tde_key_info *)0)->type - 1);
  if (rc == TDE_OK) rc = check_thumbprint(w, key);
  if (rc == TDE_OK) rc = check_time(w, key, "created");
  if (rc == TDE_OK && strlen(tde_json_get_text(key, "key_id")) + 1 +
                              strlen(tde_json_get_text(key, "version")) >= TDE_KEY_ID_MAX) {
    rc = bad(w, "key_id", "is too long together with its version");
  }
  return rc;
}

static tde_class check_wrap(const where *w, const tde_json *wrap) {
  uint8_t wrapped[TDE_WRAPPED_MAX];
  tde_class rc = check_key(w, wrap);
  if (rc == TDE_OK) {
    rc = check_text(w, wrap, "algorithm", 1, sizeof((tde_key_info *)0)->algorithm - 1);
  }
  if (rc != TDE_OK) return rc;
  const char *text = tde_json_get_text(wrap, "wrapped");
  if (text == NULL || tde_unbase64url(text, strlen(text), wrapped, sizeof wrapped) < 1) {
    return bad(w, "wrapped", "is no base64url of 1 to 2048 bytes");
  }
  return TDE_OK;
}

static tde_class check_dek(const where *w, const tde_json *dek, tde_keydoc *doc) {
  if (!tde_json_is_object(dek)) return bad(w, "", "is no object");
  int64_t epoch = tde_json_get_int(dek, "epoch", 0);
  if (epoch < 1 || epoch > UINT32_MAX) return bad(w, "epoch", "is not 1 to 4294967295");
  int at = doc->nepochs;
  for (int i = 0; i < doc->nepochs; i++) {
    if (doc->epochs[i] == epoch) return bad(w, "epoch", "is there twice");
  }
  /* Insertion keeps them ascending. */
  for (; at > 0 && doc->epochs[at - 1] > epoch; at--) doc->epochs[at] = doc->epochs[at - 1];
  doc->epochs[at] = (uint32_t)epoch;
  doc->nepochs++;
  tde_class rc = check_time(w, dek, "created");
  if (rc != TDE_OK) return rc;
  const tde_json *wraps = tde_json_get(dek, "wraps");
  size_t n = tde_json_count(wraps);
  if (!tde_json_is_array(wraps) || n < 1 || n > TDE_KEYDOC_WRAPS_MAX) {
    return bad(w, "wraps", "is no array of 1 to 16 wrapped keys");
  }
  for (size_t i = 0; rc == TDE_OK && i < n; i++) {
    where in = inside(w, "wraps", i);
    rc = check_wrap(&in, tde_json_at(wraps, i));
  }
  return rc;
}

static tde_class check_deks(const where *w, tde_keydoc *doc) {
  const tde_json *deks = tde_json_get(doc->root, "deks");
  size_t n = tde_json_count(deks);
  tde_class rc = TDE_OK;
  if (!tde_json_is_array(deks) || n < 1 || n > TDE_EPOCHS_MAX) {
    return bad(w, "deks", "is no array of 1 to 16 epochs");
  }
  for (size_t i = 0; rc == TDE_OK && i < n; i++) {
    where in = inside(w, "deks", i);
    rc = check_dek(&in, tde_json_at(deks, i), doc);
  }
  if (rc != TDE_OK) return rc;
  int64_t epoch = tde_json_get_int(doc->root, "epoch", 0);
  for (int i = 0; i < doc->nepochs; i++) {
    if (doc->epochs[i] == epoch) {
      doc->epoch = (uint32_t)epoch;
      return TDE_OK;
    }
  }
  return bad(w, "epoch", "is not the number of an epoch in deks");
}

static tde_class check_list_entry(const where *w, const tde_json *key) {
  tde_class rc = check_key(w, key);
  if (rc == TDE_OK) rc = check_time(w, key, "added");
  if (rc == TDE_OK) rc = check_time(w, key, "first_used");
  if (rc == TDE_OK) rc = check_time(w, key, "last_used");
  return rc;
}

static tde_class check_event(const where *w, const tde_json *event) {
  if (!tde_json_is_object(event)) return bad(w, "", "is no object");
  tde_class rc = check_time(w, event, "time");
  if (rc == TDE_OK) rc = check_text(w, event, "event", 1, 63);
  if (rc == TDE_OK) rc = check_text(w, event, "key_id", 0, TDE_KEY_ID_MAX - 1);
  if (rc == TDE_OK) rc = check_text(w, event, "outcome", 0, 255);
  return rc;
}

/* An array that may be absent, each entry through check. */
static tde_class check_array(const where *w, const tde_json *root, const char *field,
                             tde_class (*check)(const where *, const tde_json *)) {
  const tde_json *arr = tde_json_get(root, field);
  tde_class rc = TDE_OK;
  if (arr == NULL) return TDE_OK;
  if (!tde_json_is_array(arr)) return bad(w, field, "is no array");
  for (size_t i = 0; rc == TDE_OK && i < tde_json_count(arr); i++) {
    where in = inside(w, field, i);
    rc = check(&in, tde_json_at(arr, i));
  }
  return rc;
}

/* Numbers that are not negative, by name. */
static const char *const regeneration_times[] = {"from", "to", "started", "done", "all", NULL};
static const char *const backup_times[] = {"time", NULL};
static const char *const secondary_times[] = {"created", "synced", NULL};

/* An object that may be absent, with these numbers. */
static tde_class check_object(const where *w, const tde_json *root, const char *field,
                              const char *const *numbers) {
  const tde_json *obj = tde_json_get(root, field);
  where in = {.st = w->st};
  tde_class rc = TDE_OK;
  if (obj == NULL) return TDE_OK;
  snprintf(in.path, sizeof in.path, "%.40s", field);
  if (!tde_json_is_object(obj)) return bad(w, field, "is no object");
  for (; *numbers != NULL && rc == TDE_OK; numbers++) rc = check_time(&in, obj, *numbers);
  return rc;
}

static tde_class check_secondary(const where *w, const tde_json *entry) {
  const char *path = tde_json_get_text(entry, "path");
  if (!tde_json_is_object(entry)) return bad(w, "", "is no object");
  if (path == NULL || path[0] == 0 || strlen(path) >= TDE_PATH_MAX) {
    return bad(w, "path", "is missing or too long");
  }
  tde_class rc = check_time(w, entry, "created");
  return rc == TDE_OK ? check_time(w, entry, "synced") : rc;
}

/* From which instance it inherits; may be absent. */
static tde_class check_instance(const where *w, const tde_json *instance) {
  where in = {.path = "instance", .st = w->st};
  if (instance == NULL) return TDE_OK;
  if (!tde_json_is_object(instance)) return bad(w, "instance", "is no object");
  if (!tde_instance_id_ok(tde_json_get_text(instance, "id"))) return bad(&in, "id", "is no id");
  return check_name_or_null(&in, instance, "identity", 1);
}

static tde_class check_rest(const where *w, const tde_json *root) {
  const tde_json *identity = tde_json_get(root, "identity");
  const tde_json *rotation = tde_json_get(root, "auto_rotation");
  tde_class rc = check_instance(w, tde_json_get(root, "instance"));
  if (rc == TDE_OK && identity != NULL && !tde_json_is_null(identity)) {
    where in = {.path = "identity", .st = w->st};
    if (!tde_json_is_object(identity)) return bad(w, "identity", "is neither null nor an object");
    rc = check_name_or_null(&in, identity, "name", 0);
    if (rc == TDE_OK) rc = check_name_or_null(&in, identity, "federated_client_id", 1);
  }
  if (rc == TDE_OK && rotation != NULL) {
    if (!tde_json_is_object(rotation) || !tde_json_is_bool(tde_json_get(rotation, "enabled"))) {
      rc = bad(w, "auto_rotation.enabled", "is missing or no boolean");
    }
  }
  if (rc == TDE_OK) rc = check_object(w, root, "regeneration", regeneration_times);
  if (rc == TDE_OK) rc = check_object(w, root, "backup", backup_times);
  if (rc == TDE_OK) rc = check_object(w, root, "origin", backup_times);
  if (rc == TDE_OK) rc = check_object(w, root, "secondary", secondary_times);
  if (rc == TDE_OK) rc = check_array(w, root, "secondaries", check_secondary);
  if (rc == TDE_OK) rc = check_array(w, root, "keys", check_list_entry);
  if (rc == TDE_OK) rc = check_array(w, root, "events", check_event);
  return rc;
}

static tde_class check_document(tde_keydoc *doc, tde_status *st) {
  where w = {.st = st};
  if (!tde_json_is_object(doc->root)) return bad(&w, "it", "is no object");
  int64_t version = tde_json_get_int(doc->root, "version", 0);
  if (version < 1) return bad(&w, "version", "is missing or no positive number");
  if (version > 1) {
    return tde_fail(st, TDE_NEWER_FORMAT, "use a newer version of this extension",
                    "the key document has version %lld; this build reads 1", (long long)version);
  }
  const char *mode = tde_json_get_text(doc->root, "mode");
  if (mode == NULL || (strcmp(mode, "inherit") != 0 && strcmp(mode, "database") != 0)) {
    return bad(&w, "mode", "is neither \"inherit\" nor \"database\"");
  }
  tde_class rc = check_deks(&w, doc);
  return rc == TDE_OK ? check_rest(&w, doc->root) : rc;
}

tde_class tde_keydoc_parse(const char *text, size_t n, tde_keydoc **out, tde_status *st) {
  *out = NULL;
  if (n > TDE_KEYDOC_TEXT_MAX) {
    return tde_fail(st, TDE_CORRUPT, RESTORE_IT, "the key document is %zu bytes long; at most %d are",
                    n, TDE_KEYDOC_TEXT_MAX);
  }
  tde_keydoc *doc = calloc(1, sizeof *doc);
  if (doc == NULL) return tde_nomem(st);
  tde_class rc = tde_json_parse(text, n, "key document", &doc->root, st);
  if (rc == TDE_OK) rc = check_document(doc, st);
  if (rc == TDE_OK) *out = doc;
  else tde_keydoc_free(doc);
  return rc;
}

void tde_keydoc_free(tde_keydoc *doc) {
  if (doc == NULL) return;
  tde_json_free(doc->root);
  free(doc);
}

/* ---- writing ---- */

tde_class tde_keydoc_text(const tde_keydoc *doc, char **text, size_t *n, tde_status *st) {
  tde_class rc = TDE_OK;
  *text = NULL;
  *n = 0;
  tde_json *copy = tde_json_copy(doc->root);
  if (copy == NULL) return tde_nomem(st);
  tde_json *events = tde_json_get(copy, "events");
  while (tde_json_count(events) > TDE_KEYDOC_EVENTS_MAX) tde_json_remove_at(events, 0);
  for (;;) {
    *text = tde_json_text(copy, n);
    if (*text == NULL) {
      rc = tde_nomem(st);
      break;
    }
    if (*n <= TDE_KEYDOC_TEXT_MAX) break;
    size_t too_long = *n;
    free(*text);
    *text = NULL;
    *n = 0;
    if (tde_json_count(events) == 0) {
      rc = tde_fail(st, TDE_UNSUPPORTED, "remove keys that no backup needs (tde_remove_key)",
                    "the key list is full: the key document would be %zu bytes long, and at most %d fit", too_long,
                    TDE_KEYDOC_TEXT_MAX);
      break;
    }
    tde_json_remove_at(events, 0);
  }
  tde_json_free(copy);
  return rc;
}

/* ---- unwrapping ---- */

tde_json *tde_keydoc_dek_of(const tde_keydoc *doc, uint32_t epoch) {
  const tde_json *deks = tde_json_get(doc->root, "deks");
  for (size_t i = 0; i < tde_json_count(deks); i++) {
    tde_json *dek = tde_json_at(deks, i);
    if (tde_json_get_int(dek, "epoch", 0) == (int64_t)epoch) return dek;
  }
  return NULL;
}

/* Copies a text that tde_keydoc_parse has found to fit. */
static void copy_text(char *out, size_t cap, const tde_json *obj, const char *field) {
  const char *text = tde_json_get_text(obj, field);
  snprintf(out, cap, "%s", text != NULL ? text : "");
}

void tde_keydoc_info_of(const tde_json *wrap, tde_key_info *info) {
  memset(info, 0, sizeof *info);
  copy_text(info->base_id, sizeof info->base_id, wrap, "key_id");
  copy_text(info->version, sizeof info->version, wrap, "version");
  copy_text(info->type, sizeof info->type, wrap, "type");
  copy_text(info->algorithm, sizeof info->algorithm, wrap, "algorithm");
  tde_unhex(tde_json_get_text(wrap, "thumbprint"), info->thumbprint, TDE_THUMB_BYTES);
  info->created = tde_json_get_int(wrap, "created", 0);
}

void tde_keydoc_operation(tde_op *op, tde_op_kind kind, const tde_instance *inst,
                          const tde_keydoc_asker *who, const uint8_t uuid[TDE_UUID_BYTES],
                          uint8_t *dek) {
  memset(op, 0, sizeof *op);
  op->kind = kind;
  op->instance = inst;
  op->identity = who->identity;
  op->federated_client_id = who->federated_client_id;
  op->patient = who->patient;
  op->dek = dek;
  memcpy(op->context, uuid, TDE_UUID_BYTES);
}

void tde_keydoc_asker_of(const tde_keydoc *doc, tde_keydoc_asker *out) {
  const tde_json *identity = tde_json_get(doc->root, "identity");
  out->identity = tde_json_get_text(identity, "name");
  out->federated_client_id = tde_json_get_text(identity, "federated_client_id");
  out->patient = 0;
  out->until = 0;
}

/* as: the id to ask under, NULL: the wrap's own. until: when all wraps must have been tried. */
static tde_class unwrap_one(const tde_keydoc_asker *who, const tde_instance *inst,
                            const tde_json *wrap, const char *as, int64_t until,
                            const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, tde_status *st) {
  char full[TDE_KEY_ID_MAX];
  tde_key_info info;
  tde_op op;
  tde_keydoc_operation(&op, TDE_OP_UNWRAP, inst, who, uuid, dek);
  op.until = until;
  tde_keydoc_info_of(wrap, &info);
  tde_key_full_id(&info, full);
  memcpy(op.algorithm, info.algorithm, sizeof op.algorithm);
  const char *text = tde_json_get_text(wrap, "wrapped");
  long n = tde_unbase64url(text, strlen(text), op.wrapped, sizeof op.wrapped);
  op.nwrapped = n > 0 ? (size_t)n : 0;
  return tde_provider_run(&op, as != NULL ? as : full, st);
}

/* True for failures that say nothing about the key: they may pass. */
static int may_pass(tde_class code) {
  switch (code) {
    case TDE_NOMEM:
    case TDE_IO:
    case TDE_BUSY:
    case TDE_RANDOM:
    case TDE_CRYPTO: return 1;
    default: return tde_class_is_outage(code);
  }
}

tde_class tde_keydoc_unwrap_as(const tde_keydoc *doc, const tde_instance *inst,
                               const tde_keydoc_asker *who, const char *as, uint32_t epoch,
                               const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, tde_status *st) {
  return tde_keydoc_unwrap_which(doc, inst, who, as, epoch, uuid, dek, NULL, st);
}

tde_class tde_keydoc_unwrap_which(const tde_keydoc *doc, const tde_instance *inst,
                                  const tde_keydoc_asker *who, const char *as, uint32_t epoch,
                                  const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, size_t *which,
                                  tde_status *st) {
  tde_status own, passing;
  if (st == NULL) st = &own;
  tde_status_clear(&passing);
  const tde_json *entry = tde_keydoc_dek_of(doc, epoch);
  if (entry == NULL) {
    tde_wipe(dek, TDE_KEY_BYTES);
    return tde_fail(st, TDE_CORRUPT, RESTORE_IT, "the key document names no DEK of epoch %u", epoch);
  }
  const tde_json *wraps = tde_json_get(entry, "wraps");
  /* A header may name sixteen hosts, none of which answers: they have the time of one. */
  int64_t until = who->until != 0 ? who->until : tde_op_deadline(inst);
  tde_class rc = TDE_CORRUPT;
  for (size_t i = tde_json_count(wraps); i > 0; i--) {
    rc = unwrap_one(who, inst, tde_json_at(wraps, i - 1), as, until, uuid, dek, st);
    if (rc == TDE_OK && which != NULL) *which = i - 1;
    if (rc == TDE_OK) return TDE_OK;
    if (may_pass(rc)) passing = *st;
  }
  tde_wipe(dek, TDE_KEY_BYTES);
  if (passing.code != TDE_OK) {
    *st = passing;
    return passing.code;
  }
  return rc;
}

/* ---- facts ---- */

uint32_t tde_keydoc_epoch(const tde_keydoc *doc) {
  return doc->epoch;
}

int tde_keydoc_epochs(const tde_keydoc *doc, uint32_t *out, int cap) {
  for (int i = 0; i < doc->nepochs && i < cap; i++) out[i] = doc->epochs[i];
  return doc->nepochs;
}

size_t tde_keydoc_wraps(const tde_keydoc *doc, uint32_t epoch) {
  return tde_json_count(tde_json_get(tde_keydoc_dek_of(doc, epoch), "wraps"));
}

int tde_keydoc_same_deks(const tde_keydoc *a, const tde_keydoc *b) {
  size_t na = 0, nb = 0;
  char *ta = tde_json_text(tde_json_get(a->root, "deks"), &na);
  char *tb = tde_json_text(tde_json_get(b->root, "deks"), &nb);
  int same = ta != NULL && tb != NULL && na == nb && memcmp(ta, tb, na) == 0;
  free(ta);
  free(tb);
  return same && a->epoch == b->epoch;
}

tde_class tde_keydoc_protector(const tde_keydoc *doc, tde_key_info *info, tde_status *st) {
  const tde_json *wraps = tde_json_get(tde_keydoc_dek_of(doc, doc->epoch), "wraps");
  size_t n = tde_json_count(wraps);
  if (n == 0) return tde_fail(st, TDE_INTERNAL, NULL, "a key document without a protector");
  tde_keydoc_info_of(tde_json_at(wraps, n - 1), info);
  info->enabled = 1;
  return TDE_OK;
}

const char *tde_keydoc_mode(const tde_keydoc *doc) {
  return tde_json_get_text(doc->root, "mode");
}

const char *tde_keydoc_inherits_from(const tde_keydoc *doc) {
  if (strcmp(tde_keydoc_mode(doc), "inherit") != 0) return NULL;
  return tde_json_get_text(tde_json_get(doc->root, "instance"), "id");
}

int tde_keydoc_has_own_identity(const tde_keydoc *doc) {
  const tde_json *from = tde_json_get(doc->root, "instance");
  tde_keydoc_asker who;
  tde_keydoc_asker_of(doc, &who);
  return tde_keydoc_inherits_from(doc) == NULL || who.federated_client_id != NULL ||
         !tde_same_text(who.identity, tde_json_get_text(from, "identity"));
}

const tde_json *tde_keydoc_json(const tde_keydoc *doc) {
  return doc->root;
}

int tde_keydoc_regenerating(const tde_keydoc *doc) {
  return tde_json_get(doc->root, "regeneration") != NULL;
}

int tde_keydoc_is_secondary(const tde_keydoc *doc) {
  return tde_json_get(doc->root, "secondary") != NULL;
}

int tde_keydoc_is_backup(const tde_keydoc *doc) {
  return tde_json_get(doc->root, "backup") != NULL;
}

int tde_keydoc_auto_rotation(const tde_keydoc *doc, int64_t *checked) {
  const tde_json *rotation = tde_json_get(doc->root, "auto_rotation");
  int64_t at = tde_json_get_int(rotation, "checked", 0);
  *checked = at > 0 ? at : 0;
  return tde_json_get_bool(rotation, "enabled", 0);
}

int tde_keydoc_needed(const tde_keydoc *doc, tde_key_info *out, int cap) {
  const tde_json *deks = tde_json_get(doc->root, "deks");
  int n = 0;
  for (size_t i = 0; i < tde_json_count(deks); i++) {
    const tde_json *wraps = tde_json_get(tde_json_at(deks, i), "wraps");
    tde_key_info info;
    int known = 0;
    tde_keydoc_info_of(tde_json_at(wraps, tde_json_count(wraps) - 1), &info);
    for (int k = 0; k < n && k < cap; k++) {
      known |= memcmp(out[k].thumbprint, info.thumbprint, TDE_THUMB_BYTES) == 0;
    }
    if (!known && n < cap) out[n++] = info;
  }
  return n;
}

int tde_keydoc_wrap_info(const tde_keydoc *doc, uint32_t epoch, tde_key_info *out) {
  const tde_json *wraps = tde_json_get(tde_keydoc_dek_of(doc, epoch), "wraps");
  size_t n = tde_json_count(wraps);
  if (n == 0) return 0;
  tde_keydoc_info_of(tde_json_at(wraps, n - 1), out);
  return 1;
}

int tde_key_named(const tde_key_info *info, const char *key) {
  char full[TDE_KEY_ID_MAX], hex[2 * TDE_THUMB_BYTES + 1];
  size_t n = strlen(key);
  tde_hex(info->thumbprint, TDE_THUMB_BYTES, hex);
  if (n >= 2 * TDE_THUMB_SHOWN && n <= 2 * TDE_THUMB_BYTES && strncasecmp(key, hex, n) == 0) {
    return 1;
  }
  tde_key_full_id(info, full);
  return tde_key_ids_match(key, full);
}
