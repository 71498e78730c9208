#!/usr/bin/env python3
"""What five models would decode in six sizes of machine, by the model of cost: no file, no device needed.

    bench/tables/tiers.py [--program build/lean]

Each row is `lean bench predict MODEL Q4_K_M --vram V --ram R` with the rates of such a machine: the nominal bandwidth of
its cards, of memory as kernels read it, of the disk and of the link. Of cards and memory it may have what
configs/{minimal,prosumer,enthusiast}.textproto leave it, and as much less of others. The Markdown goes to stdout.
"""
import argparse
import json
import os
import subprocess

MODELS = ("qwen3.5-35b-a3b", "qwen3-coder-next", "qwen3.5-122b-a10b", "qwen3.5-397b-a17b", "trinity-large-thinking")
# GiB of the cards and of memory; GB/s of the cards, of memory, of the disk and of the link
MACHINES = ((12, 16, 360, 42, 6, 24), (12, 32, 360, 42, 6, 24), (24, 32, 936, 42, 6, 24), (24, 64, 936, 42, 6, 24),
            (48, 64, 936, 65, 6, 24), (48, 128, 936, 65, 6, 24))
BUDGET = {12: 11.5, 24: 23.5, 48: 47, 16: 11, 32: 26, 64: 57, 128: 121}  # GiB, of what there is
HEAD = ("model", "cards / memory, GiB", "experts on cards", "hits there", "in either", "hits", "device alone, tok/s",
        "with processors", "ideal")


def predict(program, model, machine):
    vram, ram, vram_rate, memory_rate, disk_rate, link_rate = machine
    words = [program, "bench", "predict", model, "Q4_K_M", "--vram", f"{BUDGET[vram]}G", "--ram", f"{BUDGET[ram]}G",
             "--vram-gbps", vram_rate, "--memory-gbps", memory_rate, "--disk-gbps", disk_rate, "--link-gbps", link_rate,
             "--json"]
    done = subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)["predictions"][0]


def cells(model, machine, found):
    name = (model, f"{machine[0]} / {machine[1]}")
    if not found["fits"]:
        return name + ("does not fit",) + ("",) * (len(HEAD) - 3)
    shares = [f"{100 * found[key]:.0f}%" for key in ("vram_share", "vram_hit_rate", "resident_share", "hit_rate")]
    return (*name, *shares, *(f"{found[key]:.3g}" for key in ("link_tok_s", "serial_tok_s", "ideal_tok_s")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.path.join(os.path.dirname(__file__), "../../build/lean"))
    args = parser.parse_args()
    rows = [HEAD, ("---",) * len(HEAD)]
    rows += [cells(model, machine, predict(args.program, model, machine)) for model in MODELS for machine in MACHINES]
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
