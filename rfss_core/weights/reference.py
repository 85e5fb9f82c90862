"""From the name of a model to a folder with its configuration and weights, and their digest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rfss_core.digest import digest_file, digest_json
from rfss_core.errors import ModelError, ModelNotFoundError

EMBEDDED = "embedded:"
EMBEDDED_ROOT = Path(__file__).resolve().parent
INITIALISATION_SEED = 0
"""Seed of the weights of an embedded model that ships without any (see :class:`ModelReference`)."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_PREPROCESSOR = "preprocessor_config.json"
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_EMBEDDED_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModelReference:
    """A model on this machine's disk, verified by digest.

    Attributes:
        name: the reference as the user gave it.
        folder: where ``config.json`` and the safetensors files are.
        files: sha256 of every file that the model is built from, by file name.
        digest: sha256 over ``files`` (and over the seed of an untrained model); part of the run's fingerprint.
        trained: False for an embedded model without weights, which is built from its configuration with the fixed
            seed ``INITIALISATION_SEED``, and for one whose ``config.json`` says ``{"rfss": {"trained": false}}``.
        revision: hub commit that ``folder`` is a snapshot of; None for local and embedded models.
    """

    name: str
    folder: Path
    files: dict[str, str]
    digest: str
    trained: bool
    revision: str | None = None

    def config(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        return _read_config(self.folder, self.name)

    def input_side(self) -> int | None:
        """Return the side of the crop that ``preprocessor_config.json`` asks for, in pixels, if it says.

        The hub's DINOv2 models carry position codes for 518 pixels but are published for use at 224.
        """
        path = self.folder / _PREPROCESSOR
        if not path.is_file():
            return None
        try:
            crop = json.loads(path.read_text(encoding="utf-8")).get("crop_size")
            return int(crop["height"] if isinstance(crop, dict) else crop) if crop else None
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"model '{self.name}': {path} is not usable ({error}); download it again") from error


def resolve_model(reference: str, revision: str | None = None) -> ModelReference:
    """Find a model and take the digest of its files.

    Args:
        reference: ``embedded:<folder of rfss_core/weights>``, a local folder in the hub's format, or a hub id
            ``owner/name``. A local folder wins over a hub id of the same spelling.
        revision: hub commit, tag or branch to pin; None takes the hub's main branch. Local and embedded models have
            none.

    Returns:
        The verified reference.

    Raises:
        ModelNotFoundError: nothing at the name, or the hub cannot be reached and holds no cached copy.
        ModelError: a folder that holds pickled weights only, a broken ``config.json``, or missing shards.
    """
    if reference.startswith(EMBEDDED):
        return _verified(reference, _embedded_folder(reference), None, may_be_untrained=True)
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return _verified(reference, folder.resolve(), None, may_be_untrained=False)
    if folder.is_file():
        raise ModelError(
            f"model '{reference}' is a file; give the folder that holds {CONFIG} and {WEIGHTS} "
            "(a pickled checkpoint has to be converted to safetensors first)"
        )
    if _HUB_ID.fullmatch(reference) is None or reference.count("/") != 1:
        raise ModelNotFoundError(
            f"no model at '{reference}'; give an existing folder, a hub id such as "
            "facebook/dinov2-with-registers-small, or one of: " + ", ".join(_embedded_names())
        )
    folder, commit = _download(reference, revision)
    return _verified(reference, folder, commit, may_be_untrained=False)


def _embedded_names() -> list[str]:
    return sorted(f"{EMBEDDED}{entry.parent.name}" for entry in EMBEDDED_ROOT.glob(f"*/{CONFIG}"))


def _embedded_folder(reference: str) -> Path:
    name = reference.removeprefix(EMBEDDED)
    folder = EMBEDDED_ROOT / name
    if _EMBEDDED_NAME.fullmatch(name) is None or not folder.is_dir():
        known = ", ".join(_embedded_names()) or "none in this installation"
        raise ModelNotFoundError(f"no embedded model '{name}'; embedded models: {known}")
    return folder


def _download(reference: str, revision: str | None) -> tuple[Path, str]:
    # Imported here: the embedded models must load on a machine without the hub's client configured.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"'{reference}'" + (f" at revision '{revision}'" if revision else "")
    patterns = [CONFIG, _PREPROCESSOR, "model*.safetensors", WEIGHTS_INDEX]
    try:
        folder = Path(snapshot_download(reference, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ModelNotFoundError(f"model {wanted} has a licence to accept; accept it on the hub and log in") from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"model {wanted}: the hub has no such revision; give one of its commits") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(f"the hub has no model {wanted}; check the id, or give a local folder") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelNotFoundError(
            f"model {wanted} is not cached and the hub cannot be reached; download it where there is a network "
            "(hf download), then give its folder, or use preset 'tiny', which needs no network"
        ) from error
    return folder, folder.name


def _verified(reference: str, folder: Path, revision: str | None, *, may_be_untrained: bool) -> ModelReference:
    config = _read_config(folder, reference)
    names = _weight_files(folder, reference)
    if not names:
        if not may_be_untrained:
            raise _without_weights(folder, reference)
        # Only the architecture matters: transformers' version stamp must not change the digest of random weights.
        config.pop("transformers_version", None)
        digest = digest_json({"config": config, "seed": INITIALISATION_SEED})
        return ModelReference(reference, folder, {CONFIG: digest_file(folder / CONFIG)}, digest, trained=False)
    extra = [name for name in (CONFIG, _PREPROCESSOR) if (folder / name).is_file()]
    files = {name: _cached_digest(folder / name) for name in sorted([*names, *extra])}
    # Exported random weights say so themselves.
    mark = config.get("rfss")
    trained = not (isinstance(mark, dict) and mark.get("trained") is False)
    return ModelReference(reference, folder, files, digest_json(files), trained=trained, revision=revision)


def _read_config(folder: Path, reference: str) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ModelNotFoundError(
            f"model '{reference}': {folder} holds no {CONFIG}; save the model with save_pretrained, or fix the path"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"model '{reference}': {path} is not valid JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise ModelError(f"model '{reference}': {path} must hold a mapping; download it again")
    return config


def _weight_files(folder: Path, reference: str) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        return []
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model '{reference}': {index} is not a safetensors index; download it again") from error
    for shard in sorted(shards):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ModelError(f"model '{reference}': shard '{shard}' is missing in {folder}; download it again")
    return [WEIGHTS_INDEX, *sorted(shards)]


def _without_weights(folder: Path, reference: str) -> ModelError:
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        return ModelError(
            f"model '{reference}': {pickled[0]} is pickled, and loading a pickle runs the code in it; only "
            f"safetensors are read: convert it (save_pretrained(..., safe_serialization=True)) to {WEIGHTS}"
        )
    return ModelNotFoundError(f"model '{reference}': {folder} holds no {WEIGHTS}; download it again")


def _cached_digest(path: Path) -> str:
    # A cache on the resolved file's identity: large checkpoints take seconds to hash, and a process asks often.
    status = path.stat()
    return _digest_once(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_once(path: Path, _size: int, _modified_ns: int) -> str:
    return digest_file(path)
