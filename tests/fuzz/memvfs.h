/*
** memvfs.h: the VFS "mem", whose files lie in memory. It stands below the shim.
**
** One thread and one process; locks always succeed. A run is bounded: more than
** MEM_CALLS_MAX calls are a hang, and a file does not grow beyond MEM_FILE_MAX.
** No write may carry the marker that the test's rows hold: that would be
** plaintext below the shim.
*/
#ifndef FUZZ_MEMVFS_H
#define FUZZ_MEMVFS_H

#include <stddef.h>
#include <stdint.h>

#define MEM_VFS "mem"
#define MEM_FILE_MAX (4u << 20)
#define MEM_CALLS_MAX 200000u
#define MEM_MARK "Zq7#row#"

/* The content of a named file. data is the VFS's; NULL and 0: empty. */
typedef struct mem_file {
  char name[64];
  int exists;
  uint8_t *data;
  size_t size, cap;
} mem_file;

/* Registers it as the default VFS. */
void mem_register(void);
/* Forgets every file, wal-index included; nothing may be open. Counts anew. */
void mem_reset(void);
/* The file of this name, made when missing (create), or NULL. */
mem_file *mem_find(const char *name, int create);
/* Sets a file's size; new bytes are zero. 0, or -1 beyond MEM_FILE_MAX. */
int mem_resize(mem_file *f, size_t size);
/* Handles that are open now. */
int mem_open_count(void);

/* The wal-index's first region, or NULL. */
uint8_t *mem_index(void);

/* When set, called after each write to a named file. */
extern void (*mem_on_write)(mem_file *f, size_t at, size_t n);

#endif
