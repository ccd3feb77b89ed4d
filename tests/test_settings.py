"""The strings below settings are their descriptions, wherever a class stands."""

import linecache
import subprocess
import sys

import pytest
from pydantic import Field, create_model

from gdtrain import Settings
from gdtrain.settings import descriptions


class Scaled(Settings):
    """A loss that is multiplied."""

    factor: float = 2.0
    """By what: a number
    of any sign."""
    plain: int = 1
    with_field: int = Field(3, description="Told by pydantic's own means.")
    """Not this."""


class Shifted(Scaled):
    factor: float = 4.0
    """By what else."""
    by: float = 0.0
    """Added afterwards."""


def test_they_are_those_below_the_settings_of_a_class_and_its_bases() -> None:
    assert descriptions(Scaled) == {
        "factor": "By what: a number\nof any sign.",
        "with_field": "Told by pydantic's own means.",
    }
    assert descriptions(Shifted) == {
        "factor": "By what else.",
        "with_field": "Told by pydantic's own means.",
        "by": "Added afterwards.",
    }


def test_a_class_in_a_function_and_one_made_of_it() -> None:
    class Scaled(Settings):  # another one of that name
        here: int = 1
        """In a function."""

    assert descriptions(Scaled) == {"here": "In a function."}
    made = create_model("Named", __base__=Shifted, name=(str, "x"))
    assert descriptions(made) == descriptions(Shifted)


def test_they_stand_in_the_schema() -> None:
    class Outer(Settings):
        inner: Scaled = Scaled()
        """A section."""
        others: list[Scaled] = []  # noqa: RUF012 - pydantic copies it
        """Several."""

    schema = Outer.model_json_schema()
    assert schema["properties"]["inner"]["description"] == "A section."
    assert schema["properties"]["others"]["description"] == "Several."
    assert schema["$defs"]["Scaled"]["properties"]["factor"]["description"].startswith("By what")
    assert "description" not in schema["$defs"]["Scaled"]["properties"]["plain"]


def test_a_cell_of_a_notebook_and_text_that_nobody_has() -> None:
    """IPython gives linecache the text of its cells."""
    text = 'class Cell(Settings):\n    rate: float = 1.0\n    """In a cell."""\n'
    file = "<ipython-input-1>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    found = {}
    for name in (file, "<nowhere>"):
        space = {"Settings": Settings, "__name__": "of_the_notebook"}
        exec(compile(text, name, "exec"), space)
        found[name] = descriptions(space["Cell"])
    assert found == {file: {"rate": "In a cell."}, "<nowhere>": {}}


@pytest.mark.parametrize("arguments", [["-c"], ["-"]])
def test_where_there_is_no_file(arguments) -> None:
    text = (
        "from gdtrain.settings import Settings, descriptions\n"
        "class Own(Settings):\n    rate: float = 1.0\n    'Below.'\n"
        "assert descriptions(Own) == {}, descriptions(Own)\n"
        "assert Own(rate=2.0).rate == 2.0\n"
    )
    given = [*arguments, text] if arguments == ["-c"] else arguments
    subprocess.run([sys.executable, *given], input=text, text=True, check=True)
