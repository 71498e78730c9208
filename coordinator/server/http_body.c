#include "coordinator/server/http_body.h"

#include <limits.h>

#include <zlib.h>

enum { BLOCK_BYTES = 64 << 10, GZIP_WINDOW = 15 + 16 /* zlib's way to ask for gzip's header */ };

/* Inflates all of body into out; several gzip members may follow each other. */
static int inflate_all(const struct byte_buffer *body, size_t max, struct byte_buffer *out)
{
    char block[BLOCK_BYTES];
    const char *data = body->data ? body->data : "";
    z_stream stream = {0};
    size_t n_given = 0;
    int result = inflateInit2(&stream, GZIP_WINDOW);
    if (result != Z_OK) return result;
    do {
        if (!stream.avail_in) {
            const size_t left = body->n - n_given;
            stream.next_in = (unsigned char *)data + n_given;
            stream.avail_in = left < UINT_MAX ? (unsigned)left : UINT_MAX;
            n_given += stream.avail_in;
        }
        stream.next_out = (unsigned char *)block;
        stream.avail_out = sizeof(block);
        result = inflate(&stream, Z_NO_FLUSH);
        byte_buffer_put(out, block, sizeof(block) - stream.avail_out);
        if (result == Z_STREAM_END && (stream.avail_in || n_given < body->n))
            result = inflateReset(&stream);
    } while (result == Z_OK && out->n <= max && !out->failed);
    inflateEnd(&stream);
    return result;
}

bool http_body_gunzip(struct byte_buffer *body, size_t max, struct api_error *error)
{
    struct byte_buffer out = {0};
    const int result = inflate_all(body, max, &out);
    byte_buffer_free(body);
    *body = out;
    if (out.failed || result == Z_MEM_ERROR)
        return api_fail(error, API_OUT_OF_MEMORY, NULL, "There is no memory for the body.");
    if (out.n > max)
        return api_fail(error, API_REQUEST_TOO_LARGE, NULL,
                        "The body has more than %zu bytes when decompressed.", max);
    if (result != Z_STREAM_END)
        return api_fail(error, API_INVALID_JSON, NULL, "The body is not valid gzip data.");
    return true;
}
