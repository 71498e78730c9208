"""bench/tables/make.py on the demonstration model: the rows, and where they go in a file."""
import os
import subprocess
import sys
import tempfile

import cli
import serve

MAKE = os.path.join(cli.SOURCE_DIR, "bench/tables/make.py")


def make(*args, code=0):
    run = subprocess.run([sys.executable, MAKE, *args, "--program", cli.LEAN, "--prompt", "16",
                          "--tokens", "4", "--repeat", "2"], capture_output=True, text=True,
                         env=cli.environment(), timeout=120)
    assert run.returncode == code, (run.returncode, run.stdout, run.stderr)
    return run


def main():
    with tempfile.TemporaryDirectory(prefix="lean-tables-") as folder:
        os.symlink(serve.DEMO, os.path.join(folder, "demo.gguf"))
        table = [line.split("|")[1:-1] for line in make(folder).stdout.splitlines()
                 if line.startswith("|")]
        assert len({len(row) for row in table}) == 1 and len(table) == 5, table
        rows = [[cell.strip() for cell in row] for row in table[2:]]
        assert [row[1:3] for row in rows] == [["real", "all in memory"],
                                              ["real", "--expert-slots 50%"],
                                              ["real", "--expert-slots 25%"]], rows
        assert [row[6] for row in rows] == ["", "50.0%", "25.0%"]
        assert all(" ± " in row[3] and " ± " in row[4] and " to " in row[5] for row in rows)
        page = os.path.join(folder, "page.md")
        with open(page, "w", encoding="utf-8") as file:
            file.write("before\n<!-- bench/tables -->\nold\n<!-- end of bench/tables -->\nafter\n")
        make(folder, "demo", "--into", page)
        with open(page, encoding="utf-8") as file:
            text = file.read()
        assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n")
        assert "old" not in text and text.count("the demonstration model") == 3
        make(folder, "nothing", code=2)
        make(folder, "35b", code=1)
        make(folder, "--into", os.path.join(folder, "demo.gguf.md"), code=1)
    print("bench tables: rows, files")


if __name__ == "__main__":
    main()
