"""Coded concepts of classes: what a DICOM segment says it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

PRIVATE_SCHEME = "99RFSS"
"""Coding scheme of classes that no table knows (PS3.16, 8: private schemes begin with 99)."""
_LONGEST_VALUE, _LONGEST_MEANING = 16, 64
_SIDES = ("left", "right", "anterior", "posterior")

_KNOWN: Mapping[str, Code] = {
    "aorta": codes.SCT.Aorta,
    "adrenal gland": codes.SCT.AdrenalGland,
    "bladder": codes.SCT.Bladder,
    "brain": codes.SCT.Brain,
    "breast": codes.SCT.Breast,
    "esophagus": codes.SCT.Esophagus,
    "gallbladder": codes.SCT.Gallbladder,
    "head": codes.SCT.Head,
    "heart": codes.SCT.Heart,
    "hippocampus": codes.SCT.Hippocampus,
    "inferior vena cava": codes.SCT.InferiorVenaCava,
    "kidney": codes.SCT.Kidney,
    "left atrium": codes.SCT.LeftAtrium,
    "left ventricle": codes.SCT.LeftVentricle,
    "lesion": codes.SCT.Lesion,
    "liver": codes.SCT.Liver,
    "lung": codes.SCT.Lung,
    "myocardium": codes.SCT.LeftVentricleMyocardium,
    "nucleus": codes.SCT.Nucleus,
    "pancreas": codes.SCT.Pancreas,
    "prostate": codes.SCT.Prostate,
    "right atrium": codes.SCT.RightAtrium,
    "right ventricle": codes.SCT.RightVentricle,
    "spine": codes.SCT.Spine,
    "spleen": codes.SCT.Spleen,
    "stomach": codes.SCT.Stomach,
    "tumor": codes.SCT.Neoplasm,
    "vertebra": codes.SCT.Vertebra,
}
"""Names in use to SNOMED CT concepts of pydicom's dictionary."""
_SYNONYMS = {
    "la": "left atrium",
    "lv": "left ventricle",
    "lvc": "left ventricle",
    "ivc": "inferior vena cava",
    "myo": "myocardium",
    "oesophagus": "esophagus",
    "prostate gland": "prostate",
    "ra": "right atrium",
    "rv": "right ventricle",
    "rvc": "right ventricle",
    "tumour": "tumor",
    "urinary bladder": "bladder",
}
_ABNORMAL = ("lesion", "tumor")


def concepts_of(name: str, own: Mapping[str, tuple[str, str, str]]) -> tuple[Code, Code]:
    """Return the property category and the property type of a class.

    The user's own concept comes first, then SNOMED CT's of the name (a side in front is left out: the segment's label
    says it), then a private one, so that a viewer shows the class's name and nobody takes it for a standard code.

    Args:
        name: the class's name.
        own: class name to (code value, coding scheme designator, code meaning).
    """
    if name in own:
        return codes.SCT.AnatomicalStructure, Code(*own[name])
    plain = " ".join(re.sub(r"[^a-z]+", " ", name.lower()).split())
    found = _SYNONYMS.get(plain, plain)
    first, _, rest = found.partition(" ")
    if found not in _KNOWN and first in _SIDES:
        found = _SYNONYMS.get(rest, rest)
    if found in _KNOWN:
        abnormal = found in _ABNORMAL
        category = codes.SCT.MorphologicallyAbnormalStructure if abnormal else codes.SCT.AnatomicalStructure
        return category, _KNOWN[found]
    value = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:_LONGEST_VALUE].rstrip("_") or "class"
    return codes.SCT.Tissue, Code(value, PRIVATE_SCHEME, name[:_LONGEST_MEANING])
