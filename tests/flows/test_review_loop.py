"""The review loop on a real run: out to the reviewer, back into the support set, never into the measurement."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cohorts import VOTE, save, settings_for, write_cohort

from flows.cli import main
from flows.label_dataset import label_dataset
from rfss_core.digest import digest_file
from rfss_core.settings import LabelSettings
from rfss_core.store import Reviews, Workspace


def rfss(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> LabelSettings:
    place = tmp_path_factory.mktemp("review")
    write_cohort(place / "cohort", patients=11, labelled=6, depth=2, side=32)
    # A second scan of a labelled patient, who may be held out.
    for name in ("sub-00", "sub-01", "sub-02"):
        shutil.copyfile(place / f"cohort/images/{name}.nii.gz", place / f"cohort/images/{name}_again.nii.gz")
    return settings_for(place / "cohort", place / "work", segmentation=VOTE)


@pytest.fixture(scope="module")
def before(settings: LabelSettings) -> dict[str, set[str]]:
    label_dataset(settings)
    return _sides(settings)


def _sides(settings: LabelSettings) -> dict[str, set[str]]:
    """Return the cases of the latest support set, and those that were measured, by their figures."""
    workspace = Workspace.open(settings.workspace)
    newest = max((Path(settings.workspace) / "records/index").iterdir(), key=lambda path: path.stat().st_mtime)
    table = workspace.stage("index", newest.name).read_table("support", "slices")
    return {"support": set(table["case_id"]), "patients": set(table["patient"])}


def test_corrected_masks_go_round(
    settings: LabelSettings, before: dict[str, set[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, out = Path(settings.images).parent, tmp_path / "review"
    labels = {path.name: digest_file(path) for path in (cohort / "labels").iterdir()}
    assert rfss("review", "export", settings.workspace, "--out", out, "--n", 8, "--accepted") == 0
    rows = list(csv.DictReader((out / "worklist.csv").read_text().splitlines()))
    assert [row["rank"] for row in rows] == [str(number) for number in range(1, 9)]
    gains = [float(row["expected_gain"]) for row in rows]
    assert gains == sorted(gains, reverse=True)
    for row in rows:
        image, source = nib.load(out / row["image"]), nib.load(cohort / "images" / f"{row['case']}.nii.gz")
        pseudo = nib.load(out / row["label"])
        for found in (image, pseudo):
            assert found.shape == source.shape
            np.testing.assert_array_equal(found.header.get_sform(), source.header.get_sform())
            np.testing.assert_array_equal(found.header.get_qform(), source.header.get_qform())
            assert [int(found.header[code]) for code in ("sform_code", "qform_code")] == [1, 2]
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(source.dataobj))

    # The reviewer corrects one (as a viewer saves it: axes flipped), confirms one, breaks two, and leaves two alone.
    again = [row for row in rows if row["case"].endswith("_again")]
    plain = [row for row in rows if not row["case"].endswith("_again")]
    corrected, confirmed, broken, shifted = plain[0], again[0], plain[1], plain[2]
    mask = nib.load(out / corrected["label"])
    data = np.asarray(mask.dataobj).copy()
    data[1:5, 1:5] = 1
    flipped = nib.as_closest_canonical(nib.Nifti1Image(data, mask.affine))
    nib.save(flipped, out / corrected["label"])
    mask = nib.load(out / broken["label"])
    data = np.asarray(mask.dataobj).copy()
    data[0, 0, 0] = 9
    nib.save(nib.Nifti1Image(data, mask.affine), out / broken["label"])
    mask = nib.load(out / shifted["label"])
    affine = mask.affine.copy()
    affine[0, 3] += 3
    save(out / shifted["label"], np.asarray(mask.dataobj), affine)
    for row in rows:
        row["reviewed"] = {confirmed["case"]: "Yes", shifted["case"]: "x"}.get(row["case"], "")
        row["reviewer"] = "Dr. A" if row is confirmed else ""
    with (out / "worklist.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0], delimiter=";")
        table.writeheader()
        table.writerows(rows)

    capsys.readouterr()
    assert rfss("review", "import", out, "--workspace", settings.workspace, "--reviewer", "B") == 2
    refused = " ".join(capsys.readouterr().err.split())
    assert f"labels/{broken['case']}.nii.gz: holds 9" in refused
    assert "undeclared_class" in refused
    assert "label_affine_mismatch" in refused
    kept = Reviews(Workspace.open(settings.workspace).files).all()
    assert {review.name for review in kept.values()} == {corrected["case"], confirmed["case"]}
    first = next(review for review in kept.values() if review.name == corrected["case"])
    second = next(review for review in kept.values() if review.name == confirmed["case"])
    assert (first.reviewer, first.changed, second.reviewer, second.changed) == ("B", True, "Dr. A", False)
    assert set(second.dice.values()) == {1.0}
    assert min(first.dice.values()) < 1
    assert first.pseudo_label_sha256 == digest_file(Path(settings.workspace) / f"pseudo_labels/{first.name}.nii.gz")

    summary = label_dataset(settings)
    after = _sides(settings)
    assert (summary.cases.reviewed, summary.cases.unlabelled) == (2, 6)
    # Reviewed cases serve, unless their patient is held out; held-out patients stay who they were.
    expected = {review.case_id for review in kept.values() if review is first or _serves(second.name, before)}
    assert after["support"] - before["support"] == expected
    assert before["support"] <= after["support"]
    assert summary.cases.held_out == 3
    assert {path.name: digest_file(path) for path in (cohort / "labels").iterdir()} == labels
    assert not (Path(settings.workspace) / f"pseudo_labels/{first.name}.nii.gz").exists()


def _serves(name: str, before: dict[str, set[str]]) -> bool:
    return name.removesuffix("_again") in before["patients"]


def test_refusals(settings: LabelSettings, before: dict[str, set[str]], tmp_path: Path) -> None:
    out = tmp_path / "review"
    assert rfss("review", "export", tmp_path / "nowhere", "--out", out) == 2
    assert rfss("review", "export", settings.workspace, "--out", out, "--n", 1, "--accepted") == 0
    assert rfss("review", "export", settings.workspace, "--out", out) == 2
    assert rfss("review", "import", tmp_path, "--workspace", settings.workspace) == 2
    text = (out / "worklist.csv").read_text().splitlines()
    (out / "worklist.csv").write_text("\n".join([text[0], text[1].rstrip(",") + ",perhaps,,"]))
    assert rfss("review", "import", out, "--workspace", settings.workspace) == 2
    (out / "worklist.csv").write_text("\n".join(text))
    document = json.loads((out / "review.json").read_text())
    document["cases"][0]["case_id"] = "elsewhere"
    (out / "review.json").write_text(json.dumps(document))
    assert rfss("review", "import", out, "--workspace", settings.workspace) == 2
