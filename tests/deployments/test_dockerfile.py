"""deployments/docker/Dockerfile: linted, and it copies and installs what is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import rfss_core

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deployments" / "docker" / "Dockerfile"
TEXT = FILE.read_text(encoding="utf-8").replace("\\\n", " ")


def test_hadolint_finds_nothing() -> None:
    command = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("no hadolint here; `make setup` installs it")
    done = subprocess.run([command, str(FILE)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_nothing() -> None:
    command = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("no shellcheck here; `make setup` installs it")
    scripts = [path for path in (ROOT / "deployments").rglob("*") if path.suffix in (".sh", ".sbatch")]
    assert scripts
    done = subprocess.run([command, *map(str, scripts)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_what_is_copied_exists_and_is_let_in() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source for line in re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.MULTILINE) for source in line.split()[:-1]
    ]
    assert {"constraints.txt", "rfss_core", "tasks", "flows", "deployments/prefect.yaml"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in let_in, f".dockerignore leaves {source} out"


def test_packages_are_pinned_and_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    for line in re.findall(r"pip install (.*)$", TEXT, re.MULTILINE):
        assert "--constraint constraints.txt" in line
        for word in line.split():
            if word.startswith("'.["):
                extras = word.strip("'.[]").split(",")
                assert set(extras) <= set(project["optional-dependencies"])
            # constraints.txt leaves what needs CUDA to the extra `gpu`.
            elif word.startswith("'faiss-gpu"):
                assert [word.strip("'")] == project["optional-dependencies"]["gpu"]
            elif re.fullmatch(r"[a-z][a-z0-9-]+", word):
                assert word in pins, f"{word} has no pin in constraints.txt"


def test_images_run_as_somebody_without_rights_and_carry_the_release() -> None:
    stages = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]
    runtime = next(stage for stage in stages if " AS runtime" in stage.splitlines()[0])
    assert re.search(r"^USER 1000:1000$", runtime, re.MULTILINE)
    assert "ENTRYPOINT" in runtime
    for name in ("server", "rfss", "rfss-cuda"):
        [stage] = [stage for stage in stages if stage.splitlines()[0].endswith(f" AS {name}")]
        assert stage.startswith("runtime ")
        assert "USER" not in stage
    for name in ("compose.yaml", "docker/Dockerfile", "pools/docker.json", "pools/kubernetes.json", ".env.example",
                 "kubernetes/kustomization.yaml", "kubernetes/deploy.yaml"):  # fmt: skip
        text = (ROOT / "deployments" / name).read_text(encoding="utf-8")
        assert rfss_core.__version__ in text, f"{name} names another release"


@pytest.mark.slow
def test_an_installation_without_the_checkout_has_all_files(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for name in ("rfss_core", "tasks", "flows"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", tmp_path]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True, timeout=300)
    [wheel] = tmp_path.glob("rfss-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(source))
        for name in ("rfss_core", "tasks", "flows")
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    assert wanted <= packed
