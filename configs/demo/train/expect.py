"""What other programs make of the model file, for tests/e2e/test_demo.py.

    expect.py WORKDIR BF16.gguf MODEL.gguf HELDOUT.txt OUT.json

The loss on the held-out text in windows of the context: PyTorch's with the checkpoint's weights in BF16 and llama.cpp's
on both files; and llama.cpp's greedy continuations of 20 prompts with the steps at which the second choice was near.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from measure import encode, load
from reference import Reference
from samples import OPENINGS

N_GREEDY = 200
NEAR = 0.05  # one flipped rounding moves a logit by up to 0.03 here: llama.cpp against itself, in a batch or token by token


@torch.no_grad()
def torch_losses(net, ids):
    ids = torch.tensor(ids)
    return torch.nn.functional.cross_entropy(net(ids[None, :-1])[0], ids[1:], reduction="none")


def mean_loss(losses, windows):
    """Over all predicted tokens; losses: of one window."""
    return np.concatenate([np.asarray(losses(w)) for w in windows]).mean(dtype=np.float64).item()


def main(work, bf16_path, path, heldout, out):
    net, _ = load(work)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    reference = Reference(path, net.c.n_ctx)
    ids = encode(tokenizer, heldout)
    windows = [w.tolist() for w in ids.split(net.c.n_ctx) if len(w) > 1]
    loss = {
        "torch_bf16": mean_loss(lambda w: torch_losses(net, w), windows),
        "llama_bf16": mean_loss(Reference(bf16_path, net.c.n_ctx).losses, windows),
        "llama": mean_loss(reference.losses, windows),
    }
    prompts = []
    for text in OPENINGS:
        prompt = tokenizer.encode(text).ids
        greedy, margins = reference.greedy(prompt, N_GREEDY)
        near = {i: round(m, 4) for i, m in enumerate(margins) if m < NEAR}
        prompts.append({"text": text, "ids": prompt, "greedy": greedy, "near_ties": near})
    expected = {
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "heldout": {"n_tokens": len(ids), "loss": loss},
        "prompts": prompts,
    }
    rows = ",\n".join(json.dumps(x) for x in prompts)
    out.write_text(json.dumps(expected | {"prompts": []}).replace("[]", f"[\n{rows}]") + "\n")


if __name__ == "__main__":
    work, bf16, model, heldout, out = sys.argv[1:]
    main(Path(work), bf16, model, Path(heldout), Path(out))
