#!/usr/bin/env python3
"""The tables of speed, of README and of model cards, from files that are here or are made here.

    bench/tables/make.py FOLDER [NAME...] [--synth] [--peer] [--into FILE]

FOLDER holds NAME.gguf, of the names in models.json, real or synthetic; with --synth those that are missing are
written there by `lean synth`. Each case of a model is one row: prefill, decode, what of the experts is in memory,
hits, what prefetch named and how much of it was used, waiting, the disk's rate, preload and load, with the
prediction from the machine's rates beside the measurement. --peer adds llama.cpp on the same file, in alternation
(bench/compare_llamacpp.py, PyPI's `xllamacpp`), with the ratio of each round and its spread.

Rows say whether weights are real or synthetic: by shape both are alike, but routing is not. The Markdown goes to
stdout, or with --into between the lines `<!-- bench/tables -->` and `<!-- end of bench/tables -->` of a file. Time
on a quiet machine only.
"""
import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
MARKS = ("<!-- bench/tables -->", "<!-- end of bench/tables -->")
HEAD = ("model", "weights", "setting", "prefill, tok/s", "decode, tok/s", "predicted", "in memory", "hits", "recall",
        "precision", "waiting", "disk, GB/s", "preload, GB/s", "load, s")


def lean(args, *words):
    run = subprocess.run([args.program, *map(str, words)], stdout=subprocess.PIPE, text=True)
    return run.stdout if run.returncode == 0 else None


def find_file(args, name, model):
    path = os.path.join(args.folder, name + ".gguf")
    if not os.path.exists(path) and args.synth and "synth" in model:
        if lean(args, "synth", *model["synth"], "-o", path) is None:
            sys.exit(f"{path} could not be written")
    return path if os.path.exists(path) else None


def percent(value):
    return "" if value is None else f"{100 * value:.1f}%"


def rate(value):
    return "" if value is None else f"{value / 1e9:.2f}"


def measure(args, path, case):
    """The rows of prefill and decode, or None: the case cannot be measured here."""
    settings = [word for name, value in case.items() for word in ("--" + name, value)]
    text = lean(args, "bench", path, "-p", args.prompt, "-n", args.tokens, "-r", args.repeat, *settings, "-o", "json",
                "--progress", "none")
    return json.loads(text) if text else None


def table_row(model, path_kind, case, rows):
    setting = ", ".join(f"--{name} {value}" for name, value in case.items()) or "all in memory"
    if rows is None:
        return (model["title"], path_kind, setting, "cannot be measured here") + ("",) * (len(HEAD) - 4)
    prefill, decode = rows
    experts, predicted = decode["experts"] or {}, decode["predicted"]
    speeds = [f"{row['mean_tok_s']:.1f} ± {row['stddev_tok_s']:.1f}" for row in rows]
    return (model["title"], path_kind, setting, *speeds,
            f"{predicted['serial_tok_s']:.3g} to {predicted['ideal_tok_s']:.3g}",
            percent(experts.get("resident_share")), percent(experts.get("hit_rate")),
            percent(experts.get("prefetch_recall")), percent(experts.get("prefetch_precision")),
            percent(experts.get("wait_share")), rate(experts.get("disk_bytes_s")), rate(experts.get("preload_bytes_s")),
            f"{prefill['load_s']:.2f}")


def peer_rows(args, title, path):
    run = subprocess.run([sys.executable, os.path.join(HERE, "../compare_llamacpp.py"), path, "--json", "--repeat",
                          str(args.repeat), "--prompt", str(args.prompt), "--tokens", str(args.tokens)],
                         stdout=subprocess.PIPE, text=True)
    if run.returncode:
        return [(title, "cannot be measured here", "", "", "")]
    found = json.loads(run.stdout)
    return [(title, what, f"{found['median']['lean'][key]:.1f}", f"{found['best'][key]:.1f}",
             "{0:.2f} ({1:.2f} to {2:.2f})".format(*found["ratio"][key]))
            for what, key in (("prefill, tok/s", "prefill_tok_s"), ("decode, tok/s", "decode_tok_s"))]


def markdown(head, rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ("---",) * len(head), *rows])


def write_into(path, text):
    with open(path, encoding="utf-8") as file:
        before = file.read()
    if any(before.count(mark) != 1 for mark in MARKS):
        sys.exit(f"{path}: the lines {MARKS[0]} and {MARKS[1]} must be there once")
    head, rest = before.split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    with open(path + ".partial", "w", encoding="utf-8") as file:
        file.write(f"{head}{MARKS[0]}\n{text}\n{MARKS[1]}{tail}")
    os.rename(path + ".partial", path)


def main():
    with open(os.path.join(HERE, "models.json"), encoding="utf-8") as file:
        models = json.load(file)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of models.json; default: those whose file is there")
    parser.add_argument("--synth", action="store_true", help="write what is missing")
    parser.add_argument("--peer", action="store_true", help="llama.cpp too")
    parser.add_argument("--into", metavar="FILE")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--program", default=os.path.join(HERE, "../../build/lean"))
    args = parser.parse_args()
    unknown = set(args.names) - set(models)
    if unknown:
        parser.error(f"models.json has no {', '.join(sorted(unknown))}")
    rows, peers, machine = [], [], None
    for name in args.names or models:
        path = find_file(args, name, models[name])
        if path is None:
            if args.names:
                sys.exit(f"{name}.gguf is not in {args.folder}; --synth makes one")
            continue
        about = json.loads(lean(args, "inspect", path, "--json"))
        kind = "synthetic" if (about.get("name") or "").startswith("synthetic") else "real"
        for case in models[name]["cases"]:
            found = measure(args, path, case)
            machine = found[0] if found else machine
            rows.append(table_row(models[name], kind, case, found))
        if args.peer:
            peers += peer_rows(args, models[name]["title"], path)
    if not machine:
        sys.exit("nothing could be measured")
    host, rates = machine["host"], machine["machine"]
    text = (f"{host['cpu']}, {host['cores']} cores, {host['memory_bytes'] / 2**30:.0f} GiB; memory reads at "
            f"{rates['memory_bytes_s'] / 1e9:.1f} GB/s, the disk at {rates['disk_bytes_s'] / 1e9:.2f} GB/s; prefill of "
            f"{args.prompt}, decode of {args.tokens} tokens, {args.repeat} runs; {machine['time'][:10]}, "
            f"{machine['build']['commit']}\n\n{markdown(HEAD, rows)}")
    if peers:
        text += "\n\n" + markdown(("model", "what", "lean", "llama.cpp", "ratio (of the rounds)"), peers)
    if args.into:
        write_into(args.into, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
