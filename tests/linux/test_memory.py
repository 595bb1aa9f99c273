"""Frames of all nodes, and the mapping of nodes a capture did not have."""

import pytest

from numarep.linux.frames import FrameError, Frames
from numarep.linux.memory import map_node, struct_page_frames
from numarep.units import PAGE_SHIFT, PMD
from tests.kernels import BASES, NODE_FRAMES, SmallKernel

NEW = (2 * NODE_FRAMES, 3 * NODE_FRAMES)


def test_a_new_node_is_mapped_like_the_others_with_its_struct_pages_at_home() -> None:
    small = SmallKernel(nodes=2)
    used = map_node(small.tables, small.swapper, NEW, BASES, global_pages=True)
    direct_map, vmemmap = (BASES[name] >> PAGE_SHIFT for name in ("direct_map", "vmemmap"))
    for pfn in (NEW[0], NEW[0] + 777, NEW[1] - 1):
        for root in small.roots:  # the tables are shared
            found = small.tables.walk(root, direct_map + pfn)
            assert (found.pfn, found.leaf) == (pfn, PMD)
        struct_page = small.tables.walk(small.swapper, vmemmap + (pfn * 64 >> PAGE_SHIFT))
        assert struct_page.pfn in used
    assert all(NEW[0] <= pfn < NEW[1] for pfn in used)
    assert len(used) == len(set(used))
    assert struct_page_frames(NODE_FRAMES) <= len(used) <= struct_page_frames(NODE_FRAMES) + 8


def test_what_is_mapped_already_or_empty_stays_as_it_is() -> None:
    small = SmallKernel(nodes=2)
    before = {table: dict(page) for table, page in small.tables.pages.items()}
    for memory in (small.ranges[1], (NEW[0], NEW[0])):
        assert map_node(small.tables, small.swapper, memory, BASES, global_pages=False) == []
    assert small.tables.pages == before


def test_frames_are_freed_once_and_recycled_to_the_same_request_only() -> None:
    frames = Frames([(0, 64), (64, 128)], used=[], colours=4)
    first = frames.allocate(1, like=2, recycle=True)
    frames.free(first)
    with pytest.raises(FrameError, match="not in use"):
        frames.free(first)
    assert frames.allocate(1, like=2) != first  # kept for whoever had it
    assert frames.allocate(1, like=2, recycle=True) == first
    with pytest.raises(FrameError, match="node 1: can't allocate 4 KiB"):
        frames.allocate(1, like=2, recycle=True)  # it is in use
    with pytest.raises(FrameError, match="lies on no memory node"):
        frames.node_of(128)


def test_memoryless_nodes_have_no_frames() -> None:
    frames = Frames([(0, 8), (8, 8), (8, 16)], used=[3], colours=1)
    assert frames.memory_nodes == (0, 2)
    assert frames.node_of(8) == 2
    with pytest.raises(FrameError, match="node 1"):
        frames.allocate(1, like=0)
    frames.claim([3, 4])
    assert frames.in_use == {3, 4}
    assert frames.taken == 2
