"""Clients that leave, queues that are full, prompts that are too long, signals."""
import contextlib
import signal
import threading
import time
import unittest

import cli
import serve

try:
    import openai
except ImportError:
    openai = None  # its retries are then not tried

GONE_S = 0.25  # to notice; then the next step ends it
LOOK_S = 0.05  # how late a test sees it
SLOWER = 4 if cli.is_sanitized() else 1
LONG = {"prompt": "The purpose of", "temperature": 0, "max_tokens": 900, "ignore_eos": True}
SLOW = ["--kernels", "ref"]  # some 50 tokens a second, so that there is time to do things
PROMPT = [[i % 5000 + 1 for i in range(900)]]


@contextlib.contextmanager
def started(*options):
    """A slow server."""
    with serve.Server(*SLOW, *options) as server:
        yield server


def wait_for(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)


class Leaving(unittest.TestCase):
    """A client that goes away frees its slot, and nobody else notices."""

    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server("--parallel", 2, "--max-queue", 8, "--prefill-chunk", 16, *SLOW)
        cls.neighbour = {**LONG, "prompt": "Once there was", "max_tokens": 60, "temperature": 0.9, "seed": 4,
                         "logprobs": 3}
        cls.expected = cls.server.complete(**cls.neighbour)["choices"]

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def aborted(self):
        return self.server.metric("lean_requests_finished_total", reason="abort")

    def step_s(self):
        """Seconds and number of steps so far."""
        return [self.server.metric("lean_step_seconds_" + what) for what in ("sum", "count")]

    def leave_once(self, body, ready, how):
        """A neighbour runs; a client begins, leaves when it is ready, and all is as before. Returns how long it
        was until the request was gone, and how long a step took."""
        aborted, steps = self.aborted(), self.step_s()
        result = []
        beside = threading.Thread(
            target=lambda: result.append(self.server.complete(**self.neighbour)))
        beside.start()
        wait_for(lambda: self.server.metric("lean_requests_running"), "the neighbour")
        connection = self.server.begin("/v1/completions", body)
        try:
            ready(connection)
        finally:
            if how == "half":
                connection.shutdown(1)  # only our side: the server must see that too
            else:
                connection.close()
        left = time.monotonic()
        wait_for(lambda: self.aborted() > aborted, "the request to be dropped")
        took = time.monotonic() - left
        self.assertTrue(beside.is_alive(), "the neighbour had ended before")
        connection.close()
        beside.join()
        self.assertEqual(result[0]["choices"], self.expected)
        seconds, n = (now - then for now, then in zip(self.step_s(), steps))
        return took, seconds / n

    def leave(self, body, ready, how):
        """The machine's own pauses are not the server's: one of three times has to be in time."""
        for _ in range(3):
            took, step = self.leave_once(body, ready, how)
            if took <= (GONE_S + step + LOOK_S) * SLOWER:
                return f"dropped after {took * 1000:.0f} ms, a step is {step * 1000:.0f}"
        self.fail(f"dropped after {took} s, a step is {step}")

    def in_state(self, state, n_prompt):
        def has_state(_):
            wait_for(lambda: any(slot["state"] == state and slot["n_prompt"] == n_prompt
                                 for slot in self.server.get("/slots").json), state)
        return has_state

    def test_in_decode(self):
        n_prompt = self.server.complete(**{**LONG, "max_tokens": 1})["usage"]["prompt_tokens"]
        for stream in (False, True):
            for how in ("closed", "half"):
                def begun(connection):
                    if stream:
                        self.assertIn(b"200 OK", connection.recv(4096))
                    else:
                        self.in_state("decode", n_prompt)(connection)
                with self.subTest(stream=stream, how=how):
                    told = self.leave({**LONG, "stream": stream}, begun, how)
                    print(f"decode, stream {stream}, {how}: {told}")

    def test_in_prefill(self):
        for stream in (False, True):
            with self.subTest(stream=stream):
                body = {**LONG, "prompt": PROMPT, "stream": stream, "cache_prompt": False}
                told = self.leave(body, self.in_state("prefill", len(PROMPT[0])), "closed")
                print(f"prefill, stream {stream}: {told}")

    def test_in_the_queue(self):
        for stream in (False, True):
            with self.subTest(stream=stream):
                holder = self.server.begin("/v1/completions", LONG)
                wait_for(lambda: self.server.metric("lean_requests_running") == 1, "the first slot")
                told = self.leave({**LONG, "prompt": [[5] * 7], "stream": stream}, self.in_state("queued", 7), "closed")
                print(f"queue, stream {stream}: {told}")
                holder.close()
                self.server.wait_idle(5)


class Overload(unittest.TestCase):
    def test_a_full_queue_answers_at_once_and_clients_come_again(self):
        with started("--parallel", 1, "--max-queue", 2) as server:
            holder = server.begin("/v1/completions", LONG)
            wait_for(lambda: server.metric("lean_requests_running") == 1, "the slot")
            waiting = [server.begin("/v1/completions", {**LONG, "max_tokens": 8}) for _ in range(2)]
            wait_for(lambda: server.metric("lean_requests_waiting") == 2, "the queue")

            quickest = 1.0
            for _ in range(5):  # the machine's own pauses are not the server's
                start = time.monotonic()
                answer = server.post("/v1/completions", LONG)
                quickest = min(quickest, time.monotonic() - start)
                self.assertEqual((answer.status, answer.error["code"]), (429, "queue_full"))
                self.assertEqual(answer.error["type"], "rate_limit_error")
                self.assertIn(int(answer.headers["retry-after"]), range(1, 61))
                self.assertEqual(answer.headers["x-should-retry"], "true")
            self.assertLess(quickest, 0.05)

            def refused():
                return server.metric("lean_requests_rejected_total", cause="queue_full")
            before = refused()
            self.assertEqual(before, 5)
            timer = threading.Timer(0.5, holder.close)
            timer.start()
            if openai:
                client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
                answer = client.completions.create(model="m", prompt="Once", max_tokens=4)
                self.assertTrue(answer.choices[0].finish_reason)
                self.assertIn(refused() - before, (1, 2))  # it has two retries
            timer.join()
            for connection in waiting:
                self.assertIn(b"200 OK", connection.recv(4096))
                connection.close()

    def test_more_sequences_than_the_queue_holds(self):
        with started("--parallel", 1, "--max-queue", 4) as server:
            # Alone it may be as large as it likes: evaluation harnesses send a thousand prompts.
            self.assertEqual(len(server.complete(["a"] * 8, max_tokens=1)["choices"]), 8)
            holders = [server.begin("/v1/completions", LONG) for _ in range(2)]
            wait_for(lambda: server.metric("lean_requests_waiting") == 1, "the queue")
            answer = server.post("/v1/completions", {"prompt": ["a"] * 8, "max_tokens": 1})
            self.assertEqual((answer.status, answer.error["code"]), (429, "queue_full"))
            self.assertEqual(server.metric("lean_requests_waiting"), 1)
            for holder in holders:
                holder.close()

    def test_waiting_has_an_end(self):
        with started("--parallel", 1, "--queue-timeout", "0.3") as server:
            holder = server.begin("/v1/completions", LONG)
            wait_for(lambda: server.metric("lean_requests_running") == 1, "the slot")
            answer = server.post("/v1/completions", {**LONG, "max_tokens": 1})
            self.assertEqual((answer.status, answer.error["code"]), (429, "queue_timeout"))
            holder.close()


class Waiting(unittest.TestCase):
    @unittest.skipIf(cli.is_sanitized(), "sanitizers keep what is freed")
    def test_a_request_that_waits_keeps_no_tree_of_its_body(self):
        with started("--parallel", 1) as server:
            body = (b'{"prompt":"Once","max_tokens":900,"ignore_eos":true,"metadata":[' + b"{}," * 100000 + b"{}]}")
            clients = []
            for i in range(12):
                clients.append(server.begin("/v1/completions", body))
                wait_for(lambda: server.metric("lean_requests_waiting") == i, "the queue")
                if not i:
                    one = server.rss_bytes()
            # each of the trees is 70 MB; the four threads that read requests may keep what one took
            self.assertLess(server.rss_bytes() - one, 350e6)
            for client in clients:
                client.close()


class Overflow(unittest.TestCase):
    def test_a_prompt_that_does_not_fit(self):
        with started("--ctx", 256) as server:
            generated = server.metric("lean_generation_tokens_total")
            answer = server.post("/v1/completions", {"prompt": [[7] * 300], "max_tokens": 4})
            self.assertEqual((answer.status, answer.error["code"]), (400, "context_length_exceeded"))
            self.assertIn("maximum context length is 256 tokens", answer.error["message"])
            self.assertIn("exceeds the available context size (256 tokens)", answer.error["message"])
            self.assertEqual((answer.error["n_prompt_tokens"], answer.error["n_ctx"]), (300, 256))
            answer = server.post("/v1/chat/completions",
                                 {"messages": [{"role": "user", "content": "word " * 400}]})
            self.assertEqual((answer.status, answer.error["param"]), (400, "messages"))
            self.assertEqual(server.metric("lean_generation_tokens_total"), generated)
            # The largest that fits, and one cut by the context.
            self.assertEqual(server.complete([[7] * 255], max_tokens=5, ignore_eos=True)
                             ["choices"][0]["finish_reason"], "length")
            answer = server.complete([[7] * 200], max_tokens=500, ignore_eos=True)
            self.assertEqual(answer["usage"]["total_tokens"], 256)
            # Shortened only when asked to.
            answer = server.complete([[7] * 300], max_tokens=1, truncate_prompt_tokens=100)
            self.assertEqual(answer["usage"]["prompt_tokens"], 100)


class Ending(unittest.TestCase):
    BODY = {**LONG, "max_tokens": 30}

    def test_streams_finish_after_sigterm(self):
        with started("--parallel", 8) as server:
            expected = server.complete(**self.BODY)["choices"][0]["text"]
            began = threading.Barrier(9)

            def read():
                events = server.stream("/v1/completions", self.BODY)
                first = next(events)
                began.wait(30)
                text, reason = serve.stream_text([first, *events])
                return text, reason

            def end():
                began.wait(30)
                server.process.send_signal(signal.SIGTERM)
            found = serve.at_once(*[read] * 8, end)
            self.assertEqual(found[:8], [(expected, "length")] * 8)
            self.assertEqual(server.process.wait(20), 0, server.log())

    def test_a_second_signal_ends_at_once(self):
        for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            with started("--parallel", 1) as server:
                connection = server.begin("/v1/completions", {**LONG, "stream": True})
                connection.recv(4096)
                server.process.send_signal(number)
                time.sleep(0.3)
                self.assertIsNone(server.process.poll(), "it did not wait for the stream")
                start = time.monotonic()
                server.process.send_signal(number)
                server.status = server.process.wait(10)
                self.assertIn(server.status, (status, -number))
                self.assertLess(time.monotonic() - start, 1.0)
                connection.close()

    def test_draining_has_an_end(self):
        with started("--parallel", 1, "--drain-timeout", "0.5") as server:
            connection = server.begin("/v1/completions", {**LONG, "stream": True})
            connection.recv(4096)
            start = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(10), 0, server.log())
            self.assertLess(time.monotonic() - start, 5)
            rest = b""
            while piece := connection.recv(65536):
                rest += piece
            self.assertTrue(b'"code":"shutting_down"' in rest, rest[-1000:])
            self.assertFalse(b"[DONE]" in rest)
            connection.close()


if __name__ == "__main__":
    unittest.main()
