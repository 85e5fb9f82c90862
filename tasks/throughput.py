"""Figures of each stage, summed up from the event stream: what MLflow, the log and the UI's table show."""

from __future__ import annotations

from dataclasses import dataclass

from rfss_core.events import ChunkFailed, ChunkFinished, ChunkRetried, Event, StageFinished, StageStarted


@dataclass
class StageFigures:
    """One stage of this run; what an earlier run had finished is not in it, but for ``done_before``."""

    unit: str = "chunks"
    done_before: int = 0
    chunks: int = 0
    slices: int = 0
    read_s: float = 0.0
    """Summed over workers, like the next two."""
    compute_s: float = 0.0
    write_s: float = 0.0
    seconds: float = 0.0
    """Wall seconds of the whole stage."""
    retries: int = 0
    failed: int = 0

    @property
    def slices_per_second(self) -> float:
        """Slices over wall seconds."""
        return self.slices / self.seconds if self.seconds > 0 else 0.0

    @property
    def chunks_per_second(self) -> float:
        """Units over wall seconds."""
        return self.chunks / self.seconds if self.seconds > 0 else 0.0


class Throughput:
    """Listener that keeps the figures of each stage, in the order in which stages began."""

    def __init__(self) -> None:
        self.stages: dict[str, StageFigures] = {}

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case StageStarted(stage, _, done, unit):
                figures = self._of(stage)
                figures.unit, figures.done_before = unit, done
            case ChunkFinished(stage, _, slices, read_s, compute_s, write_s):
                figures = self._of(stage)
                figures.chunks += 1
                figures.slices += slices
                figures.read_s += read_s
                figures.compute_s += compute_s
                figures.write_s += write_s
            case ChunkRetried(stage):
                self._of(stage).retries += 1
            case ChunkFailed(stage):
                self._of(stage).failed += 1
            case StageFinished(stage, seconds):
                self._of(stage).seconds += seconds
            case _:
                pass

    def metrics(self) -> dict[str, float]:
        """Return flat figures of the stages that did any work, named ``throughput.<stage>.<figure>``."""
        found: dict[str, float] = {}
        for stage, figures in self.stages.items():
            if figures.chunks == 0:
                continue
            values = {
                "chunks": figures.chunks,
                "chunks_per_second": figures.chunks_per_second,
                "read_seconds": figures.read_s,
                "compute_seconds": figures.compute_s,
                "write_seconds": figures.write_s,
                "retries": figures.retries,
            }
            if figures.slices:
                values["slices_per_second"] = figures.slices_per_second
            found |= {f"throughput.{stage}.{name}": float(value) for name, value in values.items()}
        return found

    def table(self) -> list[dict[str, str | float]]:
        """Return one row a stage, for people."""
        return [
            {
                "stage": stage,
                "done": figures.chunks,
                "done before": figures.done_before,
                "unit": figures.unit,
                "slices/s": round(figures.slices_per_second, 1),
                "read s": round(figures.read_s, 2),
                "compute s": round(figures.compute_s, 2),
                "write s": round(figures.write_s, 2),
                "wall s": round(figures.seconds, 2),
                "tried again": figures.retries,
            }
            for stage, figures in self.stages.items()
        ]

    def _of(self, stage: str) -> StageFigures:
        return self.stages.setdefault(stage, StageFigures())
