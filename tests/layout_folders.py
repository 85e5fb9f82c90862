"""Small folders that copy the layouts of public data sets: names, places and values as their publishers ship them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

SIDE, DEPTH, FRAMES = 24, 3, 4


def disc(radius: float, side: int = SIDE, shift: int = 0) -> np.ndarray:
    """Return bool [side, side]."""
    rows, columns = np.mgrid[:side, :side]
    return np.hypot(rows - side / 2, columns - side / 2 - shift) < radius


def rings(seed: int, classes: int, depth: int = DEPTH) -> tuple[np.ndarray, np.ndarray]:
    """Return an int16 volume and its uint8 label map [side, side, depth]: every class a ring."""
    rng = np.random.default_rng(seed)
    label = np.zeros((SIDE, SIDE, depth), np.uint8)
    for value in range(1, classes + 1):
        label[disc(10 - 9 * (value - 1) / classes)] = value
    return (100 + 60 * label + rng.normal(0, 5, label.shape)).astype(np.int16), label


def save_nifti(path: Path, array: np.ndarray, zooms: tuple[float, ...] = (1.5, 1.5, 8.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-zooms[0], zooms[1], zooms[2], 1])
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = b"Jane Doe"
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if array.ndim == 4:
        image.header.set_zooms((*zooms, 0.03))
    nib.save(image, path)


def save_picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def acdc(folder: Path, patients: int = 4) -> Path:
    """Three labelled splits of patients in ``training``, one without masks in ``testing``."""
    for number in range(1, patients + 1):
        split = "testing" if number == patients else "training"
        place = folder / "ACDC" / split / f"patient{number:03d}"
        stack = [rings(10 * number + frame, 3) for frame in range(FRAMES)]
        save_nifti(place / f"patient{number:03d}_4d.nii.gz", np.stack([image for image, _ in stack], axis=-1))
        for frame in (1, 3):
            image, label = stack[frame - 1]
            save_nifti(place / f"patient{number:03d}_frame{frame:02d}.nii.gz", image)
            if split == "training":
                save_nifti(place / f"patient{number:03d}_frame{frame:02d}_gt.nii.gz", label)
        (place / "Info.cfg").write_text("ED: 1\nES: 3\nGroup: DCM\nHeight: 180.0\nNbFrame: 4\nWeight: 80.0\n")
    (folder / "ACDC" / "MANDATORY_CITATION.md").write_text("cite")
    return folder / "ACDC"


MNMS_HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"


def mnms(folder: Path) -> Path:
    """Three labelled patients and two unlabelled ones, the last without frames in the table."""
    lines = [MNMS_HEADER]
    codes = {
        "A0S9V9": "Labeled",
        "A1D0Q7": "Labeled",
        "B3E2W8": "Labeled",
        "C4K8M1": "Unlabeled",
        "C8O7R9": "Unlabeled",
    }
    for number, (code, split) in enumerate(codes.items()):
        ed, es = ("", "") if code == "C8O7R9" else (str(number % 2), f"{2 + number % 2}.0")
        lines.append(f"{number},{code},Siemens,A,1,{ed},{es},57,HCM,F,160,60")
        place = folder / "OpenDataset" / "Training" / split / code
        stack = [rings(10 * number + frame, 3) for frame in range(FRAMES)]
        save_nifti(place / f"{code}_sa.nii.gz", np.stack([image for image, _ in stack], axis=-1))
        if split == "Labeled":
            annotated = np.zeros((SIDE, SIDE, DEPTH, FRAMES), np.uint8)
            for frame in (int(ed), int(float(es))):
                annotated[..., frame] = stack[frame][1]
            save_nifti(place / f"{code}_sa_gt.nii.gz", annotated)
    (folder / "OpenDataset" / "211230_M&Ms_Dataset_information.csv").write_text("\n".join(lines) + "\n")
    return folder / "OpenDataset"


def btcv(folder: Path) -> Path:
    """Three training cases with 13 organs, one test case."""
    raw = folder / "Abdomen" / "RawData"
    for number in (1, 2, 3):
        image, label = rings(number, 13)
        save_nifti(raw / "Training" / "img" / f"img{number:04d}.nii.gz", image, (0.8, 0.8, 3))
        save_nifti(raw / "Training" / "label" / f"label{number:04d}.nii.gz", label.astype(np.float32), (0.8, 0.8, 3))
    save_nifti(raw / "Testing" / "img" / "img0061.nii.gz", rings(61, 13)[0], (0.8, 0.8, 3))
    return folder / "Abdomen"


def flare22(folder: Path) -> Path:
    """Three labelled cases, two unlabelled."""
    root = folder / "FLARE2022" / "Training"
    for number in (1, 2, 3):
        image, label = rings(number, 13)
        save_nifti(root / "FLARE22_LabeledCase50" / "images" / f"FLARE22_Tr_{number:04d}_0000.nii.gz", image)
        save_nifti(root / "FLARE22_LabeledCase50" / "labels" / f"FLARE22_Tr_{number:04d}.nii.gz", label)
        if number < 3:
            save_nifti(root / "FLARE22_UnlabeledCase1-1000" / f"Case_{number:05d}_0000.nii.gz", image)
    return folder / "FLARE2022"


def refuge(folder: Path) -> Path:
    """Four training photographs with masks, two of the test set without."""
    root = folder / "REFUGE"
    for number, name in enumerate(("g0001", "g0002", "n0001", "n0002", "T0001", "T0002")):
        place = {"g": "Training400/Glaucoma", "n": "Training400/Non-Glaucoma", "T": "Test400"}[name[0]]
        shift = number - 2
        grey = 60 + 80 * disc(8, shift=shift) + 60 * disc(4, shift=shift)
        save_picture(root / place / f"{name}.jpg", np.stack([grey, grey // 2, grey // 3], axis=-1).astype(np.uint8))
        if name[0] != "T":
            mask = np.where(disc(4, shift=shift), 0, np.where(disc(8, shift=shift), 128, 255)).astype(np.uint8)
            named = place.rpartition("/")[2]
            save_picture(root / "Annotation-Training400" / "Disc_Cup_Masks" / named / f"{name}.bmp", mask)
    return root


def busi(folder: Path) -> Path:
    """Two benign images, one of them with two lesions, a malignant and a normal one."""
    root = folder / "Dataset_BUSI_with_GT"
    rng = np.random.default_rng(0)
    for name, masks in (
        ("benign (1)", [disc(3, shift=-6)]),
        ("benign (2)", [disc(3, shift=-6), disc(3, shift=6)]),
        ("malignant (1)", [disc(6)]),
        ("normal (1)", [np.zeros((SIDE, SIDE), bool)]),
    ):
        place = root / name.split(" ")[0]
        union = np.any(masks, axis=0)
        picture = np.stack([120 + 80 * union + rng.integers(0, 9, union.shape)] * 3, axis=-1).astype(np.uint8)
        save_picture(place / f"{name}.png", picture)
        for number, mask in enumerate(masks):
            # The publisher's masks are 1-bit, grey and RGB, by turns.
            stored = mask if number else np.stack([255 * mask.astype(np.uint8)] * 3, axis=-1)
            save_picture(place / f"{name}_mask{f'_{number}' if number else ''}.png", stored)
    return root
