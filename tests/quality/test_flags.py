from __future__ import annotations

import numpy as np
import pytest

from scripts.quality.flags import check_enclosing, component_flags, plane_flags


def heart() -> np.ndarray:
    """Class 2, a ring, around class 3; class 1 beside them."""
    label = np.zeros((24, 24, 3), dtype=np.uint8)
    label[4:16, 4:16] = 2
    label[7:13, 7:13] = 3
    label[17:21, 5:12] = 1
    return label


def test_a_sound_map_has_no_flag() -> None:
    assert component_flags(heart(), 4) == {1: [], 2: [], 3: []}
    assert plane_flags(heart(), 4, {2: 3}) == {1: [], 2: [], 3: []}


def test_empty_and_scattered_classes() -> None:
    label = heart()
    label[label == 1] = 0
    label[:2, :6] = 3  # over a tenth of the class
    label[23, 23, 0] = 2  # a speck
    assert component_flags(label, 4) == {1: ["empty"], 2: [], 3: ["2 components"]}
    assert component_flags(label[..., 0], 4)[3] == ["2 components"]


@pytest.mark.parametrize("where", [(0, slice(4, 9)), (23, slice(4, 9)), (slice(4, 9), 0), (slice(4, 9), 23)])
def test_border_of_the_slices_but_not_the_first_and_last_slice(where: tuple) -> None:
    label = heart()
    label[(*where, 1)] = 1
    assert plane_flags(label, 4) == {1: ["cut by the image's border"], 2: [], 3: []}


def test_a_few_pixels_at_the_border_cut_nothing_off() -> None:
    label = np.zeros((40, 40, 3), np.uint8)
    label[1:31, 5:35] = 1  # an outline of 116 pixels a slice
    label[0, 5:10, 1] = 1
    assert plane_flags(label, 2) == {1: []}
    label[0, 5:30, 1] = 1
    assert plane_flags(label, 2) == {1: ["cut by the image's border"]}


def test_an_open_ring_is_told_of_where_the_data_set_asks_for_one() -> None:
    label = heart()
    label[4:16, 4:7] = 0
    label[4:7, 4:16] = 0  # two of four sides
    assert plane_flags(label, 4, {2: 3})[2] == ["does not enclose class 3"]
    assert plane_flags(label, 4)[2] == []
    label[label == 3] = 0
    assert plane_flags(label, 4, {2: 3})[2] == [], "nothing is there to enclose"


@pytest.mark.parametrize("value", [{"2": "4"}, {"0": "1"}, {"a": "b"}, [1, 2], {"2": [3]}, "2"])
def test_enclosing_must_be_classes(value: object) -> None:
    with pytest.raises(ValueError, match="enclosing: expected foreground classes"):
        check_enclosing(value, 4)


def test_enclosing_is_read_as_numbers() -> None:
    assert check_enclosing({"2": "3"}, 4) == {2: 3}
