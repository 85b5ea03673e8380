/*
** request.c: building requests in secret memory. request.h tells the rules.
*/
#include "request.h"

#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"

void tde_sbuf_init(tde_sbuf *s, size_t cap) {
  memset(s, 0, sizeof *s);
  s->p = tde_secret_alloc(cap);
  s->cap = s->p != NULL ? cap : 0;
  s->bad = s->p == NULL;
}

static void add_n(tde_sbuf *s, const char *text, size_t n) {
  if (s->bad || n >= s->cap - s->n) {
    s->bad = 1;
    return;
  }
  memcpy(s->p + s->n, text, n);
  s->n += n;
}

void tde_sbuf_add(tde_sbuf *s, const char *text) {
  add_n(s, text, strlen(text));
}

void tde_sbuf_escaped(tde_sbuf *s, const char *text) {
  static const char hex[] = "0123456789ABCDEF";
  for (; *text != 0; text++) {
    unsigned char c = (unsigned char)*text;
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
        c == '.' || c == '_' || c == '~') {
      add_n(s, text, 1);
    } else {
      char code[3] = {'%', hex[c >> 4], hex[c & 15]};
      add_n(s, code, sizeof code);
      tde_wipe(code, sizeof code);
    }
  }
}

/* Room for n bytes in base64 and a NUL, or s is bad. */
static int base64_fits(tde_sbuf *s, size_t n) {
  if (s->bad || 4 * ((n + 2) / 3) + 1 > s->cap - s->n) s->bad = 1;
  return !s->bad;
}

void tde_sbuf_base64url(tde_sbuf *s, const uint8_t *p, size_t n) {
  if (!base64_fits(s, n)) return;
  tde_base64url(p, n, s->p + s->n);
  s->n += strlen(s->p + s->n);
}

void tde_sbuf_base64(tde_sbuf *s, const uint8_t *p, size_t n) {
  if (!base64_fits(s, n)) return;
  tde_base64(p, n, s->p + s->n);
  s->n += strlen(s->p + s->n);
}

char *tde_sbuf_take(tde_sbuf *s) {
  char *p = s->p;
  if (s->bad) {
    tde_sbuf_free(s);
    return NULL;
  }
  p[s->n] = 0;
  memset(s, 0, sizeof *s);
  return p;
}

void tde_sbuf_free(tde_sbuf *s) {
  tde_secret_free(s->p);
  memset(s, 0, sizeof *s);
  s->bad = 1;
}

tde_class tde_request_begin(tde_request *req, const char *method, const char *url,
                            tde_status *st) {
  tde_request_clear(req);
  req->method = method;
  req->url = strdup(url);
  req->headers = calloc(TDE_REQUEST_HEADERS_MAX + 1, sizeof *req->headers);
  if (req->url != NULL && req->headers != NULL) return TDE_OK;
  tde_request_clear(req);
  return tde_nomem(st);
}

static int has_control(const char *text) {
  for (; *text != 0; text++) {
    unsigned char c = (unsigned char)*text;
    if (c < ' ' || c == 0x7f) return 1;
  }
  return 0;
}

tde_class tde_request_header(tde_request *req, const char *name, const char *value,
                             const char *more, tde_status *st) {
  tde_sbuf s;
  int i = 0;
  if (more == NULL) more = "";
  if (has_control(value) || has_control(more)) {
    return tde_fail(st, TDE_MISCONFIGURED, "look for line ends and other control characters in it",
                    "the value of the request header %s is not one line of text", name);
  }
  while (i < TDE_REQUEST_HEADERS_MAX && req->headers[i] != NULL) i++;
  if (i == TDE_REQUEST_HEADERS_MAX) return tde_fail(st, TDE_INTERNAL, NULL, "too many headers");
  tde_sbuf_init(&s, strlen(name) + strlen(value) + strlen(more) + 3);
  tde_sbuf_add(&s, name);
  tde_sbuf_add(&s, ": ");
  tde_sbuf_add(&s, value);
  tde_sbuf_add(&s, more);
  req->headers[i] = tde_sbuf_take(&s);
  return req->headers[i] != NULL ? TDE_OK : tde_nomem(st);
}

tde_class tde_request_body(tde_request *req, tde_sbuf *s, const char *content_type,
                           tde_status *st) {
  size_t n = s->n;
  tde_secret_free(req->body);
  req->body = tde_sbuf_take(s);
  req->nbody = req->body != NULL ? n : 0;
  if (req->body == NULL) {
    return tde_fail(st, TDE_NOMEM, NULL, "out of memory, or a request to the key service too large");
  }
  return tde_request_header(req, "Content-Type", content_type, NULL, st);
}
