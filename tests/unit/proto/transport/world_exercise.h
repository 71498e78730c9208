/* What every rank of a world does at once in its tests, whatever carries the frames: one thread
 * sends frames of random sizes to random ranks and takes those that come, another moves messages of
 * random sizes over the edges, up to TRANSPORT_DEPTH at a time. Every byte, and the order, is
 * checked. */
#ifndef LEAN_TESTS_UNIT_PROTO_TRANSPORT_WORLD_EXERCISE_H
#define LEAN_TESTS_UNIT_PROTO_TRANSPORT_WORLD_EXERCISE_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/transport/world.h"

/* Ends the process: cmocka's assertions belong to its own thread. */
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)
#define CHECK_OK(call, err) CHECK((call) == LM_OK, "%s", (err).message)

struct exercise {
    struct world *world;
    uint32_t n_frame;   /* that each rank sends to each other one */
    uint32_t n_message; /* over each edge */
    uint32_t seed;
};

/* splitmix64 of what names a message: its size and its bytes follow, so that both ends know them.
 */
static inline uint64_t exercise_hash(uint64_t seed, uint64_t from, uint64_t to, uint64_t i)
{
    uint64_t z = seed * 0x9E3779B97F4A7C15 + (from << 48 ^ to << 32 ^ i) * 0xD1B54A32D192ED03;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

/* Mostly small, one in eight up to 256 KiB, one in 64 up to 4 MiB; empty ones too. */
static inline size_t exercise_size(uint64_t hash)
{
    const uint64_t r = hash >> 8;
    return hash % 64 == 0 ? r % (4 << 20) : hash % 8 == 0 ? r % (256 << 10) : r % 300;
}

static inline void exercise_fill(uint8_t *bytes, size_t n, uint64_t hash)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(hash + i * 0x9E37 + (i >> 8));
}

static inline bool exercise_holds(const uint8_t *bytes, size_t n, uint64_t hash)
{
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != (uint8_t)(hash + i * 0x9E37 + (i >> 8))) return false;
    return true;
}

/* Whether one came. All ranks may want to take now, so none waits while it has something to send.
 */
static inline bool exercise_take_frame(const struct exercise *exercise, bool wait,
                                       uint32_t *n_taken)
{
    struct world *world = exercise->world;
    struct lm_error err;
    struct frame *frame;
    const enum lm_status status = world->ops->recv(world, wait ? 60 : 0, &frame, &err);
    if (!wait && status == LM_E_BUSY) return false;
    CHECK_OK(status, err);
    CHECK(frame->from < world->n_rank, "from %u", frame->from);
    const uint64_t hash =
        exercise_hash(exercise->seed, frame->from, world->rank, n_taken[frame->from]);
    CHECK(frame->n_bytes == exercise_size(hash), "frame %u of rank %u: %zu bytes",
          n_taken[frame->from], frame->from, frame->n_bytes);
    CHECK(frame->type == (uint16_t)hash, "type %u", frame->type);
    CHECK(exercise_holds(frame->payload, frame->n_bytes, hash), "frame %u of rank %u",
          n_taken[frame->from], frame->from);
    n_taken[frame->from]++;
    free(frame);
    return true;
}

static inline void *exercise_frames(void *context)
{
    const struct exercise *exercise = context;
    struct world *world = exercise->world;
    struct lm_error err;
    uint32_t *n_sent = calloc(world->n_rank, sizeof(*n_sent));
    uint32_t *n_taken = calloc(world->n_rank, sizeof(*n_taken));
    const uint32_t n_all = (world->n_rank - 1) * exercise->n_frame;
    uint8_t *payload = malloc(4 << 20);
    for (uint32_t sent = 0, taken = 0, turn = 0; sent < n_all || taken < n_all; turn++) {
        const uint64_t dice = exercise_hash(exercise->seed + 1, world->rank, 0, turn);
        const uint32_t to = (uint32_t)(dice >> 8) % world->n_rank;
        if ((sent < n_all && dice % 4) || taken == n_all) {
            if (to == world->rank || n_sent[to] == exercise->n_frame) continue;
            const uint64_t hash = exercise_hash(exercise->seed, world->rank, to, n_sent[to]++);
            const size_t n_bytes = exercise_size(hash);
            exercise_fill(payload, n_bytes, hash);
            CHECK_OK(world->ops->send(world, to, (uint16_t)hash, payload, n_bytes, &err), err);
            sent++;
        } else if (taken < n_all) {
            taken += exercise_take_frame(exercise, sent == n_all, n_taken);
        }
    }
    free(payload);
    free(n_taken);
    free(n_sent);
    return NULL;
}

/* One direction of one edge, its transfers overlapping as far as depth allows. */
struct exercise_side {
    struct transport_edge *edge;
    bool sending;
    uint32_t from; /* rank */
    uint32_t n_begun, n_ended;
    uint8_t *buffer[TRANSPORT_DEPTH];
};

static inline struct exercise_side exercise_side_open(const struct exercise *exercise, bool sending)
{
    struct lm_error err;
    struct world *world = exercise->world;
    struct exercise_side side = {.sending = sending, .from = world->rank - !sending};
    CHECK_OK(world->ops->edge_open(world, sending, &side.edge, &err), err);
    return side;
}

static inline void exercise_begin(const struct exercise *exercise, struct exercise_side *side)
{
    struct lm_error err;
    const uint64_t hash =
        exercise_hash(exercise->seed + 2, side->from, side->from + 1, side->n_begun);
    const size_t n_bytes = exercise_size(hash);
    uint8_t *buffer = malloc(n_bytes + 1);
    if (side->sending) {
        exercise_fill(buffer, n_bytes, hash);
        CHECK_OK(side->edge->ops->send_begin(side->edge, buffer, n_bytes, &err), err);
    } else {
        CHECK_OK(side->edge->ops->recv_begin(side->edge, buffer, n_bytes, &err), err);
    }
    side->buffer[side->n_begun++ % TRANSPORT_DEPTH] = buffer;
}

static inline void exercise_end(const struct exercise *exercise, struct exercise_side *side)
{
    struct lm_error err;
    const uint64_t hash =
        exercise_hash(exercise->seed + 2, side->from, side->from + 1, side->n_ended);
    uint8_t *buffer = side->buffer[side->n_ended % TRANSPORT_DEPTH];
    if (side->sending) {
        CHECK_OK(side->edge->ops->send_end(side->edge, &err), err);
    } else {
        CHECK_OK(side->edge->ops->recv_end(side->edge, &err), err);
        CHECK(exercise_holds(buffer, exercise_size(hash), hash), "message %u", side->n_ended);
    }
    free(buffer);
    side->n_ended++;
}

/* Takes from the rank before and gives to the rank behind, in an order of its own on every rank.
 * Edges form no circle, so nobody waits for himself. */
static inline void *exercise_edges(void *context)
{
    const struct exercise *exercise = context;
    struct world *world = exercise->world;
    struct exercise_side side[2];
    size_t n_side = 0;
    if (world->rank > 0) side[n_side++] = exercise_side_open(exercise, false);
    if (world->rank + 1 < world->n_rank) side[n_side++] = exercise_side_open(exercise, true);
    for (size_t n_done = 0, turn = 0; n_done < n_side * exercise->n_message; turn++) {
        const uint64_t dice = exercise_hash(exercise->seed + 3, world->rank, 0, turn);
        struct exercise_side *s = &side[(dice >> 32) % n_side];
        const uint32_t n_open = s->n_begun - s->n_ended;
        if (s->n_begun < exercise->n_message && n_open < TRANSPORT_DEPTH && dice % 8 < 5) {
            exercise_begin(exercise, s);
        } else if (n_open) {
            exercise_end(exercise, s);
            n_done++;
        }
    }
    for (size_t i = 0; i < n_side; i++)
        side[i].edge->ops->close(side[i].edge);
    return NULL;
}

/* The whole of it, on one rank. */
static inline void exercise_run(struct exercise *exercise)
{
    pthread_t edges;
    CHECK(!pthread_create(&edges, NULL, exercise_edges, exercise), "no thread");
    exercise_frames(exercise);
    pthread_join(edges, NULL);
}

#endif
