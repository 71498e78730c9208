"""`lean pack`: the document and the files agree, every weight is the source's, whatever happens
meanwhile: threads, kill -9, a full disk, a damaged file."""
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import golden
import variants
from cli import LEAN, environment, lean
from gguf_file import I32, STRING, U16, U32, File
from lmpack_naive import Pack, xxh3

# Every form that experts have in a file, prediction layers, leading dense layers, no experts.
MODELS = {
    "stacks": ("qwen35moe-k-q4km", lambda file: None),
    "stacks, dense layers first": ("afmoe-s-q8_0", lambda file: None),
    "gate_up fused": ("qwen35moe-k-q4km", variants.fuse_gate_up),
    "gate_up fused, odd sizes": ("qwen35moe-s-q8_0", variants.fuse_gate_up),
    "tensor per expert": ("qwen3moe-s-q8_0", variants.split_experts),
    "prediction layer": ("qwen35moe-s-q8_0", variants.mtp_present),
    "no experts": ("llama-s-f32", lambda file: None),
}


def is_routed(name):
    return re.fullmatch(r"blk\.\d+\.ffn_(gate|up|down|gate_up)(_exps|\.\d+)\.weight", name)


def source_expert(file, il, ie):
    """The matrices of an expert as the GGUF file has them."""
    def slice_of(tensor, n):
        size = len(tensor.data) // n
        return tensor.data[ie * size:(ie + 1) * size]
    get = lambda name: file.tensors.get(f"blk.{il}.{name}.weight")
    out = {}
    for name in ("gate", "up", "down"):
        stack, single = get(f"ffn_{name}_exps"), get(f"ffn_{name}.{ie}")
        if stack:
            out[name] = slice_of(stack, stack.shape[2])
        elif single:
            out[name] = single.data
    fused = get("ffn_gate_up_exps")
    if fused:
        both = slice_of(fused, fused.shape[2])
        out["gate"], out["up"] = both[:len(both) // 2], both[len(both) // 2:]
    return out


def contents(folder):
    out = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            out[name] = file.read()
    return out


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="lean-test-pack-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def check(self, result, code=0):
        self.assertEqual(result.returncode, code, result.stderr)
        return result

    def golden(self, base, change=lambda file: None, name="model.gguf"):
        file = variants.load(base)
        change(file)
        file.write(self.path(name))
        return self.path(name)

    def pack(self, source, name="model.lmpack", *options):
        self.check(lean("pack", source, "-o", self.path(name), *options))
        return self.path(name)


class Format(Case):
    def check_dense(self, pack, source, folder):
        dense = File(os.path.join(folder, "dense.gguf"))
        fingerprint = xxh3(source.bytes[:source.at])
        self.assertEqual(pack.manifest["fingerprint"], fingerprint)
        keys = dict(source.keys)
        keys["lean.pack.version"] = (U32, 1)
        keys["lean.pack.fingerprint"] = (STRING, f"{fingerprint:016x}")
        self.assertTrue(list(dense.keys.items()) == list(keys.items()), "metadata")
        want = {name: t for name, t in source.tensors.items() if not is_routed(name)}
        self.assertEqual(list(dense.tensors), list(want))
        for name, tensor in want.items():
            self.assertTrue(dense.tensors[name] == tensor, name)

    def test_every_byte_is_the_sources(self):
        for name, (base, change) in MODELS.items():
            with self.subTest(name):
                path = self.golden(base, change)
                folder = self.pack(path, "model.lmpack", "--force")
                pack, source = Pack(folder), File(path)
                self.check_dense(pack, source, folder)
                arch = source.keys["general.architecture"][1]
                self.assertEqual(pack.manifest["architecture"], arch.encode())
                self.assertEqual(pack.manifest["block_count"],
                                 source.keys[arch + ".block_count"][1])
                moe = [il for il in variants.layers(source) if source_expert(source, il, 0)]
                self.assertEqual(list(pack.layers), moe)
                for il in moe:
                    for ie in range(pack.manifest["expert_count"]):
                        self.assertTrue(pack.expert(il, ie) == source_expert(source, il, ie),
                                        f"layer {il}, expert {ie}")

    def test_form_of_the_source_does_not_matter(self):
        """Stacked, fused or apart: the same files of experts."""
        packs = []
        for i, change in enumerate((lambda file: None, variants.fuse_gate_up,
                                    variants.split_experts)):
            source = self.golden("qwen35moe-s-q8_0", change)
            files = contents(self.pack(source, f"{i}.lmpack"))
            packs.append({n: data for n, data in files.items() if n.startswith("experts-")})
        self.assertTrue(packs[0] and packs[0] == packs[1] == packs[2])

    def test_split_source_gives_the_same_pack(self):
        """Two files of one model: first some tensors, then the others."""
        whole = self.golden("afmoe-s-q8_0")
        want = contents(self.pack(whole, "whole.lmpack"))
        names = list(File(whole).tensors)
        for no, part in enumerate((names[:len(names) // 3], names[len(names) // 3:])):
            file = File(whole)
            file.tensors = {name: file.tensors[name] for name in part}
            if no:
                file.keys = {}
            file.keys["split.no"] = (U16, no)
            file.keys["split.count"] = (U16, 2)
            file.keys["split.tensors.count"] = (I32, len(names))
            file.write(self.path(f"m-{no + 1:05d}-of-00002.gguf"))
        got = contents(self.pack(self.path("m-00001-of-00002.gguf"), "split.lmpack", "--verify"))
        self.assertTrue(got == want)

    def test_profile_is_put_in_as_it_is(self):
        source, another = self.golden("qwen3moe-s-q8_0"), self.golden("qwen35moe-s-q8_0", name="another.gguf")
        text, profile, other = (self.path(name) for name in ("text", "p", "other"))
        with open(text, "w") as file:
            file.write("a few words")
        self.check(lean("profile", "record", source, "--text", text, "-o", profile))
        self.check(lean("profile", "record", another, "--text", text, "-o", other))
        folder = self.pack(source, "model.lmpack", "--profile", profile)
        with open(profile, "rb") as file:
            self.assertEqual(contents(folder)["profile.pb"], file.read())
        Pack(folder)
        # that of another model, and what is none
        self.check(lean("pack", source, "-o", self.path("b"), "--profile", other), 10)
        self.check(lean("pack", source, "-o", self.path("b"), "--profile", text), 5)
        self.assertFalse([name for name in os.listdir(self.folder) if name.startswith("b")])


class Opening(Case):
    """A pack is a model wherever one is asked for."""
    IDS = [(i * 29 + 3) % 512 for i in range(40)]

    def logits(self, model, *options):
        answer, rows = golden.evaluate(model, self.IDS, "-n", 6, *options, logits=True)
        return (answer["generated"], rows), answer["effective"]

    def test_same_logits(self):
        for name, (base, change) in MODELS.items():
            with self.subTest(name):
                source = self.golden(base, change)
                want, _ = self.logits(source)
                folder = self.pack(source, "model.lmpack", "--force")
                for ref in (folder, folder + "/", os.path.join(folder, "dense.gguf")):
                    self.assertTrue(self.logits(ref)[0] == want, ref)
                for io in ("uring", "pread", "buffered") if Pack(folder).layers else ():
                    got, ran = self.logits(folder, "--expert-slots", "min", "--io", io)
                    self.assertTrue(got == want, io)
                    self.assertGreater(ran["experts"]["read_bytes"], 0)

    def test_damage_is_found_where_it_is_read(self):
        folder = self.pack(self.golden("qwen35moe-s-q8_0"))
        path = os.path.join(folder, "experts-001.bin")
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            for at in range(100, size, 4096):
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1]))
        result = self.check(lean("eval", folder, "--ids", "1,2", "--expert-slots", "min"), 1)
        self.assertRegex(result.stderr, r"experts-001\.bin: layer 1, expert \d+: .*checksum")

    def test_every_command_takes_one(self):
        source = self.golden("qwen35moe-k-q4km")
        folder = self.pack(source)
        asked = []
        for model in (source, folder):
            answers = [lean("run", model, "--raw", "--seed", 1, "--max-tokens", 5, "1 2"),
                       lean("tokenize", model, "a b"), lean("inspect", model, "--template"),
                       lean("template", model, input="{\"messages\": []}")]
            asked.append([(a.returncode, a.stdout) for a in answers])
        self.assertEqual(*asked)
        reports = [json.loads(self.check(lean("inspect", m, "--memory", "--json")).stdout)
                   for m in (source, folder)]
        for key in ("model", "weights", "parameters", "parameters_active", "tokenizer"):
            self.assertEqual(reports[0][key], reports[1][key], key)
        self.assertEqual(*[r["memory"]["routed_experts"] for r in reports])
        self.assertIsNone(reports[0]["pack"])
        pack = Pack(folder)
        told = reports[1]["pack"]
        self.assertEqual(reports[1]["files"], len(pack.layers) + 2)
        self.assertEqual(told["fingerprint"], f"{pack.manifest['fingerprint']:016x}")
        self.assertEqual((told["layers"], told["profile"]), (len(pack.layers), False))
        self.assertIn("format        pack version 1", lean("inspect", folder).stdout)
        refused = self.check(lean("quantize", folder, self.path("q.gguf"), "Q4_K_M"), 9)
        self.assertIn("dense part of a pack", refused.stderr)
        self.check(lean("run", self.folder, "hi"), 2)

    def test_what_is_missing_or_foreign_is_named(self):
        folder = self.pack(self.golden("qwen35moe-s-q8_0"))
        other = self.pack(self.golden("qwen35moe-k-q4km"), "other.lmpack")
        intact = contents(folder)

        def refuse(name, data, code, words):
            path = os.path.join(folder, name)
            os.remove(path)
            if data is not None:
                with open(path, "wb") as file:
                    file.write(data)
            self.assertIn(words, self.check(lean("eval", folder, "--ids", "1,2"), code).stderr)
            with open(path, "wb") as file:
                file.write(intact[name])

        refuse("experts-001.bin", None, 3, "experts-001.bin")
        refuse("experts-001.bin", intact["experts-001.bin"][:-1], 5, "must have")
        refuse("manifest.pb", contents(other)["manifest.pb"], 5, "dense.gguf: has")
        refuse("dense.gguf", contents(other)["dense.gguf"], 5, "dense.gguf: has")
        refuse("dense.gguf", intact["dense.gguf"][:-1], 5, "dense.gguf: ")
        refuse("manifest.pb", None, 2, "a folder")
        dense = intact["dense.gguf"]
        at = dense.index(b"lean.pack.fingerprint") + 21 + 4 + 8
        digit = b"0" if dense[at:at + 1] != b"0" else b"1"
        refuse("dense.gguf", dense[:at] + digit + dense[at + 1:], 5, "not of the same model")
        refuse("dense.gguf", dense[:at] + b"x" + dense[at + 1:], 5, "is malformed")
        self.check(lean("eval", folder, "--ids", "1,2"))


class Refusals(Case):
    def test_words(self):
        source, out = self.golden("qwen3moe-s-q8_0"), self.path("model.lmpack")
        planned = self.check(lean("pack", source, "-o", out, "--dry-run", "--json"))
        self.assertEqual(os.listdir(self.folder), ["model.gguf"])
        done = self.check(lean("pack", source, "-o", out + "/", "--json"))
        size = sum(len(d) for n, d in contents(out).items() if n != "manifest.pb")
        self.assertEqual(json.loads(planned.stdout)["bytes"], size)
        self.assertEqual(json.loads(done.stdout)["bytes"], size)
        before = contents(out)
        self.assertIn("model.lmpack: exists", self.check(lean("pack", source, "-o", out), 2).stderr)
        self.check(lean("pack", source), 2)
        self.check(lean("pack", "-o", out), 2)
        self.check(lean("pack", source, source, "-o", self.path("b")), 2)
        self.check(lean("pack", self.path("none"), "-o", self.path("b")), 3)
        self.check(lean("pack", self.folder, "-o", self.path("b")), 2)
        self.check(lean("pack", __file__, "-o", self.path("b")), 5)
        self.assertIn("dense part of a pack",
                      self.check(lean("pack", out, "-o", self.path("b")), 9).stderr)
        self.check(lean("pack", "--verify", "-o", self.path("none")), 2)
        self.check(lean("pack", "--verify", "-o", self.folder), 3)
        self.check(lean("pack", "--verify", self.folder), 3)
        self.check(lean("pack", "--verify", self.path("none")), 2)
        self.check(lean("pack", "--verify", source), 2)
        self.check(lean("pack", "--verify", out), 0)
        self.check(lean("pack", "--verify", "-o", out), 0)
        self.check(lean("pack", "--verify", "--force", out), 2)
        self.assertTrue(contents(out) == before)
        self.assertEqual(sorted(os.listdir(self.folder)), ["model.gguf", "model.lmpack"])

    def test_force_replaces_packs_only(self):
        source = self.golden("qwen3moe-s-q8_0")
        self.pack(self.golden("qwen35moe-s-q8_0", name="other.gguf"))
        self.assertTrue(contents(self.pack(source, "model.lmpack", "--force")) ==
                        contents(self.pack(source, "new.lmpack")))
        os.mkdir(self.path("letters"))
        with open(self.path("letters/mine"), "w") as file:
            file.write("dear")
        for name in ("letters", "other.gguf"):
            result = self.check(lean("pack", source, "-o", self.path(name), "--force"), 2)
            self.assertIn("exists and is not a pack", result.stderr)
        self.assertEqual(sorted(os.listdir(self.folder)),
                         ["letters", "model.gguf", "model.lmpack", "new.lmpack", "other.gguf"])
        self.assertEqual(os.listdir(self.path("letters")), ["mine"])


class Verify(Case):
    def setUp(self):
        super().setUp()
        self.source = self.golden("qwen35moe-k-q4km")
        self.out = self.pack(self.source, "model.lmpack", "--verify")
        self.intact = Pack(self.out)

    def verify(self, code=0, source=False):
        args = [self.source, "--verify", "-o", self.out] if source else ["--verify", self.out]
        return self.check(lean("pack", *args), code).stderr

    def flip(self, name, at):
        """Changes a byte; returns a function that changes it back."""
        path = os.path.join(self.out, name)

        def change():
            with open(path, "r+b") as file:
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 4]))
        change()
        return change

    def test_all_damage_is_named(self):
        layers = self.intact.layers
        for il, ie in ((0, 2), (1, 0), (1, 3)):
            self.flip(f"experts-{il:03d}.bin", layers[il]["offset"][ie] + 5)
        self.flip("dense.gguf", 5000)
        for source in (False, True):
            stderr = self.verify(5, source=source)
            for words in ("layer 0, expert 2:", "layer 1, expert 0:", "layer 1, expert 3:",
                          "dense.gguf: checksum", "4 places"):
                self.assertIn(words, stderr)
            self.assertNotIn("expert 1:", stderr)

    def test_any_flipped_byte_is_found(self):
        self.verify()
        self.verify(source=True)
        layer = self.intact.layers[1]
        size = layer["extent_bytes"]
        last = self.intact.manifest["expert_count"] - 1
        for ie, at in ((0, 0), (3, layer["down"]["offset"]), (last, size - 1)):
            undo = self.flip("experts-001.bin", layer["offset"][ie] + at)
            self.assertIn(f"experts-001.bin: layer 1, expert {ie}: checksum", self.verify(5))
            self.assertIn(f"layer 1, expert {ie}", self.verify(5, source=True))
            undo()
        for name in ("dense.gguf", "manifest.pb"):
            n = len(contents(self.out)[name])
            for at in (0, 9, n // 2, n - 1):
                undo = self.flip(name, at)
                self.assertIn(name.split(".")[0], self.verify(5))
                undo()
        self.verify(source=True)

    def test_cut_and_missing_files(self):
        for name, data in contents(self.out).items():
            path = os.path.join(self.out, name)
            os.truncate(path, len(data) - 1)
            self.assertIn(name.split(".")[0], self.verify(5))
            os.remove(path)
            self.assertIn(name, self.verify(3))
            with open(path, "wb") as file:
                file.write(data)
        self.verify()

    def test_another_source_is_told(self):
        """The same shape, another weight: of an expert, of the rest."""
        for name in ("blk.0.ffn_up_exps.weight", "blk.0.attn_norm.weight"):
            file = File(self.source)
            at = next(i for i, b in enumerate(file.tensors[name].data) if b)
            data = bytearray(file.tensors[name].data)
            data[at] ^= 1
            file.tensors[name].data = bytes(data)
            file.write(self.path("other.gguf"))
            told = self.check(lean("pack", self.path("other.gguf"), "--verify", "-o", self.out), 10)
            self.assertIn("layer 0, expert 0, up: byte" if "exps" in name else name, told.stderr)
        self.golden("qwen3moe-s-q8_0", name="other.gguf")
        told = self.check(lean("pack", self.path("other.gguf"), "--verify", "-o", self.out), 10)
        self.assertIn("another model", told.stderr)


class Interrupted(Case):
    """A model large enough to be caught in the middle."""
    @classmethod
    def setUpClass(cls):
        cls.home = tempfile.mkdtemp(prefix="lean-test-pack-")
        cls.addClassCleanup(shutil.rmtree, cls.home, ignore_errors=True)
        cls.source = os.path.join(cls.home, "s.gguf")
        made = lean("synth", "qwen3moe", "F32", "--layers", 5, "--experts", 32, "--vocab", 20000,
                    "-o", cls.source)
        assert made.returncode == 0, made.stderr
        out = os.path.join(cls.home, "whole.lmpack")
        made = lean("pack", cls.source, "-o", out)
        assert made.returncode == 0, made.stderr
        cls.want = contents(out)
        cls.n_bytes = sum(map(len, cls.want.values()))

    def catch(self, out, name, *options):
        """Starts packing and stops it as soon as a file is there; None: it was too quick."""
        job = subprocess.Popen([LEAN, "pack", self.source, "-o", out, *options],
                               env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True)
        while job.poll() is None and not os.path.exists(os.path.join(out + ".partial", name)):
            time.sleep(0.0005)
        job.send_signal(signal.SIGSTOP)
        time.sleep(0.01)
        if os.path.exists(out + ".partial") and job.poll() is None:
            return job
        job.send_signal(signal.SIGCONT)
        job.communicate(timeout=60)
        return None

    def start_and_stop(self, out, name, *options):
        for _ in range(20):
            job = self.catch(out, name, *options)
            if job:
                return job
            shutil.rmtree(out, ignore_errors=True)
        self.fail(f"could not stop the job when {name} was there")

    def finish(self, out):
        result = self.check(lean("pack", self.source, "-o", out))
        self.assertTrue(contents(out) == self.want, "not the bytes of an undisturbed pack")
        self.assertFalse(os.path.exists(out + ".partial"))
        return result.stderr

    def test_jobs_do_not_matter(self):
        for n_job in (1, 5):
            self.assertTrue(contents(self.pack(self.source, f"{n_job}", "--jobs", n_job)) ==
                            self.want, f"{n_job} jobs")

    def test_kill_and_resume(self):
        n_kept = 0
        for name in ("experts-000.bin.partial", "experts-001.bin", "experts-003.bin.partial",
                     "experts-004.bin", "dense.gguf.partial"):
            out = self.path("killed.lmpack")
            job = self.start_and_stop(out, name, "--jobs", "1")
            job.kill()
            job.communicate(timeout=60)
            self.assertFalse(os.path.exists(out))
            n_kept += "were there already" in self.finish(out)
            shutil.rmtree(out)
        self.assertGreaterEqual(n_kept, 3)

    def test_resume_trusts_nothing(self):
        """Files of an unfinished pack that are damaged, cut, or of another model are made again."""
        out = self.path("damaged.lmpack")
        job = self.start_and_stop(out, "experts-003.bin", "--jobs", "1")
        job.kill()
        job.communicate(timeout=60)
        partial = out + ".partial"
        with open(os.path.join(partial, "experts-000.bin"), "r+b") as file:
            file.seek(4096 * 100)
            file.write(b"damage")
        os.truncate(os.path.join(partial, "experts-001.bin"), 5000)
        for name in ("experts-077.bin", "manifest.pb", "dense.gguf", "experts-002.bin.partial"):
            with open(os.path.join(partial, name), "w") as file:
                file.write("stale")
        self.finish(out)

    def test_interrupt_keeps_what_is_done(self):
        out = self.path("interrupted.lmpack")
        job = self.start_and_stop(out, "experts-002.bin", "--jobs", "1")
        job.send_signal(signal.SIGINT)
        job.send_signal(signal.SIGCONT)
        _, stderr = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 130, stderr)
        self.assertIn("run the same command to go on", stderr)
        left = os.listdir(out + ".partial")
        self.assertIn("experts-002.bin", left)
        self.assertFalse([name for name in left if name.endswith(".partial")], left)
        self.assertIn("were there already", self.finish(out))

    def test_two_at_once(self):
        out = self.path("twice.lmpack")
        job = self.start_and_stop(out, "experts-000.bin.partial", "--jobs", "1")
        self.assertIn("another process", self.check(lean("pack", self.source, "-o", out), 8).stderr)
        job.send_signal(signal.SIGCONT)
        job.communicate(timeout=60)
        self.assertEqual(job.returncode, 0)
        self.assertTrue(contents(out) == self.want)

    def small_disk(self, n_bytes):
        disk = self.path("disk")
        os.mkdir(disk)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "lean-test", disk],
                                 capture_output=True, text=True)
        if mounted.returncode:
            self.skipTest("a small disk needs the right to mount one: " + mounted.stderr.strip())
        self.addCleanup(subprocess.run, ["umount", "-l", disk], check=True)
        return disk

    def test_too_small_a_disk_is_said_at_once(self):
        out = os.path.join(self.small_disk(self.n_bytes // 2), "m.lmpack")
        result = self.check(lean("pack", self.source, "-o", out), 6)
        self.assertRegex(result.stderr, r"m\.lmpack: needs .*, the disk has .* left")

    def test_a_disk_that_fills_up(self):
        disk = self.small_disk(2 * self.n_bytes)
        out = os.path.join(disk, "m.lmpack")
        job = self.start_and_stop(out, "experts-001.bin", "--jobs", "1")
        with open(os.path.join(disk, "filler"), "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(bytes(1 << 20)):
                    pass
        job.send_signal(signal.SIGCONT)
        _, stderr = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 6, stderr)
        self.assertRegex(stderr, r"m\.lmpack\.partial/.*: needs .*: No space left")
        self.assertIn("run the same command to go on", stderr)
        os.remove(os.path.join(disk, "filler"))
        self.assertIn("were there already", self.finish(out))


if __name__ == "__main__":
    unittest.main(verbosity=2)
