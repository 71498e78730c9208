/* The recipes as a table, and the walk over a model's tensors that applies one. */
#include "worker/pack/recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Layers that get the better type of a pair. */
enum better_layers {
    BETTER_NONE,
    BETTER_FIRST_2,        /* the first two */
    BETTER_FIRST_16TH,     /* the first n/16 */
    BETTER_ENDS_AND_THIRD, /* the first and last eighth, and every third between */
};

struct recipe {
    const char *name;
    uint32_t file_type;
    enum tensor_type base;
    enum tensor_type output; /* output.weight, or token_embd.weight where that is the output */
    enum better_layers value_rule, down_rule;
    enum tensor_type value_better, value; /* attn_v, attn_qkv, attn_kv_b */
    enum tensor_type down_better, down;   /* ffn_down and its kin */
    enum tensor_type attn_output;
};

#define MIX(name, file_type, base, value_rule, down_rule, better, other, attn_output)              \
    {                                                                                              \
        name, file_type, base, TENSOR_Q6_K, value_rule, down_rule, better, other, better, other,   \
            attn_output                                                                            \
    }
#define UNIFORM(name, file_type)                                                                   \
    {                                                                                              \
#name, file_type, TENSOR_##name, TENSOR_##name, BETTER_NONE, BETTER_NONE, TENSOR_##name,   \
            TENSOR_##name, TENSOR_##name, TENSOR_##name, TENSOR_##name                             \
    }

static const struct recipe recipes[] = {
    MIX("Q3_K_M", 12, TENSOR_Q3_K, BETTER_FIRST_2, BETTER_FIRST_16TH, TENSOR_Q5_K, TENSOR_Q4_K,
        TENSOR_Q4_K),
    MIX("Q4_K_M", 15, TENSOR_Q4_K, BETTER_ENDS_AND_THIRD, BETTER_ENDS_AND_THIRD, TENSOR_Q6_K,
        TENSOR_Q4_K, TENSOR_Q4_K),
    MIX("Q5_K_M", 17, TENSOR_Q5_K, BETTER_ENDS_AND_THIRD, BETTER_ENDS_AND_THIRD, TENSOR_Q6_K,
        TENSOR_Q5_K, TENSOR_Q5_K),
    UNIFORM(Q6_K, 18),
    UNIFORM(Q8_0, 7),
    UNIFORM(F32, 0),
    UNIFORM(F16, 1),
    UNIFORM(BF16, 32),
    UNIFORM(Q4_0, 2),
    UNIFORM(Q4_1, 3),
    UNIFORM(Q5_0, 8),
    UNIFORM(Q5_1, 9),
    UNIFORM(Q2_K, 10),
    UNIFORM(Q3_K, 11),
    UNIFORM(Q4_K, 14),
    UNIFORM(Q5_K, 16),
    UNIFORM(IQ4_NL, 25),
    UNIFORM(IQ4_XS, 30),
    UNIFORM(MXFP4, 38),
};
enum { N_RECIPE = sizeof(recipes) / sizeof(recipes[0]) };

enum lm_status recipe_find(const char *name, const struct recipe **out, struct lm_error *err)
{
    char names[200] = "";
    for (size_t i = 0; i < N_RECIPE; i++) {
        if (!strcasecmp(recipes[i].name, name)) {
            *out = &recipes[i];
            return LM_OK;
        }
        const size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, "%s%s", i ? ", " : "", recipes[i].name);
    }
    return lm_fail(err, LM_E_USAGE, "no quantization type \"%s\"; there are %s", name, names);
}

const char *recipe_name(const struct recipe *recipe)
{
    return recipe->name;
}

uint32_t recipe_file_type(const struct recipe *recipe)
{
    return recipe->file_type;
}

static bool is_better(enum better_layers rule, uint32_t i, uint32_t n)
{
    switch (rule) {
    case BETTER_FIRST_2:
        return i < 2;
    case BETTER_FIRST_16TH:
        return i < n / 16;
    case BETTER_ENDS_AND_THIRD:
        return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
    default:
        return false;
    }
}

/* Matrices that are multiplied by as weights, apart from those whose precision decides much and
 * whose size is little. */
static bool is_quantized(const struct recipe_tensor *tensor)
{
    static const char *const kept[] = {"_norm.weight",    "ffn_gate_inp.weight", "ssm_conv1d",
                                       "shortconv.conv",  "position_embd",       "token_types",
                                       "ffn_gate_tid2eid"};
    const size_t n_name = strlen(tensor->name);
    if (n_name < 6 || strcmp(tensor->name + n_name - 6, "weight")) return false;
    if (tensor->ne[1] * tensor->ne[2] * tensor->ne[3] == 1) return false;
    for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
        if (strstr(tensor->name, kept[i])) return false;
    return true;
}

static bool is_value(const char *name)
{
    return strstr(name, "attn_v.weight") || strstr(name, "attn_qkv.weight") ||
           strstr(name, "attn_kv_b.weight");
}

/* N of blk.N.rest; -1: not in a layer. */
static int layer_of(const char *name)
{
    int layer = -1;
    return sscanf(name, "blk.%d.", &layer) == 1 ? layer : -1;
}

/* The type for rows that wanted's blocks divide. */
static enum tensor_type fit_rows(enum tensor_type wanted, uint64_t n_elem)
{
    if (n_elem % tensor_type_info(wanted)->block_elems == 0) return wanted;
    enum tensor_type narrow = TENSOR_F16;
    switch (wanted) {
    case TENSOR_IQ4_XS:
        narrow = TENSOR_IQ4_NL;
        break;
    case TENSOR_Q2_K:
    case TENSOR_Q3_K:
        narrow = TENSOR_Q4_0;
        break;
    case TENSOR_Q4_K:
        narrow = TENSOR_Q5_0;
        break;
    case TENSOR_Q5_K:
        narrow = TENSOR_Q5_1;
        break;
    case TENSOR_Q6_K:
        narrow = TENSOR_Q8_0;
        break;
    default:
        break;
    }
    return n_elem % tensor_type_info(narrow)->block_elems ? TENSOR_F16 : narrow;
}

struct model_facts {
    uint32_t n_layer, n_value; /* n_value: tensors that is_value holds for */
    bool tied;                 /* no output.weight */
    bool eight_experts;        /* the rules made for Mixtral */
};

/* i_value: how many value tensors came before, in order of layers. */
static enum tensor_type choose_type(const struct recipe *recipe, const struct model_facts *facts,
                                    const char *name, uint32_t i_value)
{
    if (!strcmp(name, "output.weight") || (facts->tied && !strcmp(name, "token_embd.weight")))
        return recipe->output;
    if (recipe->base >= TENSOR_Q2_K && facts->eight_experts) {
        if (is_value(name) || strstr(name, "attn_k.weight")) return TENSOR_Q8_0;
        if (strstr(name, "attn_output.weight") && recipe->base <= TENSOR_Q4_K) return TENSOR_Q5_K;
    }
    if (is_value(name))
        return is_better(recipe->value_rule, i_value, facts->n_value) ? recipe->value_better
                                                                      : recipe->value;
    if (strstr(name, "ffn_down")) {
        const int layer = layer_of(name);
        return is_better(recipe->down_rule, layer < 0 ? 0 : (uint32_t)layer, facts->n_layer)
                   ? recipe->down_better
                   : recipe->down;
    }
    if (strstr(name, "attn_output.weight")) return recipe->attn_output;
    return recipe->base;
}

/* By layer, then by name: the order in which the value tensors are counted. */
static int compare_tensors(const void *a, const void *b)
{
    const struct recipe_tensor *const *left = a, *const *right = b;
    const int layer_left = layer_of((*left)->name), layer_right = layer_of((*right)->name);
    if (layer_left != layer_right) return layer_left < layer_right ? -1 : 1;
    return strcmp((*left)->name, (*right)->name);
}

enum lm_status recipe_assign(const struct recipe *recipe, struct recipe_tensor *tensors,
                             size_t n_tensor, uint32_t n_layer, uint32_t n_expert,
                             struct lm_error *err)
{
    struct recipe_tensor **order = malloc((n_tensor + 1) * sizeof(struct recipe_tensor *));
    if (!order) return lm_fail(err, LM_E_NO_MEM, "no memory to sort %zu tensors", n_tensor);
    struct model_facts facts = {n_layer, 0, true, n_expert == 8};
    for (size_t i = 0; i < n_tensor; i++) {
        order[i] = &tensors[i];
        facts.n_value += is_value(tensors[i].name);
        if (!strcmp(tensors[i].name, "output.weight")) facts.tied = false;
    }
    qsort(order, n_tensor, sizeof(struct recipe_tensor *), compare_tensors);
    uint32_t i_value = 0;
    for (size_t i = 0; i < n_tensor; i++) {
        struct recipe_tensor *tensor = order[i];
        if (is_quantized(tensor))
            tensor->type =
                fit_rows(choose_type(recipe, &facts, tensor->name, i_value), tensor->ne[0]);
        i_value += is_value(tensor->name);
    }
    free(order);
    return LM_OK;
}
