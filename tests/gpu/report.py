"""tests/gpu/run.sh's rows: runs each part, prints what it says when it fails, and one table."""
import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

OPERATIONS = ("rows", "linear", "attention", "delta_net", "route", "ffn", "gather_experts",
              "streaming")
TOOLS = ("memcheck", "racecheck", "synccheck")
# All parts end within this, so that a machine that is lent for ten minutes gives the table.
SECONDS_IN_ALL = 570

BUILD = os.environ.get("LEAN_BUILD_DIR", "build")
LEAN = os.path.join(BUILD, "lean")
CHECK = os.path.join(BUILD, "tests/test_kernels_backend")
CHECK_FAST = os.path.join(BUILD, "tests/test_kernels_fast")


class Report:
    def __init__(self, options):
        self.options = options
        self.rows = []
        self.begin = time.monotonic()
        self.emulated = options.device == "emu"
        self.backend = "cuda-emu" if self.emulated else "cuda"
        self.where = "emulator" if self.emulated else gpu_name()

    def left_s(self):
        return SECONDS_IN_ALL - (time.monotonic() - self.begin)

    def add(self, part, result, seconds, where=None):
        self.rows.append((part, where or self.where, result, seconds))
        print(f"{part}: {result} ({seconds:.1f} s)", flush=True)

    def run(self, part, command, env=None, where=None):
        """Runs a command that says in its last line how it went; False if it failed."""
        begin = time.monotonic()
        if self.left_s() < 5:
            self.add(part, "not run: no time is left", 0, where)
            return False
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.left_s(),
                                  env={**os.environ, **(env or {})})
        except subprocess.TimeoutExpired:
            self.add(part, "FAILED: did not end", time.monotonic() - begin, where)
            return False
        lines = (done.stdout + done.stderr).strip().splitlines() or [""]
        if done.returncode:
            print("\n".join(lines[-30:]))
        self.add(part, lines[-1] if not done.returncode else f"FAILED: {lines[-1][:80]}",
                 time.monotonic() - begin, where)
        return done.returncode == 0


def gpu_name():
    try:
        return subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "no GPU"


def check_kernels(report):
    cases = ["--cases", "2"] if report.options.quick else []
    for operation in OPERATIONS:
        report.run(f"bits of {operation}", [CHECK, "--backend", report.backend, "--only", operation,
                                            *cases])
    report.run("NCCL, one rank", [os.path.join(BUILD, "tests/test_kernels_nccl"), "--backend",
                                  report.backend])
    report.run("errors, graphs, memory", [os.path.join(BUILD, "tests/test_cuda_backend")],
               where="emulator")


def evaluate(model, ids, *flags):
    """((hash of all logits, greedy continuation), what ran where), or the error's line and None."""
    done = subprocess.run([LEAN, "eval", model, "--ids", ",".join(map(str, ids)), "-n", "8",
                           "--json", *flags], capture_output=True, text=True, timeout=120)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1], None
    answer = json.loads(done.stdout)
    return (answer["logits_xxh3"], tuple(answer["generated"])), answer["effective"]


def check_placement(report, models, on_device, on_both):
    """All prompts with and without the device: the number that agree, replayed graphs, failures."""
    n_equal, n_replay, failed = 0, 0, []
    for model in models:
        with open(model.replace("/models/", "/expected/").replace(".gguf", ".json")) as file:
            prompts = json.load(file)["prompts"]
        for prompt in prompts[:1] if report.options.quick else prompts:
            if report.left_s() < 60:
                return n_equal, n_replay, ["no time is left"]
            want, _ = evaluate(model, prompt["ids"], "--device", "cpu", *on_both)
            got, effective = evaluate(model, prompt["ids"], *on_device, *on_both)
            if want != got or "device_layers" not in effective["ranks"][0]:
                failed.append(f"{os.path.basename(model)}: {got}, CPU {want}")
                continue
            n_equal += 1
            n_replay += effective["device"]["replays"]
    return n_equal, n_replay, failed


def check_models(report):
    """Every golden model with all, some and one of its layers on the device: the CPU's bits."""
    device = ["--device", report.options.device]
    placements = {"all": (device, []),
                  "two": ([*device, "--gpu-layers", "2"], []),
                  "one": ([*device, "--gpu-layers", "1"], []),
                  "all, F32 cache": (device, ["--kv-type", "f32"]),
                  "all, Q8_0 cache": (device, ["--kv-type", "q8_0"]),
                  "all, in chunks of 3": (device, ["--prefill-chunk", "3"])}
    models = sorted(glob.glob("tests/data/golden/models/*.gguf"))
    if report.options.quick:
        placements = {name: placements[name] for name in ("all", "two")}
        models = [model for model in models if "qwen35moe-k" in model or "llama-k-q4" in model]
    for name, (on_device, on_both) in placements.items():
        begin = time.monotonic()
        n_equal, n_replay, failed = check_placement(report, models, on_device, on_both)
        for line in failed:
            print(line)
        report.add(f"models, on the GPU: {name}", f"FAILED: {failed[0][:60]}" if failed else
                   f"{n_equal} prompts with the CPU's bits, {n_replay} graphs replayed",
                   time.monotonic() - begin)
    if not report.options.quick:
        report.run("golden logits", [sys.executable, "tests/e2e/test_goldens.py"],
                   env={"LEAN": LEAN, "LEAN_SOURCE_DIR": os.getcwd(), "LEAN_BUILD_DIR": BUILD,
                        "LEAN_GOLDEN_FLAGS": " ".join(device)})


def find_cublas():
    """Where PyTorch has cuBLAS, if the loader does not find it: it is too large to be carried."""
    for folder in sys.path + ["/usr/local/lib", "/usr/local/cuda/lib64"]:
        for found in glob.glob(os.path.join(folder, "nvidia/*/lib/libcublas.so.13")):
            old = os.environ.get("LD_LIBRARY_PATH")
            os.environ["LD_LIBRARY_PATH"] = os.path.dirname(found) + (":" + old if old else "")
            return


def divergence(model, ids, logits, *flags):
    """(of a run's logits from those in a file, its hash, its products by cuBLAS)"""
    done = subprocess.run([LEAN, "eval", model, "--ids", ",".join(map(str, ids)), "--json",
                           "--compare", logits, *flags], capture_output=True, text=True, timeout=120,
                          check=True)
    answer = json.loads(done.stdout)
    return (answer["compare"]["kl_divergence"], answer["logits_xxh3"],
            answer["effective"]["device"]["cublas_products"])


def check_fast_model(model, device):
    """What is wrong with FAST beside EXACT, or None; as tests/e2e/test_device.py explains it."""
    with open(model.replace("/models/", "/expected/").replace(".gguf", ".json")) as file:
        ids = json.load(file)["prompts"][-1]["ids"]
    with tempfile.TemporaryDirectory() as folder:
        logits = os.path.join(folder, "logits")
        subprocess.run([LEAN, "eval", model, "--ids", ",".join(map(str, ids)), "--reference",
                        "--device", "cpu", "--logits", logits], capture_output=True, check=True)
        exact, _, none = divergence(model, ids, logits, *device)
        fast, bits, n_product = divergence(model, ids, logits, *device, "--numerics", "fast")
        _, again, _ = divergence(model, ids, logits, *device, "--numerics", "fast")
    if none or not n_product:
        return f"{none} products by cuBLAS in EXACT, {n_product} in FAST"
    if bits != again:
        return "other bits from run to run"
    return None if fast < 2 * exact + 0.002 else f"divergence {fast:.4f}, of EXACT {exact:.4f}"


def check_fast(report):
    device = ["--device", report.options.device]
    cases = ["--cases", "1"] if report.options.quick else []
    if not report.run("bounds of numerics fast", [CHECK_FAST, "--backend", report.backend, *cases]):
        return
    begin, failed, n_good = time.monotonic(), [], 0
    models = ("llama-k-q4_k", "qwen3moe-s-q8_0", "qwen35moe-k-q4km")
    for name in models[:1] if report.options.quick else models:
        try:
            wrong = check_fast_model(f"tests/data/golden/models/{name}.gguf", device)
        except subprocess.SubprocessError as error:
            wrong = ((error.stderr or "").strip().splitlines() or [str(error)])[-1]
        if wrong:
            failed.append(f"{name}: {wrong}")
        else:
            n_good += 1
    report.add("models, numerics fast", f"FAILED: {failed[0][:80]}" if failed else
               f"{n_good} as near to unrounded activations as EXACT", time.monotonic() - begin)


def check_sanitizer(report):
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if report.emulated or not tool:
        report.add("compute-sanitizer", "not run: " + ("no device" if report.emulated else "not here"), 0)
        return
    for check in TOOLS:
        for operation in OPERATIONS:
            if report.left_s() < 150:  # the benchmark's
                report.add(f"{check}, {operation}", "not run: no time is left", 0)
                continue
            report.run(f"{check}, {operation}",
                       [tool, "--tool", check, "--error-exitcode", "9", CHECK, "--backend", "cuda",
                        "--only", operation, "--cases", "2"])
        report.run(f"{check}, numerics fast", [tool, "--tool", check, "--error-exitcode", "9",
                                               CHECK_FAST, "--backend", "cuda", "--cases", "1"])


def measure(report):
    command = [os.path.join(BUILD, "bench/bench_kernels_gpu")]
    if report.emulated:
        command += ["--plugin", "liblean_cuda_emu.so", "--quick", "1"]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(report.left_s(), 10))
    except subprocess.TimeoutExpired as late:
        print((late.stdout or b"").decode())
        report.add("speed of the kernels", "FAILED: did not end", time.monotonic() - begin)
        return
    print(done.stdout + done.stderr)
    report.add("speed of the kernels", f"FAILED: exit {done.returncode}" if done.returncode else
               "above" + (", times without meaning" if report.emulated else ""),
               time.monotonic() - begin)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "emu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    report = Report(parser.parse_args())
    find_cublas()
    for part in (check_kernels, check_models, check_fast, check_sanitizer, measure):
        part(report)
    width = max(len(row[0]) for row in report.rows)
    print(f"\n{'':{width}}  {'ran on':20}  {'seconds':>7}  result")
    for part, where, result, seconds in report.rows:
        print(f"{part:{width}}  {where[:20]:20}  {seconds:7.1f}  {result}")
    return any(row[2].startswith("FAILED") for row in report.rows)


if __name__ == "__main__":
    sys.exit(main())
