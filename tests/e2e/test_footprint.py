"""What the program takes: memory while it evaluates, bytes on disk, libraries at its start.

Peak memory is VmHWM: the most pages that the process had mapped and resident at one time, of its
own (anonymous) as well as of files, so the weights in the page cache count, once."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

from cli import LEAN, environment, is_sanitized, lean

MIB = 1 << 20
OVERHEAD_MAX = 300_000_000
N_TOKEN = 700  # more than one step of the prompt


class Memory(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="lean-test-footprint-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def peak_bytes(self, *args):
        """VmHWM of `lean ARGS`, which must succeed."""
        job = subprocess.Popen([LEAN, *map(str, args)], env=environment(),
                               stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(job.returncode, 0, args)
        return usage.ru_maxrss * 1024

    def check(self, *synth):
        path = os.path.join(self.folder, "model.gguf")
        made = lean("synth", *synth, "-o", path)
        self.assertEqual(made.returncode, 0, made.stderr)
        plan = json.loads(lean("inspect", path, "--memory", "--json", "--ctx", 4096).stdout)["memory"]
        cache = plan["kv_cache"] + plan["recurrent_state"]
        needed = plan["weights"] + cache
        ids = ",".join(str(1000 + 37 * i % 20000) for i in range(N_TOKEN))
        peak = self.peak_bytes("eval", path, "--ids", ids, "-n", 4, "--ctx", 4096)
        print(f"{' '.join(synth)}: peak {peak / MIB:.0f} MiB; weights {plan['weights'] / MIB:.0f}, "
              f"KV cache and states {cache / MIB:.0f}, all else {(peak - needed) / MIB:.0f}, "
              f"planned {(plan['total'] - needed) / MIB:.0f} MiB")
        self.assertLessEqual(plan["total"] - needed, OVERHEAD_MAX, "planned overhead")
        self.assertLessEqual(peak, plan["total"], "peak beyond the plan")
        # inspect plans for more states of the recurrence than eval keeps, so they do not count here
        self.assertLessEqual(peak, plan["weights"] + plan["kv_cache"] + OVERHEAD_MAX, "peak")
        self.assertGreater(peak, plan["weights"] / 2, "not the memory that was to be measured")

    @unittest.skipIf(is_sanitized(), "sanitizers take memory of their own")
    def test_dense(self):
        self.check("llama-1b", "Q4_K_M", "--layers", "6", "--vocab", "32000")

    @unittest.skipIf(is_sanitized(), "sanitizers take memory of their own")
    def test_experts(self):
        self.check("qwen3.5-35b-a3b", "Q4_K_M", "--layers", "4", "--experts", "32",
                   "--vocab", "32000")


class Program(unittest.TestCase):
    @unittest.skipIf(is_sanitized(), "sanitizers take space of their own")
    def test_stripped_size(self):
        with tempfile.NamedTemporaryFile() as stripped:
            subprocess.run(["strip", "-o", stripped.name, LEAN], check=True)
            n_bytes = os.path.getsize(stripped.name)
        print(f"stripped: {n_bytes / MIB:.1f} MiB")
        self.assertLessEqual(n_bytes, 15_000_000)

    def test_starts_without_cuda_and_mpi(self):
        needed = subprocess.run(["ldd", LEAN], check=True, capture_output=True, text=True).stdout
        names = [line.split()[0] for line in needed.splitlines()]
        self.assertTrue(any(name.startswith("libc.") for name in names), needed)
        for name in names:
            self.assertNotRegex(name, r"^lib(cuda|cudart|cublas|nccl|nvidia|mpi|open-rte|open-pal)")


if __name__ == "__main__":
    unittest.main(verbosity=2)
