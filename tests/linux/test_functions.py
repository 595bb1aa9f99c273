"""Records belong to the function whose line was fetched last, however a trace is taken apart."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numarep import units
from numarep.linux.functions import Owners, functions_of
from numarep.linux.image import Section
from numarep.memory.kinds import Kind
from numarep.units import LINES_PER_PAGE, MAX_LEVELS, PAGE_BYTES, PAGE_SHIFT
from numarep.workload.trace import ITERATION, Pages, Records, Trace

TEXT, MODULE = -(1 << 31), -(1 << 30)
OWNERS = Owners(
    Section(TEXT, TEXT + 2 * PAGE_BYTES),
    pa.array(["zeta", "alpha", "alpha"]),
    np.arange(2 * LINES_PER_PAGE) // 43,
)
MODULES = [("fat", Section(MODULE, MODULE + PAGE_BYTES))]
VAS = (TEXT, TEXT + PAGE_BYTES, TEXT + 2 * PAGE_BYTES, MODULE, 0)  # of each page of the trace
RECORD = st.tuples(
    st.sampled_from([Kind.FETCH, Kind.LOAD, Kind.CR3]),
    st.integers(0, len(VAS) - 1),
    st.integers(0, LINES_PER_PAGE - 1),
)


def trace_of(records: list[tuple[Kind, int, int]]) -> Trace:
    kind, page, line = (np.array(column) for column in zip(*records, strict=True))
    vpn = np.array(VAS, np.int64) >> PAGE_SHIFT
    bytes_ = np.ones(len(vpn), np.uint8)
    table = np.zeros((len(vpn), MAX_LEVELS), np.int64)
    return Trace(
        Records(
            kind.astype(np.uint8),
            page.astype(np.int32),
            line.astype(np.uint8),
            np.ones(len(kind), np.int32),
        ),
        Pages(vpn, vpn * 0, bytes_, bytes_, table),
        np.zeros(1, np.int64),
        (ITERATION,),
    )


def owner(page: int, line: int) -> tuple[str, int]:
    """Name of the function that a line belongs to, and which of those of this name it is."""
    if page < 2:
        of_text = int(OWNERS.of_line[page * LINES_PER_PAGE + line])
        return OWNERS.names[of_text].as_py(), of_text
    return {2: "[other]", 3: "[fat]", 4: "[user]"}[page], 0


@settings(max_examples=200, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=30), st.integers(1, 8))
def test_records_belong_to_the_function_last_fetched(
    records: list[tuple[Kind, int, int]], part: int
) -> None:
    fetched = [owner(page, line) for kind, page, line in records if kind == Kind.FETCH]
    expected, last = [], (fetched or [("[other]", 0)])[0]
    for kind, page, line in records:
        last = owner(page, line) if kind == Kind.FETCH else last
        expected.append(last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "_PART", part)
        function, names = functions_of(trace_of(records), OWNERS, MODULES)
    occurring = sorted(set(expected))
    assert list(names) == [name for name, _ in occurring]
    assert function.tolist() == [occurring.index(each) for each in expected]
