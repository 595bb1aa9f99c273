"""Questions that no results can answer yet, and what they wait for.

>>> [section.number for section in absent()]
[3, 6, 7, 8]
"""

from analysis.section import Section

_WAITING = (
    (3, "functions", "Which kernel functions gain", "counts by kernel function (issue 3)"),
    (6, "nodes", "From 2 to 8 nodes", "machines of more than two nodes (issue 4)"),
    (7, "memory", "Memory against gain", "an account of bytes by node and process (issue 4)"),
    (
        8,
        "costs",
        "What keeping copies costs",
        "the costs of patching, module load and PGD synchronisation as events of their own "
        "(issue 4); what fork and exit cost is in question 4",
    ),
)


def absent() -> list[Section]:
    """Return a section for each of them."""
    return [
        Section(number, name, title, missing=f"results do not hold {lacks}")
        for number, name, title, lacks in _WAITING
    ]
