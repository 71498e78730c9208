"""The same bits whatever part of the experts is resident, and however the others are read.

Every run must give the hash of all logits, and the greedy path behind them, of the run that has all
experts in the mapping of the file; and `effective` must say that the setting asked for took effect:
slots, misses, predictions, the engine that read."""
import itertools
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


def run(path, *options):
    answer = golden.evaluate(path, IDS, "-n", N_NEW, *options)
    return (answer["logits_xxh3"], answer["generated"]), answer["effective"]["experts"]


def check_effect(options, got):
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
    for phase in ("decode", "prefill"):
        for name in ("lookups", "hits", "joined", "misses", "miss_bytes"):
            if sum(layer[phase][name] for layer in got["layers"]) != got[phase][name]:
                problems.append(f"{name} in {phase} are not the sum over the layers")
    if not misses or not got["read_bytes"]:
        problems.append("nothing was read")
    wanted_io = {"uring": "io_uring", "pread": "threads"}.get(options["--io"])
    if wanted_io and got["io"] != wanted_io:
        problems.append(f"read by {got['io']}")
    if options["--io"] == "buffered" and got["direct"]:
        problems.append("read past the page cache")
    return problems


def compare(name, path, settings):
    want, mapped = run(path)
    if mapped["slots"] or mapped["decode"]["misses"] or mapped["prefill"]["misses"]:
        sys.exit(f"{name}: without slots there are no misses, got {mapped}")
    n_speculated = n = 0
    for options in settings:
        result, got = run(path, *itertools.chain(*options.items()))
        problems = check_effect(options, got)
        if problems:
            sys.exit(f"{name} {options}: {', '.join(problems)}: {got}")
        if result != want:
            sys.exit(f"{name} {options}: {result}, with all resident {want}")
        n_speculated += got["speculated"]
        n += 1
    if not n_speculated:
        sys.exit(f"{name}: no setting read on a prediction")
    return n


def setting(slots, policy="lfru", prefetch="on", io="auto", **more):
    return {"--expert-slots": slots, "--policy": policy, "--prefetch": prefetch, "--io": io,
            "--profile": "none", **{"--" + key.replace("_", "-"): value for key, value in more.items()}}


def check_profile(path):
    """A run leaves a profile behind, the next one preloads by it, and the bits stay."""
    want, _ = run(path)
    for n in range(2):
        result, got = run(path, "--expert-slots", "50%")
        if result != want or (got["preloaded"] > 0) != (n > 0):
            sys.exit(f"run {n} with a profile kept: {got['preloaded']} experts preloaded, {result}, "
                     f"with all resident {want}")


def check_report(path):
    """--verbose ends in what was read, and names the layers that found least."""
    done = cli.lean("run", path, "--raw", "--max-tokens", 4, "--expert-slots", "50%", "--verbose", "abc")
    layers = re.search(r"^layers  hits ([\d.]+)% to ([\d.]+)% in decode, median ([\d.]+)%; "
                       r"least layer \d+ ([\d.]+)%, layer \d+ ([\d.]+)%", done.stderr, re.M)
    if done.returncode or not layers or "experts " not in done.stderr or "read " not in done.stderr:
        sys.exit(f"--verbose: exit {done.returncode}: {done.stderr}")
    least, most, median, first, second = map(float, layers.groups())
    if not least == first <= second <= most or not least <= median <= most:
        sys.exit(f"--verbose: {layers[0]}")


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
    check_report(golden_model("qwen35moe-k-q4km"))
    print(f"{n} settings, one result for each model")


main()
