/*
** heap.c: priority queues; see heap.h.
*/
#include "heap.h"

#include <stddef.h>

static int goes_before(const tde_heap_node *a, const tde_heap_node *b) {
  return a->key != b->key ? a->key < b->key : a->nth < b->nth;
}

/* Two trees as one. Either may be NULL; neither has siblings. */
static tde_heap_node *meld(tde_heap_node *a, tde_heap_node *b) {
  if (!a || !b) return a ? a : b;
  if (goes_before(b, a)) {
    tde_heap_node *less = b;
    b = a;
    a = less;
  }
  b->next = a->child;
  if (b->next) b->next->prev = b;
  b->prev = a;
  a->child = b;
  return a;
}

/* The next tree of a list of siblings, cut off. */
static tde_heap_node *cut_first(tde_heap_node **list) {
  tde_heap_node *n = *list;

  if (!n) return NULL;
  *list = n->next;
  n->next = n->prev = NULL;
  return n;
}

/* Siblings as one tree: in pairs, and the pairs from the last to the first. */
static tde_heap_node *meld_siblings(tde_heap_node *list) {
  tde_heap_node *pairs = NULL, *all = NULL, *pair;

  while (list) {
    tde_heap_node *a = cut_first(&list), *b = cut_first(&list);
    pair = meld(a, b);
    pair->next = pairs;
    pairs = pair;
  }
  while ((pair = cut_first(&pairs)) != NULL) all = meld(all, pair);
  return all;
}

static void drop(tde_heap_node *n) {
  tde_heap *h = n->in;
  tde_heap_node *left = meld_siblings(n->child);

  if (h->top == n) {
    h->top = left;
  } else {
    if (n->prev->child == n) {
      n->prev->child = n->next;
    } else {
      n->prev->next = n->next;
    }
    if (n->next) n->next->prev = n->prev;
    h->top = meld(h->top, left);
  }
  n->in = NULL;
  n->child = n->next = n->prev = NULL;
}

void tde_heap_put(tde_heap *h, tde_heap_node *n, int64_t key) {
  if (n->in == h && n->key == key) return;
  if (n->in) drop(n);
  if (key == INT64_MAX) return;
  n->key = key;
  n->nth = h->puts++;
  n->in = h;
  h->top = meld(h->top, n);
}
