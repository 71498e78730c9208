"""How the supervisor judges the end of a job whose mpirun does not end: by a program of that name which
stands in for mpirun and for rank 0, and ignores SIGTERM."""
import os
import sys
import tempfile
import unittest

import cli

STAND_IN = f"""#!{sys.executable}
import os, signal, socket, struct, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(os.environ["STAND_IN_PID"], "w").write(str(os.getpid()))
what = os.environ["STAND_IN"]
if what != "silent":
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect("\\0" + os.environ["LEAN_JOB_SOCKET"])
    socket.recv_fds(channel, 4096, 64)
    print("[1] lean: error: what a worker says", file=sys.stderr, flush=True)
    if what == "gone":
        channel.close()
    else:
        channel.send(struct.pack("ii", 1, int(what)))
while True:
    time.sleep(1)
"""


class Forced(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        with open(os.path.join(self.folder, "mpirun"), "w") as file:
            file.write(STAND_IN)
        os.chmod(file.name, 0o755)

    def run_with(self, what, *command):
        pid_file = os.path.join(self.folder, "pid")
        done = cli.lean(*command, "--ranks", 2, "--allow-root", STAND_IN=what, STAND_IN_PID=pid_file,
                        PATH=f"{self.folder}:{os.environ['PATH']}")
        with open(pid_file) as file:
            pid = int(file.read())
        self.assertFalse(os.path.exists(f"/proc/{pid}"), "the stand-in is still there")
        return done

    def test_a_server_that_was_not_asked_to_end_was_lost(self):
        """Rank 0 said that it ends in order: as when mpirun ends all since a rank is gone."""
        done = self.run_with("0", "serve", "demo", "--listen", "127.0.0.1:0")
        self.assertEqual(done.returncode, 11, done.stderr)
        self.assertIn("a rank was lost, and mpirun did not end", done.stderr)
        self.assertIn("[1] lean: error: what a worker says", done.stderr)

    def test_a_command_ends_as_rank_0_said(self):
        for code in (0, 3):
            done = self.run_with(str(code), "run", "demo", "hello")
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertNotIn("rank was lost", done.stderr)

    def test_rank_0_that_said_nothing_was_lost(self):
        done = self.run_with("gone", "run", "demo", "hello")
        self.assertEqual(done.returncode, 11, done.stderr)
        self.assertIn("a rank was lost, and mpirun did not end", done.stderr)

    def test_nobody_came(self):
        done = self.run_with("silent", "run", "demo", "hello", "--startup-timeout", "1s")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("no rank was up after 1", done.stderr)
        self.assertEqual(done.stderr.count("lean: error: "), 1, done.stderr)


if __name__ == "__main__":
    unittest.main()
