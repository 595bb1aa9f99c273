"""Which kernel function a record of a trace belongs to: the one whose line was fetched last.

A trace knows lines, not bytes. A line that several functions share (29 % of Debian 6.1's functions
are shorter than a line) goes to the one that holds its middle byte. What is fetched outside the
kernel's text is named after where it lies: [user], [MODULE], [other].

>>> import pyarrow as pa
>>> symbols = pa.table({"address": [0, 48, 48, 192], "type": list("TTtT"),
...                     "name": ["one", "__ia32_two", "two", "three"]})
>>> owners = owners_of(Section(0, 256), symbols)
>>> [owners.names[owner] for owner in owners.of_line]
['one', 'two', 'two', 'three']
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from numarep.linux.image import Section
from numarep.linux.relink import Relink
from numarep.memory.kinds import Kind
from numarep.units import LINE_BYTES, LINE_SHIFT, LINES_PER_PAGE
from numarep.workload.trace import Trace

_CODE = pa.array(["t", "T", "w", "W"])
_ALIAS = "__ia32_"  # the same code as a 32-bit system call
USER, OTHER = "[user]", "[other]"


@dataclass(frozen=True)
class Owners:
    """The function that each line of the kernel's text belongs to.

    names : of functions, in the order of their addresses.
    of_line : int64[lines of text], indices into `names`.
    """

    text: Section
    names: tuple[str, ...]
    of_line: NDArray[np.int64]

    def relinked(self, relink: Relink) -> "Owners":
        """Return the owners after the text's lines have moved."""
        of_line = self.of_line.copy()
        for section, place in zip(relink.sections, relink.places, strict=True):
            if section.start < self.text.start or section.end > self.text.end:
                continue
            first = (section.start - self.text.start) >> LINE_SHIFT
            of_line[first + place] = self.of_line[first : first + len(place)]
        return dataclasses.replace(self, of_line=of_line)


def owners_of(text: Section, symbols: pa.Table) -> Owners:
    """Find the function of each line of text in a symbol table (schema `dataset.SYMBOLS`)."""
    inside = pc.and_(
        pc.greater_equal(symbols["address"], text.start), pc.less(symbols["address"], text.end)
    )
    code = symbols.filter(pc.and_(inside, pc.is_in(symbols["type"], _CODE)))
    rank = pc.cast(pc.starts_with(code["name"], _ALIAS), pa.int8())
    # Of several names of one address the 64-bit one, then the first by name.
    ordered = code.append_column("rank", rank).sort_by(
        [(key, "ascending") for key in ("address", "rank", "name")]
    )
    address, first = np.unique(ordered["address"].to_numpy(), return_index=True)
    names = tuple(ordered["name"].take(pa.array(first)).to_pylist())
    middle = np.arange(text.start + LINE_BYTES // 2, text.end + LINE_BYTES // 2, LINE_BYTES)
    owner = np.searchsorted(address, middle, side="right") - 1
    return Owners(text, names, np.maximum(owner, 0))


def functions_of(
    trace: Trace, owners: Owners, modules: Iterable[tuple[str, Section]]
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return each record's function, and the functions' names.

    Parameters
    ----------
    trace : Trace
    owners : Owners
    modules : names and addresses of loaded modules

    Returns
    -------
    function : int32[n]
        Index into the names. Records before the first fetch belong to its function.
    names : tuple of str
        Of the functions that occur, in alphabetical order.
    """
    fetch = np.flatnonzero(trace.records.kind == Kind.FETCH)
    if not len(fetch):
        return np.zeros(len(trace.records.kind), np.int32), (OTHER,)
    known = list(owners.names)
    page = trace.records.page[fetch]
    elsewhere = np.full(len(trace.pages.vpn), len(known), np.int64)
    elsewhere[trace.pages.vpn >= 0] += 1
    known += [OTHER, USER]
    for name, section in modules:
        elsewhere[section.holds(trace.pages.vpn)] = len(known)
        known.append(f"[{name}]")
    line = (trace.pages.vpn * LINES_PER_PAGE)[page] + trace.records.line[fetch]
    line -= owners.text.start >> LINE_SHIFT
    in_text = (line >= 0) & (line < len(owners.of_line))
    owner = np.where(in_text, owners.of_line[np.where(in_text, line, 0)], elsewhere[page])
    found = np.flatnonzero(np.bincount(owner)).tolist()
    by_name = sorted(found, key=known.__getitem__)
    number = np.zeros(len(known), np.int32)
    number[by_name] = np.arange(len(by_name))
    runs = np.diff(np.append(fetch[1:], len(trace.records.kind)), prepend=0)
    return np.repeat(number[owner], runs), tuple(known[each] for each in by_name)
