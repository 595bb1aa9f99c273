"""Passes over streams: until nothing changes any more, on one CPU or on several at once.

A pass runs every lane's whole stream once. It is a deterministic function of the system's state
and the streams: the state before it determines its counts and the state after it. So once a pass
ends in the state it began in, every further pass would do the same again, and its counts are
added, multiplied, instead. That is exact because the state compared is all there is
(`System.words` and `window_left`; the loop keeps nothing else between calls) and canonical (see
`system`).

Copying and comparing states costs more than a short pass. So before a short pass it is done only
if the last two passes counted alike, as they must in a steady state; that never changes the
counts, only how many passes are simulated.

Several CPUs take turns of `quantum` instructions, in the order of the lanes, and whoever is done
waits for the others before the next pass. One lane's counts don't depend on the quantum. Assumed:
CPUs that run at once fetch instructions at the same rate, since counting knows no time.

>>> columns = [0, 1, 0, 0], [0] * 4, [0] * 4, [3, 9, 4, 1]
>>> stream = Stream(*map(np.array, columns))
>>> turn_stops(stream, quantum=5).tolist()  # 3 + 4 instructions, then 1
[3, 4]
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.memory.batch import Stream
from numarep.memory.checked import axes
from numarep.memory.counts import Counts, new_counts
from numarep.memory.kinds import Kind
from numarep.memory.loop import Translations
from numarep.memory.system import Prepared, System, prepare, run_prepared

WORDS_A_RECORD = 16  # of state copied and compared in the time one record is simulated in


class Lane(NamedTuple):
    """What one CPU runs, and the counts it adds to, modified in place."""

    cpu: int
    stream: Stream
    translations: Translations
    counts: Counts


def turn_stops(stream: Stream, quantum: int) -> NDArray[np.int64]:
    """Return the record at which each of a stream's turns ends, int64[turns].

    It is the record by which a further multiple of `quantum` instructions has been fetched, or the
    last.
    """
    records = len(stream.kind)
    if not records:
        return np.zeros(0, np.int64)
    fetches = np.flatnonzero(stream.kind == Kind.FETCH)
    passed = np.cumsum(stream.repeats[fetches], dtype=np.int64)
    ends = np.arange(quantum, passed.max(initial=0) + 1, quantum)
    stops = np.append(fetches[np.searchsorted(passed, ends)] + 1, records)
    return np.unique(stops).astype(np.int64)


def repeat(
    system: System,
    cpu: int,
    stream: Stream,
    translations: Translations,
    times: int,
    counts: Counts,
) -> int:
    """Run a whole stream `times` times on one CPU, simulating only until nothing changes.

    System and counts are modified in place exactly as by `times` calls of `run`.

    Returns
    -------
    int
        Number of passes simulated.
    """
    whole = [np.array([len(stream.kind)])]
    return _repeat(system, [Lane(cpu, stream, translations, counts)], whole, times)


def repeat_together(system: System, lanes: Sequence[Lane], times: int, quantum: int) -> int:
    """Run every lane's stream `times` times, all at once; see the module's text.

    System and counts are modified in place; no two lanes may share a CPU or counts.

    Returns
    -------
    int
        Number of passes simulated.

    Raises
    ------
    ValueError
        If two lanes share a CPU, or the quantum is not positive.
    """
    if len({lane.cpu for lane in lanes}) < len(lanes):
        raise ValueError("lanes: expected one for each CPU")
    if quantum < 1:
        raise ValueError(f"quantum: expected a positive number of instructions, got {quantum}")
    stops = [turn_stops(lane.stream, quantum) for lane in lanes]
    return _repeat(system, lanes, stops, times)


def _repeat(
    system: System, lanes: Sequence[Lane], stops: Sequence[NDArray[np.int64]], times: int
) -> int:
    if times == 0:
        return 0
    prepared = [prepare(system, *lane) for lane in lanes]
    records = sum(len(lane.stream.kind) for lane in lanes)
    is_long = records * WORDS_A_RECORD > len(system.words)
    one, last = ([new_counts(*axes(lane.counts)) for lane in lanes] for _ in range(2))
    for done in range(1, times + 1):
        is_alike = done > 2 and all(map(_alike, one, last))
        is_worth = done < times and (is_long or is_alike)
        before = None  # one copy at a time
        before = _state(system) if is_worth else None
        one, last = last, one
        _pass(system, prepared, stops, one)
        for lane, counts in zip(lanes, one, strict=True):
            _add(lane.counts, counts, 1)
        if before is not None and all(map(np.array_equal, before, _views(system))):
            for lane, counts in zip(lanes, one, strict=True):
                _add(lane.counts, counts, times - done)
            return done
    return times


def _views(system: System) -> tuple[NDArray[np.int64], ...]:
    return system.words, system.window_left


def _state(system: System) -> tuple[NDArray[np.int64], ...]:
    return tuple(array.copy() for array in _views(system))


def _alike(one: Counts, other: Counts) -> bool:
    return all(map(np.array_equal, one, other))


def _pass(
    system: System,
    prepared: Sequence[Prepared],
    stops: Sequence[NDArray[np.int64]],
    counts: Sequence[Counts],
) -> None:
    """Run every lane's stream once, turn by turn; counts are overwritten, in place."""
    for lane_counts in counts:
        for array in lane_counts:
            array.fill(0)
    turns = [lane_stops.tolist() for lane_stops in stops]
    lanes = [lane.counted_in(each) for lane, each in zip(prepared, counts, strict=True)]
    for turn in range(max(map(len, turns))):
        for lane, lane_stops in zip(lanes, turns, strict=True):
            if turn < len(lane_stops):
                start = lane_stops[turn - 1] if turn else 0
                run_prepared(system, lane, start, lane_stops[turn])


def _add(counts: Counts, one: Counts, times: int) -> None:
    """Add `times` copies of one pass's counts, in place."""
    for total, of_one in zip(counts, one, strict=True):
        total[:] += of_one * times
