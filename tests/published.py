"""Published data sets for tests, made of the real parts but for the models: the masks are given."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cohorts import save
from PIL import Image
from scipy.ndimage import gaussian_filter

from rfss_core.datasets import DatasetEntry, DatasetManifest, write_dataset
from rfss_core.datasets.card import CARD, UNKNOWN_STUDENT, student_section
from rfss_core.datasets.origin import LATEST, ORIGIN, PUBLISH_STAGE, SEGMENT_STAGE, UNCERTAINTY
from rfss_core.digest import digest_bytes
from rfss_core.imaging import discover, estimate_window, read_image, source_digest
from rfss_core.settings import ImagingSettings
from rfss_core.store import Workspace
from rfss_core.store.files import Files
from tasks.dataset_run import ARTIFACTS, DatasetRecord
from tasks.label_files import encoded
from tasks.mlflow_data import SupportSource

CLASSES = {1: "shell", 3: "core"}
DECISIONS = ("accept", "accept", "review", "reject")
OBLIQUE = np.array([[-1.5, 0.2, 0, 20], [0.2, 1.5, 0.1, -30], [0, 0.1, 6, 5], [0, 0, 0, 1]], dtype=float)
FLIPPED = np.array([[0, 0, 2.0, 1], [0, -1.0, 0, 2], [1.0, 0, 0, 3], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Published:
    """A data set with what went into it."""

    workspace: Path
    images: Path
    manifest: DatasetManifest
    pixels: dict[str, np.ndarray]
    """Case id -> [Z, H, W] as the source holds it, in canonical orientation."""
    labels: dict[str, np.ndarray]
    uncertainties: dict[str, np.ndarray]

    @property
    def folder(self) -> Path:
        return Path(self.manifest.folder)


def publish_dataset(
    root: Path,
    name: str = "hearts",
    decisions: tuple[str, ...] = DECISIONS,
    classes: dict[int, str] | None = None,
    seed: int = 0,
    suffix: str = ".nii.gz",
    learnable: bool = False,
) -> Published:
    """Write images, ingest them, and publish given masks with given decisions; learnable masks follow the images."""
    classes = classes or CLASSES
    images, url = root / "images", root / "work"
    rng = np.random.default_rng(seed)
    for number in range(len(decisions)):
        path = images / f"ward {number // 2}" / f"sub-{number:02d}{suffix}"
        shape = (20 + 2 * (number % 2), 24, 4 + number)
        if suffix == ".png":
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*shape[:2], 3), np.uint8)).save(path)
        else:
            picture = smooth(rng, shape) if learnable else _picture(rng, shape)
            save(path, picture, OBLIQUE if number % 2 == 0 else FLIPPED)
    settings = ImagingSettings()
    workspace = Workspace.open(url)
    store = workspace.stage(SEGMENT_STAGE, "masks")
    published = workspace.stage(PUBLISH_STAGE, "first")
    pixels, labels, uncertainties, entries = {}, {}, {}, []
    for number, source in enumerate(discover(str(images), None, settings).cases):
        volume = read_image(source, settings)
        digest = source_digest(source)
        workspace.write_case(source, volume, estimate_window(volume.pixels, settings), None, digest)
        case, chunk = source.case_id, f"chunk{number}"
        pixels[case] = volume.pixels
        labels[case] = rng.choice([0, *classes], volume.pixels.shape[:3]).astype(np.uint8)
        if learnable:
            labels[case] = by_brightness(volume.pixels, tuple(classes))
        elif len(labels[case]) > 1:
            labels[case][0] = 0
        uncertainties[case] = rng.integers(0, 256, labels[case].shape).astype(np.uint8)
        arrays = {f"{case}/labels": labels[case], f"{case}/{UNCERTAINTY}": uncertainties[case]}
        store.complete(chunk, "x", store.write_chunk(chunk, arrays))
        path, data = f"{source.name}{volume.grid.suffix}", encoded(labels[case], volume.grid)
        workspace.files.write_bytes(f"datasets/first/{path}", data)
        table = pd.DataFrame([{"case": case, "path": path, "sha256": digest_bytes(data), "slices": len(labels[case])}])
        published.complete(chunk, "x", published.write_chunk(chunk, {}, {"files": table}))
        predicted = None if decisions[number] == "review" else round(0.95 - 0.1 * number, 2)
        lower = None if predicted is None else predicted - 0.1
        entries.append(
            DatasetEntry(
                case, source.name, source.patient, path, digest_bytes(data), digest, decisions[number],  # type: ignore[arg-type]
                predicted, lower, len(labels[case]),
            )
        )  # fmt: skip
    meta: dict[str, Any] = {"fingerprint": f"f{seed}", "masks": "masks", "settings": {"held_out": 0.7, "seed": 0}}
    meta["settings"]["imaging"] = settings.model_dump(mode="json")
    workspace.files.write_bytes(f"datasets/first/{ORIGIN}", json.dumps({"images": str(images)}).encode())
    manifest = write_dataset(url / "datasets" / "first", name, entries, classes, meta)
    workspace.files.write_bytes(LATEST, b"datasets/first\n")
    return Published(url, images, manifest, pixels, labels, uncertainties)


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return an image of smooth blobs, int16, whose values 0 to 999 are equally frequent."""
    blurred = gaussian_filter(rng.normal(size=shape), (3, 3, 0))
    return (blurred.ravel().argsort().argsort().reshape(shape) * 1000 // blurred.size).astype(np.int16)


def by_brightness(pixels: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Return the label map that such an image shows: its brighter half, shared among the classes."""
    steps = np.linspace(500, 1000, len(classes) + 1)[:-1]
    return np.array([0, *classes], np.uint8)[np.digitize(pixels, steps)]


def _picture(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 1000, shape).astype(np.int16)


def record_of(published: Published, **changes: Any) -> DatasetRecord:
    """Return what a run would register of a data set."""
    manifest, files = published.manifest, Files(published.workspace)
    card = f"# {manifest.name}\n\nA card.\n\n{student_section(UNKNOWN_STUDENT)}"
    files.write_bytes(f"datasets/first/{CARD}", card.encode())
    record = DatasetRecord(
        name=manifest.name,
        digest=manifest.digest,
        status="accepted",
        fingerprint=str(manifest.meta["fingerprint"]),
        address=manifest.folder,
        params={"k": 8, "support_slices": 18},
        metrics={"held_out_dice.mean": 0.8},
        artifacts={ARTIFACTS: [f"datasets/first/{name}" for name in ("manifest.json", "manifest.parquet", CARD)]},
        profile={"cases": len(manifest.entries), "dice": 0.8},
        tags={"held_out_dice": "0.8", "held_out_digest": "those"},
        support=SupportSource(str(published.workspace), "none"),
        support_digest="5" * 64,
        description=card,
    )
    return replace(record, **changes)
