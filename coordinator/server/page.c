#include "coordinator/server/page.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "coordinator/server/http.h"
#include "coordinator/server/page_data.h"

#define CONTENT_TYPE "text/html; charset=utf-8"

/* out: [PAGE_N_BYTES]. What is unpacked is our own, so it cannot fail for its content. */
static bool unpack(unsigned char *out)
{
    z_stream stream = {
        .next_in = (unsigned char *)PAGE_GZIP, /* only read */
        .avail_in = sizeof(PAGE_GZIP),
        .next_out = out,
        .avail_out = PAGE_N_BYTES,
    };
    if (inflateInit2(&stream, MAX_WBITS + 16) != Z_OK) return false; /* + 16: gzip */
    const int status = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    assert(status == Z_STREAM_END && stream.avail_out == 0);
    return true;
}

static void reply_unpacked(struct http_exchange *exchange)
{
    unsigned char *page = malloc(PAGE_N_BYTES);
    if (page && unpack(page)) {
        http_reply(exchange, 200, CONTENT_TYPE, (const char *)page, PAGE_N_BYTES);
    } else {
        struct api_error error;
        api_fail(&error, API_OUT_OF_MEMORY, NULL, "no memory for the page");
        http_reply_error(exchange, &error);
    }
    free(page);
}

void page_handle(void *context, struct http_exchange *exchange)
{
    (void)context;
    http_add_header(exchange, "ETag", PAGE_ETAG);
    http_add_header(exchange, "Cache-Control", "no-cache"); /* kept, and asked for again */
    http_add_header(exchange, "Vary", "Accept-Encoding");
    http_add_header(exchange, "Content-Security-Policy", PAGE_POLICY);
    http_add_header(exchange, "Referrer-Policy", "no-referrer");
    http_add_header(exchange, "X-Content-Type-Options", "nosniff");

    char known[256], encodings[256];
    if (http_header(exchange, "If-None-Match", known, sizeof(known)) && strstr(known, PAGE_ETAG)) {
        http_reply(exchange, 304, CONTENT_TYPE, "", 0);
    } else if (http_header(exchange, "Accept-Encoding", encodings, sizeof(encodings)) &&
               strstr(encodings, "gzip")) {
        http_add_header(exchange, "Content-Encoding", "gzip");
        http_reply(exchange, 200, CONTENT_TYPE, (const char *)PAGE_GZIP, sizeof(PAGE_GZIP));
    } else {
        reply_unpacked(exchange);
    }
}
