"""lean bench tune: what it keeps, where that counts, and that no bit of an answer changes by it."""
import glob
import json
import os
import re
import statistics
import time

import cli
import serve

MODEL = serve.DEMO
TINY = os.path.join(os.path.dirname(__file__), "../data/golden/models/qwen35moe-k-q4km.gguf")
LIMITS_S = (8, 60)  # a busy machine needs longer to measure its memory and disk alone


def kept_file():
    found = glob.glob(os.path.join(cli.HOME, ".cache/lean/machines/*.tuned.textproto"))
    assert len(found) <= 1, found
    return found[0] if found else None


def tune(*words):
    """Ends in time."""
    for limit_s in LIMITS_S:
        begin = time.monotonic()
        done = cli.lean("bench", "tune", *words, "--time", f"{limit_s}s", "--json")
        if "no time for a run" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < limit_s + 20, time.monotonic() - begin
    return json.loads(done.stdout)


def check_link():
    result = tune(TINY, "--device", "emu")
    assert result["machine"]["link_bytes_s"] > 1e6, result["machine"]
    os.remove(kept_file())


def check_tuning():
    """Keeps what its own ratios say, and nothing else."""
    result = tune(MODEL, "--expert-slots", "50%")
    machine = result["machine"]
    assert machine["memory_bytes_s"] > 1e8 and machine["link_bytes_s"] is None
    assert machine["kernels_beside_copy_bytes_s"] > 1e7 and machine["copy_beside_kernels_bytes_s"] > 1e6
    assert set(machine["kernels_bytes_s"]) >= {"Q4_K", "Q6_K"} and min(machine["kernels_bytes_s"].values()) > 1e7
    assert {"pread", "buffered"} <= {one["io"] for one in machine["disk"]}
    assert all(one["bytes_s"] > 1e6 for one in machine["disk"])
    kept = {}
    for one in result["settings"]:
        ratios = one["ratios"]
        good = len(ratios) == 3 and min(ratios) > 1 and statistics.median(ratios) > 1.03
        assert good or one["verdict"] != "kept", one
        assert ratios or one["verdict"].startswith("not tried: "), one
        if one["verdict"] == "kept":
            kept[one["setting"]] = one["value"]
    with open(kept_file(), encoding="utf-8") as file:
        text = file.read()
    assert sorted(re.findall(r'value: "(.*)"', text)) == sorted(kept.values()), (text, kept)
    tried = {one["setting"] for one in result["settings"]}
    assert tried >= {"threads", "io", "prefetch", "policy", "prefill-chunk"}, tried
    return text


def keep(text, **settings):
    """As if these had been found faster."""
    head = re.sub(r"setting \{.*?\}\n", "", text, flags=re.S)
    with open(kept_file(), "w", encoding="utf-8") as file:
        file.write(head + "".join(f'setting {{ key: "{key.replace("__", ".")}" value: "{value}" gain: 0.1 }}\n'
                                  for key, value in settings.items()))


def effective(*words, **variables):
    done = cli.lean("bench", MODEL, "-p", "0", "-n", "4", "-r", "1", "-o", "json", "--expert-slots", "50%", *words,
                    **variables)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)[0]
    return row["effective"], row["experts"]


def logits(*words):
    done = cli.lean("eval", MODEL, "--text", os.path.join(cli.SOURCE_DIR, "tests/data/demo/traces/chat.txt"),
                    "--json", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["logits_xxh3"], found["effective"]


def check_what_counts(text):
    keep(text, compute__threads=1, tiers__ssd__io="pread", tiers__policy="lru", schedule__prefill_chunk=128)
    found, experts = effective()
    assert found["tuned"] == "threads 1, io pread, policy lru, prefill-chunk 128", found
    assert found["threads"] == 1 and (experts["io"], experts["policy"]) == ("threads", "lru"), (found, experts)
    # what is said wins, by whichever way; and all of it can be left out
    for words, variables in ((("-t", "2"), {}), ((), {"LEAN_COMPUTE_THREADS": "2"})):
        found, experts = effective(*words, **variables)
        assert found["threads"] == 2 and found["tuned"] == "io pread, policy lru, prefill-chunk 128", found
    for words, variables in ((("--no-tuned",), {}), ((), {"LEAN_COMPUTE_TUNED": "off"})):
        found, experts = effective(*words, **variables)
        assert found["tuned"] is None and experts["policy"] == "lfru", (found, experts)
    same, ran = logits()
    plain, ran_plain = logits("--no-tuned")
    assert same == plain, (same, plain)
    assert ran["prefill_chunk"] == 128 != ran_plain["prefill_chunk"], (ran, ran_plain)
    shown = cli.lean("config", "show", MODEL, "--origin", "--json")
    config = json.loads(shown.stdout)
    assert config["compute"]["threads"] == {"value": 1, "origin": "tuned"}, config["compute"]
    assert config["tiers"]["ssd"]["io"] == {"value": "pread", "origin": "tuned"}
    said = cli.lean("config", "show", MODEL, "--origin", "--json", LEAN_COMPUTE_THREADS="2")
    assert json.loads(said.stdout)["compute"]["threads"]["origin"] == "LEAN_COMPUTE_THREADS"
    assert "tuned" not in re.sub("tuned: true", "", cli.lean("config", "show", "--origin").stdout)


def check_what_does_not(text):
    """Another processor's, what no option takes, half a file: as if there was nothing."""
    keep(text.replace('cpu: "', 'cpu: "another '), compute__threads=1)
    assert effective()[0]["tuned"] is None
    keep(text, compute__threads="many", tiers__ssd__io="PIGEON", no__such="1", tiers__policy="lru")
    assert effective()[0]["tuned"] == "policy lru"
    with open(kept_file(), "w", encoding="utf-8") as file:
        file.write("setting { key")
    assert effective()[0]["tuned"] is None


def check_forgetting():
    assert "forgotten" in cli.lean("bench", "tune", MODEL, "--forget").stdout
    assert kept_file() is None
    assert "nothing was kept" in cli.lean("bench", "tune", MODEL, "--forget").stdout
    assert cli.lean("bench", "tune", "/nowhere.gguf").returncode == 3
    assert cli.lean("bench", MODEL, "--forget").returncode == 2


def main():
    check_link()
    text = check_tuning()
    check_what_counts(text)
    check_what_does_not(text)
    check_forgetting()
    print("tune: kept, used, overruled, left out, forgotten")


if __name__ == "__main__":
    main()
