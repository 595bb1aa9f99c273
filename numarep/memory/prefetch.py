"""Hardware prefetchers into L2, as options: next line of instructions, adjacent line, streams.

- ADJACENT: after any access that L2 missed, the other line of the 128-byte pair.
- NEXT_LINE: after a fetch that L1I missed, the line after it, within its 4 KiB frame.
- STREAM: after any access that L1 missed, lines ahead of a stream (see `streamer`).

A prefetched line comes from wherever a load would find it and takes the same place in L2 and the
LLC, but only once the access that caused it is complete, and it delays nothing. One that L2 holds
already isn't touched.

Source: Optimization Reference Manual, data prefetching to L2 (spatial prefetcher: pairs of lines).
Assumed: the instruction prefetcher fills L2, which every L1I miss looks up first; where one access
gives rise to several, they come in the order above. Left out: prefetches dropped because the memory
is busy, and what one prefetcher's lines would have another fetch.

>>> line = 2 * LINES_PER_PAGE + 62
>>> [next_of(each) - each for each in (line, line + 1)]
[1, 0]
>>> [pair_of(each) - each for each in (line, line + 1)]
[1, -1]
"""

from numarep.jit import jit
from numarep.memory.counts import Service
from numarep.memory.hierarchy import expect, prefetch_l2
from numarep.memory.kinds import Kind
from numarep.memory.streamer import prefetch_stream
from numarep.memory.view import View
from numarep.units import LINES_PER_PAGE

NEXT_LINE, ADJACENT, STREAM = 1, 2, 4  # bits of `View.prefetch`


@jit
def next_of(line: int) -> int:
    """Return the line after one, or the line itself at the end of its frame."""
    return line if (line + 1) % LINES_PER_PAGE == 0 else line + 1


@jit
def pair_of(line: int) -> int:
    """Return the other line of a pair."""
    return line ^ 1


@jit
def expect_prefetches(view: View, prefetchers: int | None, line: int) -> None:
    """Have the host fetch the rows of what an L1 miss most likely gives rise to: its pair."""
    if prefetchers is None:
        return
    if prefetchers & ADJACENT:
        expect(view, pair_of(line))


@jit
def prefetch_after(view: View, prefetchers: int | None, line: int, kind: int, service: int) -> None:
    """Prefetch what an access that L1 missed gives rise to, in place."""
    if prefetchers is None:
        return
    if prefetchers & ADJACENT and service > Service.L2:
        prefetch_l2(view, pair_of(line))
    if prefetchers & NEXT_LINE and kind == Kind.FETCH and next_of(line) != line:
        prefetch_l2(view, next_of(line))
    if prefetchers & STREAM:
        prefetch_stream(view, line)
