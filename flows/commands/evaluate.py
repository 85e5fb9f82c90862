"""``rfss evaluate``: what labelled patients say about a method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import (
    CaseIdsOption,
    Config,
    ExecutorName,
    Filters,
    K,
    Match,
    Metadata,
    PatientPattern,
    Verbose,
    Verify,
    check_places,
    described,
    filter_of,
)
from rfss_core.settings import PresetName, SegmenterName, Strategy, load_settings


def evaluate(
    images: Annotated[str, typer.Option("--images", help=described("images"))],
    labels: Annotated[str, typer.Option("--labels", help=described("labels"))],
    out: Annotated[Path, typer.Option("--out", help="JSON file to write.")],
    support_slices: Annotated[
        int, typer.Option("--support-slices", help="Size of the support set; 0: all.", min=0)
    ] = 50,
    preset: Annotated[PresetName, typer.Option("--preset", help=described("preset"))] = "tiny",
    k: K = None,
    strategy: Annotated[Strategy, typer.Option("--strategy", help="How support slices are chosen.")] = "dino",
    filters: Filters = None,
    match: Match = None,
    metadata: Metadata = None,
    test_patients: Annotated[
        int | None, typer.Option("--test-patients", help="Patients to measure on. Default: 30 %.", min=1)
    ] = None,
    support_patients: Annotated[
        int | None,
        typer.Option("--support-patients", help="Patients the support set comes from. Default: all others.", min=1),
    ] = None,
    segmenter: Annotated[SegmenterName, typer.Option("--segmenter", help="What segments.")] = "sam2-memory",
    points: Annotated[
        str | None, typer.Option("--points", metavar="POSITIVE[,NEGATIVE]", help="Of sam2-points: 1, 2, 1,1 or 2,2.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the split and of random retrieval.", min=0)] = 0,
    executor: ExecutorName = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", help="Keep embeddings and masks here. Default: a temporary folder.")
    ] = None,
    config: Config = None,
    patient_pattern: PatientPattern = None,
    case_ids: CaseIdsOption = None,
    verify: Verify = None,
    verbose: Verbose = False,
) -> None:
    """Measure Dice and HD95 on labelled patients that are kept out of the support set."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="rfss-evaluate-") as temporary:
        settings = load_settings(
            {
                "images": images,
                "labels": labels,
                "workspace": workspace or temporary,
                "preset": preset,
                "k": k,
                "seed": seed,
                "execution": {"executor": executor, "verify": verify},
                "retrieval": {
                    "strategy": strategy,
                    "support_slices": support_slices or None,
                    "metadata": metadata,
                    "filter": filter_of(filters, match),
                },
                "segmentation": {"segmenter": segmenter, "points": points},
                "imaging": {"patient_pattern": patient_pattern},
                "privacy": {"case_ids": case_ids},
            },
            config,
        )
        check_places(settings)
        from flows.server import start_prefect_server

        start_prefect_server()
        from flows.console import show_evaluation
        from flows.endings import outcome_of
        from flows.evaluate import evaluate as evaluate_flow
        from flows.session import command_session

        with command_session(settings.workspace, verbose) as console:
            result = outcome_of(evaluate_flow, settings, test_patients, support_patients)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    show_evaluation(console, result, out)
