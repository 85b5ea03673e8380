/*
** keysource.h: how the shim asks for keys.
**
** vfs/ knows no key provider. ext/wire.c fills this struct once at start-up;
** the shim hands over the database's UUID, the key document from its header
** (opaque bytes here) and what the URI said, and gets a DEK in secret memory.
** The callbacks may do network I/O: they are called with no lock of the shim
** held that another database could need. They are called from any thread.
*/
#ifndef TDE_KEYSOURCE_H
#define TDE_KEYSOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "../ext/base/limits.h"
#include "../ext/base/status.h"

/* Where a database is, and what its URI said of keys. Each string may be NULL; the
** file owns them. */
typedef struct tde_key_params {
  char *path;
  char *vfs;       /* the name of the VFS below */
  char *instance;  /* tde_instance=, or what stands for it, resolved when it was opened */
  char *protector; /* tde_protector=, for a new database */
  char *identity;  /* tde_identity=, for a new database */
  char *federated_client_id; /* tde_federated_client_id=, likewise */
  /* Asks under this key id, as this identity where one is named. */
  char *as_key, *as_identity, *as_federated;
  int insist; /* asks also while the key service wants to be left alone (Retry-After) */
  int64_t *until; /* NULL, or of calls that share the time of one: the first puts its end there (0) */
} tde_key_params;

/* A copy of all but the protector of a new database, and of `until`; the caller clears it. 0: no
** memory, and *to is clear. */
int tde_key_params_copy(tde_key_params *to, const tde_key_params *from);
void tde_key_params_clear(tde_key_params *p); /* frees its text */
/* The way of asking alone: as_key, as_identity and as_federated. copy: into one that has none; 0: no
** memory, and a part may be there. Without a way the header's key is asked, as its identity. */
int tde_key_params_same_way(const tde_key_params *a, const tde_key_params *b);
int tde_key_params_copy_way(tde_key_params *to, const tde_key_params *from);
void tde_key_params_forget_way(tde_key_params *p);

/* What the key document says, without any key. */
typedef struct tde_key_facts {
  char key_id[TDE_KEY_ID_MAX];
  char key_version[TDE_KEY_VERSION_MAX];
  char mode[16];
  char inherits_from[64]; /* the instance's id; "" : none is noted, or the protector is its own */
  int own_identity;       /* who asks is not whom the instance's default named, or that is unknown */
  int64_t wrapped_at;     /* Unix time of the protector's wrap */
  char identity[256]; /* "" : the instance's default */
  char federated_client_id[256]; /* "" : none */
  uint8_t thumbprint[TDE_THUMB_BYTES];
  uint32_t epoch; /* the current one */
  int nepochs;
  uint32_t epochs[TDE_EPOCHS_MAX]; /* ascending */
  int remote;                      /* the protector is asked over a network */
  int alone;                       /* the current DEK has no other wrap than the protector's: what
                                   ** becomes of its unwrap is the protector's answer */
  int regenerating;                /* units of an older epoch are being sealed anew */
  int secondary;                   /* a copy that follows another database */
  int backup;                      /* nobody changes it */
  int auto_rotation;
  int64_t rotation_checked; /* Unix time of the last look for a new version, or 0 */
} tde_key_facts;

/* How long a DEK may be used without its key service; from the instance. */
typedef struct tde_key_policy {
  int64_t check_ms;    /* between checks of the protector */
  int64_t grace_ms;    /* how long an outage is waited out */
  int64_t heal_ms;     /* how long a denied key may come back by itself */
  int64_t rotation_ms; /* between looks for a new version of the protector */
} tde_key_policy;

/* Something that happened to a database's keys, for the audit sink. */
typedef struct tde_key_event {
  const char *event; /* "unwrap", "outage", "key-lost", "healed", ... */
  const uint8_t *uuid;
  const char *key_id;   /* base id */
  const char *version;  /* or "" */
  const tde_status *st; /* NULL: it went well */
} tde_key_event;

typedef struct tde_key_source {
  void *ctx;
  /* A new database: draws a DEK into dek (secret memory of the caller),
  ** wraps it, returns the key document (malloc'd). */
  tde_class (*create)(void *ctx, const tde_key_params *params, const uint8_t uuid[TDE_UUID_BYTES],
                      uint8_t *dek, char **doc, size_t *ndoc, tde_status *st);
  /* Unwraps the DEK of one epoch into dek. */
  tde_class (*unwrap)(void *ctx, const tde_key_params *params, const uint8_t uuid[TDE_UUID_BYTES],
                      const char *doc, size_t ndoc, uint32_t epoch, uint8_t *dek, tde_status *st);
  /* Reads the document; TDE_CORRUPT when it is malformed. */
  tde_class (*describe)(void *ctx, const char *doc, size_t ndoc, tde_key_facts *out,
                        tde_status *st);
  /* The instance's policy; where it cannot be read, the one that it had, or the defaults. */
  void (*policy)(void *ctx, const tde_key_params *params, tde_key_policy *out);
  /* Tells the audit sink. Never fails; never called under a lock of the shim. */
  void (*event)(void *ctx, const tde_key_params *params, const tde_key_event *e);
  /* The process ends: what is being asked of key services in the background is
  ** given up soon. */
  void (*stop)(void *ctx);
  /* The instance that a URI names (NULL: none), malloc'd, so that it means the same one later:
  ** the environment and the current directory may change. NULL: it can not be told now. */
  char *(*resolve)(void *ctx, const char *instance);
} tde_key_source;

#endif
