#!/usr/bin/env python3
"""Writes the seed files of corpus/lmpack: manifests without their checksum, which the target adds.

usage: make_lmpack.py FOLDER
"""
import struct
import sys
from pathlib import Path


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def fixed(field, value):
    return varint(field << 3 | 1) + struct.pack("<Q", value)


def data(field, value):
    return varint(field << 3 | 2) + varint(len(value)) + value


def matrix(kind, n_col, n_row, offset):
    return number(1, kind) + number(2, n_col) + number(3, n_row) + number(4, offset)


def layer(il, offsets=(0, 12288), extent=12288, up=4352, n_row=32, n_sum=2, kind=8):
    """Q8_0, 32 rows of 128: 4352 bytes a matrix, a multiple of 256."""
    return (number(1, il) + number(2, extent) + data(3, matrix(kind, 128, n_row, 0))
            + data(4, matrix(8, 128, 32, up)) + data(5, matrix(8, 32, 96, 8704))
            + data(6, b"".join(map(varint, offsets))) + data(7, bytes(8 * n_sum)))


def manifest(*layers, version=1, blocks=4, experts=2, magic=b"lmpack", more=b""):
    return (data(1, magic) + number(2, version) + number(3, 1) + data(4, b"qwen3moe")
            + fixed(5, 7) + number(6, blocks) + number(7, experts) + number(8, 100) + fixed(9, 9)
            + b"".join(data(10, raw) for raw in layers) + more)


SEEDS = {
    "valid": manifest(layer(0), layer(3, offsets=(12288, 0))),
    "no_experts": manifest(experts=0),
    "unknown_field": manifest(layer(1), more=number(11, 5) + data(12, b"later")),
    "unpacked_lists": manifest(layer(0, offsets=(), n_sum=0) + number(6, 0) + number(6, 12288)
                               + fixed(7, 1) + fixed(7, 2)),
    "empty": b"",
    "version2": manifest(layer(0), version=2),
    "magic": manifest(layer(0), magic=b"lmpacks"),
    "too_many_experts": manifest(layer(0), experts=1 << 31),
    "layers_descend": manifest(layer(1), layer(0)),
    "layer_beyond": manifest(layer(4)),
    "overlap": manifest(layer(0, offsets=(0, 0))),
    "offset_overflow": manifest(layer(0, offsets=(0, (1 << 64) - 12288))),
    "offset_between": manifest(layer(0, offsets=(0, 4096))),
    "extent_zero": manifest(layer(0, extent=0)),
    "matrices_overlap": manifest(layer(0, up=256)),
    "rows_overflow": manifest(layer(0, n_row=(1 << 32) - 1)),
    "type_unknown": manifest(layer(0, kind=4)),
    "checksums_missing": manifest(layer(0, n_sum=1)),
    "matrix_missing": manifest(number(1, 0) + number(2, 12288)),
    "many_empty_layers": manifest(*[b""] * 2000),
    "truncated": manifest(layer(0), layer(3))[:150],
}

if __name__ == "__main__":
    for name, content in SEEDS.items():
        (Path(sys.argv[1]) / name).write_bytes(content)
