"""The way to ask how the loss curves: gradient, Hessian, Gauss–Newton matrix, slices and noise."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

from gdtrain.analysis.curvature.full_loss import Objective, by_layer
from gdtrain.analysis.curvature.slices import slice_losses
from gdtrain.analysis.noise_scale import GradientNoise, gradient_noise
from gdtrain.data.batch import Batch
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.state.snapshot import parameter_names
from gdtrain.training.trainer import Trainer


class Curvature(Objective):
    """J(θ) about the trainer's present weights: what :func:`curvature` gives.

    ``loss()``, ``gradient()`` [P], and the matrices ``hessian`` and ``gauss_newton`` [P, P], which
    are never formed: of each ``matrix @ vectors``, ``matrix.top(k)``, ``matrix.bottom(k)``,
    ``matrix.trace()``, ``matrix.spectrum()`` and, of few parameters, ``matrix.dense()``
    (:class:`~gdtrain.analysis.curvature.matrix.SymmetricMatrix`).

    All is computed when it is asked for, at the weights of that moment, and changes nothing.
    Vectors are flat, θ in the order of the optimizer's parameters.
    """

    @property
    def names(self) -> list[str]:
        """The names of the parameters that θ is made of, in its order."""
        known = parameter_names(self.trainer)
        return [known.get(p, f"other/{number}") for number, p in enumerate(self.parameters)]

    @property
    def layers(self) -> dict[str, Curvature]:
        """The same of each layer's parameters alone, by the path of the module that holds them.

        Its matrices are the blocks on the diagonal; the other layers stay as they are.
        """
        layers = by_layer(self.trainer, self.parameters)
        return {
            name: Curvature(
                self.trainer, self.loader, training=self.training, parameters=parameters
            )
            for name, parameters in layers.items()
        }

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector [P] as views in the shapes of the parameters, by their names."""
        return dict(zip(self.names, Flat(self.parameters).split(vector), strict=True))

    def losses(self, directions: Tensor, places: Tensor) -> Tensor:
        """J(θ + Σ a_i d_i): the loss along a line, on a plane or any other slice.

        directions: [P], and places [...] for a line; or [d, P], and places [..., d]. Gives J at
        each place, [...] float64 on the CPU. Many places at a time, by ``torch.func`` where that
        can take the model. Raises ConfigError for other shapes.
        """
        size, is_line = self.num_parameters, directions.ndim == 1
        rows = directions[None] if is_line else directions
        at = places[..., None] if is_line else places
        if rows.ndim != 2 or rows.shape[1] != size:
            message = f"must have the shape [{size}] or [d, {size}], got {list(directions.shape)}"
            raise ConfigError.of("directions", message)
        if at.ndim == 0 or at.shape[-1] != len(rows):
            message = f"must have the shape [..., {len(rows)}], a number for each direction, got "
            raise ConfigError.of("places", f"{message}{list(places.shape)}")
        parameters = self.parameters
        centre = Flat(parameters).joined().cpu().double()
        flat = at.reshape(-1, len(rows)).cpu().double()
        found = slice_losses(self, parameters, centre, rows.cpu().double(), flat)
        return found.reshape(at.shape[:-1])

    def noise(
        self, num_samples: int | None = None, *, batch_size: int = 1, seed: int = 0
    ) -> GradientNoise:
        """How the samples' gradients scatter: the trace of their covariance, in all and by layer.

        In eval mode; see :func:`~gdtrain.analysis.noise_scale.gradient_noise`. ``noise.layers`` has
        that of each layer.
        """
        return gradient_noise(
            self.trainer,
            self.loader,
            num_samples=num_samples,
            batch_size=batch_size,
            seed=seed,
            parameters=self.parameters,
        )

    def cosines(self, batches: int = 10) -> Tensor:
        """cos(g_i, g_{i+1}) of the gradients of successive batches, [batches - 1] float64.

        Of the first batches of the loader's present epoch, or as many as there are, all at the
        present weights: near 0 the batches pull in unrelated directions, near 1 in the same. What
        the updates of a run do is told by the monitor ``gradient_cosine``.
        """
        whole_number("batches", batches, minimum=2)
        trainer, loader = self.trainer, self.loader
        plan = loader.plan(trainer.progress.epoch)
        gradients = (
            self._of_batch(batch).gradient().double()
            for batch in islice(trainer.read(loader, plan, shared=False), batches)
        )
        found = [torch.cosine_similarity(one, two, dim=0) for one, two in pairwise(gradients)]
        if not found:
            return torch.empty(0, dtype=torch.float64, device="cpu")
        return torch.stack(found).cpu()

    def _of_batch(self, batch: Batch) -> Objective:
        return Objective(self.trainer, batch, training=self.training, parameters=self.parameters)

    def __repr__(self) -> str:
        mode = "training" if self.training else "eval"
        return f"Curvature({self.num_parameters:,} parameters, {self.loader!r}, {mode} mode)"


def curvature(
    trainer: Trainer,
    data: Loader | Batch | tuple[Any, Any] | None = None,
    *,
    training: bool = False,
) -> Curvature:
    """The loss as a function of the trained weights: its gradient, its curvature, its noise.

    data: the samples of J: all samples of a loader, the trainer's if left out; or one batch,
    a Batch or ``(inputs, targets)``. training: in the modes in which ``fit`` trains, with the
    samples as one batch; otherwise in eval mode, like :meth:`Trainer.evaluate`.

    J is computed in microbatches if the trainer cuts batches, over all ranks, in the parameters'
    dtype, with the weights that the loss gives to samples. The trainer is not changed.

    Raises DataError for a stream, ModelError for a model that is split over processes, or of which
    a layer mixes samples that training would cut.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Trainer, curvature
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)))
    >>> found = curvature(trainer)
    >>> [round(value, 3) for value in found.hessian.top(2).values.tolist()]  # of 2 mean x², and 2
    [2.0, 0.737]
    >>> round(found.gauss_newton.trace().value, 3)
    2.737
    """
    return Curvature(trainer, data, training=training)
