"""Which kernel function a record of a trace belongs to: the one whose line was fetched last.

A trace knows lines, not bytes. A line that several functions share (29 % of Debian 6.1's functions
are shorter than a line) goes to the one that holds its middle byte. What is fetched outside the
kernel's text is named after where it lies: [user], [MODULE], [other].

>>> import pyarrow as pa
>>> symbols = pa.table({"address": [0, 48, 48, 192], "type": list("TTtT"),
...                     "name": ["one", "__ia32_two", "two", "three"]})
>>> owners = owners_of(Section(0, 256), symbols)
>>> owners.names.take(owners.of_line).to_pylist()
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
from numarep.units import LINE_BYTES, LINE_SHIFT, LINES_PER_PAGE, parts
from numarep.workload.trace import Records, Trace

_CODE = pa.array(["t", "T", "w", "W"])
_ALIAS = "__ia32_"  # the same code as a 32-bit system call
USER, OTHER = "[user]", "[other]"


@dataclass(frozen=True)
class Owners:
    """The function that each line of the kernel's text belongs to.

    names : of functions, in the order of their addresses; Arrow's, as Python's take 5 MB.
    of_line : int64[lines of text], indices into `names`.
    """

    text: Section
    names: pa.Array
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
    names = ordered["name"].take(pa.array(first)).combine_chunks()
    middle = np.arange(text.start + LINE_BYTES // 2, text.end + LINE_BYTES // 2, LINE_BYTES)
    owner = np.searchsorted(address, middle, side="right") - 1
    del code, rank, ordered
    pa.default_memory_pool().release_unused()  # else Arrow keeps what sorting took: 10 MB
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
    records = trace.records
    fetched = np.zeros(len(trace.pages.vpn) * LINES_PER_PAGE, np.bool_)
    for here in parts(len(records.kind)):
        fetched[_fetched_in(records, here)[1]] = True
    place = np.flatnonzero(fetched)
    if not len(place):
        return np.broadcast_to(np.zeros(1, np.int32), len(records.kind)), (OTHER,)
    owner, others = _owners_at(place, trace.pages.vpn, owners, modules)
    found, which = np.unique(owner, return_inverse=True)
    in_text = found[found < len(owners.names)]
    names = owners.names.take(in_text).to_pylist()
    names += [others[each - len(owners.names)] for each in found[len(in_text) :].tolist()]
    by_name = sorted(range(len(names)), key=names.__getitem__)
    number = np.zeros(len(names), np.int32)
    number[by_name] = np.arange(len(names))
    if len(names) == 1:  # as in a boot, of which there are millions of records
        function = np.broadcast_to(number, len(records.kind))
    else:
        of_place = np.zeros(len(fetched), np.int32)
        of_place[place] = number[which]
        function = _of_last_fetch(records, of_place)
    return function, tuple(names[each] for each in by_name)


def _fetched_in(records: Records, here: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which records of a part are fetches, and of which line of all pages' lines each is."""
    fetch = np.flatnonzero(records.kind[here] == Kind.FETCH)
    page = records.page[here][fetch].astype(np.int64)
    return fetch, page * LINES_PER_PAGE + records.line[here][fetch]


def _owners_at(
    place: NDArray[np.int64],
    vpn: NDArray[np.int64],
    owners: Owners,
    modules: Iterable[tuple[str, Section]],
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the owner of some of all pages' lines, and the names that follow those of the text."""
    names = [OTHER, USER]
    elsewhere = np.where(vpn < 0, len(owners.names), len(owners.names) + 1)
    for name, section in modules:
        elsewhere[section.holds(vpn)] = len(owners.names) + len(names)
        names.append(f"[{name}]")
    page, line = np.divmod(place, LINES_PER_PAGE)
    line += vpn[page] * LINES_PER_PAGE - (owners.text.start >> LINE_SHIFT)
    in_text = (line >= 0) & (line < len(owners.of_line))
    return np.where(in_text, owners.of_line[np.where(in_text, line, 0)], elsewhere[page]), names


def _of_last_fetch(records: Records, of_place: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return what belongs to the line last fetched by each record, or to the first one fetched."""
    found = np.empty(len(records.kind), np.int32)
    first = int(np.argmax(records.kind == Kind.FETCH))
    last = of_place[_fetched_in(records, slice(first, first + 1))[1]]
    for here in parts(len(found)):
        fetch, place = _fetched_in(records, here)
        since = np.append(last, of_place[place])
        found[here] = np.repeat(since, np.diff(fetch, prepend=0, append=here.stop - here.start))
        last = since[-1:]
    return found
