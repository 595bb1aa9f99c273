"""Bundled traces as input of the core, frames as captured, one region."""

import numpy as np

from numarep.memory.system import Stream, Translations
from numarep.workload.dataset import open_dataset
from numarep.workload.trace import Flag

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
