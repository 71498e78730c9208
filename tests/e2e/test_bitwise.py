"""The same bits whatever the schedule: threads, prompt chunks, kernels, other sequences.

Every run must give the hash of all logits, and the greedy path behind them, of the first run; and
`effective` must say that the schedule asked for is what ran."""
import itertools
import os
import sys

import cli
import golden

THREADS = (1, 2, 4)
CHUNKS = (1, 7, 64, 512)
# Models of the committed subset: every architecture and every kind of block.
THOROUGH = ("qwen35moe-k-q4km", "afmoe-s-q8_0")
OTHERS = ("llama-k-q3_k", "llama-s-bf16", "qwen3next-s-q8_0", "qwen3moe-s-q8_0")


def available_kernels():
    """Those of this CPU; scalar ones always."""
    model = os.path.join(golden.SUBSET, "models/llama-s-f32.gguf")
    names = ["ref"]
    for name in ("avx2", "avx512"):
        if cli.lean("eval", model, "--ids", "1", "--kernels", name).returncode == 0:
            names.append(name)
        else:
            print(f"this CPU does not run the {name} kernels: not compared")
    return names


def run(model, ids, kv_type, threads, chunk, kernels, beside):
    path = os.path.join(golden.SUBSET, "models", model + ".gguf")
    answer = golden.evaluate(path, ids, "-n", 12, "--kv-type", kv_type, "--threads", threads,
                             "--prefill-chunk", chunk, "--kernels", kernels, "--beside", beside)
    ran = answer["effective"]
    want = {"threads": threads, "prefill_chunk": chunk, "kernels": kernels,
            "max_batch": 1 + beside}
    for key, value in want.items():
        if ran[key] != value:
            sys.exit(f"{model}: asked for {key} {value}, ran {ran[key]}")
    return answer["logits_xxh3"], answer["generated"]


def compare(model, schedules, kv_type="f16"):
    ids = [(i * 37 + i * i * 3 + 11) % 512 for i in range(150)]
    first = None
    for schedule in schedules:
        result = run(model, ids, kv_type, *schedule)
        if first is None:
            first = result
        if result != first:
            sys.exit(f"{model}: threads {schedule[0]}, chunk {schedule[1]}, kernels {schedule[2]}, "
                     f"beside {schedule[3]}: {result[0]} {result[1]}, first run {first[0]} {first[1]}")


def main():
    kernels = available_kernels()
    n = 0
    for model in THOROUGH:
        schedules = list(itertools.product(THREADS, CHUNKS, kernels, (0, 3)))
        compare(model, schedules)
        n += len(schedules)
    for model in OTHERS:
        schedules = [(1, 512, kernels[0], 0), (2, 7, kernels[-1], 2), (4, 64, kernels[-1], 0),
                     (2, 1, kernels[len(kernels) // 2], 1)]
        compare(model, schedules)
        n += len(schedules)
    for kv_type in ("bf16", "f32", "q8_0"):
        compare("qwen35moe-k-q4km", [(1, 512, kernels[0], 0), (2, 7, kernels[-1], 2)], kv_type)
        n += 2
    print(f"{n} schedules, one result for each model")


main()
