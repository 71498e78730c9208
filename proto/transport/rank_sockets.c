/* Connecting goes downwards first: the backlog of a listener holds who has not been accepted yet,
 * so no two ranks wait for each other. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "proto/transport/rank_sockets.h"

enum link_kind { LINK_LIVE, LINK_BELL };

/* The first bytes of a connection. The other end answers with its card's token, bits inverted: some
 * address of a rank, a bridge of containers say, may be another machine's to whoever connects. */
struct greeting {
    uint8_t token[RANK_TOKEN_SIZE];
    uint32_t rank;
    uint32_t kind; /* enum link_kind */
};

/* Which addresses may be used: all, those of an interface, those of a network. */
struct network {
    bool any, is_v6;
    char interface[IF_NAMESIZE]; /* "": not named */
    uint8_t bytes[16];
    unsigned n_bit;
};

static enum lm_status parse_network(struct network *out, const char *text, struct lm_error *err)
{
    *out = (struct network){.any = !text};
    if (!text) return LM_OK;
    char address[INET6_ADDRSTRLEN];
    const size_t n = strcspn(text, "/");
    if (n < sizeof(address)) {
        memcpy(address, text, n);
        address[n] = '\0';
        out->is_v6 = strchr(address, ':') != NULL;
        const unsigned n_bit_max = out->is_v6 ? 128 : 32;
        char *end = "";
        const unsigned long n_bit = text[n] ? strtoul(text + n + 1, &end, 10) : n_bit_max;
        out->n_bit = (unsigned)n_bit;
        if (inet_pton(out->is_v6 ? AF_INET6 : AF_INET, address, out->bytes) == 1 && !*end &&
            (!text[n] || text[n + 1]) && n_bit <= n_bit_max)
            return LM_OK;
    }
    if (if_nametoindex(text)) {
        snprintf(out->interface, sizeof(out->interface), "%s", text);
        return LM_OK;
    }
    return lm_fail(err, LM_E_USAGE,
                   "interface %s: is no interface of this machine, no address and no network such "
                   "as 10.0.0.0/24",
                   text);
}

static bool network_holds(const struct network *network, const char *interface, bool is_v6,
                          const uint8_t *bytes)
{
    if (network->any) return true;
    if (*network->interface) return !strcmp(network->interface, interface);
    if (network->is_v6 != is_v6) return false;
    for (unsigned i = 0; i < network->n_bit; i++)
        if ((network->bytes[i / 8] ^ bytes[i / 8]) >> (7 - i % 8) & 1) return false;
    return true;
}

/* The addresses of this machine by which others may reach it. */
static enum lm_status list_addresses(struct rank_card *card, const struct network *network,
                                     struct lm_error *err)
{
    struct ifaddrs *all;
    if (getifaddrs(&all)) return lm_fail_errno(err, "addresses of this machine");
    for (struct ifaddrs *i = all; i && card->n_address < RANK_ADDRESS_MAX; i = i->ifa_next) {
        if (!i->ifa_addr || !(i->ifa_flags & IFF_UP)) continue;
        const bool is_v6 = i->ifa_addr->sa_family == AF_INET6;
        if (!is_v6 && i->ifa_addr->sa_family != AF_INET) continue;
        const struct sockaddr_in6 *v6 = (const void *)i->ifa_addr;
        const struct sockaddr_in *v4 = (const void *)i->ifa_addr;
        /* Addresses of one link only need its index, which differs at the other end. */
        if (is_v6 && IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) continue;
        if (network->any && i->ifa_flags & IFF_LOOPBACK) continue;
        const void *bytes = is_v6 ? (const void *)&v6->sin6_addr : &v4->sin_addr;
        if (!network_holds(network, i->ifa_name, is_v6, bytes)) continue;
        card->address[card->n_address].is_v6 = is_v6;
        memcpy(card->address[card->n_address++].bytes, bytes, is_v6 ? 16 : 4);
    }
    freeifaddrs(all);
    return LM_OK;
}

/* A number that is the same for all processes for which the file behind path is the same one. */
static uint64_t identity_of(const char *path)
{
    struct stat info;
    return stat(path, &info) ? 0 : (uint64_t)info.st_ino;
}

/* FNV-1a of the boot id: machines differ in it, containers of one machine do not. */
static uint64_t boot_identity(void)
{
    char text[64] = "";
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file) {
        if (!fgets(text, sizeof(text), file)) text[0] = '\0';
        fclose(file);
    }
    uint64_t hash = 0xCBF29CE484222325;
    for (const char *c = text; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 0x100000001B3;
    return hash;
}

static struct sockaddr_storage socket_address(bool is_v6, const uint8_t *bytes, uint16_t port,
                                              socklen_t *n_bytes)
{
    struct sockaddr_storage storage = {0};
    if (is_v6) {
        struct sockaddr_in6 *v6 = (void *)&storage;
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        memcpy(&v6->sin6_addr, bytes, 16);
        *n_bytes = sizeof(*v6);
    } else {
        struct sockaddr_in *v4 = (void *)&storage;
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        memcpy(&v4->sin_addr, bytes, 4);
        *n_bytes = sizeof(*v4);
    }
    return storage;
}

/* A listener on every address, of both families where the machine has both. */
static enum lm_status open_listener(int *out, uint16_t *port, struct lm_error *err)
{
    static const uint8_t anywhere[16];
    for (int is_v6 = 1; is_v6 >= 0; is_v6--) {
        const int fd =
            socket(is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) continue;
        const int off = 0;
        if (is_v6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
        socklen_t n;
        struct sockaddr_storage name = socket_address(is_v6, anywhere, 0, &n);
        if (!bind(fd, (struct sockaddr *)&name, n) && !listen(fd, 1024) &&
            !getsockname(fd, (struct sockaddr *)&name, &n)) {
            *port = ntohs(is_v6 ? ((struct sockaddr_in6 *)&name)->sin6_port
                                : ((struct sockaddr_in *)&name)->sin_port);
            *out = fd;
            return LM_OK;
        }
        close(fd);
    }
    return lm_fail_errno(err, "socket between ranks");
}

enum lm_status rank_listener_open(int *listener, struct rank_card *card, const char *network_text,
                                  struct lm_error *err)
{
    *card = (struct rank_card){.pid = getpid()};
    struct network network;
    enum lm_status status = parse_network(&network, network_text, err);
    if (status == LM_OK) status = list_addresses(card, &network, err);
    if (status != LM_OK) return status;
    if (network_text && !card->n_address)
        return lm_fail(err, LM_E_USAGE, "interface %s: this machine has no address in it",
                       network_text);
    gethostname(card->host, sizeof(card->host) - 1);
    const uint64_t boot = boot_identity();
    card->machine = boot ^ identity_of("/proc/self/ns/net") << 1;
    card->pid_space = boot ^ identity_of("/proc/self/ns/pid") << 1;
    if (getrandom(card->token, sizeof(card->token), 0) != sizeof(card->token))
        return lm_fail_errno(err, "random bytes");
    return open_listener(listener, &card->port, err);
}

static int ms_until(double deadline_s)
{
    const double left_s = deadline_s - log_now_s();
    return left_s > 0 ? (int)(left_s * 1e3) + 1 : 0;
}

/* Whether fd has become ready in time. */
static bool wait_for(int fd, short events, double deadline_s)
{
    struct pollfd ready = {.fd = fd, .events = events};
    int n;
    do
        n = poll(&ready, 1, ms_until(deadline_s));
    while (n < 0 && errno == EINTR);
    return n > 0;
}

static bool read_whole(int fd, void *bytes, size_t n, double deadline_s)
{
    for (size_t done = 0; done < n;) {
        const ssize_t got = recv(fd, (char *)bytes + done, n - done, MSG_DONTWAIT);
        if (got > 0)
            done += (size_t)got;
        else if (got == 0 || (errno != EAGAIN && errno != EINTR) ||
                 !wait_for(fd, POLLIN, deadline_s))
            return false;
    }
    return true;
}

static void answer_of(const struct rank_card *card, uint8_t answer[RANK_TOKEN_SIZE])
{
    for (size_t i = 0; i < RANK_TOKEN_SIZE; i++)
        answer[i] = (uint8_t)~card->token[i];
}

/* Connects and greets; -1: the rank of this card does not answer there. */
static int try_address(bool is_v6, const uint8_t *bytes, const struct rank_card *card,
                       const struct greeting *greeting, double deadline_s)
{
    const uint16_t port = card->port;
    uint8_t expected[RANK_TOKEN_SIZE], answer[RANK_TOKEN_SIZE];
    answer_of(card, expected);
    socklen_t n;
    const struct sockaddr_storage name = socket_address(is_v6, bytes, port, &n);
    const int fd = socket(name.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    int failure = 0;
    socklen_t n_failure = sizeof(failure);
    if ((connect(fd, (const struct sockaddr *)&name, n) && errno != EINPROGRESS) ||
        !wait_for(fd, POLLOUT, deadline_s) ||
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &n_failure) || failure ||
        send(fd, greeting, sizeof(*greeting), MSG_NOSIGNAL) != sizeof(*greeting) ||
        !read_whole(fd, answer, sizeof(answer), deadline_s) ||
        memcmp(answer, expected, sizeof(answer)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static enum lm_status connect_to(const struct rank_card *cards, uint32_t from, uint32_t to,
                                 enum link_kind kind, double deadline_s, int *out,
                                 struct lm_error *err)
{
    static const uint8_t loopback[4] = {127, 0, 0, 1};
    const struct rank_card *card = &cards[to];
    struct greeting greeting = {.rank = from, .kind = kind};
    memcpy(greeting.token, cards[0].token, sizeof(greeting.token));
    if (card->machine == cards[from].machine) {
        *out = try_address(false, loopback, card, &greeting, deadline_s);
        if (*out >= 0) return LM_OK;
    }
    /* An address may lead nowhere from here; each gets its share of the time. */
    for (uint32_t i = 0; i < card->n_address; i++) {
        const double now_s = log_now_s();
        const double share_s = (deadline_s - now_s) / (card->n_address - i);
        *out = try_address(card->address[i].is_v6, card->address[i].bytes, card, &greeting,
                           now_s + share_s);
        if (*out >= 0) return LM_OK;
    }
    return lm_fail(
        err, LM_E_RANK_LOST,
        "rank %u (host %s): cannot connect to rank %u (host %s), port %u, at any of its %u "
        "addresses",
        from, cards[from].host, to, card->host, card->port, card->n_address);
}

/* Takes the next connection of a rank of this job; strangers are turned away. */
static enum lm_status accept_one(int listener, const struct rank_card *cards, uint32_t rank,
                                 uint32_t n_rank, double deadline_s, int *live, int *bell,
                                 struct lm_error *err)
{
    while (wait_for(listener, POLLIN, deadline_s)) {
        const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) continue;
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        struct greeting greeting;
        double patience_s = log_now_s() + 2;
        if (patience_s > deadline_s) patience_s = deadline_s;
        if (read_whole(fd, &greeting, sizeof(greeting), patience_s) &&
            !memcmp(greeting.token, cards[0].token, sizeof(greeting.token)) &&
            greeting.rank > rank && greeting.rank < n_rank && greeting.kind <= LINK_BELL) {
            int *place = greeting.kind == LINK_LIVE ? &live[greeting.rank] : &bell[greeting.rank];
            uint8_t answer[RANK_TOKEN_SIZE];
            answer_of(&cards[rank], answer);
            if (*place < 0 && send(fd, answer, sizeof(answer), MSG_NOSIGNAL) == sizeof(answer)) {
                *place = fd;
                return LM_OK;
            }
        }
        close(fd);
    }
    return lm_fail(err, LM_E_RANK_LOST, "rank %u (host %s): not all ranks have connected in time",
                   rank, cards[rank].host);
}

enum lm_status rank_sockets_connect(int listener, const struct rank_card *cards, uint32_t rank,
                                    uint32_t n_rank, double timeout_s, int *live, int *bell,
                                    struct lm_error *err)
{
    const double deadline_s = log_now_s() + timeout_s;
    enum lm_status status = LM_OK;
    for (uint32_t i = 0; i < n_rank; i++)
        live[i] = bell[i] = -1;
    if (rank > 0) status = connect_to(cards, rank, 0, LINK_LIVE, deadline_s, &live[0], err);
    for (uint32_t i = 0; status == LM_OK && i < rank; i++)
        status = connect_to(cards, rank, i, LINK_BELL, deadline_s, &bell[i], err);
    const uint32_t n_above = n_rank - 1 - rank;
    for (uint32_t i = 0; status == LM_OK && i < (rank ? n_above : 2 * n_above); i++)
        status = accept_one(listener, cards, rank, n_rank, deadline_s, live, bell, err);
    return status;
}
