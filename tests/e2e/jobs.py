"""Jobs of several ranks for tests: options, all processes of a job, hosts that are network namespaces.

Every process of a job has the variable TEST_JOB in its environment, by which it is found again, also
when its parents are gone.
"""
import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid

import cli

GONE_S = 10  # no process of a job remains longer after any ending


def options(n_rank, *more):
    """Options for so many ranks; mpirun asks for one more when tests run as root."""
    return ["--ranks", str(n_rank), *(["--allow-root"] if os.geteuid() == 0 else []), *map(str, more)]


def read_proc(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


class Job:
    """The processes that carry this job's mark; env: what to start it with."""

    def __init__(self):
        self.mark = uuid.uuid4().hex
        self.env = {"TEST_JOB": self.mark}
        atexit.register(self.kill)

    def pids(self):
        """Of all processes that are not zombies."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid() and \
                    f"TEST_JOB={self.mark}".encode() in read_proc(name, "environ").split(b"\0"):
                state = read_proc(name, "stat").rpartition(b")")[2].split()
                if state and state[0] != b"Z":
                    found.append(int(name))
        return found

    def rank(self, number):
        """The process of a rank, once it is there."""
        wanted = f"OMPI_COMM_WORLD_RANK={number}".encode()
        for _ in range(600):
            for pid in self.pids():
                if wanted in read_proc(pid, "environ").split(b"\0"):
                    return pid
            time.sleep(0.05)
        raise AssertionError(f"there is no rank {number}")

    def mpirun(self):
        for pid in self.pids():
            if read_proc(pid, "comm").strip() in (b"mpirun", b"orterun"):
                return pid
        raise AssertionError("there is no mpirun")

    def commands(self):
        return {pid: read_proc(pid, "cmdline").replace(b"\0", b" ").decode() for pid in self.pids()}

    def assert_gone(self, seconds=GONE_S):
        """Waits until no process is left; returns how long that took."""
        begin = time.monotonic()
        while self.pids():
            if time.monotonic() - begin > seconds:
                left = self.commands()
                self.kill()
                raise AssertionError(f"still there after {seconds} s: {left}")
            time.sleep(0.05)
        return time.monotonic() - begin

    def kill(self):
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


class Hosts:
    """Hosts 10.77.0.1 .. n: network namespaces at one switch, with names of their own. mpirun starts
    processes on them through a script in place of ssh. Needs root."""

    def __init__(self, n):
        self.prefix = f"lean{os.getpid()}"
        self.addresses = [f"10.77.0.{i + 1}" for i in range(n)]
        self.folder = tempfile.TemporaryDirectory(prefix="lean-hosts-")
        self.agent = os.path.join(self.folder.name, "agent")
        atexit.register(self.close)
        self.add_namespaces()
        with open(self.agent, "w") as file:
            file.write(f"#!/bin/sh\nn=${{1##*.}}; shift\n"
                       f"exec ip netns exec {self.prefix}h$n unshare -u sh -c "
                       f'"hostname host$n; . {self.folder.name}/enter$n; $*"\n')
        for i in range(1, n + 1):
            open(os.path.join(self.folder.name, f"enter{i}"), "w").close()
        os.chmod(self.agent, 0o755)
        self.env = {"OMPI_MCA_plm_rsh_agent": self.agent}

    def shows(self, i, folder, at):
        """Processes that mpirun starts on host i see folder in the place of another one, where that
        exists."""
        with open(os.path.join(self.folder.name, f"enter{i}"), "w") as file:
            file.write(f"[ ! -e '{at}' ] || mount --bind '{folder}' '{at}'\n")

    def add_namespaces(self):
        switch = self.prefix + "s"
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for i, address in enumerate(self.addresses, 1):
            host, port = f"{self.prefix}h{i}", f"port{i}"
            ip("netns", "add", host)
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            ip("-n", host, "addr", "add", address + "/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")

    def command(self, i, *words):
        """The words to run a command on a host, counted from 1."""
        return ["ip", "netns", "exec", f"{self.prefix}h{i}", "unshare", "-u", "sh", "-c",
                f'hostname host{i}; exec "$@"', "sh", *map(str, words)]

    def cut(self, i):
        ip("-n", self.prefix + "s", "link", "set", f"port{i}", "down")

    def cut_between(self, i, k):
        """Hosts i and k cannot reach each other any more, others can reach both."""
        for here, there in ((i, k), (k, i)):
            ip("-n", f"{self.prefix}h{here}", "route", "add", "blackhole", self.addresses[there - 1])

    def limit_rate(self, i, rate):
        """What reaches host i comes at this rate, as tc spells it; False: the kernel cannot."""
        return subprocess.run(["tc", "-n", self.prefix + "s", "qdisc", "add", "dev", f"port{i}", "root",
                               "tbf", "rate", rate, "burst", "64kbit", "latency", "400ms"],
                              capture_output=True).returncode == 0

    def close(self):
        for i in range(len(self.addresses)):
            ip("netns", "del", f"{self.prefix}h{i + 1}", check=False)
        ip("netns", "del", self.prefix + "s", check=False)
        self.folder.cleanup()


def need_namespaces():
    """A kernel and rights for class Hosts, or the test is skipped."""
    tools = [tool for tool in ("ip", "tc", "unshare") if not shutil.which(tool)]
    why = f"no {tools[0]}" if tools else None
    if not why and os.geteuid() != 0:
        why = "not root"
    if not why:
        try:
            Hosts(1).close()
        except subprocess.CalledProcessError as error:
            why = error.stderr.strip()
    if why:
        print(f"skipped: hosts of their own cannot be made here: {why}")
        sys.exit(77)
