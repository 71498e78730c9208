/* Variants by the names of files, and the choice among them. */
#include "coordinator/hub/hub_files.h"

#include <ctype.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tried in this order when no variant is asked for: what loses little in the least memory. */
static const char *const preferred[] = {"Q4_K_M", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0",
                                        "Q4_0",   "Q5_0",   "Q3_K_M", "BF16",   "F16"};

/* ---- the list ---- */

static bool is_safe_path(const char *path)
{
    const size_t n = strlen(path);
    if (!n || n > 1000 || path[0] == '/' || path[n - 1] == '/') return false;
    for (const char *at = path; at;) {
        const size_t length = strcspn(at, "/");
        if (!length || length > 255 || (length == 1 && at[0] == '.') ||
            (length == 2 && at[0] == '.' && at[1] == '.'))
            return false;
        at = at[length] ? at + length + 1 : NULL;
    }
    /* names are shown: control characters of ASCII and Latin-1 (C2 80 to C2 9F) could draw */
    for (const unsigned char *c = (const unsigned char *)path; *c; c++)
        if (*c < 32 || *c == 127 || *c == '\\' || (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0))
            return false;
    return true;
}

enum lm_status hub_files_add(struct hub_files *files, const char *path, uint64_t n_bytes,
                             const char *hash, struct lm_error *err)
{
    if (!is_safe_path(path))
        return lm_fail(err, LM_E_FORMAT, "the repository has a file of an unusable name: '%.200s'",
                       path);
    if (files->n == files->n_max) {
        const size_t n_max = files->n_max ? 2 * files->n_max : 64;
        struct hub_file *file = realloc(files->file, n_max * sizeof(*file));
        if (!file) return lm_fail(err, LM_E_NO_MEM, "no memory for a list of %zu files", n_max);
        files->file = file;
        files->n_max = n_max;
    }
    struct hub_file *file = &files->file[files->n];
    *file = (struct hub_file){.path = strdup(path), .n_bytes = n_bytes};
    if (!file->path) return lm_fail(err, LM_E_NO_MEM, "no memory for a path");
    snprintf(file->hash, sizeof(file->hash), "%s", hash);
    files->n++;
    return LM_OK;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(((const struct hub_file *)a)->path, ((const struct hub_file *)b)->path);
}

void hub_files_sort(struct hub_files *files)
{
    if (files->n) qsort(files->file, files->n, sizeof(*files->file), compare_paths);
}

void hub_files_free(struct hub_files *files)
{
    for (size_t i = 0; i < files->n; i++)
        free(files->file[i].path);
    free(files->file);
    *files = (struct hub_files){0};
}

/* ---- names ---- */

static bool ends_with(const char *path, const char *suffix)
{
    const size_t n = strlen(path), n_suffix = strlen(suffix);
    return n >= n_suffix && !strcasecmp(path + n - n_suffix, suffix);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Bytes of path before "-00002-of-00005.gguf" or ".gguf". *part: 1, 2, ... of *n_part. */
static size_t stem_of(const char *path, uint32_t *part, uint32_t *n_part)
{
    const size_t n = strlen(path) - strlen(".gguf");
    unsigned number, count;
    int used = 0;
    *part = *n_part = 1;
    if (n > 15 && sscanf(path + n - 15, "-%5u-of-%5u%n", &number, &count, &used) == 2 &&
        used == 15 && number >= 1 && number <= count) {
        *part = number;
        *n_part = count;
        return n - 15;
    }
    return n;
}

/* Q4_K_M, IQ3_XXS, BF16, MXFP4_MOE: n bytes that name an element type. */
static bool is_label(const char *text, size_t n)
{
    static const char *const words[] = {"F16", "F32", "BF16", "FP16", "FP8", "MXFP4", "NVFP4"};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        const size_t length = strlen(words[i]);
        if (n >= length && !strncasecmp(text, words[i], length) &&
            (n == length || text[length] == '_'))
            return true;
    }
    if (n && (toupper((unsigned char)*text) == 'I' || toupper((unsigned char)*text) == 'T')) {
        text++;
        n--;
    }
    return n >= 2 && toupper((unsigned char)text[0]) == 'Q' && isdigit((unsigned char)text[1]);
}

/* The last part of the file's name between '-' or '.' that is a label, with "UD-" before it, else
 * that of its folders, else the whole name. */
static char *label_of(const char *key, size_t n)
{
    const char *label = NULL;
    size_t n_label = 0;
    for (size_t start = 0; start <= n;) {
        size_t end = start;
        while (end < n && !strchr("-./", key[end]))
            end++;
        if (is_label(key + start, end - start)) {
            const bool dynamic = start >= 3 && !strncasecmp(key + start - 3, "UD-", 3) &&
                                 (start == 3 || strchr("-./", key[start - 4]));
            label = key + start - (dynamic ? 3 : 0);
            n_label = end - start + (dynamic ? 3 : 0);
        }
        start = end + 1;
    }
    if (!label) {
        const char *slash = memrchr(key, '/', n);
        label = slash ? slash + 1 : key;
        n_label = n - (size_t)(label - key);
    }
    return n_label ? strndup(label, n_label) : strdup("lmpack");
}

/* Whether variant is in key, and what is beside it there delimits it. */
static bool is_named_in(const char *key, const char *variant)
{
    const size_t n = strlen(variant);
    for (const char *at = key; (at = strcasestr(at, variant)); at++)
        if ((at == key || strchr("-./", at[-1])) && (!at[n] || strchr("-./", at[n]))) return true;
    return false;
}

/* ---- variants ---- */

struct variants {
    struct hub_variant *variant;
    size_t n;
};

static struct hub_variant *find_variant(const struct variants *list, const char *key, size_t n)
{
    for (size_t i = 0; i < list->n; i++)
        if (strlen(list->variant[i].key) == n && !memcmp(list->variant[i].key, key, n))
            return &list->variant[i];
    return NULL;
}

static struct hub_variant *add_variant(struct variants *list, const char *key, size_t n)
{
    struct hub_variant *grown = realloc(list->variant, (list->n + 1) * sizeof(*list->variant));
    if (!grown) return NULL;
    list->variant = grown;
    struct hub_variant *added = &grown[list->n];
    *added = (struct hub_variant){.label = label_of(key, n), .key = strndup(key, n)};
    list->n++;
    return added->label && added->key ? added : NULL;
}

static bool has_file(const struct hub_files *files, const char *folder, size_t n, const char *name)
{
    char path[1100];
    snprintf(path, sizeof(path), "%.*s%s%s", (int)n, folder, n ? "/" : "", name);
    const struct hub_file wanted = {.path = path};
    return bsearch(&wanted, files->file, files->n, sizeof(*files->file), compare_paths) != NULL;
}

/* The folder that a file is in, when that is a pack; SIZE_MAX: it is none. */
static size_t pack_folder_of(const struct hub_files *files, const char *path)
{
    const char *slash = strrchr(path, '/');
    const size_t n = slash ? (size_t)(slash - path) : 0;
    return has_file(files, path, n, "manifest.pb") && has_file(files, path, n, "dense.gguf")
               ? n
               : SIZE_MAX;
}

static bool is_pack_file(const char *path)
{
    const char *name = base_name(path);
    unsigned layer;
    int used = 0;
    if (sscanf(name, "experts-%u.bin%n", &layer, &used) == 1 && used && !name[used]) return true;
    return !strcmp(name, "manifest.pb") || !strcmp(name, "dense.gguf") ||
           !strcmp(name, "profile.pb");
}

/* Weights of a language model: not its eyes, and not what a quantizer was told. */
static bool is_model_gguf(const char *path)
{
    const char *name = base_name(path);
    return ends_with(name, ".gguf") && strlen(name) > strlen(".gguf") &&
           strncasecmp(name, "mmproj", 6) && !strcasestr(name, "imatrix");
}

static enum lm_status add_to_variant(struct variants *list, const struct hub_files *files,
                                     const struct hub_file *file, struct lm_error *err)
{
    uint32_t part = 1, n_part = 1;
    const size_t n_folder = is_pack_file(file->path) ? pack_folder_of(files, file->path) : SIZE_MAX;
    const bool is_pack = n_folder != SIZE_MAX;
    if (!is_pack && !is_model_gguf(file->path)) return LM_OK;
    const size_t n = is_pack ? n_folder : stem_of(file->path, &part, &n_part);
    struct hub_variant *variant = find_variant(list, file->path, n);
    if (!variant) variant = add_variant(list, file->path, n);
    if (!variant) return lm_fail(err, LM_E_NO_MEM, "no memory for the list of variants");
    variant->is_pack = is_pack;
    variant->n_bytes += file->n_bytes;
    variant->n_part++;
    if (n_part > variant->n_part_all) variant->n_part_all = n_part;
    return LM_OK;
}

enum lm_status hub_variants_find(const struct hub_files *files, struct hub_variant **out, size_t *n,
                                 struct lm_error *err)
{
    struct variants list = {0};
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < files->n && status == LM_OK; i++)
        status = add_to_variant(&list, files, &files->file[i], err);
    if (status != LM_OK) {
        hub_variants_free(list.variant, list.n);
        return status;
    }
    *out = list.variant;
    *n = list.n;
    return LM_OK;
}

bool hub_variant_has(const struct hub_files *files, const struct hub_variant *variant,
                     const char *path)
{
    uint32_t part, n_part;
    const size_t n_key = strlen(variant->key);
    if (variant->is_pack)
        return is_pack_file(path) && pack_folder_of(files, path) == n_key &&
               !strncmp(path, variant->key, n_key);
    return is_model_gguf(path) && stem_of(path, &part, &n_part) == n_key &&
           !strncmp(path, variant->key, n_key);
}

void hub_variants_free(struct hub_variant *variants, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(variants[i].label);
        free(variants[i].key);
    }
    free(variants);
}

/* ---- the choice ---- */

static bool matches(const char *path, const char *const *globs, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!fnmatch(globs[i], path, 0) || !fnmatch(globs[i], base_name(path), 0)) return true;
    return false;
}

static bool is_considered(const struct hub_wish *wish, const char *path)
{
    return (!wish->n_include || matches(path, wish->includes, wish->n_include)) &&
           !matches(path, wish->excludes, wish->n_exclude);
}

static bool is_layer_wished(const struct hub_wish *wish, const char *path)
{
    unsigned layer;
    if (!wish->has_layers || sscanf(base_name(path), "experts-%u.bin", &layer) != 1) return true;
    return layer >= wish->first_layer && layer <= wish->last_layer;
}

/* Of a repository of safetensors: those, and what tokenizes, configures and prompts. */
static bool is_of_safetensors(const char *path)
{
    static const char *const globs[] = {"*.safetensors", "*.json",     "tokenizer.model",
                                        "*.jinja",       "merges.txt", "vocab.txt"};
    return !strchr(path, '/') && matches(path, globs, sizeof(globs) / sizeof(globs[0]));
}

static enum lm_status take(struct hub_choice *choice, const struct hub_files *files, size_t i,
                           struct lm_error *err)
{
    size_t *index = realloc(choice->index, (choice->n + 1) * sizeof(*index));
    if (!index) return lm_fail(err, LM_E_NO_MEM, "no memory for the choice of files");
    choice->index = index;
    choice->index[choice->n++] = i;
    choice->n_bytes += files->file[i].n_bytes;
    return LM_OK;
}

static const struct hub_variant *only_one(const struct hub_variant *variants, size_t n,
                                          const char *label,
                                          bool (*is)(const char *key, const char *label),
                                          size_t *n_found)
{
    const struct hub_variant *found = NULL, *pack = NULL;
    size_t n_pack = 0;
    *n_found = 0;
    for (size_t i = 0; i < n; i++) {
        if (is ? !is(variants[i].key, label) : strcasecmp(variants[i].label, label) != 0) continue;
        if (!found) found = &variants[i];
        if (variants[i].is_pack) pack = &variants[i];
        n_pack += variants[i].is_pack;
        ++*n_found;
    }
    if (n_pack != 1) return found;
    *n_found = 1; /* beside the GGUF file that it was made of */
    return pack;
}

static enum lm_status pick_variant(const struct hub_variant *variants, size_t n, const char *wished,
                                   const struct hub_variant **out, struct lm_error *err)
{
    size_t n_found = 0;
    if (wished && *wished) {
        *out = only_one(variants, n, wished, NULL, &n_found);
        if (!n_found) *out = only_one(variants, n, wished, is_named_in, &n_found);
        if (n_found == 1) return LM_OK;
        if (!n_found) return lm_fail(err, LM_E_NOT_FOUND, "no variant '%s' among %zu", wished, n);
        lm_fail(err, LM_E_USAGE, "variant '%s' fits %zu sets of files, %.200s among them", wished,
                n_found, (*out)->key);
        lm_hint(err, "--include GLOB tells them apart");
        return LM_E_USAGE;
    }
    *out = variants;
    if (n == 1) return LM_OK;
    for (size_t i = 0; i < sizeof(preferred) / sizeof(preferred[0]); i++) {
        *out = only_one(variants, n, preferred[i], NULL, &n_found);
        if (n_found == 1) return LM_OK;
    }
    return lm_fail(err, LM_E_NOT_FOUND, "%zu variants, and none of the usual ones", n);
}

static enum lm_status choose_variant(const struct hub_files *files, const struct hub_wish *wish,
                                     const struct hub_variant *variant, struct hub_choice *choice,
                                     struct lm_error *err)
{
    enum lm_status status = LM_OK;
    if (!variant->is_pack && variant->n_part != variant->n_part_all)
        return lm_fail(err, LM_E_NOT_FOUND, "%s: %u of %u parts are there", variant->key,
                       variant->n_part, variant->n_part_all);
    if (wish->has_layers && !variant->is_pack)
        return lm_fail(err, LM_E_USAGE, "--layers: %s is no pack", variant->key);
    snprintf(choice->variant, sizeof(choice->variant), "%s", variant->label);
    for (size_t i = 0; i < files->n && status == LM_OK; i++) {
        const char *path = files->file[i].path;
        if (!hub_variant_has(files, variant, path) || !is_layer_wished(wish, path)) continue;
        const bool is_main =
            variant->is_pack ? !strcmp(base_name(path), "dense.gguf") : choice->main_path == NULL;
        if (is_main && !(choice->main_path = strdup(path)))
            status = lm_fail(err, LM_E_NO_MEM, "no memory for a path");
        if (status == LM_OK) status = take(choice, files, i, err);
    }
    return status;
}

static enum lm_status choose_matching(const struct hub_files *files, const struct hub_wish *wish,
                                      struct hub_choice *choice, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < files->n && status == LM_OK; i++) {
        const char *path = files->file[i].path;
        if (!matches(path, wish->only, wish->n_only)) continue;
        if (!choice->main_path && is_model_gguf(path)) choice->main_path = strdup(path);
        status = take(choice, files, i, err);
    }
    if (status == LM_OK && !choice->n)
        status =
            lm_fail(err, LM_E_NOT_FOUND, "none of %zu files matches '%s'", files->n, wish->only[0]);
    return status;
}

static enum lm_status choose_safetensors(const struct hub_files *files, struct hub_choice *choice,
                                         struct lm_error *err)
{
    bool has_weights = false;
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < files->n && status == LM_OK; i++) {
        if (!is_of_safetensors(files->file[i].path)) continue;
        has_weights |= ends_with(files->file[i].path, ".safetensors");
        status = take(choice, files, i, err);
    }
    if (status == LM_OK && !has_weights)
        status = lm_fail(err, LM_E_NOT_FOUND,
                         "%zu files, and no weights in GGUF, .lmpack or safetensors among them",
                         files->n);
    return status;
}

/* Which of the considered files, by their own numbers. */
static enum lm_status choose_considered(const struct hub_files *files, const struct hub_wish *wish,
                                        struct hub_choice *choice, struct lm_error *err)
{
    struct hub_variant *variants = NULL;
    const struct hub_variant *picked = NULL;
    size_t n = 0;
    if (wish->n_only) return choose_matching(files, wish, choice, err);
    enum lm_status status = hub_variants_find(files, &variants, &n, err);
    if (status != LM_OK) return status;
    if (n) {
        status = pick_variant(variants, n, wish->variant, &picked, err);
        if (status == LM_OK) status = choose_variant(files, wish, picked, choice, err);
    } else {
        status = choose_safetensors(files, choice, err);
    }
    hub_variants_free(variants, n);
    return status;
}

enum lm_status hub_choose(const struct hub_files *files, const struct hub_wish *wish,
                          struct hub_choice *out, struct lm_error *err)
{
    struct hub_files considered = {0};
    struct hub_choice choice = {0};
    size_t *number = malloc((files->n + 1) * sizeof(*number)); /* of the considered, in files */
    enum lm_status status = number ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for a choice");
    for (size_t i = 0; i < files->n && status == LM_OK; i++) {
        const struct hub_file *file = &files->file[i];
        if (!is_considered(wish, file->path)) continue;
        number[considered.n] = i;
        status = hub_files_add(&considered, file->path, file->n_bytes, file->hash, err);
    }
    if (status == LM_OK) status = choose_considered(&considered, wish, &choice, err);
    for (size_t i = 0; i < choice.n; i++)
        choice.index[i] = number[choice.index[i]];
    hub_files_free(&considered);
    free(number);
    if (status == LM_OK)
        *out = choice;
    else
        hub_choice_free(&choice);
    return status;
}

void hub_choice_free(struct hub_choice *choice)
{
    free(choice->index);
    free(choice->main_path);
    *choice = (struct hub_choice){0};
}
