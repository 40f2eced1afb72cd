"""The pages in a real browser, without a network: they open, show everything, and nothing is complained of."""

import os
import shutil
import subprocess

import pytest

from tests.reports.test_run import write
from tljax.reports.answer import answer
from tljax.reports.gather import gather
from tljax.reports.overview import write_overview
from tljax.reports.run import write_run_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is there, and CHROMIUM names none"
)


def opened(page, folder, *flags):
    """(the page as the browser has made it, what its console says)."""
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *("--enable-logging=stderr", "--v=0", *flags, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, study):
    folder = tmp_path_factory.mktemp("pages")
    gathered = gather([study])
    (folder / "run").mkdir()
    many = write_overview(folder / "many", answer(gathered), gathered)
    return {"many": many, "run": write_run_report(write(folder / "run"))}


def test_the_console_tells_of_an_error(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><script>console.error('here'); missing()</script>")
    _, console = opened(page, tmp_path, "--dump-dom")
    assert len(console) == 2, "what the other tests look for is found where it is"


@pytest.mark.parametrize("name", ["many", "run"])
def test_a_page_opens_without_a_complaint(pages, tmp_path, name):
    shown, console = opened(pages[name], tmp_path, "--dump-dom")
    assert console == []
    assert shown.count("<svg") == pages[name].read_text(encoding="utf8").count("<svg") > 3


@pytest.mark.parametrize("name", ["many", "run"])
def test_a_page_is_light_on_light_and_dark_on_dark(pages, tmp_path, name):
    import numpy as np
    from PIL import Image

    means = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        file = tmp_path / f"{scheme}.png"
        _, console = opened(
            pages[name],
            tmp_path,
            f"--blink-settings=preferredColorScheme={number}",
            "--window-size=1000,1400",
            f"--screenshot={file}",
        )
        assert console == []
        pixels = np.asarray(Image.open(file).convert("L"), np.float64)
        means[scheme] = pixels.mean()
        assert pixels.std() > 5, "there is something on it"
    assert means["light"] > 225 and means["dark"] < 60
