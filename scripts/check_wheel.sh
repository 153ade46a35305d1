#!/usr/bin/env bash
# Build the wheel from what git tracks, look at what is in it, and install it with one extra into a
# fresh environment. Usage: scripts/check_wheel.sh FOLDER [EXTRA]   (EXTRA: site, worker, ... or none)
# Leaves FOLDER/dist and FOLDER/venv, and prints the wheel's path and the environment's size.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:?"name a folder to work in"}
extra=${2:-site}
mkdir -p "$work"
work=$(cd "$work" && pwd)
python=${PYTHON:-python3.11}
export PIP_DISABLE_PIP_VERSION_CHECK=1

# A copy: building in the checkout would pack what an earlier build left behind.
rm -rf "$work/source" "$work/dist" "$work/venv"
mkdir -p "$work/source" "$work/dist"
git ls-files -z --cached --others --exclude-standard -- pyproject.toml README.md fedflow flows |
  while IFS= read -r -d '' file; do
    [ -f "$file" ] || continue  # removed, and not committed yet
    mkdir -p "$work/source/$(dirname "$file")"
    cp "$file" "$work/source/$file"
  done

"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'setuptools>=77'
"$work/venv/bin/pip" wheel --quiet --no-deps --no-build-isolation -w "$work/dist" "$work/source"
wheel=$(ls "$work"/dist/fedflow-*.whl)

"$work/venv/bin/python" - "$wheel" <<'CHECK'
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
wanted = ["fedflow/py.typed", "fedflow/data/randhie.csv.gz", "flows/plans/randhie.toml"]
wanted += ["flows/training.py", "fedflow/cli/main.py"]
missing = [name for name in wanted if name not in names]
tops = {name.partition("/")[0] for name in names}
foreign = [top for top in tops if top not in ("fedflow", "flows") and ".dist-info" not in top]
odd = [n for n in names if "__pycache__" in n or "/tests/" in n or n.endswith((".pyc", ".pem"))]
if missing or foreign or odd:
    sys.exit(f"not as it should be: missing {missing}, foreign {foreign}, odd {odd}")
CHECK

"$work/venv/bin/pip" uninstall --quiet --yes setuptools
empty=$(du -sm "$work/venv" | cut -f1)
target=$wheel
[ "$extra" = none ] || target="$wheel[$extra]"
# The versions that were tested. A plain freeze is a list of pins without asking for any of them.
"$work/venv/bin/pip" install --quiet --constraint requirements.lock "$target"
"$work/venv/bin/pip" check --quiet
"$work/venv/bin/fedflow" --version
full=$(du -sm "$work/venv" | cut -f1)
echo "wheel $wheel"
echo "extra $extra: $((full - empty)) MiB in $("$work/venv/bin/pip" list --format=freeze | wc -l) packages"
