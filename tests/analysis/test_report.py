"""Reports and comparisons as a user meets them: files, what bad input says, and exit codes."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import altair as alt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import agreement, compare, page, report, style, trust
from analysis.section import Column, Section, Table
from analysis.sources import open_sources
from numarep.results import EVENTS, TABLES
from tests.analysis import made

RUNS, COUNTS, MANIFEST = "runs.parquet", "counts.parquet", "manifest.json"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write(tmp_path_factory.mktemp("made") / "results", made.everything())


@pytest.fixture(scope="module")
def out(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    assert report.main([str(results), "--out", str(folder)]) == 0
    return folder


def few(path: Path, **changes: object) -> Path:
    points = made.grid(workload=["kill"], replication=["none", "series"], cache_state=["cold"])
    return made.write(path, [point | changes for point in points])


def test_files_of_a_report(out: Path) -> None:
    figures = {path.name for path in (out / "figures").iterdir()}
    names = {Path(name).stem for name in figures}
    assert figures == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert {"published", "stalls", "ablation", "break_even"} <= names
    for table in (out / "tables").glob("*.csv"):
        assert pl.read_csv(table).columns == pl.read_parquet(table.with_suffix(".parquet")).columns


def test_page_loads_nothing(out: Path) -> None:
    text = (out / "report.html").read_text()
    assert len(text.encode()) < 5_000_000
    assert not re.findall(r"<(?:script|img|link|iframe|object)[^>]*(?:src|href)=", text)
    assert not re.findall(r"@import|url\(", text)
    # Names of XML namespaces look like addresses, and nothing is loaded from them.
    addresses = set(re.findall(r"https?://[^\"' <]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_page_asks_all_questions_in_order(out: Path) -> None:
    text = (out / "report.html").read_text()
    numbers = re.findall(r'<span class="number">(\d+)</span>', text)
    assert numbers == [str(number) for number in range(1, 12)]


def test_only_palette_colours_are_drawn(out: Path) -> None:
    """A colour beside the palette would stay as it is on a dark page."""
    body = (out / "report.html").read_text().split("</style>")[1]
    assert set(re.findall(r'(?:fill|stroke)="(#[0-9a-f]{3,8})"', body)) == set()


def test_summary_fits_a_mail(out: Path) -> None:
    lines = (out / "summary.md").read_text().splitlines()
    prose = [line for line in lines if not line.startswith(("|", "    ", "#"))]
    assert max(map(len, prose)) <= 72
    assert "| kill        | cold   |" in "\n".join(lines) or "| kill" in "\n".join(lines)


def test_report_of_the_same_results_is_the_same(results: Path, out: Path, tmp_path: Path) -> None:
    assert report.main([str(results), "--out", str(tmp_path / "again")]) == 0
    for name in ("report.html", "summary.md", "tables/published.csv", "figures/stalls.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_report_does_not_depend_on_the_order_of_sums(results: Path, tmp_path: Path) -> None:
    outs = []
    for seed in (1, 2):
        path = shutil.copytree(results, tmp_path / str(seed) / "results")
        for name in (COUNTS, "functions.parquet"):
            table = pl.read_parquet(path / name)  # in parts that are inexact, as real ones are
            parts = [table.with_columns(pl.col("stall_ns") * part / 7) for part in (1, 2, 4)]
            mixed = pl.concat(parts).sample(fraction=1, shuffle=True, seed=seed)
            pq.write_table(mixed.to_arrow().cast(pq.read_schema(path / name)), path / name)
        outs.append(tmp_path / str(seed) / "out")
        assert report.main([str(path), "--out", str(outs[-1])]) == 0
    for file in (
        path for kind in ("tables", "figures", "files") for path in (outs[0] / kind).iterdir()
    ):
        if file.stem != "provenance":  # names the folder
            assert (outs[1] / file.parent.name / file.name).read_bytes() == file.read_bytes()


def test_drawings_are_vega_lite(results: Path) -> None:
    """They are put together from charts by hand, unchecked."""
    made_report = report.build_report(open_sources([results]), [str(results)])
    for figure in (figure for section in made_report.sections for figure in section.figures):
        for width in style.Width:
            alt.VConcatChart.validate(style.finished(figure.draw(width)))


def test_missing_studies_are_named_with_their_commands(tmp_path: Path) -> None:
    path = few(tmp_path / "few")
    assert report.main([str(path)]) == 0
    text = (path / "report" / "summary.md").read_text()
    for study in ("layout_noise", "ablation", "break_even", "sensitivity", "null_tests"):
        assert f"python -m numarep.sweep study={study} out={path}" in text


def test_several_folders_are_one_body_of_runs(tmp_path: Path) -> None:
    paths = [few(tmp_path / "one"), few(tmp_path / "two", seed=2), few(tmp_path / "same")]
    assert report.main([*map(str, paths), "--out", str(tmp_path / "out")]) == 0
    table = pl.read_csv(tmp_path / "out" / "tables" / "published.csv")
    assert table["seeds"].to_list() == [2]
    assert "4 runs" in (tmp_path / "out" / "summary.md").read_text()


def test_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no results folder" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    assert report.main([str(tmp_path / "photos")]) == 2
    assert "no runs.parquet" in capsys.readouterr().err
    assert not (tmp_path / "photos" / "report").exists()


def test_another_schema_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = few(tmp_path / "old")
    manifest = json.loads((path / MANIFEST).read_text()) | {"schema_version": 99}
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert report.main([str(path)]) == 2
    assert "schema version 99" in capsys.readouterr().err


def test_no_folder_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'}: no results folder\n"


def test_mixed_schema_versions_leave_out_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, old = few(tmp_path / "new"), few(tmp_path / "old", seed=2)
    manifest = json.loads((old / MANIFEST).read_text()) | {"schema_version": 99}
    (old / MANIFEST).write_text(json.dumps(manifest))
    assert report.main([str(path), str(old)]) == 0
    assert "schema version 99" in capsys.readouterr().err
    assert "schema version 99" in (path / "report" / "report.html").read_text()


def test_mixed_model_versions_leave_out_the_older(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, old = few(tmp_path / "new"), few(tmp_path / "old", seed=2)
    manifest = json.loads((path / MANIFEST).read_text()) | {"model_version": 7}
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert report.main([str(old), str(path), "--out", str(tmp_path / "out")]) == 0
    assert "left out, its model version is 1 and the others' 7" in capsys.readouterr().err
    assert "2 runs" in (tmp_path / "out" / "summary.md").read_text()


def test_a_missing_column_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = few(tmp_path / "lacking")
    table = pq.read_table(path / RUNS)
    pq.write_table(table.drop_columns(["time_serial_ns", "dtlb_hits"]), path / RUNS)
    assert report.main([str(path)]) == 0
    assert "no column time_serial_ns, dtlb_hits" in capsys.readouterr().err
    assert pl.read_csv(path / "report" / "tables" / "published.csv")["a"].null_count() == 0


@pytest.mark.parametrize("table", TABLES)
def test_no_missing_column_ends_a_report(results: Path, tmp_path: Path, table: str) -> None:
    path = shutil.copytree(results, tmp_path / "lacking")
    whole = pq.read_table(path / f"{table}.parquet")
    for column in sorted(set(TABLES[table].names) - {"run_id", *EVENTS[1:]}):
        pq.write_table(whole.drop_columns([column]), path / f"{table}.parquet")
        answered = report.build_report(open_sources([path]), [str(path)])
        assert f"no column {column}" in "".join(answered.notes)


def test_runs_without_ids_are_no_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = few(tmp_path / "lacking")
    pq.write_table(pq.read_table(path / RUNS).drop_columns(["run_id"]), path / RUNS)
    assert report.main([str(path)]) == 2
    assert "no column run_id, so its rows can't be told apart" in capsys.readouterr().err


def test_without_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = few(tmp_path / "counts")
    (path / COUNTS).unlink()
    assert report.main([str(path)]) == 0
    assert "where the time goes is unknown" in capsys.readouterr().err


def test_damaged_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, code in ((COUNTS, 0), ("memory.parquet", 0), (RUNS, 2)):
        path = few(tmp_path / name)
        (path / name).write_bytes((path / name).read_bytes()[:100])
        assert report.main([str(path)]) == code
        assert f"{path / name}: not readable" in capsys.readouterr().err
        page_there = (path / "report" / "report.html").exists()
        assert page_there == (code == 0)


def test_warnings_of_the_sweep_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = few(tmp_path / "warned")
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"warnings": ["a guess", 3]}))
    assert report.main([str(path)]) == 0
    assert "note: a guess\n" in capsys.readouterr().err


def test_damage_behind_a_sound_footer_ends_a_question_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = few(tmp_path / "damaged")
    file = path / "memory.parquet"
    start = pq.read_metadata(file).row_group(0).column(0).data_page_offset
    damaged = bytearray(file.read_bytes())
    damaged[start : start + 20] = bytes(20)
    file.write_bytes(damaged)
    assert report.main([str(path)]) == 0
    assert "question 7: what it needs can't be read" in capsys.readouterr().err
    assert pl.read_csv(path / "report" / "tables" / "published.csv")["a"].null_count() == 0


def test_damaged_agreement_is_left_out(tmp_path: Path) -> None:
    path = few(tmp_path / "damaged")
    (path / agreement.FILE).write_bytes(b"PAR1")
    sources = open_sources([path])
    assert sources.evidence.agreement.is_empty()
    assert agreement.FILE in "".join(sources.notes)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.sampled_from((0.02, 0.1, 0.5, 0.9)))
def test_any_part_of_a_sweep_makes_a_report(results: Path, seed: int, share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(results / MANIFEST, folder)
        runs = pl.read_parquet(results / RUNS).sample(fraction=share, seed=seed)
        ids = pa.array(runs["run_id"].to_list())
        for file in results.glob("*.parquet"):
            kept = pq.read_table(file, filters=pc.is_in(pc.field("run_id"), ids))
            pq.write_table(kept, Path(folder) / file.name)
        answered = report.build_report(open_sources([Path(folder)]), [folder])
    assert [section.number for section in answered.sections] == list(range(1, 12))
    assert not answered.notes


def test_failed_runs_are_counted_and_named(tmp_path: Path) -> None:
    points = list(made.grid(workload=["kill", "fork_1"], replication=["none", "series"]))
    points[3] |= {"error": "ValueError: <b>no</b>"}
    path = made.write(tmp_path / "failed", points)
    assert report.main([str(path)]) == 0
    text = (path / "report" / "report.html").read_text()
    assert "1 of 4 runs failed" in text
    assert "ValueError: &lt;b&gt;no&lt;/b&gt;" in text


def test_comparison_names_the_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = few(tmp_path / "one"), few(tmp_path / "other", base_ipc=2.0)
    assert compare.main([str(one), str(other)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "so can be the cause: machine.core.base_ipc." in text
    assert "base of the baseline" in text or "base of the series" in text
    causes = pl.read_csv(other / "compare" / "tables" / "causes.csv")
    assert causes.row(0) == ("machine.core.base_ipc", 1.0, 2.0)


def test_the_parts_of_a_gain_make_its_difference(tmp_path: Path) -> None:
    grid = {"workload": ["kill", "fork_1"], "cache_state": ["hot", "cold"]}
    both = {"replication": ["none", "series"]}
    near = open_sources([made.write(tmp_path / "near", made.grid(**grid, **both))])
    far = made.grid(**grid, **both, dram=[[[100.0, 200.0], [200.0, 100.0]]], base_ipc=[2.0])
    other = open_sources([made.write(tmp_path / "far", far)])
    gains = compare.gains_changed(near.evidence.cases, other.evidence.cases)
    parts = compare.gain_changed(near.evidence, other.evidence)
    sums = parts.group_by("workload", "cache_state").agg(pl.sum("one", "other", "difference"))
    joined = gains.join(sums, on=["workload", "cache_state"], suffix="_sum")
    assert joined.height == 4
    for whole, part in (("a_one", "one"), ("a_other", "other"), ("difference", "difference_sum")):
        assert joined[whole].to_list() == pytest.approx(joined[part].to_list())
    text = compare.build_comparison(near, other, ("near", "far")).sections[2].answer
    assert text.startswith("Of the +")


def test_what_differs_is_told_by_the_machines_name(tmp_path: Path) -> None:
    both = list(made.grid(workload=["kill"], replication=["none", "series"]))
    mine = [point | {"machine": "mine", "base_ipc": 2.0} for point in both]
    one, other = (
        open_sources([made.write(tmp_path / name, points)])
        for name, points in (("one", both), ("other", mine))
    )
    cause = compare.build_comparison(one, other, ("one", "other")).sections[1].answer
    assert "the machine (e5_2690_v3 against mine and 1 setting)" in cause


def test_comparison_of_a_folder_with_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = few(tmp_path / "one")
    assert compare.main([str(path), str(path)]) == 0
    text = capsys.readouterr().out
    assert "Of 1 gains, 1 are the same" in text
    assert "settings and versions are the same" in text


def test_what_other_simulators_say_is_shown(tmp_path: Path) -> None:
    path = few(tmp_path / "results")
    assert agreement.COMMAND in trust_of(path).commands
    row = {"simulator": "another", "machine": "m", "stream": "s", "compared": 2, "equal": 1}
    pl.DataFrame([row], schema=agreement.SCHEMA).write_parquet(path / agreement.FILE)
    section = trust_of(path)
    assert "another in 0 of 1" in section.answer
    assert "simulators" not in section.missing


def trust_of(path: Path) -> Section:
    return trust.section(open_sources([path]).evidence)


def test_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = few(tmp_path / "one"), few(tmp_path / "other", workload="fork_1")
    assert compare.main([str(one), str(other)]) == 2
    assert "no workload and cache state in common" in capsys.readouterr().err


def test_numbers_in_tables_are_set_properly() -> None:
    frame = pl.DataFrame(
        {"name": ["x", "y"], "n": [-1234.56, -0.01], "low": [-1.04, None], "high": [-0.01, 2.0]}
    )
    columns = {
        "name": Column("name"),
        "n": Column("number", 1),
        "low": Column("range", 1, to="high"),
    }
    text = page.table_html(frame, columns)
    assert "\N{MINUS SIGN}1,234.6" in text
    assert ">0.0<" in text
    assert "\N{MINUS SIGN}1.0 \N{HORIZONTAL ELLIPSIS} 0.0" in text
    assert "\N{EN DASH}" in text


def test_mail_table() -> None:
    frame = pl.DataFrame({"name": ["x", None], "n": [-0.01, 2.25]})
    table = Table("t", "", frame, {"name": Column("name"), "n": Column("n", 1)}, ("name", "n"))
    assert page.mail_table(table).splitlines() == [
        "| name | n   |",
        "|------|-----|",
        "| x    | 0.0 |",
        "| -    | 2.2 |",
    ]
