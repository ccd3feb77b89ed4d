"""The bundled digits are those that scikit-learn ships."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gdtrain.data.builtin.digits import digits


def test_digits_are_those_of_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.datasets").load_digits()
    data = digits()
    assert data.inputs.dtype == torch.float32
    assert data.targets.dtype == torch.int64
    assert np.array_equal(data.inputs.numpy(), reference.data)
    assert np.array_equal(data.targets.numpy(), reference.target)
    assert data.class_names == [str(name) for name in reference.target_names]


def test_digits_have_the_counts_that_their_description_gives() -> None:
    # The table "class: no of examples in testing set" of the data set's optdigits.names.
    per_class = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    data = digits()
    assert data.inputs.shape == (1797, 64)
    assert torch.bincount(data.targets).tolist() == per_class
    assert set(data.inputs.unique().tolist()) == set(range(17))
