#!/usr/bin/env python3
"""Writes the seed files of corpus/gguf: one valid file per idea, and the near misses around it.

usage: make_gguf.py FOLDER
"""
import struct
import sys
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def kv(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def array(element, n, data):
    return struct.pack("<IQ", element, n) + data


def tensor(name, shape, kind, offset):
    return (string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
            + struct.pack("<IQ", kind, offset))


def gguf(kvs, tensors=(), data=b"", version=3, alignment=32):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(kvs))
    head += b"".join(kvs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data


KVS = [
    kv("s", STRING, string("llama")), kv("u", U32, struct.pack("<I", 7)),
    kv("f", F64, struct.pack("<d", 0.5)), kv("b", BOOL, b"\1"),
    kv("words", ARRAY, array(STRING, 3, string("a") + string("") + string("\xc4\xa0b"))),
    kv("ints", ARRAY, array(I16, 2, struct.pack("<hh", -1, 2))),
    kv("none", ARRAY, array(U64, 0, b"")),
]
TENSORS = [tensor("a", [8], 0, 0), tensor("b", [64, 2], 8, 32), tensor("c", [256, 1, 2], 12, 192)]
DATA = bytes(range(192)) + bytes(288)

SEEDS = {
    "valid": gguf(KVS, TENSORS, DATA),
    "version2": gguf(KVS[:2], TENSORS[:1], DATA[:32], version=2),
    "keys_only": gguf(KVS),
    "empty": gguf([]),
    "alignment": gguf([kv("general.alignment", U32, struct.pack("<I", 64))],
                      [tensor("a", [8], 0, 64)], DATA, alignment=64),
    "overlap": gguf([], [tensor("a", [9], 0, 0), tensor("b", [8], 0, 32)], DATA),
    "duplicate": gguf([KVS[0], KVS[0]]),
    "split": gguf([kv("split.count", U16, b"\2\0"), kv("split.no", U16, b"\0\0"),
                   kv("split.tensors.count", I32, b"\1\0\0\0")], TENSORS[:1], DATA),
    "truncated": gguf(KVS, TENSORS, DATA)[:300],
    "version1": b"GGUF" + struct.pack("<III", 1, 0, 0) + bytes(16),
}

if __name__ == "__main__":
    for name, content in SEEDS.items():
        (Path(sys.argv[1]) / name).write_bytes(content)
