"""Old checkpoints: which are kept, and what is said of those that can't be removed or are gone."""

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest
from helpers.faults.power_cuts import state_of

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.errors import StorageError


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def step(*numbers: int) -> list[str]:
    return [f"step-{number:010d}" for number in numbers]


def test_those_of_every_kth_step_are_kept_for_ever(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep_last=2, keep_every_n_steps=4)
    for number in range(11):
        store.save(number, state_of(number))
    assert names(store) == step(4, 8, 9, 10)


@pytest.mark.parametrize("call", ["rename", "unlink", "rmdir"])
def test_an_old_one_that_cant_be_removed_is_a_note_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = CheckpointStore(tmp_path / "c", keep_last=2)
    store.save(1, state_of(1))
    store.save(2, state_of(2))
    real = getattr(os, call)

    def refuse(path: Path, *others: Path) -> None:
        if "step-0000000001" in str(path):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        real(path, *others)

    monkeypatch.setattr(os, call, refuse)
    with caplog.at_level(logging.WARNING, "gdtrain"):
        for number in range(3, 8):
            store.save(number, state_of(number))
    (said,) = caplog.messages
    assert "step-0000000001" in said
    assert "can't be removed, and stays: [Errno 1] Operation not permitted" in said
    assert store.load_newest()[0].name == "step-0000000007"
    kept = [name for name in names(store) if "0000000001" not in name]
    assert kept == step(6, 7)
    monkeypatch.undo()
    CheckpointStore(store.directory, keep_last=2).save(8, state_of(8))
    assert [n for n in names(store) if n.startswith(".")] == []


def test_a_full_disk_gets_room_from_all_but_a_good_one_and_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep_last=9)
    paths = [store.save(number, state_of(number)) for number in range(1, 6)]
    store.mark_best(paths[1], 0.5)
    (paths[4] / "state.json").write_bytes(b"damaged")
    removed = []
    while store.make_room():
        removed.append(names(store))
    # 4 is the newest good one, 2 the best; the oldest go first.
    assert [name for name in names(store) if name != "best.json"] == step(2, 4)
    assert len(removed) == 3
    assert removed[0][1:] == step(2, 3, 4, 5)


def test_one_that_somebody_has_removed_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(1, state_of(1))
    shutil.rmtree(store.save(2, state_of(2)))
    with caplog.at_level(logging.WARNING, "gdtrain"):
        store.save(3, state_of(3))
        store.save(4, state_of(4))
    (said,) = caplog.messages
    assert said.endswith("step-0000000002 is missing: somebody else has removed it")


def test_a_folder_that_is_gone_is_made_anew_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path / "run" / "c")
    store.save(1, state_of(1))
    shutil.rmtree(tmp_path / "run")
    with caplog.at_level(logging.WARNING, "gdtrain"):
        store.save(2, state_of(2))
    assert names(store) == step(2)
    assert any("c was removed, with all its files" in said for said in caplog.messages)


def test_a_link_that_is_put_in_its_place_is_not_followed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(1, state_of(1))
    store.directory.rename(tmp_path / "elsewhere")
    store.directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"\[Errno 40\] is a symbolic link by now: '.*/c'"):
        store.save(2, state_of(2))
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == step(1)


def test_every_message_of_a_disk_names_file_and_cause(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as told, disk.needed("the log"):
        disk.append(tmp_path / "file" / "metrics.jsonl", bytearray(b"x"), None)
    assert str(told.value) == (
        "the log could not be written: [Errno 20] Not a directory: "
        f"'{tmp_path / 'file' / 'metrics.jsonl'}'"
    )
