"""Stage train: the supervised baseline's network, trained on the support set and kept in the workspace.

It trains in the driver's process: a support set is a few dozen slices. Workers load the stored network.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
from prefect import task

from rfss_core.code import code_version
from rfss_core.digest import digest_json
from rfss_core.settings import SUPERVISED
from rfss_core.training import Checkpoints, Round, train_supervised
from rfss_core.weights.device import resolve_device
from tasks.chunks import finish_chunk
from tasks.index import SupportIndex, open_support
from tasks.models import NETWORK_CHUNK, TRAIN_STAGE, Network
from tasks.run import STAGE_TASK, ChunkReport, Run

CHECKPOINT = "checkpoint.safetensors"


@task(name="train", **STAGE_TASK)
def train(run: Run, index: SupportIndex) -> Network:
    """Train the network that the settings name on the support set, unless a trusted one is there.

    Args:
        run: the run.
        index: the support set.

    Returns:
        Where the network is.
    """
    settings, training = run.settings, run.settings.training
    assert settings.segmentation.segmenter in SUPERVISED
    device = resolve_device(settings.segmentation.device)
    with run.stage(TRAIN_STAGE) as stage:
        key = digest_json(
            {
                "support": index.digest,
                "architecture": settings.segmentation.segmenter,
                "settings": training.model_dump(mode="json"),
                "seed": settings.seed,
                "device": device.type,
                "code": code_version("imaging", "training"),
            }
        )[:16]
        network = Network(run.workspace.url, key)
        store = run.workspace.stage(TRAIN_STAGE, key)
        known = store.trusted(NETWORK_CHUNK, NETWORK_CHUNK) is not None
        total = -(-training.steps // training.round_steps)
        stage.started(total, total if known else 0, f"rounds of {training.round_steps} steps")
        if known:
            stage.note = "trained before"
            return network

        def announce(done: Round) -> None:
            stage.finished(ChunkReport(f"step-{done.step}", training.round_steps * training.batch_size))

        support, files = open_support(run.workspace.url, index), run.workspace.files
        path = f"stages/{TRAIN_STAGE}/{key}/{CHECKPOINT}"
        model, rounds = train_supervised(
            support,
            settings.segmentation.segmenter,
            training,
            seed=settings.seed,
            device=device,
            checkpoints=Checkpoints(
                lambda: files.read_bytes(path) if files.exists(path) else None,
                lambda data: files.write_bytes(path, data),
            ),
            progress=announce,
        )
        weights = np.frombuffer(model.to_bytes(), dtype=np.uint8)
        history = pd.DataFrame([asdict(done) for done in rounds]).astype({"validation_dice": "float64"})
        finish_chunk(store, NETWORK_CHUNK, len(support), {"weights": weights}, {"history": history})
        files.remove(path)
        stage.note = _note(rounds)
    return network


def _note(rounds: list[Round]) -> str:
    last = rounds[-1]
    scores = [done.validation_dice for done in rounds if done.validation_dice is not None]
    chosen = f"best validation Dice {max(scores):.3f}" if scores else "fixed schedule, too few patients to validate"
    return f"{last.step} of {last.steps} steps, loss {last.loss:.3f}, {chosen}"
