/*
** leaks.c: collecting secrets and texts, and comparing them.
*/
#include "leaks.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyprovider/json.h"

#define WINDOW 16
#define SECRETS_MAX 20000

static struct {
  pthread_mutex_t mutex;
  struct {
    char *text;
    enum leak_kind kind;
  } secrets[SECRETS_MAX];
  int n;
  char *texts;
  size_t ntexts, cap;
} all = {.mutex = PTHREAD_MUTEX_INITIALIZER};
static tde_http_send_fn watched;

/* ---- secrets ---- */

static void add_secret(enum leak_kind kind, const char *p, size_t n) {
  if (n < WINDOW) return;
  pthread_mutex_lock(&all.mutex);
  int i = 0;
  while (i < all.n && (strlen(all.secrets[i].text) != n || memcmp(all.secrets[i].text, p, n) != 0))
    i++;
  if (i == all.n && all.n < SECRETS_MAX) {
    all.secrets[all.n].text = strndup(p, n);
    all.secrets[all.n++].kind = kind;
  }
  pthread_mutex_unlock(&all.mutex);
}

void leaks_secret(enum leak_kind kind, const char *text) {
  add_secret(kind, text, strlen(text));
}

/* What follows mark in text, up to one of the characters of end. */
static void add_after(enum leak_kind kind, const char *text, const char *mark, const char *end) {
  const char *p = text != NULL ? strstr(text, mark) : NULL;
  if (p == NULL) return;
  p += strlen(mark);
  add_secret(kind, p, strcspn(p, end));
}

static void add_member(enum leak_kind kind, const tde_reply *reply, const char *name) {
  tde_json_span v;
  if (tde_json_find(reply->body, reply->nbody, "reply", name, &v, NULL) == TDE_OK && v.is_text) {
    add_secret(kind, v.at, v.n);
  }
}

static tde_class watch(const tde_op *op, const tde_request *req, tde_reply *reply, tde_status *st) {
  int vault = strstr(req->url, "/keys/") != NULL;
  for (char **h = req->headers; h != NULL && *h != NULL; h++) {
    add_after(LEAK_TOKEN, *h, "Authorization: Bearer ", "");
    add_after(LEAK_PROOF, *h, "X-IDENTITY-HEADER: ", "");
  }
  add_after(LEAK_PROOF, req->body, "client_secret=", "&");
  add_after(LEAK_PROOF, req->body, "client_assertion=", "&");
  if (vault && op->kind == TDE_OP_WRAP) add_after(LEAK_DEK, req->body, "\"value\":\"", "\"");
  tde_class rc = watched(op, req, reply, st);
  if (rc == TDE_OK) add_member(LEAK_TOKEN, reply, "access_token");
  if (rc == TDE_OK && vault && op->kind == TDE_OP_UNWRAP) add_member(LEAK_DEK, reply, "value");
  return rc;
}

void leaks_watch(void) {
  watched = tde_http_sender;
  tde_http_sender = watch;
}

int leaks_seen(enum leak_kind kind) {
  int n = 0;
  for (int i = 0; i < all.n; i++) n += all.secrets[i].kind == kind;
  return n;
}

const char *leaks_sample(enum leak_kind kind) {
  for (int i = 0; i < all.n; i++) {
    if (all.secrets[i].kind == kind) return all.secrets[i].text;
  }
  return NULL;
}

/* ---- texts ---- */

void leaks_text(const char *text) {
  size_t n = strlen(text);
  pthread_mutex_lock(&all.mutex);
  while (all.ntexts + n + 1 > all.cap) {
    all.cap = all.cap > 0 ? 2 * all.cap : 65536;
    all.texts = realloc(all.texts, all.cap);
    if (all.texts == NULL) abort();
  }
  memcpy(all.texts + all.ntexts, text, n);
  all.ntexts += n;
  all.texts[all.ntexts++] = '\n';
  pthread_mutex_unlock(&all.mutex);
}

void leaks_forget_texts(void) {
  all.ntexts = 0;
}

/* ---- comparing ---- */

static uint64_t hash(const char *p) {
  uint64_t h = 1469598103934665603u;
  for (int i = 0; i < WINDOW; i++) h = (h ^ (unsigned char)p[i]) * 1099511628211u;
  return h | 1; /* 0 is an empty place */
}

/* A place in a table of n (a power of two) that holds h, or is empty. */
static size_t place(const uint64_t *table, size_t n, uint64_t h) {
  size_t i = h & (n - 1);
  while (table[i] != 0 && table[i] != h) i = (i + 1) & (n - 1);
  return i;
}

int leaks_found(enum leak_kind kind) {
  size_t n = 1024;
  int found = 0;
  while (n < 2 * all.ntexts) n *= 2;
  uint64_t *table = calloc(n, sizeof *table);
  if (table == NULL) abort();
  for (size_t i = 0; i + WINDOW <= all.ntexts; i++) {
    uint64_t h = hash(all.texts + i);
    table[place(table, n, h)] = h;
  }
  for (int k = 0; k < all.n; k++) {
    const char *s = all.secrets[k].text;
    int seen = 0;
    if (all.secrets[k].kind != kind) continue;
    for (size_t i = 0; !seen && i + WINDOW <= strlen(s); i++) {
      seen = table[place(table, n, hash(s + i))] != 0;
    }
    found += seen;
  }
  free(table);
  return found;
}
