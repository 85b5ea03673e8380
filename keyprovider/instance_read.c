/*
** instance_read.c: reads instance.json, and answers what it says.
**
** What must hold: every member that counts is checked before it is used; one that is wrong is an
** error that names it, never a fallback to something weaker.
*/
#include "instance_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"

#define ROOT_NAMES \
  "version id default_protector default_protector_key default_identity service_managed_key keys identities " \
  "policy audit http azure allow_loopback_http"

/* ---- reading ---- */

static tde_class bad_field(tde_status *st, const char *file, const char *field, const char *want) {
  return tde_fail(st, TDE_MISCONFIGURED, TDE_CORRECT_INSTANCE, "%s: \"%s\" %s", file, field, want);
}

/* "id", or what stands for it. */
static tde_class read_id(const tde_json *root, const char *file, tde_instance *inst, tde_status *st) {
  const char *id = tde_json_get_text(root, "id");
  const char *smk = strchr(inst->smk, '/');
  if (tde_json_get(root, "id") == NULL) {
    tde_instance_id_of_smk(smk != NULL ? smk + 1 : "", inst->id);
    return TDE_OK;
  }
  if (!tde_instance_id_ok(id)) {
    return bad_field(st, file, "id", "is no UUID, nor a text of 1 to 63 letters, digits, '-', '_', '.'");
  }
  memcpy(inst->id, id, strlen(id) + 1);
  return TDE_OK;
}

/* service_managed_key into inst->smk. */
static tde_class read_smk(const tde_json *root, const char *file, tde_instance *inst,
                          tde_status *st) {
  const tde_json *smk = tde_json_get(root, "service_managed_key");
  char base[TDE_KEY_ID_MAX], version[TDE_KEY_VERSION_MAX];
  if (smk == NULL) return TDE_OK;
  if (!tde_json_is_object(smk)) return bad_field(st, file, "service_managed_key", "is no object");
  const char *name = tde_json_get_text(smk, "name"), *ver = tde_json_get_text(smk, "version");
  if (name == NULL) return bad_field(st, file, "service_managed_key.name", "is no text");
  if (ver == NULL) return bad_field(st, file, "service_managed_key.version", "is no text");
  if (tde_json_get_int(smk, "created", -1) < 0) {
    return bad_field(st, file, "service_managed_key.created", "is no Unix time");
  }
  int n = snprintf(inst->smk, sizeof inst->smk, "local:%s/%s", name, ver);
  if (n < 0 || n >= TDE_KEY_ID_MAX ||
      tde_provider_local.parse_id(inst->smk, base, version, NULL) != TDE_OK) {
    return bad_field(st, file, "service_managed_key",
                     "does not name a local key (name: a-z 0-9 -, version: 40 hex digits)");
  }
  return TDE_OK;
}

static tde_class read_protector(const tde_json *root, const char *file, tde_instance *inst,
                                tde_status *st) {
  const char *id = tde_json_get_text(root, "default_protector");
  char base[TDE_KEY_ID_MAX], version[TDE_KEY_VERSION_MAX];
  if (id == NULL) return bad_field(st, file, "default_protector", "is missing or no text");
  if (strcmp(id, TDE_SERVICE_MANAGED) == 0) {
    if (inst->smk[0] == 0) {
      return bad_field(st, file, "service_managed_key", "is missing, and is the default protector");
    }
    inst->service_managed = 1;
    memcpy(inst->protector, inst->smk, sizeof inst->protector);
    return TDE_OK;
  }
  const tde_provider *p = tde_provider_find(id, NULL);
  if (p == NULL || p->parse_id(id, base, version, NULL) != TDE_OK) {
    return bad_field(st, file, "default_protector",
                     "is neither \"" TDE_SERVICE_MANAGED "\" nor a key id that this build takes");
  }
  memcpy(inst->protector, id, strlen(id) + 1);
  return TDE_OK;
}

/* "default_identity": who asks for the default protector. */
static tde_class read_identity(const tde_json *root, const char *file, tde_instance *inst,
                               tde_status *st) {
  const tde_json *v = tde_json_get(root, "default_identity");
  const char *name = tde_json_get_text(root, "default_identity");
  if (v == NULL || tde_json_is_null(v)) return TDE_OK;
  if (name == NULL || strlen(name) >= sizeof inst->identity ||
      tde_cloud_identity(&inst->cloud, name, NULL) == NULL) {
    return bad_field(st, file, "default_identity", "is not the name of one of \"identities\"");
  }
  memcpy(inst->identity, name, strlen(name) + 1);
  return TDE_OK;
}

/* A key version with its thumbprint, of the member field. */
static tde_class read_key(const tde_json *e, const char *file, const char *field, tde_key_info *out,
                          tde_status *st) {
  char base[TDE_KEY_ID_MAX], version[TDE_KEY_VERSION_MAX], full[TDE_KEY_ID_MAX];
  const char *id = tde_json_get_text(e, "key_id"), *ver = tde_json_get_text(e, "version");
  const char *type = tde_json_get_text(e, "type"), *thumb = tde_json_get_text(e, "thumbprint");
  int64_t created = tde_json_get_int(e, "created", 0);
  if (id == NULL || ver == NULL || ver[0] == 0 || type == NULL || thumb == NULL ||
      strlen(type) >= sizeof out->type || strlen(thumb) != 2 * TDE_THUMB_BYTES || created < 0 ||
      tde_unhex(thumb, out->thumbprint, TDE_THUMB_BYTES) != 0) {
    return bad_field(st, file, field, "lacks key_id, version, type or thumbprint of a key");
  }
  int n = snprintf(full, sizeof full, "%s/%s", id, ver);
  const tde_provider *p = n > 0 && n < TDE_KEY_ID_MAX ? tde_provider_find(full, NULL) : NULL;
  if (p == NULL || p->parse_id(full, base, version, NULL) != TDE_OK) {
    return bad_field(st, file, field, "holds a key id that this build does not take");
  }
  memcpy(out->base_id, base, sizeof base);
  memcpy(out->version, version, sizeof version);
  memcpy(out->type, type, strlen(type) + 1);
  out->created = created;
  out->enabled = 1;
  return TDE_OK;
}

/* "default_protector_key", of which another default_protector that was written by hand knows
** nothing. */
static tde_class read_protector_key(const tde_json *root, const char *file, tde_instance *inst,
                                    tde_status *st) {
  static const char field[] = "default_protector_key";
  const tde_json *e = tde_json_get(root, field);
  char full[TDE_KEY_ID_MAX];
  if (e == NULL) return TDE_OK;
  tde_class rc = read_key(e, file, field, &inst->protector_key, st);
  tde_key_full_id(&inst->protector_key, full);
  if (rc != TDE_OK || !tde_key_ids_match(full, inst->protector)) {
    memset(&inst->protector_key, 0, sizeof inst->protector_key);
  } else {
    inst->protector_set = tde_json_get_int(e, "set", 0);
  }
  return rc;
}

/* One of the list, with who asks for it. */
static tde_class read_listed(const tde_json *e, const char *file, listed_key *out, tde_status *st) {
  const tde_json *v = tde_json_get(e, "identity");
  const char *name = tde_json_get_text(e, "identity");
  tde_class rc = read_key(e, file, "keys", &out->info, st);
  if (rc != TDE_OK || v == NULL || tde_json_is_null(v)) return rc;
  if (name == NULL || strlen(name) >= sizeof out->identity) {
    return bad_field(st, file, "keys", "holds an \"identity\" that is no identity's name");
  }
  memcpy(out->identity, name, strlen(name) + 1);
  return TDE_OK;
}

static tde_class read_keys(const tde_json *root, const char *file, tde_instance *inst,
                           tde_status *st) {
  const tde_json *keys = tde_json_get(root, "keys");
  size_t n = tde_json_count(keys);
  tde_class rc = TDE_OK;
  if (keys == NULL) return TDE_OK;
  if (!tde_json_is_array(keys) || n > TDE_INSTANCE_KEYS_MAX) {
    return bad_field(st, file, "keys", "is no array of at most 100 keys");
  }
  inst->keys = calloc(n > 0 ? n : 1, sizeof *inst->keys);
  if (inst->keys == NULL) return tde_nomem(st);
  for (size_t i = 0; i < n && rc == TDE_OK; i++) {
    rc = read_listed(tde_json_at(keys, i), file, &inst->keys[i], st);
    if (rc == TDE_OK) inst->nkeys++;
  }
  return rc;
}

tde_class tde_instance_read(const tde_json *root, const char *file, tde_instance *inst,
                           tde_status *st) {
  if (!tde_json_is_object(root)) {
    return tde_fail(st, TDE_MISCONFIGURED, TDE_CORRECT_INSTANCE, "%s holds no JSON object", file);
  }
  int64_t version = tde_json_get_int(root, "version", 0);
  if (version < 1) return bad_field(st, file, "version", "is missing or no positive number");
  if (version > 1) {
    return tde_fail(st, TDE_MISCONFIGURED, "use the version of this extension that wrote it",
                    "%s: \"version\" is %lld; this build reads 1", file, (long long)version);
  }
  tde_class rc = read_smk(root, file, inst, st);
  if (rc == TDE_OK) rc = read_id(root, file, inst, st);
  if (rc == TDE_OK) rc = tde_cloud_read(root, file, &inst->cloud, st);
  if (rc == TDE_OK) rc = tde_policy_read(root, file, &inst->policy, st);
  if (rc == TDE_OK) rc = tde_audit_read(root, file, &inst->audit, st);
  if (rc == TDE_OK) rc = read_identity(root, file, inst, st);
  if (rc == TDE_OK) rc = read_keys(root, file, inst, st);
  if (rc == TDE_OK) rc = read_protector(root, file, inst, st);
  return rc == TDE_OK ? read_protector_key(root, file, inst, st) : rc;
}

/* Members that do not exist are misspelt ones, or of a newer version: databases must not hang
** on that, but somebody is to see it. */
static void note_unknown(const tde_json *obj, const char *where, const char *names,
                         const char *file, tde_json *list) {
  char line[200];
  for (size_t i = 0; i < tde_json_members(obj); i++) {
    const char *name = tde_json_member_name(obj, i);
    if (tde_is_one_of(name, names)) continue;
    snprintf(line, sizeof line, "%.100s%s%.90s", where, where[0] != 0 ? "." : "", name);
    tde_clean_line(line);
    tde_log(TDE_LOG_WARNING, "%s: \"%s\" is not known and is passed over", file, line);
    (void)tde_json_append_text(list, line); /* the warning is out */
  }
}

/* "azure", whose domains of vaults may be objects. */
static void note_azure(const tde_json *azure, const char *file, tde_json *list) {
  const tde_json *suffixes = tde_json_get(azure, "vault_suffixes");
  note_unknown(azure, "azure", TDE_AZURE_NAMES, file, list);
  for (size_t i = 0; i < tde_json_count(suffixes); i++) {
    note_unknown(tde_json_at(suffixes, i), "azure.vault_suffixes", TDE_SUFFIX_NAMES, file, list);
  }
}

void tde_instance_find_unknown(const tde_json *root, const char *file, tde_instance *inst) {
  const tde_json *ids = tde_json_get(root, "identities");
  char policy[256] = TDE_POLICY_OTHER_NAMES, where[100];
  for (int i = 0; i < tde_policy_nitems; i++) {
    size_t n = strlen(policy);
    snprintf(policy + n, sizeof policy - n, " %s", tde_policy_items[i].name);
  }
  inst->unknown = tde_json_array();
  note_unknown(root, "", ROOT_NAMES, file, inst->unknown);
  note_unknown(tde_json_get(root, "http"), "http", TDE_HTTP_NAMES, file, inst->unknown);
  note_azure(tde_json_get(root, "azure"), file, inst->unknown);
  note_unknown(tde_json_get(root, "audit"), "audit", TDE_AUDIT_NAMES, file, inst->unknown);
  note_unknown(tde_json_get(root, "policy"), "policy", policy, file, inst->unknown);
  for (size_t i = 0; i < tde_json_members(ids); i++) {
    const char *name = tde_json_member_name(ids, i);
    snprintf(where, sizeof where, "identities.%.63s", name);
    note_unknown(tde_json_get(ids, name), where, TDE_IDENTITY_NAMES, file, inst->unknown);
  }
}

void tde_instance_free(tde_instance *inst) {
  if (inst == NULL) return;
  tde_json_free(inst->unknown);
  tde_cloud_free(&inst->cloud);
  free(inst->keys);
  free(inst->dir);
  free(inst);
}

tde_class tde_instance_parse(const char *text, size_t n, const char *file, tde_json **root,
                            tde_status *st) {
  tde_status inner;
  tde_status_clear(&inner);
  tde_class rc = tde_json_parse(text, n, "file", root, &inner);
  if (rc == TDE_OK) return TDE_OK;
  if (rc != TDE_CORRUPT) return tde_nomem(st);
  return tde_fail(st, TDE_MISCONFIGURED, TDE_CORRECT_INSTANCE, "%s: %s", file, inner.message);
}

/* ---- what it says ---- */

const char *tde_instance_dir(const tde_instance *inst) {
  return inst->dir;
}

const char *tde_instance_id(const tde_instance *inst) {
  return inst->id;
}

const tde_cloud *tde_instance_cloud(const tde_instance *inst) {
  return &inst->cloud;
}

const tde_policy *tde_instance_policy(const tde_instance *inst) {
  return &inst->policy;
}

const tde_audit *tde_instance_audit(const tde_instance *inst) {
  return &inst->audit;
}

const tde_json *tde_instance_unknown(const tde_instance *inst) {
  return inst->unknown;
}

const char *tde_instance_default_identity(const tde_instance *inst) {
  return inst->identity[0] != 0 ? inst->identity : NULL;
}

const tde_identity *tde_instance_identity_for(const tde_instance *inst, const char *name, const char *key_id) {
  const tde_provider *p = tde_provider_find(key_id, NULL);
  return p != NULL ? tde_cloud_asker(tde_instance_cloud(inst), name, p, key_id) : NULL;
}

const char *tde_instance_asker(const tde_instance *inst, const char *key_id) {
  const tde_identity *id = tde_instance_identity_for(inst, tde_instance_default_identity(inst), key_id);
  return id != NULL ? id->name : NULL;
}

int tde_instance_nkeys(const tde_instance *inst) {
  return inst->nkeys;
}

const tde_key_info *tde_instance_key(const tde_instance *inst, int i) {
  return &inst->keys[i].info;
}

const char *tde_instance_key_identity(const tde_instance *inst, int i) {
  return inst->keys[i].identity[0] != 0 ? inst->keys[i].identity : NULL;
}

tde_class tde_instance_may_protect(const tde_instance *inst, const char *key_id, tde_status *st) {
  size_t nbase = strcspn(inst->smk, "/");
  int by_word = strcmp(key_id, TDE_SERVICE_MANAGED) == 0;
  int is_smk = by_word || (nbase > 0 && strncmp(key_id, inst->smk, nbase) == 0 &&
                           (key_id[nbase] == 0 || key_id[nbase] == '/'));
  if (is_smk && !inst->service_managed) {
    return tde_fail(st, TDE_MISUSE,
                    "name a key of your own, or let the instance use the service-managed key "
                    "(tde_instance_set_protector('service-managed'))",
                    "the instance's protector is a customer's key: a single database cannot be put "
                    "under the service-managed one");
  }
  if (!by_word) return TDE_OK;
  return tde_fail(st, TDE_MISUSE,
                  "tde_revert() puts an encrypted database under it; a new one is so without a protector",
                  "'" TDE_SERVICE_MANAGED "' is no key id, but the instance's default protector now");
}

const char *tde_instance_smk(const tde_instance *inst) {
  return inst->smk;
}

int tde_instance_is_service_managed(const tde_instance *inst) {
  return inst->service_managed;
}

const char *tde_instance_key_at(const tde_instance *inst, size_t i) {
  if (i == 0) return inst->protector;
  i -= 1;
  if (inst->smk[0] != 0 && i-- == 0) return inst->smk;
  return i < (size_t)inst->nkeys ? inst->keys[i].info.base_id : NULL;
}

const char *tde_instance_protector(const tde_instance *inst) {
  return inst->protector;
}

int tde_instance_protector_set(const tde_instance *inst, tde_key_info *out, int64_t *when) {
  *out = inst->protector_key;
  *when = inst->protector_set;
  return out->base_id[0] != 0 && *when > 0;
}

int tde_instance_protector_info(const tde_instance *inst, tde_key_info *out) {
  int remote = 1;
  *out = inst->protector_key;
  if (tde_key_id_parse(inst->protector, &remote, NULL) == TDE_OK && !remote) {
    if (tde_provider_get(inst, inst->protector, NULL, NULL, out, NULL) != TDE_OK) return 0;
  }
  return out->base_id[0] != 0;
}
