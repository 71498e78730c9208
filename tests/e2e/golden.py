"""Golden models: where they are, and runs of `lean eval` on them."""
import array
import json
import math
import os
import subprocess
import tempfile

import cli

SUBSET = os.path.join(cli.SOURCE_DIR, "tests/data/golden")


def folder():
    """The whole golden data: LEAN_GOLDEN_DIR, or beside the repository; None: the subset only."""
    for path in (os.environ.get("LEAN_GOLDEN_DIR"), os.path.join(cli.SOURCE_DIR, "../shared/golden")):
        if path and os.path.isdir(os.path.join(path, "models")):
            return path
    return None


def evaluate(model, ids, *options, logits=False):
    """What `lean eval --json` says of a model file and ids; with logits also the rows. Where the
    engine runs may be said in LEAN_GOLDEN_FLAGS; the reference mode runs on the CPU only."""
    out = tempfile.NamedTemporaryFile() if logits else None
    args = ["eval", model, "--ids", ",".join(map(str, ids)), "--json", *options,
            *([] if "--reference" in options else os.environ.get("LEAN_GOLDEN_FLAGS", "").split())]
    result = cli.lean(*args, *(["--logits", out.name] if out else []))
    assert result.returncode == 0, f"{args}: exit {result.returncode}: {result.stderr}"
    answer = json.loads(result.stdout)
    if not out:
        return answer
    with out:
        values = array.array("f", out.read())
    n = len(values) // len(ids)
    return answer, [values[i * n:(i + 1) * n] for i in range(len(ids))]


def rms(values):
    return math.sqrt(sum(v * v for v in values) / len(values))


def deviation(values):
    mean = sum(values) / len(values)
    return rms([v - mean for v in values])


def rel_rms(got, want):
    """Rms of the difference over the standard deviation of what is wanted."""
    return rms([a - b for a, b in zip(got, want)]) / deviation(want)
