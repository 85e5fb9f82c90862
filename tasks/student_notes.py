"""What students tell of a data set: its card, and what its pseudo-labels brought."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rfss_core.datasets.card import CARD, with_student
from rfss_core.datasets.pseudo_label_set import PseudoLabelSet
from rfss_core.errors import InputError, StoreError
from rfss_core.store.files import Files
from tasks.dataset_run import ARTIFACTS
from tasks.registry import DataRegistry, DatasetVersion
from tasks.students import GAIN, LINK, PREFIX, registered_version
from tasks.tracking import answering


def note_result(
    registry: DataRegistry, version: DatasetVersion, text: str, *, title: str | None = None, gain: float | None = None
) -> None:
    """Write into a data set's card whether it helped a student.

    The card is in the run's artifacts, in the version's description, and beside the manifest where that can be reached.
    It is no part of the data set's digest.

    Args:
        registry: the data registry.
        version: of the data set.
        text: Markdown, for example a table of Dice with and without the pseudo-labels.
        title: what the text is about: replaces what the card said under it. Default: replaces all that it said.
        gain: mean Dice with the pseudo-labels minus that without; ``rfss datasets`` shows the one noted last.

    Raises:
        RegistryError: the store does not answer.
    """
    with answering(registry.uri):
        path = registry.client.download_artifacts(version.run_id, f"{ARTIFACTS}/{CARD}")
        card = with_student(Path(path).read_text(encoding="utf-8"), text, title)
        registry.client.log_text(version.run_id, card, f"{ARTIFACTS}/{CARD}")
    registry.describe(version, card)
    if gain is not None:
        registry.tag(version, {GAIN: f"{gain:+.6f}"})
    with suppress(StoreError, InputError):
        files = Files(version.address)
        if files.exists(CARD):
            files.write_bytes(CARD, card.encode())


def note_gain(registry: DataRegistry, student: str, datasets: Sequence[PseudoLabelSet], gain: float | None) -> None:
    """Tag a student and its links with what the pseudo-labels brought.

    Args:
        registry: the data registry.
        student: ``name/version``.
        datasets: that it was trained on.
        gain: mean Dice minus that of the same network on the experts' labels alone; None: not known.
    """
    if gain is None:
        return
    name, _, number = student.rpartition("/")
    with answering(registry.uri):
        registry.client.set_model_version_tag(PREFIX + name, number, GAIN, f"{gain:+.6f}")
    for dataset in datasets:
        version = registered_version(registry, dataset)
        if version is not None:
            key = f"{LINK}{name}.{number}"
            said = json.loads(version.tags.get(key, "{}")) | {"gain": round(gain, 6)}
            registry.tag(version, {key: json.dumps(said)})


def gain_of(version: DatasetVersion) -> float | None:
    """Return the Dice that a student won by a data set's pseudo-labels, as it was noted last; None: not compared."""
    value = version.tags.get(GAIN)
    return None if value is None else float(value)
