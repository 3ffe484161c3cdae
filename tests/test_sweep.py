"""`lightning-ript sweep`: cells, resuming, refusals, table and chart."""

import csv
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_runs import fit, refusal
from two_processes import ROOT

from lightning_ript.cli import main
from lightning_ript.policies.toy import ToyPolicy
from lightning_ript.reports.short_names import short_names
from lightning_ript.reports.sweep_chart import draw_tasks
from lightning_ript.reports.sweep_report import CellResult, progress, summarize, summary_table
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult, wilson_interval

SUITES = ["--data.environment=sweep_probe.SuiteSpec", "--data.environment.mark=[1]"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of two runs, one of them longer."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "a", 1)
    fit(folder / "b", 3)
    return [str(folder / run / "checkpoints/last.ckpt") for run in ("a", "b")]


def arguments(out, checkpoints, *more):
    return [
        *("sweep", "--config=configs/toy.yaml", "--data.eval_states_per_task=5", f"--out={out}"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        f"--checkpoints={json.dumps(checkpoints)}",
        *more,
    ]


def table(out):
    with Path(out, "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def results(out):
    return sorted(Path(out, "evaluation").rglob("*.json"))


def announced(caplog):
    return [record.message for record in caplog.records if record.message.startswith("cell ")]


# -- what a sweep leaves ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory, checkpoints):
    out = tmp_path_factory.mktemp("swept")
    main(arguments(out, checkpoints, *SUITES, "--seeds=[0, 7]", "--suites=[near, far]"))
    return out


def test_there_is_a_row_per_checkpoint_suite_seed_and_task(swept, checkpoints):
    rows = table(swept)
    keys = [(row["checkpoint"], row["suite"], row["seed"], row["task"]) for row in rows]
    assert keys == [
        (checkpoint, suite, seed, task)
        for checkpoint in checkpoints
        for suite in ("near", "far")
        for seed in ("0", "7")
        for task in ("turn_0", "turn_90")
    ]
    for row in rows:
        assert row["episodes"] == "5"
        successes = int(row["successes"])
        assert float(row["success_rate"]) == successes / 5
        interval = float(row["interval_low"]), float(row["interval_high"])
        assert interval == wilson_interval(successes, 5)
        assert (row["sampled_actions"], row["caveats"]) == ("True", "")
    # Neither suites nor seeds repeat each other.
    steps = {key: row["mean_steps"] for key, row in zip(keys, rows, strict=True)}
    assert len(set(steps.values())) > 8
    content = json.loads((swept / "sweep.json").read_text())
    assert [{k: str(v) for k, v in row.items()} for row in content["rows"]] == rows
    assert len(content["summary"]) == 4


def test_a_cell_is_what_validate_finds(swept, checkpoints, tmp_path):
    main(
        [
            *("validate", "--config=configs/toy.yaml", *SUITES, "--data.environment.suite=far"),
            *("--data.eval_states_per_task=5", "--data.seed=7", f"--run_dir={tmp_path}"),
            *("--trainer.enable_progress_bar=false", f"--ckpt_path={checkpoints[1]}"),
        ]
    )
    alone = EvaluationResult.read(tmp_path / "evaluation/last.json")
    rows = [row for row in table(swept) if (row["suite"], row["seed"]) == ("far", "7")]
    mine = [row for row in rows if row["checkpoint"] == checkpoints[1]]
    assert [(int(row["successes"]), float(row["mean_steps"])) for row in mine] == [
        (task.successes, task.mean_steps) for task in alone.tasks
    ]
    (cell,) = [path for path in results(swept) if path.match("b/last/far-seed7.json")]
    assert EvaluationResult.read(cell)[:] == (alone.tasks, alone.metadata)


def test_everything_else_lies_in_its_folder(swept):
    names = sorted(path.name for path in swept.iterdir() if path.is_file())
    expected = ["config.yaml", "settings.json", "status.json", "summary.txt"]
    assert names == [*expected, "sweep.csv", "sweep.json", "tasks.png"]
    assert (swept / "tasks.png").read_bytes().startswith(b"\x89PNG")


def test_without_seeds_and_suites_the_configs_own_are_taken(checkpoints, tmp_path):
    main(arguments(tmp_path, checkpoints[:1], "--data.seed=3"))
    assert {(row["seed"], row["suite"]) for row in table(tmp_path)} == {("3", "toy")}


def test_published_and_lightning_checkpoints_take_turns(checkpoints, tmp_path, monkeypatch):
    """A published checkpoint's weights are acted with, and the next cell has its own again."""

    # The toy has no format of its own: the second run's file stands for it.
    def load_published(self, path):
        if path != checkpoints[1]:
            return False
        weights = torch.load(path, weights_only=True)["state_dict"]
        own = {n.removeprefix("policy."): v for n, v in weights.items() if n.startswith("policy.")}
        self.load_state_dict(own)
        self.checkpoint = path
        return True

    main(arguments(tmp_path / "lightning", checkpoints))
    monkeypatch.setattr(ToyPolicy, "load_published", load_published)
    main(arguments(tmp_path / "official", checkpoints))
    main(arguments(tmp_path / "turned", checkpoints[::-1]))
    expected = table(tmp_path / "lightning")
    assert table(tmp_path / "official") == expected
    assert table(tmp_path / "turned") == expected[2:] + expected[:2]
    for path in results(tmp_path / "turned"):
        metadata = EvaluationResult.read(path).metadata
        official = path.match("b/last/*")
        assert metadata["policy_checkpoint"] == (checkpoints[1] if official else None)
        assert metadata["checkpoint"] == (None if official else checkpoints[0])


def test_checkpoints_that_lack_what_does_not_learn(tmp_path):
    """Such weights are those of the settings, whatever was loaded before."""
    policy = "--model.policy=sweep_probe.PartlySavedPolicy"
    fit(tmp_path / "run", 2, policy)
    path = str(tmp_path / "run/checkpoints/last.ckpt")
    assert "policy.net.0.bias" not in torch.load(path, weights_only=True)["state_dict"]
    (tmp_path / "published").mkdir()
    both = [str(tmp_path / "published"), path]
    more = [policy, "--data.eval_sampling=false", "--seeds=[0, 1]"]
    main(arguments(tmp_path / "alone", [path], *more))
    main(arguments(tmp_path / "after", both, *more))
    expected = table(tmp_path / "alone")
    assert len({row["mean_steps"] for row in expected}) > 2
    assert table(tmp_path / "after")[len(expected) :] == expected


# -- resuming --------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(checkpoints, tmp_path, caplog):
    main(arguments(tmp_path, checkpoints[:1], "--seeds=[0]"))
    (first,) = results(tmp_path)
    before = first.stat().st_mtime_ns
    caplog.clear()
    with caplog.at_level(logging.INFO):
        main(arguments(tmp_path, checkpoints, "--seeds=[0, 1]", "--data.num_workers=1"))
    assert "1 of 4 cells are done already." in caplog.text
    lines = announced(caplog)
    assert [line.split(":")[0] for line in lines] == [f"cell {i} of 4" for i in (2, 3, 4)]
    assert "seed 1 (so far " in lines[0]
    assert "/10, " in lines[0]
    assert first.stat().st_mtime_ns == before
    whole = table(tmp_path)
    assert len(whole) == 8
    (tmp_path / "sweep.csv").unlink()
    caplog.clear()
    main(arguments(tmp_path, checkpoints, "--seeds=[0, 1]"))
    assert not announced(caplog)
    assert table(tmp_path) == whole


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, checkpoints):
    """Sweeps that get a signal in the middle of their second cell, all at once."""
    runs = {}
    for name in ("SIGKILL", "SIGTERM", "SIGINT"):
        out = tmp_path_factory.mktemp(name)
        more = [
            "--trainer.callbacks+=sweep_probe.InterruptSecond",
            f"--trainer.callbacks.signal_name={name}",
            f"--trainer.callbacks.flag={out}/sent",
        ]
        given = arguments(out, checkpoints, "--seeds=[0, 1]", *more)
        command = [sys.executable, "-m", "lightning_ript", *given]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        runs[name] = out, given, process
    said = {name: process.communicate(timeout=800)[1] for name, (*_, process) in runs.items()}
    return {n: (out, given, p.returncode, said[n]) for n, (out, given, p) in runs.items()}


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_an_interrupted_sweep_repeats_one_cell_only(
    interrupted, checkpoints, tmp_path, caplog, name
):
    out, given, code, said = interrupted[name]
    assert code == (-signal.SIGKILL if name == "SIGKILL" else 1), said
    assert "Traceback" not in said
    (done,) = results(out)
    assert len(table(out)) == 2  # of the cell that is done
    before = done.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        main(given)
    assert len(announced(caplog)) == 3
    assert done.stat().st_mtime_ns == before
    main(arguments(tmp_path, checkpoints, "--seeds=[0, 1]"))
    assert table(out) == table(tmp_path)
    if name == "SIGTERM":
        assert "the same command goes on from the last finished cell." in said


# -- refusals, all of them before the first cell ---------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds=[0, 1]", "--data.eval_sampling=false"], "each would repeat the same episodes"),
        (["--seeds=[0, 0]"], "--seeds is [0, 0]: name at least one, and none twice"),
        (["--suites=[near]"], "ToySpec has no suites to choose from: leave --suites near out"),
        (["--ckpt_path=x.ckpt"], "x.ckpt, which does not exist"),
        (["--seed=[0]"], "--seed"),
        (["--data.environment.num_tasks=0"], "ToySpec.num_tasks is 0"),
    ],
)
def test_bad_settings(capsys, checkpoints, tmp_path, more, said):
    out = tmp_path / "out"
    assert said in refusal(capsys, *arguments(out, checkpoints, *more))
    assert not results(out)


def test_one_unknown_suite_of_several(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="unknown suite 'moon'"):
        main(arguments(tmp_path, checkpoints, *SUITES, "--suites=[near, moon]"))
    assert not results(tmp_path)


def test_one_bad_checkpoint_of_several(capsys, checkpoints, tmp_path):
    out = tmp_path / "out"
    line = refusal(capsys, *arguments(out, [*checkpoints, "nothing.ckpt"]))
    assert "--checkpoints names nothing.ckpt, which does not exist" in line
    fit(tmp_path / "wide", 1, "--model.policy.hidden=32")
    wide = str(tmp_path / "wide/checkpoints/last.ckpt")
    line = refusal(capsys, *arguments(out, [*checkpoints, wide]))
    assert f"{wide} does not fit the model of these settings" in line
    assert "policy.net.0.weight" in line
    line = refusal(capsys, *arguments(out, checkpoints, f"--ckpt_path={checkpoints[0]}"))
    assert "in place of --ckpt_path" in line
    assert not results(out)


def test_results_of_other_settings_are_not_mixed(capsys, checkpoints, tmp_path):
    given = arguments(tmp_path, checkpoints[:1])
    main(given)
    line = refusal(capsys, *given, "--data.environment.max_steps=9")
    assert "(data.environment.max_steps was 32 and is now 9): name another --out" in line
    os.utime(checkpoints[0])
    line = refusal(capsys, *given)
    assert "has been written since it was evaluated in" in line
    results(tmp_path)[0].unlink()
    main(given)
    assert len(results(tmp_path)) == 1


def test_a_sweep_needs_rollouts(capsys, checkpoints, tmp_path):
    demonstrations = "lightning_ript.demos.datamodule.DemonstrationDataModule"
    config = tmp_path / "demonstrations.yaml"
    config.write_text(
        f"data:\n  class_path: {demonstrations}\n  init_args: {{files: [x]}}\n"
        "model:\n  class_path: lightning_ript.module.RIPTLightningModule\n"
        "  init_args:\n    policy: lightning_ript.policies.toy.ToyPolicy\n"
    )
    line = refusal(
        capsys,
        *("sweep", f"--config={config}", f"--out={tmp_path}/out"),
        f"--checkpoints={json.dumps(checkpoints)}",
    )
    assert "the data module is DemonstrationDataModule" in line


# -- table and chart -------------------------------------------------------------------------------


def cell(checkpoint, seed, counts, suite="goal", caveats=(), sampled=True):
    """A result from (task, successes, episodes, mean steps)."""
    tasks = tuple(TaskResult(task, "", n, k, steps) for task, k, n, steps in counts)
    metadata = {"sampled_actions": sampled, "environment": {"caveats": list(caveats)}}
    return CellResult(checkpoint, suite, seed, EvaluationResult(tasks, metadata))


def rows(*cells):
    return [row for result in cells for row in result.rows()]


def test_the_summary_is_a_mean_over_seeds_with_a_pooled_interval():
    one, two = summarize(
        rows(
            cell("x", 0, [("lift", 8, 10, 40.0), ("push", 2, 10, 80.0)]),
            cell("x", 1, [("lift", 9, 10, 40.0), ("push", 5, 10, 80.0)]),
            cell("y", 0, [("lift", 0, 10, 90.0), ("push", 0, 10, 90.0)]),
        )
    )
    assert (one["checkpoint"], one["suite"], one["seeds"]) == ("x", "goal", 2)
    assert (one["successes"], one["episodes"], one["mean_steps"]) == (24, 40, 60.0)
    assert one["success_rate"] == pytest.approx((0.5 + 0.7) / 2)
    assert one["seed_std"] == pytest.approx(0.2 / 2**0.5)
    assert (one["interval_low"], one["interval_high"]) == wilson_interval(24, 40)
    assert (two["success_rate"], two["seed_std"]) == (0.0, None)
    assert summary_table([one, two]) == "\n".join(
        [
            "checkpoint  suite  seeds  success   rate  95 % interval  mean steps",
            "-------------------------------------------------------------------",
            "x            goal      2    24/40  60.0%  44.6% - 73.7%        60.0",
            "y            goal      1     0/20   0.0%   0.0% - 16.1%        90.0",
            "",
        ]
    )


def test_caveats_are_admitted():
    doubtful = rows(cell("x", 0, [("lift", 1, 2, 3.0)], caveats=["Boxes.", "No light."]))
    (row,) = summarize(doubtful)
    assert row["caveats"] == "Boxes.; No light."
    assert "Boxes.; No light." in summary_table([row])
    assert draw_tasks(doubtful).get_supxlabel() == "Boxes.; No light."


def test_progress_pools_what_is_done():
    done = [cell("x", 0, [("lift", 3, 4, 5.0)]), cell("x", 1, [("lift", 0, 2, 5.0)])]
    assert progress(3, 9, "y, goal, seed 0", done) == (
        "cell 3 of 9: y, goal, seed 0 (so far 3/6, 50.0%)"
    )
    assert progress(1, 9, "x", []) == "cell 1 of 9: x"


def test_the_chart_has_a_bar_per_task_and_checkpoint_and_one_for_all():
    counts = [("lift_it", 8, 10, 40.0), ("push_it", 2, 10, 80.0)]
    figure = draw_tasks(
        rows(
            cell("runs/a/checkpoints/last.ckpt", 0, counts),
            cell("runs/a/checkpoints/last.ckpt", 1, [("lift_it", 0, 10, 9.0), *counts[1:]]),
            cell("runs/b/checkpoints/last.ckpt", 0, counts),
            cell("runs/b/checkpoints/last.ckpt", 0, counts[:1], suite="long", sampled=False),
        )
    )
    goal, long = figure.axes
    assert goal.get_title(loc="left") == "goal (sampled actions, 2 seeds)"
    assert long.get_title(loc="left") == "long (most likely actions)"
    labels = [text.get_text() for text in goal.get_yticklabels()]
    assert labels == ["all tasks", "lift it", "push it"]
    widths = [bar.get_width() for bar in goal.patches]
    # The first checkpoint pools both seeds: 12 of 40, 8 of 20, 4 of 20.
    assert widths == pytest.approx([0.3, 0.4, 0.2, 0.5, 0.8, 0.2])
    assert [bar.get_width() for bar in long.patches] == [0.8]  # a suite of one task
    whiskers = next(line for line in goal.collections if hasattr(line, "get_segments"))
    low, high = whiskers.get_segments()[1][:, 0]
    assert (low, high) == pytest.approx(wilson_interval(8, 20))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a/last", "b/last"]


@pytest.mark.parametrize("tasks", [10, 90])
@pytest.mark.parametrize("checkpoints", [1, 3])
def test_the_names_of_tasks_do_not_overlap(tasks, checkpoints):
    name = "KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it"
    counts = [(f"{name}_{i}", i % 11, 10, 9.0) for i in range(tasks)]
    figure = draw_tasks(rows(*(cell(f"runs/{c}", 0, counts) for c in range(checkpoints))))
    assert len(figure.axes[0].patches) == checkpoints * (tasks + 1)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert len(boxes) == tasks + 1
    for upper, lower in itertools.pairwise(boxes):
        assert lower.y1 < upper.y0
    assert min(box.x0 for box in boxes) >= 0
    assert figure.axes[0].get_window_extent().width > 0.5 * figure.bbox.width


def test_short_names_are_as_long_as_it_takes():
    assert short_names(["runs/a/checkpoints/last.ckpt"]) == ["last"]
    assert short_names(["runs/a/checkpoints/last.ckpt"], least=2) == ["a/last"]
    assert short_names(["x/last.ckpt", "y/last.ckpt"]) == ["x/last", "y/last"]
    assert short_names(["q/seed0/ript", "q/seed1/ript"]) == ["seed0/ript", "seed1/ript"]
    assert short_names(["/a/b", "b"]) == ["a/b", "b"]
    assert short_names([]) == []
