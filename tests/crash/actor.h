/*
** actor.h: one connection of stress.c, what it does at random, and what all share.
*/
#ifndef CRASH_ACTOR_H
#define CRASH_ACTOR_H

#include <sqlite3.h>
#include <stdint.h>

#include "crowd.h"
#include "disk.h"

#define PROCESSES 3
#define EACH 2 /* actors in a process */
#define ACTORS (PROCESSES * EACH)
#define ROWS 120    /* at most, of one actor */
#define STRIDE 1024 /* row ids: actor w has w * STRIDE .. */
#define RING 512    /* transactions of one actor whose digest is remembered */

/* Two databases, changed by the same transactions. */
typedef enum pair { ALONE, BOTH_SEALED, OTHER_PLAIN, MAIN_PLAIN } pair;

/* A campaign's settings, drawn from its seed. */
typedef struct plan {
  int page_size, small; /* small: turned into pages of this size once it is there */
  int auto_vacuum, rows;
  const char *journal;
  int modes;  /* actors change the journal mode */
  int keys;   /* one of so many steps changes the keys; 0: none */
  int losses; /* the keys are away at times */
  int gentle; /* nobody is killed */
  pair pair;
} plan;

typedef struct entry {
  uint32_t n;
  uint64_t digest;
} entry;

/* Shared by all processes. */
typedef struct board {
  uint32_t begun[ACTORS], committed[ACTORS];
  entry ring[ACTORS][RING];
  long steps[PROCESSES], commits, looks, keys, copies, refusals;
  int64_t back;   /* monotonic ms when the keys came back; 0: they are away */
  int finish;     /* gentle: everybody closes and ends */
  int second_key; /* the instance has a second key, from an earlier campaign, it may be */
  char complaint[CROWD_COMPLAINT];
} board;

typedef struct row {
  uint32_t seed, len; /* len 0: no such row */
} row;

typedef struct sight { /* what a look has found */
  uint32_t n[ACTORS];
  uint64_t digest[ACTORS];
} sight;

typedef enum stage { IDLE, READING, WRITING } stage;

typedef struct actor {
  int w;
  rng r;
  sqlite3 *db;
  sqlite3 *stranger; /* without the extension, or NULL */
  stage at;
  int exclusive;
  row rows[ROWS], work[ROWS]; /* as committed; as the open transaction has it */
  uint32_t floor[ACTORS];     /* what was committed when the transaction began */
  sight seen;                 /* its first look */
  int has_seen;
  uint8_t *body;
} actor;

/* Set by the program before it makes children. */
extern board *shared;
extern plan now;
extern char root[256], path[300], other[300]; /* the folder; the two databases */
extern int plain, threads, process;           /* the control; -t; which process this is */
extern uint64_t campaign_seed, life;          /* life: grows with each process */

/* Opens the connection of actor w, reads what the database has of its rows, and judges it. The
** process ends where it can not. */
void actor_arrive(actor *a, int w);
/* Does something. What fails, and is not only in somebody's way, ends the process with a complaint. */
void actor_step(actor *a);
/* Rolls back, closes. */
void actor_leave(actor *a);
/* Runs a text: SQLITE_OK, or SQLITE_BUSY. */
int actor_try(actor *a, const char *sql);

int64_t actor_clock(void);
int actor_main_is_sealed(void);
int actor_open_file(const char *file, int sealed, int flags, sqlite3 **db);

#endif
