"""Ten published chat templates render their conversations to the bytes that jinja2 gives.

They are golden data, not part of the repository (their licences differ): LEAN_GOLDEN_DIR says
where they are. Without them the test is skipped.
"""
import glob
import os
import sys
import unittest

from templates import differences, golden_folder, load_cases

FOLDER = golden_folder()


class Published(unittest.TestCase):
    def test_published_templates(self):
        paths = [path for path in sorted(glob.glob(os.path.join(FOLDER, "templates", "*.json")))
                 if os.path.basename(path) != "probes.json"]
        self.assertEqual(len(paths), 10)
        for path in paths:
            with self.subTest(os.path.basename(path)):
                self.assertEqual(differences(load_cases(path)), [])


if __name__ == "__main__":
    if not FOLDER:
        print("skipped: no golden data; LEAN_GOLDEN_DIR does not name it")
        sys.exit(77)
    unittest.main()
