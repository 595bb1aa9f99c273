"""What reports take: `python -m tests.benchmarks.report [RUNS...]`, one JSON object a line.

The runs are those of `tests.analysis.made`, again and again with other seeds. `seconds`,
`cpu_seconds` and `peak_mib` are those of `python -m analysis.report` as a process; `open_seconds`
is what the page takes in headless Chromium until it has been laid out, where there is one.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from numarep.results import TABLES, file_of
from tests.analysis import made

CHUNK = 200_000  # runs written at a time


def write_runs(folder: Path, number: int) -> Path:
    """Write a results folder of about so many runs, and return it."""
    made.write(folder, made.everything())
    once = pl.read_parquet(folder / file_of("runs")).height
    times = max(1, round(number / once))
    for name in TABLES:
        file = folder / file_of(name)
        table = pl.read_parquet(file)
        schema = pq.read_schema(file)
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            step = max(1, CHUNK // once)
            for start in range(0, times, step):
                tiles = pl.concat(_tile(table, n) for n in range(start, min(times, start + step)))
                writer.write_table(tiles.to_arrow().cast(schema))
    return folder


def _tile(table: pl.DataFrame, tile: int) -> pl.DataFrame:
    """Return the same runs under other names, as if captured with other seeds."""
    seed = pl.col("seed") + 10 * tile

    def named(column: str) -> pl.Expr:  # as short as real ids are
        name = pl.format("{}#{}", column, pl.lit(tile))
        return pl.format("{}{}", name.hash(0), name.hash(1)).str.head(20)

    changes = {"run_id": named("run_id")}
    if "spec" in table.columns:
        changes["pair_id"] = named("pair_id")
        changes["seed"] = seed
        changes["spec"] = pl.col("spec").str.replace(r'"seed": \d+', pl.format('"seed": {}', seed))
    return table.with_columns(**changes)


def measure(number: int) -> dict[str, float | int]:
    """Make one report and say what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "results"
        # Elsewhere: Linux counts what a parent holds at the start to its child's peak.
        with multiprocessing.get_context("spawn").Pool(1) as writer:
            writer.apply(write_runs, (folder, number))
        runs = pl.scan_parquet(folder / file_of("runs")).select(pl.len()).collect().item()
        command = [sys.executable, "-m", "analysis.report", str(folder)]
        start = time.monotonic()
        # As from a shell: Polars, loaded here, left its allocator's settings in the environment.
        settings = {k: v for k, v in os.environ.items() if k != "_RJEM_MALLOC_CONF"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=settings)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)}: exit status {status}")
        page = folder / "report" / "report.html"
        return {
            "runs": runs,
            "seconds": round(time.monotonic() - start, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_mib": used.ru_maxrss // 1024,
            "page_bytes": page.stat().st_size,
            **_opened(page),
        }


def _opened(page: Path) -> dict[str, float]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        return {}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        start = time.monotonic()
        tab.goto(page.as_uri())
        tab.evaluate("document.body.getBoundingClientRect().height")
        spent = time.monotonic() - start
        browser.close()
    return {"open_seconds": round(spent, 2)}


def main() -> None:
    """Print a line for each number of runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.report", description=__doc__)
    parser.add_argument("runs", type=int, nargs="*", default=[10_000, 1_000_000])
    for number in parser.parse_args().runs:
        row = measure(number) | {"load": round(os.getloadavg()[0], 1)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
