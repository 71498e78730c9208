"""Layers on a device, here the emulated one: the same bits as on the CPU, whichever layers are there,
and what a device without room, without a driver, or lost in the middle comes to."""
import json
import os
import sys
import tempfile
import unittest

import cli
import golden
import ranks
import serve

PLUGIN = os.path.join(ranks.BUILD, "liblean_cuda_emu.so")
MODELS = ("llama-s-q8_0", "qwen3moe-s-q8_0", "qwen35moe-s-q8_0", "qwen3next-s-q8_0", "afmoe-s-q8_0")
UNSUPPORTED, RANK_LOST = 9, 11


def path(model):
    return os.path.join(golden.SUBSET, "models", model + ".gguf")


def prompt(n):
    return [(i * 37 + i * i * 3 + 11) % 512 for i in range(n)]


def evaluate(model, n, *options, device="emu"):
    return golden.evaluate(path(model), prompt(n), "-n", 4, "--device", device, *options)


def bits(answer):
    return answer["logits_xxh3"], answer["generated"]


class SameBits(unittest.TestCase):
    def check(self, model, n, *options, layers=None):
        """layers: on the device, as asked for; all if not given. Returns what really ran."""
        expected, answer = evaluate(model, n, *options, device="cpu"), evaluate(model, n, *options,
                                                                                *(layers or ()))
        self.assertEqual(bits(answer), bits(expected), (model, options, layers))
        self.assertEqual(expected["effective"]["ranks"][0]["device"], "cpu")
        self.assertNotIn("device_layers", expected["effective"]["ranks"][0])
        rank = answer["effective"]["ranks"][0]
        first, last = rank["layers"]
        if layers:
            first = last + 1 - layers[1]
        self.assertEqual((rank["device"], rank["device_layers"]), ("emu:0", [first, last]))
        if "--expert-slots" not in options: # which are of the CPU's layers, and counted there
            self.assertEqual(answer["effective"]["expert_lookups"],
                             expected["effective"]["expert_lookups"])
        return answer["effective"]

    def test_every_architecture(self):
        for model in MODELS:
            ran = self.check(model, 9)
            # a step is one piece of work: the prompt, then three tokens; like ones are replayed
            self.assertEqual(ran["device"]["flushes"], 4)
            self.assertGreater(ran["device"]["replays"], 0)

    def test_dense_architectures(self):
        """Whole, and split with other sequences beside."""
        with tempfile.TemporaryDirectory() as folder:
            for arch in ("qwen2", "qwen3", "qwen35"):
                model = os.path.join(folder, arch)
                made = cli.lean("synth", arch, "Q4_K_M", "-o", path(model))
                self.assertEqual(made.returncode, 0, made.stderr)
                self.check(model, 9)
                self.check(model, 9, "--beside", 2, layers=("--gpu-layers", 2))

    def test_layers_on_both(self):
        self.check("qwen35moe-s-q8_0", 9, layers=("--gpu-layers", 1))
        self.check("qwen3next-s-q8_0", 9, layers=("--gpu-layers", 3))
        self.check("afmoe-s-q8_0", 40, layers=("--gpu-layers", 3))
        self.check("llama-k-q4_k", 5, layers=("--gpu-layers", 1))

    def test_schedules(self):
        self.check("qwen35moe-s-q8_0", 9, "--prefill-chunk", 4)
        self.check("qwen3moe-s-q8_0", 9, "--beside", 2, layers=("--gpu-layers", 2))
        for kv_type in ("bf16", "f32"):
            self.check("llama-s-q8_0", 9, "--kv-type", kv_type)
        self.check("llama-k-q4_k", 5, "--kv-type", "q8_0")

    def test_paged_beside_a_device(self):
        self.check("qwen3moe-s-q8_0", 9, "--expert-slots", "min", layers=("--gpu-layers", 2))

    def test_a_step_takes_no_memory(self):
        short, long = (evaluate("qwen35moe-s-q8_0", 5, "-n", n)["effective"]["device"]
                       for n in (3, 9))
        self.assertEqual(short["allocations"], long["allocations"])
        self.assertEqual(long["flushes"] - short["flushes"], 6)
        self.assertEqual(long["replays"] - short["replays"], 6)

    def test_a_graph_for_each_number_of_sequences(self):
        """Prompts and the first tokens run launch by launch, the second ones are recorded, and from
        then on there is nothing but that graph."""
        for n_beside in (0, 3):
            short, long = (evaluate("llama-s-q8_0", 5, "-n", n, "--beside", n_beside, "--prompt-lookup",
                                    "off")["effective"]["device"] for n in (5, 11))
            self.assertEqual((short["captures"], long["captures"]), (1, 1), n_beside)
            self.assertEqual(long["flushes"] - short["flushes"], 6)
            self.assertEqual(long["replays"] - short["replays"], 6)
            self.assertEqual(short["allocations"], long["allocations"])

    @unittest.skipIf(ranks.why_no_mpi(), "needs Open MPI")
    def test_two_ranks(self):
        expected = evaluate("qwen35moe-s-q8_0", 9, device="cpu")
        result = ranks.mpirun(2, "eval", path("qwen35moe-s-q8_0"), "--ids",
                              ",".join(map(str, prompt(9))), "-n", 4, "--json", "--device", "emu",
                              "--gpu-layers", 6, "--partition", "4,4")
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.assertEqual(bits(answer), bits(expected))
        self.assertEqual([(rank["device"], rank["device_layers"])
                          for rank in answer["effective"]["ranks"]],
                         [("emu:0", [2, 3]), ("emu:0", [4, 7])])


class Fast(unittest.TestCase):
    """Numerics fast: not the bits of exact, but as near to the arithmetic without rounded activations
    (--reference) as exact is. Both stray from it by roundings of about eight bits, which random
    models amplify alike: so neither's divergence may be much larger than the other's."""
    N = 70

    def divergence(self, model, *options, fast=True, device="emu"):
        """(of the logits from the reference's, what was printed)"""
        result = cli.lean("eval", path(model), "--ids", ",".join(map(str, prompt(self.N))), "--json",
                          "--compare", self.reference[model], "--device", device,
                          *(["--numerics", "fast"] if fast else []), *options)
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.stderr = result.stderr
        return answer["compare"]["kl_divergence"], answer

    @classmethod
    def setUpClass(cls):
        cls.reference = {}
        for model in ("llama-k-q4_k", "qwen3moe-s-q8_0"):
            cls.reference[model] = os.path.join(tempfile.mkdtemp(), "logits")
            golden.evaluate(path(model), prompt(cls.N), "--reference", "--device", "cpu", "--logits",
                            cls.reference[model])

    def test_near_the_reference(self):
        for model in self.reference:
            exact, without = self.divergence(model, fast=False)
            fast, answer = self.divergence(model)
            self.assertLess(fast, 2 * exact + 0.002, model)
            self.assertNotEqual(answer["logits_xxh3"], without["logits_xxh3"])
            self.assertEqual(without["effective"]["device"]["cublas_products"], 0)
            self.assertGreater(answer["effective"]["device"]["cublas_products"], 0)
            self.assertEqual(without["effective"]["ranks"][0]["numerics"], "exact")
            self.assertEqual(answer["effective"]["ranks"][0]["numerics"], "fast")
            self.assertIn("numerics fast: the output depends on", self.stderr)
            _, again = self.divergence(model)
            self.assertEqual(answer["logits_xxh3"], again["logits_xxh3"])

    def test_steps_of_few_rows_are_exact(self):
        """So is what generates, after a prompt that was."""
        model = "llama-k-q4_k"
        _, exact = self.divergence(model, "-n", 4, fast=False)
        _, fast = self.divergence(model, "-n", 4, "--prefill-chunk", 15)
        self.assertEqual(bits(fast), bits(exact))
        self.assertEqual(fast["effective"]["device"]["cublas_products"], 0)

    def test_on_the_cpu_it_is_exact(self):
        _, exact = self.divergence("llama-k-q4_k", fast=False, device="cpu")
        _, fast = self.divergence("llama-k-q4_k", device="cpu")
        self.assertEqual(bits(fast), bits(exact))
        self.assertEqual(fast["effective"]["ranks"][0]["numerics"], "exact")
        self.assertIn("numerics fast: there is no other way on the CPU", self.stderr)

    def test_without_cublas(self):
        result = cli.lean("eval", path("llama-k-q4_k"), "--ids", "1,2", "--device", "emu",
                          "--numerics", "fast", LEAN_EMU_FAIL="cublas")
        self.assertEqual(result.returncode, UNSUPPORTED, result.stderr)
        self.assertIn("numerics fast needs cuBLAS", result.stderr)
        self.assertIn("hint: install libcublas", result.stderr)

    def test_what_it_takes_is_planned(self):
        """Where exact fits in and no more, fast is refused before anything loads; where its plan fits
        it has what it needs, beside what cuBLAS takes for itself."""
        model = path("llama-k-q4_k")
        sizes = ("--ctx", 256, "--prefill-chunk", 128, "--device", "emu", "--gpu-layers", 4)
        shown = cli.lean("inspect", model, "--memory", "--json", *sizes)
        exact = json.loads(shown.stdout)["memory"]["device"]["total"]
        for numerics, more, code in (("exact", 1, 0), ("fast", 1, UNSUPPORTED), ("fast", 36, 0)):
            vram = exact + (more << 20)
            result = cli.lean("eval", model, "--ids", ",".join(map(str, prompt(self.N))), *sizes,
                              "--numerics", numerics, "--vram", vram,
                              LEAN_EMU_VRAM=str(vram + (32 << 20)))
            self.assertEqual(result.returncode, code, (numerics, more, result.stderr))
            if code:
                self.assertIn("layers need", result.stderr)

    def test_the_fingerprint_of_a_server_tells(self):
        told = []
        for device, numerics in (("emu", "exact"), ("emu", "fast"), ("cpu", "fast")):
            with serve.Server("--device", device, "--numerics", numerics,
                              model=path("llama-s-q8_0")) as server:
                told.append(server.complete([1, 2], max_tokens=1)["system_fingerprint"])
        exact, fast, on_cpu = told
        self.assertNotEqual(exact, fast)
        self.assertEqual(exact, on_cpu)

    def test_bench_measures_both(self):
        result = cli.lean("bench", path("llama-k-q4_k"), "--device", "emu", "--numerics",
                          "exact,fast", "-p", 64, "-n", 0, "-r", 1, "-o", "json")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = json.loads(result.stdout)
        self.assertEqual([row["settings"]["numerics"] for row in rows], ["exact", "fast"])
        self.assertEqual([row["effective"]["ranks"][0]["numerics"] for row in rows],
                         ["exact", "fast"])

    @unittest.skipIf(ranks.why_no_mpi(), "needs Open MPI")
    def test_every_rank(self):
        result = ranks.mpirun(2, "eval", path("llama-k-q4_k"), "--ids",
                              ",".join(map(str, prompt(self.N))), "--json", "--device", "emu",
                              "--numerics", "fast")
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        _, alone = self.divergence("llama-k-q4_k")
        self.assertEqual([rank["numerics"] for rank in answer["effective"]["ranks"]],
                         ["fast", "fast"])
        self.assertEqual(answer["logits_xxh3"], alone["logits_xxh3"])

    def test_a_product_that_fails(self):
        """Behind embed, the rounding of rows and the decoding of weights."""
        result = cli.lean("eval", path("llama-k-q4_k"), "--ids", ",".join(map(str, prompt(self.N))),
                          "--device", "emu", "--numerics", "fast", LEAN_EMU_FAIL="launch:4")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertRegex(result.stderr, r"gpu 0: cuBLAS, a product of \d+ x 256 with 70 rows: the")


class Room(unittest.TestCase):
    MODEL = path("qwen3moe-s-q8_0")

    def eval(self, *options, **variables):
        return cli.lean("eval", self.MODEL, "--ids", "1,2,3", "--json", "--ctx", 256,
                        "--prefill-chunk", 64, *options, **variables)

    def test_what_is_planned(self):
        shown = cli.lean("inspect", self.MODEL, "--memory", "--json", "--ctx", 256, "--device",
                         "emu", "--gpu-layers", 3)
        memory = json.loads(shown.stdout)["memory"]
        whole = json.loads(cli.lean("inspect", self.MODEL, "--memory", "--json", "--ctx", 256,
                                    "--device", "cpu").stdout)["memory"]
        device = memory["device"]
        self.assertEqual((device["device"], device["layer_begin"], device["layer_end"]),
                         ("emu:0", 1, 4))
        for what in ("weights", "kv_cache", "routed_experts"):
            self.assertEqual(memory[what] + device[what], whole[what], what)
        self.assertNotIn("device", whole)

    def test_as_many_layers_as_fit(self):
        result = self.eval("--device", "emu", "--vram", "33M")
        self.assertEqual(result.returncode, 0, result.stderr)
        rank = json.loads(result.stdout)["effective"]["ranks"][0]
        self.assertGreater(rank["device_layers"][0], 0)
        self.assertIn("the others on the CPU", result.stderr)

    def test_what_does_not_fit(self):
        result = self.eval("--device", "emu", "--gpu-layers", 4, "--vram", "33M")
        self.assertEqual(result.returncode, UNSUPPORTED, result.stderr)
        self.assertRegex(result.stderr, r"emu:0 .*: 4 layers need .* of its memory .*33.0 MiB may be")
        self.assertRegex(result.stderr, "hint: --gpu-layers [1-3] fits")
        none = self.eval("--device", "emu", "--vram", "1M")
        self.assertEqual(none.returncode, 0, none.stderr)
        self.assertIn("computes on the CPU: no layer fits", none.stderr)
        self.assertEqual(json.loads(none.stdout)["effective"]["ranks"][0]["device"], "cpu")

    def test_no_device(self):
        for why, text in (("driver", "no NVIDIA driver"), ("old_driver", "driver")):
            result = self.eval("--device", "emu", LEAN_EMU_FAIL=why)
            self.assertEqual(result.returncode, UNSUPPORTED, result.stderr)
            self.assertIn(text, result.stderr)
        self.assertEqual(self.eval("--device", "emu:7").returncode, 2)
        self.assertEqual(self.eval("--device", "gpu").returncode, 2)
        self.assertEqual(self.eval("--device", "emu", "--reference").returncode, UNSUPPORTED)


class Failures(unittest.TestCase):
    """The emulator refuses or is lost at the N-th call; nothing hangs, and there is one error."""
    MODEL = path("llama-s-q8_0")

    def refuse(self, what, code, *texts):
        result = cli.lean("eval", self.MODEL, "--ids", "1,2,3", "-n", 4, "--device", "emu",
                          LEAN_EMU_FAIL=what)
        self.assertEqual(result.returncode, code, (what, result.stderr))
        for text in texts:
            self.assertIn(text, result.stderr)
        self.assertEqual(result.stderr.count("lean: error:"), 1)

    def test_no_memory(self):
        for n in (1, 4, 9):
            self.refuse(f"malloc:{n}", UNSUPPORTED, "memory")

    def test_a_launch_that_fails(self):
        self.refuse("launch:30", 1, "gpu 0")

    def test_lost_in_the_middle(self):
        self.refuse("lost:60", RANK_LOST, "the device is lost", "hint: --device cpu ")
        for command in (("run", self.MODEL, "--raw", "a", "-n", 4),
                        ("bench", self.MODEL, "-p", 8, "-n", 4, "-r", 1)):
            result = cli.lean(*command, "--device", "emu", LEAN_EMU_FAIL="lost:60")
            self.assertEqual(result.returncode, RANK_LOST, (command, result.stderr))
            self.assertIn("hint: --device cpu ", result.stderr)

    def test_a_server_ends(self):
        """What runs fails, and a server that can answer nothing any more ends with a lost rank's
        code."""
        with serve.Server("--device", "emu", model=self.MODEL,
                          env={"LEAN_EMU_FAIL": "lost:1500"}) as server:
            answers = []
            while len(answers) < 40 and (not answers or answers[-1].status == 200):
                answers.append(server.post("/v1/completions",
                                           {"prompt": [1, 2, 3], "max_tokens": 8}))
            self.assertEqual(answers[0].status, 200)
            self.assertIn(answers[-1].status, (500, 503))
            server.status = RANK_LOST
            self.assertEqual(server.process.wait(30), RANK_LOST)
            self.assertIn("the device is lost", server.log())
            self.assertIn("emu:0 was lost", server.log())


class Commands(unittest.TestCase):
    MODEL = path("llama-s-q8_0")

    def test_run(self):
        here, there = (cli.lean("run", self.MODEL, "--raw", "a", "-n", 4, "--temperature", 0,
                                "--device", device) for device in ("cpu", "emu"))
        self.assertEqual(there.returncode, 0, there.stderr)
        self.assertEqual(there.stdout, here.stdout)

    def test_serve(self):
        texts = []
        for device in ("cpu", "emu"):
            with serve.Server("--device", device, model=self.MODEL) as server:
                texts.append(server.complete([1, 2, 3, 4], max_tokens=4)["choices"][0]["text"])
        self.assertEqual(texts[0], texts[1])


if not os.path.exists(PLUGIN):
    print("skipped: built without the emulator of CUDA")
    sys.exit(77)
unittest.main(verbosity=2)
