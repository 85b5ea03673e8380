/*
** probe.h: may mapped memory be read without the process being killed?
**
** To read a page of a mapped file that the file does not reach any more, or that the
** disk cannot deliver, raises SIGBUS. A library has no business with its host's signal
** handlers; a system call that is handed such an address fails with EFAULT instead.
*/
#ifndef TDE_PROBE_H
#define TDE_PROBE_H

#include <stddef.h>

/* Can it be found out? Not without Linux, nor under valgrind, which answers the system call
** by itself and reports each. */
int tde_probe_works(void);
/* True when the n > 0 mapped bytes from p on could all be read a moment ago: they are in
** memory now. A system call for each two pages; waits for the disk if it must. False also
** where this can not be found out (a sandbox without the call). */
int tde_readable(const void *p, size_t n);

#endif
