"""A server of several ranks whose processes die, hang or are told to end: what its clients get, how it
ends, what is left of it. LEAN_KILLS sets how many times processes are killed at random moments."""
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import cli
import jobs
import ranks
import serve

ranks.skip_without_mpi()
N_RANK = 3
N_KILL = int(os.environ.get("LEAN_KILLS", "6"))
SOON_S = 1  # until all requests know of a death
TELL_S, HANG_S = 5, 12  # until a death is told and the job over; until a hang is noticed, too


class Stream(threading.Thread):
    """A request that goes on for long, in a thread of its own."""

    def __init__(self, server, stream=True):
        super().__init__()
        self.server, self.stream = server, stream
        self.n_event, self.events, self.done, self.cut = 0, [], False, False
        self.start()

    def run(self):
        body = {"prompt": "go on", "max_tokens": 100000, "ignore_eos": True, "stream": self.stream}
        try:
            with contextlib.closing(self.server.connect(timeout=60)) as connection:
                connection.request("POST", "/v1/completions", json.dumps(body))
                response = connection.getresponse()
                self.status, self.headers = response.status, response.headers
                if not self.stream:
                    self.body = json.loads(response.read())
                    return
                for line in response:
                    if line == b"data: [DONE]\n":
                        self.done = True
                    elif line.startswith(b"data: "):
                        self.end_s = time.monotonic()
                        self.n_event += 1
                        self.events = [*self.events[-2:], json.loads(line[6:])]
        except (OSError, http.client.HTTPException):
            self.cut = True

    def wait_running(self):
        end = time.monotonic() + 30
        while self.n_event < 2:
            assert time.monotonic() < end, "the stream does not begin"
            time.sleep(0.01)


class Failures(unittest.TestCase):
    def setUp(self):
        self.job = jobs.Job()
        self.addCleanup(self.job.kill)

    def server(self, *more):
        """The model has a short context: what runs lasts, as it slides."""
        server = serve.Server(*jobs.options(N_RANK), "--ctx", "131072", "--parallel", "4", *more,
                              model=serve.TINY, env=self.job.env)
        self.addCleanup(server.__exit__, AssertionError, None, None)
        return server

    def assert_ends(self, server, status, seconds):
        code = server.process.wait(seconds + 10)
        self.assertEqual(code, status, server.log())
        self.job.assert_gone()

    def lose(self, server, victim, number=signal.SIGKILL, seconds=TELL_S):
        """Sends a signal to a worker while two requests run; both learn it and the server ends."""
        stream, whole = Stream(server), Stream(server, stream=False)
        stream.wait_running()
        begin = time.monotonic()
        os.kill(victim, number)
        stream.join(30)
        whole.join(30)
        self.assertFalse(stream.done)
        self.assertEqual(stream.events[-1]["error"]["code"], "rank_lost")
        self.assertEqual(stream.events[-1]["error"]["type"], "unavailable_error")
        self.assertNotIn("error", stream.events[-2])
        self.assertEqual((whole.status, whole.body["error"]["code"]), (503, "rank_lost"))
        self.assertTrue(whole.headers["Retry-After"].isdigit())
        self.assertIn("rank ", whole.body["error"]["message"])
        self.assert_ends(server, 11, seconds)
        self.assertLess(time.monotonic() - begin, seconds)
        self.assertIn("lean: error: ", server.log())
        if number == signal.SIGKILL:
            self.assertLess(stream.end_s - begin, SOON_S)
            told = re.search(r"the clients were told within ([\d.]+)(m?)s", server.log())
            self.assertLess(float(told[1]) / (1000 if told[2] else 1), SOON_S)

    def test_a_worker_dies(self):
        server = self.server()
        self.lose(server, self.job.rank(1))

    def test_a_worker_hangs(self):
        self.lose(self.server(), self.job.rank(N_RANK - 1), signal.SIGSTOP, HANG_S)

    def held_server(self, *options):
        """Whose rank 1 reads experts as slowly as a file says that does not exist yet."""
        if cli.is_sanitized():
            self.skipTest("a library that is preloaded goes before the sanitizer's own")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.order = os.path.join(folder.name, "order")
        self.job.env = {**self.job.env, "LD_PRELOAD": os.path.join(ranks.BUILD, "tests/read_shim.so"),
                        "READ_SHIM_RANK": "1", "READ_SHIM_FILE": self.order}
        return self.server("--partition", "1,2,5", "--expert-slots", "min", "--io", "pread",
                           "--prefetch", "off", "--profile", "none", *options)

    def hold(self, how):
        with open(self.order + "~", "w") as file:
            file.write(how)
        os.rename(self.order + "~", self.order)

    def test_a_step_stands_still(self):
        """In a process that answers: a read never comes back."""
        server = self.held_server("--stall-timeout", "1500ms")
        stream = Stream(server)
        stream.wait_running()
        self.hold("hold")
        stream.join(30)
        error = stream.events[-1]["error"]
        self.assertEqual(error["code"], "rank_lost")
        self.assertRegex(error["message"], r"^rank 1 \(.*: step \d+ has not moved for 1\.[5-9]|"
                                           r"^rank 1 \(.*: step \d+ has not moved for [2-9]")
        self.assert_ends(server, 11, 10)
        log = server.log()
        for line in (r"\[1\] lean: computes step \d+; moved \d+ times",
                     r"\[1\] lean: disk: [1-9]\d* reads submitted; .* [1-9]\d* pieces of .* run",
                     r"\[1\] lean: edge to the next rank: \d+ transfers begun",
                     r"\[1\] lean:   .* ago: waits for another stage in step \d+"):
            self.assertRegex(log, line)

    def test_a_slow_step_does_not_stand_still(self):
        """It takes longer than the limit, each of its reads less."""
        server = self.held_server("--stall-timeout", "2s")
        self.hold("500")
        begin = time.monotonic()
        answer = server.complete("go on", max_tokens=1, ignore_eos=True)
        self.assertGreater(time.monotonic() - begin, 3)
        self.assertEqual(answer["usage"]["completion_tokens"], 1)
        os.unlink(self.order)
        os.kill(self.job.rank(1), signal.SIGUSR2)  # where does it stand?
        end = time.monotonic() + 20
        while not re.search(r"\[1\] lean: is idle behind step \d+; moved \d+ times", server.log()):
            self.assertLess(time.monotonic(), end, server.log())
            time.sleep(0.05)
        server.stop()
        self.job.assert_gone()

    def test_a_worker_dies_while_nothing_runs(self):
        server = self.server()
        begin = time.monotonic()
        os.kill(self.job.rank(N_RANK - 1), signal.SIGKILL)
        self.assert_ends(server, 11, TELL_S)
        self.assertLess(time.monotonic() - begin, TELL_S)

    def test_it_starts_again(self):
        server = self.server("--restart", "--listen", "127.0.0.1:0")
        first = self.job.rank(0)
        os.kill(self.job.rank(2), signal.SIGKILL)
        end = time.monotonic() + 40
        while "starting again" not in server.log():
            self.assertLess(time.monotonic(), end, server.log())
            time.sleep(0.05)
        line = server.process.stdout.readline(), server.process.stdout.readline()
        self.assertRegex(line[1], r"ready http://127\.0\.0\.1:\d+")
        self.assertNotEqual(self.job.rank(0), first)
        server.port = int(line[1].rpartition(":")[2])
        self.assertTrue(server.complete("again", max_tokens=4)["choices"][0]["text"])
        server.stop()
        self.job.assert_gone()

    def test_the_port_is_held_while_it_starts_again(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = self.server("--restart", "--hold-port", "--listen", f"127.0.0.1:{port}")
        server.port = port
        os.kill(self.job.rank(2), signal.SIGKILL)
        held, end = [], time.monotonic() + 60
        while not held or held[-1][0] != 200:  # of rank 0 that ends, of the supervisor, of the next
            self.assertLess(time.monotonic(), end, (held, server.log()))
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
                held.append((answer.status, answer.body, answer.headers.get("retry-after")))
            time.sleep(0.02)
        by_supervisor = [each for each in held if b"is being started again" in each[1]]
        self.assertTrue(by_supervisor, held)
        for status, body, retry_after in by_supervisor:
            self.assertEqual((status, json.loads(body)["error"]["code"]), (503, "rank_lost"))
            self.assertGreaterEqual(int(retry_after), 1)
        self.assertLessEqual({each[0] for each in held}, {200, 503})
        server.stop()
        self.job.assert_gone()

    def test_holding_ports_needs_a_restart(self):
        result = cli.lean("serve", serve.TINY, *jobs.options(2), "--hold-port")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("--restart", result.stderr)

    def test_killing_each_process_at_any_time(self):
        """Before it is ready, while it serves: no hang, nothing left, the status tells."""
        victims = [("rank", 0), ("rank", 1), ("rank", N_RANK - 1), ("supervisor", -1),
                   ("mpirun", -1)]
        seed = int(os.environ.get("LEAN_SEED", random.randrange(1 << 32)))
        dice = random.Random(seed)
        for i in range(N_KILL):
            name, rank = victims[i % len(victims)]
            moment = dice.choice(["starting", "serving"])
            with self.subTest(f"{name} {rank} {moment}, LEAN_SEED={seed}, number {i}"):
                self.job = jobs.Job()
                server = serve.Server(*jobs.options(N_RANK), model=serve.TINY, env=self.job.env,
                                      wait=moment == "serving")
                streams = [Stream(server) for _ in range(2)] if moment == "serving" else []
                time.sleep(dice.random() * (0.7 if moment == "starting" else 0.3))
                begin = time.monotonic()
                os.kill(self.job.rank(rank) if name == "rank" else
                        self.job.mpirun() if name == "mpirun" else server.process.pid,
                        signal.SIGKILL)
                code = server.process.wait(30)
                self.job.assert_gone(jobs.GONE_S - (time.monotonic() - begin))
                self.assertIn(code, [-9] if name == "supervisor" else [11, 4, 1], server.log())
                for stream in streams:
                    stream.join(10)
                    self.assertFalse(stream.is_alive() or stream.done)
                server.__exit__(AssertionError, None, None)

    # -- told to end

    def test_the_first_signal_drains(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            with self.subTest(number):
                self.job = jobs.Job()
                server = self.server()
                results = []
                threads = [threading.Thread(target=lambda: results.append(
                    server.complete("go on", max_tokens=200, ignore_eos=True))) for _ in range(4)]
                for thread in threads:
                    thread.start()
                while server.metric("lean_requests_running") < 4:
                    time.sleep(0.02)
                server.process.send_signal(number)
                for thread in threads:
                    thread.join(60)
                self.assertEqual([r["usage"]["completion_tokens"] for r in results], [200] * 4)
                self.assert_ends(server, 0, 10)

    def test_the_second_signal_ends_at_once(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                self.job = jobs.Job()
                server = self.server()
                stream = Stream(server)
                stream.wait_running()
                server.process.send_signal(number)
                time.sleep(0.3)
                self.assertIsNone(server.process.poll())
                begin = time.monotonic()
                server.process.send_signal(number)
                self.assert_ends(server, 128 + number, 5)
                self.assertLess(time.monotonic() - begin, 4)
                stream.join(10)

    def test_by_hand_mpirun_forwards_the_signal_that_drains(self):
        words = ["mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none",
                 *(["--allow-run-as-root"] if os.geteuid() == 0 else []), cli.LEAN, "serve",
                 serve.TINY, "--listen", "127.0.0.1:0"]
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE,
                              env=cli.environment(**self.job.env)) as process:
            self.assertTrue(process.stdout.readline().startswith(b"ready "))
            process.send_signal(signal.SIGUSR1)
            self.assertEqual(process.wait(20), 0, process.stderr.read())
        self.job.assert_gone()

    def test_rank_0_hangs(self):
        server = self.server()
        os.kill(self.job.rank(0), signal.SIGSTOP)
        self.assert_ends(server, 11, HANG_S)

    def test_lean_stop(self):
        server = self.server("--name", "several")
        result = cli.lean("stop", "several", XDG_RUNTIME_DIR=server.runtime.name)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assert_ends(server, 0, 10)


if __name__ == "__main__":
    unittest.main()
