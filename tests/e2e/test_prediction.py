"""How many of the experts that a layer chooses were named before its router ran, on real routing.

The demonstration model reads a text token by token. Recall does not depend on the disk, so that the
figures are nearly the same on every machine; without what is learned of the blocks in between the
late prediction recalls 72% here and the early one 63 to 67%."""
import json
import os
import sys

import cli

MODEL = os.path.join(cli.SOURCE_DIR, "configs/demo/lean-demo-q4_k_m.gguf")
TEXT = os.path.join(cli.SOURCE_DIR, "tests/data/demo/traces/prose.txt")
LEAST = {"early": 75, "late": 78}


def experts(prefetch):
    done = cli.lean("eval", MODEL, "--text", TEXT, "--json", "--prefill-chunk", 1, "--profile", "none",
                    "--expert-slots", "50%", "--prefetch", prefetch)
    if done.returncode:
        sys.exit(f"--prefetch {prefetch}: exit {done.returncode}: {done.stderr}")
    answer = json.loads(done.stdout)
    return answer["effective"]["experts"], {key: answer[key] for key in answer if key != "effective"}


def main():
    without, _ = experts("off")
    found, lines = without["decode"], []
    got, _ = experts("on")
    for name, least in LEAST.items():
        made = got["predictions"][name]
        recall = 100 * made["recalled"] / made["chosen"]
        lines.append(f"{name} {recall:.1f}%")
        if recall < least:
            sys.exit(f"the {name} prediction recalls {recall:.1f}%, at least {least} are known to be possible: {made}")
    decode = got["decode"]
    if decode["misses"] > 0.6 * found["misses"] or found["lookups"] != decode["lookups"]:
        sys.exit(f"prefetch leaves {decode['misses']} of {found['misses']} misses: {got}")
    print(f"recall {', '.join(lines)}; {found['misses']} misses without prefetch, {decode['misses']} with")


main()
