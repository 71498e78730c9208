"""The same bits whatever part of the experts is resident, however the others are read, and from what.

Every run must give the hash of all logits, and the greedy path behind them, of the run that has all
experts in the mapping of the file; and `effective` must say that the setting asked for took effect:
slots, policy, misses, predictions, the engine that read. Each model runs as GGUF and as pack."""
import itertools
import json
import os
import re
import sys
import tempfile

import cli
import golden
import variants

SLOTS = ("100%", "50%", "25%", "min")
POLICIES = ("lru", "lfru", "static")
N_NEW = 24
IDS = [(i * 37 + i * i * 3 + 11) % 512 for i in range(90)]


def pack(path, folder):
    """The pack of a model, made in the folder."""
    out = os.path.join(folder, "model.lmpack")
    done = cli.lean("pack", path, "-o", out, "--force")
    if done.returncode:
        sys.exit(f"pack {path}: exit {done.returncode}: {done.stderr}")
    return out


def run(path, *options):
    answer = golden.evaluate(path, IDS, "-n", N_NEW, *options)
    return (answer["logits_xxh3"], answer["generated"]), answer["effective"]


def check_predictions(got, wanted):
    """Layers are predicted twice, but the first from its input only; what is read on it adds up."""
    early, late = (got["predictions"][name] for name in ("early", "late"))
    problems = []
    if [early["named"] > 0, late["named"] > 0] != [wanted, wanted]:
        problems.append("not predicted at both points, or without having been asked")
    if late["chosen"] < early["chosen"] or late["recalled"] * early["chosen"] < early["recalled"] * late["chosen"]:
        problems.append("the late prediction knows less than the early one")
    for total, name in (("speculated", "read"), ("useful", "used")):
        if early[name] + late[name] != got[total]:
            problems.append(f"{total} are not the sum of both predictions")
    for prediction in (early, late):
        if not prediction["in_time"] <= prediction["used"] <= prediction["read"]:
            problems.append("more in time than used, or more used than read")
    return problems


def check_effect(options, effective):
    got = effective["experts"]
    slots, prefetch = options["--expert-slots"], options["--prefetch"]
    misses = got["decode"]["misses"] + got["prefill"]["misses"]
    problems = []
    if slots == "100%" and got["slots"] != got["experts"]:
        problems.append("not every expert has a slot")
    if slots.endswith("%") and got["slots"] > got["experts"] * int(slots[:-1]) / 100 + 2:
        problems.append("more slots than asked for")
    if slots != "100%" and not (misses and got["evicted"] and got["resident"] < got["experts"]):
        problems.append("nothing had to go")
    if slots != "100%" and (got["predicted"] > 0) != (prefetch == "on"):
        problems.append("prediction on where it is off, or the other way round")
    problems += check_predictions(got, slots != "100%" and prefetch == "on")
    for phase in ("decode", "prefill"):
        for name in ("lookups", "hits", "joined", "in_time", "misses", "miss_bytes"):
            if sum(layer[phase][name] for layer in got["layers"]) != got[phase][name]:
                problems.append(f"{name} in {phase} are not the sum over the layers")
    n_lookup, n_hit = (got["decode"][name] + got["prefill"][name] for name in ("lookups", "hits"))
    if [effective[key] for key in ("expert_lookups", "expert_misses", "bytes_read")] != [
            n_lookup, n_lookup - n_hit, got["read_bytes"]]:
        problems.append("the sums are not those of decode and prefill")
    if not misses or not got["read_bytes"]:
        problems.append("nothing was read")
    if got["policy"] != options["--policy"]:
        problems.append("another policy")
    for option, key in (("--threads", "threads"), ("--prefill-chunk", "prefill_chunk")):
        if effective[key] != options.get(option, effective[key]):
            problems.append(f"{effective[key]} {key}")
    if effective["max_batch"] != 1 + options.get("--beside", 0):
        problems.append(f"{effective['max_batch']} sequences in a step")
    wanted_io = {"uring": "io_uring", "pread": "threads"}.get(options["--io"])
    if wanted_io and got["io"] != wanted_io:
        problems.append(f"read by {got['io']}")
    if options["--io"] == "buffered" and got["direct"]:
        problems.append("read past the page cache")
    return problems


def compare_form(name, path, settings, want):
    n_speculated = 0
    for options in settings:
        result, got = run(path, *itertools.chain(*options.items()))
        problems = check_effect(options, got)
        if problems:
            sys.exit(f"{name} {options}: {', '.join(problems)}: {got}")
        if result != want:
            sys.exit(f"{name} {options}: {result}, with all resident {want}")
        n_speculated += got["experts"]["speculated"]
    if not n_speculated:
        sys.exit(f"{name}: no setting read on a prediction")
    return len(settings)


def compare(name, path, settings):
    """The file and its pack, each in every setting, and mapped; returns how many that are."""
    want, _ = run(path)
    n = 0
    with tempfile.TemporaryDirectory() as folder:
        for form, model in (("GGUF", path), ("pack", pack(path, folder))):
            result, effective = run(model)
            mapped = effective["experts"]
            if mapped["slots"] or mapped["decode"]["misses"] or mapped["prefill"]["misses"]:
                sys.exit(f"{name}, {form}: without slots there are no misses, got {mapped}")
            if result != want:
                sys.exit(f"{name}, {form}: {result}, the file {want}")
            n += 1 + compare_form(f"{name}, {form}", model, settings, want)
    return n


def setting(slots, policy="lfru", prefetch="on", io="auto", **more):
    return {"--expert-slots": slots, "--policy": policy, "--prefetch": prefetch, "--io": io,
            "--profile": "none", **{"--" + key.replace("_", "-"): value for key, value in more.items()}}


def check_profile(path):
    """A run leaves a profile behind, the next one preloads by it, and the bits stay."""
    want, _ = run(path)
    for n in range(2):
        result, effective = run(path, "--expert-slots", "50%")
        got = effective["experts"]
        if result != want or (got["preloaded"] > 0) != (n > 0):
            sys.exit(f"run {n} with a profile kept: {got['preloaded']} experts preloaded, {result}, "
                     f"with all resident {want}")


def check_policies(path):
    """Each policy keeps something else: their hits differ."""
    hits = set()
    for policy in POLICIES:
        with_profile = ["--profile", "none"] if policy != "static" else []  # check_profile left one
        _, effective = run(path, "--expert-slots", "50%", "--policy", policy, "--prefetch", "off",
                           "--prefill-chunk", 1, *with_profile)
        hits.add(effective["experts"]["decode"]["hits"])
    if len(hits) < len(POLICIES):
        sys.exit(f"policies that keep the same: {hits}")


def check_report(path):
    """--verbose ends in what was read, and names the layers that found least."""
    done = cli.lean("run", path, "--raw", "--max-tokens", 4, "--expert-slots", "50%", "--verbose", "abc")
    layers = re.search(r"^layers  hits ([\d.]+)% to ([\d.]+)% in decode, median ([\d.]+)%; "
                       r"least layer \d+ ([\d.]+)%, layer \d+ ([\d.]+)%", done.stderr, re.M)
    if done.returncode or not layers or "experts " not in done.stderr or "read " not in done.stderr:
        sys.exit(f"--verbose: exit {done.returncode}: {done.stderr}")
    if not re.search(r"^lookups +\d+ for this answer   hits [\d.]+%, \d+ on their way, \d+ missed "
                     r"\([\d.]+ [KM]iB\)   waited [\d.]+s$", done.stderr, re.M):
        sys.exit(f"--verbose: {done.stderr}")
    least, most, median, first, second = map(float, layers.groups())
    if not least == first <= second <= most or not least <= median <= most:
        sys.exit(f"--verbose: {layers[0]}")


def check_usage(path):
    """An answer has to itself all that a run looks up."""
    done = cli.lean("run", path, "--raw", "--max-tokens", 4, "--expert-slots", "50%", "--profile", "none",
                    "--json", "abc def ghi")
    result = json.loads(done.stdout)
    answer, pager = result["timings"]["experts"], result["experts"]
    for key in ("lookups", "hits", "joined", "misses", "miss_bytes"):
        if answer[key] != pager["decode"][key] + pager["prefill"][key]:
            sys.exit(f"--json: {key} of the answer {answer}, of the pager {pager}")
    if not answer["misses"] or answer["shared"]:
        sys.exit(f"--json: {answer}")
    whole = json.loads(cli.lean("run", path, "--raw", "--max-tokens", 4, "--json", "abc").stdout)
    if "experts" in whole["timings"]:
        sys.exit(f"--json: with all experts mapped {whole['timings']}")


def check_plan(path):
    """What is said before anything is loaded: the slots that there will be, and what they leave to read."""
    for slots in ("min", "50%"):
        done = cli.lean("run", path, "--raw", "--max-tokens", 1, "--expert-slots", slots, "--json", "abc")
        plan = re.search(r"(\d+) of (\d+) experts in memory .* (\S+) to read per token: at most \S+ tok/s",
                         done.stderr.replace(" KiB", "KiB"))
        got = json.loads(done.stdout)["experts"]
        if not plan or [int(plan[1]), int(plan[2])] != [got["slots"], got["experts"]]:
            sys.exit(f"--expert-slots {slots}: {got['slots']} slots, announced {done.stderr}")
        if ("nearly all are read anew" in done.stderr) != (slots == "min"):
            sys.exit(f"--expert-slots {slots}: {done.stderr}")


def io_ways():
    """Ways to read that this kernel has."""
    probe = golden.evaluate(golden_model("qwen35moe-s-q8_0"), [1], "--expert-slots", "min", "--io",
                            "auto", "--profile", "none")["effective"]["experts"]["io"]
    if probe == "io_uring":
        return ["uring", "pread", "buffered"]
    print("no io_uring here: not compared")
    return ["pread", "buffered"]


def golden_model(name):
    return os.path.join(golden.SUBSET, "models", name + ".gguf")


def main():
    ways = io_ways()
    thorough = [setting(slots, policy, prefetch)
                for slots in SLOTS for policy in POLICIES for prefetch in ("on", "off")]
    thorough += [setting(slots, io=io) for slots in ("50%", "min") for io in ways]
    thorough += [setting("25%", threads=threads, prefill_chunk=chunk, beside=beside)
                 for threads, chunk, beside in ((1, 1, 0), (2, 7, 2), (4, 64, 3), (2, 512, 0))]
    n = compare("qwen35moe-k-q4km", golden_model("qwen35moe-k-q4km"), thorough)
    few = [setting("50%"), setting("25%", "lru", "off", ways[0]), setting("min", "static", "on", ways[-1])]
    for name in ("qwen3next-s-q8_0", "afmoe-s-q8_0", "qwen3moe-s-q8_0"):
        n += compare(name, golden_model(name), few)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gate_up fused", "tensor per expert"):
            path = os.path.join(folder, "model.gguf")
            variants.make(variants.SAME, name, path)
            n += compare(name, path, few)
    check_profile(golden_model("qwen35moe-k-q4km"))
    check_policies(golden_model("qwen35moe-k-q4km"))
    check_report(golden_model("qwen35moe-k-q4km"))
    check_usage(golden_model("qwen35moe-k-q4km"))
    check_plan(golden_model("qwen35moe-k-q4km"))
    print(f"{n} settings, one result for each model")


main()
