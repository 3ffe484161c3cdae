"""Lightning's callbacks: those of the table in docs/reliability.md do what it says."""

import pytest
from lightning.pytorch import callbacks as lightnings
from toy_runs import fit, history

from lightning_ript.running.callback_rules import RULES_OF_RIPT, check_callbacks

NAME = "--trainer.callbacks"
WORK = {
    "ModelCheckpoint": ["save_top_k=-1"],
    "EarlyStopping": ["monitor=val/success_rate", "mode=max"],
    "LearningRateMonitor": [],
    "DeviceStatsMonitor": [],
    "ModelSummary": [],
    "RichModelSummary": [],
    "TQDMProgressBar": [],
    "RichProgressBar": [],
    "Timer": ["interval=epoch"],
    "LambdaCallback": [],
}
REFUSED = {
    "EMAWeightAveraging": [],
    "StochasticWeightAveraging": ["swa_lrs=0.01"],
    "LearningRateFinder": [],
    "BatchSizeFinder": [],
    "GradientAccumulationScheduler": ["scheduling={0: 2}"],
    "BackboneFinetuning": [],
    "ModelPruning": ["pruning_fn=l1_unstructured"],
    "OnExceptionCheckpoint": ["dirpath=there"],
    "Timer": ["interval=step"],
    "ModelCheckpoint": ["every_n_train_steps=3"],
}
# Need code of one's own, or have no meaning without: nothing to try out here.
BASES = {
    *("Callback", "Checkpoint", "ProgressBar", "BaseFinetuning", "BasePredictionWriter"),
    *("WeightAveraging", "SpikeDetection", "ThroughputMonitor"),
}


def named(name, settings):
    path = f"lightning.pytorch.callbacks.{name}"
    return [f"{NAME}+={path}", *(f"{NAME}.{setting}" for setting in settings)]


def test_every_callback_of_lightnings_is_known():
    assert set(lightnings.__all__) <= WORK.keys() | REFUSED.keys() | BASES


@pytest.mark.parametrize("name", WORK)
def test_these_work(tmp_path, name):
    evaluated = ["--trainer.limit_val_batches=1.0", "--data.init_args.eval_states_per_task=2"]
    if "Progress" in name or "Summary" in name:
        evaluated += ["--trainer.enable_progress_bar=true", "--trainer.enable_model_summary=true"]
    fit(tmp_path, 2, *evaluated, *named(name, WORK[name]))
    assert len(history(tmp_path)) == 2
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("name", REFUSED)
def test_these_are_refused(tmp_path, name, capsys):
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, 1, *named(name, REFUSED[name]))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"trainer.callbacks names {name}, but " in said
    assert not (tmp_path / "history.json").exists()


def test_what_derives_from_them_is_refused_too():
    class Mine(lightnings.BasePredictionWriter):
        pass

    with pytest.raises(ValueError, match="names Mine, but nothing is predicted"):
        check_callbacks([Mine("epoch")], ript=True)
    with pytest.raises(ValueError, match="names SpikeDetection, but it reads the loss"):
        check_callbacks([lightnings.SpikeDetection()], ript=True)
    check_callbacks([lightnings.SpikeDetection(), lightnings.Timer()], ript=False)


def test_the_table_in_the_docs_names_all():
    with open("docs/reliability.md") as file:
        text = file.read()
    for name in {*WORK, *REFUSED, *RULES_OF_RIPT}:
        assert f"`{name}`" in text, name
