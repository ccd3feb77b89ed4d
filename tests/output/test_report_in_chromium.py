"""A report in real Chromium: texts are inside of their pictures, apart, and large enough."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, SampleLoader, Trainer, compare

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)

# Of each chart that is shown under each tab: texts beside it, on one another, or too small.
MEASURE = """
const found = [];
for (const tab of document.querySelectorAll('.tabs input')) {
  tab.checked = true;
  for (const svg of document.querySelectorAll('svg.chart')) {
    const box = svg.getBoundingClientRect();
    if (!box.width) continue;
    const texts = [...svg.querySelectorAll('text')].map(
      t => [t.textContent, t.getBoundingClientRect(), t.hasAttribute('transform')]);
    texts.forEach(([name, a, turned], i) => {
      if (a.left < box.left - 1 || a.right > box.right + 1) found.push(['beside', name]);
      if (a.top < box.top - 1 || a.bottom > box.bottom + 1) found.push(['above', name]);
      if (!turned && a.height < 9) found.push(['small', name]);
      for (const [other, b] of texts.slice(0, i)) {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 0.5 && high > 2.5) found.push(['touch', name, other]);
      }
    });
  }
}
"""


def form(lr, loader=BatchLoader):
    def make():
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        return Trainer(model, nn.MSELoss(), optimizer, loader((X, Y)), device="cpu")

    return make


CASES = {
    "three": {"batch": form(0.1), "sample": form(0.01, SampleLoader), "minibatch": form(0.05)},
    "forty": {f"runs/today/a-long-name/lr 0.0{n}/and more": form(0.002 * n) for n in range(1, 41)},
    "one": {"only": form(0.1)},
    "all diverged": {"a": form(1e30), "b": form(1e25)},
}


@pytest.mark.few(2)
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("case", CASES)
def test_texts_are_inside_apart_and_large_enough(case, width, tmp_path):
    text = compare(CASES[case], epochs=3, looks=2).html()
    # A test's script is not the page's own, which alone its policy lets run.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    script = (
        f"addEventListener('load', () => {{ {MEASURE} document.title = JSON.stringify(found) }})"
    )
    (tmp_path / "report.html").write_text(
        text.replace("</body>", f"<script>{script}</script></body>")
    )
    tell = "onload = () => setTimeout(() => { document.title = f.contentDocument.title }, 500)"
    (tmp_path / "frame.html").write_text(  # whose width, unlike a window's, may be any
        f'<title>-</title><iframe id="f" src="report.html" style="width:{width}px;height:9000px">'
        f"</iframe><script>{tell}</script>"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security"),
            *("--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1400,2000", "--virtual-time-budget=3000", "--dump-dom"),
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    assert json.loads(title.replace("&quot;", '"')) == []
