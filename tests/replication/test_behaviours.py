"""Every behaviour R1 to R39 has a test, and the page that says so is up to date."""

from tests.replication import watched
from tests.replication.behaviours import BEHAVIOURS, PAGE, cited, citing, page


def test_every_behaviour_has_a_test() -> None:
    have = {number for _, _, numbers in citing() for number in numbers}
    assert have == set(BEHAVIOURS) == set(range(1, 40))


def test_the_page_is_what_the_tests_say() -> None:
    assert PAGE.read_text() == page()  # stale? `python -m tests.replication.behaviours`


def test_names_cite_ids() -> None:
    assert cited("test_r16_r18_both_halves") == [16, 18]
    assert cited("test_r14_c_r22_boot") == [14, 22]
    assert cited("test_plain_r3_no") == []


def test_r38_the_page_of_watched_functions_is_what_the_code_says() -> None:
    assert watched.PAGE.read_text() == watched.page()
    for event in watched.MEANING.values():
        two, three, four = (watched.costs(event[2], nodes) for nodes in (2, 3, 4))
        assert {k: four[k] - three[k] for k in two} == {k: three[k] - two[k] for k in two}
