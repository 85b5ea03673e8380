/*
** logical.h: the Tcl command tde_logical; see logical.c.
*/
#ifndef SUITE_LOGICAL_H
#define SUITE_LOGICAL_H

#include <tcl.h>

/* Adds the command to the interpreter. */
void suite_logical_init(Tcl_Interp *interp);

#endif
