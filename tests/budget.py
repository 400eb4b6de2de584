"""How much a test may spend: `make test` runs each promise small, `make test-full` in full."""

import os

FULL = os.environ.get("COOP_TEST_BUDGET") == "full"  # noqa: TID251  (the tests' own switch)


def budget(small: int, full: int) -> int:
    """`small` in `make test`, `full` in `make test-full`."""
    return full if FULL else small
