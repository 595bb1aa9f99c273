"""Datasets and traces: what is written is read, and what is damaged is refused by name."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from numarep.workload.dataset import INDEX, Dataset, open_dataset, write_index, write_trace
from numarep.workload.trace import Trace, TraceError, check, select
from tests.traces import tiny_trace

META = {
    "kernel_release": "6.1.0",
    "kernel_package": "linux-image",
    "command_line": "pti=on",
    "qemu": "7.2",
    "seed": 1,
    "seed_effect": "none",
    "cpu_node": 0,
    "pti": True,
    "levels": 4,
    "tick_hz": 250,
    "memory": [{"node": 0, "start_pfn": 0, "end_pfn": 8}],
    "bases": {"direct_map": "0xffff888000000000"},
    "modules": [],
    "workloads": {
        "kill": {
            "window": "all",
            "iterations": 1,
            "records": 3,
            "instructions": 5,
            "loads": 1,
            "stores": 1,
        }
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    capture = tmp_path / "capture"
    capture.mkdir()
    (capture / "capture.json").write_text(json.dumps(META))
    write_trace(capture, "kill", tiny_trace())
    write_index(tmp_path, "small")
    return tmp_path


def opened(folder: Path) -> Dataset:
    return open_dataset(str(folder))


def test_a_trace_comes_back_as_it_was(folder: Path) -> None:
    trace = opened(folder).trace("capture", "kill")
    wanted = tiny_trace()
    for part in ("records", "pages"):
        for field in dataclasses.fields(getattr(wanted, part)):
            ours = getattr(getattr(trace, part), field.name)
            theirs = getattr(getattr(wanted, part), field.name)
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
    assert trace.event_name == wanted.event_name


def test_equal_traces_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_trace(other, "kill", tiny_trace())
    for path in other.iterdir():
        assert path.read_bytes() == (folder / "capture" / path.name).read_bytes()


def test_a_truncated_file_is_refused_by_name(folder: Path) -> None:
    path = folder / "capture" / "kill.records.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TraceError, match=r"kill\.records\.parquet: wrong checksum"):
        opened(folder).trace("capture", "kill")


def test_a_truncated_file_with_a_matching_checksum_is_refused_too(folder: Path) -> None:
    path = folder / "capture" / "kill.records.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    write_index(folder, "small")
    with pytest.raises(TraceError, match="not a readable trace table"):
        opened(folder).trace("capture", "kill")


def test_another_format_version_is_refused(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"format_version": 99}))
    with pytest.raises(TraceError, match="format version 99, expected 1"):
        opened(folder)


def test_a_table_of_another_version_is_refused(folder: Path) -> None:
    path = folder / "capture" / "kill.pages.parquet"
    table = pq.read_table(path).replace_schema_metadata({"numarep.trace.version": "0"})
    pq.write_table(table, path)
    write_index(folder, "small")
    with pytest.raises(TraceError, match="trace format version 0, expected 1"):
        opened(folder).trace("capture", "kill")


@pytest.mark.parametrize("name", ["records", "pages"])
def test_a_table_with_missing_values_is_refused(folder: Path, name: str) -> None:
    path = folder / "capture" / f"kill.{name}.parquet"
    table = pq.read_table(path)
    nothing = pa.nulls(table.num_rows, table.schema[-1].type)
    pq.write_table(table.set_column(len(table.schema) - 1, table.schema[-1], nothing), path)
    write_index(folder, "small")
    with pytest.raises(TraceError, match=rf"kill\.{name}\.parquet: has missing values"):
        opened(folder).trace("capture", "kill")


def test_unknown_names_get_the_nearest_valid_one(folder: Path) -> None:
    with pytest.raises(TraceError, match="did you mean 'kill'"):
        opened(folder).trace("capture", "kil")
    with pytest.raises(TraceError, match="did you mean 'capture'"):
        opened(folder).meta("captures")
    with pytest.raises(TraceError, match="neither a bundled dataset"):
        open_dataset("nowhere")


def test_damaged_metadata_names_the_key(folder: Path) -> None:
    (folder / "capture" / "capture.json").write_text(json.dumps(META | {"seed": "one"}))
    write_index(folder, "small")
    with pytest.raises(TraceError, match=r"capture\.json: seed: expected integer, got 'one'"):
        opened(folder).meta("capture")


def test_the_checksum_depends_on_every_file(folder: Path) -> None:
    before = opened(folder).checksum
    (folder / "note.txt").write_text("more")
    write_index(folder, "small")
    assert opened(folder).checksum != before


def broken(trace: Trace, part: str, column: str, value: int) -> Trace:
    array = getattr(getattr(trace, part), column).copy()
    array.flat[-1] = value
    return dataclasses.replace(
        trace, **{part: dataclasses.replace(getattr(trace, part), **{column: array})}
    )


@pytest.mark.parametrize(
    ("part", "column", "value", "message"),
    [
        ("records", "kind", 7, "row 2: kind: expected 0 to 6"),
        ("records", "page", 1, "row 2: page: expected 0 to 0"),
        ("records", "page", -1, "row 2: page: expected 0 to 0"),
        ("records", "line", 64, "row 2: line: expected 0 to 63"),
        ("records", "count", -1, "row 2: count: expected zero or more"),
        ("pages", "leaf", 4, "row 0: leaf: expected 0 to 3"),
        ("pages", "leaf", 0, "row 0: page: expected a row with a translation"),
        ("pages", "leaf", 1, "row 0: table1: expected a table page"),
        ("pages", "pfn", -1, "row 0: pfn: expected a frame"),
    ],
)
def test_records_that_point_outside_the_trace_are_refused(
    part: str, column: str, value: int, message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        check(broken(tiny_trace(), part, column, value), "trace")


def test_a_trace_must_begin_with_an_iteration() -> None:
    late = dataclasses.replace(tiny_trace(), event_record=np.array([1]))
    with pytest.raises(TraceError, match="iterations that start at record 0"):
        check(late, "trace")
    outside = dataclasses.replace(
        tiny_trace(), event_record=np.array([0, 3]), event_name=("iteration", "pgd_alloc")
    )
    with pytest.raises(TraceError, match="a record below 3"):
        check(outside, "trace")


def test_selecting_records_moves_marks_to_the_next_kept_one() -> None:
    trace = dataclasses.replace(
        tiny_trace(), event_record=np.array([0, 1, 2]), event_name=("iteration", "a", "b")
    )
    kept = select(trace, np.array([True, False, True]))
    assert kept.records.line.tolist() == [0, 63]
    assert kept.event_record.tolist() == [0, 1, 1]
