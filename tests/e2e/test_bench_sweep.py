"""lean bench sweep: all combinations, a case that cannot be measured, an interruption at any time, a
disk that takes no more, and files that are no sweeps."""
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time

import cli

SWEEP = """
base: "base.textproto"
axis { field: "model.ref" value: "demo" }
axis { field: "compute.threads" value: ["1", "2"] }
axis { field: "tiers.ram.size" value: ["1M", "1G"] }
test { n_prompt: 16 n_gen: [4, 8] }
repeat: 2
"""


def write(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def sweep(path, out, code=0, **more):
    run = cli.lean("bench", "sweep", path, "-o", out, **more)
    assert run.returncode == code, (run.returncode, run.stdout, run.stderr)
    return run


def rows_of(out):
    with open(os.path.join(out, "results.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def facts(rows):
    return [(row["axes"]["compute.threads"], row["axes"]["tiers.ram.size"], row["status"],
             row.get("test")) for row in rows]


EXPECTED = [fact for threads in "12" for fact in
            [(threads, "1M", "failed", None)] +
            [(threads, "1G", "ok", test) for test in ("pp16", "tg4", "tg8")]]


def check_sweep(folder):
    path, out = write(folder, "sweep.textproto", SWEEP), os.path.join(folder, "out")
    run = sweep(path, out)
    rows = rows_of(out)
    assert facts(rows) == EXPECTED, facts(rows)
    assert "4 cases, 2 could not be measured" in run.stdout
    failed = rows[0]
    assert failed["exit_code"] == 9 and failed["message"], failed
    for row in rows[1:4]:
        assert row["n_row"] == 3 and len(row["samples_ns"]) == 2
        assert row["settings"]["kv_type"] == "bf16", "the base was not read"
    with open(os.path.join(out, "results.csv"), encoding="utf-8", newline="") as file:
        sheet = list(csv.DictReader(file))
    assert [row["status"] for row in sheet] == [row["status"] for row in rows]
    assert [row["test"] or None for row in sheet] == [row.get("test") for row in rows]
    with open(os.path.join(out, "environment.json"), encoding="utf-8") as file:
        environment = json.load(file)
    assert environment["host"]["memory_bytes"] > 0 and "compute.threads" in environment["config"]
    assert sorted(os.listdir(out)) == ["environment.json", "log.txt", "results.csv",
                                       "results.jsonl"]
    # again: nothing is left to do; with one more value: only that
    assert "4 cases were done before" in sweep(path, out).stderr
    assert rows_of(out) == rows
    write(folder, "sweep.textproto", SWEEP.replace('["1", "2"]', '["2", "1", "3"]'))
    sweep(path, out)
    assert facts(rows_of(out))[:8] == EXPECTED and len(rows_of(out)) == 12


def check_interruption(folder):
    """Killed at some moment, the sweep has only whole cases, and goes on to the same end."""
    path, out = write(folder, "killed.textproto", SWEEP), os.path.join(folder, "killed")
    for wait_s, number in ((0.15, signal.SIGKILL), (0.3, signal.SIGTERM), (0.4, signal.SIGINT)):
        process = subprocess.Popen([cli.LEAN, "bench", "sweep", path, "-o", out],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env=cli.environment())
        time.sleep(wait_s)
        process.send_signal(number)
        code = process.wait(30)
        assert code in (0, -number, 128 + number), code
    if os.path.exists(os.path.join(out, "results.jsonl")):
        with open(os.path.join(out, "results.jsonl"), "a", encoding="utf-8") as file:
            file.write('{"case": "0", "row": 0, "n_row": 3, "status": "ok"}\n{"case": "0", "ro')
    sweep(path, out)
    assert facts(rows_of(out)) == EXPECTED, facts(rows_of(out))


def check_full_file_system(folder):
    """One that has no room for a second case, where we may mount one: the first case stays whole, and with room the
    sweep goes on."""
    out = os.path.join(folder, "small")
    os.mkdir(out)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", out], capture_output=True).returncode:
        print("no file system may be mounted: only the limit on files' sizes was tried")
        return
    try:
        path = write(folder, "small.textproto", SWEEP)
        done = cli.lean("bench", "sweep", path, "-o", out)
        assert done.returncode == 6 and "No space left" in done.stderr, (done.returncode, done.stderr)
        with open(os.path.join(out, "results.jsonl"), encoding="utf-8") as file:
            before = file.read()
        assert before and all(json.loads(line)["status"] for line in before.splitlines())
        assert before == "" or before.endswith("\n")
        assert not [name for name in os.listdir(out) if name.endswith(".partial")]
        subprocess.run(["mount", "-o", "remount,size=8m", out], check=True)
        assert cli.lean("bench", "sweep", path, "-o", out).returncode == 0
        with open(os.path.join(out, "results.jsonl"), encoding="utf-8") as file:
            assert file.read().startswith(before)
    finally:
        subprocess.run(["umount", out], check=True)


def check_full_disk(folder):
    path, out = write(folder, "full.textproto", SWEEP), os.path.join(folder, "full")
    limit = 6000  # bytes of a file: some cases fit

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = subprocess.run([cli.LEAN, "bench", "sweep", path, "-o", out], capture_output=True,
                         text=True, env=cli.environment(), preexec_fn=limited, timeout=120)
    assert run.returncode != 0 and "results" in run.stderr, run.stderr
    rows = rows_of(out)  # whole lines
    assert facts(rows) == EXPECTED[:len(rows)] and len(rows) in (1, 4, 5), facts(rows)
    assert not [name for name in os.listdir(out) if name.endswith(".partial")]
    sweep(path, out)
    assert facts(rows_of(out)) == EXPECTED


def check_refused(folder):
    out = os.path.join(folder, "refused")
    for text, expected in (('axis { field: "tiers.ram.sizes" value: "1G" }', "tiers.ram.size?"),
                           ('axis { field: "compute.threads" value: "many" }', "compute.threads"),
                           ('axis { field: "compute.threads" }', "no values"),
                           ('axis { field: "compute.threads" value: "1" } '
                            'axis { field: "compute.threads" value: "2" }', "two axes"),
                           ('axes { }', "axes"), ("repeat: -1", "repeat")):
        run = sweep(write(folder, "bad.textproto", text), out, code=2)
        assert expected in run.stderr, run.stderr
    sweep(write(folder, "bad.textproto", 'base: "nowhere.textproto"'), out, code=3)
    sweep(os.path.join(folder, "nowhere"), out, code=3)
    assert not os.path.exists(out)
    assert cli.lean("bench", "sweep", "x").returncode == 2
    os.mkdir(out)
    write(out, "results.jsonl", '{"no": "result"}\n')
    sweep(write(folder, "bad.textproto", "repeat: 1"), out, code=5)


def check_examples():
    """The sweeps that come with the program can be read."""
    folder = os.path.join(cli.SOURCE_DIR, "configs/sweeps")
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            text = file.read()
        assert "axis" in text
        run = cli.lean("bench", "sweep", os.path.join(folder, name), "-o", "/nowhere/at/all")
        assert run.returncode == 3 and "/nowhere/at/all" in run.stderr, run.stderr


def main():
    folder = tempfile.mkdtemp(prefix="lean-sweep-")
    try:
        write(folder, "base.textproto", 'compute { kv_type: BF16 }\n')
        check_sweep(folder)
        check_interruption(folder)
        check_full_disk(folder)
        check_full_file_system(folder)
        check_refused(folder)
        check_examples()
    finally:
        shutil.rmtree(folder)
    print("bench sweep: combinations, interruption, full disk, refusals, examples")


if __name__ == "__main__":
    main()
