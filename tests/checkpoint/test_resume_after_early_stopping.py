"""Early stopping has ended a run, and ``fit(resume=…)`` takes it up: the same bits."""

import pytest
import torch
from torch import nn

from gdtrain import Checkpoints, EarlyStopping, MiniBatchLoader, Trainer

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def make(directory, first):
    """Stops after its third epoch, since none after the first gains 10."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    callbacks = [EarlyStopping("train_loss", patience=2, min_delta=10.0), Checkpoints(directory)]
    if first is Checkpoints:
        callbacks.reverse()
    return Trainer(
        *(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1)),
        MiniBatchLoader((X, Y), 4),
        callbacks=callbacks,
        device="cpu",
    )


@pytest.mark.parametrize("first", [EarlyStopping, Checkpoints])
@pytest.mark.parametrize("epochs", [10, 20])
def test_it_stays_stopped_until_another_fit(tmp_path, first, epochs):
    stopped = make(tmp_path, first)
    stopped.fit(10)
    assert stopped.step == 9
    taken_up = make(tmp_path, first)
    taken_up.fit(epochs, resume=tmp_path)
    assert taken_up.step == 9
    assert taken_up.stop_reason == stopped.stop_reason
    assert torch.equal(taken_up.model.weight, stopped.model.weight)
    again = make(tmp_path, first)
    again.fit(epochs, resume=tmp_path)
    assert again.step == 9
    stopped.fit(epochs)
    again.fit(epochs)  # a wish to go on, which has patience once more
    assert again.step == stopped.step == 15
    assert torch.equal(again.model.weight, stopped.model.weight)
