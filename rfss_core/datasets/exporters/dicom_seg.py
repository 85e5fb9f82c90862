"""DICOM-SEG: label maps as segmentation objects that belong to their series' study, through highdicom.

DICOM PS3.3 A.51. One file a case, one binary segment a class; frames lie on the series' own slices and refer to them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, generate_uid

from rfss_core import __version__
from rfss_core.datasets.exporters.case import ExportCase, ExportSet
from rfss_core.datasets.exporters.concepts import concepts_of
from rfss_core.datasets.exporters.exporter import CaseFiles, WrittenCase
from rfss_core.datasets.exporters.label_map import LabelMap
from rfss_core.digest import digest_array, digest_json
from rfss_core.errors import GeometryError, InputError, UnreadableImageError
from rfss_core.imaging.dicom import ordered_files
from rfss_core.imaging.output import write_atomically
from rfss_core.imaging.volume import image_files
from rfss_core.settings import ExportSettings

_SERIES_NUMBER = 900
"""Well above the numbers that scanners give."""
_MAY_BE_EMPTY = (
    "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
)  # fmt: skip
"""Type 2 elements, which anonymisers remove: they are written empty."""


class DicomSegExporter:
    """Writes one segmentation object a case whose source is a DICOM series.

    Args:
        settings: ``concepts`` is read.
    """

    def __init__(self, settings: ExportSettings) -> None:
        self._own = settings.concepts
        self._labels = LabelMap({}, {})
        self._name, self._digest = "", ""

    def target(self, out: Path, content: ExportSet) -> Path:
        """Return ``out``."""
        del content
        return out

    def plan(self, content: ExportSet) -> Mapping[str, Any]:
        """Number the classes as segments and choose their coded concepts.

        Raises:
            InputError: highdicom is missing, no case comes from DICOM, or ``concepts`` names an unknown class.
        """
        try:
            import highdicom  # noqa: F401 - the extra's presence is what is asked
        except ImportError as error:
            raise InputError("format dicom-seg needs highdicom; run `pip install 'rfss[export]'`") from error
        if not any(case.grid.kind == "dicom" for case in content.cases):
            kinds = ", ".join(sorted({case.grid.kind for case in content.cases}))
            raise InputError(
                f"no case of data set '{content.name}' comes from a DICOM series (found: {kinds}); DICOM-SEG refers to "
                "the original series, so choose another format"
            )
        unknown = sorted(set(self._own) - set(content.classes.values()))
        if unknown:
            raise InputError(
                f"--concepts names class '{unknown[0]}', which the data set does not have "
                f"({', '.join(content.classes.values())}); mend the file"
            )
        self._labels = LabelMap.consecutive(content.classes, content.ignore)
        self._name, self._digest = content.name, content.digest
        return {
            "label_map": {str(value): number for value, number in self._labels.values.items()},
            "segments": {
                str(number): {"label": name, "concepts": [list(code[:3]) for code in concepts_of(name, self._own)]}
                for number, name in self._labels.names.items()
            },
        }

    def write_case(self, case: ExportCase, folder: Path) -> CaseFiles:
        """Write ``<case id>.dcm``.

        Raises:
            GeometryError: the source is no DICOM series (``not_dicom``), or lies nowhere in space.
            UnreadableImageError: the series is not within reach, has changed, or lacks its study.
        """
        if case.grid.kind != "dicom":
            raise GeometryError(
                f"{case.name}: comes from a {case.grid.kind} file, so there is no series to refer to; choose another "
                "format for it",
                reason="not_dicom",
            )
        source = case.find_source()
        headers = [_header(case.name, path) for path in ordered_files(case.name, image_files(source))]
        labels = self._labels.apply(case.read_labels(), case.name)
        # [column, row, slice] as the grid has it, [slice, row, column] as DICOM wants it.
        frames = np.ascontiguousarray(case.grid.to_source(labels).transpose(2, 1, 0))
        path = f"{case.id}.dcm"
        write_atomically(folder / path, self._encoded(case, headers, frames))
        return CaseFiles((path,), {"label": path, "series": str(headers[0].SeriesInstanceUID)})

    def finish(self, written: Sequence[WrittenCase], content: ExportSet, folder: Path) -> None:
        """Write nothing: each object stands for itself."""
        del written, content, folder

    def _encoded(self, case: ExportCase, headers: list[Dataset], frames: npt.NDArray[np.uint8]) -> bytes:
        import highdicom as hd

        by_machine = case.label_source == "pseudo-label"
        kind = hd.seg.SegmentAlgorithmTypeValues
        algorithm = {"pseudo-label": kind.AUTOMATIC, "reviewed": kind.SEMIAUTOMATIC, "expert": kind.MANUAL}
        identification = hd.AlgorithmIdentificationSequence(
            name="RFSS", family=codes.DCM.ArtificialIntelligence, version=__version__
        )
        segments = []
        for number, name in self._labels.names.items():
            category, kind_of = concepts_of(name, self._own)
            segments.append(
                hd.seg.SegmentDescription(
                    segment_number=number,
                    segment_label=name[:64],
                    segmented_property_category=category,
                    segmented_property_type=kind_of,
                    algorithm_type=algorithm[case.label_source],
                    algorithm_identification=None if case.label_source == "expert" else identification,
                    tracking_uid=self._uid("segment", case.id, number),
                    tracking_id=f"{case.id}:{name}"[:64],
                )
            )
        content = digest_array(frames)
        with warnings.catch_warnings():
            # Remarks on sloppy values of the source, which are copied as they are.
            warnings.simplefilter("ignore", UserWarning)
            found = hd.seg.Segmentation(
                source_images=headers,
                pixel_array=frames,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=self._uid("series", case.id, content),
                series_number=_SERIES_NUMBER,
                sop_instance_uid=self._uid("instance", case.id, content),
                instance_number=1,
                manufacturer="RFSS",
                manufacturer_model_name="RFSS",
                software_versions=__version__,
                device_serial_number="0",
                content_label="PSEUDO_LABEL" if by_machine else "LABEL",
                content_description=f"RFSS {self._name}, {case.label_source}"[:64],
                series_description=f"RFSS {self._name}"[:64],
                omit_empty_frames=bool(frames.any()),
            )
            stream = pydicom.filebase.DicomBytesIO()
            pydicom.dcmwrite(stream, found, enforce_file_format=True)
        return bytes(stream.getvalue())

    def _uid(self, what: str, *parts: object) -> UID:
        """Return a UID that the same content always gets."""
        names = list(self._labels.names.items())
        return generate_uid(entropy_srcs=[digest_json([what, self._digest, names, *map(str, parts)])])


def _header(name: str, path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        header = pydicom.dcmread(path, stop_before_pixels=True)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not header.get(keyword):
            raise UnreadableImageError(
                f"{name}: {path.name} has no {keyword}, which a segmentation object refers to; export it from the "
                "archive again",
                reason="incomplete_dicom",
            )
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    return header
