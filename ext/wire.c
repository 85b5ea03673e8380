/*
** wire.c: joins vfs/ to keyprovider/. The only file that knows both.
**
** Each callback opens the instance that the URI names, and hands the key
** document over. Nothing is kept here.
*/
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../keyprovider/http.h"
#include "../keyprovider/keydoc.h"
#include "../vfs/keysource.h"
#include "base/secret.h"

/* A database is to be made: where the audit is required, it must be possible to tell. How it
** ended is told when its header is written: an event of the shim's. */
static tde_class announce(const tde_instance *inst, const tde_keydoc *kd, const char *path,
                          const uint8_t *uuid, tde_status *st) {
  tde_key_info info;
  tde_event e;
  tde_class c = tde_keydoc_protector(kd, &info, st);

  if (c) return c;
  tde_event_fill(&e, "create", uuid, path, info.base_id, info.version, NULL);
  return tde_event_announce(tde_instance_audit(inst), &e, st);
}

/* What the file system refuses is no answer of a key service: whoever watches for denials must not
** take it for a revocation. */
static tde_class no_denial(tde_status *st) {
  if (st) st->code = TDE_MISCONFIGURED;
  return TDE_MISCONFIGURED;
}

/* A missing instance is made for a new database, but not where it cannot have the key, or
** where that is none. */
static tde_class open_for_new(const tde_key_params *params, const tde_instance **inst,
                              tde_status *st) {
  const char *key = params->protector;
  int make = !key;
  tde_class c = TDE_OK;

  /* No id, but why it can not be had is for the instance to say. */
  if (key && strcmp(key, TDE_SERVICE_MANAGED) != 0) c = tde_key_id_parse(key, &make, st);
  if (c == TDE_OK) c = tde_instance_open(params->instance, make, inst, st);
  return c == TDE_DENIED ? no_denial(st) : c;
}

static tde_class wire_create(void *ctx, const tde_key_params *params,
                             const uint8_t uuid[TDE_UUID_BYTES], uint8_t *dek, char **doc,
                             size_t *ndoc, tde_status *st) {
  const tde_instance *inst;
  tde_keydoc *kd = NULL;
  tde_keydoc_asker who = {.identity = params->identity,
                          .federated_client_id = params->federated_client_id};
  tde_class c = open_for_new(params, &inst, st);

  *doc = NULL;

  (void)ctx;
  if (c == TDE_OK) {
    c = tde_keydoc_create(inst, params->protector, &who, uuid, dek, &kd, st);
  }
  if (c == TDE_OK) c = tde_keydoc_text(kd, doc, ndoc, st);
  if (c == TDE_OK) c = announce(inst, kd, params->path, uuid, st);
  if (c) {
    free(*doc);
    *doc = NULL;
    tde_wipe(dek, TDE_KEY_BYTES);
  }
  tde_keydoc_free(kd);
  return c;
}

/* Is the key a service's, which an instance that cannot be read says nothing about? */
static int is_remote(const tde_keydoc *kd) {
  const tde_provider *p;
  tde_key_info info;

  if (tde_keydoc_protector(kd, &info, NULL) != TDE_OK) return 0;
  p = tde_provider_find(info.base_id, NULL);
  return p && p->reply;
}

/* Opening a database never makes an instance: a missing one means that the key is
** elsewhere, and the error says so. Of a key service's key it is no denial: the directory
** may be back in a moment, as an identity's file may. */
static tde_class instance_of(const tde_key_params *params, const tde_keydoc *kd,
                             const tde_instance **inst, tde_status *st) {
  tde_class c = tde_instance_open(params->instance, 0, inst, st);

  return (c == TDE_DENIED || c == TDE_MISSING) && is_remote(kd) ? no_denial(st) : c;
}

/* Does the database name somebody whom this instance does not know? It may have come from another
** one, where to add somebody of that name is not all that can be done. */
static void explain_identity(const tde_keydoc *kd, const tde_instance *inst, tde_status *st) {
  tde_keydoc_asker who;

  tde_keydoc_asker_of(kd, &who);
  if (!st || st->code != TDE_MISCONFIGURED || !who.identity ||
      tde_cloud_identity(tde_instance_cloud(inst), who.identity, NULL)) {
    return;
  }
  (void)snprintf(st->remedy, sizeof(st->remedy),
                 "add the identity %.60s (tde_instance_set_identity), or open it with tde_key=KEY and "
                 "tde_identity=NAME in the URI, as another identity of the instance, then "
                 "tde_set_identity()",
                 who.identity);
}

static tde_class unwrap(const tde_key_params *params, const uint8_t uuid[TDE_UUID_BYTES],
                        const char *doc, size_t ndoc, uint32_t epoch, uint8_t *dek,
                        tde_status *st) {
  const tde_instance *inst;
  tde_keydoc_asker who;
  tde_keydoc *kd = NULL;
  tde_class c = tde_keydoc_parse(doc, ndoc, &kd, st);

  if (c == TDE_OK) c = instance_of(params, kd, &inst, st);
  if (c == TDE_OK) {
    tde_keydoc_asker_of(kd, &who);
    who.patient = !params->insist;
    if (params->until && *params->until == 0) *params->until = tde_op_deadline(inst);
    if (params->until) who.until = *params->until;
  }
  if (c == TDE_OK && params->as_key && (params->as_identity || params->as_federated)) {
    who.identity = params->as_identity ? params->as_identity : tde_instance_asker(inst, params->as_key);
    who.federated_client_id = params->as_federated;
  }
  if (c == TDE_OK) {
    c = tde_keydoc_unwrap_as(kd, inst, &who, params->as_key, epoch, uuid, dek, st);
    if (c && !params->as_key) explain_identity(kd, inst, st);
  }
  tde_keydoc_free(kd);
  return c;
}

/* What comes of it is every connection's to this database: others wait for it, too, and that one of them
** gives up would be no answer to them. */
static tde_class wire_unwrap(void *ctx, const tde_key_params *params,
                             const uint8_t uuid[TDE_UUID_BYTES], const char *doc, size_t ndoc,
                             uint32_t epoch, uint8_t *dek, tde_status *st) {
  const tde_waiter nobody = {NULL, NULL}, before = tde_http_waits(nobody);
  tde_class c = unwrap(params, uuid, doc, ndoc, epoch, dek, st);

  (void)ctx;
  (void)tde_http_waits(before);
  return c;
}

static tde_class wire_describe(void *ctx, const char *doc, size_t ndoc, tde_key_facts *out,
                               tde_status *st) {
  tde_keydoc *kd = NULL;
  tde_keydoc_asker who;
  tde_key_info info;
  const tde_provider *p;
  tde_class c = tde_keydoc_parse(doc, ndoc, &kd, st);

  (void)ctx;
  memset(out, 0, sizeof(*out));
  if (c == TDE_OK) c = tde_keydoc_protector(kd, &info, st);
  if (c == TDE_OK) {
    const char *mode = tde_keydoc_mode(kd);
    size_t n = strlen(mode);
    memcpy(out->key_id, info.base_id, sizeof(out->key_id));
    memcpy(out->key_version, info.version, sizeof(out->key_version));
    memcpy(out->mode, mode, n < sizeof(out->mode) ? n : sizeof(out->mode) - 1);
    memcpy(out->thumbprint, info.thumbprint, TDE_THUMB_BYTES);
    tde_keydoc_asker_of(kd, &who);
    if (who.identity) {
      (void)snprintf(out->identity, sizeof(out->identity), "%s", who.identity);
    }
    if (tde_keydoc_inherits_from(kd)) {
      (void)snprintf(out->inherits_from, sizeof(out->inherits_from), "%s",
                     tde_keydoc_inherits_from(kd));
    }
    out->own_identity = tde_keydoc_has_own_identity(kd);
    out->wrapped_at = info.created;
    if (who.federated_client_id) {
      (void)snprintf(out->federated_client_id, sizeof(out->federated_client_id), "%s",
                     who.federated_client_id);
    }
    p = tde_provider_find(info.base_id, NULL);
    out->remote = p && p->reply;
    out->regenerating = tde_keydoc_regenerating(kd);
    out->secondary = tde_keydoc_is_secondary(kd);
    out->backup = tde_keydoc_is_backup(kd);
    out->auto_rotation = tde_keydoc_auto_rotation(kd, &out->rotation_checked);
    out->epoch = tde_keydoc_epoch(kd);
    out->nepochs = tde_keydoc_epochs(kd, out->epochs, TDE_EPOCHS_MAX);
    out->alone = tde_keydoc_wraps(kd, out->epoch) == 1;
  }
  tde_keydoc_free(kd);
  return c;
}

/* The DEK of a running database must not hang on an instance file that is being edited, or is
** gone: what it said last holds, and the defaults where it never could be read. */
static void wire_policy(void *ctx, const tde_key_params *params, tde_key_policy *out) {
  const tde_instance *inst = tde_instance_now_or_last(params->instance);
  tde_policy defaults;
  const tde_policy *p = &defaults;

  (void)ctx;
  tde_policy_defaults(&defaults);
  if (inst) p = tde_instance_policy(inst);
  out->check_ms = p->check_s * 1000;
  out->grace_ms = p->grace_s * 1000;
  out->heal_ms = p->heal_s * 1000;
  out->rotation_ms = p->rotation_s * 1000;
}

static void wire_event(void *ctx, const tde_key_params *params, const tde_key_event *e) {
  const tde_instance *inst = tde_instance_now_or_last(params->instance);
  tde_event event;

  (void)ctx;
  tde_event_fill(&event, e->event, e->uuid, params->path, e->key_id, e->version, e->st);
  (void)tde_event_emit(inst ? tde_instance_audit(inst) : NULL, &event, NULL);
}

static void wire_stop(void *ctx) {
  (void)ctx;
  tde_http_stop();
}

static char *wire_resolve(void *ctx, const char *instance) {
  char *dir = NULL;

  (void)ctx;
  return tde_instance_resolve(instance, &dir, NULL) == TDE_OK ? dir : NULL;
}

const tde_key_source tde_wire = {NULL,        wire_create, wire_unwrap, wire_describe,
                                 wire_policy, wire_event,  wire_stop,   wire_resolve};
