"""Questions that the report does not answer yet, and what they wait for.

>>> [section.number for section in absent()]
[7]
"""

from analysis.section import Section

_WAITING = ((7, "memory", "Memory against gain", "results hold no account of bytes by mechanism"),)


def absent() -> list[Section]:
    """Return a section for each of them."""
    return [Section(number, name, title, missing=lacks) for number, name, title, lacks in _WAITING]
