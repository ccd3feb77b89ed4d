"""Sharpness against the dense Hessian, known spectra, and the limits of stability."""

import math

import pytest
import torch
from helpers.quadratics import LARGEST, SPECTRUM, THRESHOLDS, descend
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.utils.data import IterableDataset

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.analysis.curvature.lanczos import largest_eigenpairs
from gdtrain.analysis.sharpness import largest_eigenvalue, stability_limit
from gdtrain.data.builtin.problems import quadratic, quadratic_solution
from gdtrain.errors import ConfigError, DataError, ModelError


def tanh_network(scale: float = 1.0) -> nn.Sequential:
    """309 parameters in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 14), nn.Tanh(), nn.Linear(14, 10), nn.Tanh(), nn.Linear(10, 3)
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def samples(n: int = 37) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=draw).double(), torch.randn(n, 3, generator=draw).double()


def trainer_of(model: nn.Module, loss: nn.Module, data: tuple, kind=Trainer, **options) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return kind(model, loss, optimizer, BatchLoader(data), device="cpu", **options)


def spectrum(model: nn.Module, loss, data: tuple) -> Tensor:
    """All eigenvalues of the dense Hessian, row by row, ascending."""
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def value(flat: Tensor) -> Tensor:
        parts = [t.view(s) for t, s in zip(torch.split(flat, sizes), shapes, strict=True)]
        weights = dict(zip(names, parts, strict=True))
        return loss(functional_call(model, weights, (data[0],)), data[1])

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.linalg.eigvalsh(hessian(value, flat))


@pytest.mark.few(2)
@pytest.mark.parametrize("microbatch_size", [None, 5, 1])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_it_is_the_largest_eigenvalue_of_the_dense_hessian(scale, microbatch_size) -> None:
    model, data = tanh_network(scale), samples()
    expected = spectrum(model, nn.MSELoss(), data)
    assert expected[0] < -0.3  # an indefinite Hessian
    trainer = trainer_of(model, nn.MSELoss(), data, microbatch_size=microbatch_size)
    found = largest_eigenvalue(trainer)
    assert abs(found.value - float(expected[-1])) < 1e-6
    assert found.gradient_evaluations == 2 * found.products <= 60
    assert found.residual <= 1e-4 * found.value
    assert math.isclose(float(found.vector.norm()), 1, rel_tol=1e-12)
    assert repr(found).startswith(f"Sharpness({found.value:.4g}, residual ")


class Ascent(Trainer):
    """Climbs the mean squared error: its Hessian is the negative of descent's."""

    def compute_loss(self, batch):
        return -nn.functional.mse_loss(self.model(batch.inputs), batch.targets)


def test_a_negative_eigenvalue_of_larger_magnitude_is_passed_over() -> None:
    model, data = tanh_network(), samples()
    expected = spectrum(model, lambda *pair: -nn.functional.mse_loss(*pair), data)
    assert -expected[0] > 2 * expected[-1] > 0
    found = largest_eigenvalue(trainer_of(model, None, data, Ascent, microbatch_size=5))
    assert abs(found.value - float(expected[-1])) < 1e-6


def test_a_spectrum_without_a_positive_value_gives_the_one_nearest_to_zero() -> None:
    values = -torch.tensor([0.3, 1.0, 2.0, 50.0], dtype=torch.float64)
    start = torch.ones(4, dtype=torch.float64)
    found = largest_eigenpairs(lambda v: values * v, start, tolerance=1e-8, max_products=10)
    assert math.isclose(float(found.values[0]), -0.3, rel_tol=1e-12)


@pytest.mark.parametrize("form", [BatchLoader, SampleLoader, lambda d: MiniBatchLoader(d, 3)])
def test_a_quadratic_has_the_spectrum_that_it_was_made_with(form) -> None:
    data = quadratic(SPECTRUM, num_samples=9)
    model = nn.Linear(len(SPECTRUM), 1, bias=False).double()
    trainer = Trainer(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        form((data.inputs, data.targets)),
        device="cpu",
    )
    found = largest_eigenvalue(trainer)
    assert math.isclose(found.value, LARGEST, rel_tol=1e-10)
    assert found.products <= len(SPECTRUM)
    _, vectors = quadratic_solution(SPECTRUM)
    assert abs(float(vectors[:, -1] @ found.vector)) > 1 - 1e-10


def test_class_weights_and_ignored_targets_count_as_in_the_loss_of_all() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    targets = torch.arange(37) % 3
    targets[::5] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]).double())
    data = (samples()[0], targets)
    trainer = trainer_of(model, loss, data, microbatch_size=4)
    expected = float(spectrum(model, loss, data)[-1])
    assert abs(largest_eigenvalue(trainer).value - expected) < 1e-6


def test_parameters_that_are_not_trained_are_not_looked_at() -> None:
    model, data = tanh_network(), samples()
    model[0].requires_grad_(False)
    hidden = model[1](model[0](data[0])).detach()
    expected = float(spectrum(model[2:], nn.MSELoss(), (hidden, data[1]))[-1])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader(data), device="cpu")
    assert abs(largest_eigenvalue(trainer).value - expected) < 1e-6


def test_one_sample_and_one_parameter() -> None:
    """J = (3 θ - 1)² has the second derivative 2 · 3²."""
    model = nn.Linear(1, 1, bias=False)
    data = (torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    found = largest_eigenvalue(trainer_of(model, nn.MSELoss(), data))
    assert (found.value, found.products) == (pytest.approx(18, rel=1e-6), 1)


def test_a_loss_that_is_linear_has_none() -> None:
    model = nn.Linear(8, 3).double()
    data = (samples()[0], torch.full((37, 3), 1e6).double())
    assert largest_eigenvalue(trainer_of(model, nn.L1Loss(), data)).value == 0


def test_a_start_near_the_eigenvector_saves_products() -> None:
    model, data = tanh_network(), samples()
    trainer = trainer_of(model, nn.MSELoss(), data)
    first = largest_eigenvalue(trainer, tolerance=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    cold, warm = (
        largest_eigenvalue(trainer, tolerance=1e-3, start=start) for start in (None, first.vector)
    )
    assert warm.products < cold.products
    assert math.isclose(warm.value, cold.value, rel_tol=1e-5)


@pytest.mark.parametrize("size", [100, 1000])
def test_a_start_does_not_hide_an_eigenvalue_that_grew_at_right_angles_to_it(size) -> None:
    from gdtrain.analysis.curvature.matrix import FRESH_SHARE

    draw = torch.Generator().manual_seed(size)
    for _ in range(10):
        values = torch.rand(size, generator=draw).double() ** 4
        values[0], values[1] = 1.0, 1.05
        fresh = torch.randn(size, generator=draw).double()
        start = torch.eye(1, size).double()[0] + FRESH_SHARE * fresh / fresh.norm()
        found = largest_eigenpairs(
            lambda v, a=values: a * v, start, tolerance=1e-4, max_products=99
        )
        assert abs(float(found.values[0]) - 1.05) < 1e-6


def test_it_stops_at_max_products_and_says_how_far_it_is() -> None:
    trainer = trainer_of(tanh_network(), nn.MSELoss(), samples())
    found = largest_eigenvalue(trainer, max_products=3)
    assert found.products == 3
    assert found.residual > 1e-2 * found.value


def test_it_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    data = tuple(t.float() for t in samples())
    trainer = trainer_of(model, nn.MSELoss(), data)
    trainer.fit(2)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    rng = torch.get_rng_state()
    first, second = largest_eigenvalue(trainer), largest_eigenvalue(trainer)
    assert first.value == second.value
    assert torch.equal(rng, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    for parameter, (gradient, content) in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, content)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(context, gradient):
        return gradient * 3 * context.saved_tensors[0] ** 2


class Cubed(nn.Linear):
    def forward(self, x):
        return Cube.apply(super().forward(x))


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.ones(8), torch.ones(3)


def test_what_has_no_hessian_is_refused_in_one_line() -> None:
    data = tuple(t.float() for t in samples())
    said = "model: has no second derivatives: an autograd.Function in it is marked with "
    with pytest.raises(ModelError, match=f"^{said}once_differentiable$"):
        largest_eigenvalue(trainer_of(Cubed(8, 3), nn.MSELoss(), data))
    model = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stream = Trainer(model, nn.MSELoss(), optimizer, MiniBatchLoader(Endless(), 4), device="cpu")
    said = r"^a stream's samples are read once, and this looks at all of them again$"
    with pytest.raises(DataError, match=said):
        largest_eigenvalue(stream)
    trainer = trainer_of(model, nn.MSELoss(), data)
    with pytest.raises(ConfigError, match=r"^start: must have the shape \[27\] .*, got \[3\]$"):
        largest_eigenvalue(trainer, start=torch.ones(3))
    with pytest.raises(ConfigError, match=r"^tolerance: must be > 0 and < 1, got 0$"):
        largest_eigenvalue(trainer, tolerance=0)


def test_weights_that_are_not_finite_give_nan() -> None:
    model = tanh_network()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    found = largest_eigenvalue(trainer_of(model, nn.MSELoss(), samples()))
    assert math.isnan(found.value)
    assert found.products == 1


# ── the limit of stability ──────────────────────────────────────────────────────────────────


def sgd(**options: object) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, **options)


@pytest.mark.parametrize(("options", "threshold"), THRESHOLDS)
def test_the_limit_is_the_threshold_of_convergence_on_a_quadratic(options, threshold) -> None:
    assert stability_limit(sgd(**options)) == pytest.approx(threshold, rel=1e-12)


def test_the_limit_with_dampening_is_where_descent_on_a_quadratic_turns_unstable() -> None:
    options = {"momentum": 0.9, "dampening": 0.5}
    limit = stability_limit(sgd(**options))
    solution, vectors = quadratic_solution(SPECTRUM)

    def last_error(lr: float) -> float:
        return abs(float(vectors[:, -1] @ (descend(lr, 1500, **options)[-1] - solution)))

    assert last_error(0.99 * limit / LARGEST) < 1e-3
    assert last_error(1.01 * limit / LARGEST) > 1e3


def test_there_is_no_such_limit_for_other_optimizers_and_mixed_groups() -> None:
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    assert stability_limit(torch.optim.Adam(parameters)) is None
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}]
    assert stability_limit(torch.optim.SGD(groups, lr=0.1)) is None
    assert stability_limit(sgd(maximize=True)) is None
