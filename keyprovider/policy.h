/*
** policy.h: how long an instance lets a DEK be used without its key service.
**
** Part of instance.json, "policy", all of it optional, in whole seconds; SQL.md has the members
** (tde_instance_set_policy), policy.c their defaults and bounds.
** A denial is believed after one repetition, so a revoked key is refused within
** the check interval and two seconds.
*/
#ifndef TDE_POLICY_H
#define TDE_POLICY_H

#include <stdint.h>

#include "json.h"

typedef struct tde_policy {
  int64_t check_s;    /* between checks of a database's protector */
  int64_t grace_s;    /* how long an outage is waited out */
  int64_t heal_s;     /* how long a denied key may come back by itself */
  int64_t rotation_s; /* between looks for a new version of a protector with auto-rotation */
} tde_policy;

/* Names, defaults and bounds, for whoever shows or changes a policy. */
typedef struct tde_policy_item {
  const char *name;
  int64_t def, min, max;
  size_t at; /* offset in tde_policy */
} tde_policy_item;
extern const tde_policy_item tde_policy_items[];
extern const int tde_policy_nitems;

void tde_policy_defaults(tde_policy *out);
/* Reads root's "policy" over the defaults. TDE_MISCONFIGURED names the member. */
tde_class tde_policy_read(const tde_json *root, const char *file, tde_policy *out, tde_status *st);

#endif
