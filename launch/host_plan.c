/* Hosts and their slots, read from a list or a file, and ranks given out to them. */
#include "launch/host_plan.h"

#include <ctype.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/base/read_all.h"

enum { MAX_HOST = 1024, MAX_NAME = 256, MAX_FILE_BYTES = 1 << 20, MAX_SLOT = 1024 };

struct host {
    char name[MAX_NAME];
    uint32_t n_slot, n_rank;
};

struct host_list {
    struct host *host; /* [n], capacity MAX_HOST */
    size_t n;
    bool has_slots; /* some host says how many */
};

/* ---- reading ---- */

/* A name goes to the command that starts processes there: nothing in it may pass for an option. */
static bool is_host_name(const char *name)
{
    if (!isalnum((unsigned char)*name)) return false;
    for (; *name; name++)
        if (!isalnum((unsigned char)*name) && !strchr("._-", *name)) return false;
    return true;
}

static bool read_slots(const char *text, uint32_t *n)
{
    char *end;
    const long value = strtol(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || value < 1 || value > MAX_SLOT) return false;
    *n = (uint32_t)value;
    return true;
}

/* Adds slots of a host; n_slot 0: one, not said. */
static enum lm_status add_host(struct host_list *list, const char *where, const char *name,
                               uint32_t n_slot, struct lm_error *err)
{
    struct host *host = list->host;
    if (strlen(name) >= MAX_NAME || !is_host_name(name))
        return lm_fail(err, LM_E_USAGE, "%s: '%.80s' is no name of a host", where, name);
    list->has_slots |= n_slot > 0;
    while (host < list->host + list->n && strcmp(host->name, name))
        host++;
    if (host == list->host + list->n) {
        if (list->n == MAX_HOST)
            return lm_fail(err, LM_E_USAGE, "%s: more than %d hosts", where, MAX_HOST);
        list->n++;
        *host = (struct host){.n_slot = 0};
        strcpy(host->name, name);
    }
    host->n_slot += n_slot ? n_slot : 1;
    return LM_OK;
}

/* NAME or NAME:SLOTS; word is changed. */
static enum lm_status add_word(struct host_list *list, const char *where, char *word,
                               struct lm_error *err)
{
    uint32_t n_slot = 0;
    char *colon = strchr(word, ':');
    if (colon) *colon = '\0';
    if (colon && !read_slots(colon + 1, &n_slot))
        return lm_fail(err, LM_E_USAGE, "%s: slots of %.80s must be 1 to %d, got '%.80s'", where,
                       word, MAX_SLOT, colon + 1);
    return add_host(list, where, word, n_slot, err);
}

static enum lm_status read_list(struct host_list *list, const char *text, struct lm_error *err)
{
    char *copy = strdup(text), *rest = copy;
    enum lm_status status = copy ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for hosts");
    for (char *word; status == LM_OK && (word = strsep(&rest, ","));)
        status = add_word(list, "--hosts", word, err);
    free(copy);
    return status;
}

/* NAME[:SLOTS] [slots=N] [max_slots=N]; what mpirun's own files may have besides is refused. */
static enum lm_status read_line(struct host_list *list, const char *where, char *line,
                                struct lm_error *err)
{
    char *rest, *name, *word;
    uint32_t n_slot = 0;
    line[strcspn(line, "#")] = '\0';
    name = strtok_r(line, " \t\r", &rest);
    if (!name) return LM_OK;
    while ((word = strtok_r(NULL, " \t\r", &rest))) {
        if (!strncmp(word, "max_slots=", 10) || !strncmp(word, "max-slots=", 10)) continue;
        if (strncmp(word, "slots=", 6) || !read_slots(word + 6, &n_slot))
            return lm_fail(err, LM_E_USAGE, "%s: '%.80s' is not slots=N, N from 1 to %d", where,
                           word, MAX_SLOT);
    }
    return n_slot ? add_host(list, where, name, n_slot, err) : add_word(list, where, name, err);
}

static enum lm_status read_file(struct host_list *list, const char *path, struct lm_error *err)
{
    char *text, *rest, where[400];
    size_t n;
    enum lm_status status = read_all_path(path, MAX_FILE_BYTES, &text, &n, err);
    if (status != LM_OK) return status;
    rest = text;
    unsigned n_line = 1;
    for (char *line; status == LM_OK && (line = strsep(&rest, "\n")); n_line++) {
        snprintf(where, sizeof(where), "%.300s:%u", path, n_line);
        status = read_line(list, where, line, err);
    }
    if (status == LM_OK && !list->n) status = lm_fail(err, LM_E_USAGE, "%s: no hosts in it", path);
    free(text);
    return status;
}

/* ---- giving out ---- */

static enum lm_status give_out(struct host_list *list, uint32_t *n_rank, struct lm_error *err)
{
    uint32_t n_slot = 0;
    for (size_t i = 0; i < list->n; i++)
        n_slot += list->host[i].n_slot;
    if (!*n_rank) *n_rank = n_slot;
    if (*n_rank > n_slot && list->has_slots)
        return lm_fail(err, LM_E_USAGE, "%u ranks, but the hosts have %u slots", *n_rank, n_slot);
    uint32_t n_left = *n_rank;
    for (size_t i = 0; i < list->n; i++) {
        struct host *host = &list->host[i];
        const uint32_t n_host = (uint32_t)(list->n - i);
        const uint32_t n_max = *n_rank > n_slot ? (n_left + n_host - 1) / n_host : host->n_slot;
        host->n_rank = n_left < n_max ? n_left : n_max;
        n_left -= host->n_rank;
    }
    return LM_OK;
}

/* "a,a,b": the host of each rank. */
static char *write_hosts(const struct host_list *list)
{
    char *text = NULL;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    if (!out) return NULL;
    for (size_t i = 0; i < list->n; i++)
        for (uint32_t r = 0; r < list->host[i].n_rank; r++)
            fprintf(out, "%s%s", i || r ? "," : "", list->host[i].name);
    if (!fclose(out)) return text;
    free(text);
    return NULL;
}

/* ---- this host ---- */

static bool is_same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    if (!b || a->sa_family != b->sa_family) return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->sa_family == AF_INET6 &&
           !memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                   &((const struct sockaddr_in6 *)b)->sin6_addr, sizeof(struct in6_addr));
}

/* Whether the name stands for an address of this host. */
static bool is_address_here(const char *name)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *addresses;
    struct ifaddrs *interfaces;
    bool found = false;
    if (getaddrinfo(name, NULL, &hints, &addresses)) return false;
    if (!getifaddrs(&interfaces)) {
        for (const struct addrinfo *a = addresses; a; a = a->ai_next)
            for (const struct ifaddrs *i = interfaces; i; i = i->ifa_next)
                found |= is_same_address(a->ai_addr, i->ifa_addr);
        freeifaddrs(interfaces);
    }
    freeaddrinfo(addresses);
    return found;
}

static bool is_here(const char *name)
{
    char own[MAX_NAME] = "";
    gethostname(own, sizeof(own) - 1);
    const size_t n = strcspn(own, ".");
    if (!strcmp(name, own) || (strlen(name) == n && !strncmp(name, own, n))) return true;
    return !strcmp(name, "localhost") || is_address_here(name);
}

/* ---- the plan ---- */

static enum lm_status plan_hosts(struct host_plan *plan, const char *hosts, const char *hostfile,
                                 struct lm_error *err)
{
    struct host_list list = {.host = calloc(MAX_HOST, sizeof(*list.host))};
    if (!list.host) return lm_fail(err, LM_E_NO_MEM, "no memory for hosts");
    enum lm_status status = hosts ? read_list(&list, hosts, err) : read_file(&list, hostfile, err);
    if (status == LM_OK) status = give_out(&list, &plan->n_rank, err);
    if (status == LM_OK) {
        plan->rank0_is_here = is_here(list.host[0].name);
        plan->hosts = write_hosts(&list);
        if (!plan->hosts) status = lm_fail(err, LM_E_NO_MEM, "no memory for hosts");
    }
    free(list.host);
    return status;
}

enum lm_status host_plan_init(struct host_plan *plan, uint32_t n_rank, const char *hosts,
                              const char *hostfile, struct lm_error *err)
{
    *plan = (struct host_plan){.n_rank = n_rank, .rank0_is_here = true};
    if (hosts && hostfile)
        return lm_fail(err, LM_E_USAGE, "--hosts and --hostfile exclude each other");
    if (hosts || hostfile) return plan_hosts(plan, hosts, hostfile, err);
    if (!plan->n_rank) plan->n_rank = 1;
    return LM_OK;
}

void host_plan_fini(struct host_plan *plan)
{
    free(plan->hosts);
}

bool host_plan_unknown(const struct host_plan *plan, char *text, size_t size)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    for (const char *at = plan->hosts; at && *at; at += *at == ',') {
        char name[MAX_NAME];
        struct addrinfo *addresses;
        const size_t n = strcspn(at, ",");
        snprintf(name, sizeof(name), "%.*s", (int)n, at);
        at += n;
        const int error = getaddrinfo(name, NULL, &hints, &addresses);
        if (!error) {
            freeaddrinfo(addresses);
            continue;
        }
        snprintf(text, size, "host %s: %s", name, gai_strerror(error));
        return true;
    }
    return false;
}
