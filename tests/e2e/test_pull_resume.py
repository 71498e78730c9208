"""`lean pull` that is killed, interrupted and started again fetches only what its journal lacks."""
import glob
import os
import random
import signal
import subprocess
import time
import unittest

import pull
from cli import LEAN, is_sanitized
from pull import MIB, REPO, PullCase, data

NAME = "m-Q4_K_M.gguf"
N_KILL = int(os.environ.get("LEAN_KILLS", "20"))


def journaled(cache):
    """The ranges that journals name."""
    out = []
    for path in glob.glob(f"{cache}/models--*/blobs/*.lean-part.j"):
        with open(path) as file:
            lines = file.read().split("\n")
        out += [tuple(map(int, line.split())) for line in lines[1:-1]]
    return out


class Resume(PullCase):
    def test_killed_at_random(self):
        rate, content = 3 * MIB, data(max(30, 3 * N_KILL // 2) * MIB)
        hub = self.hub({NAME: content}, rate=rate)
        chance = random.Random(9)
        n_round = n_kill = 0
        while True:
            known, before = journaled(self.cache), len(hub.log)
            process = self.start(hub, REPO, "--jobs", "3", "--segment", "1M")
            try:
                error = process.communicate(timeout=chance.uniform(0.05, 0.9))[1]
            except subprocess.TimeoutExpired:
                error = ""
                n_kill += 1
            process.kill()
            process.communicate()
            for entry in hub.log[before:]:
                for start, end in known:
                    self.assertFalse(entry.get("sent") and entry["start"] < end and start < entry["asked"],
                                     f"{entry} is in the journal: {start}-{end}")
            n_round += 1
            if n_kill >= N_KILL:
                hub.rate = None
            if process.returncode == 0:
                break
            self.assertEqual(process.returncode, -signal.SIGKILL, error)
        self.assertGreaterEqual(n_kill, min(N_KILL, 12))
        sent = sum(end - start for start, end in hub.fetched(NAME))
        # of each round at most what came in the half second before: a sync and its journal line
        bound = len(content) + n_kill * (rate * 3 // 2 + 2 * MIB)
        self.assertTrue(sent <= bound, (sent, bound))
        folder = self.pull(hub, REPO, "--verify", "full").stdout.strip()
        self.check_files(folder, {NAME: content})
        self.assertEqual(self.left_over(), [])

    def test_killed_before_a_rename(self):
        content = data(MIB)
        hub = self.hub({NAME: content})
        folder = self.pull(hub, REPO).stdout.strip()
        link, commit = os.path.join(folder, NAME), os.path.basename(folder)
        os.rename(link, f"{link}.lean-{os.path.basename(os.readlink(link))}")
        ref = os.path.join(folder, "../../refs/main")
        os.rename(ref, f"{ref}.lean-{commit}")
        os.truncate(f"{ref}.lean-{commit}", 7)
        self.assertEqual(len(self.left_over()), 2)
        self.assertEqual(self.pull(hub, REPO).stdout.strip(), folder)
        self.check_files(folder, {NAME: content})
        with open(ref, encoding="utf-8") as file:
            self.assertEqual(file.read(), commit)
        self.assertEqual(self.left_over(), [])

    def test_interrupted(self):
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            hub = self.hub({NAME: data(8 * MIB, int(number))}, rate=2 * MIB)
            process = self.start(hub, REPO, "--jobs", "2", "--segment", "1M")
            time.sleep(1)
            began = time.monotonic()
            process.send_signal(number)
            error = process.communicate(timeout=10)[1]
            self.assertTrue(time.monotonic() - began < 1, "took longer than a second")
            self.assertEqual(process.returncode, code, error)
            self.assertRegex(error, r"interrupted; .* of 8.00 MiB are kept, the same command goes on\n$")
            sent = sum(end - start for start, end in hub.fetched(NAME))
            known = sum(end - start for start, end in journaled(self.cache))
            self.assertTrue(known >= MIB and known >= sent - 3 * MIB, (known, sent))
            hub.rate = None
            folder = self.pull(hub, REPO).stdout.strip()
            self.check_files(folder, hub.repos[REPO].files)

    def test_interrupted_while_it_waits(self):
        hub = self.hub({NAME: data(MIB)})
        hub.fault("revision", status=503, times=100, at="hub")
        process = self.start(hub, REPO, "--retry-wait", "30s")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=1)
        self.assertEqual(process.returncode, 130)

    @unittest.skipIf(is_sanitized(), "sanitizers want to be loaded first")
    def test_interrupted_while_a_name_is_looked_up(self):
        shim = os.path.join(os.environ.get("LEAN_BUILD_DIR", os.path.dirname(LEAN)), "tests/resolver_shim.so")
        env = self.variables(None, HF_ENDPOINT="http://hub.invalid", LD_PRELOAD=shim)
        process = self.start(None, REPO, env=env)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        self.assertIn("interrupted", process.communicate(timeout=2)[1])
        self.assertEqual(process.returncode, 130)

    def test_journals_that_do_not_fit(self):
        content = data(4 * MIB)
        for spoil in ("lean-part 1 77 abc m\n0 50\n", "", "rubbish", None):
            hub = self.hub({NAME: content}, rate=2 * MIB)
            process = self.start(hub, REPO, "--jobs", "1")
            time.sleep(0.9)
            process.kill()
            process.communicate()
            journal = glob.glob(f"{self.cache}/models--*/blobs/*.lean-part.j")[0]
            if spoil is not None:
                with open(journal, "w") as file:
                    file.write(spoil)
            else:  # the line that a power cut left half written, and a range that never was
                with open(journal, "a") as file:
                    file.write("99999999999 999999999999\n0 4194")
            hub.rate = None
            folder = self.pull(hub, REPO).stdout.strip()
            self.check_files(folder, {NAME: content})
            os.remove(os.path.realpath(f"{folder}/{NAME}"))

    def test_listed_as_partial_in_the_plan(self):
        hub = self.hub({NAME: data(4 * MIB)}, rate=2 * MIB)
        process = self.start(hub, REPO, "--jobs", "1")
        time.sleep(1.2)
        process.kill()
        process.communicate()
        self.assertRegex(self.pull(hub, REPO, "--dry-run").stdout, r"partial \d+ %")


if __name__ == "__main__":
    pull.main()
