/*
** slots.h: the two slots of a main database's header, between file and memory. Which one
** counts is database.c's to say, when one is written database_edit.c's. Internal to vfs/.
*/
#ifndef TDE_SLOTS_H
#define TDE_SLOTS_H

#include "shim.h"

/* Enough of a slot for an ordinary key document in one read. */
#define TDE_SLOT_GULP 4096

/* The used part of both slots as they stand in the file. */
typedef struct tde_slots {
  uint8_t *at[2]; /* head, or longer when the document is */
  uint8_t *longer[2];
  uint8_t head[2][TDE_SLOT_GULP];
} tde_slots;

void tde_slots_init(tde_slots *s);
void tde_slots_clear(tde_slots *s);
/* Reads both slots; what lies beyond the file is zero, as SQLite demands of xRead. */
int tde_slots_read(sqlite3_file *lower, tde_counters *counters, tde_slots *s);
/* The newest slot that is whole, of two that were parsed; slot 0 when none is. */
int tde_newest_of(const tde_class c[2], const tde_header h[2]);
/* Parses the newest whole slot without verifying it; out has no document when none
** is whole. TDE_NOMEM: which one is the newest is not known. */
tde_class tde_slots_newest(const tde_slots *both, tde_header *out);

/* The name of a file as it is opened, and what is put behind it: links are followed, as SQLite
** does. Freed with tde_name_free; NULL: no memory. */
const char *tde_name_as_opened(sqlite3_vfs *v, const char *path, const char *suffix);

/* Writes one slot; with verify, syncs and reads it back. */
int tde_slot_write(tde_file *f, const tde_header *h, int slot, tde_keys *keys, int verify);
/* The first header of a file. The magic is durable before anything else, so
** that whatever a crash leaves is known for what it is; then slot 0; then slot
** 1 and the header's last byte make the header whole. */
int tde_slots_create(tde_file *f, const tde_header *h, tde_keys *keys);

#endif
