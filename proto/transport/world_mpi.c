/* A job under MPI: what goes between ranks is MPI's, who is alive is the guard's (liveness.h).
 *
 * MPI moves messages only while somebody calls it, and its own waiting turns a core. So there is a
 * thread, comm, that sleeps in poll() on the bells (rank_sockets.h) and calls MPI while something
 * is under way:
 *
 * - A sender rings F (a frame) or E (a message of the edge), posts, and tests until it is gone.
 * - A receiver, woken by the bell, tests until as much has arrived as was rung for.
 * - A receiver rings R when it has posted the receive of a message that MPI sends only then; until
 *   that bell the sender need not test.
 *
 * The bell goes first: a sender that posted first and rang when that was done would wait for a
 * receiver that sleeps, since a large message is done when the receiver enters MPI. A thread that
 * waits for an edge takes the bell of the other end over from comm, which saves a wake-up: it tests
 * for as long as the message may take, and then sleeps on that bell itself. Every call of MPI is
 * made under one lock.
 *
 *   frames    on the wire struct wire_frame, which lies where struct frame does once it has arrived
 *   edges     the bytes, from and to where the caller has them */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "proto/base/progress.h"
#include "proto/transport/frame_queue.h"
#include "proto/transport/liveness.h"
#include "proto/transport/mpi/mpi_plugin.h"
#include "proto/transport/rank_sockets.h"
#include "proto/transport/world.h"

enum {
    EAGER_BYTES = 32 * 1024, /* MPI sends more than this only to a posted receive */
    BYTES_PER_US = 1000,     /* slower than any memory: while this lasts a waiting thread tests */
    STEP_NS = 50 * 1000,     /* between tests behind that */
    SPIN_TURNS = 16,         /* tests of one transfer between looks at all */
    WHILE_NS = 200 * 1000,   /* until comm takes over what others have begun, at least */
    WHILE_NS_MAX = 5000 * 1000, /* and at most */
    LOOK_NS = 1000 * 1000       /* and where the other end must act first */
};

static const char BELL_FRAME = 'F', BELL_EDGE = 'E', BELL_READY = 'R';

struct wire_frame {
    uint32_t seq; /* of this pair of ranks */
    uint16_t type, magic;
    uint64_t n_bytes;
    uint8_t payload[];
};
enum { WIRE_MAGIC = 0x4C4E };
static_assert(sizeof(struct wire_frame) == sizeof(struct frame), "a frame is received in place");
static_assert(offsetof(struct wire_frame, payload) == offsetof(struct frame, payload), "the same");

/* A frame between post and done. */
struct flight {
    struct flight *next;
    struct mpi_handle request;
    uint32_t peer;
    size_t n_bytes; /* of wire, as a whole */
    struct wire_frame *wire;
};
struct flights {
    struct flight *first, **last;
};

/* One edge at one of its ends. */
struct side {
    struct transport_edge edge;
    struct mpi_world *world;
    uint32_t peer;
    bool sending;
    atomic_bool aborted;
    int wake; /* eventfd: aborted, or the job is lost */
    /* guarded by the world's lock */
    bool holds_bell, waiting; /* of peer; in side_end */
    struct {
        struct mpi_handle request;
        size_t n_bytes;
    } begun[TRANSPORT_DEPTH]; /* ring */
    uint64_t n_begun, n_done, n_ended;
    uint64_t n_large_done; /* of n_done, above EAGER_BYTES */
    uint64_t n_rung;       /* receiving: E of the sender; sending: R of the receiver */
};

struct mpi_world {
    struct world world;
    const struct mpi_plugin *mpi;
    struct rank_card *card; /* [n_rank] */
    int *live, *bell;       /* [n_rank] sockets */
    struct liveness *liveness;
    struct frame_queue arrived;
    struct lm_error lost; /* written once, before is_lost */
    atomic_bool is_lost;  /* no more calls of MPI */
    struct progress progress;
    double spin_s;
    void (*on_leave)(void); /* or NULL */
    int bells;              /* epoll of the bells that nobody has taken over, and of wake */
    int wake;               /* timerfd: comm has something to do */
    pthread_t comm;
    atomic_uint n_wanting; /* threads that wait for lock, which one that spins keeps otherwise */
    pthread_mutex_t lock;
    pthread_cond_t gone; /* all that was sent, or the job is lost */
    /* guarded by lock, as all calls of MPI are */
    bool stopping, comm_asleep, wake_set, owes_bells;
    bool wake_due;       /* wake_set came true by itself: somebody began something a while ago */
    long while_ns;       /* how long such a while is now */
    uint32_t n_spinning; /* threads that test while they wait: comm keeps out of their way */
    struct flights sending, receiving;
    uint32_t *n_sent, *n_received;  /* [n_rank] frames */
    uint64_t n_frame_rung, n_frame; /* that have come */
    struct side in, out;
    uint32_t (*n_owed)[3]; /* [n_rank], bells that did not fit into the socket: F, E, R */
};

/* -- what is under way ---------------------------------------------------------------------- */

static void flights_append(struct flights *flights, struct flight *flight)
{
    flight->next = NULL;
    *flights->last = flight;
    flights->last = &flight->next;
}

static struct flight *flights_take(struct flights *flights)
{
    struct flight *flight = flights->first;
    flights->first = flight->next;
    if (!flights->first) flights->last = &flights->first;
    return flight;
}

static void free_flights(struct flights *flights)
{
    while (flights->first) {
        struct flight *flight = flights_take(flights);
        free(flight->wire);
        free(flight);
    }
}

/* MPI or memory has failed: so has the job. The guard tells everyone. */
static void break_locked(struct mpi_world *w, const struct lm_error *why)
{
    liveness_abort(w->liveness, why);
}

static void test_side_locked(struct side *side)
{
    struct mpi_world *w = side->world;
    while (side->n_done < side->n_begun) {
        const size_t i = side->n_done % TRANSPORT_DEPTH;
        const size_t n_bytes = side->begun[i].n_bytes;
        size_t n_came = n_bytes;
        bool done;
        struct lm_error err;
        enum lm_status status =
            w->mpi->test(&side->begun[i].request, &done, side->sending ? NULL : &n_came, &err);
        if (status == LM_OK && done && n_came != n_bytes)
            status = lm_fail(&err, LM_E_FAIL, "edge from rank %u: %zu bytes came, %zu expected",
                             side->peer, n_came, n_bytes);
        if (status != LM_OK) break_locked(w, &err);
        if (status != LM_OK || !done) return;
        side->n_done++;
        side->n_large_done += n_bytes > EAGER_BYTES;
        if (side->sending) pthread_cond_signal(&w->gone);
    }
}

static enum lm_status take_frame_locked(struct mpi_world *w, uint32_t from, size_t n_bytes,
                                        struct mpi_handle *message, struct lm_error *err)
{
    if (n_bytes < sizeof(struct wire_frame))
        return lm_fail(err, LM_E_FORMAT, "frame from rank %u: has %zu bytes", from, n_bytes);
    struct flight *flight = malloc(sizeof(*flight));
    struct wire_frame *wire = malloc(n_bytes);
    enum lm_status status = LM_OK;
    if (!flight || !wire)
        status = lm_fail(err, LM_E_NO_MEM, "frame: no memory for %zu bytes", n_bytes);
    if (status == LM_OK) status = w->mpi->take(message, wire, n_bytes, &flight->request, err);
    if (status != LM_OK) {
        free(wire);
        free(flight);
        return status;
    }
    flight->peer = from;
    flight->wire = wire;
    flight->n_bytes = n_bytes;
    flights_append(&w->receiving, flight);
    return LM_OK;
}

/* Posts receives for the frames that are announced. */
static enum lm_status match_frames_locked(struct mpi_world *w, struct lm_error *err)
{
    for (;;) {
        bool found;
        uint32_t from;
        size_t n_bytes;
        struct mpi_handle message;
        enum lm_status status =
            w->mpi->probe(MPI_CHANNEL_FRAMES, &found, &from, &n_bytes, &message, err);
        if (status != LM_OK || !found) return status;
        status = take_frame_locked(w, from, n_bytes, &message, err);
        if (status != LM_OK) return status;
    }
}

/* Hands on what has arrived whole, in the order in which it was matched. */
static enum lm_status deliver_frames_locked(struct mpi_world *w, struct lm_error *err)
{
    while (w->receiving.first) {
        struct flight *flight = w->receiving.first;
        bool done;
        size_t n_came;
        enum lm_status status = w->mpi->test(&flight->request, &done, &n_came, err);
        if (status != LM_OK || !done) return status;
        flights_take(&w->receiving);
        struct wire_frame *wire = flight->wire;
        const uint32_t from = flight->peer;
        free(flight);
        w->n_frame++;
        if (wire->magic != WIRE_MAGIC || wire->seq != w->n_received[from]++ ||
            wire->n_bytes != n_came - sizeof(*wire)) {
            free(wire);
            return lm_fail(err, LM_E_FORMAT, "frame from rank %u: its header is wrong", from);
        }
        const uint16_t type = wire->type;
        struct frame *frame = (struct frame *)wire;
        *frame = (struct frame){.from = from, .type = type, .n_bytes = n_came - sizeof(*wire)};
        status = frame_queue_push(&w->arrived, frame, err);
        if (status != LM_OK) return status;
    }
    return LM_OK;
}

static enum lm_status finish_frames_locked(struct mpi_world *w, struct lm_error *err)
{
    while (w->sending.first) {
        bool done;
        const enum lm_status status = w->mpi->test(&w->sending.first->request, &done, NULL, err);
        if (status != LM_OK || !done) return status;
        struct flight *flight = flights_take(&w->sending);
        free(flight->wire);
        free(flight);
        if (!w->sending.first) pthread_cond_signal(&w->gone);
    }
    return LM_OK;
}

/* Moves everything as far as it goes now. */
static void progress_locked(struct mpi_world *w)
{
    struct lm_error err;
    if (atomic_load(&w->is_lost)) return;
    enum lm_status status = match_frames_locked(w, &err);
    if (status == LM_OK) status = deliver_frames_locked(w, &err);
    if (status == LM_OK) status = finish_frames_locked(w, &err);
    if (status != LM_OK) break_locked(w, &err);
    test_side_locked(&w->in);
    test_side_locked(&w->out);
}

/* What is to be done for transfers to end: sleep until a bell; look now and then; test. For a side
 * in which somebody waits he does it. */
enum need { NEED_BELL, NEED_LOOK, NEED_TEST };

static enum need side_need_locked(const struct side *side)
{
    if (side->n_begun == side->n_done) return NEED_BELL;
    if (!side->sending) return side->n_rung > side->n_done ? NEED_TEST : NEED_BELL;
    /* What MPI should have sent at once but did not is not rung for. */
    const bool large = side->begun[side->n_done % TRANSPORT_DEPTH].n_bytes > EAGER_BYTES;
    if (!large) return NEED_LOOK;
    return side->n_rung > side->n_large_done ? NEED_TEST : NEED_LOOK;
}

static enum need need_locked(const struct mpi_world *w)
{
    if (atomic_load(&w->is_lost)) return NEED_BELL;
    if (w->sending.first || w->receiving.first || w->n_frame_rung > w->n_frame) return NEED_TEST;
    const enum need in = w->in.waiting ? NEED_BELL : side_need_locked(&w->in);
    const enum need out = w->out.waiting ? NEED_BELL : side_need_locked(&w->out);
    return in > out ? in : out;
}

/* Bytes that are moving, or may be. */
static size_t moving_locked(const struct mpi_world *w)
{
    size_t n_bytes = 0;
    if (w->sending.first) n_bytes += w->sending.first->n_bytes;
    if (w->receiving.first) n_bytes += w->receiving.first->n_bytes;
    if (w->in.n_begun > w->in.n_done)
        n_bytes += w->in.begun[w->in.n_done % TRANSPORT_DEPTH].n_bytes;
    if (w->out.n_begun > w->out.n_done)
        n_bytes += w->out.begun[w->out.n_done % TRANSPORT_DEPTH].n_bytes;
    return n_bytes;
}

static bool bell_is_idle(const struct side *side)
{
    return side->holds_bell && !side->waiting;
}

static void wake_comm_in(struct mpi_world *w, long ns)
{
    const struct itimerspec moment = {.it_value.tv_nsec = ns};
    w->wake_set = true;
    w->wake_due = false;
    timerfd_settime(w->wake, 0, &moment, NULL);
}

/* Wakes comm in a while if it has anything to do: whoever has begun something will often wait for
 * it himself, and comm would only take the core from him. A timer that is set stays, since setting
 * one leaves a virtual machine. */
static void wake_comm_locked(struct mpi_world *w)
{
    if (!w->comm_asleep || w->wake_set) return;
    if (need_locked(w) != NEED_BELL || w->owes_bells || bell_is_idle(&w->in) ||
        bell_is_idle(&w->out))
        wake_comm_in(w, w->while_ns);
    w->wake_due = w->wake_set;
}

/* Comm has woken since something was begun a while ago. If whoever began it sees to it himself that
 * was in vain, and took a core from him: a thread that streams is let alone for longer, until comm
 * is needed again. On two cores this makes a stream of 1 MiB a third faster. */
static void learn_while_locked(struct mpi_world *w)
{
    const bool in_vain = w->n_spinning > 0 || need_locked(w) == NEED_BELL;
    if (!in_vain)
        w->while_ns = WHILE_NS;
    else if (w->while_ns < WHILE_NS_MAX)
        w->while_ns *= 2;
}

static void take_lock(struct mpi_world *w)
{
    atomic_fetch_add(&w->n_wanting, 1);
    pthread_mutex_lock(&w->lock);
    atomic_fetch_sub(&w->n_wanting, 1);
}

static void yield_locked(struct mpi_world *w)
{
    pthread_mutex_unlock(&w->lock);
    sched_yield();
    pthread_mutex_lock(&w->lock);
}

/* How long to test without a pause for a message of n_bytes. */
static double test_s(const struct mpi_world *w, size_t n_bytes)
{
    return w->spin_s + 1e-6 * (double)(n_bytes / BYTES_PER_US);
}

/* -- bells ---------------------------------------------------------------------------------- */

/* A socket between two ranks failed. That one of them is gone is the guard's to see; but between
 * two others than rank 0 a cut link shows nowhere else. */
static void judge_bell_locked(struct mpi_world *w, uint32_t peer, int error)
{
    struct lm_error why;
    if (error != ETIMEDOUT && error != EHOSTUNREACH && error != ENETUNREACH) return;
    lm_fail(&why, LM_E_RANK_LOST, "no connection to rank %u (host %s) any more: %s", peer,
            w->card[peer].host, strerror(error));
    break_locked(w, &why);
}

static void ring_locked(struct mpi_world *w, uint32_t to, char bell)
{
    if (send(w->bell[to], &bell, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1) return;
    if (errno != EAGAIN) {
        judge_bell_locked(w, to, errno);
        return;
    }
    w->n_owed[to][bell == BELL_FRAME ? 0 : bell == BELL_EDGE ? 1 : 2]++;
    w->owes_bells = true;
    wake_comm_locked(w);
}

/* Rings again where the socket was full. */
static void ring_owed_locked(struct mpi_world *w)
{
    const char bells[3] = {BELL_FRAME, BELL_EDGE, BELL_READY};
    if (!w->owes_bells) return;
    w->owes_bells = false;
    for (uint32_t i = 0; i < w->world.n_rank; i++)
        for (int kind = 0; kind < 3; kind++) {
            uint32_t n = w->n_owed[i][kind];
            w->n_owed[i][kind] = 0;
            for (; n > 0; n--)
                ring_locked(w, i, bells[kind]);
        }
}

static void hear_bell_locked(struct mpi_world *w, uint32_t from)
{
    char bells[256];
    ssize_t n;
    while ((n = recv(w->bell[from], bells, sizeof(bells), MSG_DONTWAIT)) > 0)
        for (ssize_t i = 0; i < n; i++) {
            w->n_frame_rung += bells[i] == BELL_FRAME;
            w->in.n_rung += bells[i] == BELL_EDGE;
            w->out.n_rung += bells[i] == BELL_READY;
        }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) judge_bell_locked(w, from, errno);
    epoll_ctl(w->bells, EPOLL_CTL_DEL, w->bell[from], NULL); /* nothing more to hear */
}

/* From now on comm hears this bell. */
static void share_bell(struct mpi_world *w, uint32_t from)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = from};
    epoll_ctl(w->bells, EPOLL_CTL_ADD, w->bell[from], &event);
}

static void give_bell(struct side *side)
{
    side->holds_bell = false;
    share_bell(side->world, side->peer);
}

static void take_bell(struct side *side)
{
    if (!side->holds_bell)
        epoll_ctl(side->world->bells, EPOLL_CTL_DEL, side->world->bell[side->peer], NULL);
    side->holds_bell = true;
}

/* -- comm ----------------------------------------------------------------------------------- */

static bool timer_is_over(const struct mpi_world *w)
{
    struct itimerspec left;
    return !timerfd_gettime(w->wake, &left) && !left.it_value.tv_sec && !left.it_value.tv_nsec;
}

/* Sleeps until a bell or wake, at most ns; ns < 0: for ever. */
static void sleep_locked(struct mpi_world *w, long ns)
{
    const struct timespec limit = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    struct pollfd bells = {.fd = w->bells, .events = POLLIN};
    struct epoll_event event[16];
    w->comm_asleep = ns < 0 || ns >= LOOK_NS; /* less is not worth a wake-up */
    pthread_mutex_unlock(&w->lock);
    ppoll(&bells, 1, ns < 0 ? NULL : &limit, NULL);
    take_lock(w);
    w->comm_asleep = false;
    if (w->wake_set && w->wake_due && timer_is_over(w)) learn_while_locked(w);
    w->wake_set = w->wake_due = false;
    const int n = epoll_wait(w->bells, event, sizeof(event) / sizeof(event[0]), 0);
    for (int i = 0; i < n; i++) {
        uint64_t drained;
        if (event[i].data.u32 != w->world.rank)
            hear_bell_locked(w, event[i].data.u32);
        else if (read(w->wake, &drained, sizeof(drained)) < 0)
            continue; /* another wake has been drained already */
    }
}

static void *run_comm(void *context)
{
    struct mpi_world *w = context;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    double spin_until_s = 0;
    size_t n_moving = 0;
    take_lock(w);
    while (!w->stopping) {
        ring_owed_locked(w);
        if (bell_is_idle(&w->in)) give_bell(&w->in);
        if (bell_is_idle(&w->out)) give_bell(&w->out);
        if (w->n_spinning > 0) { /* whoever it is does all else, and wakes us */
            sleep_locked(w, w->owes_bells ? LOOK_NS : -1);
            continue;
        }
        progress_locked(w);
        const enum need need = need_locked(w);
        const size_t n_bytes = moving_locked(w);
        const double now_s = log_now_s();
        if (need != NEED_TEST)
            spin_until_s = 0;
        else if (spin_until_s == 0 || n_bytes != n_moving)
            spin_until_s = now_s + test_s(w, n_bytes);
        n_moving = n_bytes;
        if (now_s < spin_until_s)
            yield_locked(w);
        else
            sleep_locked(w, need == NEED_TEST                    ? STEP_NS
                            : need == NEED_LOOK || w->owes_bells ? LOOK_NS
                                                                 : -1);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* -- edges ---------------------------------------------------------------------------------- */

static enum lm_status mpi_check(struct world *world, struct lm_error *err)
{
    struct mpi_world *w = (struct mpi_world *)world;
    if (!atomic_load(&w->is_lost)) return LM_OK;
    if (err) *err = w->lost;
    return w->lost.status;
}

/* LM_OK, or why this edge cannot be used any more. */
static enum lm_status side_status(struct side *side, struct lm_error *err)
{
    const enum lm_status status = mpi_check(&side->world->world, err);
    if (status != LM_OK) return status;
    if (atomic_load(&side->aborted)) return lm_fail(err, LM_E_RANK_LOST, "edge was aborted");
    return LM_OK;
}

static enum lm_status side_begin(struct side *side, void *buffer, size_t n_bytes,
                                 struct lm_error *err)
{
    struct mpi_world *w = side->world;
    if (n_bytes > INT_MAX)
        return lm_fail(err, LM_E_LIMIT, "edge: %zu bytes, at most %d", n_bytes, INT_MAX);
    take_lock(w);
    enum lm_status status = side_status(side, err);
    if (status == LM_OK) {
        assert(side->n_begun - side->n_ended < TRANSPORT_DEPTH);
        const size_t i = side->n_begun % TRANSPORT_DEPTH;
        side->begun[i].n_bytes = n_bytes;
        if (side->sending) {
            ring_locked(w, side->peer, BELL_EDGE);
            status = w->mpi->send(MPI_CHANNEL_EDGES, side->peer, buffer, n_bytes,
                                  &side->begun[i].request, err);
        } else {
            status = w->mpi->recv(MPI_CHANNEL_EDGES, side->peer, buffer, n_bytes,
                                  &side->begun[i].request, err);
            if (n_bytes > EAGER_BYTES) ring_locked(w, side->peer, BELL_READY);
        }
    }
    if (status == LM_OK) {
        side->n_begun++;
        if (side->n_begun == side->n_done + 1) test_side_locked(side);
        wake_comm_locked(w);
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

/* Whether the oldest transfer has ended, or never will. */
static bool side_ended_locked(struct side *side)
{
    return side->n_done > side->n_ended || side_status(side, NULL) != LM_OK;
}

/* Tests until the oldest transfer of side has ended, for as long as that may take. */
static bool spin_locked(struct side *side)
{
    struct mpi_world *w = side->world;
    const bool moving = side_need_locked(side) == NEED_TEST;
    const size_t n_bytes = moving ? side->begun[side->n_ended % TRANSPORT_DEPTH].n_bytes : 0;
    const double until_s = log_now_s() + test_s(w, n_bytes);
    w->n_spinning++;
    for (unsigned turn = 0;; turn++) {
        if (turn % SPIN_TURNS)
            test_side_locked(side);
        else
            progress_locked(w);
        if (side_ended_locked(side) || log_now_s() >= until_s) break;
        if (atomic_load(&w->n_wanting)) yield_locked(w);
    }
    w->n_spinning--;
    return side_ended_locked(side);
}

static void sleep_on_bell_locked(struct side *side)
{
    struct mpi_world *w = side->world;
    struct pollfd heard[2] = {{.fd = w->bell[side->peer], .events = POLLIN},
                              {.fd = side->wake, .events = POLLIN}};
    const enum need need = side_need_locked(side);
    const struct timespec limit = {.tv_nsec = need == NEED_TEST ? STEP_NS : LOOK_NS};
    wake_comm_locked(w);
    pthread_mutex_unlock(&w->lock);
    ppoll(heard, 2, need == NEED_BELL ? NULL : &limit, NULL);
    take_lock(w);
    hear_bell_locked(w, side->peer);
}

static enum lm_status side_end(struct side *side, struct lm_error *err)
{
    struct mpi_world *w = side->world;
    take_lock(w);
    assert(side->n_ended < side->n_begun);
    if (!side_ended_locked(side)) {
        take_bell(side);
        side->waiting = true;
        while (!spin_locked(side))
            sleep_on_bell_locked(side);
        side->waiting = false;
        hear_bell_locked(w, side->peer);
    }
    side->n_ended++;
    /* The next wait follows at once where more is under way; else comm may sleep on. */
    if (side->holds_bell && side->n_ended == side->n_begun) give_bell(side);
    wake_comm_locked(w);
    const enum lm_status status = side->n_done >= side->n_ended ? LM_OK : side_status(side, err);
    pthread_mutex_unlock(&w->lock);
    return status;
}

static enum lm_status mpi_send_begin(struct transport_edge *edge, const void *buffer,
                                     size_t n_bytes, struct lm_error *err)
{
    return side_begin((struct side *)edge, (void *)buffer, n_bytes, err);
}

static enum lm_status mpi_recv_begin(struct transport_edge *edge, void *buffer, size_t n_bytes,
                                     struct lm_error *err)
{
    return side_begin((struct side *)edge, buffer, n_bytes, err);
}

static enum lm_status mpi_edge_end(struct transport_edge *edge, struct lm_error *err)
{
    return side_end((struct side *)edge, err);
}

static bool mpi_recv_ready(struct transport_edge *edge)
{
    struct side *side = (struct side *)edge;
    take_lock(side->world);
    assert(side->n_ended < side->n_begun);
    if (!side_ended_locked(side)) test_side_locked(side);
    const bool ready = side_ended_locked(side);
    pthread_mutex_unlock(&side->world->lock);
    return ready;
}

static void wake_side(struct side *side)
{
    const uint64_t one = 1;
    if (write(side->wake, &one, sizeof(one)) < 0) return; /* it is awake */
}

static void mpi_edge_abort(struct transport_edge *edge)
{
    struct side *side = (struct side *)edge;
    atomic_store(&side->aborted, true);
    wake_side(side);
}

/* The side is the world's; receives that were never ended must not write into freed memory. */
static void mpi_edge_close(struct transport_edge *edge)
{
    if (!edge) return;
    struct side *side = (struct side *)edge;
    struct mpi_world *w = side->world;
    take_lock(w);
    if (!side->sending && !atomic_load(&w->is_lost))
        for (; side->n_done < side->n_begun; side->n_done++)
            w->mpi->cancel(&side->begun[side->n_done % TRANSPORT_DEPTH].request);
    pthread_mutex_unlock(&w->lock);
}

static const struct transport_ops edge_ops = {
    .name = "mpi",
    .send_begin = mpi_send_begin,
    .send_end = mpi_edge_end,
    .recv_begin = mpi_recv_begin,
    .recv_end = mpi_edge_end,
    .recv_ready = mpi_recv_ready,
    .abort = mpi_edge_abort,
    .close = mpi_edge_close,
};

/* -- world ---------------------------------------------------------------------------------- */

static enum lm_status mpi_send(struct world *world, uint32_t to, uint16_t type, const void *payload,
                               size_t n_bytes, struct lm_error *err)
{
    struct mpi_world *w = (struct mpi_world *)world;
    assert(to < world->n_rank && to != world->rank);
    if (n_bytes > INT_MAX - sizeof(struct wire_frame))
        return lm_fail(err, LM_E_LIMIT, "frame: %zu bytes, at most 2 GiB", n_bytes);
    struct flight *flight = malloc(sizeof(*flight));
    struct wire_frame *wire = malloc(sizeof(*wire) + n_bytes);
    enum lm_status status = LM_OK;
    if (!flight || !wire) {
        status = lm_fail(err, LM_E_NO_MEM, "frame: no memory for %zu bytes", n_bytes);
        goto free_frame;
    }
    *wire = (struct wire_frame){.type = type, .magic = WIRE_MAGIC, .n_bytes = n_bytes};
    if (n_bytes) memcpy(wire->payload, payload, n_bytes);
    flight->wire = wire;
    flight->n_bytes = sizeof(*wire) + n_bytes;

    take_lock(w);
    if (atomic_load(&w->is_lost)) {
        *(err ? err : &(struct lm_error){0}) = w->lost;
        status = w->lost.status;
        goto unlock;
    }
    wire->seq = w->n_sent[to];
    ring_locked(w, to, BELL_FRAME);
    status =
        w->mpi->send(MPI_CHANNEL_FRAMES, to, wire, sizeof(*wire) + n_bytes, &flight->request, err);
    if (status != LM_OK) goto unlock;
    w->n_sent[to]++;
    flights_append(&w->sending, flight);
    if (finish_frames_locked(w, err) != LM_OK || (w->sending.first && w->comm_asleep))
        wake_comm_in(w, 1); /* nobody else will see to it */
    pthread_mutex_unlock(&w->lock);
    return LM_OK;

unlock:
    pthread_mutex_unlock(&w->lock);
free_frame:
    free(wire);
    free(flight);
    return status;
}

static enum lm_status mpi_recv(struct world *world, double timeout_s, struct frame **out,
                               struct lm_error *err)
{
    return frame_queue_pop(&((struct mpi_world *)world)->arrived, timeout_s, out, err);
}

static enum lm_status mpi_edge_open(struct world *world, bool sending, struct transport_edge **out,
                                    struct lm_error *err)
{
    (void)err;
    struct mpi_world *w = (struct mpi_world *)world;
    assert(sending ? world->rank + 1 < world->n_rank : world->rank > 0);
    *out = sending ? &w->out.edge : &w->in.edge;
    return LM_OK;
}

static bool lock_within_1s(struct mpi_world *w)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec++;
    return !pthread_mutex_timedlock(&w->lock, &deadline);
}

/* Called by the guard. A thread may be inside MPI, with the lock, and never come back. */
static void world_lost(void *context, const struct lm_error *why)
{
    struct mpi_world *w = context;
    w->lost = *why;
    atomic_store(&w->is_lost, true);
    frame_queue_fail(&w->arrived, why);
    wake_side(&w->in);
    wake_side(&w->out);
    const bool locked = lock_within_1s(w);
    pthread_cond_signal(&w->gone);
    if (locked) pthread_mutex_unlock(&w->lock);
}

static void log_side_locked(const char *name, const struct side *side)
{
    log_info("%s: %llu transfers begun, %llu done, %llu taken; %llu rung for%s", name,
             (unsigned long long)side->n_begun, (unsigned long long)side->n_done,
             (unsigned long long)side->n_ended, (unsigned long long)side->n_rung,
             side->waiting ? "; somebody waits" : "");
}

static unsigned length_of(const struct flights *flights)
{
    unsigned n = 0;
    for (const struct flight *flight = flights->first; flight; flight = flight->next)
        n++;
    return n;
}

static void log_state(void *context)
{
    struct mpi_world *w = context;
    if (!lock_within_1s(w)) {
        log_info("transport: a thread is inside MPI and does not come back");
        return;
    }
    log_info("frames: %llu came of %llu rung for, %u on their way here, %u from here%s",
             (unsigned long long)w->n_frame, (unsigned long long)w->n_frame_rung,
             length_of(&w->receiving), length_of(&w->sending),
             w->owes_bells ? "; bells are owed" : "");
    if (w->world.rank > 0) log_side_locked("edge from the rank before", &w->in);
    if (w->world.rank + 1 < w->world.n_rank) log_side_locked("edge to the next rank", &w->out);
    pthread_mutex_unlock(&w->lock);
}

static void leave(void *context, const struct lm_error *why)
{
    const struct mpi_world *w = context;
    (void)why;
    if (w->on_leave) w->on_leave();
    _exit(11);
}

static void mpi_abort(struct world *world, const struct lm_error *why)
{
    liveness_abort(((struct mpi_world *)world)->liveness, why);
}

static void stop_comm(struct mpi_world *w)
{
    take_lock(w);
    w->stopping = true;
    wake_comm_in(w, 1);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->comm, NULL);
}

static void free_world(struct mpi_world *w)
{
    for (uint32_t i = 0; i < w->world.n_rank; i++) {
        if (w->live && w->live[i] >= 0) close(w->live[i]);
        if (w->bell && w->bell[i] >= 0) close(w->bell[i]);
    }
    const int fds[] = {w->bells, w->wake, w->in.wake, w->out.wake};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0) close(fds[i]);
    free_flights(&w->sending);
    free_flights(&w->receiving);
    frame_queue_fini(&w->arrived);
    progress_fini(&w->progress);
    pthread_cond_destroy(&w->gone);
    pthread_mutex_destroy(&w->lock);
    free(w->n_owed);
    free(w->n_received);
    free(w->n_sent);
    free(w->bell);
    free(w->live);
    free(w->card);
    free(w);
}

/* Waits until what was sent has left. */
static void flush(struct mpi_world *w)
{
    take_lock(w);
    while ((w->sending.first || w->out.n_done < w->out.n_begun) && !atomic_load(&w->is_lost))
        pthread_cond_wait(&w->gone, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void mpi_close(struct world *world)
{
    if (!world) return;
    struct mpi_world *w = (struct mpi_world *)world;
    if (!atomic_load(&w->is_lost)) flush(w); /* else comm may keep the lock for ever */
    const bool lost = liveness_goodbye(w->liveness, NULL) != LM_OK;
    if (lost && !lock_within_1s(w)) return; /* comm is inside MPI, with what it uses */
    if (lost) pthread_mutex_unlock(&w->lock);
    stop_comm(w);
    liveness_stop(w->liveness);
    if (!lost) w->mpi->close(); /* of a lost job it would wait for the dead */
    free_world(w);
}

static const struct world_ops mpi_ops = {
    .name = "mpi",
    .send = mpi_send,
    .recv = mpi_recv,
    .check = mpi_check,
    .edge_open = mpi_edge_open,
    .abort = mpi_abort,
    .close = mpi_close,
};

/* -- start ---------------------------------------------------------------------------------- */

static bool number_of(const char *variable, uint32_t *out)
{
    const char *text = getenv(variable);
    if (!text || *text < '0' || *text > '9') return false;
    *out = (uint32_t)strtoul(text, NULL, 10);
    return true;
}

bool world_mpi_launched(uint32_t *rank, uint32_t *n_rank)
{
    *rank = 0;
    *n_rank = 1;
    if (number_of("OMPI_COMM_WORLD_SIZE", n_rank)) {
        number_of("OMPI_COMM_WORLD_RANK", rank);
        return true;
    }
    /* A job script and a shell of Slurm's are steps, too, with numbers of their own. */
    enum { SLURM_STEP_MAX = 0x7FFFFFFF };
    uint32_t step;
    const bool slurm = number_of("SLURM_STEP_ID", &step) && step <= SLURM_STEP_MAX;
    if (slurm && !number_of("SLURM_STEP_NUM_TASKS", n_rank)) number_of("SLURM_NTASKS", n_rank);
    if (number_of("PMIX_RANK", rank)) return true;
    if (!slurm || *n_rank < 2) return false;
    number_of("SLURM_PROCID", rank);
    return true;
}

/* MPI starts when all ranks have, and waits for that without an end: who waits too long exits. */
struct start_watch {
    const struct world_mpi_config *config;
    int started; /* eventfd */
};

static void *watch_start(void *context)
{
    const struct start_watch *watch = context;
    struct pollfd started = {.fd = watch->started, .events = POLLIN};
    const double timeout_s = watch->config->startup_timeout_s;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    if (poll(&started, 1, timeout_s < INT_MAX / 1e3 ? (int)(1e3 * timeout_s) : -1) != 0)
        return NULL;
    log_line(LOG_ERROR, "not all ranks had started after %g s", timeout_s);
    _exit(lm_exit_code(LM_E_RANK_LOST));
}

static enum lm_status open_mpi(struct mpi_world *w, const struct world_mpi_config *config,
                               struct lm_error *err)
{
    struct start_watch watch = {.config = config, .started = eventfd(0, EFD_CLOEXEC)};
    pthread_t thread;
    if (watch.started < 0) return lm_fail_errno(err, "world");
    if (pthread_create(&thread, NULL, watch_start, &watch)) {
        close(watch.started);
        return lm_fail(err, LM_E_NO_MEM, "world: cannot start a thread");
    }
    const enum lm_status status =
        w->mpi->open(config->interface, &w->world.rank, &w->world.n_rank, err);
    eventfd_write(watch.started, 1);
    pthread_join(thread, NULL);
    close(watch.started);
    return status;
}

static enum lm_status start_mpi(struct mpi_world *w, const struct world_mpi_config *config,
                                struct lm_error *err)
{
    const struct plugin_head *head;
    enum lm_status status = plugin_open(&head, MPI_PLUGIN_FILE, sizeof(*w->mpi), err);
    if (status != LM_OK) return status;
    w->mpi = (const struct mpi_plugin *)head;
    status = open_mpi(w, config, err);
    if (status != LM_OK) return status;
    uint32_t rank, n_launched;
    if (world_mpi_launched(&rank, &n_launched) && n_launched > 1 && w->world.n_rank == 1) {
        lm_fail(err, LM_E_USAGE, "started as %u separate single ranks; use srun --mpi=pmix",
                n_launched);
        return lm_hint(err, "or mpirun of the same MPI as this program's, which is Open MPI");
    }
    return LM_OK;
}

static int at_least_1(double value)
{
    return value < 1 ? 1 : (int)value;
}

/* The kernel asks now and then whether the other end can be reached, whatever its process does. */
static void watch_link(int fd, double timeout_s)
{
    enum { N_PROBE = 3 };
    const int on = 1, n_probe = N_PROBE, every_s = at_least_1(timeout_s / 5);
    const int idle_s = at_least_1(timeout_s - N_PROBE * every_s);
    const int timeout_ms = at_least_1(timeout_s * 1e3);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof(every_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &n_probe, sizeof(n_probe));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms));
}

/* Finds out who the others are, and connects to them. */
static enum lm_status meet_others(struct mpi_world *w, const struct world_mpi_config *config,
                                  struct lm_error *err)
{
    const uint32_t n = w->world.n_rank;
    struct rank_card card;
    int listener;
    enum lm_status status = rank_listener_open(&listener, &card, config->interface, err);
    if (status != LM_OK) return status;
    status = w->mpi->exchange(&card, sizeof(card), w->card, config->startup_timeout_s, err);
    if (status == LM_OK)
        status = rank_sockets_connect(listener, w->card, w->world.rank, n,
                                      config->startup_timeout_s, w->live, w->bell, err);
    close(listener);
    if (status != LM_OK) return status;

    uint32_t n_here = 0;
    for (uint32_t i = 0; i < n; i++) {
        n_here += w->card[i].machine == w->card[w->world.rank].machine;
        if (i == w->world.rank) continue;
        watch_link(w->bell[i], config->liveness_timeout_s);
        share_bell(w, i);
    }
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = w->world.rank};
    epoll_ctl(w->bells, EPOLL_CTL_ADD, w->wake, &event);
    w->spin_s = n_here > (uint32_t)sysconf(_SC_NPROCESSORS_ONLN) ? 0 : 1e-6 * config->spin_us;
    w->on_leave = config->on_leave;
    return LM_OK;
}

static enum lm_status allocate(struct mpi_world *w, struct lm_error *err)
{
    const uint32_t n = w->world.n_rank;
    w->card = calloc(n, sizeof(*w->card));
    w->live = malloc(n * sizeof(*w->live));
    w->bell = malloc(n * sizeof(*w->bell));
    w->n_sent = calloc(n, sizeof(*w->n_sent));
    w->n_received = calloc(n, sizeof(*w->n_received));
    w->n_owed = calloc(n, sizeof(*w->n_owed));
    if (w->live) memset(w->live, 0xFF, n * sizeof(*w->live));
    if (w->bell) memset(w->bell, 0xFF, n * sizeof(*w->bell));
    if (!w->card || !w->live || !w->bell || !w->n_sent || !w->n_received || !w->n_owed)
        return lm_fail(err, LM_E_NO_MEM, "world of %u ranks: no memory", n);
    w->in.peer = w->world.rank - 1;
    w->out.peer = w->world.rank + 1;
    w->bells = epoll_create1(EPOLL_CLOEXEC);
    w->wake = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    w->in.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->out.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->bells < 0 || w->wake < 0 || w->in.wake < 0 || w->out.wake < 0)
        return lm_fail_errno(err, "world");
    return LM_OK;
}

static enum lm_status start_threads(struct mpi_world *w, const struct world_mpi_config *config,
                                    struct lm_error *err)
{
    const struct liveness_config liveness = {
        .rank = w->world.rank,
        .n_rank = w->world.n_rank,
        .fd = w->live,
        .card = w->card,
        .timeout_s = config->liveness_timeout_s,
        .heartbeat_s = 0.5,
        .progress = &w->progress,
        .stall_timeout_s = config->stall_timeout_s,
        .log_state = log_state,
        .wants_state = config->wants_state,
        .lost = world_lost,
        .leave = leave,
        .context = w,
    };
    const enum lm_status status = liveness_start(&w->liveness, &liveness, err);
    if (status != LM_OK) return status;
    if (!pthread_create(&w->comm, NULL, run_comm, w)) return LM_OK;
    liveness_stop(w->liveness);
    return lm_fail(err, LM_E_NO_MEM, "world: cannot start a thread");
}

enum lm_status world_mpi_open(struct world **out, const struct world_mpi_config *config,
                              struct lm_error *err)
{
    struct mpi_world *w = calloc(1, sizeof(*w));
    if (!w) return lm_fail(err, LM_E_NO_MEM, "world: no memory");
    w->world.ops = &mpi_ops;
    w->bells = w->wake = -1;
    w->while_ns = WHILE_NS;
    w->in = (struct side){.edge = {&edge_ops}, .world = w, .wake = -1};
    w->out = (struct side){.edge = {&edge_ops}, .world = w, .wake = -1, .sending = true};
    w->sending.last = &w->sending.first;
    w->receiving.last = &w->receiving.first;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->gone, NULL);
    frame_queue_init(&w->arrived);
    progress_init(&w->progress);
    w->world.progress = &w->progress;
    enum lm_status status = start_mpi(w, config, err);
    if (status == LM_OK) status = allocate(w, err);
    if (status == LM_OK) status = meet_others(w, config, err);
    if (status == LM_OK) status = start_threads(w, config, err);
    if (status != LM_OK) { /* MPI stays as it is: ending it waits for the others */
        free_world(w);
        return status;
    }
    *out = &w->world;
    return LM_OK;
}
