"""The core and its plain twin count the same, count for count."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from numarep.memory.counts import Event
from tests.memory.cases import events_by_name, random_case, run_core, run_twin, served_by_name


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), records=st.integers(1, 400))
def test_equals_twin_count_for_count(seed, records):
    case = random_case(seed, records)
    _, counts = run_core(case)
    twin = run_twin(case)
    assert served_by_name(counts) == dict(twin.served)
    assert events_by_name(counts) == {name: n for name, n in twin.events.items() if n}


def test_random_cases_reach_every_event_and_service():
    events, cells = Counter(), Counter()
    for seed in range(60):
        _, counts = run_core(random_case(seed, 300))
        events.update(events_by_name(counts))
        for access, level, _, service, _, overlap in served_by_name(counts):
            cells[access, level, service, overlap] += 1
    assert set(events) == {event.name.lower() for event in Event}
    for service in ("l1", "l2", "llc", "remote_llc", "dram"):
        for access in ("fetch", "load", "store"):
            assert any(key[0] == access and key[2] == service for key in cells), (access, service)
            walks = [key for key in cells if key[0] == f"{access}_walk" and key[2] == service]
            assert walks, (access, service)
    assert {key[1] for key in cells} == {0, 1, 2, 3, 4, 5}
    for access, service in (("load", "dram"), ("load_walk", "llc"), ("store_walk", "dram")):
        found = {key[3] for key in cells if key[0] == access and key[2] == service}
        assert found == {"leading", "overlapped"}
