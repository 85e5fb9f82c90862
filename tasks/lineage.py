"""Lineage: support set -> labelling run -> data set -> student, walked in both directions over what MLflow holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mlflow.exceptions import MlflowException

from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import UnknownDatasetError
from tasks.dataset_run import CONTEXT, SUPPORT
from tasks.mlflow_data import DIGEST_DIGITS
from tasks.registry import DataRegistry, DatasetVersion, missing, pages
from tasks.students import StudentVersion, student_links, student_names, students
from tasks.tracking import answering

Kind = Literal["support", "run", "dataset", "student"]


@dataclass(frozen=True)
class Node:
    """One thing in a lineage."""

    kind: Kind
    id: str
    """``support:<digest>``, ``run:<id>``, ``dataset:<name>/<version>`` or ``student:<name>/<version>``."""
    facts: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """What is worth showing beside it."""


@dataclass(frozen=True)
class Lineage:
    """A graph without cycles, in an order in which everything comes after what it was made from."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]
    """(what it was made from, what was made), as ids."""
    asked: tuple[str, ...]
    """Ids of what was asked for."""

    def upstream(self, node: str) -> list[str]:
        """Return the ids of what a node was made from."""
        return [source for source, made in self.edges if made == node]

    def downstream(self, node: str) -> list[str]:
        """Return the ids of what was made from a node."""
        return [made for source, made in self.edges if source == node]

    def roots(self) -> list[Node]:
        """Return what was made from nothing here."""
        return [node for node in self.nodes if not self.upstream(node.id)]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        nodes = [{"kind": node.kind, "id": node.id, **dict(node.facts)} for node in self.nodes]
        return {"asked": list(self.asked), "nodes": nodes, "edges": [list(edge) for edge in self.edges]}


def trace(registry: DataRegistry, reference: str) -> Lineage:
    """Return all that something was made from, and all that was made from it.

    Args:
        registry: the data registry.
        reference: a data set (``name@alias``, ``name/version``), a student (the same; ``student:name`` where a data set
            has its name), a support set (``support:<digest>`` or its first digits) or a run (``run:<id>``). A student
            without version or alias means all its versions.

    Raises:
        UnknownDatasetError: there is no such thing.
        InputError: the reference is none.
    """
    walk = _Walk(registry)
    kind, _, rest = reference.partition(":")
    if kind == "support" and rest:
        asked = walk.from_support(rest)
    elif kind == "run" and rest:
        asked = walk.from_run(rest)
    elif kind == "student" and rest:
        asked = walk.from_student(DatasetReference.parse(rest))
    else:
        named = DatasetReference.parse(reference)
        is_student = named.name not in registry.names() and named.name in student_names(registry)
        asked = walk.from_student(named) if is_student else walk.from_dataset(registry.find(named))
    return Lineage(tuple(walk.nodes.values()), tuple(walk.edges), tuple(asked))


class _Walk:
    """Collects nodes and edges, each once."""

    def __init__(self, registry: DataRegistry) -> None:
        self.registry = registry
        self.nodes: dict[str, Node] = {}
        self.edges: dict[tuple[str, str], None] = {}

    def from_dataset(self, version: DatasetVersion) -> list[str]:
        """Walk up to the support set and down to the students."""
        made = self.up_from_dataset(version)
        for name, number, _ in student_links(version):
            for student in self._versions(name, number):
                self._student(student)
        return [made]

    def up_from_dataset(self, version: DatasetVersion) -> str:
        dice = version.held_out_dice
        facts = {
            "status": version.status,
            "aliases": ", ".join(version.aliases),
            "held-out Dice": "" if dice is None else f"{dice:.3f}",
            "digest": version.digest[:12],
            "registered": version.created.isoformat(timespec="seconds"),
        }
        made = self._node("dataset", str(version), facts)
        run = self._run(version.run_id)
        self._edge(run, made)
        return made

    def from_student(self, reference: DatasetReference) -> list[str]:
        versions = students(self.registry, reference.name)
        chosen = [
            item
            for item in versions
            if (reference.version in (None, item.version))
            and (reference.alias is None or reference.alias in item.aliases)
        ]
        if not chosen:
            listed = ", ".join(item.version for item in versions)
            named = ", ".join(f"@{alias}" for item in versions for alias in item.aliases) or "none"
            what = f"alias '{reference.alias}'" if reference.version is None else f"version {reference.version}"
            raise UnknownDatasetError(
                f"student '{reference.name}' has no {what}; it has versions {listed} and aliases {named}"
            )
        return [self._student(item) for item in chosen]

    def from_support(self, digest: str) -> list[str]:
        """Walk down from a support set: all runs on it, their data sets, the students of these."""
        found = self._search(f"dataset.digest LIKE '{digest[:DIGEST_DIGITS]}%' AND dataset.context = '{SUPPORT}'")
        if not found:
            raise UnknownDatasetError(
                f"no labelling run at {self.registry.uri} has a support set with digest '{digest}'"
            )
        for run in found:
            self._datasets_of(run.info.run_id)
        return [node.id for node in self.nodes.values() if node.kind == "support"]

    def from_run(self, run_id: str) -> list[str]:
        """Walk both ways from a labelling run or a training run."""
        self._run(run_id)
        self._datasets_of(run_id)
        for name in student_names(self.registry):
            for student in students(self.registry, name):
                if student.run_id == run_id:
                    self._student(student)
        return [f"run:{run_id}"]

    def _datasets_of(self, run_id: str) -> None:
        for name in self.registry.names():
            for version in self.registry.versions(name):
                if version.run_id == run_id:
                    self.from_dataset(version)

    def _student(self, student: StudentVersion) -> str:
        """Add a student and walk up from it."""
        for reference in student.datasets:
            named = DatasetReference.parse(reference)
            if named.version is not None:
                source = self.up_from_dataset(self.registry.find(named))
            else:
                source = self._node("dataset", f"{reference} (not registered)", {})
            run = self._training(student)
            self._edge(source, run)
        facts = {
            "aliases": ", ".join(student.aliases),
            "Dice": "" if student.dice is None else f"{student.dice:.3f}",
            "gain": "" if student.gain is None else f"{student.gain:+.3f}",
            "model": student.tags.get("model_uri", ""),
        }
        made = self._node("student", str(student), facts)
        self._edge(self._training(student), made)
        return made

    def _training(self, student: StudentVersion) -> str:
        return self._node("run", student.run_id, {"what": f"training of {student}"})

    def _run(self, run_id: str) -> str:
        """Add a run and the support set that it labelled from."""
        with answering(self.registry.uri):
            try:
                run = self.registry.client.get_run(run_id)
            except MlflowException as error:
                if not missing(error):
                    raise
                raise UnknownDatasetError(f"there is no run '{run_id}' at {self.registry.uri}") from error
        inputs = [] if run.inputs is None else run.inputs.dataset_inputs
        support = [item.dataset for item in inputs if any(t.key == CONTEXT and t.value == SUPPORT for t in item.tags)]
        sources = []
        for dataset in support:
            where = json.loads(dataset.source)["workspace"]
            slices = run.data.params.get("support_slices", "")
            sources.append(self._node("support", dataset.digest, {"slices": slices, "workspace": where}))
        made = self._node("run", run_id, {"what": str(run.info.run_name), "fingerprint": self._fingerprint(run)})
        for source in sources:
            self._edge(source, made)
        return made

    @staticmethod
    def _fingerprint(run: Any) -> str:
        return str(run.data.tags.get("rfss.fingerprint", ""))[:12]

    def _versions(self, name: str, number: str) -> Iterable[StudentVersion]:
        try:
            return [item for item in students(self.registry, name) if item.version == number]
        except UnknownDatasetError:
            # The student was removed from the registry since.
            return []

    def _search(self, condition: str) -> list[Any]:
        client = self.registry.client
        with answering(self.registry.uri):
            experiments = [
                item.experiment_id for item in pages(lambda token: client.search_experiments(page_token=token))
            ]
            return pages(lambda token: client.search_runs(experiments, condition, page_token=token))

    def _node(self, kind: Kind, name: str, facts: dict[str, str]) -> str:
        key = f"{kind}:{name}"
        self.nodes.setdefault(key, Node(kind, key, tuple((k, v) for k, v in facts.items() if v)))
        return key

    def _edge(self, source: str, made: str) -> None:
        self.edges.setdefault((source, made))
