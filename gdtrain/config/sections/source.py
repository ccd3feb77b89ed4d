"""What every data source takes."""

from __future__ import annotations

from gdtrain.config.registry import Strict
from gdtrain.config.sections.bounds import Fraction, Positive


class Data(Strict):
    """What every data source takes."""

    validation_fraction: Fraction = 0.0
    """Share of the samples, drawn by the seed, that is kept for validation."""
    standardize: bool = False
    """Subtract the mean of each input column and divide by its standard deviation, both of the
    training part; a constant column is only centred."""
    standardize_targets: bool = False
    """The same for targets that are numbers; losses are then in standard deviations."""
    shape: list[Positive] | None = None
    """Reshape each sample's inputs, for instance [1, 8, 8] for the images that a cnn takes."""
