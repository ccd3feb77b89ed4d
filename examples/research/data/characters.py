"""A small GPT of characters (Radford and others, 2018), by AdamW with groups, and a cosine."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from gdtrain import MiniBatchLoader, Trainer

WIDTH, BATCH, EPOCHS = 16, 8, 2


class Gpt(nn.Module):
    def __init__(self, letters: int, context: int) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, WIDTH), nn.Embedding(context, WIDTH)
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, letters)

    def forward(self, letters):
        x = self.letters(letters) + self.places.weight[: letters.shape[1]]
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=-1)
        return self.head(x + F.scaled_dot_product_attention(q, k, v, is_causal=True))


def per_character(logits, following):
    return F.cross_entropy(logits.flatten(0, 1), following.flatten())


def groups(model):
    """Matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def with_gdtrain(model, X, y):
    optimizer = torch.optim.AdamW(groups(model), lr=3e-3)
    scheduler = CosineAnnealingLR(optimizer, EPOCHS * len(X) // BATCH)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    by_step = {"scheduler": scheduler, "scheduler_per": "step"}
    Trainer(model, per_character, optimizer, loader, clip_grad_norm=1.0, **by_step).fit(EPOCHS)


def by_hand(model, X, y):
    optimizer = torch.optim.AdamW(groups(model), lr=3e-3)
    scheduler = CosineAnnealingLR(optimizer, EPOCHS * len(X) // BATCH)
    for _ in range(EPOCHS):
        for letters, following in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            per_character(model(letters), following).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
