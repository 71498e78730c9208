"""Writes a checkpoint as GGUF: export.py WORKDIR OUT.gguf [--type bf16|f32] [--random]

Vectors, routers and convolutions are F32 in every file; --type is that of the other matrices.
--random writes fresh weights instead of the checkpoint's (to check the conversion before training).
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch

import model as lm
from train_tokenizer import CONTROL, VISIBLE

ALWAYS_F32 = ("ffn_gate_inp.weight", "ssm_conv1d.weight")


def write_metadata(w, c):
    arch = w.arch
    w.add_name("lean-demo")
    w.add_description("A small qwen35moe trained on free documentation, dictionaries and novels")
    w.add_license("see the model card")
    w.add_block_count(c.n_layer + 1)
    w.add_context_length(c.n_ctx)
    w.add_embedding_length(c.n_embd)
    w.add_head_count(c.n_head)
    w.add_head_count_kv(c.n_head_kv)
    w.add_key_length(c.head_dim)
    w.add_value_length(c.head_dim)
    w.add_layer_norm_rms_eps(c.eps)
    w.add_rope_dimension_count(c.n_rot)
    w.add_rope_dimension_sections(list(c.rope_sections))
    w.add_rope_freq_base(c.rope_freq_base)
    w.add_expert_count(c.n_expert)
    w.add_expert_used_count(c.n_expert_used)
    w.add_expert_feed_forward_length(c.n_ff_exp)
    w.add_expert_shared_feed_forward_length(c.n_ff_shexp)
    w.add_ssm_conv_kernel(c.ssm_conv)
    w.add_ssm_state_size(c.ssm_state)
    w.add_ssm_group_count(c.ssm_n_key_head)
    w.add_ssm_time_step_rank(c.ssm_n_value_head)
    w.add_ssm_inner_size(c.ssm_n_value_head * c.ssm_state)
    w.add_uint32(f"{arch}.full_attention_interval", c.full_attention_interval)
    w.add_uint32(f"{arch}.nextn_predict_layers", 1)
    w.add_float32("general.sampling.temp", 0.7)
    w.add_float32("general.sampling.top_p", 0.9)


def write_tokenizer(w, work):
    spec = json.loads((work / "tokenizer.json").read_text())
    ids = dict(spec["model"]["vocab"]) | {t["content"]: t["id"] for t in spec["added_tokens"]}
    tokens = sorted(ids, key=ids.get)
    assert [ids[t] for t in tokens] == list(range(len(tokens)))
    kind = {t: gguf.TokenType.CONTROL for t in CONTROL} | {t: gguf.TokenType.USER_DEFINED for t in VISIBLE}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types([kind.get(t, gguf.TokenType.NORMAL) for t in tokens])
    w.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    w.add_eos_token_id(ids["<|im_end|>"])
    w.add_pad_token_id(ids["<|endoftext|>"])
    w.add_add_bos_token(False)
    w.add_chat_template((Path(__file__).parent / "chat_template.jinja").read_text())


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("work", type=Path)
    ap.add_argument("out", type=Path)
    ap.add_argument("--type", choices=["bf16", "f32"], default="bf16")
    ap.add_argument("--random", action="store_true")
    args = ap.parse_args()
    if args.random:
        torch.manual_seed(1)
        net = lm.Model(lm.Config())
    else:
        saved = torch.load(args.work / "checkpoint.pt", map_location="cpu")
        net = lm.Model(lm.Config(**saved["config"]))
        net.load_state_dict(saved["state"])

    w = gguf.GGUFWriter(args.out, "qwen35moe")
    write_metadata(w, net.c)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if args.type == "bf16" else gguf.LlamaFileType.ALL_F32)
    write_tokenizer(w, args.work)
    for name, p in lm.gguf_tensors(net):
        data = p.detach().float().numpy()
        if args.type == "bf16" and data.ndim > 1 and not name.endswith(ALWAYS_F32):
            kind = gguf.GGMLQuantizationType.BF16
            w.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            w.add_tensor(name, np.ascontiguousarray(data))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
