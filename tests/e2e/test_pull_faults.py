"""`lean pull` against servers, networks, disks and neighbours that fail."""
import contextlib
import os
import signal
import subprocess
import time

import pull
from pull import MIB, REPO, PullCase, data

NAME = "m-Q4_K_M.gguf"
FAST = ("--retry-wait", "20ms", "--segment", "1M")


class Server(PullCase):
    def setUp(self):
        super().setUp()
        self.content = data(8 * MIB + 123)

    def served(self, **settings):
        return self.hub({NAME: self.content}, **settings)

    def check(self, hub, *args, **more):
        result = self.pull(hub, REPO, *FAST, *args, **more)
        self.check_files(result.stdout.strip().splitlines()[-1], {NAME: self.content})
        self.assertEqual(self.left_over(), [])
        self.assertEqual(hub.leaks, [])
        return result

    def n_sent(self, hub):
        return sum(end - start for start, end in hub.fetched(NAME))

    def test_passing_statuses(self):
        for status in (408, 429, 500, 502, 503, 504):
            hub = self.served()
            hub.fault(NAME, status=status, times=3, after=1)
            hub.fault(NAME, status=status, times=1, at="hub")
            hub.fault("tree", status=status, times=1, at="hub")
            hub.fault("revision", status=status, times=1, at="hub")
            self.check(hub, "--force")
            self.assertEqual(self.n_sent(hub), len(self.content))

    def test_retry_after_is_obeyed(self):
        hub = self.served()
        hub.fault(NAME, status=429, headers={"Retry-After": "2"}, times=1, at="hub")
        began = time.monotonic()
        self.check(hub)
        self.assertTrue(1.9 < time.monotonic() - began < 10)

    def test_expired_url(self):
        hub = self.served(lifetime=0.5, rate=2 * MIB)
        self.check(hub, "--jobs", "2")
        resolved = [entry for entry in hub.log if "/resolve/" in entry["path"]]
        self.assertTrue(3 <= len(resolved) <= 20, len(resolved))
        self.assertEqual(self.n_sent(hub), len(self.content))

    def test_ranges_ignored(self):
        for redirect in (True, False):
            hub = self.served(ranges=False, redirect=redirect)
            self.check(hub, "--force")
        hub = self.served(ranges=False)
        hub.fault(NAME, truncate=3 * MIB, times=2)
        self.check(hub, "--force", "--jobs", "1")

    def test_no_redirect(self):
        hub = self.served(redirect=False)
        self.check(hub)
        self.assertEqual(self.n_sent(hub), len(self.content))

    def test_truncated(self):
        hub = self.served()
        hub.fault(NAME, truncate=300000, times=5)
        self.check(hub)
        self.assertEqual(self.n_sent(hub), len(self.content))

    def test_streams_of_unknown_length_that_end_too_soon(self):
        hub = self.served(ranges=False)
        hub.fault(NAME, chunked=3 * MIB, times=3)
        self.check(hub, "--jobs", "1")
        hub = self.served(ranges=False)
        hub.fault(NAME, chunked=3 * MIB, times=1000)
        result = self.pull(hub, REPO, "--retry-wait", "5ms", "--jobs", "1", "--force", code=4)
        self.assertIn("gave up after 8 failures", result.stderr)

    def test_waits_that_are_asked_for(self):
        """Not for ever, and not in silence."""
        for asked, seconds in (("inf", 3600), ("86400", 3600), ("30", 30)):
            hub = self.served()
            hub.fault("revision", status=503, headers={"Retry-After": asked}, times=1000, at="hub")
            process = self.start(hub, REPO)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            self.assertIn(f"again in {seconds} s", process.communicate(timeout=5)[1])
        hub = self.served()
        hub.fault(NAME, status=206, headers={"Content-Range": f"bytes 0-{1 << 63}/{1 << 63}"}, times=1)
        self.check(hub)

    def test_headers_of_any_length(self):
        hub = self.hub({NAME: self.content, "a.md": b"a", "z-Q8_0.gguf": data(2000)}, page=1)
        hub.link_padding = "&x=" + "y" * 8000
        self.check(hub)
        self.pull(hub, REPO + ":Q8_0")

    def test_slow_stall(self):
        hub = self.served()
        hub.fault(NAME, stall=200000, times=2)
        self.check(hub, "--stall-timeout", "1s")

    def test_wrong_bytes_once_and_always(self):
        hub = self.served()
        hub.fault(NAME, wrong=True, times=1, after=3)
        self.assertIn("fetching it again", self.check(hub).stderr)
        hub = self.served()
        hub.fault(NAME, wrong=True, times=1000)
        result = self.pull(hub, REPO, *FAST, "--force", code=5)
        self.assertIn("hash is not what the hub said", result.stderr)
        self.assertEqual(self.left_over(), [])

    def test_other_size(self):
        hub = self.served()
        listed = hub.repos[REPO].listed[NAME]
        listed["size"] = listed["lfs"]["size"] = len(self.content) + 1
        self.assertIn("size is not what the hub said", self.pull(hub, REPO, *FAST, code=5).stderr)
        self.assertEqual(self.left_over(), [])

    def test_gives_up(self):
        hub = self.served()
        hub.fault(NAME, status=503, times=1000, after=2)
        result = self.pull(hub, REPO, "--retry-wait", "5ms", "--segment", "1M", code=4)
        self.assertIn("gave up after 8 failures", result.stderr)
        self.assertIn("the same command goes on", result.stderr)
        self.assertEqual([name.split(".", 1)[1] for name in self.left_over()], ["lean-part", "lean-part.j"])
        sent = self.n_sent(hub)
        hub.faults.clear()
        self.check(hub)
        self.assertEqual(self.n_sent(hub), len(self.content), sent)

    def test_nobody_listens(self):
        hub = self.served()
        self.pull(hub, REPO, "--retry-wait", "2ms", "--endpoint", "http://127.0.0.1:1", code=4)
        self.pull(hub, REPO, "--endpoint", "ftp://x", code=2)

    def test_forbidden_by_the_hub(self):
        hub = self.served()
        hub.fault(NAME, status=403, times=1000, at="hub")
        self.pull(hub, REPO, *FAST, code=7)

    def test_proxy(self):
        hub = self.served()
        self.pull(hub, REPO, "--retry-wait", "2ms", code=4, no_proxy="", http_proxy="http://127.0.0.1:1")


class Disk(PullCase):
    def test_no_room_for_it(self):
        hub = self.hub({NAME: data(5000)})
        listed = hub.repos[REPO].listed[NAME]
        listed["size"] = listed["lfs"]["size"] = 1 << 60
        result = self.pull(hub, REPO, code=6)
        self.assertIn("1.00 EiB", result.stderr.replace("1024 PiB", "1.00 EiB"))
        self.assertIn("free", result.stderr)
        self.pull(hub, REPO, "--dry-run", code=6)
        huge = self.hub({f"{i}.md": b"x" * 2000 for i in range(3)})
        for listed in huge.repos[REPO].listed.values():
            listed["size"] = listed["lfs"]["size"] = (1 << 63) - 1
        self.assertIn("impossible sizes", self.pull(huge, REPO, "--file", "*.md", "--dest", self.folder, code=5).stderr)
        os.mkdir(self.folder + "/here")
        for dest in ("new", "new/er", "/lean-test-not-there"):
            process = self.start(hub, REPO, "--dest", dest, cwd=self.folder + "/here")
            process.communicate()
            self.assertEqual(process.returncode, 6, dest)

    def mount(self):
        mount = os.path.join(self.folder, "mount")
        os.mkdir(mount)
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12M", "tmpfs", mount],
                                          capture_output=True).returncode:
            self.skipTest("needs root, to mount a small file system")
        self.addCleanup(subprocess.run, ["umount", "-l", mount])
        return mount

    def test_cache_that_can_only_be_read(self):
        mount = self.mount()
        self.cache = os.path.join(mount, "cache")
        hub = self.hub({NAME: data(5000), "m-Q8_0.gguf": data(6000)})
        folder = self.pull(hub, REPO).stdout
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        self.assertEqual(self.pull(hub, REPO).stdout, folder)
        self.assertIn("Read-only file system", self.pull(hub, REPO + ":Q8_0", code=1).stderr)

    def test_disk_that_becomes_full(self):
        mount = self.mount()
        self.cache = os.path.join(mount, "cache")
        hub = self.hub({NAME: data(8 * MIB)}, rate=4 * MIB)
        process = self.start(hub, REPO, "--jobs", "2", "--segment", "1M")
        time.sleep(0.7)
        with open(f"{mount}/filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(MIB)) == MIB:
                pass
        error = process.communicate(timeout=30)[1]
        self.assertEqual(process.returncode, 6, error)
        self.assertIn("No space left", error)
        os.remove(f"{mount}/filler")
        hub.rate = None
        before = len(hub.log)
        folder = self.pull(hub, REPO).stdout.strip()
        self.check_files(folder, {NAME: hub.repos[REPO].files[NAME]})
        again = sum(entry.get("sent", 0) for entry in hub.log[before:])
        self.assertTrue(again < 8 * MIB, again)

    def test_folder_that_cannot_be_written(self):
        hub = self.hub({NAME: data(5000)})
        with open(self.cache, "w"):
            pass
        self.assertIn(self.cache, self.pull(hub, REPO, code=3).stderr)


class Neighbours(PullCase):
    def test_two_at_once(self):
        content = data(6 * MIB)
        hub = self.hub({NAME: content}, rate=2 * MIB)
        both = [self.start(hub, REPO, "--jobs", "2", "--segment", "1M") for _ in range(2)]
        errors = [process.communicate(timeout=60)[1] for process in both]
        self.assertEqual([process.returncode for process in both], [0, 0], errors)
        self.assertEqual(sum(end - start for start, end in hub.fetched(NAME)), len(content))
        self.assertEqual(sum("waiting for process" in error for error in errors), 1, errors)
        self.assertEqual(self.left_over(), [])

    def lock_of(self, hub):
        blob = f"{self.cache}/models--some-org--Model-8B-GGUF/blobs/" + \
            hub.repos[REPO].listed[NAME]["lfs"]["oid"]
        os.makedirs(os.path.dirname(blob), exist_ok=True)
        return blob + ".lean-lock"

    def write_lock(self, hub, age):
        with open(self.lock_of(hub), "w") as file:
            file.write("lean-lock 1 %016x %020d %010d %020d %020d elsewhere\n"
                       % (7, time.time() - age, 4242, 1, 1))

    def test_a_lock_of_another_host(self):
        hub = self.hub({NAME: data(3000)})
        self.write_lock(hub, 10)
        result = self.pull(hub, REPO, "--no-wait", code=8)
        self.assertIn("process 4242 on elsewhere", result.stderr)
        self.write_lock(hub, 61)
        self.pull(hub, REPO, "--no-wait")
        self.assertEqual(self.left_over(), [])

    def test_a_lock_whose_process_was_killed(self):
        hub = self.hub({NAME: data(8 * MIB)}, rate=MIB)
        process = self.start(hub, REPO, "--segment", "1M")
        while not any(name.endswith(".lean-lock") for name in self.left_over()):
            time.sleep(0.02)
        self.pull(hub, REPO, "--no-wait", code=8)
        process.kill()
        process.communicate()
        hub.rate = None
        self.pull(hub, REPO, "--no-wait")

    def test_a_lock_that_is_lost(self):
        """A process that was stopped for a minute finds its lock taken over, and leaves it alone."""
        hub = self.hub({NAME: data(16 * MIB)}, rate=MIB)
        process = self.start(hub, REPO, "--jobs", "1")
        while not (os.path.exists(self.lock_of(hub)) and os.path.getsize(self.lock_of(hub))):
            time.sleep(0.02)
        self.write_lock(hub, 0)
        error = process.communicate(timeout=30)[1]
        self.assertEqual(process.returncode, 8, error)
        self.assertIn("taken it over", error)
        self.assertTrue(os.path.exists(self.lock_of(hub)))


if __name__ == "__main__":
    pull.main()
