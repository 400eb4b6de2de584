"""One process a folder: a second hub or node over the same state would answer for the first."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from coop.errors import ConflictError

LOCK_FILE: Final = "run.lock"


class AlreadyRunningError(ConflictError):
    """Another process runs over this folder."""

    code = "process.already-running"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the operating system lets go when it ends, however.

    Raises:
        AlreadyRunningError: Another process holds it.
    """
    with (folder / LOCK_FILE).open("w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunningError(
                f"{folder}: another process runs over it; stop that one first"
            ) from error
        yield
