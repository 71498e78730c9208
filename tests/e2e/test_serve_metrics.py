"""Counters match 1000 mixed requests exactly; histograms' counts are the sums of their buckets."""
import collections
import os
import random
import re
import threading
import unittest

import serve

N_REQUEST = 1000
N_THREAD = 8


def parse(text):
    """Prometheus text: {name: {labels as a sorted tuple: value}}, {name: type}."""
    values, types = collections.defaultdict(dict), {}
    for line in text.splitlines():
        if match := re.fullmatch(r"# TYPE (\w+|[\w:]+) (counter|gauge|histogram|untyped)", line):
            assert match[1] not in types, f"{match[1]} has two types"
            types[match[1]] = match[2]
        elif line.startswith("#"):
            assert re.match(r"# (HELP|EOF)", line), line
        elif line:
            match = re.fullmatch(r'([a-zA-Z_:][\w:]*)(?:\{((?:\w+="(?:[^"\\\n]|\\.)*",?)*)\})? '
                                 r'([-+]?(?:\d[\d.e+-]*|Inf|NaN))', line)
            assert match, f"no metric: {line!r}"
            labels = tuple(sorted(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")))
            assert labels not in values[match[1]], f"twice: {line}"
            values[match[1]][labels] = float(match[3])
    return values, types


def total(values, name, **labels):
    return sum(value for has, value in values[name].items() if set(labels.items()) <= set(has))


class Metrics(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server("--parallel", 4, "--max-queue", 1000, model=serve.TINY)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def read(self):
        answer = self.server.get("/metrics")
        self.assertEqual(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        return parse(answer.body.decode())

    def test_memory_is_what_the_plan_says(self):
        size = os.path.getsize(serve.TINY)
        whole, paged = [], []
        for found, options in ((whole, []), (paged, ["--expert-slots", "min"])):
            with serve.Server("--ctx", 512, *options, model=serve.TINY) as server:
                server.complete([[1, 2, 3]], max_tokens=2)
                found += [server.metric("lean_rank_memory_bytes", kind=kind)
                          for kind in ("weights", "kv", "scratch", "cache")]
        self.assertTrue(size * 0.8 < whole[0] <= size, whole)
        self.assertLess(paged[0], whole[0])
        for weights, kv, scratch, cache in (whole, paged):
            self.assertTrue(0 < cache <= kv and scratch > 0, (kv, scratch, cache))

    def test_form(self):
        values, types = self.read()
        for name, kind in types.items():
            with self.subTest(name=name):
                if kind != "histogram":
                    self.assertTrue(values[name], "no series")
                    continue
                groups = collections.defaultdict(list)
                for labels, value in values[name + "_bucket"].items():
                    bound = float(dict(labels)["le"].replace("+Inf", "inf"))
                    groups[tuple(l for l in labels if l[0] != "le")].append((bound, value))
                self.assertTrue(groups)
                for labels, buckets in groups.items():
                    counts = [count for _, count in sorted(buckets)]
                    self.assertEqual(counts, sorted(counts), "buckets are cumulative")
                    self.assertEqual(sorted(buckets)[-1][0], float("inf"))
                    self.assertEqual(counts[-1], values[name + "_count"][labels])
                    self.assertIn(labels, values[name + "_sum"])
        for name, series in values.items():
            if name.startswith("lean_"):
                for labels in series:
                    self.assertIn("model", dict(labels), name)

    def test_counters_are_exact(self):
        before, _ = self.read()
        generator, lock = random.Random(15), threading.Lock()
        expected = collections.Counter()

        def one():
            with lock:
                kind, n = generator.randrange(13), generator.randint(1, 4)
                prompt = [generator.randrange(1, 500) for _ in range(generator.randint(1, 12))]
            count = collections.Counter()
            if kind < 6:
                body = {"prompt": [prompt], "max_tokens": n, "temperature": 0, "ignore_eos": True}
                if kind < 3:
                    text, _ = serve.stream_text(self.server.stream("/v1/completions", body))
                else:
                    usage = self.server.complete(**body)["usage"]
                    assert usage["completion_tokens"] == n and usage["prompt_tokens"] == len(prompt)
                count.update({("/v1/completions", "200"): 1, "prompt": len(prompt), "generated": n,
                              "length": 1})
            elif kind < 8:
                body = [b"{", b'{"prompt": 5}', b'{"prompt":"a","temperature":9999}'][n % 3]
                assert self.server.post("/v1/completions", body).status == 400
                count.update({("/v1/completions", "400"): 1, "invalid": 1})
            elif kind == 8:
                assert self.server.get("/v1/models").status == 200
                count.update({("/v1/models", "200"): 1})
            elif kind == 9:
                assert self.server.post("/tokenize", {"prompt": "abc"}).status == 200
                count.update({("/tokenize", "200"): 1})
            else:
                route = ("/v1/chat/completions", "/v1/messages", "/v1/responses")[kind - 10]
                turns = [{"role": "user", "content": f"{prompt}"}]
                body = {"model": "any", "max_tokens": n, "messages": turns, "ignore_eos": True}
                if kind == 12:
                    n += 15  # the least that it takes
                    body = {"max_output_tokens": n, "input": turns, "ignore_eos": True}
                answer = self.server.post(route, body)
                assert answer.status == 200, answer.body
                usage = answer.json["usage"]
                read = usage.get("prompt_tokens") or (
                    usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
                    + usage.get("cache_creation_input_tokens", 0))
                assert usage.get("completion_tokens", usage.get("output_tokens")) == n, usage
                count.update({(route, "200"): 1, "prompt": read, "generated": n, "length": 1})
            with lock:
                expected.update(count)

        def worker():
            for _ in range(N_REQUEST // N_THREAD):
                one()
        serve.at_once(*[worker] * N_THREAD)
        self.server.wait_idle(5)
        after, types = self.read()

        def grown(name, **labels):
            return total(after, name, **labels) - total(before, name, **labels)
        for key, n in expected.items():
            if isinstance(key, tuple):
                route, status = key
                self.assertEqual(grown("lean_http_requests_total", route=route, status=status), n, key)
        self.assertEqual(grown("lean_prompt_tokens_total"), expected["prompt"])
        self.assertEqual(grown("lean_generation_tokens_total"), expected["generated"])
        self.assertEqual(grown("lean_requests_finished_total", reason="length"), expected["length"])
        self.assertEqual(grown("lean_requests_finished_total"), expected["length"])
        self.assertEqual(grown("lean_requests_rejected_total", cause="invalid"), expected["invalid"])
        for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds",
                     "request_queue_seconds", "request_prefill_seconds", "request_decode_seconds",
                     "request_prompt_tokens", "request_generation_tokens"):
            self.assertEqual(grown(f"lean_{name}_count"), expected["length"], name)
        self.assertEqual(grown("lean_request_prompt_tokens_sum"), expected["prompt"])
        self.assertEqual(grown("lean_request_generation_tokens_sum"), expected["generated"])
        self.assertEqual(grown("lean_inter_token_latency_seconds_count"),
                         expected["generated"] - expected["length"])
        self.assertEqual(total(after, "lean_requests_running"), 0)
        for name, kind in types.items():
            if kind == "counter":
                for labels, value in before[name].items():
                    self.assertGreaterEqual(after[name][labels], value, name)


if __name__ == "__main__":
    unittest.main()
