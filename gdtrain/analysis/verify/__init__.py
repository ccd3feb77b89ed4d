"""Is what gdtrain computes what plain PyTorch gives, on the user's own model, loss and data."""

from gdtrain.analysis.verify.gradients import verify as verify
from gdtrain.analysis.verify.side_by_side import side_by_side as side_by_side
