"""What every route does: identifiers, methods, paths, sizes, times, sockets, connections."""
import contextlib
import gzip
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest

import cli
import serve

LONG = {"prompt": "Once upon a time", "max_tokens": 100000, "temperature": 0, "ignore_eos": True}


def wait_for(condition, what, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def read_all(connection):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def serve_class(*options, **more):
    class Case(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            cls.server = serve.Server(*options, **more)

        @classmethod
        def tearDownClass(cls):
            cls.server.stop()
            cls.server.__exit__(None, None, None)

        def raw(self, data, timeout=10):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout) as connection:
                connection.sendall(data)
                return read_all(connection)
    return Case


class Requests(serve_class("--parallel", 2, "--alias", "small", "--alias", "a/b")):
    def test_request_ids(self):
        for given in ("abc", "a.b_c:d-e", "x" * 128):
            answer = self.server.get("/health", headers={"X-Request-Id": given})
            self.assertEqual(answer.headers["x-request-id"], given)
        made = set()
        for given in (None, "", "x" * 129, "a b", "ä", "a/b"):
            headers = {} if given is None else {"X-Request-Id": given.encode("latin-1")}
            made.add(self.server.get("/health", headers=headers).headers["x-request-id"])
        self.assertEqual(len(made), 6)
        for name in made:
            self.assertRegex(name, r"^req-[A-Za-z0-9]{24}$")
        answer = self.server.get("/none", headers={"X-Request-Id": "mine"})
        self.assertEqual(answer.json["request_id"], "mine")

    def test_methods(self):
        for method, path, allow in (("POST", "/health", "GET, HEAD, OPTIONS"),
                                    ("GET", "/v1/completions", "POST, OPTIONS"),
                                    ("DELETE", "/v1/models/x", "GET, HEAD, OPTIONS"),
                                    ("PUT", "/tokenize", "POST, OPTIONS")):
            answer = self.server.request(method, path, b"{}")
            self.assertEqual((answer.status, answer.error["code"]), (405, "method_not_allowed"))
            self.assertEqual(answer.headers["allow"], allow)

    def test_head_is_get_without_a_body(self):
        for path in ("/health", "/v1/models", "/version"):
            whole, head = self.server.get(path), self.server.request("HEAD", path)
            self.assertEqual((head.status, head.body), (200, b""))
            self.assertEqual(head.headers["content-length"], str(len(whole.body)))
        self.assertEqual(self.server.request("HEAD", "/nothing").status, 404)

    def test_paths(self):
        for path in ("/health/", "/health//", "/v1/health", "/ping", "/v1/models/", "/models",
                     "/v1/models?x=1&y", "/v1/tokenizer_info", "/tokenizer_info"):
            self.assertEqual(self.server.get(path).status, 200, path)
        for path in ("/v1", "/v1/", "/v2/models", "//health", "/v1/v1/models", "/props/x",
                     "/%00", "/health%00"):
            answer = self.server.get(path)
            self.assertEqual((answer.status, answer.error["code"]), (404, "not_found"), path)
            self.assertEqual(set(answer.error), {"message", "type", "param", "code"})

    def test_models(self):
        entry = self.server.get("/v1/models").json["data"][0]
        self.assertEqual(entry["aliases"], ["small", "a/b"])
        for name in (entry["id"], "small", "a/b", "a%2Fb"):
            self.assertEqual(self.server.get("/v1/models/" + name).json["id"], entry["id"])
        answer = self.server.get("/v1/models/other")
        self.assertEqual((answer.status, answer.error["code"]), (404, "model_not_found"))

    def test_known_apis_that_are_not_there(self):
        for path in ("/v1/embeddings", "/embeddings", "/v1/images/generations"):
            answer = self.server.post(path, {})
            self.assertEqual((answer.status, answer.error["code"]), (501, "not_supported"))

    def test_gzip(self):
        data = json.dumps({"prompt": "once", "max_tokens": 2}).encode()
        for body in (gzip.compress(data), gzip.compress(data[:9]) + gzip.compress(data[9:])):
            answer = self.server.post("/v1/completions", body, headers={"Content-Encoding": "gzip"})
            self.assertEqual(answer.status, 200, answer.body)
        broken = (gzip.compress(data)[:-9], data, gzip.compress(data) + b"x", b"")
        for body in broken:
            answer = self.server.post("/v1/completions", body, headers={"Content-Encoding": "gzip"})
            self.assertEqual((answer.status, answer.error["code"]), (400, "invalid_json"), body)
        answer = self.server.post("/v1/completions", data, headers={"Content-Encoding": "br"})
        self.assertEqual(answer.status, 400)
        self.assertEqual(self.server.metric("lean_requests_waiting"), 0)

    def test_the_content_type_does_not_matter(self):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            answer = self.server.post("/tokenize", {"prompt": "a"}, headers={"Content-Type": kind})
            self.assertEqual(answer.status, 200, kind)

    def test_versions_of_http(self):
        data = self.raw(b"GET /health HTTP/1.0\r\n\r\n")
        self.assertIn(b" 200 ", data.split(b"\r\n")[0])
        self.assertIn(b"connection: close", data.lower())
        body = json.dumps({"prompt": "once", "max_tokens": 3, "stream": True}).encode()
        data = self.raw(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s"
                        % (len(body), body))
        self.assertNotIn(b"chunked", data.lower())
        self.assertTrue(data.endswith(b"data: [DONE]\n\n"), data)

    def test_one_connection_serves_many(self):
        with contextlib.closing(self.server.connect()) as connection:
            connection.connect()
            own = connection.sock
            for path, status in (("/health", 200), ("/none", 404), ("/v1/models", 200)) * 3:
                connection.request("GET", path)
                self.assertEqual(serve.Answer(connection.getresponse()).status, status)
                connection.request("POST", path, b'{"some": "body"}')
                serve.Answer(connection.getresponse())
                self.assertIs(connection.sock, own)
            body = json.dumps({"prompt": "once", "max_tokens": 3, "stream": True})
            for _ in range(3):
                connection.request("POST", "/v1/completions", body)
                response = connection.getresponse()
                self.assertEqual(response.getheader("Connection").lower(), "keep-alive")
                self.assertEqual(response.getheader("Cache-Control"), "no-cache")
                self.assertEqual(response.getheader("X-Accel-Buffering"), "no")
                self.assertTrue(response.read().endswith(b"data: [DONE]\n\n"))
                self.assertIs(connection.sock, own)

    def test_pipelined_requests_are_answered_in_order(self):
        data = self.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: one\r\n\r\n"
                        b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: two\r\n"
                        b"Connection: close\r\n\r\n")
        self.assertEqual(re.findall(rb"X-Request-Id: (\w+)", data), [b"one", b"two"])

    def test_cancelling(self):
        results = []

        def ask(stream):
            headers = {"X-Request-Id": "to-cancel"}
            if stream:
                results.extend(self.server.stream("/v1/completions", LONG, headers))
            else:
                results.append(self.server.post("/v1/completions", LONG, headers=headers).json)
        for stream in (False, True):
            results.clear()
            asking = threading.Thread(target=ask, args=[stream])
            asking.start()
            wait_for(lambda: self.server.post("/v1/requests/to-cancel/cancel", {}).status == 200,
                     "something to cancel")
            asking.join()
            reasons = [choice["finish_reason"] for event in results for choice in event["choices"]]
            self.assertEqual(reasons[-1], "abort")
            answer = self.server.post("/v1/requests/to-cancel/cancel", {})
            self.assertEqual((answer.status, answer.error["code"]), (404, "request_not_found"))

    def test_the_access_log_has_a_line_for_each(self):
        self.server.post("/v1/completions", {"prompt": "once", "max_tokens": 3, "temperature": 0,
                                             "ignore_eos": True}, headers={"X-Request-Id": "line"})
        wait_for(lambda: " line " in self.server.log(), "the line")
        line = next(line for line in self.server.log().splitlines() if " line " in line)
        self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z line 127\.0\.0\.1:\d+ POST "
                         r"/v1/completions 200 prompt=\d+ cached=\d+ generated=3 queue=[\d.]+ms "
                         r"first=[\d.]+ms [\d.]+tok/s (drafts=\d+ accepted=\d+ )?length$")
        self.assertNotIn("once", line)

    def test_text_and_tokens(self):
        text = "Hello, wörld! 你好 🎈\n\tx"
        tokens = self.server.post("/tokenize", {"prompt": text}).json
        self.assertEqual(tokens["count"], len(tokens["tokens"]))
        self.assertIsNone(tokens["token_strs"])
        back = self.server.post("/detokenize", {"tokens": tokens["tokens"]}).json
        self.assertEqual((back["prompt"], back["content"]), (text, text))
        pieces = self.server.post("/tokenize", {"content": text, "with_pieces": True,
                                                "return_token_strs": True}).json
        joined = b"".join(bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode()
                          for p in pieces["tokens"])
        self.assertEqual(joined.decode(), text)
        self.assertEqual([p["id"] for p in pieces["tokens"]], tokens["tokens"])
        for body in ({}, {"prompt": "a", "content": "b"}, {"prompt": 5}):
            self.assertEqual(self.server.post("/tokenize", body).status, 400, body)
        for body in ({}, {"tokens": [1 << 30]}, {"tokens": [-1]}, {"tokens": "a"}):
            self.assertEqual(self.server.post("/detokenize", body).status, 400, body)
        messages = [{"role": "user", "content": "What is a cat?"}]
        rendered = self.server.post("/apply-template", {"messages": messages}).json["prompt"]
        n = self.server.post("/tokenize", {"content": rendered}).json["count"]
        self.assertEqual(self.server.post("/tokenize", {"messages": messages}).json["count"], n)
        counted = self.server.post("/v1/chat/completions/input_tokens", {"messages": messages}).json
        self.assertEqual(counted, {"object": "response.input_tokens", "input_tokens": n})
        for keep in (5, -1, 10**6):  # as the request itself would be shortened
            body = {"messages": [{"role": "user", "content": "word " * 3000}] if keep < 0 else messages,
                    "truncate_prompt_tokens": keep}
            counted = self.server.post("/v1/chat/completions/input_tokens", body).json["input_tokens"]
            usage = self.server.post("/v1/chat/completions", {**body, "max_tokens": 1}).json["usage"]
            self.assertEqual(counted, usage["prompt_tokens"], keep)
        used = self.server.chat("What is a cat?", max_tokens=1)["usage"]["prompt_tokens"]
        self.assertEqual(used, n)

    def test_introspection(self):
        props = self.server.get("/props").json
        self.assertEqual((props["total_slots"], props["n_ctx"]), (2, 1024))
        self.assertNotIn("/", props["model_path"])
        info = self.server.get("/tokenizer_info").json
        self.assertEqual(info["chat_template"], props["chat_template"])
        slots = self.server.get("/slots").json
        self.assertEqual([slot["state"] for slot in slots], ["idle"] * 2)
        holders = [self.server.begin("/v1/completions", LONG) for _ in range(3)]
        try:
            wait_for(lambda: len(self.server.get("/slots").json) == 3 or
                     not self.server.metric("lean_requests_running"), "a queue")
            self.assertIn(self.server.get("/slots?fail_on_no_slot=1").status, (200, 503))
        finally:
            for holder in holders:
                holder.close()
        self.server.wait_idle(5)
        self.assertEqual(self.server.get("/slots?fail_on_no_slot=1").status, 200)


class Sizes(serve_class("--max-body", "1M", model=serve.TINY)):
    def test_a_body_that_says_it_is_too_large(self):
        data = self.raw(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                        b"Content-Length: 100000000\r\n\r\n{")
        self.assertIn(b" 413 ", data.split(b"\r\n")[0])
        self.assertIn(b'"code":"request_too_large"', data)
        self.assertIn(b"x-should-retry: false", data)

    def test_a_body_that_turns_out_too_large(self):
        head = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n")
        with socket.create_connection(("127.0.0.1", self.server.port), 10) as connection:
            connection.sendall(head)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(40):
                    connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            data = read_all(connection)
        self.assertIn(b" 413 ", data.split(b"\r\n")[0])
        self.assertIn(b'"code":"request_too_large"', data)

    def test_a_small_gzip_file_that_is_large(self):
        answer = self.server.post("/v1/completions", gzip.compress(b" " * (50 << 20)),
                                  headers={"Content-Encoding": "gzip"})
        self.assertEqual((answer.status, answer.error["code"]), (413, "request_too_large"))
        self.assertLess(self.server.rss_bytes(), 400 << 20)

    def test_headers(self):
        answer = self.server.get("/health", headers={"X-Long": "a" * (60 << 10)})
        self.assertEqual(answer.status, 200)
        answer = self.server.get("/health", headers={"X-Long": "a" * (66 << 10)})
        self.assertEqual((answer.status, answer.error["code"]), (431, "headers_too_large"))

    def test_what_is_no_http_is_refused_and_the_connection_closed(self):
        """By libmicrohttpd, in HTML: http.h says why."""
        host = b"Host: localhost\r\n"
        for status, data in ((400, b"GET /ping\r\n\r\n"), (505, b"GET /ping HTTP/9.9\r\n\r\n"),
                             (400, b"GET /ping HTTP/1.1\r\n" + host + b"no colon\r\n\r\n"),
                             (400, b"POST /tokenize HTTP/1.1\r\n" + host + b"Content-Length: -1\r\n\r\n"),
                             (413, b"POST /tokenize HTTP/1.1\r\n" + host + b"Content-Length: %d\r\n\r\n" % 10**30),
                             (400, b"POST /tokenize HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"),
                             (414, b"GET /%s HTTP/1.1\r\n" % (b"a" * 90000) + host + b"\r\n"),
                             (431, b"GET / HTTP/1.1\r\n" + host + b"X: %s\r\n\r\n" % (b"a" * 90000))):
            back = self.raw(data)  # to the end of the connection
            self.assertEqual(back.split(b"\r\n")[0][:12], b"HTTP/1.1 %d" % status, data[:80])
            self.assertIn(b"\r\nConnection: close\r\n", back)
        self.assertEqual(self.server.get("/health").status, 200)

    def test_a_refused_body_does_not_break_the_connection(self):
        with contextlib.closing(self.server.connect()) as connection:
            connection.request("POST", "/nothing", b"a" * 500000)
            self.assertEqual(serve.Answer(connection.getresponse()).status, 404)
            connection.request("GET", "/health")
            self.assertEqual(serve.Answer(connection.getresponse()).status, 200)


class Times(serve_class("--body-timeout", "0.5", "--request-timeout", "1s", "--kernels", "ref")):
    def test_a_body_that_does_not_come(self):
        start = time.monotonic()
        data = self.raw(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                        b"Content-Length: 10\r\n\r\n{")
        self.assertIn(b" 408 ", data.split(b"\r\n")[0])
        self.assertIn(b'"code":"body_timeout"', data)
        self.assertGreater(time.monotonic() - start, 0.4)
        self.server.wait_idle(20)

    def test_a_body_that_comes_slowly_is_fine(self):
        body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        with serve.Server("--body-timeout", "0.3", model=serve.TINY) as server:
            with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                                   b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
                for i in range(0, len(body), 8):
                    connection.sendall(body[i:i + 8])
                    time.sleep(0.12)
                self.assertIn(b" 200 ", read_all(connection).split(b"\r\n")[0])

    def test_a_request_that_takes_too_long(self):
        body = LONG
        answer = self.server.post("/v1/completions", body)
        self.assertEqual((answer.status, answer.error["code"]), (504, "request_timeout"))
        with contextlib.closing(self.server.connect()) as connection:
            connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}))
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            events = response.read().split(b"\n\n")
        self.assertEqual(events[-1], b"")
        self.assertEqual(json.loads(events[-2][6:])["error"]["code"], "request_timeout")
        self.server.wait_idle(5)

    def test_a_stream_that_waits_says_so(self):
        with serve.Server("--parallel", 1, "--sse-ping", "0.1", "--kernels", "ref") as server:
            holder = server.begin("/v1/completions", LONG)
            wait_for(lambda: server.metric("lean_requests_running") == 1, "the slot")
            with server.begin("/v1/completions", {**LONG, "stream": True}) as waiting:
                data = b""
                while data.count(b": ping\n\n") < 3:
                    piece = waiting.recv(4096)
                    self.assertTrue(piece, data)
                    data += piece
            self.assertTrue(data.startswith(b"HTTP/1.1 200 "), data)
            self.assertNotIn(b"data:", data)
            holder.close()


class Sockets(unittest.TestCase):
    def test_several_addresses(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "socket")
            with serve.Server("--listen", "unix:" + path, "--listen", "localhost:0",
                              model=serve.TINY) as server:
                self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(path)
                    connection.sendall(b"GET /health HTTP/1.1\r\nHost: whatever\r\n"
                                       b"Connection: close\r\n\r\n")
                    self.assertIn(b'{"status":"ok"}', read_all(connection))
                urls = re.findall(r"also at (\S+)", server.log())
                self.assertEqual(urls[0], "unix:" + path)
                port = int(urls[1].rsplit(":", 1)[1])
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request("GET", "/health")
                self.assertEqual(connection.getresponse().status, 200)
                connection.close()
                busy = cli.lean("serve", serve.TINY, "--listen", f"127.0.0.1:{server.port}")
                self.assertEqual(busy.returncode, 8, busy.stderr)
                busy = cli.lean("serve", serve.TINY, "--listen", "unix:" + path)
                self.assertEqual(busy.returncode, 8, busy.stderr)
            self.assertFalse(os.path.exists(path))

    def test_addresses_that_are_none(self):
        for address in ("8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:a", "::1:80",
                        "unix:", "no.such.host.invalid:1", "unix:" + "a" * 200):
            done = cli.lean("serve", serve.TINY, "--listen", address)
            self.assertEqual((done.returncode, done.stdout), (2, ""), (address, done.stderr))

    def test_prefix(self):
        with serve.Server("--api-prefix", "/lean/x", model=serve.TINY, wait=False) as server:
            line = os.read(server.ready_fd, 4096).decode()
            server.port = int(re.fullmatch(r"ready http://127\.0\.0\.1:(\d+)/lean/x\n", line)[1])
            self.assertEqual(server.get("/lean/x/v1/models").status, 200)
            for path in ("/v1/models", "/lean/xx/v1/models", "/lean", "/"):
                self.assertEqual(server.get(path).status, 404, path)

    def test_connections_beyond_the_limit_wait(self):
        with serve.Server("--max-connections", 8, model=serve.TINY) as server:
            idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
            time.sleep(0.2)
            with socket.create_connection(("127.0.0.1", server.port), 10) as waiting:
                waiting.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                waiting.settimeout(0.3)
                with self.assertRaises(TimeoutError):
                    waiting.recv(1)
                idle.pop().close()
                waiting.settimeout(10)
                self.assertIn(b" 200 ", read_all(waiting))
            for connection in idle:
                connection.close()

    def test_a_thousand_idle_connections_are_cheap(self):
        with serve.Server(model=serve.TINY) as server:
            server.get("/health")
            before = server.rss_bytes()
            idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(1000)]
            wait_for(lambda: server.metric("process_open_fds") > 1000, "all to be accepted")
            cpu = server.metric("process_cpu_seconds_total")
            start = time.monotonic()
            for _ in range(20):
                self.assertEqual(server.get("/health").status, 200)
            self.assertLess(time.monotonic() - start, 2)
            time.sleep(1)
            self.assertLess(server.metric("process_cpu_seconds_total") - cpu, 0.5)
            self.assertLess(server.rss_bytes() - before, 64 << 20)
            for connection in idle:
                connection.close()
            wait_for(lambda: server.metric("process_open_fds") < 100, "all to be closed")

    def test_a_client_that_does_not_read(self):
        with serve.Server("--parallel", 1) as server:
            body = {**LONG, "n": 16, "stream": True, "logprobs": 20}
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", server.port))
                data = json.dumps(body).encode()
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                                   b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
                wait_for(lambda: server.metric("lean_requests_finished_total", reason="abort"),
                         "its end", 60)
            wait_for(lambda: " 499 " in server.log(), "the log")

    def test_a_client_that_falls_behind_loses_nothing(self):
        """As one event (with a long name) for each token, it would be more than the server keeps."""
        body = {"prompt": [7, 8], "n": 4, "max_tokens": 1200, "temperature": 1, "seed": 3, "ignore_eos": True}
        with serve.Server("--parallel", 4, "--ctx", 2048, "--name", "x" * 1500, model=serve.TINY) as server:
            alone = server.post("/v1/completions", body, timeout=100).json["choices"]
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", server.port))
                connection.settimeout(60)
                data = json.dumps({**body, "stream": True}).encode()
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                                   b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
                wait_for(lambda: server.metric("lean_requests_finished_total", reason="length") == 8,
                         "all choices to end", 60)
                response = http.client.HTTPResponse(connection)
                response.begin()
                texts, n_event = [""] * 4, 0
                for event in serve.read_events(response):
                    n_event += 1
                    for choice in event["choices"]:
                        texts[choice["index"]] += choice["text"]
            self.assertEqual(texts, [choice["text"] for choice in alone])
            self.assertLess(n_event, 4 * 1200 * 3 / 4)

    def test_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            cert, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
            def make_certificate():
                subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days",
                                "2", "-subj", "/CN=localhost", "-addext",
                                "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out",
                                cert], capture_output=True, check=True)
            make_certificate()
            with serve.Server("--tls-cert", cert, "--tls-key", key, wait=False) as server:
                line = os.read(server.ready_fd, 4096).decode()
                port = int(re.fullmatch(r"ready https://127\.0\.0\.1:(\d+)\n", line)[1])
                context = ssl.create_default_context(cafile=cert)
                connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
                connection.request("POST", "/v1/completions",
                                   json.dumps({"prompt": "once", "max_tokens": 3, "stream": True}))
                self.assertTrue(connection.getresponse().read().endswith(b"data: [DONE]\n\n"))
                self.assertIn(connection.sock.version(), ("TLSv1.2", "TLSv1.3"))
                # a new certificate is for new connections
                before = ssl.get_server_certificate(("127.0.0.1", port))
                make_certificate()
                server.process.send_signal(signal.SIGHUP)
                wait_for(lambda: ssl.get_server_certificate(("127.0.0.1", port)) != before,
                         "the new certificate")
                connection.request("GET", "/health")
                self.assertEqual(connection.getresponse().status, 200)
                connection.close()
                old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
                old.set_ciphers("ALL:@SECLEVEL=0")
                with self.assertRaises(OSError):
                    with socket.create_connection(("127.0.0.1", port)) as plain:
                        old.wrap_socket(plain).do_handshake()
            done = cli.lean("serve", serve.TINY, "--listen", "127.0.0.1:0", "--tls-cert", cert)
            self.assertEqual(done.returncode, 2, done.stderr)
            done = cli.lean("serve", serve.TINY, "--listen", "127.0.0.1:0", "--tls-cert", cert,
                            "--tls-key", cert)
            self.assertEqual(done.returncode, 2, done.stderr)


if __name__ == "__main__":
    unittest.main()
