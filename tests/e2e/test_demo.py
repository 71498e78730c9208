"""The demonstration model against PyTorch (the trained weights) and llama.cpp (the same file)."""
import hashlib
import json
import math
import os
import sys
import tempfile
import unittest

from cli import SOURCE_DIR, lean

MODEL = os.path.join(SOURCE_DIR, "configs/demo/lean-demo-q4_k_m.gguf")
DATA = os.path.join(SOURCE_DIR, "tests/data/demo")


def evaluate(ids, *options):
    """`lean eval` of token ids: its result object."""
    with tempfile.NamedTemporaryFile("w", suffix=".ids") as f:
        f.write(",".join(map(str, ids)))
        f.flush()
        result = lean("eval", MODEL, "--ids-file", f.name, "--json", *options, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


class Demo(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(os.path.join(DATA, "expected.json")) as f:
            cls.expected = json.load(f)

    def test_the_expectations_are_for_this_file_and_it_is_small(self):
        with open(MODEL, "rb") as f:
            data = f.read()
        self.assertEqual(hashlib.sha256(data).hexdigest(), self.expected["sha256"])
        self.assertLessEqual(len(data), 32 << 20)

    def test_text_becomes_the_ids_it_was_trained_with(self):
        for prompt in self.expected["prompts"]:
            result = lean("tokenize", MODEL, prompt["text"], "--json")
            self.assertEqual(json.loads(result.stdout)["ids"], prompt["ids"])

    def test_perplexity_is_that_of_pytorch_plus_the_quantization_loss_of_llama(self):
        pieces = self.expected["pieces"]
        loss = {"lean": 0.0, "llama": 0.0, "torch_bf16": 0.0}
        for piece in pieces:
            loss["lean"] += math.log(evaluate(piece["ids"])["perplexity"]) / len(pieces)
            for name in ("llama", "torch_bf16"):
                loss[name] += piece[name] / len(pieces)
        perplexity = {name: math.exp(x) for name, x in loss.items()}
        print({name: round(p, 4) for name, p in perplexity.items()}, file=sys.stderr)
        self.assertLess(perplexity["lean"],
                        1.01 * perplexity["torch_bf16"] + perplexity["llama"] - perplexity["torch_bf16"])
        self.assertLess(abs(perplexity["lean"] / perplexity["llama"] - 1), 0.01)

    def test_greedy_text_is_that_of_llama(self):
        """Up to the first step at which the two most likely tokens were nearly level."""
        n_equal = 0
        for prompt in self.expected["prompts"]:
            greedy = prompt["greedy"]
            ours = evaluate(prompt["ids"], "-n", len(greedy))["generated"]
            differing = [i for i, (a, b) in enumerate(zip(ours, greedy)) if a != b]
            if differing:
                step = str(differing[0])
                self.assertIn(step, prompt["near_ties"], f"{prompt['text']!r} at step {step}")
                print(f"{prompt['text']!r}: near tie at step {step}, margin "
                      f"{prompt['near_ties'][step]}", file=sys.stderr)
            else:
                self.assertEqual(len(ours), len(greedy))
                n_equal += 1
        self.assertGreaterEqual(n_equal, len(self.expected["prompts"]) // 4)


if __name__ == "__main__":
    unittest.main()
