#!/usr/bin/env python3
"""`lean pull` against `curl --parallel` from the same local nginx, with the same connections, alternating.

    bench/bench_pull.py FOLDER [--gib N] [--jobs N] [--runs N] [--rate R]

FOLDER takes source and downloads. curl fetches as many ranges as there are connections, each to a file of
its own, and checks nothing; lean also writes one file, syncs it and hashes it. --rate limits each connection
at the server (nginx's limit_rate, as 100m)."""
import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE + "/../tests/e2e")
from mirror import Mirror  # noqa: E402

LEAN = os.environ.get("LEAN", HERE + "/../build/lean")
REPO = "bench/model"


def make_source(path, n_bytes):
    """Random megabytes, and their hash."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for i in range(n_bytes >> 20):
            block = hashlib.shake_128(str(i).encode()).digest(1 << 10) * (1 << 10)
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def run_curl(url, n_bytes, jobs, folder, syncs):
    step = n_bytes // jobs
    words = ["curl", "-s", "--no-progress-meter", "--parallel", "--parallel-immediate", "--parallel-max", str(jobs)]
    for i in range(jobs):
        end = n_bytes if i == jobs - 1 else (i + 1) * step
        # a range of its own needs a transfer of its own
        words += ["--next"] if i else []
        words += ["-s", "--no-progress-meter", "-f", "-r", f"{i * step}-{end - 1}", "-o", f"{folder}/curl.{i}", url]
    began = time.monotonic()
    subprocess.run(words, check=True)
    for i in range(jobs if syncs else 0):
        with open(f"{folder}/curl.{i}", "rb") as file:
            os.fsync(file.fileno())
    seconds = time.monotonic() - began
    for i in range(jobs):
        os.remove(f"{folder}/curl.{i}")
    return seconds


def run_lean(server, jobs, folder, *more):
    cache = f"{folder}/cache"
    shutil.rmtree(cache, ignore_errors=True)
    began = time.monotonic()
    process = subprocess.Popen([LEAN, "pull", REPO, "--endpoint", server.endpoint, "--jobs", str(jobs),
                                "--cache-dir", cache, "--quiet", *more], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = status
    assert status == 0, status
    shutil.rmtree(cache)
    return seconds, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rate")
    args = parser.parse_args()
    n_bytes = int(args.gib * 1024) << 20
    source = os.path.join(args.folder, "lean-bench-source.gguf")
    server = None
    try:
        digest = make_source(source, n_bytes)
        server = Mirror(REPO, {"m-Q4_K_M.gguf": (os.path.abspath(source), digest)}, rate=args.rate)
        url = f"{server.endpoint}/{REPO}/resolve/{server.commit}/m-Q4_K_M.gguf"
        rates = {"curl": [], "curl, then fsync": [], "lean": [], "lean --verify size": []}
        memory = 0
        for _ in range(args.runs):
            for name, syncs in (("curl", False), ("curl, then fsync", True)):
                rates[name].append(n_bytes / run_curl(url, n_bytes, args.jobs, args.folder, syncs))
            for name, more in (("lean", ()), ("lean --verify size", ("--verify", "size"))):
                seconds, peak = run_lean(server, args.jobs, args.folder, *more)
                rates[name].append(n_bytes / seconds)
                memory = max(memory, peak)
        base = statistics.median(rates["curl"])
        for name, values in rates.items():
            middle = statistics.median(values)
            print(f"{name:20} {middle / 2**20:7.0f} MiB/s ({min(values) / 2**20:.0f} to {max(values) / 2**20:.0f})"
                  f"  {middle / base:.2f} of curl")
        print(f"lean's peak memory   {memory:7.1f} MiB")
    finally:
        if server:
            server.close()
        if os.path.exists(source):
            os.remove(source)


main()
