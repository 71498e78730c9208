/* Any bytes through the text format's reader; what it accepts must survive writing and reading. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/text/textproto.h"
#include "tests/unit/proto/text/sample.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *rewrite(const char *text, size_t n)
{
    ProtobufCMessage *message = textproto_create(&sample__all__descriptor);
    char *written = NULL;
    if (textproto_merge(message, "input", text, n, NULL, NULL, NULL) == LM_OK)
        written = textproto_write(message, NULL, NULL);
    protobuf_c_message_free_unpacked(message, NULL);
    return written;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *once = rewrite((const char *)data, size);
    if (!once) return 0;
    char *twice = rewrite(once, strlen(once));
    if (!twice || strcmp(once, twice)) abort();
    free(once);
    free(twice);
    return 0;
}
