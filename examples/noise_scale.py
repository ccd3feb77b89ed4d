"""How noisy is the gradient of a batch, and which batch size does that suggest?

With G the gradient of all samples and Σ the covariance of the samples' own gradients, a batch of B
samples has E|g − G|² = tr Σ / B. McCandlish and others (2018) call B_simple = tr Σ / |G|² the noise
scale: below it, twice the batch is worth nearly twice the learning rate; above it, it is not.
"""

import torch
from torch import nn

from gdtrain import Batch, BatchLoader, Loader, MiniBatchLoader, Trainer
from gdtrain.analysis.noise_scale import gradient_noise

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(500, 10, dtype=torch.float64, generator=DRAW)
Y = X.sum(1, keepdim=True) + torch.randn(500, 1, dtype=torch.float64, generator=DRAW)


def trainer_of(loader: Loader) -> Trainer:
    """A trainer that has made no update yet."""
    torch.manual_seed(0)
    model = nn.Linear(10, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")


def gradient(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """The gradient of a batch, in one vector."""
    trainer.batch_gradient(batch)
    return nn.utils.parameters_to_vector(
        p.grad for p in trainer.model.parameters() if p.grad is not None
    )


def variance(batch_size: int) -> float:
    """E|g − G|² over the batches of 20 epochs, as it is measured."""
    loader = MiniBatchLoader((X, Y), batch_size, order="replacement", seed=0)
    trainer = trainer_of(loader)
    (whole,) = trainer.read(BatchLoader((X, Y)))
    exact = gradient(trainer, whole)
    batches = [b for epoch in range(20) for b in trainer.read(loader, loader.plan(epoch))]
    errors = [gradient(trainer, batch) - exact for batch in batches]
    return float(torch.stack(errors).square().sum(1).mean())


if __name__ == "__main__":
    noise = gradient_noise(trainer_of(BatchLoader((X, Y))))
    trace = noise.covariance_trace
    print(f"tr Σ = {trace:.1f}, noise scale {noise.critical_batch_size:.1f} samples")
    for size in (1, 5, 25):
        print(f"batches of {size:2}: E|g - G|² {variance(size):6.2f}, tr Σ / B {trace / size:6.2f}")
