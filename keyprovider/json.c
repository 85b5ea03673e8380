/*
** json.c: the only file that includes jansson.
**
** A tde_json is a json_t behind an opaque name. What must hold: no caller sees
** a library type; no error text quotes the input; running out of memory is
** told apart from malformed text, because the one may pass and the other not.
*/
#include "json.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static json_t *lib(tde_json *j) {
  return (json_t *)(void *)j;
}

/* The library's getters take const pointers but hand out plain ones. */
static const json_t *view(const tde_json *j) {
  return (const json_t *)(const void *)j;
}

static tde_json *ours(json_t *j) {
  return (tde_json *)(void *)j;
}

/* ---- the form of a text ----
**
** The library reports a failed allocation as a syntax error, and recurses as
** deep as the text asks. So the form (RFC 8259) is checked here first, without
** any allocation: what the library then calls bad syntax is missing memory. And
** where its buffer for a token cannot grow, the library goes on with a token that is
** cut off: so what it made of the text is measured against the text. */

typedef struct scan {
  const char *at, *end;
  int depth;
  size_t bytes; /* of all strings, names, and integers, as they are decoded */
} scan;

static void skip_space(scan *s) {
  while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r')) {
    s->at++;
  }
}

static int take(scan *s, char c) {
  if (s->at == s->end || *s->at != c) return 0;
  s->at++;
  return 1;
}

static int digits(scan *s) {
  const char *from = s->at;
  while (s->at < s->end && *s->at >= '0' && *s->at <= '9') s->at++;
  return s->at > from;
}

static int scan_number(scan *s) {
  const char *from = s->at;
  take(s, '-');
  if (!take(s, '0') && !digits(s)) return 0;
  size_t n = (size_t)(s->at - from);
  if (take(s, '.')) {
    if (!digits(s)) return 0;
    n = 0;
  }
  if (take(s, 'e') || take(s, 'E')) {
    if (!take(s, '+')) take(s, '-');
    return digits(s);
  }
  s->bytes += n == 2 && memcmp(from, "-0", 2) == 0 ? 1 : n;
  return 1;
}

/* Four hexadecimal digits, or -1. */
static long scan_hex4(scan *s) {
  long v = 0;
  for (int i = 0; i < 4; i++) {
    char c = s->at < s->end ? *s->at++ : 0;
    if (c >= '0' && c <= '9') v = v * 16 + (c - '0');
    else if (c >= 'a' && c <= 'f') v = v * 16 + (c - 'a' + 10);
    else if (c >= 'A' && c <= 'F') v = v * 16 + (c - 'A' + 10);
    else return -1;
  }
  return v;
}

/* What follows a backslash; surrogates come in pairs only, NUL not at all. */
static int scan_escape(scan *s) {
  if (s->at == s->end) return 0;
  char c = *s->at++;
  s->bytes++;
  if (c != 'u') return c != 0 && strchr("\"\\/bfnrt", c) != NULL;
  long v = scan_hex4(s);
  if (v >= 0xD800 && v <= 0xDBFF) {
    long low = take(s, '\\') && take(s, 'u') ? scan_hex4(s) : -1;
    s->bytes += 3;
    return low >= 0xDC00 && low <= 0xDFFF;
  }
  s->bytes += v < 0x80 ? 0 : v < 0x800 ? 1 : 2; /* in UTF-8 */
  return v > 0 && !(v >= 0xDC00 && v <= 0xDFFF);
}

/* UTF-8 is left to the library, which has an error of its own for it. */
static int scan_string(scan *s) {
  if (!take(s, '"')) return 0;
  while (s->at < s->end) {
    unsigned char c = (unsigned char)*s->at++;
    if (c == '"') return 1;
    if (c < ' ' || (c == '\\' && !scan_escape(s))) return 0;
    s->bytes += c != '\\';
  }
  return 0;
}

static int scan_word(scan *s, const char *word) {
  size_t n = strlen(word);
  if ((size_t)(s->end - s->at) < n || memcmp(s->at, word, n) != 0) return 0;
  s->at += n;
  return 1;
}

static int scan_container(scan *s);

static int scan_value(scan *s) {
  char c = s->at < s->end ? *s->at : 0;
  switch (c) {
    case '{':
    case '[': return scan_container(s);
    case '"': return scan_string(s);
    case 't': return scan_word(s, "true");
    case 'f': return scan_word(s, "false");
    case 'n': return scan_word(s, "null");
    default: return scan_number(s);
  }
}

static int scan_container(scan *s) {
  int object = take(s, '{');
  if ((!object && !take(s, '[')) || ++s->depth > TDE_JSON_DEPTH_MAX) return 0;
  char end = object ? '}' : ']';
  skip_space(s);
  if (!take(s, end)) {
    do {
      skip_space(s);
      if (object) {
        if (!scan_string(s)) return 0;
        skip_space(s);
        if (!take(s, ':')) return 0;
        skip_space(s);
      }
      if (!scan_value(s)) return 0;
      skip_space(s);
    } while (take(s, ','));
    if (!take(s, end)) return 0;
  }
  s->depth--;
  return 1;
}

/* *bytes: see scan. */
static tde_class check_form(const char *text, size_t n, const char *what, size_t *bytes,
                            tde_status *st) {
  scan s = {.at = text, .end = text + n};
  skip_space(&s);
  int ok = scan_container(&s);
  skip_space(&s);
  *bytes = s.bytes;
  if (s.depth > TDE_JSON_DEPTH_MAX) {
    return tde_fail(st, TDE_CORRUPT, NULL, "the %s nests more than %d levels", what,
                    TDE_JSON_DEPTH_MAX);
  }
  if (ok && s.at == s.end) return TDE_OK;
  return tde_fail(st, TDE_CORRUPT, NULL, "the %s is not valid JSON (near byte %zu of %zu)", what,
                  (size_t)(s.at - text), n);
}

/* At a member's name: its value as a span, of a text or number or else (object) of an object. Returns
** 0 when the name is another. */
static int member_at(scan *s, const char *name, int object, tde_json_span *out) {
  const char *from = s->at + 1;
  scan_string(s);
  int same = (size_t)(s->at - 1 - from) == strlen(name) && memcmp(from, name, strlen(name)) == 0;
  skip_space(s);
  take(s, ':');
  skip_space(s);
  const char *value = s->at;
  char c = *value;
  scan_value(s);
  if (!same) return 0;
  memset(out, 0, sizeof *out);
  out->is_text = !object && c == '"';
  if (object ? c == '{' : c == '"' || c == '-' || (c >= '0' && c <= '9')) {
    out->at = value + out->is_text;
    out->n = (size_t)(s->at - value) - 2 * (size_t)out->is_text;
  }
  return 1;
}

static tde_class find(const char *text, size_t n, const char *what, const char *name, int want_object,
                      tde_json_span *out, tde_status *st) {
  int seen = 0;
  size_t bytes;
  memset(out, 0, sizeof *out);
  if (text == NULL) return tde_fail(st, TDE_CORRUPT, NULL, "the %s is empty", what);
  tde_class rc = check_form(text, n, what, &bytes, st);
  if (rc != TDE_OK) return rc;
  /* The form is known to be right from here on. */
  scan s = {.at = text, .end = text + n};
  skip_space(&s);
  int object = take(&s, '{');
  skip_space(&s);
  if (object && s.at < s.end && *s.at == '"') {
    do {
      skip_space(&s);
      seen += member_at(&s, name, want_object, out);
      skip_space(&s);
    } while (take(&s, ','));
  }
  if (seen > 1 || (out->is_text && memchr(out->at, '\\', out->n) != NULL)) {
    return tde_fail(st, TDE_CORRUPT, NULL, "the %s has %s twice, or with an escape in it", what,
                    name);
  }
  if (out->at != NULL) return TDE_OK;
  return tde_fail(st, TDE_MISSING, NULL, "the %s has no %s", what, name);
}

tde_class tde_json_find(const char *text, size_t n, const char *what, const char *name,
                        tde_json_span *out, tde_status *st) {
  return find(text, n, what, name, 0, out, st);
}

tde_class tde_json_find_in(const char *text, size_t n, const char *what, const char *outer,
                           const char *name, tde_json_span *out, tde_status *st) {
  tde_json_span object;
  memset(out, 0, sizeof *out);
  tde_class rc = find(text, n, what, outer, 1, &object, st);
  return rc == TDE_OK ? find(object.at, object.n, what, name, 0, out, st) : rc;
}

static size_t integer_bytes(json_int_t v) {
  size_t n = v < 0 ? 2 : 1;
  while (v /= 10) n++;
  return n;
}

/* The same measure as scan.bytes, of a value that was read. */
static size_t bytes_of(json_t *j) {
  size_t n = 0, i;
  const char *name;
  json_t *v;
  switch (json_typeof(j)) {
    case JSON_STRING: return json_string_length(j);
    case JSON_INTEGER: return integer_bytes(json_integer_value(j));
    case JSON_ARRAY: json_array_foreach(j, i, v) n += bytes_of(v); return n;
    case JSON_OBJECT: json_object_foreach(j, name, v) n += strlen(name) + bytes_of(v); return n;
    default: return 0;
  }
}

tde_class tde_json_parse(const char *text, size_t n, const char *what, tde_json **out,
                         tde_status *st) {
  json_error_t err;
  size_t bytes;
  *out = NULL;
  if (text == NULL) return tde_fail(st, TDE_CORRUPT, NULL, "the %s is empty", what);
  tde_class rc = check_form(text, n, what, &bytes, st);
  if (rc != TDE_OK) return rc;
  /* Zeroed, since the library leaves the code unset where an allocation fails. */
  memset(&err, 0, sizeof err);
  json_t *j = json_loadb(text, n, JSON_REJECT_DUPLICATES, &err);
  if (j != NULL && bytes_of(j) == bytes) {
    *out = ours(j);
    return TDE_OK;
  }
  if (j != NULL) {
    json_decref(j);
    return tde_fail(st, TDE_NOMEM, NULL, "out of memory while reading the %s", what);
  }
  const char *why = NULL;
  switch (json_error_code(&err)) {
    case json_error_duplicate_key: why = "a member is there twice"; break;
    case json_error_numeric_overflow: why = "a number is too large"; break;
    case json_error_invalid_utf8: why = "not UTF-8"; break;
    default: return tde_fail(st, TDE_NOMEM, NULL, "out of memory while reading the %s", what);
  }
  return tde_fail(st, TDE_CORRUPT, NULL, "the %s is not valid JSON (%s, near byte %d of %zu)", what,
                  why, err.position, n);
}

void tde_json_free(tde_json *j) {
  json_decref(lib(j));
}

tde_json *tde_json_copy(const tde_json *j) {
  return ours(json_deep_copy(view(j)));
}

/* The library ignores some failed allocations while it writes text, and would
** leave a part out: what does not read back as the same value is not handed on. */
static char *dump(const tde_json *j, size_t flags, size_t *n) {
  char *text = json_dumps(view(j), flags);
  json_t *again = text != NULL ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
  if (text != NULL && (again == NULL || !json_equal(again, view(j)))) {
    free(text);
    text = NULL;
  }
  json_decref(again);
  if (n != NULL) *n = text != NULL ? strlen(text) : 0;
  return text;
}

char *tde_json_text(const tde_json *j, size_t *n) {
  return dump(j, JSON_COMPACT, n);
}

char *tde_json_pretty(const tde_json *j, size_t *n) {
  return dump(j, JSON_INDENT(2), n);
}

tde_json *tde_json_object(void) {
  return ours(json_object());
}

tde_json *tde_json_array(void) {
  return ours(json_array());
}

tde_json *tde_json_null(void) {
  return ours(json_null());
}

/* Bytes of the UTF-8 character at s (RFC 3629); 0: there is none. */
static size_t utf8_at(const unsigned char *s) {
  size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : 4;
  if (n == 4 && (s[0] < 0xf0 || s[0] > 0xf4)) return 0;
  for (size_t i = 1; i < n; i++) {
    if ((s[i] & 0xc0) != 0x80) return 0;
  }
  if (n == 3 && ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f))) return 0;
  if (n == 4 && ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))) return 0;
  return n;
}

char *tde_json_clean(const char *v) {
  static const char replacement[] = "\xef\xbf\xbd";
  char *clean = malloc(3 * strlen(v) + 1), *to = clean;
  for (const unsigned char *s = (const unsigned char *)v; clean != NULL && *s != 0;) {
    size_t n = utf8_at(s);
    memcpy(to, n > 0 ? (const char *)s : replacement, n > 0 ? n : 3);
    to += n > 0 ? n : 3;
    s += n > 0 ? n : 1;
  }
  if (clean != NULL) *to = 0;
  return clean;
}

/* JSON has no other text than UTF-8, but paths are bytes. */
static json_t *string_of(const char *v) {
  json_t *j = json_string(v);
  if (j != NULL) return j;
  char *clean = tde_json_clean(v);
  if (clean != NULL) j = json_string(clean);
  free(clean);
  return j;
}

/* The *_new functions take the value over, also when they fail, and fail on a
** NULL container or value: so a chain of builders needs one check at its end. */
int tde_json_set_text(tde_json *obj, const char *name, const char *v) {
  return json_object_set_new(lib(obj), name, v != NULL ? string_of(v) : json_null());
}

int tde_json_set_int(tde_json *obj, const char *name, int64_t v) {
  return json_object_set_new(lib(obj), name, json_integer((json_int_t)v));
}

int tde_json_set_bool(tde_json *obj, const char *name, int v) {
  return json_object_set_new(lib(obj), name, json_boolean(v));
}

int tde_json_set_json(tde_json *obj, const char *name, tde_json *v) {
  return json_object_set_new(lib(obj), name, lib(v));
}

int tde_json_append(tde_json *arr, tde_json *v) {
  return json_array_append_new(lib(arr), lib(v));
}

int tde_json_append_text(tde_json *arr, const char *v) {
  return json_array_append_new(lib(arr), json_string(v));
}

int tde_json_remove_at(tde_json *arr, size_t i) {
  return json_array_remove(lib(arr), i);
}

int tde_json_unset(tde_json *obj, const char *name) {
  return json_object_get(lib(obj), name) != NULL ? json_object_del(lib(obj), name) : 0;
}

const char *tde_json_get_text(const tde_json *obj, const char *name) {
  return json_string_value(json_object_get(view(obj), name));
}

int64_t tde_json_get_int(const tde_json *obj, const char *name, int64_t def) {
  const json_t *v = json_object_get(view(obj), name);
  return json_is_integer(v) ? (int64_t)json_integer_value(v) : def;
}

int tde_json_get_bool(const tde_json *obj, const char *name, int def) {
  const json_t *v = json_object_get(view(obj), name);
  return json_is_boolean(v) ? json_is_true(v) : def;
}

tde_json *tde_json_get(const tde_json *obj, const char *name) {
  return ours(json_object_get(view(obj), name));
}

int tde_json_is_object(const tde_json *j) {
  return json_is_object(view(j));
}

int tde_json_is_array(const tde_json *j) {
  return json_is_array(view(j));
}

int tde_json_is_text(const tde_json *j) {
  return json_is_string(view(j));
}

int tde_json_is_int(const tde_json *j) {
  return json_is_integer(view(j));
}

int tde_json_is_bool(const tde_json *j) {
  return json_is_boolean(view(j));
}

int tde_json_is_null(const tde_json *j) {
  return json_is_null(view(j));
}

size_t tde_json_count(const tde_json *arr) {
  return json_array_size(view(arr));
}

tde_json *tde_json_at(const tde_json *arr, size_t i) {
  return ours(json_array_get(view(arr), i));
}

const char *tde_json_text_at(const tde_json *arr, size_t i) {
  return json_string_value(json_array_get(view(arr), i));
}

int64_t tde_json_int_at(const tde_json *arr, size_t i, int64_t def) {
  const json_t *v = json_array_get(view(arr), i);
  return json_is_integer(v) ? (int64_t)json_integer_value(v) : def;
}

size_t tde_json_members(const tde_json *obj) {
  return json_object_size(view(obj));
}

const char *tde_json_member_name(const tde_json *obj, size_t i) {
  void *it = json_object_iter(lib((tde_json *)(uintptr_t)obj));
  while (it != NULL && i-- > 0) it = json_object_iter_next(lib((tde_json *)(uintptr_t)obj), it);
  return it != NULL ? json_object_iter_key(it) : NULL;
}

void tde_json_name_list(const char *lead, const char *names, char *out, size_t cap) {
  int n = snprintf(out, cap, "%s", lead);
  size_t at = n > 0 && (size_t)n < cap ? (size_t)n : cap - 1;
  for (const char *p = names; *p != 0 && at + 1 < cap; p++) {
    if (*p == ' ' && at + 2 < cap) out[at++] = ',';
    out[at++] = *p;
    out[at] = 0;
  }
  if (at + 1 == cap && cap > 4) snprintf(out + cap - 4, 4, "...");
}
