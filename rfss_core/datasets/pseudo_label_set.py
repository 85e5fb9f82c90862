"""A loaded data set: the handle that a training job works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rfss_core.datasets.ignore import ignore_value
from rfss_core.datasets.manifest import DatasetEntry, DatasetManifest, verify_labels
from rfss_core.datasets.origin import Origin
from rfss_core.datasets.pseudo_label_case import PseudoLabelCase
from rfss_core.datasets.registry import RegisteredDataset, find_registry, find_view
from rfss_core.errors import CorruptStoreError
from rfss_core.quality.decision import Decision

if TYPE_CHECKING:
    from rfss_core.datasets.torch_view import PseudoLabelTorchDataset

ACCEPTED: tuple[Decision, ...] = ("accept",)

Verification = Literal["all", "labels", "none"]
"""What :func:`rfss_core.datasets.load` hashes: labels, images and uncertainties; labels; nothing but the manifest."""


class PseudoLabelSet:
    """A pseudo-label data set as it was registered. Picklable; reads files when it is asked.

    Args:
        manifest: the data set's, read from where its files are.
        registered: its place in the registry; None for a folder that was named directly.
        images: folder or glob of the source images, to be read instead of the workspace's copies.
    """

    def __init__(
        self, manifest: DatasetManifest, registered: RegisteredDataset | None = None, images: str | None = None
    ) -> None:
        self.manifest = manifest
        self.registered = registered
        self.origin = Origin(manifest, images)

    def __repr__(self) -> str:
        return f"PseudoLabelSet({str(self)!r}, cases={len(self.manifest.entries)}, digest={self.digest[:12]!r})"

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}/{self.version}"

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.manifest.name

    @property
    def version(self) -> str | None:
        """Version in the registry; None for a folder that was named directly."""
        return None if self.registered is None else self.registered.version

    @property
    def digest(self) -> str:
        """sha256 of the manifest's content: names, classes, and every file's digest."""
        return self.manifest.digest

    @property
    def classes(self) -> dict[int, str]:
        """Label value to name, background excluded, values rising."""
        return dict(sorted(self.manifest.classes.items()))

    @property
    def ignore_value(self) -> int:
        """Label value of ignored voxels: the one above all classes.

        Raises:
            InputError: classes reach up to 255.
        """
        return ignore_value(self.manifest.classes)

    @property
    def folder(self) -> str:
        """Folder or URL that holds manifest and pseudo-labels."""
        return self.manifest.folder

    def cases(self, decisions: Sequence[Decision] = ACCEPTED) -> list[PseudoLabelCase]:
        """Return the cases with one of these decisions, in order of their id; nothing of them is read yet.

        Args:
            decisions: ``accept``, ``review``, ``reject``.

        Raises:
            InputError: there is none.
        """
        return [PseudoLabelCase(entry, self.weight(entry), self.origin) for entry in self.manifest.select(*decisions)]

    def weight(self, entry: DatasetEntry) -> float:
        """Return a case's confidence: its predicted Dice, clipped to 0 to 1.

        A case without a prediction weighs as much as the least confident one that has one; where no case has one, all
        weigh 1.
        """
        value = entry.predicted_dice if entry.predicted_dice is not None else self._least
        return min(1.0, max(0.0, value))

    @cached_property
    def _least(self) -> float:
        return min((e.predicted_dice for e in self.manifest.entries if e.predicted_dice is not None), default=1.0)

    def verify(self, what: Verification = "all") -> None:
        """Hash files again and compare them with what was registered.

        Args:
            what: ``labels``: the pseudo-labels; ``all``: their images (the workspace's or the source's, whichever is
                within reach) and uncertainties too; ``none``: nothing.

        Raises:
            CorruptStoreError: files changed or vanished; they are named.
        """
        if what == "none":
            return
        verify_labels(self.manifest)
        if what == "all":
            damaged = self.origin.damaged(self.manifest.entries)
            if damaged:
                more = f" and {len(damaged) - 20} more" if len(damaged) > 20 else ""
                raise CorruptStoreError(
                    f"data set '{self}' at '{self.folder}' is not what was registered; missing or changed: "
                    f"{', '.join(damaged[:20])}{more}. Restore these files, label again, or load with images= naming "
                    "the images as they were; verify='labels' looks at the pseudo-labels alone"
                )

    def torch_dataset(
        self,
        kind: Literal["slices", "volumes"] = "slices",
        decisions: Sequence[Decision] = ACCEPTED,
        *,
        ignore: float | None = None,
        labelled_only: bool = False,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        cache_mb: int = 256,
    ) -> PseudoLabelTorchDataset:
        """Return a map-style torch ``Dataset`` that reads items when they are asked for.

        Args:
            kind: ``slices``: one item a slice; ``volumes``: one a case.
            decisions: which cases.
            ignore: voxels of at least this uncertainty (above 0 to 1) get the label :attr:`ignore_value`.
            labelled_only: leave out slices whose pseudo-label is all background; label files are read for it now.
            transform: called on each item, for example to bring slices to one size.
            cache_mb: megabytes of decoded label maps that each worker keeps.

        Returns:
            Items as :class:`rfss_core.datasets.torch_view.PseudoLabelTorchDataset` describes them.

        Raises:
            InputError: no case has one of these decisions, or ``ignore`` cannot be used.
        """
        # torch takes seconds to import, and a manifest can be looked at without it.
        from rfss_core.datasets.torch_view import PseudoLabelTorchDataset

        return PseudoLabelTorchDataset(self, kind, decisions, ignore, labelled_only, transform, cache_mb)

    def monai_datalist(
        self, decisions: Sequence[Decision] = ACCEPTED, *, out: str | Path | None = None, ignore: float | None = None
    ) -> list[dict[str, Any]]:
        """Return a MONAI datalist: one dictionary a case with the paths of ``image`` and ``label``.

        Args:
            decisions: which cases.
            out: folder for what lies nowhere as a file yet: images that only the workspace holds, labels with ignored
                voxels, labels of an object store.
            ignore: as for :meth:`torch_dataset`; needs ``out``.

        Returns:
            ``image`` (a path, or the list of a DICOM series' paths), ``label``, ``case``, ``patient``, ``weight``,
            ``predicted_dice``, ``decision``.

        Raises:
            InputError: a file would have to be written and ``out`` is not given, or no case has one of these decisions.
        """
        from rfss_core.datasets.monai_view import datalist

        return datalist(self, decisions, None if out is None else Path(out), ignore)

    def dask_array(
        self,
        what: Literal["image", "label", "uncertainty"] = "label",
        decisions: Sequence[Decision] = ACCEPTED,
        *,
        pad: bool = False,
    ) -> Any:
        """Return a Dask array of all slices, one chunk a case: [N, H, W], or [N, H, W, 3] of colour images.

        Args:
            what: ``image`` (float32 in [0, 1]), ``label`` or ``uncertainty`` (uint8).
            decisions: which cases; their slices follow each other in the order of :meth:`cases`.
            pad: bring slices of different sizes to the largest with zeros at the bottom and the right.

        Raises:
            InputError: slices differ in size and ``pad`` is off, or uncertainty is not stored.
            SettingsError: RFSS's entry points are not installed.
        """
        return find_view("dask_array")(self, what, decisions, pad)

    def log_input(self, context: str = "training") -> bool:
        """Note the data set as an input of the active tracking run, as ``load`` does by itself.

        Returns:
            Whether a run is active.
        """
        registry = find_registry(needed=False)
        return registry is not None and registry.loaded(self, context)
