"""Checkpoints of earlier versions: objectives with other options, and a file of an old commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.handlers.checkpoints import RunCheckpoint
from tests.methods.common import build, trainer

MOVED: dict[str, Any] = {"gate": "self", "affinity_space": "logit", "decoder_views": (1,), "shared_target": False}


def written(folder: Path, **options: Any) -> Path:
    """A checkpoint of SemSim after one epoch, with all options of an earlier version of SemSim."""
    objective = build("semsim_minus")
    trainer(objective, 1, [RunCheckpoint(str(folder), objective.network)]).run()
    content = torch.load(folder / RunCheckpoint.name, weights_only=True)
    content["state"] |= {**MOVED, **options}
    torch.save(content, folder / RunCheckpoint.name)
    return folder / RunCheckpoint.name


def test_a_checkpoint_with_the_options_of_the_method_is_resumed(tmp_path: Path) -> None:
    written(tmp_path)
    objective = build("semsim_minus")
    engine = trainer(objective, 2, [RunCheckpoint(str(tmp_path), objective.network, resume=True)])
    engine.run()
    assert engine.state.epoch == 2


@pytest.mark.parametrize(("name", "value"), [("gate", "agree"), ("decoder_views", (2,)), ("shared_target", True)])
def test_a_checkpoint_of_a_variant_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    """SemSim no longer has the option: a resumed run would train another objective."""
    written(tmp_path, **{name: value})
    objective = build("semsim_minus")
    with pytest.raises(ValueError, match=rf"expected a run with {name} ") as info:
        trainer(objective, 2, [RunCheckpoint(str(tmp_path), objective.network, resume=True)]).run()
    assert "\n" not in str(info.value)
