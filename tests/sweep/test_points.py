"""Points from a file are the same points as overrides name, whatever the file's format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from numarep.results import scan_runs
from numarep.spec import SpecError
from numarep.sweep.grid import expand

MATRIX = [[90.0, 140.0], [140.0, 90.0]]
ROWS: list[dict[str, Any]] = [
    {
        "workload": "kill",
        "seed": 2,
        "machine.latency.dram_ns": MATRIX,
        "machine.latency.llc_ns": 20.0,
    },
    {
        "workload": "boot",
        "seed": 1,
        "machine.latency.dram_ns": MATRIX,
        "machine.latency.llc_ns": 25.5,
    },
    {"workload": "kill", "machine.psc.pgd": {"entries": 3, "ways": 3}},
]


def _csv(path: Path) -> None:
    keys = list(dict.fromkeys(key for row in ROWS for key in row))
    lines = [[json.dumps(row[key]) if key in row else "" for key in keys] for row in ROWS]
    # Text needs no quotes; a list does, for its commas.
    quoted = [
        ['"' + c.replace('"', '""') + '"' if "," in c else c.strip('"') for c in line]
        for line in lines
    ]
    path.write_text("\n".join([",".join(keys), *(",".join(line) for line in quoted)]) + "\n")


def _json_lines(path: Path) -> None:
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")


def _parquet(path: Path) -> None:
    pl.DataFrame(ROWS).write_parquet(path)


FORMATS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}


@pytest.fixture(params=FORMATS, ids=FORMATS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"mine{request.param}"
    FORMATS[request.param](path)
    return path


def test_a_row_is_what_its_overrides_are(file: Path) -> None:
    typed = [
        [
            "workload=kill",
            "seed=2",
            f"machine.latency.dram_ns={MATRIX}",
            "machine.latency.llc_ns=20.0",
        ],
        [
            "workload=boot",
            "seed=1",
            f"machine.latency.dram_ns={MATRIX}",
            "machine.latency.llc_ns=25.5",
        ],
        ["workload=kill", "machine.psc.pgd={entries:3,ways:3}"],
    ]
    study = expand([f"points={file}"])
    assert study.name == "single"
    assert study.points == [expand(["study=single", *row]).points[0] for row in typed]


def test_rows_multiply_with_the_axes_they_do_not_set(file: Path) -> None:
    points = expand(["study=ablation", "cpu_node=1", f"points={file}"]).points
    once = expand(["study=ablation", "workload=kill"]).points
    assert len(points) == len(ROWS) * len(once)
    assert {point["workload"]["name"] for point in points} == {"kill", "boot"}


def test_an_empty_cell_leaves_the_studys_axis(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("seed,replication.text\n,false\n7,\n")
    points = expand(["study=ablation", "workload=kill", f"points={file}"]).points
    plain = [p for p in points if p["replication"]["name"] == "none"]
    assert sorted((p["seed"], p["cache_state"]) for p in plain) == [
        (1, "cold"), (1, "hot"), (7, "cold"), (7, "hot"),
    ]  # fmt: skip
    texts = [(p["seed"], p["replication"]["text"]) for p in points if p not in plain]
    assert set(texts) == {(1, False), (7, True), (7, False)}


BAD = {
    "unknown key": ("sed\n1\n", "mine.csv, line 2: sed: no such key; did you mean 'seed'"),
    "unknown nested key": ("seed,machine.core.gzh\n1,2\n", "line 2: machine.core.gzh: no such key"),
    "unknown option": ("workload\nkill\nkil\n", "line 3: workload: no such option 'kil'"),
    "wrong value": ("seed\n1\ntwo\n", "line 3: seed: expected integer, got 'two'"),
    "an expression": ("seed\n1+1\n", "line 2: seed: expected integer, got '1+1'"),
    "a reference": ("seed\n${cpu_node}\n", "line 2: seed: expected integer, got '${cpu_node}'"),
    "not a number": (
        "machine.core.ghz\nNaN\n",
        "line 2: machine.core.ghz: expected number, got 'NaN'",
    ),
    "more cells": ("seed\n1,2\n", "line 2: 2 cells under 1 keys"),
    "named twice": ("seed,seed\n1,2\n", "line 1: seed: named twice"),
    "no key": ("seed,\n1,2\n", "line 1: expected a key above every column"),
    "for all runs": ("out\nhere\n", "out: one for all runs"),
    "executor": ("executor.kind\nserial\n", "executor.kind: one for all runs"),
    "unclosed": ('seed\n"1\n', "line 2: "),
    "empty": ("", "line 1: expected a key above every column"),
    "no rows": ("seed\n", "mine.csv: no rows"),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_by_its_line(
    text: str,
    words: str,
    sweep: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = tmp_path / "mine.csv", tmp_path / "out"
    file.write_text(text)
    assert sweep(f"points={file}", f"out={out}") == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert words in errors
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.csv", None, "No such file"),
        ("mine.txt", b"seed\n1\n", "expected a file .csv, .jsonl, .parquet"),
        ("mine.csv", b"seed\n\xff\n", "not UTF-8"),
        ("mine.parquet", b"seed", "not Parquet"),
        ("mine.jsonl", b'{"seed": 1}\n{"seed"\n', "line 2: not JSON"),
        ("mine.jsonl", b"[1]\n", "line 1: expected a mapping"),
    ],
)
def test_a_file_that_is_none_is_refused(
    name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SpecError, match=words):
        expand([f"points={file}"])


def test_a_key_is_given_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("seed\n1\n")
    with pytest.raises(SpecError, match="seed: typed as well"):
        expand([f"points={file}", "seed=2"])
    with pytest.raises(SpecError, match="references"):
        expand([f"points={file}", "cpu_node=${kernel.layout_seed}"])


def test_a_sweep_of_a_file_goes_on_where_it_stopped(
    sweep: Callable[..., int], tmp_path: Path
) -> None:
    file, out = tmp_path / "mine.csv", tmp_path / "out"
    file.write_text("seed\n1\n2\n")
    assert sweep("workload=kill", f"points={file}", f"out={out}") == 0
    before = (out / "runs.parquet").read_bytes()
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["points_sha256"]) == 64
    file.write_text("seed\n1\n2\n3\n")
    assert sweep("workload=kill", f"points={file}", f"out={out}") == 0
    assert sorted(scan_runs(out).collect()["seed"]) == [1, 2, 3]
    file.write_text("seed\n2\n1\n")
    other = tmp_path / "other"
    assert sweep("workload=kill", f"points={file}", f"out={other}") == 0
    assert (other / "runs.parquet").read_bytes() == before
