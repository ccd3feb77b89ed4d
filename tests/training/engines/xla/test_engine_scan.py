"""The scan engine: the weights of the eager engine up to rounding, whatever the settings."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from helpers.combinations import combinations
from torch import nn

from gdtrain import (
    BatchLoader,
    Callback,
    EarlyStopping,
    MiniBatchLoader,
    SampleLoader,
    StepLosses,
    Trainer,
)
from gdtrain.errors import ConfigError, ModelError, NonFiniteError
from gdtrain.training import models
from gdtrain.training.optimizing import schedules

pytest.importorskip("jax")

N = 131  # prime: every batch size leaves a ragged end
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
LOSSES = {
    "l1": nn.L1Loss(),
    "mse": nn.MSELoss(),
    "smooth_l1": nn.SmoothL1Loss(beta=0.5),
    "huber": nn.HuberLoss(delta=0.7),
    "cross_entropy": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1),
    "nll": nn.NLLLoss(ignore_index=1),
    "multi_margin": nn.MultiMarginLoss(p=2, weight=torch.tensor([1.0, 2.0, 3.0])),
    "bce": nn.BCELoss(),
    "bce_with_logits": nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])),
    "poisson_nll": nn.PoissonNLLLoss(full=True),
    "kl_div": nn.KLDivLoss(reduction="batchmean"),
    "hinge_embedding": nn.HingeEmbeddingLoss(),
    "soft_margin": nn.SoftMarginLoss(),
    "multi_label_margin": nn.MultiLabelMarginLoss(),
    "multi_label_soft_margin": nn.MultiLabelSoftMarginLoss(),
}
OUTPUTS = {"nll": "log_softmax", "kl_div": "log_softmax", "bce": "sigmoid"}


def data(loss_name="mse", dtype=torch.float32, shape=(5,), n=N):
    draw = torch.Generator().manual_seed(1)
    X = torch.randn(n, *shape, generator=draw, dtype=dtype)
    if loss_name in ("cross_entropy", "nll", "multi_margin"):
        return X, torch.randint(3, (n,), generator=draw)
    if loss_name == "multi_label_margin":
        rows = [torch.randperm(3, generator=draw) for _ in range(n)]
        counts = torch.randint(1, 4, (n,), generator=draw)
        return X, torch.stack(
            [torch.where(torch.arange(3) < c, row, -1) for row, c in zip(rows, counts, strict=True)]
        )
    if loss_name in ("hinge_embedding", "soft_margin"):
        return X, torch.randn(n, 3, generator=draw, dtype=dtype).sign()
    return X, torch.rand(n, 3, generator=draw, dtype=dtype)


def trainer_of(engine, model, loss, loader, *, lr=0.05, clip=None, trainer=Trainer, **options):
    settings = {k: options.pop(k) for k in list(options) if k in SGD_KEYS}
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **settings)
    if "schedule" in options:
        options["scheduler"] = schedules.scheduler(optimizer, options.pop("schedule"))
    return trainer(
        model, copy.deepcopy(loss), optimizer, loader, device="cpu", engine=engine, **options
    )


SGD_KEYS = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")


def difference(eager: Trainer, scan: Trainer) -> float:
    """The largest ‖difference‖ / ‖tensor‖ over parameters, buffers and momentum buffers."""
    pairs = list(
        zip(eager.model.state_dict().values(), scan.model.state_dict().values(), strict=True)
    )
    for p, q in zip(eager.model.parameters(), scan.model.parameters(), strict=True):
        ours, theirs = scan.optimizer.state.get(q, {}), eager.optimizer.state.get(p, {})
        assert ours.keys() == theirs.keys()
        pairs += [(theirs[key], ours[key]) for key in theirs if theirs[key] is not None]
    return max(
        float((a.double() - b.double()).norm() / a.double().norm().clamp(min=1e-12))
        for a, b in pairs
    )


def assert_engines_agree(model, loss, loader, *, epochs=1, **options) -> tuple[Trainer, Trainer]:
    dtype = next(model.parameters()).dtype
    eager, scan = (trainer_of(name, model, loss, loader, **options) for name in ("eager", "scan"))
    eager.fit(epochs)
    scan.fit(epochs)
    assert scan.engine.name == "scan"
    assert difference(eager, scan) < TOLERANCE[dtype]
    close = pytest.approx(eager.history.train_loss, rel=TOLERANCE[dtype])
    assert scan.history.train_loss == close
    assert scan.progress.step == eager.progress.step
    if scan.schedule.scheduler is not None:
        assert scan.schedule.scheduler.state_dict() == eager.schedule.scheduler.state_dict()
        assert scan.lr == eager.lr
    return eager, scan


def small_mlp(activation: str, loss_name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(2)
    output = OUTPUTS.get(loss_name, "none")
    return models.mlp([5], 3, hidden=[4], activation=activation, output_activation=output).to(dtype)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("activation", "loss_name"), combinations(models.ACTIVATIONS, LOSSES, of=1)
)
def test_every_activation_with_every_loss_in_one_update(activation: str, loss_name: str) -> None:
    """Through the captured graph alone, which compiles no loop."""
    import jax

    from gdtrain.training.engines.capturing.capture import capture
    from gdtrain.training.engines.capturing.eager_pass import EagerPass
    from gdtrain.training.engines.xla.lowering.graph import is_lowered, run_step

    batch = next(iter(BatchLoader(data(loss_name, torch.float64, n=7))))
    model = small_mlp(activation, loss_name, torch.float64)
    trainer = trainer_of("eager", model, LOSSES[loss_name], None, weight_decay=0.1)
    seen = EagerPass(trainer, batch)
    row = torch.tensor(seen.step.settings_row(), dtype=torch.float64)
    captured = capture(seen, batch, is_lowered)
    state = [tensor.clone().numpy() for tensor in seen.step.tensors().flat()]
    arrays = [tensor.numpy() for tensor in (batch.inputs, batch.targets, batch.indices)]
    constants = [constant.numpy() for constant in captured.constants]
    with jax.enable_x64(True):
        run = jax.jit(lambda *of: list(run_step(captured, *of)))
        *new, loss, finite = run(state, row.numpy(), 0, arrays, constants)
    assert bool(finite)
    assert float(loss) == pytest.approx(float(trainer.train_step(batch)), rel=1e-12)
    for after, parameter in zip(new, trainer.model.parameters(), strict=False):
        expected = parameter.detach()
        assert torch.allclose(torch.tensor(after.tolist()).to(expected), expected, atol=1e-12)


@pytest.mark.few(1)
@pytest.mark.parametrize(("activation", "dtype"), combinations(models.ACTIVATIONS, TOLERANCE, of=1))
def test_epochs_with_every_activation(activation: str, dtype: torch.dtype) -> None:
    model, loader = small_mlp(activation, "mse", dtype), SampleLoader(data(dtype=dtype))
    assert_engines_agree(model, LOSSES["mse"], loader)


@pytest.mark.few(1)
@pytest.mark.parametrize(("name", "dtype"), combinations(LOSSES, TOLERANCE, of=1))
def test_epochs_with_every_loss(name: str, dtype: torch.dtype) -> None:
    loader = MiniBatchLoader(data(name, dtype), 8, drop_last=True)
    assert_engines_agree(small_mlp("tanh", name, dtype), LOSSES[name], loader)


@pytest.mark.few(1)
@pytest.mark.parametrize("output", ["none", "sigmoid", "tanh", "softplus", "softmax"])
def test_linear_models_with_every_output_activation(output: str) -> None:
    assert_engines_agree(
        models.linear([5], 3, output_activation=output), LOSSES["mse"], SampleLoader(data())
    )


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("activation", "batch_norm", "dtype"),
    combinations(["relu", "tanh"], [False, True], TOLERANCE, of=1),
)
def test_convolutional_models(activation, batch_norm, dtype) -> None:
    torch.manual_seed(2)
    model = models.cnn(
        [2, 9, 8], 3, channels=(3, 4), hidden=[5], activation=activation, batch_norm=batch_norm
    ).to(dtype)
    loader = MiniBatchLoader(data("cross_entropy", dtype, (2, 9, 8), 32), 16)
    assert_engines_agree(model, LOSSES["cross_entropy"], loader)


def test_batch_norm_keeps_its_statistics_and_count() -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, batch_norm=True).double()
    _, scan = assert_engines_agree(
        model, LOSSES["mse"], MiniBatchLoader(data(dtype=torch.float64), 64), epochs=2
    )
    assert scan.model[1].num_batches_tracked == 6


SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.5},
    "dampening": {"momentum": 0.5, "dampening": 0.3},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "weight_decay": {"weight_decay": 0.01},
    "maximize": {"maximize": True, "lr": 1e-3},
    "all": {"momentum": 0.5, "nesterov": True, "weight_decay": 0.01, "clip_grad_norm": 0.5},
    "clip_norm": {"clip_grad_norm": 0.3},
    "clip_value": {"clip_grad_value": 0.02},
    "schedule": {"schedule": schedules.inverse_time(50), "scheduler_per": "step"},
    "epoch_schedule": {"schedule": schedules.exponential(0.5), "scheduler_per": "epoch"},
}
LOADERS = {
    "batch": BatchLoader,
    "sample": SampleLoader,
    "in_order": lambda d: SampleLoader(d, order="sequential"),
    "minibatch": lambda d: MiniBatchLoader(d, 64),
    "minibatch_in_order": lambda d: MiniBatchLoader(d, 64, order="sequential"),
    "drop_last": lambda d: MiniBatchLoader(d, 64, drop_last=True, order="replacement"),
}


@pytest.mark.few(1)
@pytest.mark.parametrize(("form", "setting"), combinations(LOADERS, SETTINGS, of=1))
def test_every_form_and_setting_of_sgd(form: str, setting: str) -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4], activation="tanh").double()
    loader = LOADERS[form](data(dtype=torch.float64))
    assert_engines_agree(model, LOSSES["mse"], loader, epochs=3, **SETTINGS[setting])


def test_parameter_groups_frozen_and_unused_parameters() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(5, 4)
            self.head = nn.Linear(4, 3)
            self.unused = nn.Linear(5, 3)
            self.body.bias.requires_grad_(False)

        def forward(self, x):
            return self.head(self.body(x).relu_())

    torch.manual_seed(2)
    model = Partly().double()
    loader = MiniBatchLoader(data(dtype=torch.float64), 64, drop_last=True)
    trained = []
    for engine in ("eager", "scan"):
        own = copy.deepcopy(model)
        groups = [
            {"params": own.body.parameters(), "momentum": 0.9},
            {"params": [*own.head.parameters(), *own.unused.parameters()], "weight_decay": 0.1},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.05)
        trainer = Trainer(own, nn.MSELoss(), optimizer, loader, device="cpu", engine=engine)
        trainer.fit(2)
        trained.append(trainer)
    assert difference(*trained) < 1e-10
    assert torch.equal(trained[1].model.unused.weight, model.unused.weight)
    assert torch.equal(trained[1].model.body.bias, model.body.bias)


def test_a_compute_loss_of_ones_own_with_several_inputs_and_weights_by_index() -> None:
    class Weighted(Trainer):
        weights = torch.rand(N, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

        def compute_loss(self, batch):
            x, z = batch.inputs
            error = (self.model(x) * z - batch.targets).square().mean(dim=1)
            penalty = sum(p.abs().sum() for p in self.model.parameters())
            return (error * self.weights[batch.indices]).mean() + 0.01 * penalty

    X, y = data(dtype=torch.float64)
    Z = torch.rand(N, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4]).double()
    assert_engines_agree(model, None, MiniBatchLoader((X, Z, y), 16), trainer=Weighted, epochs=2)


def test_data_without_targets() -> None:
    class Autoencoder(Trainer):
        def compute_loss(self, batch):
            return nn.functional.mse_loss(self.model(batch.inputs), batch.inputs)

    torch.manual_seed(2)
    X, _ = data(dtype=torch.float64)
    assert_engines_agree(
        nn.Linear(5, 5).double(), None, MiniBatchLoader((X,), 16), trainer=Autoencoder
    )


def test_bits_and_losses_do_not_depend_on_where_blocks_end() -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4])

    class Looking(Callback):
        every_n_steps = 7

        def on_safe_point(self, trainer):
            """Only to end blocks, and to have weights and momentum brought over."""

    runs = []
    for callbacks in ([], [Looking()]):
        losses = StepLosses()
        trainer = trainer_of(
            *("scan", model, LOSSES["mse"], SampleLoader(data())),
            momentum=0.9,
            schedule=schedules.inverse_time(100),
            scheduler_per="step",
            callbacks=[losses, *callbacks],
        )
        trainer.fit(3)
        runs.append((trainer, losses.losses))
    (plain, plain_losses), (cut, cut_losses) = runs
    assert cut_losses == plain_losses
    assert cut.history.train_loss == plain.history.train_loss
    assert difference(plain, cut) == 0


def test_a_snapshot_in_mid_epoch_continues_to_the_same_bits() -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4])
    options = {"momentum": 0.9, "dampening": 0.1, "scheduler_per": "step"}

    class Keep(Callback):
        every_n_steps = 50

        def __init__(self) -> None:
            self.snapshots = []

        def on_safe_point(self, trainer):
            self.snapshots.append((trainer.progress.step, trainer.state_dict()))

    def build(callbacks=()):
        return trainer_of(
            *("scan", model, LOSSES["mse"], SampleLoader(data())),
            schedule=schedules.exponential(0.999),
            callbacks=callbacks,
            **options,
        )

    undisturbed, keep = build(), Keep()
    undisturbed.fit(2)
    build([keep]).fit(2)
    for step, snapshot in keep.snapshots:
        snapshot["callbacks"].clear()
        resumed = build()
        resumed.load_state_dict(snapshot)
        assert resumed.progress.step == step
        resumed.fit(2)
        assert difference(undisturbed, resumed) == 0
        assert resumed.history.train_loss == undisturbed.history.train_loss


def test_what_others_change_at_safe_points_counts() -> None:
    class Halve(Callback):
        every_n_steps = 40

        def on_safe_point(self, trainer):
            with torch.no_grad():
                for p in trainer.model.parameters():
                    p.mul_(0.5)
            for group in trainer.optimizer.param_groups:
                group["lr"] *= 0.5
            if trainer.progress.step == 80:
                trainer.model[0].weight.requires_grad_(False)

    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4], activation="tanh").double()
    assert_engines_agree(
        *(model, LOSSES["mse"], SampleLoader(data(dtype=torch.float64))),
        callbacks=[Halve()],
        momentum=0.5,
    )


def test_data_changed_in_place_counts_whatever_its_alignment() -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4]).double()
    trained = []
    for engine in ("eager", "scan"):
        X, y = (column[1:] for column in data(dtype=torch.float64))
        trainer = trainer_of(engine, model, LOSSES["mse"], SampleLoader((X, y)))
        trainer.fit(1)
        X.mul_(0.5)
        trainer.fit(2)
        trained.append(trainer)
    assert difference(*trained) < 1e-10


def test_validation_and_early_stopping_see_the_weights_of_each_epoch() -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4]).double()
    held_out = BatchLoader(data(dtype=torch.float64, n=30))
    eager, scan = (
        trainer_of(
            *(engine, model, LOSSES["mse"], SampleLoader(data(dtype=torch.float64))),
            lr=0.3,
            validation=held_out,
            callbacks=[EarlyStopping("val_loss", patience=2)],
        )
        for engine in ("eager", "scan")
    )
    assert eager.fit(30).val_loss == pytest.approx(scan.fit(30).val_loss, rel=1e-8)
    assert eager.progress.epoch == scan.progress.epoch < 30
    assert scan.stop_reason == eager.stop_reason
    assert scan.predict(torch.ones(1, 5)).flatten().tolist() == pytest.approx(
        eager.predict(torch.ones(1, 5)).flatten().tolist(), rel=1e-8
    )


# ── what is not finite ──────────────────────────────────────────────────────────────────────


def with_bad_row(row: int):
    """A row whose inputs overflow in the square of the loss, in float32."""
    X, y = data()
    X[row] = 1e30
    return X, y


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("row", "clip"),
    combinations([0, 1, 57, 130], [{}, {"clip_grad_norm": 1.0}, {"clip_grad_value": 1.0}], of=1),
)
def test_a_bad_batch_is_not_used_and_everything_before_it_stays(row: int, clip) -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4], activation="identity")
    loader = SampleLoader(with_bad_row(row), order="sequential")
    trained = []
    for engine in ("eager", "scan"):
        trainer = trainer_of(engine, model, LOSSES["mse"], loader, momentum=0.5, **clip)
        with pytest.raises(NonFiniteError, match=rf"step {row + 1}, .*on sample {row}"):
            trainer.fit(1)
        assert trainer.progress.step == row
        trained.append(trainer)
    assert difference(*trained) < 1e-5
    if row:
        good = trainer_of("scan", model, LOSSES["mse"], loader, momentum=0.5, **clip)
        good.loader = SampleLoader(tuple(t[:row] for t in data()), order="sequential")
        good.fit(1)
        assert difference(good, trained[1]) == 0  # the bits of a run that ends before it


def test_a_gradient_that_is_not_finite_under_a_finite_loss() -> None:
    class Root(nn.Module):
        """√|w x|, whose slope at 0 is infinite."""

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (self.w * x).abs().sqrt()

    X = torch.ones(9, 1)
    X[6] = 0
    loader = SampleLoader((X, torch.zeros(9, 1)), order="sequential")
    for engine in ("eager", "scan"):
        trainer = trainer_of(engine, Root(), nn.L1Loss(), loader, lr=0.1)
        with pytest.raises(NonFiniteError, match=r"^gradient is not finite in epoch 1, step 7"):
            trainer.fit(1)
        w = 1.0
        for _ in range(6):  # ∂√w/∂w = 1 / (2 √w)
            w -= 0.1 / (2 * math.sqrt(w))
        assert float(trainer.model.w.detach()) == pytest.approx(w, rel=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("row", [0, 32, 57])
def test_a_schedule_is_where_the_last_good_update_left_it(row: int) -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4], activation="identity")
    loader = SampleLoader(with_bad_row(row), order="sequential")
    lrs = []
    for engine in ("eager", "scan"):
        trainer = trainer_of(
            *(engine, model, LOSSES["mse"], loader),
            schedule=schedules.exponential(0.99),
            scheduler_per="step",
        )
        trainer.block_length._steps = 32  # so that 32 is the first row of a block
        with pytest.raises(NonFiniteError):
            trainer.fit(1)
        lrs.append((trainer.optimizer.param_groups[0]["lr"], trainer.lr))
        assert trainer.schedule.scheduler.last_epoch == row
    assert lrs[0] == lrs[1]


# ── what it refuses ─────────────────────────────────────────────────────────────────────────


def refused(**options) -> str:
    model = options.pop("model", nn.Linear(5, 3))
    loader = options.pop("loader", SampleLoader(data()))
    optimizer = options.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=0.1)
    kind = options.pop("trainer", Trainer)
    with pytest.raises(ConfigError) as caught:
        kind(model, nn.MSELoss(), optimizer, loader, device="cpu", engine="scan", **options).fit(1)
    return str(caught.value)


def test_what_it_can_not_run_is_refused_with_the_reason() -> None:
    class OwnStep(Trainer):
        def train_step(self, batch):
            return super().train_step(batch)

    class Watcher(Callback):
        def on_before_update(self, trainer):
            """Looks."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 7

        def __getitem__(self, i: int):
            return torch.ones(5), torch.ones(3)

    hooked = nn.Linear(5, 3)
    hooked.register_forward_hook(lambda *_: None)
    start, end = "engine: scan can't run this: ", "; use eager"
    expected = {
        "OwnStep overrides train_step; override compute_loss instead": {"trainer": OwnStep},
        "a callback looks at every update (on_before_update)": {"callbacks": [Watcher()]},
        "microbatch_size cuts each batch": {"microbatch_size": 1},
        "precision bf16 is computed by autocast": {"precision": "bf16"},
        "it makes the updates of torch.optim.SGD, not of Adam": {"optimizer": torch.optim.Adam},
        "layer '' has hooks, which look at every pass": {"model": hooked},
        "the data set is not in memory as tensors; give the loader tensors": {
            "loader": SampleLoader(Rows())
        },
    }
    for reason, options in expected.items():
        assert refused(**options) == start + reason + end


@pytest.mark.parametrize("engine", ["eager", "scan"])
def test_what_no_engine_can_run_is_refused_in_the_same_words(engine: str) -> None:
    model = nn.Linear(5, 3)
    before = [parameter.clone() for parameter in model.parameters()]
    loader = MiniBatchLoader((torch.ones(8, 5), torch.ones(8)), 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match=r"^loss: output has shape \[4, 3\]") as refusal:
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", engine=engine).fit(1)
    assert "eager" not in str(refusal.value)
    assert all(map(torch.equal, model.parameters(), before))


def test_an_operator_without_a_lowering_is_named() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            return self.linear(x) + torch.geqrf(x.detach().T)[1][:1]

    said = refused(model=Strange())
    assert said.startswith("engine: scan can't run this: there is no lowering of aten.geqrf")


def test_code_that_looks_at_numbers_can_not_be_captured() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else -self.linear(x)

    assert "Python code depends on values of tensors, in forward, line " in refused(model=Looking())


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("bincount", lambda x: torch.bincount((x[:, 0] > 0).long(), minlength=3)),
        ("nonzero", lambda x: (x > 0).nonzero()),
        ("_unique2", lambda x: x.unique()),
        ("masked_select", lambda x: x.masked_select(x > 0)),
    ],
)
def test_an_operator_whose_shape_depends_on_values_is_named(name, of) -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            return self.linear(x) * of(x.detach()).sum()

    assert refused(model=Strange()) == (
        f"engine: scan can't run this: what aten.{name}.default gives has a shape, or is a number "
        "in Python code, that depends on values of tensors; use torch.where or a mask; use eager"
    )


def test_jax_settings_are_left_alone() -> None:
    import jax
    import jax.numpy as jnp

    model = models.mlp([5], 3).double()
    trainer_of("scan", model, LOSSES["mse"], SampleLoader(data(dtype=torch.float64))).fit(1)
    assert not jax.config.jax_enable_x64
    assert jnp.arange(3).dtype == jnp.int32


def test_trainers_in_several_threads_capture_one_after_the_other() -> None:
    """Tracing changes what the whole process sees of modules."""
    start = Barrier(2)
    made = (small_mlp("tanh", "mse", torch.float32), nn.MSELoss(), MiniBatchLoader(data(), 16))
    eager, *scans = [trainer_of(engine, *made) for engine in ("eager", "scan", "scan")]

    def train(trainer: Trainer) -> None:
        start.wait()
        trainer.fit(1)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(train, scans))
    eager.fit(1)
    assert max(difference(eager, scan) for scan in scans) < TOLERANCE[torch.float32]
