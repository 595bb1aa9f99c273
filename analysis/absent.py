"""Questions that the report does not answer yet, and what they wait for.

>>> [section.number for section in absent()]
[3, 6, 7, 8]
"""

from analysis.section import Section

_WAITING = (
    (3, "functions", "Which kernel functions gain", "results hold no counts by kernel function"),
    (
        6,
        "nodes",
        "From 2 to 8 nodes",
        "the report does not analyse these runs yet; study=node_scaling makes them",
    ),
    (7, "memory", "Memory against gain", "results hold no account of bytes by mechanism"),
    (
        8,
        "costs",
        "What keeping copies costs",
        "the report does not analyse these runs yet; study=patch_rate, module_rate and "
        "pgd_sync_rate make them; what fork and exit cost is in question 4",
    ),
)


def absent() -> list[Section]:
    """Return a section for each of them."""
    return [Section(number, name, title, missing=lacks) for number, name, title, lacks in _WAITING]
