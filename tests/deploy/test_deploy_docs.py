"""The page on deployment names files that exist, commands that parse and every extra there is."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/deployment.md").read_text()


def test_every_file_it_names_is_there():
    named = set(re.findall(r"\b((?:deploy|scripts|tests)/[\w@./-]*[\w*])", PAGE))
    assert len(named) > 8
    for name in named:
        assert list(ROOT.glob(name.rstrip("."))), name
    for link in re.findall(r"\]\(\.\./([^)]+)\)", PAGE):
        assert (ROOT / link).exists(), link


def test_every_block_of_commands_is_one_a_shell_reads():
    blocks = re.findall(r"```\n(.*?)```", PAGE, re.S)
    shell = [block for block in blocks if not block.startswith("socket =")]
    assert len(shell) >= 4
    for block in shell:
        subprocess.run(["sh", "-n", "-c", block], check=True)


def test_every_extra_has_a_size():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in set(project["optional-dependencies"]) - {"dev", "docs"}:
        assert re.search(rf"^\| `{extra}` \|[^|]+\| [\d,]+ MiB", PAGE, re.M), extra


def test_the_units_users_and_groups_are_those_of_the_page():
    for name in ("fedflow-socket", "fedflow-site", "fedflow-worker", "key-passphrase"):
        assert name in PAGE
        assert any(name in path.read_text() for path in (ROOT / "deploy/systemd").iterdir())


def test_what_the_proxy_lets_through_is_what_the_page_says():
    conf = (ROOT / "deploy/proxy/nginx.conf").read_text()
    allowed = re.findall(r"location (?:=|~) (?:\^)?/api/(\S+?)\$? +{", conf)
    assert len(allowed) >= 13
    for place in allowed:
        tail = re.sub(r"\[0-9a-f-\]\+", "ID", place).rsplit("@SITE@/", 1)[-1]
        assert tail.replace("@SITE@", "SITE") in PAGE, place
