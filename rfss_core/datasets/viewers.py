"""Class names and colours as viewers of label maps read them: ITK-SNAP and 3D Slicer."""

from __future__ import annotations

from collections.abc import Mapping

from rfss_core.quality.picture import class_colours

ITK_SNAP_NAME, SLICER_NAME = "itk-snap-labels.txt", "slicer-colors.ctbl"


def class_palette(classes: Mapping[int, str]) -> dict[int, tuple[int, int, int]]:
    """Return red, green and blue (0 to 255) of each label value, as the report has them; black for the background."""
    colours = class_colours(list(classes))
    parts = {value: bytes.fromhex(colour.removeprefix("#")) for value, colour in colours.items()}
    return {0: (0, 0, 0), **{value: (part[0], part[1], part[2]) for value, part in parts.items()}}


def itk_snap_labels(classes: Mapping[int, str]) -> str:
    """Return an ITK-SNAP label description file (Segmentation, Import Label Descriptions).

    Each line is the index, red, green, blue (0 to 255), opacity (0 to 1), visibility in slices and in 3-D, and the name
    in quotation marks.
    """
    palette = class_palette(classes)
    lines = [
        "################################################",
        "# ITK-SnAP Label Description File",
        "# File format:",
        "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
        "################################################",
        '    0     0    0    0        0  0  0    "Clear Label"',
    ]
    for value, name in sorted(classes.items()):
        red, green, blue = palette[value]
        shown = " ".join(name.replace('"', "'").split())
        lines.append(f'{value:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{shown}"')
    return "\n".join(lines) + "\n"


def slicer_colors(classes: Mapping[int, str]) -> str:
    """Return a colour table of 3D Slicer (``.ctbl``): index, name without spaces, red, green, blue, opacity (0 to 255).

    https://slicer.readthedocs.io/en/5.6/developer_guide/modules/colors.html
    """
    palette = class_palette(classes)
    lines = [f"# Color table file {SLICER_NAME}", f"# {len(classes) + 1} values", "0 Background 0 0 0 0"]
    for value, name in sorted(classes.items()):
        red, green, blue = palette[value]
        lines.append(f"{value} {'_'.join(name.split()) or value} {red} {green} {blue} 255")
    return "\n".join(lines) + "\n"
