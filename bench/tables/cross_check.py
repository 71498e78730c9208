#!/usr/bin/env python3
"""Greedy answers of lean and of llama.cpp (PyPI's `xllamacpp`), token by token, on the same file.

    bench/tables/cross_check.py MODEL [--tokens 64] [--threads 1] [--json]

Ten prompts; both sides get the same ids and never stop early. Where the answers part, the table has the
place and the margin: by how much lean's logits prefer its own token to llama.cpp's there. The two engines
round differently, so a small margin says that the model is undecided; a large one that something is wrong.
Prints Markdown, or JSON; exit code 1 if a margin is above --margin (default 0.5 logits).
"""
import argparse
import array
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPTS = [
    "The capital of France is",
    "In 1687, Isaac Newton published",
    "To boil an egg, first",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Q: What is 17 times 23?\nA:",
    "Once upon a time, in a village by the sea,",
    "The three laws of thermodynamics are:\n1.",
    "Dear Sir or Madam,\n\nI am writing to",
    "SELECT name, COUNT(*) FROM orders",
    "Die Hauptstadt von Deutschland ist",
]


def lean(args, *words):
    run = subprocess.run([args.program, *map(str, words)], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"lean {words[0]}: {run.stderr.strip()}")
    return json.loads(run.stdout) if "--json" in words else run.stdout


def own_answer(args, ids):
    return lean(args, "eval", args.model, "--ids", ",".join(map(str, ids)), "-n", args.tokens, "--threads",
                args.threads, "--json")["generated"][:args.tokens]


def logits_behind(args, ids):
    """The last row of logits."""
    with tempfile.NamedTemporaryFile() as file:
        lean(args, "eval", args.model, "--ids", ",".join(map(str, ids)), "--threads", args.threads, "--logits",
             file.name, "--json")
        n_byte = os.path.getsize(file.name) // len(ids)
        file.seek(-n_byte, os.SEEK_END)
        row = array.array("f")
        row.frombytes(file.read())
        return row


def open_peer(args):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.n_ctx = 512 + args.tokens
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.no_extra_bufts = True  # weights as they are in the file
    params.warmup = False
    server = xllamacpp.Server(params)

    def answer(ids):
        found = {}
        server.handle_completions(
            {"prompt": ids, "n_predict": args.tokens, "temperature": 0.0, "ignore_eos": True, "logprobs": 1,
             "cache_prompt": False},
            lambda reply: found.update(reply if isinstance(reply, dict) else json.loads(reply)))
        return [step["id"] for step in found["choices"][0]["logprobs"]["content"]][:args.tokens]

    return answer


def compare(args, peer, prompt):
    ids = lean(args, "tokenize", args.model, prompt, "--add-special", "--json")["ids"]
    own, other = own_answer(args, ids), peer(ids)
    n_same = next((i for i, (a, b) in enumerate(zip(own, other)) if a != b), min(len(own), len(other)))
    row = {"prompt": prompt, "tokens": len(own), "same": n_same, "margin": None}
    if n_same < min(len(own), len(other)):
        logits = logits_behind(args, ids + own[:n_same])
        row.update(margin=logits[own[n_same]] - logits[other[n_same]], ours=own[n_same], theirs=other[n_same])
    return row


def print_table(args, rows, is_synthetic):
    kind = "synthetic weights" if is_synthetic else "real weights"
    print(f"{os.path.basename(args.model)} ({kind}): greedy answers of {args.tokens} tokens against llama.cpp\n")
    print("| prompt | same tokens | first difference | margin, logits |\n|---|--:|--:|--:|")
    for row in rows:
        shown = row["prompt"].splitlines()[0].replace("|", "\\|")
        parts = ("-", "-") if row["margin"] is None else (f"token {row['same']}", f"{row['margin']:.3f}")
        print(f"| {shown} | {row['same']} of {row['tokens']} | {parts[0]} | {parts[1]} |")
    n_whole = sum(row["margin"] is None for row in rows)
    print(f"\n{n_whole} of {len(rows)} answers are the same to their end.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="the peer's spin, and stall beside others [1]")
    parser.add_argument("--margin", type=float, default=0.5)
    parser.add_argument("--program", default=os.path.join(HERE, "../../build/lean"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    name = lean(args, "inspect", args.model, "--json").get("name") or ""
    peer = open_peer(args)
    rows = [compare(args, peer, prompt) for prompt in PROMPTS]
    if args.json:
        print(json.dumps({"model": args.model, "synthetic": name.startswith("synthetic"), "rows": rows}))
    else:
        print_table(args, rows, name.startswith("synthetic"))
    return any(row["margin"] is not None and row["margin"] > args.margin for row in rows)


if __name__ == "__main__":
    sys.exit(main())
