"""The repository's furniture: versions agree, pins cover what is asked for, no machine's paths in what is committed."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import rfss_core

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LARGEST = 16 * 2**20


def committed() -> list[Path]:
    """Return the files that git tracks, or all files but ignored folders where there is no git (a source archive)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    skipped = {".venv", ".git", "demo", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


FILES = committed()


def texts() -> list[tuple[str, str]]:
    found = []
    for path in FILES:
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found.append((str(path.relative_to(ROOT)), data.decode("utf-8", errors="replace")))
    return found


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(each.name) for each in requirements]
    assert len(names) == len(set(names)), "a package is pinned twice"
    for each in requirements:
        assert re.fullmatch(r"==[^*,]+", str(each.specifier)), f"{each} is not one exact version"
    return {canonicalize_name(each.name): Version(str(each.specifier)[2:]) for each in requirements}


def test_versions_agree() -> None:
    assert PROJECT["version"] == rfss_core.__version__
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# faiss-gpu shares its module with faiss-cpu: pinning it would invite both.
@pytest.mark.parametrize("group", ["dependencies", "dev", "sam2", "s3"])
def test_constraints_cover_and_satisfy(group: str) -> None:
    asked = PROJECT["dependencies"] if group == "dependencies" else PROJECT["optional-dependencies"][group]
    pinned = pins()
    for line in asked:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{line} ({group}) has no pin in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{line} forbids its own pin {pinned[name]}"


def test_no_cuda_package_is_pinned() -> None:
    assert not [name for name in pins() if re.search(r"cuda|nvidia|faiss-gpu|triton", name)]


def test_every_pin_with_a_reason_has_one() -> None:
    told = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("# --- Pins without a story")[0]
    lines = told.splitlines()
    pinned = [number for number, line in enumerate(lines) if "==" in line and not line.startswith("#")]
    assert len(pinned) > 20
    for number in pinned:
        assert lines[number - 1].startswith("# "), f"{lines[number]} stands under no reason"


def test_the_makefile_installs_the_pinned_sam2() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"sam2=={pins()['sam2']}" in makefile
    assert f"sam2=={pins()['sam2']}" in PROJECT["optional-dependencies"]["sam2"]


def test_nothing_committed_names_a_path_of_one_machine() -> None:
    # Spelt in pieces, so that this file does not find itself.
    places = ("/" + "work/", "/" + "root/", "/" + "opt/pypi", "/" + "opt/wheels", "file://" + "/opt")
    home = re.compile(r"/(?:home|Users)/(?!\.\.\.|you\b|user\b)\w+/")
    wrong = [
        f"{name}: {found}"
        for name, text in texts()
        for found in [*(place for place in places if place in text), *home.findall(text)]
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_committed_names_a_package_index() -> None:
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "download." + "pytorch.org", "conda." + "anaconda.org")
    wrong = [f"{name}: {host}" for name, text in texts() for host in hosts if host in text]
    assert not wrong, "\n".join(wrong)


def test_no_images_and_no_huge_files_are_committed() -> None:
    names = [str(path.relative_to(ROOT)) for path in FILES]
    assert not [name for name in names if name.endswith((".nii", ".nii.gz", ".dcm", ".npz"))]
    assert not [str(path) for path in FILES if path.stat().st_size > LARGEST]


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_scripts_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    wanted = {"demo", "test", "test-invariants", "test-slow", "soak", "lint", "types", "clean", "help"}
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert wanted <= set(re.findall(r"make ([a-z-]+)", listed))


def test_pre_commit_needs_no_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {"ruff", "ruff-format", "mypy", "large-files", "no-images"} <= {hook["id"] for hook in hooks}
    assert all(hook["language"] in {"system", "fail"} for hook in hooks)


@pytest.mark.parametrize(
    "page", [*sorted(path.name for path in (ROOT / "docs").glob("*.md")), "../README.md", "../CONTRIBUTING.md"]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / "docs" / page
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links to {target}, which does not exist"
