"""Gradient, Hessian and Gauss–Newton matrix against dense ones, however the samples are cut."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.combinations import combinations
from helpers.thread_ranks import on_threads
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

from gdtrain import BatchLoader, MiniBatchLoader, Trainer, curvature
from gdtrain.errors import ConfigError, ModelError

N = 23


def network(*extra: nn.Module) -> nn.Sequential:
    """309 parameters in float64, and those of the extra layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 14), *extra, nn.Tanh(), nn.Linear(14, 10), nn.Tanh(), nn.Linear(10, 3)
    ).double()


def inputs() -> Tensor:
    return torch.randn(N, 8, generator=torch.Generator().manual_seed(1)).double()


def numbers() -> Tensor:
    return torch.randn(N, 3, generator=torch.Generator().manual_seed(2)).double()


def labels() -> Tensor:
    chosen = torch.arange(N) % 3
    chosen[::5] = -100
    return chosen


def weighted() -> nn.Module:
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]).double())


PROBLEMS = {"squares": (nn.MSELoss, numbers), "weighted classes": (weighted, labels)}


def trainer_of(model: nn.Module, loss: nn.Module, data, **options) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = options.pop("loader", None) or BatchLoader(data)
    return Trainer(model, loss, optimizer, loader, device="cpu", **options)


# ── dense, by torch.func and torch.autograd.functional ──────────────────────────────────────────


class Dense:
    """The loss of all samples as a function of one vector, and its derivatives, formed."""

    def __init__(self, model: nn.Module, loss, data: tuple[Tensor, Tensor]) -> None:
        self.model, self.loss_of, self.data = model, loss, data
        self.names = [name for name, _ in model.named_parameters()]
        self.shapes = [p.shape for p in model.parameters()]
        self.theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs(self, theta: Tensor) -> Tensor:
        sizes = [shape.numel() for shape in self.shapes]
        parts = zip(self.names, torch.split(theta, sizes), self.shapes, strict=True)
        weights = {name: part.view(shape) for name, part, shape in parts}
        return functional_call(self.model, weights, (self.data[0],))

    def loss(self, theta: Tensor) -> Tensor:
        return self.loss_of(self.outputs(theta), self.data[1])

    def gradient(self) -> Tensor:
        theta = self.theta.clone().requires_grad_()
        return torch.autograd.grad(self.loss(theta), theta)[0]

    def hessian(self) -> Tensor:
        return hessian(self.loss, self.theta)

    def gauss_newton(self) -> Tensor:
        outputs = self.outputs(self.theta)
        inner = hessian(lambda f: self.loss_of(f.view_as(outputs), self.data[1]), outputs.flatten())
        slopes = jacobian(lambda theta: self.outputs(theta).flatten(), self.theta)
        return slopes.T @ inner @ slopes


def same(asked, formed: Tensor) -> bool:
    """Whether products with it are those with the dense matrix."""
    size = len(formed)
    vectors = torch.randn(size, 3, generator=torch.Generator().manual_seed(3)).double()
    assert asked.shape == (size, size)
    assert torch.equal(asked @ vectors[:, 0], (asked @ vectors[:, :1])[:, 0])
    return bool((asked @ vectors - formed @ vectors).abs().max() < 1e-10)


@pytest.mark.few(5)
@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
@pytest.mark.parametrize(
    ("problem", "microbatch_size"), combinations(PROBLEMS, [None, 1, 3, 7], of=1)
)
def test_products_are_those_of_the_dense_matrix(problem, microbatch_size, matrix) -> None:
    loss, targets = PROBLEMS[problem][0](), PROBLEMS[problem][1]()
    model, data = network(), (inputs(), targets)
    dense = Dense(model, loss, data)
    formed = getattr(dense, matrix)()
    found = curvature(trainer_of(model, loss, data, microbatch_size=microbatch_size))
    assert same(getattr(found, matrix), formed)
    assert (found.gradient() - dense.gradient()).abs().max() < 1e-12
    assert math.isclose(found.loss(), float(dense.loss(dense.theta)), rel_tol=1e-12)


@pytest.mark.few(1)
@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_eigenpairs_and_traces_are_those_of_the_dense_matrix(matrix) -> None:
    model, loss, data = network(), weighted(), (inputs(), labels())
    formed = getattr(Dense(model, loss, data), matrix)()
    asked = getattr(curvature(trainer_of(model, loss, data)), matrix)
    expected = torch.linalg.eigvalsh(formed)
    assert (asked.top(4).values - expected.flip(0)[:4]).abs().max() < 1e-6
    assert (asked.bottom(2, max_products=1000).values - expected[:2]).abs().max() < 1e-6
    assert math.isclose(asked.trace(309).value, float(formed.trace()), rel_tol=1e-10)
    rough = asked.trace(90)
    assert 0 < rough.standard_error < float(formed.norm())
    assert abs(rough.value - float(formed.trace())) < 4 * rough.standard_error
    density = asked.spectrum(probes=2, steps=40)
    assert abs(density.mean(lambda x: x) - float(expected.mean())) < 0.2 * float(expected.std())
    assert abs(float(density.nodes.max() - expected[-1])) < 1e-6


@pytest.mark.few(1)
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_two_ranks_find_what_one_does(microbatch_size) -> None:
    model, loss, data = network(), weighted(), (inputs(), labels())
    dense = Dense(model, loss, data)
    formed = {"hessian": dense.hessian(), "gauss_newton": dense.gauss_newton()}
    trainers = [
        trainer_of(network(), weighted(), data, microbatch_size=microbatch_size) for _ in range(2)
    ]

    def work(world):
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        found = curvature(trainer)
        batch = curvature(trainer, (data[0][:7], data[1][:7]))
        assert same(found.gauss_newton, formed["gauss_newton"])
        assert same(batch.hessian, few)
        return found.loss(), found.gradient(), found.hessian.top().values

    few = Dense(model, loss, (data[0][:7], data[1][:7])).hessian()
    expected = torch.linalg.eigvalsh(formed["hessian"])[-1:]
    for value, gradient, top in on_threads(2, work):
        assert math.isclose(value, float(dense.loss(dense.theta)), rel_tol=1e-12)
        assert (gradient - dense.gradient()).abs().max() < 1e-12
        assert (top - expected).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["Batch", "pair", "loader"])
def test_a_batch_or_other_samples_can_be_asked_for(kind) -> None:
    model, data = network(), (inputs(), numbers())
    trainer = trainer_of(model, nn.MSELoss(), data, microbatch_size=2)
    other = (data[0].flip(0)[:5] * 2, data[1][:5])
    given = {
        "Batch": lambda: next(iter(BatchLoader(other, order="sequential"))),
        "pair": lambda: other,
        "loader": lambda: MiniBatchLoader(other, 2),
    }[kind]()
    found = curvature(trainer, given)
    dense = Dense(model, nn.MSELoss(), other)
    assert (found.gradient() - dense.gradient()).abs().max() < 1e-12
    assert same(found.hessian, dense.hessian())


def test_in_training_mode_batchnorm_has_the_statistics_of_all_samples() -> None:
    model, data = network(nn.BatchNorm1d(14)), (inputs(), numbers())
    trainer = trainer_of(model, nn.MSELoss(), data, loader=MiniBatchLoader(data, 4))
    trainer.fit(1)
    model.train()
    found = curvature(trainer, training=True)
    dense = Dense(model, nn.MSELoss(), data)
    formed = dense.hessian(), dense.gauss_newton(), dense.gradient()
    changed = [buffer.clone() for buffer in model.buffers()]
    assert same(found.hessian, formed[0])
    assert same(found.gauss_newton, formed[1])
    assert (found.gradient() - formed[2]).abs().max() < 1e-12
    assert all(map(torch.equal, changed, model.buffers()))
    model.eval()
    in_eval = Dense(model, nn.MSELoss(), data).hessian()
    model.train()
    assert same(curvature(trainer).hessian, in_eval)


def test_in_training_mode_dropout_has_the_masks_of_the_next_update() -> None:
    model, data = network(nn.Dropout(0.4)), (inputs(), numbers())
    trainer = trainer_of(model, nn.MSELoss(), data, loader=BatchLoader(data, order="sequential"))

    def seeded(*pair: Tensor) -> Tensor:
        return nn.functional.mse_loss(*pair)

    dense = Dense(model, seeded, data)
    outputs = dense.outputs

    def with_masks(theta: Tensor) -> Tensor:
        torch.manual_seed(7)
        return outputs(theta)

    dense.outputs = with_masks
    expected = dense.hessian()
    torch.manual_seed(7)
    found = curvature(trainer, training=True)
    assert same(found.hessian, expected)
    torch.manual_seed(7)
    got = found.gradient()
    trainer.batch_gradient(next(iter(trainer.loader)))
    its = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.allclose(got, its, rtol=1e-12, atol=0)


@pytest.mark.parametrize("microbatch_size", [1, 3, 7])
def test_training_mode_goes_in_microbatches_and_batchnorm_is_refused_there(microbatch_size) -> None:
    data = (inputs(), numbers())
    model = network()
    trainer = trainer_of(model, nn.MSELoss(), data, microbatch_size=microbatch_size)
    found = curvature(trainer, training=True)
    assert same(found.hessian, Dense(model, nn.MSELoss(), data).hessian())
    mixing = network(nn.BatchNorm1d(14))
    trainer = trainer_of(mixing, nn.MSELoss(), data, microbatch_size=microbatch_size)
    with pytest.raises(ModelError, match=r"^microbatch_size: layer '1' \(BatchNorm1d\) computes"):
        curvature(trainer, training=True).gradient()
    assert len(curvature(trainer).gradient()) == 337  # in eval mode


def test_layers_are_the_blocks_on_the_diagonal() -> None:
    model, loss, data = network(), nn.MSELoss(), (inputs(), numbers())
    dense = Dense(model, loss, data)
    found = curvature(trainer_of(model, loss, data, microbatch_size=4))
    whole = {"hessian": dense.hessian(), "gauss_newton": dense.gauss_newton()}
    start = 0
    assert list(found.layers) == ["0", "2", "4"]
    assert found.names[:2] == ["0.weight", "0.bias"]
    assert found.split(dense.theta)["2.weight"].shape == (10, 14)
    for layer in found.layers.values():
        own = slice(start, start := start + layer.num_parameters)
        for name, formed in whole.items():
            assert same(getattr(layer, name), formed[own, own])
        top = torch.linalg.eigvalsh(whole["hessian"][own, own])[-1]
        assert abs(float(layer.hessian.top().values[0]) - float(top)) < 1e-6
        assert (layer.gradient() - dense.gradient()[own]).abs().max() < 1e-12
    assert start == 309


@pytest.mark.parametrize("microbatch_size", [None, 1, 3, 7])
def test_losses_on_a_line_and_a_plane(microbatch_size) -> None:
    model, loss, data = network(), weighted(), (inputs(), labels())
    dense = Dense(model, loss, data)
    found = curvature(trainer_of(model, loss, data, microbatch_size=microbatch_size))
    one, two = torch.randn(2, 309, generator=torch.Generator().manual_seed(4)).double()
    at = torch.linspace(-1, 1, 5)
    line = found.losses(one, at)
    assert line.shape == (5,)
    for a, value in zip(at.double(), line, strict=True):
        assert math.isclose(value, float(dense.loss(dense.theta + a * one)), rel_tol=1e-10)
    plane = found.losses(torch.stack([one, two]), torch.cartesian_prod(at, at).view(5, 5, 2))
    assert plane.shape == (5, 5)
    expected = dense.loss(dense.theta + at.double()[1] * one + at.double()[3] * two)
    assert math.isclose(plane[1, 3], float(expected), rel_tol=1e-10)
    name, layer = list(found.layers.items())[1]
    alone = found.split(torch.zeros(309).double())
    alone[f"{name}.weight"] += 1.0
    moved = torch.cat([part.flatten() for part in alone.values()])
    own = torch.cat([torch.ones(140), torch.zeros(10)]).double()
    pair = layer.losses(own, at), found.losses(moved, at)
    assert torch.allclose(*pair, rtol=1e-12)


def test_gradients_by_batch_and_by_sample() -> None:
    """Against each batch's and each sample's own gradient by autograd."""
    model, loss, data = network(), nn.MSELoss(), (inputs(), numbers())
    loader = MiniBatchLoader(data, 5, order="sequential")
    found = curvature(trainer_of(model, loss, data, loader=loader))

    def gradient(rows: slice) -> Tensor:
        value = loss(model(data[0][rows]), data[1][rows])
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, [*model.parameters()])])

    batches = [gradient(slice(start, start + 5)) for start in range(0, N, 5)]
    expected = [float(one @ two / (one.norm() * two.norm())) for one, two in pairwise(batches)]
    assert found.cosines().tolist() == pytest.approx(expected, rel=1e-10)
    assert len(found.cosines(3)) == 2
    each = torch.stack([gradient(slice(row, row + 1)) for row in range(N)])
    noise = found.noise()
    assert math.isclose(noise.covariance_trace, float(each.var(0).sum()), rel_tol=1e-10)
    assert list(noise.layers) == ["0", "2", "4"]
    for layer, part in zip(noise.layers.values(), each.split([126, 150, 33], dim=1), strict=True):
        assert math.isclose(layer.covariance_trace, float(part.var(0).sum()), rel_tol=1e-10)
    of_one = found.layers["2"].noise()
    assert math.isclose(of_one.covariance_trace, noise.layers["2"].covariance_trace, rel_tol=1e-12)


class Sizes(Trainer):
    """Of data without targets."""

    def compute_loss(self, batch):
        return self.model(batch.inputs).square().mean()


def test_a_batch_without_targets() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Sizes(model, None, optimizer, MiniBatchLoader(inputs(), 5), device="cpu")
    batch = next(iter(trainer.loader))
    expected = torch.autograd.grad(model(batch.inputs).square().mean(), [*model.parameters()])
    got = curvature(trainer, batch).gradient()
    assert (got - torch.cat([g.flatten() for g in expected])).abs().max() < 1e-12


class Custom(Trainer):
    def compute_loss(self, batch):
        return self.loss(self.model(batch.inputs), batch.targets)

    def loss_weight(self, batch):
        return len(batch)


def test_an_own_loss_has_a_hessian_and_no_gauss_newton_matrix() -> None:
    model, data = network(), (inputs(), numbers())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader(data)
    trainer = Custom(model, nn.MSELoss(), optimizer, loader, device="cpu", microbatch_size=3)
    found, expected = curvature(trainer), Dense(model, nn.MSELoss(), data).hessian()
    assert same(found.hessian, expected)
    said = "gauss_newton: needs loss(model(inputs), targets), and this trainer has a compute_loss "
    with pytest.raises(ModelError) as error:
        found.gauss_newton.top()
    assert str(error.value).startswith(said)


class Scaled(nn.Module):
    """Squares over a scale that is trained too."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3).double())

    def forward(self, output, targets):
        return (output - targets).square().mean() * torch.exp(-self.log_scale) + self.log_scale


def test_parameters_of_the_loss_are_in_the_hessian_alone() -> None:
    model, loss, data = network(), Scaled(), (inputs(), numbers())
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    trainer = Trainer(model, loss, optimizer, BatchLoader(data), device="cpu")
    found = curvature(trainer)
    assert found.names[-1] == "loss/log_scale"
    scale = float(loss.log_scale.detach())
    squares = found.loss() - scale
    assert math.isclose(float(found.hessian.dense()[-1, -1]), squares, rel_tol=1e-12)
    with pytest.raises(ModelError, match="some of what is trained is the loss's own"):
        found.gauss_newton.top()
    dense = Dense(model, loss, data).gauss_newton()
    assert same(found.layers["0"].gauss_newton, dense[:126, :126])


def test_a_loss_linear_in_the_outputs_has_no_gauss_newton_curvature() -> None:
    model, data = network(), (inputs(), torch.full((N, 3), 1e6).double())
    found = curvature(trainer_of(model, nn.L1Loss(), data))
    assert found.gauss_newton.top().values.tolist() == [0]
    expected = Dense(model, nn.L1Loss(), data).hessian()
    assert same(found.hessian, expected)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.one, self.two = nn.Linear(8, 4), nn.Linear(4, 3), nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        return {"one": self.one(hidden), "two": (self.two(hidden), hidden.detach())}


def of_both(output, targets):
    one, (two, _) = output["one"], output["two"]
    return nn.functional.mse_loss(one, targets) + (two * one).square().mean()


def test_several_outputs_are_curved_together() -> None:
    model, data = TwoHeads(), (inputs(), numbers())
    found = curvature(trainer_of(model, of_both, data))

    class Joined(Dense):
        def outputs(self, theta):
            output = super().outputs(theta)
            return torch.cat([output["one"], output["two"][0]], dim=1)

    def joined_loss(output, targets):
        one, two = output.split(3, dim=1)
        return of_both({"one": one, "two": (two, None)}, targets)

    dense = Joined(model, joined_loss, data)
    assert same(found.hessian, dense.hessian())
    assert same(found.gauss_newton, dense.gauss_newton())


def test_wrong_shapes_are_answered_in_one_line() -> None:
    found = curvature(trainer_of(network(), nn.MSELoss(), (inputs(), numbers())))
    with pytest.raises(ConfigError, match=r"^vectors: must have the shape \[309\] or \[309, k\]"):
        found.hessian @ torch.ones(3)
    with pytest.raises(ConfigError, match=r"^directions: must have the shape \[309\] or"):
        found.losses(torch.ones(3), torch.ones(3))
    with pytest.raises(ConfigError, match=r"^places: must have the shape \[\.\.\., 2\], a number"):
        found.losses(torch.ones(2, 309), torch.ones(3))
    with pytest.raises(ConfigError, match=r"^count: must be <= 309, the parameters, got 310$"):
        found.hessian.top(310)
    assert repr(found) == f"Curvature(309 parameters, {found.loader!r}, eval mode)"
