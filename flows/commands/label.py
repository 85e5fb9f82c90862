"""``rfss label``: the main job."""

from __future__ import annotations

import typer

from flows.exit_codes import GATE_FAILED
from flows.options import (
    CaseIdsOption,
    Config,
    DatasetName,
    ExecutorName,
    Filters,
    HeldOut,
    Images,
    K,
    Labels,
    Match,
    Metadata,
    MinDice,
    PatientPattern,
    Preset,
    Promote,
    Seed,
    SegmenterOption,
    StrategyName,
    SupportSlices,
    Verbose,
    Verify,
    WorkspaceUrl,
    check_places,
    filter_of,
)
from rfss_core.errors import GateError
from rfss_core.settings import BASELINES, load_settings


def label(
    images: Images = "",
    labels: Labels = None,
    workspace: WorkspaceUrl = None,
    preset: Preset = None,
    k: K = None,
    held_out: HeldOut = None,
    executor: ExecutorName = None,
    min_dice: MinDice = None,
    dataset: DatasetName = None,
    promote: Promote = None,
    config: Config = None,
    seed: Seed = None,
    strategy: StrategyName = None,
    filters: Filters = None,
    match: Match = None,
    metadata: Metadata = None,
    segmenter: SegmenterOption = None,
    support_slices: SupportSlices = None,
    patient_pattern: PatientPattern = None,
    case_ids: CaseIdsOption = None,
    verify: Verify = None,
    verbose: Verbose = False,
) -> None:
    """Label the images that have no label, measure the quality on held-out patients, register the data set."""
    settings = load_settings(
        {
            "images": images or None,
            "labels": labels,
            "workspace": workspace,
            "preset": preset,
            "k": k,
            "held_out": held_out,
            "dataset": dataset,
            "seed": seed,
            "execution": {"executor": executor, "verify": verify},
            "quality": {"min_dice": min_dice},
            "promotion": {"policy": promote},
            "retrieval": {
                "strategy": strategy,
                "support_slices": support_slices,
                "metadata": metadata,
                "filter": filter_of(filters, match),
            },
            "segmentation": {"segmenter": segmenter},
            "imaging": {"patient_pattern": patient_pattern},
            "privacy": {"case_ids": case_ids},
        },
        config,
    )
    if settings.segmentation.segmenter in BASELINES:
        from rfss_core.segmentation.factory import baseline_error

        raise baseline_error(settings.segmentation.segmenter)
    check_places(settings)
    from flows.server import start_prefect_server

    start_prefect_server()
    from flows.console import show_summary
    from flows.endings import outcome_of
    from flows.label_dataset import label_dataset
    from flows.session import command_session
    from tasks.summary import read_summary

    gate: GateError | None = None
    with command_session(settings.workspace, verbose) as console:
        try:
            summary = outcome_of(label_dataset, settings)
        except GateError as error:
            gate, summary = error, read_summary(settings.workspace)
    show_summary(console, summary)
    if gate is not None:
        raise typer.Exit(GATE_FAILED)
