"""What hostile and clumsy users try: whatever is wrong, the program says it in one line, ends with
the documented exit code, soon, and leaves nothing behind."""
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest

import gguf_file
from cli import LEAN, SOURCE_DIR, environment
from gguf_file import ARRAY, F32, STRING, TYPE_F32, U16, U32, pack_string

MODELS = os.path.join(SOURCE_DIR, "tests/data/golden/models")
LLAMA = os.path.join(MODELS, "llama-s-q8_0.gguf")
LLAMA_F32 = os.path.join(MODELS, "llama-s-f32.gguf")
MOE = os.path.join(MODELS, "qwen3moe-s-q8_0.gguf")
OTHER, USAGE, NOT_FOUND, MALFORMED, NO_SPACE, UNFIT = 1, 2, 3, 5, 6, 9
SECONDS = 5.0


def content(path):
    with open(path, "rb") as file:
        return file.read()


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="lean-test-bad-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)

    def derive(self, change, base=LLAMA, name="changed.gguf"):
        """A model that change(File) has spoilt."""
        file = gguf_file.File(base)
        change(file)
        file.write(self.path(name))
        return self.path(name)

    def assert_one_error(self, stderr, what):
        """One line that begins as errors do, at most one hint, nothing else. Returns stderr."""
        lines = stderr.splitlines()
        self.assertTrue(lines and lines[0].startswith("lean: error: "), f"{what}: {stderr!r}")
        self.assertTrue(len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")),
                        f"{what}: {stderr!r}")
        self.assertTrue(stderr.replace("\n", "").isprintable(), what)
        return stderr

    def refuse(self, code, *args, words=(), prefix=(), **options):
        """Runs `lean ARGS`, which must fail with code and a message that has words; and the same
        with --json, which must print that message as one object. Returns stderr."""
        options.setdefault("stdin", subprocess.DEVNULL)
        self.run_once(code, args, words, prefix, **options)
        return self.run_once(code, [*args, "--json"], words, prefix, **options)

    def run_once(self, code, args, words=(), prefix=(), **options):
        command = [*prefix, LEAN, *map(str, args)]
        started = time.monotonic()
        done = subprocess.run(command, env=environment(), capture_output=True, timeout=60, **options)
        seconds = time.monotonic() - started
        stdout, stderr = done.stdout.decode(), done.stderr.decode()
        what = " ".join(command[len(prefix) + 1:])[:300]
        self.assertEqual(done.returncode, code, f"{what}: {stderr!r}")
        self.assertLess(seconds, SECONDS, what)
        self.assert_one_error(stderr, what)
        for word in words:
            self.assertIn(str(word), stderr, what)
        if args[-1] != "--json":
            self.assertEqual(stdout, "", what)
            return stderr
        event = json.loads(stdout)
        self.assertEqual((event["event"], event["exit_code"]), ("error", code), what)
        self.assertEqual("lean: error: " + event["message"], stderr.splitlines()[0], what)
        return stderr

    def refuse_model(self, code, path, words=(), commands=("eval", "inspect", "quantize")):
        """What cannot be evaluated is not inspected or quantized either."""
        rest = {"eval": ["--ids", "1,2"], "quantize": [self.path("out.gguf"), "Q8_0"]}
        for command in commands:
            self.refuse(code, command, path, *rest.get(command, []), words=words)
        self.assertFalse(os.path.exists(self.path("out.gguf")))


class Files(Case):
    """What is given as a model and is no file that can be read."""

    def test_things_that_are_no_model(self):
        for path, code in ((self.folder, USAGE), ("/", USAGE), ("/dev/null", USAGE),
                           ("/dev/zero", USAGE), (self.path("none.gguf"), NOT_FOUND),
                           (LLAMA + "/x", NOT_FOUND), (self.write("empty", b""), MALFORMED),
                           (__file__, MALFORMED), (LEAN, MALFORMED)):
            for command in ("eval", "inspect", "tokenize", "quantize"):
                more = {"eval": ["--ids", "1"], "quantize": [self.path("out"), "Q8_0"]}
                self.refuse(code, command, path, *more.get(command, []), words=[path])
        self.refuse(NOT_FOUND, "eval", "", "--ids", 1)
        self.refuse(NOT_FOUND, "quantize", "", self.path("out"), "Q8_0", words=["empty"])
        self.refuse(NOT_FOUND, "eval", "x" * 5000, "--ids", 1)

    def test_a_fifo_is_not_waited_for(self):
        os.mkfifo(self.path("fifo"))
        self.refuse(USAGE, "eval", self.path("fifo"), "--ids", 1)

    def test_without_permission(self):
        path = self.write("secret.gguf", content(LLAMA))
        os.chmod(path, 0)
        drop = "-dac_override,-dac_read_search"
        prefix = ["setpriv", "--bounding-set", drop, "--inh-caps", drop] if not os.getuid() else []
        if prefix and subprocess.run([*prefix, "true"], capture_output=True).returncode:
            self.skipTest("root that cannot drop the right to read everything")
        self.refuse(OTHER, "eval", path, "--ids", 1, words=["Permission denied"], prefix=prefix)

    def test_names_do_not_disturb_the_terminal(self):
        stderr = self.refuse(NOT_FOUND, "eval", "\x1b[2J\nlean: error: fake\x07", "--ids", 1)
        self.assertIn("\\x1b[2J", stderr)

    def test_missing_part_of_a_split_model(self):
        names = []
        for i in range(2):
            def part(file):
                file.keys["split.no"] = (U16, i)
                file.keys["split.count"] = (U16, 2)
                file.keys["split.tensors.count"] = (U16, len(file.tensors))
                half = list(file.tensors.items())[i::2]
                file.tensors = dict(half)
            names.append(self.derive(part, name=f"m-0000{i + 1}-of-00002.gguf"))
        whole = subprocess.run([LEAN, "eval", names[0], "--ids", "1"], env=environment(),
                               capture_output=True, text=True)
        self.assertEqual(whole.returncode, 0, whole.stderr)
        self.refuse_model(USAGE, names[1], ["part 2 of 2", "00001-of-00002.gguf"])
        shutil.copy(names[0], names[1])
        self.refuse_model(MALFORMED, names[0], ["m-00002-of-00002.gguf"])
        os.unlink(names[1])
        self.refuse_model(NOT_FOUND, names[0], ["m-00002-of-00002.gguf"])
        shutil.copy(names[0], self.path("renamed.gguf"))
        self.refuse_model(MALFORMED, self.path("renamed.gguf"))


class Truncated(Case):
    def test_at_every_boundary(self):
        file = gguf_file.File(LLAMA)
        with_padding = len(file.bytes)
        data_end = max(file.bounds)
        cuts = {b - d for b in file.bounds for d in (0, 1)} - {-1, data_end, with_padding}
        self.assertGreater(len(cuts), 150)
        for i, cut in enumerate(sorted(cuts)):
            path = self.write("cut.gguf", file.bytes[:cut])
            more = ("inspect", "tokenize", "quantize") if i % 8 == 0 else ()
            self.refuse_model(MALFORMED, path, [path], ("eval", *more))


class Headers(Case):
    def patched(self, offset, form, *values):
        model = bytearray(content(LLAMA))
        struct.pack_into(form, model, offset, *values)
        return self.write("patched.gguf", model)

    def test_magic_version_and_byte_order(self):
        self.refuse_model(MALFORMED, self.patched(0, "4s", b"GGML"), ["GGUF"])
        self.refuse_model(MALFORMED, self.patched(0, "4s", b"FUGG"))
        for version in (0, 1, 4, 2**32 - 1):
            self.refuse_model(UNFIT, self.patched(4, "<I", version), ["version"])
        self.refuse_model(UNFIT, self.patched(4, ">I", 3), ["byte"])

    def test_absurd_counts(self):
        for count in (10**6, 2**31, 2**32, 2**62, 2**63, 2**64 - 1):
            self.refuse_model(MALFORMED, self.patched(8, "<Q", count), ["tensors"])
            self.refuse_model(MALFORMED, self.patched(16, "<Q", count))
            self.refuse_model(MALFORMED, self.patched(24, "<Q", count))  # bytes of the first key

    def test_absurd_values(self):
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pack_string("k")
        nested = struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 100000
        for value in (struct.pack("<I", 13), struct.pack("<I", 2**32 - 1),
                      struct.pack("<IQ", STRING, 2**63), struct.pack("<IIQ", ARRAY, F32, 2**62),
                      struct.pack("<IIQ", ARRAY, 77, 1), struct.pack("<IIQ", ARRAY, STRING, 2**40),
                      nested):
            self.refuse_model(MALFORMED, self.write("value.gguf", head + value + bytes(64)), ["k"])

    def tensors(self, *infos, n_data=4096):
        """A file of tensors (shape, type, offset) and n_data bytes."""
        out = b"GGUF" + struct.pack("<IQQ", 3, len(infos), 0)
        for i, (shape, kind, offset) in enumerate(infos):
            out += pack_string(f"t{i}") + struct.pack("<I", len(shape))
            out += struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)
        return self.write("tensors.gguf", out + bytes(-len(out) % 32 + n_data))

    def test_tensors(self):
        for infos in ([([64], 0, 0), ([64], 0, 128)],  # overlap
                      [([64], 0, 0), ([64], 0, 0)], [([64], 0, 4)], [([64], 0, 8192)],
                      [([64], 0, 2**63)], [([64], 0, 2**64 - 32)], [([2**62, 2**62], 0, 0)],
                      [([2**32, 2**32], 0, 0)], [([0], 0, 0)], [([2**63], 0, 0)], [([33], 8, 0)],
                      [([1, 1, 1, 1, 1], 0, 0)], [([2**31], 0, 0)]):
            self.refuse_model(MALFORMED, self.tensors(*infos), ["tensor t"])
        for kind, code in ((4, MALFORMED), (31, MALFORMED), (99, UNFIT), (2**31, UNFIT),
                           (2**32 - 1, UNFIT)):
            self.refuse_model(code, self.tensors(([64], kind, 0)), ["tensor t0", "type"])

    def test_same_name_twice(self):
        model = content(LLAMA)
        self.refuse_model(MALFORMED, self.write("d", model.replace(b"blk.3.attn_k.weight",
                                                                   b"blk.2.attn_k.weight")),
                          ["blk.2.attn_k.weight"])
        self.refuse_model(MALFORMED, self.write("d", model.replace(b"llama.context_length",
                                                                   b"llama.feed_forward_l")
                                                .replace(b"llama.feed_forward_length",
                                                         b"llama.feed_forward_lxxxxx")
                                                .replace(b"llama.block_count", b"general.file_type")))


class Models(Case):
    """Files that are sound and do not hold a model that can run."""

    def test_missing_names_are_told_together(self):
        gone = ["llama.embedding_length", "llama.attention.head_count", "llama.block_count"]
        self.refuse_model(MALFORMED, self.derive(lambda f: [f.keys.pop(k) for k in gone]), gone, ("eval",))
        lost = ["token_embd.weight", "blk.1.attn_q.weight", "blk.3.ffn_down.weight",
                "output_norm.weight"]
        self.refuse_model(MALFORMED, self.derive(lambda f: [f.tensors.pop(t) for t in lost]), lost,
                          ("eval",))

        def both(file):
            file.keys.pop("llama.feed_forward_length")
            file.tensors.pop("blk.0.attn_k.weight")
        self.refuse_model(MALFORMED, self.derive(both),
                          ["llama.feed_forward_length", "blk.0.attn_k.weight"], ("eval",))
        self.refuse_model(MALFORMED, self.derive(lambda f: f.tensors.clear()),
                          ["token_embd.weight", "blk.1.attn_q.weight", "..."], ("eval",))

    def test_architecture(self):
        def name(text):
            return self.derive(lambda f: f.keys.update({"general.architecture": (STRING, text)}))
        for text in ("mamba", "", "llama\x00", "x" * 3000, "\x1b[31m", "LLAMA"):
            self.refuse_model(UNFIT, name(text), commands=("eval",))
        self.refuse_model(UNFIT, name("mamba"), ["mamba", "llama"], ("eval",))
        self.refuse_model(MALFORMED, self.derive(lambda f: f.keys.pop("general.architecture")),
                          ["general.architecture"], ("eval",))

    def test_values_out_of_range(self):
        nan = float("nan")
        for key, *values in (
                ("llama.block_count", 0, 2**31, 2**32 - 1), ("llama.context_length", 0),
                ("llama.embedding_length", 0, 63, 2**31, 2**32 - 1),
                ("llama.feed_forward_length", 0, 191, 2**32 - 1),
                ("llama.attention.head_count", 0, 3, 2**32 - 1),
                ("llama.attention.head_count_kv", 3, 8, 2**32 - 1),
                ("llama.attention.key_length", 0, 2**31),
                ("llama.rope.dimension_count", 3, 1000),
                ("llama.rope.freq_base", 0.0, -1.0, nan, float("inf")),
                ("llama.attention.layer_norm_rms_epsilon", -1.0, nan, float("inf"))):
            for value in values:
                kind = F32 if isinstance(value, float) else U32
                path = self.derive(lambda f: f.keys.update({key: (kind, value)}))
                self.refuse_model(MALFORMED, path, commands=("eval",))
            path = self.derive(lambda f: f.keys.update({key: (STRING, "many")}))
            self.refuse_model(MALFORMED, path, [key], ("eval",))

    def test_heads_that_are_too_large(self):
        """A head as wide as the embedding, where no key says how wide."""
        def widen(file):
            file.keys["llama.embedding_length"] = (U32, 2**20)
            for name in ("head_count", "head_count_kv"):
                file.keys["llama.attention." + name] = (U32, 1)
            for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
                file.keys.pop("llama." + name, None)
        self.refuse_model(MALFORMED, self.derive(widen), ["attention.key_length is 1048576"], ("eval",))

    def test_variants_that_do_not_run(self):
        """Mixtral is an architecture llama with experts."""
        def mixtral(file):
            file.keys["llama.expert_count"] = (U32, 8)
            file.keys["llama.expert_used_count"] = (U32, 2)
        self.refuse_model(UNFIT, self.derive(mixtral), ["llama with 8 experts is not supported"],
                          ("eval",))
        self.refuse_model(UNFIT, self.derive(lambda f: f.keys.update(
            {"llama.rope.scaling.type": (STRING, "longrope")})), ["longrope", "yarn"], ("eval",))

    def test_shapes_and_types(self):
        def reshape(file):
            file.tensors["blk.2.ffn_up.weight"].shape = [192, 64]
        self.refuse_model(MALFORMED, self.derive(reshape), ["blk.2.ffn_up.weight"], ("eval",))

        def retype(file):  # a type of GGUF that no kernel computes with
            tensor = file.tensors["blk.2.ffn_up.weight"]
            tensor.type, tensor.data = 24, bytes(64 * 192)  # i8
        self.refuse_model(UNFIT, self.derive(retype), ["blk.2.ffn_up.weight"], ("eval",))

    def test_vocabulary(self):
        def spoil(key, value):
            return self.derive(lambda f: f.keys.update({"tokenizer.ggml." + key: value}))
        for key, value, code in (("model", (STRING, "bert"), UNFIT),
                                 ("pre", (STRING, "klingon"), UNFIT),
                                 ("tokens", (ARRAY, (STRING, [])), MALFORMED),
                                 ("tokens", (ARRAY, (U32, [1, 2])), MALFORMED),
                                 ("tokens", (STRING, "a"), MALFORMED),
                                 ("tokens", (ARRAY, (STRING, ["a"] * 600)), MALFORMED),
                                 ("merges", (ARRAY, (STRING, ["nospace"])), MALFORMED),
                                 ("token_type", (ARRAY, (U32, [1])), MALFORMED)):
            self.refuse_model(code, spoil(key, value), commands=("eval", "tokenize"))
        for value in ((U32, 1), (ARRAY, (STRING, ["a"])), (ARRAY, (U32, [1, 512])),
                      (ARRAY, (gguf_file.I32, [-1])), (ARRAY, (U32, [1] * 513))):
            self.refuse_model(MALFORMED, spoil("suppress_tokens", value),
                              ["tokenizer.ggml.suppress_tokens"], ("eval",))


class Memory(Case):
    def test_budgets(self):
        stderr = self.refuse(UNFIT, "eval", LLAMA, "--ids", 1, "--ram", "1M",
                             words=["needs", "weights 240 KiB", "1.00 MiB may be used"])
        self.assertIn("hint: ", stderr)
        self.refuse(UNFIT, "eval", LLAMA, "--ids", 1, "--ram", "200M", "--ctx", 2**20,
                    words=["KV cache 512 MiB for 1 x 1048576 tokens", "200 MiB may be used",
                           "hint: a context of 4096 tokens fits"])
        self.refuse(UNFIT, "eval", LLAMA, "--ids", 1, "--ram", "8G", "--ctx", 2**25,
                    words=["1 x 33554432 tokens"])
        self.refuse(UNFIT, "eval", MOE, "--ids", 1, "--ram", "1G", "--beside", 15, "--ctx", 2**20,
                    words=["16 x 1048576 tokens"])

    def test_a_model_larger_than_the_host_is_not_read(self):
        """768 GiB of weights, all of them a hole in the file."""
        file = gguf_file.File(LLAMA)
        n_ff, n_layer = 2**22, 256
        file.keys["llama.feed_forward_length"] = (U32, n_ff)
        file.keys["llama.block_count"] = (U32, n_layer)
        shapes = {}
        for name, tensor in file.tensors.items():
            shape = [n_ff if extent == 192 else extent for extent in tensor.shape]
            if not name.startswith("blk."):
                shapes[name] = shape
            elif name.startswith("blk.0."):
                shapes |= {name.replace("0", str(il), 1): shape for il in range(n_layer)}
        header, n_data = gguf_file.pack_header(
            file.keys, [(name, shape, TYPE_F32, 4 * math.prod(shape))
                        for name, shape in shapes.items()])
        path = self.write("huge.gguf", header)
        os.truncate(path, len(header) + n_data)
        self.refuse(UNFIT, "eval", path, "--ids", 1,
                    words=["needs", "weights 768 GiB", "may be used"])


class Requests(Case):
    """A good model, and what is asked of it is wrong."""

    def test_tokens(self):
        for ids in ("1,2,512", "99999", "2147483647"):
            self.refuse(USAGE, "eval", LLAMA, "--ids", ids, words=["the vocabulary has 512"])
        for ids in ("-1", "1;2", "0x10", "1,two", "99999999999999999999", "1.5", "1,,!"):
            self.refuse(USAGE, "eval", LLAMA, "--ids", ids, words=["is not a token id"])
        self.refuse(USAGE, "eval", LLAMA)
        self.refuse(USAGE, "eval", LLAMA, "--ids", "")
        self.refuse(USAGE, "eval", LLAMA, "--ids", " , ", words=["no tokens"])
        self.refuse(USAGE, "eval", LLAMA, "--ids", 1, "--text", __file__, words=["one of"])

    def test_prompt_longer_than_the_context(self):
        self.refuse(UNFIT, "eval", LLAMA, "--ids", ",".join(["1"] * 300), "--ctx", 256,
                    words=["300 tokens", "context of 256"])
        ids = self.write("ids", b"1\n" * 5000)
        self.refuse(UNFIT, "eval", LLAMA, "--ids-file", ids, words=["5000 tokens", "of 4096"])

    def test_files_of_a_request(self):
        for option in ("--ids-file", "--text", "--compare"):
            more = ["--ids", 1] if option == "--compare" else []
            self.refuse(NOT_FOUND, "eval", LLAMA, option, self.path("none"), *more)
            code = MALFORMED if more else OTHER
            self.refuse(code, "eval", LLAMA, option, self.folder, *more)
        self.refuse(USAGE, "eval", LLAMA, "--ids-file", "/dev/null", words=["no tokens"])
        self.refuse(USAGE, "eval", LLAMA, "--ids-file", LEAN, words=["is not a token id"])
        self.refuse(MALFORMED, "eval", LLAMA, "--ids", 1, "--compare", __file__, words=["2048"])
        self.refuse(NOT_FOUND, "eval", LLAMA, "--ids", 1, "--logits", self.path("no/where"))
        self.refuse(OTHER, "eval", LLAMA, "--ids", 1, "--logits", self.folder)
        self.refuse(NO_SPACE, "eval", LLAMA, "--ids", 1, "--logits", "/dev/full",
                    words=["/dev/full", "No space left"])
        self.refuse(NOT_FOUND, "eval", MOE, "--ids", 1, "--trace", self.path("no/where"))
        for command in (["eval", MOE, "--ids", "1"], ["run", MOE, "--raw", "a", "--max-tokens", "2"]):
            done = subprocess.run([LEAN, *command, "--trace", "/dev/full"], env=environment(),
                                  capture_output=True, text=True, stdin=subprocess.DEVNULL)
            self.assertEqual(done.returncode, NO_SPACE, done.stderr)
            self.assert_one_error(done.stderr, command)
            self.assertIn("/dev/full: write: No space left", done.stderr)
        self.refuse(UNFIT, "eval", LLAMA, "--ids", 1, "--trace", self.path("t"), words=["experts"])
        self.assertEqual(os.listdir(self.folder), [])

    def test_option_values(self):
        for option, *values in (("--threads", 0, -1, 1025, "x", "1.5", 2**64, "1 "),
                                ("--ctx", 0, -5, 2**25 + 1, 2**31, "4k"), ("--prefill-chunk", 0, "many"),
                                ("--parallel", 0, 65), ("--ram", -1, "0x10", "9e99", "5X", "1e400T"),
                                ("--kv-type", "q4_0", "F16", " "), ("--kernels", "sse", "avx"),
                                ("--generate", -1, "1e3"), ("--progress", "loud"), ("--color", "blue")):
            for value in values:
                self.refuse(USAGE, "eval", LLAMA, "--ids", 1, f"{option}={value}", words=[option])
        self.refuse(USAGE, "eval", LLAMA, "--ids", 1, "--threads", words=["--threads"])
        self.refuse(USAGE, "eval", LLAMA, LLAMA, "--ids", 1)
        self.refuse(USAGE, "eval")
        self.refuse(USAGE, "eval", LLAMA, "--idz", 1, words=["--ids"])
        self.refuse(USAGE, "quantize", LLAMA_F32, self.path("o"), "Q4_K_X", words=["Q4_K_M"])
        self.refuse(USAGE, "synth", "gpt5", "Q8_0", "-o", self.path("o"))
        self.refuse(USAGE, "synth", "llama", "Q8_0", "-o", self.path("o"), "--skew", "nan")
        self.refuse(USAGE, "synth", "llama", "Q8_0", "-o", self.path("o"), "--layers", 1001)
        self.assertEqual(os.listdir(self.folder), [])

    def test_text_that_is_not_utf8_is_read(self):
        for text in (b"\xff\xfe\x80", b"\xc3", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"a\x00b",
                     b"\xc0\xaf", bytes(range(256)) * 50):
            done = subprocess.run([LEAN, "tokenize", LLAMA, "--json"], input=text,
                                  env=environment(), capture_output=True, timeout=SECONDS)
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertTrue(json.loads(done.stdout)["ids"])
            done = subprocess.run([LEAN, "eval", LLAMA, "--json", "--progress", "none",
                                   "--text", self.write("t", text)],
                                  env=environment(), capture_output=True, timeout=60)
            self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_standard_input(self):
        folder = os.open(self.folder, os.O_RDONLY)
        self.addCleanup(os.close, folder)
        self.refuse(OTHER, "tokenize", LLAMA, words=["standard input"], stdin=folder)


class Runs(Case):
    def run_refuses(self, code, *args, words=()):
        self.refuse(code, "run", LLAMA, *args, words=words)

    def test_prompts(self):
        self.run_refuses(UNFIT, "hello", words=["no chat template", "hint: --raw"])
        self.run_refuses(USAGE, "--raw", "", words=["prompt is empty"])
        self.run_refuses(UNFIT, "--raw", "hello", "--ctx", 4, words=["5 tokens", "context of 4"])
        self.run_refuses(UNFIT, "--raw", "word " * 5000, words=["context of 4096"])
        self.run_refuses(UNFIT, "--raw", "hello", "--ram", "1M", words=["1.00 MiB may be used"])
        self.refuse(NOT_FOUND, "run", self.path("none.gguf"), "hello", words=["none.gguf"])

    def test_options(self):
        for code, *args in ((USAGE, "--temperature=-1"), (USAGE, "--temperature=nan"),
                            (USAGE, "--top-p=2"), (USAGE, "--seed=99999999999999999999"),
                            (USAGE, "--logit-bias=512=1"),
                            (NOT_FOUND, "--system", "@" + self.path("none")),
                            (NOT_FOUND, "--chat-template", self.path("none"))):
            given = [] if "template" in args[0] or "system" in args[0] else ["--raw"]
            self.run_refuses(code, "hello", *given, *args)

    def test_templates(self):
        for code, text, word in ((MALFORMED, b"{{ 1", "line 1"), (MALFORMED, b"{{ a.b.c }}", "'a'"),
                                 (USAGE, b"{{ raise_exception('no such role') }}", "no such role")):
            path = self.write("t.jinja", text)
            self.run_refuses(code, "hello", "--chat-template", path, words=[word])


class Writing(Case):
    SYNTH = ["synth", "llama", "Q8_0", "-o"]

    def test_targets(self):
        for target, code in ((self.path("no/where"), NOT_FOUND), (self.folder, USAGE),
                             ("/dev/full", USAGE), (LLAMA_F32 + "/x", NOT_FOUND)):
            self.refuse(code, *self.SYNTH, target)
            self.refuse(code, "quantize", LLAMA_F32, target, "Q8_0")
            if code == USAGE:
                self.refuse(code, *self.SYNTH, target, "--force", words=["not a regular file"])
        old = self.write("old.gguf", b"precious")
        self.refuse(USAGE, *self.SYNTH, old, words=["exists", "--force"])
        self.refuse(USAGE, "quantize", LLAMA_F32, old, "Q8_0", words=["exists", "--force"])
        self.assertEqual(content(old), b"precious")
        self.assertEqual(os.listdir(self.folder), ["old.gguf"])

    def test_full_disk(self):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", self.folder],
                                 capture_output=True).returncode == 0
        if mounted:
            self.addCleanup(subprocess.run, ["umount", self.folder], check=True)
            code, prefix = NO_SPACE, []
        else:  # without the right to mount, a limit on the size of files
            code, prefix = OTHER, ["bash", "-c", 'ulimit -f 128; exec "$@"', "-"]
        target = self.write("old.gguf", b"precious")
        for command in ([*self.SYNTH, target], ["quantize", LLAMA_F32, target, "Q8_0"]):
            self.refuse(code, *command, "--force", words=["old.gguf"], prefix=prefix)
            self.assertEqual(os.listdir(self.folder), ["old.gguf"])
            self.assertEqual(content(target), b"precious")
        ids = ",".join(["1"] * 200)
        self.refuse(code, "eval", LLAMA, "--ids", ids, "--logits", self.path("logits"),
                    words=["logits"], prefix=prefix)
        self.assertEqual(os.listdir(self.folder), ["old.gguf"])

    def test_no_room_for_a_profile(self):
        """It is kept from run to run for speed alone: the answer is the same, with a warning."""
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", self.folder], capture_output=True).returncode:
            self.skipTest("a small disk needs the right to mount one")
        self.addCleanup(subprocess.run, ["umount", self.folder], check=True)
        self.write("filler", bytes(4096))
        command = [LEAN, "eval", MOE, "--ids", "1,2,3", "--expert-slots", "25%"]
        done = [subprocess.run([*command, *more], env=environment(XDG_CACHE_HOME=self.folder), capture_output=True,
                               text=True) for more in (["--profile", "none"], [])]
        self.assertEqual([each.returncode for each in done], [0, 0], done[1].stderr)
        self.assertEqual(done[0].stdout, done[1].stdout)
        self.assertRegex(done[1].stderr, "warning: the routing profile was not kept: .*No space left on device")
        files = [name for _, _, names in os.walk(self.folder) for name in names]
        # an empty lock may stay; nothing half written does
        self.assertEqual([name for name in files if not name.endswith(".profile.lock")], ["filler"])

    def test_a_model_onto_itself(self):
        path = self.path("same.gguf")
        shutil.copy(LLAMA_F32, path)
        done = subprocess.run([LEAN, "quantize", "--force", path, path, "Q8_0"], env=environment(),
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(gguf_file.File(path).tensors["token_embd.weight"].type, 8)


class Templates(Case):
    def refuse_template(self, code, text, words=(), variables=b"{}"):
        path = self.write("t.jinja", text.encode("latin-1"))
        given = self.write("variables", variables)
        for more in ([], ["--json"]):  # each reads the variables
            with open(given, "rb") as stdin:
                self.run_once(code, ["template", path, *more], words, stdin=stdin)

    def test_malformed(self):
        for text in ("{{ 1", "{% for x in y %}", "{% endif %}", "{{ x|nosuch }}", "{# open",
                     "{% include 'a' %}", "\xff\xfe", "{{ 99999999999999999999 }}"):
            self.refuse_template(MALFORMED, text)

    def test_operations_that_fail(self):
        for text, word in (("a\nb{{ x.y.z }}", "line 2: 'x' is undefined"),
                           ("{{ 1 / 0 }}", "division by zero"), ("{{ 'a' + 1 }}", "'str' and 'int'"),
                           ("{{ 2 ** 64 }}", "64 bits"), ("{{ ''.__class__.__mro__ }}", "__class__"),
                           ("{{ 'abc'[::0] }}", "zero")):
            self.refuse_template(MALFORMED, text, [word])
        self.refuse_template(USAGE, "{{ raise_exception('roles must\nalternate\x1b[31m') }}",
                             ["roles must alternate\\x1b[31m"])

    def test_bombs(self):
        for text in ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
                     "{{ 'x' * 10000000000 }}", "{{ [1] * 1000000000 }}", "{{ " + "(" * 100000,
                     "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
                     "{% set n = namespace(s='x') %}{% for i in range(64) %}"
                     "{% set n.s = n.s + n.s %}{% endfor %}",
                     "{% set a = [] %}{% set _ = a.append(a) %}{{ a }}"):
            self.refuse_template(UNFIT, text)

    def test_variables(self):
        for variables in (b"", b"{", b"[1]", b'{"a": 1} more', b"[" * 100000, b"\xff"):
            self.refuse_template(MALFORMED, "{{ x }}", ["variables"], variables)

    def test_a_template_from_a_pipe_is_read_whole(self):
        done = subprocess.run(["bash", "-c", "\"$0\" template <(echo '{{ 1 }} as written') <<< '{}'",
                               LEAN], env=environment(), capture_output=True, timeout=SECONDS)
        self.assertEqual((done.returncode, done.stdout), (0, b"1 as written"), done.stderr)

    def test_sources(self):
        self.refuse(NOT_FOUND, "template", self.path("none.jinja"))
        self.refuse(USAGE, "template", self.folder)
        self.refuse(USAGE, "template", __file__, "--now", "2026-02-31T00:00:00", words=["--now"])
        self.refuse_model(MALFORMED, self.write("cut.gguf", content(LLAMA)[:999]), [], ["template"])


class Ends(Case):
    """The process ends before its work does."""

    def start(self, *args):
        job = subprocess.Popen([LEAN, *map(str, args)], env=environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(job.wait)
        self.addCleanup(job.kill)
        return job

    def wait_for(self, path):
        deadline = time.monotonic() + 60
        while not os.path.exists(path):
            self.assertLess(time.monotonic(), deadline, path)
            time.sleep(0.01)

    def jobs(self):
        """Each takes minutes: (its words, the file that shows that it works)."""
        source, out = self.path("source.gguf"), self.path("out.gguf")
        if not os.path.exists(source):
            subprocess.run([LEAN, "synth", "qwen3moe", "BF16", "-o", source, "--layers", "400"],
                           env=environment(), check=True, capture_output=True)
        text = self.write("text", b"All work and no play. " * 100000)
        yield (["synth", "qwen3.5-35b-a3b", "Q4_K_M", "-o", out], out + ".partial")
        yield (["quantize", source, out, "Q4_K_M", "--threads", 1], out + ".partial")
        yield (["eval", LLAMA, "--text", text, "--logits", out], out)

    def test_interrupted(self):
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            for args, sign in self.jobs():
                job = self.start(*args)
                self.wait_for(sign)
                time.sleep(0.2)
                job.send_signal(number)
                sent = time.monotonic()
                stdout, stderr = job.communicate(timeout=60)
                self.assertEqual((job.returncode, stdout), (code, ""), (args[0], stderr))
                self.assertLess(time.monotonic() - sent, SECONDS, args[0])
                self.assertIn("interrupted", self.assert_one_error(stderr, args[0]))
                self.assertEqual(sorted(os.listdir(self.folder)), ["source.gguf", "text"])

    def test_killed(self):
        for args, sign in list(self.jobs())[:2]:
            job = self.start(*args)
            self.wait_for(sign)
            job.kill()
            job.communicate()
            self.assertFalse(os.path.exists(self.path("out.gguf")))
            again = subprocess.run([LEAN, "synth", "llama", "Q8_0", "-o", self.path("out.gguf")],
                                   env=environment(), capture_output=True, text=True)
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertEqual(sorted(os.listdir(self.folder)), ["out.gguf", "source.gguf", "text"])
            os.unlink(self.path("out.gguf"))

    def test_reader_that_leaves(self):
        for args in (["eval", LLAMA, "--ids", "1", "-n", "50", "--json"],
                     ["inspect", LLAMA, "--tensors"], ["tokenize", LLAMA, "word " * 20000]):
            reader, writer = os.pipe()
            os.close(reader)
            done = subprocess.run([LEAN, *args], env=environment(), stdout=writer, text=True,
                                  stderr=subprocess.PIPE, timeout=SECONDS)
            os.close(writer)
            self.assertEqual((done.returncode, done.stderr), (-signal.SIGPIPE, ""), args[0])


if __name__ == "__main__":
    unittest.main(verbosity=2)
