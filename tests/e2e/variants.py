"""Models derived from the golden ones: other forms of the same model, and relatives of it.

SAME: another form of a file that must give the same bits: (base, function that changes the file).
OTHER: a model of its own, whose logits the reference implementation has computed
(tests/data/golden/variants.json). Everything is F32 there, so that logits are comparable."""
import os
import struct

import golden
from gguf_file import ARRAY, BOOL, F32, STRING, TYPE_F32, U32, File, Tensor


def load(base):
    return File(os.path.join(golden.SUBSET, "models", base + ".gguf"))


def join(*tensors):
    """One tensor of the rows of several, per expert if they are stacks."""
    n_expert = tensors[0].shape[2] if len(tensors[0].shape) == 3 else 1
    data = b""
    for expert in range(n_expert):
        for tensor in tensors:
            n = len(tensor.data) // n_expert
            data += tensor.data[expert * n:(expert + 1) * n]
    first = tensors[0]
    return Tensor([first.shape[0], sum(t.shape[1] for t in tensors), *first.shape[2:]], first.type,
                  data)


def vector(n, seed, center=0.0, spread=0.3):
    """Arbitrary values that are the same everywhere."""
    values = [center + spread * (((i * 7919 + seed * 104729 + 13) % 101 - 50) / 50) for i in range(n)]
    return Tensor([n], TYPE_F32, struct.pack(f"<{n}f", *values))


def layers(file):
    return range(file.keys[file.keys["general.architecture"][1] + ".block_count"][1])


# ---- the same model in another form --------------------------------------------------------------


def fuse_gate_up(file):
    for i in layers(file):
        gate = file.tensors.pop(f"blk.{i}.ffn_gate_exps.weight", None)
        if gate:
            up = file.tensors.pop(f"blk.{i}.ffn_up_exps.weight")
            file.tensors[f"blk.{i}.ffn_gate_up_exps.weight"] = join(gate, up)


def split_experts(file):
    """One tensor per expert, as files were before stacks."""
    for i in layers(file):
        for name in ("gate", "up", "down"):
            stack = file.tensors.pop(f"blk.{i}.ffn_{name}_exps.weight", None)
            n = stack.shape[2] if stack else 0
            for e in range(n):
                part = stack.data[len(stack.data) // n * e:len(stack.data) // n * (e + 1)]
                file.tensors[f"blk.{i}.ffn_{name}.{e}.weight"] = Tensor(stack.shape[:2], stack.type,
                                                                        part)


def fuse_qkv(file):
    for i in layers(file):
        parts = [file.tensors.pop(f"blk.{i}.attn_{x}.weight", None) for x in "qkv"]
        if parts[0]:
            file.tensors[f"blk.{i}.attn_qkv.weight"] = join(*parts)
        bias = [file.tensors.pop(f"blk.{i}.attn_{x}.bias", None) for x in "qkv"]
        if bias[0]:
            data = b"".join(b.data for b in bias)
            file.tensors[f"blk.{i}.attn_qkv.bias"] = Tensor([len(data) // 4], TYPE_F32, data)


def no_interval(file):
    """Four is the default."""
    assert file.keys.pop("qwen35moe.full_attention_interval")[1] == 4


def recurrent_layers(file):
    """The list wins over the interval."""
    file.keys["qwen35moe.full_attention_interval"] = (U32, 3)
    flags = [(i + 1) % 4 != 0 for i in layers(file)]
    file.keys["qwen35moe.attention.recurrent_layers"] = (ARRAY, (BOOL, flags))


def mtp_absent(file):
    """A prediction layer that is declared, but not there."""
    n = len(layers(file))
    file.keys["qwen35moe.block_count"] = (U32, n + 1)
    file.keys["qwen35moe.nextn_predict_layers"] = (U32, 1)


def mtp_present(file):
    """A prediction layer with all its tensors: nothing of it takes part."""
    n, d = len(layers(file)), file.keys["qwen35moe.embedding_length"][1]
    for name, tensor in list(file.tensors.items()):
        if name.startswith("blk.3."):
            file.tensors[name.replace("blk.3.", f"blk.{n}.")] = tensor
    file.tensors[f"blk.{n}.nextn.eh_proj.weight"] = Tensor([2 * d, d], TYPE_F32, bytes(8 * d * d))
    file.tensors[f"blk.{n}.nextn.enorm.weight"] = vector(d, 1)
    file.tensors[f"blk.{n}.nextn.hnorm.weight"] = vector(d, 2)
    mtp_absent(file)


def old_ssm_in(file):
    """attn_qkv and attn_gate as one matrix, interleaved by key head: q, k, its v, its z."""
    key = lambda name: file.keys["qwen3next.ssm." + name][1]
    n_k, dim = key("group_count"), key("state_size")
    n_share = key("time_step_rank") // n_k * (key("inner_size") // key("time_step_rank"))
    for i in layers(file):
        if f"blk.{i}.ssm_a" not in file.tensors:
            continue
        qkv = file.tensors.pop(f"blk.{i}.attn_qkv.weight")
        z = file.tensors.pop(f"blk.{i}.attn_gate.weight").rows()
        rows, data = qkv.rows(), []
        q, k, v = rows[:n_k * dim], rows[n_k * dim:2 * n_k * dim], rows[2 * n_k * dim:]
        for g in range(n_k):
            data += q[g * dim:(g + 1) * dim] + k[g * dim:(g + 1) * dim]
            data += v[g * n_share:(g + 1) * n_share] + z[g * n_share:(g + 1) * n_share]
        file.tensors[f"blk.{i}.ssm_in.weight"] = Tensor([qkv.shape[0], len(data)], qkv.type,
                                                        b"".join(data))


def untied(file):
    assert "output.weight" not in file.tensors
    file.tensors["output.weight"] = file.tensors["token_embd.weight"]


def neutral_rope(file):
    """Frequency factors of one, and a scaling factor that type none switches off."""
    n = file.keys["llama.rope.dimension_count"][1] // 2
    file.tensors["rope_freqs.weight"] = vector(n, 0, center=1, spread=0)
    file.keys["llama.rope.scaling.type"] = (STRING, "none")
    file.keys["llama.rope.scaling.factor"] = (F32, 4.0)


def window_pattern(file):
    file.keys["afmoe.attention.sliding_window_pattern"] = (U32, 4)


SAME = {
    "gate_up fused": ("qwen35moe-k-q4km", fuse_gate_up),
    "tensor per expert": ("qwen35moe-s-q8_0", split_experts),
    "tensor per expert, qwen3moe": ("qwen3moe-s-q8_0", split_experts),
    "attn_qkv fused": ("qwen3next-s-q8_0", fuse_qkv),
    "attn_qkv fused, afmoe": ("afmoe-s-q8_0", fuse_qkv),
    "attn_qkv fused, llama": ("llama-s-f32", fuse_qkv),
    "interval by default": ("qwen35moe-s-q8_0", no_interval),
    "list of recurrent layers": ("qwen35moe-s-q8_0", recurrent_layers),
    "prediction layer absent": ("qwen35moe-s-q8_0", mtp_absent),
    "prediction layer present": ("qwen35moe-s-q8_0", mtp_present),
    "ssm_in": ("qwen3next-s-q8_0", old_ssm_in),
    "ssm_in and attn_qkv fused": ("qwen3next-s-q8_0", lambda f: (old_ssm_in(f), fuse_qkv(f))),
    "output not tied": ("llama-s-q8_0", untied),
    "neutral rope": ("llama-s-f32", neutral_rope),
    "window pattern": ("afmoe-s-q8_0", window_pattern),
}


# ---- relatives -----------------------------------------------------------------------------------


def to_f32(file):
    for name, tensor in file.tensors.items():
        file.tensors[name] = tensor.to_f32()


def rename(file, old, new):
    """Another architecture with the same sizes."""
    file.keys = {k.replace(old + ".", new + ".", 1) if k.startswith(old + ".") else k: v
                 for k, v in file.keys.items()}
    file.keys["general.architecture"] = (STRING, new)


def add_bias(file, names):
    for i in layers(file):
        for seed, name in enumerate(names):
            n = file.tensors[f"blk.{i}.{name}.weight"].shape[1]
            file.tensors[f"blk.{i}.{name}.bias"] = vector(n, 10 * i + seed)


def qwen2(file):
    add_bias(file, ("attn_q", "attn_k", "attn_v"))
    rename(file, "llama", "qwen2")


def llama_bias(file):
    add_bias(file, ("attn_q", "attn_k", "attn_v", "attn_output"))


def llama_fused_bias(file):
    """The biases fused, the matrices not."""
    llama_bias(file)
    matrices = dict(file.tensors)
    fuse_qkv(file)
    for i in layers(file):
        del file.tensors[f"blk.{i}.attn_qkv.weight"]
        for x in "qkv":
            file.tensors[f"blk.{i}.attn_{x}.weight"] = matrices[f"blk.{i}.attn_{x}.weight"]


def old_linear_rope(file):
    file.keys["llama.rope.scale_linear"] = (F32, 4.0)


def qwen3(file):
    dim = file.keys["llama.attention.key_length"][1]
    for i in layers(file):
        file.tensors[f"blk.{i}.attn_q_norm.weight"] = vector(dim, 2 * i, center=1)
        file.tensors[f"blk.{i}.attn_k_norm.weight"] = vector(dim, 2 * i + 1, center=1)
    rename(file, "llama", "qwen3")


def qwen35(file):
    """The shared expert becomes the dense FFN."""
    to_f32(file)
    file.keys["qwen35moe.feed_forward_length"] = file.keys.pop(
        "qwen35moe.expert_shared_feed_forward_length")
    for key in ("expert_count", "expert_used_count", "expert_feed_forward_length"):
        del file.keys["qwen35moe." + key]
    tensors = {}
    for name, tensor in file.tensors.items():
        if "_exps" in name or "gate_inp" in name:
            continue
        tensors[name.replace("_shexp", "")] = tensor
    file.tensors = tensors
    rename(file, "qwen35moe", "qwen35")


def rope_scaling(arch, kind, factor, n_ctx_orig=64, **more):
    def change(file):
        to_f32(file)
        file.keys[arch + ".rope.scaling.type"] = (STRING, kind)
        file.keys[arch + ".rope.scaling.factor"] = (F32, factor)
        file.keys[arch + ".rope.scaling.original_context_length"] = (U32, n_ctx_orig)
        for name, value in more.items():
            file.keys[f"{arch}.rope.scaling.{name}"] = (F32, value)
    return change


def rope_freqs_and_yarn(file):
    n = file.keys["llama.rope.dimension_count"][1] // 2
    file.tensors["rope_freqs.weight"] = vector(n, 3, center=3, spread=2)
    rope_scaling("llama", "yarn", 8.0, 48)(file)


def standing_pairs(file):
    """Some pairs belong to a position stream that text does not have."""
    to_f32(file)
    file.keys["qwen35moe.rope.dimension_sections"] = (ARRAY, (5, [1, 0, 0, 1]))


def afmoe_pattern(file):
    """Windows in two layers of three: the layers without rotation stay every fourth."""
    to_f32(file)
    file.keys["afmoe.attention.sliding_window_pattern"] = (U32, 3)
    file.keys["afmoe.rope.freq_base_swa"] = (F32, 500.0)


def afmoe_weights(file):
    """Softmax routing, weights neither normalised nor scaled."""
    to_f32(file)
    file.keys["afmoe.expert_gating_func"] = (U32, 1)
    del file.keys["afmoe.expert_weights_norm"]
    del file.keys["afmoe.expert_weights_scale"]


def tiny_norms(file):
    """Inputs so small that the delta net's L2 norm is ruled by its eps."""
    to_f32(file)
    for name, tensor in file.tensors.items():
        if name.endswith(".ssm_conv1d.weight"):
            values = [v * 3e-3 for v, in struct.iter_unpack("<f", tensor.data)]
            file.tensors[name] = Tensor(tensor.shape, TYPE_F32,
                                        struct.pack(f"<{len(values)}f", *values))


def weak_router(file):
    """Probabilities by sigmoid so small that their sum is clamped below."""
    to_f32(file)
    for i in layers(file):
        if f"blk.{i}.ffn_gate_inp.weight" not in file.tensors:
            continue
        # the norm before the router leaves component 0 large and positive: its column decides
        norm = list(struct.unpack("<64f", file.tensors[f"blk.{i}.ffn_norm.weight"].data))
        router = file.tensors[f"blk.{i}.ffn_gate_inp.weight"]
        rows = [list(struct.unpack("<64f", row)) for row in router.rows()]
        for row in rows:
            row[0] = -40.0
        file.tensors[f"blk.{i}.ffn_gate_inp.weight"] = Tensor(
            router.shape, TYPE_F32, b"".join(struct.pack("<64f", *row) for row in rows))
        norm[0] = abs(norm[0])
        file.tensors[f"blk.{i}.ffn_norm.weight"] = Tensor([64], TYPE_F32,
                                                          struct.pack("<64f", *norm))


OTHER = {
    "qwen2": ("llama-s-f32", qwen2),
    "llama with biases": ("llama-s-f32", llama_bias),
    "qwen3": ("llama-s-f32", qwen3),
    "qwen35": ("qwen35moe-s-q8_0", qwen35),
    "llama with biases, fused": ("llama-s-f32", llama_fused_bias),
    "llama, linear rope": ("llama-s-f32", rope_scaling("llama", "linear", 4.0)),
    "llama, linear rope, old key": ("llama-s-f32", old_linear_rope),
    "llama, yarn": ("llama-s-f32", rope_scaling("llama", "yarn", 4.0)),
    "llama, yarn and rope_freqs": ("llama-s-f32", rope_freqs_and_yarn),
    "qwen3moe, yarn, attn_factor": (
        "qwen3moe-s-q8_0", rope_scaling("qwen3moe", "yarn", 16.0, 32, attn_factor=1.25)),
    "qwen35moe, yarn, betas": ("qwen35moe-s-q8_0", rope_scaling(
        "qwen35moe", "yarn", 2.0, 100, yarn_beta_fast=8.0, yarn_beta_slow=2.0)),
    "afmoe, rope none": ("afmoe-s-q8_0", rope_scaling("afmoe", "none", 4.0)),
    "afmoe, linear rope": ("afmoe-s-q8_0", rope_scaling("afmoe", "linear", 2.0)),
    "afmoe, window pattern 3": ("afmoe-s-q8_0", afmoe_pattern),
    "afmoe, softmax": ("afmoe-s-q8_0", afmoe_weights),
    "qwen35moe, standing pairs": ("qwen35moe-s-q8_0", standing_pairs),
    "qwen35moe, tiny norms": ("qwen35moe-s-q8_0", tiny_norms),
    "afmoe, weak router": ("afmoe-s-q8_0", weak_router),
}

# Forms of a relative: their logits are recorded under its name.
FORM_OF = {"llama with biases, fused": "llama with biases",
           "llama, linear rope, old key": "llama, linear rope"}


def make(table, name, path):
    """Writes a variant."""
    base, change = table[name]
    file = load(base)
    change(file)
    file.write(path)
