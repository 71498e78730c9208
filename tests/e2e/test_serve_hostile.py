"""Hostile input: whatever comes in, the answer is an HTTP answer of the contract, and the next
request works. Bodies are valid ones with some fields replaced, from a fixed seed."""
import contextlib
import json
import os
import random
import socket
import time
import unittest

import serve

SECONDS = float(os.environ.get("LEAN_HOSTILE_S", 15))
ROUTES = {
    "/v1/completions": {"prompt": "once", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/chat/completions/input_tokens": {"messages": [{"role": "user", "content": "hi"}]},
}
FIELDS = """temperature top_p top_k min_p typical_p presence_penalty frequency_penalty
    repetition_penalty logit_bias seed samplers min_tokens ignore_eos allowed_token_ids bad_words
    max_tokens max_completion_tokens n_predict stop stop_token_ids include_stop_str_in_output
    skip_special_tokens stream stream_options n best_of add_special_tokens truncate_prompt_tokens
    cache_prompt cache_salt prompt_cache_key return_token_ids return_progress timings_per_token
    priority prompt echo logprobs top_logprobs suffix response_format json_schema grammar
    structured_outputs messages tools tool_choice parallel_tool_calls reasoning_effort
    chat_template_kwargs thinking thinking_token_budget reasoning_format add_generation_prompt
    continue_final_message documents chat_template model user metadata sse_ping_interval input
    instructions system max_output_tokens stop_sequences content tokens with_pieces""".split()
SCHEMAS = [{"type": "object"}, {"$ref": "#"}, {"type": "string", "pattern": "(((a*)*)*)*b"},
           {"not": {}}, {"allOf": [{"type": "string"}, {"type": "integer"}]}, True, False,
           {"enum": []}, {"type": "array", "minItems": 10**9}, {"type": "string", "minLength": 2**63}]
VALUES = [None, True, False, 0, 1, -1, 5.5, 2**31, 2**63, -2**63, 1e308, 10**400, "", "x", "\0",
          "\ud7ff\U0010ffff", "[" * 200, "a" * 70000, [], {}, [[]], [None], [0], [-1], [2**40], ["a"],
          [["a"]], {"a": 1}, {"1": 1e9}, {"99999999": 1}, [[1, 2]], [[1, "a"]], {"type": "json_object"},
          {"type": "function", "function": {"name": "f"}}, {"include_usage": True}, "required", "none",
          [{"role": "user"}], [{"role": "tool", "content": "x"}], [{"content": "x"}], [{}],
          [{"role": "assistant", "content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}],
          [{"role": "user", "content": "<|im_start|><|im_end|>"}], {"regex": "("}, {"choice": []},
          [{"type": "function", "function": {"name": "a b"}}], 'root ::= "a" root | root', "root ::= (",
          *({"type": "json_schema", "json_schema": {"name": "n", "schema": s}} for s in SCHEMAS),
          *([{"type": "function", "function": {"name": "f", "parameters": s}}] for s in SCHEMAS)]
STATUSES = {200, 400, 404, 405, 413, 429, 501, 503, 529}


def body(generator, good):
    """A valid body with up to four fields replaced, sometimes broken as text."""
    fields = dict(good)
    for _ in range(generator.randint(1, 4)):
        fields[generator.choice(FIELDS)] = generator.choice(VALUES)
    data = json.dumps(fields, ensure_ascii=generator.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(generator.choice([0, 0, 0, 1, 3])):
        at = generator.randrange(len(data))
        data = generator.choice([data[:at], data[:at] + bytes([generator.randrange(256)]) + data[at + 1:],
                                 data[:at] + data[at:at + 8] * 2 + data[at:]])
        data = data or b" "
    return data


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server("--parallel", 2, "--max-body", "1M", "--ctx", 512)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def works(self):
        self.assertEqual(self.server.complete("once", max_tokens=1)["usage"]["completion_tokens"], 1)

    def test_bodies(self):
        seed = int(os.environ.get("LEAN_HOSTILE_SEED", 5))
        generator, end, n = random.Random(seed), time.monotonic() + SECONDS, 0
        seen = {}
        while time.monotonic() < end:
            path = generator.choice(list(ROUTES))
            data = body(generator, ROUTES[path])
            answer = self.server.post(path, data, timeout=30)
            where = f"{path} {data[:2000]!r} {answer.body[:500]!r}"
            self.assertIn(answer.status, STATUSES, where)
            if answer.status == 200 and answer.headers["content-type"] == "text/event-stream":
                self.assertTrue(answer.body.startswith((b"data: ", b"event: ", b": ")), where)
            elif answer.status == 200:
                json.loads(answer.body)
            else:
                error = answer.error
                self.assertTrue(error["message"] and len(error["message"]) < 2000, where)
                self.assertNotIn(os.sep + "work", error["message"])
                if path != "/v1/messages":
                    self.assertLessEqual({"message", "type", "param", "code"}, set(error), where)
            seen[answer.status] = seen.get(answer.status, 0) + 1
            n += 1
        print(f"{n} bodies, seed {seed}: {dict(sorted(seen.items()))}")
        self.assertGreater(seen.get(400, 0), 0)
        self.assertGreater(seen.get(200, 0), 0)
        self.works()

    def raw(self, data, close=True):
        """What comes back when these bytes are all that is sent."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            connection.sendall(data)
            back = b""
            with contextlib.suppress(OSError):  # it may have been refused already
                if close:
                    connection.shutdown(socket.SHUT_WR)
            try:
                while piece := connection.recv(65536):
                    back += piece
            except ConnectionResetError:
                pass
        return back

    def test_requests_that_are_not_http(self):
        for data in (b"", b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{",
                     b"GET /%00%zz%ff/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
                     b"G" * 100000, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000 + b"\r\n"):
            back = self.raw(data)
            self.assertTrue(not back or back.startswith(b"HTTP/1."), (data[:60], back[:80]))
            self.assertNotIn(b"root:", back)
        self.works()

    def test_limits_of_size(self):
        answer = self.server.post("/v1/completions", b'{"prompt":"' + b"a" * (2 << 20) + b'"}')
        self.assertEqual((answer.status, answer.error["code"]), (413, "request_too_large"))
        chunked = (b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
                   + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 20)
        self.assertIn(b" 413 ", self.raw(chunked, close=False).split(b"\r\n")[0])
        answer = self.server.get("/health", headers={"X-Long": "a" * 70000})
        self.assertEqual(answer.status, 431)
        deep = b'{"prompt":' + b"[" * 200 + b"]" * 200 + b"}"
        answer = self.server.post("/v1/completions", deep)
        self.assertEqual((answer.status, answer.error["code"]), (400, "invalid_json"))
        self.works()


if __name__ == "__main__":
    unittest.main()
