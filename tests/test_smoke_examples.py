"""What people copy for their own CI: the files in examples/, and dry runs."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.paths import CONFIGS, ROOT

from gdtrain.cli.init import EXAMPLES
from gdtrain.cli.main import main

WORKFLOW = yaml.safe_load((ROOT / "examples" / "workflow.yaml").read_text("utf-8"))
STEPS = [step["run"] for step in WORKFLOW["jobs"]["smoke"]["steps"] if "run" in step]
SHIPPED = sorted(CONFIGS.glob("*.yaml"))
# Of a process, imports included; torch's take most of it.
SECONDS_OF_A_DRY_RUN = 4.0


def test_the_workflow_installs_and_then_tests() -> None:
    assert STEPS[0] == "pip install -r requirements.txt"
    needed = (ROOT / "examples" / "requirements.txt").read_text("utf-8").split()
    assert needed == ["gdtrain", "pytest"]
    assert len(STEPS) == 4


@pytest.mark.long
def test_every_step_of_the_workflow_passes(tmp_path: Path) -> None:
    """But for the first, which fetches packages; in a copy of what a user has."""
    for name in ("my_trainer.py", "test_my_trainer.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    shutil.copy(CONFIGS / "minibatch.yaml", tmp_path)
    for step in STEPS[1:]:
        python, *arguments = step.split()
        assert python == "python"
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, (step, done.stdout, done.stderr)


def test_every_configuration_of_the_repository_is_in_the_package() -> None:
    assert [path.stem for path in SHIPPED] == sorted(EXAMPLES)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("setting", "code"), [("seed=0", 0), ("optimizer.lr=0", 2), ("optimizer.lr=1e38", 3)]
)
def test_a_dry_run_says_by_its_code_how_it_went(path: Path, setting: str, code: int, capsys):
    """An update at a rate of 1e38 leaves no finite loss on a validation part."""
    arguments = ["--config", str(path), setting, "data.validation_fraction=0.2", "--dry-run"]
    assert main([*arguments, "--quiet"]) == code, capsys.readouterr().err


@pytest.mark.long  # on a machine that has nothing else to do
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_dry_run_takes_seconds(path: Path, tmp_path: Path) -> None:
    """By the time of the processor: another process may take the machine's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "gdtrain", "--config", str(path), "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert taken < SECONDS_OF_A_DRY_RUN
