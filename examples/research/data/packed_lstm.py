"""Sequences of different lengths, packed for an LSTM, which sees no padding."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from gdtrain import MiniBatchLoader, Trainer

BATCH, EPOCHS = 6, 3


class Packed(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(features, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, padded, lengths):
        packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.head(last[0])


def padded(samples):
    """Samples (sequence, target) as ((padded sequences, their lengths), targets)."""
    sequences, targets = zip(*samples, strict=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return (pad_sequence(list(sequences), batch_first=True), lengths), torch.stack(targets)


def with_gdtrain(model, samples):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(samples, BATCH, order="sequential", collate_fn=padded)
    Trainer(model, nn.MSELoss(), optimizer, loader).fit(EPOCHS)


def by_hand(model, samples):
    optimizer, loss_of = torch.optim.Adam(model.parameters(), lr=0.01), nn.MSELoss()
    for _ in range(EPOCHS):
        for start in range(0, len(samples), BATCH):
            inputs, targets = padded(samples[start : start + BATCH])
            optimizer.zero_grad()
            loss_of(model(*inputs), targets).backward()
            optimizer.step()
