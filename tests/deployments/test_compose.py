"""deployments/compose.yaml: what compose itself says of it, and what every service must have."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose import FILE, raw, substitute

SERVICES: dict[str, Any] = raw()["services"]
ONCE = {"databases", "s3-volume", "buckets", "deploy"}
EXAMPLE = FILE.parent / ".env.example"
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY|PGPASSWORD")


def example() -> dict[str, str]:
    """Return the variables of .env.example that have no default, each with a value."""
    names = re.findall(r"^(\w+)=$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: f"/{name.lower()}" for name in names}


def config(variables: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("no docker-compose here (Debian: apt install docker-compose)")
    given = folder / "given.env"
    given.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    return subprocess.run(
        [command, "--file", str(FILE), "--env-file", str(given), "config"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_compose_takes_it_and_names_a_secret_that_is_missing(tmp_path: Path) -> None:
    done = config(example(), tmp_path)
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)["services"]
    assert set(resolved) >= set(SERVICES) - {"deploy"}
    without = config({name: value for name, value in example().items() if name != "POSTGRES_PASSWORD"}, tmp_path)
    assert without.returncode != 0
    assert "give POSTGRES_PASSWORD" in without.stderr


def test_the_harness_reads_variables_as_compose_does(tmp_path: Path) -> None:
    done = config(example(), tmp_path)
    resolved = yaml.safe_load(done.stdout)["services"]
    for name, service in resolved.items():
        for variable, value in (service.get("environment") or {}).items():
            assert substitute(str(SERVICES[name]["environment"][variable]), example()) == str(value), variable
    with pytest.raises(KeyError, match="give POSTGRES_PASSWORD"):
        substitute(SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"], {})


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_contained_restarts_and_tells_its_health(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":[\w${}:.-]*\d+\.\d+", service["image"]), f"{service['image']} has no pinned tag"
    assert ":latest" not in service["image"]
    assert service["restart"] == ("on-failure" if name in ONCE else "unless-stopped")
    assert ("healthcheck" in service) == (name not in ONCE)
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    # One service gives a volume to those that do not run as root.
    assert (service["user"] in ("0:0", "root")) == (name == "s3-volume")
    for port in service.get("ports", ()):
        assert port.startswith("${RFSS_BIND:-127.0.0.1}:"), f"{port} is not this machine's alone"


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_have_no_defaults(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRET.search(variable) and not variable.endswith(("_URL", "_PATH")):
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{variable} of {name} has a value in the file"


def test_services_wait_for_what_they_need() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if needed in ONCE else "service_healthy"
            assert how["condition"] == wanted, f"{name} waits for {needed}"
    assert set(SERVICES["mlflow"]["depends_on"]) == {"databases", "buckets"}
    # The database is reached by the servers alone.
    joined = {name for name, service in SERVICES.items() if "database" in service["networks"]}
    assert joined == {"postgres", "databases", "prefect", "mlflow"}
    assert raw()["networks"]["database"] == {"internal": True}


def test_the_example_lists_every_variable() -> None:
    used = set(re.findall(r"\$\{(\w+)", FILE.read_text(encoding="utf-8")))
    listed = set(re.findall(r"^(?:# )?(\w+)=", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE))
    assert used <= listed
    assert listed - used <= {"RFSS_GID"}
    mandatory = set(re.findall(r"\$\{(\w+):\?", FILE.read_text(encoding="utf-8")))
    assert mandatory == set(example())
