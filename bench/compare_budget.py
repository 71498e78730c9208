#!/usr/bin/env python3
"""Speed in less memory than the model needs, against llama.cpp held to the same memory.

    bench/compare_budget.py MODEL --ram-gib 8 [--prompt 512] [--tokens 32] [--peer-tokens 8] [--repeat 2]
                            [--sides lean,default,best] [--disk-gbs 0.8]

Sides: lean; off: lean without prefetch; the peer with the disk's default read-ahead and with the best. Every measurement is a process in a memory cgroup of its own (root needed), limited to the budget
plus 300 MB, page cache included. The peer maps the file, as it does by default; if the disk's
read-ahead can be set, also with the 128 KiB that suit it best. The sides take turns. What was read
of the disk is counted by the kernel for the whole machine, so time on a quiet one only.

Around every run of lean bench_disk measures what the disk gives; a second table compares decoding
with it. The bound is that rate over the bytes of the experts that were not there when their router
chose them; what is read beyond these was predicted in vain. --disk-gbs makes the disk slower, by a
blkio cgroup of version 1.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../tests/e2e"))
import compare_llamacpp  # noqa: E402
import memory_cgroup  # noqa: E402

OVERHEAD = 300_000_000


def disk_of(path):
    """The folder of the block device that holds path, in /sys."""
    device = os.stat(path).st_dev
    folder = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return folder if os.path.exists(folder + "/queue") else os.path.dirname(folder)


def read_bytes(disk):
    with open(disk + "/stat") as file:
        return int(file.read().split()[2]) * 512


def set_read_ahead(disk, kib):
    try:
        with open(disk + "/queue/read_ahead_kb", "w") as file:
            file.write(str(kib))
        return True
    except OSError:
        return False


def throttle(model, gbs):
    """Slows the disk for this process and its children; returns what undoes it."""
    path, device = f"/sys/fs/cgroup/blkio/lean-bench-{os.getpid()}", os.stat(model).st_dev
    os.mkdir(path)
    with open(path + "/blkio.throttle.read_bps_device", "w") as file:
        file.write(f"{os.major(device)}:{os.minor(device)} {int(gbs * 1e9)}")
    with open(path + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))

    def undo():
        with open("/sys/fs/cgroup/blkio/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
        os.rmdir(path)
    return undo


def disk_rate(program, model):
    """Bytes per second: experts in three parts, eight reads at a time, past the page cache."""
    done = subprocess.run([program, model, "--rounds", "2", "--ms", "40"], capture_output=True, text=True, check=True)
    row = next(line.split() for line in done.stdout.splitlines() if line.split()[:2] == ["raw", "8"])
    return float(row[8]) * 1e6


def print_bound(samples):
    """How near decoding is to what the disk allows, run by run."""
    print("\n| side | disk, GB/s | needed, MB/token | read, MB/token | decode, tok/s | of the bound | waited |\n"
          "|---|--:|--:|--:|--:|--:|--:|")
    for side, runs in samples.items():
        for run in runs:
            n = run["tokens"] - 1
            needed, speed = run["decode_needed_bytes"] / n, run["decode_tok_s"]
            print(f"| {side} | {run['disk'] / 1e9:.2f} | {needed / 1e6:.0f} | {run['decode_read_bytes'] / n / 1e6:.0f} | "
                  f"{speed:.2f} | {speed * needed / run['disk']:.0%} | {run['decode_wait_s'] / n * speed:.0%} |")


def peer(args):
    """Runs inside a child process: one load, one measurement; repacking would copy what does not fit."""
    complete = compare_llamacpp.open_peer(args, repack=False, warmup=False)
    print(json.dumps(complete(compare_llamacpp.prompt_ids(args), args.peer_tokens)))


def measure(root, command, limit, disk):
    before, started = read_bytes(disk), time.monotonic()
    result, peak = memory_cgroup.run(root, command, limit)
    if result.returncode:
        sys.exit(f"{' '.join(command)[:200]}\n{result.stderr[-2000:]}")
    sample = json.loads(result.stdout.strip().splitlines()[-1])
    sample.update(peak=peak, read=read_bytes(disk) - before, seconds=time.monotonic() - started)
    return sample


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ram-gib", type=float, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--peer-tokens", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=100000, help="prompt ids are below this")
    parser.add_argument("--program", default=os.path.join(HERE, "../build/bench/bench_decode"))
    parser.add_argument("--sides", default="lean,default,best", help="which of them run")
    parser.add_argument("--bench-disk", default=os.path.join(HERE, "../build/bench/bench_disk"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--disk-gbs", type=float, help="the disk gives no more than this")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    root = memory_cgroup.find()
    if not root:
        sys.exit("no memory cgroup that may be used: root is needed")
    disk, limit = disk_of(args.model), int(args.ram_gib * 2**30) + OVERHEAD
    with open(disk + "/queue/read_ahead_kb") as file:
        default = int(file.read())
    theirs = [sys.executable, os.path.abspath(__file__), args.model, "--peer", "--prompt", str(args.prompt), "--peer-tokens",
              str(args.peer_tokens), "--threads", str(args.threads), "--vocab", str(args.vocab)]
    ours = [args.program, args.model, "--repeat", "1", "--prompt", str(args.prompt), "--tokens", str(args.tokens), "--threads",
            str(args.threads), "--ram-mib", str(int(args.ram_gib * 1024))]
    sides = {"lean": (ours, None), "lean, no prefetch": (ours + ["--prefetch", "off"], None), f"llama.cpp, read-ahead {default} KiB": (theirs, default)}
    if set_read_ahead(disk, default):
        sides["llama.cpp, read-ahead 128 KiB"] = (theirs, 128)
    wanted = args.sides.split(",")
    sides = {side: how for key, (side, how) in zip(("lean", "off", "default", "best"), sides.items()) if key in wanted}
    samples = {side: [] for side in sides}
    undo = throttle(args.model, args.disk_gbs) if args.disk_gbs else lambda: None
    for _ in range(args.repeat):
        for side, (command, read_ahead) in sides.items():
            subprocess.run(["sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"], check=False)
            if read_ahead and read_ahead != default:
                set_read_ahead(disk, read_ahead)
            rates = [disk_rate(args.bench_disk, args.model)] if command[0] == args.program else []
            samples[side].append(measure(root, command, limit, disk))
            if rates:
                samples[side][-1]["disk"] = (rates[0] + disk_rate(args.bench_disk, args.model)) / 2
            if read_ahead and read_ahead != default:
                set_read_ahead(disk, default)
            print(side, json.dumps(samples[side][-1]), file=sys.stderr)
    undo()
    if args.json:
        return print(json.dumps({"samples": samples}))
    print(f"{os.path.basename(args.model)}, {os.path.getsize(args.model) / 1e9:.1f} GB in {args.ram_gib:g} GiB, "
          f"{args.threads} threads, medians of {args.repeat}\n")
    print(f"| side | prefill {args.prompt}, tok/s | decode, tok/s | read, GB | peak, GiB |\n|---|--:|--:|--:|--:|")
    for side, runs in samples.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in ("prefill_tok_s", "decode_tok_s", "read", "peak")}
        print(f"| {side} | {middle['prefill_tok_s']:.2f} | {middle['decode_tok_s']:.2f} | {middle['read'] / 1e9:.1f} | {middle['peak'] / 2**30:.2f} |")
    print_bound({side: runs for side, runs in samples.items() if "disk" in runs[0]})


if __name__ == "__main__":
    main()
