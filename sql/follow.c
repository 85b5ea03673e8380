/*
** follow.c: see follow.h.
*/
#include "follow.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"

static void protector_of(const tde_key_facts *facts, char full[TDE_KEY_ID_MAX]) {
  tde_key_info now;

  memcpy(now.base_id, facts->key_id, sizeof(now.base_id));
  memcpy(now.version, facts->key_version, sizeof(now.version));
  tde_key_full_id(&now, full);
}

/* The same key in another version than the instance found when its default was set? One that was
** wrapped later got a newer version on purpose, or at its creation. */
static int version_moved(const tde_key_facts *facts, const tde_instance *inst,
                         char target[TDE_KEY_ID_MAX]) {
  tde_key_info set;
  int64_t when;

  if (!tde_instance_protector_set(inst, &set, &when) || facts->wrapped_at > when) return 0;
  if (strcmp(set.version, facts->key_version) == 0) return 0;
  tde_key_full_id(&set, target);
  return 1;
}

static int identity_moved(const tde_key_facts *facts, const tde_instance *inst) {
  return !facts->own_identity &&
         !tde_same_text(facts->identity, tde_instance_default_identity(inst));
}

/* Does it differ from the instance's default? target: where it would go. */
static int differs(const tde_key_facts *facts, const tde_instance *inst,
                   char target[TDE_KEY_ID_MAX], int *same_key) {
  char full[TDE_KEY_ID_MAX];

  *same_key = 1;
  (void)snprintf(target, TDE_KEY_ID_MAX, "%s", tde_instance_protector(inst));
  if (!tde_provider_find(target, NULL)) return 0;
  protector_of(facts, full);
  *same_key = tde_key_ids_match(target, full);
  if (!*same_key) return 1;
  memcpy(target, full, sizeof(full));
  return version_moved(facts, inst, target) || identity_moved(facts, inst);
}

/* Has the instance this key's material in its own store? Names of local keys say nothing: every
** instance may have one of that name. */
static int in_store(const tde_key_facts *facts, const tde_instance *inst) {
  char full[TDE_KEY_ID_MAX];
  tde_key_info have;

  protector_of(facts, full);
  return tde_provider_get(inst, full, NULL, NULL, &have, NULL) == TDE_OK &&
         memcmp(have.thumbprint, facts->thumbprint, TDE_THUMB_BYTES) == 0;
}

static int in_list(const tde_key_facts *facts, const tde_instance *inst) {
  for (int i = 0; i < tde_instance_nkeys(inst); i++) {
    const tde_key_info *k = tde_instance_key(inst, i);
    if (memcmp(k->thumbprint, facts->thumbprint, TDE_THUMB_BYTES) == 0) return 1;
  }
  return 0;
}

/* Of a document that names no instance: is it this one's? */
static int may_adopt(const tde_key_facts *facts, const tde_instance *inst, int same_key) {
  if (in_list(facts, inst)) return 1;
  return facts->remote ? same_key : in_store(facts, inst);
}

tde_follow tde_follow_of(const tde_key_facts *facts, const tde_instance *inst,
                         char target[TDE_KEY_ID_MAX]) {
  const char *id = tde_instance_id(inst);
  int same_key, moved, mine;

  target[0] = 0;
  if (strcmp(facts->mode, "inherit") != 0 || facts->secondary || facts->backup) {
    return TDE_FOLLOW_NOTHING;
  }
  moved = differs(facts, inst, target, &same_key);
  if (facts->inherits_from[0]) {
    mine = strcmp(facts->inherits_from, id) == 0;
    if (!mine) return moved ? TDE_FOLLOW_OTHER : TDE_FOLLOW_NOTHING;
    return moved ? TDE_FOLLOW_MOVE : TDE_FOLLOW_NOTHING;
  }
  mine = may_adopt(facts, inst, same_key);
  if (moved) return mine ? TDE_FOLLOW_MOVE : TDE_FOLLOW_OTHER;
  return mine && id[0] ? TDE_FOLLOW_ADOPT : TDE_FOLLOW_NOTHING;
}

int tde_follow_too_soon(const tde_key_facts *facts, const tde_instance *inst) {
  int64_t now = (int64_t)time(NULL);

  /* A time in the future was made by a clock that was wrong. */
  return facts->wrapped_at <= now && now - facts->wrapped_at < tde_instance_policy(inst)->check_s;
}

void tde_follow_why_not(const tde_key_facts *facts, const tde_instance *inst, tde_status *st) {
  char remedy[320];

  (void)snprintf(remedy, sizeof(remedy),
                 "%s has it inherit from here, tde_set_protector(KEY) gives it a protector of its "
                 "own, tde_copy or tde_restore make one that inherits from here",
                 tde_instance_is_service_managed(inst) ? "tde_revert()"
                                                       : "tde_set_protector('inherit')");
  if (facts->inherits_from[0]) {
    tde_fail(st, TDE_MISCONFIGURED, remedy,
             "inherits from the instance %s, so it does not follow %.300s", facts->inherits_from,
             tde_instance_dir(inst));
  } else {
    tde_fail(st, TDE_MISCONFIGURED, remedy,
             "does not say from which instance it inherits, and its key is none of %.300s, so it "
             "does not follow that one",
             tde_instance_dir(inst));
  }
}

/* Databases that were told of lately, each with the instance as it was; one that was forgotten
** among many is told of again. */
#define TOLD 1024

void tde_follow_tell(const uint8_t uuid[TDE_UUID_BYTES], const char *path,
                     const tde_key_facts *facts, const tde_instance *inst) {
  static _Atomic uint64_t told[TOLD];
  uint64_t tag = tde_get64le(uuid) ^ (uint64_t)(uintptr_t)inst;
  tde_status st;

  if (atomic_exchange(&told[tde_get32le(uuid) % TOLD], tag) == tag) return;
  tde_status_clear(&st);
  tde_follow_why_not(facts, inst, &st);
  tde_log_status(TDE_LOG_WARNING, path, &st);
}
