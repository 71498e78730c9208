"""`lean inspect`: models, files that are no model, memory, JSON."""
import fcntl
import json
import os
import tempfile
import unittest

from cli import lean


class Inspect(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="lean-test-inspect-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = os.path.join(cls.folder.name, "model.gguf")
        result = lean("synth", "qwen35moe", "Q4_K_M", "-o", cls.model, "--mtp")
        assert result.returncode == 0, result.stderr

    def json(self, *args):
        result = lean("inspect", "--json", *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_json(self):
        report = self.json(self.model, "--memory", "--tensors", "--template", "--ctx", 1000)
        self.assertEqual(report["architecture"], "qwen35moe")
        self.assertTrue(report["runs"])
        self.assertEqual(report["bytes"], os.path.getsize(self.model))
        model = report["model"]
        self.assertEqual((model["layers"], model["layers_recurrent"], model["layers_mtp"]),
                         (4, 3, 1))
        self.assertEqual((model["n_expert"], model["n_expert_used"]), (12, 3))
        self.assertEqual(sum(g["tensors"] for g in report["weights"]), len(report["tensors"]))
        self.assertEqual(sum(g["bytes"] for g in report["weights"]),
                         sum(t["bytes"] for t in report["tensors"]))
        self.assertEqual(report["tokenizer"]["n_vocab"], 512)
        self.assertIn(report["tokenizer"]["eos"], report["tokenizer"]["ends"])
        self.assertTrue(report["template"]["reasoning_switch"])
        self.assertIn("<|im_start|>", report["template"]["source"])
        memory = report["memory"]
        self.assertEqual(memory["n_ctx"], 1000)
        self.assertTrue(memory["fits"])
        self.assertEqual(memory["total"], sum(memory[k] for k in (
            "weights", "kv_cache", "recurrent_state", "angles", "scratch", "program")))

    def test_text(self):
        result = lean("inspect", self.model, "--tensors", "--tokenizer", "--memory")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        for part in ("3 gated delta net, 1 attention over all; 1 for multi-token prediction",
                     "12 in a layer, 3 per token, and a shared one", "routed experts",
                     "pre-tokenizer qwen35, 512 tokens", "<|im_end|>", "blk.0.ffn_gate_exps.weight",
                     "longest context that fits"):
            self.assertIn(part, result.stdout)

    def test_template_alone(self):
        result = lean("inspect", self.model, "--template")
        self.assertTrue(result.stdout.startswith("{%- for message in messages %}"))

    def test_check(self):
        self.assertEqual(lean("inspect", self.model, "--check", "--ctx", 100).returncode, 0)
        result = lean("inspect", self.model, "--check", "--ram", "100M", "--ctx", 4096)
        self.assertEqual(result.returncode, 9)
        self.assertIn("the model needs", result.stderr)
        self.assertIn("100 MiB may be used", result.stderr)

    def test_ranks(self):
        """The cut into ranks: all layers, in order, each rank's part of the whole."""
        n_layer = self.json(self.model)["model"]["layers"]
        whole = self.json(self.model, "--memory", "--ctx", 1000)["memory"]
        for n_rank in (2, 3):
            ranks = self.json(self.model, "--memory", "--ctx", 1000,
                              "--ranks", n_rank)["memory"]["ranks"]
            self.assertEqual([r["rank"] for r in ranks], list(range(n_rank)))
            self.assertEqual(ranks[0]["layer_begin"], 0)
            self.assertEqual(ranks[-1]["layer_end"], n_layer)
            for before, after in zip(ranks, ranks[1:]):
                self.assertEqual(before["layer_end"], after["layer_begin"])
            self.assertEqual(sum(r["expert_bytes"] for r in ranks), whole["routed_experts"])
            self.assertTrue(all(r["fits"] and r["ms_per_token"] > 0 for r in ranks))
        given = self.json(self.model, "--memory", "--ranks", 2,
                          "--partition", f"1,{n_layer - 1}")["memory"]["ranks"]
        self.assertEqual([r["layer_end"] for r in given], [1, n_layer])
        table = lean("inspect", self.model, "--memory", "--ranks", 2).stdout
        self.assertIn("cut into 2 ranks", table)
        self.assertIn("sets the pace", table)
        for bad, code, text in ((("--ranks", n_layer + 1), 2, "layers to give them"),
                                (("--ranks", 2, "--partition", "1"), 2, "is for 1 ranks"),
                                (("--ranks", 2, "--partition", "1,x"), 2, "no list of layers"),
                                (("--ranks", 2, "--partition", "1,1,"), 2, "no list of layers"),
                                (("--ranks", 2, "--partition", "1,99"), 2, "the model"),
                                (("--ranks", 2, "--ram", "10M"), 9, "no cut into 2 ranks fits")):
            result = lean("inspect", self.model, "--memory", "--ctx", 1000, *bad)
            self.assertEqual(result.returncode, code, result.stderr)
            self.assertIn(text, result.stderr)

    def test_a_stopped_process_that_measures(self):
        """Its lock is not waited for for ever."""
        with tempfile.TemporaryDirectory() as cache:
            words = ("inspect", self.model, "--memory", "--ranks", 2)
            self.assertEqual(lean(*words, XDG_CACHE_HOME=cache).returncode, 0)
            machines = os.path.join(cache, "lean/machines")
            (name,) = os.listdir(machines)
            with open(os.path.join(machines, name)) as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                self.assertEqual(lean(*words, XDG_CACHE_HOME=cache).returncode, 0)

    def test_vocabulary_only(self):
        """A file without tensors is shown, with the reason why it does not run."""
        path = os.path.join(self.folder.name, "vocab.gguf")
        with open(self.model, "rb") as file:
            data = bytearray(file.read())
        data[8:16] = bytes(8)  # no tensors; what follows the keys is then ignored
        with open(path, "wb") as file:
            file.write(data)
        report = self.json(path)
        self.assertFalse(report["runs"])
        self.assertIn("token_embd.weight", report["reason"])
        self.assertEqual(report["tokenizer"]["pre"], "qwen35")
        self.assertNotEqual(lean("inspect", path, "--check").returncode, 0)

    def test_not_a_model(self):
        self.assertEqual(lean("inspect", __file__).returncode, 5)
        self.assertEqual(lean("inspect", "/no/such/file").returncode, 3)
        self.assertEqual(lean("inspect").returncode, 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
