"""The report of a comparison: it says what was measured, asks nobody, and runs nothing foreign."""

import base64
import copy
import hashlib
import json
import re
import shutil
import subprocess
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer, compare
from gdtrain.output.report import charts as charts
from gdtrain.output.report.figures import glance, noise
from gdtrain.output.report.page import page
from gdtrain.output.report.table import bytes_text, count_text, json_text, seconds_text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TRACKER = "http://tracker.example/x.png"
HOSTILE = f"</script><img src={TRACKER} onerror=\"document.title='owned'\">'\"&<b>"
# What a browser asks for by itself, whatever page it shows.
BROWSERS_OWN = re.compile(r"https?://([\w-]+\.)*(google|googleapis|gstatic)\.com[/:]")

draw = torch.Generator().manual_seed(0)
X = torch.randn(24, 4, generator=draw)
LABELS = (X[:, 0] > 0).long()


def network(kind, lr=0.1, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    made = torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, nn.CrossEntropyLoss(), made, kind((X, LABELS), **options), device="cpu")


@pytest.fixture(scope="module")
def result():
    forms = {
        "batch": partial(network, BatchLoader),
        "sample": partial(network, SampleLoader),
        HOSTILE: partial(network, MiniBatchLoader, batch_size=5),
        "wild": partial(network, SampleLoader, lr=1e25),
    }
    compared = compare(forms, epochs=6, validation=BatchLoader((X, LABELS)))
    compared.result["configs"] = {HOSTILE: HOSTILE}
    compared.result["problem"] = {"data": HOSTILE, "loss": HOSTILE}
    compared.result["command"] = HOSTILE
    return compared.result


class Reader(HTMLParser):
    """Collects elements with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.open = []
        self.texts = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)


def test_the_page_is_well_formed_and_has_every_number_of_the_table(result):
    reader = Reader(page(result))
    assert reader.open == []
    shown = " ".join(reader.texts)
    assert result["when_to_use"] in shown
    for form in result["forms"]:
        assert form["name"] in shown
        assert f"{form['updates']:,}" in shown
        assert bytes_text(form["memory"]["step_peak_bytes"]) in shown
        if form["to_target"]:
            assert seconds_text(form["to_target"]["seconds"]) in shown
    assert "diverged" in shown
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_and_only_our_script_may_run(result):
    text = page(result)
    reader = Reader(text)
    for tag, attributes in reader.elements:
        assert tag not in ("img", "iframe", "object", "embed", "link", "base", "form", "a", "b")
        assert not {"src", "href", "srcset", "action", "data", "poster"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in text
    assert "url(" not in text
    policy = next(a["content"] for t, a in reader.elements if t == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'; ")
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    (data,) = re.findall(r'<script type="application/json" id="curves">(.*?)</script>', text)
    curves = json.loads(data)
    assert [form["name"] for form in curves] == [form["name"] for form in result["forms"]]
    assert curves[0]["full_loss"] == result["forms"][0]["curve"]["full_loss"]


def test_pictures_are_described_and_told_apart_without_colour(result):
    reader = Reader(page(result))
    pictures = [a for tag, a in reader.elements if tag == "svg" and a.get("class") == "chart"]
    assert len(pictures) == 4 * 2 + len(result["forms"])
    assert all(a["role"] == "img" and a["aria-label"] for a in pictures)
    assert ("th", "row") in {(tag, a.get("scope")) for tag, a in reader.elements}
    marks = {charts._marker(style, 0.0, 0.0) for style in range(len(charts.MARKS))}
    assert len(marks) == len(charts.MARKS)


def test_forty_forms_look_different_and_their_names_do_not_touch():
    lines = [charts.Line(f"form {n}", [1.0, 2.0], [1.0, 2.0], n) for n in range(40)]
    text = charts.chart(
        lines, title="t", x_label="x", y_label="y", x_write=str, y_write=charts.number_tick
    )
    looks = re.findall(r'class="(line [^"]*)"><polyline[^>]*/><(circle|polygon)', text)
    kinds = set()
    for (kind, mark), line in zip(looks, lines, strict=True):
        shape = charts.MARKS[(line.style + line.style // 32) % len(charts.MARKS)]
        assert bool(shape) == (mark == "polygon")
        kinds.add((kind, shape))
    assert len(kinds) == 40
    names = re.findall(r'<text class="name[^>]* y="([\d.]+)"', text)
    places = sorted(map(float, names))
    assert min(b - a for a, b in pairwise(places)) >= 16.9
    height = float(re.findall(r'viewBox="0 0 \d+ (\d+)"', text)[0])
    assert 0 < places[0] - 12 < places[-1] < height


@pytest.mark.parametrize(
    "names",
    [
        [f"a-rather-long-name-of-a-run-lr-0.0{n}-momentum" for n in range(1, 4)],
        [f"{n}-and-then-the-same-for-all-of-them" for n in range(12)],
        [f"runs/today/of-a-long-{n}-name/and-some-more-in-the-end-{n}" for n in range(40)],
        ["a" * n for n in range(11, 30)],
        ["short", "a-rather-long-name", "a-rather-long-name-2", "…"],
        ["minibatch:16", "minibatch:64"],
        ["W" * 30 + "a", "W" * 30 + "b", "学習率" * 9 + "一", "学習率" * 9 + "二"],
    ],
)
def test_short_names_are_short_and_different(names):
    short = charts.short_names(names)
    assert len(set(short)) == len(names)
    assert max(map(charts._width, short)) <= charts.NAME_LENGTH
    assert all(s == n for s, n in zip(short, names, strict=True) if len(n) <= 10)


@pytest.mark.parametrize("high", [1.9, 7.0, 30.0, 1234.5, 1e7])
@pytest.mark.parametrize("low", [0.011, 0.5, 1.0])
def test_ticks_do_not_touch(low, high):
    axis = charts.Axis("x", low, high, True, 64, 326, lambda value: f"{value:.6g} µs")
    placed = [(axis.place(v), len(t)) for v, t in charts._apart(axis, lambda t: 7.2 * len(t) + 8)]
    assert all(b - a >= 7.2 * (m + n) / 2 for (a, m), (b, n) in pairwise(placed))


def test_a_line_is_drawn_where_its_numbers_are():
    line = charts.Line("a", [1.0, 10.0, 100.0], [1.0, None, 0.01], 0)
    text = charts.chart(
        [line], title="t", x_label="x", y_label="y", x_write=str, y_write=charts.number_tick
    )
    (points,) = re.findall(r'<polyline points="([^"]*)"', text)
    (x0, y0), (x1, y1) = [map(float, point.split(",")) for point in points.split()]
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    assert (x0, x1) == (left, right)
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    margin = 0.06 / 1.12 * (bottom - top)  # on both sides, of a range of 1 + 2 · 0.06
    assert y0 == pytest.approx(top + margin, abs=0.1)
    assert y1 == pytest.approx(bottom - margin, abs=0.1)
    ticks = re.findall(r'<text class="tick"[^>]*>([^<]*)<', text)
    assert ticks == ["0.01", "0.1", "1", *map(str, (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0))]


def test_the_loss_that_a_full_batch_saw_lies_on_the_full_loss():
    forms = {"batch": partial(network, BatchLoader)}  # no dropout: both are the same number
    text = noise(compare(forms, epochs=9).result["forms"])
    (points,) = re.findall(r'<polyline points="([^"]*)"', text)
    dots = re.findall(r'<circle cx="([^"]*)" cy="([^"]*)" r="2.4"/>', text)
    assert [f"{x},{y}" for x, y in dots] == points.split()[:-1]


@pytest.mark.parametrize("values", [[], [None], [float("nan")], [0.0, -1.0]])
def test_nothing_to_draw_is_said(values):
    text = charts.chart(
        [charts.Line("a", [1.0] * len(values), values, 0)],
        title="t",
        x_label="x",
        y_label="y",
        x_write=str,
        y_write=str,
    )
    assert "no finite values to draw" in text


@pytest.mark.parametrize("value", [0.0, 5.0, 1e-30, 1e30])
def test_a_single_value_has_an_axis_with_ticks_on_both_sides(value):
    for log in (True, False) if value else (False,):
        picture = charts.chart(
            [charts.Line("a", [3.0], [value], 0)],
            title="t",
            x_label="x",
            y_label="y",
            x_write=str,
            y_write=str,
            log_y=log,
        )
        ticks = [float(said) for said in re.findall(r'text-anchor="end">([^<]+)<', picture)]
        assert ticks == sorted(set(ticks))
        assert min(ticks) < value < max(ticks)


def test_a_form_that_diverged_has_no_speed_even_if_it_had_reached_the_target(result):
    reached = copy.deepcopy(result)
    wild = reached["forms"][-1]
    assert (wild["name"], wild["status"], wild["to_target"]) == ("wild", "diverged", None)
    wild["to_target"] = {**reached["forms"][0]["to_target"], "seconds": 0.0123}
    speed = glance(reached).partition("<h3>Speed</h3>")[2].partition("</section>")[0]
    assert speed.count("diverged") == 1
    assert "12.3 ms" not in speed


def test_the_variance_of_one_update_is_not_measured():
    compared = compare({"once": partial(network, BatchLoader)}, updates=1)
    (row,) = [line for line in str(compared).splitlines() if line.startswith("variance of the")]
    assert row.endswith("not measured")


def test_numbers_in_words():
    assert [seconds_text(s) for s in (0.00123, 0.5, 1.234, 12.0, 1234.5)] == [
        "1.23 ms",
        "500 ms",
        "1.23 s",
        "12 s",
        "1,234 s",
    ]
    assert [bytes_text(b) for b in (0, 999, 1000, 123_456, 5_960_000, 2e9)] == [
        "0 B",
        "999 B",
        "1 kB",
        "123 kB",
        "5.96 MB",
        "2 GB",
    ]
    assert [count_text(c) for c in (None, 1.234, 123.4, 86_267.2)] == ["-", "1.23", "123", "86,300"]


def test_json_is_the_result_and_keeps_a_curve_on_a_line(result):
    tricky = result | {"note": 'a [\n1,\n2\n] "b" [ 3 ] \\n'}
    text = json_text(tricky)
    assert json.loads(text) == tricky
    assert sum(
        '"full_loss": [' in line and line.rstrip(",").endswith("]") for line in text.splitlines()
    ) == len(result["forms"])


# ── in a browser ────────────────────────────────────────────────────────────────────────────


def browse(tmp_path: Path, text: str) -> tuple[str, set[str]]:
    """The document as headless Chromium ends up with it, and every address it asked for."""
    (tmp_path / "report.html").write_text(text, "utf-8")
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            "--host-resolver-rules=MAP * ~NOTFOUND",  # asked for or not, nothing is reached
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={log}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    events = json.loads(log.read_text("utf-8"))["events"]
    parameters = [event["params"] for event in events if isinstance(event.get("params"), dict)]
    asked = {p["url"] for p in parameters if str(p.get("url", "")).startswith("http")}
    return done.stdout, {url for url in asked if not BROWSERS_OWN.match(url)}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_it_without_a_request(result, tmp_path):
    document, asked = browse(tmp_path, page(result))
    assert asked == set()
    shown = Reader(document)
    assert "owned" not in re.findall(r"<title>(.*?)</title>", document)[0].replace("'owned'", "")
    readouts = [a for tag, a in shown.elements if tag == "div" and a.get("class") == "readout"]
    assert len(readouts) == 8  # our script ran, under the page's own policy
    assert not [tag for tag, _ in shown.elements if tag == "img"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_log_of_the_browser_would_show_a_request(result, tmp_path):
    text = page(result).replace("<main>", f'<main><img src="{TRACKER}" alt="">', 1)
    _, asked = browse(tmp_path, text)
    assert asked == set()  # the page's policy forbids it
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    _, asked = browse(tmp_path, policy.sub("", text))
    assert asked == {TRACKER}
