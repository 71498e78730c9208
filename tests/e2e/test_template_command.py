"""lean template: where the template and its variables come from, the clock, and how failures end."""
import os
import tempfile
import unittest

import gguf_file
from cli import SOURCE_DIR, lean
from gguf_file import STRING, U32

VOCABULARY = os.path.join(SOURCE_DIR, "tests/data/tokenizer/qwen2.gguf")
FAILED_USAGE, NOT_FOUND, MALFORMED, LIMIT = 2, 3, 5, 9


class Template(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def write(self, text):
        path = os.path.join(self.folder, "t.jinja")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def model(self, **templates):
        """A vocabulary with templates: main is the one without a name."""
        file = gguf_file.File(VOCABULARY)
        file.keys["tokenizer.ggml.bos_token_id"] = (U32, 0)
        for name, text in templates.items():
            key = "tokenizer.chat_template" + ("" if name == "main" else "." + name)
            file.keys[key] = (STRING, text.encode().decode("latin-1"))
        path = os.path.join(self.folder, "m.gguf")
        file.write(path)
        return path, file

    def render(self, *arguments, variables="{}"):
        result = lean("template", *arguments, input=variables)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout

    def refuse(self, code, parts, *arguments, variables="{}"):
        result = lean("template", *arguments, input=variables)
        self.assertEqual((result.returncode, result.stdout), (code, ""), result.stderr)
        for part in parts:
            self.assertIn(part, result.stderr)

    def test_the_text_is_printed_exactly(self):
        path = self.write("{{ messages[0].content }}\u00e9")
        self.assertEqual(self.render(path, variables='{"messages":[{"content":" a\\n\\n"}]}'), " a\n\n\u00e9")
        self.assertEqual(self.render(self.write("")), "")

    def test_a_model_has_templates_and_tokens(self):
        path, file = self.model(main="<{{ bos_token }}>", tool_use="tools \u00e9")
        first = file.keys["tokenizer.ggml.tokens"][1][1][0].encode("latin-1").decode()
        self.assertEqual(self.render(path), f"<{first}>")
        self.assertEqual(self.render(path, variables='{"bos_token":"mine"}'), "<mine>")
        self.assertEqual(self.render(path, "--name", "tool_use"), "tools \u00e9")
        self.refuse(NOT_FOUND, ["tokenizer.chat_template.other"], path, "--name", "other")
        self.refuse(NOT_FOUND, ["no chat template"], VOCABULARY)
        self.refuse(FAILED_USAGE, ["--name"], self.write("x"), "--name", "tool_use")

    def test_the_clock_can_be_given(self):
        path = self.write("{{ strftime_now('%Y-%m-%d %H:%M:%S %a %j') }}")
        self.assertEqual(self.render(path, "--now", "2026-01-02T03:04:05"), "2026-01-02 03:04:05 Fri 002")
        self.assertEqual(self.render(path, "--now", "2024-02-29T23:59:59"), "2024-02-29 23:59:59 Thu 060")
        for wrong in ("2026-02-29T00:00:00", "2026-01-02", "2026-01-02T03:04:05Z"):
            self.refuse(FAILED_USAGE, ["--now"], path, "--now", wrong)

    def test_failures_have_their_codes(self):
        self.refuse(FAILED_USAGE, ["no user"], self.write("a{{ raise_exception('no user') }}"))
        self.refuse(MALFORMED, ["line 2"], self.write("a\n{% if %}"))
        self.refuse(MALFORMED, ["'x' is undefined"], self.write("a{{ x.y }}"))
        self.refuse(MALFORMED, ["JSON"], self.write("a"), variables="{")
        self.refuse(MALFORMED, ["JSON object"], self.write("a"), variables="[]")
        self.refuse(LIMIT, ["steps"], self.write(
            "{% for i in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"))
        self.refuse(NOT_FOUND, [], os.path.join(self.folder, "none.jinja"))


if __name__ == "__main__":
    unittest.main()
