"""lean config: precedence of the layers, origins, checks; the example documents everything."""
import json
import os
import re
import tempfile
import unittest

from cli import SOURCE_DIR, lean

EXAMPLE = os.path.join(SOURCE_DIR, "configs/example.textproto")


def flatten(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict) and "origin" not in value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class Precedence(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        os.mkdir(self.path("lean"))
        self.env = {"XDG_CONFIG_HOME": self.folder.name}

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def get(self, key, *args, **env):
        return lean("config", "get", key, *args, **self.env, **env).stdout.strip()

    def test_each_layer_hides_the_ones_below(self):
        key = "serve.parallel"
        self.assertEqual(self.get("serve.max_n"), "32")
        self.assertEqual(self.get(key), "")
        self.write("lean/config.textproto", "serve { parallel: 2 } compute { threads: 5 }")
        self.assertEqual(self.get(key), "2")
        named = self.write("named", "serve { parallel: 3 }")
        self.assertEqual(self.get(key, LEAN_CONFIG=named), "3")
        option = self.write("option", "serve { parallel: 4 }")
        self.assertEqual(self.get(key, "--config", option, LEAN_CONFIG=named), "4")
        self.assertEqual(self.get(key, "--config", option, LEAN_SERVE_PARALLEL="6"), "6")
        self.assertEqual(self.get(key, "--config", option, LEAN_SERVE_PARALLEL=""), "4")
        self.assertEqual(self.get("compute.threads", "--config", option), "5")

    def test_origins(self):
        user = self.write("lean/config.textproto", "compute { kv_type: Q8_0 }")
        shown = lean("config", "show", "--json", "--origin", LEAN_MODEL_CTX="4096",
                     **self.env)
        values = dict(flatten(json.loads(shown.stdout)))
        self.assertEqual(values["compute.kv_type"], {"value": "q8_0", "origin": user})
        self.assertEqual(values["model.ctx"], {"value": 4096, "origin": "LEAN_MODEL_CTX"})
        self.assertEqual(values["serve.max_n"], {"value": 32, "origin": "built-in default"})

    def test_overrides_rank_above_their_file_only(self):
        host = os.uname().nodename
        user = self.write("lean/config.textproto",
                          f'override {{ host: "{host}" set {{ compute {{ threads: 7 }} }} }}\n'
                          'override { host: "another" set { compute { kernels: REF } } }\n'
                          'override { rank: 0 set { serve { parallel: 9 } } }\n'
                          'override { rank: 1 set { serve { parallel: 10 } } }\n'
                          'compute { threads: 1 } serve { parallel: 1 }')
        self.assertEqual(self.get("compute.threads"), "7")
        self.assertEqual(self.get("serve.parallel"), "9")
        self.assertEqual(self.get("compute.kernels"), "auto")
        named = self.write("named", "compute { threads: 2 }")
        self.assertEqual(self.get("compute.threads", "--config", named), "2")
        shown = lean("config", "show", "--json", "--origin", **self.env).stdout
        self.assertEqual(dict(flatten(json.loads(shown)))["compute.threads"]["origin"],
                         f"override in {user}")

    def test_what_is_shown_can_be_read_again(self):
        first = lean("config", "show", "--config", EXAMPLE).stdout
        again = lean("config", "show", "--config", self.write("again", first)).stdout
        self.assertEqual(first, again)

    def test_mistakes_name_file_line_and_column(self):
        bad = self.write("bad", "serve {\n  paralel: 2\n}")
        for args in (["config", "check", bad], ["config", "show", "--config", bad]):
            result = lean(*args)
            self.assertEqual(result.returncode, 2)
            self.assertEqual(result.stderr, f"lean: error: {bad}:2:3: unknown field paralel in "
                                            "lean.Serve, did you mean parallel?\n")
        low = self.write("low", "serve { parallel: 0 }")
        self.assertEqual(lean("config", "check", low).stderr,
                         f"lean: error: {low}: serve.parallel must be at least 1, got 0\n")
        nested = self.write("nested", "override { set { override { rank: 0 } } }")
        self.assertIn("an override inside an override", lean("config", "check", nested).stderr)
        self.assertEqual(lean("config", "show", "--config", self.path("absent")).returncode, 3)

    def test_a_wrong_variable_is_an_error_and_an_unknown_one_a_warning(self):
        wrong = lean("config", "show", LEAN_COMPUTE_KERNELS="avx3")
        self.assertEqual(wrong.returncode, 2)
        self.assertIn("LEAN_COMPUTE_KERNELS must be one of auto|ref|avx2|avx512", wrong.stderr)
        self.assertIn("unknown environment variable LEAN_COMPUTE_KERNEL\n",
                      lean("config", "show", LEAN_COMPUTE_KERNEL="ref").stderr)


class Example(unittest.TestCase):
    def test_it_is_right_and_sets_every_setting(self):
        self.assertEqual(lean("config", "check", EXAMPLE).returncode, 0)
        shown = lean("config", "show", "--json", "--origin", "--config", EXAMPLE)
        values = dict(flatten(json.loads(shown.stdout)))
        with open(os.path.join(SOURCE_DIR, "launch/config.c")) as config, \
             open(os.path.join(SOURCE_DIR, "launch/options.c")) as options:
            keys = re.findall(r'\.key = "([a-z0-9_.]+)"', config.read() + options.read())
        self.assertGreater(len(keys), 20)
        for key in keys:
            self.assertEqual(values[key]["origin"], EXAMPLE, key)


if __name__ == "__main__":
    unittest.main()
