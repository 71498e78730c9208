"""What each request took of paged experts: in its timings, the access log and /slots; together with
what is shared between sequences of a step it is what /metrics counts, to the expert and the byte."""
import json
import tempfile
import time
import unittest

import serve

KEYS = ["lookups", "hits", "joined", "misses", "shared", "miss_bytes", "wait_ms"]


def total(usages):
    return {key: sum(usage[key] for usage in usages) for key in KEYS}


class Counters(serve.Server):
    """Of /metrics, under the names that requests have for them."""

    def counters(self):
        found = {key: self.metric("lean_expert_lookups_total", result=result)
                 for key, result in (("hits", "hit"), ("joined", "joined"), ("misses", "miss"))}
        return {**found, "lookups": sum(found.values()),
                "shared": self.metric("lean_expert_lookups_shared_total"),
                "miss_bytes": self.metric("lean_expert_miss_bytes_total"),
                "wait_ms": self.metric("lean_expert_wait_seconds_total") * 1e3}


class Paged(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.log = tempfile.NamedTemporaryFile(prefix="lean-access-", suffix=".log")
        cls.addClassCleanup(cls.log.close)
        cls.server = Counters("--parallel", 4, "--ctx", 1024, "--expert-slots", "40%", "--profile", "none",
                              "--log-format", "json", "--log-file", cls.log.name)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def grown(self, before, expected):
        """What was counted since; the last step's numbers come a moment after its answers."""
        end = time.monotonic() + 10
        while True:
            now = self.server.counters()
            grown = {key: now[key] - before[key] for key in KEYS}
            if grown["lookups"] >= expected["lookups"] or time.monotonic() > end:
                return grown
            time.sleep(0.01)

    def ask(self, i):
        """One of several kinds of requests; its usage."""
        body = {"prompt": "An expert is a small part of a large model. " * (1 + 3 * i), "max_tokens": 10 + i,
                "ignore_eos": True, "seed": i, "cache_prompt": i % 3 != 0, "n": 2 if i == 4 else 1}
        headers = {"X-Request-Id": f"ask-{i}"}
        if i % 2:
            *_, last = self.server.stream("/v1/completions", body, headers)
            return last["timings"]["experts"]
        return self.server.post("/v1/completions", body, headers=headers).json["timings"]["experts"]

    def test_requests_add_up_to_the_counters(self):
        before, usages = self.server.counters(), {}
        self.assertGreater(before["lookups"], 0)  # of warming up, which is no request

        def one(i):
            usages[i] = self.ask(i)
        serve.at_once(*[lambda i=i: one(i) for i in range(8)])
        for usage in usages.values():
            self.assertEqual(list(usage), KEYS)
            self.assertEqual(usage["lookups"], usage["hits"] + usage["joined"] + usage["misses"])
        told = total(usages.values())
        grown = self.grown(before, told)
        for key in KEYS[:-1]:
            self.assertEqual(told[key], grown[key], key)
            if key != "joined":
                self.assertGreater(told[key], 0, key)
        for usage in usages.values():  # sequences wait together
            self.assertLessEqual(usage["wait_ms"], grown["wait_ms"] + 0.001)
        with open(self.log.name) as file:
            lines = {line["request_id"]: line for line in map(json.loads, file)}
        for i, usage in usages.items():
            self.assertEqual(lines[f"ask-{i}"]["experts"], usage)

    def test_alone_it_has_all_for_itself(self):
        before = self.server.counters()
        usage = self.ask(3)
        grown = self.grown(before, usage)
        for key in KEYS[:-1]:
            self.assertEqual(usage[key], grown[key], key)
        self.assertEqual(usage["shared"], 0)
        self.assertAlmostEqual(usage["wait_ms"], grown["wait_ms"], delta=0.01)

    def test_counters_agree_with_each_other(self):
        self.ask(5)
        metric = self.server.metrics()  # other tests' requests may still be ending
        hits, lookups = metric("lean_expert_cache_hits_total"), metric("lean_expert_lookups_total")
        self.assertEqual(hits, metric("lean_expert_lookups_total", result="hit"))
        self.assertEqual(lookups - hits, metric("lean_expert_cache_misses_total"))
        for result in ("hit", "joined", "miss"):
            layers = [metric("lean_expert_layer_lookups_total", layer=str(il), result=result)
                      for il in range(4)]
            self.assertEqual(sum(layers), metric("lean_expert_lookups_total", result=result))
            self.assertEqual(sum(layers), metric("lean_expert_layer_lookups_total", result=result))
        self.assertEqual(metric("lean_expert_read_bytes_total"),
                         metric("lean_expert_bytes_loaded_total", source="disk"))
        self.assertGreater(metric("lean_expert_read_bytes_total", priority="demand"), 0)
        self.assertGreater(metric("lean_expert_reads_total", priority="demand"), 0)
        self.assertGreater(metric("lean_expert_read_busy_seconds_total"), 0)
        slots = {state: metric("lean_expert_slots", state=state) for state in ("resident", "reading", "free")}
        self.assertEqual(sum(slots.values()), 64)  # 40 % of 160
        self.assertLess(slots["free"], 8)  # a prediction that was given up leaves its slot
        self.assertGreater(metric("lean_expert_evictions_total"), 0)
        self.assertGreater(metric("lean_expert_predicted_total"), 0)
        self.assertGreaterEqual(metric("lean_expert_predicted_total"),
                                metric("lean_expert_predicted_recalled_total"))
        read, used, wasted = (metric("lean_expert_prefetches_total", result=result)
                              for result in ("read", "used", "wasted"))
        self.assertGreaterEqual(read, used + wasted)

    def test_slots_show_it_as_it_grows(self):
        body = {"prompt": "once upon a time", "max_tokens": 200, "ignore_eos": True, "stream": True}
        connection = self.server.begin("/v1/completions", body)
        self.addCleanup(connection.close)
        seen = []
        end = time.monotonic() + 30
        while len(seen) < 3 and time.monotonic() < end:
            for slot in self.server.get("/slots").json:
                self.assertIn("experts", slot)
                if slot["state"] == "decode":
                    self.assertEqual(list(slot["experts"]), KEYS)
                    if slot["experts"]["lookups"] > (seen[-1] if seen else 0):
                        seen.append(slot["experts"]["lookups"])
                elif slot["state"] == "idle":
                    self.assertIsNone(slot["experts"])
        self.assertEqual(len(seen), 3)


class Mapped(unittest.TestCase):
    def test_nothing_is_told_where_nothing_is_looked_up(self):
        with Counters("--parallel", 2, "--ctx", 512) as server:
            answer = server.complete("once", max_tokens=3)
            self.assertNotIn("experts", answer["timings"])
            self.assertEqual(set(server.counters().values()), {0})
            self.assertNotIn("experts=", server.log())
            self.assertIsNone(server.get("/slots").json[0]["experts"])


class AsText(unittest.TestCase):
    def test_a_line_of_the_access_log(self):
        with Counters("--ctx", 512, "--expert-slots", "40%", "--profile", "none") as server:
            usage = server.complete("once", max_tokens=3, ignore_eos=True)["timings"]["experts"]
            server.stop()
            line = next(line for line in server.log().splitlines() if "/v1/completions 200" in line)
            self.assertRegex(line, r"tok/s experts={lookups} hits={hits} joined={joined} misses={misses} "
                             r"shared=0 read={miss_bytes}B waited=[\d.]+ms length$".format(**usage))


if __name__ == "__main__":
    unittest.main()
