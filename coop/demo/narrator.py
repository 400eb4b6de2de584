"""The demo's voice: numbered steps, what happened, and the command that checks it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_WIDTH: Final = 110


class Narrator:
    """Prints the story; with `quiet_stdout` everything goes to standard error."""

    def __init__(self, *, quiet_stdout: bool) -> None:
        self.console = Console(
            file=sys.stderr if quiet_stdout else sys.stdout,
            highlight=False,
            width=None,
            soft_wrap=True,
        )
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}
        self._number = 0

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """One numbered step; its duration is kept under `name`."""
        self._number += 1
        self.console.print(f"\n[bold]{self._number}. {title}[/bold]")
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 1)
        self.console.print(
            f"   [dim]{self.seconds[name]:.1f} s, {self.elapsed():.0f} s since the start[/dim]"
        )

    def say(self, text: str) -> None:
        """What happened."""
        self.console.print(f"   {text}", markup=False)

    def check(self, command: str) -> None:
        """How to check it."""
        self.console.print(f"   [cyan]check:[/cyan] {command}", markup=True)

    def plain(self, text: str) -> None:
        """A line outside the steps."""
        self.console.print(text, markup=False)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress display for long work; plain output gets none."""
        bar = Progress(
            TextColumn("   {task.description}"),
            BarColumn(bar_width=40),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            yield bar
