"""Damaged checkpoints are found, always; the one before is used, or the run does not start."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.hostile.corruptions import (
    Figures,
    damage_all,
    damage_each,
    flip_the_mark,
    flips,
    other_damages,
    truncations,
)
from safetensors.torch import load_file

from gdtrain.cli.main import main

CONFIG = """\
data: {source: digits}
model: {name: mlp, hidden: [8]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 300}
optimizer: {lr: 0.1, momentum: 0.9}
epochs: 2
checkpoint: {every_n_steps: 2, keep_last: 3}
log: {every_n_steps: 1, picture: false}
"""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("gdtrain")
    logger.addFilter(lambda record: False)
    yield
    logger.filters.clear()


def assert_none_missed(figures: Figures, at_least: int) -> None:
    assert figures.problems == []
    assert figures.cases >= at_least


def test_every_flipped_bit_is_found_and_the_checkpoint_before_is_used() -> None:
    assert_none_missed(damage_each(lambda sizes: flips(120, sizes)), 120)


def test_every_truncation_is_found_and_the_checkpoint_before_is_used() -> None:
    assert_none_missed(damage_each(lambda sizes: truncations(sizes, every=16384)), 60)


@pytest.mark.long
def test_every_truncation_to_blocks_of_the_disk_is_found() -> None:
    assert_none_missed(damage_each(lambda sizes: truncations(sizes, every=4096)), 200)


def test_longer_swapped_missing_and_other_files_are_found() -> None:
    assert_none_missed(damage_each(lambda sizes: other_damages()), 18)


def test_with_no_other_checkpoint_nothing_is_loaded() -> None:
    assert_none_missed(damage_all(lambda sizes: other_damages()), 18)
    assert_none_missed(damage_all(lambda sizes: flips(50, sizes, seed=1)), 50)


def test_a_flipped_bit_in_the_mark_of_the_best_loses_nothing() -> None:
    assert_none_missed(flip_the_mark(), 1000)


@pytest.mark.long
def test_every_one_of_many_flipped_bits_is_found(scaled) -> None:
    count = scaled(2000)
    assert_none_missed(damage_each(lambda sizes: flips(count, sizes, seed=2)), count)
    assert_none_missed(damage_all(lambda sizes: flips(count // 4, sizes, seed=3)), count // 4)


# ── the same through the command line ────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of 12 updates, undisturbed, and its configuration beside it."""
    place = tmp_path_factory.mktemp("runs")
    (place / "c.yaml").write_text(CONFIG)
    assert main(["--config", str(place / "c.yaml"), "--output-dir", str(place / "run")]) == 0
    return place / "run"


def resume(finished: Path, run: Path) -> int:
    return main(["--config", str(finished.parent / "c.yaml"), "--output-dir", str(run), "--resume"])


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_with_the_same_bits(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    kept = run / "checkpoints"
    damage(kept / "step-0000000012-1" / "tensors.safetensors")
    damage(kept / "step-0000000010" / "state.json")
    assert resume(finished, run) == 0
    said = capsys.readouterr().err
    one = kept / "step-0000000012-1" / "tensors.safetensors"
    two = kept / "step-0000000010" / "state.json"
    assert f"skipped a checkpoint: {one} is damaged" in said
    assert f"skipped a checkpoint: {two} is damaged (its digest differs)\n" in said
    assert f"resuming from {kept / 'step-0000000008'}\n" in said
    ended, whole = load_file(run / "model.safetensors"), load_file(finished / "model.safetensors")
    assert all(torch.equal(ended[name], whole[name]) for name in whole)
    assert json.loads((run / "summary.json").read_text())["steps"] == 12


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again_from_zero(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    log = (run / "metrics.jsonl").read_bytes()
    paths = sorted((run / "checkpoints").glob("step-*"))
    for path in paths:
        damage(path / name)
    assert resume(finished, run) == 2
    said = capsys.readouterr().err
    assert said.startswith("command line:1:1: --resume: no checkpoint can be used: ")
    assert said.count("\n") == 1
    assert all(str(path / name) in said for path in paths)
    assert (run / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize("remains", ["an empty directory", "nothing", "a file"])
def test_a_run_without_its_checkpoints_does_not_start_again_from_zero(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], remains: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")
    if remains == "an empty directory":
        (run / "checkpoints").mkdir()
    elif remains == "a file":
        (run / "checkpoints").write_text("")
    assert resume(finished, run) == 2
    said = capsys.readouterr().err
    why = "Not a directory" if remains == "a file" else "holds no checkpoint to resume from"
    assert said == f"command line:1:1: --resume: {run / 'checkpoints'}: {why}\n"
