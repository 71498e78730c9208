"""--ram holds: a model four times as large runs in its budget, page cache included, with the bits
of one that is all in memory."""
import json
import os
import subprocess
import sys
import tempfile

import cli
import memory_cgroup

MIB = 1 << 20
OVERHEAD = 300 * MIB
IDS = ",".join(str((i * 37 + i * i * 3 + 11) % 4000) for i in range(150))


def evaluate(root, path, *options):
    command = [cli.LEAN, "eval", path, "--ids", IDS, "-n", "12", "--prefill-chunk", "128", "--json",
               *options]
    # nothing of the file may be in the page cache already: it would be charged to nobody
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    result, peak = memory_cgroup.run(root, command, env=cli.environment(), timeout=300)
    if result.returncode:
        sys.exit(f"{options}: exit {result.returncode}: {result.stderr}")
    return json.loads(result.stdout), peak


def main():
    root = memory_cgroup.find()
    if not root:
        print("skipped: no memory cgroup that may be used here")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.gguf")
        subprocess.run([cli.LEAN, "synth", "qwen3.5-35b-a3b", "Q4_K_M", "--layers", "4", "--vocab",
                        "8192", "--skew", "1", "-o", path, "-q"], check=True, env=cli.environment())
        size = os.path.getsize(path)
        budget = size // 4
        whole, peak = evaluate(root, path)
        if peak < size * 0.8:
            sys.exit(f"the cgroup counted {peak / MIB:.0f} MiB of a run that maps {size / MIB:.0f} MiB")
        for io in ("auto", "buffered"):
            paged, peak = evaluate(root, path, "--ram", str(budget), "--io", io)
            experts = paged["effective"]["experts"]
            if not experts["slots"] or experts["slots"] >= experts["experts"] // 2:
                sys.exit(f"{io}: {experts['slots']} slots for {experts['experts']} experts in a quarter")
            if peak > budget + OVERHEAD:
                sys.exit(f"{io}: the cgroup peaked at {peak / MIB:.0f} MiB, the budget is "
                         f"{budget / MIB:.0f} MiB and may be passed by {OVERHEAD / MIB:.0f}")
            if paged["logits_xxh3"] != whole["logits_xxh3"]:
                sys.exit(f"{io}: other logits than with all experts in memory")
            print(f"{io}: model {size / MIB:.0f} MiB, budget {budget / MIB:.0f} MiB, "
                  f"peak {peak / MIB:.0f} MiB, {experts['slots']} of {experts['experts']} experts")


main()
