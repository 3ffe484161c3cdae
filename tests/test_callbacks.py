import json
import logging
import math
import re
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import imageio_ffmpeg
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_ript.callbacks import EvaluationReport, RolloutStatistics, RolloutVideo, RunReport
from lightning_ript.callbacks.rollout_statistics import summary_line
from lightning_ript.callbacks.rollout_video import Video, prepare_frame, surplus
from lightning_ript.callbacks.run_report import draw_learning_curve
from lightning_ript.commands.summary import report
from lightning_ript.envs.toy import ToySpec
from lightning_ript.evaluation import SuccessRate
from lightning_ript.reports.evaluation_table import evaluation_table
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult
from lightning_ript.storage.run_directory import evaluation_path, videos_path
from lightning_ript.types import Context, Rollout, Task

TASKS = [Task("toy", 0, "reach the goal", "reach it"), Task("toy", 1, "go back", "go home")]


def make_rollout(task: Task, index: int, success: bool, frames: int = 0) -> Rollout:
    picture = np.zeros((12, 16, 3), dtype=np.uint8)
    picture[0] = 255  # the first row: the floor, as OpenGL gives images
    return Rollout(Context(task, index), 0, success, 10, {}, torch.zeros(1, 1), (picture,) * frames)


class Stream:
    """An iterable that Lightning does not take for several loaders."""

    def __init__(self, rollouts) -> None:
        self.rollouts = rollouts

    def __len__(self) -> int:
        return len(self.rollouts)

    def __iter__(self):
        return iter(self.rollouts)


class Episodes(L.LightningDataModule):
    """Gives three fixed evaluation rollouts: two of the first task, one of the second."""

    seed = 5
    environment = ToySpec()
    eval_sampling = False

    def __init__(self, frames: int = 0) -> None:
        super().__init__()
        self.rollouts = [
            make_rollout(TASKS[0], 0, True, frames),
            make_rollout(TASKS[0], 1, False, frames),
            make_rollout(TASKS[1], 0, True),
        ]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(3))

    def val_dataloader(self):
        return Stream(self.rollouts)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


class Counter(L.LightningModule):
    """Learns nothing and logs what RIPT logs."""

    def __init__(self) -> None:
        super().__init__()
        self.success_rate = SuccessRate(TASKS)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        metrics = {"rollout/success_rate": 0.1 * (self.current_epoch + 1), "time/learning": 2.0}
        self.log_dict(metrics, on_step=False, on_epoch=True)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.success_rate.update(TASKS.index(batch.context.task), batch.success, batch.steps)

    def on_validation_epoch_end(self):
        self.log("val/success_rate", self.success_rate.compute().rate)
        self.success_rate.reset()


def make_trainer(path, *callbacks, **settings) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=path,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **settings,
    )


def test_evaluation_report_shows_and_writes(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        make_trainer(tmp_path, EvaluationReport("before")).validate(
            Counter(), Episodes(), verbose=False
        )
    result = EvaluationResult.read(evaluation_path(tmp_path, "before"))
    assert [task[2:] for task in result.tasks] == [(2, 1, 10.0), (1, 1, 10.0)]
    assert evaluation_table(result) in caplog.text
    metadata = result.metadata
    assert metadata["datamodule_seed"] == 5
    assert metadata["sampled_actions"] is False
    # Some builds call themselves more than their package does (2.14.1+cu130).
    assert torch.__version__.startswith(metadata["versions"]["torch"])
    assert metadata["checkpoint"] is None
    assert metadata["environment"] == ToySpec().describe()
    assert metadata["environment"]["class"] == "ToySpec"


def test_evaluation_report_names_the_checkpoint(tmp_path):
    module, path = Counter(), tmp_path / "sft.ckpt"
    trainer = make_trainer(tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    make_trainer(tmp_path, EvaluationReport()).validate(
        Counter(), Episodes(), ckpt_path=path, verbose=False, weights_only=False
    )
    result = EvaluationResult.read(evaluation_path(tmp_path, "sft"))
    assert result.metadata["checkpoint"] == str(path)


@dataclass(frozen=True)
class DoubtfulSpec(ToySpec):
    """Has something to say of its results, and a package that they depend on."""

    packages = ("h5py", "not-installed")

    def caveats(self):
        return ("The points are drawn too large.",)


def test_evaluation_report_tells_what_the_environment_says_of_itself(tmp_path, caplog):
    data = Episodes()
    data.environment = DoubtfulSpec()
    with caplog.at_level(logging.INFO):
        make_trainer(tmp_path, EvaluationReport()).validate(Counter(), data, verbose=False)
    result = EvaluationResult.read(evaluation_path(tmp_path, "validate"))
    assert result.caveats == ("The points are drawn too large.",)
    assert "The points are drawn too large." in caplog.text
    assert result.metadata["versions"].keys() >= {"torch", "h5py"}
    assert result.metadata["versions"]["not-installed"] is None
    assert "mujoco" not in result.metadata["versions"]


def test_reports_refuse_a_module_without_counts(tmp_path):
    for callback in (EvaluationReport(), RunReport()):
        with pytest.raises(TypeError, match="needs a module that counts successes"):
            make_trainer(tmp_path, callback, max_epochs=1).fit(BoringModel())


def test_fit_reports_every_evaluation_but_not_the_sanity_check(tmp_path):
    trainer = make_trainer(
        tmp_path, EvaluationReport(), RunReport(), max_epochs=4, check_val_every_n_epoch=2
    )
    trainer.fit(Counter(), Episodes())
    names = sorted(path.name for path in (tmp_path / "evaluation").iterdir())
    assert names == ["epoch=001.json", "epoch=003.json"]
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["iteration"] for entry in history] == [1, 2, 3, 4]
    assert [entry["evaluation"] is not None for entry in history] == [False, True, False, True]
    # A value left over from an earlier evaluation is not repeated.
    assert ["val/success_rate" in entry["metrics"] for entry in history] == [0, 1, 0, 1]
    rates = [entry["metrics"]["rollout/success_rate"] for entry in history]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_history_survives_resume_and_forgets_what_came_after_the_checkpoint(tmp_path):
    def checkpoints():
        return ModelCheckpoint(
            tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
        )

    first = RunReport()
    make_trainer(tmp_path, first, checkpoints(), max_epochs=3).fit(Counter(), Episodes())
    resumed = RunReport()
    trainer = make_trainer(tmp_path, resumed, checkpoints(), max_epochs=4)
    trainer.fit(Counter(), Episodes(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=False)
    assert [entry["iteration"] for entry in resumed.history] == [1, 2, 3, 4]
    assert resumed.history[:2] == first.history[:2]
    seconds = [entry["seconds"] for entry in resumed.history]
    assert seconds == sorted(seconds)
    assert json.loads((tmp_path / "history.json").read_text()) == resumed.history


def test_history_beyond_the_resumed_iteration_is_dropped(tmp_path):
    callback = RunReport()
    entry = {"seconds": 9.0, "metrics": {}, "evaluation": None}
    callback.load_state_dict({"history": [entry | {"iteration": i} for i in (1, 2, 3)]})
    callback.on_train_start(SimpleNamespace(current_epoch=1), Counter())
    assert [entry["iteration"] for entry in callback.history] == [1]


def test_run_report_refuses_a_missing_baseline(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"before\.json"):
        RunReport(baseline=str(tmp_path / "before.json"))


def make_history(evaluated: dict[int, int]) -> list[dict]:
    return [
        {
            "iteration": i,
            "seconds": 90.0 * i,
            "metrics": {"rollout/success_rate": 0.1 * i},
            "evaluation": EvaluationResult(
                (TaskResult("a", "pick", 50, evaluated[i], 80.0),), {}
            ).to_dict()
            if i in evaluated
            else None,
        }
        for i in range(1, 7)
    ]


def test_learning_curve_shows_each_policy_where_it_stands():
    baseline = EvaluationResult((TaskResult("a", "pick", 50, 20, 80.0),), {})
    figure = draw_learning_curve(make_history({2: 30, 5: 45}), baseline)
    axes, minutes = figure.axes
    rollouts, evaluations = axes.get_lines()
    # Rollouts of iteration 1 are the starting policy's, as is the baseline.
    assert list(rollouts.get_xdata()) == [0, 1, 2, 3, 4, 5]
    assert list(evaluations.get_xdata()) == [0, 2, 5]
    assert list(evaluations.get_ydata()) == [0.4, 0.6, 0.9]
    labels = {
        tick: text.get_text()
        for tick, text in zip(minutes.get_xticks(), minutes.get_xticklabels(), strict=True)
    }
    assert labels[0] == "0.0"
    assert labels[2] == "3.0"
    assert minutes.get_xlabel() == "minutes"
    assert axes.get_title() == "pick"


def test_learning_curve_of_nothing_is_empty():
    axes, _ = draw_learning_curve([]).axes
    assert not axes.get_lines()


def test_statistics_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        make_trainer(tmp_path, RolloutStatistics(), max_epochs=2).fit(Counter(), Episodes())
    lines = [record.message for record in caplog.records if "success" in record.message]
    assert [line.split(":")[0] for line in lines] == ["iteration 1", "iteration 2"]
    assert "success 20.0% of all, nan% of kept" in lines[1]


def test_statistics_line_shows_all_numbers():
    assert summary_line(
        {
            "rollout/groups_kept": 10,
            "rollout/groups_dropped": 4,
            "rollout/success_rate": 0.525,
            "rollout/success_rate_kept": 0.4875,
            "rollout/episodes_per_second": 0.614,
            "time/collecting": 110.04,
            "time/learning": 35.0,
            "train/clip_fraction": 0.1234,
            "train/approx_kl": 0.00312,
        }
    ) == (
        "groups 10 kept, 4 dropped | success 52.5% of all, 48.8% of kept | 0.61 episodes/s | "
        "collecting 110.0 s, learning 35.0 s | clip fraction 0.123, KL 0.0031"
    )


def test_numbers_logged_too_late_are_missing_not_last_iterations(tmp_path):
    class Late(Counter):
        def training_step(self, batch, batch_idx):
            return self.weight.sum()

        def on_train_epoch_end(self):
            self.log("rollout/success_rate", 0.1 * (self.current_epoch + 1))

    statistics, run_report = RolloutStatistics(), RunReport()
    with pytest.warns(UserWarning, match=r"Iteration 2 logged no `rollout/success_rate`"):
        make_trainer(tmp_path, statistics, run_report, max_epochs=2).fit(Late(), Episodes())
    assert [list(entry["metrics"]) for entry in run_report.history] == [["val/success_rate"]] * 2


def read_video(path) -> np.ndarray:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader])


def test_videos_are_upright_enlarged_and_bordered(tmp_path):
    make_trainer(tmp_path, RolloutVideo("before", height=48)).validate(
        Counter(), Episodes(frames=7), verbose=False
    )
    folder = videos_path(tmp_path, "before")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["reach_the_goal-000-success.mp4", "reach_the_goal-001-failure.mp4"]
    success, failure = (read_video(folder / name) for name in names)
    # 12 x 16 pixels times 4, and a border of 2 all round.
    assert success.shape == failure.shape == (7, 52, 68, 3)
    inside = success[3, 2:-2, 2:-2].astype(int)
    assert inside[2].mean() > 200  # the first row stays above
    assert inside[:40].mean() < 30
    red, green, _ = success[3, 0].mean(axis=0)
    assert green > 2 * red
    red, green, _ = failure[3, 0].mean(axis=0)
    assert red > 2 * green


def test_a_repeated_evaluation_leaves_one_video_per_episode(tmp_path):
    for success in (False, True):
        data = Episodes()
        data.rollouts = [make_rollout(TASKS[0], 0, success, 2)]
        make_trainer(tmp_path, RolloutVideo("now")).validate(Counter(), data, verbose=False)
    folder = videos_path(tmp_path, "now")
    assert [path.name for path in folder.iterdir()] == ["reach_the_goal-000-success.mp4"]


def test_failures_are_kept_before_successes(tmp_path):
    make_trainer(tmp_path, RolloutVideo("few", per_task=1)).validate(
        Counter(), Episodes(frames=2), verbose=False
    )
    (kept,) = videos_path(tmp_path, "few").iterdir()
    assert kept.name == "reach_the_goal-001-failure.mp4"


def no_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)


def no_program(monkeypatch):
    def missing():
        raise RuntimeError("No ffmpeg exe could be found. Install ffmpeg on your system.")

    monkeypatch.setattr("imageio_ffmpeg._io.get_ffmpeg_exe", missing)


def wrong_place(monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")


def failing_program(monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")


@pytest.mark.parametrize("broken", [no_module, no_program, wrong_place, failing_program])
def test_without_ffmpeg_there_is_one_warning_and_no_video(broken, tmp_path, monkeypatch, caplog):
    broken(monkeypatch)
    callback = RolloutVideo("before", per_task=1)
    for _ in range(2):
        make_trainer(tmp_path, callback).validate(Counter(), Episodes(frames=3), verbose=False)
    said = [record.message for record in caplog.records if "video" in record.message]
    assert len(said) == 1
    assert re.match(
        r"No videos from now on, as FFmpeg cannot write .*success\.mp4: .+\. Make room", said[0]
    )
    folder = videos_path(tmp_path, "before")
    assert not folder.exists() or not list(folder.iterdir())


def test_surplus_videos_are_successes_then_late_states():
    def video(task, success, state):
        return Video(task, success, state, f"{task}{state}")

    made = [video("a", i in (0, 2), i) for i in range(5)] + [video("b", True, 1)]
    assert [v.path for v in surplus(made, 2)] == ["a4", "a0", "a2"]
    assert [v.path for v in surplus(made, 4)] == ["a2"]
    assert surplus(made, 5) == []


def test_frames_get_even_sides():
    frame = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    prepared = prepare_frame(frame, 5, (1, 2, 3))
    assert prepared.shape == (10, 12, 3)
    np.testing.assert_array_equal(prepared[2:7, 2:9], frame)


def test_video_refuses_nonsense():
    with pytest.raises(ValueError, match="must be positive, got 0 and 20"):
        RolloutVideo(height=0)
    with pytest.raises(ValueError, match="per_task is 0"):
        RolloutVideo(per_task=0)


def write_evaluation(folder, name, successes, episodes=50, videos=(), standin=False):
    path = evaluation_path(folder, name)
    tasks = (TaskResult("lift", "lift it", episodes, successes, 80.0),)
    metadata = {"environment": {"standin_assets": standin}}
    EvaluationResult(tasks, metadata).write(path)
    for video in videos:
        file = videos_path(folder, name) / f"{video}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return str(path)


def test_report_gives_both_rates_and_says_where_things_are(tmp_path, capsys):
    before = write_evaluation(
        tmp_path / "sft", "before", 20, videos=["lift-000-success", "lift-001-failure"]
    )
    after = write_evaluation(
        tmp_path / "ript", "after", 47, videos=["lift-000-success", "lift-001-success"]
    )
    (tmp_path / "ript" / "learning_curve.png").touch()
    report(before, after, str(tmp_path / "ript"))
    text = (tmp_path / "ript" / "summary.md").read_text()
    assert capsys.readouterr().out == text
    assert "| before RIPT | 20 of 50 | 40.0% | 27.6% - 53.8% | 80 |" in text
    assert "| after RIPT | 47 of 50 | 94.0% | 83.8% - 97.9% | 80 |" in text
    # The episode that RIPT taught, not the one that the policy could do before.
    assert f"video before: {tmp_path}/sft/videos/before/lift-001-failure.mp4" in text
    assert f"video after: {tmp_path}/ript/videos/after/lift-001-success.mp4" in text
    assert f"learning curve: {tmp_path}/ript/learning_curve.png" in text
    assert "tand-in" not in text
    summary = json.loads((tmp_path / "ript" / "summary.json").read_text())
    assert math.isclose(summary["after"]["success_rate"], 0.94)


def test_report_admits_caveats_and_what_was_not_made(tmp_path):
    paths = [write_evaluation(tmp_path, name, 20, standin=True) for name in ("before", "after")]
    report(*paths, str(tmp_path))
    text = (tmp_path / "summary.md").read_text()
    assert "Stand-in assets: these numbers are not comparable with the benchmark." in text
    assert "learning curve: none was made" in text
    assert "video after: none was made" in text


def test_report_refuses_what_cannot_be_compared(tmp_path):
    before = write_evaluation(tmp_path, "before", 20)
    with pytest.raises(ValueError, match="not of the same test"):
        report(before, write_evaluation(tmp_path, "short", 10, episodes=20), str(tmp_path))
    with pytest.raises(ValueError, match="have different caveats"):
        report(before, write_evaluation(tmp_path, "boxes", 20, standin=True), str(tmp_path))
    with pytest.raises(ValueError, match="`after` has no episodes"):
        report(before, write_evaluation(tmp_path, "none", 0, episodes=0), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no run directory"):
        report(before, before, str(tmp_path / "missing"))
    assert not (tmp_path / "summary.md").exists()
