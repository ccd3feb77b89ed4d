"""The examples in the docstrings of public names do what they say."""

import doctest
import inspect
import shutil

import pytest
from helpers.paths import CONFIGS

import gdtrain

# Those of register_… are whole files: docs/extending/custom-parts.md has them, and they are run.
NAMES = [name for name in gdtrain.__all__ if not name.startswith("register_")]


@pytest.mark.parametrize("name", NAMES)
def test_its_example_does_what_it_says(name: str, tmp_path, monkeypatch) -> None:
    shutil.copy(CONFIGS / "minibatch.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    found = getattr(gdtrain, name)
    parser = doctest.DocTestParser()
    example = parser.get_doctest(inspect.getdoc(found) or "", {}, name, None, None)
    assert example.examples, "its docstring has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    said: list[str] = []
    runner.run(example, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
