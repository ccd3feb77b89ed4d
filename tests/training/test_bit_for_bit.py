"""The trainer's weights are those of the hand-written PyTorch loop, bit for bit."""

import pytest
import torch
from helpers.combinations import combinations
from torch import Tensor, nn

from gdtrain import BatchLoader, Callback, MiniBatchLoader, SampleLoader, Trainer

EPOCHS = 3
N = 131  # prime: batches of 64 leave a ragged end
SGD_SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight_decay": {"weight_decay": 0.01},
    "all": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
}


def problem(loss_name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, nn.Module]:
    draw = torch.Generator().manual_seed(1)
    X = torch.randn(N, 5, generator=draw, dtype=dtype)
    if loss_name == "mse":
        return X, torch.randn(N, 3, generator=draw, dtype=dtype), nn.MSELoss()
    return X, torch.randint(3, (N,), generator=draw), nn.CrossEntropyLoss()


def make_model(dtype: torch.dtype) -> nn.Module:
    """BatchNorm over a length of 4, so that it has statistics of a single sample too; dropout."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(5, 12),
        nn.Unflatten(1, (3, 4)),
        nn.BatchNorm1d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(12, 3),
    ).to(dtype)


def hand_written_loop(model, loss, optimizer, X, y, batches_of_epoch) -> None:
    torch.manual_seed(3)
    model.train()
    for epoch in range(EPOCHS):
        for rows in batches_of_epoch(epoch):
            inputs, targets = (
                (X[rows].unsqueeze(0), y[rows].unsqueeze(0))
                if isinstance(rows, int)
                else (X[rows], y[rows])
            )
            optimizer.zero_grad()
            value = loss(model(inputs), targets)
            value.backward()
            optimizer.step()


def full_batch(X, y):
    return BatchLoader((X, y)), lambda epoch: [slice(None)]


def one_sample_each(X, y):
    return SampleLoader((X, y), order="sequential"), lambda epoch: range(N)


def slices_of_64(X, y):
    loader = MiniBatchLoader((X, y), batch_size=64, order="sequential")
    return loader, lambda epoch: [slice(s, s + 64) for s in range(0, N, 64)]


def shuffled_samples(X, y):
    loader = SampleLoader((X, y), seed=7)
    return loader, lambda epoch: loader.plan(epoch).indices.tolist()


def shuffled_batches(X, y):
    loader = MiniBatchLoader((X, y), batch_size=64, seed=7)
    return loader, lambda epoch: loader.plan(epoch).indices.split(64)


FORMS = (full_batch, one_sample_each, slices_of_64, shuffled_samples, shuffled_batches)


@pytest.mark.few(8)
@pytest.mark.parametrize(
    ("form", "dtype", "setting", "loss_name"),
    combinations(FORMS, (torch.float32, torch.float64), SGD_SETTINGS, ("mse", "cross_entropy")),
)
def test_weights_and_buffers_equal_the_hand_written_loop(form, dtype, setting, loss_name) -> None:
    X, y, loss = problem(loss_name, dtype)
    loader, batches_of_epoch = form(X, y)
    by_hand, by_trainer = make_model(dtype), make_model(dtype)

    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, **SGD_SETTINGS[setting])
    hand_written_loop(by_hand, loss, optimizer, X, y, batches_of_epoch)

    optimizer = torch.optim.SGD(by_trainer.parameters(), lr=0.05, **SGD_SETTINGS[setting])
    trainer = Trainer(by_trainer, loss, optimizer, loader, device="cpu")
    torch.manual_seed(3)
    trainer.fit(EPOCHS)

    expected, got = by_hand.state_dict(), by_trainer.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []


def test_parameter_groups_with_learning_rates_of_their_own() -> None:
    X, y, loss = problem("mse", torch.float32)
    by_hand, by_trainer = make_model(torch.float32), make_model(torch.float32)

    def groups(model):
        biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
        weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
        return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.2}]

    loader, batches_of_epoch = slices_of_64(X, y)
    optimizer = torch.optim.SGD(groups(by_hand), lr=0.05, momentum=0.9)
    hand_written_loop(by_hand, loss, optimizer, X, y, batches_of_epoch)
    optimizer = torch.optim.SGD(groups(by_trainer), lr=0.05, momentum=0.9)
    trainer = Trainer(by_trainer, loss, optimizer, loader, device="cpu")
    torch.manual_seed(3)
    trainer.fit(EPOCHS)
    assert all(
        torch.equal(p, q)
        for p, q in zip(by_hand.parameters(), by_trainer.parameters(), strict=True)
    )


def test_other_optimizers_and_schedulers_per_step_and_per_epoch() -> None:
    X, y, loss = problem("mse", torch.float64)
    for per, make_scheduler in (
        ("step", lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=12)),
        ("epoch", lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.1)),
    ):
        by_hand, by_trainer = make_model(torch.float64), make_model(torch.float64)
        optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
        scheduler = make_scheduler(optimizer)
        torch.manual_seed(3)
        for _ in range(EPOCHS):
            for s in range(0, N, 64):
                optimizer.zero_grad()
                loss(by_hand(X[s : s + 64]), y[s : s + 64]).backward()
                optimizer.step()
                if per == "step":
                    scheduler.step()
            if per == "epoch":
                scheduler.step()

        optimizer = torch.optim.Adam(by_trainer.parameters(), lr=0.01)
        loader = MiniBatchLoader((X, y), 64, order="sequential")
        trainer = Trainer(
            by_trainer,
            loss,
            optimizer,
            loader,
            device="cpu",
            scheduler=make_scheduler(optimizer),
            scheduler_per=per,
        )
        torch.manual_seed(3)
        trainer.fit(EPOCHS)
        assert all(
            torch.equal(p, q)
            for p, q in zip(by_hand.parameters(), by_trainer.parameters(), strict=True)
        )


def test_clipping_by_norm_and_by_value() -> None:
    X, y, loss = problem("mse", torch.float64)
    for clip in ({"clip_grad_norm": 0.3}, {"clip_grad_value": 0.02}):
        by_hand, by_trainer = make_model(torch.float64), make_model(torch.float64)
        optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
        torch.manual_seed(3)
        for s in range(0, N, 64):
            optimizer.zero_grad()
            loss(by_hand(X[s : s + 64]), y[s : s + 64]).backward()
            if "clip_grad_norm" in clip:
                nn.utils.clip_grad_norm_(by_hand.parameters(), 0.3)
            else:
                nn.utils.clip_grad_value_(by_hand.parameters(), 0.02)
            optimizer.step()
        optimizer = torch.optim.SGD(by_trainer.parameters(), lr=0.1)
        loader = MiniBatchLoader((X, y), 64, order="sequential")
        trainer = Trainer(by_trainer, loss, optimizer, loader, device="cpu", **clip)
        torch.manual_seed(3)
        trainer.fit(1)
        assert all(
            torch.equal(p, q)
            for p, q in zip(by_hand.parameters(), by_trainer.parameters(), strict=True)
        )


def test_lbfgs_over_a_batch_loader_equals_the_closure_loop() -> None:
    X, y, loss = problem("mse", torch.float64)

    def plain_model():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    by_hand, by_trainer = plain_model(), plain_model()
    optimizer = torch.optim.LBFGS(by_hand.parameters(), line_search_fn="strong_wolfe")
    losses = []
    for _ in range(EPOCHS):

        def closure():
            optimizer.zero_grad()
            value = loss(by_hand(X), y)
            value.backward()
            return value

        losses.append(float(optimizer.step(closure).detach()))

    optimizer2 = torch.optim.LBFGS(by_trainer.parameters(), line_search_fn="strong_wolfe")
    history = Trainer(by_trainer, loss, optimizer2, BatchLoader((X, y)), device="cpu").fit(EPOCHS)
    assert history.train_loss == losses
    assert all(
        torch.equal(p, q)
        for p, q in zip(by_hand.parameters(), by_trainer.parameters(), strict=True)
    )


class Damp(Callback):
    """Takes a tenth of the bias's gradient."""

    def on_gradient(self, trainer, batch, loss):
        trainer.model.bias.grad *= 0.1


def test_lbfgs_takes_gradients_that_a_callback_corrects() -> None:
    X, y, loss = problem("mse", torch.float64)
    by_hand, by_trainer = (torch.manual_seed(2) and nn.Linear(5, 3).double() for _ in range(2))
    optimizer = torch.optim.LBFGS(by_hand.parameters(), lr=0.1)
    for _ in range(EPOCHS):

        def closure():
            optimizer.zero_grad()
            value = loss(by_hand(X), y)
            value.backward()
            by_hand.bias.grad *= 0.1
            return value

        optimizer.step(closure)

    optimizer2 = torch.optim.LBFGS(by_trainer.parameters(), lr=0.1)
    Trainer(
        by_trainer, loss, optimizer2, BatchLoader((X, y)), callbacks=[Damp()], device="cpu"
    ).fit(EPOCHS)
    assert torch.equal(by_hand.weight, by_trainer.weight)
    assert torch.equal(by_hand.bias, by_trainer.bias)
