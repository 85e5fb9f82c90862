"""Plan of a study: its grid written out, row by row, with what each row depends on."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rfss_core.code import code_version
from rfss_core.digest import digest_json
from rfss_core.errors import SettingsError
from rfss_core.presets import PRESETS
from rfss_core.quality import METRICS_LIBRARY
from rfss_core.settings import SUPERVISED, LabelSettings, load_settings
from rfss_core.study.settings import Count, MethodSettings, StudySettings
from rfss_core.weights import ModelReference, resolve_model


@dataclass(frozen=True)
class PlannedRow:
    """One evaluation: a method with one seed."""

    label: str
    """What the table calls the method."""
    settings: LabelSettings
    test_patients: int
    support_patients: int | None
    """None: all that are not tested."""
    extra: dict[str, Any]
    """Settings that ``rfss evaluate`` takes from a ``--config`` file alone."""

    @property
    def seed(self) -> int:
        """Seed of splits, draws and training."""
        return self.settings.seed

    @property
    def retrieves(self) -> bool:
        """Whether what is retrieved matters to the method."""
        return self.settings.segmentation.segmenter not in {*SUPERVISED, "sam2-points"}

    @property
    def code(self) -> str:
        """Version of the code that the row's label maps depend on."""
        trained = self.settings.segmentation.segmenter in SUPERVISED
        return code_version("imaging", "training") if trained else code_version()

    def inputs_fingerprint(self, data: str) -> str:
        """Return the digest of all that the row's label maps depend on besides code.

        Args:
            data: digest of the labelled images and label maps, and of the support slices that were drawn.

        Raises:
            ModelNotFoundError: the row's models are not on this machine and cannot be fetched.
        """
        settings, preset = self.settings, PRESETS[self.settings.preset]
        embedding, segmentation = settings.embedding, settings.segmentation
        models: list[ModelReference] = []
        if segmentation.segmenter not in SUPERVISED:
            name, revision = embedding.model or preset.embedding_model, embedding.revision or preset.embedding_revision
            models.append(resolve_model(name, revision))
            if segmentation.segmenter != "label-fusion":
                name = segmentation.model or preset.segmentation_model
                models.append(resolve_model(name, segmentation.revision or preset.segmentation_revision))
        return digest_json(
            {
                "data": data,
                "settings": settings.scientific(),
                "test_patients": self.test_patients,
                "support_patients": self.support_patients,
                "models": [model.digest for model in models],
            }
        )

    def fingerprint(self, data: str) -> str:
        """Return the digest of all that the row's figures depend on: inputs, code, metrics.

        Args:
            data: see :meth:`inputs_fingerprint`.

        Raises:
            ModelNotFoundError: the row's models are not on this machine and cannot be fetched.
        """
        measured = [METRICS_LIBRARY, self.settings.quality.surface_tolerance, code_version("quality")]
        return digest_json([self.inputs_fingerprint(data), self.code, measured])

    def command(self, config: Path | None) -> str:
        """Return the command that gives the same figures; ``config`` is a file that holds :attr:`extra`."""
        settings, points = self.settings, self.settings.segmentation.points
        options: dict[str, object] = {
            "--images": settings.images,
            "--labels": settings.labels,
            "--preset": settings.preset,
            "--segmenter": settings.segmentation.segmenter,
            "--points": ",".join(str(count) for count in points) if points else None,
            "--strategy": settings.retrieval.strategy,
            "--k": settings.k,
            "--support-slices": settings.retrieval.support_slices or 0,
            "--support-patients": self.support_patients,
            "--test-patients": self.test_patients,
            "--seed": settings.seed,
            "--config": config if self.extra else None,
            "--out": "FILE.json",
        }
        parts = [part for name, value in options.items() if value is not None for part in (name, str(value))]
        return shlex.join(["rfss", "evaluate", *parts])

    def config(self) -> str:
        """Return :attr:`extra` as YAML."""
        return yaml.safe_dump(self.extra, sort_keys=True)


@dataclass(frozen=True)
class Plan:
    """A study with its rows, one seed after another."""

    study: StudySettings
    rows: tuple[PlannedRow, ...]

    @property
    def labels(self) -> list[str]:
        """The table's methods, in order."""
        return list(dict.fromkeys(row.label for row in self.rows))


def plan_study(study: StudySettings, workspace: str) -> Plan:
    """Write a study's grid out.

    Args:
        study: the study; ``$NAME`` in its folders is replaced.
        workspace: where all rows keep images, embeddings, memories and masks, which they share.

    Returns:
        The plan.

    Raises:
        SettingsError: no images or labels were named, a row's settings are out of bounds, two rows have one name, a
            claim names an unknown row, or k is above the number of support slices.
    """
    for name in ("images", "labels"):
        if not getattr(study, name):
            raise SettingsError(f"study '{study.name}' names no {name}; give --data or --{name}, or write it there")
    rows = [row for seed in study.seeds for row in _rows(study, seed, workspace)]
    plan = Plan(study, tuple(rows))
    known = plan.labels
    if len(rows) > len(known) * len(study.seeds):
        raise SettingsError(f"study '{study.name}': two rows have the same name; rename one of the methods")
    for claim in study.claims:
        for label in (claim.above, claim.below):
            if label not in known:
                raise SettingsError(
                    f"study '{study.name}': claim '{claim.text}' is about row '{label}', which is none of: "
                    + "; ".join(known)
                )
    return plan


def _rows(study: StudySettings, seed: int, workspace: str) -> Iterator[PlannedRow]:
    for method in study.methods:
        slices = method.support_slices or [study.support_slices]
        patients = method.support_patients or [study.support_patients]
        # Where nothing is retrieved, a longer list of k would measure the same again.
        free = method.segmenter not in {*SUPERVISED, "sam2-points"}
        grid = itertools.product(
            method.strategy if free else ["dino"], method.k if free else method.k[:1], slices, patients
        )
        for strategy, k, n_slices, n_patients in grid:
            label = _label(method, strategy if free else None, k if free else None, n_slices, n_patients)
            limit = None if n_slices == "all" else n_slices
            if free and limit is not None and k > limit:
                raise SettingsError(
                    f"study '{study.name}', row '{label}': k is {k}, but the support set has only {limit} slices; "
                    "lower k, or let more slices serve"
                )
            extra = _merged(study.settings, method.settings)
            try:
                settings = load_settings(
                    _merged(
                        extra,
                        {
                            "images": os.path.expandvars(study.images),
                            "labels": os.path.expandvars(study.labels),
                            "workspace": workspace,
                            "preset": study.preset,
                            # A network and points use no neighbours; one is enough for the vote beside them.
                            "k": k if free else min(k, limit or k),
                            "seed": seed,
                            "retrieval": {"strategy": strategy, "support_slices": limit},
                            "segmentation": {"segmenter": method.segmenter, "points": method.points},
                            # Slice by slice takes longer than most methods, and nothing here reads it.
                            "quality": {"slice_metrics": False},
                        },
                    )
                )
            except SettingsError as error:
                raise SettingsError(f"study '{study.name}', row '{label}': {error}") from error
            yield PlannedRow(
                label, settings, study.test_patients, None if n_patients == "all" else int(n_patients), extra
            )


def _label(method: MethodSettings, strategy: str | None, k: int | None, slices: Count, patients: Count) -> str:
    parts = [method.name]
    if strategy is not None and len(method.strategy) > 1:
        parts.append(strategy)
    if k is not None and len(method.k) > 1:
        parts.append(f"k = {k}")
    if method.support_slices is not None and len(method.support_slices) > 1:
        parts.append(f"{slices} slices")
    if method.support_patients is not None and len(method.support_patients) > 1:
        parts.append(f"{patients} patients")
    return ", ".join(parts)


def _merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping with both, inner mappings too; ``more`` wins."""
    found = dict(base)
    for name, value in more.items():
        inner = found.get(name)
        found[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return found
