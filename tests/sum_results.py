"""Sums CTest's JUnit files: sum_results.py EXPECTED_SKIPS FILE.xml..."""
import sys
import xml.etree.ElementTree as ElementTree


def read_expected(path):
    """Names at the start of the lines; the rest of a line is the reason."""
    with open(path) as file:
        return {line.split()[0] for line in file if line.strip() and not line.startswith("#")}


def main(expected_path, *paths):
    expected, count, unexpected = read_expected(expected_path), {}, []
    for path in paths:
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            status = case.get("status")
            kind = {"run": "passed", "fail": "failed"}.get(status, "skipped")
            count[kind] = count.get(kind, 0) + 1
            if kind == "failed":
                print(f"failed: {case.get('name')}")
            if kind == "skipped":
                output = (case.findtext("system-out") or "").strip().splitlines()
                print(f"skipped: {case.get('name')}: {output[-1] if output else 'not run'}")
                if case.get("name") not in expected:
                    unexpected.append(case.get("name"))
    for name in unexpected:
        print(f"{name} was skipped, and tests/expected_skips does not name it")
    passed, failed, skipped = (count.get(kind, 0) for kind in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed and not unexpected else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
