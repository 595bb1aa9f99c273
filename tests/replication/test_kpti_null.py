"""Equal latencies under KPTI: entry text held twice is all that replicas cost (R34).

What a CPU of another node fetches as the user's CR3 maps it is the kernel's own copy, and what it
fetches as the kernel's CR3 maps it is its node's. In a model where its node's copy is under both, a
run with replicas counts what one without does, to the bit: so nothing else hides in the difference.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from numarep.memory.counts import Access
from numarep.price import price
from numarep.replication.kernel import Kernel, Mm
from numarep.replication.view import on_node
from numarep.simulate import role, simulate
from numarep.spec import RunSpec
from numarep.units import PAGE_SHIFT, PAGES_PER_PMD
from numarep.workload.dataset import open_dataset
from numarep.workload.trace import Pages
from tests.test_bundled import NAME, at_equal_latencies, run_of
from tests.test_simulate import conf, series

USER_PAGE = 1  # of a root's pair of pages


def entry_text() -> range:
    """Pages of the text that the user's CR3 maps, too."""
    symbols = open_dataset(NAME).symbols().select(["name", "address"]).to_pydict()
    at = dict(zip(symbols["name"], symbols["address"], strict=True))
    return range(at["__entry_text_start"] >> PAGE_SHIFT, -(-at["__entry_text_end"] >> PAGE_SHIFT))


def local_entry_text(kernel: Kernel, pages: Pages, node: int, processes: Mapping[int, Mm]) -> Pages:
    """Return what a node's CPUs see, the entry text under the user's CR3 from their own copy."""
    seen, entry = on_node(kernel, pages, node, processes), entry_text()
    inside = (pages.vpn >= entry.start) & (pages.vpn < entry.stop)
    as_user = inside & (pages.leaf > 0) & (pages.root % 2 == USER_PAGE)
    assert as_user.any()
    np.testing.assert_array_equal(seen.pfn[as_user], pages.pfn[as_user])  # R34
    assert (seen.pfn[inside & ~as_user] != pages.pfn[inside & ~as_user]).all()
    copies = {own[kernel.master]: own[kernel.home[node]] for own in kernel.replicated.values()}
    pfn = seen.pfn.copy()
    for row in np.flatnonzero(as_user).tolist():
        offset = int(pages.pfn[row]) % PAGES_PER_PMD
        pfn[row] = copies[int(pages.pfn[row]) - offset] + offset
    return dataclasses.replace(seen, pfn=pfn)


@pytest.fixture
def held_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every CPU fetch its entry text from its own node's copy."""
    role.roles_of.cache_clear()
    monkeypatch.setattr(role, "on_node", local_entry_text)
    yield
    role.roles_of.cache_clear()


def equal_latencies(window: str, state: str) -> RunSpec:
    kernel = conf("kernel/debian_6_1_pti.yaml")
    return at_equal_latencies(run_of(window, kernel=kernel, cache_state=state))


@pytest.mark.parametrize("window", ["kill", "open_close", "mmap_munmap", "mount_proc", "fork_1"])
@pytest.mark.parametrize("state", ["hot", "cold"])
def test_r34_null_entry_text_held_twice_is_all_that_replicas_cost_at_equal_latencies(
    window: str, state: str, held_once: None
) -> None:
    run = equal_latencies(window, state)
    before, after = (simulate(spec).counts for spec in (run, series(run, costs="waived")))
    np.testing.assert_array_equal(after.served.sum(axis=4), before.served.sum(axis=4))
    np.testing.assert_array_equal(after.events, before.events)
    assert price(after, run.machine, 1) == price(before, run.machine, 1)


@pytest.mark.parametrize("state", ["hot", "cold"])
def test_r34_null_entry_text_held_twice_costs_a_remote_cpu_a_little(state: str) -> None:
    run = equal_latencies("open_close", state)
    before, after = (simulate(spec).counts for spec in (run, series(run, costs="waived")))
    np.testing.assert_array_equal(
        after.served.sum(axis=(1, 3, 4, 5))[: Access.STORE + 1],
        before.served.sum(axis=(1, 3, 4, 5))[: Access.STORE + 1],
    )
    gain = 1 - price(after, run.machine, 1).time_ns / price(before, run.machine, 1).time_ns
    assert -0.01 < gain < 0
