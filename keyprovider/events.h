/*
** events.h: what happened to keys: the recent events of this process, and the
** audit sink.
**
** An event is a change of keys, an unwrap, a denial, a heal, a restore. Changes of
** a database's header also carry theirs in the header (keydoc.h). Here every event
** goes into a ring in memory, and, where the instance says so, into the audit
** sink: one JSON object a line.
**
** Part of instance.json, "audit", all of it optional:
**   "file": "/..."       absolute path; made with mode 0600, appended to by every
**                        process of the instance
**   "max_bytes": 10485760, "keep": 5    at max_bytes the file becomes FILE.1 (and
**                        that one FILE.2, ...); keep of them stay
**   "sync": false        each line is durable before the call goes on
**   "syslog": false      the same lines to syslog, facility authpriv
**   "required": false    operations that change keys are refused while no line can
**                        be written to the file, which it needs: syslog(3) tells nothing
**
** A line: time (RFC 3339, UTC), event, database (UUID), path, key_id (with its version),
** outcome ("ok" or the class of the error), http_status, service_code, request_id,
** message, pid, uid. No key, token or content.
**
** Thread-safe. A sink that fails is logged, once a minute at most.
*/
#ifndef TDE_EVENTS_H
#define TDE_EVENTS_H

#include <stdint.h>

#include "../ext/base/limits.h"
#include "../ext/base/status.h"
#include "json.h"

/* Events that the ring keeps. */
#define TDE_EVENTS_MAX 512

typedef struct tde_event {
  int64_t time;        /* Unix time */
  const char *event;   /* a literal: "set-protector", "unwrap", ... */
  const uint8_t *uuid; /* NULL: of no database */
  const char *path;    /* or NULL */
  char key_id[TDE_KEY_ID_MAX]; /* base id, or "" */
  char version[TDE_KEY_VERSION_MAX];
  tde_class code;      /* TDE_OK: it went well */
  int http_status;
  char service_code[64];
  char request_id[80];
  char message[256];   /* of a failure, or "" */
} tde_event;

/* Fills the event from how something ended; st NULL or TDE_OK: well. */
void tde_event_fill(tde_event *e, const char *event, const uint8_t *uuid, const char *path,
                    const char *key_id, const char *version, const tde_status *st);
/* "key_id/version", or "" */
void tde_event_key(const tde_event *e, char out[TDE_KEY_ID_MAX]);

#define TDE_AUDIT_NAMES "file max_bytes keep sync syslog required"

/* Where lines go. */
typedef struct tde_audit {
  char file[1024];     /* "" : none */
  int64_t max_bytes;
  int keep;
  int sync, syslog, required;
  int own;             /* the file is one of the instance's: nothing is written to it */
} tde_audit;

/* Reads root's "audit" over the defaults. TDE_MISCONFIGURED names the member. file: the
** instance's; a log that is it, or lies among its keys, is read all the same, and fails itself. */
tde_class tde_audit_read(const tde_json *root, const char *file, tde_audit *out, tde_status *st);

/* Is the file absent, or may lines be added to what is in it? It is no file of the instance's
** own either. Changes nothing. */
tde_class tde_audit_look(const tde_audit *audit, tde_status *st);

/* Takes an announcement back for which the file was made: it goes, unless there is more in it by now
** than that line. */
void tde_audit_take_back(const tde_audit *audit);

/* Keeps the event and writes it to the sink (NULL: none). The result is the
** sink's: a caller that may not go on unaudited looks at it. */
tde_class tde_event_emit(const tde_audit *audit, const tde_event *e, tde_status *st);

/* Before something that must not happen unaudited: where the audit is required, a line
** says that it begins. An error: it must not. */
tde_class tde_event_announce(const tde_audit *audit, const tde_event *e, tde_status *st);

/* The ring's events of one database (uuid NULL: all), oldest first, as an array of
** objects with the members of a line. NULL: out of memory. */
tde_json *tde_events_recent(const uint8_t *uuid);
/* The newest event that some key service answered or failed to, for status; as
** above; a JSON null when there is none. */
tde_json *tde_events_last_answer(const uint8_t *uuid);

#endif
