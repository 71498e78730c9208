"""bench_pager, which replays routing traces, agrees with what the pager counts in the same run.

Hit rates in percent of lookups may differ by half a point. In decode they hardly ever differ at
all; in prefill it depends on the disk which of two reads ends first, and so what is left over in
the cache: in steps shorter than those here two equal runs may differ by more. Predictions are off: a
trace does not hold them."""
import json
import os
import subprocess
import sys
import tempfile

import cli

MODEL = os.path.join(cli.SOURCE_DIR, "configs/demo/lean-demo-q4_k_m.gguf")
TEXTS = os.path.join(cli.SOURCE_DIR, "tests/data/demo/traces")
BENCH = os.path.join(os.path.dirname(os.path.abspath(cli.LEAN)), "bench/bench_pager")
POLICIES, SLOTS = ("lru", "lfru", "static"), ("min", "25%", "50%")


def run(args):
    done = subprocess.run(args, capture_output=True, text=True, env=cli.environment())
    if done.returncode:
        sys.exit(f"{args}: exit {done.returncode}: {done.stderr}")
    return done.stdout


def live(text, trace, options):
    """Hit rates of the pager, and its layers."""
    got = json.loads(run([cli.LEAN, "eval", MODEL, "--text", text, "--json", "--trace", trace,
                          "--prefetch", "off", *options]))["effective"]["experts"]
    rates = {phase: 100 * got[phase]["hits"] / got[phase]["lookups"] if got[phase]["lookups"] else 0
             for phase in ("decode", "prefill")}
    return rates, got


def simulated(trace, layers, policy, options):
    classes = [layer["class"] for layer in layers]
    slots = {layer["class"]: layer["class_slots"] for layer in layers}
    text = run([BENCH, "--tsv", "--policy", policy, "--classes", ",".join(map(str, classes)),
                "--slots", ",".join(str(slots[i]) for i in sorted(slots)), *options, trace])
    header, row = (line.split("\t") for line in text.splitlines())
    row = dict(zip(header, row, strict=True))
    return {phase: float(row[phase + "%"]) for phase in ("decode", "prefill")}


def main():
    largest, rates = 0, {}
    with tempfile.TemporaryDirectory() as folder:
        trace, whole = os.path.join(folder, "trace"), os.path.join(folder, "text")
        with open(whole, "w") as out:
            for name in ("prose", "manual", "code"):
                with open(os.path.join(TEXTS, f"{name}.txt")) as file:
                    out.write(file.read())
        one = os.path.join(TEXTS, "prose.txt")
        cases = [(text, chunk, slots, policy) for policy in POLICIES for slots in SLOTS
                 for text, chunk in ((one, "1"), (whole, "128"))]
        for text, chunk, slots, policy in cases:
            want, got = live(text, trace, ["--expert-slots", slots, "--policy", policy,
                                           "--prefill-chunk", chunk, "--profile", "none"])
            phase = "decode" if chunk == "1" else "prefill"
            if not got[phase]["misses"] or got["slots"] >= got["experts"]:
                sys.exit(f"{policy}, {slots}, chunks of {chunk}: nothing had to be read: {got}")
            have = simulated(trace, got["layers"], policy, [])
            off = max(abs(want[phase] - have[phase]) for phase in want)
            largest = max(largest, off)
            rates[policy, chunk, slots] = want[phase]
            if off > 0.5:
                sys.exit(f"{policy}, {slots}, chunks of {chunk}: counted {want}, simulated {have}")
        profile = os.path.join(folder, "profile")
        run([cli.LEAN, "profile", "record", MODEL, "--text", os.path.join(TEXTS, "manual.txt"), "-o", profile])
        for policy in POLICIES:  # begins with what another text used most
            want, got = live(one, trace, ["--expert-slots", "50%", "--policy", policy,
                                          "--prefill-chunk", "1", "--profile", profile])
            have = simulated(trace, got["layers"], policy, ["--profile", profile])
            off = abs(want["decode"] - have["decode"])
            largest = max(largest, off)
            if off > 0.5 or not got["preloaded"]:
                sys.exit(f"{policy} with a profile: counted {want}, simulated {have}: {got}")
            rates[policy, "profile", "min"] = want["decode"]
        if abs(rates["static", "profile", "min"] - rates["static", "1", "50%"]) < 1:
            sys.exit(f"the profile changes nothing for the static policy: {rates}")
        for (policy, chunk, slots), rate in rates.items():
            if slots != "min" and rate < rates[policy, chunk, SLOTS[SLOTS.index(slots) - 1]] + 5:
                sys.exit(f"more slots hit no more often: {rates}")
    print(f"{len(rates)} runs, at most {largest:.2f} points apart")


main()
