"""A program on a terminal: types into it and looks at its screen, which pyte emulates."""
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

import pyte

from cli import LEAN, environment


class Terminal:
    """Runs `lean ARGS`, or another program, under a pseudo-terminal of the given size."""

    def __init__(self, *args, columns=60, lines=12, program=LEAN, **env):
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.output = b""
        pid, self.fd = pty.fork()
        if pid == 0:
            os.execvpe(program, [program, *map(str, args)], environment(**env))
        self.pid = pid
        self.status = None
        self.resize(columns, lines)

    def resize(self, columns, lines):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def pump(self, seconds):
        """Feeds the screen until nothing has come for so long, or it came without a pause for a
        second; False at the end of the output."""
        end = time.monotonic() + 1
        while time.monotonic() < end and select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return False
            if not data:
                return False
            self.output += data
            self.stream.feed(data)
        return True

    def type(self, text, seconds=0.05):
        os.write(self.fd, text if isinstance(text, bytes) else text.encode())
        self.pump(seconds)

    def rows(self):
        """The screen's rows without trailing blanks, from the first to the last that has any."""
        rows = [row.rstrip() for row in self.screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def scrollback(self):
        """All rows that ever scrolled away, and the screen."""
        gone = ["".join(line[x].data for x in range(self.screen.columns)).rstrip()
                for line in self.screen.history.top]
        return gone + self.rows()

    def wait_for(self, condition, seconds=30):
        """Pumps until condition(self) holds; fails with the screen if it does not in time."""
        end = time.monotonic() + seconds
        while not condition(self):
            alive = self.pump(0.05)
            if not alive or time.monotonic() > end:
                if condition(self):
                    return
                raise AssertionError("on the screen instead:\n" + "\n".join(self.scrollback()))

    def wait_for_prompt(self, n):
        """Until n prompts were shown in all and the cursor stands behind the last one."""
        def shown(terminal):
            row = terminal.screen.display[terminal.screen.cursor.y]
            count = sum(line.startswith(">>>") for line in terminal.scrollback())
            return count >= n and row.startswith(">>> ")
        self.wait_for(shown)

    def close(self, patience=10):
        """The exit status, or minus the signal; what still runs after so many seconds is killed."""
        deadline = time.monotonic() + patience
        while self.status is None:
            self.pump(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        return self.status
