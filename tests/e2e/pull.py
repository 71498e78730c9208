"""What the tests of `lean pull` share."""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

from cli import LEAN, environment
from hub_server import Hub

MIB = 1 << 20
REPO = "some-org/Model-8B-GGUF"


def data(n, seed=0):
    return random.Random(seed).randbytes(n)


class PullCase(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="lean-test-pull-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.cache = os.path.join(self.folder, "cache")

    def hub(self, files=None, repo=REPO, **settings):
        hub = Hub(**settings)
        self.addCleanup(hub.__exit__)
        if files:
            hub.add(repo, files)
        return hub

    def variables(self, hub, **extra):
        """The environment: no token or cache of whoever runs the tests."""
        home = os.path.join(self.folder, "home")
        return environment() | {"HF_ENDPOINT": hub.endpoint if hub else "http://127.0.0.1:1",
                                "LEAN_CACHE": self.cache, "HOME": home, "HF_HOME": home,
                                "HF_TOKEN": "", "no_proxy": "127.0.0.1"} | extra

    def start(self, hub, *args, command="pull", env=None, **more):
        return subprocess.Popen([LEAN, command, *map(str, args)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
                                env=env or self.variables(hub), **more)

    def run_lean(self, hub, *args, code=0, command="pull", **extra):
        result = subprocess.run([LEAN, command, *map(str, args)], capture_output=True, timeout=120,
                                stdin=subprocess.DEVNULL, text=True, env=self.variables(hub, **extra))
        self.assertEqual(result.returncode, code, result.stderr + result.stdout)
        return result

    def pull(self, hub, *args, **more):
        return self.run_lean(hub, *args, **more)

    def check_files(self, folder, files):
        for path, expected in files.items():
            with open(os.path.join(folder, path), "rb") as file:
                self.assertTrue(file.read() == expected, f"{path} differs")

    def left_over(self):
        """Files of downloads under way."""
        return sorted(name for _, _, names in os.walk(self.cache) for name in names if ".lean-" in name)


def main():
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
