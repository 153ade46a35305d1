"""The documentation builds, its links lead somewhere, and nothing is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert build.returncode == 0, build.stderr
    return out


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site):
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in nav, page


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]+src=[\"']https?:|<link[^>]+rel=[\"'](?:stylesheet|preconnect)"
        r"[\"'][^>]+href=[\"']https?:"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not loads.search(page.read_text()), page


@pytest.mark.slow
def test_what_is_generated_is_there(site):
    commands = (site / "reference" / "commands.html").read_text()
    for command in ("fedflow site init", "fedflow audit verify", "fedflow doctor"):
        assert command in commands
    threats = (site / "threat-model.html").read_text()
    assert "replaced by SECURITY.md" not in threats
    assert "SqliteFacts" in (site / "reference" / "privacy.html").read_text()
