/*
** wire.h: the key source that joins the shim to the key providers.
*/
#ifndef TDE_WIRE_H
#define TDE_WIRE_H

#include "../vfs/keysource.h"

extern const tde_key_source tde_wire;

#endif
