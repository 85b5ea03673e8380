/*
** secret.h: memory for key material.
**
** Blocks from here are locked into memory (mlock), left out of core dumps
** (MADV_DONTDUMP), surrounded by pages that fault, and wiped when freed. A
** process whose RLIMIT_MEMLOCK is too small still gets its memory, unlocked,
** and a warning once: tde_secret_locked() tells. A forked child inherits the
** blocks, but not the locks (mlock is per process): they are locked again with
** the first block that it asks for. Ownership moves by handing over the pointer
** and setting the source to NULL.
*/
#ifndef TDE_SECRET_H
#define TDE_SECRET_H

#include <stddef.h>

/* The largest block. */
#define TDE_SECRET_MAX 65536u

/* n zeroed bytes, 1 <= n <= TDE_SECRET_MAX; NULL when out of memory. Thread-safe. */
void *tde_secret_alloc(size_t n);
/* Wipes and frees; NULL is allowed. */
void tde_secret_free(void *p);
/* Wipes in a way that the compiler keeps. */
void tde_wipe(void *p, size_t n);
/* Compares in time that depends on n alone; true when equal. */
int tde_equal(const void *a, const void *b, size_t n);
/* True while every block handed out so far is locked into memory. */
int tde_secret_locked(void);

/* For tests only: when set, asked before each allocation of the base (here and
** in crypto.c); a result other than 0 makes that allocation fail. Set it while
** no other thread runs. */
extern int (*tde_test_alloc_hook)(size_t n);

#endif
