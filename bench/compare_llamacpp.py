#!/usr/bin/env python3
"""Prefill and decode speed against llama.cpp on the same file, in one run, in alternation.

    bench/compare_llamacpp.py MODEL [--prompt 512] [--tokens 128] [--repeat 5] [--threads 2]

The peer is llama.cpp as PyPI's `xllamacpp` packages it, once with its repacked weights and once
without; the better of the two counts. Every measurement is a process of its own and the three
take turns, so that a slow moment of the machine meets all of them. Time on a quiet machine only.
Prints a Markdown table with medians, ranges and the ratio with its range over the rounds, ready for
bench/results/, or with --json one object.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def open_peer(args, repack, warmup):
    """Loads the model in llama.cpp; returns a function of ids and a number of tokens, giving timings."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.n_ctx = args.prompt + args.tokens + 64
    params.n_parallel = 1
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.no_extra_bufts = not repack
    params.warmup = warmup
    server = xllamacpp.Server(params)

    def complete(ids, n_predict):
        answer = {}
        server.handle_completions(
            {"prompt": ids, "n_predict": n_predict, "temperature": 0.0, "ignore_eos": True,
             "cache_prompt": False, "timings_per_token": False},
            lambda reply: answer.update(reply if isinstance(reply, dict) else json.loads(reply)))
        timings = answer["timings"]
        assert timings["prompt_n"] == len(ids), timings
        return {"prefill_tok_s": timings["prompt_per_second"], "decode_tok_s": timings["predicted_per_second"]}

    return complete


def prompt_ids(args):
    return [(i * 7919 + 104729) % args.vocab for i in range(args.prompt)]


def peer(args):
    """Runs inside a child process: one load, one untimed warm-up, one measurement."""
    complete = open_peer(args, repack=args.peer == "repacked", warmup=True)
    complete([1 + i for i in range(16)], 4)
    print(json.dumps(complete(prompt_ids(args), args.tokens)))


def run(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=100000, help="prompt ids are below this")
    parser.add_argument("--program", default=os.path.join(HERE, "../build/bench/bench_decode"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", choices=["repacked", "plain"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)

    sizes = ["--prompt", str(args.prompt), "--tokens", str(args.tokens), "--threads", str(args.threads)]
    sides = {
        "lean": [args.program, args.model, "--repeat", "2"] + sizes,
        "llama.cpp repacked": [sys.executable, __file__, args.model, "--peer", "repacked", "--vocab", str(args.vocab)] + sizes,
        "llama.cpp plain": [sys.executable, __file__, args.model, "--peer", "plain", "--vocab", str(args.vocab)] + sizes,
    }
    samples = {side: [] for side in sides}
    for _ in range(args.repeat):
        for side, command in sides.items():
            samples[side].append(run(command))

    keys = ("prefill_tok_s", "decode_tok_s")
    medians = {side: {key: statistics.median(sample[key] for sample in runs) for key in keys}
               for side, runs in samples.items()}
    best = {key: max((medians[side][key], side) for side in sides if side != "lean") for key in keys}
    ratios = {}
    for key in keys:  # of each round, against the peer that is the better one over all
        rounds = [own[key] / other[key] for own, other in zip(samples["lean"], samples[best[key][1]])]
        ratios[key] = (medians["lean"][key] / best[key][0], min(rounds), max(rounds))
    if args.json:
        return print(json.dumps({"median": medians, "best": {key: best[key][0] for key in keys}, "ratio": ratios,
                                 "samples": samples}))

    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    print(f"{os.path.basename(args.model)}, {os.path.getsize(args.model) / 1e9:.2f} GB; {cpu}, {args.threads} threads, "
          f"Linux {platform.release()}; {args.repeat} alternating runs; median (min-max) tok/s\n")
    print("| side | prefill %d | decode %d |\n|---|--:|--:|" % (args.prompt, args.tokens))
    for side, runs in samples.items():
        cells = [f"{medians[side][key]:.1f} ({min(sample[key] for sample in runs):.1f}-"
                 f"{max(sample[key] for sample in runs):.1f})" for key in keys]
        print(f"| {side} | {cells[0]} | {cells[1]} |")
    shown = ["{0:.2f}x ({1:.2f}-{2:.2f})".format(*ratios[key]) for key in keys]
    print(f"| **lean / best llama.cpp** | **{shown[0]}** | **{shown[1]}** |")


if __name__ == "__main__":
    main()
