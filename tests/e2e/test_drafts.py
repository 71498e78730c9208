"""Drafts are verified: whatever they are, the same comes out as without them, and where they are right
it comes in fewer steps."""
import json
import os
import re
import time
import unittest

import cli
import golden
import ranks
import serve

TEXT = ("the kernel is a program. the driver is a module of the kernel. " * 4 +
        "Say that again: the kernel is a program.")
N_TOKEN = 60
OFF = ("--prompt-lookup", "off", "--mtp", "off")


def ids_of(text, model=serve.DEMO):
    return json.loads(cli.lean("tokenize", model, "--json", input=text).stdout)["ids"]


def evaluate(*options, text=TEXT, n=N_TOKEN):
    answer = golden.evaluate(serve.DEMO, ids_of(text), "-n", n, *options)
    return answer["generated"], answer["effective"]["drafts_accepted"]


class SameOutput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.plain, n_accepted = evaluate(*OFF)
        assert n_accepted == 0

    def check(self, *options, kind=("--prompt-lookup", "on", "--mtp", "off")):
        generated, n_accepted = evaluate(*kind, *options)
        self.assertEqual(generated, self.plain, options)
        self.assertGreater(n_accepted, N_TOKEN // 4, options)

    def test_on_the_cpu(self):
        self.check()
        self.check("--draft-max", 1, "--kernels", "ref", "--threads", 1)
        self.check("--draft-max", 15, "--prefill-chunk", 16)

    def test_by_the_models_own_layer(self):
        mtp = ("--prompt-lookup", "off", "--mtp", "on")
        self.check(kind=mtp)
        self.check("--draft-max", 1, "--kernels", "ref", "--threads", 1, kind=mtp)
        self.check("--expert-slots", "min", kind=mtp)
        self.check("--draft-max", 15, "--prefill-chunk", 16, kind=("--mtp", "on"))

    def test_a_model_without_such_a_layer_is_refused(self):
        model = os.path.join(golden.SUBSET, "models/llama-s-q8_0.gguf")
        result = cli.lean("eval", model, "--ids", "1", "--mtp", "on")
        self.assertEqual(result.returncode, 9, result.stderr)
        self.assertIn("no layer for multi-token prediction", result.stderr)

    def test_with_few_experts_in_memory(self):
        self.check("--expert-slots", "min")

    @unittest.skipUnless(os.path.exists(os.path.join(ranks.BUILD, "liblean_cuda_emu.so")),
                         "no emulated plugin was built")
    def test_on_a_device(self):
        short = {"text": "the kernel is a program. the kernel is", "n": 16} # it is a slow device
        plain, _ = evaluate(*OFF, **short)
        drafted, n_accepted = evaluate(*OFF, "--prompt-lookup", "on", "--device", "emu",
                                       "--gpu-layers", 2, **short)
        self.assertEqual(drafted, plain)
        self.assertGreater(n_accepted, 2)

    @unittest.skipUnless(os.path.exists(os.path.join(ranks.BUILD, "liblean_cuda_emu.so")),
                         "no emulated plugin was built")
    def test_the_models_own_layer_on_a_device(self):
        """It is where the last layer is, its experts where the others' are."""
        ids = ids_of("the kernel is a program. the")
        options = (*OFF, "--mtp", "on", "--draft-max", 3, "--ctx", 128, "--prefill-chunk", 64)
        plain = golden.evaluate(serve.DEMO, ids, "-n", 7, *options)
        for where in ("--gpu-layers", 1), ("--gpu-layers", 4), ("--vram", "44M"):
            answer = golden.evaluate(serve.DEMO, ids, "-n", 7, *options, "--device", "emu", *where)
            self.assertEqual(answer["generated"], plain["generated"], where)
            self.assertEqual(answer["effective"]["drafts_accepted"],
                             plain["effective"]["drafts_accepted"])
            self.assertGreater(answer["effective"]["drafts_accepted"], 1)
            rank = answer["effective"]["ranks"][0]
            self.assertEqual(rank["device_layers"], [3 if where[1] == 1 else 0, 3])
        self.assertIn("device", answer["effective"]["experts"])
        self.assertGreater(rank["device_slots"], 0)

    def test_what_it_takes_is_planned(self):
        def plan(*options):
            shown = cli.lean("inspect", serve.DEMO, "--memory", "--json", "--ctx", 512,
                             "--prefill-chunk", 512, *options)
            return json.loads(shown.stdout)["memory"]
        off, on, fits = plan("--mtp", "off"), plan("--mtp", "on"), plan()
        self.assertEqual(off["mtp"], 0)
        self.assertEqual(on["mtp"], on["total"] - off["total"])
        self.assertEqual(fits["total"], on["total"]) # by default, where nothing is paged
        for what in "weights", "routed_experts", "kv_cache", "scratch":
            self.assertGreater(on[what], off[what], what)
        few = "--ram", (off["total"] + on["total"]) // 2
        self.assertEqual(plan(*few)["mtp"], 0) # and not where something would be for it
        self.assertTrue(plan("--mtp", "on", *few)["paged"])
        device = plan("--mtp", "on", "--gpu-layers", 1, "--vram", "1G")
        self.assertEqual(device["mtp"], 0)
        self.assertGreater(device["device"]["mtp"], on["kv_cache"] - off["kv_cache"])

    def test_automatically(self):
        generated, _ = evaluate()
        self.assertEqual(generated, self.plain)


class Serving(unittest.TestCase):
    REQUESTS = {
        "greedy": {"temperature": 0},
        "seeded": {"temperature": 0.6, "top_p": 0.9, "seed": 7},
        "penalized": {"temperature": 0.3, "seed": 3, "presence_penalty": 0.2, "logprobs": 3},
        "stopped": {"temperature": 0, "stop": ["module"]},
        "steered": {"temperature": 0, "grammar": 'root ::= ("the kernel is a " ("program" | "module") ". ")+'},
    }

    def answers(self, *options):
        found = {}
        with serve.Server("--ctx", 1024, "--parallel", 2, *options) as server:
            def complete(kind):
                request = {"prompt": TEXT, "max_tokens": N_TOKEN, "ignore_eos": True,
                           "return_token_ids": True, "timings": True, **self.REQUESTS[kind]}
                return server.post("/v1/completions", request, timeout=120).json

            kinds = list(self.REQUESTS)
            together = serve.at_once(*[lambda kind=kind: complete(kind) for kind in kinds])
            for kind, answer in zip(kinds, together):
                alone = complete(kind)
                for key in ("token_ids", "logprobs", "finish_reason", "text"):
                    self.assertEqual(alone["choices"][0][key], answer["choices"][0][key], kind)
                choice = alone["choices"][0]
                found[kind] = [choice["token_ids"], choice["text"], choice["finish_reason"],
                               choice["logprobs"], alone["usage"]["completion_tokens"]]
            counts = [server.metric("lean_spec_" + name) for name in
                      ("drafts_total", "draft_tokens_total", "accepted_tokens_total")]
            timings = complete("greedy")["timings"]
            server.stop()
            lines = server.log().splitlines()
        line = [line for line in lines if "/v1/completions 200" in line][-1]
        told = re.search(r"tok/s drafts=(\d+) accepted=(\d+)", line)
        self.assertEqual([int(n) for n in told.groups()] if told else [0, 0],
                         [timings["draft_n"], timings["draft_n_accepted"]], line)
        return found, counts, timings

    def test_what_runs_tells_its_drafts(self):
        seen = []
        with serve.Server("--ctx", 1024, *OFF, "--mtp", "on") as server:
            def watch():
                while not seen:
                    slot = server.get("/slots").json[0]
                    if slot["draft_n_accepted"]:
                        seen.append(slot)

            def complete():
                request = {"prompt": TEXT, "max_tokens": 900, "ignore_eos": True}
                for _ in range(20):
                    if not seen:
                        server.post("/v1/completions", request, timeout=120)
                seen.append(None)

            serve.at_once(watch, complete)
            deadline = time.monotonic() + 10  # it is idle soon
            while server.get("/slots").json[0]["draft_n"]:
                self.assertLess(time.monotonic(), deadline)
        self.assertIsNotNone(seen[0], "no slot told of drafts")
        self.assertGreaterEqual(seen[0]["draft_n"], seen[0]["draft_n_accepted"])

    def test_the_same_answers(self):
        plain, counts, timings = self.answers(*OFF)
        self.assertEqual((counts, timings["draft_n"]), ([0, 0, 0], 0))
        for kind in ("--prompt-lookup", "on"), ("--mtp", "on"):
            drafted, counts, timings = self.answers(*OFF, *kind)
            self.assertEqual(drafted, plain)
            n_draft_step, n_draft, n_accepted = counts
            self.assertGreater(n_accepted, 0)
            self.assertGreaterEqual(n_draft, max(n_accepted, n_draft_step))
            self.assertGreaterEqual(timings["draft_n"], timings["draft_n_accepted"])
            self.assertGreater(timings["draft_n_accepted"], N_TOKEN // 4)


if __name__ == "__main__":
    unittest.main()
