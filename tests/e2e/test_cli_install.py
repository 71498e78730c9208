"""cmake --install: what is installed works from there, and the manual pages tell what --help does."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from cli import LEAN, environment, lean

BUILD = os.environ.get("LEAN_BUILD_DIR", os.path.dirname(LEAN))


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prefix = tempfile.mkdtemp(prefix="lean-test-install-")
        cls.addClassCleanup(shutil.rmtree, cls.prefix)
        subprocess.run(["cmake", "--install", BUILD, "--prefix", cls.prefix], check=True,
                       stdout=subprocess.DEVNULL)

    def read(self, *path):
        with open(os.path.join(self.prefix, *path)) as file:
            return file.read()

    def test_the_installed_program_finds_its_demonstration_model(self):
        done = subprocess.run([os.path.join(self.prefix, "bin/lean"), "run", "--max-tokens", "1"],
                              input="hi", capture_output=True, text=True, env=environment())
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(os.path.join(self.prefix, "bin/../share/lean/demo"), done.stderr)

    def test_completions_are_what_the_program_prints(self):
        for shell, path in (("bash", "share/bash-completion/completions/lean"),
                            ("zsh", "share/zsh/site-functions/_lean"),
                            ("fish", "share/fish/vendor_completions.d/lean.fish")):
            self.assertEqual(self.read(path), lean("completion", shell).stdout)

    def test_manual_pages_have_every_option_of_the_help(self):
        overview = lean("help").stdout
        names = re.findall(r"^  (\w+) ", overview, re.M)
        pages = os.listdir(os.path.join(self.prefix, "share/man/man1"))
        self.assertEqual(sorted(pages), sorted(["lean.1"] + [f"lean-{name}.1" for name in names]))
        for name in names:
            page = self.read("share/man/man1", f"lean-{name}.1")
            shown = re.findall(r"^ {2,6}(?:-\w, )?--([a-z][a-z0-9-]*)", lean("help", name).stdout, re.M)
            self.assertIn("config", shown)
            for option in shown:
                self.assertIn("\\-\\-" + option.replace("-", "\\-") + "\\fR", page, name)

    @unittest.skipUnless(shutil.which("groff"), "groff is not installed")
    def test_troff_has_no_complaint(self):
        folder = os.path.join(self.prefix, "share/man/man1")
        for page in sorted(os.listdir(folder)):
            done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z",
                                   os.path.join(folder, page)], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""), page)


if __name__ == "__main__":
    unittest.main()
