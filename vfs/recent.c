/*
** recent.c: what key services answered a moment ago; see recent.h.
*/
#include "recent.h"

#include <string.h>

#include "lease.h"

#define RECENT 64

typedef struct recent_answer {
  uint8_t key[TDE_HASH_BYTES];
  int64_t at; /* 0: none */
  tde_status st;
} recent_answer;

static recent_answer recent[RECENT];
static unsigned next;

int64_t tde_recent_get(const uint8_t key[TDE_HASH_BYTES], int64_t now, int64_t max_age,
                       tde_status *st) {
  for (int i = 0; i < RECENT; i++) {
    const recent_answer *a = &recent[i];
    if (!a->at || memcmp(a->key, key, TDE_HASH_BYTES) != 0) continue;
    if (now - a->at > max_age) return 0;
    *st = a->st;
    return a->at;
  }
  return 0;
}

void tde_recent_put(const uint8_t key[TDE_HASH_BYTES], int64_t now, tde_class c,
                    const tde_status *st) {
  recent_answer *a = NULL;

  for (int i = 0; i < RECENT && !a; i++) {
    if (memcmp(recent[i].key, key, TDE_HASH_BYTES) == 0) a = &recent[i];
  }
  if (!a) a = &recent[next++ % RECENT];
  memcpy(a->key, key, TDE_HASH_BYTES);
  a->at = c == TDE_OK || tde_class_is_outage(c) ? now : 0;
  a->st = *st;
  a->st.code = c;
}
