"""Which kernel functions are watched, and warnings of work there that can't be charged (R38).

A capture marks the entries of the functions that it knows of, and says which. What a kernel lacks
it does not run; so a missing function is worth a warning only if every kernel has it, perhaps by
another name. What a kernel has but its capture did not mark is worth one only in a window that may
have entered it: one that fetches the line where the function begins.

>>> watched(levels=5)["__p4d_alloc"]
'fill'
"""

import warnings
from collections.abc import Collection, Iterable

import numpy as np

from numarep.memory.kinds import Kind
from numarep.replication.module_clues import FREE, LOAD, PROTECT
from numarep.units import LINE_SHIFT, MAX_LEVELS, PAGE_BYTES, PAGE_SHIFT
from numarep.workload.trace import Trace

# text_poke is every phase of the INT3 protocol; the others write at once, a page at a time.
TEXT_POKE, COPIES = "text_poke", ("text_poke_copy", "text_poke_set", "text_poke_kgdb")
POKES = (TEXT_POKE, *COPIES)
_ALWAYS = {"pgd_alloc": "birth", "pgd_free": "death", "switch_mm_irqs_off": "switch"}
_MODULES = {LOAD: "load", FREE: "unload"} | dict.fromkeys(PROTECT, "protect")
# Not in every kernel: set_memory_rox is of 6.2, text_poke_set of 6.0, text_poke_copy of 5.18,
# text_poke_kgdb of kernels with KGDB, and the rest may be inlined where nothing calls them.
_OPTIONAL = frozenset(
    (*COPIES, *(f"set_memory_{change}" for change in ("rox", "np", "global", "nonglobal")))
)
# What captures marked before they recorded it.
MARKED_BEFORE = frozenset(
    (
        *_ALWAYS,
        *("__p4d_alloc", "__pud_alloc", "___pud_free_tlb", TEXT_POKE, LOAD, FREE),
        *(f"set_memory_{change}" for change in ("ro", "rw", "x", "nx")),
    )
)


class ReplicationWarning(UserWarning):
    """Work of replication that can't be charged for this kernel or window."""


def watched(levels: int) -> dict[str, str]:
    """Return the watched symbols and what each stands for."""
    top = "p4d" if levels == MAX_LEVELS else "pud"
    slots = {f"__{top}_alloc": "fill", f"___{top}_free_tlb": "clear"}
    return {**_ALWAYS, **dict.fromkeys(POKES, "poke"), **slots, **_MODULES}


def warn_of_missing(symbols: Collection[str], levels: int) -> None:
    """Warn of watched symbols a kernel does not have: their work is never charged."""
    wanted = watched(levels).keys() - _OPTIONAL
    missing = sorted(name for name in wanted if name not in symbols)  # a few, of 50,000 symbols
    if missing:
        warnings.warn(
            f"the kernel has no symbol {', '.join(missing)}: what replication adds there is not "
            "charged",
            ReplicationWarning,
            stacklevel=2,
        )


def unmarked(
    trace: Trace, symbols: Iterable[tuple[str, int]], marked: Collection[str] | None, levels: int
) -> list[str]:
    """List watched functions that a window may enter and whose entries its capture did not mark.

    Parameters
    ----------
    symbols : iterable of (name, address)
    marked : collection of str, optional
        What the capture recorded that it marked; None where it recorded nothing.
    """
    names = watched(levels).keys() - (MARKED_BEFORE if marked is None else set(marked))
    entries = [(name, va) for name, va in symbols if name in names]
    if not entries:
        return []
    fetched = np.flatnonzero(trace.records.kind == Kind.FETCH)
    vpn, line = trace.pages.vpn[trace.records.page[fetched]], trace.records.line[fetched]
    return sorted(
        name
        for name, va in entries
        if ((vpn == va >> PAGE_SHIFT) & (line == va % PAGE_BYTES >> LINE_SHIFT)).any()
    )


def warn_of_unmarked(names: Collection[str]) -> None:
    """Warn of what `unmarked` lists."""
    if names:
        warnings.warn(
            f"the window may enter {', '.join(names)}, which its capture did not mark: what "
            "replication adds there is not charged; capture the kernel anew",
            ReplicationWarning,
            stacklevel=2,
        )
