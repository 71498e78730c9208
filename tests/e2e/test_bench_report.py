"""lean bench report: the page and the Markdown of a sweep, with plots where there is gnuplot and
without; what two folders differ in, and when that is worse."""
import json
import os
import re
import shutil
import tempfile
from html.parser import HTMLParser

import cli

SWEEP = """
axis { field: "model.ref" value: "demo" }
axis { field: "tiers.policy" value: ["lfru", "lru"] }
axis { field: "tiers.expert_slots" value: ["25%", "50%", "75%", "0"] }
test { n_prompt: 16 n_gen: 8 }
repeat: 3
"""
TRACE = os.path.join(cli.SOURCE_DIR, "tests/data/demo/traces/chat.trace")


class Page(HTMLParser):
    """Checks that elements nest, and counts them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.count, self.outside = [], {}, []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.outside += [value for name, value in attributes
                         if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:"))]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def report(*args, code=0, **variables):
    run = cli.lean("bench", "report", *args, **variables)
    assert run.returncode == code, (run.returncode, run.stdout, run.stderr)
    return run


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def check_page(out, n_figure, **variables):
    run = report(out, "--trace", TRACE, "--profile", os.path.join(out, "a.profile"), **variables)
    page, md = Page(read(out, "report.html")), read(out, "report.md")
    assert page.count.get("svg", 0) == n_figure and not page.outside, (page.count, page.outside)
    assert page.count["h2"] == n_figure + 2, page.count
    rows = [line for line in md.splitlines() if re.match(r"\| l(f)?ru \|", line)]
    assert len(rows) == 12 and all(line.count("|") == rows[0].count("|") for line in rows), md
    assert re.search(r"\| \{.*lru.*\} \| 2 \| .*expert-slots", md), "the failed cases"
    pictures = re.findall(r"\]\((.*)\)", md)
    assert len(pictures) == n_figure
    for name in pictures:
        assert read(out, name).startswith("<svg")
    return run


def slower(out, other, factor):
    """The same results, some of them slower."""
    os.mkdir(other)
    with open(os.path.join(other, "results.jsonl"), "w", encoding="utf-8") as file:
        for line in read(out, "results.jsonl").splitlines():
            row = json.loads(line)
            if row.get("test") == "tg8":
                row["samples_tok_s"] = [factor * (100 + i / 10) for i in range(3)]
            elif row["status"] == "ok":
                row["samples_tok_s"] = [50, 90, 130]
            file.write(json.dumps(row) + "\n")


def main():
    folder = tempfile.mkdtemp(prefix="lean-report-")
    try:
        out, path = os.path.join(folder, "out"), os.path.join(folder, "sweep.textproto")
        with open(path, "w", encoding="utf-8") as file:
            file.write(SWEEP)
        assert cli.lean("bench", "sweep", path, "-o", out).returncode == 0
        assert cli.lean("profile", "record", "demo", "-o", os.path.join(out, "a.profile"), "--text",
                        os.path.join(cli.SOURCE_DIR, "tests/data/demo/traces/chat.txt")
                        ).returncode == 0
        run = check_page(out, 0, PATH="/nowhere")
        assert "no gnuplot" in run.stderr and "no gnuplot" in read(out, "report.md")
        if shutil.which("gnuplot"):
            check_page(out, 5)
            assert "trace: bound (Belady)" in read(out, "report.html")
        else:
            print("plots are not tried: there is no gnuplot")
        for name, factor in (("old", 1.0), ("same", 0.99), ("slow", 0.8), ("fast", 1.2)):
            slower(out, os.path.join(folder, name), factor)
        old = os.path.join(folder, "old")
        report("--compare", old, os.path.join(folder, "same"))
        report("--compare", old, os.path.join(folder, "fast"))
        assert report("--compare", old, os.path.join(folder, "slow"), code=10).stdout.count(
            "worse") == 6
        report("--compare", old, os.path.join(folder, "slow"), "--threshold", 30)
        report(code=2)
        report(folder, code=3)
        report(out, "--trace", path, code=5, PATH="/nowhere")
    finally:
        shutil.rmtree(folder)
    print("bench report: page, Markdown, plots, comparison")


if __name__ == "__main__":
    main()
