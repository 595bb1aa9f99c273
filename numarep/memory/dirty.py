"""Dirty data that reaches an inclusive LLC: listed first, flagged there many lines at once.

A dirty line that L2 or L1D evicts sets a flag of the LLC's copy. That copy's row is one nobody
asked the host for, so flagging it at once would wait for the host's memory, after a branch nobody
can foresee. Instead the line is listed, without a branch, and the flags of many are set in one
short loop whose waits overlap.

Proof obligation: the flags are those of one access at a time wherever they are read. Setting one
twice, or after what touched its row's order, is the same; an inclusive LLC reads them only of what
it evicts, and other CPUs read them in their turns. So the list is emptied before a line enters the
LLC (`flag_all`) and when a stretch of operations ends.

>>> int(Ahead.END - Ahead.DIRTIED) == LISTED
True
"""

from numarep.jit import jit, jit_apart
from numarep.memory.copies import mark_in
from numarep.memory.vector import at
from numarep.memory.view import DIRTY, LISTED, Ahead, View, shared_row_of

__all__ = ["LISTED", "flag_all", "flag_if_many", "flag_later"]


@jit_apart
def _flag(view: View, listed: int) -> None:
    """Flag the lines listed as dirty in the own LLC, in place."""
    llc = view.directory
    for each in range(listed):
        line = view.ahead[at(Ahead.DIRTIED + each)]
        mark_in(view.words, shared_row_of(view, view.domain, llc, line), llc.ways, line, DIRTY)
    view.ahead[Ahead.PENDING] = 0


@jit
def flag_all(view: View) -> None:
    """Flag what is listed as dirty, in place."""
    listed = view.ahead[Ahead.PENDING]
    if listed > 0:
        _flag(view, listed)


@jit
def flag_if_many(view: View) -> None:
    """Flag what is listed as dirty if that is much; in place.

    Callers let at most LISTED / 2 evictions pass in between, so that none need ask for room.
    """
    if view.ahead[Ahead.PENDING] >= LISTED // 2:
        _flag(view, int(view.ahead[Ahead.PENDING]))


@jit
def flag_later(view: View, line: int, is_dirty: int) -> None:
    """List a line that the own, inclusive LLC holds, if `is_dirty` is 1 and not 0; in place."""
    listed = view.ahead[Ahead.PENDING]
    view.ahead[at(Ahead.DIRTIED + listed)] = line
    view.ahead[Ahead.PENDING] = listed + is_dirty
