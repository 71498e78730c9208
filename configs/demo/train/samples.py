"""Draws the model card's samples: samples.py MODEL.gguf TOKENIZER.json HELDOUT.txt

Each opening is continued by 200 tokens with the sampler settings in the file's metadata and a fixed seed. Prints
perplexity under SmolLM2-135M and the share of distinct 4-grams, both beside those of 20 passages of held-out text of the
same length, and then the samples.
"""

import sys
from pathlib import Path

import gguf
import torch
import numpy as np
from tokenizers import Tokenizer

from judge import Judge, distinct_4grams
from reference import Reference

N_TOKEN = 200
OPENINGS = """The first thing to do is
When the computer starts, the
She looked at him and said
The history of the project began
If you want to install a package, you
The old man walked slowly
A good program should
In the morning, the king
The purpose of this chapter is to
There are many reasons why people
The following example shows how
It was a great pleasure to
The kernel is the part of the system that
Some people believe that
To open a file,
The young lady was not
A database is
We should remember that
The language of the court
Water is""".splitlines()


def draw(logits, rng, temperature, top_p):
    logits = logits.astype(np.float64) / temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p)
    keep = order[: int(np.searchsorted(p[order].cumsum(), top_p)) + 1]
    return int(rng.choice(keep, p=p[keep] / p[keep].sum()))


def sample(model, tokenizer, opening, seed, temperature, top_p):
    rng = np.random.default_rng(seed)
    never = [tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>", "<|im_start|>")]  # always the full length
    ids = tokenizer.encode(opening).ids
    model.reset()
    logits = model.feed(ids)[0]
    for _ in range(N_TOKEN):
        logits[never] = -np.inf
        ids.append(draw(logits, rng, temperature, top_p))
        logits = model.feed(ids[-1:])[0]
    return tokenizer.decode(ids)


def passages(tokenizer, heldout):
    """20 passages of the held-out text, each from the start of a document, as long as the samples."""
    documents = [d for d in heldout.split("\f") if len(tokenizer.encode(d).ids) >= N_TOKEN + 8]
    return [tokenizer.decode(tokenizer.encode(d).ids[: N_TOKEN + 8]) for d in documents[:: len(documents) // 20][:20]]


def main(path, tokenizer_path, heldout_path):
    torch.set_num_threads(1)  # workers that wait for each other are slow where cores are shared
    fields = gguf.GGUFReader(path).fields
    temperature, top_p = (float(fields[f"general.sampling.{k}"].contents()) for k in ("temp", "top_p"))
    tokenizer, model, judge = Tokenizer.from_file(tokenizer_path), Reference(path), Judge()
    texts = [sample(model, tokenizer, opening, seed, temperature, top_p) for seed, opening in enumerate(OPENINGS)]
    held = passages(tokenizer, Path(heldout_path).read_text())
    print(f"temperature {temperature:.2f}, top-p {top_p:.2f}")
    print("| | perplexity under SmolLM2-135M | distinct 4-grams |\n|---|---|---|")
    for name, group in (("held-out text", held), ("samples", texts)):
        print(f"| {name} | {judge.perplexity(group):.1f} | {distinct_4grams(group):.3f} |")
    for i, text in enumerate(texts, 1):
        print(f"\n{i}. " + text.replace("\n\n", "\n\n   "))


if __name__ == "__main__":
    main(*sys.argv[1:4])
