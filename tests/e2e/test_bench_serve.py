"""lean bench serve: against a server whose timing is scripted, so that every figure is known; against
`lean serve`, with a client of Python's own beside it; and what goes wrong."""
import csv
import http.client
import io
import json
import math
import os
import statistics
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cli
import serve

SLACK_S = 0.25  # a busy machine delays both sides; scripted times differ by more than this


class Script(BaseHTTPRequestHandler):
    """Streams with pauses that the class says; counts what runs at once."""
    protocol_version = "HTTP/1.1"
    first_s, gaps_s, end_s = 0.0, [], 0.0
    usage = True
    behave = staticmethod(lambda number: "answer")
    lock = threading.Lock()
    seen = []  # (time, body)
    n_now = n_max = 0

    def log_message(self, *args):
        pass

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(200, {"data": [{"id": "scripted"}]})

    def event(self, body):
        text = body if isinstance(body, str) else json.dumps(body)
        data = f"data: {text}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def do_POST(self):
        cls = type(self)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":  # a token for each word
            words = body["content"].split()
            return self.reply(200, {"tokens": list(range(len(words)))})
        with cls.lock:
            number = len(cls.seen)
            cls.seen.append((time.monotonic(), body, dict(self.headers)))
            cls.n_now += 1
            cls.n_max = max(cls.n_max, cls.n_now)
        try:
            self.answer(cls.behave(number), "chat" in self.path)
        finally:
            with cls.lock:
                cls.n_now -= 1

    def answer(self, how, chat):
        cls = type(self)
        if how.isdigit():
            return self.reply(int(how), {"error": {"message": "no"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i, pause_s in enumerate([cls.first_s, *cls.gaps_s]):
            time.sleep(pause_s)
            text = {"delta": {"content": "w "}} if chat else {"text": "w "}
            self.event({"choices": [{"index": 0, "finish_reason": None, **text}], "usage": None})
            if how == "error" and i == 1:
                self.event({"error": {"message": "broken"}})
            if how == "cut" and i == 1:
                self.close_connection = True
                return
        time.sleep(cls.end_s)
        self.event({"choices": [{"index": 0, "finish_reason": "length", "text": "", "delta": {}}]})
        if cls.usage:
            self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens":
                                                 1 + len(cls.gaps_s)}})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")


class Scripted:
    def __init__(self, **script):
        self.handler = type("Handler", (Script,), {"lock": threading.Lock(), "seen": [], **script})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self.url = "http://127.0.0.1:%d" % self.server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def bench(url, *args, code=0):
    run = cli.lean("bench", "serve", "--url", url, "--progress", "none", *args)
    assert run.returncode == code, (run.returncode, run.stdout, run.stderr)
    return run


def report_of(url, *args, **more):
    return json.loads(bench(url, *args, "-o", "json", **more).stdout)


def near(got, expected, slack=SLACK_S):
    assert expected - 0.02 <= got <= expected + slack, (got, expected)


def check_definitions():
    """First token after 0.5 s, gaps of 0.3, 0 and 0.6 s, the end 0.3 s later."""
    gaps = [0.3, 0.0, 0.6]
    for usage in (True, False):
        with Scripted(first_s=0.5, gaps_s=gaps, end_s=0.3, usage=usage) as server:
            report = report_of(server.url, "--num-prompts", 4, "--input-len", 7, "--output-len", 4,
                               "--detailed", "--goodput", "ttft:900,e2el:60000")
        assert report["completed"] == 4 and report["failed"] == 0
        assert report["total_output_tokens"] == 16, report["total_output_tokens"]
        assert report["total_input_tokens"] == 28, report["total_input_tokens"]
        assert report["max_concurrent_requests"] == 4
        near(report["mean_ttft_ms"] / 1e3, 0.5)
        near(report["median_tpot_ms"] / 1e3, (0.3 + 0.0 + 0.6 + 0.3) / 3)
        near(report["mean_itl_ms"] / 1e3, 0.3)
        near(report["mean_e2el_ms"] / 1e3, 1.7)
        near(report["duration"], 1.7)
        assert math.isclose(report["request_goodput"] * report["duration"], 4, rel_tol=0.01)
        assert len(report["itls"]) == 4 and all(len(gaps) == 3 for gaps in report["itls"])
        for got in report["itls"]:
            near(sum(got), 0.9)
        flat = [gap for gaps in report["itls"] for gap in gaps]
        assert math.isclose(report["mean_itl_ms"], 1e3 * statistics.mean(flat), rel_tol=1e-3)
        assert math.isclose(report["std_ttft_ms"], 1e3 * statistics.stdev(report["ttfts"]),
                            rel_tol=0.05, abs_tol=0.2)
        for name in ("ttft", "tpot", "itl", "e2el"):
            assert report[f"p50_{name}_ms"] == report[f"median_{name}_ms"]
            assert report[f"p99_{name}_ms"] >= report[f"p90_{name}_ms"] > 0


def check_requests():
    """What is sent: lengths, a prefix, ids for completions, text for chat, headers."""
    with Scripted(gaps_s=[0.0]) as server:
        args = ("--num-prompts", 20, "--input-len", "5-9", "--output-len", "2-4", "--prefix-len", 6)
        bench(server.url, *args, "--api-key", "secret", "--header", "X-Test: yes",
              "--warmup-requests", 2)
        first = [(body, headers) for _, body, headers in server.handler.seen]
        server.handler.seen.clear()
        bench(server.url, *args, "--route", "chat", "--no-ignore-eos", "--model", "other")
        chat = [body for _, body, _ in server.handler.seen]
    assert len(first) == 22
    bodies = [body for body, _ in first[2:]]
    assert {len(body["prompt"]) for body in bodies} == set(range(11, 16))
    assert {body["max_tokens"] for body in bodies} == {2, 3, 4}
    assert all(body["prompt"][:6] == list(range(6)) for body in bodies)
    assert len({tuple(body["prompt"]) for body in bodies}) == 20
    for body, headers in first:
        assert body["model"] == "scripted" and body["stream"] is True
        assert body["ignore_eos"] is True and body["stream_options"] == {"include_usage": True}
        assert headers["Authorization"] == "Bearer secret" and headers["X-Test"] == "yes"
    assert len(chat) == 20 and all(isinstance(body["messages"][0]["content"], str) and
                                   body["model"] == "other" and "ignore_eos" not in body
                                   for body in chat)


def check_times():
    """A limit of requests at once, and a rate."""
    with Scripted(first_s=0.1) as server:
        report = report_of(server.url, "--num-prompts", 9, "--max-concurrency", 3,
                           "--output-len", 1)
        assert server.handler.n_max <= 3 and report["max_concurrent_requests"] == 3
        near(report["duration"], 0.3, 0.5)
        server.handler.seen.clear()
        bench(server.url, "--num-prompts", 40, "--request-rate", 50, "--output-len", 1)
        times = [at for at, _, _ in server.handler.seen]
        assert 0.2 < times[-1] - times[0] < 3, times[-1] - times[0]
        gaps = [b - a for a, b in zip(times, times[1:])]
        assert max(gaps) > 2 * statistics.median(gaps), "not like Poisson arrivals"
        server.handler.seen.clear()
        bench(server.url, "--num-prompts", 20, "--request-rate", 40, "--burstiness", 1000,
              "--ramp", "1s", "--output-len", 1)
        times = [at for at, _, _ in server.handler.seen]
        # evenly, while the rate grows: the n-th comes after sqrt(n / 20) seconds; any, also the
        # first, may be seen late
        start = min(at - math.sqrt(n / 20) for n, at in enumerate(times))
        for n, at in enumerate(times):
            near(at - start, math.sqrt(n / 20))


def check_failures():
    kinds = {1: "429", 2: "429", 4: "503", 6: "cut", 8: "error"}
    with Scripted(gaps_s=[0.0, 0.0], behave=staticmethod(lambda n: kinds.get(n, "answer"))) as server:
        args = ("--num-prompts", 10, "--max-concurrency", 1, "--output-len", 3)
        report = report_of(server.url, *args, "--detailed", code=1)
        assert report["completed"] == 5 and report["failed"] == 5
        assert report["failures"] == {"429": 2, "503": 1, "cut off": 1, "stream": 1}, report
        assert [bool(error) for error in report["errors"]] == [n in kinds for n in range(10)]
        server.handler.seen.clear()
        assert bench(server.url, *args, "--allow-failures").stdout.count("429") == 1
    run = cli.lean("bench", "serve", "--url", server.url)
    assert run.returncode == 4 and run.stderr.count("error:") == 1, run
    for words in (("--url", "ftp://x"), (), ("--url", "http://x", "--percentiles", "50,101"),
                  ("--url", "http://x", "--goodput", "speed:3"), ("--url", "http://x", "-p", 3),
                  ("--url", "http://x", "--request-rate", "0"),
                  ("--url", "http://x", "--input-len", "9-3"), ("--url", "http://x", "-o", "sql")):
        run = cli.lean("bench", "serve", *words)
        assert run.returncode == 2 and "error:" in run.stderr, (words, run)


def check_dataset_and_comparison():
    path, saved = os.path.join(cli.HOME, "set.jsonl"), os.path.join(cli.HOME, "saved.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"prompt": "one", "output_len": 2}\n\n{"prompt": "zwei €"}\n')
    with Scripted(first_s=0.01) as server:
        bench(server.url, "--dataset", path, "--num-prompts", 5, "--max-concurrency", 1,
              "--save", saved)
        bodies = [body for _, body, _ in server.handler.seen]
        assert [body["prompt"] for body in bodies] == ["one", "zwei €", "one", "zwei €", "one"]
        assert [body["max_tokens"] for body in bodies] == [2, 128, 2, 128, 2]
        assert all("ignore_eos" not in body for body in bodies)
        args = ("--num-prompts", 5, "--max-concurrency", 1, "--compare", saved)
        bench(server.url, *args, "--threshold", 100000)
        server.handler.first_s = 0.4
        run = bench(server.url, *args, "--metrics", "median_ttft_ms", code=10)
        assert "worse" in run.stdout, run.stdout
        server.handler.first_s = 0.0
        bench(server.url, *args, "--metrics", "completed")
        bench(server.url, *args, "--metrics", "nonsense", code=2)
        with open(path, "a", encoding="utf-8") as file:
            file.write('{"text": "?"}\n')
        assert ": line 4" in bench(server.url, "--dataset", path, code=5).stderr
        bench(server.url, "--save", "/nowhere/report.json", "--num-prompts", 1, code=3)
    with open(saved, encoding="utf-8") as file:
        assert json.load(file)["completed"] == 5


def plain_client(url, prompts, n_output):
    """The same requests, by Python's own client: how many tokens came, and when the first one."""
    host, port = url.removeprefix("http://").split(":")
    totals = {"input": 0, "output": 0, "ttft": []}
    for prompt in prompts:
        connection = http.client.HTTPConnection(host, int(port))
        begin = time.monotonic()
        connection.request("POST", "/v1/completions", json.dumps(
            {"prompt": prompt, "max_tokens": n_output, "ignore_eos": True, "stream": True,
             "temperature": 0, "stream_options": {"include_usage": True}}))
        first = None
        for line in connection.getresponse():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["text"] and first is None:
                first = time.monotonic() - begin
            if event.get("usage"):
                totals["input"] += event["usage"]["prompt_tokens"]
                totals["output"] += event["usage"]["completion_tokens"]
        totals["ttft"].append(first)
    return totals


def check_our_server():
    with serve.Server("--parallel", 4) as server:
        report = report_of(server.url, "--num-prompts", 12, "--input-len", 40, "--output-len", 9,
                           "--max-concurrency", 4, "--detailed")
        prompts = [[(7 * n + i) % 5000 + 300 for i in range(40)] for n in range(12)]
        own = plain_client(server.url, prompts, 9)
        for name in ("completed", "total_input_tokens", "total_output_tokens"):
            assert report[name] == {"completed": 12, "total_input_tokens": own["input"],
                                    "total_output_tokens": own["output"]}[name], (name, report)
        assert report["output_lens"] == [9] * 12 and report["failures"] == {}
        assert all(0 < ttft < 60 for ttft in report["ttfts"])
        chat = report_of(server.url, "--route", "chat", "--num-prompts", 4, "--input-len", 30,
                         "--output-len", 6)
        assert chat["completed"] == 4 and chat["total_output_tokens"] == 24
        assert chat["total_input_tokens"] > 4 * 20
        for form in ("text", "md", "csv"):
            out = bench(server.url, "--num-prompts", 2, "--input-len", 8, "--output-len", 2, "-o",
                        form).stdout
            if form == "csv":
                row = next(csv.DictReader(io.StringIO(out)))
                assert row["completed"] == "2" and float(row["mean_ttft_ms"]) > 0
            else:
                assert "output_throughput" in out


def main():
    check_definitions()
    check_requests()
    check_times()
    check_failures()
    check_dataset_and_comparison()
    check_our_server()
    print("bench serve: definitions, requests, times, failures, comparison, our server")


if __name__ == "__main__":
    main()
