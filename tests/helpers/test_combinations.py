"""What the ordinary suite takes of all combinations holds every pair, and is small."""

import itertools

import pytest

from helpers.combinations import combinations, covering


@pytest.mark.parametrize(
    ("sizes", "of", "least", "most"),
    [([6, 11], 1, 11, 11), ([5, 2, 6, 2], 2, 30, 33), ([2, 2, 2], 2, 4, 6), ([3], 1, 3, 3)],
)
def test_every_choice_of_values_is_there(sizes, of, least, most) -> None:
    chosen = covering(sizes, of)
    for axes in itertools.combinations(range(len(sizes)), of):
        there = {tuple(places[axis] for axis in axes) for places in chosen}
        assert there == set(itertools.product(*(range(sizes[axis]) for axis in axes)))
    assert least <= len(chosen) <= most
    assert covering(sizes, of) == chosen


def test_the_others_are_marked_long() -> None:
    made = combinations("ab", [1, 2, 3], of=1)
    assert sorted(case.values for case in made) == list(itertools.product("ab", [1, 2, 3]))
    taken = [case.values for case in made if not case.marks]
    assert len(taken) == 3
    assert all(case.marks == () or [m.name for m in case.marks] == ["long"] for case in made)
