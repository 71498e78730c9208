"""The conventions of the command line: help, errors, exit codes, JSON, broken output."""
import json
import os
import subprocess
import tempfile
import unittest

import gguf_file
from cli import LEAN, SOURCE_DIR, environment, lean

MODEL = os.path.join(SOURCE_DIR, "tests/data/golden/models/qwen35moe-s-q8_0.gguf")


class Help(unittest.TestCase):
    def test_overview_lists_every_command_and_each_explains_itself(self):
        overview = lean("help")
        self.assertEqual(overview.returncode, 0)
        names = [line.split()[0] for line in overview.stdout.splitlines()
                 if line.startswith("  ")]
        self.assertIn("version", names)
        for name in names:
            by_command, by_option = lean("help", name), lean(name, "--help")
            self.assertEqual(by_command.returncode, 0, name)
            self.assertEqual(by_command.stdout, by_option.stdout)
            self.assertTrue(by_command.stdout.startswith(f"usage: lean {name} "))
            self.assertTrue(all(len(line) <= 100 for line in by_command.stdout.splitlines()), name)

    def test_help_goes_to_stdout(self):
        self.assertEqual(lean("--help").stderr, "")
        self.assertEqual(lean("--help").stdout, lean("help").stdout)


class Mistakes(unittest.TestCase):
    def assert_fails(self, result, code, stderr):
        self.assertEqual((result.returncode, result.stderr), (code, stderr))

    def test_unknown_names_suggest_the_nearest(self):
        hint = "hint: lean help lists the commands\n"
        self.assert_fails(lean(), 2, "lean: error: no command given\n" + hint)
        self.assert_fails(lean("versoin"), 2,
                          "lean: error: unknown command 'versoin', did you mean version?\n" + hint)
        self.assert_fails(lean("version", "--jsn"), 2,
                          "lean: error: unknown option --jsn, did you mean --json?\n"
                          "hint: lean help version explains it\n")

    def test_too_few_or_many_arguments(self):
        for args, message in ((["version", "x"], "version takes no arguments, got 1 argument"),
                              (["inspect"], "inspect takes MODEL, got 0 arguments"),
                              (["quantize", "a", "b"], "quantize takes SRC DST TYPE, got 2 arg"),
                              (["config", "path", "x"], "config path takes no argument"),
                              (["help", "run", "x"], r"help takes [COMMAND], got 2 arguments")):
            result = lean(*args)
            self.assertEqual((result.returncode, result.stdout), (2, ""), args)
            self.assertIn(message, result.stderr)
        self.assertEqual(lean("inspect", "--help").returncode, 0)

    def test_every_command_takes_the_same_names_for_a_model(self):
        by_path = lean("tokenize", MODEL, "hello")
        self.assertEqual(by_path.returncode, 0, by_path.stderr)
        with tempfile.TemporaryDirectory() as folder:
            config = os.path.join(folder, "config.textproto")
            with open(config, "w") as file:
                file.write(f'model {{ name: "small" ref: "{MODEL}" }}')
            os.mkdir(os.path.join(folder, "small"))  # a folder of that name is not meant
            for name in ("small", "file:" + MODEL):
                result = lean("tokenize", name, "hello", LEAN_CONFIG=config, cwd=folder)
                self.assertEqual(result.stdout, by_path.stdout, name)
                for words in (["inspect", name], ["eval", name, "--ids", "1"],
                              ["template", name], ["quantize", name, "x", "Q8_0", "--dry-run"]):
                    result = lean(*words, LEAN_CONFIG=config, input="{}")
                    self.assertNotEqual(result.returncode, 3, words)

    def test_what_is_no_file_is_no_model(self):
        folder = os.path.dirname(MODEL)
        first = sorted(name for name in os.listdir(folder) if name.endswith(".gguf"))[0]
        for words in (["run", folder, "hi"], ["inspect", folder], ["tokenize", folder, "hi"],
                      ["eval", folder, "--ids", "1"], ["template", folder],
                      ["quantize", folder, "x", "Q8_0"]):
            result = lean(*words, input="")
            self.assertEqual(result.returncode, 2, words)
            self.assertIn(f"model '{folder}': a folder, not a file\nhint: name a file in it, as ",
                          result.stderr)
            self.assertIn(first, result.stderr)
        result = lean("run", "/dev/zero", "hi")
        self.assertEqual((result.returncode, result.stderr), (
            2, "lean: error: model '/dev/zero': a device or pipe, not a file\n"))

    def test_json_error_is_one_object(self):
        result = lean("config", "get", "serve.paralel", "--json")
        event = json.loads(result.stdout)
        self.assertEqual(result.returncode, 2)
        self.assertEqual(event["event"], "error")
        self.assertEqual(event["exit_code"], 2)
        self.assertIn("did you mean serve.parallel?", event["message"])

    def test_escape_sequences_do_not_reach_the_terminal(self):
        result = lean("no\x1b[31msuch")
        self.assertNotIn("\x1b", result.stderr)
        self.assertIn("\\x1b[31m", result.stderr)

    def test_quiet_keeps_errors(self):
        loud, quiet = [lean("config", "get", "model.ctx", *more, LEAN_NONSENSE="1")
                       for more in ([], ["--quiet"])]
        self.assertIn("unknown environment variable LEAN_NONSENSE", loud.stderr)
        self.assertEqual(quiet.stderr, "lean: error: model.ctx is not set and has no fixed "
                                       "default\n")


class Output(unittest.TestCase):
    def test_version(self):
        self.assertRegex(lean("version").stdout, r"^lean \d+\.\d+\.\d+\n$")
        self.assertEqual(lean("--version").stdout, lean("version").stdout)
        self.assertIn("version", json.loads(lean("version", "--json").stdout))

    def test_infinities_are_null_in_json(self):
        """A file may forbid tokens: their logits are -infinity."""
        with tempfile.TemporaryDirectory() as folder:
            path, logits = os.path.join(folder, "m.gguf"), os.path.join(folder, "logits")
            file = gguf_file.File(MODEL)
            file.keys["tokenizer.ggml.suppress_tokens"] = (gguf_file.ARRAY, (gguf_file.I32, [7]))
            file.write(path)
            words = ["eval", path, "--ids", "5,7,6", "--json"]
            self.assertEqual(lean(*words, "--logits", logits).returncode, 0)
            result = json.loads(lean(*words, "--compare", logits).stdout,
                                parse_constant=lambda name: self.fail(name))
        self.assertIsNone(result["perplexity"])
        same = {"max_difference": 0, "mean_difference": 0, "kl_divergence": 0, "top1_agreement": 1}
        self.assertEqual(result["compare"], same)

    def run_with_stdout(self, stdout, **more):
        return subprocess.run([LEAN, "help"], stdout=stdout, stderr=subprocess.PIPE, text=True,
                              env=environment(), **more)

    def test_a_full_disk_is_an_error(self):
        with open("/dev/full", "w") as full:
            result = self.run_with_stdout(full)
        self.assertEqual(result.returncode, 6)
        self.assertIn("No space left on device", result.stderr)

    def test_closed_stdout_is_an_error(self):
        result = self.run_with_stdout(None, preexec_fn=lambda: os.close(1))
        self.assertEqual(result.returncode, 1)
        self.assertIn("standard output", result.stderr)

    def test_a_reader_that_left_is_none(self):
        reader, writer = os.pipe()
        os.close(reader)
        result = self.run_with_stdout(writer)
        os.close(writer)
        self.assertEqual((result.returncode, result.stderr), (-13, ""))


if __name__ == "__main__":
    unittest.main()
