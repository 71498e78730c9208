"""llama.cpp, called through the library inside the PyPI package xllamacpp: logits of token ids.

Only what the measurements need. The parameter structures are taken as llama.cpp fills them in and patched at the
few places set here; check_layout refuses a library whose defaults are not where they are expected.
"""

import ctypes as C
import importlib.util
from pathlib import Path

import numpy as np


class Params(C.Structure):  # larger than the real ones: both are passed as the last argument, by value
    _fields_ = [("word", C.c_uint32 * 256)]


class Batch(C.Structure):
    _fields_ = [("n_tokens", C.c_int32), ("token", C.POINTER(C.c_int32)), ("embd", C.c_void_p), ("pos", C.POINTER(C.c_int32)),
                ("n_seq_id", C.POINTER(C.c_int32)), ("seq_id", C.POINTER(C.POINTER(C.c_int32))), ("logits", C.POINTER(C.c_int8)),
                ("spare", C.c_uint64 * 16)]


N_CTX, N_BATCH, N_UBATCH, N_THREAD, N_THREAD_BATCH, FLASH_ATTN, TYPE_K, TYPE_V = 0, 1, 2, 7, 8, 13, 26, 27


def library():
    import xllamacpp  # noqa: F401  (loads what the library needs)

    path = next(Path(importlib.util.find_spec("xllamacpp").origin).parent.glob("*.so"))
    lib = C.CDLL(str(path))
    lib.llama_model_default_params.restype = lib.llama_context_default_params.restype = Params
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory", "llama_model_get_vocab"):
        getattr(lib, name).restype = C.c_void_p
    lib.llama_model_load_from_file.argtypes = [C.c_char_p, Params]
    lib.llama_init_from_model.argtypes = [C.c_void_p, Params]
    lib.llama_batch_init.restype = Batch
    lib.llama_decode.argtypes = [C.c_void_p, Batch]
    lib.llama_get_logits_ith.restype = C.POINTER(C.c_float)
    lib.llama_get_logits_ith.argtypes = [C.c_void_p, C.c_int32]
    lib.llama_get_memory.argtypes = lib.llama_model_get_vocab.argtypes = lib.llama_vocab_n_tokens.argtypes = [C.c_void_p]
    lib.llama_memory_clear.argtypes = [C.c_void_p, C.c_bool]
    return lib


def check_layout(params):
    word = list(params.word[:28])
    assert word[:4] == [512, 2048, 512, 1] and word[7:9] == [4, 4] and word[10:14] == [2**32 - 1] * 4 and word[26:28] == [1, 1], word


class Reference:
    """A model in llama.cpp: one thread, F32 KV cache, no flash attention, one sequence."""

    def __init__(self, path, n_ctx=1024):
        self.lib = library()
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        assert self.model, path
        params = self.lib.llama_context_default_params()
        check_layout(params)
        for at, value in ((N_CTX, n_ctx), (N_BATCH, n_ctx), (N_UBATCH, 512), (N_THREAD, 1), (N_THREAD_BATCH, 1), (FLASH_ATTN, 0),
                          (TYPE_K, 0), (TYPE_V, 0)):
            params.word[at] = value
        self.context = self.lib.llama_init_from_model(self.model, params)
        assert self.context
        self.n_vocab = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        self.batch = self.lib.llama_batch_init(n_ctx, 0, 1)
        self.n_past = 0

    def reset(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.n_past = 0

    def feed(self, ids, all_logits=False):
        """Appends ids; returns logits of all of them [n, n_vocab] or of the last [1, n_vocab]."""
        b = self.batch
        b.n_tokens = len(ids)
        for i, t in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = int(t), self.n_past + i, 1, all_logits or i == len(ids) - 1
            b.seq_id[i][0] = 0
        assert self.lib.llama_decode(self.context, b) == 0
        self.n_past += len(ids)
        rows = range(len(ids)) if all_logits else [len(ids) - 1]
        return np.stack([np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (self.n_vocab,)).copy() for i in rows])

    def losses(self, ids):
        """Negative log likelihood of ids[1:], read from an empty state."""
        self.reset()
        logits = self.feed(ids[:-1], True).astype(np.float64)
        top = logits.max(1)
        return top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[np.arange(len(ids) - 1), ids[1:]]

    def greedy(self, ids, n, stop=()):
        """(ids of the most likely continuation, lead of each over the second choice)."""
        self.reset()
        out, margins = [], []
        logits = self.feed(ids)[0]
        while True:
            second, first = np.argsort(logits)[-2:]
            out.append(int(first))
            margins.append(float(logits[first] - logits[second]))
            if len(out) == n or out[-1] in stop:
                return out, margins
            logits = self.feed([out[-1]])[0]
