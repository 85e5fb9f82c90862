"""Flow ``evaluate``: Dice and HD95 on labelled patients that are kept out of the support set."""

from __future__ import annotations

import time

from prefect import flow

from flows.endings import with_reasons
from flows.running import open_run
from rfss_core.code import code_version
from rfss_core.quality import METRICS_LIBRARY, Split, choose_patients, refuse_leak, split_cases
from rfss_core.settings import SUPERVISED, LabelSettings
from rfss_core.store import Manifest
from rfss_core.study import CaseResult, Evaluation
from tasks.assess import assess
from tasks.embed import embed
from tasks.index import build_index, with_patches
from tasks.ingest import ingest
from tasks.quality import measure
from tasks.segment import segment
from tasks.served import set_aside
from tasks.summary import jsonable
from tasks.thirds import measure_thirds
from tasks.train import train


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
        LeakError: a test case, or a copy of its image, is in the support set.
        InputError: input that cannot be used at all.
    """

    def chosen(manifest: Manifest) -> Split:
        patients = manifest.cases["patient"].tolist()
        return choose_patients(patients, settings.held_out, settings.seed, test_patients, support_patients)

    with open_run(settings) as run:
        manifest = ingest(run, labelled_only=True)
        # More patients than there are is the user's mistake: said before the models start.
        chosen(manifest)
        embeddings = embed(run, manifest)
        manifest = set_aside(run, manifest, embeddings.refused, embeddings.refused_ids)
        split = chosen(manifest)
        index = build_index(run, manifest, embeddings, split)
        cases = manifest.cases
        refuse_leak(split_cases(cases, index.support_cases), split_cases(cases, index.held_out_cases))
        index = with_patches(run, index)
        network = train(run, index) if settings.segmentation.segmenter in SUPERVISED else None
        processor = time.process_time()
        masks = segment(run, manifest, embeddings, index, list(index.held_out_cases), network)
        processor = time.process_time() - processor
        manifest = set_aside(run, manifest, masks.refused)
        assessment = assess(run, index, masks, probes=False)
        quality = measure(run, manifest, index, masks, assessment)
        thirds = measure_thirds(run, index, masks)
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
                dice_by_third=thirds.get(measured.case, {}),
            )
            for measured in quality.measurements
        ],
        label_fusion_dice={name: jsonable(part.mean) for name, part in quality.fusion_summary.dice.items()},
        slices_per_second=int(tested["n_slices"].sum()) / run.seconds["segment"],
        segmented_now=run.throughput.stages["segment"].slices,
        processor_seconds=processor if settings.execution.executor == "inline" else None,
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
        support_patient_names=sorted(split.support),
        support_digest=index.digest,
        refused=len(masks.refused),
        models={"embedding": embeddings.digest, "segmentation": masks.digest},
        metrics=METRICS_LIBRARY,
        code=code_version(),
    )
