"""lean doctor: all checks are told, as text and as JSON; a requirement that is not met gives 10."""
import json
import os
import re
import resource
import subprocess

import cli

NAMES = {"processor", "memory", "memory speed", "huge pages", "NUMA", "MPI", "cache folder",
         "disk speed", "io_uring", "clock", "open files", "locked memory"}


def main():
    cache = os.path.join(cli.HOME, "not/yet/there")
    run = cli.lean("doctor", "--json", "--cache-dir", cache)
    found = json.loads(run.stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert run.returncode == 0 and found["failed"] == 0, run.stdout
    assert NAMES <= set(checks), NAMES - set(checks)
    assert {"accelerator", "accelerators"} & set(checks)
    for check in checks.values():
        assert check["found"] and check["state"] in ("ok", "note"), check
        assert (check["advice"] is None) == (check["state"] == "ok"), check
    assert re.search(r"reads \d.*/s past", checks["disk speed"]["found"])
    assert cache in checks["cache folder"]["found"]
    assert not os.path.exists(cache) and not [
        name for name in os.listdir(cli.HOME) if name.startswith(".lean-doctor")]

    text = cli.lean("doctor", "--cache-dir", cache)
    assert text.returncode == 0
    for name in NAMES:
        assert re.search(rf"^(ok|note) +{re.escape(name)} ", text.stdout, re.MULTILINE), name

    run = cli.lean("doctor", "--json", "--cache-dir", "/proc")
    found = json.loads(run.stdout)
    assert run.returncode == 10 and found["failed"] == 1, run
    assert "/proc" in next(check["found"] for check in found["checks"] if check["state"] == "failed")
    run = subprocess.run([cli.LEAN, "doctor", "--cache-dir", cli.HOME], capture_output=True,
                         text=True, env=cli.environment(),
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)))
    assert run.returncode == 10 and re.search("^failed +open files +32$", run.stdout, re.MULTILINE)
    assert "1 requirement is not met" in run.stderr, run.stderr
    assert cli.lean("doctor", "me").returncode == 2
    print("doctor: checks, text and JSON, requirements")


if __name__ == "__main__":
    main()
