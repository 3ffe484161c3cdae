"""best.ckpt holds the weights that did best, whenever and however often they were evaluated."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_callbacks import Counter, Episodes, make_trainer

from lightning_ript.callbacks import BestCheckpoint


class Scripted(Counter):
    """Its weight counts its epochs; its score is read from a list by that weight."""

    def __init__(self, scores) -> None:
        super().__init__()
        self.scores = scores

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.weight += 1 / 3  # three batches an epoch
        return 0 * self.weight.sum()

    def on_validation_epoch_end(self):
        self.log("val/success_rate", self.scores[round(float(self.weight)) - 1])
        self.success_rate.reset()


def run(path, scores, epochs=None, resume=None, **settings):
    """Trains so many epochs; the trainer, and what best.ckpt holds: its weight and its score."""
    last = ModelCheckpoint(path, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = make_trainer(
        path, BestCheckpoint(path), last, max_epochs=epochs or len(scores), **settings
    )
    trainer.fit(Scripted(scores), Episodes(), ckpt_path=resume, weights_only=False)
    return trainer, read(path / "best.ckpt")


def read(path):
    if not path.exists():
        return None
    checkpoint = torch.load(path, weights_only=False)
    (state,) = [x for name, x in checkpoint["callbacks"].items() if "BestCheckpoint" in name]
    weight = round(float(checkpoint["state_dict"]["weight"]))
    return weight, float(state["best_model_score"]), checkpoint["epoch"]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.2, 0.8, 0.5], (2, 0.8, 1)),
        ([0.2, 0.5, 0.8], (3, 0.8, 2)),
        ([0.2, 0.8, 0.8, 0.8], (2, 0.8, 1)),  # the earliest of equals
        ([0.0, 0.0], (1, 0.0, 0)),
    ],
)
def test_the_best_is_kept_with_its_score(tmp_path, scores, best):
    _, found = run(tmp_path, scores)
    assert found == pytest.approx(best)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


def test_epochs_without_evaluation_are_not_taken_for_the_last_evaluated_one(tmp_path):
    scores = [0.9, 0.3, 0.9, 0.6, 0.9, 0.5]  # evaluated: the second, fourth and sixth
    _, found = run(tmp_path, scores, check_val_every_n_epoch=2)
    assert found == pytest.approx((4, 0.6, 3))


@pytest.mark.filterwarnings("error:.*could not find the monitored key")
def test_nothing_is_said_or_written_before_the_first_evaluation(tmp_path):
    _, found = run(tmp_path, [0.5] * 2, check_val_every_n_epoch=3)
    assert found is None
    _, found = run(tmp_path, [0.5] * 2, limit_val_batches=0)
    assert found is None
    assert (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize(("third", "best"), [(0.3, (1, 0.6, 0)), (0.9, (3, 0.9, 2))])
def test_a_resumed_run_knows_the_best_so_far(tmp_path, third, best):
    run(tmp_path, [0.6, 0.4])
    scores = [0.6, 0.4, third]
    _, found = run(tmp_path, scores, resume=tmp_path / "last.ckpt")
    assert found == pytest.approx(best)


def test_a_run_goes_on_from_its_best(tmp_path):
    run(tmp_path, [0.2, 0.8, 0.5])
    trainer, _ = run(tmp_path, [0.2, 0.8, 0.9, 0.9], resume=tmp_path / "best.ckpt")
    assert round(trainer.lightning_module.weight.item()) == 4
    assert read(tmp_path / "best.ckpt") == pytest.approx((3, 0.9, 2))


def test_small_losses_are_good(tmp_path):
    best = BestCheckpoint(tmp_path, "val/success_rate", "min")
    trainer = make_trainer(tmp_path, best, max_epochs=3)
    trainer.fit(Scripted([0.5, 0.2, 0.4]), Episodes())
    assert read(tmp_path / "best.ckpt") == pytest.approx((2, 0.2, 1))
