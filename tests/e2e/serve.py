"""Starts `lean serve` for a test and talks to it.

    with serve.Server("--parallel", 2) as server:
        answer = server.post("/v1/completions", {"prompt": "once", "max_tokens": 4})
        answer.json["choices"][0]["text"]

The reader of streams here is strict where clients are lenient; clients' own readers are used beside
it, in test_serve_clients.py. A server that does not end with status 0, or that wrote a complaint
of a sanitizer, fails the test that started it.
"""
import contextlib
import functools
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import cli

DEMO = os.path.join(cli.SOURCE_DIR, "configs/demo/lean-demo-q4_k_m.gguf")
TINY = os.path.join(cli.SOURCE_DIR, "tests/data/golden/models/qwen35moe-s-q8_0.gguf")
START_S = 60


def sum_metric(text, name, **labels):
    """The same in the text of /metrics."""
    total, found = 0, False
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if not match:
            continue
        has = dict(re.findall(r'(\w+)="([^"]*)"', match[1] or ""))
        if all(has.get(key) == value for key, value in labels.items()):
            total, found = total + float(match[2]), True
    assert found, f"no metric {name} {labels}"
    return total


def packages(*names):
    """Imports what a test compares with; without it the test is skipped."""
    import importlib
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            print(f"skipped: the Python package {name} is not installed ({error})")
            sys.exit(77)
    return found[0] if len(found) == 1 else found


class Answer:
    """status, headers (names in lower case), body; json is the body parsed."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


class Server:
    """options: of `lean serve`; model: its file; env: variables. The URL is server.url."""

    def __init__(self, *options, model=DEMO, env=None, wait=True):
        self.model = model
        self.status = 0  # what it is expected to end with
        self.log_file = tempfile.NamedTemporaryFile(prefix="lean-serve-", suffix=".log")
        ready, theirs = os.pipe()
        self.runtime = tempfile.TemporaryDirectory(prefix="lean-run-")
        words = [cli.LEAN, "serve", model, "--listen", "127.0.0.1:0", "--ready-fd", str(theirs),
                 *map(str, options)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log_file,
            pass_fds=[theirs], text=True,
            env=cli.environment(XDG_RUNTIME_DIR=self.runtime.name, **(env or {})))
        os.close(theirs)
        self.ready_fd = ready
        self.url = None
        if wait:
            self.wait_ready()

    def wait_ready(self):
        line, end = b"", time.monotonic() + START_S
        while not line.endswith(b"\n"):
            if not select.select([self.ready_fd], [], [], max(0, end - time.monotonic()))[0]:
                self.process.kill()
                raise AssertionError(f"not ready after {START_S} s: {self.log()}")
            piece = os.read(self.ready_fd, 4096)
            if not piece:
                raise AssertionError(f"lean serve ended: {self.process.wait(10)}: {self.log()}")
            line += piece
        os.close(self.ready_fd)
        self.ready_fd = None
        match = re.fullmatch(r"ready (http://127\.0\.0\.1:(\d+))\n", line.decode())
        assert match, line
        self.url, self.port = match[1], int(match[2])

    def log(self):
        with open(self.log_file.name, errors="replace") as file:
            return file.read()

    # -- requests

    def connect(self, timeout=60):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=60):
        with contextlib.closing(self.connect(timeout)) as connection:
            connection.request(method, path, body, headers or {})
            return Answer(connection.getresponse())

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, body, **more):
        if not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        return self.request("POST", path, body.encode() if isinstance(body, str) else body, **more)

    def complete(self, prompt, **fields):
        """The answer of /v1/completions, which must succeed."""
        answer = self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **fields},
                           timeout=300)
        assert answer.status == 200, answer.body
        return answer.json

    def chat(self, content, **fields):
        messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
        answer = self.post("/v1/chat/completions",
                           {"messages": messages, "temperature": 0, **fields}, timeout=300)
        assert answer.status == 200, answer.body
        return answer.json

    def stream(self, path, body, headers=None):
        """Yields the events of a stream as Python values; it must end with [DONE]."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", path, json.dumps({**body, "stream": True}), headers or {})
            response = connection.getresponse()
            assert response.status == 200, (response.status, response.read())
            assert response.getheader("Content-Type") == "text/event-stream", response.getheaders()
            yield from read_events(response)

    def begin(self, path, body):
        """Sends a request on a socket of its own and returns that, unread."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s"
                           % (path.encode(), len(data), data))
        return connection

    def metrics(self):
        """All metrics at one moment, to be asked like metric."""
        return functools.partial(sum_metric, self.get("/metrics").body.decode())

    def metric(self, name, **labels):
        """Sum of a metric over its labels, of those that are as given."""
        return self.metrics()(name, **labels)

    def wait_idle(self, seconds):
        """Waits until no sequence runs or waits, at most the seconds; returns how long it took."""
        start = time.monotonic()
        while self.metric("lean_requests_running") + self.metric("lean_requests_waiting"):
            assert time.monotonic() - start < seconds, f"still busy after {seconds} s"
            time.sleep(0.02)
        return time.monotonic() - start

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+) kB", file.read())[1]) * 1024

    # -- the end

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"lean serve does not end: {self.log()}")
        assert code == self.status, f"lean serve ended with {code}: {self.log()}"
        log = self.log()
        assert "AddressSanitizer" not in log and "runtime error:" not in log, log

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.stop()
        elif self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            sys.stderr.write(self.log()[-4000:])
        if self.ready_fd is not None:
            os.close(self.ready_fd)
        self.process.stdout.close()
        self.log_file.close()
        self.runtime.cleanup()


def raw_logprobs(numpy, model, ids):
    """[len(ids)][n_vocab] log-softmax of the logits behind each token, in float64."""
    with tempfile.NamedTemporaryFile() as file:
        result = cli.lean("eval", model, "--ids", ",".join(map(str, ids)), "--logits", file.name)
        assert result.returncode == 0, result.stderr
        logits = numpy.fromfile(file.name, dtype="<f4").reshape(len(ids), -1).astype(float)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))


def read_events(response):
    """Events of the completions and chat routes: one line of data each, comments between them."""
    last = None
    for line in response:
        assert line.endswith(b"\n"), line
        line = line[:-1].decode()
        if line.startswith("data: "):
            assert last is None, "an event of two lines"
            last = line[6:]
        elif not line:
            if last == "[DONE]":
                assert response.read() == b"", "something behind [DONE]"
                return
            if last is not None:
                yield json.loads(last)
            last = None
        else:
            assert line.startswith(":"), line
    raise AssertionError("the stream ended without [DONE]")


def stream_text(events):
    """Of a stream with one choice: (content or text, the finish reason)."""
    text, reason = "", None
    for event in events:
        assert "error" not in event, event
        for choice in event["choices"]:
            assert reason is None, "something behind the finish reason"
            text += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            reason = choice["finish_reason"]
    return text, reason


def at_once(*calls):
    """Runs the calls in threads of their own; their results in order. The first error is raised."""
    results = [None] * len(calls)

    def run(i):
        try:
            results[i] = (calls[i](), None)
        except BaseException as error:  # noqa: handed on below
            results[i] = (None, error)

    threads = [threading.Thread(target=run, args=[i]) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, error in results:
        if error:
            raise error
    return [result for result, _ in results]
