"""lean tokenize: ids of an argument or of any bytes on standard input, and what it refuses."""
import json
import os
import tempfile
import unittest

from cli import SOURCE_DIR, lean

DATA = os.path.join(SOURCE_DIR, "tests/data/tokenizer")
LLAMA = os.path.join(DATA, "llama-bpe.gguf")
QWEN = os.path.join(DATA, "qwen2.gguf")


def ids_of(model, data, *options):
    result = lean("tokenize", model, "--json", *options, input=data, text=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == b""
    return json.loads(result.stdout)["ids"]


class Tokenize(unittest.TestCase):
    def test_every_golden_string_on_standard_input(self):
        with open(os.path.join(DATA, "llama-bpe.json")) as file:
            cases = json.load(file)["cases"]
        self.assertEqual(len(cases), 65)
        for case in cases:
            data = bytes.fromhex(case["hex"])
            with self.subTest(data):
                self.assertEqual(ids_of(LLAMA, data), case["ids"])
                self.assertEqual(ids_of(LLAMA, data, "--no-special"),
                                 case.get("ids_plain", case["ids"]))
                self.assertEqual(ids_of(LLAMA, data, "--add-special"),
                                 case.get("ids_add_special", case["ids"]))

    def test_argument_is_what_standard_input_is(self):
        text = "Hello world\n\tthe <|im_end|> 你好"
        result = lean("tokenize", "--json", QWEN, text)
        self.assertEqual(json.loads(result.stdout)["ids"], ids_of(QWEN, text.encode()))
        self.assertEqual(result.stdout, result.stdout.replace(" ", ""))
        self.assertEqual(lean("tokenize", "--json", QWEN, "").stdout, '{"ids":[]}\n')

    def test_zero_bytes_and_long_input(self):
        self.assertEqual(len(ids_of(QWEN, b"\0" * 300)), 300)
        self.assertGreater(len(ids_of(QWEN, b"the reading " * 100000)), 200000)

    def test_list_shows_each_token_on_one_line(self):
        result = lean("tokenize", QWEN, "the\n\t\x1b[31m你\u0301<|im_end|>")
        lines = result.stdout.splitlines()
        self.assertEqual([int(line.split(" -> ")[0]) for line in lines],
                         ids_of(QWEN, "the\n\t\x1b[31m你\u0301<|im_end|>".encode()))
        self.assertTrue(lines[-1].endswith(" -> '<|im_end|>'"))
        self.assertIn(" -> '\\n'", result.stdout)
        self.assertIn(" -> '\\t'", result.stdout)
        self.assertIn(" -> '\\x1b'", result.stdout)
        self.assertIn(" -> '\\xcc'", result.stdout)  # half a character
        self.assertNotIn("\x1b", result.stdout)

    def assert_fails(self, code, message, *args):
        result = lean("tokenize", *args)
        self.assertEqual((result.returncode, result.stdout), (code, ""))
        self.assertIn(message, result.stderr)
        self.assertTrue(result.stderr.startswith("lean: error: "))

    def test_mistakes_have_their_exit_codes(self):
        self.assert_fails(2, "takes MODEL")
        self.assert_fails(2, "takes MODEL", QWEN, "two", "texts")
        self.assert_fails(2, "unknown option", QWEN, "text", "--no-such")
        self.assert_fails(3, "no-such.gguf", "no-such.gguf", "text")
        self.assert_fails(5, "make_gguf.py", os.path.join(SOURCE_DIR, "tests/fuzz/corpus/make_gguf.py"), "text")
        with open(QWEN, "rb") as file:
            data = file.read()
        for change, code, message in (
                ((b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0other"), 9, 'unknown pre-tokenizer "other"'),
                ((b"gpt2", b"bert"), 9, 'tokenizer model "bert"'),
                ((b"ggml.tokens", b"ggml.tokenz"), 5, "no key tokenizer.ggml.tokens")):
            self.assertEqual(data.count(change[0]), 1, change)
            with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
                file.write(data.replace(*change))
                file.flush()
                self.assert_fails(code, message, file.name, "text")


if __name__ == "__main__":
    unittest.main()
