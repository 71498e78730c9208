"""Encodes the texts: pack.py WORKDIR writes corpus.bin, heldout.bin, instruct.bin (16-bit token ids)."""

import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


def pack(work):
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    for name in ("corpus", "heldout", "instruct"):
        documents = (work / f"{name}.txt").read_text().split("\f")
        ids = [i for e in tokenizer.encode_batch(documents) for i in e.ids + [end]]
        np.array(ids, dtype=np.uint16).tofile(work / f"{name}.bin")
        print(f"{name}: {len(documents)} documents, {len(ids)} tokens")


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
