"""A page in real Chromium: where its pictures' texts lie."""

import json
import re
import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Of each chart that is shown under each tab: texts beside it, on one another, or too small.
MEASURE = """
const found = [];
const look = () => {
  for (const svg of document.querySelectorAll('svg.chart')) {
    const box = svg.getBoundingClientRect();
    if (!box.width) continue;
    const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent).map(
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
};
const tabs = [...document.querySelectorAll('.tabs input')];
for (const tab of tabs) { tab.checked = true; look(); }
if (!tabs.length) look();
if (document.documentElement.scrollWidth > innerWidth + 1) found.push(['wider than the window']);
"""


def faults_of(page, width, folder, *, dark=False):
    """What is wrong with the texts of a page that is ``width`` pixels wide."""
    # A test's script is not the page's own, which alone its policy lets run.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    script = (
        f"addEventListener('load', () => {{ {MEASURE} document.title = JSON.stringify(found) }})"
    )
    (folder / "report.html").write_text(
        page.replace("</body>", f"<script>{script}</script></body>"), "utf-8"
    )
    tell = "onload = () => setTimeout(() => { document.title = f.contentDocument.title }, 500)"
    (folder / "frame.html").write_text(  # whose width, unlike a window's, may be any
        f'<title>-</title><iframe id="f" src="report.html" style="width:{width}px;height:9000px">'
        f"</iframe><script>{tell}</script>"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security"),
            *("--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"),
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            *("--window-size=1400,2000", "--virtual-time-budget=3000", "--dump-dom"),
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    return json.loads(title.replace("&quot;", '"'))
