"""A run that goes on with other settings than it began with."""

from functools import partial

import pytest
import torch
import yaml
from toy_runs import assert_same_state, fit, history

from lightning_ript.module import RIPTLightningModule
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.running.resumed_settings import ResumedSettings, changes

OWN = "--model=test_resumed_settings.Own"
STEP = "--model.init_args.scheduler"
SCHEDULE = [f"{STEP}=torch.optim.lr_scheduler.StepLR", f"{STEP}.step_size=1", f"{STEP}.gamma=0.5"]
LR = "--model.init_args.optimizer.init_args.lr"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Makes copies of a run of two iterations, without a schedule and with one."""
    import shutil

    folders = {}
    for name, more in (("constant", []), ("falling", SCHEDULE)):
        folders[name] = tmp_path_factory.mktemp(name)
        fit(folders[name], 2, *more)

    def copy(name, to):
        shutil.copytree(folders[name], to, dirs_exist_ok=True)
        return to

    return copy


def rates(run_dir):
    return [entry["metrics"]["train/lr"] for entry in history(run_dir)]


def test_what_is_told():
    before = {"model": {"class_path": "A", "init_args": {"passes": 8, "policy": {"x": [1]}}}}
    now = {"model": {"class_path": "A", "init_args": {"passes": 4, "policy": {"x": [1]}, "y": 2}}}
    assert changes(before, now) == {"model.passes": (8, 4), "model.y": (None, 2)}
    assert changes({"run_dir": "a", "trainer": {"max_epochs": 1}}, {"run_dir": "b"}) == {}


def test_another_start_is_not_taken_in_silence(two, tmp_path):
    path = two("constant", tmp_path) / "checkpoints" / "last.ckpt"
    settings = yaml.safe_load(torch.load(path, weights_only=True)["settings"])
    settings["model"]["init_args"]["policy"]["init_args"]["checkpoint"] = "new.pth"
    with pytest.warns(UserWarning, match=r"to begin from new\.pth, name another --run_dir"):
        ResumedSettings(settings).compare(path)


def test_nothing_is_told_of_the_same(two, tmp_path, capsys, caplog):
    run = fit(two("constant", tmp_path), 3)
    assert run["settings"]
    assert "changed settings" not in caplog.text


def test_another_learning_rate_counts(two, tmp_path, caplog):
    fit(two("constant", tmp_path), 4, f"{LR}=0.003")
    assert rates(tmp_path) == pytest.approx([0.01, 0.01, 0.003, 0.003])
    assert "Resuming with changed settings: model.optimizer.lr 0.003 (it was 0.01)." in caplog.text


def test_a_schedule_goes_on_at_the_new_rate(two, tmp_path):
    fit(two("falling", tmp_path), 4, *SCHEDULE, f"{LR}=0.08")
    assert rates(tmp_path) == pytest.approx([0.01, 0.005, 0.02, 0.01])


def test_another_schedule_counts(two, tmp_path):
    """As if it had been that from the start."""
    other = [f"{STEP}=torch.optim.lr_scheduler.ExponentialLR", f"{STEP}.gamma=0.1"]
    fit(two("falling", tmp_path / "changed"), 4, *other)
    assert rates(tmp_path / "changed") == pytest.approx([0.01, 0.005, 1e-4, 1e-5])
    fit(two("falling", tmp_path / "none"), 3)
    assert rates(tmp_path / "none") == pytest.approx([0.01, 0.005, 0.01])
    fit(two("constant", tmp_path / "added"), 4, *SCHEDULE)
    assert rates(tmp_path / "added") == pytest.approx([0.01, 0.01, 0.0025, 0.00125])


def test_a_schedule_that_stays_is_the_same_bit_for_bit(two, tmp_path):
    whole = fit(tmp_path / "whole", 3, *SCHEDULE)
    assert_same_state(fit(two("falling", tmp_path / "resumed"), 3, *SCHEDULE), whole)


@pytest.mark.parametrize(
    "setting",
    [
        "--model.init_args.passes=3",
        "--model.init_args.clip_high=0.3",
        "--data.init_args.groups_per_iteration=5",
        "--data.init_args.rollouts_per_context=4",
    ],
)
def test_these_may_change(two, tmp_path, setting, caplog):
    fit(two("constant", tmp_path), 3, setting)
    name = setting.removeprefix("--").replace("init_args.", "").partition("=")[0]
    assert f"Resuming with changed settings: {name} " in caplog.text
    assert len(history(tmp_path)) == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            [
                "--model.init_args.optimizer=torch.optim.SGD",
                "--model.init_args.optimizer.init_args.momentum=0.9",
            ],
            "model.optimizer is torch.optim.sgd.SGD, but the checkpoint is of a run with "
            "torch.optim.adamw.AdamW",
        ),
        (
            ["--model.init_args.policy.init_args.hidden=8"],
            "They are now: model.policy.hidden 8 (it was",
        ),
        (
            ["--model=lightning_ript.extensions.critic.CriticModule"],
            "model.class_path is lightning_ript.extensions.critic.CriticModule, but",
        ),
        (
            ["--model.init_args.kl_coefficient=0.1"],
            "They are now: model.kl_coefficient 0.1 (it was 0.0)",
        ),
    ],
)
def test_these_may_not(two, tmp_path, settings, said, capsys):
    before = history(two("constant", tmp_path))
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, 3, *settings)
    assert caught.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert said in line
    assert len(line) < 600
    assert history(tmp_path) == before


def test_checkpoints_of_earlier_versions_go_on(two, tmp_path):
    path = two("constant", tmp_path) / "checkpoints" / "last.ckpt"
    run = torch.load(path, weights_only=False)
    del run["settings"], run["optimizer_class"]
    torch.save(run, path)
    fit(tmp_path, 3)
    assert len(history(tmp_path)) == 3


class Own(RIPTLightningModule):
    """A module of a user's own, with settings that nobody else knows."""

    def __init__(
        self,
        policy: PolicyAdapter,
        passes: int = 2,
        episodes_per_minibatch: int = 16,
        learning_rate: float = 0.01,
        listed: bool = False,
        noted: bool = False,
    ):
        optimizer = partial(torch.optim.AdamW, lr=learning_rate)
        super().__init__(
            policy,
            passes=passes,
            episodes_per_minibatch=episodes_per_minibatch,
            optimizer=optimizer,
        )
        self.listed, self.noted = listed, noted

    def configure_optimizers(self):
        made = super().configure_optimizers()
        return [made] if self.listed else made

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        if self.noted:
            checkpoint["note"] = 1

    def on_load_checkpoint(self, checkpoint):
        super().on_load_checkpoint(checkpoint)
        if self.noted:
            assert checkpoint["note"]


def test_the_rate_of_a_module_of_ones_own_counts(tmp_path):
    fit(tmp_path, 1, OWN)
    fit(tmp_path, 2, OWN, "--model.learning_rate=0.003")
    assert rates(tmp_path) == pytest.approx([0.01, 0.003])


@pytest.mark.parametrize(
    ("always", "now", "said"),
    [
        (
            "--model.listed=true",
            "--model.learning_rate=0.003",
            "Own makes a list of optimizers, which go on as they were, though other settings are "
            "given now: model.learning_rate 0.003 (it was 0.01)",
        ),
        (
            "--model.learning_rate=0.01",
            "--model.noted=true",
            "The checkpoint does not fit the module ('note'): it is of a run with other settings. "
            "They are now: model.noted True (it was False)",
        ),
    ],
)
def test_settings_of_ones_own_that_would_be_dropped(tmp_path, capsys, always, now, said):
    fit(tmp_path, 1, OWN, always)
    with pytest.raises(SystemExit):
        fit(tmp_path, 2, OWN, always, now)
    assert said in capsys.readouterr().err
    assert len(history(tmp_path)) == 1
