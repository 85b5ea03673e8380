/*
** keyparams.c: copies of what an open said of its keys; see keysource.h.
*/
#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "keysource.h"

static int copy_one(char **to, const char *from) {
  if (!from) return 1;
  *to = strdup(from);
  return *to != NULL;
}

int tde_key_params_copy_way(tde_key_params *to, const tde_key_params *from) {
  return copy_one(&to->as_key, from->as_key) && copy_one(&to->as_identity, from->as_identity) &&
         copy_one(&to->as_federated, from->as_federated);
}

void tde_key_params_forget_way(tde_key_params *p) {
  free(p->as_key);
  free(p->as_identity);
  free(p->as_federated);
  p->as_key = p->as_identity = p->as_federated = NULL;
}

int tde_key_params_same_way(const tde_key_params *a, const tde_key_params *b) {
  return tde_same_text(a->as_key, b->as_key) && tde_same_text(a->as_identity, b->as_identity) &&
         tde_same_text(a->as_federated, b->as_federated);
}

int tde_key_params_copy(tde_key_params *to, const tde_key_params *from) {
  memset(to, 0, sizeof(*to));
  if (copy_one(&to->path, from->path) && copy_one(&to->vfs, from->vfs) &&
      copy_one(&to->instance, from->instance) && copy_one(&to->identity, from->identity) &&
      copy_one(&to->federated_client_id, from->federated_client_id) &&
      tde_key_params_copy_way(to, from)) {
    return 1;
  }
  tde_key_params_clear(to);
  return 0;
}

void tde_key_params_clear(tde_key_params *p) {
  free(p->path);
  free(p->vfs);
  free(p->instance);
  free(p->protector);
  free(p->identity);
  free(p->federated_client_id);
  free(p->as_key);
  free(p->as_identity);
  free(p->as_federated);
  memset(p, 0, sizeof(*p));
}
