"""The evaluation harness (lm-eval) against the server: likelihoods equal those of the raw logits, and
the six benchmarks of bench/quality run from local files. The scoring of bench/quality itself is
held to answers whose score is known."""
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

import cli
import serve

HOME = tempfile.mkdtemp(prefix="lean-harness-")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=HOME)
lm_eval, numpy = serve.packages("lm_eval", "numpy")
from lm_eval.api.instance import Instance  # noqa: behind the check that it is there
from lm_eval.api.registry import get_model

QUALITY = os.path.join(cli.SOURCE_DIR, "bench/quality")
DATA = os.path.join(cli.SOURCE_DIR, "tests/data/quality")
sys.path.insert(0, QUALITY)
import bfcl
import ifeval
import scoring

PAIRS = [("Question: What is a tree?\nAnswer:", answer) for answer in (" A", " B", " a large plant")] + [
    ("The purpose of this chapter is", " to"), ("caf\u00e9 \u4e2d", "\u6587 x"), ("a", "b")]


class Harness(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server("--parallel", 4)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def model(self, kind, **more):
        if kind == "gguf":
            return get_model(kind)(base_url=self.server.url)
        return get_model(kind)(base_url=self.server.url + "/v1/completions", model="m",
                               tokenizer_backend="remote", max_length=1024, **more)

    def tokens(self, text):
        return self.server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json["tokens"]

    def requests(self, kind, arguments):
        return [Instance(request_type=kind, doc={}, arguments=one, idx=i)
                for i, one in enumerate(arguments)]

    def expected(self, context, continuation):
        """By raw logits, of the harness's own cut between the two."""
        ids = self.tokens(context + continuation)
        n = len(self.tokens(context))
        rows = serve.raw_logprobs(numpy, serve.DEMO, ids)
        picked = [rows[i - 1][ids[i]] for i in range(n, len(ids))]
        return sum(picked), all(rows[i - 1].argmax() == ids[i] for i in range(n, len(ids)))

    def test_likelihoods_are_those_of_the_logits(self):
        expected = [self.expected(*pair) for pair in PAIRS]
        for batch, concurrent in ((1, 1), (4, 1), (1, 4)):
            model = self.model("local-completions", batch_size=batch, num_concurrent=concurrent)
            found = model.loglikelihood(self.requests("loglikelihood", PAIRS))
            for pair, (value, greedy), (right, right_greedy) in zip(PAIRS, found, expected):
                self.assertLess(abs(value - right), 1e-4, pair)
                self.assertEqual(greedy, right_greedy, pair)

    def test_rolling_likelihood(self):
        text = "The purpose of this chapter is to describe how the server answers. " * 3
        model = self.model("local-completions")
        found, = model.loglikelihood_rolling(self.requests("loglikelihood_rolling", [(text,)]))
        ids = [model.prefix_token_id] + self.tokens(text)
        rows = serve.raw_logprobs(numpy, serve.DEMO, ids)
        right = sum(rows[i - 1][ids[i]] for i in range(1, len(ids)))
        self.assertLess(abs(found - right), 1e-4 * len(ids))

    def test_the_gguf_type(self):
        pairs = PAIRS[3:]
        found = self.model("gguf").loglikelihood(self.requests("loglikelihood", pairs), disable_tqdm=True)
        for pair, (value, _) in zip(pairs, found):
            self.assertLess(abs(value - self.expected(*pair)[0]), 1e-4, pair)

    def test_generation_stops_where_told(self):
        arguments = [("The purpose of", {"until": [" the", "\n", ".", ",", "a", "z"], "max_gen_toks": 30,
                                         "temperature": 0.0})]
        found, = self.model("local-completions").generate_until(self.requests("generate_until", arguments))
        self.assertFalse(re.search(r" the|\n|[.,az]", found), found)

    def test_the_six_benchmarks(self):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "results.json")
            for more in ([], ["--completions", "--only", "gsm8k,math", "--limit", "1"]):
                result = subprocess.run(
                    [sys.executable, os.path.join(QUALITY, "run.py"), "--url", self.server.url, "--data", DATA,
                     "--max-tokens", "48", "--out", out, *more], capture_output=True, text=True, timeout=600)
                self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
                print(result.stdout, end="")
                with open(out) as file:
                    found = json.load(file)["benchmarks"]
                for name, one in found.items():
                    with open(os.path.join(DATA, name + ".jsonl")) as file:
                        self.assertEqual(one["n"], 1 if more else len(file.readlines()), name)
                    self.assertTrue(0 <= one["score"] <= 1)
                self.assertEqual(len(found), 2 if more else 6)


class Scoring(unittest.TestCase):
    def test_numbers(self):
        for text, number in (("so 1,234.50 it is", "1234.5"), ("$7", "7"), ("-3.0 or .5", ".5"), ("none", None),
                             ("12. Then 13.", "13")):
            self.assertEqual(scoring.last_number(text), number)
        self.assertTrue(scoring.gsm8k("It makes 30.00 pens", "3 * 12 ... \n#### 30"))
        self.assertFalse(scoring.gsm8k("It makes 31", "#### 30"))

    def test_mathematics(self):
        for found, right in ((r"\boxed{\dfrac56}", r"\frac{5}{6}"), (r"$\boxed{ 5\sqrt2 }$", r"5\sqrt{2}"),
                             (r"\boxed{x = 4}", "4"), (r"\boxed{1,000}", "1000"), (r"\boxed{0.50}", ".5"),
                             (r"\boxed{\text{even}}", "even"), ("The answer is 7.", "7"),
                             (r"\boxed{\left(1, 2\right)}", "(1,2)"), (r"\boxed{90^\circ}", "90")):
            self.assertTrue(scoring.math(found, rf"\boxed{{{right}}}"), (found, right))
        for found, right in ((r"\boxed{5}", "6"), ("nothing", "6"), (r"\boxed{12}", "1"), (r"\boxed{1/2}", "12")):
            self.assertFalse(scoring.math(found, rf"\boxed{{{right}}}"), (found, right))

    def test_code(self):
        with open(os.path.join(DATA, "humaneval.jsonl")) as file:
            for line in file:
                doc = json.loads(line)
                self.assertTrue(scoring.humaneval(doc["canonical_solution"], doc))
                self.assertFalse(scoring.humaneval("    return None\n", doc))
        self.addCleanup(setattr, scoring, "CODE_S", scoring.CODE_S)
        scoring.CODE_S = 1
        for program in ("while True: pass", "x = [0] * 10**10", "open('x', 'w').write('a' * (1 << 22))", "("):
            self.assertFalse(scoring.passes(program), program)

    def test_instructions(self):
        yes = {"punctuation:no_comma": ("a b", {}), "change_case:english_capital": ("A 1.", {}),
               "change_case:english_lowercase": ("a 1.", {}), "startend:quotation": ('"a"', {}),
               "startend:end_checker": ("a. The end", {"end_phrase": "the end"}),
               "detectable_format:json_format": ('```json\n{"a": 1}\n```', {}),
               "detectable_format:title": ("<<a>> b", {}),
               "detectable_format:number_bullet_lists": ("* a\n* b\n- c", {"num_bullets": 3}),
               "detectable_format:constrained_response": ("My answer is no.", {}),
               "detectable_format:number_highlighted_sections": ("*a* and **b**", {"num_highlights": 2}),
               "detectable_format:multiple_sections": ("Part 1 a Part 2 b", {"section_spliter": "Part", "num_sections": 2}),
               "detectable_content:number_placeholders": ("[a] [b]", {"num_placeholders": 2}),
               "detectable_content:postscript": ("a\nP.S. b", {"postscript_marker": "P.S."}),
               "combination:two_responses": ("a******b", {}),
               "combination:repeat_prompt": ("Do it. Done", {"prompt_to_repeat": "Do it."}),
               "keywords:existence": ("a wall", {"keywords": ["wall", "a"]}),
               "keywords:frequency": ("no no no", {"keyword": "no", "frequency": 3, "relation": "at least"}),
               "keywords:forbidden_words": ("walls", {"forbidden_words": ["wall"]}),
               "keywords:letter_frequency": ("aAb", {"letter": "a", "let_frequency": 3, "let_relation": "less than"}),
               "language:response_language": ("\u0434\u0430", {"language": "ru"}),
               "length_constraints:number_sentences": ("A b. C?", {"num_sentences": 2, "relation": "at least"}),
               "length_constraints:number_words": ("a b-c d", {"num_words": 4, "relation": "less than"}),
               "length_constraints:number_paragraphs": ("a\n***\nb", {"num_paragraphs": 2}),
               "length_constraints:nth_paragraph_first_word": (
                   "a\n\nB, c", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "b"}),
               "change_case:capital_word_frequency": ("A BC d", {"capital_frequency": 2, "capital_relation": "at least"})}
        no = {"punctuation:no_comma": "a, b", "change_case:english_capital": "a", "startend:quotation": '"a',
              "change_case:english_lowercase": "A", "detectable_format:json_format": "{", "detectable_format:title": "<a>",
              "combination:two_responses": "a******a", "language:response_language": "da",
              "keywords:forbidden_words": "a Wall", "length_constraints:number_paragraphs": "a",
              "detectable_format:number_bullet_lists": "* a", "keywords:letter_frequency": "aaa",
              "startend:end_checker": "the end?", "detectable_content:postscript": "a"}
        self.assertEqual(set(yes), set(ifeval.CHECKS))
        for name, (text, arguments) in yes.items():
            self.assertTrue(ifeval.follows(text, name, arguments), name)
            self.assertFalse(ifeval.follows("", name, arguments), name)
        for name, text in no.items():
            self.assertFalse(ifeval.follows(text, name, yes[name][1]), name)

    def test_calls(self):
        truth = [{"get_weather": {"city": ["Paris"], "days": ["", 1]}}, {"math.add": {"a": [2.0], "b": [[1, 2]]}}]
        weather, add = ("get_weather", '{"city": "paris"}'), ("math_add", '{"a": 2, "b": [1, 2]}')
        self.assertTrue(bfcl.right([weather, add], truth))
        self.assertTrue(bfcl.right([add, weather], truth))
        self.assertTrue(bfcl.right([], None))
        for calls in ([weather], [weather, weather], [weather, ("math_add", '{"a": 3, "b": [1, 2]}')],
                      [weather, ("math_add", "{")], [("get_weather", '{"city": "Paris", "x": 1}'), add],
                      [("get_weather", "{}"), add], [weather, ("math_add", '{"a": true, "b": [1, 2]}')]):
            self.assertFalse(bfcl.right(calls, truth), calls)
        with open(os.path.join(DATA, "bfcl.jsonl")) as file:
            tools = bfcl.tools(json.loads(file.readline())["function"])
        self.assertEqual(tools[0]["function"]["parameters"]["type"], "object")


if __name__ == "__main__":
    unittest.main()
