"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10.0


class Reporter(Protocol):
    """Where a sweep says how far it is."""

    def advance(self, runs: int) -> None:
        """Count finished runs."""

    def say(self, message: str) -> None:
        """Print one line now."""


class _Bar:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("runs", total=total)

    def advance(self, runs: int) -> None:
        self._progress.advance(self._task, runs)

    def say(self, message: str) -> None:
        self._progress.console.print(escape(message), highlight=False, soft_wrap=True)


class _Lines:
    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._done = console, total, 0
        self._begin = self._printed = time.monotonic()

    def advance(self, runs: int) -> None:
        self._done += runs
        now = time.monotonic()
        if now - self._printed >= LINE_SECONDS or self._done == self._total:
            self._printed = now
            self.say(f"{self._done}/{self._total} runs, {now - self._begin:.0f} s")

    def say(self, message: str) -> None:
        self._console.print(escape(message), highlight=False, soft_wrap=True)


@contextmanager
def reporting(console: Console, total: int) -> Iterator[Reporter]:
    """Report the progress of `total` runs."""
    if not console.is_terminal:
        yield _Lines(console, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, total)
