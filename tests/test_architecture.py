"""The rooms of docs/architecture.md, checked on the source's syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("rfss_core", "tasks", "flows")
"""A package imports from packages before it and from itself."""
CHAIN = ("imaging", "store", "embedding", "retrieval", "segmentation", "quality", "datasets", "training", "study")
"""The same inside rfss_core."""
SHARED = ("errors", "settings", "presets", "digest", "events", "code", "figures")
"""Modules of rfss_core that everything may import, and that import only each other."""
LOW = ("weights",)
"""Packages that the whole chain may import, and that import only shared modules."""
HIGH = ("pipeline", "pretraining")
"""What may import the whole chain, and is imported by none of it."""
ORCHESTRATION = {"prefect", "prefect_dask", "dask", "distributed", "mlflow"}
LONGEST = 400

SOURCES = sorted(
    path
    for folder in (*LAYERS, "tests", "benchmarks", "deployments")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Yield the full names that a module imports anywhere: at the top, in functions, for type checking."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    """Return the second part of rfss_core.<room>.<...>; names that rfss_core itself exports have the room ''."""
    parts = name.split(".")
    room = parts[1] if len(parts) > 1 else ""
    known = (*CHAIN, *SHARED, *LOW, *HIGH, "phantom")
    return room if room in known else ""


def objection(module: str, imported: str) -> str | None:
    """Say why a module may not import a name; None where it may."""
    here, there = module.split(".")[0], imported.split(".")[0]
    if here == "rfss_core" and there in ORCHESTRATION:
        return "the library knows no orchestrator"
    if here not in LAYERS or there not in LAYERS:
        return None
    if LAYERS.index(there) > LAYERS.index(here):
        return f"{here} is below {there}"
    if here != "rfss_core" or module == "rfss_core":
        return None
    own, other = room_of(module), room_of(imported)
    if not own:
        return f"{module} has no room in docs/architecture.md"
    if not other or other in SHARED or other == own or own in HIGH:
        return None
    if own in SHARED:
        return "shared modules import only each other"
    if own in CHAIN and other in LOW:
        return None
    if own in CHAIN and other in CHAIN and CHAIN.index(other) < CHAIN.index(own):
        return None
    return f"{own} may not use {other}"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[len(ROOT.parts)] in LAYERS], ids=module_of)
def test_imports_go_one_way(path: Path) -> None:
    module = module_of(path)
    wrong = [
        f"imports {name}: {reason}"
        for name in imported_by(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
        if (reason := objection(module, name))
    ]
    assert not wrong, f"{module}: " + "; ".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rfss_core.quality.metrics", "import mlflow"),
        ("rfss_core.store.images", "def lazily():\n    from dask import array"),
        ("rfss_core.store.images", "from rfss_core.embedding import load_embedder"),
        ("rfss_core.imaging.nifti", "from rfss_core import store"),
        ("rfss_core.imaging.nifti", "from ..store import arrays"),
        ("rfss_core.weights.device", "from rfss_core.imaging import grid"),
        ("rfss_core.digest", "from rfss_core.store.files import write"),
        ("rfss_core.retrieval.index", "import rfss_core.pipeline"),
        ("rfss_core.phantom.cohort", "from rfss_core.imaging import write_label"),
        ("rfss_core.imaging.nifti", "from tasks import run"),
        ("tasks.ingest", "from flows.console import show"),
        ("rfss_core.helpers", "from rfss_core.errors import RfssError"),
    ],
)
def test_the_check_objects_to(module: str, source: str) -> None:
    assert any(objection(module, name) for name in imported_by(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rfss_core.store.images", "from rfss_core.imaging import Volume\nfrom rfss_core.errors import StoreError"),
        ("rfss_core.segmentation.engine", "from rfss_core.weights import device\nfrom .memory import bank"),
        ("rfss_core.pipeline", "from rfss_core.segmentation import load_segmenter"),
        ("tasks.ingest", "import dask\nfrom rfss_core.imaging import discover\nfrom tasks.run import run"),
        ("flows.cli", "from tasks.run import run\nfrom rfss_core import __version__"),
        ("rfss_core.code", "from rfss_core import __version__"),
    ],
)
def test_the_check_lets_pass(module: str, source: str) -> None:
    assert not [reason for name in imported_by(source, module) if (reason := objection(module, name))]


def test_every_room_is_described() -> None:
    described = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "rfss_core").iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.name for path in (ROOT / "rfss_core").glob("*.py") if path.name != "__init__.py"}
    missing = sorted(room for room in rooms if room not in described)
    assert not missing, f"docs/architecture.md does not mention {', '.join(missing)}"


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST
    }
    assert not long, f"more than {LONGEST} lines: {long}"


def test_every_module_says_what_it_is() -> None:
    silent = [
        module_of(path)
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] != "tests"
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, f"no docstring: {', '.join(silent)}"


def test_test_modules_have_names_of_their_own() -> None:
    names = [path.name for path in SOURCES if path.name.startswith("test_")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
