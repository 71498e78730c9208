"""Draws the model card's samples: samples.py LEAN MODEL.gguf TOKENIZER.json HELDOUT.txt [OPTION...]

Each opening is continued by 200 tokens by `lean run --raw` with a fixed seed and the sampler settings in the file's
metadata, or those of OPTION. Prints perplexity under SmolLM2-135M and the share of distinct 4-grams, both beside those of
20 passages of held-out text of the same length, and then the samples.
"""

import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from judge import Judge, distinct_4grams

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


def sample(lean, model, tokenizer, opening, seed, options):
    """Always of the full length: the tokens that end a text are forbidden."""
    never = [f"--logit-bias={tokenizer.token_to_id(t)}=-100" for t in ("<|endoftext|>", "<|im_end|>", "<|im_start|>")]
    command = [lean, "run", model, "--raw", "--ignore-eos", *never, "--seed", str(seed), "--max-tokens", str(N_TOKEN), *options]
    return opening + subprocess.run([*command, opening], check=True, capture_output=True, text=True).stdout.rstrip("\n")


def passages(tokenizer, heldout):
    """20 passages of the held-out text, each from the start of a document, as long as the samples."""
    documents = [d for d in heldout.split("\f") if len(tokenizer.encode(d).ids) >= N_TOKEN + 8]
    return [tokenizer.decode(tokenizer.encode(d).ids[: N_TOKEN + 8]) for d in documents[:: len(documents) // 20][:20]]


def main(lean, model, tokenizer_path, heldout_path, *options):
    torch.set_num_threads(1)  # workers that wait for each other are slow where cores are shared
    tokenizer, judge = Tokenizer.from_file(tokenizer_path), Judge()
    texts = [sample(lean, model, tokenizer, opening, seed, options) for seed, opening in enumerate(OPENINGS)]
    held = passages(tokenizer, Path(heldout_path).read_text())
    print("| | perplexity under SmolLM2-135M | distinct 4-grams |\n|---|---|---|")
    for name, group in (("held-out text", held), ("samples", texts)):
        print(f"| {name} | {judge.perplexity(group):.1f} | {distinct_4grams(group):.3f} |")
    for i, text in enumerate(texts, 1):
        print(f"\n{i}. " + text.replace("\n\n", "\n\n   "))


if __name__ == "__main__":
    main(*sys.argv[1:])
