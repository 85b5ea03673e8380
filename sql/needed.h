/*
** needed.h: the keys that a backup needs, and as what, and by whom, each is to be had here.
*/
#ifndef TDE_SQL_NEEDED_H
#define TDE_SQL_NEEDED_H

#include "../ext/base/limits.h"
#include "../keyprovider/instance.h"
#include "../keyprovider/keydoc.h"
#include "options.h"

typedef struct tde_needed_key {
  tde_key_info info;       /* as the backup names it */
  char as[TDE_KEY_ID_MAX]; /* the id to ask under; "" : not found */
  const char *where;       /* "given", "instance", "protector" */
  tde_keydoc_asker who;    /* who is to ask */
  tde_status asked;        /* what asking it brought; TDE_OK: it unwraps */
  int was_asked;
  tde_status tried; /* not found: why a key that may be it could not be looked at */
} tde_needed_key;

/* A key of the option "keys", and what its service says of it once that was asked. */
typedef struct tde_given_key {
  const char *id;
  int looked, serves; /* it is one that is needed */
  tde_key_info info;
  tde_keydoc_asker who;
  tde_status why; /* that it could not be looked at */
} tde_given_key;

typedef struct tde_needed {
  /* In; all of it outlives this. */
  const tde_options *o;
  const tde_instance *inst; /* NULL: there is none; the keys can be named all the same */
  tde_status no_instance;   /* why not */
  const tde_keydoc *doc;    /* the backup's */
  const uint8_t *uuid;
  /* Out. */
  tde_needed_key key[TDE_EPOCHS_MAX];
  int n;
  tde_given_key *given;
  size_t ngiven;
} tde_needed;

/* Finds every key that the backup needs. An SQLite code; end it always. */
int tde_needed_look(tde_needed *k, tde_status *st);
void tde_needed_end(tde_needed *k);
/* MissingKeyForRestore, with every key that is not found. 0: all are. */
int tde_needed_missing(const tde_needed *k, tde_status *st);
/* What to do about one that is not found. */
void tde_needed_remedy(const tde_needed *k, const tde_needed_key *key, char *out, size_t n);

#endif
