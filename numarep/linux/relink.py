"""Re-linking the traced kernel in simulation: the same code at other addresses.

Two builds of one kernel differ by several percent with hot caches, from set conflicts alone (see
Mytkowicz et al., ASPLOS 2009). `permuted` shows how much: it shuffles whole functions within text
and whole objects within rodata, rewrites the trace's records, and makes the translations they now
need.

A trace knows lines, not bytes, so what moves are the runs of functions between two symbols that
start on a cache line; nothing inside a line is ever torn apart, every line keeps its content, and
a run keeps its alignment to lines. The mapping of lines is a bijection of the section onto itself.
Entry text stays where it is, because KPTI maps it by address, and so does the padding at the end
of a section.

>>> order = shuffled_lines(np.array([0, 2, 3]), 5, np.random.default_rng(1))
>>> sorted(order.tolist())
[0, 1, 2, 3, 4]
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from numarep.linux.image import Image, Section
from numarep.memory.kinds import Kind
from numarep.units import LINE_BYTES, LINE_SHIFT, LINES_PER_PAGE, PAGE_SHIFT, PMD, PMD_BYTES
from numarep.workload.trace import Pages, Trace, TraceError

_ENTRY_TEXT = "__entry_text_start"
_STAYS = -1


def shuffled_lines(
    starts: NDArray[np.int64], lines: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the new place of every line of a section whose units are shuffled.

    Parameters
    ----------
    starts : int64[units]
        First line of each unit, rising from 0; the last unit stays last.
    lines : int
        Lines of the section.
    rng : Generator

    Returns
    -------
    int64[lines]
        A permutation.
    """
    sizes = np.diff(starts, append=lines)
    order = np.append(rng.permutation(len(starts) - 1), len(starts) - 1)
    new_starts = np.empty_like(starts)
    new_starts[order] = np.cumsum(sizes[order]) - sizes[order]
    unit = np.repeat(np.arange(len(starts)), sizes)
    place: NDArray[np.int64] = np.arange(lines) + (new_starts - starts)[unit]
    return place


@dataclass(frozen=True)
class Relink:
    """Where every line of a kernel's text and rodata goes."""

    sections: tuple[Section, ...]
    places: tuple[NDArray[np.int64], ...]  # a permutation of each section's lines

    def apply(self, trace: Trace) -> Trace:
        """Return the trace as the re-linked kernel would have run it.

        Raises
        ------
        TraceError
            If the trace's kernel is not mapped in whole 2 MiB leaves by one PMD page a root.
        """
        for section, place in zip(self.sections, self.places, strict=True):
            trace = _moved(trace, section, place)
        return trace


def relink(image: Image, symbols: pa.Table, seed: int) -> Relink:
    """Shuffle a kernel's functions and read-only objects; equal seeds give equal layouts."""
    rng = np.random.default_rng(seed)
    address = np.unique(symbols.column("address").to_numpy())
    sections = (*_permutable_text(image, symbols), image.rodata)
    whole = tuple(s for s in sections if s.bytes >= LINE_BYTES)
    places = []
    for section in whole:
        inside = address[(address > section.start) & (address < section.end)]
        starts = (inside[inside % LINE_BYTES == 0] - section.start) >> LINE_SHIFT
        lines = section.bytes >> LINE_SHIFT
        starts = np.concatenate([[0], starts[starts < lines]]).astype(np.int64)
        places.append(shuffled_lines(starts, lines, rng))
    return Relink(whole, tuple(places))


def _permutable_text(image: Image, symbols: pa.Table) -> list[Section]:
    """Return text without the 2 MiB units of entry text, in whole lines."""
    names = symbols.column("name").to_pylist()
    if _ENTRY_TEXT not in names:
        return [image.text]
    entry = symbols.column("address")[names.index(_ENTRY_TEXT)].as_py() // PMD_BYTES * PMD_BYTES
    return [Section(image.text.start, entry), Section(entry + PMD_BYTES, image.text.end)]


def _moved(trace: Trace, section: Section, place: NDArray[np.int64]) -> Trace:
    """Move one section's lines: records get new lines and rows, rows new pages."""
    first = section.start >> PAGE_SHIFT
    pages, records = trace.pages, trace.records
    of_section = section.holds(pages.vpn) & (pages.leaf > 0)
    if not of_section.any():
        return trace
    # Of the section, or beyond all that moves; 32 bits, because this is done for every record.
    row_line = np.where(of_section, (pages.vpn - first) * LINES_PER_PAGE, len(place))
    line = row_line.astype(np.int32)[records.page] + records.line
    moves = np.flatnonzero((line < len(place)) & (records.kind <= Kind.STORE))
    new_line = place.astype(np.int32)[line[moves]]
    roots, root = np.unique(pages.root, return_inverse=True)
    page_count = -(-len(place) // LINES_PER_PAGE)
    page_of_root = (root * page_count).astype(np.int32)
    key = page_of_root[records.page[moves]] + new_line // LINES_PER_PAGE
    wanted = np.flatnonzero(np.bincount(key, minlength=len(roots) * page_count))
    row_of = np.zeros(len(roots) * page_count, np.int32)
    row_of[wanted] = np.arange(len(wanted)) + len(pages.vpn)
    added = _rows(pages, of_section, root, wanted // page_count, wanted % page_count + first)
    new_page, new_in_page = records.page.copy(), records.line.copy()
    new_page[moves] = row_of[key]
    new_in_page[moves] = new_line % LINES_PER_PAGE
    moved = dataclasses.replace(records, page=new_page, line=new_in_page)
    return dataclasses.replace(trace, records=moved, pages=added)


def _rows(
    pages: Pages,
    of_section: NDArray[np.bool_],
    root: NDArray[np.int64],
    wanted_root: NDArray[np.int64],
    vpn: NDArray[np.int64],
) -> Pages:
    """Append translations of `vpn` under the wanted roots, like that root's other ones."""
    template = np.full(int(root.max()) + 1, _STAYS, np.int64)
    template[root[of_section]] = np.flatnonzero(of_section)
    like = template[wanted_root]
    same = template[root[of_section]]
    if (pages.leaf[of_section] != PMD).any() or (
        pages.table[of_section] != pages.table[same]
    ).any():
        raise TraceError("re-linking: expected 2 MiB leaves under one PMD page a root")
    return Pages(
        np.concatenate([pages.vpn, vpn]),
        np.concatenate([pages.pfn, vpn + (pages.pfn - pages.vpn)[like]]),
        np.concatenate([pages.leaf, pages.leaf[like]]),
        np.concatenate([pages.flags, pages.flags[like]]),
        np.concatenate([pages.table, pages.table[like]]),
    )
