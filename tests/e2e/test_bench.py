"""lean bench on a model: every format says the same, arms and ranks, and what is refused."""
import csv
import ctypes
import io
import json
import math
import os
import re
import sqlite3
import statistics
import tempfile

import cli
import ranks

TINY = ("-p", 24, "-n", 6, "-r", 3, "--warmup", 0)


def bench(*args, code=0, **more):
    run = cli.lean("bench", *args, "--progress", "none", **more)
    assert run.returncode == code, (run.returncode, run.stderr)
    return run


def rows_of(*args, **more):
    return json.loads(bench(*args, "-o", "json", **more).stdout)


def check_numbers(row):
    """Statistics are those of the samples."""
    ns, rates = row["samples_ns"], row["samples_tok_s"]
    n_token = (row["n_prompt"] + row["n_gen"]) * row["n_seq"]
    assert len(ns) == row["repetitions"] and all(value > 0 for value in ns)
    for value, rate in zip(ns, rates):
        assert math.isclose(rate, n_token * 1e9 / value, rel_tol=1e-4), row["test"]
    for values, unit in ((ns, "ns"), (rates, "tok_s")):
        spread = statistics.stdev(values) if len(values) > 1 else 0
        for name, expected in (("mean", statistics.mean(values)), ("stddev", spread),
                               ("min", min(values)), ("median", statistics.median(values)),
                               ("max", max(values))):
            got = row[f"{name}_{unit}"]
            assert math.isclose(got, expected, rel_tol=1e-4, abs_tol=0.01), (name, got, expected)


def check_tests():
    rows = rows_of("demo", *TINY, "-pg", "8,4", "-d", "0,40", "-b", "1,2")
    names = [row["test"] for row in rows]
    plain = ["pp24", "tg6", "pp8+tg4"]
    assert names == [test + deep + wide for deep in ("", " @ d40") for wide in ("", " x2")
                     for test in plain], names
    for row in rows:
        check_numbers(row)
        longest = row["max_ns"] / 1e6
        assert 0 < row["ttft_ms"]["p50"] <= row["ttft_ms"]["p99"] <= longest, row["ttft_ms"]
        assert (row["itl_ms"] is None) == (row["n_gen"] == 0)
        if row["itl_ms"]:
            assert 0 < row["itl_ms"]["p50"] <= row["itl_ms"]["p99"] <= longest, row["itl_ms"]
        assert row["experts"] is None and row["load_s"] > 0
        assert row["effective"]["threads"] >= 1 and row["settings"]["kv_type"] == "f16"
        assert re.fullmatch("[0-9a-f]{16}", row["model"]["fingerprint"])
        assert row["host"]["memory_bytes"] > 0 and row["build"]["version"]
        assert "neither sampling nor tokenization" in row["timed"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["time"])


def check_drafts():
    """Of given tokens none is drafted; the model's own are, and often rightly."""
    given, = rows_of("demo", "-p", 0, "-n", 40, "-r", 1, "--mtp", "on")
    assert given["drafts"] is None
    # also behind what was only read before
    rows = rows_of("demo", "-p", 0, "-n", 40, "-r", 2, "-d", 20, "--greedy", "--mtp", "off,on",
                   "--prompt-lookup", "off")
    none, some = [row["drafts"] for row in rows]
    assert none == {"drafted": 0, "accepted": 0, "accept_rate": None}, none
    assert 10 < some["accepted"] <= some["drafted"], some
    assert math.isclose(some["accept_rate"], some["accepted"] / some["drafted"], rel_tol=1e-5)
    assert "greedy sampling" in rows[1]["timed"]
    table = bench("demo", "-p", 8, "-n", 40, "-r", 1, "--greedy", "--prompt-lookup", "on", "-d", 64)
    assert re.search(r"\| +drafts right \|", table.stdout) and re.search(r" \d+ of \d+ \|", table.stdout)


def check_formats():
    out = bench("demo", *TINY, "-o", "md", "-oe", "jsonl")
    lines = out.stdout.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1, table
    assert re.fullmatch(r"\| model +\| +size \| +params \| ctk +\| test \| +t/s \|", table[0])
    assert re.fullmatch(r"\| -+ \| -+: \| -+: \| -+ \| -+: \| -+: \|", table[1]), table[1]
    assert re.search(r"\| pp24 \| +\d+\.\d\d ± \d+\.\d\d \|$", table[2]), table[2]
    assert any("neither sampling nor tokenization" in line for line in lines[len(table):])
    also = [json.loads(line) for line in out.stderr.splitlines() if line.startswith("{")]
    assert [row["test"] for row in also] == ["pp24", "tg6"]

    lines = bench("demo", *TINY, "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["test"] for line in lines] == ["pp24", "tg6"]
    assert [row["test"] for row in json.loads(bench("demo", *TINY, "--json").stdout)] == \
        ["pp24", "tg6"]

    sheet = list(csv.DictReader(io.StringIO(bench("demo", *TINY, "-o", "csv").stdout)))
    assert [row["test"] for row in sheet] == ["pp24", "tg6"]
    assert len(json.loads(sheet[0]["samples_ns"])) == 3 and sheet[0]["settings_kv_type"] == "f16"

    base = sqlite3.connect(":memory:")
    base.executescript(bench("demo", *TINY, "-o", "sql").stdout)
    found = base.execute("SELECT test, n_prompt, mean_tok_s > 0 FROM lean_bench").fetchall()
    assert found == [("pp24", 24, 1), ("tg6", 0, 1)], found


def check_arms():
    rows = rows_of("demo", "-p", 8, "-n", 4, "-r", 1, "-t", "1-2", "--expert-slots", "50%,min")
    arms = [(row["settings"]["threads"], row["settings"]["expert_slots"], row["test"])
            for row in rows]
    assert arms == [(threads, slots, test) for threads in "12" for slots in ("50%", "min")
                    for test in ("pp8", "tg4")], arms
    for row in rows:
        experts = row["experts"]
        assert experts["lookups"] == experts["hits"] + experts["joined"] + experts["misses"] > 0
        assert 0 < experts["resident_share"] < 1
    # the same tokens in each: as many lookups
    for test in ("pp8", "tg4"):
        assert len({row["experts"]["lookups"] for row in rows if row["test"] == test}) == 1
    table = bench("demo", "-p", 8, "-n", 0, "-r", 1, "-t", "1,2").stdout.splitlines()
    assert "threads" in table[0] and "kernels" not in table[0], table[0]
    # one that cannot be opened does not keep the others from it
    run = bench("demo", "-p", 8, "-n", 0, "-r", 1, "--ram", "1M,1G", "-o", "json", code=9)
    assert [row["settings"]["ram"] for row in json.loads(run.stdout)] == ["1G"]
    assert "--ram 1M" in run.stderr, run.stderr


def check_prompts():
    path = os.path.join(cli.HOME, "text")
    with open(path, "w", encoding="utf-8") as file:
        file.write("Some words that go round and round. " * 3)
    for prompts in ("random", "text", "@" + path):
        assert rows_of("demo", "-p", 200, "-n", 0, "-r", 1, "--prompts", prompts)[0][
            "prompts"] == prompts
    lookups = [rows_of("demo", "-p", 50, "-n", 0, "-r", 1, "--expert-slots", "50%", "--seed", seed)
               [0]["experts"]["lookups"] for seed in (1, 1, 2)]
    assert lookups[0] == lookups[1] != lookups[2], lookups


def check_refused():
    for words, code, expected in (
            (("-p", "0", "-n", "0"), 2, "nothing to test"),
            (("-pg", "8"), 2, "-pg"),
            (("-o", "xml"), 2, "-o must be"),
            (("--prompts", "poem"), 2, "--prompts"),
            (("--prompts", "@/nowhere"), 3, "/nowhere"),
            (("-t", "0"), 2, "--threads"),
            (("-t", "1,x"), 2, "--threads"),
            (("-p", "9-3"), 2, "--n-prompt"),
            (("--ctx", "16"), None, "context"),
            (("-p", "5000000"), None, "pp5000000 needs a context of 5000000 tokens"),
            (("-d", "500000"), None, "was trained with"),
            (("-p", "99999999"), None, "must be at most 16777216")):
        run = cli.lean("bench", "demo", *words)
        assert run.returncode == code or (code is None and run.returncode), (words, run)
        assert expected in run.stderr and run.stderr.count("error:") == 1, (words, run.stderr)
    assert cli.lean("bench", "/nowhere.gguf").returncode == 3


def check_predictions():
    """Bytes as `lean synth` has them; more memory is never slower; JSON says what the text says."""
    words = ("bench", "predict", "qwen3.5-122b-a10b", "Q4_K_M", "--ram", "2G,12G-96G*2")
    found = json.loads(cli.lean(*words, "--json").stdout)
    size = cli.lean("synth", "qwen3.5-122b-a10b", "Q4_K_M", "--dry-run").stdout
    n_bytes = found["dense_bytes"] + found["expert_bytes"] + found["embedding_bytes"]
    assert abs(n_bytes / 1e9 / float(re.search(r"\((.*) GB\)", size)[1]) - 1) < 0.01, (n_bytes, size)
    rows = found["predictions"]
    assert [row["fits"] for row in rows] == [False, True, True, True, True]
    for one, more in zip(rows[1:], rows[2:]):
        for key in ("resident_share", "hit_rate", "serial_tok_s", "ideal_tok_s"):
            assert one[key] <= more[key], (one, more)
    last = rows[-1]
    assert last["hit_rate"] == 1 and last["serial_tok_s"] == last["ideal_tok_s"]
    token_s = (found["dense_bytes"] / found["dense_bytes_s"] +
               8 / 256 * found["expert_bytes"] / found["expert_bytes_s"] + 48 * found["layer_s"])
    assert math.isclose(last["serial_tok_s"], 1 / token_s, rel_tol=1e-6)
    text = cli.lean(*words).stdout
    assert text.count("does not fit") == 1 and len(re.findall(r"%.* to .*\|", text)) == 4, text
    for row in rows[1:]:
        assert f"{100 * row['resident_share']:.1f}%" in text and f"{100 * row['hit_rate']:.1f}%" in text
    rates = ("--memory-gbps", "42", "--disk-gbps", "6", "--vram-gbps", "936")
    words = ("bench", "predict", "122b", "--ram", "57G", "--vram", "12G,24G", *rates)
    for name in (("lean-agent-122b",), ("lean-agent-122b:Q4_K_M",), ("122B",), ("122b:Q4_K_M",),
                 ("qwen3.5-122b-a10b", "Q4_K_M")):
        said = cli.lean(*words[:2], *name, *words[3:], "--json")
        assert said.returncode == 0, (name, said.stderr)
        rows = json.loads(said.stdout)["predictions"]
        assert [row["vram_bytes"] >> 30 for row in rows] == [12, 24]
        small, large = rows
        assert small["vram_share"] < large["vram_share"] < large["resident_share"] == 1
        for row in rows:
            assert row["link_tok_s"] < row["serial_tok_s"] < row["ideal_tok_s"], row
        # of 24 GB beside DDR4 the published estimates are 40, 63 and 99
        for key, published in (("link_tok_s", 40), ("serial_tok_s", 63), ("ideal_tok_s", 99)):
            assert 0.9 < large[key] / published < 1.1, (key, large)
    text = cli.lean(*words).stdout
    assert "936 GB/s" in text and len(re.findall(r"^\| +(?:12|24).0 GiB ", text, re.M)) == 2, text
    for words, code in ((("predict", "nothing", "Q4_K_M"), 2), (("predict", "llama-1b"), 2),
                        (("predict", "llama-1b", "Q9"), 2), (("predict", "123b"), 2),
                        (("predict", "122b", "--vram", "24G"), 2),
                        (("predict", "122b", "--vram-gbps", "0"), 2), (("--vram-gbps", "5"), 2)):
        assert cli.lean("bench", *words).returncode == code


def check_accelerators():
    """Without the vendor's library nothing is told; of one that stands in for it what it says."""
    words = ("bench", "demo", "-p", "0", "-n", "2", "-r", "2", "-o", "json")
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        row = json.loads(cli.lean(*words).stdout)[0]
        assert row["accelerators"] is None and row["accelerator_energy_j"] is None, row
    build = os.environ.get("LEAN_BUILD_DIR", os.path.dirname(cli.LEAN))
    with tempfile.TemporaryDirectory(prefix="lean-nvml-") as folder:
        os.symlink(os.path.join(build, "tests", "nvml_shim.so"), os.path.join(folder, "libnvidia-ml.so.1"))
        row = json.loads(cli.lean(*words, LD_LIBRARY_PATH=folder).stdout)[0]
    assert row["accelerators"] == [{"name": "Stand-in 0", "driver": "600.1", "power_w": 123.456},
                                   {"name": "Stand-in 1", "driver": "600.1", "power_w": None}], row["accelerators"]
    assert row["accelerator_energy_j"] == 5, row["accelerator_energy_j"]


def check_ranks():
    if ranks.why_no_mpi():
        print("ranks are not tried:", ranks.why_no_mpi())
        return
    words = ("-p", 24, "-n", 6, "-r", 2, "-b", "1,3", "-d", "0,10")
    own = rows_of("demo", *words, "--ranks", 2, "--allow-root", **ranks.MPI)
    by_hand = json.loads(ranks.mpirun(2, "bench", "demo", *words, "-o", "json").stdout)
    for rows in (own, by_hand):
        assert len(rows) == 8
        for row in rows:
            check_numbers(row)
            assert row["settings"]["ranks"] == 2 and len(row["effective"]["ranks"]) == 2
    arms = rows_of("demo", "-p", 8, "-n", 0, "-r", 1, "--ranks", "1,2", "--expert-slots", "50%",
                   "--allow-root", **ranks.MPI)
    assert [row["settings"]["ranks"] for row in arms] == [1, 2]
    assert arms[0]["experts"]["lookups"] == arms[1]["experts"]["lookups"], "other tokens"


def main():
    check_tests()
    check_formats()
    check_drafts()
    check_arms()
    check_prompts()
    check_refused()
    check_predictions()
    check_accelerators()
    check_ranks()
    print("bench: tests, formats, arms, prompts, refusals, predictions, ranks")


if __name__ == "__main__":
    main()
