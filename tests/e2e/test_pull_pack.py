"""`lean pull --pack`: the pack is that of `lean pack`, made while the model arrives, without a second copy."""
import filecmp
import json
import os
import subprocess
import tempfile
import time

import pull
from cli import LEAN
from gguf_file import I32, U16, File
from pull import MIB, REPO, PullCase


def usage(folder):
    """Bytes on the disk."""
    n = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                n += os.lstat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return n


class Packing(PullCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.made = tempfile.TemporaryDirectory(prefix="lean-test-pull-pack-")
        cls.addClassCleanup(cls.made.cleanup)
        for name, n_expert in (("large", 32), ("small", 6)):
            model = f"{cls.made.name}/{name}.gguf"
            subprocess.run([LEAN, "synth", "qwen35moe", "Q8_0", "--layers", "12", "--experts", str(n_expert),
                            "-o", model, "--quiet"], check=True, capture_output=True)
            subprocess.run([LEAN, "pack", model, "-o", model + ".lmpack", "--quiet"], check=True,
                           capture_output=True)

    def served(self, name, **settings):
        with open(f"{self.made.name}/{name}.gguf", "rb") as file:
            self.content = file.read()
        return self.hub({"m-Q4_K_M.gguf": self.content}, **settings)

    def check_pack(self, folder, name):
        want = f"{self.made.name}/{name}.gguf.lmpack"
        found = filecmp.dircmp(folder, want)
        self.assertEqual((found.left_only, found.right_only), ([], []))
        _, differ, bad = filecmp.cmpfiles(folder, want, found.common, shallow=False)
        self.assertEqual((differ, bad), ([], []))

    def pack_folder(self, hub):
        return (f"{self.cache}/models--some-org--Model-8B-GGUF/snapshots/{hub.repos[REPO].commit}/"
                "m-Q4_K_M.lmpack")

    def test_the_same_pack_without_a_second_copy(self):
        hub = self.served("large", rate=4 * MIB)
        process = self.start(hub, REPO, "--pack", "--segment", "1M", "--jobs", "4")
        peak = 0
        while process.poll() is None:
            peak = max(peak, usage(self.cache))
            time.sleep(0.05)
        self.assertEqual(process.returncode, 0, process.stderr.read())
        self.check_pack(self.pack_folder(hub), "large")
        self.assertEqual(self.left_over(), [])
        self.assertLess(usage(self.cache), len(self.content) + 4 * MIB)
        # the 32 MiB that are fetched before anything is packed are there twice for a moment
        self.assertLess(peak, 1.6 * len(self.content), len(self.content))
        listed = json.loads(self.run_lean(hub, "--json", command="list").stdout)
        self.assertEqual([(entry["variant"], entry["format"]) for entry in listed], [("Q4_K_M", "lmpack")])
        before = len(hub.log)
        self.pull(hub, REPO, "--pack")
        self.assertFalse([entry for entry in hub.log[before:] if "/resolve/" in entry["path"]])
        self.assertIn("qwen35moe", self.run_lean(hub, REPO, command="inspect").stdout)
        self.run_lean(hub, REPO, command="rm")
        self.assertFalse(os.path.exists(self.cache + "/models--some-org--Model-8B-GGUF"))

    def test_killed_and_resumed(self):
        hub = self.served("large", rate=6 * MIB)
        for _ in range(3):
            process = self.start(hub, REPO, "--pack", "--segment", "1M", "--jobs", "4")
            time.sleep(0.8)
            process.kill()
            process.communicate()
            self.assertFalse(os.path.exists(self.pack_folder(hub)))
        hub.rate = None
        self.pull(hub, REPO, "--pack")
        self.check_pack(self.pack_folder(hub), "large")
        self.assertEqual(self.left_over(), [])

    def test_wrong_bytes_make_no_pack(self):
        hub = self.served("small")
        hub.fault("m-Q4_K_M.gguf", wrong=True, times=1, after=8)
        self.assertIn("hash is not", self.pull(hub, REPO, "--pack", "--segment", "1M", code=5).stderr)
        self.assertFalse(os.path.exists(self.pack_folder(hub)))
        self.pull(hub, REPO, "--pack")
        self.check_pack(self.pack_folder(hub), "small")

    def test_what_is_no_model(self):
        hub = self.hub({"m-Q4_K_M.gguf": pull.data(MIB)})
        self.assertIn("m-Q4_K_M.gguf", self.pull(hub, REPO, "--pack", code=5).stderr)
        hub = self.hub({"model.safetensors": pull.data(MIB)})
        self.assertIn("cannot be packed", self.pull(hub, REPO, "--pack", code=9).stderr)

    def test_parts(self):
        names, files = list(File(self.made.name + "/small.gguf").tensors), {}
        for number, part in enumerate((names[:20], names[20:25], names[25:])):
            file = File(self.made.name + "/small.gguf")
            file.tensors = {name: file.tensors[name] for name in part}
            if number:
                file.keys = {key: value for key, value in file.keys.items() if key.startswith("general.")}
            file.keys["split.no"] = (U16, number)
            file.keys["split.count"] = (U16, 3)
            file.keys["split.tensors.count"] = (I32, len(names))
            path = f"{self.folder}/part"
            file.write(path)
            with open(path, "rb") as stream:
                files[f"Q4_K_M/m-Q4_K_M-{number + 1:05}-of-00003.gguf"] = stream.read()
        hub = self.hub(files)
        self.pull(hub, REPO, "--pack")
        self.check_pack(self.pack_folder(hub), "small")

    def test_to_a_folder(self):
        hub = self.served("small")
        self.pull(hub, REPO, "--pack", "--dest", self.folder + "/plain")
        self.check_pack(self.folder + "/plain/m-Q4_K_M.lmpack", "small")
        self.assertEqual(os.listdir(self.folder + "/plain"), ["m-Q4_K_M.lmpack"])


if __name__ == "__main__":
    pull.main()
