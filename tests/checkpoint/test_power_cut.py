"""A power cut anywhere in a save leaves the old checkpoint or the new one, and nothing else."""

import os

import pytest
from helpers.faults.fake_disk import Recorder, after_cuts, tree_of
from helpers.faults.power_cuts import SCENARIOS, cut_everywhere


@pytest.mark.few(5)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_old_or_the_new_is_there_after_a_cut(name: str) -> None:
    figures = cut_everywhere(name, subsets=6)
    assert figures.broken == 0, figures.first
    assert figures.states > figures.calls > 10


@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_more_choices_of_what_has_reached_the_disk(name: str, scaled) -> None:
    figures = cut_everywhere(name, subsets=scaled(256))
    assert figures.broken == 0, figures.first


def test_the_disk_of_the_tests_loses_what_it_may(tmp_path) -> None:
    """By hand: one file written, flushed, named; then its directory flushed."""
    recorder = Recorder(tmp_path)
    with recorder.active():
        handle = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
        os.write(handle, b"12")
        os.fsync(handle)
        os.write(handle, b"3")
        os.close(handle)
        os.rename(tmp_path / "a", tmp_path / "b")  # noqa: PTH104
        directory = os.open(tmp_path, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        os.unlink(tmp_path / "b")  # noqa: PTH108
    found: dict[int, list[dict[str, bytes | None]]] = {}
    for cut, tree in after_cuts(recorder, data=("kept", "dropped")):
        found.setdefault(cut, []).append(tree)
    nothing: dict[str, bytes | None] = {}
    assert found == {
        0: [nothing],
        1: [nothing, {"a": b""}],
        2: [nothing, {"a": b"12"}, {"a": b""}],
        3: [nothing, {"a": b"12"}],
        4: [nothing, {"a": b"123"}, {"a": b"12"}],
        # the rename may have reached the disk although the name before it has not
        5: [nothing, {"b": b"123"}, {"b": b"12"}, {"a": b"123"}, {"a": b"12"}],
        6: [{"b": b"123"}, {"b": b"12"}],
        7: [{"b": b"123"}, {"b": b"12"}, nothing],
    }
    assert tree_of(tmp_path) == {}
