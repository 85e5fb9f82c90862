"""Filters: which rows of the support set may serve a query, decided before the nearest are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from rfss_core.errors import SettingsError
from rfss_core.retrieval.support import SupportSet
from rfss_core.settings import FilterSettings

Rows = npt.NDArray[np.bool_]
"""bool [N], which rows of the support set may be returned."""
Metadata = Mapping[str, Any]
"""A query's values by column."""


class SupportFilter:
    """The settings' filter, compiled for one support set.

    Columns are those of the set's metadata, and ``id``, ``patient`` and ``label_source`` (``expert`` where the metadata
    do not say). Text is compared as it is; columns of numbers compare as numbers.

    Args:
        settings: the conditions.
        support: the rows.
        drawn: bool [N], rows that are in use at all; None: all.

    Raises:
        SettingsError: a column or class that the support set does not have, or a value that is no number in a column of
            numbers.
    """

    def __init__(self, settings: FilterSettings, support: SupportSet, drawn: Rows | None = None) -> None:
        self._settings = settings
        self._columns = {name: _column(support, name) for name in settings.columns}
        # Numbers compare faster than names, and every patient of the queries compares with all rows.
        self._patients, names = pd.factorize(np.asarray(support.patients, dtype=object))
        self._number_of = {str(name): number for number, name in enumerate(names)}
        self._classes = support.classes
        self.rows: Rows = np.ones(len(support), dtype=np.bool_) if drawn is None else drawn.copy()
        """bool [N], the rows that satisfy what does not depend on the query."""
        for name, values in settings.equals.items():
            self.rows &= _one_of(self._columns[name], values)
        if settings.label_source is not None:
            self.rows &= _one_of(self._columns["label_source"], settings.label_source)
        wanted = [self._class_value(one) for one in settings.contains]
        unwanted = [self._class_value(one) for one in settings.lacks]
        if wanted or unwanted:
            place = {value: i for i, value in enumerate(support.class_values)}
            presence = support.class_presence
            self.rows &= presence[:, [place[value] for value in wanted]].all(axis=1)
            self.rows &= ~presence[:, [place[value] for value in unwanted]].any(axis=1)

    def key(self, patient: str | None, metadata: Metadata | None) -> tuple[Any, ...]:
        """Return what decides a query's rows: queries with equal keys may be searched together.

        Args:
            patient: the query's patient, whose slices are excluded; None excludes nobody.
            metadata: the query's values of the columns in ``match``.

        Raises:
            SettingsError: a column in ``match`` of which the query has no value.
        """
        # Queries whose patient has no support slice share the unrestricted search.
        owner = patient if patient in self._number_of else None
        return (owner, *(_value_of(metadata, name) for name in self._settings.match))

    def allowed(self, key: tuple[Any, ...]) -> Rows:
        """Return the rows that may serve queries with this key."""
        rows = self.rows.copy()
        if key[0] is not None:
            rows &= self._patients != self._number_of[key[0]]
        for name, value in zip(self._settings.match, key[1:], strict=True):
            rows &= _one_of(self._columns[name], [value])
        return rows

    def describe(self, key: tuple[Any, ...] | None = None) -> str:
        """Return the conditions in words, those of a query with this key among them; empty where there are none."""
        settings = self._settings
        parts = [f"{name} is {_listed(values)}" for name, values in settings.equals.items()]
        if settings.label_source is not None:
            parts.append(f"label_source is {_listed(settings.label_source)}")
        parts += [f"the mask holds class {self._named(one)}" for one in settings.contains]
        parts += [f"the mask lacks class {self._named(one)}" for one in settings.lacks]
        if key is not None:
            parts += [
                f"{name} is '{value}', as the query's" for name, value in zip(settings.match, key[1:], strict=True)
            ]
            if key[0] is not None:
                parts.append(f"the patient is not the query's own, '{key[0]}'")
        return ", ".join(parts)

    def _class_value(self, wanted: int | str) -> int:
        found = [value for value, name in self._classes.items() if str(wanted) in (str(value), name)]
        if not found:
            known = ", ".join(self._named(value) for value in self._classes)
            raise SettingsError(f"the filter names class '{wanted}', but the support set's classes are {known}")
        return found[0]

    def _named(self, wanted: int | str) -> str:
        value = self._class_value(wanted)
        name = self._classes[value]
        return str(value) if name == str(value) else f"{value} ({name})"


def _column(support: SupportSet, name: str) -> pd.Series:
    if name in support.metadata:
        return support.metadata[name]
    if name == "patient":
        return pd.Series(support.patients)
    if name == "id":
        return pd.Series(support.ids)
    if name == "label_source":
        return pd.Series(["expert"] * len(support))
    known = ", ".join(sorted({"id", "patient", "label_source", *map(str, support.metadata.columns)}))
    raise SettingsError(f"the filter names column '{name}', but the support set's metadata have {known}")


def _one_of(column: pd.Series, values: Sequence[Any]) -> Rows:
    if is_numeric_dtype(column) and not is_bool_dtype(column):
        numbers = [_number(value, str(column.name)) for value in values]
        return np.isin(column.to_numpy(dtype=np.float64), numbers)
    return np.asarray(column.astype(str).isin([str(value) for value in values]), dtype=np.bool_)


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SettingsError(f"column '{name}' holds numbers, but the filter asks for '{value}'") from None


def _value_of(metadata: Metadata | None, name: str) -> Any:
    if metadata is None or name not in metadata:
        raise SettingsError(
            f"filter.match compares column '{name}', of which a query has no value; pass its metadata to the search"
        )
    return metadata[name]


def _listed(values: Sequence[Any]) -> str:
    return " or ".join(f"'{value}'" for value in values)
