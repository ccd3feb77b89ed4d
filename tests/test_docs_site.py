"""The documentation as a site: all public names, no warning, offline search, no wide page."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

import gdtrain

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Opens one page after the other in a frame of 400 pixels, and lists those that are wider.
FRAME = """
<title>-</title><iframe id="f" style="width: 400px; height: 900px"></iframe>
<script>
const pages = PAGES, wide = [];
f.onload = () => {
  const width = f.contentDocument.documentElement.scrollWidth;
  if (width > 400) wide.push([pages[0], width]);
  pages.shift();
  if (pages.length) f.src = pages[0]; else document.title = JSON.stringify(wide);
};
f.src = pages[0];
</script>
"""


def test_the_python_reference_has_each_public_name_once() -> None:
    text = "".join(p.read_text("utf-8") for p in (ROOT / "docs/reference/python").glob("*.md"))
    named = re.findall(r"^\.\. auto(?:class|function):: gdtrain\.(\w+)$", text, flags=re.MULTILINE)
    named += re.findall(r"^\| `(register_\w+)` \|", text, flags=re.MULTILINE)
    assert sorted(named) == gdtrain.__all__


def test_a_part_of_each_kind_is_shown_which_another_test_runs() -> None:
    page = (ROOT / "docs/extending/custom-parts.md").read_text("utf-8")
    kinds = {name for name in gdtrain.__all__ if name.startswith("register_")}
    assert set(re.findall(r"^@(register_\w+)\(", page, flags=re.MULTILINE)) == kinds


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("furo", reason="pip install 'gdtrain[docs]'")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run([*build, ROOT / "docs", out], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def in_chromium(page: str) -> str:
    """The page as it is after its scripts."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security"]
    command += ["--allow-file-access-from-files", "--window-size=1280,900"]
    command += ["--virtual-time-budget=60000", "--dump-dom", page]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.long
def test_the_site_needs_no_network(site) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(r"<(?:script|img)[^>]*src=\"https?:[^>]*>", text), page
        assert not re.findall(r"<link[^>]*rel=\"stylesheet\"[^>]*href=\"https?:[^>]*>", text), page


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_search_from_the_disk_finds_the_page(site) -> None:
    found = in_chromium(f"file://{site}/search.html?q=sharpness")
    assert "how-to/analysis/monitors.html" in found
    assert re.search(r"found \d+ pages? matching", html.unescape(found))


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_no_page_is_wider_than_a_phone(site) -> None:
    pages = sorted(str(page.relative_to(site)) for page in site.rglob("*.html"))
    (site / "frame.html").write_text(FRAME.replace("PAGES", json.dumps(pages)))
    (title,) = re.findall("<title>(.*?)</title>", in_chromium(f"file://{site}/frame.html"))
    assert json.loads(html.unescape(title)) == []
