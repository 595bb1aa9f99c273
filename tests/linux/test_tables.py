"""Walks of page tables."""

from hypothesis import given
from hypothesis import strategies as st

from numarep.linux.tables import GLOBAL, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE, PageTables

ROOT = 1
NEIGHBOURS = (0, 1, 2, 511)
_BITS = st.sets(st.sampled_from([WRITABLE, USER, GLOBAL, NO_EXECUTE])).map(sum)
# Leaves side by side and with holes between, at both ends of their table.
_LEAVES = st.dictionaries(st.sampled_from(NEIGHBOURS), _BITS)
_VPNS = sorted({index << 9 * level for index in (*NEIGHBOURS, 3, 512) for level in range(3)})
_ABOVE = st.sampled_from([WRITABLE | USER, WRITABLE | USER | NO_EXECUTE, 0])


@given(st.tuples(_LEAVES, _LEAVES, _LEAVES), _ABOVE, st.booleans(), st.permutations(_VPNS))
def test_pages_walked_in_turn_translate_as_each_alone(
    leaves: tuple[dict[int, int], ...], above: int, is_deep: bool, vpns: list[int]
) -> None:
    tables = PageTables(levels=4)
    for level, of_level in enumerate(leaves, start=1):
        for index, bits in of_level.items():
            large = LARGE if level > 1 else 0
            pfn = (7 + index) << 9 * (level - 1)
            tables.set_entry(level, 5 - level, index, pfn << 12 | PRESENT | large | bits)
    for level in (4, 3, 2):  # one table page a level, perhaps a leaf where the next one would be
        if is_deep or level == 4 or 0 not in leaves[level - 1]:
            tables.set_entry(level, 5 - level, 0, (6 - level) << 12 | PRESENT | above)
    for order in (_VPNS, vpns):
        alone = [tables.walk(ROOT, vpn) for vpn in order]
        assert list(tables.walk_all(ROOT, order)) == alone
