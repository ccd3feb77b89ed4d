"""Precision of parameters and data, and the paths that only a CUDA device can run."""

import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, Trainer
from gdtrain.errors import DeviceError
from gdtrain.training.placement import device as device_module

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(dim=1, keepdim=True)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_trainer(x=X, y=Y, **options) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options.setdefault("device", "cpu")
    return Trainer(model, nn.MSELoss(), optimizer, MiniBatchLoader((x, y), 16), **options)


@pytest.mark.parametrize(
    ("precision", "parameters", "computed"),
    [
        (None, torch.float32, torch.float32),
        ("fp32", torch.float32, torch.float32),
        ("fp64", torch.float64, torch.float64),
        ("bf16", torch.float32, torch.bfloat16),
    ],
)
def test_precision_sets_the_dtype_of_parameters_and_of_the_computation(
    precision, parameters, computed
) -> None:
    trainer = make_trainer(precision=precision)
    seen = []
    trainer.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.fit(1)
    assert {p.dtype for p in trainer.model.parameters()} == {parameters}
    assert set(seen) == {computed}
    assert trainer.optimizer.param_groups[0]["params"][0] is trainer.model[0].weight


def test_bf16_learns_nearly_what_fp32_learns() -> None:
    fp32 = make_trainer(precision="fp32").fit(3).train_loss
    bf16 = make_trainer(precision="bf16").fit(3).train_loss
    assert bf16 != fp32
    assert bf16 == pytest.approx(fp32, rel=0.05)  # bfloat16 has 8 bits of significand


def test_floating_point_data_is_cast_to_the_models_dtype_and_integers_are_not() -> None:
    as_double = make_trainer(X.double().numpy(), Y.double().numpy())
    assert as_double.fit(2).train_loss == make_trainer().fit(2).train_loss

    embedding = nn.Sequential(nn.Embedding(5, 1), nn.Flatten())
    tokens, values = torch.arange(5)[:, None], X[:5, :1].double()
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.5)
    trainer = Trainer(
        embedding, nn.MSELoss(), optimizer, BatchLoader((tokens, values)), device="cpu"
    )
    trainer.fit(100)
    assert torch.allclose(trainer.predict(tokens), values.float(), atol=1e-3)


def test_auto_is_the_best_device_there_is() -> None:
    expected = "cpu"
    if torch.backends.mps.is_available():
        expected = "mps"
    if torch.cuda.is_available():
        expected = "cuda"
    assert device_module.resolve_device("auto").type == expected


@needs_cuda
def test_on_cuda_data_goes_to_the_device_once_and_learns_the_same() -> None:
    on_gpu, on_cpu = make_trainer(device="cuda"), make_trainer()
    assert {p.device.type for p in on_gpu.model.parameters()} == {"cuda"}
    batch = next(on_gpu.read(on_gpu.loader))
    assert batch.inputs.device.type == "cuda"
    assert on_gpu.fit(5).train_loss == pytest.approx(on_cpu.fit(5).train_loss, rel=1e-4)
    assert on_gpu.predict(X).device.type == "cpu"


@needs_cuda
def test_on_cuda_data_that_does_not_fit_is_copied_ahead_to_the_same_bits(monkeypatch) -> None:
    resident = make_trainer(device="cuda").fit(3).train_loss
    monkeypatch.setattr(device_module, "RESIDENT_SHARE", 0.0)
    copied = make_trainer(device="cuda")
    assert isinstance(
        device_module.place(copied.loader.samples, copied.device, copied.dtype),
        device_module.CopiedSamples,
    )
    assert copied.fit(3).train_loss == resident


@needs_cuda
def test_on_cuda_no_step_synchronises_with_the_host() -> None:
    trainer = make_trainer(device="cuda", clip_grad_norm=1.0)
    trainer.fit(1)
    batches = list(trainer.read(trainer.loader))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_is_the_current_device_and_an_index_is_refused_under_torchrun(monkeypatch) -> None:
    """By stand-ins for a machine with three cards."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert device_module.resolve_device("cuda") == torch.device("cuda", 1)
    assert device_module.resolve_device("cuda:2") == torch.device("cuda", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert device_module.resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError) as caught:
        device_module.resolve_device("cuda:2")
    assert str(caught.value) == (
        "device: cuda:2 is one card, and each process of torchrun has its own; use cuda"
    )
