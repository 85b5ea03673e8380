/*
** json.h: the JSON library behind a narrow door. json.c is the only file that
** includes jansson.
**
** Values are reference-counted by the library; a tde_json pointer from a
** parse or a constructor is owned by the caller (tde_json_free), one from a
** getter is borrowed. Parsing rejects duplicate keys, embedded NULs in
** strings, trailing text and depth beyond TDE_JSON_DEPTH_MAX. An error names
** the place (a byte's number), never a piece of the text: the text may be a reply
** that holds a token. Objects keep the order in which members were set.
*/
#ifndef TDE_JSON_H
#define TDE_JSON_H

#include <stddef.h>
#include <stdint.h>

#include "../ext/base/status.h"

typedef struct tde_json tde_json;

/* Nesting that a text may have. The library's own limit is 2048 levels of
** recursion, too much for the small stack of a host's thread. */
#define TDE_JSON_DEPTH_MAX 64

/* TDE_CORRUPT when the text is malformed, TDE_NOMEM. what: said in the error ("key document", "instance file"). */
tde_class tde_json_parse(const char *text, size_t n, const char *what, tde_json **out,
                         tde_status *st);
void tde_json_free(tde_json *j);
tde_json *tde_json_copy(const tde_json *j);                 /* deep; NULL: out of memory */
/* Compact text, malloc'd (free with free()); NULL: out of memory. */
char *tde_json_text(const tde_json *j, size_t *n);
char *tde_json_pretty(const tde_json *j, size_t *n);

tde_json *tde_json_object(void);
tde_json *tde_json_array(void);
tde_json *tde_json_null(void);

/* Builders: return 0, or -1 when out of memory or not valid UTF-8. set_json
** and append take over v (also on failure); NULL v is a failure. */
int tde_json_set_text(tde_json *obj, const char *name, const char *v); /* NULL v: JSON null */
/* The text as UTF-8, malloc'd: what is none becomes U+FFFD. NULL: out of memory. */
char *tde_json_clean(const char *v);
int tde_json_set_int(tde_json *obj, const char *name, int64_t v);
int tde_json_set_bool(tde_json *obj, const char *name, int v);
int tde_json_set_json(tde_json *obj, const char *name, tde_json *v);
int tde_json_append(tde_json *arr, tde_json *v);
int tde_json_append_text(tde_json *arr, const char *v);
int tde_json_remove_at(tde_json *arr, size_t i);
/* Removes a member; one that is not there is fine. */
int tde_json_unset(tde_json *obj, const char *name);

/* Getters: NULL or the default when absent or of another type. */
const char *tde_json_get_text(const tde_json *obj, const char *name);
int64_t tde_json_get_int(const tde_json *obj, const char *name, int64_t def);
int tde_json_get_bool(const tde_json *obj, const char *name, int def);
tde_json *tde_json_get(const tde_json *obj, const char *name);
int tde_json_is_object(const tde_json *j);
int tde_json_is_array(const tde_json *j);
/* So that a caller can tell "absent" from "of another type". NULL: false. */
int tde_json_is_text(const tde_json *j);
int tde_json_is_int(const tde_json *j);
int tde_json_is_bool(const tde_json *j);
int tde_json_is_null(const tde_json *j);
size_t tde_json_count(const tde_json *arr);
tde_json *tde_json_at(const tde_json *arr, size_t i);
/* The text at i, borrowed; NULL when it is none. */
const char *tde_json_text_at(const tde_json *arr, size_t i);
/* The integer at i, or the default. */
int64_t tde_json_int_at(const tde_json *arr, size_t i, int64_t def);
/* An object's members by number, in no promised order; the name is borrowed. */
size_t tde_json_members(const tde_json *obj);
const char *tde_json_member_name(const tde_json *obj, size_t i);
/* The next step after a member that does not exist: lead, then the names (between blanks) that
** do, with commas; "..." at its end when it does not fit. */
void tde_json_name_list(const char *lead, const char *names, char *out, size_t cap);

/* A member of the object that a text is, in place: nothing is allocated, so
** that a token or a DEK in a reply is not copied into ordinary memory. A text's
** value is given without its quotes; a number's as written. TDE_CORRUPT: the
** text is malformed, the member is there twice, or its text holds an escape.
** TDE_MISSING: no such member, or neither text nor number. what: as in
** tde_json_parse. */
typedef struct tde_json_span {
  const char *at;
  size_t n;
  int is_text;
} tde_json_span;
tde_class tde_json_find(const char *text, size_t n, const char *what, const char *name,
                        tde_json_span *out, tde_status *st);
/* The same of a member of the object that the member outer is. */
tde_class tde_json_find_in(const char *text, size_t n, const char *what, const char *outer,
                           const char *name, tde_json_span *out, tde_status *st);

#endif
