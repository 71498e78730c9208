"""Talks to template_driver, which renders many templates in one process."""
import json
import os
import re
import subprocess

BUILD = os.environ.get("LEAN_BUILD_DIR", "build")
SOURCE = os.environ.get("LEAN_SOURCE_DIR", ".")
DRIVER = os.path.join(BUILD, "tests", "template_driver")
MARK = "float as written: "


def load_cases(path):
    """The cases of a golden file. Floats keep their spelling, as strings that render() undoes."""
    with open(path, encoding="utf-8") as file:
        golden = json.JSONDecoder(parse_float=lambda text: MARK + text).decode(file.read())
    for case in golden["cases"]:
        if "template" not in case:
            with open(os.path.join(os.path.dirname(path), golden["template"]), encoding="utf-8",
                      newline="") as file:
                case["template"] = file.read()
    return golden["cases"]


def render(cases):
    """The driver's answers to the cases, each a dict with "template" and "inputs"."""
    lines = []
    for case in cases:
        line = json.dumps({"template": case["template"], "inputs": case["inputs"]})
        lines.append(re.sub(f'"{MARK}([^"]*)"', r"\1", line))
    result = subprocess.run([DRIVER], input="\n".join(lines) + "\n", capture_output=True,
                            text=True, encoding="utf-8", errors="surrogatepass", timeout=600)
    if result.returncode:
        raise AssertionError(f"template_driver ended with {result.returncode}: {result.stderr}")
    answers = [json.loads(line) for line in result.stdout.split("\n")[:-1]]
    if len(answers) != len(cases):
        raise AssertionError(f"{len(cases)} cases, {len(answers)} answers")
    return answers


def differences(cases):
    """One line for each case whose answer is not the expected one."""
    found = []
    for case, answer in zip(cases, render(cases)):
        if "expected" in case:
            fits = answer.get("text") == case["expected"]
        elif case["error_kind"] == "raise":
            fits = (answer.get("kind"), answer.get("error")) == ("raise", case["error"])
        else:
            kinds = {"syntax": ("syntax",), "runtime": ("runtime", "limit")}[case["error_kind"]]
            fits = answer.get("kind") in kinds
        if not fits:
            found.append(f"{case['name']}: {case.get('expected', case.get('error'))!r}, not {answer}")
    return found


def golden_folder():
    """The folder of golden data, or None."""
    folder = os.environ.get("LEAN_GOLDEN_DIR") or os.path.join(SOURCE, "..", "shared", "golden")
    return folder if os.path.isdir(folder) else None
