"""The report is one file that a real browser shows with nothing else at hand."""

import os
import re
import shutil
import subprocess

import pytest

from algos.figures import lines
from nestmem.cli import main
from tests.test_cli import TINY

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = tmp_path_factory.mktemp("report") / "run"
    assert main(["train", f"run={run}", *TINY]) == 0
    return run / "report" / "report.html"


def test_the_page_stands_alone(page, tmp_path):
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', text), "nothing is loaded from elsewhere"
    assert {p.name for p in page.parent.glob("*.png")} == {"adaptation.png", "learning.png", "gates-nested.png"}


@pytest.mark.parametrize("ends", [(float("-inf"), float("inf")), ("unbounded", "unbounded"), (0.5, 1.5)])
def test_a_line_has_no_band_where_one_value_has_no_interval(ends):
    axes = lines({"a": [[1.0, 1.0, *ends], [2.0, 1.0, *ends]]}, "x", "y").axes[0]
    shown = axes.collections[0].get_datalim(axes.transData)
    assert shown.height == pytest.approx(1.0 if ends == (0.5, 1.5) else 0.0)


def test_a_browser_shows_the_table_and_every_figure(page, tmp_path):
    if BROWSER is None:
        assert not os.environ.get("CI"), "CI must have a browser: apt-get install chromium"
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    alone = shutil.copy(page, tmp_path / "alone.html")
    widths = "document.title = [...document.images].map(i => i.naturalWidth).join(' ')"
    script = f"<script>addEventListener('load', () => {{ {widths} }})</script>"  # when the images have been decoded
    (tmp_path / "probe.html").write_text(page.read_text().replace("</html>", script + "</html>"))
    base = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}/profile",
        "--virtual-time-budget=2000",
    ]  # fmt: skip
    dom = subprocess.run(
        [*base, "--dump-dom", f"file://{tmp_path}/probe.html"], capture_output=True, text=True, timeout=1200
    ).stdout
    widths = re.search(r"<title>([\d ]+)</title>", dom)
    assert widths
    assert len(widths[1].split()) == 3
    assert all(int(width) > 300 for width in widths[1].split())
    assert "lstm" in dom
    assert "parameters" in dom
    shot = tmp_path / "shot.png"
    subprocess.run(
        [*base, f"--screenshot={shot}", "--window-size=1100,1400", f"file://{alone}"], capture_output=True, timeout=1200
    )
    from PIL import Image

    with Image.open(shot) as image:
        assert len(image.convert("L").histogram()) == 256
        assert min(image.convert("L").getextrema()) < 100, "the page is not blank"
