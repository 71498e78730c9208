#!/usr/bin/env python3
"""Writes the seed files of corpus/tokenizer: texts, and vocabularies of a few tokens.

usage: make_tokenizer.py FOLDER
"""
import struct
import sys
from pathlib import Path

from make_gguf import ARRAY, I32, STRING, U32, array, kv, string

TEXTS = {
    "ascii": b"I'm sure they'LL come; it's 12345 o'clock\r\n\r\n  and  so on\t\n",
    "control": b"<|im_start|>user\nHi<|im_end|><|im_start|<think></think></s><|endoftext|>",
    "scripts": "naïve Größe Привет 你好，世界 안녕 สวัสดี नमस्ते ٣٤٥ e\u0301 🙂👍🏽 \u3000\u2028\x85".encode(),
    "malformed": b"\xff\xfe\x80abc\xc3 \xe4\xbd \xed\xa0\x80 \xc0\x80 \xf4\x90\x80\x80 \xf0\x9f\x99",
    "digits": b"1 12 123 1234 12345 a  12 b\n 1234567\xd9\xa3\xd9\xa4\xd9\xa51",
    "long_word": b"ab" * 60 + b"the" * 40,
}


def strings(values):
    return array(STRING, len(values), b"".join(string(value) for value in values))


def vocabulary(tokens, kinds, merges, pre="qwen2", eos=1):
    entries = [
        kv("tokenizer.ggml.model", STRING, string("gpt2")),
        kv("tokenizer.ggml.pre", STRING, string(pre)),
        kv("tokenizer.ggml.tokens", ARRAY, strings(tokens)),
        kv("tokenizer.ggml.token_type", ARRAY, array(I32, len(kinds), struct.pack(f"<{len(kinds)}i", *kinds))),
        kv("tokenizer.ggml.merges", ARRAY, strings(merges)),
        kv("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", eos)),
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def main():
    folder = Path(sys.argv[1])
    tokens = ["H", "e", "l", "o", "Ġ", "el", "ell", "</s>", "<|im_end|>", "ĠĠ", "\u00e9\u4f60"]
    kinds = [1, 1, 1, 1, 1, 1, 1, 1, 4, 1, 3]
    merges = ["e l", "el l", "Ġ Ġ", "x y", "xy z"]
    files = dict(TEXTS)
    files["vocabulary"] = vocabulary(tokens, kinds, merges)
    files["vocabulary_afmoe"] = vocabulary(tokens, kinds, merges, "afmoe")
    files["vocabulary_same_text"] = vocabulary(tokens[:-1] + ["H"], kinds, merges)
    files["vocabulary_no_space"] = vocabulary(tokens, kinds, merges + ["ab"])
    files["vocabulary_kind"] = vocabulary(tokens, kinds[:-1] + [9], merges)
    files["vocabulary_no_merges"] = vocabulary(tokens[:-1] + [""], kinds, [], "gpt-2", 99)
    for name, data in files.items():
        (folder / name).write_bytes(data)


main()
