/*
** follow.h: whether a database that inherits is to follow an instance, and where to.
**
** It follows the instance that its key document names, and no other: whoever may use its key under
** another one uses it as it is. What is followed is the default protector, its version as it was
** when it was set, and who asks for it, unless the database has an identity of its own.
**
** A document that names no instance is of an earlier version, or of an instance whose file could
** not take an id. An instance whose default it is under adopts it, and is followed from then on; so
** is one that holds its key otherwise, in its own store or its key list. Others leave it alone.
*/
#ifndef TDE_SQL_FOLLOW_H
#define TDE_SQL_FOLLOW_H

#include "../keyprovider/instance.h"
#include "../vfs/keysource.h"

typedef enum tde_follow {
  TDE_FOLLOW_NOTHING, /* it is where it belongs, or inherits nothing */
  TDE_FOLLOW_MOVE,    /* to the target */
  TDE_FOLLOW_ADOPT,   /* it is there, and its document is to say whose it is */
  TDE_FOLLOW_OTHER    /* it inherits from somebody else, and differs from this instance */
} tde_follow;

/* target: of a MOVE the key id to go to. */
tde_follow tde_follow_of(const tde_key_facts *facts, const tde_instance *inst,
                         char target[TDE_KEY_ID_MAX]);
/* Was the DEK wrapped anew within the check interval? Then it stays for now, so that two who
** disagree about the default cannot chase each other. */
int tde_follow_too_soon(const tde_key_facts *facts, const tde_instance *inst);
/* Of OTHER: why, and what can be done. */
void tde_follow_why_not(const tde_key_facts *facts, const tde_instance *inst, tde_status *st);
/* The same into the host's log, the first time that this process meets the database so. */
void tde_follow_tell(const uint8_t uuid[TDE_UUID_BYTES], const char *path,
                     const tde_key_facts *facts, const tde_instance *inst);

#endif
