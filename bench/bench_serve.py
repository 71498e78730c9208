#!/usr/bin/env python3
"""`lean serve` against llama.cpp's server (in PyPI's `xllamacpp`) over HTTP, on the same file.

    bench/bench_serve.py streams MODEL    1, 4, 16 streams: tokens per second of all, gaps, first tokens
    bench/bench_serve.py gap MODEL        gaps of a stream while another prompt of 4096 tokens is read
    bench/bench_serve.py turn MODEL       first token of the second turn of a conversation of 4096
    bench/bench_serve.py overhead MODEL   what a streamed token costs more than one of `lean run`

One side after the other, in turns, each in a process of its own with all slots that the measurement
needs; one untimed request before. The client is this program. Prompts are ids, sampling is greedy, end
tokens are forbidden, so both sides do the same work. Time on a quiet machine only. Prints Markdown.
"""
import argparse
import contextlib
import http.client
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def ids(n, seed, vocab):
    return [(i * 7919 + seed * 104729 + 17) % vocab for i in range(n)]


# ---- the two servers


@contextlib.contextmanager
def lean(args, n_slot, n_ctx):
    read, write = os.pipe()
    command = [args.program, "serve", args.model, "--listen", "127.0.0.1:0", "--ready-fd", str(write),
               "--parallel", str(n_slot), "--ctx", str(n_ctx), "--threads", str(args.threads), "--max-queue", "64"]
    process = subprocess.Popen(command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as ready:
        line = ready.readline()
    match = re.match(r"ready http://([\d.]+):(\d+)", line)
    if not match:
        sys.exit(f"lean serve did not start: {process.wait()}")
    try:
        yield match[1], int(match[2])
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def peer(args, n_slot, n_ctx):
    command = [sys.executable, __file__, "peer", args.model, "--threads", str(args.threads), "--slots", str(n_slot),
               "--ctx", str(n_ctx)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = ""
    while not line.startswith("ready "):
        line = process.stdout.readline()
        if not line:
            sys.exit(f"llama.cpp's server did not start: {process.wait()}")
    host, port = re.match(r"ready (?:http://)?([\d.]+):(\d+)", line).groups()
    try:
        yield host, int(port)
    finally:
        process.kill()
        process.wait(60)


def run_peer(args):
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.n_ctx = args.ctx * args.slots
    params.n_parallel = args.slots
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.port = 0
    server = xllamacpp.Server(params)
    print("ready " + server.listening_address, flush=True)
    sys.stdin.read()


SIDES = {"lean": lean, "llama.cpp": peer}


# ---- the client


class Stream:
    """One streamed completion: times of its events, by time.monotonic."""

    def __init__(self, address, prompt, n_token):
        self.address, self.prompt, self.n_token = address, prompt, n_token
        self.times, self.started, self.text = [], 0.0, ""

    def run(self):
        connection = http.client.HTTPConnection(*self.address, timeout=600)
        body = json.dumps({"prompt": self.prompt, "max_tokens": self.n_token, "temperature": 0, "stream": True,
                           "ignore_eos": True})
        self.started = time.monotonic()
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(response.read())
        for line in response:
            if line.startswith(b"data: {"):
                now = time.monotonic()
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["text"]:
                    self.times.append(now)
                    self.text += choices[0]["text"]
        self.ended = time.monotonic()
        connection.close()
        return self

    def first_s(self):
        return self.times[0] - self.started

    def gaps(self):
        return [b - a for a, b in zip(self.times, self.times[1:])]


def together(streams):
    threads = [threading.Thread(target=stream.run) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return streams


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def warm(address, args):
    Stream(address, ids(16, 99, args.vocab), 4).run()


# ---- the measurements; each gives numbers of one run of one side


def streams(args, side, n):
    with SIDES[side](args, n, 1024) as address:
        warm(address, args)
        begin = time.monotonic()
        found = together([Stream(address, ids(args.prompt, i, args.vocab), args.tokens) for i in range(n)])
        wall = max(one.ended for one in found) - begin
    first = min(one.times[0] for one in found)
    gaps = [gap for one in found for gap in one.gaps()]
    return {"tok/s": n * args.tokens / wall, "decode tok/s": n * (args.tokens - 1) / (max(one.ended for one in found) - first),
            "first token, median s": statistics.median(one.first_s() for one in found),
            "gap p50 ms": percentile(gaps, .5) * 1e3, "gap p99 ms": percentile(gaps, .99) * 1e3}


def gap(args, side, _):
    with SIDES[side](args, 2, 8192) as address:
        warm(address, args)
        reader = Stream(address, ids(32, 1, args.vocab), 2000)
        thread = threading.Thread(target=lambda: suppressed(reader.run))
        thread.start()
        while len(reader.times) < 16:
            time.sleep(.01)
        alone = reader.gaps()
        long = Stream(address, ids(args.long, 2, args.vocab), 1).run()
        begin, end = long.started, long.ended
        during = [b - a for a, b in zip(reader.times, reader.times[1:]) if b > begin and a < end]
    thread.join()
    return {"prompt tok/s": args.long / (end - begin), "gap alone p50 ms": percentile(alone, .5) * 1e3,
            "tokens meanwhile": float(len(during)), "gap p50 ms": percentile(during, .5) * 1e3,
            "gap p99 ms": percentile(during, .99) * 1e3, "gap max ms": max(during) * 1e3}


def suppressed(call):
    """The reader outlives its server."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        call()


def turn(args, side, _):
    """The second turn's prompt is the first's, its answer, and 24 tokens more."""
    with SIDES[side](args, 2, 8192) as address:
        warm(address, args)
        prompt = ids(args.long, 3, args.vocab)
        first = complete(address, prompt, 16)
        second = complete(address, prompt + first["ids"] + ids(24, 4, args.vocab), 1)
        first_s = first["seconds"] - first["decode_s"]
    return {"first turn s": first_s, "second turn s": second["seconds"], "second / first": second["seconds"] / first_s}


def complete(address, prompt, n_token):
    """Not streamed: with the ids of what was generated."""
    connection = http.client.HTTPConnection(*address, timeout=600)
    body = json.dumps({"prompt": prompt, "max_tokens": n_token, "n_predict": n_token, "temperature": 0, "ignore_eos": True,
                       "return_token_ids": True, "return_tokens": True, "cache_prompt": True})
    begin = time.monotonic()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    seconds = time.monotonic() - begin
    choice = answer["choices"][0]
    found = choice.get("token_ids") or answer.get("tokens") or choice.get("tokens")
    if not found:  # a server that does not tell: any ids cost the same
        found = ids(n_token, 5, 1000)
    return {"seconds": seconds, "ids": found, "decode_s": answer["timings"]["predicted_ms"] / 1e3}


def overhead(args):
    """Mean gap by the server's own histogram while curl reads a stream, against `lean run`."""
    n = 512
    fields = {"prompt": "Once", "max_tokens": n, "temperature": 0, "ignore_eos": True}
    run = [args.program, "run", args.model, "--raw", "--json", "--threads", str(args.threads), "--temperature", "0",
           "--ignore-eos", "--max-tokens", str(n), "--ctx", "1024", fields["prompt"]]
    alone, streamed = [], []
    with lean(args, 1, 1024) as address:
        url = "http://%s:%d" % address

        def counted():
            connection = http.client.HTTPConnection(*address)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            return [float(re.search(r"^lean_inter_token_latency_seconds_%s\{.*\} (\S+)" % part, text, re.M)[1])
                    for part in ("sum", "count")]
        warm(address, args)
        for _ in range(args.repeat):
            answer = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
            alone.append(1e6 / answer["timings"]["predicted_per_second"])
            before = counted()
            subprocess.run(["curl", "-sN", "-o", "/dev/null", url + "/v1/completions", "-d",
                            json.dumps({**fields, "stream": True, "cache_prompt": False})], check=True)
            after = counted()
            streamed.append((after[0] - before[0]) / (after[1] - before[1]) * 1e6)
    print("| us a token | median (min-max) |\n|---|--:|")
    for name, values in (("lean run", alone), ("streamed by lean serve", streamed)):
        print(f"| {name} | {statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f}) |")
    print(f"| **difference** | **{statistics.median(streamed) - statistics.median(alone):+.1f}** |\n")


def table(measure, args, variant, sides):
    samples = {side: [] for side in sides}
    for _ in range(args.repeat):
        for side in sides:
            samples[side].append(measure(args, side, variant))
    if args.json:
        return samples
    keys = list(samples[sides[0]][0])
    print("| side | " + " | ".join(keys) + " |\n|---|" + "--:|" * len(keys))
    for side, runs in samples.items():
        cells = []
        for key in keys:
            values = [run[key] for run in runs]
            spread = f" ({min(values):.3g}-{max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{statistics.median(values):.3g}{spread}")
        print(f"| {side} | " + " | ".join(cells) + " |")
    if len(sides) == 2:
        ratios = [f"{statistics.median(run[key] for run in samples['lean']) / statistics.median(run[key] for run in samples['llama.cpp']):.2f}"
                  for key in keys]
        print("| **lean / llama.cpp** | " + " | ".join(ratios) + " |")
    print(flush=True)
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["streams", "gap", "turn", "overhead", "peer"])
    parser.add_argument("model")
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--long", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=100000, help="prompt ids are below this")
    parser.add_argument("--sides", default="lean,llama.cpp")
    parser.add_argument("--program", default=os.path.join(HERE, "../build/lean"))
    parser.add_argument("--json", action="store_true", help="of streams, gap and turn: {variant: {side: [run]}}")
    parser.add_argument("--slots", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ctx", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "peer":
        return run_peer(args)
    sides = args.sides.split(",")
    variants = [int(n) for n in args.streams.split(",")] if args.what == "streams" else [None]
    measure = {"streams": streams, "gap": gap, "turn": turn}.get(args.what)
    if args.json and measure:
        return print(json.dumps({str(variant): table(measure, args, variant, sides) for variant in variants}))
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    print(f"{os.path.basename(args.model)}, {os.path.getsize(args.model) / 1e9:.2f} GB; {cpu}, {args.threads} threads, "
          f"Linux {platform.release()}; {args.repeat} alternating runs: median (min-max)\n")
    if args.what == "overhead":
        return overhead(args)
    for variant in variants:
        if variant:
            print(f"{variant} streams, prompts of {args.prompt}, {args.tokens} tokens each:\n")
        table(measure, args, variant, sides)


if __name__ == "__main__":
    sys.exit(main())
