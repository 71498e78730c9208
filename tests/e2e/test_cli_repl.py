"""lean run on a terminal: keys, screen, conversation, commands. pyte plays the terminal."""
import json
import os
import re
import signal
import stat
import sys
import tempfile
import unittest

from cli import HOME, SOURCE_DIR

try:
    from terminal import Terminal
except ImportError as error:
    print(f"skipped: {error}; tests/run.sh installs it from the package registry")
    sys.exit(77)

MODEL = os.path.join(SOURCE_DIR, "tests/data/golden/models/qwen35moe-s-q8_0.gguf")
HISTORY = os.path.join(HOME, ".local/state/lean/history")
UP, LEFT, ALT_ENTER = "\x1b[A", "\x1b[D", "\x1b\r"


class Repl(unittest.TestCase):
    options = []  # more of them, for all

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        if os.path.exists(HISTORY):
            os.remove(HISTORY)

    def start(self, *args, n_max=8, **more):
        terminal = Terminal("run", MODEL, "--temperature", "0", "--max-tokens", n_max,
                            "--ignore-eos", *self.options, *args, **more)
        terminal.wait_for_prompt(1)
        self.addCleanup(lambda: terminal.status is None and terminal.close(patience=0))
        return terminal

    @staticmethod
    def assert_ends_in(terminal, rows):
        """The last rows of the screen are these, at once or soon."""
        terminal.wait_for(lambda t: t.rows()[-len(rows):] == rows)

    def messages(self, terminal):
        """What the conversation holds, by /save; as (role, content)."""
        path = os.path.join(self.folder.name, "saved.json")
        if os.path.exists(path):
            os.remove(path)
        terminal.type(f"/save {path}\r")
        terminal.wait_for(lambda _: os.path.exists(path) and os.path.getsize(path) > 0)
        with open(path) as file:
            return [(m["role"], m["content"]) for m in json.load(file)["messages"]]

    def ask(self, terminal, keys):
        n = sum(row.startswith(">>>") for row in terminal.scrollback())
        terminal.type(keys)
        terminal.wait_for_prompt(n + 1)


class Keys(Repl):
    def test_a_message_of_several_lines(self):
        terminal = self.start()
        terminal.type("one" + ALT_ENTER + "two\\\rthree\nfour")
        self.assert_ends_in(terminal, [">>> one", "... two", "... three", "... four"])
        self.ask(terminal, "\r")
        self.assertEqual(self.messages(terminal)[0], ("user", "one\ntwo\nthree\nfour"))

    def test_a_block_in_triple_quotes(self):
        terminal = self.start()
        terminal.type('"""\rone\rtwo\r')
        terminal.wait_for(lambda t: len(t.rows()) == 4)
        self.ask(terminal, '"""\r')
        self.assertEqual(self.messages(terminal)[0], ("user", "one\ntwo"))

    def test_pasted_lines_are_one_message(self):
        terminal = self.start()
        self.assertIn(b"\x1b[?2004h", terminal.output)
        terminal.type("\x1b[200~first\rsecond\r\nthird\x1b[201~")
        self.assert_ends_in(terminal, [">>> first", "... second", "... third"])
        self.ask(terminal, "\r")
        self.assertEqual(self.messages(terminal)[0], ("user", "first\nsecond\nthird"))

    def test_wide_and_combining_characters_keep_the_cursor_right(self):
        terminal = self.start(columns=20)
        terminal.type("日本e\u0301" + "x" * 12)
        self.assert_ends_in(terminal, [">>> 日本éxxxxxxxxxxx", "x"])
        terminal.type(LEFT * 14)
        terminal.wait_for(lambda t: (t.screen.cursor.x, t.screen.cursor.y) == (6, 0))
        terminal.type("|")
        terminal.wait_for(lambda t: t.rows()[:1] == [">>> 日|本éxxxxxxxxxx"])
        terminal.type("\x7f" + "\x1b[C" * 2 + "\x7f")
        terminal.wait_for(lambda t: t.rows()[:1] == [">>> 日本xxxxxxxxxxxx"])

    def test_resize_draws_anew(self):
        terminal = self.start(columns=60)
        terminal.type("a" * 50)
        terminal.resize(40, 12)
        os.kill(terminal.pid, signal.SIGWINCH)
        terminal.pump(0.2)
        self.assert_ends_in(terminal, [">>> " + "a" * 36, "a" * 14])
        terminal.type("b")
        self.assert_ends_in(terminal, ["a" * 14 + "b"])
        terminal.resize(60, 12)
        os.kill(terminal.pid, signal.SIGWINCH)
        terminal.pump(0.2)
        self.assert_ends_in(terminal, [">>> " + "a" * 50 + "b"])

    def test_a_message_taller_than_the_screen(self):
        terminal = self.start(lines=5)
        terminal.type("\n".join(f"line {i}" for i in range(9)))
        self.assert_ends_in(terminal, [f"... line {i}" for i in range(4, 9)])
        terminal.type("\x1b[A" * 8)
        terminal.wait_for(lambda t: t.rows()[:1] == [">>> line 0"])
        self.ask(terminal, "\r")
        self.assertTrue(self.messages(terminal)[0][1].endswith("line 8"))

    def test_history_lasts_and_is_private(self):
        terminal = self.start()
        self.ask(terminal, "the first message\r")
        self.ask(terminal, "the second\r")
        terminal.type("\x04")
        self.assertEqual(terminal.close(), 0)
        self.assertEqual(stat.S_IMODE(os.stat(HISTORY).st_mode), 0o600)

        terminal = self.start()
        terminal.type(UP)
        self.assert_ends_in(terminal, [">>> the second"])
        terminal.type("\x03\x12fir")
        self.assert_ends_in(terminal, ["(search: fir) the first message"])
        self.ask(terminal, "\r")
        self.assertEqual(self.messages(terminal)[0], ("user", "the first message"))

    def test_history_can_be_off(self):
        for args, env in ((["--no-history"], {}), ([], {"LEAN_NOHISTORY": "1"})):
            terminal = self.start(*args, **env)
            self.ask(terminal, "a secret\r")
            terminal.type("/bye\r")
            self.assertEqual(terminal.close(), 0)
            self.assertFalse(os.path.exists(HISTORY))

    def test_ctrl_c_clears_and_tells_how_to_leave(self):
        terminal = self.start()
        terminal.type("never mind\x03")
        self.assert_ends_in(terminal, [">>> never mind", ">>>"])
        terminal.type("\x03")
        self.assert_ends_in(terminal, ["Ctrl-D or /bye to leave", ">>>"])
        terminal.type("\x04")
        self.assertEqual(terminal.close(), 0)

    def test_tab_completes(self):
        with open(os.path.join(self.folder.name, "long_name.txt"), "w") as file:
            file.write("from a file")
        terminal = self.start(columns=100)
        terminal.type("/und\t")
        self.assert_ends_in(terminal, [">>> /undo"])
        terminal.type("\x15/s\t\t")
        terminal.wait_for(lambda t: any("/set" in row for row in t.rows()[:-1]))
        terminal.type("\x15/set temp\t")
        self.assert_ends_in(terminal, [">>> /set temperature"])
        terminal.type(f"\x15/read {self.folder.name}/lo\t")
        terminal.wait_for(lambda t: any(row.endswith("long_name.txt") for row in t.rows()[-1:]))
        self.ask(terminal, "\r")
        self.assertEqual(self.messages(terminal)[0], ("user", "from a file"))

    def test_an_editor_can_be_used(self):
        terminal = self.start(VISUAL="sed -i s/wrong/right/")
        self.ask(terminal, "this is wrong\x07\r")
        self.assertEqual(self.messages(terminal)[0], ("user", "this is right"))

    def test_the_terminal_is_as_before_afterwards(self):
        import termios
        terminal = self.start()
        terminal.type("hello")
        raw = termios.tcgetattr(terminal.fd)
        os.kill(terminal.pid, signal.SIGTERM)
        terminal.wait_for(lambda t: t.output.rstrip().endswith(b"\x1b[?2004l"))
        terminal.pump(0.3)
        cooked = termios.tcgetattr(terminal.fd)
        self.assertFalse(raw[3] & termios.ICANON)
        self.assertTrue(cooked[3] & termios.ICANON and cooked[3] & termios.ECHO)
        self.assertEqual(terminal.close(), -signal.SIGTERM)


class Conversation(Repl):
    def test_ctrl_c_stops_the_answer_which_stays(self):
        terminal = self.start("--ctx", "200000", n_max=-1)
        terminal.type("go on for ever\r", 0.5)
        terminal.type("\x03")
        terminal.wait_for_prompt(2)
        self.assertIn("[stopped]", "".join(terminal.scrollback()))
        messages = self.messages(terminal)
        self.assertEqual([role for role, _ in messages], ["user", "assistant"])
        self.assertTrue(messages[1][1])

    def test_undo_retry_continue_clear(self):
        terminal = self.start()
        self.ask(terminal, "first\r")
        one = self.messages(terminal)
        self.ask(terminal, "second\r")
        two = self.messages(terminal)
        self.assertEqual(two[:2], one)
        self.ask(terminal, "/undo\r")
        self.assertEqual(self.messages(terminal), one)
        self.ask(terminal, "/retry\r")
        self.assertEqual(self.messages(terminal), one)  # greedy: the same again
        self.ask(terminal, "/continue\r")
        longer = self.messages(terminal)
        self.assertEqual(longer[0], one[0])
        self.assertTrue(longer[1][1].startswith(one[1][1]) and longer[1][1] != one[1][1])
        self.ask(terminal, "/clear\r")
        self.assertEqual(self.messages(terminal), [])

    def test_edit_takes_the_message_back(self):
        terminal = self.start()
        self.ask(terminal, "frist\r")
        self.ask(terminal, "/edit\r")
        self.assert_ends_in(terminal, [">>> frist"])
        self.ask(terminal, "\x15first\r")
        messages = self.messages(terminal)
        self.assertEqual((len(messages), messages[0]), (2, ("user", "first")))

    def test_settings(self):
        terminal = self.start(lines=40, columns=100)
        self.ask(terminal, "/system answer briefly\r")
        self.ask(terminal, "/set top_k 7\r")
        self.ask(terminal, "/show params\r")
        self.assertIn("top-k                7", terminal.rows())
        self.ask(terminal, "/unset top-k\r")
        self.ask(terminal, "/set tempratur 1\r")
        self.assertIn("unknown setting 'tempratur', did you mean temperature?",
                      "\n".join(terminal.rows()))
        self.ask(terminal, "/set temperature hot\r")
        self.assertIn("temperature must be a number, got 'hot'", "\n".join(terminal.rows()))
        self.ask(terminal, "hello\r")
        self.assertEqual(self.messages(terminal)[:2],
                         [("system", "answer briefly"), ("user", "hello")])

    def test_stats_are_of_the_last_answer(self):
        """Experts that are paged: its lookups, beside what was found since the start."""
        terminal = self.start("--expert-slots", "40%", "--profile", "none", lines=40, columns=140)
        lookups = []
        for message in ("a message of some length, to be read at once\r", "one more\r"):
            self.ask(terminal, message)
            self.ask(terminal, "/show stats\r")
            told = [re.match(r"lookups +(\d+) for this answer   hits [\d.]+%, \d+ on their way, \d+ missed "
                             r"\(.*\)   waited [\d.]+s$", row) for row in terminal.rows()]
            lookups += [int(match[1]) for match in told if match][-1:]
        self.assertEqual(len(lookups), 2)
        self.assertLess(lookups[1], 2 * lookups[0])  # it does not go on from the first
        self.assertRegex("\n".join(terminal.rows()), r"experts +\d+ of 64 in memory   hits ")

    def test_save_load_and_session(self):
        path = os.path.join(self.folder.name, "session.json")
        terminal = self.start("--session", path)
        self.ask(terminal, "hello\r")
        before = self.messages(terminal)
        terminal.type("/bye\r")
        self.assertEqual(terminal.close(), 0)
        terminal = self.start("--session", path)
        self.assertEqual(self.messages(terminal), before)
        self.ask(terminal, "/load /etc/hostname\r")
        self.assertIn("no saved conversation", "\n".join(terminal.rows()))
        self.assertEqual(self.messages(terminal), before)

    def test_slashes(self):
        terminal = self.start(columns=100)
        self.ask(terminal, "/nonsense\r")
        self.assertIn("unknown command /nonsense", terminal.rows()[-2])
        self.ask(terminal, "//etc is a folder\r")
        self.assertEqual(self.messages(terminal)[0], ("user", "/etc is a folder"))

    def test_a_message_that_does_not_fit_is_taken_back(self):
        terminal = self.start("--ctx", "64")
        self.ask(terminal, "\x1b[200~" + "word " * 100 + "\x1b[201~\r")
        self.assertIn("lean: error: ", "\n".join(terminal.scrollback()))
        self.assertEqual(self.messages(terminal), [])


if __name__ == "__main__":
    unittest.main()
