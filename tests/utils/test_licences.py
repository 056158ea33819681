from __future__ import annotations

import pytest

from scripts.utils.licences import (
    SYNTHETIC,
    inherited_licenses,
    licenses_line,
    recorded_licenses,
    unique_licenses,
)

CC, NC = "CC BY 4.0", "CC BY-NC 4.0"


@pytest.mark.parametrize("licenses", [[CC], [CC, NC], [CC, NC, CC, NC]])
def test_each_licence_is_stated_once(licenses: list[str]) -> None:
    assert unique_licenses(*licenses) == list(dict.fromkeys(licenses))


def test_records_hold_a_list_and_older_ones_a_line() -> None:
    assert recorded_licenses({"license": [CC, NC]}) == [CC, NC]
    line = "CC BY 4.0; and of the weights that these began with: CC BY-NC 4.0"
    assert recorded_licenses({"license": line}) == [CC, NC]
    assert licenses_line([CC, NC]) == line
    assert recorded_licenses({}) == []


def test_synthetic_images_pass_no_licence_on() -> None:
    assert inherited_licenses({"license": [SYNTHETIC, NC]}) == [NC]
