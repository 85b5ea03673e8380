/*
** retire.c: tde_key_safe_to_retire.
**
** Whoever deletes a key on its word must have lost nothing. So a key is safe only when all
** that was to be looked at could be: the instance, every database that is open in this
** process, every file below the folder (none is named: what is closed was not looked at). What
** could not is named; and a key that nobody knows, for its id may be misspelt, is an error.
**
** Without its key no header can be verified. Whoever can write a file could so make its newer
** slot name another key than the one that it needs: what either slot names is needed, and what
** the process that has it open knows of it.
**
** A key that moved to another id is the same key: headers and backups name the old id, and the
** new one alone can still unwrap them. So its material counts, too, as far as that is known.
*/
#include "retire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../ext/base/bytes.h"
#include "../keyprovider/files.h"
#include "place.h"
#include "result.h"
#include "subject.h"
#include "views.h"

SQLITE_EXTENSION_INIT3

#define DEPTH_MAX 64 /* folders within folders */

/* Versions of one key whose material is known, as many as an instance's list may have of it. */
#define MATERIALS_MAX 64

typedef struct retire {
  sqlite3 *db;
  const char *key;
  uint8_t material[MATERIALS_MAX][TDE_THUMB_BYTES]; /* thumbprints of the key that an id names */
  int nmaterial;
  const tde_instance *inst;
  tde_json *needed;    /* by whom, and why */
  tde_json *unchecked; /* what could not be looked at, and why */
  tde_json *named;     /* the exact names of those that need it */
  tde_json *open;      /* those of what is open and could not be looked at, with why */
  int open_seen;       /* nothing is added to these any more */
  int unlike;            /* what to do about a file that is nothing known is said */
  int known;           /* somebody has heard of the key */
  int bad;             /* out of memory */
} retire;

static void add(retire *r, tde_json *list, const char *path, const char *member, const char *text) {
  tde_json *j = tde_json_object();

  if (tde_json_set_text(j, "path", path) | tde_json_set_text(j, member, text)) {
    tde_json_free(j);
    r->bad = 1;
    return;
  }
  r->bad |= tde_json_append(list, j);
}

/* Is the file in this list of exact names? If not it is added, where it is to be. (A list that is
** shown does not tell: JSON shows names that are no UTF-8 as well as it can, and so several alike.) */
static int is_said(retire *r, tde_json *list, int adding, const char *path, const char *what) {
  char *name = tde_uri_of(path, ""), *key = name ? sqlite3_mprintf("%s %s", name, what) : NULL;
  char *clean = key ? tde_json_clean(key) : NULL;
  int said = 0;

  for (size_t i = 0; clean && i < tde_json_count(list) && !said; i++) {
    said = strcmp(tde_json_text_at(list, i), clean) == 0;
  }
  r->bad |= !clean || (!said && adding && tde_json_append_text(list, clean));
  free(clean);
  sqlite3_free(key);
  sqlite3_free(name);
  return said;
}

static void add_needed(retire *r, const char *path, const char *reason) {
  if (!is_said(r, r->named, 1, path, "")) add(r, r->needed, path, "reason", reason);
}

/* A database that is open may be in the folder, too. */
static void not_checked(retire *r, const char *path, const char *error) {
  if (is_said(r, r->open, !r->open_seen, path, error)) return;
  add(r, r->unchecked, path, "error", error);
}

/* ---- databases ---- */

/* Is this the key that was asked about, by name or by material? */
static int is_it(const retire *r, const tde_key_info *info) {
  int is = tde_key_named(info, r->key);

  for (int i = 0; i < r->nmaterial && !is; i++) {
    is = memcmp(info->thumbprint, r->material[i], TDE_THUMB_BYTES) == 0;
  }
  return is;
}

/* An entry of a database's key list. */
static int is_listed(const tde_json *entry, const char *key) {
  const char *id = tde_json_get_text(entry, "key_id"),
             *version = tde_json_get_text(entry, "version");
  const char *thumb = tde_json_get_text(entry, "thumbprint");
  tde_key_info info;

  memset(&info, 0, sizeof(info));
  if (!id || !version || !thumb) return 0;
  (void)sqlite3_snprintf(sizeof(info.base_id), info.base_id, "%s", id);
  (void)sqlite3_snprintf(sizeof(info.version), info.version, "%s", version);
  (void)tde_unhex(thumb, info.thumbprint, sizeof(info.thumbprint));
  return tde_key_named(&info, key);
}

/* where: of a document that is not the newest in the file, what it is. */
static void check_doc(retire *r, const char *path, const tde_keydoc *doc, const char *where) {
  const tde_json *all = tde_keydoc_json(doc), *list = tde_json_get(all, "keys");
  tde_key_info infos[TDE_EPOCHS_MAX];
  int n = tde_keydoc_needed(doc, infos, TDE_EPOCHS_MAX), needs = 0;
  char reason[80];

  for (int i = 0; i < n && !needs; i++) needs = is_it(r, &infos[i]);
  (void)sqlite3_snprintf(sizeof(reason), reason, "%s%s",
                         tde_json_get(all, "backup") ? "backup" : "protector", where);
  if (needs) add_needed(r, path, reason);
  r->known |= needs;
  for (size_t i = 0; i < tde_json_count(list) && !r->known; i++) {
    r->known = is_listed(tde_json_at(list, i), r->key);
  }
}

/* Why a file that is no database to be seen may be one all the same. A folder may hold hundreds of
** binaries: what to do is said of the first. */
static const char *why_unknown(retire *r, const char *path, int unknown) {
  if (unknown >= TDE_UNKNOWN_INDEX) {
    return "was not opened, for it is, or is named as, the wal-index of a database: rename it if "
           "it is a database or a backup, else remove it if nothing uses it";
  }
  if (tde_place_is_temporary(path)) {
    return "a copy that is being made, or was cut short: remove it if nobody makes it any more";
  }
  if (r->unlike++) return "neither a database nor a text, either";
  return "neither a database nor a text: an encrypted database whose header is damaged looks so; "
         "move it out of the folder if it is none";
}

/* The file of a name that stands in a folder beside others, or of one that was named. */
enum { FOUND, BESIDE, NAMED };

/* Does it count that a file may be a database all the same? That a wal-index is beside its
** database is as it should be; a log there may begin with zeros. */
static int counts(int unknown, int how) {
  if (how == NAMED) return unknown != 0;
  return unknown == TDE_UNKNOWN_NAME || (unknown == TDE_UNKNOWN_BYTES && how == FOUND);
}

static void check_file(retire *r, const char *path, const char *vfs, int how) {
  tde_view_db v;
  tde_status st;
  int rc;

  tde_status_clear(&st);
  rc = tde_view_open_path(&v, r->db, path, vfs, &st);
  if (rc == SQLITE_OK) {
    check_doc(r, path, v.doc, "");
    if (v.other) check_doc(r, path, v.other, " in its other header slot");
  } else if (rc != SQLITE_NOTADB) {
    not_checked(r, path, st.code ? st.message : sqlite3_errstr(rc));
  } else if (counts(v.head.unknown, how) && !is_said(r, r->open, !r->open_seen, path, "")) {
    add(r, r->unchecked, path, "error", why_unknown(r, path, v.head.unknown));
  }
  tde_view_close(&v);
}

/* What the databases that are open go by, whatever their files say. */
static void check_open_documents(retire *r) {
  tde_open_document *list = NULL;
  int n = 0;

  r->bad |= tde_open_documents(&list, &n) != SQLITE_OK;
  for (int i = 0; i < n && !r->bad; i++) {
    tde_keydoc *doc = NULL;
    tde_status st;
    tde_status_clear(&st);
    if (list[i].as_key && tde_key_ids_match(list[i].as_key, r->key)) {
      r->known = 1;
      add_needed(r, list[i].path, "opened with tde_key= here");
    }
    if (tde_keydoc_parse(list[i].doc, list[i].ndoc, &doc, &st) == TDE_OK) {
      check_doc(r, list[i].path, doc, " as it is open here");
    } else {
      add(r, r->unchecked, list[i].path, "error", st.message);
    }
    tde_keydoc_free(doc);
  }
  tde_open_documents_free(list, n);
}

static void check_open_databases(retire *r) {
  tde_open_database *list = NULL;
  int n = 0;

  r->bad |= tde_open_databases(&list, &n) != SQLITE_OK;
  for (int i = 0; i < n && !r->bad; i++) {
    check_file(r, list[i].path, list[i].vfs, NAMED);
    if (list[i].moved) {
      add(r, r->unchecked, list[i].path, "error", "was moved or replaced since it was opened");
    }
  }
  tde_open_databases_free(list, n);
  r->open_seen = 1;
}

/* ---- the folder ---- */

/* A file that belongs beside a database by its name may be a database, too: a backup that
** was renamed, say. What it is not is no news where the other one is there. */
static void check_regular(retire *r, const char *path) {
  int beside = tde_place_is_beside(path);

  r->bad |= beside < 0;
  check_file(r, path, NULL, beside == 1 ? BESIDE : FOUND);
}

static void check_folder(retire *r, const char *folder, int depth);

/* A link to a file is followed; one to a folder may lead round in a circle. */
static void check_entry(retire *r, const char *path, int depth) {
  struct stat itself, sb;

  if (lstat(path, &itself) != 0) {
    if (errno != ENOENT) add(r, r->unchecked, path, "error", strerror(errno));
  } else if (stat(path, &sb) != 0) {
    add(r, r->unchecked, path, "error", strerror(errno));
  } else if (S_ISDIR(sb.st_mode) && S_ISLNK(itself.st_mode)) {
    add(r, r->unchecked, path, "error", "a link to a folder: look at that by itself");
  } else if (S_ISDIR(sb.st_mode)) {
    check_folder(r, path, depth + 1);
  } else if (S_ISREG(sb.st_mode)) {
    check_regular(r, path);
  }
}

static void check_folder(retire *r, const char *folder, int depth) {
  DIR *d = depth < DEPTH_MAX ? opendir(folder) : NULL;
  const char *name;
  int more = 1;

  if (!d) {
    add(r, r->unchecked, folder, "error", depth < DEPTH_MAX ? strerror(errno) : "lies too deep");
    return;
  }
  while (!r->bad && (more = tde_dir_next(d, &name)) > 0) {
    char *path = sqlite3_mprintf("%s/%s", folder, name);
    if (path) {
      check_entry(r, path, depth);
    } else {
      r->bad = 1;
    }
    sqlite3_free(path);
  }
  if (more < 0) add(r, r->unchecked, folder, "error", strerror(errno));
  (void)closedir(d);
}

/* ---- the instance ---- */

/* What the service says of a key now, asked as for the default protector. */
static tde_class look_up(const retire *r, const char *key, tde_key_info *info, tde_status *st) {
  return tde_provider_get(r->inst, key, tde_instance_default_identity(r->inst), NULL, info, st);
}

/* Is the default protector, whose version its service chooses, the key of this thumbprint? */
static int protector_has(retire *r, const char *protector) {
  tde_key_info info;
  tde_status st;

  tde_status_clear(&st);
  if (look_up(r, protector, &info, &st) == TDE_OK) return tde_key_named(&info, r->key);
  add(r, r->unchecked, tde_instance_dir(r->inst), "error", st.message);
  return 0;
}

/* By its id, or by a thumbprint. What the instance keeps of one that is set without its version
** may be of an older one. */
static int is_protector(retire *r, const char *protector) {
  char full[TDE_KEY_ID_MAX] = "";
  tde_key_info info;

  if (tde_key_ids_match(r->key, protector)) return 1;
  if (!tde_is_thumbprint(r->key)) return 0;
  if (tde_instance_protector_info(r->inst, &info)) {
    if (tde_key_named(&info, r->key)) return 1;
    tde_key_full_id(&info, full);
  }
  return strcmp(full, protector) != 0 && protector_has(r, protector);
}

static void check_instance(retire *r) {
  const char *named = tde_subject_instance(r->db, 0, NULL, 0);
  const char *protector;
  tde_status st;
  int needs;

  tde_status_clear(&st);
  if (tde_instance_open(named, 0, &r->inst, &st) != TDE_OK) {
    add(r, r->unchecked, named ? named : "the default instance", "error", st.message);
    return;
  }
  protector = tde_instance_protector(r->inst);
  needs = is_protector(r, protector);
  for (int i = 0; i < tde_instance_nkeys(r->inst); i++) {
    const tde_key_info *k = tde_instance_key(r->inst, i);
    if (!tde_key_named(k, r->key)) continue;
    r->known = 1;
    needs |= tde_key_named(k, protector);
  }
  r->known |= needs;
  if (needs) add(r, r->needed, tde_instance_dir(r->inst), "reason", "default protector");
}

/* ---- the key ---- */

static void note_material(retire *r, const tde_key_info *info) {
  if (r->nmaterial == MATERIALS_MAX) return;
  memcpy(r->material[r->nmaterial++], info->thumbprint, TDE_THUMB_BYTES);
}

/* What the key of an id is, as the instance's list and its service say. That it is not there any
** more says nothing against it; an answer that is not to be had may hide that it is needed. */
static void learn_material(retire *r) {
  tde_key_info info;
  tde_status st;
  tde_class c;

  if (tde_is_thumbprint(r->key) || !r->inst) return;
  for (int i = 0; i < tde_instance_nkeys(r->inst); i++) {
    const tde_key_info *k = tde_instance_key(r->inst, i);
    if (tde_key_named(k, r->key)) note_material(r, k);
  }
  tde_status_clear(&st);
  c = look_up(r, r->key, &info, &st);
  if (c == TDE_OK) note_material(r, &info);
  if (c && c != TDE_MISSING && r->nmaterial == 0) add(r, r->unchecked, r->key, "error", st.message);
}

/* A thumbprint that nobody has heard of may be that of what could not be looked at. */
static int may_be_known(const retire *r) {
  return r->known || (tde_is_thumbprint(r->key) && tde_json_count(r->unchecked) > 0);
}

/* Nobody has heard of it: does its service have it? */
static int exists(const retire *r, tde_status *st) {
  tde_key_info info;

  if (tde_is_thumbprint(r->key) || !r->inst) {
    tde_fail(st, TDE_MISSING,
             "check it against tde_keylist and tde_instance_keylist, or name its id",
             "nothing that was looked at knows the key %.120s", r->key);
    return 0;
  }
  return look_up(r, r->key, &info, st) == TDE_OK;
}

/* By the paths that SQLite has for what is open, however the folder was named. sb: of where, if
** that is given. */
static void look(retire *r, const char *named, const struct stat *sb) {
  char *real = named ? realpath(named, NULL) : NULL;
  const char *where = real ? real : named;

  check_instance(r);
  learn_material(r);
  check_open_databases(r);
  if (where && S_ISDIR(sb->st_mode)) {
    check_folder(r, where, 0);
  } else if (where && S_ISREG(sb->st_mode)) {
    check_file(r, where, NULL, NAMED);
  } else if (where) {
    add(r, r->unchecked, where, "error", "is neither a folder nor a file");
  }
  check_open_documents(r); /* at last: a reason that is in the file says more */
  free(real);
}

static void answer(sqlite3_context *ctx, retire *r) {
  tde_json *j = tde_json_object();
  int safe = tde_json_count(r->needed) == 0 && tde_json_count(r->unchecked) == 0, bad = r->bad;

  bad |= tde_json_set_text(j, "key", r->key) | tde_json_set_bool(j, "safe", safe) |
         tde_json_set_json(j, "needed_by", r->needed) |
         tde_json_set_json(j, "not_checked", r->unchecked);
  r->needed = r->unchecked = NULL;
  tde_result_json(ctx, j, bad);
}

void tde_sql_key_safe_to_retire(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  retire r = {.db = sqlite3_context_db_handle(ctx)};
  const char *where = tde_arg_text(argc, argv, 1);
  struct stat sb;
  tde_status st;

  r.key = tde_arg_needed(ctx, argc, argv, 0, "the key");
  if (!r.key) return;
  tde_status_clear(&st);
  if (!tde_subject_key(r.key, &st)) {
    tde_result_status(ctx, SQLITE_MISUSE, &st);
    return;
  }
  if (where && stat(where, &sb) != 0) {
    tde_fail(&st, TDE_MISUSE, "name a folder of databases and backups, or one file",
             "%s is not there", where);
    tde_result_status(ctx, SQLITE_CANTOPEN, &st);
    return;
  }
  r.needed = tde_json_array();
  r.unchecked = tde_json_array();
  r.named = tde_json_array();
  r.open = tde_json_array();
  look(&r, where, &sb);
  if (!r.bad && !may_be_known(&r) && !exists(&r, &st)) {
    tde_result_status(ctx, tde_class_rc(st.code), &st);
  } else {
    if (!where) {
      add(&r, r.unchecked, NULL, "error",
          "no folder was named: databases that are closed, and backups, were not looked at");
    }
    answer(ctx, &r);
  }
  tde_json_free(r.needed);
  tde_json_free(r.unchecked);
  tde_json_free(r.named);
  tde_json_free(r.open);
}
