/*
** policy.c: reads an instance's policy; see policy.h.
**
** What must hold: a value that is out of bounds is an error that names it, never
** replaced by a bound: a grace of "30d" that silently became a day would lock
** databases up.
*/
#include "policy.h"

#include "cloud.h"

const tde_policy_item tde_policy_items[] = {
    {"check_interval_s", 300, 1, 600, offsetof(tde_policy, check_s)},
    {"outage_grace_s", 86400, 0, 2592000, offsetof(tde_policy, grace_s)},
    {"heal_window_s", 1800, 0, 2592000, offsetof(tde_policy, heal_s)},
    {"rotation_poll_s", 21600, 1, 86400, offsetof(tde_policy, rotation_s)},
};
const int tde_policy_nitems = sizeof tde_policy_items / sizeof tde_policy_items[0];

static int64_t *value_of(tde_policy *p, const tde_policy_item *item) {
  return (int64_t *)(void *)((char *)p + item->at);
}

void tde_policy_defaults(tde_policy *out) {
  for (int i = 0; i < tde_policy_nitems; i++) {
    *value_of(out, &tde_policy_items[i]) = tde_policy_items[i].def;
  }
}

tde_class tde_policy_read(const tde_json *root, const char *file, tde_policy *out,
                          tde_status *st) {
  const tde_json *policy = tde_json_get(root, "policy");
  tde_policy_defaults(out);
  if (policy == NULL) return TDE_OK; /* of another type: cloud.c says so */
  for (int i = 0; i < tde_policy_nitems; i++) {
    const tde_policy_item *item = &tde_policy_items[i];
    const tde_json *v = tde_json_get(policy, item->name);
    if (v == NULL) continue;
    int64_t n = tde_json_is_int(v) ? tde_json_get_int(policy, item->name, -1) : -1;
    if (n < item->min || n > item->max) {
      return tde_fail(st, TDE_MISCONFIGURED, TDE_CORRECT_INSTANCE,
                      "%s: \"policy.%s\" is no number of seconds from %lld to %lld", file,
                      item->name, (long long)item->min, (long long)item->max);
    }
    *value_of(out, item) = n;
  }
  return TDE_OK;
}
