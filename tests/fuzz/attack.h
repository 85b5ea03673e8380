/*
** attack.h: what an attacker does to a scene's files, as the input says.
*/
#ifndef FUZZ_ATTACK_H
#define FUZZ_ATTACK_H

#include "scene.h"

typedef struct attack {
  const scene *s;
  int edits;   /* changes made */
  int forged;  /* with the keys: SQLite may see anything */
  int mixed;   /* authentic content of different moments, which nothing can tell */
  int halves;  /* ... even within one page, so that its rows say nothing */
  int resized; /* the main file has another length */
  int log;     /* the WAL was changed */
  int crossed; /* a header slot of another database */
} attack;

/* Does the edits that r holds, to its end (at most ATTACK_MAX). */
#define ATTACK_MAX 24
void attack_apply(attack *a, fuzz_reader *r);

#endif
