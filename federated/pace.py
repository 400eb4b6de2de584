"""How long an answer takes is an output, too: it leaves only at whole beats of a slow clock.

Computing on one patient more or less takes microseconds; seen from outside, answers and refusals
take 1, 2, 3 … beats. This hides such a difference but near the border of two beats, and it is no
differential privacy: `docs/privacy.md` says so.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

BEAT_S: Final = 0.05  # a round over 300 patients takes .016 s, its transport .85 s


@contextmanager
def even_pace() -> Iterator[None]:
    """Let the block end, with an answer or an error, only at a whole beat since its start."""
    started = time.monotonic()
    try:
        yield
    finally:
        taken = time.monotonic() - started
        time.sleep(max(math.ceil(taken / BEAT_S), 1) * BEAT_S - taken)
