"""A device that has slots for some of its layers' experts only: the same bits as on the CPU, whatever
becomes of the others, wherever they are kept; and what is counted and told of it."""
import json
import os
import re
import sys
import tempfile
import time
import unittest

import cli
import ranks
import serve

PLUGIN = os.path.join(ranks.BUILD, "liblean_cuda_emu.so")
IDS = ",".join(str(11 + 37 * i % 500) for i in range(7))
SIZES = ("--ctx", 256, "--prefill-chunk", 64)


class Tier(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="lean-test-tier-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = os.path.join(cls.folder.name, "model.gguf")
        result = cli.lean("synth", "qwen3moe", "Q8_0", "--layers", 3, "--experts", 64, "-o", cls.model)
        assert result.returncode == 0, result.stderr
        whole = cls.inspect("--device", "emu")["device"]
        assert not whole["paged"]
        # room for half of the experts, beside what may differ between a plan and a run
        cls.vram = whole["total"] - whole["routed_experts"] // 2

    @classmethod
    def inspect(cls, *options):
        result = cli.lean("inspect", cls.model, "--memory", "--json", *SIZES, *options)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)["memory"]

    def evaluate(self, *options, n=10):
        result = cli.lean("eval", self.model, "--ids", IDS, "-n", n, "--json", *SIZES, *options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout), result.stderr

    def check(self, *options):
        """The same bits; returns what was counted."""
        expected, _ = self.evaluate("--device", "cpu")
        answer, log = self.evaluate("--device", "emu", "--vram", self.vram, *options)
        self.assertEqual([answer[key] for key in ("logits_xxh3", "generated")],
                         [expected[key] for key in ("logits_xxh3", "generated")], options)
        rank = answer["effective"]["ranks"][0]
        self.assertEqual(rank["device_layers"], [0, 2])
        experts = answer["effective"]["experts"]
        device = experts["device"]
        self.assertEqual(device["experts"], 3 * 64)
        self.assertEqual(device["slots"], rank["device_slots"])
        self.assertLess(device["slots"], device["experts"])
        self.assertGreater(device["slots"], 48)
        for phase in ("decode", "prefill"):
            counts = device[phase]
            self.assertEqual(counts["lookups"], counts["hits"] + counts["on_cpu"] + counts["copied"])
        decode = device["decode"]
        self.assertGreater(decode["hits"], 0)
        self.assertGreater(decode["on_cpu"] + decode["copied"], 0)
        self.assertRegex(log, r"layers 0 to 2 on emu:0 .*, [0-9]+ of 192 experts \([0-9]+%\) there")
        return experts

    def test_misses(self):
        for miss, prefetch in ("gpu", "auto"), ("cpu", "on"), ("hybrid", "off"):
            device = self.check("--miss", miss, "--prefetch", prefetch)["device"]
            self.assertEqual((device["miss"], device["mode"]), (miss, miss))
            prediction = device["prediction"]
            self.assertLessEqual(prediction["recalled"], prediction["chosen"])
            self.assertLessEqual(prediction["used"], prediction["read"])
            self.assertEqual(prediction["read"] > 0, device["predicted_bytes"] > 0)
            if prefetch != "auto":
                self.assertEqual(prediction["read"] > 0, prefetch == "on")
            if miss == "cpu":
                self.assertGreater(device["decode"]["on_cpu"], 0)
            if miss == "gpu":
                self.assertEqual(device["decode"]["on_cpu"], 0)
                self.assertGreater(device["decode"]["copied_bytes"], 0)

    def test_beside_memory_and_disk(self):
        """What is not on the device is not all in memory either."""
        experts = self.check("--expert-slots", "25%", "--profile", "none")
        self.assertEqual(experts["slots"], 48)
        self.assertEqual(experts["experts"], 192)
        self.assertGreater(experts["read_bytes"], 0)
        self.assertEqual(experts["device"]["miss"], "auto")
        self.assertTrue(experts["device"]["exclusive"])

    def test_memory_takes_what_the_device_gives_up(self):
        expected, _ = self.evaluate("--device", "cpu", n=16)
        whole = self.inspect("--device", "emu")["device"]
        answer, _ = self.evaluate("--device", "emu", "--vram",
                                  whole["total"] - whole["routed_experts"] * 3 // 4, "--miss", "gpu",
                                  "--expert-slots", "40%", "--profile", "none", n=16)
        self.assertEqual(answer["logits_xxh3"], expected["logits_xxh3"])
        device = answer["effective"]["experts"]["device"]
        self.assertTrue(device["exclusive"])
        self.assertGreater(device["written_back"], 0)
        self.assertGreater(device["written_back_bytes"], device["written_back"])
        self.assertLessEqual(device["lost"], device["evicted"])

    def test_beside_layers_on_the_cpu(self):
        """The pager has the experts of both, and predicts those of the CPU's layers alone."""
        whole = self.inspect("--device", "emu", "--gpu-layers", 2)["device"]
        options = ("--vram", whole["total"] - whole["routed_experts"] // 2, "--gpu-layers", 2,
                   "--expert-slots", "30%", "--profile", "none", "--prefetch", "on")
        expected, _ = self.evaluate("--device", "cpu")
        answer, _ = self.evaluate("--device", "emu", *options)
        self.assertEqual(answer["logits_xxh3"], expected["logits_xxh3"])
        self.assertEqual(answer["effective"]["ranks"][0]["device_layers"], [1, 2])
        self.assertGreater(answer["effective"]["experts"]["device"]["decode"]["hits"], 0)

    def test_as_planned(self):
        plan = self.inspect("--device", "emu", "--vram", self.vram)
        device = plan["device"]
        self.assertTrue(device["paged"] and device["fits"])
        self.assertLess(device["experts_in_memory"], 3 * 64)
        self.assertAlmostEqual(plan["expected"]["vram_share"], device["experts_in_memory"] / 192)
        self.assertFalse(plan["paged"]) # memory has all of them
        self.assertFalse(plan["expected"]["exclusive"])
        plan = self.inspect("--device", "emu", "--vram", self.vram, "--expert-slots", "25%")
        self.assertTrue(plan["expected"]["exclusive"])
        self.assertAlmostEqual(plan["expected"]["resident_share"],
                               (plan["device"]["experts_in_memory"] + 48) / 192)

    def test_less_memory_than_was_found(self):
        """Another program took some meanwhile: fewer experts once, then the error. The emulator fails
        again, since its countdown begins anew when it is asked for what is free."""
        result = cli.lean("eval", self.model, "--ids", IDS, "--json", *SIZES, "--device", "emu",
                          "--vram", self.vram, LEAN_EMU_FAIL="malloc:8")
        self.assertEqual(result.returncode, 9, result.stderr)
        slots = [int(n) for n in re.findall("([0-9]+) of 192 experts", result.stderr)]
        self.assertEqual(len(slots), 2, result.stderr)
        self.assertLess(slots[1], slots[0])
        self.assertRegex(result.stderr, "warning: .*no memory for .*; once more with .* of it")
        self.assertEqual(result.stderr.count("lean: error:"), 1)

    @unittest.skipIf(ranks.why_no_mpi(), "needs Open MPI")
    def test_two_ranks(self):
        expected, _ = self.evaluate("--device", "cpu")
        result = ranks.mpirun(2, "eval", self.model, "--ids", IDS, "-n", 10, "--json", *SIZES,
                              "--device", "emu", "--vram", self.vram - 400000, "--partition", "1,2")
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.assertEqual(answer["logits_xxh3"], expected["logits_xxh3"])
        slots = [rank.get("device_slots", 0) for rank in answer["effective"]["ranks"]]
        device = answer["effective"]["experts"]["device"]
        self.assertGreater(slots[1], 0)
        self.assertEqual(device["slots"], sum(slots))
        self.assertGreater(device["decode"]["hits"], 0)

    def test_bench(self):
        result = cli.lean("bench", self.model, "-p", 0, "-n", 8, "-r", 1, "--device", "emu", "--vram",
                          self.vram, "--prefill-chunk", 64, "-o", "json", "--warmup", 0)
        self.assertEqual(result.returncode, 0, result.stderr)
        (row,) = json.loads(result.stdout)
        device = row["experts"]["device"]
        self.assertEqual(device["experts"], 192)
        self.assertTrue(0 < device["hit_rate"] < 1 and 0 <= device["cpu_share"] <= 1, device)

    def test_a_server_counts(self):
        with serve.Server("--device", "emu", "--vram", self.vram, "--parallel", 1, "--cache-ram", 0,
                          *SIZES, model=self.model) as server:
            server.complete([1, 2, 3, 4], max_tokens=12, ignore_eos=True)
            found = {result: server.metric("lean_device_expert_lookups_total", result=result)
                     for result in ("hit", "cpu", "copied")}
            self.assertGreater(found["hit"], 0)
            self.assertGreater(found["cpu"] + found["copied"], 0)
            self.assertGreater(server.metric("lean_device_expert_slots"), 48)
            self.assertGreaterEqual(server.metric("lean_expert_cache_hits_total"), found["hit"])

    def test_idle_time_fills_slots(self):
        """Of a profile that a run has left, before anybody asks for anything."""
        environment = {"XDG_CACHE_HOME": os.path.join(self.folder.name, "cache")}
        left = cli.lean("eval", self.model, "--ids", IDS, "-n", 30, *SIZES, "--device", "cpu",
                        "--expert-slots", "50%", **environment)
        self.assertEqual(left.returncode, 0, left.stderr)
        with serve.Server("--device", "emu", "--vram", self.vram, "--parallel", 1, *SIZES,
                          model=self.model, env=environment) as server:
            end = time.monotonic() + 20
            while server.metric("lean_device_expert_slots", state="free"):
                self.assertLess(time.monotonic(), end, "slots stay free")
                time.sleep(0.1)
            background = server.metric("lean_device_expert_background_total", reason="profile")
            self.assertGreater(background, 48)


class Exchange(unittest.TestCase):
    """Keys and values take memory from experts while a sequence is long, and answers stay the same."""
    SIZES = ("--ctx", 2048, "--prefill-chunk", 256, "--parallel", 1, "--kv-type", "f32")

    def slots(self, server):
        ask = server.metrics()
        self.assertGreater(ask("lean_device_memory_bytes", use="kv"), 0)
        return (ask("lean_device_expert_slots"), ask("lean_device_memory_exchanges_total", to="kv"),
                ask("lean_device_memory_exchanges_total", to="experts"))

    def test_long_request_takes_slots(self):
        with tempfile.TemporaryDirectory(prefix="lean-test-exchange-") as folder:
            model = os.path.join(folder, "model.gguf")
            result = cli.lean("synth", "qwen3moe", "Q8_0", "--layers", 1, "--experts", 32,
                              "--experts-used", 1, "-o", model)
            self.assertEqual(result.returncode, 0, result.stderr)
            device = ("--device", "emu", "--vram", "43M")
            inspect = ("inspect", model, "--memory", *self.SIZES, *device)
            plan = json.loads(cli.lean(*inspect, "--json").stdout)["memory"]["device"]
            self.assertLess(plan["experts_in_memory"], plan["experts_at_first"])
            self.assertLess(plan["kv_cache_at_first"], plan["kv_cache"])
            self.assertRegex(cli.lean(*inspect).stdout,
                             f"at first +{plan['experts_at_first']} there, while the KV cache "
                             "needs [0-9.]+ MiB of its")
            with serve.Server(*self.SIZES, "--cache-ram", 0, "--device", "cpu", model=model) as cpu, \
                 serve.Server(*self.SIZES, "--cache-ram", 0, *device, model=model) as server:

                def ask(seed, n):
                    prompt = [1 + (seed + 37 * i) % 500 for i in range(n)]
                    answers = [of.complete(prompt, max_tokens=6, ignore_eos=True, logprobs=1)["choices"]
                               for of in (cpu, server)]
                    self.assertEqual(answers[0], answers[1])
                    return self.slots(server)

                full, first = map(int, re.search(
                    r"(\d+) of 32 experts .* there, (\d+) until contexts grow", server.log()).groups())
                self.assertEqual(self.slots(server), (first, 0, 0))
                self.assertEqual(ask(1, 5), (first, 0, 0))
                during, to_kv, to_experts = ask(2, 1100)
                self.assertTrue(full <= during < first, during)
                self.assertGreater(to_kv, 0)
                self.assertEqual(to_experts, 0)
                for seed in range(6): # not at once: the next one may be long again
                    after = ask(seed, 5)
                self.assertEqual(after, (first, to_kv, 1))


if not os.path.exists(PLUGIN):
    print("skipped: built without the emulator of CUDA")
    sys.exit(77)
unittest.main(verbosity=2)
