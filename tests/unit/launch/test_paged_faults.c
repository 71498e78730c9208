/* Whatever read or allocation fails, in a model whose experts are read as they are needed: that
 * request fails with one error that names the place, or does without; the next one gives the bits
 * that it should.
 *
 * The faults come in between the program and what it calls: the linker turns the calls listed in
 * tests/CMakeLists.txt into those of __wrap_X here, whose __real_X is the function itself. Both
 * engines of the disk reader hand what a call brought to disk_piece_advance, so there a read can
 * fail, bring less, bring it late or bring other bytes, whichever of them ran it. */
#include "tests/unit/cmocka_all.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "launch/engine.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/gguf/gguf_write.h"
#include "proto/model/hparams.h"
#include "worker/pack/packer.h"
#include "worker/pager/disk_engine.h"
#include "worker/pager/heat_profile.h"

enum { N_PROMPT = 4, N_NEW = 2, N_CALL_MIN = 20 };

/* In memory where that is possible: a disk would take most of the time. */
static char folder[] = "/dev/shm/lean-test-faults-XXXXXX";
static char model[64], pack[64], pack_dense[80], profile[80];

/* ---- faults ------------------------------------------------------------------------------- */

enum fault_kind {
    FAULT_NONE,
    FAULT_EIO,
    FAULT_END,         /* as if the file ended there */
    FAULT_OTHER_BYTES, /* only a checksum tells */
    FAULT_LESS,        /* these four are no reason to fail */
    FAULT_AGAIN,
    FAULT_INTERRUPTED,
    FAULT_LATE,
    FAULT_ALLOC
};

static struct {
    _Atomic(enum fault_kind) kind; /* set last, so that who sees it sees the rest */
    atomic_long at;                /* the at-th call */
    atomic_bool on;                /* and all after it */
    atomic_long n;                 /* calls */
    atomic_long hit;               /* of them faulty */
} fault;

static void arm(enum fault_kind kind, long at, bool on)
{
    fault.at = at;
    fault.on = on;
    atomic_store(&fault.hit, 0);
    atomic_store(&fault.n, 0);
    atomic_store(&fault.kind, kind);
}

/* Ends the faults; whether there was one. */
static bool disarm(void)
{
    fault.kind = FAULT_NONE;
    return atomic_load(&fault.hit) > 0;
}

static bool is_due(void)
{
    const long n = atomic_fetch_add(&fault.n, 1) + 1;
    const bool due = fault.on ? n >= fault.at : n == fault.at;
    if (due) atomic_fetch_add(&fault.hit, 1);
    return due;
}

bool __real_disk_piece_advance(struct disk_piece *piece, int64_t result);
bool __wrap_disk_piece_advance(struct disk_piece *piece, int64_t result);
bool __wrap_disk_piece_advance(struct disk_piece *piece, int64_t result)
{
    const enum fault_kind kind = fault.kind;
    if (kind == FAULT_NONE || kind == FAULT_ALLOC || !is_due())
        return __real_disk_piece_advance(piece, result);
    switch (kind) {
    case FAULT_EIO:
        result = -EIO;
        break;
    case FAULT_END:
        result = (int64_t)piece->n_tail;
        break;
    case FAULT_OTHER_BYTES:
        piece->to[piece->n_needed - 1] ^= 0x10;
        break;
    case FAULT_LESS: /* something new all the same */
        if (result > (int64_t)piece->n_tail + 1) result -= (result - (int64_t)piece->n_tail) / 3;
        break;
    case FAULT_AGAIN:
        result = -EAGAIN;
        break;
    case FAULT_INTERRUPTED:
        result = -EINTR;
        break;
    default:
        nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
    }
    return __real_disk_piece_advance(piece, result);
}

static bool alloc_fails(void)
{
    if (fault.kind != FAULT_ALLOC || !is_due()) return false;
    errno = ENOMEM;
    return true;
}

void *__real_malloc(size_t n_bytes);
void *__wrap_malloc(size_t n_bytes);
void *__wrap_malloc(size_t n_bytes)
{
    return alloc_fails() ? NULL : __real_malloc(n_bytes);
}

void *__real_calloc(size_t n, size_t n_bytes);
void *__wrap_calloc(size_t n, size_t n_bytes);
void *__wrap_calloc(size_t n, size_t n_bytes)
{
    return alloc_fails() ? NULL : __real_calloc(n, n_bytes);
}

void *__real_realloc(void *old, size_t n_bytes);
void *__wrap_realloc(void *old, size_t n_bytes);
void *__wrap_realloc(void *old, size_t n_bytes)
{
    return alloc_fails() ? NULL : __real_realloc(old, n_bytes);
}

void *__real_aligned_alloc(size_t alignment, size_t n_bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes)
{
    return alloc_fails() ? NULL : __real_aligned_alloc(alignment, n_bytes);
}

void *__real_mmap(void *at, size_t n_bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t n_bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t n_bytes, int protection, int flags, int fd, off_t offset)
{
    if (alloc_fails()) return MAP_FAILED;
    return __real_mmap(at, n_bytes, protection, flags, fd, offset);
}

int __real_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *context);
int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *context);
int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *context)
{
    return alloc_fails() ? EAGAIN : __real_pthread_create(out, attributes, run, context);
}

/* ---- requests ----------------------------------------------------------------------------- */

/* How a model is opened, and what the names of its files begin with. */
struct setting {
    const char *path, *files, *io, *slots;
};

static const struct setting settings[] = {{model, model, "uring", "25%"},
                                          {model, model, "pread", "min"},
                                          {pack_dense, pack, "uring", "min"},
                                          {pack_dense, pack, "pread", "25%"},
                                          /* and in the mapping of the file */
                                          {model, model, NULL, NULL},
                                          {pack_dense, pack, NULL, NULL}};
enum { N_SETTING = sizeof(settings) / sizeof(settings[0]), N_PAGED = N_SETTING - 2 };

static enum lm_status open_with_profile(struct engine **out, const struct setting *setting,
                                        const char *profile_path, struct lm_error *err)
{
    const struct engine_config config = {.model_path = setting->path,
                                         .n_ctx = 64,
                                         .n_slot = 1,
                                         .kv_type = "f16",
                                         .own.n_thread = 1,
                                         .own.kernels = "auto",
                                         .prefill_chunk = 64,
                                         .own.expert_slots = setting->slots,
                                         .own.prefetch = "on",
                                         .own.io = setting->io,
                                         .own.profile = profile_path};
    *out = NULL;
    return engine_open(out, &config, err);
}

static enum lm_status open_engine(struct engine **out, const struct setting *setting,
                                  struct lm_error *err)
{
    return open_with_profile(out, setting, "none", err);
}

struct answer {
    XXH64_hash_t hash; /* of the logits behind the prompt's tokens */
    int32_t token[N_NEW];
    size_t n_row, n_token;
};

static void keep_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    struct answer *answer = context;
    (void)pos;
    answer->n_row++;
    answer->hash = XXH3_64bits_withSeed(logits, n_vocab * sizeof(float), answer->hash);
}

static bool keep_token(void *context, const struct sampled_token *token)
{
    struct answer *answer = context;
    assert_true(answer->n_token < N_NEW);
    answer->token[answer->n_token++] = token->id;
    return true;
}

static enum lm_status ask(struct engine *engine, struct answer *out, struct lm_error *err)
{
    int32_t prompt[N_PROMPT];
    struct generate_result result;
    for (int i = 0; i < N_PROMPT; i++)
        prompt[i] = (i * 37 + i * i * 5 + 3) % 500;
    *out = (struct answer){0};
    const struct generate_request request = {.prompt = prompt,
                                             .n_prompt = N_PROMPT,
                                             .sampling = sampling_params_default(),
                                             .n_max = N_NEW,
                                             .ignore_end = true,
                                             .on_token = keep_token,
                                             .on_logits = keep_logits,
                                             .context = out};
    return engine_generate(engine, &request, &result, err);
}

static bool same(const struct answer *a, const struct answer *b)
{
    return a->hash == b->hash && a->n_row == b->n_row && a->n_token == b->n_token &&
           !memcmp(a->token, b->token, a->n_token * sizeof(int32_t));
}

static struct answer right; /* with all experts in the mapping */

static void check_right(struct engine *engine, const char *when)
{
    struct answer answer;
    struct lm_error err;
    if (ask(engine, &answer, &err) != LM_OK) fail_msg("%s: %s", when, err.message);
    if (!same(&answer, &right)) fail_msg("%s: another answer", when);
}

static size_t n_descriptor(void)
{
    size_t n = 0;
    DIR *list = opendir("/proc/self/fd");
    assert_non_null(list);
    while (readdir(list))
        n++;
    closedir(list);
    return n;
}

/* NULL: no io_uring here, which has been said. */
static struct engine *open_or_say(const struct setting *setting)
{
    struct engine *engine;
    struct lm_error err;
    const enum lm_status status = open_engine(&engine, setting, &err);
    if (status == LM_E_UNSUPPORTED) printf("not run: %s\n", err.message);
    if (status != LM_OK && status != LM_E_UNSUPPORTED) fail_msg("%s", err.message);
    return engine;
}

/* ---- reads -------------------------------------------------------------------------------- */

/* The place must be named, and what happened there. */
static void check_message(const struct setting *setting, const struct lm_error *err,
                          enum fault_kind kind)
{
    static const char *const causes[] = {[FAULT_EIO] = "Input/output error",
                                         [FAULT_END] = "the file ends before byte",
                                         [FAULT_OTHER_BYTES] = "the checksum does not match"};
    unsigned layer, expert;
    const char *place = strstr(err->message, ": layer ");
    assert_int_equal(err->status, LM_E_IO);
    assert_int_equal(strncmp(err->message, setting->files, strlen(setting->files)), 0);
    if (!place || sscanf(place, ": layer %u, expert %u: ", &layer, &expert) != 2 ||
        !strstr(place, causes[kind]) || strchr(err->message, '\n'))
        fail_msg("%s", err->message);
}

/* Reads of a request in turn, until there are no more: the first, then every step-th, each by a
 * fault of its own. Returns the failures. */
static long fail_reads(struct engine *engine, const struct setting *setting, enum fault_kind kind,
                       bool on, long step)
{
    long n_failed = 0, n_reached = 0;
    for (long at = 1;; at += step) {
        struct answer answer;
        struct lm_error err;
        arm(kind, at, on);
        const enum lm_status status = ask(engine, &answer, &err);
        const bool hit = disarm();
        n_reached += hit;
        if (status == LM_OK) { /* nobody waited for it, or it could be done again */
            assert_true(same(&answer, &right));
            if (!hit) break;
            continue;
        }
        assert_true(hit);
        assert_true(kind < FAULT_LESS);
        check_message(setting, &err, kind);
        check_right(engine, "behind a read that failed");
        n_failed++;
    }
    assert_true(n_reached * step >= N_CALL_MIN);
    return n_failed;
}

static void test_every_read_fails(void **state)
{
    enum { STEP = 7 }; /* where every read would tell little more */
    (void)state;
    for (int i = 0; i < N_PAGED; i++) {
        const size_t n_before = n_descriptor();
        struct engine *engine = open_or_say(&settings[i]);
        if (!engine) continue;
        const bool packed = settings[i].files == pack;
        check_right(engine, "at first");
        for (enum fault_kind kind = FAULT_EIO; kind < FAULT_LESS; kind++)
            if (kind != FAULT_OTHER_BYTES || packed)
                assert_true(fail_reads(engine, &settings[i], kind, false, 1) >= N_CALL_MIN);
        for (enum fault_kind kind = FAULT_LESS; kind <= FAULT_LATE; kind++)
            assert_int_equal(fail_reads(engine, &settings[i], kind, false, STEP), 0);
        assert_true(fail_reads(engine, &settings[i], FAULT_EIO, true, STEP) > 0);
        engine_close(engine, NULL);
        assert_int_equal(n_descriptor(), n_before);
    }
}

/* A preload runs while requests do. What it could not read they read themselves. */
static void test_every_read_of_a_preload_fails(void **state)
{
    (void)state;
    for (int i = 0; i < N_PAGED; i++) {
        long at = 0, n_reached = 0;
        bool hit = true;
        while (hit) {
            struct engine *engine;
            struct answer answer;
            struct lm_error err;
            arm(FAULT_EIO, ++at, false);
            const enum lm_status status = open_with_profile(&engine, &settings[i], profile, &err);
            if (status == LM_E_UNSUPPORTED) break;
            if (status != LM_OK) fail_msg("%s", err.message);
            const bool right_at_once = ask(engine, &answer, &err) == LM_OK;
            hit = disarm();
            n_reached += hit;
            if (right_at_once)
                assert_true(same(&answer, &right));
            else
                check_message(&settings[i], &err, FAULT_EIO);
            check_right(engine, "behind a preload");
            engine_close(engine, NULL);
        }
        disarm();
        if (at > 1) assert_true(n_reached >= N_CALL_MIN);
    }
}

/* ---- allocations -------------------------------------------------------------------------- */

static void test_every_allocation_of_a_request_fails(void **state)
{
    (void)state;
    for (int i = 0; i < N_SETTING; i++) {
        long at = 0, n_failed = 0;
        bool hit = true;
        while (hit) {
            struct answer answer;
            struct lm_error err;
            struct engine *engine = open_or_say(&settings[i]); /* the first request allocates */
            if (!engine) break;
            arm(FAULT_ALLOC, ++at, false);
            const enum lm_status status = ask(engine, &answer, &err);
            hit = disarm();
            if (status == LM_OK) {
                assert_true(same(&answer, &right));
            } else {
                assert_true(hit);
                assert_int_equal(status, LM_E_NO_MEM);
                assert_non_null(strstr(err.message, "memory"));
                check_right(engine, "behind an allocation that failed");
                n_failed++;
            }
            engine_close(engine, NULL);
        }
        if (at) assert_true(n_failed > 5);
    }
}

static void test_every_allocation_of_opening_fails(void **state)
{
    (void)state;
    const size_t n_before = n_descriptor();
    for (int i = 0; i < N_SETTING; i++) {
        long at = 0, n_failed = 0;
        bool hit = true;
        struct engine *probe = open_or_say(&settings[i]);
        if (!probe) continue;
        engine_close(probe, NULL);
        while (hit) {
            struct engine *engine;
            struct lm_error err;
            arm(FAULT_ALLOC, ++at, false);
            const enum lm_status status = open_engine(&engine, &settings[i], &err);
            hit = disarm();
            if (status == LM_OK) {
                check_right(engine, "opened all the same");
                engine_close(engine, NULL);
            } else {
                assert_true(hit);
                if (status != LM_E_NO_MEM && !strstr(err.message, "thread"))
                    fail_msg("%ld: %s", at, err.message);
                assert_null(engine);
                n_failed++;
            }
            assert_int_equal(n_descriptor(), n_before);
        }
        assert_true(n_failed > N_CALL_MIN);
    }
}

/* ---- files -------------------------------------------------------------------------------- */

static void write_file(const char *path, const void *bytes, size_t n_bytes)
{
    const int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, n_bytes, 0), (ssize_t)n_bytes);
    close(fd);
}

static void *read_file(const char *path, size_t *n_bytes)
{
    struct stat info;
    const int fd = open(path, O_RDONLY);
    assert_true(fd >= 0 && fstat(fd, &info) == 0);
    *n_bytes = (size_t)info.st_size;
    void *bytes = malloc(*n_bytes);
    assert_non_null(bytes);
    assert_int_equal(pread(fd, bytes, *n_bytes, 0), (ssize_t)*n_bytes);
    close(fd);
    return bytes;
}

/* What a request ends with; the message names one of the files. */
static enum lm_status ask_in_vain(struct engine *engine, const struct setting *setting,
                                  struct lm_error *err)
{
    struct answer answer;
    const enum lm_status status = ask(engine, &answer, err);
    if (status == LM_E_IO)
        assert_int_equal(strncmp(err->message, setting->files, strlen(setting->files)), 0);
    return status;
}

/* The file that has the experts of the second layer, and a place among them. */
static uint64_t find_experts(const struct engine *engine, const struct setting *setting,
                             char path[100])
{
    if (setting->files == pack) {
        snprintf(path, 100, "%s/experts-001.bin", pack);
        return 4096;
    }
    const struct gguf_tensor *tensor =
        gguf_find_tensor(engine_file(engine), "blk.1.ffn_down_exps.weight");
    assert_non_null(tensor);
    strcpy(path, model);
    return tensor->file_offset + tensor->n_bytes / 2;
}

/* Cut among its experts, or to nothing as `cp` begins, and written again while it is open. */
static void test_a_file_cut_off(void **state)
{
    (void)state;
    for (int i = 0; i < N_SETTING; i++) {
        char path[100];
        size_t n_bytes;
        struct lm_error err;
        struct engine *engine = open_or_say(&settings[i]);
        if (!engine) continue;
        const uint64_t n_left = find_experts(engine, &settings[i], path);
        void *bytes = read_file(path, &n_bytes);
        assert_true(n_left < n_bytes);
        for (int whole = 0; whole < 2; whole++) {
            assert_int_equal(truncate(path, whole ? 0 : (off_t)n_left), 0);
            assert_int_equal(ask_in_vain(engine, &settings[i], &err), LM_E_IO);
            if (!whole) check_message(&settings[i], &err, FAULT_END);
            assert_int_equal(ask_in_vain(engine, &settings[i], &err), LM_E_IO);
            write_file(path, bytes, n_bytes);
            check_right(engine, "mended");
        }
        free(bytes);
        engine_close(engine, NULL);
    }
}

/* A file that takes the name is not seen; one that is written over it is. */
static void test_a_file_replaced(void **state)
{
    (void)state;
    enum { same_bytes = 16384 };
    char moved[100];
    size_t n_bytes;
    char *bytes = read_file(model, &n_bytes);
    snprintf(moved, sizeof(moved), "%s/moved", folder);
    for (int i = 0; i < N_SETTING; i++) {
        if (settings[i].files != model) continue;
        struct lm_error err;
        struct engine *engine = open_or_say(&settings[i]);
        if (!engine) continue;
        assert_int_equal(rename(model, moved), 0);
        write_file(model, "something else", 14);
        check_right(engine, "renamed");
        assert_int_equal(rename(moved, model), 0);

        bytes[100] ^= 1; /* of the metadata */
        write_file(model, bytes, n_bytes);
        assert_int_equal(ask_in_vain(engine, &settings[i], &err), LM_E_IO);
        assert_non_null(strstr(err.message, "another model was written over the file"));
        bytes[100] ^= 1;
        write_file(model, bytes, n_bytes);
        check_right(engine, "mended");

        for (size_t k = same_bytes; k < n_bytes; k++) /* other weights behind the same header */
            bytes[k] ^= 1;
        write_file(model, bytes, n_bytes);
        assert_int_equal(ask_in_vain(engine, &settings[i], &err), LM_E_IO);
        assert_non_null(strstr(err.message, "another model was written over the file"));
        for (size_t k = same_bytes; k < n_bytes; k++)
            bytes[k] ^= 1;
        write_file(model, bytes, n_bytes);
        check_right(engine, "mended again");
        engine_close(engine, NULL);
    }
    free(bytes);
}

/* ---- set-up ------------------------------------------------------------------------------- */

/* Every expert alike. */
static void write_profile(const struct gguf_file *file, const struct hparams *hp)
{
    uint64_t fingerprint;
    struct heat_profile *all;
    assert_int_equal(gguf_fingerprint(file, &fingerprint, NULL), LM_OK);
    assert_int_equal(heat_profile_create(&all, fingerprint, hp->arch->name,
                                         hp->n_layer + hp->n_layer_mtp, hp->n_expert,
                                         hp->n_expert_used, NULL),
                     LM_OK);
    all->n_token = 1;
    for (uint32_t i = 0; i < all->n_layer * all->n_expert; i++)
        all->uses[i] = 0.5;
    assert_int_equal(heat_profile_write(all, profile, NULL), LM_OK);
    heat_profile_destroy(all);
}

static int set_up(void **state)
{
    (void)state;
    char source[1000];
    size_t n_bytes;
    struct gguf_file *file;
    struct engine *engine;
    struct lm_error err;
    log_configure(&(struct log_config){.level = LOG_ERROR});
    if (!mkdtemp(folder)) {
        strcpy(folder, "/tmp/lean-test-faults-XXXXXX");
        if (!mkdtemp(folder)) return -1;
    }
    snprintf(model, sizeof(model), "%s/model.gguf", folder);
    snprintf(pack, sizeof(pack), "%s/model.lmpack", folder);
    snprintf(profile, sizeof(profile), "%s/profile.pb", folder);
    snprintf(pack_dense, sizeof(pack_dense), "%s/dense.gguf", pack);
    snprintf(source, sizeof(source), "%s/tests/data/golden/models/qwen35moe-s-q8_0.gguf",
             getenv("LEAN_SOURCE_DIR"));
    void *bytes = read_file(source, &n_bytes);
    write_file(model, bytes, n_bytes);
    free(bytes);
    const struct pack_config pack_config = {.n_job = 1};
    const struct engine_config config = {.model_path = model,
                                         .n_ctx = 64,
                                         .kv_type = "f16",
                                         .own.n_thread = 2,
                                         .own.kernels = "auto",
                                         .prefill_chunk = 64};
    if (gguf_open(&file, model, &err) != LM_OK ||
        pack_write(file, pack, &pack_config, &err) != LM_OK ||
        engine_open(&engine, &config, &err) != LM_OK || ask(engine, &right, &err) != LM_OK) {
        print_error("%s\n", err.message);
        return -1;
    }
    write_profile(file, engine_hparams(engine));
    gguf_close(file);
    engine_close(engine, NULL);
    return right.n_row == N_PROMPT && right.n_token == N_NEW ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[100];
    snprintf(command, sizeof(command), "rm -r %s", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_read_fails),
        cmocka_unit_test(test_every_read_of_a_preload_fails),
        cmocka_unit_test(test_every_allocation_of_a_request_fails),
        cmocka_unit_test(test_every_allocation_of_opening_fails),
        cmocka_unit_test(test_a_file_cut_off),
        cmocka_unit_test(test_a_file_replaced),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
