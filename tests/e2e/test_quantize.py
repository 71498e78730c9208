"""`lean quantize` and `lean synth` as commands; and, where llama-cpp-python is installed, that
quantizing gives the bytes that llama.cpp's own quantizer gives."""
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
import unittest

from cli import LEAN, environment, lean

FILE_TYPES = {"Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class Commands(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="lean-test-quantize-")
        self.addCleanup(self.folder.cleanup)
        self.source = self.path("source.gguf")
        self.check(lean("synth", "qwen3moe", "BF16", "-o", self.source, "--layers", "1"))

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def check(self, result, code=0):
        self.assertEqual(result.returncode, code, result.stderr)
        return result

    def test_threads_and_source_order_do_not_matter(self):
        one, two = self.path("one.gguf"), self.path("two.gguf")
        self.check(lean("quantize", self.source, one, "q4_k_m", "--threads", 1))
        result = self.check(lean("quantize", "--threads=3", self.source, two, "Q4_K_M", "--json"))
        self.assertEqual(json.loads(result.stdout)["bytes"], os.path.getsize(two))
        self.assertEqual(digest(one), digest(two))

    def test_synth_is_synth_and_quantize(self):
        """A synthetic model at a recipe has the tensors of the F32 one, quantized."""
        direct, plain, indirect = [self.path(n) for n in ("direct.gguf", "f32.gguf", "q.gguf")]
        more = ("--layers", 2, "--skew", 0.5, "--similarity", 0.5, "--seed", 7)
        self.check(lean("synth", "qwen3moe", "Q4_K_M", "-o", direct, *more))
        self.check(lean("synth", "qwen3moe", "F32", "-o", plain, *more))
        self.check(lean("quantize", plain, indirect, "Q4_K_M"))
        tensors = []
        for path in (direct, indirect):
            report = json.loads(self.check(lean("inspect", path, "--tensors", "--json")).stdout)
            with open(path, "rb") as file:
                data = file.read()
            tensors.append({t["name"]: (t["type"], data[t["offset"]:t["offset"] + t["bytes"]])
                            for t in report["tensors"]})
        self.assertEqual(*tensors)

    def test_dry_run_tells_the_size(self):
        out = self.path("out.gguf")
        planned = self.check(lean("quantize", self.source, out, "Q6_K", "--dry-run", "--json"))
        self.assertFalse(os.path.exists(out))
        self.check(lean("quantize", self.source, out, "Q6_K"))
        self.assertEqual(json.loads(planned.stdout)["bytes"], os.path.getsize(out))

    def test_refusals(self):
        out = self.path("out.gguf")
        self.check(lean("quantize", self.source, out, "Q8_0"))
        before = digest(out)
        for command in (["quantize", self.source, out, "Q4_K_M"],
                        ["synth", "llama", "Q8_0", "-o", out]):
            result = self.check(lean(*command), 2)
            self.assertIn("out.gguf: exists\nhint: --force", result.stderr)
        again = self.check(lean("quantize", out, self.path("b.gguf"), "Q4_K_M"), 9)
        self.assertIn("is Q8_0 already", again.stderr)
        self.check(lean("quantize", self.path("none.gguf"), self.path("b.gguf"), "Q8_0"), 3)
        self.check(lean("quantize", __file__, self.path("b.gguf"), "Q8_0"), 5)
        self.check(lean("quantize", self.source, self.path("b.gguf"), "Q9"), 2)
        self.check(lean("quantize", self.source), 2)
        self.check(lean("synth", "llama", "Q8_0"), 2)
        self.check(lean("synth", "llama", "Q8_0", "--experts", 4, "-o", self.path("b.gguf")), 2)
        self.assertEqual(digest(out), before)
        self.assertEqual(sorted(os.listdir(self.folder.name)), ["out.gguf", "source.gguf"])


    def test_interruption_leaves_nothing(self):
        out = self.path("large.gguf")
        job = subprocess.Popen([LEAN, "synth", "qwen3.5-35b-a3b", "Q4_K_M", "-o", out],
                               env=environment(), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not os.path.exists(out + ".partial") and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        job.send_signal(signal.SIGINT)
        _, stderr = job.communicate(timeout=60)
        self.assertEqual((job.returncode, os.listdir(self.folder.name)), (130, ["source.gguf"]))
        self.assertIn("lean: error: interrupted", stderr)

    def test_full_disk_is_said_at_once(self):
        result = self.check(subprocess.run(
            ["bash", "-c", 'ulimit -f 1000; exec "$0" quantize "$1" "$2" Q8_0', LEAN, self.source,
             self.path("out.gguf")], env=environment(), capture_output=True, text=True), 1)
        self.assertIn("out.gguf: needs", result.stderr)
        self.assertEqual(os.listdir(self.folder.name), ["source.gguf"])


class LlamaCpp(unittest.TestCase):
    """Models with the cases that the recipes tell apart: 8 experts, leading dense layers, a tied
    output, delta nets, rows of 256 and more layers than the first eighth."""
    MODELS = [["qwen3moe", "--experts", 8, "--layers", 2], ["qwen35"],
              *[[arch, "--experts", 2, "--experts-used", 1, "--layers", n_layer]
                for arch, n_layer in (("afmoe", 17), ("qwen35moe", 4), ("qwen3next", 4))]]

    def test_same_bytes(self):
        try:
            import gguf
            import llama_cpp
        except ImportError as error:
            self.skipTest(f"the comparison with llama.cpp needs llama-cpp-python: {error}")
        silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(silent, None)
        for model in self.MODELS:
            with tempfile.TemporaryDirectory(prefix="lean-test-quantize-") as folder:
                source, theirs, ours = [os.path.join(folder, n) for n in ("s", "t", "o")]
                result = lean("synth", model[0], "F32", "-o", source, *model[1:])
                self.assertEqual(result.returncode, 0, result.stderr)
                for name, file_type in FILE_TYPES.items():
                    params = llama_cpp.llama_model_quantize_default_params()
                    params.ftype = file_type
                    self.assertEqual(llama_cpp.llama_model_quantize(
                        source.encode(), theirs.encode(), ctypes.byref(params)), 0)
                    result = lean("quantize", "-f", source, ours, name)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    self.assert_same_tensors(gguf.GGUFReader(theirs), gguf.GGUFReader(ours),
                                             f"{model} {name}")

    def assert_same_tensors(self, theirs, ours, what):
        expected = {t.name: t for t in theirs.tensors}
        self.assertEqual(sorted(expected), sorted(t.name for t in ours.tensors), what)
        for tensor in ours.tensors:
            self.assertEqual(tensor.tensor_type, expected[tensor.name].tensor_type,
                             f"{what}: {tensor.name}")
            self.assertTrue((tensor.data == expected[tensor.name].data).all(),
                            f"{what}: {tensor.name}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
