"""The fields of /v1/completions and /v1/chat/completions: what is taken, what is refused and how."""
import json
import math
import threading
import time
import unittest

import serve

COMPLETION = {"prompt": "Once upon", "max_tokens": 2, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "temperature": 0}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}

# (body fields, code, param); both routes have them
SHARED = [
    ({"temperature": 100.5}, "invalid_value", "temperature"),
    ({"temperature": -0.1}, "invalid_value", "temperature"),
    ({"temperature": "1"}, "invalid_type", "temperature"),
    ({"temperature": True}, "invalid_type", "temperature"),
    ({"top_p": 1.01}, "invalid_value", "top_p"),
    ({"top_k": -2}, "invalid_value", "top_k"),
    ({"top_k": 1.5}, "invalid_type", "top_k"),
    ({"min_p": 2}, "invalid_value", "min_p"),
    ({"typical_p": 0}, "invalid_value", "typical_p"),
    ({"presence_penalty": -2.5}, "invalid_value", "presence_penalty"),
    ({"frequency_penalty": 3}, "invalid_value", "frequency_penalty"),
    ({"repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
    ({"repeat_penalty": 2.5}, "invalid_value", "repeat_penalty"),
    ({"logit_bias": {"5": 101}}, "invalid_value", "logit_bias.5"),
    ({"logit_bias": {"x": 1}}, "invalid_type", "logit_bias.x"),
    ({"logit_bias": {"99999999": 1}}, "invalid_value", "logit_bias.99999999"),
    ({"logit_bias": [[5]]}, "invalid_type", "logit_bias[0]"),
    ({"logit_bias": [[5, True]]}, "invalid_type", "logit_bias[0]"),
    ({"logit_bias": 5}, "invalid_type", "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "invalid_value", "logit_bias"),
    ({"seed": 1.5}, "invalid_type", "seed"),
    ({"seed": 2**63}, "invalid_value", "seed"),
    ({"seed": 2**70}, "invalid_value", "seed"),
    ({"seed": -2**63 - 1}, "invalid_value", "seed"),
    ({"seed": -2**70}, "invalid_value", "seed"),
    ({"seed": 1e30}, "invalid_value", "seed"),
    ({"top_k": 2**31}, "invalid_value", "top_k"),
    ({"samplers": ["top_p", "top_k"]}, "invalid_value", "samplers[1]"),
    ({"min_tokens": 3}, "invalid_value", "min_tokens"),
    ({"ignore_eos": 1}, "invalid_type", "ignore_eos"),
    ({"allowed_token_ids": [8192]}, "invalid_value", "allowed_token_ids[0]"),
    ({"allowed_token_ids": []}, "invalid_value", "allowed_token_ids"),
    ({"bad_words": "a"}, "invalid_type", "bad_words"),
    ({"bad_words": ["a", ""]}, "invalid_value", "bad_words[1]"),
    ({"bad_words": ["a"] * 257}, "invalid_value", "bad_words"),
    ({"max_tokens": -2}, "invalid_value", "max_tokens"),
    ({"max_tokens": "5"}, "invalid_type", "max_tokens"),
    ({"max_completion_tokens": -2}, "invalid_value", "max_completion_tokens"),
    ({"stop": 5}, "invalid_type", "stop"),
    ({"stop": ["a", 5]}, "invalid_type", "stop[1]"),
    ({"stop": ["a"] * 65}, "invalid_value", "stop"),
    ({"stop": "a" * 1025}, "invalid_value", "stop"),
    ({"stop_token_ids": [-1]}, "invalid_value", "stop_token_ids[0]"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": 33}, "invalid_value", "n"),
    ({"n": 2, "best_of": 3}, "invalid_value", "best_of"),
    ({"stream": "yes"}, "invalid_type", "stream"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "invalid_type",
     "stream_options.include_usage"),
    ({"truncate_prompt_tokens": 0}, "invalid_value", "truncate_prompt_tokens"),
    ({"cache_salt": "a" * 129}, "invalid_value", "cache_salt"),
    ({"priority": "high"}, "invalid_type", "priority"),
    ({"modalities": ["text", "audio"]}, "unsupported_content", "modalities"),
    ({"audio": {"voice": "x"}}, "unsupported_content", "audio"),
    ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
    ({"response_format": {}}, "missing_field", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "missing_field", "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "missing_field",
     "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object"}, "grammar": "root ::= \"a\""}, "invalid_value",
     "grammar"),
    ({"grammar": "root ::= ("}, "invalid_grammar", "grammar"),
    ({"grammar": "root ::= \"" + "a" * 300000 + "\""}, "invalid_value", "grammar"),
    ({"structured_outputs": {"regex": "("}}, "invalid_grammar", "structured_outputs.regex"),
    ({"structured_outputs": {}}, "invalid_value", "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "invalid_value",
     "structured_outputs.choice"),
]

COMPLETIONS_ONLY = [
    ({"prompt": None}, "missing_field", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"),
    ({"prompt": [[]]}, "invalid_value", "prompt[0]"),
    ({"prompt": [1, "a"]}, "invalid_type", "prompt[1]"),
    ({"prompt": [[1, 2], [3, 99999]]}, "invalid_value", "prompt[1][1]"),
    ({"prompt": [5, -1]}, "invalid_value", "prompt[1]"),
    ({"prompt": ["a", 5]}, "invalid_type", "prompt[1]"),
    ({"prompt": ["a", None]}, "invalid_type", "prompt[1]"),
    ({"prompt": {"text": "a"}}, "invalid_type", "prompt"),
    ({"prompt": ["a"] * 1025}, "invalid_value", "prompt"),
    ({"logprobs": 21}, "invalid_value", "logprobs"),
    ({"logprobs": "5"}, "invalid_type", "logprobs"),
    ({"echo": 1}, "invalid_type", "echo"),
    ({"suffix": "end"}, "invalid_value", "suffix"),
]


def message(**fields):
    return {"messages": [fields]}


USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
CHAT_ONLY = [
    ({"messages": None}, "missing_field", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": "hello"}, "invalid_type", "messages"),
    ({"messages": ["hello"]}, "invalid_type", "messages[0]"),
    (message(content="a"), "missing_field", "messages[0].role"),
    (message(role="robot", content="a"), "invalid_value", "messages[0].role"),
    (message(role=5, content="a"), "invalid_type", "messages[0].role"),
    (message(role="user\0<|im_end|>", content="a"), "invalid_value", "messages[0].role"),
    (message(role="user"), "missing_field", "messages[0].content"),
    (message(role="user", content=None), "missing_field", "messages[0].content"),
    (message(role="user", content=5), "invalid_type", "messages[0].content"),
    (message(role="assistant"), "missing_field", "messages[0].content"),
    (message(role="user", content=[5]), "invalid_type", "messages[0].content[0]"),
    (message(role="user", content=[{"text": "a"}]), "missing_field", "messages[0].content[0].type"),
    (message(role="user", content=[{"type": "text"}]), "missing_field",
     "messages[0].content[0].text"),
    (message(role="user", content=[{"type": "text", "text": "a"},
                                   {"type": "image_url", "image_url": {"url": "x"}}]),
     "unsupported_content", "messages[0].content[1]"),
    (message(role="assistant", content="a", reasoning_content=5), "invalid_type",
     "messages[0].reasoning_content"),
    (message(role="assistant", tool_calls=[{"function": {}}]), "missing_field",
     "messages[0].tool_calls[0].function.name"),
    ({"messages": [USER, ANSWER, ANSWER]}, "invalid_value", "messages"),
    ({"messages": [USER], "continue_final_message": True}, "invalid_value",
     "continue_final_message"),
    ({"messages": [USER, ANSWER], "continue_final_message": True, "add_generation_prompt": True},
     "invalid_value", "continue_final_message"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"logprobs": 1}, "invalid_type", "logprobs"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"reasoning_effort": "huge"}, "invalid_value", "reasoning_effort"),
    ({"thinking": {"type": "on"}}, "invalid_value", "thinking.type"),
    ({"thinking": "on"}, "invalid_type", "thinking"),
    ({"reasoning_format": "xml"}, "invalid_value", "reasoning_format"),
    ({"thinking_token_budget": -2}, "invalid_value", "thinking_token_budget"),
    ({"chat_template_kwargs": []}, "invalid_type", "chat_template_kwargs"),
    ({"chat_template": "{{ messages }}"}, "invalid_value", "chat_template"),
    ({"functions": {}}, "invalid_type", "functions"),
    ({"functions": [5]}, "invalid_type", "functions[0]"),
    ({"functions": [WEATHER["function"]], "function_call": "some"}, "invalid_value",
     "function_call"),
    (message(role="assistant", function_call={}), "missing_field",
     "messages[0].function_call.name"),
    ({"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
     "invalid_value", "tool_choice"),
]


class Fields(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server("--parallel", 4)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def refused(self, path, body, code, param):
        answer = self.server.post(path, body)
        self.assertEqual(answer.status, 400, answer.body)
        error = answer.error
        self.assertEqual((error["code"], error["param"]), (code, param), error)
        self.assertEqual(error["type"], "invalid_request_error")
        self.assertIn(param, error["message"])
        self.assertLess(len(error["message"]), 400)
        self.assertEqual(answer.headers["x-should-retry"], "false")

    def test_what_is_out_of_range_is_named(self):
        cases = [("/v1/completions", COMPLETION, SHARED + COMPLETIONS_ONLY),
                 ("/v1/chat/completions", CHAT, SHARED + CHAT_ONLY)]
        for path, base, table in cases:
            for fields, code, param in table:
                with self.subTest(path=path, fields=str(fields)[:80]):
                    self.refused(path, {**base, **fields}, code, param)
        self.assertEqual(self.server.metric("lean_requests_waiting"), 0)  # all places given back
        self.assertEqual(self.server.complete("a", max_tokens=1)["usage"]["completion_tokens"], 1)

    def test_bodies_that_are_not_json(self):
        for body in (b"", b"{", b"[]", b"\"a\"", b"{\"a\":NaN}", b"{\"a\":01}", b"{'a':1}",
                     b"{\"a\":\"\xff\"}", b"{\"a\":1}x", b"[" * 200, b"{\"a\":" * 129 + b"1" + b"}" * 129):
            answer = self.server.post("/v1/completions", body)
            self.assertEqual((answer.status, answer.error["code"]), (400, "invalid_json"), body[:40])
            self.assertRegex(answer.error["message"], r"byte \d+")

    def test_what_is_unknown_or_null_changes_nothing(self):
        plain = self.server.complete("Once upon", max_tokens=8)["choices"]
        extra = {"nonsense": {"deep": [1, {"x": None}]}, "max_gen_toks": 5, "user": "me",
                 "metadata": {}, "store": False, "service_tier": "auto", "verbosity": "low",
                 "modalities": ["text"], "prediction": None, "prompt_cache_key": "k",
                 "session_id": "s", "stream_options": {"include_usage": True}}
        nulls = dict.fromkeys(["top_p", "top_k", "min_p", "stop", "logit_bias", "n", "best_of",
                               "seed", "suffix", "logprobs", "stream", "response_format", "grammar",
                               "echo", "max_completion_tokens", "min_tokens", "samplers"])
        answer = self.server.complete("Once upon", max_tokens=8.0, **extra, **nulls)
        self.assertEqual(answer["choices"], plain)
        self.assertNotIn("nonsense", json.dumps(answer))
        chat = self.server.chat("hello", max_tokens=8)["choices"]
        self.assertEqual(self.server.chat("hello", max_tokens=8, tools=[], **extra, **nulls)["choices"],
                         chat)

    def test_the_last_of_equal_keys_counts(self):
        answer = self.server.post("/v1/completions",
                                  b'{"max_tokens":5,"prompt":"a","temperature":0,"max_tokens":2}')
        self.assertEqual(answer.json["usage"]["completion_tokens"], 2)

    def test_names_of_the_length(self):
        def generated(**fields):
            return self.server.post("/v1/completions", {"prompt": "The purpose of", "temperature": 0,
                                                        "ignore_eos": True, **fields}
                                    ).json["usage"]["completion_tokens"]
        self.assertEqual(generated(), 16)
        self.assertEqual(generated(n_predict=3), 3)
        self.assertEqual(generated(n_predict=3, max_tokens=4), 4)
        self.assertEqual(generated(n_predict=3, max_tokens=4, max_completion_tokens=5), 5)
        self.assertEqual(generated(max_tokens=None, n_predict=3), 3)
        self.assertEqual(generated(max_tokens=-1), 1024 - 3)
        self.assertEqual(generated(max_tokens=5000), 1024 - 3)

    def test_samples_and_biases(self):
        base = self.server.complete("Once upon", max_tokens=1, return_token_ids=True)["choices"][0]
        best = base["token_ids"][0]
        for bias in ({str(best): -100}, {str(best): False}, [[best, -100]]):
            other = self.server.complete("Once upon", max_tokens=1, return_token_ids=True,
                                         logit_bias=bias)["choices"][0]["token_ids"][0]
            self.assertNotEqual(other, best)
        only = self.server.complete("Once upon", max_tokens=4, return_token_ids=True,
                                    allowed_token_ids=[70, 71], ignore_eos=True)
        self.assertLessEqual(set(only["choices"][0]["token_ids"]), {70, 71})
        left = self.server.complete("Once upon", max_tokens=1, return_token_ids=True,
                                    allowed_token_ids=[70], logit_bias={"70": -100})
        self.assertEqual(left["choices"][0]["token_ids"], [70])  # something has to come
        hot = {"temperature": 1.5, "max_tokens": 12, "seed": 11}
        one, other, fourth = (self.server.complete("Once upon", **{**hot, **more})["choices"]
                              for more in ({}, {"seed": 12}, {"n": 4}))
        self.assertNotEqual(one[0]["text"], other[0]["text"])
        self.assertEqual(fourth[0]["text"], one[0]["text"])  # the seed is the first sample's
        self.assertEqual(len({choice["text"] for choice in fourth}), 4)
        greedy = self.server.complete("Once upon", n=4, max_tokens=6)["choices"]
        self.assertEqual([choice["index"] for choice in greedy], [0, 1, 2, 3])
        self.assertEqual(len({choice["text"] for choice in greedy}), 1)
        off = self.server.complete("Once upon", max_tokens=6, samplers=["temperature"], top_k=1,
                                   temperature=1.5, seed=3)
        self.assertNotEqual(off["choices"][0]["text"], greedy[0]["text"])

    def test_bad_words_do_not_come(self):
        base = {"max_tokens": 12, "return_token_ids": True}
        free = self.server.complete("Once upon", **base)["choices"][0]
        word = free["text"].split()[0]
        held = self.server.complete("Once upon", **base, bad_words=[word])["choices"][0]
        self.assertNotEqual(held["token_ids"], free["token_ids"])
        self.assertNotIn(word, held["text"].split()[:1])
        same = self.server.complete("Once upon", **base, bad_words=["never said"])["choices"][0]
        self.assertEqual(same["token_ids"], free["token_ids"])

    def test_functions_are_tools(self):
        functions = [WEATHER["function"], {"name": "other"}]
        base = {"messages": [USER], "max_tokens": 60, "temperature": 0}
        for old, new in (({}, {}), ({"function_call": "none"}, {"tool_choice": "none"}),
                         ({"function_call": {"name": "other"}},
                          {"tool_choice": {"type": "function", "function": {"name": "other"}}})):
            then = self.server.post("/v1/chat/completions", {**base, "functions": functions, **old})
            now = self.server.post("/v1/chat/completions", {
                **base, "tools": [{"type": "function", "function": f} for f in functions], **new})
            self.assertEqual((then.status, now.status), (200, 200), then.body)
            then, now = then.json, now.json
            for answer in (then, now):
                for call in answer["choices"][0]["message"].get("tool_calls", []):
                    del call["id"]
            self.assertEqual(then["choices"], now["choices"])
            self.assertEqual(then["usage"]["prompt_tokens"], now["usage"]["prompt_tokens"])
        called = [USER, {"role": "assistant", "content": None,
                         "function_call": {"name": "other", "arguments": "{\"a\": 1}"}},
                  {"role": "function", "name": "other", "content": "done"}]
        calls = [USER, {"role": "assistant", "content": None, "tool_calls": [
                     {"type": "function", "function": {"name": "other", "arguments": "{\"a\": 1}"}}]},
                 {"role": "tool", "content": "done"}]
        prompts = [self.server.post("/apply-template", {"messages": messages}).json["prompt"]
                   for messages in (called, calls)]
        self.assertEqual(*prompts)
        self.assertIn("other", prompts[0])

    def test_prompts_that_are_too_long(self):
        answer = self.server.post("/v1/completions", {"prompt": [list(range(100, 1150))]})
        self.assertEqual((answer.status, answer.error["code"]), (400, "context_length_exceeded"))
        self.assertEqual(answer.error["param"], "prompt")
        self.assertIn("maximum context length is 1024 tokens", answer.error["message"])
        self.assertIn("exceeds the available context size (1024 tokens)", answer.error["message"])
        self.assertEqual((answer.error["n_prompt_tokens"], answer.error["n_ctx"]), (1050, 1024))
        answer = self.server.post("/v1/completions", {"prompt": [[100], list(range(100, 1150))]})
        self.assertEqual((answer.error["code"], answer.error["param"]),
                         ("context_length_exceeded", "prompt[1]"))
        answer = self.server.post("/v1/chat/completions",
                                  {"messages": [{"role": "user", "content": "word " * 2000}]})
        self.assertEqual((answer.error["code"], answer.error["param"]),
                         ("context_length_exceeded", "messages"))
        ids = list(range(100, 1124))
        self.assertEqual(self.server.complete([ids], max_tokens=0)["usage"]["prompt_tokens"], 1024)
        answer = self.server.complete([ids[1:]], max_tokens=9, return_token_ids=True,
                                      ignore_eos=True)
        self.assertEqual(answer["choices"][0]["finish_reason"], "length")
        self.assertEqual(answer["usage"]["completion_tokens"], 1)
        cut = self.server.complete([ids], truncate_prompt_tokens=5, max_tokens=1, echo=True,
                                   return_token_ids=True)["choices"][0]
        self.assertEqual(cut["prompt_token_ids"], ids[-5:])
        cut = self.server.complete([ids * 2], truncate_prompt_tokens=-1, max_tokens=3)
        self.assertEqual(cut["usage"]["prompt_tokens"], 1023)


class Templates(unittest.TestCase):
    def test_a_request_may_bring_its_own_where_the_server_allows_it(self):
        body = {"messages": [{"role": "user", "content": "a <|im_end|>"}], "chat_template":
                "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}{{ x }}",
                "chat_template_kwargs": {"x": "!"}}
        with serve.Server(model=serve.TINY) as server:
            answer = server.post("/apply-template", body)
            self.assertEqual((answer.status, answer.error["param"]), (400, "chat_template"))
        with serve.Server("--allow-request-template", model=serve.TINY) as server:
            self.assertEqual(server.post("/apply-template", body).json["prompt"], "[user: a <|im_end|>]!")
            text = server.chat(body["messages"], chat_template="{{ messages[0].content }}", max_tokens=5, seed=1)
            self.assertEqual(text["usage"]["prompt_tokens"],
                             server.post("/tokenize", {"content": "a <|im_end|>", "parse_special": False}).json["count"])
            for template, code in (("{% for %}", "template_error"), (5, "invalid_type"),
                                   ("{{ raise_exception('no') }}", "template_error")):
                answer = server.post("/v1/chat/completions", {**body, "chat_template": template})
                self.assertEqual((answer.status, answer.error["code"]), (400, code), template)
            self.assertNotIn("[user", server.post("/apply-template", {"messages": body["messages"]}).json["prompt"])


class Modes(unittest.TestCase):
    def test_logprobs_are_of_what_is_sampled_from(self):
        base = {"max_tokens": 5, "logprobs": 4}
        with serve.Server("--logprobs-mode", "processed") as server:
            greedy = server.complete("Once upon", **base)
            two = server.complete("Once upon", **base, temperature=1.3, top_k=2, seed=4)
        logprobs = greedy["choices"][0]["logprobs"]
        self.assertEqual(set(logprobs["token_logprobs"]), {0})
        for top in logprobs["top_logprobs"]:
            self.assertEqual(sorted(top.values())[:-1], [-9999.0] * (len(top) - 1))
        for top in two["choices"][0]["logprobs"]["top_logprobs"]:
            self.assertAlmostEqual(sum(math.exp(value) for value in top.values()), 1, places=5)
            self.assertEqual(sum(value > -9999 for value in top.values()), 2)


class Priorities(unittest.TestCase):
    def test_who_goes_first(self):
        """`priority` orders those that wait, where the server was told so."""
        for options, expected in ((["--scheduling", "priority"], ["second", "first"]),
                                  ([], ["first", "second"])):
            with serve.Server("--parallel", 1, "--threads", 1, *options) as server:
                holder = server.begin("/v1/completions", {"prompt": "a", "max_tokens": 1000,
                                                          "ignore_eos": True})
                ended, threads = [], []
                end = time.monotonic() + 10
                while not server.metric("lean_requests_running"):
                    self.assertLess(time.monotonic(), end, "nobody runs")
                for i, (name, priority) in enumerate((("first", 5), ("second", -5))):
                    def run(name=name, priority=priority):
                        server.complete(name, priority=priority, max_tokens=200, ignore_eos=True)
                        ended.append(name)
                    threads.append(threading.Thread(target=run))
                    threads[-1].start()
                    end = time.monotonic() + 10
                    while server.metric("lean_requests_waiting") != i + 1:
                        self.assertLess(time.monotonic(), end, "nobody waits")
                holder.close()
                for thread in threads:
                    thread.join()
                self.assertEqual(ended, expected, options)


if __name__ == "__main__":
    unittest.main()
