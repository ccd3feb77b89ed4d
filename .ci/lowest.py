"""Prints the lowest versions that pyproject.toml promises, but those of the extra xla, as pins."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))[
    "project"
]
extras = project["optional-dependencies"]
ours = ("tables", "plots", "tensorboard", "onnx", "sweep", "cluster", "metrics")
for requirement in project["dependencies"] + [line for name in ours for line in extras[name]]:
    print(requirement.replace(">=", "=="))
