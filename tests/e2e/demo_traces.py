"""Records the routing traces of tests/data/demo/traces: demo_traces.py [NAME...]

NAME.trace is what the demonstration model's routers choose while it reads NAME.txt, or, for
`generated`, while it writes. Every step holds one token, as in decoding. The arithmetic is
canonical, so that the same model gives the same bytes on any machine.
"""
import json
import os
import sys

import cli

MODEL = os.path.join(cli.SOURCE_DIR, "configs/demo/lean-demo-q4_k_m.gguf")
FOLDER = os.path.join(cli.SOURCE_DIR, "tests/data/demo/traces")
READ = ["prose", "manual", "dictionary", "code", "chat"]
WRITE = {"generated": ["--raw", "--seed", 7, "--temperature", 0.8, "--top-p", 0.95,
                       "--repetition-penalty", 1, "--ignore-eos", "--max-tokens", 1000,
                       "The purpose of this chapter is to"]}
NAMES = [*READ, *WRITE]


def lean(*args, **options):
    """What the program prints."""
    result = cli.lean(*args, **options)
    if result.returncode:
        sys.exit(f"lean {args[0]}: exit {result.returncode}: {result.stderr}")
    return result.stdout


def tokens(name):
    """Of NAME.txt; control tokens in the text count as such."""
    with open(os.path.join(FOLDER, f"{name}.txt")) as f:
        return json.loads(lean("tokenize", MODEL, "--json", input=f.read()))["ids"]


def record(name, path):
    options = ["--prefill-chunk", 1, "--trace", path]
    if name in WRITE:
        lean("run", MODEL, *options, *WRITE[name])
    else:
        lean("eval", MODEL, *options, "--ids", ",".join(map(str, tokens(name))))


def main():
    for name in sys.argv[1:] or NAMES:
        record(name, os.path.join(FOLDER, f"{name}.trace"))


if __name__ == "__main__":
    main()
