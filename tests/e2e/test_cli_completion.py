"""lean completion: bash really completes with it; zsh and fish at least parse it, where present."""
import os
import shutil
import subprocess
import tempfile
import unittest

from cli import lean

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_lean
printf '%s\\n' "${COMPREPLY[@]}"
"""


class Bash(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.script = os.path.join(cls.folder.name, "lean.bash")
        with open(cls.script, "w") as file:
            file.write(lean("completion", "bash").stdout)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def complete(self, *words):
        result = subprocess.run(["bash", "-c", ASK, "bash", self.script, "lean", *words],
                                capture_output=True, text=True, cwd=self.folder.name)
        self.assertEqual(result.stderr, "")
        return result.stdout.split()

    def test_commands(self):
        self.assertEqual(self.complete("vers"), ["version"])
        self.assertLessEqual({"help", "version", "config"}, set(self.complete("")))
        self.assertEqual(self.complete("help", "vers"), ["version"])
        self.assertEqual(self.complete("config", "sh"), ["show"])

    def test_options_and_their_values(self):
        self.assertEqual(self.complete("version", "--prog"), ["--progress"])
        self.assertEqual(self.complete("version", "--progress", "t"), ["tty"])
        self.assertEqual(self.complete("version", "--progress", "=", "p"), ["plain"])
        self.assertEqual(self.complete("config", "--ori"), ["--origin"])
        self.assertEqual(self.complete("tokenize", "--no-sp"), ["--no-special"])

    def test_files(self):
        with open(os.path.join(self.folder.name, "my.gguf"), "w"):
            pass
        self.assertEqual(self.complete("tokenize", "my"), ["my.gguf"])
        self.assertEqual(self.complete("config", "--config", "my"), ["my.gguf"])

    def test_every_option_of_every_command_is_there(self):
        for command in self.complete(""):
            options = set(self.complete(command, "--"))
            words = lean(command, "--help").stdout.split()
            shown = {word.rstrip(",") for word in words if word.startswith("--")
                     and word[2:3].isalpha()}
            self.assertLessEqual({"--help", "--json"}, options & shown)
            self.assertLessEqual(options, shown, command)


class OtherShells(unittest.TestCase):
    def test_they_parse(self):
        for shell in ("zsh", "fish"):
            script = lean("completion", shell).stdout
            self.assertIn("version", script)
            if not shutil.which(shell):
                print(f"{shell} is not installed: its script was printed but not parsed")
                continue
            result = subprocess.run([shell, "-n", "/dev/stdin"], input=script, text=True,
                                    capture_output=True)
            self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_an_unknown_shell_is_a_mistake(self):
        self.assertEqual(lean("completion", "tcsh").returncode, 2)


if __name__ == "__main__":
    unittest.main()
