/*
** status.h: how every fallible function of the product reports.
**
** A function that can fail returns a tde_class (TDE_OK is 0) and, where the
** caller passes a tde_status, says there what happened and what to do next.
** Classes stay apart up to the SQL surface: an unreachable key service is
** never reported as a wrong key. No text here ever holds key material, a
** token, or page content.
*/
#ifndef TDE_STATUS_H
#define TDE_STATUS_H

#include <stddef.h>

#include "limits.h"

typedef enum tde_class {
  TDE_OK = 0,
  /* this machine */
  TDE_NOMEM,           /* out of memory */
  TDE_IO,              /* the lower file system failed */
  TDE_BUSY,            /* somebody else uses the database */
  TDE_RANDOM,          /* the random source failed */
  TDE_CRYPTO,          /* the crypto library failed for a reason of its own */
  TDE_INTERNAL,        /* an invariant does not hold: a defect of this product */
  TDE_MISUSE,          /* bad argument */
  /* the file */
  TDE_NOT_ENCRYPTED,   /* a file without this product's header */
  TDE_NEWER_FORMAT,    /* written by a later format version */
  TDE_DAMAGED_HEADER,  /* neither header slot is whole */
  TDE_TAMPERED,        /* a unit whose tag does not verify */
  TDE_TORN,            /* a file that ends within a unit */
  TDE_TRUNCATED,       /* a file shorter than it says it is */
  TDE_NOT_AUTHENTIC,   /* a whole header that its own DEKs, which were had, do not verify, or whose
                       ** key document makes no sense: not for a provider's answers */
  /* the key service, or the key; the first two are outages, not denials */
  TDE_UNREACHABLE,
  TDE_THROTTLED,
  TDE_UNAUTHENTICATED,
  TDE_DENIED,
  TDE_DISABLED,
  TDE_MISSING,         /* no such key, or no such instance */
  TDE_WRONG_KEY,       /* the key answered, but the DEK does not fit the file */
  TDE_CORRUPT,         /* reply, wrapped key or key document malformed */
  TDE_UNSUPPORTED,
  TDE_MISCONFIGURED
} tde_class;

typedef struct tde_status {
  tde_class code;
  int http_status;                 /* 0: no HTTP exchange took place */
  char service_code[64];           /* the service's own error code, or "" */
  char request_id[80];             /* the service's request id, or "" */
  char key_id[TDE_KEY_ID_MAX];     /* the key this is about, or "" */
  char message[512];               /* one line: what happened */
  char remedy[320];                /* one line: the next step */
} tde_status;

/* Sets code, message and remedy (NULL: none); the other fields keep their
** values. st may be NULL. Control characters become '?'. The arguments may
** point into st, so a message can be built on the one before. Returns code. */
tde_class tde_fail(tde_status *st, tde_class code, const char *remedy, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Adds another next step to the one that st has, behind "; ": what does not fit is cut off. As with
** tde_fail control characters become '?'; the arguments may not point into st. */
void tde_also(tde_status *st, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Out of memory, with no more to say of it. */
static inline tde_class tde_nomem(tde_status *st) {
  (void)tde_fail(st, TDE_NOMEM, NULL, "out of memory");
  return TDE_NOMEM; /* here, where compilers and analysers see that it is not TDE_OK */
}

/* Clears every field. st may be NULL. */
void tde_status_clear(tde_status *st);

/* Makes a text one line that is safe in a log: control characters become '?',
** and a UTF-8 sequence that was cut off at the end is dropped. */
void tde_clean_line(char *text);

/* A short stable name of the class, e.g. "unreachable"; never NULL. */
const char *tde_class_name(tde_class code);

/* What to do about an errno, where it is a limit or a full disk that is in the way; a literal, or
** otherwise. */
const char *tde_errno_remedy(int err, const char *otherwise);

/* True for the classes that are outages (grace applies), not denials. */
int tde_class_is_outage(tde_class code);

#endif
