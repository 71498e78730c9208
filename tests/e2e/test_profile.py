"""lean profile: record, show and merge on the demonstration model."""
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

LEAN = os.environ["LEAN"]
SOURCE = os.environ["LEAN_SOURCE_DIR"]
MODEL = os.path.join(SOURCE, "configs/demo/lean-demo-q4_k_m.gguf")


def lean(*args, code=0, text=None):
    done = subprocess.run([LEAN, *args], input=text, capture_output=True, text=True)
    assert done.returncode == code, (args, done.returncode, done.stderr)
    return done


def show(path):
    return json.loads(lean("profile", "show", path, "--json").stdout)


def small_profile(content):
    """A sound profile of one layer and two experts with the fingerprint of another."""
    fingerprint = content[content.index(b"\x11") + 1:][:8]
    uses = b"\x08\x00\x12\x08" + struct.pack("<2f", 1, 2)
    return (b"\x08\x01\x11" + fingerprint + b"\x1a\x09qwen35moe\x20\x01\x28\x02\x30\x01\x39" + struct.pack("<d", 3)
            + b"\x42" + bytes([len(uses)]) + uses)


def check_own_profile(folder):
    """Of runs that end at once none is lost; of a prompt the last layer has only the last row."""
    cache = os.path.join(folder, "cache")
    jobs = [subprocess.Popen([LEAN, "run", MODEL, "--raw", "--expert-slots", "50%", "--max-tokens", "3",
                              "--ignore-eos", "--json", "many words " * n],
                             stdout=subprocess.PIPE, env={**os.environ, "XDG_CACHE_HOME": cache})
            for n in (40, 50, 60, 70)]
    usage = [json.loads(job.communicate()[0])["usage"] for job in jobs]
    n_read = sum(u["total_tokens"] - 1 for u in usage)  # the last token is not read any more
    kept, = (name for name in os.listdir(os.path.join(cache, "lean/profiles")) if name.endswith(".profile"))
    profile = show(os.path.join(cache, "lean/profiles", kept))
    assert 0.99 * n_read < profile["n_tokens"] <= n_read, (profile["n_tokens"], usage)
    *rows, last = (layer["rows"] for layer in profile["layers"])
    for n in rows:
        assert abs(n - profile["n_tokens"]) < 0.01, (n, profile["n_tokens"])
    assert 0.99 * 3 * len(jobs) < last <= 3 * len(jobs), last
    for layer in profile["layers"]:
        assert abs(sum(layer["uses_per_row"]) - profile["n_expert_used"]) < 1e-4


def check_profile_of_pack(pack, cache):
    """What came with the pack is for the first run, which leaves one of its own for the next."""
    shipped = os.path.join(pack, "profile.pb")
    for n, expected in enumerate((True, True, False)):
        done = subprocess.run([LEAN, "run", pack, "--raw", "--expert-slots", "50%", "--max-tokens", "30",
                               "--ignore-eos", "--json", "hello"],
                              capture_output=True, text=True, env={**os.environ, "XDG_CACHE_HOME": cache})
        assert done.returncode == 0, done.stderr
        preloaded = json.loads(done.stdout)["experts"]["preloaded"]
        assert (preloaded > 0) == expected, (n, preloaded)
        if n == 0:
            os.remove(shipped)
        if n >= 1:
            shutil.rmtree(cache)


def main():
    with tempfile.TemporaryDirectory() as folder:
        check_own_profile(folder)
    with tempfile.TemporaryDirectory() as folder:
        a, b, both = (os.path.join(folder, name) for name in ("a.pb", "b.pb", "both.pb"))
        text = "The sea is wide and the ships are small. " * 8
        with open(os.path.join(folder, "text"), "w") as file:
            file.write(text)
        lean("profile", "record", MODEL, "--text", file.name, "-o", a)
        lean("profile", "record", MODEL, "-o", b, "--prefill-chunk", "7", "--ctx", "64", text="def f(x): return x + 1\n" * 9)
        one, two = show(a), show(b)
        n = len(json.loads(lean("tokenize", MODEL, "--json", text=text).stdout)["ids"])
        assert one["n_tokens"] == n, (one["n_tokens"], n)
        assert one["fingerprint"] == two["fingerprint"]
        for layer in one["layers"]:
            assert len(layer["uses_per_row"]) == one["n_expert"]
            assert abs(sum(layer["uses_per_row"]) - one["n_expert_used"]) < 1e-4
            assert layer["uses_per_row"][layer["busiest"]] == max(layer["uses_per_row"])
        assert len(one["layers"]) == one["n_layer"] - 1 or len(one["layers"]) == one["n_layer"]

        lean("profile", "merge", a, b, "-o", both)
        merged = show(both)
        assert merged["n_tokens"] == one["n_tokens"] + two["n_tokens"]
        for x, y, z in zip(one["layers"], two["layers"], merged["layers"]):
            for p, q, r in zip(x["uses_per_row"], y["uses_per_row"], z["uses_per_row"]):
                total = p * one["n_tokens"] + q * two["n_tokens"]
                assert abs(r * merged["n_tokens"] - total) < 1e-3
        table = lean("profile", "show", both).stdout
        assert "half of the uses" in table and one["fingerprint"] in table

        lean("profile", "merge", a, b, "-o", both, code=2)  # exists
        lean("profile", "merge", a, b, "-o", both, "--force")
        lean("profile", "show", MODEL, code=5)
        lean("profile", "show", os.path.join(folder, "none"), code=3)
        lean("profile", "polish", a, code=2)
        lean("profile", "record", MODEL, code=2)
        lean("profile", "record", MODEL, "-o", os.path.join(folder, "c"), code=2, text="")
        other = os.path.join(folder, "other.gguf")
        lean("synth", "qwen3moe", "Q8_0", "-o", other)
        c = os.path.join(folder, "c.pb")
        lean("profile", "record", other, "-o", c, text="hello")
        lean("profile", "merge", a, c, "-o", both, "--force", code=10)
        # the same header before other weights: another model
        twin, pack, d = (os.path.join(folder, name) for name in ("twin.gguf", "model.lmpack", "d.pb"))
        with open(MODEL, "rb") as file:
            content = file.read()
        with open(twin, "wb") as file:
            at = len(content) // 2  # far behind the header
            file.write(content[:at] + bytes(byte ^ 1 for byte in content[at:]))
        lean("profile", "record", twin, "-o", d, text="hello")
        assert show(d)["fingerprint"] == one["fingerprint"] and show(d)["weights"] != one["weights"]
        lean("profile", "merge", a, d, "-o", both, "--force", code=10)
        refused = lean("run", twin, "hi", "--raw", "--expert-slots", "50%", "--profile", a, code=10)
        assert "other weights" in refused.stderr, refused.stderr
        # a pack has the weights of its source, and a profile of an earlier version fits by fingerprint
        lean("pack", MODEL, "-o", pack, "-q")
        lean("run", pack, "hi", "--raw", "--max-tokens", "1", "--expert-slots", "50%", "--profile", a)
        old = os.path.join(folder, "old.pb")
        with open(a, "rb") as file, open(old, "wb") as out:
            content = file.read()
            assert content[-9:-8] == b"\x49"  # field 9, of 8 bytes
            out.write(content[:-9])
        assert show(old)["weights"] is None and show(old)["fingerprint"] == one["fingerprint"]
        for model in (MODEL, twin):
            lean("run", model, "hi", "--raw", "--max-tokens", "1", "--expert-slots", "50%", "--profile", old)
        lean("pack", MODEL, "-o", pack, "-q", "--force", "--profile", a)
        check_profile_of_pack(pack, os.path.join(folder, "cache"))
        shutil.rmtree(pack)
        for path in (twin, d, old):
            os.remove(path)
        # the right fingerprint with other sizes: an error where it was asked for
        with open(a, "rb") as file:
            content = file.read()
        small = os.path.join(folder, "d.pb")
        with open(small, "wb") as file:
            file.write(small_profile(content))
        refused = lean("run", MODEL, "hi", "--raw", "--expert-slots", "50%", "--profile", small, code=10)
        assert "a profile of 1 layers and 1 of 2 experts" in refused.stderr, refused.stderr
        # also where all experts are in memory and none would be read by it
        lean("run", MODEL, "hi", "--raw", "--profile", small, code=10)
        os.remove(small)
        left = sorted(os.listdir(folder))
        assert left == ["a.pb", "b.pb", "both.pb", "c.pb", "other.gguf", "text"], left


if __name__ == "__main__":
    sys.exit(main())
