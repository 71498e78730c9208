"""The tiny golden models against the reference implementation's logits and greedy paths.

The bounds are those of the golden data (tests/data/golden/README.md): F32 files to 1e-4; quantized
ones to 1e-3 of their F32 twin in the reference mode, and within the size of the reference's own
spread in normal mode."""
import json
import os
import sys

import golden

# No path through a random model is decided by less than this many times the error.
MARGINS = 4


def check(model, what, value, bound):
    if not value <= bound:
        sys.exit(f"{model}: {what}: {value:.3g}, must be at most {bound:.3g}")


def check_exact(model, path, prompt):
    """An F32 file: close logits, the same path, and nearly so with a narrow KV cache."""
    answer, logits = golden.evaluate(path, prompt["ids"], "--kv-type", "f32", "-n", 32, logits=True)
    check(model, "rel rms", golden.rel_rms(logits[-1], prompt["logits"]), 1e-4)
    if answer["generated"] != prompt["greedy"]:
        sys.exit(f"{model}: greedy path {answer['generated']}, must be {prompt['greedy']}")
    _, logits = golden.evaluate(path, prompt["ids"], "--kv-type", "f16", logits=True)
    check(model, "rel rms with an F16 cache", golden.rel_rms(logits[-1], prompt["logits"]), 3e-3)


def check_reference_mode(model, path, prompt):
    answer, logits = golden.evaluate(path, prompt["ids"], "--kv-type", "f32", "--reference", "-n", 32,
                                     logits=True)
    if answer["effective"]["kernels"] != "reference":
        sys.exit(f"{model}: the reference mode ran {answer['effective']['kernels']}")
    check(model, "rel rms of the reference mode to the twin",
          golden.rel_rms(logits[-1], prompt["twin_logits"]), 1e-3)
    if answer["generated"] != prompt["twin_greedy"]:
        sys.exit(f"{model}: the twin's greedy path is {prompt['twin_greedy']}, not "
                 f"{answer['generated']}")


def check_quantized(model, path, prompt):
    """Normal mode, the reference's greedy path fed, so that one near-tie does not end the test."""
    bound = 2.5 * prompt["rel_rms_to_twin"] + 0.02
    fed = prompt["ids"] + prompt["greedy"][:-1]
    _, logits = golden.evaluate(path, fed, "--kv-type", "f32", logits=True)
    rows = logits[len(prompt["ids"]) - 1:]
    check(model, "rel rms", golden.rel_rms(rows[0], prompt["logits"]), bound)
    check(model, "rel rms to the twin", golden.rel_rms(rows[0], prompt["twin_logits"]), bound)
    for step, (row, top5) in enumerate(zip(rows, prompt["greedy_top5"])):
        error = bound * golden.deviation(row)
        margin = top5[0][1] - top5[1][1]
        best = max(range(len(row)), key=lambda i: (row[i], -i))
        if margin > MARGINS * error and best != top5[0][0]:
            sys.exit(f"{model}: step {step} chooses {best}, not {top5[0][0]} (margin {margin})")
        check(model, f"rms of the five best at step {step}",
              golden.rms([row[token] - value for token, value in top5]), MARGINS * error)


def check_model(folder, model):
    path = os.path.join(folder, "models", model + ".gguf")
    with open(os.path.join(folder, "expected", model + ".json")) as file:
        prompts = json.load(file)["prompts"]
    for prompt in prompts:
        if "twin_logits" in prompt:
            check_reference_mode(model, path, prompt)
            check_quantized(model, path, prompt)
        else:
            check_exact(model, path, prompt)


def main():
    whole = golden.folder()
    folder = whole or golden.SUBSET
    models = sorted(name[:-5] for name in os.listdir(os.path.join(folder, "models")))
    if not models:
        sys.exit("no golden models found")
    for model in models:
        check_model(folder, model)
    print(f"{len(models)} golden models within their bounds"
          + ("" if whole else " (the committed subset: LEAN_GOLDEN_DIR is not set)"))


main()
