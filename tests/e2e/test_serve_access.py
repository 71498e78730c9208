"""Who may ask: keys, origins, hosts."""
import contextlib
import os
import signal
import tempfile
import time
import unittest

import serve

PUBLIC = ["/health", "/ping", "/"]
CLOSED = ["/v1/models", "/metrics", "/props", "/slots", "/tokenizer_info"]


def bearer(key):
    return {"Authorization": "Bearer " + key}


class WithoutKeys(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server(model=serve.TINY)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def test_any_authorization_is_as_good_as_none(self):
        for headers in ({}, bearer(""), bearer("anything"), {"Authorization": "Bearer"},
                        {"Authorization": "nonsense"}, {"x-api-key": "x"}):
            self.assertEqual(self.server.get("/v1/models", headers=headers).status, 200, headers)

    def test_origins(self):
        for origin in ("http://localhost", "http://localhost:3000", "https://127.0.0.1:1",
                       "http://[::1]:8080"):
            answer = self.server.get("/health", headers={"Origin": origin})
            self.assertEqual(answer.headers.get("access-control-allow-origin"), origin)
            self.assertEqual(answer.headers.get("vary"), "Origin")
            self.assertIn("X-Request-Id", answer.headers["access-control-expose-headers"])
        for origin in ("http://evil.example", "http://localhost.evil.example", "null",
                       "http://127.0.0.1.evil.example", "http://localhost@evil.example"):
            answer = self.server.get("/health", headers={"Origin": origin})
            self.assertEqual(answer.status, 200)
            self.assertNotIn("access-control-allow-origin", answer.headers, origin)

    def test_preflight(self):
        answer = self.server.request("OPTIONS", "/v1/chat/completions", headers={
            "Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os"})
        self.assertEqual(answer.status, 204)
        self.assertEqual(answer.headers["access-control-allow-methods"], "GET, POST, OPTIONS")
        self.assertEqual(answer.headers["access-control-allow-headers"],
                         "authorization, content-type, x-stainless-os")
        self.assertEqual(answer.headers["access-control-max-age"], "600")
        self.assertEqual(self.server.request("OPTIONS", "/no/such/path").status, 204)

    def test_hosts(self):
        for host in ("127.0.0.1", "localhost", "localhost:1234", "[::1]:80", "127.0.0.1:8080"):
            self.assertEqual(self.server.get("/health", headers={"Host": host}).status, 200, host)
        for host in ("evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1"):
            answer = self.server.get("/v1/models", headers={"Host": host})
            self.assertEqual((answer.status, answer.error["code"]), (403, "host_not_allowed"), host)

    def test_the_page_is_there_unless_it_is_not_wanted(self):
        self.assertEqual(self.server.get("/").status, 200)
        with serve.Server("--no-ui", model=serve.TINY) as server:
            self.assertEqual(server.get("/").status, 404)


class WithKeys(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.file = os.path.join(cls.folder.name, "keys")
        with open(cls.file, "w") as file:
            file.write("# keys\nfrom-file\n\n")
        cls.server = serve.Server("--api-key", "first", "--api-key", "second", "--api-key-file",
                                  cls.file, model=serve.TINY, env={"LEAN_API_KEY": "third,fourth"})

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)
        cls.folder.cleanup()

    def status(self, path="/v1/models", **headers):
        return self.server.get(path, headers=headers).status

    def test_right_keys(self):
        for key in ("first", "second", "third", "fourth", "from-file"):
            self.assertEqual(self.server.get("/v1/models", headers=bearer(key)).status, 200, key)
            self.assertEqual(self.server.get("/v1/models", headers={"x-api-key": key}).status, 200)

    def test_wrong_keys(self):
        for headers in ({}, bearer(""), bearer("wrong"), bearer("firs"), bearer("first "[:-1] + "x"),
                        {"Authorization": "Bearer"}, {"Authorization": "Basic first"},
                        {"x-api-key": ""}, {"x-api-key": "FIRST"}, bearer("# keys")):
            answer = self.server.get("/v1/models", headers=headers)
            self.assertEqual((answer.status, answer.error["code"]), (401, "invalid_api_key"), headers)
            self.assertEqual(answer.headers["www-authenticate"], "Bearer")
            self.assertEqual(answer.headers["x-should-retry"], "false")

    def test_public_routes(self):
        for path in PUBLIC:
            self.assertEqual(self.server.get(path).status, 200, path)
        for path in CLOSED:
            self.assertEqual(self.server.get(path).status, 401, path)
            self.assertEqual(self.server.get(path, headers=bearer("first")).status, 200, path)
        self.assertEqual(self.server.request("OPTIONS", "/v1/models").status, 204)
        with serve.Server("--api-key", "k", "--metrics-public", model=serve.TINY) as server:
            self.assertEqual(server.get("/metrics").status, 200)

    def test_messages_answers_in_its_own_form(self):
        answer = self.server.post("/v1/messages", {"max_tokens": 1, "messages": []})
        self.assertEqual(answer.status, 401)
        self.assertEqual(answer.json["type"], "error")
        self.assertEqual(answer.error["type"], "authentication_error")

    def test_the_file_is_read_again_on_sighup(self):
        with open(self.file, "w") as file:
            file.write("from-file\nadded\n")
        self.assertEqual(self.server.get("/v1/models", headers=bearer("added")).status, 401)
        self.server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 5
        while self.server.get("/v1/models", headers=bearer("added")).status != 200:
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)
        self.assertEqual(self.server.get("/v1/models", headers=bearer("first")).status, 200)

    def test_keys_are_not_in_the_log(self):
        self.server.get("/v1/models", headers=bearer("wrong-and-secret"))
        for key in ("second", "from-file", "wrong-and-secret"):
            self.assertNotIn(key, self.server.log())

    def test_what_is_kept_for_a_key_is_for_it_alone(self):
        body = {"prompt": [list(range(1, 200))], "max_tokens": 1}

        def cached(server, key):
            answer = server.post("/v1/completions", body, headers=bearer(key))
            return answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
        for options, shared in (((), True), (("--cache-per-key",), False)):
            with serve.Server("--api-key", "one", "--api-key", "two", *options, model=serve.TINY) as server:
                self.assertEqual(cached(server, "one"), 0)
                self.assertEqual(cached(server, "two") > 0, shared, options)
                self.assertGreater(cached(server, "one"), 0)
                self.assertGreater(cached(server, "two"), 0)

    def test_sequences_of_a_key(self):
        body = {"prompt": "once", "max_tokens": 1}
        with serve.Server("--parallel", 4, "--key-concurrency", 2, "--api-key", "one", "--api-key", "two",
                          "--metrics-public") as server:
            def ask(key, **more):
                answer = server.post("/v1/completions", {**body, **more}, headers=bearer(key))
                return answer.status if answer.status == 200 else answer.error["code"]
            data = b'{"prompt":"once","max_tokens":900,"ignore_eos":true,"stream":true}'
            with contextlib.closing(server.connect()) as holder:
                holder.request("POST", "/v1/completions", data, bearer("one"))
                self.assertEqual(holder.getresponse().status, 200)
                self.assertEqual(ask("one"), 200)
                self.assertEqual(ask("one", n=2), "key_concurrency")
                self.assertEqual(ask("two", n=2), 200)
                self.assertEqual(ask("two", n=3), "key_concurrency")
            server.wait_idle(10)
            self.assertEqual(ask("one", n=2), 200)
            answer = server.post("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
                                 headers={"x-api-key": "two"})
            self.assertEqual(answer.status, 200)


if __name__ == "__main__":
    unittest.main()
