/* Packing, and the hash of the program. */
#include "launch/cluster_message.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "launch/device_link.h"

uint64_t cluster_build_id(void)
{
    struct stat info;
    uint64_t id = 0;
    const int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    if (fstat(fd, &info) == 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data != MAP_FAILED) {
            id = XXH3_64bits(data, (size_t)info.st_size);
            munmap(data, (size_t)info.st_size);
        }
    }
    close(fd);
    return id;
}

enum lm_status cluster_send(struct world *world, uint32_t to, Lean__FrameType type,
                            const ProtobufCMessage *message, struct lm_error *err)
{
    const size_t n_bytes = message ? protobuf_c_message_get_packed_size(message) : 0;
    uint8_t *packed = malloc(n_bytes + 1);
    if (!packed) return lm_fail(err, LM_E_NO_MEM, "no memory for a message of %zu bytes", n_bytes);
    if (message) protobuf_c_message_pack(message, packed);
    const enum lm_status status = world->ops->send(world, to, (uint16_t)type, packed, n_bytes, err);
    free(packed);
    return status;
}

void *cluster_unpack(const struct frame *frame, const ProtobufCMessageDescriptor *descriptor,
                     struct lm_error *err)
{
    void *message = protobuf_c_message_unpack(descriptor, NULL, frame->n_bytes, frame->payload);
    if (!message)
        lm_fail(err, LM_E_FORMAT, "rank %u sent a malformed message %s", frame->from,
                descriptor->short_name);
    return message;
}

void cluster_put_offer(Lean__Ready *ready, const struct link_offer *offer)
{
    ready->gpu = (char *)offer->gpu;
    ready->has_nccl_id = offer->has_id;
    ready->nccl_id = (ProtobufCBinaryData){sizeof(offer->id), (uint8_t *)offer->id.bytes};
    ready->has_nccl_version = true;
    ready->nccl_version = offer->nccl_version;
    ready->nccl_error = (char *)offer->why_not;
}

/* An id of another length is none. */
void cluster_read_offer(struct link_offer *offer, const Lean__Ready *ready)
{
    *offer = (struct link_offer){.nccl_version = ready->nccl_version};
    offer->has_id = ready->has_nccl_id && ready->nccl_id.len == sizeof(offer->id);
    if (offer->has_id) memcpy(&offer->id, ready->nccl_id.data, sizeof(offer->id));
    snprintf(offer->gpu, sizeof(offer->gpu), "%s", ready->gpu ? ready->gpu : "");
    snprintf(offer->why_not, sizeof(offer->why_not), "%s",
             ready->nccl_error ? ready->nccl_error : "");
}
