"""The house: imports go down the list of rooms only, and each file says what it is for."""

import ast
from functools import cache
from pathlib import Path

import pytest

import gdtrain

PACKAGE = Path(gdtrain.__file__).parent
# From the top down. A file may import from its own room and from those below it.
ROOMS = [
    "cli",
    "config",
    "analysis",
    "output",
    "checkpoint",
    "training",
    "data",
    "registry",
    "settings",
    "wording",
    "errors",
    "version",
    "interrupted",
]
TOP = ("__main__",)
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    part = module.split(".")[1]
    return "cli" if part in TOP else part


def name_of(file: Path) -> str:
    """``gdtrain.data.batch`` of gdtrain/data/batch.py."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(file): file for file in FILES}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def imported_modules(file: Path) -> set[str]:
    """The modules of gdtrain that a file imports, for types and late ones too."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "gdtrain"}


def test_imports_only_go_down() -> None:
    up = []
    for name, file in MODULES.items():
        if name == "gdtrain":
            continue  # gives all public names, lazily
        here = ROOMS.index(room_of(name))
        up += [
            f"{name} imports {module}"
            for module in sorted(imported_modules(file) - {"gdtrain"})
            if ROOMS.index(room_of(module)) < here
        ]
    assert up == []


def test_no_module_needs_itself() -> None:
    """Not for its types either."""
    needs = {name: imported_modules(file) - {name} for name, file in MODULES.items()}
    # A history draws itself in a notebook, and what draws lies above it: the one import that goes
    # up, by the public name.
    needs["gdtrain.training.progress"].remove("gdtrain")
    while leaves := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in leaves}
    assert needs == {}, "these are on a circle, or import one that is"


def test_a_file_opens_with_a_sentence() -> None:
    """Its first line says what the file is for."""
    without = []
    for name, file in MODULES.items():
        first = (ast.get_docstring(tree(file)) or "").split("\n")[0]
        without += [] if first.endswith(".") else [name]
    assert without == []


# What makes a tensor from nothing does so on the default device, which may be another than that of
# the data.
MAKERS = {
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal"),
    *("ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "sparse_coo_tensor"),
    *("tensor", "zeros"),
}


def test_a_tensor_that_is_made_is_on_a_device_that_is_named() -> None:
    without = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in MAKERS
        and not any(keyword.arg in ("device", None) for keyword in node.keywords)
    ]
    assert without == []


def test_the_loop_does_not_know_which_form_it_runs() -> None:
    forms = ("BatchLoader", "SampleLoader", "MiniBatchLoader")
    knowing = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Name) and node.id in forms
    }
    assert knowing <= {"data/loaders/loader.py", "config/build.py", "__init__.py"}


PUBLIC = [
    "Alpha",
    "Averaging",
    "Batch",
    "BatchLoader",
    "BatchSizes",
    "Callback",
    "Checkpoints",
    "CurvatureMonitor",
    "EarlyStopping",
    "FullLoss",
    "GradientCosine",
    "GradientNorm",
    "GradientTestsMonitor",
    "History",
    "KeepBest",
    "Loader",
    "MetricsCsv",
    "MetricsLog",
    "MiniBatchLoader",
    "NoiseScale",
    "PhasedLoader",
    "Phases",
    "Plan",
    "PoissonLoader",
    "Prequential",
    "ProgressBar",
    "SAGA",
    "SVRG",
    "SampleGradients",
    "SampleLoader",
    "Settings",
    "SharpnessMonitor",
    "StepLosses",
    "Targets",
    "TensorBoard",
    "TokenBudgetLoader",
    "TrainedRun",
    "Trainer",
    "Trajectory",
    "UpdateRatio",
    "Validation",
    "Weighted",
    "compare",
    "curvature",
    "landscape",
    "load_run",
    "lr_range",
    "mapped",
    "mean_over_samples",
    "plot_history",
    "sweep",
]


def test_public_names_do_not_go() -> None:
    """Nor come unseen: one that is new is put into this list, and stays."""
    kinds = [name for name in gdtrain.__all__ if name.startswith("register_")]
    assert sorted(gdtrain.__all__) == sorted([*PUBLIC, *kinds])


def test_every_public_name_can_be_imported() -> None:
    assert sorted(gdtrain.__all__) == gdtrain.__all__
    assert set(gdtrain.__all__) <= set(dir(gdtrain))  # in a fresh notebook too
    assert [name for name in gdtrain.__all__ if not hasattr(gdtrain, name)] == []
    with pytest.raises(AttributeError, match=r"^module 'gdtrain' has no attribute 'nothing'$"):
        _ = gdtrain.nothing
