"""The README's snippet, run as it stands there in a Python of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippet() -> str:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1, "README.md holds one Python snippet: the one that this test runs"
    return str(blocks[0])


def test_the_snippet_runs_and_segments(tmp_path: Path) -> None:
    check = """
import numpy as np
assert result.labels.shape == images[0].shape and result.labels.dtype == np.uint8
assert set(np.unique(result.labels)) <= {0, 1, 2, 3}
assert len(result.support_ids) == 4
assert not {"prefect", "mlflow"} & set(__import__("sys").modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:rfss_core", "-c", snippet() + check],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(128, 128) uint8 from" in done.stdout


def test_the_snippet_is_about_ten_lines() -> None:
    assert len([line for line in snippet().splitlines() if line.strip()]) <= 12


def test_the_readme_names_every_exit_code() -> None:
    cli = (ROOT / "flows" / "exit_codes.py").read_text(encoding="utf-8")
    codes = re.search(r"^DONE, FAILED, BAD_INPUT, GATE_FAILED, INTERRUPTED = ([\d, ]+)$", cli, re.MULTILINE)
    assert codes is not None, "flows/exit_codes.py no longer lists its exit codes on one line"
    for code in codes[1].split(", "):
        assert re.search(rf"^\| {code} \|", README, re.MULTILINE), f"exit code {code} is not in the README's table"
