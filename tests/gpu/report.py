"""tests/gpu/run.sh's rows: runs each part, prints what it says when it fails, and one table."""
import argparse
import concurrent.futures
import glob
import json
import os
import re
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
# What a part leaves to those behind it, which are told of the device alone and come before what the
# sanitizer says.
SECONDS_OF_MODEL, SECONDS_OF_KERNELS = 240, 120

BUILD = os.environ.get("LEAN_BUILD_DIR", "build")
LEAN = os.path.join(BUILD, "lean")
CHECK = os.path.join(BUILD, "tests/test_kernels_backend")
CHECK_FAST = os.path.join(BUILD, "tests/test_kernels_fast")
LLAMA_BENCH = os.path.join(BUILD, "llama/llama-bench")

# A line of bench_kernels_gpu, which operations are products that must reach a share of what, and the
# share in percent: (operation, tokens, of the tensor cores, wanted).
LINE = re.compile(r"^(\S+(?: \S+)*?) {2,}(.*?) +(\d+) tokens? +[\d.]+ us +[\d.]+ GB/s +(\d+)%"
                  r"(?: +[\d.]+ TOP/s +(\d+)%)?$")
WANTED = (("linear", 1, False, 80), ("experts", 1, False, 65), ("linear", 512, True, 50))
WANTED_RATIO = 1.3


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

    def add(self, part, result, seconds=0.0, where=None):
        self.rows.append((part, where or self.where, result, seconds))
        print(f"{part}: {result} ({seconds:.1f} s)", flush=True)

    def call(self, command, env=None, limit_s=SECONDS_IN_ALL):
        """(standard output or None, the last line that it said)"""
        try:
            done = subprocess.run(command, capture_output=True, text=True,
                                  timeout=max(min(self.left_s(), limit_s), 1),
                                  env={**os.environ, **(env or {})})
        except subprocess.TimeoutExpired:
            return None, "did not end"
        except OSError as error:
            return None, str(error)
        lines = (done.stdout + done.stderr).strip().splitlines() or [""]
        if done.returncode:
            print("\n".join(lines[-30:]))
        return None if done.returncode else done.stdout, lines[-1]

    def run(self, part, command, env=None, where=None):
        """Runs a command that says in its last line how it went; False if it failed."""
        begin = time.monotonic()
        if self.left_s() < 5:
            self.add(part, "not run: no time is left", 0, where)
            return False
        out, last = self.call(command, env)
        self.add(part, f"FAILED: {last[:80]}" if out is None else last, time.monotonic() - begin,
                 where)
        return out is not None


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


def evaluate(model, ids, flags):
    """((hash of all logits, greedy continuation), what ran where), or the error's line and None."""
    done = subprocess.run([LEAN, "eval", model, "--ids", ",".join(map(str, ids)), "-n", "8",
                           "--json", *flags], capture_output=True, text=True, timeout=120)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1], None
    answer = json.loads(done.stdout)
    return (answer["logits_xxh3"], tuple(answer["generated"])), answer["effective"]


def check_placement(pool, prompts, on_device, on_both):
    """All prompts with and without the device: the number that agree, replayed graphs, failures."""
    n_equal, n_replay, failed = 0, 0, []
    here = [pool.submit(evaluate, *prompt, ["--device", "cpu", *on_both]) for prompt in prompts]
    there = [pool.submit(evaluate, *prompt, [*on_device, *on_both]) for prompt in prompts]
    for (model, _), wanted, ran in zip(prompts, here, there):
        (want, _), (got, effective) = wanted.result(), ran.result()
        if want != got or not effective or "device_layers" not in effective["ranks"][0]:
            failed.append(f"{os.path.basename(model)}: {got}, CPU {want}")
            continue
        n_equal += 1
        n_replay += effective["device"]["replays"]
    return n_equal, n_replay, failed


def golden_prompts(quick):
    """[(model, token ids)], one that fits into a chunk and one that takes several."""
    prompts = []
    for model in sorted(glob.glob("tests/data/golden/models/*.gguf")):
        if quick and not any(name in model for name in ("qwen35moe-k", "llama-k-q4")):
            continue
        with open(model.replace("/models/", "/expected/").replace(".gguf", ".json")) as file:
            ids = [prompt["ids"] for prompt in json.load(file)["prompts"]]
        prompts += [(model, one) for one in (ids[:1] if quick else ids)]
    return prompts


def check_models(report):
    """Every golden model with all, some and one of its layers on the device: the CPU's bits."""
    device = ["--device", report.options.device]
    placements = {"all": (device, []),
                  "two": ([*device, "--gpu-layers", "2"], []),
                  "one": ([*device, "--gpu-layers", "1"], []),
                  "all, F32 cache": (device, ["--kv-type", "f32"]),
                  "all, Q8_0 cache": (device, ["--kv-type", "q8_0"]),
                  "all, in chunks of 3": (device, ["--prefill-chunk", "3"])}
    if report.options.quick:
        placements = {name: placements[name] for name in ("all", "two")}
    prompts = golden_prompts(report.options.quick)
    # Most of an evaluation is the start of a process.
    with concurrent.futures.ThreadPoolExecutor(2 if report.emulated else 6) as pool:
        for name, (on_device, on_both) in placements.items():
            part = f"models, on the GPU: {name}"
            if report.left_s() < SECONDS_OF_MODEL + SECONDS_OF_KERNELS:
                report.add(part, "not run: no time is left")
                continue
            begin = time.monotonic()
            n_equal, n_replay, failed = check_placement(pool, prompts, on_device, on_both)
            for line in failed:
                print(line)
            report.add(part, f"FAILED: {failed[0][:60]}" if failed else
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


def add_shares(report, lines):
    """A row for each share that is wanted: the least of the shapes, and of which."""
    matches = [match for match in map(LINE.match, lines) if match]
    for operation, n_token, of_tensor_cores, wanted in WANTED:
        names = sorted({match[1] for match in matches if match[1].startswith(operation + " ")})
        for name in names:
            shares = [(int(match[5 if of_tensor_cores else 4]), match[2]) for match in matches
                      if match[1] == name and int(match[3]) == n_token]
            if not shares:
                continue
            least, shape = min(shares)
            roof = "the int8 rate" if of_tensor_cores else "the read bandwidth"
            report.add(f"{name}, {n_token} token{'s' * (n_token > 1)}",
                       f"{least}% of {roof} at least ({shape.strip()}), wanted {wanted}%"
                       + (", without meaning" if report.emulated else ""))


def measure_kernels(report):
    command = [os.path.join(BUILD, "bench/bench_kernels_gpu")]
    if report.emulated:
        command += ["--plugin", "liblean_cuda_emu.so", "--quick", "1"]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(report.left_s(), 10))
        out, failed = done.stdout + done.stderr, done.returncode and f"exit {done.returncode}"
    except subprocess.TimeoutExpired as late:
        out, failed = (late.stdout or b"").decode(), "did not end"
    print(out)
    report.add("speed of the kernels", f"FAILED: {failed}" if failed else "above",
               time.monotonic() - begin)
    add_shares(report, out.splitlines())


def folder_with_room(n_bytes):
    """The first of memory and disks that has it, or None."""
    for folder in ("/dev/shm", tempfile.gettempdir(), os.getcwd()):
        if os.path.isdir(folder) and shutil.disk_usage(folder).free > n_bytes:
            return folder
    return None


def bench_lean(report, path, *options):
    """{"pp512": tokens per second, ...}, or None and why."""
    out, last = report.call([LEAN, "bench", path, "--device", report.options.device,
                             "-r", "1" if report.emulated else "3", "-o", "json", *options])
    if out is None:
        return None, last
    return {row["test"]: row["mean_tok_s"] for row in json.loads(out)}, None


def bench_llama(report, path, prompt, answer):
    """llama.cpp's better figures of those with and without its flash attention; as above."""
    if not os.path.exists(LLAMA_BENCH):
        return None, "not here: tests/gpu/build_llama.sh makes it"
    out, last = report.call([LLAMA_BENCH, "-m", path, "-p", prompt, "-n", answer, "-ngl", "99",
                             "-fa", "0,1", "-r", "3", "-o", "json"])
    if out is None:
        return None, last
    rates = {}
    for row in json.loads(out):
        test = f"tg{row['n_gen']}" if row["n_gen"] else f"pp{row['n_prompt']}"
        rates[test] = max(rates.get(test, 0), row["avg_ts"])
    return rates, None


def rates_text(rates):
    return ", ".join(f"{test} {rate:.1f} tok/s" for test, rate in rates.items())


def measure_model(report):
    """Decode and prefill of a synthetic model of the 35B's true shape, against llama.cpp's."""
    model, n_bytes, prompt, answer = "qwen3.5-35b-a3b", 22 << 30, "512", "128"
    if report.emulated:
        model, n_bytes, prompt, answer = "llama", 1 << 20, "8", "4"
    part = f"whole {model}, Q4_K_M"
    begin = time.monotonic()
    folder = folder_with_room(n_bytes)
    if not folder or report.left_s() < SECONDS_OF_MODEL / 2:
        report.add(part, "not run: no " + ("time is left" if folder else "room for its file"))
        return
    path = os.path.join(folder, f"lean-{os.getpid()}.gguf")
    try:
        out, last = report.call([LEAN, "synth", model, "Q4_K_M", "-o", path, "-f"])
        if out is None:
            report.add(part, f"FAILED: {last[:80]}", time.monotonic() - begin)
            return
        exact, why = bench_lean(report, path, "-p", prompt, "-n", answer)
        report.add(f"{part}, exact", rates_text(exact) if exact else f"FAILED: {why[:80]}",
                   time.monotonic() - begin)
        begin = time.monotonic()
        peer, why = bench_llama(report, path, prompt, answer)
        report.add(f"{part}, llama.cpp", rates_text(peer) if peer else f"not run: {why[:80]}",
                   time.monotonic() - begin)
        if exact and peer:
            test = f"tg{answer}"
            report.add(f"{part}, decode against it",
                       f"{exact[test] / peer[test]:.2f}, wanted {WANTED_RATIO}")
        begin = time.monotonic()
        fast, why = bench_lean(report, path, "-p", prompt, "-n", answer, "--numerics", "fast")
        report.add(f"{part}, fast", rates_text(fast) if fast else f"not run: {why[:80]}",
                   time.monotonic() - begin)
    finally:
        if os.path.exists(path):
            os.remove(path)


def check_sanitizer(report):
    """As many checks as time is left for; one that does not end says nothing of the kernels."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if report.emulated or not tool:
        report.add("compute-sanitizer", "not run: " + ("no device" if report.emulated else "not here"))
        return
    subjects = [(operation, [CHECK, "--only", operation]) for operation in OPERATIONS]
    subjects.append(("numerics fast", [CHECK_FAST]))
    for check in TOOLS:
        for name, command in subjects:
            part, begin = f"{check}, {name}", time.monotonic()
            if report.left_s() < 15:
                report.add(part, "not run: no time is left")
                continue
            out, last = report.call([tool, "--tool", check, "--error-exitcode", "9", *command,
                                     "--backend", "cuda", "--cases", "1"], limit_s=60)
            late = out is None and last == "did not end"
            report.add(part, last if out is not None else
                       ("" if late else "FAILED: ") + last[:80], time.monotonic() - begin)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "emu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    report = Report(parser.parse_args())
    find_cublas()
    for part in (check_kernels, check_models, check_fast, measure_kernels, measure_model,
                 check_sanitizer):
        part(report)
    width = max(len(row[0]) for row in report.rows)
    print(f"\n{'':{width}}  {'ran on':20}  {'seconds':>7}  result")
    for part, where, result, seconds in report.rows:
        print(f"{part:{width}}  {where[:20]:20}  {seconds:7.1f}  {result}")
    print(f"{time.monotonic() - report.begin:.0f} s in all")
    return any(row[2].startswith("FAILED") for row in report.rows)


if __name__ == "__main__":
    sys.exit(main())
