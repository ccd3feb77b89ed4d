"""Pictures: what is in them, that they leave everything else alone, and where they are written."""

import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec

import numpy as np
import pytest

from gdtrain.errors import ConfigError, MissingPackageError
from gdtrain.output.plots import curves
from gdtrain.output.plots.curves import Curve, Mark, Panel, draw, draw_panels, save
from gdtrain.output.plots.loss_map import draw_hill


def figure(**options):
    curves = [Curve("first", [1, 2, 3], [3.0, 2.0, 1.0]), Curve("second", [1, 2, 3], [1, 2, 3])]
    said = {"title": "A title", "x_label": "step (updates)", "y_label": "loss (nats)"}
    return draw(curves, **(said | options))


def drawn(frame):
    return [
        (line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in frame.lines
    ]


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_a_picture_says_what_it_is_and_shows_what_it_was_given():
    made = figure(marks=[Mark("limit", 2.5), Mark("floor", 1.5, level=True)])
    (frame,) = made.axes
    assert made.get_suptitle() == "A title"
    assert (frame.get_xlabel(), frame.get_ylabel()) == ("step (updates)", "loss (nats)")
    assert drawn(frame)[:2] == [("first", [1, 2, 3], [3, 2, 1]), ("second", [1, 2, 3], [1, 2, 3])]
    assert [text.get_text() for text in frame.get_legend().get_texts()] == [
        *("first", "second", "limit", "floor")
    ]
    assert list(frame.lines[2].get_xdata()) == [2.5, 2.5]
    assert list(frame.lines[3].get_ydata()) == [1.5, 1.5]
    styles = [
        (line.get_color(), line.get_linestyle(), line.get_marker()) for line in frame.lines[:2]
    ]
    assert all(a != b for a, b in zip(*styles, strict=True)), "told apart without colours too"


def test_pictures_are_800_pixels_wide_and_the_same_numbers_give_the_same_file(tmp_path):
    for suffix in ("png", "svg"):
        for name in ("a", "b"):
            save(figure(), tmp_path / f"{name}.{suffix}")
        one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("a", "b"))
        assert one == other
    assert size((tmp_path / "a.png").read_bytes()) == (800, 500)
    assert size(figure()._repr_png_()) == (800, 500)


def test_an_svg_is_an_element_that_refers_to_nothing_outside():
    text = figure(title="α < β & γ").encoded("svg").decode()
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    references = [v for node in root.iter() for k, v in node.attrib.items() if k.endswith("href")]
    assert references
    assert all(reference.startswith("#") for reference in references)
    assert "<text" not in text, "shapes, which need no font"


def test_names_in_letters_that_the_font_lacks_are_drawn_without_a_word(tmp_path):
    save(figure(title="run \x1b[2J \ue000"), tmp_path / "a.png")
    assert size((tmp_path / "a.png").read_bytes())[0] == 800
    assert figure(title="run \ue000").encoded("svg").decode().count("<svg") == 1


def test_dollars_and_underscores_in_names_are_what_they_are(tmp_path):
    name = "_a $x_{ $"
    made = draw(
        [Curve(name, [1, 2], [1e-9, 1e3]), Curve("b$", [1, 2], [2, 1])],
        title=name,
        x_label=name,
        y_label="loss (nats)",
        log_y=True,
    )
    save(made, tmp_path / "a.png")
    assert [t.get_text() for t in made.axes[0].get_legend().get_texts()] == [f" {name}", "b$"]
    powers = [label for label in made.axes[0].get_yticklabels() if label.get_text()]
    assert powers
    assert all(label.get_parse_math() for label in powers)


def test_what_cannot_be_drawn_is_a_gap():
    values = [1.0, None, float("nan"), float("inf"), -float("inf"), 1e200, 2.0]
    made = draw([Curve("c", range(7), values)], title="t", x_label="x", y_label="y")
    assert np.isnan(made.axes[0].lines[0].get_ydata()).tolist() == [False, *[True] * 5, False]
    made._repr_png_()
    for nothing in ([], [None], [float("nan")] * 3):
        draw([Curve("c", range(len(nothing)), nothing)], title="t", x_label="x", y_label="y")
        draw(
            [Curve("c", range(len(nothing)), nothing, raw=nothing)],
            title="",
            x_label="x",
            y_label="y",
            log_x=True,
        )._repr_png_()


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1, 11], "log"),
        ([1, 9], "linear"),
        ([-1, 100], "linear"),
        ([0, 100], "linear"),
        ([5], "linear"),
    ],
)
def test_a_log_axis_is_for_positive_values_of_wide_range(values, scale):
    curve = Curve("c", range(len(values)), values)
    frame = draw([curve], title="t", x_label="x", y_label="y").axes[0]
    assert frame.get_yscale() == scale
    frame = draw([curve], title="t", x_label="x", y_label="y", log_y=False).axes[0]
    assert frame.get_yscale() == "linear"


def test_of_a_long_curve_every_peak_is_kept():
    values = np.random.default_rng(0).normal(size=100_001)
    values[[7, 50_000, 100_000]] = 9.0, -9.0, 8.0
    line = (
        draw([Curve("c", range(100_001), values)], title="", x_label="", y_label="")
        .axes[0]
        .lines[0]
    )
    x, y = np.array(line.get_xdata()).astype(int), np.array(line.get_ydata())
    assert len(x) <= 2002
    assert (np.diff(x) > 0).all()
    assert (y == values[x]).all()
    assert {0, 7, 50_000, 100_000} <= set(x.tolist())


@pytest.mark.parametrize("values", [[1.0, 1.00002], [1e-3, 1.00001e-3], [99999.0, 99998.5]])
@pytest.mark.parametrize("log_y", [None, True])
def test_no_label_is_out_of_sight(values, log_y):
    made = draw(
        [Curve("first", [1, 2], values)], title="A", x_label="x", y_label="loss", log_y=log_y
    )
    made.draw_without_rendering()
    (frame,) = made.axes
    assert frame.yaxis.get_tightbbox(made.canvas.get_renderer()).x0 >= 0
    assert frame.bbox.width > made.bbox.width / 2


def test_panels_share_the_x_axis():
    panels = [Panel([Curve("a", [1], [2])], "loss", height=2), Panel([Curve("b", [1], [3])], "lr")]
    made = draw_panels(panels, title="word " * 30, x_label="epoch")
    assert [frame.get_ylabel() for frame in made.axes] == ["loss", "lr"]
    assert [frame.get_xlabel() for frame in made.axes] == ["", "epoch"]
    assert made.get_suptitle().count("\n") == 1


def test_what_is_counted_has_ticks_at_whole_numbers():
    panel = Panel([Curve("a", [1, 2], [2.0, 1.0])], "loss")
    made = draw_panels([panel], title="short", x_label="epoch", whole_x=True)
    low, high = made.axes[0].get_xlim()
    assert [tick for tick in made.axes[0].get_xticks() if low <= tick <= high] == [1, 2]


def test_the_labels_of_a_flat_map_differ():
    x = np.linspace(-1.0, 1.0, 9)
    losses = 0.56 + 1e-3 * (x[:, None] ** 2 + x**2)
    made = draw_hill(x, x, losses, [np.zeros((2, 2))], ["run"], (0.6, 0.3))
    texts = [tick.get_text() for tick in made.axes[1].get_yticklabels()]
    assert len(set(texts)) == len(texts) == 7
    assert texts[0] == "0.56"


def test_nothing_global_is_changed(tmp_path):
    code = (
        "import sys, matplotlib\n"
        "matplotlib.rcParams['font.size'] = 3.0\n"
        "held = matplotlib.rcParams\n"
        "def settings():  # looking at the backend would import pyplot\n"
        "    return {name: held[name] for name in held if name != 'backend'}\n"
        "before = settings()\n"
        "from gdtrain.output.plots.curves import *\n"
        "from gdtrain.output.plots.curves import save\n"
        "made = draw([Curve('a', [1], [2])], title='t', x_label='x', y_label='y')\n"
        "save(made, __import__('pathlib').Path('a.png'))\n"
        "assert settings() == before\n"
        "assert made.axes[0].xaxis.label.get_size() == 12\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)


# ── files ───────────────────────────────────────────────────────────────────────────────────


def test_only_pictures_of_ours_are_replaced(tmp_path):
    for suffix in ("png", "SVG"):
        path = tmp_path / f"a.{suffix}"
        save(figure(), path)
        save(figure(title="another"), path)
        path.write_bytes(b"mine")
        with pytest.raises(ConfigError, match="is there and no picture of gdtrain's; remove it"):
            save(figure(), path)
        assert path.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.SVG", "a.png"]


def test_links_and_directories_are_left_alone(tmp_path):
    save(figure(), tmp_path / "target.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "target.png")
    (tmp_path / "dir.png").mkdir()
    for name in ("link.png", "dir.png"):
        with pytest.raises(ConfigError, match="and no picture of gdtrain's"):
            save(figure(), tmp_path / name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.jpg", r"^out: must end in .png or .svg, got '.*a.jpg'$"),
        ("a", r"^out: must end in .png or .svg, got '.*a'$"),
        ("no/a.png", r"^out: .*/no is not a directory; make it first$"),
    ],
)
def test_other_names_are_refused(name, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        save(figure(), tmp_path / name)


def test_without_matplotlib_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setattr(
        curves, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    with pytest.raises(MissingPackageError) as caught:
        figure()
    assert str(caught.value) == (
        "pictures need matplotlib, which is not installed; pip install 'gdtrain[plots]'"
    )
    assert isinstance(caught.value, ImportError)
