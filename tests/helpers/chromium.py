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
  for (const part of document.querySelectorAll('.card, .scroll')) {
    if (!part.clientWidth) continue;
    const hint = part.parentElement.querySelector(':scope > .hint');
    const told = (hint && hint.clientHeight) ||
      getComputedStyle(part).backgroundAttachment.includes('local');
    const more = part.scrollWidth - part.clientWidth;
    if (more > 1 && !told) found.push(['cut, and nothing says so', part.textContent.slice(0, 40)]);
    if (hint && hint.clientHeight && more <= 1) found.push(['nothing to scroll to']);
  }
};
const tabs = [...document.querySelectorAll('.tabs input')];
for (const tab of tabs) { tab.checked = true; look(); }
if (!tabs.length) look();
if (document.documentElement.scrollWidth > innerWidth + 1) found.push(['wider than the window']);
"""

# Of a sweep's page: what scrolls, empty places of cards, stars beside the middles of cells, and
# lines over numbers of a heat map that have no rim.
MEASURE_SWEEP = """
const found = [];
const middle = box => [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
for (const part of document.querySelectorAll('.card, .scroll'))
  if (part.scrollWidth > part.clientWidth + 1) found.push(['scrolls', part.className]);
for (const card of document.querySelectorAll('.plan .card, .profile')) {
  const right = Math.max(...[...card.children].map(c => c.getBoundingClientRect().right));
  const empty = card.getBoundingClientRect().right - right;
  if (empty > 30) found.push(['empty', card.className, empty]);
}
const cells = [...document.querySelectorAll('rect')].map(r => middle(r.getBoundingClientRect()));
for (const star of document.querySelectorAll('.star')) {
  const [x, y] = middle(star.getBoundingClientRect());
  const off = Math.min(...cells.map(([a, b]) => Math.hypot(a - x, b - y)));
  if (off > 4) found.push(['beside the middle', off]);
  for (const text of document.querySelectorAll('.in')) {
    const a = star.getBBox(), b = text.getBBox();
    const wide = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
    const high = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
    if (wide > 0.5 && high > 2.5) found.push(['touch', text.textContent]);
  }
}
const lines = [...document.querySelectorAll('.ridge, .scaling')];
[...document.querySelectorAll('.in')].forEach((text, i) => {
  const style = getComputedStyle(text);
  const cell = getComputedStyle(document.querySelectorAll('.plan rect')[i]);
  const rim = style.paintOrder === 'stroke' && parseFloat(style.strokeWidth) >= 4;
  const above = lines.every(line => line.compareDocumentPosition(text) & 4);
  if (!rim || !above || style.stroke !== cell.fill) found.push(['crossed', text.textContent]);
});
for (const kind of ['.profile .name', '.profile li', '.plan .axis']) {
  const texts = [...document.querySelectorAll(kind)].map(t => t.textContent);
  if (!texts.length || new Set(texts).size < texts.length) found.push(['not told apart', kind]);
}
"""


def faults_of(page, width, folder, *, dark=False, measure=MEASURE):
    """What a script finds wrong with a page that is ``width`` pixels wide: with its texts."""
    # A test's script is not the page's own, which alone its policy lets run.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    script = (
        f"addEventListener('load', () => {{ {measure} document.title = JSON.stringify(found) }})"
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
