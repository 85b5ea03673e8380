/*
** server.h: the test key server (tests/keyvault/) as a child process, for
** programs that drive the product against it.
**
** The server has ports of its own, so any number of programs may run at once.
*/
#ifndef TDE_TEST_SERVER_H
#define TDE_TEST_SERVER_H

#include <sys/types.h>

#include "keyprovider/instance.h"
#include "keyprovider/json.h"

#define CONTOSO "11111111-1111-4111-8111-111111111111"
#define FABRIKAM "22222222-2222-4222-8222-222222222222"

typedef struct server {
  pid_t pid;
  char state[300]; /* its folder, and ours: removed at the end */
  int https, http, admin;
  char identity_header[64];
} server;

/* Starts program with this configuration; 0 when it is ready. */
int server_start(server *s, const char *program, const char *config);
/* Ends it; 0 when it ended well. */
int server_stop(server *s);

/* One request to the admin port, which must be granted: its JSON, or NULL. body
** may be NULL. */
tde_json *server_admin(const server *s, const char *method, const char *path, const char *body);
/* The same where the reply does not matter; ends the program when it is not granted. */
void server_do(const server *s, const char *method, const char *path, const char *body);
/* Requests of one operation with this status (0: any) in the server's log. */
int server_count(const server *s, const char *operation, int status);

/* An instance that trusts the server's vaults, with an identity of each kind that
** the sample tenant knows: secret, secret-env, certificate, workload, system, user,
** app-service, cross, environment, reader, no-unwrap, nobody. more: further members of
** instance.json, "" or beginning with a comma. NULL on failure, which is told. */
const tde_instance *server_instance(const server *s, const char *name, int timeout_ms,
                                    const char *more);
/* Sets what the identities secret-env and app-service read from the environment. */
void server_environment(const server *s);

#endif
