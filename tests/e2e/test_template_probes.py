"""Small templates, one feature each, render to the bytes that jinja2 gives: the probes of
tests/data/templates, described in the README.md there.
"""
import os
import unittest

from templates import SOURCE, differences, load_cases, render

# Beyond 64 bits: the engine refuses such integers with a clear error.
WIDE_INTEGERS = {"json_numbers/8", "json_numbers/9"}


class Probes(unittest.TestCase):
    cases = load_cases(os.path.join(SOURCE, "tests", "data", "templates", "probes.json"))

    def test_probes_render_as_jinja2_does(self):
        cases = [case for case in self.cases if case["name"] not in WIDE_INTEGERS]
        self.assertEqual(len(cases), 738)
        self.assertEqual(differences(cases), [])

    def test_integers_beyond_64_bits_are_refused(self):
        cases = [case for case in self.cases if case["name"] in WIDE_INTEGERS]
        for answer in render(cases):
            self.assertEqual(answer["kind"], "input")


if __name__ == "__main__":
    unittest.main()
