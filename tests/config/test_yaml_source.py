"""The YAML reader: values and their places, and the refusal of everything that is not data."""

import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdtrain.config.load import load_config
from gdtrain.config.yaml_source import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_FAULTS,
    MAX_VALUES,
    Document,
    Place,
    apply_overrides,
    dotted,
    key_path,
    read_file,
    read_text,
)
from gdtrain.errors import ConfigError

TEXT = """\
# a comment
seed: 7
model:
  name: mlp
  hidden: [16,
           8]
loader: {name: minibatch, batch_size: 32}
"""


def fault_lines(text: str) -> list[str]:
    """What is wrong with a text, whether or not the rest of it can be read."""
    try:
        return [str(fault) for fault in read_text(text, "a.yaml").faults]
    except ConfigError as error:
        return str(error).splitlines()


def test_values_of_a_configuration():
    assert read_text(TEXT, "a.yaml").data == {
        "seed": 7,
        "model": {"name": "mlp", "hidden": [16, 8]},
        "loader": {"name": "minibatch", "batch_size": 32},
    }


@pytest.mark.parametrize(
    ("path", "of_key", "line", "column"),
    [
        (("seed",), True, 2, 1),
        (("seed",), False, 2, 7),
        (("model",), True, 3, 1),
        (("model",), False, 4, 3),
        (("model", "hidden"), True, 5, 3),
        (("model", "hidden", 0), False, 5, 12),
        (("model", "hidden", 1), False, 6, 12),
        (("loader", "batch_size"), True, 7, 27),
        (("loader", "batch_size"), False, 7, 39),
        (("loader", "missing"), False, 7, 9),  # the nearest thing around it
        (("missing",), False, 2, 1),
    ],
)
def test_places_of_keys_and_values(path, of_key, line, column):
    place = read_text(TEXT, "a.yaml").place(path, of_key=of_key)
    assert place == Place("a.yaml", line, column)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("+.5", 0.5),
        ("2.", 2.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("-0", 0),
        ("+7", 7),
        ("010", 10),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("on", "on"),
        ("no", "no"),
        ("~", None),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("inf", "inf"),
        ("<<", "<<"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written, value):
    found = read_text(f"key: {written}\n", "a.yaml").data["key"]
    assert (found, type(found)) == (value, type(value))


def test_nan_is_a_number():
    assert math.isnan(read_text("key: .NaN\n", "a.yaml").data["key"])


def test_forty_digits_are_whole_and_more_are_a_float():
    data = read_text(f"a: {'9' * 40}\nb: {'9' * 400}\n", "a.yaml").data
    assert data == {"a": 10**40 - 1, "b": math.inf}


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            "seed: 1\nepochs: 2\nseed: 3\n",
            ["a.yaml:3:1: seed: duplicate key; it is already set at line 1"],
        ),
        (
            "model: {name: mlp, name: linear}\n",
            ["a.yaml:1:20: model.name: duplicate key; it is already set at line 1"],
        ),
        (
            "a: !!python/object:os.system {}\n",
            [
                "a.yaml:1:4: a: tag tag:yaml.org,2002:python/object:os.system is not allowed; "
                "a configuration is pure data"
            ],
        ),
        (
            "a: !own 1\n",
            ["a.yaml:1:4: a: tag !own is not allowed; a configuration is pure data"],
        ),
        (
            "a: &x 1\nb: *x\n",
            [
                "a.yaml:1:4: a: anchor &x is not allowed; remove it",
                "a.yaml:2:4: b: alias *x is not allowed; write the value out",
            ],
        ),
        (
            "<<: *base\n",
            ["a.yaml:1:5: <<: alias *base is not allowed; write the value out"],
        ),
        ("? [a]\n: 1\n", ["a.yaml:1:3: a key must be a word"]),
        (
            "a: 1\n---\nb: 2\n",
            ["a.yaml:2:1: holds several documents; one file is one configuration"],
        ),
        (
            "",
            ["a.yaml:1:1: is empty; it needs data, model, loss, loader, optimizer and epochs"],
        ),
        (
            "# nothing\n",
            ["a.yaml:1:1: is empty; it needs data, model, loss, loader, optimizer and epochs"],
        ),
        ("- 1\n", ["a.yaml:1:1: must be a mapping of settings, such as 'epochs: 20'"]),
        ("word\n", ["a.yaml:1:1: must be a mapping of settings, such as 'epochs: 20'"]),
        (
            "a: 1\n\tb: 2\n",
            ["a.yaml:2:1: has a tab before a setting; indent with blanks"],
        ),
        (
            "a:\n  b: 1\n  c:2\n  d: 3\n",
            ["a.yaml:3:3: 'c:2' lacks a blank after the colon; write c: 2"],
        ),
        (
            "a: 1\nb 2\nc: 3\n",
            ["a.yaml:2:1: 'b 2' lacks a colon; write b: 2"],
        ),
        (
            "a: {b:mlp, c: 1}\n",
            ["a.yaml:1:5: a.b:mlp: lacks a blank after the colon; write b: mlp"],
        ),
        (
            "a: [1\n",
            [
                "a.yaml:2:1: is not valid YAML: while parsing a flow sequence "
                "expected ',' or ']', but got '<stream end>'"
            ],
        ),
        (
            "a: 1\nb: x\x07y\n",
            [
                "a.yaml:2:5: has a character that YAML forbids: U+0007; "
                "write it as an escape in double quotes"
            ],
        ),
        (
            "a: " + "[" * (MAX_DEPTH + 1) + "\n",
            [
                f"a.yaml:1:{4 + MAX_DEPTH}: is nested over {MAX_DEPTH} levels deep; "
                "a configuration is flat"
            ],
        ),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_place(text, faults):
    assert fault_lines(text) == faults


def test_brackets_are_too_deep_before_what_is_in_them_is_looked_at():
    assert fault_lines("[" * 60000) == [
        f"a.yaml:1:{MAX_DEPTH + 1}: is nested over {MAX_DEPTH} levels deep; a configuration is flat"
    ]


def test_many_values_are_refused_and_as_many_as_the_bound_are_read():
    fine = f"a: [{', '.join(['1'] * (MAX_VALUES - 3))}]\n"
    assert fault_lines(fine) == []
    assert fault_lines(fine + "b: 1\n") == [
        "a.yaml:2:1: holds over 3,000 keys and values; a configuration is small"
    ]


def test_reading_stops_at_many_faults():
    faults = fault_lines("a: 1\n" * 100)
    assert len(faults) == MAX_FAULTS + 1
    assert faults[:1] == ["a.yaml:2:1: a: duplicate key; it is already set at line 1"]
    assert faults[-1] == "a.yaml:22:1: has more faults than these 20; correct them first"


@pytest.mark.parametrize("text", ['a: "\\UFFFFFFFF"\n', 'a: "\\U00110000"\n'])
def test_a_character_by_a_number_that_is_none_is_refused(text):
    assert fault_lines(text) == ["a.yaml:1:7: is not valid YAML: a number in it is out of range"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "/dev/null"])
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(ConfigError) as caught:
        read_file(name)
    said = "is a pipe or a device; save the configuration in a file"
    assert str(caught.value) == f"{name}:1:1: {said}"


def test_depth_at_the_bound_is_read():
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert fault_lines(f"a: {deep}\n") == []


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"a: 1\nbc: \xff\n", "2:5: is not UTF-8 text; save it as UTF-8"),
        (b"\xff\xfea\x00", "1:1: is not UTF-8 text; save it as UTF-8"),
        (b"#" * (MAX_BYTES + 1), "1:1: is over 64 KiB; a configuration is small"),
        (None, "1:1: file not found; check the path"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, raw, fault):
    path = tmp_path / "a.yaml"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert str(caught.value) == f"{path}:{fault}"


@pytest.mark.parametrize(
    ("name", "reason"), [(".", "Is a directory"), ("a\0b", "embedded null byte")]
)
def test_paths_that_are_not_files(name, reason):
    with pytest.raises(ConfigError) as caught:
        read_file(name)
    assert str(caught.value) == f"{name}:1:1: can't be read: {reason}; give a readable YAML file"


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 1\r\nepochs: 2\r\n")
    document = read_file(path)
    assert document.data == {"seed": 1, "epochs": 2}
    assert document.place(("epochs",)) == Place(str(path), 2, 9)


def overridden(*overrides: str) -> Document:
    document = read_text("seed: 7\nmodel: {name: mlp, hidden: [16]}\nloss: mse\n", "a.yaml")
    apply_overrides(document, list(overrides))
    return document


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["seed=8"], {"seed": 8}),
        (["seed=8", "seed=9"], {"seed": 9}),
        (["model.hidden=[1, 2]"], {"model": {"name": "mlp", "hidden": [1, 2]}}),
        (["model=linear"], {"model": "linear"}),
        (["model={name: linear, bias: false}"], {"model": {"name": "linear", "bias": False}}),
        (["model.hidden=null"], {"model": {"name": "mlp"}}),
        (["loss.beta=1e-3"], {"loss": {"name": "mse", "beta": 1e-3}}),
        (["loss=huber", "loss.delta=2"], {"loss": {"name": "huber", "delta": 2}}),
        (["data=csv", "data.path=x y.csv"], {"data": {"source": "csv", "path": "x y.csv"}}),
        (["data.path=a=b.csv"], {"data": {"path": "a=b.csv"}}),
        (["scheduler.b=null"], {}),
        (["scheduler=null", "nothing.at.all=null"], {}),
        (["seed.x=1"], {"seed": {"x": 1}}),
        *(([f"data.mark={mark}"], {"data": {"mark": mark}}) for mark in ",;|#'\"\t%-?*&#"),
        (["data.target=#1"], {"data": {"target": "#1"}}),
    ],
)
def test_overrides_change_what_they_name_and_nothing_else(overrides, changed):
    before = {"seed": 7, "model": {"name": "mlp", "hidden": [16]}, "loss": "mse"}
    assert overridden(*overrides).data == before | changed


def test_places_of_overrides_are_their_number_and_column():
    document = overridden("seed=8", "model.hidden=[4, 5]")
    assert document.place(("seed",)) == Place("command line", 1, 6)
    assert document.place(("model", "hidden", 1)) == Place("command line", 2, 18)
    assert document.place(("model", "hidden"), of_key=True) == Place("command line", 2, 1)
    assert document.place(("model", "name")) == Place("a.yaml", 2, 15)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("seed", "1:1: 'seed' is not a setting; write section.key=value"),
        ("=3", "1:1: '=3' is not a setting; write section.key=value"),
        ("a..b=3", "1:1: 'a..b=3' is not a setting; write section.key=value"),
        ("-x=3", "1:1: '-x=3' is not a setting; write section.key=value"),
        (
            "model={name: mlp, name: x}",
            "1:19: model.name: duplicate key; it is already set at line 1",
        ),
        (
            "seed=!!int 3",
            "1:6: seed: tag tag:yaml.org,2002:int is not allowed; a configuration is pure data",
        ),
        ("seed=1\n--- 2", "2:1: seed: holds several documents; one file is one configuration"),
        (
            "seed=\x07",
            "1:6: seed: has a character that YAML forbids: U+0007; "
            "write it as an escape in double quotes",
        ),
        (
            "seed=]",
            "1:6: seed: is not valid YAML: while parsing a block node "
            "expected the node content, but found ']'",
        ),
    ],
)
def test_overrides_that_are_no_settings(override, fault):
    document = overridden(override)
    assert [str(found) for found in document.faults] == [f"command line:{fault}"]
    assert document.data["seed"] == 7


@pytest.mark.parametrize("path", [("a",), ("model", "hidden", 0), ("a", "b", 2, 3)])
def test_a_dotted_name_says_the_path(path):
    assert key_path(dotted(path)) == path


WORDS = st.text("ab:-[]{}#&*!|>'\"%@`\n\t ,?.01e\x00é", max_size=40)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(WORDS)
def test_any_text_gives_a_mapping_or_faults_with_places(text):
    try:
        document = read_text(text, "a.yaml")
    except ConfigError as error:
        faults = error.faults
    else:
        assert isinstance(document.data, dict)
        faults = tuple(document.faults)
    lines = text.count("\n") + 2
    assert all(f.path == "a.yaml" and 1 <= f.line <= lines and f.column >= 1 for f in faults)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "seed: 017",
            "1:7: seed: 017 has a leading zero, and so is octal to some and decimal to others; "
            'write 17, or "017" for text',
        ),
        (
            "seed: -00",
            "1:7: seed: -00 has a leading zero, and so is octal to some and decimal to others; "
            'write 0, or "-00" for text',
        ),
        (
            f"seed: {'9' * 5000}",
            "1:7: seed: is a number of 5,000 digits; none is over 1.8e308",
        ),
        (
            '"a\\ud800b": 1',
            "1:1: holds \\ud800, half of a character; write it whole",
        ),
        (
            'model: "a\\udfffb"',
            "1:8: model: holds \\udfff, half of a character; write it whole",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_or_in_none_is_refused_in_its_place(tmp_path, line, said):
    path = tmp_path / "c.yaml"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError) as told:
        load_config(path)
    assert f"{path}:{said}" in str(told.value).splitlines()
    assert str(told.value).encode()  # no half of a character is left


@pytest.mark.parametrize("line", ["seed: 0", "seed: 10", 'seed: "017"', "lr: 00.5", "x: 0017a"])
def test_zeros_in_other_places_are_what_they_were(tmp_path, line):
    path = tmp_path / "c.yaml"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError) as told:
        load_config(path)
    assert "leading zero" not in str(told.value)


def test_a_file_of_a_similar_name_is_suggested(tmp_path):
    (tmp_path / "base.yaml").write_text("epochs: 1\n")
    with pytest.raises(ConfigError) as caught:
        read_file(tmp_path / "base.yml")
    assert str(caught.value) == (
        f"{tmp_path}/base.yml:1:1: file not found; did you mean {tmp_path}/base.yaml?"
    )
