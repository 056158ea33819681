from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.methods import Objective, SemSim, SemSimVariants
from scripts.networks import PixelProjection, SpatialAwareFusion, UNet

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "configs" / "ablations"
DOCUMENT = (ROOT / "docs" / "method.md").read_text()

# Rows as the paper prints them. Table IV: L_u, L_intra, L_cross.
TABLE_4 = {
    "table4_decoder": (True, False, False),
    "table4_intra": (False, True, False),
    "table4_cross": (False, False, True),
    "table4_intra_cross": (False, True, True),
    "table4_decoder_intra": (True, True, False),
    "table4_decoder_cross": (True, False, True),
}
# Table VI: strong view of p^in and of p^cr (None: no such prediction), strong views of p^s.
TABLE_6 = {
    "table6_s1_s1_s1": (1, 1, [1]),
    "table6_s1_s1_s2": (1, 1, [2]),
    "table6_s1_s2_s2": (1, 2, [2]),
    "table6_s1_s2_s3": (1, 2, [3]),
    "table6_decoder_s1_s2": (None, None, [1, 2]),
    "table6_decoder_s1_s2_s3": (None, None, [1, 2, 3]),
}
FIGURE_11 = {
    "fig11_decoder": ("decoder",),
    "fig11_intra": ("intra",),
    "fig11_cross": ("cross",),
    "fig11_decoder_intra": ("decoder", "intra"),
    "fig11_decoder_cross": ("decoder", "cross"),
    "fig11_intra_cross": ("intra", "cross"),
    "fig11_decoder_intra_cross": ("decoder", "intra", "cross"),
}


def method_of(*overlays: str, **overrides: Any) -> SemSim:
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / name) for name in ("train.json", *overlays)])
    parser.update({"bundle_root": str(ROOT), "device": "$torch.device('cpu')", **overrides})
    method = parser.get_parsed_content("method")
    assert isinstance(method, SemSim)
    return method


def losses_and_views(method: SemSim) -> tuple[set[str], int]:
    """Names of the losses of one step, and how many strong views it drew."""
    drawn: list[nn.Module] = []
    method.strong.register_forward_hook(lambda module, *_: drawn.append(module))
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        losses = method({"image": image, "label": (image > 0.5).long(), "unlabeled": image})
    return {name for name in losses if name.startswith("loss_")} - {"loss_supervised"}, len(drawn)


def test_every_overlay_is_a_row_and_documented() -> None:
    names = {path.stem for path in FOLDER.glob("*.json")}
    assert names == {*TABLE_4, *TABLE_6, *FIGURE_11}
    assert names == set(re.findall(r"`((?:table|fig)\d\w+)\.json`", DOCUMENT))


@pytest.mark.parametrize(("name", "row"), TABLE_4.items())
def test_table_4(name: str, row: tuple[bool, bool, bool]) -> None:
    names = ("decoder", "intra", "cross")
    default, method = method_of(), method_of(f"ablations/{name}.json")
    for part, kept in zip(names, row, strict=True):
        weight = f"lambda_{part}"
        assert getattr(method, weight) == (getattr(default, weight) if kept else 0)
    losses, _ = losses_and_views(method)
    assert losses == {f"loss_{part}" for part, kept in zip(names, row, strict=True) if kept}


@pytest.mark.parametrize(("name", "row"), TABLE_6.items())
def test_table_6(name: str, row: tuple[int | None, int | None, list[int]]) -> None:
    intra, cross, decoder = row
    method = method_of(f"ablations/{name}.json")
    assert isinstance(method, SemSimVariants)
    assert method.decoder_views == tuple(decoder)
    assert intra is None or method.intra_view == intra
    assert cross is None or method.cross_view == cross
    losses, views = losses_and_views(method)
    assert losses == {"loss_decoder"} | ({"loss_intra"} if intra else set()) | ({"loss_cross"} if cross else set())
    assert views == len({*decoder, intra, cross} - {None})


@pytest.mark.parametrize(("name", "kinds"), FIGURE_11.items())
def test_figure_11(name: str, kinds: tuple[str, ...]) -> None:
    method = method_of(f"ablations/{name}.json")
    assert isinstance(method, SemSimVariants)
    assert method.shared_target
    assert method.shared_kinds == kinds
    assert losses_and_views(method)[0] == {"loss_decoder", "loss_intra", "loss_cross"}


def test_figure_11_has_every_set_of_predictions_as_one_target() -> None:
    kinds = ("decoder", "intra", "cross")
    assert sorted(FIGURE_11.values()) == sorted(c for n in (1, 2, 3) for c in combinations(kinds, n))


def test_default_is_the_last_row_of_table_4_and_the_third_of_table_6() -> None:
    method = method_of("semsim_variants.json")
    assert isinstance(method, SemSimVariants)
    assert (method.intra_view, method.cross_view, method.decoder_views) == (1, 2, (1,))
    assert losses_and_views(method_of()) == ({"loss_decoder", "loss_intra", "loss_cross"}, 2)


def test_semsim_minus_takes_an_ablation_on_top() -> None:
    method = method_of("methods/semsim_minus.json", "ablations/table4_intra_cross.json")
    assert isinstance(method.fusion, PixelProjection)
    assert method.lambda_decoder == 0


@pytest.mark.parametrize(("key", "value"), re.findall(r"`(?:--)?((?:method|weak_view)#[\w#]+) (\S+)`", DOCUMENT))
def test_documented_override_makes_a_step(key: str, value: str) -> None:
    variants = inspect.signature(SemSimVariants.__init__).parameters
    files = ["semsim_variants.json"] if key.removeprefix("method#") in variants else []
    try:
        override = ast.literal_eval(value)
    except ValueError:
        override = value
    assert losses_and_views(method_of(*files, **{key: override}))[0] >= {"loss_decoder", "loss_intra", "loss_cross"}


def test_documented_functions_exist() -> None:
    names = set(re.findall(r"`(scripts\.[\w.]+)`", DOCUMENT))
    assert len(names) > 15
    for name in names:
        parts = name.split(".")
        depth = max(d for d in range(1, len(parts) + 1) if _is_module(".".join(parts[:d])))
        found: Any = importlib.import_module(".".join(parts[:depth]))
        for part in parts[depth:]:
            found = getattr(found, part)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_documented_options_are_those_of_the_code() -> None:
    section = DOCUMENT.split("\n## Options\n")[1].split("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE))
    classes = (Objective, SemSim, SemSimVariants)
    parameters = {n: p for c in classes for n, p in inspect.signature(c.__init__).parameters.items()}
    modules = {"self", "kwargs", "network", "fusion", "weak", "strong"}
    expected = {n: json.dumps(p.default).strip('"') for n, p in parameters.items() if n not in modules}
    assert documented == expected


def test_documented_parameter_counts() -> None:
    def count(*modules: nn.Module) -> str:
        return f"{sum(p.numel() for module in modules for p in module.parameters()):,}"

    network, fusion, projection = UNet(), SpatialAwareFusion(), PixelProjection()
    expected = {
        "U-Net, 1 input channel, 4 classes": count(network),
        "- its encoder": count(network.encoder),
        "- its decoder with the output convolution": count(network.decoder, network.head),
        "Spatial-aware fusion module, stages 2, 3, 4": count(fusion),
        "- of these position embeddings": count(fusion.position),
        "U-Net and fusion module (SemSim)": count(network, fusion),
        "Projection of SemSim-": count(projection),
        "U-Net and projection (SemSim-)": count(network, projection),
    }
    section = DOCUMENT.split("\n## Networks\n")[1]
    assert dict(re.findall(r"^\| ([^|]+) \| ([\d,]+) \|$", section.split("\n## ")[0], re.MULTILINE)) == expected
    stages = re.findall(r"#stages (\[[\d,]+\])` \| ([\d,]+) \| ([\d,]+) \|", DOCUMENT)
    assert len(stages) == 5
    for chosen, parameters, tokens in stages:
        module = SpatialAwareFusion(stages=json.loads(chosen))
        assert parameters == count(module)
        assert tokens == f"{sum(p.shape[-1] ** 2 for p in module.position):,}"
