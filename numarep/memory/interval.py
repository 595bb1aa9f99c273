"""Interval analysis: which accesses are exposed and which hide behind an earlier one.

A stream has no register dependences, so overlap is decided by order alone (never by latency, which
keeps counting independent of it). An access and the walk before it form a chain, exposed or hidden
as a whole:

- A FETCH chain always leads: nothing is issued until it ends. If any part of it was served beyond
  L2 the reorder buffer drains, and the window closes.
- A LOAD chain, or a STORE's walk, served by L1 and L2 alone is hidden by out-of-order execution.
- Otherwise it is long. Within `reorder_window` instructions of the last leading long chain it
  overlaps that one; else it leads, and opens a new window.
- A STORE's own access is always hidden by the store buffer, and never opens a window.
- CR3 writes, INVLPG and TLB flushes serialise: they close the window.

The state is one number, the instructions left in the open window (0: closed), so it is canonical:
it doesn't remember where in the stream the window was opened. Written without branches, for nobody
can foresee them.

Source: Karkhanis and Smith, "A First-Order Superscalar Processor Model", ISCA 2004; Genbrugge,
Eyerman and Eeckhout, "Interval Simulation", HPCA 2010. Assumed: an instruction is one micro-op; a
run of instructions passes where its FETCH record stands.

>>> left = 0
>>> overlap = overlap_of(Kind.LOAD, 1, left)
>>> left = window_after(Kind.LOAD, 1, overlap, left, 192)
>>> overlap, left, overlap_of(Kind.LOAD, 1, pass_instructions(left, 191))
(0, 192, 1)
>>> overlap_of(Kind.LOAD, 1, pass_instructions(left, 192))
0
"""

from numarep.jit import jit
from numarep.memory.counts import Overlap
from numarep.memory.kinds import Kind
from numarep.memory.vector import choose


@jit
def overlap_of(kind: int, is_long: int, left: int) -> int:
    """Return whether a chain leads or overlaps, `left` instructions before the window closes."""
    leads = (kind == Kind.FETCH) | ((is_long != 0) & (left == 0))
    return choose(1 if leads else 0, Overlap.LEADING.value, Overlap.OVERLAPPED.value)


@jit
def window_after(kind: int, is_long: int, overlap: int, left: int, reorder_window: int) -> int:
    """Return the instructions left in the window after a chain: if it's long and leads, others."""
    others = choose(1 if kind == Kind.FETCH else 0, 0, reorder_window)
    changes = (is_long != 0) & (overlap == Overlap.LEADING)
    return choose(1 if changes else 0, others, left)


@jit
def pass_instructions(left: int, instructions: int) -> int:
    """Return the instructions left in the window after some have passed."""
    return max(left - instructions, 0)
