"""What other programs make of the model file, for tests/e2e/test_demo.py.

    expect.py WORKDIR MODEL.gguf HELDOUT.txt OUT.json

Pieces of the held-out text with their loss in PyTorch (BF16 weights of the checkpoint) and in llama.cpp (MODEL), and
llama.cpp's greedy continuations of 20 prompts with the steps at which the second choice was near.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from measure import encode, load
from reference import Reference
from samples import OPENINGS

N_PIECE, PIECE_TOKENS, N_GREEDY, NEAR = 8, 512, 200, 0.02


@torch.no_grad()
def torch_losses(net, ids):
    ids = torch.tensor(ids)
    return torch.nn.functional.cross_entropy(net(ids[None, :-1])[0], ids[1:], reduction="none")


def main(work, path, heldout, out):
    net, _ = load(work)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    reference = Reference(path, net.c.n_ctx)
    ids = encode(tokenizer, heldout).tolist()
    step = len(ids) // N_PIECE
    pieces = []
    for at in range(0, step * N_PIECE, step):
        piece = ids[at : at + PIECE_TOKENS]
        pieces.append({"ids": piece, "torch_bf16": torch_losses(net, piece).mean().item(), "llama": reference.losses(piece).mean()})
    prompts = []
    for text in OPENINGS:
        prompt = tokenizer.encode(text).ids
        greedy, margins = reference.greedy(prompt, N_GREEDY)
        near = {i: round(m, 4) for i, m in enumerate(margins) if m < NEAR}
        prompts.append({"text": text, "ids": prompt, "greedy": greedy, "near_ties": near})
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    rows = [json.dumps(x) for x in pieces], [json.dumps(x) for x in prompts]
    out.write_text('{"sha256": "%s",\n"pieces": [\n%s],\n"prompts": [\n%s]}\n' % (digest, ",\n".join(rows[0]), ",\n".join(rows[1])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
