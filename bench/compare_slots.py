#!/usr/bin/env python3
"""What the pager costs a model that fits: all experts in slots against all in the mapping of the file.

    bench/compare_slots.py MODEL [--prompt 512] [--tokens 64] [--runs 3] [--rounds 3]

The mapping is what a model that fits gets by default; there the pager has no slots, no cache and no
disk reader. The two take turns, a process each; its first run reads the experts and is not counted.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SIDES = {"mapping": [], "slots": ["--expert-slots", "100%"]}
RATES = ("prefill_tok_s", "decode_tok_s")


def measure(args, options):
    command = [args.program, args.model, "--prompt", str(args.prompt), "--tokens", str(args.tokens),
               "--repeat", str(args.runs + 1), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    runs = [json.loads(line) for line in done.stdout.splitlines()][1:]
    if bool(runs[-1]["slots"]) != bool(options):
        sys.exit(f"{options}: {runs[-1]['slots']} slots")
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3, help="counted runs of a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--program", default=os.path.join(HERE, "../build/bench/bench_decode"))
    args = parser.parse_args()
    samples = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for side, options in SIDES.items():
            samples[side] += measure(args, options)
    for rate in RATES:
        middle = {side: statistics.median(run[rate] for run in samples[side]) for side in SIDES}
        for side in SIDES:
            every = sorted(run[rate] for run in samples[side])
            print(f"{rate} {side}: {middle[side]:.2f} ({every[0]:.2f} to {every[-1]:.2f})")
        print(f"{rate}: slots / mapping {middle['slots'] / middle['mapping']:.3f}")


if __name__ == "__main__":
    main()
