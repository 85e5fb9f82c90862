"""Discovery: which cases a folder of images and a folder of labels hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from rfss_core.errors import InputError, InputNotFoundError, UnreadableImageError
from rfss_core.imaging.case import UNKNOWN, CaseSource, Discovery, Kind, Quarantined
from rfss_core.imaging.dicom import DicomIdentity, identify, is_dicom
from rfss_core.imaging.names import (
    EXTENSIONS,
    case_id,
    channel_base,
    find_patient,
    image_bases,
    label_base,
    pairing_key,
    stem,
)
from rfss_core.imaging.pseudonyms import Pseudonyms
from rfss_core.imaging.search import Found, search
from rfss_core.settings import ImagingSettings

_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class _Image:
    name: str
    kind: Kind
    files: tuple[Path, ...]
    modality: str = UNKNOWN
    body_part: str = UNKNOWN
    patient: str = ""


@dataclass(frozen=True)
class _Label:
    name: str
    """Relative path with extension."""
    path: Path | None
    """None for a label that was refused: its image must not pass for unlabelled."""
    message: str = ""


def discover(
    images: str, labels: str | None, settings: ImagingSettings, pseudonyms: Pseudonyms | None = None
) -> Discovery:
    """Find the cases under ``images`` and pair them with the label maps under ``labels``.

    Names pair by relative path without extension; a label may carry ``_gt``, ``_seg``, ``_label``, ``_mask`` or
    ``_dseg``, an image ``_image`` or ``_img``, or nnU-Net's channel number (``CASE_0000`` and ``CASE``). A folder of
    DICOM files is one case for each series, named after the folder (and ``_series<number>`` where there are several).
    The two may be one folder, or the labels' may lie in the images'. No pixels are read.

    Args:
        images: folder (searched recursively), file or glob: NIfTI, DICOM, PNG, TIFF, JPEG.
        labels: folder, file or glob of NIfTI, PNG or TIFF label maps. None: no case has a label.
        settings: ``patient_pattern`` is read.
        pseudonyms: stand in for all names that are below the two folders. None: names stay as they are.

    Returns:
        Cases sorted by name; what was set aside, and why; what was ignored. Every file is in one of the three.

    Raises:
        InputNotFoundError: a folder does not exist, or holds no image or no label.
        InputError: no label belongs to any image.
    """
    seen_images = search(images, "images")
    seen_labels = None if labels is None else search(labels, "labels")
    if seen_labels is not None:
        _separate(seen_images, seen_labels)
    quarantined = list(seen_images.refused)
    ignored = list(seen_images.ignored)
    candidates = _images(seen_images, quarantined, ignored)
    if not candidates and not quarantined:
        raise InputNotFoundError(
            f"images: '{images}' holds no NIfTI, DICOM, PNG, TIFF or JPEG file; name the folder that holds the images"
        )
    maps = [] if seen_labels is None else _labels(seen_labels, quarantined, ignored)
    if not maps and labels is not None:
        raise InputNotFoundError(
            f"labels: '{labels}' holds no NIfTI, PNG or TIFF label map; "
            "RFSS needs a few labelled cases to retrieve from"
        )
    cases = _pair(candidates, maps, settings, quarantined)
    cases.sort(key=lambda case: case.name)
    quarantined.sort(key=lambda entry: (entry.name, entry.reason))
    found = Discovery(cases, quarantined, sorted(ignored))
    if pseudonyms is not None:
        found = pseudonyms.hide(found)
    if maps and not any(case.label for case in cases):
        why = f"; first problem: {found.quarantined[0].message}" if quarantined else ""
        raise InputError(
            f"none of the {len(maps)} labels in '{labels}' belongs to any of the {len(candidates)} images "
            f"in '{images}'; give both the same name (CASE.nii.gz and CASE.nii.gz){why}"
        )
    return found


def _separate(images: Found, labels: Found) -> None:
    """Let no file be both image and label where the two searches overlap."""
    of_images = {path.resolve(): name for name, path in images.files.items()}
    of_labels = {path.resolve(): name for name, path in labels.files.items()}
    shared = of_images.keys() & of_labels.keys()
    if of_images.keys() == of_labels.keys():
        stems = {stem(name) for name in images.files}
        as_labels = {path for path in shared if label_base(stem(of_labels[path])) in stems}
    elif of_labels.keys() <= of_images.keys():
        as_labels = shared
    elif of_images.keys() <= of_labels.keys():
        as_labels = set()
    else:
        as_labels = {path for path in shared if label_base(stem(of_labels[path])) is not None}
    for path in shared:
        if path in as_labels:
            del images.files[of_images[path]]
        else:
            del labels.files[of_labels[path]]


def _images(found: Found, quarantined: list[Quarantined], ignored: list[str]) -> list[_Image]:
    rasters: dict[str, list[_Image]] = defaultdict(list)
    dicoms: dict[str, list[Path]] = defaultdict(list)
    for name, path in found.files.items():
        extension = _extension(name)
        if extension == ".dcm" or (extension == "" and is_dicom(path)):
            dicoms[name.rpartition("/")[0]].append(path)
        elif extension == "":
            ignored.append(name)
        else:
            kind: Kind = "nifti" if extension in _NIFTI else "raster"
            rasters[stem(name)].append(_Image(stem(name), kind, (path,)))
    images = [image for same in rasters.values() for image in same]
    for folder, files in dicoms.items():
        images.extend(_series(found, folder, files, quarantined, ignored))
    counts = Counter(pairing_key(image.name) for image in images)
    for image in images:
        if counts[pairing_key(image.name)] > 1:
            listed = " and ".join(
                sorted(other.files[0].name for other in images if pairing_key(other.name) == pairing_key(image.name))
            )
            quarantined.append(
                Quarantined(
                    image.name,
                    "duplicate_name",
                    f"{image.files[0].name}: {listed} would be one case '{image.name}'; rename or remove one",
                )
            )
    return [image for image in images if counts[pairing_key(image.name)] == 1]


def _series(
    found: Found, folder: str, files: list[Path], quarantined: list[Quarantined], ignored: list[str]
) -> list[_Image]:
    base = folder or found.root.resolve().name
    series: dict[str, list[Path]] = defaultdict(list)
    identities: dict[str, DicomIdentity] = {}
    for path in sorted(files):
        name = path.relative_to(found.root).as_posix()
        try:
            identity = identify(path)
        except UnreadableImageError as error:
            quarantined.append(Quarantined(name, error.reason, str(error)))
            continue
        if identity is None:
            ignored.append(name)
        else:
            series[identity.series].append(path)
            identities.setdefault(identity.series, identity)
    numbers = Counter(identity.number for identity in identities.values())
    images = []
    for uid, members in series.items():
        identity = identities[uid]
        name = base
        if len(series) > 1:
            unique = identity.number is not None and numbers[identity.number] == 1
            # The UID's last digits are a counter: they tell series of one study apart.
            name = f"{base}_series{identity.number}" if unique else f"{base}_series{uid.replace('.', '')[-12:]}"
        images.append(_Image(name, "dicom", tuple(members), identity.modality, identity.body_part, identity.patient))
    return images


def _labels(found: Found, quarantined: list[Quarantined], ignored: list[str]) -> list[_Label]:
    labels = []
    for name, path in found.files.items():
        extension = _extension(name)
        if extension == ".dcm" or (extension == "" and is_dicom(path)):
            quarantined.append(
                Quarantined(
                    name,
                    "unsupported_label",
                    f"{name}: DICOM label maps are not read; convert it to NIfTI on its series' grid",
                )
            )
        elif extension == "":
            ignored.append(f"labels:{name}")
        else:
            labels.append(_Label(name, path))
    ignored.extend(f"labels:{name}" for name in found.ignored)
    for entry in found.refused:
        if _extension(entry.name):
            labels.append(_Label(entry.name, None, entry.message))
        quarantined.append(Quarantined(f"labels:{entry.name}", entry.reason, entry.message))
    return labels


def _extension(name: str) -> str:
    lower = name.lower()
    return next((extension for extension in EXTENSIONS if lower.endswith(extension)), "")


def _pair(
    images: list[_Image], labels: list[_Label], settings: ImagingSettings, quarantined: list[Quarantined]
) -> list[CaseSource]:
    by_key: dict[str, list[_Label]] = defaultdict(list)
    for label in labels:
        plain = stem(label.name)
        by_key[pairing_key(plain)].append(label)
        base = label_base(plain)
        if base is not None:
            by_key[pairing_key(base)].append(label)
    partners = {image.name: by_key.get(pairing_key(image.name), []) for image in images}
    taken = {label.name for chosen in partners.values() for label in chosen}
    channels = False
    for image in images:
        if partners[image.name]:
            continue
        for base in image_bases(image.name):
            free = [label for label in by_key.get(pairing_key(base), []) if label.name not in taken]
            if free:
                partners[image.name] = free
                channels = channels or base == channel_base(image.name)
                break
    cases = []
    for image in images:
        chosen = partners[image.name]
        # In nnU-Net's layout the channels of a case are one patient.
        patient = image.patient or find_patient(
            channel_base(image.name) if channels else image.name, settings.patient_pattern
        )
        if len(chosen) > 1:
            listed = " and ".join(sorted(label.name for label in chosen))
            message = f"{image.name}: has several labels, {listed}; keep one"
            quarantined.append(Quarantined(image.name, "duplicate_label", message, patient))
        elif chosen and chosen[0].path is None:
            message = f"{image.name}: its label cannot be used: {chosen[0].message}"
            quarantined.append(Quarantined(image.name, "unsafe_path", message, patient))
        else:
            expert = chosen[0].path if chosen else None
            cases.append(
                CaseSource(
                    case_id(image.name),
                    image.name,
                    patient,
                    image.modality,
                    image.kind,
                    image.files if image.kind == "dicom" else image.files[0],
                    expert,
                    image.body_part,
                )
            )
    used = {label.name for chosen in partners.values() for label in chosen}
    quarantined.extend(
        Quarantined(
            f"labels:{label.name}",
            "label_without_image",
            f"{label.name}: this label has no image of the same name; add the image, or rename or remove the label",
        )
        for label in labels
        if label.name not in used and label.path is not None
    )
    return cases
