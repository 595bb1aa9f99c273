"""The golden table of the main study: `python -m tests.golden` writes it anew.

Do that only when counts or prices were meant to change, and raise `simulate.MODEL_VERSION`.
"""

import sys
import tempfile
from pathlib import Path

import polars as pl

from analysis import load
from analysis.seed_table import gains
from numarep.sweep.__main__ import main

GOLDEN = Path(__file__).parent / "golden" / "seed_table.csv"
# One seed: the second changes numbers, not what is exercised.
STUDY = ("study=seed_table", "seed=1", "executor=serial")


def table(out: Path) -> pl.DataFrame:
    """Run the main study with one seed and return its gains, in % with three decimals."""
    if main([*STUDY, f"out={out}"]) != 0:
        raise RuntimeError("the main study failed")
    return gains(load(out)).with_columns(pl.selectors.float().round(3))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.parent.mkdir(exist_ok=True)
        table(Path(folder) / "out").write_csv(GOLDEN)
    sys.stdout.write(f"wrote {GOLDEN}; look at the difference before committing it\n")
