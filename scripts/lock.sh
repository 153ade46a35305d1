#!/usr/bin/env bash
# Resolve pyproject.toml in a fresh environment and pin what came out.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'setuptools>=77' torch==2.13.0
"$work/venv/bin/pip" install --quiet --no-build-isolation -e '.[dev]'
{
  echo "# Made by scripts/lock.sh from pyproject.toml. Do not edit."
  # A local build tag (torch's +cpu) is not published everywhere: the plain version serves both.
  "$work/venv/bin/pip" freeze --all --exclude-editable | grep -v '^pip==' | sed -E 's/\+[a-z0-9.]+$//'
} > requirements.lock
