"""Flow ``evaluate``: Dice and HD95 on labelled patients that are kept out of the support set."""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel

from flows.endings import with_reasons
from flows.running import open_run
from rfss_core.code import code_version
from rfss_core.errors import SettingsError
from rfss_core.quality import METRICS_LIBRARY, Split, split_patients
from rfss_core.settings import SUPERVISED, LabelSettings
from tasks.assess import assess
from tasks.embed import embed
from tasks.index import build_index, with_patches
from tasks.ingest import ingest
from tasks.quality import measure
from tasks.segment import segment
from tasks.served import set_aside
from tasks.summary import jsonable
from tasks.train import train


class CaseResult(BaseModel):
    """One test case."""

    case: str
    patient: str
    dice: dict[str, float]
    hd95: dict[str, float]


class Evaluation(BaseModel):
    """What ``rfss evaluate`` writes. Means are over patients; None where a class occurs in no test case."""

    dice: dict[str, float | None]
    """Per class and ``mean``."""
    hd95: dict[str, float | None]
    """Per class and ``mean``, mm."""
    per_case: list[CaseResult]
    label_fusion_dice: dict[str, float | None]
    """The same cases labelled by majority vote of the same retrieved masks."""
    slices_per_second: float
    """Test slices over the seconds of the segmentation stage: reading, retrieval, models and writing."""
    seconds: dict[str, float]
    preset: str
    k: int
    strategy: str
    segmenter: str
    points: tuple[int, int] | None
    """Points inside and outside each class that ``sam2-points`` drew; None for other segmenters."""
    seed: int
    support_slices: int
    support_patients: int
    test_patients: int
    refused: int
    """Test cases that retrieval could not serve with k support slices; they are not measured."""
    models: dict[str, str]
    """sha256 of the weights."""
    metrics: str
    """Library that computed the metrics."""
    code: str


@flow(name="evaluate", validate_parameters=True, persist_result=False)
@with_reasons
def evaluate(
    settings: LabelSettings, test_patients: int | None = None, support_patients: int | None = None
) -> Evaluation:
    """Segment the test patients' slices from the support set and compare them with the experts' labels.

    The same seed gives the same support slices and test patients whatever the segmenter.

    Args:
        settings: As for ``label_dataset``; images without a label are left alone.
        test_patients: Patients to measure on; default: the share ``held_out`` of the labelled ones.
        support_patients: Patients that the support set comes from; default: all the others.

    Returns:
        The figures.

    Raises:
        SettingsError: more patients were asked for than are labelled.
        InputError: input that cannot be used at all.
    """
    with open_run(settings) as run:
        manifest = ingest(run, labelled_only=True)
        # More patients than there are is the user's mistake: said before the models start.
        choose_patients(manifest.cases["patient"].tolist(), settings, test_patients, support_patients)
        embeddings = embed(run, manifest)
        manifest = set_aside(run, manifest, embeddings.refused, embeddings.refused_ids)
        split = choose_patients(manifest.cases["patient"].tolist(), settings, test_patients, support_patients)
        index = build_index(run, manifest, embeddings, split)
        index = with_patches(run, index)
        network = train(run, index) if settings.segmentation.segmenter in SUPERVISED else None
        masks = segment(run, manifest, embeddings, index, list(index.held_out_cases), network)
        manifest = set_aside(run, manifest, masks.refused)
        assessment = assess(run, index, masks, probes=False)
        quality = measure(run, manifest, index, masks, assessment)
    tested = manifest.cases[manifest.cases["case_id"].isin([case_id for case_id, _, _ in masks.cases()])]
    return Evaluation(
        dice={name: jsonable(part.mean) for name, part in quality.summary.dice.items()},
        hd95={name: jsonable(part.mean) for name, part in quality.summary.hd95.items()},
        per_case=[
            CaseResult(
                case=measured.case,
                patient=measured.patient,
                dice={metric.name: metric.dice for metric in measured.metrics},
                hd95={metric.name: metric.hd95 for metric in measured.metrics},
            )
            for measured in quality.measurements
        ],
        label_fusion_dice={name: jsonable(part.mean) for name, part in quality.fusion_summary.dice.items()},
        slices_per_second=int(tested["n_slices"].sum()) / run.seconds["segment"],
        seconds=run.seconds,
        preset=settings.preset,
        k=index.k,
        strategy=settings.retrieval.strategy,
        segmenter=settings.segmentation.segmenter,
        points=(settings.segmentation.points or (1, 0)) if settings.segmentation.segmenter == "sam2-points" else None,
        seed=settings.seed,
        support_slices=index.n_slices,
        support_patients=len(split.support),
        test_patients=len(split.held_out),
        refused=len(masks.refused),
        models={"embedding": embeddings.digest, "segmentation": masks.digest},
        metrics=METRICS_LIBRARY,
        code=code_version(),
    )


def choose_patients(
    patients: list[str], settings: LabelSettings, test_patients: int | None, support_patients: int | None
) -> Split:
    """Choose test and support patients, both by the project's one split function."""
    known = len(set(patients))
    wanted = (test_patients or 1) + (support_patients or 1)
    if wanted > known:
        raise SettingsError(
            f"{test_patients or 1} test and {support_patients or 1} support patients need {wanted} labelled patients, "
            f"but {known} were found; ask for fewer, or check --patient-pattern"
        )
    share = settings.held_out if test_patients is None else test_patients / known
    split = split_patients(patients, share, settings.seed)
    if support_patients is None or support_patients >= len(split.support):
        return split
    others = sorted(split.support)
    drawn = split_patients(others, support_patients / len(others), settings.seed)
    return Split(support=drawn.held_out, held_out=split.held_out)
