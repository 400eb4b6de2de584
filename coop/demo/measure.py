"""What the demo's processes use: memory and CPU time of the whole tree."""

import os
import threading
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_KIB: Final = 1024
_EVERY_S: Final = 1.0


def tree(root: int | None = None) -> set[int]:
    """A process, by default this one, and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = {os.getpid() if root is None else root}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found


def memory_bytes(root: int | None = None) -> int:
    """Proportional set size of the tree below `root`: shared pages count once."""
    return sum(proportional(pid) for pid in tree(root))


def proportional(pid: int) -> int:
    """Bytes of one process, of what it shares its part; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith("Pss:"))


def cpu_seconds() -> float:
    """User and system time of the tree's living processes and their reaped children."""
    total = 0
    for pid in tree():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(value) for value in fields[11:15])
    return total / _TICKS


class Peak:
    """Samples the tree's memory once a second; `bytes` is the most it saw."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.bytes = max(self.bytes, memory_bytes())
