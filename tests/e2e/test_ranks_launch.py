"""lean with several ranks, started in each way a user can: what it prints, how it ends."""
import os
import signal
import subprocess
import tempfile
import time
import unittest

import jobs
import ranks
from cli import LEAN, SOURCE_DIR, environment, lean

ranks.skip_without_mpi()
MODEL = os.path.join(SOURCE_DIR, "tests/data/golden/models/qwen35moe-s-q8_0.gguf")
GREEDY = ["--temperature", "0", "--max-tokens", "6", "--ignore-eos"]
PROMPT = "One sentence that is long enough to be read in pieces, with a few words more."


class Launch(unittest.TestCase):
    def setUp(self):
        self.job = jobs.Job()
        self.addCleanup(self.job.kill)

    def lean(self, *args, **more):
        """As cli.lean; no process of the job may be left behind it."""
        result = lean(*args, **{**self.job.env, **more})
        self.job.assert_gone()
        return result

    def run_of(self, *args, **more):
        return self.lean("run", MODEL, *GREEDY, *args, **more)


class Modes(Launch):
    @classmethod
    def setUpClass(cls):
        cls.alone = lean("run", MODEL, *GREEDY, PROMPT, text=False)
        assert cls.alone.returncode == 0 and cls.alone.stdout, cls.alone.stderr

    def assert_same(self, result):
        self.assertEqual((result.returncode, result.stdout), (0, self.alone.stdout), result.stderr)

    def test_a_prompt_as_argument(self):
        result = self.run_of(*jobs.options(2), PROMPT, text=False)
        self.assert_same(result)
        self.assertNotIn(b"mpirun", result.stderr)

    def test_a_prompt_through_a_pipe(self):
        self.assert_same(self.run_of(*jobs.options(3), "--interface=", input=PROMPT.encode(), text=False))

    def test_settings_from_the_environment(self):
        self.assert_same(self.run_of(*jobs.options(1)[2:], PROMPT, text=False,
                                     LEAN_CLUSTER_RANKS="2"))

    def test_settings_from_a_file(self):
        """Of which only rank 0 reads more than what ranks are told."""
        with tempfile.NamedTemporaryFile("w", suffix=".textproto") as file:
            file.write("cluster { ranks: 3 partition { layers: \"4,2,2\" } spin_us: 0 }")
            file.flush()
            result = self.run_of("--config", file.name, *jobs.options(1)[2:], PROMPT, text=False)
            self.assert_same(result)
            self.assertIn(b"rank 2", result.stderr)

    def test_hosts_have_ranks(self):
        more = jobs.options(1)[2:]
        self.assert_same(self.run_of("--hosts", "localhost:2", *more, PROMPT, text=False))
        with tempfile.NamedTemporaryFile("w", suffix=".hosts") as file:
            file.write("# this machine\nlocalhost slots=2\n")
            file.flush()
            self.assert_same(self.run_of("--hostfile", file.name, *more, PROMPT, text=False))

    def test_mpirun_by_hand(self):
        words = ["mpirun", "-np", "2", "--bind-to", "none", "--oversubscribe",
                 *(["--allow-run-as-root"] if os.geteuid() == 0 else []),
                 LEAN, "run", MODEL, *GREEDY, PROMPT]
        result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                                env=environment(**self.job.env))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, self.alone.stdout)
        self.job.assert_gone()

    def test_ctrl_c_ends_as_with_one_rank(self):
        words = [LEAN, "run", MODEL, "--ignore-eos", "--max-tokens", "-1", "--ctx", "100000", PROMPT]
        statuses = []
        for more in ([], jobs.options(2)):
            with subprocess.Popen(words + more, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE,
                                  env=environment(**self.job.env)) as process:
                self.assertTrue(process.stdout.read(1))
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=30)
                statuses.append(process.returncode)
        self.assertEqual(*statuses)
        self.job.assert_gone()

    def test_a_reader_that_leaves(self):
        words = [LEAN, "run", MODEL, "--ignore-eos", "--max-tokens", "-1", *jobs.options(2), PROMPT]
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=environment(**self.job.env)) as process:
            self.assertTrue(process.stdout.read(1))
            process.stdout.close()
            self.assertEqual(process.wait(30), -13, process.stderr.read())
        self.job.assert_gone()

    def test_all_inherited_descriptors_reach_rank_0(self):
        with tempfile.NamedTemporaryFile("w+") as file:
            file.write(PROMPT)
            file.flush()
            with open(file.name) as prompt:
                os.set_inheritable(prompt.fileno(), True)
                words = [LEAN, "eval", MODEL, "--text", f"/dev/fd/{prompt.fileno()}", "--json"]
                env = environment(**self.job.env)
                both = [subprocess.run(words + more, close_fds=False, capture_output=True, env=env,
                                       timeout=60) for more in ([], jobs.options(2))]
        for result in both:
            self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(*[result.stdout.split(b'"effective"')[0] for result in both])


class Refusals(Launch):
    def assert_fails(self, result, status, *words):
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(result.stderr.count("lean: error: "), 1, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)

    def test_what_is_wrong_is_said_once(self):
        model = ["run", MODEL, "hello"]
        root = jobs.options(1)[2:]
        cases = [
            (2, ["--ranks", "0"], "--ranks must be at least 1, got 0"),
            (2, ["--ranks", "two"], "--ranks must be an integer"),
            (2, ["--hosts", "a:0"], "slots of a must be 1 to 1024, got '0'"),
            (2, ["--hosts", "-oProxyCommand=true"], "is no name of a host"),
            (2, ["--hosts", "a,,b"], "'' is no name of a host"),
            (2, ["--hosts", "a:2", "--ranks", "3"], "3 ranks, but the hosts have 2 slots"),
            (2, ["--hosts", "a", "--hostfile", "b"], "exclude each other"),
            (3, ["--hostfile", "/nowhere"], "/nowhere"),
            (2, [*jobs.options(2), ":"], "only a colon"),
        ]
        for status, more, *words in cases:
            with self.subTest(more):
                self.assert_fails(self.lean(*model, *more, *root), status, *words)

    def test_an_error_of_rank_0_is_the_jobs(self):
        self.assert_fails(self.lean("run", "nowhere.gguf", "hello", *jobs.options(2)), 3,
                          "no such file")
        self.assert_fails(self.run_of("hello", "--kv-type", "f99", *jobs.options(2)), 2, "f99")

    def test_without_mpirun(self):
        result = self.run_of("hello", *jobs.options(2), PATH="/nowhere")
        self.assert_fails(result, 9, "there is no mpirun in PATH", "openmpi-bin")

    def test_a_host_that_nobody_knows(self):
        begin = time.monotonic()
        result = self.run_of("hello", *jobs.options(2), "--hosts", "localhost,host.invalid")
        self.assert_fails(result, 4, "the ranks could not be started: host host.invalid: ")
        self.assertLess(time.monotonic() - begin, 30)

    @unittest.skipIf(os.geteuid() != 0, "only root is refused")
    def test_root_must_say_so(self):
        self.assert_fails(self.run_of("hello", "--ranks", "2"), 2, "as root", "--allow-root")


if __name__ == "__main__":
    unittest.main(verbosity=1)
