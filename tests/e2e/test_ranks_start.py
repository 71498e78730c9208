"""Jobs of several ranks one of which does not come up: the others say so in time and end."""
import fcntl
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from cli import LEAN, environment, lean

DEMO = "demo"
TIMEOUT_S = 2


def missing():
    """Why no job can run here, or None."""
    if not shutil.which("mpirun"):
        return "no mpirun: Open MPI is not installed"
    if subprocess.run([LEAN, "run", "--ranks", "2", "--allow-root", "--max-tokens", "1", DEMO, "a"],
                      capture_output=True, timeout=120, stdin=subprocess.DEVNULL).returncode == 9:
        return "built without MPI"
    return None


def run(first, second, timeout=30):
    """Two ranks under mpirun, each the end of a command line of `env`; code, stderr, seconds."""
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", "1", "env", *first, ":",
               "-np", "1", "env", *second]
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, start_new_session=True,
                          env=environment(OMPI_ALLOW_RUN_AS_ROOT="1",
                                          OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")) as job:
        try:
            said = job.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            raise
        return job.returncode, said, time.monotonic() - began


class Start(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = [os.path.join(folder.name, name) for name in ("a", "b")]
        self.command = [LEAN, "run", "--startup-timeout", f"{TIMEOUT_S}s", "--liveness-timeout",
                        "60s", "--max-tokens", "1", DEMO, "hello"]
        for home in self.home:
            os.mkdir(home)

    def test_a_rank_that_joined_and_is_not_ready(self):
        """It waits for another process to have measured this machine."""
        command = [f"XDG_CACHE_HOME={self.home[1]}", *self.command]
        in_time = [*command, "--startup-timeout", "60s"]
        code, said, _ = run(in_time, in_time)
        self.assertEqual(code, 0, said)
        (machine,) = glob.glob(os.path.join(self.home[1], "lean", "machines", "*"))
        with open(machine) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            code, said, seconds = run([f"XDG_CACHE_HOME={self.home[0]}", *self.command], command)
        self.assertEqual(code, 11, said)
        self.assertRegex(said, rf"lean: error: rank 1 \(.*\) was not ready within {TIMEOUT_S} s")
        self.assertLess(seconds, 15)

    def test_a_rank_that_hangs_before_it_joins(self):
        code, said, seconds = run(self.command, ["sh", "-c", "kill -STOP $$"])
        self.assertEqual(code, 11, said)
        self.assertIn(f"lean: error: not all ranks had started after {TIMEOUT_S} s", said)
        self.assertLess(seconds, 15)

    def test_another_number_of_ranks_than_mpirun_started(self):
        command = [*self.command[:2], "--ranks", "3", *self.command[2:], "--startup-timeout", "60s"]
        code, said, _ = run(command, command)
        self.assertEqual(code, 0, said)
        self.assertEqual(said.count("--ranks 3: there are 2"), 1, said)

    def test_a_host_that_is_none(self):
        """Where rank 0 would have been: mpirun alone can tell, by a status of its own."""
        for hosts in ("no-such-host.invalid,localhost", "localhost,no-such-host.invalid"):
            done = lean("run", "--hosts", hosts, "--allow-root", DEMO, "hello")
            self.assertEqual(done.returncode, 4, done.stderr)
            self.assertIn("lean: error: the ranks could not be started: host no-such-host.invalid: ",
                          done.stderr)
            self.assertEqual(done.stderr.count("lean: error: "), 1, done.stderr)


if __name__ == "__main__":
    if missing():
        print(f"skipped: {missing()}")
        sys.exit(77)
    unittest.main(verbosity=2)
