"""`lean pull`: references, variants, plans, the cache's layout, what is printed."""
import json
import os
import pty
import subprocess

import pull
from cli import LEAN
from hub_server import TOKEN
from pull import MIB, REPO, PullCase, data

FILES = {
    "README.md": b"# a model\n",
    "mmproj-F16.gguf": data(3000, 1),
    "model-Q8_0.gguf": data(5000, 2),
    "model-Q4_K_M-00001-of-00003.gguf": data(MIB, 3),
    "model-Q4_K_M-00002-of-00003.gguf": data(2 * MIB + 17, 4),
    "model-Q4_K_M-00003-of-00003.gguf": data(70000, 5),
    "UD-Q2_K_XL/model-UD-Q2_K_XL.gguf": data(9000, 6),
}
Q4 = {path: content for path, content in FILES.items() if "Q4_K_M" in path}


class References(PullCase):
    def test_the_preferred_variant_whole_in_the_public_layout(self):
        hub = self.hub(FILES, page=2)
        result = self.pull(hub, REPO, "--segment", "256K")
        commit = hub.repos[REPO].commit
        root = f"{self.cache}/models--some-org--Model-8B-GGUF"
        self.assertEqual(result.stdout, f"{root}/snapshots/{commit}\n")
        self.check_files(f"{root}/snapshots/{commit}", Q4)
        self.assertEqual(sorted(os.listdir(f"{root}/snapshots/{commit}")), sorted(Q4))
        for path in Q4:
            target = os.readlink(f"{root}/snapshots/{commit}/{path}")
            self.assertEqual(target, "../../blobs/" + hub.repos[REPO].listed[path]["lfs"]["oid"])
        with open(f"{root}/refs/main") as file:
            self.assertEqual(file.read(), commit)
        self.assertEqual(self.left_over(), [])
        for entry in hub.log:
            self.assertEqual(entry["encoding"], "identity")
            if "/resolve/" in entry["path"] or entry["host"] == "storage":
                self.assertRegex(entry["range"], r"^bytes=\d+-\d+$")

    def test_nothing_is_fetched_twice(self):
        hub = self.hub(FILES)
        self.pull(hub, REPO, "--segment", "256K", "--jobs", "3")
        for path, content in Q4.items():
            ranges = sorted(hub.fetched(path))
            self.assertEqual([start for start, _ in ranges], [0] + [end for _, end in ranges[:-1]])
            self.assertEqual(ranges[-1][1], len(content))
        before = len(hub.log)
        self.pull(hub, REPO)
        self.assertFalse([entry for entry in hub.log[before:] if "/api/" not in entry["path"]])

    def test_variants(self):
        hub = self.hub(FILES)
        self.pull(hub, REPO + ":q8_0")
        self.pull(hub, REPO, "--variant", "UD-Q2_K_XL")
        self.assertTrue(hub.fetched("model-Q8_0.gguf"))
        self.assertTrue(hub.fetched("UD-Q2_K_XL/model-UD-Q2_K_XL.gguf"))
        self.assertFalse(hub.fetched("mmproj-F16.gguf"))
        snapshot = f"{self.cache}/models--some-org--Model-8B-GGUF/snapshots/{hub.repos[REPO].commit}"
        self.assertTrue(os.readlink(f"{snapshot}/UD-Q2_K_XL/model-UD-Q2_K_XL.gguf").startswith("../../../blobs/"))
        result = self.pull(hub, REPO + ":Q5_K_M", code=3)
        self.assertIn("no variant 'Q5_K_M'", result.stderr)
        self.assertRegex(result.stderr, r"Q4_K_M +3\.0\d MiB")

    def test_missing_part(self):
        hub = self.hub({path: content for path, content in FILES.items() if "00002" not in path})
        self.assertIn("2 of 3 parts", self.pull(hub, REPO + ":Q4_K_M", code=3).stderr)

    def test_globs(self):
        hub = self.hub(FILES)
        self.pull(hub, REPO, "--file", "*.md", "--file", "mmproj*", "--dest", f"{self.folder}/plain")
        self.assertEqual(sorted(os.listdir(f"{self.folder}/plain")), ["README.md", "mmproj-F16.gguf"])
        self.check_files(f"{self.folder}/plain", {"README.md": FILES["README.md"]})
        self.pull(hub, REPO, "--exclude", "*Q4_K_M*", "--include", "UD*")
        self.assertFalse(hub.fetched("model-Q4_K_M-00001-of-00003.gguf"))

    def test_safetensors(self):
        files = {"model-00001-of-00002.safetensors": data(5000), "model-00002-of-00002.safetensors": data(6000),
                 "model.safetensors.index.json": b"{}", "config.json": b"{}", "tokenizer.json": b"[]",
                 "pytorch_model.bin": data(9000), "chat_template.jinja": b"{{ x }}", "README.md": b"#"}
        hub = self.hub(files)
        folder = self.pull(hub, REPO).stdout.strip()
        self.assertEqual(sorted(os.listdir(folder)), sorted(set(files) - {"pytorch_model.bin", "README.md"}))

    def test_a_pack_and_some_of_its_layers(self):
        files = {"M-Q4_K_M.lmpack/manifest.pb": data(300), "M-Q4_K_M.lmpack/dense.gguf": data(4000),
                 **{f"M-Q4_K_M.lmpack/experts-{il:03}.bin": data(5000, il) for il in range(6)}}
        hub = self.hub(files)
        folder = self.pull(hub, REPO, "--layers", "2-3").stdout.strip()
        self.assertEqual(sorted(os.listdir(folder + "/M-Q4_K_M.lmpack")),
                         ["dense.gguf", "experts-002.bin", "experts-003.bin", "manifest.pb"])
        self.pull(hub, REPO)
        self.check_files(folder, files)

    def test_revisions(self):
        hub = self.hub(FILES)
        self.pull(hub, f"hf:{REPO}@pr/1:Q8_0")
        root = f"{self.cache}/models--some-org--Model-8B-GGUF"
        self.assertTrue(os.path.isfile(f"{root}/refs/pr/1"))
        self.pull(hub, REPO, "--revision", hub.repos[REPO].commit, "--variant", "Q8_0")
        self.assertFalse(os.path.exists(f"{root}/refs/main"))
        self.assertIn("no such revision", self.pull(hub, REPO + "@nope", code=3).stderr)

    def test_not_found_and_malformed(self):
        hub = self.hub(FILES)
        self.assertIn("no such repository", self.pull(hub, "some-org/other", code=3).stderr)
        self.pull(hub, "model", code=3)
        for ref in ("a/b/c", "../x", "a/..", "a/b@..", "a/b:", "a b/c"):
            self.pull(hub, ref, code=2)

    def test_hostile_listing(self):
        for path in ("../../../escape", "/etc/x", "a//b", "a/./b", "a\\b", "x\ny"):
            hub = self.hub({path + "-Q4_K_M.gguf": b"12345"})
            self.pull(hub, REPO, code=5)
        hub = self.hub(FILES)
        hub.repos[REPO].listed["model-Q8_0.gguf"]["lfs"]["oid"] = "../" * 20 + "abcd"
        self.pull(hub, REPO, code=5)


class Tokens(PullCase):
    def test_gated(self):
        hub = self.hub()
        hub.add(REPO, FILES, gated=True)
        result = self.pull(hub, REPO, code=7)
        self.assertIn("gated", result.stderr)
        self.assertIn("hint:", result.stderr)
        self.assertNotIn("gated", self.pull(hub, REPO, code=7, HF_TOKEN="hf_wrong").stderr)
        self.pull(hub, REPO + ":Q8_0", HF_TOKEN=TOKEN)
        self.pull(hub, REPO, code=7, HF_TOKEN=TOKEN, HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
        path = f"{self.folder}/token"
        with open(path, "w") as file:
            file.write(TOKEN + "\n")
        result = self.pull(hub, REPO, "-vv", "--token-file", path, HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
        self.assertNotIn(TOKEN, result.stderr + result.stdout)
        self.assertEqual(hub.leaks, [])
        self.assertTrue([entry for entry in hub.log if entry["host"] == "storage"])
        self.assertFalse([entry for entry in hub.log if entry["host"] == "storage" and entry["token"]])


class Plans(PullCase):
    def test_dry_run(self):
        hub = self.hub(FILES)
        result = self.pull(hub, REPO, "--dry-run")
        self.assertIn("variant Q4_K_M  3 files, 3.07 MiB", result.stdout)
        self.assertRegex(result.stdout, r"model-Q4_K_M-00001-of-00003.gguf +1.00 MiB  new")
        self.assertFalse(os.path.exists(self.cache))
        self.pull(hub, REPO)
        self.assertIn("to fetch: 0 B", self.pull(hub, REPO, "--dry-run").stdout)

    def test_offline(self):
        hub = self.hub(FILES)
        self.pull(hub, REPO + ":Q8_0", "--offline", code=3)
        folder = self.pull(hub, REPO + ":Q8_0").stdout
        before = len(hub.log)
        self.assertEqual(self.pull(hub, REPO + ":Q8_0", "--offline").stdout, folder)
        self.assertEqual(self.pull(hub, REPO, HF_HUB_OFFLINE="1").stdout, folder)
        self.pull(hub, REPO + ":Q4_K_M", "--offline", code=3)
        self.pull(hub, REPO + ":Q8_0", "--offline", "--dest", self.folder + "/plain", code=2)
        self.assertEqual(len(hub.log), before)

    def test_what_is_there_is_used_and_checked_when_asked(self):
        hub = self.hub(FILES)
        folder = self.pull(hub, REPO + ":Q8_0").stdout.strip()
        blob = os.path.realpath(folder + "/model-Q8_0.gguf")
        with open(blob, "r+b") as file:
            file.write(b"damage")
        self.pull(hub, REPO + ":Q8_0")
        with open(blob, "rb") as file:
            self.assertEqual(file.read(6), b"damage")
        result = self.pull(hub, REPO + ":Q8_0", "--verify", "full")
        self.assertIn("is damaged", result.stderr)
        self.check_files(folder, {"model-Q8_0.gguf": FILES["model-Q8_0.gguf"]})

    def test_what_another_program_put_there(self):
        hub = self.hub(FILES)
        blobs = f"{self.cache}/models--some-org--Model-8B-GGUF/blobs"
        os.makedirs(blobs)
        with open(f"{blobs}/{hub.repos[REPO].listed['model-Q8_0.gguf']['lfs']['oid']}", "wb") as file:
            file.write(FILES["model-Q8_0.gguf"])
        folder = self.pull(hub, REPO + ":Q8_0").stdout.strip()
        self.assertFalse(hub.fetched("model-Q8_0.gguf"))
        self.check_files(folder, {"model-Q8_0.gguf": FILES["model-Q8_0.gguf"]})

    def test_cache_folders(self):
        hub = self.hub({"m-Q4_K_M.gguf": data(2000)})
        home = f"{self.folder}/h"
        for extra, expected in (({"LEAN_CACHE": f"{home}/1", "HF_HUB_CACHE": f"{home}/2"}, f"{home}/1"),
                                ({"LEAN_CACHE": "", "HF_HUB_CACHE": f"{home}/2", "HF_HOME": f"{home}/3"}, f"{home}/2"),
                                ({"LEAN_CACHE": "", "HF_HOME": f"{home}/3"}, f"{home}/3/hub"),
                                ({"LEAN_CACHE": "", "HF_HOME": "", "XDG_CACHE_HOME": f"{home}/4"}, f"{home}/4/huggingface/hub"),
                                ({"LEAN_CACHE": "", "HF_HOME": "", "HOME": f"{home}/5", "XDG_CACHE_HOME": ""},
                                 f"{home}/5/.cache/huggingface/hub")):
            self.assertTrue(self.pull(hub, REPO, **extra).stdout.startswith(expected + "/models--"))


class Output(PullCase):
    def test_plain(self):
        hub = self.hub({"m-Q4_K_M.gguf": data(8 * MIB)}, rate=4 * MIB)
        result = self.pull(hub, REPO, "--jobs", "1")
        self.assertNotIn("\r", result.stderr)
        self.assertNotIn("\x1b", result.stderr)
        self.assertRegex(result.stderr, r"m-Q4_K_M +\d+% +.* MiB +.* MiB/s  \d")
        self.assertIn("m-Q4_K_M 100% 8.00 MiB\n", result.stderr)
        self.assertEqual(len(result.stdout.splitlines()), 1)
        self.assertEqual(self.pull(hub, REPO, "--quiet", "--force", "--progress", "tty").stderr, "")

    def test_json(self):
        hub = self.hub({"m-Q4_K_M.gguf": data(8 * MIB), "x-00001-of-00002.md": b""}, rate=4 * MIB)
        result = self.pull(hub, REPO, "--jobs", "1", "--json")
        events = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertTrue(all("time" in event for event in events))
        self.assertEqual(events[0]["event"], "plan")
        self.assertEqual(events[0]["files"][0]["state"], "new")
        progress = [event for event in events if event["event"] == "progress"]
        self.assertTrue(2 <= len(progress) <= 6, len(progress))
        self.assertEqual({"event", "time", "file", "done", "total", "rate", "eta_s"}, set(progress[0]))
        self.assertEqual([e["path"] for e in events if e["event"] == "file_done"], ["m-Q4_K_M.gguf"])
        self.assertEqual(events[-1]["event"], "result")
        self.assertEqual(events[-1]["bytes_fetched"], 8 * MIB)
        failed = self.pull(hub, "some-org/none", "--json", code=3)
        self.assertEqual(json.loads(failed.stdout.splitlines()[-1])["event"], "error")

    def test_rate(self):
        hub = self.hub({"m-Q4_K_M.gguf": data(4 * MIB)})
        result = self.pull(hub, REPO, "--json", "--limit-rate", "2M")
        seconds = json.loads(result.stdout.splitlines()[-1])["seconds"]
        self.assertTrue(1.0 < seconds < 6, seconds)

    def test_terminal(self):
        hub = self.hub({"m-Q4_K_M.gguf": data(6 * MIB)}, rate=4 * MIB)
        leader, follower = pty.openpty()
        process = subprocess.Popen([LEAN, "pull", REPO, "--jobs", "1"], stdout=subprocess.PIPE,
                                   stderr=follower, env=self.variables(hub, TERM="xterm"))
        os.close(follower)
        seen = b""
        while True:
            try:
                more = os.read(leader, 65536)
            except OSError:
                break
            if not more:
                break
            seen += more
        process.communicate()
        os.close(leader)
        self.assertEqual(process.returncode, 0)
        self.assertRegex(seen.decode(), "m-Q4_K_M +\\d+% █+ +.*MiB/s")
        self.assertRegex(seen.decode(), "total +\\d+% █")


if __name__ == "__main__":
    pull.main()
