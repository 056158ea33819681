from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from scripts.metrics import COUNTS, MEASURES, SegmentationMetric, dice, segmentation_scores, surface_distances


def plain_surface(mask):
    """Coordinates of the mask's voxels that touch background (or the array's border) by a face."""
    points = []
    for index in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                neighbour = index.copy()
                neighbour[axis] += step
                inside = 0 <= neighbour[axis] < mask.shape[axis]
                if not inside or not mask[tuple(neighbour)]:
                    points.append(tuple(index))
    return np.array(sorted(set(points)), dtype=float)


def plain_distances(pred, label, spacing):
    """HD95 and ASSD from every pair of surface points."""
    a, b = plain_surface(pred) * spacing, plain_surface(label) * spacing
    pairs = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    pooled = np.concatenate([pairs.min(1), pairs.min(0)])
    return np.percentile(pooled, 95), (pairs.min(1).mean() + pairs.min(0).mean()) / 2


def blobs(seed, shape):
    rng = np.random.default_rng(seed)
    return rng.random(shape) > 0.6, rng.random(shape) > 0.7


def as_channels(mask):
    return torch.from_numpy(mask)[None, None]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((9, 8, 5), (1.0, 1.0, 1.0)), ((7, 10, 4), (1.5, 1.25, 8.0)), ((12, 9), (1.0, 1.0)), ((12, 9), (0.5, 2.0))],
)
def test_distances_equal_all_pairs(seed, shape, spacing):
    pred, label = blobs(seed, shape)
    assert surface_distances(pred, label, spacing) == pytest.approx(plain_distances(pred, label, spacing))


def test_distances_of_shifted_cube_by_hand():
    pred, label = np.zeros((2, 20, 20, 12), dtype=bool)
    pred[2:6, 2:6, 2:6] = True
    label[2:6, 2:6, 5:9] = True
    # 56 surface voxels per cube, in layers of 16, 12, 12 and 16 along z; the layer nearest to the other cube lies on
    # its surface, the others 1, 2 and 3 voxels away.
    hd95, assd = surface_distances(pred, label)
    assert hd95 == 3.0
    assert assd == pytest.approx((16 * 0 + 12 * 1 + 12 * 2 + 16 * 3) / 56)


def test_masks_at_the_border_have_a_surface():
    pred, label = np.ones((2, 4, 4, 4), dtype=bool)
    label[0] = False
    assert surface_distances(pred, label) == pytest.approx(plain_distances(pred, label, (1, 1, 1)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.5, 8.0)])
def test_assd_equals_monai_where_the_directed_means_weigh_the_same(spacing):
    pred = np.zeros((24, 24, 8), dtype=bool)
    pred[4:14, 5:15, 2:6] = True
    label = np.roll(pred, (3, 2, 1), (0, 1, 2))  # same shape: as many surface voxels a side
    monai = compute_average_surface_distance(as_channels(pred), as_channels(label), True, True, spacing=spacing)
    assert surface_distances(pred, label, spacing)[1] == pytest.approx(monai.item(), rel=1e-5)


def test_hd95_pools_what_monai_takes_the_larger_of():
    pred, label = np.zeros((2, 40, 24, 8), dtype=bool)
    pred[4:20, 4:20, 2:6] = True
    label[4:20, 4:20, 2:6] = True
    assert surface_distances(pred, label) == (0.0, 0.0)
    label[20:36, 4:10, 2:6] = True  # one-sided error: only label -> pred is far
    hd95 = surface_distances(pred, label)[0]
    monai = compute_hausdorff_distance(as_channels(pred), as_channels(label), True, percentile=95).item()
    assert 0 < hd95 < monai


def test_distances_are_symmetric_and_scale():
    pred, label = blobs(7, (10, 9, 6))
    assert surface_distances(pred, label) == pytest.approx(surface_distances(label, pred))
    doubled = surface_distances(pred, label, (2.0, 2.0, 2.0))
    assert doubled == pytest.approx([2 * value for value in surface_distances(pred, label)])


def test_distances_refuse_empty_masks():
    mask = np.ones((3, 3), dtype=bool)
    with pytest.raises(ValueError, match="non-empty"):
        surface_distances(mask, ~mask)


def test_dice_by_counting():
    pred, label = blobs(3, (6, 7, 8))
    both = sum(bool(p) and bool(q) for p, q in zip(pred.flat, label.flat, strict=True))
    assert dice(pred, label) == pytest.approx(2 * both / (pred.sum() + label.sum()))
    empty = np.zeros((2, 2), dtype=bool)
    assert dice(empty, empty) == 1.0
    assert dice(empty, ~empty) == 0.0


def test_scores_per_class_and_mean():
    rng = np.random.default_rng(0)
    pred, label = rng.integers(0, 3, (2, 8, 7, 5)).astype(np.uint8)
    spacing = (1.5, 1.5, 8.0)
    scores = segmentation_scores(pred, label, 3, spacing)
    assert list(scores) == ["1", "2", "mean"]
    for i in (1, 2):
        assert scores[str(i)]["dsc"] == dice(pred == i, label == i)
        mm = scores[str(i)]["hd95_mm"], scores[str(i)]["assd_mm"]
        assert mm == pytest.approx(plain_distances(pred == i, label == i, spacing))
        voxels = scores[str(i)]["hd95_voxels"], scores[str(i)]["assd_voxels"]
        assert voxels == pytest.approx(plain_distances(pred == i, label == i, (1, 1, 1)))
    assert scores["mean"]["dsc"] == pytest.approx((scores["1"]["dsc"] + scores["2"]["dsc"]) / 2)
    assert scores["mean"]["one_empty"] == scores["mean"]["both_empty"] == 0


def test_scores_of_empty_masks():
    pred, label = np.zeros((2, 3, 4, 12), dtype=np.uint8)
    label[1, 1, 1] = 1  # class 1 missed, class 2 invented, class 3 in neither
    pred[0, 0, 0] = 2
    scores = segmentation_scores(pred, label, 4, (2.0, 2.0, 2.0))
    for name in ("1", "2"):
        assert scores[name] == {
            "dsc": 0.0,
            "hd95_voxels": 13.0,
            "assd_voxels": 13.0,
            "hd95_mm": 26.0,
            "assd_mm": 26.0,
            "one_empty": 1,
            "both_empty": 0,
        }
    assert scores["3"]["dsc"] == 1.0
    assert scores["3"]["hd95_voxels"] == scores["3"]["assd_mm"] == 0.0
    assert scores["3"]["both_empty"] == 1
    assert scores["mean"]["dsc"] == pytest.approx(1 / 3)
    assert (scores["mean"]["one_empty"], scores["mean"]["both_empty"]) == (2, 1)


def test_scores_without_spacing_have_no_mm():
    pred = np.eye(5, dtype=np.uint8)
    scores = segmentation_scores(pred, pred.copy(), 2)
    assert scores["1"]["hd95_mm"] is None
    assert scores["mean"]["assd_mm"] is None
    assert scores["mean"]["hd95_voxels"] == 0.0


@pytest.mark.parametrize(
    ("label", "message"),
    [(np.zeros((3, 4), dtype=np.int16), "differ in shape"), (np.full((3, 3), 4, dtype=np.int16), "values from 4 to 4")],
)
def test_scores_refuse_wrong_label(label, message):
    with pytest.raises(ValueError, match=message):
        segmentation_scores(np.zeros((3, 3), dtype=np.int16), label, 4)


def test_the_metric_collects_the_scores_of_every_volume():
    """Also in MONAI's own handler, which reports the mean Dice."""
    rng = np.random.default_rng(0)
    pairs = [rng.integers(0, 3, (2, 6, 5, depth)).astype(np.uint8) for depth in (4, 3)]
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    metric = SegmentationMetric(3)
    engine = Engine(lambda engine, batch: batch)
    IgniteMetricHandler(metric, output_transform=from_engine(["pred", "label"])).attach(engine, "dice")
    volumes = [
        {"pred": MetaTensor(torch.from_numpy(pred)[None], affine=affine), "label": torch.from_numpy(label)[None]}
        for pred, label in pairs
    ]
    engine.run([[volume] for volume in volumes])

    expected = [segmentation_scores(pred, label, 3, (1.5, 1.5, 8.0)) for pred, label in pairs]
    rows = [[[entry[name] for name in (*MEASURES, *COUNTS)] for entry in each.values()] for each in expected]
    torch.testing.assert_close(metric.get_buffer(), torch.tensor(rows, dtype=torch.float64), rtol=0, atol=0)
    assert engine.state.metrics["dice"] == pytest.approx(np.mean([each["mean"]["dsc"] for each in expected]))


def test_the_metric_without_a_voxel_size_has_no_distances_in_mm():
    metric = SegmentationMetric(2)
    metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    scores = dict(zip((*MEASURES, *COUNTS), metric.get_buffer()[0, 0].tolist(), strict=True))
    assert (scores["dsc"], scores["hd95_voxels"]) == (1, 0)
    assert np.isnan([scores["hd95_mm"], scores["assd_mm"]]).all()
