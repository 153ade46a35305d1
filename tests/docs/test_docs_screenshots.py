"""The picture function of scripts/screenshots.py shows what a page shows, at the size asked for."""

from __future__ import annotations

import http.server
import importlib.util
import os
import struct
import sys
import threading
import zlib
from pathlib import Path

import pytest

from fedflow.errors import Refusal

ROOT = Path(__file__).parents[2]
#: Nothing is there until a script has run and a request was answered, as in Prefect's UI.
PAGE = b"""<!doctype html><body style="margin:0;background:#ffffff"><script>
setTimeout(() => fetch("/colour").then(r => r.text()).then(colour => {
  const box = document.createElement("div")
  box.style = `width:200px;height:100px;background:${colour}`
  document.body.append(box)
}), 500)
</script>"""


@pytest.fixture(scope="module")
def screenshots():
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "scripts/screenshots.py")
    module = sys.modules["screenshots"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def browser(screenshots):
    found = screenshots.find_chromium()
    if found is None:
        if os.environ.get("FEDFLOW_CI") == "1":
            pytest.fail("chromium is missing, and CI must have it")
        pytest.skip("chromium is not installed")
    return found


@pytest.fixture
def url():
    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"#cc0033" if self.path == "/colour" else PAGE)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pixels(png):
    """Width, height and a function giving the colour at x, y of a PNG of 8-bit RGB or RGBA."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, parts, header = 8, [], b""
    while at < len(png):
        (size,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        body = png[at + 8 : at + 8 + size]
        header = body if kind == b"IHDR" else header
        parts += [body] if kind == b"IDAT" else []
        at += 12 + size
    width, height, depth, colours = struct.unpack(">IIBB", header[:10])
    assert depth == 8
    step = {2: 3, 6: 4}[colours]
    raw, stride = zlib.decompress(b"".join(parts)), width * step
    rows, before = [], bytearray(stride)
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 :][:stride])
        for x in range(stride):
            left, above = (line[x - step] if x >= step else 0), before[x]
            corner = before[x - step] if x >= step else 0
            line[x] = (line[x] + _predicted(kind, left, above, corner)) & 255
        rows.append(line)
        before = line
    return width, height, lambda x, y: tuple(rows[y][x * step : x * step + 3])


def _predicted(kind, left, above, corner):
    if kind == 4:
        guess = left + above - corner
        return min((left, above, corner), key=lambda value: abs(guess - value))
    return (0, left, above, (left + above) // 2)[kind]


@pytest.mark.slow
def test_a_picture_waits_for_what_the_page_fetches(screenshots, browser, url, tmp_path):
    target = tmp_path / "picture.png"
    screenshots.take(browser, url, target, 400, 300)
    width, height, colour = pixels(target.read_bytes())
    assert (width, height) == (400, 300)
    assert colour(100, 50) == (0xCC, 0x00, 0x33)
    assert colour(300, 50) == colour(100, 200) == (255, 255, 255)
    assert list(tmp_path.iterdir()) == [target]


def test_a_browser_that_makes_no_picture_is_named(screenshots, tmp_path):
    broken = tmp_path / "browser"
    broken.write_text("#!/bin/sh\necho no display >&2\nexit 1\n")
    broken.chmod(0o700)
    with pytest.raises(Refusal, match="no display"):
        screenshots.take(str(broken), "http://127.0.0.1:9", tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


def test_without_chromium_the_script_says_so(screenshots, monkeypatch, capsys):
    monkeypatch.setattr(screenshots, "find_chromium", lambda: None)
    monkeypatch.setattr("sys.argv", ["screenshots.py"])
    with pytest.raises(SystemExit) as end:
        screenshots.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "fedflow: taking pictures needs Chromium, and there is none here\n"
    )


def test_the_pictures_the_documentation_shows_are_there_and_small(screenshots):
    shown = (ROOT / "docs" / "prefect.md").read_text()
    pictures = sorted((ROOT / "docs" / "img").glob("ui-*.png"))
    assert len(pictures) >= 6
    for picture in pictures:
        assert f"img/{picture.name}" in shown
        assert picture.stat().st_size <= screenshots.MOST_BYTES
