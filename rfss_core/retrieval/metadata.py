"""Metadata of cases: the columns of the manifest, and those of the user's own table."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pandas as pd

from rfss_core.errors import InputNotFoundError, SettingsError
from rfss_core.imaging import Pseudonyms
from rfss_core.settings import RetrievalSettings
from rfss_core.settings.retrieval import LabelSource

COLUMNS = (
    "case_id",
    "name",
    "patient",
    "modality",
    "body_part",
    "kind",
    "n_slices",
    "height",
    "width",
    "spacing_z",
    "spacing_y",
    "spacing_x",
)
"""Columns of the manifest's cases that a filter may name."""
GIVEN = ("modality", "body_part", "label_source")
"""Columns that the user's table may set where the files do not tell, or better than they do."""
PREFIX = "metadata."
"""Before the names of columns of metadata in a table of slices."""


def case_metadata(cases: pd.DataFrame, table: str | None, pseudonyms: Pseudonyms | None = None) -> pd.DataFrame:
    """Return what filters may ask about cases.

    Args:
        cases: the manifest's cases.
        table: the user's CSV file, see :func:`read_table`; None: there is none.
        pseudonyms: that the cases have; the table names them plainly.

    Returns:
        One row a case, in the cases' order, with :data:`COLUMNS`, ``label_source`` (``expert`` or ``reviewed`` for a
        labelled case) and the columns of the user's table, which are text and empty for a case that it does not list.

    Raises:
        InputNotFoundError: no such file.
        SettingsError: a table that cannot be used.
    """
    known = cases[list(COLUMNS)].reset_index(drop=True)
    sources = cases["label_source"] if "label_source" in cases else [""] * len(cases)
    known["label_source"] = [
        (source or "expert") if labelled else "" for source, labelled in zip(sources, cases["labelled"], strict=True)
    ]
    if table is None:
        return known
    given = read_table(table, private=pseudonyms is not None)
    key = str(given.index.name)
    keys = known[key].astype(str)
    if pseudonyms is not None and key == "patient":
        given.index = given.index.map(pseudonyms.patient)
    elif pseudonyms is not None:
        # The table does not say whose the case is, and the second half of a case's pseudonym does not depend on it.
        given.index, keys = given.index.map(pseudonyms.case_part), keys.str.rpartition("_")[2]
    own = given.reindex(keys).fillna("").reset_index(drop=True)
    for name in own.columns:
        if name in GIVEN:
            known[name] = [new or old for new, old in zip(own[name], known[name], strict=True)]
        elif name in known:
            raise SettingsError(
                f"metadata file '{table}' has column '{name}', which is the manifest's own; rename it (only "
                f"{', '.join(GIVEN)} may be set)"
            )
        else:
            known[name] = own[name]
    return known


def read_table(path: str, *, private: bool = False) -> pd.DataFrame:
    """Read the user's table: CSV with a column ``name`` or ``patient``, and any others.

    Args:
        path: of the file.
        private: errors quote nothing of it.

    Returns:
        Text columns, by name or patient.

    Raises:
        InputNotFoundError: no such file.
        SettingsError: not CSV, neither of the two columns or both, a row given twice, or an unknown ``label_source``.
    """
    if not Path(path).is_file():
        raise InputNotFoundError(f"metadata file '{path}' does not exist; check retrieval.metadata")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise SettingsError(f"metadata file '{path}' is not a CSV table: {error}") from error
    keys = [name for name in ("name", "patient") if name in table]
    if len(keys) != 1:
        raise SettingsError(
            f"metadata file '{path}' has columns {', '.join(map(str, table.columns))}; it needs either 'name' (an "
            "image's relative path without extension) or 'patient', not both"
        )
    repeated = table.loc[table[keys[0]].duplicated(), keys[0]]
    if len(repeated):
        what = f"a {keys[0]}" if private else f"{keys[0]} '{repeated.iloc[0]}'"
        raise SettingsError(
            f"metadata file '{path}' lists {what} more than once (row {int(repeated.index[0]) + 2}); keep one row"
        )
    sources = set(table.get("label_source", pd.Series(dtype=str))) - {*get_args(LabelSource), ""}
    if sources:
        raise SettingsError(
            f"metadata file '{path}' has label_source '{min(sources)}'; allowed are {', '.join(get_args(LabelSource))}"
        )
    return table.set_index(keys[0])


def filter_columns(
    cases: pd.DataFrame, settings: RetrievalSettings, pseudonyms: Pseudonyms | None = None
) -> pd.DataFrame:
    """Return what the settings' filter looks at.

    Args:
        cases: the manifest's cases.
        settings: the filter, and the user's table.
        pseudonyms: that the cases have.

    Returns:
        ``case_id`` and, with :data:`PREFIX` before their names, the filter's columns; one row a case, in the cases'
        order.

    Raises:
        InputNotFoundError: the user's table does not exist.
        SettingsError: the table cannot be used, or neither it nor the manifest has a column that the filter names.
    """
    wanted = [name for name in settings.filter.columns if name != "id"]
    known = case_metadata(cases, settings.metadata, pseudonyms)
    for name in wanted:
        if name not in known:
            raise SettingsError(
                f"the filter names column '{name}', but the metadata have {', '.join(map(str, known.columns))}"
            )
    return pd.DataFrame({"case_id": known["case_id"], **{PREFIX + name: known[name] for name in wanted}})


def unprefixed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of metadata in a table of slices, under their own names."""
    names = [str(name) for name in table.columns if str(name).startswith(PREFIX)]
    return table[names].rename(columns=lambda name: str(name).removeprefix(PREFIX))
