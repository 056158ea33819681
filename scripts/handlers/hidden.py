"""Quality of the pseudo-labels during training, measured with labels that the training does not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Events
from monai.transforms import Compose
from torch.utils.tensorboard import SummaryWriter

from scripts.data import SemiSupervisedLoader, SliceDataset
from scripts.engine import SemiSupervisedTrainer
from scripts.hidden import count_pseudo_labels, hidden_records, scores, with_hidden

__all__ = ["HiddenLabels"]


class HiddenLabels:
    """Handler that logs the quality of the pseudo-labels after every epoch.

    Only this handler reads the hidden labels; the training is the same as without it. Each kind of pseudo-label has two
    TensorBoard curves of the foreground classes: ``pseudo_KIND_dice``, the mean Dice over all pixels, and
    ``pseudo_KIND_precision``, the share of correct pixels among those that pass the threshold. Batches and random
    numbers are the same in every epoch.

    Args:
        output_dir: folder of the TensorBoard events.
        dataset: the training slices.
        annotated: records of the training cases with every label that the data set holds.
        preprocessing: preprocessing of the training slices.
        cache_dir: cache of the slices with hidden labels.
        num_classes: classes, background included.
        batches: number of batches per epoch.

    Raises:
        ValueError: if all training images are labelled.
        FileNotFoundError: if no unlabelled image has a label.
    """

    def __init__(
        self,
        output_dir: str,
        dataset: SliceDataset,
        annotated: Sequence[Mapping[str, Any]],
        preprocessing: Compose,
        cache_dir: str,
        num_classes: int,
        batches: int = 10,
    ) -> None:
        self.output_dir = output_dir
        self.batches = batches
        self.hidden = SliceDataset(hidden_records(dataset.data, annotated), preprocessing, cache_dir, num_classes)

    def attach(self, engine: SemiSupervisedTrainer) -> None:
        """Register with the trainer, in the first process only."""
        if engine.state.rank == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._update)

    def _update(self, engine: SemiSupervisedTrainer) -> None:
        loader = engine.data_loader
        assert isinstance(loader, SemiSupervisedLoader)
        hidden = SemiSupervisedLoader(self.hidden, loader.batch_size, loader.seed)
        counts = count_pseudo_labels(
            engine.objective, with_hidden(loader, hidden, self.batches), loader.seed, engine.dtype is not None
        )
        with SummaryWriter(self.output_dir) as writer:
            for kind, count in counts.items():
                row = next(row for row in scores(count) if row["class"] == "foreground")
                for measure in ("dice", "precision"):
                    if row[measure] is not None:
                        writer.add_scalar(f"pseudo_{kind}_{measure}", row[measure], engine.state.iteration)
