/* The web page: one file, part of the program.
 *
 * page.html is compressed when the program is built (embed_page.py). A browser that has it asks
 * with the entity tag and gets 304. The content security policy lets only the page's own style and
 * script run, by their digests, and connections go back to this server only. */
#ifndef LEAN_COORDINATOR_SERVER_PAGE_H
#define LEAN_COORDINATOR_SERVER_PAGE_H

struct http_exchange;

/* GET /. The context is not used. */
void page_handle(void *context, struct http_exchange *exchange);

#endif
