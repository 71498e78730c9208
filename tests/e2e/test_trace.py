"""The routing trace, read by the description in proto/trace.proto."""
import os
import sys
import tempfile

import cli
import golden
import route_trace

MODEL = os.path.join(golden.SUBSET, "models/qwen35moe-s-q8_0.gguf")
N_LAYER, N_EXPERT, N_USED = 8, 8, 3
IDS = [(i * 31 + 5) % 512 for i in range(21)]


def trace(*options):
    """The header, and (position, token, layer) -> experts and weights."""
    with tempfile.NamedTemporaryFile() as file:
        answer = golden.evaluate(MODEL, IDS, "-n", 4, "--trace", file.name, *options)
        data = file.read()
    header, steps = route_trace.steps(data)
    choices, n_distinct = {}, 0
    for rows, layers in steps:
        for layer, chosen in layers.items():
            n_distinct += len({e for experts, _ in chosen for e in experts})
            for (_, position, token), choice in zip(rows, chosen, strict=True):
                choices[position, token, layer] = choice
    experts = answer["effective"]["experts"]
    if n_distinct != experts["decode"]["lookups"] + experts["prefill"]["lookups"]:
        sys.exit(f"{n_distinct} experts in the trace, {answer['effective']} looked up")
    return header, choices, answer["generated"]


def main():
    header, choices, generated = trace()
    if header != {1: 1, 2: b"qwen35moe", 3: N_LAYER, 4: N_EXPERT, 5: N_USED}:
        sys.exit(f"header {header}")
    tokens = IDS + generated[:-1]  # the last one is not read any more
    want = {(pos, token, layer) for pos, token in enumerate(tokens) for layer in range(N_LAYER)}
    if set(choices) != want:
        sys.exit(f"the trace lacks {sorted(want - set(choices))[:5]}")
    for at, (experts, weights) in choices.items():
        if len(set(experts)) != N_USED or max(experts) >= N_EXPERT:
            sys.exit(f"{at}: experts {experts}")
        if list(weights) != sorted(weights, reverse=True) or not 0.999 < sum(weights) < 1.001:
            sys.exit(f"{at}: weights {weights}")
    if trace("--prefill-chunk", 4)[1] != choices:
        sys.exit("other chunks, another trace")
    plain = golden.evaluate(MODEL, IDS, "-n", 4)
    with tempfile.NamedTemporaryFile() as file:
        traced = golden.evaluate(MODEL, IDS, "-n", 4, "--trace", file.name)
    if traced["logits_xxh3"] != plain["logits_xxh3"]:
        sys.exit("recording changes the logits")
    dense = cli.lean("eval", os.path.join(golden.SUBSET, "models/llama-s-f32.gguf"), "--ids", "1",
                     "--trace", os.devnull)
    if dense.returncode != 9 or "no routed experts" not in dense.stderr:
        sys.exit(f"a model without experts: exit {dense.returncode}: {dense.stderr}")
    print(f"{len(choices)} choices recorded and read back")


main()
