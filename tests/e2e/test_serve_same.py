"""The same request gives the same bits: alone or beside others, with any number of slots or threads,
with and without the prompt cache, greedily and with a seed, as one answer and as a stream."""
import json
import os
import random
import unittest

import cli
import serve

GOLDEN = os.path.join(cli.SOURCE_DIR, "tests/data/golden/models")
MODELS = {  # state that grows, that recurs, and that slides
    "demo": serve.DEMO,
    "delta net": serve.TINY,
    "windows": os.path.join(GOLDEN, "afmoe-s-q8_0.gguf"),
}
LAYOUTS = [["--parallel", 1], ["--parallel", 4, "--threads", 1], ["--parallel", 17, "--prefill-chunk", 7]]
N_OTHER = 16


def requests():
    generator = random.Random(3)
    prompt = [generator.randrange(1, 500) for _ in range(90)]
    base = {"prompt": [prompt], "max_tokens": 24, "logprobs": 5, "return_token_ids": True,
            "ignore_eos": True}
    return {"greedy": {**base, "temperature": 0},
            "seeded": {**base, "temperature": 1.0, "top_p": 0.95, "seed": 77},
            "penalized": {**base, "temperature": 0.8, "seed": 5, "repetition_penalty": 1.2,
                          "presence_penalty": 0.5, "echo": True}}


def other(i):
    generator = random.Random(100 + i)
    prompt = [generator.randrange(1, 500) for _ in range(generator.randint(1, 200))]
    return {"prompt": [prompt], "max_tokens": generator.randint(1, 40), "temperature": 1, "seed": i,
            "ignore_eos": True}


def bits(server, request):
    """Everything in the answer that depends on arithmetic, as text."""
    answer = server.post("/v1/completions", request, timeout=300)
    assert answer.status == 200, answer.body
    choice = answer.json["choices"][0]
    return json.dumps([choice["token_ids"], choice["text"], choice["logprobs"]])


def streamed_bits(server, request):
    ids, text, logprobs = [], "", {}
    for event in server.stream("/v1/completions", request):
        for choice in event["choices"]:
            ids += choice.get("token_ids") or []
            text += choice["text"]
            for key, values in (choice["logprobs"] or {}).items():
                logprobs.setdefault(key, []).extend(values)
    return json.dumps([ids, text, logprobs])


class Same(unittest.TestCase):
    def test_alone_and_beside_others_on_every_layout(self):
        for name, model in MODELS.items():
            expected = {}
            for layout in LAYOUTS:
                with self.subTest(model=name, layout=layout), \
                        serve.Server("--ctx", 512, *layout, model=model) as server:
                    self.check(server, expected)

    def check(self, server, expected):
        for kind, request in requests().items():
            for _ in range(3):
                self.assertEqual(bits(server, request), expected.setdefault(kind, bits(server, request)))
            self.assertEqual(bits(server, {**request, "cache_prompt": False}), expected[kind])
            self.assertEqual(streamed_bits(server, request), expected[kind])
        calls = [lambda i=i: server.post("/v1/completions", other(i), timeout=300).status
                 for i in range(N_OTHER)]
        ours = list(requests().items())
        calls[4:4] = [lambda r=r: bits(server, r) for _, r in ours]
        found = serve.at_once(*calls)
        self.assertEqual(found[4:4 + len(ours)], [expected[kind] for kind, _ in ours])
        self.assertEqual(set(found[:4] + found[4 + len(ours):]), {200})


class Samples(unittest.TestCase):
    """n samples of one prompt."""

    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server("--parallel", 4, "--ctx", 512)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def test_one_prefill_for_all(self):
        prompt = [random.Random(9).randrange(1, 8000) for _ in range(300)]
        fields = {"max_tokens": 4, "n": 4, "ignore_eos": True, "temperature": 1, "seed": 1}
        before = self.server.metric("lean_step_tokens_sum")
        answer = self.server.complete([prompt], **fields)
        steps = self.server.metric("lean_step_tokens_sum") - before
        self.assertLess(steps, 2 * len(prompt), "the prompt was read more than once")
        self.assertEqual(answer["usage"]["prompt_tokens"], len(prompt))
        self.assertEqual(answer["usage"]["completion_tokens"], 16)
        self.assertEqual([choice["index"] for choice in answer["choices"]], [0, 1, 2, 3])

    def test_samples_differ_by_seed_and_not_when_greedy(self):
        fields = {"max_tokens": 12, "n": 4, "ignore_eos": True}
        drawn = self.server.complete("The purpose of", temperature=1, seed=5, **fields)
        texts = [choice["text"] for choice in drawn["choices"]]
        self.assertGreater(len(set(texts)), 1, texts)
        again = self.server.complete("The purpose of", temperature=1, seed=5, **fields)
        self.assertEqual([choice["text"] for choice in again["choices"]], texts)
        other_seed = self.server.complete("The purpose of", temperature=1, seed=6, **fields)
        self.assertNotEqual([choice["text"] for choice in other_seed["choices"]], texts)
        greedy = self.server.complete("The purpose of", temperature=0, **fields)
        self.assertEqual(len({choice["text"] for choice in greedy["choices"]}), 1)

    def test_prompts_times_samples(self):
        answer = self.server.complete(["Once", "The"], temperature=0, n=2, max_tokens=3, echo=True)
        self.assertEqual([choice["index"] for choice in answer["choices"]], [0, 1, 2, 3])
        self.assertEqual([choice["text"].startswith("Once") for choice in answer["choices"]],
                         [True, True, False, False])


if __name__ == "__main__":
    unittest.main()
