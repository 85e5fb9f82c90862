"""Compiled parts give the same logits, from several lanes at once; a machine without a compiler hears of it early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfss_core.errors import SettingsError
from rfss_core.presets import Preset
from rfss_core.segmentation import load_segmenter
from rfss_core.segmentation.compilation import CompiledFunction
from rfss_core.settings import SegmentationSettings


def test_no_compiler_is_an_error_with_a_remedy(
    preset: Preset, settings: SegmentationSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingsError, match="install g\\+\\+"):
        load_segmenter(settings.model_copy(update={"compile": True}), preset)


def test_compiling_is_part_of_the_identity_because_it_moves_last_bits(
    preset: Preset, settings: SegmentationSettings
) -> None:
    plain, compiled = (
        load_segmenter(settings.model_copy(update={"compile": compile_}), preset) for compile_ in (False, True)
    )
    assert plain.digest != compiled.digest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_logits_are_the_same_in_any_number_of_lanes(
    toys: Any, preset: Preset, settings: SegmentationSettings
) -> None:
    support, threads, outcomes = toys.shapes(6, without_square=(2,)), torch.get_num_threads(), []
    settings = settings.model_copy(update={"batch_size": 2})
    expected = load_segmenter(settings, preset).segment(toys.queries, toys.found, support)
    segmenter: Any = load_segmenter(settings.model_copy(update={"compile": True}), preset)
    try:
        for count in (3, 1):
            torch.set_num_threads(count)
            outcomes.append(segmenter.segment(toys.queries, toys.found, support))
    finally:
        torch.set_num_threads(threads)
    # Really compiled, for batches of two and of one.
    encoder = segmenter.adapter.image_encoder.forward
    assert isinstance(encoder, CompiledFunction)
    assert len(encoder._ready) == 2
    for plain, compiled, again in zip(expected, *outcomes, strict=True):
        np.testing.assert_allclose(plain.logits, compiled.logits, atol=1e-4)
        np.testing.assert_array_equal(compiled.logits, again.logits)
