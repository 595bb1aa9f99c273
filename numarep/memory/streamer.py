"""The stream prefetcher: within a 4 KiB frame, the lines ahead of requests that go one way.

A row of the running CPU's block, there only if the machine has the prefetcher, holds what is known
of the last STREAMS frames that L1 asked for, most recent first: `pfn << STATE_BITS | state`, where
the state is the last line asked for, how many lines ahead of it are requested, and the direction.

- A request two steps of which went the same way belongs to a stream: up to A_LOOKUP more lines
  ahead of it are requested, none more than MOST_AHEAD ahead, none of another frame.
- One that goes the other way begins a new stream, in place of the old one.
- One for the line asked for last changes nothing.

Source: Optimization Reference Manual, "Data Prefetching to L2 and LLC", streamer: it monitors what
L1D and L1I request, keeps 32 streams and one way a 4 KiB page, may request two lines a lookup and
run 20 lines ahead. Assumed: two steps the same way make a stream, and steps may skip lines, as "an
ascending sequence" says no more; the frame asked for longest ago makes room; page walks ask like
loads; a line that L2 holds already counts as requested. Left out: lines brought to the LLC alone
when far ahead or when L2 is busy, and a distance that shrinks with outstanding requests, because
counting knows no time.

>>> state, asked = packed(10, 0, NONE), []
>>> for offset in (11, 12, 13):
...     state, near, far = follow(state, offset)
...     asked += [offset + ahead for ahead in range(near + 1, far + 1)]
>>> asked
[13, 14, 15, 16]
"""

from numarep.jit import jit, jit_apart
from numarep.memory.hierarchy import prefetch_l2
from numarep.memory.recency import matches, move
from numarep.memory.vector import at, lowest
from numarep.memory.view import View
from numarep.units import LINES_PER_PAGE

__all__ = ["NONE", "STREAMS", "follow", "packed", "prefetch_stream"]

STREAMS = 32
MOST_AHEAD = 20
A_LOOKUP = 2
NONE, UP, DOWN = 0, 1, 2
DIRECTION_BITS = 2
AHEAD_BITS = 5
LAST_SHIFT = DIRECTION_BITS + AHEAD_BITS
FRAME_BITS = LINES_PER_PAGE.bit_length() - 1
STATE_BITS = LAST_SHIFT + FRAME_BITS
STATE = (1 << STATE_BITS) - 1


@jit
def packed(last: int, ahead: int, direction: int) -> int:
    """Return the state of a frame whose `last` line was asked for."""
    return (last << AHEAD_BITS | ahead) << DIRECTION_BITS | direction


@jit
def follow(state: int, offset: int) -> tuple[int, int, int]:
    """Return what a request for a line of the frame makes of its state, and what it asks for.

    Returns
    -------
    state : int
    near, far : int
        Lines more than `near` and up to `far` ahead of this one are requested now.
    """
    last, direction = state >> LAST_SHIFT, UP
    steps, room = offset - last, LINES_PER_PAGE - 1 - offset
    if steps == 0:
        return state, 0, 0
    if steps < 0:
        direction, steps, room = DOWN, -steps, offset
    if state & ((1 << DIRECTION_BITS) - 1) != direction:
        return packed(offset, 0, direction), 0, 0
    near = max((state >> DIRECTION_BITS & ((1 << AHEAD_BITS) - 1)) - steps, 0)
    far = min(near + A_LOOKUP, MOST_AHEAD, room)
    return packed(offset, far, direction), near, far


@jit_apart
def prefetch_stream(view: View, line: int) -> None:
    """Let the running CPU's streams know what L1 missed, and prefetch what follows; in place."""
    words, first = view.words, view.streams
    pfn, offset = line >> FRAME_BITS, line & (LINES_PER_PAGE - 1)
    found = matches(words, first, STREAMS, pfn << STATE_BITS, ~STATE)
    way, state, near, far = STREAMS - 1, packed(offset, 0, NONE), 0, 0
    if found != 0:
        way = lowest(found)
        state, near, far = follow(words[at(first + way)] & STATE, offset)
    move(words, first, STREAMS, way, pfn << STATE_BITS | state)
    one = 1 if state & UP else -1
    for ahead in range(near + 1, far + 1):
        prefetch_l2(view, line + one * ahead)
