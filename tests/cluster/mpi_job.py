"""A job of ranks under mpirun that never outlives its test."""
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("LEAN_BUILD_DIR", os.path.join(SOURCE, "build"))


def missing():
    """Why no job can run here, or None."""
    if not shutil.which("mpirun"):
        return "no mpirun: Open MPI is not installed"
    if not os.path.exists(os.path.join(BUILD, "liblean_mpi.so")):
        return "built without MPI"
    return None


def environment(**more):
    tests = os.path.join(SOURCE, "tests")
    return {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "ASAN_OPTIONS": "fast_unwind_on_malloc=0",
            "LSAN_OPTIONS": f"suppressions={tests}/openmpi.lsan:print_suppressions=0",
            "TSAN_OPTIONS": f"suppressions={tests}/openmpi.tsan", **more}


class Job:
    """with Job(4, program, argument...) as job: what it prints, and what it writes to $SAID, goes to files."""

    def __init__(self, n_rank, *command, **more):
        self.output = tempfile.NamedTemporaryFile("r")
        self.said = tempfile.NamedTemporaryFile("r")
        with open(self.output.name, "w") as sink:
            self.mpirun = subprocess.Popen(
                ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(n_rank), *command],
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                env=environment(SAID=self.said.name, **more), start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in {self.mpirun.pid, *self.pids().values()}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.mpirun.wait()
        self.output.close()
        self.said.close()

    def text(self):
        with open(self.said.name) as said, open(self.output.name, errors="replace") as output:
            return said.read() + output.read()

    def pids(self):
        """By rank, of those that have said `rank N ready PID`."""
        return {int(rank): int(pid)
                for rank, pid in re.findall(r"^rank (\d+) ready (\d+)$", self.text(), re.M)}

    def wait_for(self, what, seconds, condition):
        """The time until condition() holds."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                raise AssertionError(f"{what}: not within {seconds} s\n{self.text()}")
            time.sleep(0.005)
        return time.monotonic() - began

    def wait_for_text(self, pattern, seconds):
        return self.wait_for(pattern, seconds, lambda: re.search(pattern, self.text(), re.M))

    def moment(self, pattern, seconds):
        """What the last group of the pattern says: a time of the clock that time.monotonic() reads."""
        self.wait_for_text(pattern, seconds)
        return float(re.search(pattern, self.text(), re.M).groups()[-1])

    def wait_ready(self, n_rank):
        self.wait_for("ready", 60, lambda: len(self.pids()) == n_rank)

    def end(self, seconds):
        """The exit code of mpirun."""
        try:
            return self.mpirun.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds} s\n{self.text()}") from None


def gone(pid):
    """Whether the process has ended, reaped or not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True
