"""Bundled traces as input of the core, frames as captured, one region."""

import numpy as np

from numarep.memory.counts import Counts, new_counts
from numarep.memory.kinds import Kind
from numarep.memory.system import Stream, Translations, new_system, run
from numarep.spec import MachineSpec
from numarep.workload.dataset import open_dataset
from numarep.workload.trace import Flag
from tests.twin import Page, Record, Twin

DATASET = "debian-6.1"


def bundled(capture: str, workload: str) -> tuple[Stream, Translations, np.ndarray]:
    """Return a stream, its translations and the end of each node's memory."""
    dataset = open_dataset(DATASET)
    trace, meta = dataset.trace(capture, workload), dataset.meta(capture)
    records, pages = trace.records, trace.pages
    ends = np.zeros(1 + max(node.node for node in meta.memory), np.int64)
    for node in meta.memory:
        ends[node.node] = max(ends[node.node], node.end_pfn)
    # Frames outside the map (firmware, devices) count as the last node's.
    ends[-1] = max(ends[-1], int(pages.pfn.max()) + 1, int(pages.table.max()) + 1)
    translations = Translations(
        vpn=pages.vpn,
        pfn=np.maximum(pages.pfn, 0),
        leaf=pages.leaf.astype(np.int64),
        is_global=(pages.flags & Flag.GLOBAL != 0).astype(np.int64),
        root=pages.root,
        table=pages.table,
        region=np.zeros(len(pages.vpn), np.int64),
    )
    return Stream(records.kind, records.page, records.line, records.count), translations, ends


def on_slices(spec: MachineSpec, capture: str, workload: str) -> tuple[Counts, Twin]:
    """Run slices of a trace through the core and its twin, two sockets taking turns on each."""
    stream, translations, ends = bundled(capture, workload)
    size = 3000
    starts = [0, len(stream.kind) // 2]
    system, counts = new_system(spec, (0, 1), ends), new_counts(2, 1)
    twin = Twin(spec, (0, 1), ends)
    pages = {}
    for start in starts:
        stop = min(start + size, len(stream.kind))
        rows = zip(*(column[start:stop].tolist() for column in stream[:4]), strict=True)
        records = [Record(Kind(kind).name.lower(), *rest) for kind, *rest in rows]
        pages |= {record.page: real_page(translations, record.page) for record in records}
        for cpu in (0, 1, 0):
            run(system, cpu, stream, translations, start, stop, counts)
            twin.run(cpu, records, pages)
    return counts, twin


def real_page(translations, row):
    vpn, pfn, leaf, is_global, root = (int(column[row]) for column in translations[:5])
    table = {level: int(pfn) for level, pfn in enumerate(translations.table[row], 1) if pfn >= 0}
    return Page(vpn, pfn, leaf, bool(is_global), root, table, 0)
