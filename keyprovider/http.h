/*
** http.h: the one way to a key service over the network.
**
** tde_http_send is a tde_http_send_fn (provider.h). Its policy holds for every
** provider:
**  - https only, TLS 1.2 or later, peer and host verified; the instance may
**    name the certificate authorities. Plain http goes to
**      the instance metadata service, 169.254.169.254, and its token path,
**      the endpoint in IDENTITY_ENDPOINT, on a loopback, link-local or private address,
**      a loopback address, if the instance says "allow_loopback_http": true;
**    all of them without a proxy.
**  - No redirect is followed: a token goes only to the host it was meant for.
**  - A proxy only if the instance says "proxy_from_environment": true, and none in a
**    set-user-id program.
**  - A connect deadline, and one for the whole exchange with its retries, which a
**    request can shorten. A whole operation has twice that time (provider.h).
**  - At most TDE_HTTP_TRIES tries, full-jitter back-off between them, for a
**    failed connection, a timeout, and the status 429, 500, 502, 503, 504.
**    Retry-After is honoured as far as the deadline allows; one of 429 and 503 that is
**    not waited for keeps patient operations (provider.h) from that host until then,
**    for a minute at most: TDE_THROTTLED or TDE_UNREACHABLE, nothing is sent.
**  - A reply of at most TDE_HTTP_BODY_MAX bytes, and headers of at most
**    TDE_HTTP_HEADERS_MAX; both are wiped when released.
** Requests are such that sending one twice does no harm (a key is read, or a
** value is wrapped or unwrapped again).
*/
#ifndef TDE_HTTP_H
#define TDE_HTTP_H

#include "provider.h"

#define TDE_HTTP_TRIES 3
#define TDE_HTTP_BODY_MAX (1024 * 1024)
#define TDE_HTTP_HEADERS_MAX (32 * 1024)
#define TDE_HTTP_POOL 8             /* handles, each with its connections, that are kept */

/* One exchange. TDE_OK: a reply with any HTTP status came back, release it.
** TDE_UNREACHABLE: no connection, a timeout, or a peer that could not be
** verified. TDE_MISCONFIGURED: the URL or the certificate file may not be used.
** TDE_CORRUPT: the reply is too large or no HTTP. TDE_BUSY: the waiter gave up. TDE_NOMEM. */
tde_class tde_http_send(const tde_op *op, const tde_request *req, tde_reply *reply,
                        tde_status *st);

/* Makes tde_http_send the sender. Idempotent. */
void tde_http_install(void);

/* Whether the policy lets this URL be used; *plain is set for http. Sends
** nothing. TDE_MISCONFIGURED otherwise. */
tde_class tde_http_url_check(const tde_op *op, const char *url, int *plain, tde_status *st);

/* Who waits for what this thread asks: given_up is called some times a second meanwhile, in this thread,
** and other than 0 ends the exchange, and every further one, with TDE_BUSY. NULL: nobody gives up. */
typedef struct tde_waiter {
  int (*given_up)(void *ctx);
  void *ctx;
} tde_waiter;
/* Returns who it was before, to be put back. */
tde_waiter tde_http_waits(tde_waiter w);

/* The process ends: exchanges under way fail within a second, and none begins. */
void tde_http_stop(void);

/* Closes the idle connections. */
void tde_http_drop_pool(void);

#endif
