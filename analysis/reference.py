"""The main study of results: what every question's first sentence is about.

>>> POLICY
'series'
"""

import polars as pl

from analysis.cases import study_over
from analysis.pairs import undisturbed

POLICY = "series"
MAIN_STUDY = "python -m numarep.sweep"


def reference(cases: pl.LazyFrame, policy: str = POLICY) -> pl.DataFrame:
    """Return the pairs of the largest study of one scenario: the report's main subject.

    All settings are the same in all its rows but workload, cache state, seed and the CPU's node,
    which is another than the kernel's. Replication is `policy`'s if any is. Windows disturbed by
    an operation at a rate are not among them.
    """
    preferred = undisturbed(cases, pl.col("replication") == policy)
    return study_over(undisturbed(cases) if preferred.is_empty() else preferred, ())
