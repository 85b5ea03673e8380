/*
** vault.h: the provider of keys in the Transit engine of HashiCorp Vault and OpenBao.
**
** Key ids are `vault:https://HOST[:PORT]/PATH/keys/NAME[/VERSION]`. PATH is where the engine is mounted,
** with its namespaces before it, at most TDE_VAULT_PATH_MAX names; no name in it is "keys". NAME and the
** names of PATH are of letters, digits, '_', '-' and '.', the last two not at an end of them. VERSION is a
** decimal number from 1 on.
**
** Protocol facts: the reference of the Transit secrets engine's API ("Read key", "Encrypt data", "Decrypt
** data") of Vault and of OpenBao; "HTTP API" for status codes and errors; which errors there are, and
** with which status, keysutil/policy.go and logical/response_util.go of both.
**
** What is kept of a wrap is what follows `vault:vN:`, decoded; N is the wrap's version. With AES and
** ChaCha20 the associated data is "sqlite-tde:" and the database's UUID, so that a wrapped DEK opens for no
** other database; RSA has none.
*/
#ifndef TDE_VAULT_H
#define TDE_VAULT_H

#include "cloud.h"
#include "provider.h"

#define TDE_VAULT_PATH_MAX 8

#endif
