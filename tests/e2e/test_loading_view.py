"""What `lean run` shows while it reads a prompt and experts are paged: on a terminal, which pyte
plays, in the places of one view that is gone when the answer starts; elsewhere hardly anything."""
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from cli import LEAN, SOURCE_DIR, environment, lean

try:
    from terminal import Terminal
except ImportError as error:
    print(f"skipped: {error}; tests/run.sh installs it from the package registry")
    sys.exit(77)

DEMO = os.path.join(SOURCE_DIR, "configs/demo/lean-demo-q4_k_m.gguf")
with open(os.path.join(SOURCE_DIR, "tests/data/demo/traces/prose.txt")) as file:
    TEXT = file.read()
PROMPT, LONG = TEXT[:1200], TEXT[:3600]
# Slow enough to be looked at.
SLOW = ["--kernels", "ref", "--threads", "1", "--prefill-chunk", "8"]
PAGED = ["--expert-slots", "50%", "--profile", "none", "--raw", "--temperature", "0", *SLOW]
BLOCKS = "▁▂▃▄▅▆▇█·"


def view(terminal):
    """The rows of the view on the screen; [] if it is not there."""
    rows = terminal.rows()
    at = [i for i, row in enumerate(rows) if row.startswith("reading prompt")]
    return rows[at[0]:] if len(at) == 1 else []


def hit_blocks(rows):
    return "".join(c for row in rows[3:] for c in row if c in BLOCKS)


class OnATerminal(unittest.TestCase):
    def start(self, *args, model=DEMO, n_max=6, **more):
        terminal = Terminal("run", model, "--max-tokens", n_max, *PAGED, *args, **more)
        self.addCleanup(lambda: terminal.status is None and terminal.close(patience=0))
        return terminal

    def assert_gone(self, terminal):
        for row in terminal.scrollback():
            self.assertNotRegex(row, r"^(reading prompt|memory|disk|hits) ")
        self.assertFalse(terminal.screen.cursor.hidden)

    def interrupt(self, terminal):
        os.kill(terminal.pid, signal.SIGINT)
        self.assertEqual(terminal.close(120), 130)
        self.assert_gone(terminal)
        self.assertEqual(terminal.screen.cursor.x, 0)

    @unittest.skipUnless(shutil.which("mpirun"), "no mpirun")
    def test_shows_the_layers_of_all_ranks(self):
        terminal = self.start(LONG, "--ranks", 2, "--partition", "1,3",
                              *(["--allow-root"] if os.geteuid() == 0 else []), columns=90)
        terminal.wait_for(lambda t: len(view(t)) == 4 and len(hit_blocks(view(t))) == 4 and
                          "·" not in hit_blocks(view(t))[:3])
        prompt, memory, disk, _ = view(terminal)
        self.assertRegex(prompt, r"prompt [1-9]\d*/\d+ tok   [\d.]+ tok/s")
        self.assertRegex(memory, r"  \d+ of 80 experts   ")
        self.assertRegex(disk, r"[\d.]+ [KM]iB read$")
        self.interrupt(terminal)

    def test_fills_and_is_gone_when_the_answer_starts(self):
        terminal = self.start(PROMPT, columns=90)
        began = time.monotonic()
        terminal.wait_for(lambda t: len(view(t)) == 4 and "·" not in hit_blocks(view(t))[:3] and
                          re.search(r"prompt [1-9]\d*/\d+ tok, layer \d of 4 .* tok/s", view(t)[0]))
        prompt, memory, disk, hits = view(terminal)
        filled = re.fullmatch(r"memory  ([█-▏ ]{20})  (\d+) of 80 experts   (.*) of (.*)", memory)
        self.assertTrue(filled, memory)
        self.assertGreater(int(filled[2]), 40)
        self.assertEqual(filled[1].count("█"), int(filled[2]) // 4)
        self.assertEqual(filled[4], "9.77 MiB")
        self.assertRegex(disk, r"^disk    [\d.]+ [KM]iB/s   [\d.]+ [KM]iB read$")
        self.assertRegex(hits, r"^hits   [ \d]{3}\d% [▁-█·]{4}$")
        terminal.wait_for(lambda t: not view(t), 120)
        seconds = time.monotonic() - began
        drawn = terminal.output.count(b"reading prompt")
        self.assertLessEqual(drawn, 11 * seconds + 5)
        self.assertEqual(terminal.close(), 0)
        self.assert_gone(terminal)
        answer = lean("run", DEMO, "--max-tokens", 6, *PAGED, PROMPT).stdout
        screen = "".join(row for row in terminal.scrollback() if not row.startswith("lean:"))
        self.assertIn("".join(answer.split()), "".join(screen.split()))
        # nothing is drawn, or erased, once there is an answer
        behind = terminal.output.rindex(b"\x1b[J")
        self.assertIn(answer.strip()[:8].encode(), terminal.output[behind:])

    def test_no_row_is_wider_than_the_terminal(self):
        terminal = self.start(LONG, columns=24, lines=16)
        terminal.wait_for(lambda t: len(view(t)) == 4)
        terminal.resize(60, 16)
        terminal.wait_for(lambda t: view(t) and "tok/s" in view(t)[0])
        self.assertEqual(len(view(terminal)), 4)
        terminal.resize(18, 16)
        terminal.wait_for(lambda t: view(t) and "tok/s" not in view(t)[0])
        self.interrupt(terminal)

    def test_a_low_terminal_gets_what_it_has_rows_for(self):
        terminal = self.start(LONG, columns=200, lines=4)
        terminal.wait_for(lambda t: len(view(t)) == 3)
        self.interrupt(terminal)

    def test_many_layers_take_two_lines(self):
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, "deep.gguf")
            made = lean("synth", "qwen3moe", "Q8_0", "--layers", 60, "--experts", 16, "-o", model)
            self.assertEqual(made.returncode, 0, made.stderr)
            for columns, lines in ((90, [60]), (50, [30, 30]), (30, [15, 15]), (14, [1, 1])):
                terminal = self.start("a few words, " * 20, "--ctx",
                                      512, model=model, columns=columns, lines=20)
                terminal.wait_for(lambda t: len(view(t)) == 3 + len(lines))
                self.assertEqual([len(hit_blocks(["", "", "", row])) for row in view(terminal)[3:]],
                                 lines)
                terminal.close(0)

    def test_interrupt_erases_it(self):
        terminal = self.start(LONG)
        terminal.wait_for(view)
        self.interrupt(terminal)
        self.assertEqual(terminal.rows()[-1], "lean: error: interrupted")

    def test_in_a_conversation(self):
        terminal = Terminal("run", DEMO, "--max-tokens", 6, *PAGED, "--no-history", columns=70,
                            lines=20)
        self.addCleanup(lambda: terminal.status is None and terminal.close(patience=0))
        for n in (1, 2):
            terminal.wait_for_prompt(n)
            self.assert_gone(terminal)
            terminal.type(f"{n} " + PROMPT.replace("\n", " ")[:400] + "\r")
            terminal.wait_for(lambda t: len(view(t)) == 4)
        terminal.wait_for_prompt(3)
        self.assert_gone(terminal)
        terminal.type("\x04")
        self.assertEqual(terminal.close(), 0)

    def test_none_shows_none(self):
        terminal = self.start(PROMPT[:400], "--progress", "none")
        self.assertEqual(terminal.close(120), 0)
        self.assertNotIn(b"reading prompt", terminal.output)
        self.assertNotIn(b"\x1b", terminal.output)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return sum(map(int, stat.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")


class Stopped:
    """A run on no terminal, stopped in its prompt: its time goes by while others are tested."""
    def __init__(self):
        self.began = time.monotonic()
        self.job = subprocess.Popen([LEAN, "run", DEMO, "--max-tokens", "2", *PAGED, LONG],
                                    env=environment(), stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # opening takes far less, the prompt far more; an ended process would never get there
        while cpu_seconds(self.job.pid) < 0.8:
            if self.job.poll() is not None:
                raise AssertionError(f"ended early with {self.job.returncode}: "
                                     f"{self.job.stderr.read().decode()}")
            time.sleep(0.02)
        self.job.send_signal(signal.SIGSTOP)
        self.stopped = time.monotonic()

    def finish(self):
        """What it said, and how long it took."""
        time.sleep(max(0, 10.5 - (time.monotonic() - self.stopped)))
        self.job.send_signal(signal.SIGCONT)
        _, stderr = self.job.communicate(timeout=120)
        assert self.job.returncode == 0, stderr
        return stderr.decode(), time.monotonic() - self.began

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            self.job.kill()
        self.job.communicate()


def setUpModule():
    global stopped
    stopped = Stopped()
    unittest.addModuleCleanup(stopped.end)


class WithoutATerminal(unittest.TestCase):
    def test_a_line_in_ten_seconds(self):
        stderr, seconds = stopped.finish()
        plan, *lines = stderr.splitlines()
        self.assertIn("experts in memory", plan)
        self.assertTrue(1 <= len(lines) <= seconds / 10, stderr)
        for line in lines:
            self.assertRegex(line, r"^lean: reading prompt \d+/\d+ tok, layer \d of 4.*; \d+ of 80 "
                             r"experts in memory, disk .*/s, hits \d+%$")

    def test_nothing_in_a_short_time(self):
        quick = lean("run", DEMO, "--max-tokens", 2, *PAGED[:7], "a few words")
        self.assertEqual(len(quick.stderr.splitlines()), 1, quick.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
