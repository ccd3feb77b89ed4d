"""Terms of a loss and numbers that are logged: of steps, epochs and evaluations, however cut."""

import math

import pytest
import torch
from helpers.ranks import on_ranks
from torch import nn
from torch.nn import functional as F

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer
from gdtrain.errors import ModelError
from gdtrain.output.metrics_csv import write_csv
from gdtrain.output.metrics_log import MetricsLog
from gdtrain.output.run_directory import read_metrics

X = torch.randn(11, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(1, keepdim=True).sin()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def terms_of(model, x, y):
    """The loss, and the two terms that it is made of; both means over samples."""
    output = model(x)
    fit = F.mse_loss(output, y)
    size = output.square().mean()
    return {"loss": fit + 0.1 * size, "fit": fit, "size": size}


class TwoTerms(Trainer):
    def compute_loss(self, batch):
        return terms_of(self.model, batch.inputs, batch.targets)

    def loss_weight(self, batch):
        return len(batch)


def make(kind=TwoTerms, epochs=None, optimizer=torch.optim.SGD, **options):
    model = net()
    made = optimizer(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, Y), 4)
    return kind(model, None, made, loader, device="cpu", engine="eager", **options)


def by_hand(epochs):
    """Weights, and of each epoch the terms of its batches and their sizes."""
    model, loader, seen = net(), MiniBatchLoader((X, Y), 4), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        seen.append([])
        for batch in loader:
            optimizer.zero_grad()
            terms = terms_of(model, batch.inputs, batch.targets)
            terms["loss"].backward()
            optimizer.step()
            seen[-1].append((len(batch), {k: v.item() for k, v in terms.items()}))
    return model, seen


def means(rows, name):
    return sum(n * terms[name] for n, terms in rows) / sum(n for n, _ in rows)


def assert_epochs(history, seen, rel=1e-12):
    for record, rows in zip(history, seen, strict=True):
        assert record["train_loss"] == pytest.approx(means(rows, "loss"), rel=rel)
        assert record["train_fit"] == pytest.approx(means(rows, "fit"), rel=rel)
        assert record["train_size"] == pytest.approx(means(rows, "size"), rel=rel)


def test_terms_of_epochs_are_means_as_the_loss_is_and_weights_those_of_the_plain_loop():
    trainer = make(validation=BatchLoader((X, Y)))
    history = trainer.fit(3)
    model, seen = by_hand(3)
    assert_epochs(history, seen)
    for mine, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    whole = {name: value.item() for name, value in terms_of(model, X, Y).items()}
    assert history[-1]["val_fit"] == pytest.approx(whole["fit"], rel=1e-12)
    assert history[-1]["val_size"] == pytest.approx(whole["size"], rel=1e-12)
    assert trainer.evaluate().keys() == {"loss", "fit", "size"}


@pytest.mark.parametrize("size", [1, 3])
def test_they_do_not_depend_on_how_batches_are_cut(size):
    history = make(microbatch_size=size, validation=BatchLoader((X, Y))).fit(3)
    _, seen = by_hand(3)
    assert_epochs(history, seen, rel=1e-9)
    whole = make(validation=BatchLoader((X, Y))).fit(3)
    assert history.val_fit == pytest.approx(whole.val_fit, rel=1e-9)


def on_a_rank(rank):
    history = make(validation=BatchLoader((X, Y))).fit(3)
    return history.epochs


def test_they_do_not_depend_on_the_processes():
    _, seen = by_hand(3)
    whole = make(validation=BatchLoader((X, Y))).fit(3)
    for epochs in on_ranks(on_a_rank):
        assert_epochs(epochs, seen, rel=1e-9)
        assert [e["val_fit"] for e in epochs] == pytest.approx(whole.val_fit, rel=1e-9)


class StopsAt(Callback):
    every_n_steps = 4

    def on_safe_point(self, trainer):
        trainer.stop("here")


def test_a_run_that_is_resumed_in_mid_epoch_has_the_same_means():
    whole = make().fit(3)
    first, second = make(callbacks=[StopsAt()]), make()
    first.fit(3)
    state = first.state_dict()
    assert state["progress"]["step_in_epoch"] == 1
    second.load_state_dict(state)
    history = second.fit(3)
    for name in ("train_fit", "train_size", "train_loss"):
        assert history[name] == whole[name]


def test_of_an_optimizer_with_a_closure_those_of_the_first_evaluation_count():
    trainer = make(optimizer=torch.optim.LBFGS)
    trainer.loader = BatchLoader((X, Y))
    before = {name: value.item() for name, value in terms_of(net(), X, Y).items()}
    record = trainer.fit(1)[-1]
    assert record["train_loss"] == pytest.approx(before["loss"], rel=1e-14)
    assert record["train_fit"] == pytest.approx(before["fit"], rel=1e-14)


class Gradients(Callback):
    """Logs in a callback, and in an epoch's end."""

    every_n_steps = 2

    def on_safe_point(self, trainer):
        trainer.log("norm", nn.utils.get_total_norm(p.grad for p in trainer.model.parameters()))
        trainer.log("double", 2 * trainer.progress.step)

    def on_epoch_end(self, trainer, record):
        trainer.log("ended", record["epoch"])


class OwnStep(Trainer):
    """A train_step of your own, which computes its gradient by itself."""

    def compute_loss(self, batch):
        return terms_of(self.model, batch.inputs, batch.targets)

    def train_step(self, batch):
        self.optimizer.zero_grad()
        loss = self.batch_loss(batch)
        loss.backward()
        self.optimizer.step()
        self.log("half", loss.detach() / 2)
        return loss.detach()


def test_numbers_are_logged_by_train_steps_and_callbacks():
    trainer = make(OwnStep, callbacks=[Gradients()])
    history = trainer.fit(3)  # of 3 updates each
    for record in history:
        assert record["half"] == pytest.approx(record["train_loss"] / 2, rel=1e-12)
        assert record["ended"] == record["epoch"]
    assert history["double"] == [4.0, pytest.approx((4 * 8 + 3 * 12) / 7), 16.0]
    _, seen = by_hand(3)
    assert history["fit"] == pytest.approx([means(rows, "fit") for rows in seen], rel=1e-12)


class Looking(Callback):
    every_n_steps = 1

    def on_safe_point(self, trainer):
        trainer.evaluate()


class Counting(Trainer):
    def compute_loss(self, batch):
        self.log("count", float(len(batch)))
        return F.mse_loss(self.model(batch.inputs), batch.targets)


def test_what_the_passes_of_a_look_log_is_of_no_update():
    """An evaluation, within an epoch or after it, is no update: 11 samples in 4, 4 and 3."""
    history = make(Counting, callbacks=[Looking()], validation=BatchLoader((X, Y))).fit(3)
    assert history["count"] == pytest.approx([(4 * 4 + 4 * 4 + 3 * 3) / 11] * 3)


def test_steps_are_logged_with_their_terms_in_files(tmp_path):
    path = tmp_path / "metrics.jsonl"
    trainer = make(callbacks=[Gradients(), MetricsLog(path, every_n_steps=1)])
    trainer.fit(2)
    _, seen = by_hand(2)
    steps = [record for record in read_metrics(path) if record["kind"] == "step"]
    flat = [terms for rows in seen for _, terms in rows]
    assert [s["fit"] for s in steps] == [terms["fit"] for terms in flat]
    assert [s["loss"] for s in steps] == [terms["loss"] for terms in flat]
    assert [s.get("double") for s in steps] == [None, 4, None, 8, None, 12]
    epochs = [record for record in read_metrics(path) if record["kind"] == "epoch"]
    assert [e["train_fit"] for e in epochs] == trainer.history.train_fit
    write_csv(path, tmp_path / "metrics.csv")
    columns = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"fit", "train_fit", "norm"} <= set(columns)


def test_batches_of_weight_0_count_for_nothing():
    class Ignoring(TwoTerms):
        def compute_loss(self, batch):
            terms = terms_of(self.model, batch.inputs, batch.targets)
            return terms | {"late": math.nan if self.step % 3 == 2 else 1.0}

        def loss_weight(self, batch):
            return 0.0 if self.step % 3 == 0 else len(batch)  # asked when the step is counted

    record = make(Ignoring).fit(1)[-1]
    assert record["train_late"] == 1.0


@pytest.mark.parametrize(
    ("given", "alone", "message"),
    [
        ({"fit": 1.0}, True, "compute_loss: returned only fit; name the loss 'loss'"),
        ({}, True, "compute_loss: returned nothing; name the loss 'loss'"),
        (
            {"fit": torch.ones(3)},
            False,
            r"fit: must be one number, got \[3\]; take its mean, or leave it",
        ),
        (
            {"fit": "much"},
            False,
            "fit: must be one number, got str; take its mean, or leave it out",
        ),
        ({"lr": 1.0}, False, "'lr' can't be the name of a number that is logged; choose another"),
    ],
)
def test_what_is_no_term(given, alone, message):
    class Wrong(Trainer):
        def compute_loss(self, batch):
            loss = self.model(batch.inputs).mean()
            return {**given, **({} if alone else {"loss": loss})}

    with pytest.raises(ModelError, match=message):
        make(Wrong).fit(1)


def test_a_term_of_a_metrics_name_is_refused():
    with pytest.raises(ModelError, match="compute_loss: 'fit' is a metric's name too; choose an"):
        make(metrics={"fit": lambda output, targets: 0.0}).evaluate()


def test_a_look_in_the_middle_of_an_update_leaves_its_terms():
    class Looks(Callback):
        def on_gradient(self, trainer, batch, loss):
            trainer.evaluate()

    _, seen = by_hand(2)
    assert_epochs(make(callbacks=[Looks()]).fit(2), seen)
