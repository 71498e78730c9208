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
# Copies of the link to the host's memory, and which share of the best is wanted of those that nobody
# waits for, in percent.
LINK = re.compile(r"^(fetch|preload), pinned +\d+ x \d+ KiB +[\d.]+ us +([\d.]+) GB/s")
WANTED_OF_LINK = 85
SIZES = ("--ctx", "256", "--prefill-chunk", "64")


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


def find_library(name):
    """Where PyTorch or the toolkit has one that is too large to be carried, for the loader, behind
    what it finds by itself."""
    folders = [os.path.join(folder, "nvidia/*/lib") for folder in sys.path + ["/usr/local/lib"]]
    for folder in folders + ["/usr/local/cuda/lib64", "/usr/local/cuda*/targets/*/lib"]:
        for found in glob.glob(os.path.join(folder, name)):
            paths = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
            os.environ["LD_LIBRARY_PATH"] = ":".join([*paths, os.path.dirname(found)])
            return


def synth(report, folder, name, *arguments):
    """A model of random weights, or None and why."""
    path = os.path.join(folder, name + ".gguf")
    out, last = report.call([LEAN, "synth", *arguments, "-o", path, "-f"])
    return (path, None) if out is not None else (None, last)


def compare_ways(report, part, model, ids, want, ways, remark):
    """A row: of the ways to run, how many gave what is wanted. remark: of what ran."""
    begin, failed, remarks = time.monotonic(), [], []
    for name, flags in ways.items():
        if report.left_s() < SECONDS_OF_KERNELS:
            failed.append(f"{name}: no time is left")
            break
        got, effective = evaluate(model, ids, flags)
        if got != want:
            failed.append(f"{name}: {got}, CPU {want}")
        else:
            remarks.append(f"{name} {remark(effective)}")
    for line in failed:
        print(line)
    report.add(part, f"FAILED: {failed[0][:80]}" if failed else
               f"the CPU's bits: {', '.join(remarks)}", time.monotonic() - begin)


def check_dense(report, folder):
    """The architectures without experts that no golden model has."""
    device = ["--device", report.options.device]
    begin, n_equal, failed = time.monotonic(), 0, []
    ids = [3 + 29 * i % 400 for i in range(9)]
    for arch in ("qwen2",) if report.options.quick else ("qwen2", "qwen3", "qwen35"):
        model, why = synth(report, folder, arch, arch, "Q4_K_M")
        want = model and evaluate(model, ids, ["--device", "cpu"])[0]
        for layers in ([], ["--gpu-layers", "2"]) if model else ():
            got, effective = evaluate(model, ids, [*device, *layers])
            if got == want and "device_layers" in effective["ranks"][0]:
                n_equal += 1
            else:
                why = f"{got}, CPU {want}"
        failed += [f"{arch}: {why}"] if why else []
    report.add("models, dense", f"FAILED: {failed[0][:80]}" if failed else
               f"{n_equal} runs with the CPU's bits", time.monotonic() - begin)


def half_of_experts(report, model, *flags):
    """The --vram that has room for all of a model but half of its experts, or None."""
    out, _ = report.call([LEAN, "inspect", model, "--memory", "--json", "--device",
                          report.options.device, *flags])
    device = out and json.loads(out)["memory"].get("device")
    return device and str(device["total"] - device["routed_experts"] // 2)


def check_tier(report, folder):
    """Slots for half of the experts, whatever becomes of the others, wherever these are."""
    part, device = "experts in half the slots", ["--device", report.options.device]
    model, why = synth(report, folder, "tier", "qwen3moe", "Q8_0", "--layers", "3", "--experts", "64")
    vram = model and half_of_experts(report, model, *SIZES)
    if not vram:
        report.add(part, f"FAILED: {(why or 'no plan for the device')[:80]}")
        return
    half = [*device, *SIZES, "--vram", vram]
    ways = {"gpu": ["--miss", "gpu"], "cpu": ["--miss", "cpu"], "hybrid": ["--miss", "hybrid"],
            "auto": [], "and a quarter in memory": ["--expert-slots", "25%", "--profile", "none"],
            "in chunks of 3": ["--prefill-chunk", "3"]}
    if report.options.quick:
        ways = {name: ways[name] for name in ("gpu", "hybrid")}
    ids = [11 + 37 * i % 500 for i in range(20)]
    want, _ = evaluate(model, ids, ["--device", "cpu", *SIZES])

    def remark(effective):
        counts = effective["experts"]["device"]["decode"]
        return f"{100 * counts['hits'] // max(counts['lookups'], 1)}%"
    compare_ways(report, part + ", hits", model, ids, want,
                 {name: [*half, *flags] for name, flags in ways.items()}, remark)


def check_drafts(report, folder):
    """Looked up in what was before, and by a layer of the model's own: nothing else comes out."""
    model, why = synth(report, folder, "drafts", "qwen35moe", "Q8_0", "--mtp")
    if not model:
        report.add("drafts", f"FAILED: {why[:80]}")
        return
    ids = [5, 17, 90, 33] * (2 if report.options.quick else 5)
    want, _ = evaluate(model, ids, ["--device", "cpu", "--prompt-lookup", "off", "--mtp", "off"])
    device = ["--device", report.options.device]
    ways = {"own layer": [*device, "--prompt-lookup", "off", "--mtp", "on"]}
    if not report.options.quick:
        ways["looked up"] = [*device, "--prompt-lookup", "on", "--mtp", "off"]
    compare_ways(report, "drafts, taken", model, ids, want, ways,
                 lambda effective: effective["drafts_accepted"])


def check_further_models(report):
    with tempfile.TemporaryDirectory() as folder:
        for part in check_dense, check_tier, check_drafts:
            if report.left_s() < SECONDS_OF_MODEL + SECONDS_OF_KERNELS:
                report.add(part.__name__[6:], "not run: no time is left")
            else:
                part(report, folder)


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


def add_preload(report, lines):
    rates = {"fetch": 0, "preload": 0}
    for match in filter(None, map(LINK.match, lines)):
        rates[match[1]] = max(rates[match[1]], float(match[2]))
    if not all(rates.values()):
        report.add("preload into slots", "not run: the host's memory could not be pinned")
        return
    share = 100 * rates["preload"] / rates["fetch"]
    report.add("preload into slots", f"{rates['preload']:.1f} GB/s, {share:.0f}% of the link, wanted "
               f"{WANTED_OF_LINK}%" + (", without meaning" if report.emulated else ""))


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
    if not failed:
        add_preload(report, out.splitlines())


def folder_with_room(n_bytes):
    """The first of memory and disks that has it, or None."""
    for folder in ("/dev/shm", tempfile.gettempdir(), os.getcwd()):
        if os.path.isdir(folder) and shutil.disk_usage(folder).free > n_bytes:
            return folder
    return None


def bench_rows(report, path, *options):
    """lean bench's rows, or None and why."""
    out, last = report.call([LEAN, "bench", path, "--device", report.options.device,
                             "-r", "1" if report.emulated else "3", "-o", "json", *options])
    return (json.loads(out), None) if out is not None else (None, last)


def rates_of(rows):
    """{"pp512": tokens per second, ...}"""
    return {row["test"]: row["mean_tok_s"] for row in rows}


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


def add_energy(report, rows):
    """What NVML told of the last test."""
    row = rows[-1]
    if not row["accelerators"]:
        report.add("energy, by NVML", "not run: no libnvidia-ml.so.1, or no device")
        return
    told = ", ".join(f"{one['name']}, driver {one['driver']}" for one in row["accelerators"])
    energy = row["accelerator_energy_j"]
    report.add("energy, by NVML", f"{told}: " + (f"{energy:.0f} J for {row['test']}" if energy else
                                                 "it counts no energy"))


def measure_slots(report, part, path, answer):
    """Decode with a part of the experts on the device, the others in memory."""
    vram = half_of_experts(report, path, *SIZES) if report.emulated else "12G"
    name, begin = f"{part}, limited to {'some' if report.emulated else vram}", time.monotonic()
    if report.left_s() < 60:
        report.add(name, "not run: no time is left")
        return
    rows, why = bench_rows(report, path, "-p", "0", "-n", answer, "--vram", vram,
                           *(SIZES[2:] if report.emulated else ()))
    device = rows and (rows[0]["experts"] or {}).get("device")
    if device:
        report.add(name, f"{rates_text(rates_of(rows))}, {100 * device['hit_rate']:.0f}% hits, loaded "
                   f"in {rows[0]['load_s']:.1f} s", time.monotonic() - begin)
    else:
        report.add(name, f"FAILED: {(why or 'no experts in slots')[:80]}", time.monotonic() - begin)


def measure_model(report):
    """Decode and prefill of a synthetic model of the 35B's true shape, against llama.cpp's."""
    model, n_bytes, prompt, answer = "qwen3.5-35b-a3b", 22 << 30, "512", "128"
    if report.emulated:
        model, n_bytes, prompt, answer = "qwen3moe", 1 << 20, "8", "4"
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
        rows, why = bench_rows(report, path, "-p", prompt, "-n", answer)
        exact = rates_of(rows) if rows else None
        report.add(f"{part}, exact", rates_text(exact) if exact else f"FAILED: {why[:80]}",
                   time.monotonic() - begin)
        if rows:
            add_energy(report, rows)
        begin = time.monotonic()
        peer, why = bench_llama(report, path, prompt, answer)
        report.add(f"{part}, llama.cpp", rates_text(peer) if peer else f"not run: {why[:80]}",
                   time.monotonic() - begin)
        if exact and peer:
            test = f"tg{answer}"
            report.add(f"{part}, decode against it",
                       f"{exact[test] / peer[test]:.2f}, wanted {WANTED_RATIO}")
        begin = time.monotonic()
        rows, why = bench_rows(report, path, "-p", prompt, "-n", answer, "--numerics", "fast")
        report.add(f"{part}, fast", rates_text(rates_of(rows)) if rows else f"not run: {why[:80]}",
                   time.monotonic() - begin)
        measure_slots(report, part, path, answer)
    finally:
        if os.path.exists(path):
            os.remove(path)


def check_sanitizer(report):
    """As many checks as time is left for; one that does not end says nothing of the kernels."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if report.emulated or not tool:
        report.add("compute-sanitizer", "not run: " + ("no device" if report.emulated else "not here"))
        return
    case = ["--backend", "cuda", "--cases", "1"]
    subjects = [(operation, [CHECK, "--only", operation, *case]) for operation in OPERATIONS]
    subjects.append(("numerics fast", [CHECK_FAST, *case]))
    subjects.append(("a model", [LEAN, "eval", "tests/data/golden/models/qwen35moe-s-q8_0.gguf",
                                 "--ids", "1,2,3", "-n", "4", "--device", "cuda", "-q"]))
    for check in TOOLS:
        for name, command in subjects:
            part, begin = f"{check}, {name}", time.monotonic()
            if report.left_s() < 15:
                report.add(part, "not run: no time is left")
                continue
            out, last = report.call([tool, "--tool", check, "--error-exitcode", "9", *command],
                                    limit_s=60)
            late = out is None and last == "did not end"
            report.add(part, last if out is not None else
                       ("" if late else "FAILED: ") + last[:80], time.monotonic() - begin)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "emu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    report = Report(parser.parse_args())
    for library in "libcublas.so.13", "libnccl.so.2":
        find_library(library)
    for part in (check_kernels, check_models, check_further_models, check_fast, measure_kernels,
                 measure_model, check_sanitizer):
        part(report)
    width = max(len(row[0]) for row in report.rows)
    print(f"\n{'':{width}}  {'ran on':20}  {'seconds':>7}  result")
    for part, where, result, seconds in report.rows:
        print(f"{part:{width}}  {where[:20]:20}  {seconds:7.1f}  {result}")
    print(f"{time.monotonic() - report.begin:.0f} s in all")
    return any(row[2].startswith("FAILED") for row in report.rows)


if __name__ == "__main__":
    sys.exit(main())
