"""The report as a browser shows it. Skipped where no browser is installed."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli_toys import run
from tests.test_cli_evaluate import clip, save

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PROBE = """
<pre id="probe"></pre><script>
window.addEventListener("load", () => {
  const images = [...document.images].map(each => [each.naturalWidth, each.getBoundingClientRect().width]);
  const asked = performance.getEntriesByType("resource").map(each => each.name).filter(name => !/^data:/.test(name));
  const text = document.body.innerText;
  document.getElementById("probe").textContent =
    JSON.stringify({images, asked, text, wide: document.documentElement.scrollWidth, inner: window.innerWidth});
});
</script>
"""
"""What tells, behind the page, what became of it."""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_shows_the_whole_page_and_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BROWSER is not None
    monkeypatch.chdir(tmp_path)
    save(Path("good.mp4"), clip(20))
    Path("prompts.txt").write_text("a <b>texture</b> that moves\n")
    common = ("--prompts", "prompts.txt", "--size", "32x24", "--flow", "dis:ultrafast", "--jobs", 1)
    assert run("evaluate", "good.mp4", "--window", 8, "--new", 4, *common) == 0
    source = Path("evaluation/report.html").read_text(encoding="utf-8")
    assert source.count("</body>") == 1
    Path("probed.html").write_text(source.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,2000", "--hide-scrollbars", "--enable-logging=stderr", "--dump-dom",
            f"--screenshot={tmp_path / 'shot.png'}", (tmp_path / "probed.html").as_uri(),
        ],
        capture_output=True, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.+?)</pre>', done.stdout, re.DOTALL)
    assert done.returncode == 0 and found, done.stderr[-2000:]
    told = json.loads(unescape(found[1]))
    assert len(told["images"]) == 6 and all(real > 0 and shown > 0 for real, shown in told["images"])
    assert told["asked"] == [] and "CONSOLE" not in done.stderr
    assert told["wide"] <= told["inner"]  # nothing is cut off at the right
    assert "a <b>texture</b> that moves" in told["text"] and "3 chunk joins, at frames 8, 12, 16" in told["text"]
    with Image.open("shot.png") as shot:
        pixels = np.asarray(shot.convert("RGB"))
    assert pixels.shape == (2000, 1200, 3)
    assert (pixels < 250).any(-1).mean() > 0.05 and len(np.unique(pixels[::4, ::4].reshape(-1, 3), axis=0)) > 200
