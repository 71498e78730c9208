/* The GGUF reader. One pass over the header of each file with a bounds-checked cursor; afterwards
 * everything is a view into the mapping, found through hash tables.
 *
 * The cost of opening is that of touching the header once, plus 8 bytes of index for every string
 * of an array, so a vocabulary of 250000 tokens opens in milliseconds. */
#include "proto/gguf/gguf.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>

#include "proto/base/log.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are read as the file has them");

enum {
    HEADER_BYTES = 24,
    SMALLEST_KV_BYTES = 8 + 4 + 1,
    SMALLEST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8,
    KEY_BYTES_MAX = 65535,
    TENSOR_NAME_BYTES_MAX = 63,
    STRING_BYTES_MAX = 1 << 30,
    ARRAY_ELEMENTS_MAX = 1 << 30,
    RECORDS_MAX = 1 << 24, /* keys or tensors of a file: a bound on what a header may allocate */
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MAX = 1 << 20,
    SHARDS_MAX = 99999 /* five digits in the file name */
};

/* Open addressing over an array of records that begin with their name. */
struct name_table {
    const char *records;
    size_t stride;
    uint32_t *slots; /* record index + 1, 0 is empty; [mask + 1] */
    size_t mask;
};
_Static_assert(offsetof(struct gguf_kv, key) == 0, "name_table reads the name first");
_Static_assert(offsetof(struct gguf_tensor, name) == 0, "name_table reads the name first");

struct gguf_file {
    uint32_t version;
    struct gguf_shard *shards;
    size_t n_shard;
    struct gguf_kv *kvs; /* of the first shard */
    size_t n_kv;
    struct name_table kv_table;
    struct gguf_tensor *tensors; /* of all shards, in file order */
    size_t n_tensor;
    struct name_table tensor_table;
    const char **strings; /* every string of every array: where its length field is */
    size_t n_string, strings_capacity;
};

/* The metadata of one file while it is read. */
struct header {
    struct gguf_kv *kvs;
    size_t n_kv;
    struct name_table table;
    uint64_t n_tensor;
};

/* A cursor over one file. item says for messages what is being read. */
struct reader {
    const char *path;
    const uint8_t *data;
    uint64_t n_bytes, at;
    const char *item_kind; /* NULL, "key" or "tensor" */
    uint64_t item_index;
    struct gguf_string item_name; /* empty until it is known */
};

/* Bytes of a file as text for a message: escapes made visible, long names cut. */
static const char *show(struct gguf_string name, char text[160])
{
    return log_printable(name.data, name.n < 128 ? name.n : 128, text, 160);
}

static enum lm_status reader_fail(const struct reader *reader, struct lm_error *err,
                                  enum lm_status status, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* "FILE: tensor NAME: TEXT". */
static enum lm_status reader_fail(const struct reader *reader, struct lm_error *err,
                                  enum lm_status status, const char *format, ...)
{
    char what[400], name[160], item[200] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    if (reader->item_kind && reader->item_name.n)
        snprintf(item, sizeof(item), "%s %s: ", reader->item_kind, show(reader->item_name, name));
    else if (reader->item_kind)
        snprintf(item, sizeof(item), "%s number %llu: ", reader->item_kind,
                 (unsigned long long)reader->item_index);
    return lm_fail(err, status, "%s: %s%s", reader->path, item, what);
}

static uint64_t bytes_left(const struct reader *reader)
{
    return reader->n_bytes - reader->at;
}

/* Moves over n_bytes. *out is their first byte. */
static enum lm_status take(struct reader *reader, uint64_t n_bytes, const char *what,
                           const void **out, struct lm_error *err)
{
    if (n_bytes > bytes_left(reader))
        return reader_fail(reader, err, LM_E_FORMAT,
                           "%s needs %llu bytes at offset %llu, the file has %llu bytes", what,
                           (unsigned long long)n_bytes, (unsigned long long)reader->at,
                           (unsigned long long)reader->n_bytes);
    *out = reader->data + reader->at;
    reader->at += n_bytes;
    return LM_OK;
}

/* Takes a number of size bytes. */
static enum lm_status take_number(struct reader *reader, const char *what, void *out, size_t size,
                                  struct lm_error *err)
{
    const void *bytes = NULL;
    const enum lm_status status = take(reader, size, what, &bytes, err);
    if (status == LM_OK) memcpy(out, bytes, size);
    return status;
}

static enum lm_status take_u32(struct reader *reader, const char *what, uint32_t *out,
                               struct lm_error *err)
{
    return take_number(reader, what, out, sizeof(*out), err);
}

static enum lm_status take_u64(struct reader *reader, const char *what, uint64_t *out,
                               struct lm_error *err)
{
    return take_number(reader, what, out, sizeof(*out), err);
}

static enum lm_status take_string(struct reader *reader, const char *what, uint64_t n_max,
                                  struct gguf_string *out, struct lm_error *err)
{
    uint64_t n = 0;
    const void *bytes = NULL;
    enum lm_status status = take_u64(reader, what, &n, err);
    if (status != LM_OK) return status;
    if (n > n_max)
        return reader_fail(reader, err, LM_E_FORMAT, "%s of %llu bytes, the limit is %llu", what,
                           (unsigned long long)n, (unsigned long long)n_max);
    status = take(reader, n, what, &bytes, err);
    if (status == LM_OK) *out = (struct gguf_string){bytes, (size_t)n};
    return status;
}

/* A key or a tensor's name: not empty, no NUL. */
static enum lm_status take_name(struct reader *reader, uint64_t n_max, struct gguf_string *out,
                                struct lm_error *err)
{
    const enum lm_status status = take_string(reader, "name", n_max, out, err);
    if (status != LM_OK) return status;
    if (!out->n) return reader_fail(reader, err, LM_E_FORMAT, "the name is empty");
    reader->item_name = *out;
    if (memchr(out->data, 0, out->n))
        return reader_fail(reader, err, LM_E_FORMAT, "the name contains a NUL byte");
    return LM_OK;
}

/* name_table */

static const struct gguf_string *record_name(const struct name_table *table, uint32_t index)
{
    return (const struct gguf_string *)(const void *)(table->records + index * table->stride);
}

/* The slot that holds the name, or the empty one where it belongs. */
static uint32_t *find_slot(const struct name_table *table, const char *name, size_t n)
{
    for (size_t i = (size_t)XXH3_64bits(name, n) & table->mask;; i = (i + 1) & table->mask) {
        if (!table->slots[i]) return &table->slots[i];
        const struct gguf_string *other = record_name(table, table->slots[i] - 1);
        if (other->n == n && !memcmp(other->data, name, n)) return &table->slots[i];
    }
}

/* *duplicate is the index of a record whose name an earlier one has, or n. */
static enum lm_status name_table_build(struct name_table *table, const void *records, size_t stride,
                                       size_t n, size_t *duplicate, const char *path,
                                       struct lm_error *err)
{
    size_t capacity = 16;
    while (capacity < 2 * n)
        capacity *= 2;
    *table = (struct name_table){records, stride, calloc(capacity, sizeof(uint32_t)), capacity - 1};
    if (!table->slots)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory to index %zu names", path, n);
    for (*duplicate = 0; *duplicate < n; (*duplicate)++) {
        const struct gguf_string *name = record_name(table, (uint32_t)*duplicate);
        uint32_t *slot = find_slot(table, name->data, name->n);
        if (*slot) return LM_OK;
        *slot = (uint32_t)*duplicate + 1;
    }
    return LM_OK;
}

static const void *name_table_find(const struct name_table *table, const char *name)
{
    const uint32_t *slot = find_slot(table, name, strlen(name));
    return *slot ? record_name(table, *slot - 1) : NULL;
}

/* Metadata */

static enum lm_status add_string(struct gguf_file *file, const struct reader *reader,
                                 const void *where, struct lm_error *err)
{
    if (file->n_string == file->strings_capacity) {
        const size_t capacity = file->strings_capacity ? 2 * file->strings_capacity : 4096;
        const char **strings = realloc(file->strings, capacity * sizeof(*strings));
        if (!strings)
            return reader_fail(reader, err, LM_E_NO_MEM, "no memory to index %zu strings",
                               capacity);
        file->strings = strings;
        file->strings_capacity = capacity;
    }
    file->strings[file->n_string++] = where;
    return LM_OK;
}

static enum lm_status read_strings(struct gguf_file *file, struct reader *reader,
                                   struct gguf_kv *kv, struct lm_error *err)
{
    if (kv->n > bytes_left(reader) / 8 || file->n_string + kv->n > UINT32_MAX)
        return reader_fail(reader, err, LM_E_FORMAT,
                           "%llu strings cannot be in the %llu bytes left",
                           (unsigned long long)kv->n, (unsigned long long)bytes_left(reader));
    kv->string_index = (uint32_t)file->n_string;
    kv->data = reader->data + reader->at;
    for (uint64_t i = 0; i < kv->n; i++) {
        struct gguf_string text;
        enum lm_status status = add_string(file, reader, reader->data + reader->at, err);
        if (status == LM_OK) status = take_string(reader, "string", STRING_BYTES_MAX, &text, err);
        if (status != LM_OK) return status;
    }
    return LM_OK;
}

static enum lm_status check_bools(const struct reader *reader, const struct gguf_kv *kv,
                                  struct lm_error *err)
{
    const uint8_t *bytes = kv->data;
    for (uint64_t i = 0; i < kv->n; i++)
        if (bytes[i] > 1)
            return reader_fail(reader, err, LM_E_FORMAT, "element %llu is not a bool but %u",
                               (unsigned long long)i, bytes[i]);
    return LM_OK;
}

/* kv->n values of a fixed size. */
static enum lm_status read_numbers(struct reader *reader, struct gguf_kv *kv, enum gguf_type type,
                                   struct lm_error *err)
{
    const enum lm_status status =
        take(reader, kv->n * gguf_type_bytes(type), "value", &kv->data, err);
    if (status != LM_OK) return status;
    return type == GGUF_BOOL ? check_bools(reader, kv, err) : LM_OK;
}

static enum lm_status read_array(struct gguf_file *file, struct reader *reader, struct gguf_kv *kv,
                                 struct lm_error *err)
{
    uint32_t element;
    enum lm_status status = take_u32(reader, "array type", &element, err);
    if (status == LM_OK) status = take_u64(reader, "array length", &kv->n, err);
    if (status != LM_OK) return status;
    if (element >= GGUF_TYPE_COUNT || element == GGUF_ARRAY)
        return reader_fail(reader, err, LM_E_FORMAT, "arrays of type %u do not exist", element);
    if (kv->n > ARRAY_ELEMENTS_MAX)
        return reader_fail(reader, err, LM_E_FORMAT, "array of %llu elements, the limit is %d",
                           (unsigned long long)kv->n, ARRAY_ELEMENTS_MAX);
    kv->element = (enum gguf_type)element;
    if (element == GGUF_STRING) return read_strings(file, reader, kv, err);
    return read_numbers(reader, kv, kv->element, err);
}

static enum lm_status read_kv(struct gguf_file *file, struct reader *reader, struct gguf_kv *kv,
                              struct lm_error *err)
{
    uint32_t type = 0;
    enum lm_status status = take_name(reader, KEY_BYTES_MAX, &kv->key, err);
    if (status == LM_OK) status = take_u32(reader, "type", &type, err);
    if (status != LM_OK) return status;
    if (type >= GGUF_TYPE_COUNT)
        return reader_fail(reader, err, LM_E_FORMAT, "unknown value type %u", type);
    kv->type = kv->element = (enum gguf_type)type;
    kv->n = 1;
    if (type == GGUF_ARRAY) return read_array(file, reader, kv, err);
    if (type != GGUF_STRING) return read_numbers(reader, kv, kv->type, err);
    struct gguf_string text;
    kv->data = reader->data + reader->at;
    return take_string(reader, "string", STRING_BYTES_MAX, &text, err);
}

static enum lm_status read_kvs(struct gguf_file *file, struct reader *reader, struct header *header,
                               struct lm_error *err)
{
    header->kvs = calloc(header->n_kv ? header->n_kv : 1, sizeof(*header->kvs));
    if (!header->kvs)
        return reader_fail(reader, err, LM_E_NO_MEM, "no memory for %zu keys", header->n_kv);
    reader->item_kind = "key";
    for (size_t i = 0; i < header->n_kv; i++) {
        reader->item_index = i;
        reader->item_name.n = 0;
        const enum lm_status status = read_kv(file, reader, &header->kvs[i], err);
        if (status != LM_OK) return status;
    }
    size_t duplicate;
    const enum lm_status status =
        name_table_build(&header->table, header->kvs, sizeof(*header->kvs), header->n_kv,
                         &duplicate, reader->path, err);
    if (status != LM_OK || duplicate == header->n_kv) return status;
    reader->item_name = header->kvs[duplicate].key;
    return reader_fail(reader, err, LM_E_FORMAT, "occurs twice");
}

static bool is_integer(enum gguf_type type)
{
    return type <= GGUF_I32 || type == GGUF_U64 || type == GGUF_I64;
}

static enum lm_status kv_u32(const struct gguf_kv *kv, const char *path, uint32_t *out,
                             struct lm_error *err)
{
    char name[160];
    if (!is_integer(kv->type))
        return lm_fail(err, LM_E_FORMAT, "%s: key %s: is of type %s, not an integer", path,
                       show(kv->key, name), gguf_type_name(kv->type));
    const int64_t value = gguf_array_int(kv, 0);
    if (kv->type == GGUF_U64 && (uint64_t)value > UINT32_MAX)
        return lm_fail(err, LM_E_FORMAT, "%s: key %s: %llu does not fit 32 bits", path,
                       show(kv->key, name), (unsigned long long)value);
    if (value < 0 || value > UINT32_MAX)
        return lm_fail(err, LM_E_FORMAT, "%s: key %s: %lld is not within 0 and %u", path,
                       show(kv->key, name), (long long)value, UINT32_MAX);
    *out = (uint32_t)value;
    return LM_OK;
}

static enum lm_status header_u32(const struct header *header, const char *path, const char *key,
                                 uint32_t *out, struct lm_error *err)
{
    const struct gguf_kv *kv = name_table_find(&header->table, key);
    return kv ? kv_u32(kv, path, out, err) : LM_OK;
}

/* Tensors */

static enum lm_status read_shape(struct reader *reader, struct gguf_tensor *tensor,
                                 uint64_t *n_elem, struct lm_error *err)
{
    enum lm_status status = take_u32(reader, "dimension count", &tensor->n_dims, err);
    if (status != LM_OK) return status;
    if (tensor->n_dims < 1 || tensor->n_dims > 4)
        return reader_fail(reader, err, LM_E_FORMAT, "%u dimensions, must be 1 to 4",
                           tensor->n_dims);
    *n_elem = 1;
    for (uint32_t i = 0; i < 4; i++) {
        tensor->ne[i] = 1;
        if (i < tensor->n_dims) status = take_u64(reader, "dimension", &tensor->ne[i], err);
        if (status != LM_OK) return status;
        if (!tensor->ne[i] || tensor->ne[i] > INT64_MAX / *n_elem)
            return reader_fail(reader, err, LM_E_FORMAT, "dimension %u is %lld", i,
                               (long long)tensor->ne[i]);
        *n_elem *= tensor->ne[i];
    }
    return LM_OK;
}

static enum lm_status check_type(const struct reader *reader, uint32_t type, struct lm_error *err)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    if (!info && type >= TENSOR_TYPE_COUNT)
        return reader_fail(reader, err, LM_E_UNSUPPORTED, "type %u is unknown to this program",
                           type);
    if (!info)
        return reader_fail(reader, err, LM_E_FORMAT, "type %u was removed from the format", type);
    if (!info->block_elems)
        return reader_fail(reader, err, LM_E_UNSUPPORTED, "type %s is not supported", info->name);
    return LM_OK;
}

/* offset is kept in file_offset, relative to the data section, until its start is known. */
static enum lm_status read_tensor(struct reader *reader, struct gguf_tensor *tensor,
                                  uint32_t alignment, struct lm_error *err)
{
    uint32_t type = 0;
    uint64_t n_elem = 0;
    enum lm_status status = take_name(reader, TENSOR_NAME_BYTES_MAX, &tensor->name, err);
    if (status == LM_OK) status = read_shape(reader, tensor, &n_elem, err);
    if (status == LM_OK) status = take_u32(reader, "type", &type, err);
    if (status == LM_OK) status = take_u64(reader, "offset", &tensor->file_offset, err);
    if (status == LM_OK) status = check_type(reader, type, err);
    if (status != LM_OK) return status;

    const struct tensor_type_info *info = tensor_type_info(type);
    if (tensor->ne[0] % info->block_elems)
        return reader_fail(reader, err, LM_E_FORMAT,
                           "rows of %llu elements are not whole %s blocks of %u",
                           (unsigned long long)tensor->ne[0], info->name, info->block_elems);
    const uint64_t n_block = n_elem / info->block_elems;
    if (n_block > UINT64_MAX / info->block_bytes)
        return reader_fail(reader, err, LM_E_FORMAT, "its size overflows: %llu blocks of %u bytes",
                           (unsigned long long)n_block, info->block_bytes);
    if (tensor->file_offset % alignment)
        return reader_fail(reader, err, LM_E_FORMAT, "offset %llu is not a multiple of %u",
                           (unsigned long long)tensor->file_offset, alignment);
    tensor->type = (enum tensor_type)type;
    tensor->n_bytes = n_block * info->block_bytes;
    return LM_OK;
}

/* Turns a tensor's offset in the data section into one in the file. */
static enum lm_status place_tensor(struct reader *reader, struct gguf_tensor *tensor,
                                   uint64_t data_start, struct lm_error *err)
{
    const uint64_t offset = tensor->file_offset, n_bytes = reader->n_bytes;
    if (data_start > n_bytes || offset > n_bytes - data_start ||
        tensor->n_bytes > n_bytes - data_start - offset)
        return reader_fail(reader, err, LM_E_FORMAT,
                           "%llu bytes at offset %llu of the data, which begins at %llu, do not "
                           "end within the file of %llu bytes",
                           (unsigned long long)tensor->n_bytes, (unsigned long long)offset,
                           (unsigned long long)data_start, (unsigned long long)n_bytes);
    tensor->file_offset = data_start + offset;
    tensor->data = reader->data + tensor->file_offset;
    return LM_OK;
}

static int compare_offsets(const void *a, const void *b)
{
    const struct gguf_tensor *const *left = a, *const *right = b;
    return ((*left)->file_offset > (*right)->file_offset) -
           ((*left)->file_offset < (*right)->file_offset);
}

static enum lm_status check_overlap(struct reader *reader, const struct gguf_tensor *tensors,
                                    size_t n, struct lm_error *err)
{
    const struct gguf_tensor **order = malloc((n ? n : 1) * sizeof(const struct gguf_tensor *));
    if (!order) return reader_fail(reader, err, LM_E_NO_MEM, "no memory to sort %zu tensors", n);
    for (size_t i = 0; i < n; i++)
        order[i] = &tensors[i];
    qsort(order, n, sizeof(const struct gguf_tensor *), compare_offsets);
    enum lm_status status = LM_OK;
    for (size_t i = 1; i < n && status == LM_OK; i++) {
        const uint64_t end = order[i - 1]->file_offset + order[i - 1]->n_bytes;
        char name[160];
        if (end <= order[i]->file_offset) continue;
        reader->item_name = order[i]->name;
        status = reader_fail(reader, err, LM_E_FORMAT,
                             "begins at %llu, inside tensor %s, which ends at %llu",
                             (unsigned long long)order[i]->file_offset,
                             show(order[i - 1]->name, name), (unsigned long long)end);
    }
    free(order);
    return status;
}

static enum lm_status read_tensors(struct gguf_file *file, struct reader *reader, uint64_t n,
                                   uint32_t shard, uint32_t alignment, struct lm_error *err)
{
    const size_t n_before = file->n_tensor, n_after = n_before + (size_t)n;
    if (n_after > RECORDS_MAX)
        return reader_fail(reader, err, LM_E_LIMIT, "%zu tensors with this file, the limit is %d",
                           n_after, RECORDS_MAX);
    struct gguf_tensor *tensors =
        realloc(file->tensors, (n_after ? n_after : 1) * sizeof(*tensors));
    if (!tensors)
        return reader_fail(reader, err, LM_E_NO_MEM, "no memory for %zu tensors", n_after);
    file->tensors = tensors;
    file->n_tensor = n_after;
    struct gguf_tensor *own = tensors + n_before;
    memset(own, 0, (size_t)n * sizeof(*own));

    reader->item_kind = "tensor";
    for (size_t i = 0; i < n; i++) {
        reader->item_index = i;
        reader->item_name.n = 0;
        own[i].shard = shard;
        const enum lm_status status = read_tensor(reader, &own[i], alignment, err);
        if (status != LM_OK) return status;
    }
    const uint64_t data_start = (reader->at + alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < n; i++) {
        reader->item_name = own[i].name;
        const enum lm_status status = place_tensor(reader, &own[i], data_start, err);
        if (status != LM_OK) return status;
    }
    return check_overlap(reader, own, (size_t)n, err);
}

/* Files */

/* Magic, version, counts. */
static enum lm_status read_counts(struct reader *reader, uint32_t *version, struct header *header,
                                  struct lm_error *err)
{
    const void *magic;
    uint64_t n_tensor = 0, n_kv = 0;
    if (reader->n_bytes < HEADER_BYTES)
        return reader_fail(reader, err, LM_E_FORMAT,
                           "%llu bytes are too few for a GGUF file, its header has %d",
                           (unsigned long long)reader->n_bytes, HEADER_BYTES);
    enum lm_status status = take(reader, 4, "magic", &magic, err);
    if (status == LM_OK && memcmp(magic, "GGUF", 4)) {
        char text[160];
        return reader_fail(reader, err, LM_E_FORMAT, "not a GGUF file: begins with \"%s\"",
                           show((struct gguf_string){magic, 4}, text));
    }
    if (status == LM_OK) status = take_u32(reader, "version", version, err);
    if (status == LM_OK) status = take_u64(reader, "tensor count", &n_tensor, err);
    if (status == LM_OK) status = take_u64(reader, "key count", &n_kv, err);
    if (status != LM_OK) return status;

    if (*version && !(*version & 0xffffu))
        return reader_fail(reader, err, LM_E_UNSUPPORTED,
                           "version %u: the file has the other byte order", *version);
    if (*version != 2 && *version != 3)
        return reader_fail(reader, err, LM_E_UNSUPPORTED, "version %u, this program reads 2 and 3",
                           *version);
    const uint64_t n_left = bytes_left(reader);
    if (n_kv > n_left / SMALLEST_KV_BYTES || n_kv > RECORDS_MAX)
        return reader_fail(reader, err, LM_E_FORMAT, "%lld keys cannot be in a file of %llu bytes",
                           (long long)n_kv, (unsigned long long)reader->n_bytes);
    if (n_tensor > n_left / SMALLEST_TENSOR_BYTES || n_tensor > RECORDS_MAX)
        return reader_fail(reader, err, LM_E_FORMAT,
                           "%lld tensors cannot be in a file of %llu bytes", (long long)n_tensor,
                           (unsigned long long)reader->n_bytes);
    header->n_tensor = n_tensor;
    header->n_kv = (size_t)n_kv;
    return LM_OK;
}

static enum lm_status find_alignment(const struct header *header, const struct reader *reader,
                                     uint32_t *alignment, struct lm_error *err)
{
    *alignment = ALIGNMENT_DEFAULT;
    const enum lm_status status =
        header_u32(header, reader->path, "general.alignment", alignment, err);
    if (status != LM_OK) return status;
    if (!*alignment || *alignment & (*alignment - 1) || *alignment > ALIGNMENT_MAX)
        return lm_fail(err, LM_E_FORMAT,
                       "%s: key general.alignment: %u is not a power of two up to %d", reader->path,
                       *alignment, ALIGNMENT_MAX);
    return LM_OK;
}

/* Maps the file at path into shard. The caller unmaps, also after a failure. */
static enum lm_status map_file(struct gguf_shard *shard, const char *path, struct lm_error *err)
{
    struct stat info;
    if (!*path) return lm_fail(err, LM_E_NOT_FOUND, "the name of the file is empty");
    shard->path = strdup(path);
    if (!shard->path) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    shard->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not block */
    if (shard->fd < 0) return lm_fail_errno(err, "%s: open", path);
    if (fstat(shard->fd, &info)) return lm_fail_errno(err, "%s: stat", path);
    if (!S_ISREG(info.st_mode)) return lm_fail(err, LM_E_IO, "%s: not a regular file", path);
    shard->n_bytes = (uint64_t)info.st_size;
    if (!shard->n_bytes) return lm_fail(err, LM_E_FORMAT, "%s: the file is empty", path);
    void *data = mmap(NULL, shard->n_bytes, PROT_READ, MAP_PRIVATE, shard->fd, 0);
    if (data == MAP_FAILED) return lm_fail_errno(err, "%s: map", path);
    shard->data = data;
    return LM_OK;
}

static void unmap_file(struct gguf_shard *shard)
{
    if (shard->data) munmap((void *)(uintptr_t)shard->data, shard->n_bytes);
    if (shard->fd >= 0) close(shard->fd);
    free((char *)(uintptr_t)shard->path);
}

/* Adds one file: its tensors go to file, its keys to header, which the caller frees. */
static enum lm_status read_file(struct gguf_file *file, const char *path, struct header *header,
                                struct lm_error *err)
{
    struct gguf_shard *shards = realloc(file->shards, (file->n_shard + 1) * sizeof(*shards));
    if (!shards) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    file->shards = shards;
    struct gguf_shard *shard = &shards[file->n_shard];
    const uint32_t index = (uint32_t)file->n_shard++;
    *shard = (struct gguf_shard){.fd = -1};
    enum lm_status status = map_file(shard, path, err);
    if (status != LM_OK) return status;

    uint32_t version = 0;
    struct reader reader = {.path = shard->path, .data = shard->data, .n_bytes = shard->n_bytes};
    status = read_counts(&reader, &version, header, err);
    if (status == LM_OK) status = read_kvs(file, &reader, header, err);
    if (status == LM_OK) status = find_alignment(header, &reader, &shard->alignment, err);
    if (status != LM_OK) return status;
    if (!index) file->version = version;
    return read_tensors(file, &reader, header->n_tensor, index, shard->alignment, err);
}

static void free_header(struct header *header)
{
    free(header->kvs);
    free(header->table.slots);
}

/* path ends in -00001-of-NNNNN.gguf with NNNNN = n_shard: *n_prefix is the length before that. */
static bool first_shard_prefix(const char *path, uint32_t n_shard, size_t *n_prefix)
{
    char suffix[40];
    const size_t n = strlen(path);
    const size_t n_suffix =
        (size_t)snprintf(suffix, sizeof(suffix), "-%05u-of-%05u.gguf", 1u, n_shard);
    if (n < n_suffix || strcmp(path + n - n_suffix, suffix)) return false;
    *n_prefix = n - n_suffix;
    return true;
}

/* Shard number index (from 0) of a split file whose name begins with the prefix of path. */
static enum lm_status read_shard(struct gguf_file *file, const char *path, size_t n_prefix,
                                 uint32_t index, uint32_t n_shard, struct lm_error *err)
{
    char *name = NULL;
    if (asprintf(&name, "%.*s-%05u-of-%05u.gguf", (int)n_prefix, path, index + 1, n_shard) < 0)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    struct header header = {0};
    uint32_t number = UINT32_MAX;
    enum lm_status status = read_file(file, name, &header, err);
    if (status == LM_OK) status = header_u32(&header, name, "split.no", &number, err);
    if (status == LM_OK && number != index)
        status = number == UINT32_MAX
                     ? lm_fail(err, LM_E_FORMAT, "%s: key split.no: missing", name)
                     : lm_fail(err, LM_E_FORMAT, "%s: key split.no: is %u, the name says %u", name,
                               number, index);
    free_header(&header);
    free(name);
    return status;
}

/* Reads the other files if the first one says that there are any. */
static enum lm_status read_siblings(struct gguf_file *file, const char *path,
                                    const struct header *first, struct lm_error *err)
{
    uint32_t n_shard = 1, number = 0, n_tensor = UINT32_MAX;
    size_t n_prefix = 0;
    enum lm_status status = header_u32(first, path, "split.count", &n_shard, err);
    if (status == LM_OK) status = header_u32(first, path, "split.no", &number, err);
    if (status == LM_OK) status = header_u32(first, path, "split.tensors.count", &n_tensor, err);
    if (status != LM_OK || n_shard <= 1) return status;
    if (n_shard > SHARDS_MAX)
        return lm_fail(err, LM_E_FORMAT, "%s: key split.count: %u, the limit is %d", path, n_shard,
                       SHARDS_MAX);
    if (number) {
        status = lm_fail(err, LM_E_USAGE, "%s: is part %u of %u of a split model", path, number + 1,
                         n_shard);
        lm_hint(err, "name the first part, ...-00001-of-%05u.gguf", n_shard);
        return status;
    }
    if (!first_shard_prefix(path, n_shard, &n_prefix))
        return lm_fail(err, LM_E_FORMAT,
                       "%s: first of %u parts, but its name does not end in -00001-of-%05u.gguf",
                       path, n_shard, n_shard);
    for (uint32_t i = 1; i < n_shard; i++) {
        status = read_shard(file, path, n_prefix, i, n_shard, err);
        if (status != LM_OK) return status;
    }
    if (n_tensor != UINT32_MAX && n_tensor != file->n_tensor)
        return lm_fail(err, LM_E_FORMAT, "%s: key split.tensors.count: %u, the %u files have %zu",
                       path, n_tensor, n_shard, file->n_tensor);
    return LM_OK;
}

static enum lm_status index_tensors(struct gguf_file *file, struct lm_error *err)
{
    size_t duplicate;
    const enum lm_status status =
        name_table_build(&file->tensor_table, file->tensors, sizeof(*file->tensors), file->n_tensor,
                         &duplicate, file->shards[0].path, err);
    if (status != LM_OK || duplicate == file->n_tensor) return status;
    const struct gguf_tensor *tensor = &file->tensors[duplicate];
    char name[160];
    return lm_fail(err, LM_E_FORMAT, "%s: tensor %s: occurs twice",
                   file->shards[tensor->shard].path, show(tensor->name, name));
}

const char *gguf_type_name(enum gguf_type type)
{
    static const char *const names[GGUF_TYPE_COUNT] = {"u8",  "i8",  "u16",  "i16",    "u32",
                                                       "i32", "f32", "bool", "string", "array",
                                                       "u64", "i64", "f64"};
    return names[type];
}

size_t gguf_type_bytes(enum gguf_type type)
{
    static const uint8_t bytes[GGUF_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return bytes[type];
}

enum lm_status gguf_open(struct gguf_file **out, const char *path, struct lm_error *err)
{
    struct gguf_file *file = calloc(1, sizeof(*file));
    if (!file) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    struct header first = {0};
    enum lm_status status = read_file(file, path, &first, err);
    if (status == LM_OK) status = read_siblings(file, path, &first, err);
    if (status == LM_OK) status = index_tensors(file, err);
    file->kvs = first.kvs;
    file->n_kv = first.n_kv;
    file->kv_table = first.table;
    if (status != LM_OK) {
        gguf_close(file);
        return status;
    }
    *out = file;
    return LM_OK;
}

void gguf_close(struct gguf_file *file)
{
    if (!file) return;
    for (size_t i = 0; i < file->n_shard; i++)
        unmap_file(&file->shards[i]);
    free(file->shards);
    free(file->kvs);
    free(file->kv_table.slots);
    free(file->tensors);
    free(file->tensor_table.slots);
    free(file->strings);
    free(file);
}

const char *gguf_path(const struct gguf_file *file)
{
    return file->shards[0].path;
}

uint32_t gguf_version(const struct gguf_file *file)
{
    return file->version;
}

size_t gguf_n_shard(const struct gguf_file *file)
{
    return file->n_shard;
}

const struct gguf_shard *gguf_shard_at(const struct gguf_file *file, size_t index)
{
    return &file->shards[index];
}

size_t gguf_n_kv(const struct gguf_file *file)
{
    return file->n_kv;
}

const struct gguf_kv *gguf_kv_at(const struct gguf_file *file, size_t index)
{
    return &file->kvs[index];
}

const struct gguf_kv *gguf_find_kv(const struct gguf_file *file, const char *key)
{
    return name_table_find(&file->kv_table, key);
}

bool gguf_is_pack(const struct gguf_file *file)
{
    return gguf_find_kv(file, GGUF_KEY_PACK_VERSION) != NULL;
}

size_t gguf_n_tensor(const struct gguf_file *file)
{
    return file->n_tensor;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf_file *file, size_t index)
{
    return &file->tensors[index];
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf_file *file, const char *name)
{
    return name_table_find(&file->tensor_table, name);
}

/* Looks key up for a getter. */
static const struct gguf_kv *get(const struct gguf_file *file, const char *key, bool *found)
{
    const struct gguf_kv *kv = gguf_find_kv(file, key);
    if (found) *found = kv != NULL;
    return kv;
}

static enum lm_status wrong_type(const struct gguf_file *file, const struct gguf_kv *kv,
                                 const char *wanted, struct lm_error *err)
{
    char name[160];
    return lm_fail(err, LM_E_FORMAT, "%s: key %s: is of type %s, not %s", gguf_path(file),
                   show(kv->key, name), gguf_type_name(kv->type), wanted);
}

enum lm_status gguf_get_u32(const struct gguf_file *file, const char *key, uint32_t *out,
                            bool *found, struct lm_error *err)
{
    const struct gguf_kv *kv = get(file, key, found);
    return kv ? kv_u32(kv, gguf_path(file), out, err) : LM_OK;
}

enum lm_status gguf_get_f32(const struct gguf_file *file, const char *key, float *out, bool *found,
                            struct lm_error *err)
{
    const struct gguf_kv *kv = get(file, key, found);
    if (!kv) return LM_OK;
    if (kv->type != GGUF_F32 && kv->type != GGUF_F64)
        return wrong_type(file, kv, "a floating-point number", err);
    *out = (float)gguf_array_float(kv, 0);
    return LM_OK;
}

enum lm_status gguf_get_bool(const struct gguf_file *file, const char *key, bool *out, bool *found,
                             struct lm_error *err)
{
    const struct gguf_kv *kv = get(file, key, found);
    if (!kv) return LM_OK;
    if (kv->type != GGUF_BOOL) return wrong_type(file, kv, "a bool", err);
    *out = *(const uint8_t *)kv->data;
    return LM_OK;
}

static struct gguf_string string_at(const char *where)
{
    uint64_t n;
    memcpy(&n, where, sizeof(n));
    return (struct gguf_string){where + sizeof(n), (size_t)n};
}

enum lm_status gguf_get_string(const struct gguf_file *file, const char *key,
                               struct gguf_string *out, bool *found, struct lm_error *err)
{
    const struct gguf_kv *kv = get(file, key, found);
    if (!kv) return LM_OK;
    if (kv->type != GGUF_STRING) return wrong_type(file, kv, "a string", err);
    *out = string_at(kv->data);
    return LM_OK;
}

struct gguf_string gguf_array_string(const struct gguf_file *file, const struct gguf_kv *kv,
                                     uint64_t i)
{
    return string_at(file->strings[kv->string_index + i]);
}

int64_t gguf_array_int(const struct gguf_kv *kv, uint64_t i)
{
    const size_t size = gguf_type_bytes(kv->element);
    uint64_t bits = 0;
    memcpy(&bits, (const uint8_t *)kv->data + i * size, size);
    switch (kv->element) {
    case GGUF_I8:
        return (int8_t)bits;
    case GGUF_I16:
        return (int16_t)bits;
    case GGUF_I32:
        return (int32_t)bits;
    default:
        return (int64_t)bits;
    }
}

double gguf_array_float(const struct gguf_kv *kv, uint64_t i)
{
    float single;
    double value;
    if (kv->element == GGUF_F64) {
        memcpy(&value, (const uint8_t *)kv->data + i * sizeof(value), sizeof(value));
        return value;
    }
    memcpy(&single, (const uint8_t *)kv->data + i * sizeof(single), sizeof(single));
    return single;
}

/* ---- copies ------------------------------------------------------------------------------- */

/* The shard whose mapping holds from. */
static const struct gguf_shard *find_shard(const struct gguf_file *file, const void *from,
                                           size_t n_bytes, off_t *offset)
{
    for (size_t i = 0; i < file->n_shard; i++) {
        const struct gguf_shard *shard = &file->shards[i];
        const uintptr_t at = (uintptr_t)from, begin = (uintptr_t)shard->data;
        if (at < begin || at - begin >= shard->n_bytes) continue;
        assert(n_bytes <= shard->n_bytes - (at - begin));
        *offset = (off_t)(at - begin);
        return shard;
    }
    assert(!"not in the file");
    return NULL;
}

void gguf_scatter(const struct gguf_file *file)
{
    for (size_t i = 0; i < file->n_shard; i++)
        madvise((void *)(uintptr_t)file->shards[i].data, file->shards[i].n_bytes, MADV_RANDOM);
}

bool gguf_will_copy(const struct gguf_file *file, const void *from, size_t n_bytes)
{
    off_t offset;
    const struct gguf_shard *shard = find_shard(file, from, n_bytes, &offset);
    char byte;
    const struct iovec first = {&byte, 1};
    /* mincore would tell only the owner of the file */
    const bool cached = preadv2(shard->fd, &first, 1, offset, RWF_NOWAIT) == 1;
    posix_fadvise(shard->fd, offset, (off_t)n_bytes, POSIX_FADV_WILLNEED);
    return cached;
}

enum lm_status gguf_copy(const struct gguf_file *file, void *to, const void *from, size_t n_bytes,
                         bool drop, struct lm_error *err)
{
    enum { READ_MAX = 8 << 20 };
    off_t offset;
    const struct gguf_shard *shard = find_shard(file, from, n_bytes, &offset);
    for (size_t done = 0; done < n_bytes;) {
        const size_t left = n_bytes - done, n_want = left < READ_MAX ? left : READ_MAX;
        const ssize_t n = pread(shard->fd, (char *)to + done, n_want, offset + (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return lm_fail_errno(err, "%s: read", shard->path);
        if (n == 0)
            return lm_fail(err, LM_E_IO,
                           "%s: ends at %llu, where there was a tensor when it was "
                           "opened",
                           shard->path, (unsigned long long)offset + done);
        done += (size_t)n;
    }
    if (drop) posix_fadvise(shard->fd, offset, (off_t)n_bytes, POSIX_FADV_DONTNEED);
    return LM_OK;
}
