"""The three reference machines of configs/: each model's true shape is planned for them, as a file
whose weights are holes, and what is expected of it agrees with the cost model's published table."""
import json
import os
import tempfile
import unittest

from cli import lean

CONFIGS = os.path.join(os.path.dirname(__file__), "../../configs")
MACHINES = ("minimal", "prosumer", "enthusiast")
MODELS = ("qwen3.5-35b-a3b", "qwen3-coder-next", "qwen3.5-122b-a10b", "qwen3.5-397b-a17b",
          "trinity-large-thinking")
UNSUPPORTED = 9


class Machines(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="lean-test-machines-")
        cls.addClassCleanup(cls.folder.cleanup)
        for model in MODELS:
            result = lean("synth", model, "Q4_K_M", "--hollow", "-o", cls.path(model))
            assert result.returncode == 0, result.stderr

    @classmethod
    def path(cls, model):
        return os.path.join(cls.folder.name, model + ".gguf")

    def inspect(self, model, *options):
        return lean("inspect", self.path(model), "--memory", "--check", "--json", "--ctx", 32768,
                    *options)

    def plan(self, model, machine, *options):
        result = self.inspect(model, "--config", os.path.join(CONFIGS, machine + ".textproto"),
                              *options)
        self.assertEqual(result.returncode, 0, (model, machine, result.stderr))
        return json.loads(result.stdout)["memory"]

    def test_files_are_hollow(self):
        info = os.stat(self.path("trinity-large-thinking"))
        self.assertGreater(info.st_size, 2e11)
        self.assertLess(512 * info.st_blocks, 64 << 20)

    def test_all_are_planned(self):
        """All layers are on the device; a larger machine has more experts there, and in memory."""
        for model in MODELS:
            before = (0, 0)
            for machine in MACHINES:
                plan = self.plan(model, machine)
                device, expected = plan["device"], plan["expected"]
                self.assertTrue(plan["fits"] and device["fits"], (model, machine))
                self.assertEqual(device["layer_begin"], 0, (model, machine))
                self.assertGreaterEqual(plan["prefill_chunk"], 512, (model, machine))
                shares = expected["vram_share"], expected["resident_share"]
                self.assertGreater(shares[0], before[0] if before[0] < 1 else 0, (model, machine))
                self.assertGreaterEqual(shares[1], max(shares[0], before[1]), (model, machine))
                self.assertEqual(device["paged"], shares[0] < 1, (model, machine))
                before = shares
        self.assertFalse(self.plan("qwen3.5-35b-a3b", "prosumer")["device"]["paged"])

    def test_what_is_expected(self):
        """Rows of the table that have such a machine, within 30%: its budgets are somewhat others,
        and it gives nothing to the activations of long chunks."""
        for model, machine, vram, ram, hit, serial in (
                ("qwen3.5-35b-a3b", "minimal", 360, 42, 0.92, 119),
                ("qwen3-coder-next", "minimal", 360, 42, 0.75, 36),
                ("qwen3.5-122b-a10b", "minimal", 360, 42, 0.53, 8.4),
                ("qwen3-coder-next", "enthusiast", 936, 65, 1, 233),
                ("qwen3.5-122b-a10b", "enthusiast", 936, 65, 0.96, 107),
                ("qwen3.5-397b-a17b", "enthusiast", 936, 65, 0.72, 9.6),
                ("trinity-large-thinking", "enthusiast", 936, 65, 0.73, 12.9)):
            expected = self.plan(model, machine, "--vram-gbps", vram, "--ram-gbps", ram,
                                 "--disk-gbps", 6)["expected"]
            self.assertAlmostEqual(expected["vram_hit_rate"], hit, delta=0.06, msg=(model, machine))
            self.assertLess(abs(expected["serial_tok_s"] / serial - 1), 0.3, (model, machine, expected))
            self.assertLessEqual(expected["link_tok_s"], expected["serial_tok_s"])
            self.assertLessEqual(expected["serial_tok_s"], expected["ideal_tok_s"])

    def test_what_does_not_fit(self):
        result = self.inspect("trinity-large-thinking", "--vram", "6G", "--gpu-layers", 60)
        self.assertEqual(result.returncode, UNSUPPORTED, result.stderr)
        self.assertRegex(result.stderr, "cuda of 6.00 GiB: 60 layers need .* fewest experts that "
                         "work.* 6.00 GiB may be used")
        self.assertRegex(result.stderr, "hint: --gpu-layers [0-9]+ fits")
        result = self.inspect("trinity-large-thinking", "--vram", "6G", "--ram", "1G")
        self.assertEqual(result.returncode, UNSUPPORTED, result.stderr)
        self.assertIn("1.00 GiB may be used", result.stderr)

    def test_fewer_layers(self):
        """Where the dense weights of all layers do not fit there are fewer, with experts again."""
        plan = json.loads(self.inspect("trinity-large-thinking", "--vram", "6G", "--ram",
                                       "20G").stdout)["memory"]
        self.assertGreater(plan["device"]["layer_begin"], 0)
        self.assertTrue(plan["fits"] and plan["device"]["fits"] and plan["device"]["paged"])
        self.assertGreaterEqual(plan["prefill_chunk"], 512)
        self.assertTrue(any("few are found" in note for note in plan["notes"]), plan["notes"])

    def test_two_cards(self):
        """Of several ranks each has a device of that size, and the cut weighs them."""
        plan = self.plan("qwen3.5-122b-a10b", "enthusiast", "--vram", "23.5G", "--ram", "28G",
                         "--ranks", 2)
        ranks = plan["ranks"]
        self.assertEqual([rank["device"]["layer_begin"] for rank in ranks],
                         [rank["layer_begin"] for rank in ranks])
        for rank in ranks:
            self.assertTrue(rank["fits"])
            self.assertGreater(rank["device"]["hit_rate"], 0.9)


unittest.main(verbosity=2)
