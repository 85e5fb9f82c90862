"""What a training ends with."""

from __future__ import annotations

from rfss_core.training import Round, SupervisedModel


class Trained:
    """A trained network and its rounds; a plain class, as :class:`tasks.student_run.StudentRun` is.

    Args:
        model: the network.
        rounds: of the training.
    """

    def __init__(self, model: SupervisedModel, rounds: list[Round]) -> None:
        self.model = model
        self.rounds = rounds
