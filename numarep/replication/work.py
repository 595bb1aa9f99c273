"""What an operation of the kernel costs beyond the unreplicated kernel's work, step by step.

An operation returns its `Work`: bursts of accesses, instructions and synchronising events in the
order they happen. A burst interleaves its runs line by line (a copy loads a line, stores a line).
Accesses are exact: which line of which frame, through which address. Instructions are data of the
policy (`spec.InstructionSpec`); an interprocessor interrupt is an event without accesses.

>>> page = Run(Kind.STORE, vpn=-8, pfn=72, node=1, lines=64, times=8)
>>> work = Work()
>>> work.burst(page)
>>> len(list(work.accesses())), work.references(Kind.STORE), work.references(Kind.STORE, node=0)
(64, 512, 0)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from numarep.memory.kinds import Kind
from numarep.units import LINES_PER_PAGE

CURRENT = -1  # a run's root: whatever the CPU has in CR3


class Run(NamedTuple):
    """`lines` lines, each referenced `times` times; may go on into further pages.

    Each is `stride` lines after the one before: 1, consecutive ones; 0, the same line again.
    """

    kind: Kind
    vpn: int
    pfn: int
    node: int  # that owns the frames
    line: int = 0
    lines: int = 1
    times: int = 1
    root: int = CURRENT  # pfn of the PGD it is reached through, for the poking mm
    stride: int = 1

    def at(self, step: int) -> "Run":
        """Return the one line `step` lines on."""
        page, line = divmod(self.line + step * self.stride, LINES_PER_PAGE)
        return self._replace(vpn=self.vpn + page, pfn=self.pfn + page, line=line, lines=1)


class Burst(NamedTuple):
    """Runs of equal length, interleaved line by line; instructions beside, for every line."""

    runs: tuple[Run, ...]
    instructions: int = 0


class Instructions(NamedTuple):
    """Instructions executed beside the accesses."""

    number: int


class Sync(IntEnum):
    """What makes CPUs agree."""

    CR3_LOAD = 0  # `argument` is the root's pfn
    FLUSH_PAGE = 1  # of `argument`, a vpn
    FLUSH_ALL = 2
    IPI = 3  # by `cpu` to all others at once, and the wait for them


class Event(NamedTuple):
    """One synchronising event on one CPU."""

    sync: Sync
    cpu: int
    argument: int = 0


Step = Burst | Instructions | Event


@dataclass
class Work:
    """Steps in order."""

    steps: list[Step] = field(default_factory=list)

    def burst(self, *runs: Run, instructions: int = 0) -> None:
        """Add accesses, interleaved line by line, with so many instructions a line."""
        self.steps.append(Burst(runs, instructions))

    def instructions(self, count: int) -> None:
        """Add instructions, if there are any."""
        if count:
            self.steps.append(Instructions(count))

    def event(self, sync: Sync, cpu: int, argument: int = 0) -> None:
        """Add a synchronising event."""
        self.steps.append(Event(sync, cpu, argument))

    def extend(self, other: "Work") -> None:
        """Add another operation's steps."""
        self.steps += other.steps

    def accesses(self) -> Iterator[Run]:
        """Yield every line accessed, in order, as runs of one line."""
        for step in self.steps:
            if isinstance(step, Burst):
                for line in range(step.runs[0].lines):
                    yield from (run.at(line) for run in step.runs)

    def references(self, kind: Kind, node: int | None = None) -> int:
        """Count references of one kind, to the memory of one node or of all."""
        runs = (run for step in self.steps if isinstance(step, Burst) for run in step.runs)
        return sum(
            run.lines * run.times for run in runs if run.kind == kind and node in (None, run.node)
        )

    def total_instructions(self) -> int:
        """Sum up the instructions."""
        bursts = (step for step in self.steps if isinstance(step, Burst))
        beside = sum(step.instructions * step.runs[0].lines for step in bursts)
        return beside + sum(step.number for step in self.steps if isinstance(step, Instructions))

    def events(self, sync: Sync) -> list[Event]:
        """List the events of one kind."""
        return [step for step in self.steps if isinstance(step, Event) and step.sync == sync]
