"""lean run, one-shot: where prompt and answer go, options, stop strings, signals, mistakes."""
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
from unittest import mock

import gguf_file
from cli import LEAN, SOURCE_DIR, environment, lean

MODEL = os.path.join(SOURCE_DIR, "tests/data/golden/models/qwen35moe-s-q8_0.gguf")
GREEDY = ["--temperature", "0", "--max-tokens", "24", "--ignore-eos"]
# A template without control tokens: the tiny vocabulary has none to speak of.
TEMPLATE = """{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% endfor %}{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}<assistant>"""


def run(*args, **more):
    return lean("run", MODEL, *args, **more)


def answer(*args, **more):
    result = run("--json", *GREEDY, *args, **more)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


class Prompt(unittest.TestCase):
    """The same text gives the same answer, however it comes."""

    @classmethod
    def setUpClass(cls):
        cls.expected = answer("--raw", "once upon a time")["content"]

    def test_arguments_pipe_and_dash(self):
        self.assertEqual(answer("--raw", "once", "upon a", "time")["content"], self.expected)
        self.assertEqual(answer("--raw", input="once upon a time")["content"], self.expected)
        self.assertEqual(answer("--raw", "once", "-", "time", input="upon a")["content"],
                         self.expected)

    def test_a_blank_line_stands_between_arguments_and_pipe(self):
        self.assertEqual(answer("--raw", "one two", input="three")["content"],
                         answer("--raw", "one two\n\nthree")["content"])

    def test_a_template_gets_one_begin_token(self):
        """Whether it writes the token itself or leaves that to the vocabulary."""
        file = gguf_file.File(MODEL)
        for key, value in (("tokens", "<begin>"), ("token_type", 3)):  # 3: control
            kind, (element, values) = file.keys["tokenizer.ggml." + key]
            values[300] = value
        file.keys["tokenizer.ggml.bos_token_id"] = (4, 300)
        with tempfile.TemporaryDirectory() as folder:
            counts = []
            for adds, text in ((False, "hi"), (True, "hi"), (True, "<begin>hi"), (False, "<begin>hi")):
                path, template = os.path.join(folder, "m.gguf"), os.path.join(folder, "t.jinja")
                file.keys["tokenizer.ggml.add_bos_token"] = (7, adds)
                file.write(path)
                with open(template, "w") as out:
                    out.write(text)
                result = lean("run", path, "--json", *GREEDY, "--chat-template", template, "hi")
                self.assertEqual(result.returncode, 0, result.stderr)
                counts.append(json.loads(result.stdout)["usage"]["prompt_tokens"])
        self.assertEqual([n - counts[0] for n in counts], [0, 1, 1, 1])

    def test_reasoning_is_told_from_the_answer(self):
        with tempfile.NamedTemporaryFile("w") as template:
            template.write("{{ messages[0].content }}<think>")
            template.flush()
            chat = ["--chat-template", template.name, "hi"]
            result = answer(*chat)
            self.assertEqual(result["content"], "")
            self.assertEqual(result["reasoning_content"].strip("\n"),
                             answer("--raw", "hi<think>")["content"].strip("\n"))
            self.assertEqual(result["usage"]["completion_tokens_details"]["reasoning_tokens"], 24)
            hidden, shown = run(*GREEDY, *chat), run(*GREEDY, *chat, "--show-thinking")
            self.assertEqual((hidden.stdout, hidden.stderr), ("\n", ""))
            self.assertEqual(shown.stdout, "\n")
            self.assertEqual(shown.stderr.strip("\n"), result["reasoning_content"].strip("\n"))

    def test_model_by_configured_name(self):
        with tempfile.NamedTemporaryFile("w", suffix=".textproto") as config:
            config.write(f'model {{ name: "small" alias: "tiny" ref: "{MODEL}" '
                         'sampling { temperature: 0 max_tokens: 24 } }')
            config.flush()
            for name in ("small", "tiny"):
                result = lean("run", name, "--json", "--raw", "--ignore-eos", "once upon a time",
                              "--config", config.name)
                self.assertEqual(json.loads(result.stdout)["content"], self.expected)

    def test_the_template_is_applied(self):
        with tempfile.NamedTemporaryFile("w") as template:
            template.write(TEMPLATE)
            template.flush()
            chat = ["--chat-template", template.name]
            for options, prompt in (
                    ([], "<user>hi\n<assistant>"),
                    (["--system", "be brief"], "<system>be brief\n<user>hi\n<assistant>"),
                    (["--system", "@" + template.name],
                     f"<system>{TEMPLATE}\n<user>hi\n<assistant>"),
                    (["--think", "off"], "<user>hi\n[False]<assistant>"),
                    (["--think", "none"], "<user>hi\n[False]<assistant>"),
                    (["--think", "high"], "<user>hi\n[True]<assistant>")):
                self.assertEqual(answer(*chat, *options, "hi")["content"],
                                 answer("--raw", prompt)["content"], options)
            self.assertEqual(answer(*chat, input="hi\n")["content"],
                             answer(*chat, "hi")["content"])


class Output(unittest.TestCase):
    def test_stdout_holds_the_answer_and_a_line_break(self):
        content = answer("--raw", "hello")["content"]
        result = run("--raw", *GREEDY, "hello")
        self.assertEqual(result.stdout, content if content.endswith("\n") else content + "\n")
        self.assertEqual(result.stderr, "")

    def test_verbose_prints_two_lines_of_timings_on_stderr(self):
        lines = run("--raw", *GREEDY, "hello", "--verbose").stderr.splitlines()
        self.assertRegex(lines[-2], r"^prompt +\d+ tok +\d+\.\d\ds +\d+\.\d tok/s$")
        self.assertRegex(lines[-1], r"^answer +24 tok +\d+\.\d\ds +\d+\.\d tok/s   first token "
                                    r"\d+\.\d\ds   stop: length$")

    def test_a_long_prompt_shows_how_far_it_is(self):
        """Slow on purpose: what takes less than a second shows nothing."""
        result = run("--raw", "--max-tokens", "1", "--kernels", "ref", "--threads", "1",
                     "--prefill-chunk", "16", input="word " * 2500)
        self.assertEqual(result.returncode, 0, result.stderr)
        for line in result.stderr.splitlines():
            self.assertRegex(line, r"^reading prompt +\d+%  \d+/\d+ tok  \d+/s  [\dhms.]+$")
        self.assertIn("reading prompt", result.stderr)
        self.assertNotIn("reading prompt", result.stdout)

    def test_json_counts(self):
        result = answer("--raw", "hello")
        self.assertEqual(result["finish_reason"], "length")
        usage, timings = result["usage"], result["timings"]
        n_prompt = len(json.loads(lean("tokenize", MODEL, "hello", "--json").stdout)["ids"])
        self.assertEqual(usage["completion_tokens"], 24)
        self.assertEqual(usage["prompt_tokens"], n_prompt)
        self.assertEqual(usage["total_tokens"], n_prompt + 24)
        self.assertEqual((timings["predicted_n"], timings["prompt_n"]), (24, n_prompt))
        rate = 23 / timings["predicted_ms"] * 1000
        self.assertAlmostEqual(timings["predicted_per_second"] / rate, 1, delta=0.01)


class Format(unittest.TestCase):
    """--format json: an object, or the beginning of one and exit code 10. The model is random, so
    that a bias has to make it close what it opens."""

    @classmethod
    def setUpClass(cls):
        def token(text):
            return json.loads(lean("tokenize", MODEL, text, "--json").stdout)["ids"][0]
        cls.closing = [f"--logit-bias={token(text)}=4" for text in '"}]']

    def test_objects(self):
        for seed in range(12):
            result = run("--raw", "--format", "json", "--seed", seed, "--max-tokens", "300",
                         *self.closing, "hi")
            if result.returncode == 10:
                continue
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIsInstance(json.loads(result.stdout), dict)

    def test_objects_behind_reasoning(self):
        with tempfile.NamedTemporaryFile("w") as template:
            template.write("{{ messages[0].content }}<think>x</think>")
            template.flush()
            result = run("--json", "--format", "json", "--seed", "1", "--max-tokens", "300",
                         "--chat-template", template.name, *self.closing, "hi")
            self.assertEqual(result.returncode, 0, result.stderr)
            answered = json.loads(result.stdout)
            self.assertEqual(answered["finish_reason"], "stop")
            self.assertIsInstance(json.loads(answered["content"]), dict)

    def test_an_answer_that_is_cut(self):
        for more in ([], ["--json"]):
            result = run("--raw", "--format", "json", "--max-tokens", "1", "hi", *more)
            self.assertEqual(result.returncode, 10)
            self.assertIn("cut before its JSON document was complete", result.stderr)
        self.assertTrue(json.loads(result.stdout)["content"].startswith("{"))

    def test_documents_of_a_schema(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as schema:
            json.dump({"type": "object", "required": ["a"], "properties": {
                "a": {"enum": [1, "two"]}, "b": {"type": "boolean"}}}, schema)
            schema.flush()
            for seed in range(6):
                result = run("--raw", "--format", "@" + schema.name, "--seed", seed, "hi")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn(json.loads(result.stdout)["a"], (1, "two"))
        for wrong in ("@", "@" + SOURCE_DIR + "/README.md"):
            result = run("--raw", "--format", wrong, "hi")
            self.assertIn(result.returncode, (2, 5), result.stderr)

    def test_off_and_unknown_formats(self):
        self.assertEqual(answer("--raw", "--format", "off", "hello"), answer("--raw", "hello")
                         | {"timings": mock.ANY})
        self.assertEqual(run("--format", "xml", "hi").returncode, 2)


class Options(unittest.TestCase):
    def test_seeds(self):
        def sample(*options):
            return answer("--raw", "--temperature", "1", *options, "hello")["content"]
        self.assertEqual(sample("--seed", "1"), sample("--seed", "1"))
        self.assertNotEqual(sample("--seed", "1"), sample("--seed", "2"))
        self.assertNotEqual(sample(), sample())
        self.assertEqual(sample("--top-k", "1"), answer("--raw", "hello")["content"])

    def test_stop_strings_cut_the_answer(self):
        content = answer("--raw", "hello")["content"]
        middle = content[8:11]
        cut = answer("--raw", "hello", "--stop", middle, "--stop", "no such text")
        self.assertEqual(cut["content"], content[:content.index(middle)])
        self.assertEqual(cut["finish_reason"], "stop")
        late = answer("--raw", "hello", "--stop", middle, "--min-tokens", "24")
        self.assertEqual(late["content"], content)

    def test_logit_bias(self):
        ids = json.loads(lean("tokenize", MODEL, "a", "--json").stdout)["ids"]
        biased = answer("--raw", "hello", "--logit-bias", f"{ids[0]}=100")
        self.assertEqual(biased["content"], "a" * 24)
        forbidden = answer("--raw", "hello", "--logit-bias", f"{ids[0]}=-100",
                           "--logit-bias", f"{ids[0] + 1}=100")
        self.assertNotIn("a", forbidden["content"])

    def test_empty_value_unsets_the_configured_one(self):
        limited = lean("run", MODEL, "--json", "--raw", "--temperature", "0", "--ignore-eos",
                       "--max-tokens=", "--ctx", "40", "hello", LEAN_MODEL_SAMPLING_MAX_TOKENS="3")
        self.assertGreater(json.loads(limited.stdout)["usage"]["completion_tokens"], 3)


class Signals(unittest.TestCase):
    def start(self, *args):
        process = subprocess.Popen([LEAN, "run", MODEL, "--raw", "--ctx", "400000", "--ignore-eos",
                                    *args, "hello"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=environment())
        self.addCleanup(process.kill)
        return process

    def test_interrupt_stops_the_answer(self):
        process = self.start()
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 130)
        self.assertTrue(out.endswith(b"\n"))
        self.assertEqual(err, b"lean: error: interrupted\n")

    def test_interrupt_with_json_prints_what_there_is(self):
        process = self.start("--json", "--verbose")
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 130)
        first = json.loads(out.splitlines()[0])
        self.assertEqual(first["finish_reason"], "abort")
        self.assertTrue(first["content"])

    def test_terminate_ends_as_the_signal_does(self):
        process = self.start()
        process.stdout.read(20)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        self.assertEqual(process.returncode, -signal.SIGTERM)

    def test_it_stops_when_the_reader_leaves(self):
        process = self.start()
        process.stdout.read(20)
        process.stdout.close()
        self.assertEqual(process.wait(timeout=10), -signal.SIGPIPE)
        process.stderr.close()


class Mistakes(unittest.TestCase):
    def assert_fails(self, code, pattern, *args, **more):
        result = lean("run", *args, **more)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertRegex(result.stderr, pattern)
        self.assertEqual(result.stdout, "")

    def test_mistakes_have_their_codes(self):
        self.assert_fails(3, "model '/no/such.gguf': no such file", "/no/such.gguf", "hi")
        self.assert_fails(3, "model '/no/such': No such file", "file:/no/such", "hi")
        self.assert_fails(5, "cli_run.py", os.path.abspath(__file__), "hi")
        self.assert_fails(2, "the prompt is empty", MODEL, "--raw", input="")
        self.assert_fails(9, "no chat template\nhint: --raw",
                          os.path.join(os.path.dirname(MODEL), "llama-k-q3_k.gguf"), "hi")
        self.assert_fails(2, "--max-tokens must be at least 1", MODEL, "--raw", "hi",
                          "--max-tokens", "0")
        self.assert_fails(2, "token 512, the vocabulary has 512", MODEL, "--raw", "hi",
                          "--logit-bias", "512=1")
        self.assert_fails(2, "--logit-bias must be ID=X", MODEL, "--raw", "hi", "--logit-bias", "x")
        self.assert_fails(2, "--top-p must be at most 1", MODEL, "--raw", "hi", "--top-p", "2")
        self.assert_fails(2, r"--think must be one of on\|off\|", MODEL, "--think", "banana", "hi")
        self.assert_fails(2, "no file is named", MODEL, "--system", "@", "hi")
        self.assert_fails(5, "user message is not UTF-8: byte 1 is 0xff", MODEL, b"a\xff")
        self.assert_fails(9, r"\b16\b", MODEL, "--raw", "--ctx", "16", "word " * 100)

    def test_a_template_that_fails_says_so(self):
        with tempfile.NamedTemporaryFile("w") as template:
            template.write("{{ raise_exception('not like this') }}")
            template.flush()
            self.assert_fails(2, "not like this", MODEL, "--chat-template", template.name, "hi")
            template.write("{% if")
            template.flush()
            self.assert_fails(5, "line 1", MODEL, "--chat-template", template.name, "hi")


if __name__ == "__main__":
    unittest.main()
