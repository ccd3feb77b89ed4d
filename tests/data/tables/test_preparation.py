"""From loaded data to training data: labels, split, standardisation, and what is saved of it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gdtrain.data.tables.preparation import (
    Column,
    LoadedData,
    Preprocessing,
    class_labels,
    number_targets,
    prepare,
    split,
)
from gdtrain.errors import DataError


def refuses(message: str) -> Any:
    return pytest.raises(DataError, match=f"^{re.escape(message)}$")


def prepared(inputs: Any, targets: Any, **settings: Any) -> Any:
    plain: dict[str, Any] = {
        "validation_fraction": 0.0,
        "standardize": False,
        "standardize_targets": False,
        "shape": None,
        "num_outputs": 1,
        "seed": 0,
    } | settings
    parts = split(len(inputs), plain.pop("validation_fraction"), plain.pop("seed"))
    return prepare(LoadedData(inputs, targets), parts, **plain)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_loaded_arrays_become_tensors() -> None:
    data = LoadedData(np.zeros((2, 3)), [0, 1])  # type: ignore[arg-type]
    assert data.inputs.shape == (2, 3)
    assert data.targets.dtype == torch.int64


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (
            torch.zeros(3, 2),
            torch.zeros(2),
            "different numbers of samples: inputs 3 and targets 2; each sample needs one of each",
        ),
        (
            torch.zeros(0, 2),
            torch.zeros(0),
            "the data set is empty; at least one sample is needed",
        ),
        (
            torch.zeros(3, 0),
            torch.zeros(3),
            "inputs: hold no numbers, their shape is [3, 0]; each sample needs at least one",
        ),
        (
            torch.zeros(3),
            torch.zeros(()),
            "targets: a single number has no rows; give a tensor of shape [n, …]",
        ),
        (
            torch.zeros(3, dtype=torch.complex64),
            torch.zeros(3),
            "inputs: are complex; give real and imaginary parts as columns",
        ),
    ],
)
def test_loaded_data_that_can_not_be_used_is_refused(
    inputs: Tensor, targets: Tensor, message: str
) -> None:
    with refuses(message):
        LoadedData(inputs, targets)


@pytest.mark.parametrize(
    "targets",
    [
        torch.tensor([0, 2, 1]),
        torch.tensor([0.0, 2.0, 1.0]),
        torch.tensor([[0], [2], [1]]),
        torch.tensor([0, 2, 1], dtype=torch.uint8),
        torch.tensor([0.0, 2.0, 1.0]).bfloat16(),
    ],
)
def test_labels_are_read_from_whole_numbers_of_any_type(targets: Tensor) -> None:
    labels = class_labels(targets)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 2, 1]


def test_booleans_are_two_classes() -> None:
    assert class_labels(torch.tensor([True, False])).tolist() == [1, 0]


def test_the_ignored_label_may_be_negative() -> None:
    assert class_labels(torch.tensor([-100, 1]), ignore_index=-100).tolist() == [-100, 1]


OUT = "which is out of range; class labels must be 0, 1, …"


@pytest.mark.parametrize(
    ("targets", "ignore_index", "message"),
    [
        (torch.tensor([0, -1]), None, f"targets: row 1 has label -1, {OUT}"),
        (torch.tensor([-100, -2]), -100, f"targets: row 1 has label -2, {OUT}"),
        (torch.tensor([0.0, 1e30]), None, f"targets: row 1 has label 1e+30, {OUT}"),
        (
            torch.tensor([[0.0], [0.5]]),
            None,
            "targets: row 1 is 0.5; class labels must be whole numbers 0, 1, …, "
            "or use a loss for numbers such as mse",
        ),
        (
            torch.tensor([0.0, math.nan]),
            None,
            "targets: row 1 is nan; remove the row or fill in a number before training",
        ),
        (
            torch.zeros(3, 2),
            None,
            "targets: class labels must be one number per sample, got shape [3, 2]; "
            "use one target column, or another loss",
        ),
    ],
)
def test_labels_that_are_none_are_refused(
    targets: Tensor, ignore_index: int | None, message: str
) -> None:
    with refuses(message):
        class_labels(targets, ignore_index)


def test_number_targets_are_columns_of_floats() -> None:
    assert number_targets(torch.tensor([1, 2])).tolist() == [[1.0], [2.0]]
    assert number_targets(torch.tensor([1, 2])).dtype == torch.float32
    assert number_targets(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64
    assert number_targets(torch.zeros(2, 3)).shape == (2, 3)


@given(n=st.integers(2, 60), fraction=st.floats(0.001, 0.9), seed=st.integers(0, 2**63))
def test_a_split_is_two_rising_halves_of_everything(n: int, fraction: float, seed: int) -> None:
    count = max(1, round(fraction * n))
    if count == n:
        with refuses(
            f"no samples to train on: validation_fraction {fraction:g} takes {n} of {n}; "
            "use a smaller fraction"
        ):
            split(n, fraction, seed)
        return
    train, validation = (part.tolist() for part in split(n, fraction, seed))
    assert len(validation) == count
    assert sorted(train + validation) == list(range(n))
    assert (train, validation) == (sorted(train), sorted(validation))


def test_a_split_of_nothing_keeps_all_for_training() -> None:
    train, validation = split(3, 0.0, 0)
    assert (train.tolist(), validation.tolist()) == ([0, 1, 2], [])


def test_one_sample_can_not_be_split() -> None:
    with refuses(
        "no samples to train on: validation_fraction 0.5 takes 1 of 1; leave it out, or give more "
        "samples"
    ):
        split(1, 0.5, 0)


def test_the_split_is_a_function_of_its_seed_and_uniform() -> None:
    state = torch.get_rng_state()
    held_out = torch.zeros(10)
    for seed in range(2000):
        held_out[split(10, 0.3, seed)[1]] += 1
    assert torch.equal(torch.get_rng_state(), state)
    assert split(10, 0.3, 5)[1].tolist() == split(10, 0.3, 5)[1].tolist()
    # Each sample is held out with probability 0.3: 600 times, standard deviation 20.5.
    assert (held_out - 600).abs().max() < 4 * 20.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_standardisation_uses_the_statistics_of_the_training_part(dtype: torch.dtype) -> None:
    inputs = normal(40, 3, dtype=dtype) * 7 + 1e4
    (train_x, _), held_out, done = prepared(
        inputs, torch.zeros(40), validation_fraction=0.25, standardize=True
    )
    rows, others = split(40, 0.25, 0)
    reference = inputs[rows].double().numpy()
    mean, std = reference.mean(axis=0), reference.std(axis=0)
    assert done.mean == pytest.approx(mean.tolist(), rel=1e-15)
    assert done.std == pytest.approx(std.tolist(), rel=1e-12)
    assert train_x.dtype == dtype
    close = 1e-12 if dtype == torch.float64 else 1e-6
    assert np.allclose(train_x.numpy(), (reference - mean) / std, rtol=0, atol=close)
    expected = (inputs[others].double().numpy() - mean) / std
    assert np.allclose(held_out[0].numpy(), expected, rtol=0, atol=close)


def test_statistics_keep_the_precision_of_float64() -> None:
    # A float32 mean of 2^30 + 0.5 would be off by half a deviation.
    inputs = torch.tensor([2.0**30, 2.0**30 + 1], dtype=torch.float64)
    (train_x, train_y), _, done = prepared(
        inputs, inputs, standardize=True, standardize_targets=True
    )
    assert done.mean == done.target_mean == [2.0**30 + 0.5]
    assert train_x.tolist() == [[-1.0], [1.0]]
    assert train_y.tolist() == [-1.0, 1.0]
    assert done.restore_targets(train_y).tolist() == inputs.tolist()


def test_a_constant_column_is_only_centred() -> None:
    inputs = torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]])
    (train_x, _), _, done = prepared(inputs, torch.zeros(3), standardize=True)
    assert done.std[0] == 1.0
    assert train_x[:, 0].abs().max() < 1e-8


def test_integers_are_standardised_to_float32() -> None:
    (train_x, _), _, _ = prepared(torch.tensor([[1], [3]]), torch.zeros(2), standardize=True)
    assert train_x.dtype == torch.float32
    assert train_x.tolist() == [[-1.0], [1.0]]


def test_targets_of_any_shape_are_standardised_by_position_and_restored() -> None:
    targets = normal(9, 2, 3) * 5 + 2
    (_, train_y), _, done = prepared(torch.zeros(9, 1), targets, standardize_targets=True)
    reference = (targets.numpy() - targets.numpy().mean(axis=0)) / targets.numpy().std(axis=0)
    assert np.allclose(train_y.numpy(), reference, rtol=0, atol=1e-12)
    assert torch.allclose(done.restore_targets(train_y), targets, rtol=0, atol=1e-12)


def test_targets_that_were_not_standardised_are_restored_as_they_are() -> None:
    outputs = torch.zeros(3, 1)
    assert Preprocessing([1], 1).restore_targets(outputs) is outputs


@pytest.mark.parametrize(
    ("values", "span"),
    [
        ([1e308, -1e308], "-1e+308 … 1e+308"),
        ([1.7e308, 1.5e308], "1.5e+308 … 1.7e+308"),
        ([1e-300, 0.0], "0 … 1e-300"),
    ],
)
def test_columns_beyond_the_range_of_float64_are_refused(values: list[float], span: str) -> None:
    inputs = torch.tensor([[1.0, v] for v in values], dtype=torch.float64)
    with refuses(
        "inputs: column 1 can't be standardised, its deviation is out of the range of float64; "
        f"it spans {span}, rescale it"
    ):
        prepared(inputs, torch.zeros(2), standardize=True)


def test_a_shape_is_given_to_each_sample() -> None:
    (train_x, _), _, done = prepared(torch.arange(12.0).reshape(2, 6), torch.zeros(2), shape=[2, 3])
    assert torch.equal(train_x, torch.arange(12.0).reshape(2, 2, 3))
    assert done.input_shape == [2, 3]


def test_a_shape_that_does_not_hold_a_sample_is_refused() -> None:
    with refuses("shape [2, 2] holds 4 numbers, but a sample has 6 inputs"):
        prepared(torch.zeros(2, 6), torch.zeros(2), shape=[2, 2])


def test_a_row_of_numbers_becomes_one_input_column() -> None:
    (train_x, _), _, done = prepared(torch.tensor([1.0, 2.0]), torch.zeros(2))
    assert train_x.tolist() == [[1.0], [2.0]]
    assert done.input_shape == [1]


@pytest.mark.parametrize("part", ["inputs", "targets"])
def test_values_that_are_not_finite_are_refused(part: str) -> None:
    parts = {"inputs": torch.zeros(3, 2), "targets": torch.zeros(3, 2)}
    parts[part][2, 1] = math.inf
    with refuses(
        f"{part}: row 2, column 1 is inf; remove the row or fill in a number before training"
    ):
        prepared(**parts)


def test_saved_preprocessing_is_read_back_to_the_bit(tmp_path: Path) -> None:
    _, _, done = prepared(
        normal(9, 4), normal(9), standardize=True, standardize_targets=True, shape=[2, 2]
    )
    full = Preprocessing(
        **(vars(done) | {"class_names": ["Ä", "b"], "columns": [Column("x"), Column("c", ["é"])]})
    )
    full.save(tmp_path / "p.json")
    loaded = Preprocessing.load(tmp_path / "p.json")
    assert loaded == full
    assert torch.equal(loaded.apply(normal(9, 4)), done.apply(normal(9, 4)))


def test_predictions_repeat_the_training_inputs() -> None:
    inputs = normal(9, 4)
    (train_x, _), _, done = prepared(inputs, torch.zeros(9), standardize=True, shape=[4, 1])
    assert torch.equal(done.apply(inputs), train_x)
    assert done.apply(inputs[:0]).shape == (0, 4, 1)


@pytest.mark.parametrize("shape", [[3, 5], [4], []])
def test_inputs_that_do_not_fit_the_training_are_refused(shape: list[int]) -> None:
    done = Preprocessing([2], 1, mean=[0.0, 0.0], std=[1.0, 1.0])
    with refuses(
        f"inputs of shape {shape} do not fit: the model was trained on 2 numbers per sample"
    ):
        done.apply(torch.zeros(shape))


GOOD = {"input_shape": [1], "num_outputs": 1, "columns": None}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no", "Expecting value: line 1 column 1 (char 0)"),
        ("3", "Input should be a dictionary or an instance of Preprocessing"),
        ("{}", "input_shape: Field required"),
        (json.dumps(GOOD | {"mean": ["a"]}),
         "mean.0: Input should be a valid number, unable to parse string as a number"),
        (json.dumps(GOOD | {"columns": [{"nam": "x"}]}), "columns.0.name: Field required"),
        (json.dumps(GOOD | {"meen": [1.0]}), "meen: Unexpected keyword argument"),
        ("[" * 100_000, "nested too deep"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_preprocessing_is_refused(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with refuses(f"{path}: is not a preprocessing file; {reason}"):
        Preprocessing.load(path)
