#!/usr/bin/env python3
"""Writes variants.json: the reference's last logits for the derived models of tests/e2e/variants.py.

usage: make_variants.py          needs the packages llama-cpp-python (0.3.36) and numpy

One thread, F32 KV cache, no flash attention, the prompt in one batch, as for the golden models."""
import ctypes
import json
import os
import sys
import tempfile

import llama_cpp
import numpy

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(FOLDER, "../../e2e"))
import variants  # noqa: E402

IDS = [(i * 53 + i * i + 7) % 512 for i in range(90)]


@llama_cpp.llama_log_callback
def drop_log(level, text, data):
    pass


def last_logits(path, ids):
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0
    params.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
        batch.logits[i] = i == len(ids) - 1
    assert llama_cpp.llama_decode(context, batch) == 0
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (n_vocab,)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return [float(f"{v:.6g}") for v in logits]


def main():
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(drop_log, ctypes.c_void_p(0))
    logits = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in variants.OTHER:
            path = os.path.join(folder, "model.gguf")
            variants.make(variants.OTHER, name, path)
            logits[name] = last_logits(path, IDS)
            print(f"{name}: deviation {numpy.std(logits[name]):.3f}")
    with open(os.path.join(FOLDER, "variants.json"), "w") as file:
        json.dump({"ids": IDS, "logits": logits}, file, separators=(",", ":"))
        file.write("\n")


main()
