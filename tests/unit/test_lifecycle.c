/*
** test_lifecycle.c: changes of key documents and instances, events and audit.
**
** What the SQL tests reach through a database is here at the functions themselves:
** what a change writes, what it refuses, and that a refusal leaves things as they
** were. The keys are local ones of instances below one temporary directory.
*/
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "ext/base/crypto.h"
#include "ext/base/log.h"
#include "ext/base/secret.h"
#include "keyprovider/events.h"
#include "keyprovider/files.h"
#include "keyprovider/instance.h"
#include "keyprovider/instance_edit.h"
#include "keyprovider/json.h"
#include "keyprovider/keydoc.h"
#include "keyprovider/local.h"
#include "tests/unit/keydoc.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

#define PATH_BYTES 512

static char root_dir[256];
static const uint8_t uuid[TDE_UUID_BYTES] = "0123456789abcde";
static const tde_keydoc_asker nobody = {.identity = NULL};

static void path_of(char out[PATH_BYTES], const char *name) {
  (void)snprintf(out, PATH_BYTES, "%s/%s", root_dir, name);
}

static const tde_instance *open_instance(const char *dir) {
  const tde_instance *inst = NULL;
  tde_status st;
  tde_status_clear(&st);
  if (!CHECK(tde_instance_open(dir, 1, &inst, &st) == TDE_OK)) {
    printf("no instance: %s\n", st.message);
    exit(1);
  }
  return inst;
}

/* An instance with two local keys beside the service-managed one. */
static const tde_instance *instance(char dir[PATH_BYTES]) {
  static int made;
  tde_key_info info;
  path_of(dir, "shared");
  if (made++ == 0) {
    (void)open_instance(dir);
    CHECK(tde_instance_new_key(dir, "a", &info, NULL) == TDE_OK);
    CHECK(tde_instance_new_key(dir, "b", &info, NULL) == TDE_OK);
  }
  return open_instance(dir);
}

/* A document whose DEK local:a wraps. */
static tde_keydoc *document(const tde_instance *inst, uint8_t *dek) {
  tde_keydoc *doc = NULL;
  tde_status st;
  tde_status_clear(&st);
  if (!CHECK(tde_keydoc_create(inst, "local:a", &nobody, uuid, dek, &doc, &st) == TDE_OK)) {
    printf("no document: %s\n", st.message);
    exit(1);
  }
  return doc;
}

static tde_class wrap_with(const tde_instance *inst, const char *key, uint8_t *dek, tde_op *wrap) {
  return tde_keydoc_wrap(inst, key, &nobody, uuid, dek, wrap, NULL);
}

/* What is written is read by the rules for what is read. NULL: it is not. */
static tde_keydoc *read_again(const tde_keydoc *doc) {
  tde_keydoc *again = NULL;
  char *text = NULL;
  size_t n = 0;
  if (tde_keydoc_text(doc, &text, &n, NULL) == TDE_OK) {
    (void)tde_keydoc_parse(text, n, &again, NULL);
  }
  free(text);
  return again;
}

static int parses(const tde_keydoc *doc) {
  tde_keydoc *again = read_again(doc);
  int ok = again != NULL;
  tde_keydoc_free(again);
  return ok;
}

/* Does it name n epochs when it is read, of which the first and last are these? */
static int has_epochs(const tde_keydoc *doc, int n, uint32_t first, uint32_t last) {
  uint32_t have[TDE_EPOCHS_MAX];
  tde_keydoc *again = read_again(doc);
  int ok = again != NULL && tde_keydoc_epochs(again, have, TDE_EPOCHS_MAX) == n &&
           have[0] == first && have[n - 1] == last && tde_keydoc_epoch(again) == last;
  tde_keydoc_free(again);
  return ok;
}

static const tde_json *list(const tde_keydoc *doc) {
  return tde_json_get(tde_keydoc_json(doc), "keys");
}

static int64_t entry_int(const tde_keydoc *doc, const char *id, const char *member) {
  for (size_t i = 0; i < tde_json_count(list(doc)); i++) {
    const tde_json *e = tde_json_at(list(doc), i);
    if (strcmp(tde_json_get_text(e, "key_id"), id) == 0) return tde_json_get_int(e, member, -1);
  }
  return -2;
}

static tde_key_info info_named(const char *id, const char *version) {
  tde_key_info info;
  memset(&info, 0, sizeof info);
  (void)snprintf(info.base_id, sizeof info.base_id, "%s", id);
  (void)snprintf(info.version, sizeof info.version, "%s", version);
  (void)snprintf(info.type, sizeof info.type, "RSA-3072");
  (void)snprintf(info.algorithm, sizeof info.algorithm, "RSA-OAEP-256");
  memset(info.thumbprint, version[0], sizeof info.thumbprint);
  return info;
}

#define V1 "1111111111111111111111111111111111111111"
#define V2 "2222222222222222222222222222222222222222"

/* ---- key documents ---- */

static void times_of_use(void) {
  char dir[PATH_BYTES];
  uint8_t dek[TDE_KEY_BYTES];
  tde_keydoc *doc = document(instance(dir), dek);
  tde_key_info a, b = info_named("local:b", V1);
  REQUIRE(tde_keydoc_protector(doc, &a, NULL) == TDE_OK);
  CHECK(entry_int(doc, "local:a", "last_used") == 0);
  CHECK(tde_keydoc_use_key(doc, &b, 100) == 0);
  CHECK(entry_int(doc, "local:a", "last_used") == 100);
  CHECK(entry_int(doc, "local:b", "first_used") == 100);
  CHECK(entry_int(doc, "local:b", "last_used") == 0);
  CHECK(tde_keydoc_use_key(doc, &a, 200) == 0);
  CHECK(entry_int(doc, "local:a", "last_used") == 0);
  CHECK(entry_int(doc, "local:b", "first_used") == 100);
  CHECK(entry_int(doc, "local:b", "last_used") == 200);
  CHECK(tde_json_count(list(doc)) == 2 && parses(doc));
  tde_keydoc_free(doc);
}

static void list_of_keys(void) {
  char dir[PATH_BYTES];
  uint8_t dek[TDE_KEY_BYTES];
  tde_keydoc *doc = document(instance(dir), dek), *other;
  tde_key_info one = info_named("local:x", V1), two = info_named("local:x", V2), a;
  tde_status st;
  REQUIRE(tde_keydoc_protector(doc, &a, NULL) == TDE_OK);
  CHECK(tde_keydoc_list_add(doc, &one, 7, &st) == TDE_OK);
  CHECK(tde_keydoc_list_add(doc, &two, 8, &st) == TDE_OK);
  CHECK(tde_keydoc_list_add(doc, &two, 9, &st) == TDE_MISUSE);
  CHECK(strstr(st.message, "local:x/" V2) != NULL && strstr(st.message, "added at 1970-01-01 00:00:08 UTC") != NULL);
  CHECK(tde_json_count(list(doc)) == 3 && parses(doc));
  /* Never used: becoming unused is not for it. */
  CHECK(tde_keydoc_use_key(doc, &a, 50) == 0 && entry_int(doc, "local:x", "last_used") == 0);

  other = document(instance(dir), dek);
  CHECK(tde_keydoc_list_add(other, &two, 3, &st) == TDE_OK);
  CHECK(tde_keydoc_merge_list(other, doc, 60) == 0);
  CHECK(tde_json_count(list(other)) == 3);
  CHECK(tde_json_get_int(tde_json_at(list(other), 1), "added", 0) == 3); /* its own stays */
  CHECK(tde_json_get_int(tde_json_at(list(other), 1), "last_used", -1) == 0); /* used nowhere */
  CHECK(tde_keydoc_use_key(doc, &two, 70) == 0 && tde_keydoc_merge_list(other, doc, 90) == 0);
  CHECK(tde_json_get_int(tde_json_at(list(other), 1), "first_used", 0) == 70);
  CHECK(tde_json_get_int(tde_json_at(list(other), 1), "last_used", 0) == 90); /* there, until now */
  CHECK(entry_int(other, "local:a", "last_used") == 0);
  CHECK(parses(other));
  tde_keydoc_free(other);

  CHECK(tde_keydoc_list_remove(doc, "local:a", &st) == TDE_MISUSE);
  CHECK(strstr(st.message, "in use") != NULL && strstr(st.remedy, "tde_set_protector") != NULL);
  CHECK(tde_keydoc_list_remove(doc, "local:gone", &st) == TDE_MISSING);
  CHECK(tde_json_count(list(doc)) == 3);
  CHECK(tde_keydoc_list_remove(doc, "local:x/" V1, &st) == TDE_OK);
  CHECK(tde_json_count(list(doc)) == 2);
  CHECK(tde_keydoc_list_add(doc, &one, 7, &st) == TDE_OK);
  CHECK(tde_keydoc_list_remove(doc, "local:x", &st) == TDE_OK); /* every version */
  CHECK(tde_json_count(list(doc)) == 1 && parses(doc));
  tde_keydoc_free(doc);
}

static void a_new_wrap_unwraps(void) {
  char dir[PATH_BYTES];
  const tde_instance *inst = instance(dir);
  uint8_t dek[TDE_KEY_BYTES], got[TDE_KEY_BYTES];
  tde_keydoc *doc = document(inst, dek);
  tde_op *wrap = calloc(1, sizeof *wrap);
  tde_key_info info, moved;
  REQUIRE(wrap_with(inst, "local:b", dek, wrap) == TDE_OK);
  CHECK(tde_keydoc_set_wrap(doc, 9, wrap, 5) != 0); /* no such epoch */
  CHECK(tde_keydoc_set_wrap(doc, 1, wrap, 5) == 0);
  REQUIRE(tde_keydoc_protector(doc, &info, NULL) == TDE_OK);
  CHECK(strcmp(info.base_id, "local:b") == 0 && parses(doc));
  CHECK(unwrap_plainly(doc, inst, 1, uuid, got, NULL) == TDE_OK);
  CHECK(memcmp(got, dek, sizeof dek) == 0);
  /* The same key under another name: the wrapped bytes and their time stay. */
  moved = info;
  moved.created = 99;
  (void)snprintf(moved.base_id, sizeof moved.base_id, "local:elsewhere");
  CHECK(tde_keydoc_move_wrap(doc, 1, 0, &moved) == 0 && parses(doc));
  REQUIRE(tde_keydoc_protector(doc, &info, NULL) == TDE_OK);
  CHECK(strcmp(info.base_id, "local:elsewhere") == 0 && info.created == 5);
  CHECK(tde_keydoc_unwrap_as(doc, inst, &(tde_keydoc_asker){.identity = NULL}, "local:b", 1, uuid, got,
                             NULL) == TDE_OK);
  CHECK(memcmp(got, dek, sizeof dek) == 0);
  free(wrap);
  tde_keydoc_free(doc);
}

static void auto_rotation(void) {
  char dir[PATH_BYTES];
  uint8_t dek[TDE_KEY_BYTES];
  tde_keydoc *doc = document(instance(dir), dek);
  const tde_json *r = tde_json_get(tde_keydoc_json(doc), "auto_rotation");
  int64_t checked = -1;
  CHECK(!tde_keydoc_auto_rotation(doc, &checked) && checked == 0);
  CHECK(tde_keydoc_set_auto_rotation(doc, 1) == 0 && tde_keydoc_auto_rotation(doc, &checked));
  CHECK(tde_keydoc_rotation_checked(doc, 10, 0, "no route") == 0);
  CHECK(tde_keydoc_auto_rotation(doc, &checked) && checked == 10);
  CHECK(strcmp(tde_json_get_text(r, "error"), "no route") == 0);
  CHECK(tde_json_get_int(r, "failed", 0) == 10 && tde_json_get_int(r, "rotated", 0) == 0);
  CHECK(parses(doc));
  CHECK(tde_keydoc_rotation_checked(doc, 20, 1, NULL) == 0);
  CHECK(tde_json_get_text(r, "error") == NULL && tde_json_get_int(r, "rotated", 0) == 20);
  CHECK(tde_json_get_int(r, "failed", 0) == 10 && parses(doc)); /* when it last did */
  CHECK(tde_keydoc_set_auto_rotation(doc, 0) == 0 && !tde_keydoc_auto_rotation(doc, &checked));
  /* A document that has no such member gets one. */
  CHECK(tde_keydoc_set_member(doc, "auto_rotation", NULL) == 0);
  CHECK(tde_keydoc_set_auto_rotation(doc, 1) == 0 && tde_keydoc_auto_rotation(doc, &checked));
  CHECK(parses(doc));
  tde_keydoc_free(doc);
}

static void epochs(void) {
  char dir[PATH_BYTES];
  const tde_instance *inst = instance(dir);
  uint8_t dek[TDE_KEY_BYTES], next[TDE_KEY_BYTES], got[TDE_KEY_BYTES];
  tde_keydoc *doc = document(inst, dek);
  tde_op *wrap = calloc(1, sizeof *wrap);
  tde_status st;
  memset(next, 7, sizeof next);
  REQUIRE(wrap_with(inst, "local:b", next, wrap) == TDE_OK);
  CHECK(!tde_keydoc_regenerating(doc));
  CHECK(tde_keydoc_begin_epoch(doc, wrap, 100, 1, &st) == TDE_OK);
  CHECK(tde_keydoc_regenerating(doc) && tde_keydoc_epoch(doc) == 2);
  CHECK(tde_keydoc_begin_epoch(doc, wrap, 100, 1, &st) == TDE_MISUSE);
  CHECK(strstr(st.remedy, "tde_rotate_dek()") != NULL);
  CHECK(has_epochs(doc, 2, 1, 2));
  CHECK(unwrap_plainly(doc, inst, 1, uuid, got, NULL) == TDE_OK && got[0] == dek[0]);
  CHECK(unwrap_plainly(doc, inst, 2, uuid, got, NULL) == TDE_OK && got[0] == 7);
  CHECK(tde_keydoc_epoch_progress(doc, 50, 120) == 0 && parses(doc));
  CHECK(tde_json_get_int(tde_json_get(tde_keydoc_json(doc), "regeneration"), "all", 0) == 120);
  CHECK(tde_keydoc_end_epoch(doc, 2) == 0 && !tde_keydoc_regenerating(doc));
  CHECK(has_epochs(doc, 1, 2, 2));
  CHECK(tde_keydoc_epoch_progress(doc, 1, 2) == 0); /* nothing is under way: nothing to note */
  free(wrap);
  tde_keydoc_free(doc);
}

static void the_last_epoch(void) {
  char dir[PATH_BYTES];
  const tde_instance *inst = instance(dir);
  uint8_t dek[TDE_KEY_BYTES];
  uint32_t last = UINT32_MAX;
  tde_keydoc *doc = document(inst, dek);
  tde_op *wrap = calloc(1, sizeof *wrap);
  const tde_op *wraps[1] = {wrap};
  tde_status st;
  REQUIRE(wrap_with(inst, "local:b", dek, wrap) == TDE_OK);
  CHECK(tde_keydoc_take_epochs(doc, &last, wraps, 1, last, 0, 1) == 0 && parses(doc));
  CHECK(tde_keydoc_begin_epoch(doc, wrap, 100, 1, &st) == TDE_UNSUPPORTED);
  CHECK(strstr(st.remedy, "tde_copy") != NULL && tde_keydoc_epoch(doc) == last);
  free(wrap);
  tde_keydoc_free(doc);
}

static void epochs_of_another_document(void) {
  char dir[PATH_BYTES];
  const tde_instance *inst = instance(dir);
  uint8_t dek[TDE_KEY_BYTES];
  uint32_t both[2] = {1, 4}, four = 4;
  tde_keydoc *doc = document(inst, dek);
  tde_op *wrap = calloc(1, sizeof *wrap);
  const tde_op *none[2] = {NULL, NULL}, *second[2] = {NULL, wrap};
  REQUIRE(wrap_with(inst, "local:b", dek, wrap) == TDE_OK);
  CHECK(tde_keydoc_take_epochs(doc, both, none, 2, 4, 1, 1) != 0); /* 4 is not here */
  tde_keydoc_free(doc);
  doc = document(inst, dek);
  CHECK(tde_keydoc_take_epochs(doc, both, second, 2, 4, 1, 1) == 0);
  CHECK(has_epochs(doc, 2, 1, 4));
  CHECK(tde_keydoc_take_epochs(doc, &four, none, 1, 4, 1, 1) == 0); /* keep: 1 stays */
  CHECK(has_epochs(doc, 2, 1, 4));
  CHECK(tde_keydoc_take_epochs(doc, &four, none, 1, 4, 0, 1) == 0);
  CHECK(has_epochs(doc, 1, 4, 4));
  free(wrap);
  tde_keydoc_free(doc);
}

/* ---- instances ---- */

static char *text_of(const char *dir) {
  char path[PATH_BYTES + 32], *text = NULL;
  size_t n = 0;
  (void)snprintf(path, sizeof path, "%s/instance.json", dir);
  if (tde_file_read(path, TDE_FILE_TRUSTED, 1 << 20, &text, &n, NULL, NULL) != TDE_OK) exit(1);
  return text;
}

/* Refused, with this class and remedy, and the instance as it was. */
static void refused(const char *dir, tde_class got, tde_class want, const tde_status *st,
                    const char *remedy, char **before) {
  char *after = text_of(dir);
  CHECK(got == want && st->code == want);
  CHECK(strcmp(*before, after) == 0);
  if (got != want || !CHECK(strstr(st->remedy, remedy) != NULL)) {
    printf("  %s: %s; %s\n", tde_class_name(got), st->message, st->remedy);
  }
  tde_secret_free(after);
}

static void instance_protector(void) {
  char dir[PATH_BYTES], full[TDE_KEY_ID_MAX], *before;
  tde_key_info info;
  tde_status st;
  path_of(dir, "protector");
  (void)open_instance(dir);
  REQUIRE(tde_instance_new_key(dir, "mine", &info, &st) == TDE_OK);
  CHECK(tde_instance_set_protector(dir, "local:mine", NULL, full, &st) == TDE_OK);
  CHECK(strncmp(full, "local:mine/", 11) == 0);
  CHECK(!tde_instance_is_service_managed(open_instance(dir)));
  CHECK(strcmp(tde_instance_protector(open_instance(dir)), "local:mine") == 0);
  before = text_of(dir);
  refused(dir, tde_instance_set_protector(dir, "local:absent", NULL, full, &st), TDE_MISSING, &st,
          "", &before);
  refused(dir, tde_instance_set_protector(dir, "nonsense", NULL, full, &st), TDE_UNSUPPORTED, &st,
          "local:NAME", &before);
  refused(dir, tde_instance_new_key(dir, "smk", &info, &st), TDE_MISUSE, &st, "another name",
          &before);
  tde_secret_free(before);
  CHECK(tde_instance_set_protector(dir, TDE_SERVICE_MANAGED, NULL, full, &st) == TDE_OK);
  CHECK(strncmp(full, "local:smk/", 10) == 0);
  CHECK(tde_instance_is_service_managed(open_instance(dir)));
}

static void instance_key_list(void) {
  char dir[PATH_BYTES], full[TDE_KEY_ID_MAX], *before;
  tde_key_info info, one, two;
  tde_status st;
  int removed = -1;
  path_of(dir, "list");
  (void)open_instance(dir);
  REQUIRE(tde_instance_new_key(dir, "k", &one, &st) == TDE_OK);
  CHECK(tde_instance_add_key(dir, "local:k", NULL, &info, &st) == TDE_OK);
  CHECK(strcmp(info.version, one.version) == 0);
  before = text_of(dir);
  refused(dir, tde_instance_add_key(dir, "local:k", NULL, &info, &st), TDE_MISUSE, &st,
          "nothing needs to be done", &before);
  refused(dir, tde_instance_add_key(dir, "local:none", NULL, &info, &st), TDE_MISSING, &st, "",
          &before);
  refused(dir, tde_instance_remove_key(dir, "local:none", &removed, &st), TDE_MISSING, &st,
          "tde_instance_keylist()", &before);
  CHECK(removed == 0);
  tde_secret_free(before);
  REQUIRE(tde_instance_new_key(dir, "k", &two, &st) == TDE_OK);
  CHECK(strcmp(one.version, two.version) != 0);
  CHECK(tde_instance_set_identity(dir, "app", "{\"kind\":\"managed_identity\"}", &st) == TDE_OK);
  CHECK(tde_instance_add_key(dir, "local:k", "app", &info, &st) == TDE_OK);
  CHECK(tde_instance_nkeys(open_instance(dir)) == 2);
  CHECK(tde_instance_key_identity(open_instance(dir), 0) == NULL);
  REQUIRE(tde_instance_key_identity(open_instance(dir), 1) != NULL);
  CHECK(strcmp(tde_instance_key_identity(open_instance(dir), 1), "app") == 0);
  CHECK(tde_instance_set_protector(dir, "local:k", NULL, full, &st) == TDE_OK);
  before = text_of(dir);
  refused(dir, tde_instance_remove_key(dir, "local:k", &removed, &st), TDE_MISUSE, &st,
          "tde_instance_set_protector", &before);
  tde_secret_free(before);
  CHECK(tde_instance_set_protector(dir, TDE_SERVICE_MANAGED, NULL, full, &st) == TDE_OK);
  CHECK(tde_instance_remove_key(dir, "local:k", &removed, &st) == TDE_OK && removed == 2);
  CHECK(tde_instance_nkeys(open_instance(dir)) == 0);
}

static void instance_settings(void) {
  char dir[PATH_BYTES], *before;
  const tde_instance *inst;
  tde_status st;
  path_of(dir, "settings");
  inst = open_instance(dir);
  CHECK(tde_instance_set_policy(dir, "check_interval_s", 60, &st) == TDE_OK);
  CHECK(tde_instance_policy(open_instance(dir))->check_s == 60);
  CHECK(tde_instance_policy(inst)->check_s != 60); /* who has the older one keeps it */
  CHECK(tde_instance_set_identity(dir, "robot", "{\"kind\":\"managed_identity\"}", &st) == TDE_OK);
  CHECK(tde_instance_set_audit(dir, "{\"syslog\":true}", &st) == TDE_OK);
  CHECK(tde_instance_audit(open_instance(dir))->syslog);
  before = text_of(dir);
  CHECK(strstr(before, "robot") != NULL);
  refused(dir, tde_instance_set_policy(dir, "check_interval_s", -1, &st), TDE_MISUSE, &st,
          "within the bounds", &before);
  refused(dir, tde_instance_set_policy(dir, "speed", 1, &st), TDE_MISUSE, &st, "check_interval_s",
          &before);
  refused(dir, tde_instance_set_identity(dir, "nobody", NULL, &st), TDE_MISSING, &st,
          "tde_instance()", &before);
  refused(dir, tde_instance_set_identity(dir, "robot", "{\"kind\":", &st), TDE_MISUSE, &st,
          "give a JSON object", &before);
  refused(dir, tde_instance_set_identity(dir, "robot", "{\"kind\":\"wish\"}", &st),
          TDE_MISUSE, &st, "give another value", &before);
  refused(dir, tde_instance_set_audit(dir, "{\"file\":\"here\"}", &st), TDE_MISUSE, &st,
          "give another value", &before);
  refused(dir, tde_instance_set_audit(dir, "[]", &st), TDE_MISUSE, &st, "max_bytes", &before);
  tde_secret_free(before);
  CHECK(tde_instance_set_identity(dir, "robot", NULL, &st) == TDE_OK);
  CHECK(tde_instance_set_audit(dir, NULL, &st) == TDE_OK);
  before = text_of(dir);
  CHECK(strstr(before, "robot") == NULL && strstr(before, "syslog") == NULL);
  tde_secret_free(before);
}

/* ---- events ---- */

static tde_event event_of(const uint8_t *id, const char *key, const tde_status *st) {
  tde_event e;
  tde_event_fill(&e, "unwrap", id, "/data/app.db", key, key[0] ? "v1" : "", st);
  return e;
}

static void the_ring_keeps_the_newest(void) {
  uint8_t one[TDE_UUID_BYTES] = {1}, two[TDE_UUID_BYTES] = {2}, none[TDE_UUID_BYTES] = {3};
  tde_json *all;
  char key[32];
  tde_event e = event_of(one, "local:first", NULL);
  CHECK(tde_event_emit(NULL, &e, NULL) == TDE_OK);
  for (int i = 0; i < TDE_EVENTS_MAX; i++) {
    (void)snprintf(key, sizeof key, "local:k%d", i);
    e = event_of(i % 2 ? one : two, key, NULL);
    CHECK(tde_event_emit(NULL, &e, NULL) == TDE_OK);
  }
  all = tde_events_recent(NULL);
  CHECK(tde_json_count(all) == TDE_EVENTS_MAX);
  CHECK(strcmp(tde_json_get_text(tde_json_at(all, 0), "key_id"), "local:k0/v1") == 0);
  tde_json_free(all);
  all = tde_events_recent(one);
  CHECK(tde_json_count(all) == TDE_EVENTS_MAX / 2);
  tde_json_free(all);
  /* The newest that a key service had to do with. */
  e = event_of(one, "", NULL);
  CHECK(tde_event_emit(NULL, &e, NULL) == TDE_OK);
  all = tde_events_last_answer(one);
  (void)snprintf(key, sizeof key, "local:k%d/v1", TDE_EVENTS_MAX - 1);
  CHECK(strcmp(tde_json_get_text(all, "key_id"), key) == 0);
  tde_json_free(all);
  all = tde_events_last_answer(none);
  CHECK(all != NULL && tde_json_get(all, "key_id") == NULL);
  tde_json_free(all);
}

static tde_audit audit_at(char path[PATH_BYTES], const char *name) {
  tde_audit a;
  memset(&a, 0, sizeof a);
  path_of(path, name);
  (void)snprintf(a.file, sizeof a.file, "%s", path);
  a.max_bytes = 1 << 20;
  a.keep = 5;
  return a;
}

static char *whole(const char *path, size_t *n) {
  char *text = NULL;
  *n = 0;
  return tde_file_read(path, TDE_FILE_TRUSTED, 1 << 24, &text, n, NULL, NULL) == TDE_OK ? text
                                                                                         : NULL;
}

static void a_line_of_the_audit(void) {
  char path[PATH_BYTES], *text, *end;
  tde_audit a = audit_at(path, "line.log");
  tde_json *j = NULL;
  struct stat sb;
  tde_status st;
  tde_event e;
  size_t n;
  memset(&st, 0, sizeof st);
  st.code = TDE_DENIED;
  st.http_status = 403;
  (void)snprintf(st.service_code, sizeof st.service_code, "Forbidden");
  (void)snprintf(st.request_id, sizeof st.request_id, "r-1");
  (void)snprintf(st.message, sizeof st.message, "no\nforged \"line\"\x01 here");
  e = event_of(uuid, "https://v/keys/k", &st);
  e.time = 86400;
  mode_t old = umask(0377); /* a host's odd one does not matter */
  REQUIRE(tde_event_emit(&a, &e, &st) == TDE_OK);
  umask(old);
  REQUIRE(stat(path, &sb) == 0);
  CHECK((sb.st_mode & 0777) == 0600);
  text = whole(path, &n);
  REQUIRE(text != NULL);
  end = strchr(text, '\n');
  CHECK(end != NULL && end[1] == 0); /* one line, whatever the message */
  REQUIRE(tde_json_parse(text, n - 1, "line", &j, &st) == TDE_OK);
  CHECK(strcmp(tde_json_get_text(j, "time"), "1970-01-02T00:00:00Z") == 0);
  CHECK(strcmp(tde_json_get_text(j, "event"), "unwrap") == 0);
  CHECK(strcmp(tde_json_get_text(j, "database"), "30313233-3435-3637-3839-616263646500") == 0);
  CHECK(strcmp(tde_json_get_text(j, "path"), "/data/app.db") == 0);
  CHECK(strcmp(tde_json_get_text(j, "key_id"), "https://v/keys/k/v1") == 0);
  CHECK(strcmp(tde_json_get_text(j, "outcome"), tde_class_name(TDE_DENIED)) == 0);
  CHECK(tde_json_get_int(j, "http_status", 0) == 403);
  CHECK(strcmp(tde_json_get_text(j, "service_code"), "Forbidden") == 0);
  CHECK(strcmp(tde_json_get_text(j, "request_id"), "r-1") == 0);
  CHECK(strncmp(tde_json_get_text(j, "message"), "no", 2) == 0);
  CHECK(strpbrk(tde_json_get_text(j, "message"), "\n\x01") == NULL);
  CHECK(tde_json_get_int(j, "pid", 0) == getpid() && tde_json_get(j, "uid") != NULL);
  tde_json_free(j);
  tde_secret_free(text);
}

/* Lines of all files of an audit. */
static int count_lines(const tde_audit *a) {
  char path[1100];
  int lines = 0;
  for (int i = 0; i <= a->keep; i++) {
    size_t n;
    char *text;
    (void)snprintf(path, sizeof path, i ? "%s.%d" : "%s", a->file, i);
    text = whole(path, &n);
    if (!text) continue;
    CHECK(n > 0 && text[n - 1] == '\n' && (int64_t)n <= a->max_bytes);
    for (size_t at = 0; at < n; at++) lines += text[at] == '\n';
    for (char *p = text; p < text + n; p = strchr(p, '\n') + 1) CHECK(*p == '{');
    tde_secret_free(text);
  }
  return lines;
}

static void processes_rotate_the_audit(void) {
  enum { PROCESSES = 4, LINES = 300 };
  char path[PATH_BYTES];
  tde_audit a = audit_at(path, "many.log");
  struct stat sb;
  pid_t pids[PROCESSES];
  a.max_bytes = 8192;
  a.keep = 200; /* none is to go */
  for (int p = 0; p < PROCESSES; p++) {
    fflush(stdout);
    pids[p] = fork();
    if (pids[p] == 0) {
      int ok = 1;
      for (int i = 0; i < LINES; i++) {
        tde_event e = event_of(uuid, "local:k", NULL);
        ok &= tde_event_emit(&a, &e, NULL) == TDE_OK;
      }
      unit_child_exit(ok);
    }
  }
  for (int p = 0; p < PROCESSES; p++) {
    int status = 0;
    CHECK(waitpid(pids[p], &status, 0) == pids[p] && WIFEXITED(status) &&
          WEXITSTATUS(status) == 0);
  }
  CHECK(count_lines(&a) == PROCESSES * LINES);
  /* And what is too old goes. */
  a.keep = 2;
  for (int i = 0; i < 200; i++) {
    tde_event e = event_of(uuid, "local:k", NULL);
    CHECK(tde_event_emit(&a, &e, NULL) == TDE_OK);
  }
  (void)snprintf(path + strlen(path), 8, ".2");
  CHECK(stat(path, &sb) == 0);
}

/* Fills the first n audit files that it can create and lock before others do. */
static void fill_new_files(const tde_audit *a, int n) {
  static const char line[] = "{\"time\":\"\"}\n";
  const int64_t len = sizeof line - 1;
  while (n > 0) {
    int fd = open(a->file, O_WRONLY | O_APPEND | O_CREAT | O_EXCL, 0600);
    if (fd < 0) continue;
    while (flock(fd, LOCK_EX) != 0) continue;
    for (int64_t size = lseek(fd, 0, SEEK_END) + len; size <= a->max_bytes; size += len) {
      if (write(fd, line, (size_t)len) != len) unit_child_exit(0);
    }
    close(fd);
    n--;
    usleep(10000); /* longer than the other one naps: it gets its turn */
  }
  unit_child_exit(1);
}

/* A process that rotates has no lock until it has opened the new file, and another may have
** filled that by then. */
static void a_rotation_that_another_fills(void) {
  enum { FILES = 50, TRIES = 300000 };
  char path[PATH_BYTES];
  tde_audit a = audit_at(path, "filled.log");
  int status = 0, tries = 0;
  pid_t child, ended = 0;
  a.max_bytes = 4096;
  a.keep = 1000; /* none is to go */
  fflush(stdout);
  child = fork();
  if (child == 0) fill_new_files(&a, FILES);
  while (tries++ < TRIES && ended == 0) {
    tde_event e = event_of(uuid, "local:k", NULL);
    CHECK(tde_event_emit(&a, &e, NULL) == TDE_OK);
    ended = waitpid(child, &status, WNOHANG);
    usleep(100); /* on a busy machine the other one is to run at all */
  }
  if (ended == 0) kill(child, SIGKILL);
  CHECK(ended == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(count_lines(&a) > 0);
}

static int folder_syncs; /* since it was set to 0 */

/* Stands before the C library's. */
int fsync(int fd) {
  struct stat sb;
  folder_syncs += fstat(fd, &sb) == 0 && S_ISDIR(sb.st_mode);
  return (int)syscall(SYS_fsync, fd);
}

/* "sync": what is durable is the line, and the name that its file has. */
static void an_audit_that_is_synced(void) {
  char path[PATH_BYTES];
  tde_audit a = audit_at(path, "sync.log");
  tde_event e = event_of(uuid, "local:k", NULL);
  for (int sync = 0; sync < 2; sync++) {
    a.sync = sync;
    folder_syncs = 0;
    CHECK(tde_event_emit(&a, &e, NULL) == TDE_OK && folder_syncs == sync);
    CHECK(tde_event_emit(&a, &e, NULL) == TDE_OK && folder_syncs == sync);
    REQUIRE(unlink(path) == 0);
  }
  /* A rotation makes a new one, too. */
  for (int i = 0; i < 3; i++) CHECK(tde_event_emit(&a, &e, NULL) == TDE_OK);
  folder_syncs = 0;
  a.max_bytes = 1;
  CHECK(tde_event_emit(&a, &e, NULL) == TDE_OK && folder_syncs == 1);
}

static void an_audit_that_can_not_be_written(void) {
  char path[PATH_BYTES], other[PATH_BYTES];
  tde_audit a = audit_at(path, "pipe");
  tde_event e = event_of(uuid, "local:k", NULL);
  tde_status st;
  struct stat sb;
  /* Without "required" it is the caller's to go on. */
  CHECK(tde_event_announce(&a, &e, &st) == TDE_OK && stat(path, &sb) != 0);
  CHECK(tde_event_announce(NULL, &e, &st) == TDE_OK);
  a.required = 1;
  path_of(other, "target");
  REQUIRE(symlink(other, path) == 0);
  CHECK(tde_event_announce(&a, &e, &st) == TDE_IO && strstr(st.message, path) != NULL);
  CHECK(stat(other, &sb) != 0); /* not written through it */
  CHECK(strstr(st.remedy, "symbolic link") != NULL);
  REQUIRE(unlink(path) == 0 && mkdir(path, 0700) == 0);
  CHECK(tde_event_emit(&a, &e, &st) == TDE_IO && strstr(st.remedy, "permissions") != NULL);
  (void)snprintf(a.file, sizeof a.file, "/dev/null");
  CHECK(tde_event_emit(&a, &e, &st) == TDE_IO); /* a sink that keeps nothing is none */
  a = audit_at(path, "begins.log");
  a.required = 1;
  CHECK(tde_event_announce(&a, &e, &st) == TDE_OK && count_lines(&a) == 1);
  /* Who hangs on to the lock keeps nobody for ever, and is named as the cause. */
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  REQUIRE(fd >= 0 && flock(fd, LOCK_EX) == 0);
  CHECK(tde_event_emit(&a, &e, &st) == TDE_IO && strstr(st.message, "has it locked") != NULL);
  CHECK(strstr(st.remedy, "locked") != NULL && strstr(st.remedy, "permissions") == NULL);
  close(fd);
  CHECK(tde_event_emit(&a, &e, &st) == TDE_OK && count_lines(&a) == 2);
}

static time_t set_back_by; /* the clock of day; that of the time since the start goes on */
static int64_t later_by;
static int warnings;

/* Stand before the C library's. */
time_t time(time_t *out) {
  struct timespec now;
  (void)syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
  now.tv_sec -= set_back_by;
  if (out != NULL) *out = now.tv_sec;
  return now.tv_sec;
}

int clock_gettime(clockid_t id, struct timespec *out) {
  int rc = (int)syscall(SYS_clock_gettime, id, out);
  if (id == CLOCK_BOOTTIME || id == CLOCK_MONOTONIC) out->tv_sec += later_by;
  return rc;
}

static void count_warning(tde_level level, const char *line) {
  warnings += level == TDE_LOG_ERROR && strstr(line, "audit") != NULL;
}

/* A sink that fails is logged each minute, whatever the clock of day says meanwhile. */
static void a_failing_audit_under_a_clock_that_is_set_back(void) {
  char path[PATH_BYTES];
  tde_audit a = audit_at(path, "none/audit.log");
  tde_event e = event_of(uuid, "local:k", NULL);
  later_by += 3600;
  tde_log_set_sink(count_warning);
  for (int minute = 0; minute < 3; minute++) {
    warnings = 0;
    for (int i = 0; i < 3; i++) CHECK(tde_event_emit(&a, &e, NULL) == TDE_IO);
    CHECK(warnings == 1);
    set_back_by += 86400;
    later_by += 61;
  }
  set_back_by = time(NULL) + 86400; /* before 1970 */
  CHECK(tde_event_emit(&a, &e, NULL) == TDE_IO && warnings == 2);
  tde_log_set_sink(NULL);
  set_back_by = 0;
}

static int pread_fails, flock_fails, rename_fails; /* with that error */

ssize_t pread(int fd, void *to, size_t n, off_t at) {
  if (pread_fails) return errno = pread_fails, -1;
  return (ssize_t)syscall(SYS_pread64, fd, to, n, at);
}

int flock(int fd, int what) {
  if (flock_fails && what != LOCK_UN) return errno = flock_fails, -1;
  return (int)syscall(SYS_flock, fd, what);
}

int rename(const char *from, const char *to) {
  if (rename_fails) return errno = rename_fails, -1;
  return (int)syscall(SYS_rename, from, to);
}

/* The cause is named, and is no other one. */
static void an_audit_that_the_system_refuses(void) {
  static const struct {
    int *call, err, fine;
    const char *says, *remedy;
  } cases[] = {
      {&pread_fails, EIO, 0, "cannot be read", "check the disk"},
      {&flock_fails, ENOLCK, 0, "cannot be opened", "that has locks"},
      {&flock_fails, ENOTSUP, 0, "cannot be opened", "that has locks"},
      {&rename_fails, EIO, 0, "cannot be rotated", "check the disk"},
      {&rename_fails, EBUSY, 1, "", ""}, /* a mount of its own: it grows on */
      {&rename_fails, EROFS, 1, "", ""},
  };
  char path[PATH_BYTES];
  tde_audit a = audit_at(path, "refused.log");
  tde_event e = event_of(uuid, "local:k", NULL);
  tde_status st;
  struct stat sb;
  a.max_bytes = 1;
  REQUIRE(tde_event_emit(&a, &e, &st) == TDE_OK);
  for (size_t i = 0; i < COUNT(cases); i++) {
    REQUIRE(stat(path, &sb) == 0);
    off_t before = sb.st_size;
    tde_status_clear(&st);
    *cases[i].call = cases[i].err;
    tde_class rc = tde_event_emit(&a, &e, &st);
    *cases[i].call = 0;
    int good = rc == (cases[i].fine ? TDE_OK : TDE_IO) && stat(path, &sb) == 0 &&
               (sb.st_size > before) == cases[i].fine && strstr(st.message, cases[i].says) != NULL &&
               strstr(st.remedy, cases[i].remedy) != NULL;
    if (!CHECK(good)) printf("  %zu: %s; %s\n", i, st.message, st.remedy);
  }
}

/* What an outage leaves of a first line is an audit's; the lines that follow are whole. */
static void an_audit_whose_first_line_is_torn(void) {
  static const struct {
    const char *head;
    size_t n;
    int ours;
  } begins[] = {
      {"{", 1, 1},
      {"{\"ti", 4, 1},
      {"{\"time\":\"20", 11, 1},
      {"\0\0\0", 3, 1},
      {"\0\0{\"ti", 6, 1},
      {"{\"tame\":\"", 9, 0},
      {"[", 1, 0},
      {"\0\0x", 3, 0},
      {"\n{\"time\":\"", 10, 0},
      {"\0\n\n", 3, 0},
  };
  for (size_t i = 0; i < COUNT(begins); i++) {
    char path[PATH_BYTES], *text;
    tde_audit a = audit_at(path, "torn.log");
    tde_event e = event_of(uuid, "local:k", NULL);
    tde_status st;
    size_t n;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600), good = 1;
    REQUIRE(fd >= 0 && write(fd, begins[i].head, begins[i].n) == (ssize_t)begins[i].n);
    close(fd);
    good &= (tde_audit_look(&a, &st) == TDE_OK) == begins[i].ours;
    for (int k = 0; k < 2; k++) good &= (tde_event_emit(&a, &e, &st) == TDE_OK) == begins[i].ours;
    text = whole(path, &n);
    REQUIRE(text != NULL);
    good &= memcmp(text, begins[i].head, begins[i].n) == 0;
    if (begins[i].ours) good &= memcmp(text + begins[i].n, "\n{\"time\":\"", 10) == 0;
    good &= begins[i].ours ? text[n - 1] == '\n' : n == begins[i].n;
    if (!CHECK(good)) printf("  %zu\n", i);
    tde_secret_free(text);
    (void)unlink(path);
  }
}

static void audit_settings(void) {
  static const char *const bad[] = {
      "{\"audit\":1}",
      "{\"audit\":{\"file\":\"relative\"}}",
      "{\"audit\":{\"file\":7}}",
      "{\"audit\":{\"max_bytes\":4095}}",
      "{\"audit\":{\"max_bytes\":\"much\"}}",
      "{\"audit\":{\"keep\":0}}",
      "{\"audit\":{\"keep\":1001}}",
      "{\"audit\":{\"keep\":4294967297}}",
      "{\"audit\":{\"sync\":1}}",
      "{\"audit\":{\"syslog\":\"yes\"}}",
      "{\"audit\":{\"required\":true}}",
      "{\"audit\":{\"required\":true,\"syslog\":true}}",
  };
  tde_json *root = NULL;
  tde_audit a;
  tde_status st;
  for (size_t i = 0; i < COUNT(bad); i++) {
    REQUIRE(tde_json_parse(bad[i], strlen(bad[i]), "file", &root, &st) == TDE_OK);
    if (!CHECK(tde_audit_read(root, "/i/instance.json", &a, &st) == TDE_MISCONFIGURED &&
               strstr(st.message, "/i/instance.json: \"audit") != NULL)) {
      printf("  %s\n", bad[i]);
    }
    tde_json_free(root);
  }
  REQUIRE(tde_json_parse("{}", 2, "file", &root, &st) == TDE_OK);
  CHECK(tde_audit_read(root, "f", &a, &st) == TDE_OK && a.file[0] == 0 && a.keep == 5);
  tde_json_free(root);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"times_of_use", times_of_use},
      {"list_of_keys", list_of_keys},
      {"a_new_wrap_unwraps", a_new_wrap_unwraps},
      {"auto_rotation", auto_rotation},
      {"epochs", epochs},
      {"the_last_epoch", the_last_epoch},
      {"epochs_of_another_document", epochs_of_another_document},
      {"instance_protector", instance_protector},
      {"instance_key_list", instance_key_list},
      {"instance_settings", instance_settings},
      {"the_ring_keeps_the_newest", the_ring_keeps_the_newest},
      {"a_line_of_the_audit", a_line_of_the_audit},
      {"processes_rotate_the_audit", processes_rotate_the_audit},
      {"a_rotation_that_another_fills", a_rotation_that_another_fills},
      {"an_audit_that_is_synced", an_audit_that_is_synced},
      {"an_audit_that_can_not_be_written", an_audit_that_can_not_be_written},
      {"a_failing_audit_under_a_clock_that_is_set_back", a_failing_audit_under_a_clock_that_is_set_back},
      {"an_audit_that_the_system_refuses", an_audit_that_the_system_refuses},
      {"an_audit_whose_first_line_is_torn", an_audit_whose_first_line_is_torn},
      {"audit_settings", audit_settings},
  };
  const char *tmp = getenv("TMPDIR");
  tde_status st;
  int rc;
  (void)snprintf(root_dir, sizeof root_dir, "%.200s/tde-lifecycle-XXXXXX",
                 tmp != NULL && tmp[0] == '/' ? tmp : "/tmp");
  if (mkdtemp(root_dir) == NULL || tde_crypto_init(&st) != TDE_OK) {
    printf("cannot start\n0 passed, 1 failed, 0 skipped\n");
    return 1;
  }
  rc = unit_main(argc, argv, tests, COUNT(tests));
  tde_local_drop_cache();
  remove_tree(root_dir);
  return rc;
}
