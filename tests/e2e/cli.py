"""Runs the program under test, away from the user's own configuration and history."""
import atexit
import os
import shutil
import subprocess
import tempfile

LEAN = os.environ.get("LEAN", os.path.join(os.path.dirname(__file__), "../../build/lean"))
SOURCE_DIR = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
HOME = tempfile.mkdtemp(prefix="lean-test-home-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)


def environment(**extra):
    """The environment with an empty home directory and no settings; extra: variables to add."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LEAN_", "XDG_"))}
    env.update(HOME=HOME, TERM="xterm", **extra)
    return env


def is_sanitized():
    """A sanitizer makes the program slow and brings an allocator of its own."""
    with open(LEAN, "rb") as file:
        program = file.read()
    return b"__asan_init" in program or b"__tsan_init" in program


def lean(*args, input=None, text=True, timeout=120, cwd=None, **extra):
    """Runs `lean ARGS`; extra: environment variables. Returns the CompletedProcess."""
    words = [word if isinstance(word, bytes) else str(word) for word in args]
    return subprocess.run([LEAN, *words], input=input, text=text, capture_output=True,
                          timeout=timeout, env=environment(**extra), cwd=cwd,
                          stdin=subprocess.DEVNULL if input is None else None)
