"""A GAN (Goodfellow and others, 2014): two players in turn, each with an optimizer of its own."""

import torch
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer

BATCH, EPOCHS, LATENT = 16, 3, 4


def optimizers_of(model) -> dict[str, torch.optim.Optimizer]:
    return {name: torch.optim.Adam(part.parameters(), lr=2e-3) for name, part in model.items()}


def judged(critic, samples, real: bool):
    scores = critic(samples)
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))


class Gan(Trainer):
    def train_step(self, batch):
        critic, generator = self.model["critic"], self.model["generator"]
        fake = generator(torch.randn(len(batch), LATENT, dtype=batch.inputs.dtype))
        loss = judged(critic, batch.inputs, True) + judged(critic, fake.detach(), False)
        self.minimise(loss, "critic")
        return self.minimise(judged(critic, fake, True), "generator")


def with_gdtrain(model, X):
    loader = MiniBatchLoader(X, BATCH, order="sequential")
    Gan(model, None, optimizers_of(model), loader).fit(EPOCHS)


def by_hand(model, X):
    critic, generator, optimizers = model["critic"], model["generator"], optimizers_of(model)
    for _ in range(EPOCHS):
        for real in X.split(BATCH):
            fake = generator(torch.randn(len(real), LATENT, dtype=real.dtype))
            optimizers["critic"].zero_grad()
            (judged(critic, real, True) + judged(critic, fake.detach(), False)).backward()
            optimizers["critic"].step()
            optimizers["generator"].zero_grad()
            judged(critic, fake, True).backward()
            optimizers["generator"].step()
