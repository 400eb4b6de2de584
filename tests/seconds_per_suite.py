"""Adds pytest's `--durations=0` lines up per test file: `make test-time`."""

import re
import sys
from collections import Counter

LINE = re.compile(r"^\s*([0-9.]+)s (?:call|setup|teardown)\s+tests/(\S+?)::")


def main() -> None:
    seconds: Counter[str] = Counter()
    for line in sys.stdin:
        if found := LINE.match(line):
            seconds[found[2]] += float(found[1])  # type: ignore[assignment]  # a Counter adds floats as well
        elif "passed" in line or "failed" in line:
            print(line.strip())
    for name, total in seconds.most_common():
        print(f"{total:8.1f} s  {name}")


if __name__ == "__main__":
    main()
