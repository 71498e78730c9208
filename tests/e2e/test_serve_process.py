"""lean serve as a process: start, files, signals, logs; lean ps and lean stop."""
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import cli
import serve
from test_serve_http import LONG, wait_for

SLOW = ("--kernels", "ref")  # so that what runs does not end by itself too soon


class Process(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def test_failures_before_it_is_ready(self):
        broken = self.path("broken.gguf")
        with open(broken, "wb") as file:
            file.write(b"GGUF\3\0\0\0" + b"\1" * 100)
        cases = (("/no/such/file", (), 3), (broken, (), 5),
                 (serve.TINY, ("--ram", "1M"), 9), (serve.TINY, ("--tool-format",), 2),
                 (serve.TINY, ("--tool-format", "toml"), 2),
                 (serve.TINY, ("--chat-template-kwargs", "[]"), 2),
                 (serve.TINY, ("--api-prefix", "x"), 2), (serve.TINY, ("--max-body", "x"), 2),
                 (serve.TINY, ("--log-file", "/no/such/folder/log"), 3),
                 (serve.TINY, ("--api-key-file", "/no/such/file"), 3))
        for model, options, code in cases:
            done = cli.lean("serve", model, "--listen", "127.0.0.1:0", *options,
                            XDG_RUNTIME_DIR=self.folder)
            self.assertEqual((done.returncode, done.stdout), (code, ""), (options, done.stderr))
            self.assertIn("lean: error: ", done.stderr)
        self.assertEqual(os.listdir(self.path("lean")), [])

    def test_ready_is_all_that_goes_to_stdout(self):
        for json_too in (False, True):
            words = ["--json"] if json_too else []
            with serve.Server(*words, "--parallel", 3, model=serve.TINY) as server:
                server.complete("once", max_tokens=2)
                server.process.send_signal(signal.SIGTERM)
                out = server.process.stdout.read()
                if json_too:
                    event = json.loads(out)
                    self.assertEqual((event["event"], event["url"], event["slots"]),
                                     ("ready", server.url, 3))
                    self.assertEqual(set(event) - {"time"},
                                     {"event", "url", "model", "slots", "n_ctx", "load_seconds"})
                else:
                    self.assertEqual(out, f"ready {server.url}\n")

    def test_ps_and_stop(self):
        with serve.Server("--name", "first", "--parallel", 2, model=serve.TINY) as one:
            env = {"XDG_RUNTIME_DIR": one.runtime.name}
            self.assertEqual(cli.lean("ps", **{**env, "XDG_RUNTIME_DIR": self.folder}).stdout.count("\n"), 1)
            self.assertEqual(cli.lean("stop", XDG_RUNTIME_DIR=self.folder).returncode, 3)
            entry, = json.loads(cli.lean("ps", "--json", **env).stdout)
            self.assertEqual((entry["name"], entry["pid"], entry["slots"], entry["url"], entry["state"],
                              entry["queue"]),
                             ("first", one.process.pid, 2, one.url, "ready", 0))
            self.assertGreater(entry["memory_bytes"], 1 << 20)
            title, line = cli.lean("ps", **env).stdout.splitlines()
            self.assertEqual(title.split(), ["NAME", "PID", "RANKS", "MODEL", "CTX", "SLOTS", "QUEUE",
                                             "TOK/S", "MEM", "UPTIME", "URL"])
            self.assertEqual(title.index("URL"), line.index("http"))
            # one that was killed is cleared away
            with tempfile.NamedTemporaryFile("w", dir=os.path.join(one.runtime.name, "lean"),
                                             prefix="999999999.", delete=False) as stale:
                stale.write("{}")
            os.rename(stale.name, os.path.join(one.runtime.name, "lean", "999999.json"))
            self.assertEqual(len(json.loads(cli.lean("ps", "--json", **env).stdout)), 1)
            self.assertEqual(sorted(os.listdir(os.path.join(one.runtime.name, "lean"))),
                             [f"{one.process.pid}.json", f"{one.process.pid}.sock"])
            self.assertEqual(cli.lean("stop", "other", **env).returncode, 3)
            self.assertEqual(cli.lean("stop", "first", **env).returncode, 0)
            self.assertEqual(one.process.wait(5), 0)
            self.assertEqual(os.listdir(os.path.join(one.runtime.name, "lean")), [])

    def test_stop_now(self):
        with serve.Server("--parallel", 1, "--drain-timeout", "60s", *SLOW) as server:
            server.status = 143
            holders = [server.begin("/v1/completions", LONG) for _ in range(2)]
            wait_for(lambda: server.metric("lean_requests_running"), "something to run")
            env = {"XDG_RUNTIME_DIR": server.runtime.name}
            late = cli.lean("stop", "--timeout", "0.3", **env)
            self.assertEqual(late.returncode, 1, late.stderr)
            self.assertEqual(cli.lean("stop", str(server.process.pid), "--now", **env).returncode, 0)
            self.assertEqual(server.process.wait(5), 143)
            for holder in holders:
                holder.close()

    def test_pid_file(self):
        path = self.path("pid")
        with serve.Server("--pid-file", path, model=serve.TINY) as server:
            with open(path) as file:
                self.assertEqual(int(file.read()), server.process.pid)
        self.assertFalse(os.path.exists(path))

    def test_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            with serve.Server(model=serve.TINY) as server:
                server.process.send_signal(signal.SIGUSR2)
                wait_for(lambda: "state: 0 sequences run" in server.log(), "the state in the log")
                server.process.send_signal(signal.SIGHUP)
                self.assertEqual(server.get("/health").status, 200)
                server.process.send_signal(number)
                self.assertEqual(server.process.wait(10), 0)

    def test_while_it_ends(self):
        with serve.Server("--parallel", 1, "--drain-timeout", "1s", *SLOW) as server:
            connection = server.connect()
            connection.request("GET", "/health")
            self.assertEqual(serve.Answer(connection.getresponse()).status, 200)
            holder = server.begin("/v1/completions", {**LONG, "stream": True})
            wait_for(lambda: server.metric("lean_requests_running"), "something to run")
            waiting = server.begin("/v1/completions", LONG)
            wait_for(lambda: server.metric("lean_requests_waiting"), "something to wait")
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            connection.request("GET", "/health")
            answer = serve.Answer(connection.getresponse())
            self.assertEqual((answer.status, answer.error["code"]), (503, "shutting_down"))
            self.assertEqual(answer.headers["x-should-retry"], "true")
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port)).close()
            self.assertIn(b" 503 ", waiting.recv(65536).split(b"\r\n")[0])
            data = b""
            while piece := holder.recv(65536):
                data += piece
            self.assertIn(b'"code":"shutting_down"', data[-600:])
            self.assertNotIn(b"[DONE]", data)
            self.assertEqual(server.process.wait(10), 0)
            for one in (holder, waiting, connection):
                one.close()

    def test_log_file(self):
        path = self.path("log")
        with serve.Server("--log-file", path, "--log-format", "json", model=serve.TINY) as server:
            def lines():
                with open(path) as file:
                    return [json.loads(line) for line in file]
            server.complete("once", max_tokens=2, ignore_eos=True)
            wait_for(lambda: os.path.exists(path) and lines(), "a line")
            server.get("/nothing")
            wait_for(lambda: os.path.exists(path) and len(lines()) == 2, "two lines")
            first, second = lines()
            self.assertEqual((first["route"], first["status"], first["generated_tokens"],
                              first["finish_reason"], first["code"]),
                             ("/v1/completions", 200, 2, "length", None))
            self.assertEqual((second["status"], second["code"]), (404, "not_found"))
            os.rename(path, path + ".1")
            def in_new_file():
                server.get("/health")
                return os.path.exists(path) and lines()
            wait_for(in_new_file, "the file to be opened anew")

    def test_a_log_that_cannot_be_written_is_no_reason_to_fail(self):
        reader, writer = os.pipe()
        for path, fds in (("/dev/full", ()), (f"/dev/fd/{writer}", (writer,))):
            with tempfile.TemporaryDirectory() as runtime:
                process = subprocess.Popen(
                    [cli.LEAN, "serve", serve.TINY, "--listen", "127.0.0.1:0", "--log-file", path],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    pass_fds=fds, text=True, env=cli.environment(XDG_RUNTIME_DIR=runtime))
                try:
                    port = int(re.search(r":(\d+)$", process.stdout.readline())[1])
                    start = time.monotonic()
                    for _ in range(1000):  # more than a pipe takes
                        with socket.create_connection(("127.0.0.1", port), 5) as connection:
                            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                            self.assertIn(b" 200 ", connection.recv(4096))
                    self.assertLess(time.monotonic() - start, 30)
                finally:
                    process.send_signal(signal.SIGTERM)
                    self.assertEqual(process.wait(20), 0)
                    process.stdout.close()
        os.close(reader)
        os.close(writer)

    def test_prompts_are_kept_where_that_is_asked_for(self):
        with serve.Server("--log-prompts", self.folder, model=serve.TINY) as server:
            body = {"prompt": "something private", "max_tokens": 1}
            self.assertEqual(server.post("/v1/completions", body,
                                         headers={"X-Request-Id": "kept"}).status, 200)
            server.get("/v1/models")
            name, = os.listdir(self.folder)
            self.assertRegex(name, r"^\d+\.\d{3}-kept\.json$")
            self.assertEqual(os.stat(self.path(name)).st_mode & 0o777, 0o600)
            with open(self.path(name)) as file:
                self.assertEqual(json.load(file), body)
            self.assertNotIn("private", server.log())

    def test_other_machines_and_no_key(self):
        for options, warns in ((("--listen", "0.0.0.0:0"), True), ((), False),
                               (("--listen", "0.0.0.0:0", "--api-key", "k"), False)):
            with serve.Server(*options, model=serve.TINY) as server:
                self.assertEqual("no API key" in server.log(), warns, options)
                if options:  # any name may be that of this machine
                    headers = {"Host": "other.example", "Authorization": "Bearer k"}
                    self.assertEqual(server.get("/v1/models", headers=headers).status, 200)

    def test_names(self):
        with serve.Server("--name", "big", "--alias", "default", "--model-match", "strict",
                          model=serve.TINY) as server:
            for name, status in (("big", 200), ("default", 200), (None, 200), ("Big", 404),
                                 ("other", 404)):
                answer = server.post("/v1/completions",
                                     {"prompt": "a", "max_tokens": 1, "model": name})
                self.assertEqual(answer.status, status, name)
                if status == 200:
                    self.assertEqual(answer.json["model"], "big")
                else:
                    self.assertEqual(answer.error["code"], "model_not_found")
        with serve.Server(model=serve.TINY) as server:
            server.complete("a", max_tokens=1, model="gpt-x")
            self.assertEqual(server.metric("lean_model_name_unknown_total"), 1)

    def test_metrics_under_other_names(self):
        with serve.Server("--metrics-compat", "vllm", "--metrics-compat", "llamacpp",
                          model=serve.TINY) as server:
            server.complete("a b c", max_tokens=3, ignore_eos=True)
            for ours, theirs in (("lean_generation_tokens_total", "vllm:generation_tokens_total"),
                                 ("lean_prompt_tokens_total", "vllm:prompt_tokens_total"),
                                 ("lean_generation_tokens_total", "llamacpp:tokens_predicted_total")):
                self.assertEqual(server.metric(ours), server.metric(theirs))
            self.assertGreater(server.metric("llamacpp:n_decode_total"), 0)
            self.assertEqual(server.metric("lean_step_seconds_count"),
                             server.metric("lean_step_tokens_count"))


if __name__ == "__main__":
    unittest.main()
