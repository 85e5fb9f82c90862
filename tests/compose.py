"""deployments/compose.yaml as local processes: its commands, environment and health checks, without containers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "deployments" / "compose.yaml"
HOST = "127.0.0.1"
PATIENCE_S = 600.0
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})")


def raw() -> dict[str, Any]:
    """Return the file as it is written."""
    parsed: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return parsed


def substitute(text: str, given: Mapping[str, str]) -> str:
    """Put variables in as compose does.

    Raises:
        KeyError: a mandatory one is missing.
    """

    def value(match: re.Match[str]) -> str:
        dollar, name, kind, rest = match.groups()
        if dollar:
            return "$"
        if given.get(name):
            return given[name]
        if kind == "?":
            raise KeyError(f"{name}: {rest}")
        return rest or ""

    return _VARIABLE.sub(value, text)


def image_environment() -> dict[str, str]:
    """Return what the Dockerfile's stage ``runtime`` sets."""
    text = (ROOT / "deployments" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    stage = text.split("AS runtime")[1].split("FROM")[0].replace("\\\n", " ")
    return dict(pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", stage, re.MULTILINE) for pair in line.split())


class Stack:
    """Services of the file as processes of this machine.

    Host names become the loopback address, ports free ones, and paths inside containers the folders that are mounted
    there. All else is taken as it is written.

    Args:
        folder: for volumes, temporary files and logs.
        given: variables, as from ``--env-file``.
        ports: port inside the containers -> port here.
    """

    def __init__(self, folder: Path, given: Mapping[str, str], ports: Mapping[int, int]) -> None:
        self.folder = folder
        self.ports = dict(ports)
        self.services: dict[str, Any] = _walk(raw()["services"], lambda text: substitute(text, given))
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def url(self, port: int) -> str:
        return f"http://{HOST}:{self.ports[port]}"

    def start(self, name: str) -> None:
        """Start a service that goes on, and wait until its own health check says so."""
        with self._log(name).open("wb") as said:
            process = subprocess.Popen(
                self._command(name), env=self._environment(name), cwd=self._home(name),
                stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        self._processes.append((name, process))
        deadline = time.monotonic() + PATIENCE_S
        while not self.healthy(name):
            assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.said(name)}"
            assert time.monotonic() < deadline, f"{name} is not healthy:\n{self.said(name)}"
            time.sleep(1)

    def once(self, name: str) -> None:
        """Run a service that does one thing."""
        done = subprocess.run(
            self._command(name), env=self._environment(name), cwd=self._home(name), capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        self._log(name).write_text(done.stdout + done.stderr, encoding="utf-8")
        assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}"

    def healthy(self, name: str) -> bool:
        """Run the service's health check."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            self._here(name, command), env=self._environment(name), capture_output=True, timeout=60, check=False
        )
        return done.returncode == 0

    def said(self, name: str) -> str:
        return self._log(name).read_text(encoding="utf-8", errors="replace")[-6000:]

    def stop(self) -> None:
        """End all in reverse order: SIGTERM as `docker compose down` sends, then by force."""
        for _, process in reversed(self._processes):
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            process.terminate()
            _, alive = psutil.wait_procs(family, timeout=15)
            for one in alive:
                one.kill()
            process.wait()
        self._processes.clear()

    def translated(self, name: str, text: str) -> str:
        """Return a text of the file with hosts, ports and paths of this machine."""
        hosts = "|".join(re.escape(service) for service in self.services)
        text = re.sub(rf"(?<![\w-])(?:{hosts})(?=:\d)", HOST, text).replace("0.0.0.0", HOST)
        for inside, here in self.ports.items():
            text = re.sub(rf"(?<![\d.]){inside}(?!\d)", f"\0{here}\0", text)
        text = text.replace("\0", "")
        places = self._places(name)
        pattern = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))
        return re.sub(rf"(?<![\w./])({pattern})(?![\w-])", lambda match: places[match[0]], text)

    def _places(self, name: str) -> dict[str, str]:
        home = self._home(name)
        places = {"/tmp": str(home / "tmp"), "/home/rfss": str(home), "/opt/rfss/deployments": str(FILE.parent)}
        places |= {"/models": str(home / "models")}
        for volume in self.services[name].get("volumes", ()):
            source, target = volume.split(":")[:2]
            if source.startswith("."):
                places[target] = str((FILE.parent / source).resolve())
            elif source.startswith("/"):
                places[target] = source
            else:
                places[target] = str(self.folder / "volumes" / source)
        return places

    def _command(self, name: str) -> list[str]:
        return self._here(name, self.services[name]["command"])

    def _here(self, name: str, command: list[str]) -> list[str]:
        return [self.translated(name, str(part)) for part in command]

    def _environment(self, name: str) -> dict[str, str]:
        given = {**image_environment(), **self.services[name].get("environment", {})}
        found = {variable: self.translated(name, str(value)) for variable, value in given.items()}
        found |= {variable: HOST for variable, value in found.items() if value in self.services and "HOST" in variable}
        postgres = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        path = [str(Path(sys.executable).parent), *map(str, postgres[-1:]), os.environ["PATH"]]
        kept = {variable: os.environ[variable] for variable in ("LANG", "LC_ALL") if variable in os.environ}
        return {
            **kept,
            **found,
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def _home(self, name: str) -> Path:
        home = self.folder / "services" / name
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        return home

    def _log(self, name: str) -> Path:
        return self._home(name) / "log.txt"


def _walk(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _walk(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_walk(each, change) for each in value]
    return change(value) if isinstance(value, str) else value
