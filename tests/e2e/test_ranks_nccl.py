"""Ranks on emulated GPUs whose activations go from device to device by NCCL's interface, with the
emulator as the library: the bits of one rank on the CPU, over links slow and late; edge by edge where
only some ranks have GPUs; and every way in which that cannot be had or ends."""
import contextlib
import json
import os
import tempfile
import unittest

import cli
import jobs
import ranks
import serve

ranks.skip_without_mpi()

MODEL = os.path.join(cli.SOURCE_DIR, "tests/data/golden/models/qwen3moe-s-q8_0.gguf")
N_LAYER, ROW_BYTES = 4, 64 * 4  # its layers, and a row of x
IDS = [(i * 37 + 11) % 512 for i in range(9)]
OPTIONS = ["eval", MODEL, "--ids", ",".join(map(str, IDS)), "-n", 2, "--beside", 2, "--prefill-chunk", 5,
           "--json"]
GPUS = {"LEAN_EMU_DEVICES": "8.6,8.6,8.6,8.6"}
SLOW = "delay:3,rate:300000"


def run(n_rank, *options, network="", **variables):
    return ranks.lean(n_rank, *OPTIONS, *options, **{**GPUS, "LEAN_EMU_NCCL": network, **variables})


def evaluate(n_rank, *options, **more):
    result = run(n_rank, *options, **more)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def bits(answer):
    return answer["logits_xxh3"], answer["generated"], answer["perplexity"]


class Edges(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.expected = bits(evaluate(1, "--device", "cpu"))

    def check(self, answer, *transports):
        """The bits, by which way they came, and that rows went past the host where they should."""
        self.assertEqual(bits(answer), self.expected)
        found = answer["effective"]["ranks"]
        self.assertEqual([rank.get("transport") for rank in found], [None, *transports])
        kinds = set(transports)
        self.assertEqual(answer["effective"]["transport"], kinds.pop() if len(kinds) == 1 else "mixed")
        for rank, transport in zip(found[1:], transports):
            of_devices, rest = rank["received_device_bytes"], rank["received_bytes"]
            self.assertEqual(of_devices > 0, transport == "nccl")
            self.assertEqual(of_devices % ROW_BYTES, 0)
            if of_devices:  # all rows, of which the evaluated sequence has a third
                self.assertGreaterEqual(of_devices, (len(IDS) + 2) * ROW_BYTES)
                self.assertGreater(rest, of_devices)
        return found

    def test_three_gpus_slow_and_late(self):
        """Several steps are under way, and each transfer waits for its partner."""
        found = self.check(evaluate(3, "--device", "emu", "--transport", "nccl", "--partition", "1,2,1",
                                    network=SLOW), "nccl", "nccl")
        self.assertEqual([rank["device"] for rank in found], ["emu:0", "emu:1", "emu:2"])
        over_mpi = self.check(evaluate(3, "--device", "emu", "--transport", "mpi", "--partition", "1,2,1"),
                              "mpi", "mpi")
        self.assertEqual([rank["received_bytes"] for rank in found[1:]],
                         [rank["received_bytes"] for rank in over_mpi[1:]])

    def test_edge_by_edge(self):
        """Ranks with GPUs, one without, and one with its first layer on the CPU."""
        with tempfile.NamedTemporaryFile("w", suffix=".textproto") as file:
            file.write('compute { device: "emu" } override { rank: 2 set { compute { device: "cpu" } } }')
            file.flush()
            self.check(evaluate(4, "--config", file.name, "--transport", "nccl", "--partition", "1,1,1,1"),
                       "nccl", "mpi", "mpi")
        self.check(evaluate(2, "--device", "emu", "--gpu-layers", 3, "--partition", "2,2"), "nccl")
        self.check(evaluate(2, "--device", "emu", "--gpu-layers", 1, "--partition", "2,2"), "mpi")

    def test_what_cannot_be_is_left_to_mpi(self):
        """By itself, unless it was asked for."""
        options = ["--device", "emu", "--partition", "2,2"]
        for network, devices, text in (
                ("", "8.6", "are on the same GPU, which NCCL does not connect"),
                ("file:libnccl-none.so.2", "8.6,8.6", "libnccl-none.so.2: cannot open shared object file"),
                ("file:libm.so.6", "8.6,8.6", "NCCL: libm.so.6 has no ncclGetVersion"),
                ("refuse", "8.6,8.6", "ncclCommInitRankConfig: unhandled system error")):
            with self.subTest(text):
                variables = {"network": network, "LEAN_EMU_DEVICES": devices}
                self.check(evaluate(2, *options, "--transport", "auto", **variables), "mpi")
                result = run(2, *options, "--transport", "nccl", **variables)
                self.assertEqual(result.returncode, 1 if network == "refuse" else 9, result.stderr)
                self.assertIn(text, result.stderr)
                self.assertEqual(result.stderr.count("lean: error: rank 0"), 1, result.stderr)

    def test_a_transfer_that_never_ends(self):
        """The step that stands still ends the job."""
        result = run(3, "--device", "emu", "--transport", "nccl", "--stall-timeout", 2, network="lose:6")
        self.assertEqual(result.returncode, 11, result.stderr)
        self.assertIn("has not moved for 2.0 s", result.stderr)


class WhatComesAndGoes(unittest.TestCase):
    def same(self, words, *options, partition):
        """The same bits and tokens as on a CPU, activations by NCCL; the answer."""
        expected = cli.lean(*words, "--device", "cpu")
        self.assertEqual(expected.returncode, 0, expected.stderr)
        result = ranks.lean(len(partition.split(",")), *words, "--device", "emu", "--transport", "nccl",
                            "--partition", partition, *options, **GPUS, LEAN_EMU_NCCL="delay:1")
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.assertEqual(bits(answer), bits(json.loads(expected.stdout)))
        for rank in answer["effective"]["ranks"][1:]:
            self.assertEqual(rank["transport"], "nccl")
            self.assertGreater(rank["received_device_bytes"], 0)
        return answer

    def test_drafts(self):
        """Steps of several rows, of which some are taken back."""
        text = "the kernel is a program. the kernel is"
        ids = json.loads(cli.lean("tokenize", serve.DEMO, "--json", input=text).stdout)["ids"]
        words = ["eval", serve.DEMO, "--ids", ",".join(map(str, ids)), "-n", 10, "--prompt-lookup", "on", "--mtp",
                 "off", "--ctx", 128, "--prefill-chunk", 64, "--json"]
        answer = self.same(words, partition="1,2,1")
        self.assertGreater(answer["effective"]["drafts_accepted"], 0)

    def test_experts(self):
        """Devices with slots for few of their experts."""
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, "model.gguf")
            made = cli.lean("synth", "qwen3moe", "Q8_0", "--layers", 3, "--experts", 64, "-o", model)
            self.assertEqual(made.returncode, 0, made.stderr)
            words = ["eval", model, "--ids", ",".join(map(str, IDS)), "-n", 4, "--ctx", 256, "--prefill-chunk", 64,
                     "--json"]
            effective = self.same(words, "--vram", "45M", partition="1,1,1")["effective"]
        for rank in effective["ranks"]:
            self.assertTrue(0 < rank["device_slots"] < 64, rank)
        decode = effective["experts"]["device"]["decode"]
        self.assertGreater(decode["hits"], 0)
        self.assertGreater(decode["on_cpu"] + decode["copied"], 0)


class Loss(unittest.TestCase):
    def test_a_rank_that_dies(self):
        """With transfers under way, which nobody answers any more."""
        job = jobs.Job()
        self.addCleanup(job.kill)
        server = serve.Server(*jobs.options(3, "--device", "emu", "--transport", "nccl", "--parallel", 3),
                              "--ctx", 512, model=MODEL,
                              env={**job.env, **GPUS, "LEAN_EMU_NCCL": "delay:20"})
        self.addCleanup(server.__exit__, AssertionError, None, None)
        with contextlib.closing(server.connect(timeout=60)) as connection:
            body = {"prompt": "go on", "max_tokens": 400, "ignore_eos": True, "stream": True}
            connection.request("POST", "/v1/completions", json.dumps(body))
            response = connection.getresponse()
            for _ in range(4):  # it has begun
                response.readline()
            os.kill(job.rank(1), 9)
            rest = response.read().decode()
        self.assertIn("rank_lost", rest)
        self.assertNotIn("[DONE]", rest)
        self.assertEqual(server.process.wait(20), 11, server.log())
        job.assert_gone()


if __name__ == "__main__":
    unittest.main(verbosity=2)
