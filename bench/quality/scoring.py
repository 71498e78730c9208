"""Scores of answers: numbers, mathematics, code. Nothing here talks to a server."""
import os
import re
import resource
import subprocess
import sys
import tempfile

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
CODE_S, CODE_BYTES = 10, 1 << 30


def last_number(text):
    """The last number in a text as a plain decimal, or None."""
    found = NUMBER.findall(text)
    if not found:
        return None
    number = found[-1].replace(",", "").replace("$", "")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return number or "0"


def gsm8k(answer, solution):
    return last_number(answer) == last_number(solution.split("####")[-1])


def last_boxed(text):
    """What stands in the last \\boxed{...}, braces balanced, or None."""
    at = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if at < 0:
        match = re.search(r"\\boxed\s+(\S+?)\$?$", text.strip())
        return match[1] if match else None
    begin = text.index("{", at) + 1
    depth = 1
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[begin:end]
    return None


REMOVED = [r"\left", r"\right", r"\!", r"\,", r"\;", r"\ ", r"\$", "$", r"\%", "%", r"^{\circ}", r"^\circ", "{,}",
           r"\displaystyle"]


def plain(expression):
    """One form for the ways in which the same simple result is written."""
    text = expression.strip().rstrip(".")
    text = re.sub(r"\\(text|mbox|mathrm|textbf|mathbf)\s*{([^{}]*)}", r"\2", text)
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    for part in REMOVED:
        text = text.replace(part, "")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*{([^{}]*)}\s*{([^{}]*)}", r"(\1)/(\2)", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\((\w+|-?\d+)\)", r"\1", text)
    text = re.sub(r"^[a-zA-Z]\s*(=|\\in)\s*", "", text)  # x = 5
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text)
    text = re.sub(r"(?<![\d])\.(\d)", r"0.\1", text)
    text = re.sub(r"(\.\d*?)0+(?!\d)", r"\1", text).rstrip(".")
    return text


def math(answer, solution):
    expected, found = last_boxed(solution), last_boxed(answer)
    if expected is None:
        raise ValueError("a solution without \\boxed{}")
    if found is None:
        match = re.search(r"answer is:?\s*(.+?)\.?\s*$", answer.strip(), re.M)
        found = match[1] if match else None
    return found is not None and plain(found) == plain(expected)


def limit_process():
    resource.setrlimit(resource.RLIMIT_CPU, (CODE_S, CODE_S))
    resource.setrlimit(resource.RLIMIT_AS, (CODE_BYTES, CODE_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def passes(program):
    """Whether a Python program ends well within its limits."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "program.py")
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(program)
        try:
            return subprocess.run([sys.executable, "-I", path], cwd=folder, preexec_fn=limit_process,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL, timeout=2 * CODE_S,
                                  env={"PATH": "/usr/bin:/bin"}).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def humaneval(continuation, doc):
    return passes(f"{doc['prompt']}{continuation}\n{doc['test']}\ncheck({doc['entry_point']})\n")
