/*
** bytes.h: integers in fixed byte order, hexadecimal and base64url, small texts.
**
** Pure functions; none allocates. Nothing here is for secrets except where
** the name says so.
*/
#ifndef TDE_BYTES_H
#define TDE_BYTES_H

#include <stddef.h>
#include <stdint.h>

uint32_t tde_get32le(const uint8_t *p);
uint64_t tde_get64le(const uint8_t *p);
uint32_t tde_get32be(const uint8_t *p);
void tde_put32le(uint8_t *p, uint32_t v);
void tde_put32be(uint8_t *p, uint32_t v);
void tde_put64le(uint8_t *p, uint64_t v);

/* True when all n bytes are zero. */
int tde_all_zero(const uint8_t *p, size_t n);

/* Lower-case hexadecimal; out gets 2n+1 bytes with the NUL. */
void tde_hex(const uint8_t *p, size_t n, char *out);
/* Strict: exactly 2n digits, either case. Returns 0 on success, -1 otherwise. */
int tde_unhex(const char *text, uint8_t *out, size_t n);

/* RFC 4122 text form; out gets 37 bytes. */
void tde_uuid_text(const uint8_t uuid[16], char *out);

/* RFC 4648 section 5, without padding. out must hold 4*((n+2)/3)+1 bytes. */
void tde_base64url(const uint8_t *p, size_t n, char *out);
/* Strict decoding: no padding, no white space, no stray bits. Returns the
** number of bytes, or -1 when malformed or longer than cap. */
long tde_unbase64url(const char *text, size_t ntext, uint8_t *out, size_t cap);
/* RFC 4648 section 4, with padding; the rest as above. */
void tde_base64(const uint8_t *p, size_t n, char *out);
long tde_unbase64(const char *text, size_t ntext, uint8_t *out, size_t cap);

/* Equal, NULL being as good as an empty text. */
int tde_same_text(const char *a, const char *b);

/* The n bytes at p as a text. 0: with the NUL they are more than cap. */
int tde_copy_part(char *out, size_t cap, const char *p, size_t n);

/* True when name is one of names, which stand with one blank between them. */
int tde_is_one_of(const char *name, const char *names);

#endif
