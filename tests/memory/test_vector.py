"""The vector instructions and the plain functions that stand in for them say the same."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from numarep.jit import jit_entry
from numarep.memory import masks, recency, vector
from numarep.memory.recency import EMPTY, FLAG_BITS, MOST_WAYS, pitch_of
from numarep.memory.view import new_cache, row_number

WORDS = st.lists(st.integers(-3, 3), min_size=16, max_size=16)
drop, find, push, touch = map(jit_entry, (recency.drop, recency.find, recency.push, recency.touch))


@jit_entry
def run_match(words, at, value, mask):
    return vector.match(words, at, value, mask)


@jit_entry
def run_rotate(words, at, last, entry):
    vector.rotate(words, at, last, entry)


@jit_entry
def run_close(words, at, gap, entry):
    vector.close(words, at, gap, entry)


@jit_entry
def run_copy(words, to, start):
    vector.copy(words, to, start)


@jit_entry
def run_lowest(bits):
    return vector.lowest(bits)


@jit_entry
def run_choose(bits, some, none):
    return vector.choose(bits, some, none)


@jit_entry
def run_high(one, other):
    return vector.high(one, other)


@jit_entry
def run_row_number(line, cache):
    return row_number(line, cache)


@settings(deadline=None)
@given(WORDS, st.integers(0, 8), st.integers(-3, 3), st.sampled_from([-1, ~1, ~3]))
def test_match(words, at, value, mask):
    words = np.array(words)
    expected = sum(1 << lane for lane in range(8) if int(words[at + lane]) & mask == value)
    assert run_match(words, at, value, mask) == expected
    assert vector.match(words, at, value, mask) == expected


# From the eights of a row to where it changes, if that is among them or not.
FAR = st.integers(-MOST_WAYS, MOST_WAYS) | st.integers(-1, 8)


@settings(deadline=None)
@given(WORDS, st.integers(0, 8), FAR, st.integers(0, 9))
def test_rotate(words, at, last, entry):
    moved, plain = np.array(words), np.array(words)
    run_rotate(moved, at, last, entry)
    vector.rotate(plain, at, last, entry)
    if last >= 0:
        last = min(last, 7)
        words[at : at + last + 1] = [entry, *words[at : at + last]]
    assert moved.tolist() == plain.tolist() == words


@settings(deadline=None)
@given(WORDS, st.integers(0, 8), FAR, st.integers(0, 9))
def test_close(words, at, gap, entry):
    moved, plain = np.array(words), np.array(words)
    run_close(moved, at, gap, entry)
    vector.close(plain, at, gap, entry)
    gap = max(gap, 0)
    if gap < 8:
        words[at + gap : at + 8] = [*words[at + gap + 1 : at + 8], entry]
    assert moved.tolist() == plain.tolist() == words


@settings(deadline=None)
@given(WORDS, st.integers(0, 8), st.integers(0, 8))
def test_copy(words, to, start):
    moved, plain = np.array(words), np.array(words)
    run_copy(moved, to, start)
    vector.copy(plain, to, start)
    words[to : to + 8] = words[start : start + 8]
    assert moved.tolist() == plain.tolist() == words


SIGNED = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None)
@given(SIGNED, SIGNED)
def test_high_is_of_unsigned_words(one, other):
    word = (one % 2**64) * (other % 2**64) >> 64
    assert run_high(one, other) % 2**64 == vector.high(one, other) == word


@settings(deadline=None)
@given(st.sampled_from([0, 1, 6, -1]), SIGNED, SIGNED)
def test_choose(bits, some, none):
    expected = some if bits else none
    assert run_choose(bits, some, none) == vector.choose(bits, some, none) == expected


@settings(deadline=None)
@given(st.integers(1, 2**22), st.integers(0, 2**40), st.integers(-2, 2))
def test_a_line_s_row_is_the_remainder(sets, rows, near):
    """Also next to multiples of the number of sets, where a rounded quotient would err."""
    line, cache = max(rows * sets + near, 0) % 2**52, new_cache(0, sets, ways=8)
    assert run_row_number(line, cache) == row_number(line, cache) == line % sets


@settings(deadline=None)
@given(st.integers(1, 2**32 - 1))
def test_lowest(bits):
    expected = f"{bits:b}"[::-1].index("1")
    assert run_lowest(bits) == vector.lowest(bits) == expected


@settings(deadline=None)
@given(st.integers(1, MOST_WAYS), st.lists(st.tuples(st.booleans(), st.integers(0, 40))))
def test_rows_of_any_length_are_lru(ways, steps):
    """Against a list, most recent first; the words between two rows stay empty."""
    pitch = pitch_of(ways)
    words, row = np.full(2 * pitch, EMPTY), []
    for is_access, tag in steps:
        way = find(words, 0, ways, tag)
        assert way == (row.index(tag) if tag in row else -1)
        if not is_access and way >= 0:
            drop(words, 0, ways, way)
            row.remove(tag)
        elif way >= 0:
            touch(words, 0, ways, way)
            row.insert(0, row.pop(way))
        else:
            victim = push(words, 0, ways, tag << FLAG_BITS)
            assert victim == (row.pop() << FLAG_BITS if len(row) == ways else EMPTY)
            row.insert(0, tag)
        assert (words[: len(row)] >> FLAG_BITS).tolist() == row
        assert (words[len(row) :] == EMPTY).all()


@jit_entry
def run_masks(column, at, limit, before):
    mask = masks.above(column, at, limit)
    return mask, masks.changes(column, at, before), masks.ones(mask)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=40, max_size=40),
    st.integers(0, 8),
    st.integers(0, 3),
    st.integers(-1, 3),
    st.sampled_from([np.int8, np.int32]),
)
def test_masks(elements, at, limit, before, dtype):
    column = np.array(elements, dtype)
    some = elements[at : at + 32]
    high = sum(1 << each for each in range(32) if some[each] > limit)
    previous = [before, *some]
    changed = sum(1 << each for each in range(32) if some[each] != previous[each])
    assert run_masks(column, at, limit, before) == (high, changed, high.bit_count())
    assert masks.above(column, at, limit) == high
    assert masks.changes(column, at, before) == changed
    assert masks.ones(high) == high.bit_count()
