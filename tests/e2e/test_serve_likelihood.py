"""Likelihoods: what the evaluation harness asks for equals the raw logits.

200 random prompts of 1 to 300 tokens, as text and as ids, in bodies of 1, 4 and 32: every array has
P + 1 entries, every number is the float64 log-softmax of `lean eval --logits`, and batches and the
prompt cache change no digit.
"""
import json
import os
import random
import tempfile
import unittest

import gguf_file
import serve

numpy = serve.packages("numpy")
SEED = 20261122
N_PROMPT = 200
N_VOCAB = 512


class Likelihood(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server("--parallel", 4, model=serve.TINY)
        generator = random.Random(SEED)
        cls.prompts = [[generator.randrange(1, N_VOCAB) for _ in range(generator.randint(1, 300))]
                       for _ in range(N_PROMPT)]
        # Some share a beginning, as a question's answers do.
        for i in range(0, N_PROMPT, 4):
            cls.prompts[i + 1] = cls.prompts[i] + cls.prompts[i + 1][:5]
        cls.answers = {}

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def ask(self, prompts, **fields):
        """As the harness asks. The choices' logprobs, in the order of the prompts."""
        answer = self.server.complete(prompts, max_tokens=1, logprobs=1, seed=1234, echo=True,
                                      **fields)
        self.assertEqual([choice["index"] for choice in answer["choices"]],
                         list(range(len(prompts))))
        return [choice["logprobs"] for choice in answer["choices"]]

    def batches(self, n, **fields):
        return [one for i in range(0, N_PROMPT, n)
                for one in self.ask(self.prompts[i:i + n], **fields)]

    def test_numbers_are_those_of_the_logits(self):
        worst = 0.0
        for ids, found in zip(self.prompts, self.batches(4, cache_prompt=False)):
            expected = serve.raw_logprobs(numpy, serve.TINY, ids)
            for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                self.assertEqual(len(found[key]), len(ids) + 1, key)
            self.assertIsNone(found["token_logprobs"][0])
            self.assertIsNone(found["top_logprobs"][0])
            for i, token in enumerate(ids[1:]):
                value, top = found["token_logprobs"][i + 1], found["top_logprobs"][i + 1]
                worst = max(worst, abs(value - expected[i][token]))
                # The harness calls a token greedy if it has the largest number of its object.
                self.assertEqual(value == max(top.values()),
                                 expected[i][token] == expected[i].max(), (ids, i))
            worst = max(worst, abs(found["token_logprobs"][-1] - expected[-1].max()))
        print(f"{N_PROMPT} prompts: log-probabilities within {worst:.1e}")
        self.assertLess(worst, 1e-4)

    def test_batches_and_cache_change_no_digit(self):
        expected = self.batches(1, cache_prompt=False)
        for n in (1, 4, 32):
            self.assertEqual(self.batches(n), expected, f"batches of {n}")
            self.assertEqual(self.batches(n), expected, f"batches of {n}, cached")
        shuffled = random.Random(1).sample(range(N_PROMPT), N_PROMPT)
        found = self.ask([self.prompts[i] for i in shuffled])
        self.assertEqual(found, [expected[i] for i in shuffled])

    def test_text_and_ids_agree(self):
        texts = ["once upon a time", "a", "The capital of France is Paris.", "caf\u00e9 \u4e2d\u6587 x"]
        for text in texts:
            ids = self.server.post("/tokenize", {"prompt": text}).json["tokens"]
            by_text, by_ids = self.ask([text])[0], self.ask([ids])[0]
            self.assertEqual(by_text, by_ids, text)
            answer = self.server.complete(text, max_tokens=0, echo=True, logprobs=1)
            self.assertEqual(answer["choices"][0]["text"], text)
            self.assertEqual(answer["usage"]["completion_tokens"], 0)
            self.assertEqual(answer["choices"][0]["logprobs"]["tokens"], by_ids["tokens"][:-1])
        texts = [self.server.post("/detokenize", {"tokens": ids}).json["prompt"] for ids in self.prompts]
        as_ids = [self.server.post("/tokenize", {"prompt": text}).json["tokens"] for text in texts]
        for begin, n in ((0, 4), (4, 32), (36, 32), (68, 32), (100, 32), (132, 32), (164, 32), (196, 4)):
            self.assertEqual(self.ask(texts[begin:begin + n]), self.ask(as_ids[begin:begin + n]), begin)

    def test_the_object_of_one_position(self):
        for k in (0, 1, 5, 20):
            found = self.server.complete([self.prompts[2]], max_tokens=1, logprobs=k, echo=True)
            found = found["choices"][0]["logprobs"]
            for value, top in list(zip(found["token_logprobs"], found["top_logprobs"]))[1:]:
                self.assertIn(len(top), (max(1, k), k + 1))
                self.assertIn(value, top.values())
                ordered = list(top.values())[:k]
                self.assertEqual(ordered, sorted(ordered, reverse=True))

    def test_tokens_of_one_name(self):
        """Of candidates with the same string the likeliest keeps the key, and no other moves up."""
        file = gguf_file.File(serve.TINY)
        tokens, kinds = (file.keys["tokenizer.ggml." + name][1][1] for name in ("tokens", "token_type"))
        space = "\u0120".encode().decode("latin-1")  # how a vocabulary writes it in tokens of the usual kind
        spaced = [i for i, token in enumerate(tokens) if token.startswith(space) and token.removeprefix(space).isalpha()
                  and token.removeprefix(space).isascii()]
        name = {i: " " + token.removeprefix(space) for i, token in enumerate(tokens) if i in spaced}
        for old, new in zip(spaced[::2], spaced[1::2]):  # a pair is one string, written in two ways
            tokens[new], kinds[new], name[new] = name[old], 4, name[old]
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, "twins.gguf")
            file.write(model)
            generator = random.Random(SEED)
            ids = [7, spaced[0], 20, spaced[1]] + [generator.randrange(1, N_VOCAB) for _ in range(300)]
            expected = serve.raw_logprobs(numpy, model, ids)
            with serve.Server(model=model) as server:
                body = {"prompt": [ids], "max_tokens": 0, "logprobs": 20, "echo": True}
                answer = server.post("/v1/completions", body)
                by_id = server.post("/v1/completions", {**body, "return_tokens_as_token_ids": True})
        found = answer.json["choices"][0]["logprobs"]
        self.assertEqual(found["tokens"][1], found["tokens"][3])
        by_id = by_id.json["choices"][0]["logprobs"]["top_logprobs"]
        raw = json.loads(answer.body, object_pairs_hook=lambda pairs: pairs)
        arrays = dict(dict(dict(raw)["choices"][0])["logprobs"])
        n_dropped = 0
        for i, top in enumerate(arrays["top_logprobs"][1:]):
            keys = [key for key, _ in top]
            self.assertEqual(len(set(keys)), len(keys), "a key stands twice")
            best = expected[i].argsort()[::-1][:20].tolist()
            self.assertEqual(list(by_id[i + 1])[:20], [f"token_id:{one}" for one in best])
            kept = {}  # the likeliest of each name
            for one in best:
                kept.setdefault(name.get(one, one), one)
            n_dropped += len(best) - len(kept)
            values = [by_id[i + 1][f"token_id:{one}"] for one in kept.values()]
            self.assertEqual([value for _, value in top][:len(kept)], values)
            self.assertIn(len(top) - len(kept), (0, 1))  # and the prompt's own token
            for key, value in top[:len(kept)]:
                if key in kept:
                    self.assertEqual(value, by_id[i + 1][f"token_id:{kept[key]}"])
        self.assertGreater(n_dropped, 0)


if __name__ == "__main__":
    unittest.main()
