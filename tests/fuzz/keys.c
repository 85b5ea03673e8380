/*
** keys.c: fuzz targets for what names and describes keys: the key document,
** JSON, key ids, the instance file, base64url and hexadecimal.
*/
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../ext/base/bytes.h"
#include "../../ext/base/crypto.h"
#include "../../ext/base/secret.h"
#include "../../keyprovider/json.h"
#include "../../keyprovider/keydoc.h"
#include "fuzz.h"

/* ---- an instance with one key ---- */

static const tde_instance *instance;
static tde_key_info protector;
static char wrapped[2 * TDE_WRAPPED_MAX];
static const uint8_t uuid[TDE_UUID_BYTES] = {1, 2, 3};
static const tde_keydoc_asker nobody = {.identity = NULL};
static uint8_t *dek, *dek_again;

static void make_instance(void) {
  char path[512], *text = NULL;
  size_t n;
  tde_status st;
  tde_keydoc *doc = NULL;
  tde_json *root = NULL;

  tde_status_clear(&st);
  FUZZ_ASSERT(tde_crypto_init(&st) == TDE_OK);
  (void)snprintf(path, sizeof(path), "%s/instance", fuzz_scratch());
  FUZZ_ASSERT(tde_instance_open(path, 1, &instance, &st) == TDE_OK);
  dek = tde_secret_alloc(TDE_KEY_BYTES);
  dek_again = tde_secret_alloc(TDE_KEY_BYTES);
  FUZZ_ASSERT(dek && dek_again);
  FUZZ_ASSERT(tde_keydoc_create(instance, NULL, &nobody, uuid, dek, &doc, &st) == TDE_OK);
  FUZZ_ASSERT(tde_keydoc_protector(doc, &protector, &st) == TDE_OK);
  FUZZ_ASSERT(tde_keydoc_text(doc, &text, &n, &st) == TDE_OK);
  FUZZ_ASSERT(tde_json_parse(text, n, "text", &root, &st) == TDE_OK);
  (void)snprintf(
      wrapped, sizeof(wrapped), "%s",
      tde_json_get_text(
          tde_json_at(tde_json_get(tde_json_at(tde_json_get(root, "deks"), 0), "wraps"), 0),
          "wrapped"));
  tde_json_free(root);
  free(text);
  tde_keydoc_free(doc);
}

/* ---- key document ----
** Input: options (1), the text. The key differs in each process, so the text
** has placeholders: 64 and 40 zeros stand for thumbprint and version of the
** key, @WRAPPED@ for a DEK that it wrapped. */
#define OPT_UNWRAP 1

typedef struct text_buf {
  char *p;
  size_t n, cap;
} text_buf;

static void put(text_buf *b, const char *p, size_t n) {
  if (b->n + n > b->cap) n = b->cap - b->n;
  memcpy(b->p + b->n, p, n);
  b->n += n;
}

static void expand(text_buf *b, const char *in, size_t n) {
  static const char zeros[] = "0000000000000000000000000000000000000000000000000000000000000000";
  char thumb[2 * TDE_THUMB_BYTES + 1];
  size_t i = 0;

  tde_hex(protector.thumbprint, TDE_THUMB_BYTES, thumb);
  while (i < n) {
    if (n - i >= 64 && memcmp(in + i, zeros, 64) == 0) {
      put(b, thumb, 64);
      i += 64;
    } else if (n - i >= 40 && memcmp(in + i, zeros, 40) == 0) {
      put(b, protector.version, strlen(protector.version));
      i += 40;
    } else if (n - i >= 9 && memcmp(in + i, "@WRAPPED@", 9) == 0) {
      put(b, wrapped, strlen(wrapped));
      i += 9;
    } else {
      put(b, in + i++, 1);
    }
  }
}

static void try_unwrap(const tde_keydoc *doc, uint32_t epoch) {
  tde_keydoc_asker who;
  tde_status st;
  tde_class c;

  tde_status_clear(&st);
  tde_keydoc_asker_of(doc, &who);
  memset(dek_again, 0xcc, TDE_KEY_BYTES);
  c = tde_keydoc_unwrap_as(doc, instance, &who, NULL, epoch, uuid, dek_again, &st);
  if (c == TDE_OK) {
    FUZZ_ASSERT(memcmp(dek, dek_again, TDE_KEY_BYTES) == 0);
  } else {
    FUZZ_ASSERT(tde_all_zero(dek_again, TDE_KEY_BYTES));
    FUZZ_ASSERT(st.message[0]);
  }
  fuzz_check_status(&st);
}

static void check_document(const tde_keydoc *doc, int options) {
  uint32_t epochs[TDE_EPOCHS_MAX], current = tde_keydoc_epoch(doc);
  int n = tde_keydoc_epochs(doc, epochs, TDE_EPOCHS_MAX), found = 0;
  const char *mode = tde_keydoc_mode(doc);
  tde_key_info info;
  tde_status st;

  FUZZ_ASSERT(n >= 1 && n <= TDE_EPOCHS_MAX);
  for (int i = 0; i < n; i++) {
    FUZZ_ASSERT(epochs[i] > 0 && (i == 0 || epochs[i] > epochs[i - 1]));
    found |= epochs[i] == current;
  }
  FUZZ_ASSERT(found);
  FUZZ_ASSERT(strcmp(mode, "inherit") == 0 || strcmp(mode, "database") == 0);
  tde_status_clear(&st);
  memset(&info, 0xcc, sizeof(info));
  FUZZ_ASSERT(tde_keydoc_protector(doc, &info, &st) == TDE_OK);
  FUZZ_ASSERT(strnlen(info.base_id, sizeof(info.base_id)) +
                  strnlen(info.version, sizeof(info.version)) + 1 <
              TDE_KEY_ID_MAX);
  FUZZ_ASSERT(strnlen(info.type, sizeof(info.type)) < sizeof(info.type));
  FUZZ_ASSERT(strnlen(info.algorithm, sizeof(info.algorithm)) < sizeof(info.algorithm));
  if (options & OPT_UNWRAP) {
    for (int i = 0; i < n && i < 2; i++) try_unwrap(doc, epochs[i]);
    try_unwrap(doc, 0xfffffffe);
  }
}

static void run_keydoc(const uint8_t *data, size_t size) {
  fuzz_reader r = {data, size};
  int options = fuzz_u8(&r);
  text_buf b = {malloc(40000), 0, 40000};
  char *exact, *text = NULL, *text2 = NULL;
  size_t n = 0, n2 = 0;
  tde_keydoc *doc = NULL, *doc2 = NULL;
  tde_status st;
  tde_class c;

  FUZZ_ASSERT(b.p != NULL);
  expand(&b, (const char *)r.p, r.n);
  exact = malloc(b.n ? b.n : 1); /* no byte behind it: an overrun shows */
  FUZZ_ASSERT(exact != NULL);
  memcpy(exact, b.p, b.n);
  tde_status_clear(&st);
  c = tde_keydoc_parse(exact, b.n, &doc, &st);
  fuzz_check_status(&st);
  FUZZ_ASSERT((c == TDE_OK) == (doc != NULL));
  if (c == TDE_OK) {
    check_document(doc, options);
    c = tde_keydoc_text(doc, &text, &n, &st);
    FUZZ_ASSERT(c == TDE_OK || c == TDE_UNSUPPORTED);
  } else {
    FUZZ_ASSERT((c == TDE_CORRUPT || c == TDE_NEWER_FORMAT) && st.message[0]);
    c = TDE_UNSUPPORTED;
  }
  if (c == TDE_OK) {
    FUZZ_ASSERT(n <= TDE_KEYDOC_TEXT_MAX && text[n] == 0 && strlen(text) == n);
    FUZZ_ASSERT(tde_keydoc_parse(text, n, &doc2, &st) == TDE_OK);
    check_document(doc2, 0);
    FUZZ_ASSERT(tde_keydoc_epoch(doc) == tde_keydoc_epoch(doc2));
    FUZZ_ASSERT(tde_keydoc_text(doc2, &text2, &n2, &st) == TDE_OK);
    FUZZ_ASSERT(n == n2 && memcmp(text, text2, n) == 0);
  }
  tde_keydoc_free(doc);
  tde_keydoc_free(doc2);
  free(text);
  free(text2);
  free(exact);
  free(b.p);
}

static const char *const keydoc_words[] = {
    "\"version\":1",
    "\"version\":",
    "\"mode\":\"inherit\"",
    "\"mode\":\"database\"",
    "\"epoch\":1",
    "\"epoch\":",
    "\"deks\":[",
    "\"wraps\":[",
    "\"key_id\":\"local:smk\"",
    "\"key_id\":",
    "\"type\":\"RSA-3072\"",
    "\"algorithm\":\"RSA-OAEP-256\"",
    "\"thumbprint\":",
    "\"wrapped\":",
    "\"@WRAPPED@\"",
    "\"created\":",
    "\"identity\":",
    "\"name\":",
    "\"federated_client_id\":",
    "\"auto_rotation\":{\"enabled\":true}",
    "\"keys\":[",
    "\"events\":[",
    "\"added\":",
    "\"first_used\":",
    "\"last_used\":",
    "\"time\":",
    "\"event\":",
    "\"outcome\":",
    "4294967295",
    "4294967296",
    "-1",
    "9223372036854775807",
    "null",
    "true",
    "false",
    "{}",
    "[]",
    "0000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "\\u0000",
    "\\ud800",
    NULL};
const fuzz_target fuzz_keydoc = {"keydoc", make_instance, run_keydoc, 4096, keydoc_words};

/* ---- JSON ---- */

static void walk(const tde_json *j, int depth) {
  static const char *const names[] = {"a", "b", "version", "", "\xc3\xa4"};
  size_t n = tde_json_count(j);

  /* The bound is on what contains. */
  FUZZ_ASSERT(depth <= TDE_JSON_DEPTH_MAX + !(tde_json_is_array(j) || tde_json_is_object(j)));
  for (size_t i = 0; i < n; i++) walk(tde_json_at(j, i), depth + 1);
  FUZZ_ASSERT(tde_json_at(j, n) == NULL);
  for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
    const tde_json *v = tde_json_get(j, names[i]);
    const char *text = tde_json_get_text(j, names[i]);
    FUZZ_ASSERT((text != NULL) == tde_json_is_text(v));
    FUZZ_ASSERT(tde_json_is_int(v) || tde_json_get_int(j, names[i], 7) == 7);
    FUZZ_ASSERT(tde_json_is_bool(v) || tde_json_get_bool(j, names[i], 9) == 9);
    if (v) walk(v, depth + 1);
  }
}

/* Parses what the product wrote itself: it must be the same again. */
static void check_same(const char *text, size_t n, const char *want, size_t nwant) {
  tde_json *j = NULL;
  char *again;
  size_t nagain;

  FUZZ_ASSERT(tde_json_parse(text, n, "text", &j, NULL) == TDE_OK);
  again = tde_json_text(j, &nagain);
  FUZZ_ASSERT(again && nagain == nwant && memcmp(again, want, nwant) == 0);
  free(again);
  tde_json_free(j);
}

static void run_json(const uint8_t *data, size_t size) {
  char *exact = malloc(size ? size : 1), *text, *pretty;
  size_t n, npretty;
  tde_json *j = NULL, *copy;
  tde_status st;
  tde_class c;

  FUZZ_ASSERT(exact != NULL);
  memcpy(exact, data, size);
  tde_status_clear(&st);
  c = tde_json_parse(exact, size, "text", &j, &st);
  free(exact);
  fuzz_check_status(&st);
  FUZZ_ASSERT((c == TDE_OK) == (j != NULL));
  if (c) {
    FUZZ_ASSERT(c == TDE_CORRUPT && st.message[0]);
    return;
  }
  walk(j, 1);
  text = tde_json_text(j, &n);
  pretty = tde_json_pretty(j, &npretty);
  copy = tde_json_copy(j);
  FUZZ_ASSERT(text && pretty && copy && strlen(text) == n && strlen(pretty) == npretty);
  check_same(text, n, text, n);
  check_same(pretty, npretty, text, n);
  if (tde_json_is_array(copy) && tde_json_count(copy)) {
    FUZZ_ASSERT(tde_json_remove_at(copy, 0) == 0);
    FUZZ_ASSERT(tde_json_count(copy) + 1 == tde_json_count(j));
  }
  tde_json_free(copy);
  tde_json_free(j);
  free(text);
  free(pretty);
}

static const char *const json_words[] = {"{\"a\":",
                                         "\"b\":[",
                                         "\"version\"",
                                         "null",
                                         "true",
                                         "false",
                                         "1e9",
                                         "-0.5",
                                         "1E400",
                                         "-0",
                                         "9223372036854775808",
                                         "\\u0000",
                                         "\\ud83d\\ude00",
                                         "\\udc00",
                                         "\\n",
                                         "\xc3\xa4",
                                         "\xff",
                                         "[[[[[[[[",
                                         "]]]]]]]]",
                                         "\xef\xbb\xbf",
                                         NULL};
const fuzz_target fuzz_json = {"json", NULL, run_json, 1024, json_words};

/* ---- key ids ---- */

static void run_keyid(const uint8_t *data, size_t size) {
  char *id = malloc(size + 1), full[TDE_KEY_ID_MAX], base[TDE_KEY_ID_MAX], version[128];
  tde_key_info info;
  const tde_provider *p;
  tde_status st;

  FUZZ_ASSERT(id != NULL);
  memcpy(id, data, size);
  id[size] = 0;
  tde_status_clear(&st);
  p = tde_provider_find(id, &st);
  FUZZ_ASSERT(p != NULL || st.code != TDE_OK);
  if (p) {
    memset(&info, 0, sizeof(info));
    if (p->parse_id(id, info.base_id, info.version, &st) == TDE_OK) {
      FUZZ_ASSERT(strnlen(info.base_id, sizeof(info.base_id)) < sizeof(info.base_id));
      FUZZ_ASSERT(strnlen(info.version, sizeof(info.version)) < sizeof(info.version));
      tde_key_full_id(&info, full);
      FUZZ_ASSERT(tde_provider_find(full, NULL) == p);
      FUZZ_ASSERT(p->parse_id(full, base, version, NULL) == TDE_OK);
      FUZZ_ASSERT(strcmp(base, info.base_id) == 0 && strcmp(version, info.version) == 0);
    } else {
      FUZZ_ASSERT(st.message[0]);
    }
  }
  fuzz_check_status(&st);
  free(id);
}

static const char *const keyid_words[] = {
    "local:",     "local:smk",    "/0123456789abcdef0123456789abcdef01234567",
    "https://",   "http://",      ".vault.azure.net",
    "/keys/",     "azure:",       "arn:aws:kms:",
    ":key/",      "projects/",    "/locations/",
    "/keyRings/", "/cryptoKeys/", "/cryptoKeyVersions/",
    "pkcs11:",    "object=",      ";token=",
    "%2F",        "..",           "//",
    "@",          ":443",         NULL};
const fuzz_target fuzz_keyid = {"keyid", NULL, run_keyid, 600, keyid_words};

/* ---- instance file ---- */

static char instance_dir[300];

static void setup_instance(void) {
  tde_status st;

  tde_status_clear(&st);
  FUZZ_ASSERT(tde_crypto_init(&st) == TDE_OK);
  (void)snprintf(instance_dir, sizeof(instance_dir), "%s/hostile", fuzz_scratch());
}

/* A new inode each time: within one clock tick a file of the same size written
** in place would look unchanged. */
static void write_instance(const uint8_t *data, size_t size) {
  char path[400], temp[400];
  int fd;

  (void)snprintf(path, sizeof(path), "%s/instance.json", instance_dir);
  (void)snprintf(temp, sizeof(temp), "%s/new", instance_dir);
  if (access(instance_dir, F_OK) != 0) {
    tde_status st;
    const tde_instance *made;
    tde_status_clear(&st);
    FUZZ_ASSERT(tde_instance_open(instance_dir, 1, &made, &st) == TDE_OK);
  }
  fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  FUZZ_ASSERT(fd >= 0 && write(fd, data, size) == (ssize_t)size && close(fd) == 0);
  FUZZ_ASSERT(rename(temp, path) == 0);
}

static void run_instance(const uint8_t *data, size_t size) {
  char base[TDE_KEY_ID_MAX], version[128];
  const tde_instance *inst = NULL, *again = NULL;
  const tde_provider *p;
  const char *id;
  tde_status st;
  tde_class c;

  write_instance(data, size);
  tde_status_clear(&st);
  c = tde_instance_open(instance_dir, 0, &inst, &st);
  fuzz_check_status(&st);
  FUZZ_ASSERT((c == TDE_OK) == (inst != NULL));
  if (c) {
    FUZZ_ASSERT(c == TDE_MISCONFIGURED && st.message[0] && st.remedy[0]);
    return;
  }
  FUZZ_ASSERT(tde_instance_open(instance_dir, 0, &again, &st) == TDE_OK && again == inst);
  FUZZ_ASSERT(strcmp(tde_instance_dir(inst), instance_dir) == 0);
  id = tde_instance_protector(inst);
  p = tde_provider_find(id, NULL);
  FUZZ_ASSERT(p && p->parse_id(id, base, version, NULL) == TDE_OK);
  if (tde_instance_is_service_managed(inst)) FUZZ_ASSERT(strcmp(id, tde_instance_smk(inst)) == 0);
  if (tde_instance_smk(inst)[0]) {
    FUZZ_ASSERT(tde_provider_local.parse_id(tde_instance_smk(inst), base, version, NULL) == TDE_OK);
  }
}

static const char *const instance_words[] = {
    "{\"version\":1,",
    "\"version\":2",
    "\"default_protector\":",
    "\"service-managed\"",
    "\"service_managed_key\":{",
    "\"name\":\"smk\"",
    "\"version\":\"0123456789abcdef0123456789abcdef01234567\"",
    "\"created\":0",
    "\"local:x\"",
    "null",
    "true",
    "-1",
    "\\u0000",
    NULL};
const fuzz_target fuzz_instance = {"instance", setup_instance, run_instance, 1024, instance_words};

/* ---- base64url and hexadecimal ---- */

static void check_base64(const char *text, size_t n, size_t cap) {
  uint8_t *out = malloc(cap ? cap : 1);
  char *back;
  long got;

  FUZZ_ASSERT(out != NULL);
  got = tde_unbase64url(text, n, out, cap);
  FUZZ_ASSERT(got >= -1 && got <= (long)cap);
  if (got >= 0) {
    /* Strict: each content has one text. */
    back = malloc(4 * (((size_t)got + 2) / 3) + 1);
    FUZZ_ASSERT(back != NULL);
    tde_base64url(out, (size_t)got, back);
    FUZZ_ASSERT(strlen(back) == n && memcmp(back, text, n) == 0);
    free(back);
  }
  free(out);
}

static void check_hex(const char *text, size_t digits) {
  size_t n = digits / 2;
  uint8_t *out = malloc(n ? n : 1);
  char *back = malloc(2 * n + 1);

  FUZZ_ASSERT(out && back);
  if (tde_unhex(text, out, n) == 0) {
    tde_hex(out, n, back);
    FUZZ_ASSERT(strlen(text) == 2 * n && strcasecmp(back, text) == 0);
  }
  free(out);
  free(back);
}

static void check_round_trip(const uint8_t *data, size_t size) {
  char *text = malloc(2 * size + 4);
  uint8_t *back = malloc(size ? size : 1);

  FUZZ_ASSERT(text && back);
  tde_hex(data, size, text);
  FUZZ_ASSERT(strlen(text) == 2 * size && tde_unhex(text, back, size) == 0);
  FUZZ_ASSERT(memcmp(back, data, size) == 0);
  tde_base64url(data, size, text);
  FUZZ_ASSERT(tde_unbase64url(text, strlen(text), back, size) == (long)size);
  FUZZ_ASSERT(memcmp(back, data, size) == 0);
  if (size) FUZZ_ASSERT(tde_unbase64url(text, strlen(text), back, size - 1) == -1);
  free(text);
  free(back);
}

static void run_text(const uint8_t *data, size_t size) {
  char *text = malloc(size + 1), *exact = malloc(size ? size : 1), line[128];
  size_t n;

  FUZZ_ASSERT(text && exact);
  memcpy(text, data, size);
  memcpy(exact, data, size);
  text[size] = 0;
  check_base64(exact, size, size / 4 * 3 + 3);
  check_base64(exact, size, size / 2);
  n = strlen(text);
  check_hex(text, n);
  check_hex(text, size);
  check_round_trip(data, size);
  (void)snprintf(line, sizeof(line), "%s", text);
  tde_clean_line(line);
  for (const char *p = line; *p; p++) FUZZ_ASSERT((uint8_t)*p >= ' ' && *p != 0x7f);
  free(text);
  free(exact);
}

const fuzz_target fuzz_text = {"text", NULL, run_text, 256, NULL};
