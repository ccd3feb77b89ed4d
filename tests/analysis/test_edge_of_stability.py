"""Full-batch descent on a tanh network rises to the edge of stability and stays there."""

import pytest
from helpers.paths import CONFIGS

from gdtrain.cli.main import main
from gdtrain.output.run_directory import read_metrics

CONFIG = CONFIGS / "edge_of_stability.yaml"


@pytest.mark.long
def test_sharpness_rises_to_2_over_lr_and_stays_there(tmp_path, capsys) -> None:
    """The shipped configuration at twice its learning rate, which gets there sooner."""
    run = tmp_path / "run"
    settings = ("optimizer.lr=0.1", "epochs=900", "monitors.sharpness.every_n_steps=25")
    assert main(["--config", str(CONFIG), *settings, "--output-dir", str(run)]) == 0
    records = [r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "step"]
    seen = {r["step"]: r["sharpness"] for r in records}
    assert list(seen) == list(range(25, 901, 25))
    limit = 2 / 0.1
    assert seen[25] < 0.5 * limit
    rising = [value for step, value in seen.items() if step <= 200]
    assert rising == sorted(rising)
    assert max(value for step, value in seen.items() if step <= 300) > limit
    # Once it has settled, within 10 % of the limit; on its way there it overshoots.
    assert all(abs(value - limit) < 0.2 * limit for step, value in seen.items() if step > 300)
    assert all(abs(value - limit) < 0.1 * limit for step, value in seen.items() if step > 600)
    # While the loss goes on falling, if not at each update.
    losses = {r["step"]: r["loss"] for r in records}
    assert losses[900] < 0.8 * losses[600] < 0.8 * losses[300]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: sharp")]
    assert len(said) == 1
    assert "over the limit of stability, 1: full-batch descent can't settle" in said[0]
