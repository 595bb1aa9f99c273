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
import pyarrow.compute as pc
from numpy.typing import NDArray

from numarep.linux.image import Image, Section
from numarep.memory.kinds import Kind
from numarep.units import LINE_BYTES, LINE_SHIFT, LINES_PER_PAGE, PMD, PMD_BYTES
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
        records = trace.records
        part, new_line = self._new_lines(trace.pages)
        # Per record as little as can be: its line among those of all pages, a gather for each of
        # its columns.
        old = records.page * np.int32(LINES_PER_PAGE) + records.line
        no_access = np.flatnonzero(records.kind > Kind.STORE)
        is_used = np.zeros(len(part), np.bool_)
        is_used[np.delete(old, no_access)] = True
        pages, row = _rows(trace.pages, part, new_line, np.flatnonzero(is_used & (part >= 0)))
        in_page = new_line % LINES_PER_PAGE
        page, line = row[old], in_page.astype(np.uint8)[old]
        page[no_access], line[no_access] = records.page[no_access], records.line[no_access]
        moved = dataclasses.replace(records, page=page, line=line)
        return dataclasses.replace(trace, records=moved, pages=pages)

    def _new_lines(self, pages: Pages) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return of each line of each page the section it is in, or -1, and the line it becomes.

        Both int[pages * 64]; a line is its address over 64.
        """
        line = (pages.vpn[:, None] * LINES_PER_PAGE + np.arange(LINES_PER_PAGE)).reshape(-1)
        part = np.full(len(line), _STAYS, np.int32)
        is_mapped = np.repeat(pages.leaf > 0, LINES_PER_PAGE)
        for number, (section, place) in enumerate(zip(self.sections, self.places, strict=True)):
            first = section.start >> LINE_SHIFT
            inside = np.flatnonzero(is_mapped & (line >= first) & (line < first + len(place)))
            part[inside] = number
            line[inside] = first + place[line[inside] - first]
        return part, line


def relink(image: Image, symbols: pa.Table, seed: int) -> Relink:
    """Shuffle a kernel's functions and read-only objects; equal seeds give equal layouts."""
    rng = np.random.default_rng(seed)
    address = symbols.column("address").to_numpy()
    sections = (*_permutable_text(image, symbols), image.rodata)
    whole = tuple(s for s in sections if s.bytes >= LINE_BYTES)
    places = []
    for section in whole:
        lines = section.bytes >> LINE_SHIFT
        line, offset = np.divmod(address - section.start, LINE_BYTES)
        is_start = np.zeros(lines, np.bool_)
        is_start[line[(offset == 0) & (line >= 0) & (line < lines)]] = True
        is_start[0] = True
        places.append(shuffled_lines(np.flatnonzero(is_start), lines, rng))
    return Relink(whole, tuple(places))


def _permutable_text(image: Image, symbols: pa.Table) -> list[Section]:
    """Return text without the 2 MiB units of entry text, in whole lines."""
    row = pc.index(symbols.column("name"), _ENTRY_TEXT).as_py()
    if row < 0:
        return [image.text]
    entry = symbols.column("address")[row].as_py() // PMD_BYTES * PMD_BYTES
    return [Section(image.text.start, entry), Section(entry + PMD_BYTES, image.text.end)]


def _rows(
    pages: Pages, part: NDArray[np.int32], new_line: NDArray[np.int64], moves: NDArray[np.int64]
) -> tuple[Pages, NDArray[np.int32]]:
    """Append the translations that moved lines need, like the others of their section and root.

    Returns the pages, and of each line of each page the row it has from now on, int32[pages * 64].
    """
    _, root = np.unique(pages.root, return_inverse=True)
    roots = int(root.max()) + 1
    old_row = np.repeat(np.arange(len(pages.vpn), dtype=np.int32), LINES_PER_PAGE)
    if not len(moves):
        return pages, old_row
    kind = part[moves] * roots + root[old_row[moves]]  # a section under a root
    like = np.full(int(kind.max()) + 1, _STAYS, np.int64)
    like[kind] = old_row[moves]
    same, row = like[kind], old_row[moves]
    if (pages.leaf[row] != PMD).any() or (pages.table[row] != pages.table[same]).any():
        raise TraceError("re-linking: expected 2 MiB leaves under one PMD page a root")
    vpn = new_line[moves] // LINES_PER_PAGE
    first, span = int(vpn.min()), int(np.ptp(vpn)) + 1
    key = kind * span + vpn - first
    wanted = np.flatnonzero(np.bincount(key))  # sorted and unique, in linear time
    number = np.zeros(int(key.max()) + 1, np.int32)
    number[wanted] = np.arange(len(wanted)) + len(pages.vpn)
    new_row = old_row.copy()
    new_row[moves] = number[key]
    like, vpn = like[wanted // span], wanted % span + first
    return Pages(
        np.concatenate([pages.vpn, vpn]),
        np.concatenate([pages.pfn, vpn + (pages.pfn - pages.vpn)[like]]),
        np.concatenate([pages.leaf, pages.leaf[like]]),
        np.concatenate([pages.flags, pages.flags[like]]),
        np.concatenate([pages.table, pages.table[like]]),
    ), new_row
