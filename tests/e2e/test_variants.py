"""Other forms of a model give the same bits; its relatives give the reference's logits."""
import json
import os
import struct
import sys
import tempfile

import gguf_file
import golden
import variants


def check_same(folder):
    ids = [(i * 29 + 3) % 512 for i in range(70)]
    for name, (base, _) in variants.SAME.items():
        path = os.path.join(folder, "model.gguf")
        variants.make(variants.SAME, name, path)
        got = golden.evaluate(path, ids)["logits_xxh3"]
        want = golden.evaluate(os.path.join(golden.SUBSET, "models", base + ".gguf"), ids)["logits_xxh3"]
        if got != want:
            sys.exit(f"{name}: hash {got}, {base} has {want}")


def check_relatives(folder):
    with open(os.path.join(golden.SUBSET, "variants.json")) as file:
        expected = json.load(file)
    for name in variants.OTHER:
        path = os.path.join(folder, "model.gguf")
        variants.make(variants.OTHER, name, path)
        _, rows = golden.evaluate(path, expected["ids"], "--kv-type", "f32", logits=True)
        error = golden.rel_rms(rows[-1], expected["logits"][variants.FORM_OF.get(name, name)])
        if not error <= 1e-4:
            sys.exit(f"{name}: rel rms {error:.3g}, must be at most 1e-4")


def check_suppressed(folder):
    """The tokens that a greedy answer would begin with, forbidden by the file."""
    ids, path = [5, 6, 7], os.path.join(folder, "model.gguf")
    _, rows = golden.evaluate(os.path.join(golden.SUBSET, "models", "llama-s-f32.gguf"), ids,
                              logits=True)
    best = sorted(range(len(rows[-1])), key=lambda t: -rows[-1][t])
    file = variants.load("llama-s-f32")
    file.keys["tokenizer.ggml.suppress_tokens"] = (gguf_file.ARRAY, (gguf_file.I32, best[:2]))
    file.write(path)
    got, suppressed = golden.evaluate(path, ids, "-n", 1, logits=True)
    for row, plain in zip(suppressed, rows):
        if [row[t] for t in best[:2]] != [float("-inf")] * 2 or row[best[2]] != plain[best[2]]:
            sys.exit("suppressed tokens have logits, or others have changed")
    with tempfile.NamedTemporaryFile() as out:
        out.write(b"".join(struct.pack(f"<{len(row)}f", *row) for row in suppressed))
        out.flush()
        same = golden.evaluate(path, ids, "--compare", out.name)["compare"]
    if (same["max_difference"], same["kl_divergence"]) != (0, 0):
        sys.exit(f"compared with themselves, suppressed logits differ: {same}")
    if got["generated"] != [best[2]]:
        sys.exit(f"generated {got['generated']}, the best that is not suppressed is {best[2]}")


def main():
    with tempfile.TemporaryDirectory() as folder:
        check_same(folder)
        check_relatives(folder)
        check_suppressed(folder)
    print(f"{len(variants.SAME)} forms with the same bits, {len(variants.OTHER)} relatives within 1e-4")


main()
