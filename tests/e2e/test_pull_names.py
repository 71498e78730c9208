"""Models by name: the registry, `lean run NAME`, `lean list`, `lean rm`."""
import json
import os
import pty
import signal
import subprocess
import time

import pull
from cli import LEAN
from pull import REPO, PullCase, data

SOURCE = os.environ.get("LEAN_SOURCE_DIR", os.path.join(os.path.dirname(__file__), "../.."))
OURS = {"lean-agent-35b", "lean-coder-80b", "lean-agent-122b", "lean-reason-397b", "lean-think-398b"}


class Names(PullCase):
    def setUp(self):
        super().setUp()
        with open(f"{SOURCE}/configs/demo/lean-demo-q4_k_m.gguf", "rb") as file:
            demo = file.read()
        self.files = {"demo-Q4_K_M.gguf": demo, "demo-Q8_0.gguf": data(5000),
                      "other/demo-Q4_K_M.lmpack/manifest.pb": data(70)}
        self.server = self.hub(self.files)
        self.config = os.path.join(self.folder, "config")
        self.runtime = os.path.join(self.folder, "runtime")
        os.makedirs(self.config + "/lean")
        os.makedirs(self.runtime, mode=0o700)
        self.names(f'model {{ name: "tiny" summary: "a test" repository: "{REPO}" default_variant: "Q4_K_M"\n'
                   '  variant { label: "Q4_K_M" disk_size: "4MiB" ram_size: "1MiB" }\n'
                   '  variant { label: "Q8_0" disk_size: "1MiB" ram_size: "900TiB" vram_size: "1GiB" } }\n')

    def names(self, text):
        with open(self.config + "/lean/registry.textproto", "w") as file:
            file.write(text)

    def variables(self, hub, **extra):
        return super().variables(hub, **{"XDG_CONFIG_HOME": self.config,
                                         "XDG_RUNTIME_DIR": self.runtime, **extra})

    def lean(self, *args, **more):
        return self.run_lean(self.server, *args[1:], command=args[0], **more)

    def test_ours(self):
        listed = json.loads(self.lean("list", "--available", "--json").stdout)
        self.assertEqual(OURS | {"tiny"}, {entry["name"] for entry in listed})
        for entry in listed:
            if entry["name"] in OURS:
                self.assertEqual(entry["variant"], "Q4_K_M")
                self.assertTrue(entry["ram_bytes"] and entry["vram_bytes"] and entry["disk_bytes"] > 1 << 34)
        self.assertRegex(self.lean("ls", "--available").stdout, r"lean-agent-35b +19.7 GiB +4.00 GiB")

    def test_every_variant_of_ours_is_asked_for_at_the_hub(self):
        for name in OURS:
            for label in ("Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"):
                result = self.lean("pull", f"{name}:{label}", "--no-check", code=3)
                self.assertIn("no such repository", result.stderr)
                self.assertRegex(result.stderr, r"needs [\d.]+ GiB of disk and at least [\d.]+ GiB of memory")

    def test_user_names_replace_ours(self):
        self.names(f'model {{ name: "lean-agent-35b" repository: "{REPO}" default_variant: "Q8_0" }}')
        self.assertTrue(self.lean("pull", "lean-agent-35b").stdout)
        self.assertTrue(self.server.fetched("demo-Q8_0.gguf"))
        self.names('model { name: "x" repository: "nonsense" }')
        self.assertIn("registry.textproto: model x", self.lean("pull", "x", code=2).stderr)
        self.names('model { nam: "x" }')
        self.assertIn("registry.textproto:1:9", self.lean("pull", "x", code=2).stderr)

    def test_needs_are_checked_before_anything_is_fetched(self):
        result = self.lean("pull", "tiny:Q8_0", code=9)
        self.assertIn("it needs 900 TiB of memory", result.stderr)
        self.assertEqual(self.server.log, [])
        self.lean("pull", "tiny", "--variant", "Q8_0", code=9)
        self.lean("pull", "tiny:q8_0", "--no-check")

    def test_unknown_names(self):
        result = self.lean("pull", "lean-agent-35", code=3)
        self.assertIn("did you mean lean-agent-35b?", result.stderr)
        self.assertIn("lean list --available", result.stderr)

    def test_run_by_name(self):
        result = self.lean("run", "tiny", "hello", code=3)
        self.assertIn("hint: lean pull tiny", result.stderr)
        self.lean("pull", "tiny")
        for ref in ("tiny", "TINY:q4_k_m", REPO, "hf:" + REPO + "@main:Q4_K_M"):
            self.assertTrue(self.lean("run", ref, "-n", "4", "hello").stdout.strip())
        self.assertIn("vocabulary", self.lean("inspect", "tiny").stdout)
        self.assertIn("lean pull tiny:Q8_0", self.lean("inspect", "tiny:Q8_0", code=3).stderr)

    def test_run_offers_to_pull(self):
        def answer(text):
            leader, follower = pty.openpty()
            process = subprocess.Popen([LEAN, "run", "tiny", "-n", "4", "hello"], stdin=follower,
                                       stderr=follower, stdout=subprocess.PIPE,
                                       env=self.variables(self.server))
            os.close(follower)
            os.write(leader, text)
            out = process.communicate(timeout=60)[0]
            shown = os.read(leader, 100000).decode()
            os.close(leader)
            return process.returncode, out, shown
        code, _, shown = answer(b"n\n")
        self.assertEqual(code, 3)
        self.assertIn("tiny is not here. Download it, 4.00 MiB? [Y/n]", shown)
        code, out, _ = answer(b"\n")
        self.assertEqual(code, 0)
        self.assertTrue(out.strip())

    def test_list_and_rm(self):
        self.assertEqual(len(self.lean("list").stdout.splitlines()), 1)
        self.lean("pull", "tiny")
        self.lean("pull", "tiny:Q8_0", "--no-check")
        self.lean("pull", REPO + "@v1:Q8_0")
        self.assertRegex(self.lean("ls").stdout, REPO + r" +Q4_K_M +[\d.]+ MiB +gguf +20\d\d-")
        listed = json.loads(self.lean("list", "--json").stdout)
        self.assertEqual([entry["variant"] for entry in listed], ["Q4_K_M", "Q8_0"])
        self.assertEqual(listed[0]["size"], len(self.files["demo-Q4_K_M.gguf"]))
        root = f"{self.cache}/models--some-org--Model-8B-GGUF"
        self.lean("rm", REPO + ":Q4_K_M", "--dry-run")
        self.assertEqual(len(os.listdir(root + "/blobs")), 2)
        self.lean("rm", "tiny", "-y")
        self.assertEqual(len(os.listdir(root + "/blobs")), 1)
        self.lean("rm", "tiny", code=3)
        self.lean("rm", REPO)
        self.assertFalse(os.path.exists(root))
        self.lean("rm", REPO, code=3)

    def test_a_blob_that_another_snapshot_uses_stays(self):
        self.lean("pull", "tiny:Q8_0", "--no-check")
        old = self.server.repos[REPO].commit
        self.server.add(REPO, {**self.files, "README.md": b"new"})
        self.lean("pull", "tiny:Q8_0", "--no-check")
        self.lean("rm", f"{REPO}@{old}")
        self.assertEqual(len(json.loads(self.lean("ls", "--json").stdout)), 1)
        path = self.lean("pull", REPO + ":Q8_0", "--offline").stdout.strip()
        self.check_files(path, {"demo-Q8_0.gguf": self.files["demo-Q8_0.gguf"]})

    def test_partial(self):
        self.server.rate = 1 << 20
        process = self.start(self.server, REPO + ":Q4_K_M", "--jobs", "1")
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.communicate()
        self.assertRegex(self.lean("ls").stdout, r"Q4_K_M +[\d.]+ (K|M)iB of [\d.]+ MiB, partial +gguf")
        self.lean("rm", REPO + ":Q4_K_M")
        self.assertEqual(self.left_over(), [])

    def test_rm_leaves_what_is_being_downloaded_and_other_variants(self):
        self.server.add(REPO, {"m-BF16.gguf": data(4 << 20), "m-F16.gguf": data(3000)})
        self.lean("pull", REPO + ":F16")
        self.server.rate = 2 << 20
        process = self.start(self.server, REPO + ":BF16", "--jobs", "1")
        while not any(name.endswith(".lean-part.j") for name in self.left_over()):
            time.sleep(0.02)
        self.assertIn(f"is being downloaded by process {process.pid}", self.lean("rm", REPO, code=8).stderr)
        self.lean("rm", REPO + ":F16")
        error = process.communicate()[1]
        self.assertEqual(process.returncode, 0, error)
        self.assertEqual([entry["variant"] for entry in json.loads(self.lean("ls", "--json").stdout)], ["BF16"])

    def test_names_that_other_programs_gave(self):
        folder = self.lean("pull", "tiny").stdout.strip()
        for name in ("a\nb", "a\\b", "\x1b[31m-Q8_0.gguf"):
            with open(f"{folder}/{name}", "w") as file:
                file.write("x")
        self.assertEqual(len(json.loads(self.lean("list", "--json").stdout)), 1)
        self.lean("pull", "tiny", "--offline")
        self.lean("rm", "tiny")

    def test_rm_leaves_what_a_server_uses(self):
        self.lean("pull", "tiny")
        process = subprocess.Popen([LEAN, "serve", "tiny", "--listen", "127.0.0.1:0", "--no-warmup"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                   env=self.variables(self.server))
        self.addCleanup(process.kill)
        self.assertIn("ready", process.stdout.readline())
        result = self.lean("rm", "tiny", code=8)
        self.assertIn(f"the server with process {process.pid} runs it", result.stderr)
        process.terminate()
        process.communicate()
        self.lean("rm", "tiny")


if __name__ == "__main__":
    pull.main()
