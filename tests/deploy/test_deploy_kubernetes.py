"""The Kubernetes objects: built as kubectl builds them, of the right form, closed by default."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOM = Path(__file__).parents[2] / "deploy/kubernetes"
VALIDATE = Path(sys.executable).parent / "kubernetes-validate"


def written():
    """Every object in the files, with or without kubectl."""
    for path in sorted(ROOM.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


@pytest.fixture(scope="module")
def built():
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: what it would build was not looked at")
    done = subprocess.run(
        [kubectl, "kustomize", ROOM / "overlays/example"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_every_file_is_named_by_a_kustomization():
    for path in ROOM.rglob("kustomization.yaml"):
        listed = yaml.safe_load(path.read_text()).get("resources", [])
        files = {other.name for other in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in listed if "/" not in name} == files
        assert all((path.parent / name).exists() for name in listed)


def test_every_object_has_its_kinds_form(tmp_path):
    for number, thing in enumerate(written()):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(thing))
    files = sorted(tmp_path.glob("*.yaml"))
    check = [VALIDATE, "--strict", "--quiet", "-k", "1.31"]
    done = subprocess.run([*check, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = files[0].read_text()
    files[0].write_text(text.replace("spec:", "specs:"))
    assert subprocess.run([*check, files[0]], capture_output=True).returncode != 0


def pods(things):
    for thing in things:
        if thing["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield thing, thing["spec"]["template"]


def test_every_pod_runs_with_few_rights():
    """As the level "restricted" of Pod Security wants it, and a root that cannot be written."""
    for thing, pod in pods(written()):
        name, spec = thing["metadata"]["name"], pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False, name
            assert rights["readOnlyRootFilesystem"] is True, name
            assert rights["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert "startupProbe" in container, name
            if thing["kind"] != "Job":
                assert "livenessProbe" in container, name
                assert "readinessProbe" in container, name
            for variable in container.get("env", []):
                assert "secretKeyRef" not in str(variable), name
                if re.search("PASSWORD|AUTH_STRING|CONNECTION_URL|REDIS.*URL", variable["name"]):
                    assert variable["name"].endswith("_FILE"), name


def test_what_is_built_keeps_every_pod_behind_the_policy_and_names_real_things(built):
    policies = [thing for thing in built if thing["kind"] == "NetworkPolicy"]
    closed = [
        policy["spec"]["podSelector"]["matchLabels"]
        for policy in policies
        if "ingress" not in policy["spec"] and "egress" not in policy["spec"]
    ]
    assert len(closed) == 1
    seen = []
    for thing, pod in pods(built):
        labels = pod["metadata"]["labels"]
        seen.append(labels["app.kubernetes.io/name"])
        assert closed[0].items() <= labels.items(), thing["metadata"]["name"]
        for container in pod["spec"]["containers"]:
            assert container["image"].startswith("registry.example.org/")
            assert re.search(r":\d+\.\d+\.\d+$", container["image"])
    assert sorted(seen) == ["coordinator", "prefect", "relay"]
    maps = {thing["metadata"]["name"] for thing in built if thing["kind"] == "ConfigMap"}
    used = set(re.findall(r"'configMapKeyRef': {[^}]*'name': '([^']+)'", str(built)))
    assert used == maps
    assert not [thing for thing in built if thing["kind"] == "Secret"]  # made by hand
    for thing in built:
        if thing["kind"] in ("Service", "PodDisruptionBudget"):
            wanted = thing["spec"]["selector"]
            wanted = wanted.get("matchLabels", wanted)
            assert wanted["app.kubernetes.io/name"] in seen


def test_commands_are_those_of_the_images():
    dockerfile = (ROOM.parent / "docker/Dockerfile").read_text()
    for thing, pod in pods(written()):
        for container in pod["spec"]["containers"]:
            role = container["image"].removeprefix("fedflow-")
            assert f"FROM base AS {role}\n" in dockerfile
            words = container["args"]
            if thing["metadata"]["name"] == "relay":
                assert words[:3] == ["fedflow", "exchange", "serve"]
            else:
                assert words[0] == "with-secrets"
