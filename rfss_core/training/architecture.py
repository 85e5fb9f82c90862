"""Network architectures by name.

To add one, write a builder and enter it into ``BUILDERS``, and its name into ``ArchitectureName``, ``SegmenterName``
and ``SUPERVISED`` of ``rfss_core/settings``. A network must keep no state that a forward pass changes (no batch norm)
and draw no random numbers (no dropout): the trainer shares it between threads and promises the same weights for any
number of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rfss_core.errors import ModelError

MULTIPLE = 32
"""Sides of the network's input are multiples of this."""


def _unet(channels: int, planes: int, width: int) -> torch.nn.Module:
    # MONAI takes seconds to import; only a training or its network should wait for it.
    from monai.networks.nets.unet import UNet

    network: torch.nn.Module = UNet(
        spatial_dims=2,
        in_channels=channels,
        out_channels=planes,
        channels=[width * 2**level for level in range(5)],
        strides=[2] * 4,
        num_res_units=2,
        norm=("INSTANCE", {"affine": True}),
    )
    return network


def _swin_unetr(channels: int, planes: int, width: int) -> torch.nn.Module:
    from monai.networks.nets.swin_unetr import SwinUNETR

    network: torch.nn.Module = SwinUNETR(
        spatial_dims=2,
        in_channels=channels,
        out_channels=planes,
        # A multiple of the heads of the first level; MONAI's own default of 24 at the default width of 16.
        feature_size=12 * max(1, round(width / 8)),
        norm_name="instance",
    )
    return network


def _segformer(channels: int, planes: int, width: int) -> torch.nn.Module:
    from rfss_core.training.segformer import SegFormer

    return SegFormer(channels, planes, width)


BUILDERS: dict[str, Callable[[int, int, int], torch.nn.Module]] = {
    "unet": _unet,
    "swin-unetr": _swin_unetr,
    "segformer": _segformer,
}
"""Name -> builder of (input channels, output planes, width)."""

LEAST = {"swin-unetr": 2 * MULTIPLE}
"""Least sides in pixels where they are above ``MULTIPLE``: SwinUNETR's deepest level is 1/32 of the input, and its
instance norm needs more than one pixel there."""


def build_network(architecture: str, channels: int, planes: int, width: int, seed: int = 0) -> torch.nn.Module:
    """Build a 2-D network with random weights.

    ``unet`` is MONAI's residual U-Net (Ronneberger et al., arXiv:1505.04597; Kerfoot et al., "Left-ventricle
    quantification using residual U-Net", STACOM 2018): five levels, instance norm.

    ``swin-unetr`` is MONAI's SwinUNETR in two dimensions (Hatamizadeh et al., arXiv:2201.01266), from random weights.

    ``segformer`` is transformers' SegFormer (Xie et al., arXiv:2105.15203), of B0's size at width 16, from random
    weights; see :class:`rfss_core.training.segformer.SegFormer`.

    Args:
        architecture: a key of ``BUILDERS``.
        channels: of the image, 1 or 3.
        planes: classes and the background.
        width: channels of the finest level.
        seed: of the weights; torch's global generator is left as it was.

    Returns:
        A float32 module on the CPU that maps [N, channels, H, W] to logits [N, planes, H, W]; H and W multiples of
        ``MULTIPLE``, and at least ``LEAST``.

    Raises:
        ModelError: an unknown architecture.
    """
    if architecture not in BUILDERS:
        raise ModelError(f"architecture '{architecture}' is not known; choose one of {', '.join(sorted(BUILDERS))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[architecture](channels, planes, width)
