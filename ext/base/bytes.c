/*
** bytes.c: integers in fixed byte order, hexadecimal and base64url.
**
** What must hold: the decoders accept one spelling only of each value (apart
** from the case of hexadecimal digits), so that a text that was compared or
** authenticated cannot be respelled. Not for secrets: the time taken depends
** on the data.
*/
#include "bytes.h"

#include <string.h>

uint32_t tde_get32le(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint64_t tde_get64le(const uint8_t *p) {
  return (uint64_t)tde_get32le(p) | (uint64_t)tde_get32le(p + 4) << 32;
}

uint32_t tde_get32be(const uint8_t *p) {
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
}

void tde_put32be(uint8_t *p, uint32_t v) {
  p[0] = (uint8_t)(v >> 24);
  p[1] = (uint8_t)(v >> 16);
  p[2] = (uint8_t)(v >> 8);
  p[3] = (uint8_t)v;
}

void tde_put32le(uint8_t *p, uint32_t v) {
  for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (8 * i));
}

void tde_put64le(uint8_t *p, uint64_t v) {
  for (int i = 0; i < 8; i++) p[i] = (uint8_t)(v >> (8 * i));
}

int tde_all_zero(const uint8_t *p, size_t n) {
  /* All bytes equal the first one, and that is zero. */
  return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

void tde_hex(const uint8_t *p, size_t n, char *out) {
  static const char digits[] = "0123456789abcdef";
  for (size_t i = 0; i < n; i++) {
    *out++ = digits[p[i] >> 4];
    *out++ = digits[p[i] & 15];
  }
  *out = 0;
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

int tde_unhex(const char *text, uint8_t *out, size_t n) {
  for (size_t i = 0; i < n; i++) {
    int hi = hex_digit(text[2 * i]);
    if (hi < 0) return -1; /* also at the NUL: nothing is read beyond it */
    int lo = hex_digit(text[2 * i + 1]);
    if (lo < 0) return -1;
    out[i] = (uint8_t)(hi << 4 | lo);
  }
  return text[2 * n] == 0 ? 0 : -1;
}

void tde_uuid_text(const uint8_t uuid[16], char *out) {
  static const uint8_t group[] = {4, 2, 2, 2, 6};
  for (size_t i = 0; i < sizeof group; i++) {
    if (i) *out++ = '-';
    tde_hex(uuid, group[i], out);
    uuid += group[i];
    out += 2 * group[i];
  }
}

/* The two alphabets differ in their last two digits. */
static void base64_with(const uint8_t *p, size_t n, const char *last, int padded, char *out) {
  static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  while (n) {
    size_t take = n < 3 ? n : 3;
    uint32_t v = (uint32_t)p[0] << 16;
    if (take > 1) v |= (uint32_t)p[1] << 8;
    if (take > 2) v |= p[2];
    for (size_t i = 0; i <= take; i++) {
      uint32_t d = v >> (18 - 6 * i) & 63;
      *out++ = d < 62 ? alphabet[d] : last[d - 62];
    }
    for (size_t i = take; padded && i < 3; i++) *out++ = '=';
    p += take;
    n -= take;
  }
  *out = 0;
}

void tde_base64url(const uint8_t *p, size_t n, char *out) {
  base64_with(p, n, "-_", 0, out);
}

void tde_base64(const uint8_t *p, size_t n, char *out) {
  base64_with(p, n, "+/", 1, out);
}

static int base64_digit(char c, const char *last) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == last[0]) return 62;
  return c == last[1] ? 63 : -1;
}

static long unbase64_with(const char *text, size_t ntext, const char *last, uint8_t *out, size_t cap) {
  size_t rest = ntext % 4;
  if (rest == 1) return -1;
  size_t nout = ntext / 4 * 3 + (rest ? rest - 1 : 0);
  if (nout > cap) return -1;
  uint32_t bits = 0;
  unsigned nbits = 0;
  for (size_t i = 0; i < ntext; i++) {
    int d = base64_digit(text[i], last);
    if (d < 0) return -1;
    bits = (bits << 6 | (uint32_t)d) & 0xffff;
    nbits += 6;
    if (nbits < 8) continue;
    nbits -= 8;
    *out++ = (uint8_t)(bits >> nbits);
  }
  /* The bits that fill up the last digit must be zero. */
  if (bits & ((1u << nbits) - 1)) return -1;
  return (long)nout;
}

long tde_unbase64url(const char *text, size_t ntext, uint8_t *out, size_t cap) {
  return unbase64_with(text, ntext, "-_", out, cap);
}

long tde_unbase64(const char *text, size_t ntext, uint8_t *out, size_t cap) {
  size_t pad = 0;
  if (ntext % 4 != 0) return -1;
  while (pad < 2 && pad < ntext && text[ntext - 1 - pad] == '=') pad++;
  return unbase64_with(text, ntext - pad, "+/", out, cap);
}

int tde_same_text(const char *a, const char *b) {
  return strcmp(a ? a : "", b ? b : "") == 0;
}

int tde_copy_part(char *out, size_t cap, const char *p, size_t n) {
  if (n >= cap) return 0;
  memcpy(out, p, n);
  out[n] = 0;
  return 1;
}

int tde_is_one_of(const char *name, const char *names) {
  size_t n = strlen(name);
  if (n == 0 || strchr(name, ' ') != NULL) return 0;
  for (const char *at = strstr(names, name); at != NULL; at = strstr(at + 1, name)) {
    if ((at == names || at[-1] == ' ') && (at[n] == ' ' || at[n] == 0)) return 1;
  }
  return 0;
}
