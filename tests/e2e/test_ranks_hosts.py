"""Several hosts on one machine: network namespaces at one switch, ranks started on them by mpirun
through a script in place of ssh. The same bits as one rank gives, and every loss is seen."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import jobs
import ranks
import serve
from cli import LEAN, environment, lean

ranks.skip_without_mpi()
jobs.need_namespaces()
IDS = "1,5,9,200,31,7,77,3,42,17,23,8"
NETWORK = ["--interface", "10.77.0.0/24", "--allow-root"]


def logits(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["logits_xxh3"]


class Hosts(unittest.TestCase):
    n_host = 4

    @classmethod
    def setUpClass(cls):
        cls.hosts = jobs.Hosts(cls.n_host)
        cls.addClassCleanup(cls.hosts.close)
        cls.alone = logits(lean("eval", serve.TINY, "--ids", IDS, "--json"))

    def setUp(self):
        self.job = jobs.Job()
        self.addCleanup(self.job.kill)
        self.env = {**self.hosts.env, **self.job.env}

    def on_hosts(self, n, slots=1):
        return ["--hosts", ",".join(f"{a}:{slots}" for a in self.hosts.addresses[:n]), *NETWORK]

    def lean(self, *words, host=1, input=None):
        """Runs lean on a host; nothing of the job may be left."""
        result = subprocess.run(self.hosts.command(host, LEAN, *words), input=input, text=True,
                                stdin=subprocess.DEVNULL if input is None else None,
                                capture_output=True, timeout=120, env=environment(**self.env))
        self.job.assert_gone()
        return result

    def server(self, n):
        """On n hosts, reachable from the first."""
        with contextlib.ExitStack() as stack:
            runtime = stack.enter_context(tempfile.TemporaryDirectory())
            log = stack.enter_context(tempfile.NamedTemporaryFile())
            words = self.hosts.command(1, LEAN, "serve", serve.TINY, "--ctx", "131072", "--parallel",
                                       "2", "--listen", f"unix:{runtime}/socket",
                                       *self.on_hosts(n))
            process = stack.enter_context(subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                env=environment(XDG_RUNTIME_DIR=runtime, **self.env)))
            self.addCleanup(stack.pop_all().close)
        def read_log():
            with open(log.name) as file:
                return file.read()
        process.log = read_log
        self.assertTrue(process.stdout.readline().startswith(b"ready "), process.log())
        return process


class Bits(Hosts):
    def test_two_and_four_hosts(self):
        for n in (2, 4):
            with self.subTest(n):
                self.assertEqual(logits(self.lean("eval", serve.TINY, "--ids", IDS, "--json",
                                                  *self.on_hosts(n))), self.alone)

    def test_two_ranks_on_each_of_two_hosts(self):
        result = self.lean("eval", serve.TINY, "--ids", IDS, "--json", *self.on_hosts(2, slots=2))
        self.assertEqual(logits(result), self.alone)
        self.assertEqual(len(json.loads(result.stdout)["effective"]["ranks"]), 4)

    def test_a_slow_network(self):
        if not self.hosts.limit_rate(2, "5mbit"):
            self.skipTest("this kernel has no token bucket filter")
        self.assertEqual(logits(self.lean("eval", serve.TINY, "--ids", IDS, "--json",
                                          *self.on_hosts(3))), self.alone)

    def test_rank_0_on_another_host(self):
        """What is typed and printed goes through mpirun then."""
        words = ["run", serve.TINY, "--temperature", "0", "-n", "6", "--json"]
        alone = lean(*words, "hello")
        first, second = self.hosts.addresses[:2]
        result = self.lean(*words, "--hosts", f"{second},{first}", *NETWORK, input="hello")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(*[json.loads(r.stdout)["content"] for r in (alone, result)])
        self.assertIn("rank 0 (host2)", result.stderr)
        result = self.lean("run", "nowhere.gguf", "hello", "--hosts", f"{second},{first}", *NETWORK)
        self.assertEqual(result.returncode, 3, result.stderr)

    def test_a_host_needs_only_the_files_of_its_layers(self):
        with tempfile.TemporaryDirectory() as folder:
            pack, part = os.path.join(folder, "model.lmpack"), os.path.join(folder, "part")
            self.assertEqual(lean("pack", serve.TINY, "-o", pack).returncode, 0)
            shutil.copytree(pack, part)
            for layer in range(4):
                os.remove(os.path.join(part, f"experts-{layer:03}.bin"))
            self.hosts.shows(2, part, pack)
            result = self.lean("eval", pack, "--ids", IDS, "--json", "--partition", "4,4",
                               *self.on_hosts(2))
            self.assertEqual(logits(result), self.alone)
            result = self.lean("eval", pack, "--ids", IDS, "--json", "--partition", "3,5",
                               *self.on_hosts(2))
            self.assertNotEqual(result.returncode, 0)
            self.assertIn("experts-003.bin", result.stderr)


class Losses(Hosts):
    n_host = 3

    def test_a_host_that_is_not_there(self):
        result = self.lean("run", serve.TINY, "hello", "--hosts", "10.77.0.1,10.77.0.9", *NETWORK)
        self.assertEqual(result.returncode, 4, result.stderr)
        self.assertIn("the ranks could not be started", result.stderr)

    def test_killing_on_any_host(self):
        for victim in ("rank 0", "rank 1", "rank 2", "mpirun", "supervisor"):
            with self.subTest(victim):
                self.job = jobs.Job()
                self.env = {**self.hosts.env, **self.job.env}
                server = self.server(3)
                os.kill(self.job.rank(int(victim[-1])) if victim.startswith("rank") else
                        self.job.mpirun() if victim == "mpirun" else server.pid, signal.SIGKILL)
                code = server.wait(20)
                self.job.assert_gone()
                self.assertEqual(code, -9 if victim == "supervisor" else 11, server.log())


class Cut(Hosts):
    n_host = 3

    def check_loss(self, server, begin, names):
        self.assertEqual(server.wait(20), 11, server.log())
        self.assertLess(time.monotonic() - begin, 12)
        self.assertRegex(server.log(), f"lean: error: .*{names}")
        self.job.assert_gone()

    def test_a_cut_between_two_workers(self):
        """Rank 0 still reaches both."""
        server = self.server(3)
        begin = time.monotonic()
        self.hosts.cut_between(2, 3)
        self.check_loss(server, begin, "rank [12]")
        self.assertIn("no connection to rank", server.log())

    def test_a_cut_link(self):
        server = self.server(2)
        begin = time.monotonic()
        self.hosts.cut(2)
        self.check_loss(server, begin, "rank 1")


if __name__ == "__main__":
    unittest.main()
