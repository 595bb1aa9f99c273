"""A results folder: same bytes whatever happened on the way, nothing lost, nothing twice."""

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from numarep.results import (
    COUNTS,
    DETAILS,
    RUNS,
    SCHEMA_VERSION,
    Results,
    ResultsError,
    file_of,
    open_results,
    row,
    run_id,
    scan_counts,
    scan_functions,
    scan_memory,
    scan_runs,
    shard_table,
)
from numarep.spec import RunSpec, parse
from numarep.sweep.grid import expand
from tests.sweep import double

Shards = list[pa.Table]


@pytest.fixture(scope="module")
def shards() -> Shards:
    """Four shards of three runs; one run has failed."""
    points = expand(["study=single", "seed=range(0,12)"]).points
    rows = []
    for point in points:
        spec = parse(RunSpec, point)
        outcome = next(double.evaluate([spec])) if spec.seed != 5 else "ValueError: five"
        rows.append(row(run_id(spec, "checksum", 1), "state", "study", spec, outcome))
    return [shard_table(rows[start : start + 3]) for start in range(0, 12, 3)]


def filled(folder: Path, shards: Shards) -> Results:
    folder.mkdir()
    results = open_results(folder)
    for shard in shards:
        results.add(shard)
    return results


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_order_and_repeats_do_not_change_the_bytes(tmp_path: Path, shards: Shards) -> None:
    filled(tmp_path / "a", shards).compact()
    filled(tmp_path / "b", [*shards[::-1], pa.concat_tables(shards[:2])]).compact()
    half = filled(tmp_path / "c", shards[2:])
    half.compact()
    for shard in shards:
        half.add(shard)
    half.compact()
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert not (tmp_path / "a" / "shards").exists()


WRITTEN = [file_of(name) for name in (*DETAILS, "runs")]


@pytest.mark.parametrize("files", [WRITTEN[: end + 1] for end in range(len(WRITTEN))])
@pytest.mark.parametrize("deleted", [0, 3])
def test_a_crash_between_any_two_steps_of_compaction_is_harmless(
    files: list[str], deleted: int, tmp_path: Path, shards: Shards
) -> None:
    """Builds what each crash leaves behind: an old table, new tables, some shards."""
    begun = filled(tmp_path / "begun", shards[:2])
    begun.compact()
    for shard in shards[2:]:
        begun.add(shard)
    done = tmp_path / "done"
    shutil.copytree(begun.path, done)
    open_results(done).compact()
    for name in files:
        shutil.copy(done / name, begun.path / name)
    if files == WRITTEN:  # shards are deleted last
        for shard in sorted((begun.path / "shards").iterdir())[:deleted]:
            shard.unlink()
    (begun.path / ".runs.parquet.1.tmp").write_bytes(b"half")

    assert scan_runs(begun.path).collect().equals(scan_runs(done).collect())
    for scan in (scan_counts, scan_functions, scan_memory):
        assert scan(begun.path).collect().equals(scan(done).collect())
    again = open_results(begun.path)
    with again.lock():
        again.compact()
    assert contents(begun.path) == contents(done)
    assert not list(begun.path.glob(".*.tmp"))


def test_a_finished_run_replaces_its_failure(tmp_path: Path, shards: Shards) -> None:
    results = filled(tmp_path / "out", shards)
    results.compact()
    failure = scan_runs(results.path).filter(status="failed").collect()
    spec = parse(RunSpec, expand(["study=single", "seed=5"]).points[0])
    identity = failure["run_id"].item()
    assert identity not in results.finished()
    outcome = next(double.evaluate([spec]))
    results.add(shard_table([row(identity, "state", "study", spec, outcome)]))
    results.compact()
    assert scan_runs(results.path).filter(status="failed").collect().is_empty()
    assert scan_counts(results.path).filter(run_id=identity).collect().height == 2
    assert identity in results.finished()


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_shard_is_reported_and_its_runs_are_done_again(
    length: int,
    tmp_path: Path,
    shards: Shards,
) -> None:
    results = filled(tmp_path / "out", shards)
    broken = results.shards[1]
    lost = set(pq.read_table(broken)["run_id"].to_pylist())
    broken.write_bytes(broken.read_bytes()[:length])
    results = open_results(results.path)
    assert results.damaged() == [broken]
    assert not results.finished(results.damaged()) & lost
    assert not set(scan_runs(results.path).collect()["run_id"]) & lost
    results.discard(results.damaged())
    results.compact()
    assert scan_runs(results.path).collect().height == 9


def test_a_sweep_repairs_a_folder_with_a_truncated_shard(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("study=single", "seed=range(0,4)", f"out={tmp_path / 'out'}")
    assert sweep(*grid) == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "shards").mkdir()
    (tmp_path / "out" / "shards" / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "out" / "runs.parquet").unlink()
    assert sweep(*grid) == 0
    assert "cut.parquet: cut short" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_flipped_bits_are_noticed(tmp_path: Path, shards: Shards) -> None:
    results = filled(tmp_path / "out", shards)
    shard = results.shards[0]
    content = bytearray(shard.read_bytes())
    content[200] ^= 0xFF
    shard.write_bytes(content)
    assert results.damaged() == [shard]


def test_scans_have_the_documented_schema(tmp_path: Path, shards: Shards) -> None:
    results = filled(tmp_path / "out", shards)
    for _ in ("before", "after compaction"):
        assert scan_runs(results.path).collect_schema().names() == RUNS.names
        assert scan_counts(results.path).collect_schema().names() == COUNTS.names
        results.compact()
    runs = pl.DataFrame(RUNS.empty_table()).schema
    assert scan_runs(results.path).collect_schema() == runs
    assert pq.read_schema(results.path / "runs.parquet").remove_metadata() == RUNS


def test_other_versions_and_damaged_tables_are_refused(tmp_path: Path, shards: Shards) -> None:
    results = filled(tmp_path / "out", shards)
    results.compact()
    runs = results.path / "runs.parquet"
    table = pq.read_table(runs)
    version = {b"numarep.results.version": str(SCHEMA_VERSION + 1).encode()}
    pq.write_table(table.replace_schema_metadata(version), runs)
    for refuse in (open_results, scan_runs, scan_counts):
        with pytest.raises(ResultsError, match=f"schema version {SCHEMA_VERSION + 1}"):
            refuse(results.path)
    runs.write_bytes(b"PAR1")
    with pytest.raises(ResultsError, match=r"runs\.parquet: not readable"):
        open_results(results.path)


def test_run_ids_know_spec_dataset_and_model() -> None:
    specs = [parse(RunSpec, p) for p in expand(["study=single", "seed=1,2"]).points]
    ids = {run_id(spec, checksum, model) for spec in specs for checksum in "ab" for model in (1, 2)}
    assert len(ids) == 8
