"""The main study, end to end, gives the table it gave before."""

from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from tests.golden import GOLDEN, table


def test_the_main_study_gives_the_golden_table(tmp_path: Path) -> None:
    expected = pl.read_csv(GOLDEN)
    found = pl.read_csv(table(tmp_path / "out").write_csv().encode())
    assert_frame_equal(found, expected)  # meant to change? `python -m tests.golden`
