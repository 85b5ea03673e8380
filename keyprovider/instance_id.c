/*
** instance_id.c: ids of instances; see instance_id.h.
**
** Where there is a service-managed key the id comes from it, not from chance: so it is the same
** after somebody has put an instance.json in place that lacks it, in copies of a directory that
** were made before there were ids, and where the file cannot be changed.
*/
#include "instance_id.h"

#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../ext/base/limits.h"

int tde_instance_id_ok(const char *id) {
  static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
  size_t n = id != NULL ? strlen(id) : 0;
  return n > 0 && n < TDE_INSTANCE_ID_MAX && strspn(id, allowed) == n;
}

/* RFC 9562: version 4 is by chance, 8 of a form of one's own. */
static void as_uuid(uint8_t *bytes, int version, char out[TDE_INSTANCE_ID_MAX]) {
  bytes[6] = (uint8_t)((bytes[6] & 0x0f) | version << 4);
  bytes[8] = (uint8_t)((bytes[8] & 0x3f) | 0x80);
  tde_uuid_text(bytes, out);
}

void tde_instance_id_of_smk(const char *version, char out[TDE_INSTANCE_ID_MAX]) {
  uint8_t hash[TDE_HASH_BYTES];
  char text[256] = "sqlite-tde instance ";
  size_t n = strlen(text), nversion = strlen(version);
  out[0] = 0;
  if (nversion == 0 || n + nversion >= sizeof text) return;
  memcpy(text + n, version, nversion + 1);
  if (tde_sha256(text, n + nversion, hash) == TDE_OK) as_uuid(hash, 8, out);
}

tde_class tde_instance_id_add(tde_json *root, tde_status *st) {
  const char *version = tde_json_get_text(tde_json_get(root, "service_managed_key"), "version");
  uint8_t bytes[TDE_UUID_BYTES];
  char id[TDE_INSTANCE_ID_MAX];
  if (tde_json_get(root, "id") != NULL) return TDE_OK;
  tde_instance_id_of_smk(version != NULL ? version : "", id);
  if (id[0] == 0) {
    tde_class rc = tde_random(bytes, sizeof bytes, st);
    if (rc != TDE_OK) return rc;
    as_uuid(bytes, 4, id);
  }
  return tde_json_set_text(root, "id", id) != 0 ? tde_nomem(st) : TDE_OK;
}
