"""A configuration that trains in a moment, for tests of commands that make many runs."""

from __future__ import annotations

MOONS = """\
data: {source: two_moons, num_samples: 60, validation_fraction: 0.25}
model: {name: mlp, hidden: [4]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 8}
optimizer: {lr: 0.1, momentum: 0.5}
epochs: 2
log: {picture: false}
"""
