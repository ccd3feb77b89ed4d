"""Gradients go out in buckets while backward computes others, and are those of one process."""

from collections.abc import Callable

import pytest
import torch
from helpers.thread_ranks import ThreadWorld, on_threads
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gdtrain.training.placement import exchange
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.exchange import Exchange, exchange_gradients

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sin().sum(1, keepdim=True)


class Deep(nn.Module):
    """Four layers; the last but one is used twice, and one is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.unused = nn.Linear(3, 4), nn.Linear(4, 4)
        self.twice, self.last = nn.Linear(4, 4), nn.Linear(4, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.twice(torch.tanh(self.first(x)))
        return self.last(self.twice(torch.tanh(hidden)))


class Reentrant(Deep):
    """Its middle is computed again in backward, by two passes within the pass."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        for _ in range(2):
            hidden = checkpoint(lambda h: torch.tanh(self.twice(h)), hidden, use_reentrant=True)
        return self.last(hidden)


def share_of(world: World) -> slice:
    size = len(X) // world.size
    return slice(world.rank * size, (world.rank + 1) * size)


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


def exchanged(
    ranks: int, make: Callable[[], nn.Module], note: list[str] | None = None
) -> list[list[Tensor | None]]:
    """The gradients of each rank, which computes its share of the mean loss."""

    class Noting(ThreadWorld):
        def sum_later(self, tensor: Tensor) -> Callable[[], None]:
            if note is not None and self.rank == 0:
                note.append(f"{tensor.numel()} numbers")
            return super().sum_later(tensor)

    def job(thread: ThreadWorld) -> list[Tensor | None]:
        world = Noting(thread.rank, thread.size, thread.table, thread.barrier)
        model = makes[world.rank]
        mine = share_of(world)
        loss = functional.mse_loss(model(X[mine]), Y[mine]) / world.size
        begun = Exchange(world, list(model.parameters()))
        with begun.during():
            loss.backward()
        if note is not None and world.rank == 0:
            note.append("backward is over")
        total = exchange_gradients(world, list(model.parameters()), loss.detach(), begun)
        whole = functional.mse_loss(model(X), Y).detach()
        torch.testing.assert_close(total, whole, rtol=1e-12, atol=0.0)
        return gradients(model)

    makes = [make() for _ in range(ranks)]
    return on_threads(ranks, job)


def assert_as_whole(found: list[list[Tensor | None]], model: nn.Module) -> None:
    functional.mse_loss(model(X), Y).backward()
    for of_rank in found:
        for one, other in zip(of_rank, gradients(model), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", [1, 200, 1 << 20])
@pytest.mark.parametrize("make", [Deep, Reentrant])
def test_the_sums_are_those_of_one_process(
    make: type[Deep], size: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BUCKET_BYTES", size)
    assert_as_whole(exchanged(ranks, make), Deep() if make is Deep else Reentrant())


def test_what_is_there_goes_out_before_backward_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 1)  # a bucket for each parameter
    note: list[str] = []
    exchanged(2, Deep, note)
    # last.bias, last.weight, twice.bias, twice.weight; then one that is not used is waited for.
    assert note[:5] == ["1 numbers", "4 numbers", "4 numbers", "16 numbers", "backward is over"]


def test_a_rank_without_samples_takes_part() -> None:
    def job(world: World) -> list[Tensor | None]:
        model = models[world.rank]
        begun = Exchange(world, list(model.parameters()))
        loss = torch.zeros((), dtype=torch.float64)
        if world.rank == 0:
            value = functional.mse_loss(model(X), Y)
            with begun.during():
                value.backward()
            loss = value.detach()
        exchange_gradients(world, list(model.parameters()), loss, begun)
        return gradients(model)

    models = [Deep(), Deep()]
    assert_as_whole(on_threads(2, job), Deep())


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_what_is_added_to_a_gradient_after_it_was_sent_is_sent_too(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BUCKET_BYTES", size)

    def job(world: World) -> list[Tensor | None]:
        model = models[world.rank]
        mine = share_of(world)
        begun = Exchange(world, list(model.parameters()))
        loss = functional.mse_loss(model(X[mine]), Y[mine]) / world.size
        with begun.during():
            loss.backward()
            if world.rank == 1:
                model.last.weight.sum().backward()
        exchange_gradients(world, list(model.parameters()), loss.detach(), begun)
        return gradients(model)

    models = [Deep(), Deep()]
    whole = Deep()
    functional.mse_loss(whole(X), Y).backward()
    for of_rank in on_threads(2, job):
        torch.testing.assert_close(of_rank[-2], whole.last.weight.grad + 1.0)


class OneMemory(torch.autograd.Function):
    """The sum of two vectors; gives both the same memory as gradients."""

    @staticmethod
    def forward(_: object, one: Tensor, other: Tensor) -> Tensor:
        return one + other

    @staticmethod
    def backward(_: object, gradient: Tensor) -> tuple[Tensor, Tensor]:
        own = gradient.clone()
        return own.view(-1), own.view(-1)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_gradients_in_one_place_of_memory_are_added_up_once(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BUCKET_BYTES", size)

    def job(world: World) -> list[Tensor | None]:
        parameters = [nn.Parameter(torch.zeros(4)) for _ in range(2)]
        begun = Exchange(world, parameters)
        loss = (OneMemory.apply(*parameters) * (world.rank + 1.0)).sum()
        with begun.during():
            loss.backward()
        exchange_gradients(world, parameters, loss.detach(), begun)
        return [parameter.grad for parameter in parameters]

    for of_rank in on_threads(2, job):
        assert all(torch.equal(gradient, torch.full((4,), 3.0)) for gradient in of_rank)


def test_large_gradients_are_added_up_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 100)  # those of 16 numbers in float64
    sent: set[int] = set()

    class Noting(ThreadWorld):
        def sum_later(self, tensor: Tensor) -> Callable[[], None]:
            sent.add(tensor.data_ptr())
            return super().sum_later(tensor)

    def job(thread: ThreadWorld) -> None:
        world = Noting(thread.rank, thread.size, thread.table, thread.barrier)
        begun = Exchange(world, list(models[world.rank].parameters()))
        loss = functional.mse_loss(models[world.rank](X), Y)
        with begun.during():
            loss.backward()
        exchange_gradients(world, begun.parameters, loss.detach(), begun)

    models = [Deep(), Deep()]
    on_threads(2, job)
    for model in models:
        assert model.twice.weight.grad.data_ptr() in sent
        assert model.last.weight.grad.data_ptr() not in sent


def test_hooks_of_others_see_the_gradients_of_their_process() -> None:
    def job(world: World) -> list[Tensor | None]:
        model, mine = models[world.rank], share_of(world)
        seen: list[Tensor] = []
        first = model.first.weight  # which comes after the last
        first.register_post_accumulate_grad_hook(
            lambda _: seen.append(model.last.weight.grad.clone())
        )
        begun = Exchange(world, list(model.parameters()))
        loss = functional.mse_loss(model(X[mine]), Y[mine]) / world.size
        own = torch.autograd.grad(loss, model.last.weight, retain_graph=True)[0]
        with begun.during():
            loss.backward()
        exchange_gradients(world, begun.parameters, loss.detach(), begun)
        assert torch.equal(seen[0], own)
        return gradients(model)

    models = [Deep(), Deep()]
    assert_as_whole(on_threads(2, job), Deep())


def test_parameters_that_have_come_since_the_exchange_was_begun_are_added_up_too() -> None:
    def job(world: World) -> list[Tensor | None]:
        model, mine = models[world.rank], share_of(world)
        begun = Exchange(world, list(model.last.parameters()))
        loss = functional.mse_loss(model(X[mine]), Y[mine]) / world.size
        with begun.during():
            loss.backward()
        exchange_gradients(world, list(model.parameters()), loss.detach(), begun)
        return gradients(model)

    models = [Deep(), Deep()]
    assert_as_whole(on_threads(2, job), Deep())
