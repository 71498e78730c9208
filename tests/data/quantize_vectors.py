#!/usr/bin/env python3
"""Prints the table of tests/unit/worker/pack/test_quantize_blocks.c: for each type, XXH3-64 of what
ggml makes of 512 rows of 256 values. The rows are those of fill_rows in that test.

usage: python3 tests/data/quantize_vectors.py    (needs: pip install llama-cpp-python numpy xxhash)
The committed table is ggml 0.25.3's, from llama-cpp-python 0.3.36.
"""
import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import xxhash

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
         "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "MXFP4": 39}
N_ROW = 512


def splitmix64(n):
    index = np.arange(1, n + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = index * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def rows():
    bits = splitmix64(N_ROW * 256)
    fields = sum((bits >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4))
    bell = (fields.astype(np.int64) - 131070).reshape(N_ROW, 256)
    g = (bell.astype(np.float32) * np.float32(2.0**-17)).astype(np.float32)
    pick = (bits & np.uint64(7)).reshape(N_ROW, 256)
    x = np.zeros((N_ROW, 256), np.float32)
    for r in range(N_ROW):
        kind, turn = r % 8, r // 8
        if kind == 0:
            x[r] = g[r] * np.float32(2.0**-5)
        elif kind == 1:
            x[r] = g[r] * g[r] * g[r]
        elif kind == 2:
            x[r] = np.where(pick[r] == 0, g[r], 0)
        elif kind == 3:
            x[r] = np.where((np.arange(256) // 32 + turn) % 3 == 0, 0, g[r])
        elif kind == 4:
            x[r] = (bell[r] >> 15).astype(np.float32) * np.float32(0.25)
        elif kind == 5:
            x[r] = np.abs(g[r]) + np.float32(0.5)
        elif kind == 6:
            x[r] = g[r] * np.float32(2.0 ** -(turn % 60))
        else:
            x[r] = [0.0, np.float32(0.3), -7.0][turn % 3]
    return x


def main():
    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
    x = rows()
    print(f"rows  0x{xxhash.xxh3_64_intdigest(x.tobytes()):016x}")
    for name, number in TYPES.items():
        out = ctypes.create_string_buffer(x.size * 4)
        ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        n = ggml.ggml_quantize_chunk(
            ctypes.c_int(number), x.ctypes.data_as(ctypes.c_void_p), out, ctypes.c_int64(0),
            ctypes.c_int64(N_ROW), ctypes.c_int64(256), None)
        print(f"{{TENSOR_{name}, 0x{xxhash.xxh3_64_intdigest(out.raw[:n]):016x}}},")


main()
