#!/usr/bin/env python3
"""The tables of speed, of README and of model cards, from files that are here or are made here.

    bench/tables/make.py FOLDER --readme [--quick] [--synth] [--into FILE]    README's table, every row
    bench/tables/make.py FOLDER [NAME...] [--synth] [--peer] [--into FILE]    tiers of each model

FOLDER holds NAME.gguf, of the names in models.json, real or synthetic; with --synth those that are missing are
written there by `lean synth`. Each case of a model is one row: prefill, decode, what of the experts is in memory,
hits, what prefetch named and how much of it was used, waiting, the disk's rate, preload and load, with the
prediction from the machine's rates beside the measurement. --peer adds llama.cpp on the same file, in alternation
(bench/compare_llamacpp.py, PyPI's `xllamacpp`), with the ratio of each round and its spread.

README's table is what readme.json lists: speed against llama.cpp, in less memory than the model needs, over HTTP,
over ranks; --quick makes it in about five minutes with shorter runs. What is measured is kept in
FOLDER/measured.jsonl, so that a call that was interrupted goes on where it was; --again forgets it. A file or a
setting that is not what it was is measured anew, another commit too.

Rows say whether weights are real or synthetic: by shape both are alike, but routing is not. The Markdown goes to
stdout, or with --into between the lines `<!-- bench/tables -->` and `<!-- end of bench/tables -->` of a file. Time
on a quiet machine only.
"""
import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import measures  # noqa: E402

MARKS = ("<!-- bench/tables -->", "<!-- end of bench/tables -->")
HEAD = ("model", "weights", "setting", "prefill, tok/s", "decode, tok/s", "predicted", "in memory", "hits", "recall",
        "precision", "waiting", "disk, GB/s", "preload, GB/s", "load, s")


def lean(args, *words):
    run = subprocess.run([args.program, *map(str, words)], stdout=subprocess.PIPE, text=True)
    return run.stdout if run.returncode == 0 else None


def find_file(args, name, model):
    path = os.path.join(args.folder, name + ".gguf")
    if not os.path.exists(path) and "file" in model:  # one that is part of the source
        path = os.path.join(HERE, "../..", model["file"])
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
    shown = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ("---",) * len(head), *shown])


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


def show(args, text):
    if args.into:
        write_into(args.into, text)
    else:
        print(text)


# ---- README's table


def kept_key(args, spec, path):
    """Names what was measured of what by what."""
    about = [spec, args.prompt, args.tokens, args.repeat, args.quick, args.about["build"]]
    if path:
        status = os.stat(path)
        about += [os.path.basename(path), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def read_kept(path):
    """A call that was killed while writing leaves part of a line, which counts for nothing."""
    kept = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    kept[found["key"]] = found
    return kept


def weights_of(args, path):
    name = json.loads(lean(args, "inspect", path, "--json")).get("name") or ""
    return "synthetic" if name.startswith("synthetic") else "real"


def readme_rows(args, models):
    """Of each measurement in the list; what could not be made is tried again by the next call."""
    with open(os.path.join(HERE, "readme.json"), encoding="utf-8") as file:
        specs = [spec for spec in json.load(file) if not args.names or spec["model"] in args.names]
    store, rows = os.path.join(args.folder, "measured.jsonl"), []
    kept = {} if args.again else read_kept(store)
    for i, spec in enumerate(specs):
        path = find_file(args, spec["model"], models[spec["model"]])
        key = kept_key(args, spec, path)
        print(f"{i + 1}/{len(specs)} {spec['model']}: {spec['kind']}{' (kept)' if key in kept else ''}",
              file=sys.stderr, flush=True)
        if key not in kept:
            found = {"key": key, "weights": weights_of(args, path) if path else "",
                     "rows": measures.measure(args, path, spec)}
            if all(one["lean"] for one in found["rows"]):
                with open(store, "a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps(found))
            kept[key] = found
        title = models[spec["model"]]["title"]
        if "ram_gib" in spec:
            title += f", in {spec['ram_gib']} GiB, page cache included"
        rows += [measures.cells(title, kept[key]["weights"], one) for one in kept[key]["rows"]]
    return rows


def readme_text(args, rows):
    host, head = args.about["host"], ("what", "weights", "lean", "llama.cpp", "ratio", "")
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return (f"{host['cpu']}, {host['cores']} cores, {host['memory_bytes'] / 2**30:.0f} GiB; lean "
            f"{args.about['build']['commit']}, {args.about['time'][:10]}; medians of alternating runs (lowest-highest)"
            f"{', short ones' if args.quick else ''}; a ratio above 1 is for lean\n\n" + markdown(head, rows))


def readme(args, models):
    args.about = json.loads(lean(args, "bench", "demo", "-p", 0, "-n", 1, "-r", 1, "-o", "json", "--progress",
                                 "none"))[0]
    return readme_text(args, readme_rows(args, models))


def main():
    with open(os.path.join(HERE, "models.json"), encoding="utf-8") as file:
        models = json.load(file)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of models.json; default: those whose file is there")
    parser.add_argument("--synth", action="store_true", help="write what is missing")
    parser.add_argument("--peer", action="store_true", help="llama.cpp too")
    parser.add_argument("--into", metavar="FILE")
    parser.add_argument("--readme", action="store_true", help="README's table")
    parser.add_argument("--quick", action="store_true", help="of --readme: in about five minutes")
    parser.add_argument("--again", action="store_true", help="of --readme: what was kept does not count")
    parser.add_argument("--prompt", type=int, help="tokens [512; quick: 256]")
    parser.add_argument("--tokens", type=int, help="to generate [128; quick: 32]")
    parser.add_argument("--repeat", type=int, help="runs [5; quick: 2]")
    parser.add_argument("--program", default=os.path.join(HERE, "../../build/lean"))
    args = parser.parse_args()
    args.prompt = args.prompt or (256 if args.quick else 512)
    args.tokens = args.tokens or (32 if args.quick else 128)
    args.repeat = args.repeat or (2 if args.quick else 5)
    unknown = set(args.names) - set(models)
    if unknown:
        parser.error(f"models.json has no {', '.join(sorted(unknown))}")
    if args.readme:
        return show(args, readme(args, models))
    rows, peers, machine = [], [], None
    for name in args.names or models:
        path = find_file(args, name, models[name])
        if path is None:
            if args.names:
                sys.exit(f"{name}.gguf is not in {args.folder}; --synth makes one")
            continue
        kind = weights_of(args, path)
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
    show(args, text)


if __name__ == "__main__":
    main()
