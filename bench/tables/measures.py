"""What README's table of performance is made of: measurements of several kinds as rows of one form.

A row is {"what", "weights", "unit", "more": more is better, "lean": [value of each round], "peer": the same or [],
"note"}; rounds alternate between the two sides. A measurement that cannot be made here gives a row with a note and
no values, and ends nothing else.
"""
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
BENCH = os.path.join(HERE, "..")


class CannotMeasure(Exception):
    pass


def row(what, unit, lean, peer=(), more=True, note=""):
    return {"what": what, "unit": unit, "lean": list(lean), "peer": list(peer), "more": more, "note": note}


def run(words, **options):
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL, **options)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CannotMeasure(said[:200])
    return done.stdout


def script(args, name, *words):
    return json.loads(run([sys.executable, os.path.join(BENCH, name), *words, "--json"]).strip().splitlines()[-1])


def beside(args, name):
    """A program of bench/ that was built with the program under test."""
    return os.path.join(os.path.dirname(os.path.abspath(args.program)), "bench", name)


def best_peer(samples, key):
    """The side that is not ours with the best median."""
    sides = [side for side in samples if not side.startswith("lean")]
    return max(sides, key=lambda side: statistics.median(run[key] for run in samples[side]))


def speed_rows(samples, prompt, tokens, **more):
    rows = []
    for key, what in (("prefill_tok_s", f"prefill of {prompt}"), ("decode_tok_s", f"decode of {tokens}")):
        peer = best_peer(samples, key)
        rows.append(row(what, "tok/s", [run[key] for run in samples["lean"]], [run[key] for run in samples[peer]],
                        **more))
    return rows


# ---- the kinds


def against(args, path, spec):
    """Prefill and decode with all in memory: bench/compare_llamacpp.py."""
    found = script(args, "compare_llamacpp.py", path, "--prompt", args.prompt, "--tokens", args.tokens, "--repeat",
                   args.repeat, "--program", beside(args, "bench_decode"))
    return speed_rows(found["samples"], args.prompt, args.tokens)


def alone(args, path, spec):
    """Decode without a peer."""
    try:
        rows = json.loads(run([args.program, "bench", path, "-p", 0, "-n", args.tokens, "-r", args.repeat, "-o", "json",
                               "--progress", "none", "--no-tuned"], timeout=60 if args.quick else None))
    except subprocess.TimeoutExpired:
        raise CannotMeasure("not in the page cache, and reading it takes longer than a quick run may") from None
    return [row(f"decode of {args.tokens}", "tok/s", rows[0]["samples_tok_s"],
                note="experts are paged: it does not fit into memory now" if rows[0]["experts"] else "")]


def budget(args, path, spec):
    """In less memory than it needs, page cache included: bench/compare_budget.py."""
    tokens, peer_tokens = (16, 4) if args.quick else (32, 8)
    prompt = 128 if args.quick else 512
    found = script(args, "compare_budget.py", path, "--ram-gib", spec["ram_gib"], "--prompt", prompt, "--tokens",
                   tokens, "--peer-tokens", peer_tokens, "--repeat", 1 if args.quick else 2, "--program",
                   beside(args, "bench_decode"), "--bench-disk", beside(args, "bench_disk"),
                   *(["--sides", "lean,best"] if args.quick else []))
    return speed_rows(found["samples"], prompt, tokens)


def streams(args, path, spec):
    """Over HTTP, all streams together: bench/bench_serve.py."""
    found = script(args, "bench_serve.py", "streams", path, "--streams", spec["streams"], "--repeat",
                   2 if args.quick else 3, "--tokens", 32 if args.quick else 64, "--program", args.program)
    return [row(f"served over HTTP, {n} stream{'s' * (int(n) > 1)}", "tok/s",
                *([run["tok/s"] for run in samples[side]] for side in ("lean", "llama.cpp")))
            for n, samples in found.items()]


def gap(args, path, spec):
    """The longest gap of a stream while another prompt is read."""
    long = 1024 if args.quick else 4096
    found = script(args, "bench_serve.py", "gap", path, "--long", long, "--repeat", 1 if args.quick else 2,
                   "--program", args.program)["None"]
    return [row(f"longest gap of a stream while a prompt of {long} is read", "s",
                *([run["gap max ms"] / 1e3 for run in found[side]] for side in ("lean", "llama.cpp")), more=False)]


def pipeline(args, path, spec):
    """Ranks whose arithmetic is a timed wait, since this machine has fewer cores than ranks."""
    rates = {}
    for n in (1, spec["ranks"]):
        words = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", n,
                 beside(args, "bench_pipeline"), path, "--sequences", spec["sequences"], "--tokens",
                 16 if args.quick else 64]
        try:
            lines = run(words).splitlines()
        except FileNotFoundError:
            raise CannotMeasure("there is no mpirun") from None
        rates[n] = float(lines[-1].split()[2])
    return [row(f"{spec['sequences']} sequences over {spec['ranks']} ranks against one, stages of timed waits", "times",
                [rates[spec["ranks"]] / rates[1]])]


KINDS = {"against": against, "alone": alone, "budget": budget, "streams": streams, "gap": gap, "pipeline": pipeline}


def measure(args, path, spec):
    """The rows of one measurement of readme.json on the file at path; None: it is not there."""
    if path is None:
        return [row(spec["kind"], "", [], note="its file is not here")]
    try:
        return KINDS[spec["kind"]](args, path, spec)
    except (CannotMeasure, OSError, ValueError, KeyError, IndexError) as why:
        return [row(spec["kind"], "", [], note=f"not measured: {why}")]


# ---- how a row is shown


def figure(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values):
    if not values:
        return ""
    middle = figure(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({figure(min(values))}-{figure(max(values))})"


def ratio(found):
    """By the medians, with its range over the rounds; more than 1 is better."""
    if not found["lean"] or not found["peer"]:
        return ""
    pairs = list(zip(found["lean"], found["peer"]))
    if not found["more"]:
        pairs = [(peer, own) for own, peer in pairs]
    middle = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    rounds = [a / b for a, b in pairs]
    return f"{middle:.2f}" + (f" ({min(rounds):.2f}-{max(rounds):.2f})" if len(rounds) > 1 else "")


def cells(title, weights, found):
    what = f"{title}: {found['what']}" + (f", {found['unit']}" if found["unit"] else "")
    return (what, weights, spread(found["lean"]) or found["note"], spread(found["peer"]), ratio(found),
            found["note"] if found["lean"] else "")
