"""bench/tables/make.py on the demonstration model: the rows, where they go in a file, and README's table, which goes
on where it was interrupted."""
import contextlib
import io
import json
import os
import re
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


def readme(tables, *words):
    """README's table, made in this process; its cells and what was told meanwhile."""
    out, said = io.StringIO(), io.StringIO()
    sys.argv = ["make.py", *words, "--readme", "--quick", "--program", cli.LEAN]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        tables.main()
    lines = [line for line in out.getvalue().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]], said.getvalue()


def check_readme(folder):
    """Kinds that count stand in for those that take minutes: what is kept is not measured again, a failure is."""
    sys.path.insert(0, os.path.dirname(MAKE))
    import make as tables
    import measures
    calls = []

    def fake(name, fails):
        def measured(args, path, spec):
            calls.append(name)
            if fails and calls.count(name) == 1:
                raise measures.CannotMeasure("the peer is | not here")
            return [measures.row(name, "tok/s", [30, 33], [10, 11]),
                    measures.row("gap", "s", [0.5], [2], more=False), measures.row("alone", "tok/s", [123.4])]
        return measured

    measures.KINDS = {kind: fake(kind, kind == "gap") for kind in measures.KINDS}
    with open(os.path.join(os.path.dirname(MAKE), "readme.json"), encoding="utf-8") as file:
        n_missing = sum(spec["model"] != "demo" for spec in json.load(file))
    rows, said = readme(tables, folder)
    assert len(rows) == n_missing + 3 and sum("not here" in row[2] for row in rows) == n_missing, rows
    mine = [row for row in rows if row[1] == "real"]
    assert [row[2:5] for row in mine] == [["31.5 (30.0-33.0)", "10.5 (10.0-11.0)", "3.00 (3.00-3.00)"],
                                          ["0.50", "2.00", "4.00"], ["123", "", ""]], mine
    assert calls == ["pipeline"] and "(kept)" not in said
    again, said = readme(tables, folder)
    assert again == rows and calls == ["pipeline"] and said.count("(kept)") == 1, said
    with open(os.path.join(folder, "measured.jsonl"), "a", encoding="utf-8") as file:
        file.write('\n{"key": "of a call that was kil')
    assert readme(tables, folder)[0] == rows and calls == ["pipeline"]
    readme(tables, folder, "--again")
    assert calls == ["pipeline"] * 2
    for name in ("moe-2g", "35b"):  # a file that is one, for the kinds that fail and then do not
        os.symlink(serve.DEMO, os.path.join(folder, name + ".gguf"))
    rows, _ = readme(tables, folder, "moe-2g")
    assert any(row[2] == "not measured: the peer is \\| not here" for row in rows), rows
    rows, _ = readme(tables, folder, "moe-2g")
    assert calls.count("gap") == 2 and calls.count("against") == 1 and all(row[1] == "real" for row in rows), calls


def check_machines():
    """Five models in six machines, by arithmetic: more of either memory is not slower, and the 35B fits into 24 GiB."""
    script = os.path.join(os.path.dirname(MAKE), "tiers.py")
    run = subprocess.run([sys.executable, script, "--program", cli.LEAN], capture_output=True, text=True,
                         env=cli.environment(), timeout=60, check=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines()[2:]]
    assert len(rows) == 30 and [row[2] for row in rows[2:6]] == ["100%"] * 4, rows
    for before, row in zip(rows, rows[1:]):
        assert before[0] != row[0] or float(before[7]) <= float(row[7]), (before, row)
        assert float(row[6]) <= float(row[7]) <= float(row[8]), row


def main():
    check_machines()
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
        check_readme(folder)
    print("bench tables: rows, files, README's table, resumed")


if __name__ == "__main__":
    main()
