"""The conversation on a terminal with two ranks: all that holds with one, and who has the terminal."""
import os
import signal
import sys
import termios
import unittest

import jobs
import ranks
from cli import LEAN

try:
    import test_cli_repl as one
    from terminal import Terminal
except ImportError as error:
    print(f"skipped: {error}; tests/run.sh installs it from the package registry")
    sys.exit(77)

ranks.skip_without_mpi()


# The rows of the screen count: nothing is said before the first prompt.
QUIET = jobs.options(2, "--quiet")


class Keys(one.Keys):
    options = QUIET


class Conversation(one.Conversation):
    options = QUIET
    test_stats_are_of_the_last_answer = None  # they are of rank 0


class Endings(one.Repl):
    options = QUIET

    def setUp(self):
        super().setUp()
        self.job = jobs.Job()
        self.addCleanup(self.job.kill)

    def assert_lost(self, terminal):
        """It ends with 11 and a reason, leaves nothing behind, and the terminal as it was."""
        terminal.wait_for(lambda t: b"lean: error: " in t.output)
        cooked = termios.tcgetattr(terminal.fd)
        self.assertEqual(terminal.close(), 11, terminal.output)
        self.assertTrue(cooked[3] & termios.ICANON and cooked[3] & termios.ECHO)
        self.job.assert_gone()

    def test_a_rank_is_lost_while_the_user_types(self):
        for rank in (0, 1):
            with self.subTest(rank=rank):
                terminal = self.start(**self.job.env)
                terminal.type("hello")
                os.kill(self.job.rank(rank), signal.SIGKILL)
                self.assert_lost(terminal)

    def test_a_rank_is_lost_while_it_answers(self):
        terminal = self.start("--ctx", "200000", n_max=-1, **self.job.env)
        terminal.type("go on for ever\r", 0.5)
        os.kill(self.job.rank(1), signal.SIGKILL)
        self.assert_lost(terminal)

    def test_the_end_leaves_nothing(self):
        terminal = self.start(**self.job.env)
        terminal.type("\x04")
        self.assertEqual(terminal.close(), 0)
        self.job.assert_gone()

    def test_the_supervisor_is_killed(self):
        terminal = self.start(**self.job.env)
        os.kill(terminal.pid, signal.SIGKILL)
        self.assertEqual(terminal.close(), -signal.SIGKILL)
        self.job.assert_gone()


class Shell(one.Repl):
    """Below a shell with job control."""

    def setUp(self):
        super().setUp()
        self.job = jobs.Job()
        self.addCleanup(self.job.kill)
        self.shell = Terminal("--norc", "--noprofile", "-i", program="bash", columns=100,
                              PS1="$ ")
        self.addCleanup(lambda: self.shell.status is None and self.shell.close(patience=0))
        words = " ".join(["run", one.MODEL, "--max-tokens", "4", "--ignore-eos",
                          *jobs.options(2)])
        mark = " ".join(f"{name}={value}" for name, value in self.job.env.items())
        self.shell.type(f"clear; alias lean='{mark} {LEAN} {words}'\r", 0.3)

    def wait_for_text(self, text):
        self.shell.wait_for(lambda t: any(text in row for row in t.rows()))

    def test_the_terminal_comes_back(self):
        self.shell.type("lean\r")
        self.wait_for_text(">>>")
        self.shell.type("\x04")
        self.shell.type("echo status $?\r")
        self.wait_for_text("status 0")
        self.job.assert_gone()

    def test_a_job_in_the_background_waits_for_the_foreground(self):
        self.shell.type("lean &\r", 1)
        self.shell.type("\r")
        self.wait_for_text("Stopped")
        self.assertFalse(any(">>>" in row for row in self.shell.rows()))
        self.shell.type("fg\r")
        self.wait_for_text(">>>")
        self.shell.type("hello\r", 0.5)
        self.shell.wait_for(lambda t: t.rows()[-1:] == [">>>"])
        self.shell.type("/bye\r")
        self.shell.type("echo status $?\r")
        self.wait_for_text("status 0")

    def test_suspending_is_ignored(self):
        self.shell.type("lean\r")
        self.wait_for_text(">>>")
        self.shell.type("\x1a")
        self.shell.type("hello\r", 0.5)
        self.shell.wait_for(lambda t: t.rows()[-1:] == [">>>"])
        self.shell.type("\x04")


if __name__ == "__main__":
    unittest.main()
