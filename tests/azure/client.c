/*
** client.c: the product's key provider as a command, for a script that compares it
** with another client.
**
**   client INSTANCE-DIR KEY-ID get|latest|versions|wrap|unwrap [IDENTITY [ALGORITHM]]
**
** wrap and unwrap read the value as base64url from standard input. Prints JSON: the key's facts
** and the result, or {"error": class, ...} with exit status 1. It prints a DEK: it is for tests
** alone.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ext/base/bytes.h"
#include "ext/base/crypto.h"
#include "ext/base/secret.h"
#include "keyprovider/http.h"
#include "keyprovider/instance.h"
#include "keyprovider/json.h"

static tde_json *facts(const tde_key_info *info) {
  char full[TDE_KEY_ID_MAX], thumb[2 * TDE_THUMB_BYTES + 1];
  tde_json *j = tde_json_object();
  tde_key_full_id(info, full);
  tde_hex(info->thumbprint, TDE_THUMB_BYTES, thumb);
  tde_json_set_text(j, "id", full);
  tde_json_set_text(j, "version", info->version);
  tde_json_set_text(j, "type", info->type);
  tde_json_set_text(j, "algorithm", info->algorithm);
  tde_json_set_text(j, "thumbprint", thumb);
  tde_json_set_int(j, "created", info->created);
  tde_json_set_int(j, "not_before", info->not_before);
  tde_json_set_int(j, "expires", info->expires);
  tde_json_set_bool(j, "enabled", info->enabled);
  return j;
}

static int read_value(uint8_t *out, size_t cap, size_t *n) {
  char text[8192];
  size_t len = fread(text, 1, sizeof text, stdin);
  while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r')) len--;
  long got = tde_unbase64url(text, len, out, cap);
  *n = got > 0 ? (size_t)got : 0;
  return got > 0;
}

static tde_json *result(const tde_op *op) {
  char text[4 * ((TDE_WRAPPED_MAX + 2) / 3) + 1];
  tde_json *j = facts(&op->info);
  if (op->kind == TDE_OP_VERSIONS) {
    tde_json *list = tde_json_array();
    for (size_t i = 0; i < op->nversions; i++) tde_json_append(list, facts(&op->versions[i]));
    tde_json_set_json(j, "versions", list);
  } else if (op->kind == TDE_OP_WRAP) {
    tde_base64url(op->wrapped, op->nwrapped, text);
    tde_json_set_text(j, "value", text);
  } else if (op->kind == TDE_OP_UNWRAP) {
    tde_base64url(op->dek, TDE_KEY_BYTES, text);
    tde_json_set_text(j, "value", text);
  }
  return j;
}

static tde_json *failure(const tde_status *st) {
  tde_json *j = tde_json_object();
  tde_json_set_text(j, "error", tde_class_name(st->code));
  tde_json_set_int(j, "http_status", st->http_status);
  tde_json_set_text(j, "message", st->message);
  tde_json_set_text(j, "remedy", st->remedy);
  return j;
}

static int kind_of(const char *name) {
  static const char *const names[] = {"get", "wrap", "unwrap", "latest", "versions"};
  for (int i = 0; i <= TDE_OP_VERSIONS; i++) {
    if (strcmp(name, names[i]) == 0) return i;
  }
  return -1;
}

int main(int argc, char **argv) {
  tde_op op;
  tde_status st;
  memset(&op, 0, sizeof op);
  tde_status_clear(&st);
  if (argc < 4 || kind_of(argv[3]) < 0 || tde_crypto_init(NULL) != TDE_OK) return 2;
  tde_http_install();
  op.kind = (tde_op_kind)kind_of(argv[3]);
  op.dek = tde_secret_alloc(TDE_KEY_BYTES);
  op.identity = argc > 4 ? argv[4] : NULL;
  if (argc > 5) snprintf(op.algorithm, sizeof op.algorithm, "%.30s", argv[5]);
  size_t n = TDE_KEY_BYTES;
  if (op.kind == TDE_OP_WRAP && !read_value(op.dek, TDE_KEY_BYTES, &n)) return 2;
  if (op.kind == TDE_OP_UNWRAP && !read_value(op.wrapped, sizeof op.wrapped, &op.nwrapped))
    return 2;
  if (n != TDE_KEY_BYTES) return 2;
  tde_class rc = tde_instance_open(argv[1], 0, &op.instance, &st);
  if (rc == TDE_OK) rc = tde_provider_run(&op, argv[2], &st);
  tde_json *j = rc == TDE_OK ? result(&op) : failure(&st);
  char *text = tde_json_text(j, NULL);
  printf("%s\n", text != NULL ? text : "{}");
  free(text);
  free(op.versions);
  tde_json_free(j);
  tde_secret_free(op.dek);
  tde_http_drop_pool();
  return rc != TDE_OK;
}
