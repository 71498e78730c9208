"""Whatever allocation fails, the program says so in one line and ends as documented, and what it had
taken by then it gives back. The number of threads is given, since hwloc, which would be asked for it,
does not survive the failure of all its allocations."""
import os
import re
import subprocess
import tempfile
import unittest

from cli import LEAN, SOURCE_DIR, environment, is_sanitized

BUILD_DIR = os.environ.get("LEAN_BUILD_DIR", os.path.dirname(LEAN))
SHIM = os.path.join(BUILD_DIR, "tests", "alloc_shim.so")
MODELS = os.path.join(SOURCE_DIR, "tests/data/golden/models")
UNFIT = 9
TIME = re.compile(r"[0-9.]+m?s$", re.MULTILINE)


def sample(n_call):
    """The first ones, then ever fewer: what comes late is mostly the same call again."""
    n, step = 1, 1.0
    while n <= n_call:
        yield int(n)
        n += step
        step *= 1.02
    yield n_call


@unittest.skipIf(is_sanitized(), "sanitizers bring an allocator of their own")
class Failures(unittest.TestCase):
    def run_failing(self, args, fail):
        """Exit status, stdout, stderr, allocating calls and blocks left."""
        with tempfile.NamedTemporaryFile() as report:
            # no device: a loader of libraries that gets no memory ends the process by itself
            env = environment(LD_PRELOAD=SHIM, ALLOC_SHIM_FAIL=fail, ALLOC_SHIM_REPORT=report.name,
                              LEAN_COMPUTE_DEVICE="cpu")
            done = subprocess.run([LEAN, *map(str, args)], env=env, capture_output=True, text=True,
                                  timeout=60, stdin=subprocess.DEVNULL)
            counts = report.read().decode().split()
        return done, [int(count) for count in counts]

    def check(self, *args):
        good, (n_call, n_left) = self.run_failing(args, "0")
        self.assertEqual(good.returncode, 0, good.stderr)
        n_failed = 0
        for n in sample(n_call):
            for fail in (str(n), f"{n}+"):
                done, counts = self.run_failing(args, fail)
                what = f"{args[0]}, allocation {fail} of {n_call}: exit {done.returncode}, {done.stderr!r}"
                if done.returncode == 0:  # it was for something that can be done without
                    self.assertEqual(TIME.sub("", done.stdout), TIME.sub("", good.stdout), what)
                elif re.fullmatch("lean: error: thread . of .: .*\n", done.stderr):
                    self.assertEqual(done.returncode, 1, what)
                else:
                    n_failed += 1
                    self.assertEqual(done.returncode, UNFIT, what)
                    self.assertRegex(done.stderr, r"\Alean: error: [^\n]*(memory|no thread)[^\n]*\n(hint: .*\n)?\Z", what)
                self.assertLessEqual(counts[1], n_left, what)
        print(f"{args[0]}: {n_call} allocations, {n_failed} failures")
        self.assertGreater(n_failed, 20)

    def test_eval(self):
        for model in ("qwen35moe-s-q8_0", "afmoe-s-q8_0"):
            path = os.path.join(MODELS, model + ".gguf")
            self.check("eval", path, "--ids", "1,2,3", "-n", 2, "--threads", 2)

    def test_paged_eval(self):
        """Experts read as they are needed, of a model and of its pack."""
        with tempfile.TemporaryDirectory() as folder:
            model, pack = os.path.join(MODELS, "qwen35moe-s-q8_0.gguf"), os.path.join(folder, "model.lmpack")
            subprocess.run([LEAN, "pack", model, "-o", pack, "-q"], env=environment(), stdout=subprocess.DEVNULL,
                           check=True)
            for path in (model, pack):
                self.check("eval", path, "--ids", "1,2,3", "-n", 2, "--threads", 2, "--expert-slots", "25%",
                           "--io", "pread", "--profile", "none", "-q")

    def test_pack(self):
        with tempfile.TemporaryDirectory() as folder:
            self.check("pack", os.path.join(MODELS, "qwen35moe-s-q8_0.gguf"), "-o",
                       os.path.join(folder, "out.lmpack"), "--force", "-q")

    def test_profile(self):
        """Also of the trace and the profiles that are read: never that they are malformed."""
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(MODELS, "qwen35moe-s-q8_0.gguf")
            text, *profiles = (os.path.join(folder, name) for name in ("text", "a.pb", "b.pb", "c.pb"))
            with open(text, "w") as file:
                file.write("A few words, and some more. ")
            self.check("profile", "record", model, "--text", text, "-o", profiles[0], "--force",
                       "--threads", 2, "-q")
            subprocess.run([LEAN, "profile", "record", model, "--text", text, "-o", profiles[1]],
                           env=environment(), check=True, capture_output=True)
            self.check("profile", "show", profiles[0])
            self.check("profile", "merge", *profiles[:2], "-o", profiles[2], "--force")

    def test_inspect(self):
        self.check("inspect", os.path.join(MODELS, "llama-s-q8_0.gguf"), "--memory", "--ram", "1G")

    def test_tokenize(self):
        self.check("tokenize", os.path.join(MODELS, "llama-s-q8_0.gguf"), "a few words")

    def test_quantize(self):
        with tempfile.TemporaryDirectory() as folder:
            self.check("quantize", os.path.join(MODELS, "llama-s-f32.gguf"),
                       os.path.join(folder, "out.gguf"), "Q8_0", "--force", "--threads", 2, "--progress",
                       "none")

    def test_synth(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "out.gguf")
            self.check("synth", "qwen35moe", "Q4_K_M", "-o", path, "--force", "--progress", "none")


if __name__ == "__main__":
    unittest.main(verbosity=2)
