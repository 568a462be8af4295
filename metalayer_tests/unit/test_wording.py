"""How counts and lists read."""

from metalayer.wording import counted, named


def test_counts_have_their_nouns() -> None:
    said = [counted(number, "row") for number in (0, 1, 2, 2000)]
    assert said == ["0 rows", "1 row", "2 rows", "2,000 rows"]


def test_lists_end_in_what_they_leave_out() -> None:
    assert named(["a", "b"], 2) == "a, b"
    assert named(["a", "b", "c"], 2) == "a, b and 1 more"
    assert named(["a", "b"], 2, 1200) == "a, b and 1,198 more"
    assert named(["a"], 5) == "a"
    assert named([], 5) == ""
