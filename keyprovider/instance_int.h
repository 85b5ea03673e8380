/*
** instance_int.h: what the two halves of an instance share: instance_read.c reads the text of its
** file, instance.c finds, makes, keeps and changes it. For these two alone.
*/
#ifndef TDE_INSTANCE_INT_H
#define TDE_INSTANCE_INT_H

#include "instance.h"
#include "json.h"

typedef struct listed_key {
  tde_key_info info;
  char identity[64]; /* who asks for it, or "" */
} listed_key;

struct tde_instance {
  char *dir;
  char id[TDE_INSTANCE_ID_MAX];        /* "": none yet */
  int service_managed;
  char protector[TDE_KEY_ID_MAX];
  tde_key_info protector_key;          /* as its trial found it; base_id "": not kept */
  int64_t protector_set;               /* when that was; 0: not known */
  char smk[TDE_KEY_ID_MAX];            /* "" when the file names none */
  tde_cloud cloud;
  tde_policy policy;
  tde_audit audit;
  char identity[64];                   /* default_identity, or "" */
  listed_key *keys;                    /* the key list */
  int nkeys;
  tde_json *unknown;                   /* members of the file that are passed over, by name */
  uint8_t digest[TDE_HASH_BYTES];      /* of the file's text */
  const struct tde_instance *older;    /* seen before, of the same directory */
};

/* Parses the text of an instance's file; file: its path, for messages. TDE_MISCONFIGURED says where it
** is no JSON. */
tde_class tde_instance_parse(const char *text, size_t n, const char *file, tde_json **root,
                             tde_status *st);
/* Checks the parsed object, and takes what it says into inst, which is all zero but for dir; after a
** failure a part of it. TDE_MISCONFIGURED names the field. */
tde_class tde_instance_read(const tde_json *root, const char *file, tde_instance *inst,
                            tde_status *st);
/* Warns of members that are passed over, and lists them in inst. */
void tde_instance_find_unknown(const tde_json *root, const char *file, tde_instance *inst);
void tde_instance_free(tde_instance *inst); /* of one that was never published; NULL is allowed */

#endif
