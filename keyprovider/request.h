/*
** request.h: building the requests that a provider hands to the driver.
**
** A header carries a token and a body may carry a DEK, so both are built in
** secret memory, in a buffer of a size that is known at the start: nothing is
** copied while it grows, nothing stays behind. A buffer that overflows or lacks
** memory is bad from then on, and one check at the end finds it.
*/
#ifndef TDE_REQUEST_H
#define TDE_REQUEST_H

#include "provider.h"

/* Bytes of the largest body: a form with a signed assertion. */
#define TDE_FORM_MAX 32768
#define TDE_REQUEST_HEADERS_MAX 8

typedef struct tde_sbuf {
  char *p;      /* secret memory, or NULL */
  size_t n, cap;
  int bad;
} tde_sbuf;

/* cap: bytes with the NUL, at most TDE_SECRET_MAX. */
void tde_sbuf_init(tde_sbuf *s, size_t cap);
void tde_sbuf_add(tde_sbuf *s, const char *text);
/* Percent-encoded: all but RFC 3986's unreserved characters. */
void tde_sbuf_escaped(tde_sbuf *s, const char *text);
/* Base64url of n bytes (bytes.h). */
void tde_sbuf_base64url(tde_sbuf *s, const uint8_t *p, size_t n);
/* Base64 with padding, likewise. */
void tde_sbuf_base64(tde_sbuf *s, const uint8_t *p, size_t n);
/* The text, the caller's (tde_secret_free); NULL when bad. Empties s. */
char *tde_sbuf_take(tde_sbuf *s);
void tde_sbuf_free(tde_sbuf *s);

/* Sets method (a literal) and url (copied), and drops what req had. */
tde_class tde_request_begin(tde_request *req, const char *method, const char *url, tde_status *st);
/* Adds "name: valueMORE"; more may be NULL. A value with a control character,
** which could begin another header, is refused: TDE_MISCONFIGURED. */
tde_class tde_request_header(tde_request *req, const char *name, const char *value,
                             const char *more, tde_status *st);
/* Takes the text of s as body; s is emptied also on failure. */
tde_class tde_request_body(tde_request *req, tde_sbuf *s, const char *content_type,
                           tde_status *st);

#endif
