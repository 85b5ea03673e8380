/*
** heap.h: priority queues whose nodes are parts of what they order, so that nothing is allocated.
**
** A pairing heap (Fredman, Sedgewick, Sleator, Tarjan 1986): to put is O(1), to drop any node is
** O(log n), amortized. Nothing here locks.
*/
#ifndef TDE_HEAP_H
#define TDE_HEAP_H

#include <stdint.h>

typedef struct tde_heap_node {
  int64_t key;
  uint64_t nth;                              /* of equal keys the first put goes first */
  struct tde_heap *in;                       /* NULL: in none */
  struct tde_heap_node *child, *next, *prev; /* prev: the sibling before, of the first the parent */
} tde_heap_node;

/* All zero: empty, and in no heap. */
typedef struct tde_heap {
  tde_heap_node *top; /* of the least key; NULL: it is empty */
  uint64_t puts;
} tde_heap;

/* Moves the node there under this key, from wherever it is; INT64_MAX: into no heap. */
void tde_heap_put(tde_heap *h, tde_heap_node *n, int64_t key);

/* INT64_MAX: it is empty. */
static inline int64_t tde_heap_least(const tde_heap *h) {
  return h->top ? h->top->key : INT64_MAX;
}

#endif
