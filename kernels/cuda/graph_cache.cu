/* Finds, records, updates and replays graphs. */
#include "kernels/cuda/graph_cache.cuh"

#include <stdlib.h>
#include <string.h>

enum {
    GRAPH_MAX = 24,
    SEEN_MAX = 256,    /* lists that ran once are remembered by their hash */
    LAUNCHES_MIN = 6,  /* fewer are as fast one by one */
    UPDATE_ONE_IN = 3, /* more launches replaced than this cost as much as recording */
};

struct graph {
    uint64_t hash, last_use;
    struct launch_list list; /* a copy */
    cudaGraph_t graph;       /* kept: its nodes name those of exec */
    cudaGraphExec_t exec;
    cudaGraphNode_t *node; /* [list.n_record] */
};

struct graph_cache {
    struct graph graph[GRAPH_MAX];
    uint32_t n_graph;
    uint64_t clock;
    uint64_t seen[SEEN_MAX]; /* ring */
    uint32_t n_seen;
};

struct graph_cache *graph_cache_create(void)
{
    return (struct graph_cache *)calloc(1, sizeof(struct graph_cache));
}

static void drop(struct graph *g)
{
    if (g->exec) cudaGraphExecDestroy(g->exec);
    if (g->graph) cudaGraphDestroy(g->graph);
    free(g->node);
    free(g->list.record);
    free(g->list.args);
    memset(g, 0, sizeof(*g));
}

void graph_cache_destroy(struct graph_cache *cache)
{
    if (!cache) return;
    for (uint32_t i = 0; i < cache->n_graph; i++)
        drop(&cache->graph[i]);
    free(cache);
}

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t n_bytes)
{
    const uint8_t *bytes = (const uint8_t *)data;
    uint64_t word;
    for (; n_bytes >= sizeof(word); n_bytes -= sizeof(word), bytes += sizeof(word)) {
        memcpy(&word, bytes, sizeof(word));
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    word = 0;
    memcpy(&word, bytes, n_bytes);
    return (hash ^ word) * 0x9e3779b97f4a7c15u;
}

static uint64_t hash_list(const struct launch_list *list)
{
    const uint64_t hash =
        hash_bytes(list->n_record, list->record, list->n_record * sizeof(*list->record));
    return hash_bytes(hash, list->args, list->args_bytes);
}

static bool same_list(const struct launch_list *a, const struct launch_list *b)
{
    return a->n_record == b->n_record && a->args_bytes == b->args_bytes &&
           !memcmp(a->record, b->record, a->n_record * sizeof(*a->record)) &&
           !memcmp(a->args, b->args, a->args_bytes);
}

static bool same_launch(const struct launch_list *a, const struct launch_list *b, size_t i)
{
    const struct launch_record *x = &a->record[i];
    return !memcmp(x, &b->record[i], sizeof(*x)) &&
           !memcmp(a->args + x->args_offset, b->args + x->args_offset, x->args_bytes);
}

/* How many launches differ; SIZE_MAX if the kernels do. */
static size_t count_changes(const struct launch_list *a, const struct launch_list *b)
{
    if (a->n_record != b->n_record || a->args_bytes != b->args_bytes) return SIZE_MAX;
    size_t n = 0;
    for (size_t i = 0; i < a->n_record; i++) {
        if (a->record[i].kernel != b->record[i].kernel) return SIZE_MAX;
        n += !same_launch(a, b, i);
    }
    return n;
}

/* Whether the list ran before; remembers it if not. */
static bool was_seen(struct graph_cache *cache, uint64_t hash)
{
    for (uint32_t i = 0; i < SEEN_MAX; i++)
        if (cache->seen[i] == hash) return true;
    cache->seen[cache->n_seen++ % SEEN_MAX] = hash;
    return false;
}

static cudaError_t launch_each(const struct launch_list *list, cudaStream_t stream)
{
    cudaError_t error = cudaSuccess;
    for (size_t i = 0; i < list->n_record && error == cudaSuccess; i++) {
        const struct launch_record *r = &list->record[i];
        void *args[] = {list->args + r->args_offset};
        error = r->call
                    ? r->call(stream, args[0])
                    : cudaLaunchKernel(r->kernel, r->grid, r->block, args, r->shared_bytes, stream);
    }
    return error;
}

static struct cudaKernelNodeParams node_params(const struct launch_list *list, size_t i,
                                               void *args[1])
{
    const struct launch_record *r = &list->record[i];
    struct cudaKernelNodeParams params = {};
    args[0] = list->args + r->args_offset;
    params.func = const_cast<void *>(r->kernel);
    params.gridDim = r->grid;
    params.blockDim = r->block;
    params.sharedMemBytes = (unsigned)r->shared_bytes;
    params.kernelParams = args;
    return params;
}

static bool copy_list(struct launch_list *to, const struct launch_list *from)
{
    const size_t record_bytes = from->n_record * sizeof(*from->record);
    to->record = (struct launch_record *)malloc(record_bytes);
    to->args = (uint8_t *)malloc(from->args_bytes);
    if (!to->record || !to->args) return false;
    memcpy(to->record, from->record, record_bytes);
    memcpy(to->args, from->args, from->args_bytes);
    to->n_record = from->n_record;
    to->args_bytes = from->args_bytes;
    return true;
}

static bool record_graph(struct graph *g, const struct launch_list *list)
{
    void *args[1];
    g->node = (cudaGraphNode_t *)malloc(list->n_record * sizeof(cudaGraphNode_t));
    if (!g->node || !copy_list(&g->list, list)) return false;
    if (cudaGraphCreate(&g->graph, 0) != cudaSuccess) return false;
    for (size_t i = 0; i < list->n_record; i++) {
        const struct cudaKernelNodeParams params = node_params(list, i, args);
        if (cudaGraphAddKernelNode(&g->node[i], g->graph, i ? &g->node[i - 1] : NULL, i > 0,
                                   &params) != cudaSuccess)
            return false;
    }
    return cudaGraphInstantiate(&g->exec, g->graph, 0) == cudaSuccess;
}

/* A place for a graph: a free one, or that of the least recently used. */
static struct graph *find_place(struct graph_cache *cache)
{
    if (cache->n_graph < GRAPH_MAX) return &cache->graph[cache->n_graph++];
    struct graph *oldest = &cache->graph[0];
    for (uint32_t i = 1; i < GRAPH_MAX; i++)
        if (cache->graph[i].last_use < oldest->last_use) oldest = &cache->graph[i];
    drop(oldest);
    return oldest;
}

static struct graph *find_same(struct graph_cache *cache, uint64_t hash,
                               const struct launch_list *list)
{
    for (uint32_t i = 0; i < cache->n_graph; i++)
        if (cache->graph[i].hash == hash && cache->graph[i].exec &&
            same_list(&cache->graph[i].list, list))
            return &cache->graph[i];
    return NULL;
}

static struct graph *find_similar(struct graph_cache *cache, const struct launch_list *list)
{
    struct graph *best = NULL;
    size_t fewest = list->n_record / UPDATE_ONE_IN + 1;
    for (uint32_t i = 0; i < cache->n_graph; i++) {
        if (!cache->graph[i].exec) continue;
        const size_t n = count_changes(&cache->graph[i].list, list);
        if (n >= fewest) continue;
        fewest = n;
        best = &cache->graph[i];
    }
    return best;
}

/* Turns a similar graph into the list's. false: some launches were replaced, others not. */
static bool update_graph(struct graph *g, const struct launch_list *list)
{
    void *args[1];
    for (size_t i = 0; i < list->n_record; i++) {
        if (same_launch(&g->list, list, i)) continue;
        const struct cudaKernelNodeParams params = node_params(list, i, args);
        if (cudaGraphExecKernelNodeSetParams(g->exec, g->node[i], &params) != cudaSuccess)
            return false;
    }
    memcpy(g->list.record, list->record, list->n_record * sizeof(*list->record));
    memcpy(g->list.args, list->args, list->args_bytes);
    return true;
}

cudaError_t graph_cache_run(struct graph_cache *cache, const struct launch_list *list,
                            cudaStream_t stream, enum graph_use *use)
{
    *use = GRAPH_NONE;
    if (list->n_record < LAUNCHES_MIN || list->has_call) return launch_each(list, stream);
    const uint64_t hash = hash_list(list);
    struct graph *g = find_same(cache, hash, list);
    if (g) {
        *use = GRAPH_REPLAYED;
    } else if (was_seen(cache, hash)) {
        g = find_place(cache);
        *use = GRAPH_CAPTURED;
        if (!record_graph(g, list)) goto without;
    } else {
        g = find_similar(cache, list);
        if (!g) return launch_each(list, stream);
        *use = GRAPH_UPDATED;
        if (!update_graph(g, list)) goto without;
    }
    g->hash = hash;
    g->last_use = ++cache->clock;
    return cudaGraphLaunch(g->exec, stream);

without: /* no memory for a graph, most likely: the launches do without, or say what is wrong */
    drop(g);
    cudaGetLastError();
    *use = GRAPH_NONE;
    return launch_each(list, stream);
}
