/*
** leaks.h: whether a secret that went over the wire stands in any text that a
** person or a log gets to see.
**
** The sender under test is wrapped: tokens, assertions, client secrets and DEKs are
** picked out of requests and replies. Texts are collected, and at the end every 16
** bytes of each secret are looked for in them, so that a piece is found as well.
*/
#ifndef TDE_TEST_LEAKS_H
#define TDE_TEST_LEAKS_H

#include "keyprovider/provider.h"

/* What was picked out. */
enum leak_kind { LEAK_TOKEN, LEAK_PROOF, LEAK_DEK, LEAK_PROSE, LEAK_KINDS };

/* One more: what a service says in prose is not for messages, either. */
void leaks_secret(enum leak_kind kind, const char *text);

/* Wraps the sender that is installed. */
void leaks_watch(void);
/* A text that must hold no secret. */
void leaks_text(const char *text);
/* Secrets seen of a kind. */
int leaks_seen(enum leak_kind kind);
/* One of them; NULL: none. */
const char *leaks_sample(enum leak_kind kind);
/* How many of the secrets stand in the texts, whole or in part. */
int leaks_found(enum leak_kind kind);
/* Forgets the texts alone. */
void leaks_forget_texts(void);

#endif
