"""The same bits from 1, 2, 3 and 4 ranks, wherever the layers are cut: logits, greedy and seeded
answers, log-probabilities, constrained ones, prefixes found in the cache; with experts paged,
from GGUF and from a pack. What ran is checked to be what was asked for."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import cli
import ranks
import serve

ranks.skip_without_mpi()

MODELS = os.path.join(cli.SOURCE_DIR, "tests/data/golden/models")
CUTS = {  # of models with so many layers
    4: ["2,2", "1,3", "3,1", "1,2,1", "1,1,1,1"],
    6: ["3,3", "1,5", "5,1", "2,1,3", "1,1,1,3"],
    8: ["4,4", "1,7", "7,1", "3,2,3", "1,3,3,1"],
}
EVAL_MODELS = {"qwen35moe-s-q8_0": 8, "qwen3next-s-q8_0": 6, "afmoe-s-q8_0": 6, "qwen3moe-s-q8_0": 4,
               "llama-s-bf16": 4}
PAGED = ["--expert-slots", "min", "--profile", "none"]


def model_path(name):
    return os.path.join(MODELS, name + ".gguf")


def counts(cut):
    return [int(n) for n in cut.split(",")]


def evaluate(n_rank, model, *options):
    ids = ",".join(str((i * 37 + i * i * 3 + 11) % 512) for i in range(90))
    result = ranks.lean(n_rank, "eval", model, "--ids", ids, "-n", 8, "--json", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def bits(answer):
    return answer["logits_xxh3"], answer["generated"], answer["perplexity"]


class Eval(unittest.TestCase):
    def check_ranks(self, answer, cut):
        """That each rank was a process of its own, with the layers asked for."""
        found = answer["effective"]["ranks"]
        self.assertEqual([rank["layers"][1] - rank["layers"][0] + 1 for rank in found], counts(cut))
        self.assertEqual(len({rank["pid"] for rank in found}), len(counts(cut)))
        self.assertEqual(found[0]["layers"][0], 0)
        for before, rank in zip(found, found[1:]):
            self.assertEqual(rank["layers"][0], before["layers"][1] + 1)

    def test_every_cut_of_every_architecture(self):
        for name, n_layer in EVAL_MODELS.items():
            expected = evaluate(1, model_path(name))
            for cut in CUTS[n_layer]:
                with self.subTest(model=name, cut=cut):
                    answer = evaluate(len(counts(cut)), model_path(name), "--partition", cut)
                    self.check_ranks(answer, cut)
                    self.assertEqual(bits(answer), bits(expected))
                    for key in ("expert_lookups", "expert_misses"):
                        self.assertEqual(answer["effective"][key], expected["effective"][key])

    def test_paged_and_beside_others_in_small_chunks(self):
        name = "qwen35moe-s-q8_0"
        expected = evaluate(1, model_path(name))
        for cut in CUTS[8]:
            with self.subTest(cut=cut):
                answer = evaluate(len(counts(cut)), model_path(name), "--partition", cut, *PAGED,
                                  "--beside", 3, "--prefill-chunk", 7, "--threads", 2)
                ran = answer["effective"]
                self.check_ranks(answer, cut)
                self.assertEqual(bits(answer), bits(expected))
                self.assertGreater(ran["expert_misses"], 0)
                self.assertGreater(ran["bytes_read"], 0)
                self.assertEqual(ran["prefill_chunk"], 7)
                self.assertGreater(ran["max_batch"], 1)
                self.assertEqual([layer["layer"] for layer in ran["experts"]["layers"]],
                                 list(range(8)))

    def test_pack(self):
        with tempfile.TemporaryDirectory() as folder:
            pack = os.path.join(folder, "model.lmpack")
            packed = cli.lean("pack", model_path("qwen3moe-s-q8_0"), "-o", pack)
            self.assertEqual(packed.returncode, 0, packed.stderr)
            expected = evaluate(1, model_path("qwen3moe-s-q8_0"))
            for cut in ("2,2", "1,2,1"):
                for options in ([], PAGED):
                    answer = evaluate(len(counts(cut)), pack, "--partition", cut, *options)
                    self.check_ranks(answer, cut)
                    self.assertEqual(bits(answer), bits(expected))
                    self.assertEqual(answer["effective"]["expert_misses"] > 0, bool(options))

    def test_the_routing_trace_is_of_all_ranks(self):
        """Byte by byte that of one rank, where the steps are the same."""
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for n_rank, more in ((1, []), (3, ["--partition", "2,4,2"]), (3, [*PAGED])):
                path = os.path.join(folder, "trace")
                evaluate(n_rank, model_path("qwen35moe-s-q8_0"), "--prefill-chunk", 7, "--trace", path,
                         *more)
                with open(path, "rb") as file:
                    found.append(file.read())
        self.assertGreater(len(found[0]), 10000)
        self.assertEqual([found[0] == other for other in found], [True] * 3)

    def test_layers_are_shared_out_by_themselves(self):
        answer = evaluate(3, model_path("llama-s-bf16"))
        self.assertEqual(bits(answer), bits(evaluate(1, model_path("llama-s-bf16"))))
        self.check_ranks(answer, ",".join(str(rank["layers"][1] - rank["layers"][0] + 1)
                                          for rank in answer["effective"]["ranks"]))

    def test_the_profile_that_is_kept_is_of_all_layers(self):
        kept = []
        for n_rank in (1, 3):
            with tempfile.TemporaryDirectory() as cache:
                result = ranks.lean(n_rank, "eval", model_path("qwen35moe-s-q8_0"), "--ids", "1,2,3,4",
                                    "-n", 20, "--expert-slots", "50%", XDG_CACHE_HOME=cache)
                self.assertEqual(result.returncode, 0, result.stderr)
                [name] = [name for name in os.listdir(os.path.join(cache, "lean/profiles"))
                          if name.endswith(".profile")]
                with open(os.path.join(cache, "lean/profiles", name), "rb") as file:
                    kept.append(file.read())
        self.assertEqual(kept[0], kept[1])


class Overrides(unittest.TestCase):
    """Blocks of the configuration for one rank or one host."""
    MODEL = model_path("qwen35moe-s-q8_0")
    GIB = 1 << 30

    def config(self, *blocks):
        file = tempfile.NamedTemporaryFile("w", suffix=".textproto")
        self.addCleanup(file.close)
        file.write('compute { threads: 2 } tiers { ram { size: "2GiB" } }\n' + "\n".join(blocks))
        file.flush()
        return file.name

    def test_each_rank_runs_by_its_own_settings(self):
        here = socket.gethostname()
        config = self.config(
            'override { rank: 1 set { compute { threads: 1 kernels: REF } '
            'tiers { ram { size: "1GiB" } expert_slots: "min" profile: "none" } } }',
            f'override {{ rank: 2 host: "{here}" set {{ compute {{ threads: 3 }} }} }}',
            'override { rank: 2 host: "elsewhere" set { compute { threads: 4 } } }',
            'override { host: "elsewhere" set { compute { threads: 5 } } }')
        expected = evaluate(1, self.MODEL)
        answer = evaluate(3, self.MODEL, "--config", config, "--partition", "3,3,2")
        self.assertEqual(bits(answer), bits(expected))
        found = answer["effective"]["ranks"]
        self.assertEqual([rank["threads"] for rank in found], [2, 1, 3])
        self.assertEqual([rank["ram"] for rank in found], [2 * self.GIB, self.GIB, 2 * self.GIB])
        self.assertEqual(found[1]["kernels"], "ref")
        self.assertEqual(found[0]["kernels"], expected["effective"]["kernels"])
        self.assertEqual([bool(rank.get("expert_slots")) for rank in found], [False, True, False])
        self.assertEqual(len({json.dumps([rank["threads"], rank["ram"]]) for rank in found}), 3)

    def test_the_host_of_all_ranks(self):
        config = self.config(f'override {{ host: "{socket.gethostname()}" set '
                             '{ compute { threads: 1 } } }')
        found = evaluate(2, self.MODEL, "--config", config)["effective"]["ranks"]
        self.assertEqual([rank["threads"] for rank in found], [1, 1])

    def test_the_command_line_counts_for_all(self):
        config = self.config("override { rank: 1 set { compute { threads: 1 } } }")
        found = evaluate(2, self.MODEL, "--config", config, "--threads", 3)["effective"]["ranks"]
        self.assertEqual([rank["threads"] for rank in found], [3, 3])

    def test_the_cut_goes_by_each_budget(self):
        """The one with the memory gets the layers, in the job and in what is predicted of it."""
        config = self.config('override { rank: 0 set { tiers { ram { size: "112MiB" } } } }',
                             'override { rank: 1 set { tiers { ram { size: "8GiB" } } } }')
        result = ranks.lean(2, "eval", self.MODEL, "--ids", "1,2", "--config", config, "--ctx", 65536,
                            "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        found = json.loads(result.stdout)["effective"]["ranks"]
        self.assertLess(found[0]["layers"][1], found[1]["layers"][1] - found[1]["layers"][0])
        self.assertIn("may use 112 MiB", result.stderr)
        shown = cli.lean("inspect", self.MODEL, "--memory", "--ranks", 2, "--config", config, "--ctx",
                         65536, "--json")
        stages = json.loads(shown.stdout)["memory"]["ranks"]
        self.assertEqual([[stage["layer_begin"], stage["layer_end"] - 1] for stage in stages],
                         [rank["layers"] for rank in found])

    def test_what_ranks_have_alike_is_said(self):
        config = self.config("override { rank: 1 set { model { ctx: 512 } } }")
        result = ranks.lean(2, "eval", self.MODEL, "--ids", "1,2", "--config", config)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr.count("model.ctx is the same on all ranks"), 1)


class Settings(unittest.TestCase):
    MODEL = model_path("qwen35moe-s-q8_0")

    def test_slack_and_transport(self):
        expected = evaluate(1, self.MODEL)
        self.assertEqual(expected["effective"]["steps_ahead"], 1)
        for slack, transport in ((0, "auto"), (3, "mpi")):
            answer = evaluate(2, self.MODEL, "--slack", slack, "--transport", transport)
            self.assertEqual(bits(answer), bits(expected))
            self.assertEqual(answer["effective"]["steps_ahead"], 2 + slack)
            self.assertEqual(answer["effective"]["transport"], "mpi")

    def test_nccl_needs_gpus(self):
        result = ranks.lean(2, "eval", self.MODEL, "--ids", "1", "--transport", "nccl", "--device", "cpu")
        self.assertEqual(result.returncode, 9, result.stderr)
        self.assertIn("between no two ranks do activations go from a GPU to a GPU", result.stderr)

    def test_buffers_of_an_edge(self):
        """Any number gives the same bits, more of them take more memory."""
        expected, scratch = evaluate(1, self.MODEL), []
        for depth in (2, 7):
            answer = evaluate(3, self.MODEL, "--edge-depth", depth, "--prefill-chunk", 5,
                              "--beside", 2, "--partition", "2,4,2")
            self.assertEqual(bits(answer), bits(expected))
            with serve.Server("--ctx", 512, "--edge-depth", depth, "--ranks", 2, "--allow-root",
                              model=self.MODEL) as server:
                server.complete("hello", max_tokens=2)
                scratch.append(server.metric("lean_rank_memory_bytes", rank="1", kind="scratch"))
        self.assertGreater(scratch[1], scratch[0])

    def test_nodes_of_the_host(self):
        """Of a machine that hwloc makes up: rank 0 has node 0, ranks 1 and 2 share what is behind."""
        result = ranks.lean(3, "eval", self.MODEL, "--ids", "1,2,3", HWLOC_SYNTHETIC="numa:2 core:2 pu:1")
        self.assertEqual(result.returncode, 0, result.stderr)
        for rank, node, units in ((0, 0, "0-1"), (1, 0, "0-1"), (2, 1, "2-3")):
            self.assertIn(f"rank {rank} of 3 on this host: bound to NUMA node {node}, processors {units}",
                          result.stderr)

    def test_devices_of_the_host(self):
        def run(n_rank, *options, **variables):
            result = ranks.lean(n_rank, "eval", self.MODEL, "--ids", "1,2", "--json", *options, **variables)
            self.assertEqual(result.returncode, 0, result.stderr)
            return json.loads(result.stdout)

        options = ["--device", "emu", "--partition", "4,4"]
        emulated = {"LEAN_EMU_DEVICES": "8.6,8.6"}
        if cli.lean("eval", self.MODEL, "--ids", "1", "--device", "emu").returncode:
            self.skipTest("no emulated device")
        expected = run(1)["logits_xxh3"]
        for more, devices in (([], ["emu:0", "emu:1"]), (["--devices", "1,0"], ["emu:1", "emu:0"]),
                              (["--devices", "1"], ["emu:1", "emu:1"])):
            with self.subTest(more):
                answer = run(2, *options, *more, **emulated)
                self.assertEqual([rank["device"] for rank in answer["effective"]["ranks"]], devices)
                self.assertEqual(answer["logits_xxh3"], expected)
        result = ranks.lean(2, "eval", self.MODEL, "--ids", "1", *options, "--devices", "0,7", **emulated)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("there is no device 7, but 2 in all", result.stderr)

    def stages(self, ram, *options):
        """Of two ranks, of which the second may use so much."""
        with tempfile.NamedTemporaryFile("w", suffix=".textproto") as file:
            file.write('tiers { ram { size: "1GiB" } } override { rank: 1 set { tiers { ram { '
                       f'size: "{ram}" }} }} }} }}')
            file.flush()
            shown = cli.lean("inspect", self.MODEL, "--memory", "--ctx", 512, "--ranks", 2,
                             "--config", file.name, "--json", *options)
        self.assertEqual(shown.returncode, 0, shown.stderr)
        return json.loads(shown.stdout)["memory"]["ranks"]

    def test_what_a_cut_is_for(self):
        """A rank that must page for its third layer gets it for the sake of many, not of one."""
        third = self.stages("1GiB", "--partition", "5,3")[1]
        ram = int(third["fixed_bytes"] + 0.97 * third["expert_bytes"])
        latency = self.stages(ram, "--partition-objective", "latency")
        throughput = self.stages(ram, "--partition-objective", "throughput")
        self.assertEqual([stage["hit_rate"] for stage in latency], [1, 1])
        self.assertLess(throughput[1]["hit_rate"], 1)
        self.assertGreater(latency[0]["layer_end"], throughput[0]["layer_end"])


class Failures(unittest.TestCase):
    """What goes wrong on one rank is said once, and ends all."""

    def check(self, result, code, *texts):
        self.assertEqual(result.returncode, code, result.stderr)
        for text in texts:
            self.assertIn(text, result.stderr)

    def test_no_such_model(self):
        self.check(ranks.mpirun(2, "eval", "nowhere.gguf", "--ids", "1"), 3, "nowhere.gguf")

    def test_a_wrong_option_is_said_once(self):
        result = ranks.mpirun(3, "eval", model_path("llama-s-f32"), "--bogus", "1", "--json")
        self.check(result, 2, "unknown option --bogus")
        self.assertEqual(result.stderr.count("unknown option"), 1)
        self.assertEqual(json.loads(result.stdout)["exit_code"], 2)

    def test_a_partition_that_is_not_of_this_model(self):
        self.check(ranks.mpirun(2, "eval", model_path("llama-s-f32"), "--ids", "1", "--partition",
                                "3,2"), 2, "the partition has 5 layers, the model 4")

    def test_more_ranks_than_layers(self):
        self.check(ranks.mpirun(3, "eval", model_path("llama-k-q4_k"), "--ids", "1"), 2,
                   "3 ranks, but the model has 2 layers")

    def run_two(self, *second):
        """Rank 0 as usual, rank 1 by other words."""
        first = [cli.LEAN, "eval", model_path("llama-s-f32"), "--ids", "1"]
        words = ["mpirun", "-q", "--oversubscribe", "--bind-to", "none", "-np", "1", *first, ":",
                 "-np", "1", *second]
        return subprocess.run(words, capture_output=True, text=True, timeout=60,
                              env=cli.environment(**ranks.MPI))

    def test_another_program_on_another_rank(self):
        with tempfile.TemporaryDirectory() as folder:
            program = os.path.join(folder, "lean")
            shutil.copy(cli.LEAN, program)
            shutil.copy(os.path.join(ranks.BUILD, "liblean_mpi.so"), folder)
            with open(program, "ab") as file:
                file.write(b"another build")
            result = self.run_two(program, "eval", model_path("llama-s-f32"), "--ids", "1")
        self.check(result, 9, "rank 1 (", "all ranks need the same program")
        self.assertEqual(len(set(re.findall(r"build ([0-9a-f]{16})", result.stderr))), 2)

    def test_another_model_on_another_rank(self):
        """In a mount namespace rank 1 finds another file under the same name."""
        script = (f"mount --bind {model_path('llama-s-bf16')} {model_path('llama-s-f32')} && "
                  f"exec {cli.LEAN} eval {model_path('llama-s-f32')} --ids 1")
        if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            print("no mount namespaces for this user: one rank with another model is not tried")
            return
        result = self.run_two("unshare", "-m", "bash", "-c", script)
        self.check(result, 5, "rank 1 (", "is another model here")
        self.assertEqual(len(set(re.findall(r"fingerprint ([0-9a-f]{16})|rank 0 ([0-9a-f]{16})",
                                            result.stderr))), 2)

    def test_what_one_rank_cannot_load_is_said_by_name(self):
        """A pack whose files of the last layers are gone."""
        with tempfile.TemporaryDirectory() as folder:
            pack = os.path.join(folder, "model.lmpack")
            self.assertEqual(cli.lean("pack", model_path("qwen3moe-s-q8_0"), "-o", pack).returncode, 0)
            script = (f"mount -t tmpfs none {pack} && exec {cli.LEAN} eval {pack} --ids 1")
            if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
                print("no mount namespaces for this user: a rank without its model is not tried")
                return
            words = ["mpirun", "-q", "--oversubscribe", "--bind-to", "none", "-np", "1", cli.LEAN,
                     "eval", pack, "--ids", "1", ":", "-np", "1", "unshare", "-m", "bash", "-c", script]
            result = subprocess.run(words, capture_output=True, text=True, timeout=60,
                                    env=cli.environment(**ranks.MPI))
        self.check(result, 3, "rank 1 (", "model.lmpack")


class Run(unittest.TestCase):
    SETTINGS = {
        "greedy": ["--temperature", 0],
        "seeded": ["--temperature", 0.9, "--top-p", 0.95, "--seed", 11],
        "penalized": ["--temperature", 0.8, "--seed", 3, "--repetition-penalty", 1.3,
                      "--presence-penalty", 0.5, "--frequency-penalty", 0.2, "--dry-multiplier", 0.8,
                      "--logit-bias", "100=4", "--logit-bias", "50=-100"],
    }

    def answer(self, n_rank, *options):
        result = ranks.lean(n_rank, "run", serve.DEMO, "Tell me about the kernel.", "--json", "-n", 40,
                            "--ignore-eos", "--progress", "none", "--prompt-lookup", "on",
                            "--mtp", "on", *options)
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        return answer["content"], answer["usage"], answer["experts"]["decode"]["lookups"]

    def test_answers(self):
        for name, options in self.SETTINGS.items():
            expected = self.answer(1, *options)
            self.assertEqual(expected[1]["completion_tokens"], 40)
            for cut in ("1,3", "1,1,1,1"):
                with self.subTest(settings=name, cut=cut):
                    options_of_cut = [*options, "--partition", cut]
                    self.assertEqual(self.answer(len(counts(cut)), *options_of_cut), expected)
        self.assertEqual(self.answer(2, *options, *PAGED), expected)


SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8},
                                           "size": {"type": "integer"}},
          "required": ["name", "size"], "additionalProperties": False}


def requests(prompt):
    base = {"prompt": [prompt], "max_tokens": 24, "logprobs": 5, "return_token_ids": True,
            "ignore_eos": True}
    return {"greedy": {**base, "temperature": 0},
            "seeded": {**base, "temperature": 1.0, "top_p": 0.95, "seed": 77},
            "penalized": {**base, "temperature": 0.8, "seed": 5, "repetition_penalty": 1.2,
                          "presence_penalty": 0.5, "echo": True},
            "longer": {**base, "prompt": [prompt + [7, 8, 9]], "temperature": 0},
            "biased": {**base, "temperature": 0, "logit_bias": {"11": 6, "12": -100}}}


class Serve(unittest.TestCase):
    """Through the supervisor that `--ranks` starts."""

    def server(self, cut, model, *options):
        if cut:
            options = (*options, "--ranks", len(counts(cut)), "--partition", cut, "--allow-root")
        return serve.Server("--ctx", 512, *options, model=model)

    def answers(self, server):
        """Each request alone, then again with its prompt in the cache, then all at once."""
        prompt = [(i * 13 + 5) % 500 for i in range(90)]
        found = []

        def ask(request):
            answer = server.post("/v1/completions", request, timeout=120)
            assert answer.status == 200, answer.body
            [choice] = answer.json["choices"]
            return json.dumps([choice["token_ids"], choice["text"], choice["logprobs"]])

        for _ in range(2):
            found += [ask(request) for request in requests(prompt).values()]
        self.assertGreater(server.metric("lean_prompt_tokens_cached_total"), 0)
        alone = found[:len(requests(prompt))]
        together = serve.at_once(*[lambda r=r: ask(r) for r in requests(prompt).values()])
        self.assertEqual(alone, found[len(alone):])
        self.assertEqual(alone, together)
        return alone

    def check_model(self, model, cuts):
        with self.server(None, model, "--parallel", 4) as server:
            expected = self.answers(server)
        for cut in cuts:
            for options in ([], PAGED):
                with self.subTest(cut=cut, options=options), \
                        self.server(cut, model, "--parallel", 4, *options) as server:
                    self.assertEqual(self.answers(server), expected)
                    n = len(counts(cut))
                    self.assertEqual(server.get("/props").json["ranks"], n)
                    self.assertEqual(server.metric("lean_build_info", ranks=str(n)), 1)
                    if options:
                        self.assertGreater(server.metric("lean_expert_cache_misses_total"), 0)

    def test_recurrent_states(self):
        self.check_model(serve.TINY, ("3,5", "2,2,2,2"))

    def test_windows(self):
        self.check_model(model_path("afmoe-s-q8_0"), ("2,1,3",))

    def test_what_each_rank_counts(self):
        layers = [3, 3, 2]
        with self.server("3,3,2", serve.TINY, "--parallel", 2, *PAGED) as server:
            server.complete("count what each rank does", max_tokens=20, ignore_eos=True)

            def of_ranks(name, **labels):
                return [server.metric(name, rank=str(i), **labels) for i in range(3)]

            for name in ("lean_expert_cache_misses_total", "lean_expert_reads_total",
                         "lean_rank_wait_seconds_total"):
                with self.subTest(name):
                    self.assertGreater(min(of_ranks(name)[1:]), 0)
            self.assertTrue(all(n > 0 for n in of_ranks("lean_expert_bytes_loaded_total",
                                                        source="disk")))
            self.assertEqual(of_ranks("lean_rank_up"), [1, 1, 1])
            for kind in ("weights", "kv", "scratch"):
                self.assertGreater(min(of_ranks("lean_rank_memory_bytes", kind=kind)), 0)
            n_byte = server.metric("lean_collective_bytes_total", op="send")
            self.assertGreater(n_byte, 0)
            self.assertGreater(server.metric("lean_collective_seconds_total", op="recv"), 0)
            text = server.get("/metrics").body.decode()
            for rank, first in enumerate((0, 3, 6)):
                for layer in range(8):
                    series = f'rank="{rank}",layer="{layer}",result="miss"'
                    self.assertEqual(series in text, first <= layer < first + layers[rank], series)

    def test_the_map_shows_all_ranks(self):
        with self.server("3,3,2", serve.TINY, "--parallel", 2, *PAGED) as server:
            end = time.monotonic() + 30
            while True:  # it is drawn a few times a second while something runs
                server.complete("go on", max_tokens=20, ignore_eos=True)
                drawn = server.get("/experts").json["layers"]
                if [layer["layer"] for layer in drawn] == list(range(8)) and \
                        all("9" in layer["heat"] and layer["misses"] for layer in drawn):
                    break
                self.assertLess(time.monotonic(), end, drawn)
            self.assertIn("1", "".join(layer["tiers"] for layer in drawn[3:]))

    def test_constrained_answers(self):
        request = {"max_tokens": 60, "seed": 4, "temperature": 0.9, "response_format": {
            "type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}}
        found = []
        for cut in (None, "1,3", "2,1,1"):
            with self.server(cut, serve.DEMO, "--parallel", 2) as server:
                answer = server.chat("name a thing", **request)
                found.append(answer["choices"][0]["message"]["content"])
        json.loads(found[0])
        self.assertEqual(found, [found[0]] * 3)

    def test_by_hand_under_mpirun(self):
        """No supervisor: rank 0 prints the URL, SIGUSR1 to mpirun ends all in order."""
        words = ["mpirun", "-q", "--oversubscribe", "--bind-to", "none", "-np", "2", cli.LEAN, "serve",
                 serve.DEMO, "--listen", "127.0.0.1:0", "--ctx", "512"]
        with tempfile.TemporaryDirectory() as runtime, \
                subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                 env=cli.environment(**ranks.MPI, XDG_RUNTIME_DIR=runtime)) as job:
            try:
                line = job.stdout.readline()
                match = re.fullmatch(r"ready http://127\.0\.0\.1:(\d+)\n", line)
                self.assertTrue(match, line)
                listed = cli.lean("ps", "--json", XDG_RUNTIME_DIR=runtime)
                [facts] = json.loads(listed.stdout)
                self.assertEqual(facts["ranks"], 2)
                job.send_signal(signal.SIGUSR1)
                self.assertEqual(job.wait(30), 0)
            finally:
                job.kill()


if __name__ == "__main__":
    unittest.main()
