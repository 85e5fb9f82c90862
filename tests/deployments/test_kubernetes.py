"""deployments/kubernetes and the Kubernetes pool: valid by the schemas, contained, probed, and without secrets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deployments" / "kubernetes"
VERSIONS = ("1.29", "1.33", "1.37")
SECRETS = {
    "rfss": {
        "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    },
    "rfss-server": {"POSTGRES_PASSWORD", "PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_FLASK_SERVER_SECRET_KEY"},
}  # fmt: skip


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document["kind"] != "Kustomization":
                yield path.name, document


ALL = list(manifests())


def run_job() -> dict[str, Any]:
    """Return the Job that the worker of the pool would create for a run with a GPU."""
    worker = pytest.importorskip("prefect_kubernetes.worker")
    template = json.loads((ROOT / "deployments" / "pools" / "kubernetes.json").read_text(encoding="utf-8"))
    values = {"name": "run", "command": "prefect flow-run execute", "gpus": 1}
    configuration = asyncio.run(worker.KubernetesWorkerJobConfiguration.from_template_and_values(template, values))
    manifest = dict(configuration.job_manifest)
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    # As the worker does before it sends it.
    container["env"] = [{"name": name, "value": value} for name, value in configuration.env.items()]
    container["args"] = configuration.command.split()
    return manifest


def pods() -> list[tuple[str, dict[str, Any]]]:
    kinds = ("Deployment", "StatefulSet", "Job")
    found = [(name, each["spec"]["template"]["spec"]) for name, each in ALL if each["kind"] in kinds]
    return [*found, ("pools/kubernetes.json", run_job()["spec"]["template"]["spec"])]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_accept_every_manifest(prefect_server: str, version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for name, manifest in [*ALL, ("pools/kubernetes.json", run_job())]:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{name}, {manifest['kind']}, {version}: {error.message} at {list(error.path)}")


def test_the_kustomization_lists_what_is_there() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert set(listed) == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "deploy.yaml"}


def test_pods_are_contained_and_bounded(prefect_server: str) -> None:
    for name, pod in pods():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        # The worker alone speaks with the cluster's API.
        assert pod["automountServiceAccountToken"] is (name == "worker.yaml"), name
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            held = container["securityContext"]
            assert held["allowPrivilegeEscalation"] is False, name
            assert held["readOnlyRootFilesystem"] is True, name
            assert held["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, name
            assert ":latest" not in container["image"], name


def test_what_goes_on_is_probed() -> None:
    for name, manifest in ALL:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            for container in manifest["spec"]["template"]["spec"]["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name


def test_secrets_are_referenced_and_not_there() -> None:
    assert not [name for name, manifest in ALL if manifest["kind"] == "Secret"]
    for name, manifest in ALL:
        for reference in references(manifest):
            assert reference["key"] in SECRETS[reference["name"]], f"{name}: {reference}"
        for entry in entries(manifest):
            if any(part in entry["name"] for part in ("PASSWORD", "SECRET_ACCESS", "AUTH_STRING", "SECRET_KEY")):
                named = entry["name"].endswith(("_SECRET_NAME", "_SECRET_KEY"))
                assert "valueFrom" in entry or named, f"{name}: {entry}"


def references(value: Any) -> Iterator[dict[str, str]]:
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def entries(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every entry of every list `env`."""
    if isinstance(value, dict):
        if isinstance(value.get("env"), list):
            yield from value["env"]
        for each in value.values():
            yield from entries(each)
    elif isinstance(value, list):
        for each in value:
            yield from entries(each)


def test_commands_are_those_of_the_compose_file() -> None:
    services = yaml.safe_load((FOLDER.parent / "compose.yaml").read_text(encoding="utf-8"))["services"]
    commands = {
        manifest["metadata"]["name"]: container["args"]
        for _, manifest in ALL
        if manifest["kind"] == "Deployment"
        for container in manifest["spec"]["template"]["spec"]["containers"]
    }
    for name in ("prefect", "mlflow", "dask-scheduler"):
        assert commands[name] == services[name]["command"], name
    [deploy] = [manifest for name, manifest in ALL if name == "deploy.yaml"]
    assert deploy["spec"]["template"]["spec"]["containers"][0]["args"] == services["deploy"]["command"]
    [mlflow] = [manifest for _, manifest in ALL if manifest["metadata"].get("name") == "rfss-mlflow"]
    settled = [line for line in (FOLDER.parent / "mlflow" / "auth.ini").read_text().splitlines() if line[0] != "#"]
    assert mlflow["data"]["auth.ini"].splitlines() == settled


def test_services_and_policies_find_their_pods() -> None:
    labels = {
        manifest["metadata"]["name"]: manifest["spec"]["template"]["metadata"]["labels"]
        for _, manifest in ALL
        if manifest["kind"] in ("Deployment", "StatefulSet")
    }
    known = {each["app.kubernetes.io/name"] for each in labels.values()} | {"rfss", "deploy"}
    for _, manifest in ALL:
        if manifest["kind"] == "Service":
            assert manifest["spec"]["selector"].items() <= labels[manifest["metadata"]["name"]].items()
        if manifest["kind"] == "NetworkPolicy":
            for name in named(manifest):
                assert name in known
    assert run_labels() == "rfss"


def named(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.get("key") == "app.kubernetes.io/name":
            yield from value["values"]
        if "app.kubernetes.io/name" in value:
            yield value["app.kubernetes.io/name"]
        for each in value.values():
            yield from named(each)
    elif isinstance(value, list):
        for each in value:
            yield from named(each)


def run_labels() -> str:
    template = json.loads((ROOT / "deployments" / "pools" / "kubernetes.json").read_text(encoding="utf-8"))
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]
    return str(pod["metadata"]["labels"]["app.kubernetes.io/name"])
