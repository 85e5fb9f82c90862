"""From a verified model reference to a module in evaluation mode, without ever trusting half a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError

from rfss_core.errors import ModelError
from rfss_core.weights.reference import INITIALISATION_SEED, WEIGHTS, ModelReference


def load_checkpoint(
    reference: ModelReference,
    architecture: Any,
    model_types: Collection[str],
    *,
    optional: Collection[str] = (),
    **config_overrides: Any,
) -> torch.nn.Module:
    """Build a transformers model and fill it from safetensors.

    An untrained embedded reference is initialised from its configuration with a fixed seed, whatever the state of
    torch's global generator, which is left as it was.

    Args:
        reference: what :func:`rfss_core.weights.resolve_model` returned.
        architecture: transformers class to build: a ``PreTrainedModel`` subclass, or an ``AutoModel``.
        model_types: values of ``model_type`` in ``config.json`` that fit the architecture.
        optional: substrings of parameter names that the checkpoint may lack.
        **config_overrides: attributes of the configuration to replace.

    Returns:
        The model in float32, in evaluation mode, on the CPU, without gradients.

    Raises:
        ModelError: another architecture, a checkpoint that lacks or misshapes parameters, or a broken file.
    """
    from transformers import AutoConfig

    found = reference.config().get("model_type")
    if found not in model_types:
        raise ModelError(
            f"model '{reference.name}' is of type '{found}', but {' or '.join(sorted(model_types))} is needed here; "
            "choose another model"
        )
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(reference.folder, local_files_only=True, **config_overrides)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"model '{reference.name}': its configuration cannot be used ({error})") from error
        model = (
            _filled(reference, architecture, config, optional) if reference.trained else _seeded(architecture, config)
        )
    return model.float().eval().requires_grad_(requires_grad=False)


def _seeded(architecture: Any, config: Any) -> torch.nn.Module:
    build = getattr(architecture, "from_config", None) or architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(INITIALISATION_SEED)
        model: torch.nn.Module = build(config)
    return model


def _filled(reference: ModelReference, architecture: Any, config: Any, optional: Collection[str]) -> torch.nn.Module:
    try:
        model, info = architecture.from_pretrained(
            reference.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"model '{reference.name}': {WEIGHTS} in {reference.folder} cannot be loaded ({_first_line(error)}); "
            "download it again"
        ) from error
    # transformers fills what is missing with random numbers and only logs it.
    missing = sorted(key for key in info["missing_keys"] if not any(part in key for part in optional))
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(str(key) for key in info["mismatched_keys"])
        raise ModelError(
            f"model '{reference.name}': {len(wrong)} parameters are missing or misshapen in its weights, first "
            f"'{wrong[0]}'; the weights belong to another architecture than its config.json"
        )
    result: torch.nn.Module = model
    return result


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    # Loading bars and reports would tear the command line's own progress display.
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
