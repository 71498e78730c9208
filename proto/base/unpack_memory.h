/* Memory for unpacking a protobuf message. protobuf-c gives NULL for a malformed message and for
 * one that there is no memory for alike; afterwards this tells which it was.
 *
 * Ownership: the message's memory is that of malloc; it is freed with the allocator or with NULL.
 * Threads:   one message at a time. */
#ifndef LEAN_PROTO_BASE_UNPACK_MEMORY_H
#define LEAN_PROTO_BASE_UNPACK_MEMORY_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

struct unpack_memory {
    ProtobufCAllocator allocator; /* for unpack; points to this struct, which must stay in place */
    size_t n_left;                /* bytes that may still be taken */
    bool failed;                  /* an allocation did, inside n_left */
};

/* n_bytes_max: what a good message can take at most; one that takes more is malformed. */
void unpack_memory_init(struct unpack_memory *memory, size_t n_bytes_max);

#endif
