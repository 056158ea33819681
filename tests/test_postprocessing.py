"""Mirrored averaging and largest components, scripts/postprocessing.py."""

from __future__ import annotations

from collections import deque
from itertools import product

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer

from scripts.networks import UNet
from scripts.postprocessing import LargestComponentd, MirroredSliceInferer

GIVEN = {"roi_size": (32, 32), "spatial_dim": 2, "sw_batch_size": 4}


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(channels=(4, 6, 8, 10, 12)).eval()


def test_mirrored_averaging_is_the_mean_of_four_predictions() -> None:
    """Against a plain loop over slices and mirrors; a mirrored volume gets the mirrored answer."""
    net, volume = network(), torch.rand(1, 1, 32, 32, 5)
    with torch.no_grad():
        found = MirroredSliceInferer(mirroring=True, **GIVEN)(volume, net)
        for k in range(5):
            image = volume[..., k]
            four = [net(image.flip(a)).softmax(1).flip(a) for a in ((), (2,), (3,), (2, 3))]
            torch.testing.assert_close(found[..., k].softmax(1), sum(four) / 4, atol=1e-5, rtol=1e-4)
        mirrored = MirroredSliceInferer(mirroring=True, **GIVEN)(volume.flip(3), net).flip(3)
        torch.testing.assert_close(mirrored, found, atol=1e-4, rtol=1e-4)
        assert torch.equal(MirroredSliceInferer(**GIVEN)(volume, net), SliceInferer(**GIVEN)(volume, net))


def largest(mask: np.ndarray) -> np.ndarray:
    """Breadth-first search from every voxel."""
    best, seen = np.zeros_like(mask), np.zeros_like(mask)
    for start in zip(*mask.nonzero(), strict=True):
        if seen[start]:
            continue
        found, waiting = np.zeros_like(mask), deque([start])
        found[start] = True
        while waiting:
            place = waiting.popleft()
            for step in product((-1, 0, 1), repeat=mask.ndim):
                near = tuple(p + s for p, s in zip(place, step, strict=True))
                inside = all(0 <= n < size for n, size in zip(near, mask.shape, strict=True))
                if inside and mask[near] and not found[near]:
                    found[near] = True
                    waiting.append(near)
        seen |= found
        if found.sum() > best.sum():
            best = found
    return best


def test_largest_component_of_each_class() -> None:
    rng = np.random.default_rng(0)
    for shape in ((12, 11, 4), (20, 20, 1)):
        label = rng.choice(4, size=shape, p=[0.85, 0.05, 0.05, 0.05])
        given = MetaTensor(torch.from_numpy(label)[None].float(), affine=torch.diag(torch.tensor([2.0, 2, 9, 1])))
        found = LargestComponentd("pred")({"pred": given})["pred"]
        assert torch.equal(found.affine, given.affine)
        assert found.dtype == given.dtype
        for number in (1, 2, 3):
            assert (found[0].numpy() == number).sum() == largest(label == number).sum()
            assert not ((found[0].numpy() == number) & (label != number)).any()
    empty = torch.zeros(1, 5, 5, 2)
    assert torch.equal(LargestComponentd("pred")({"pred": empty})["pred"], empty)
