"""Evaluations on further environments during training."""

import csv
import json
from types import SimpleNamespace

import pytest
import yaml
from test_callbacks import Counter, Episodes, make_trainer
from toy_runs import SHORT, checkpoint, fit, history

from lightning_ript.callbacks import EvaluationSweep
from lightning_ript.cli import main
from lightning_ript.datamodule import RolloutDataModule
from lightning_ript.envs.toy import ToySpec
from lightning_ript.evaluation import evaluation_starts
from lightning_ript.policies.toy import ToyPolicy
from lightning_ript.storage.evaluation_result import wilson_interval

STATES = 5
EVALUATION = [
    "--trainer.limit_val_batches=1.0",
    f"--data.init_args.eval_states_per_task={STATES}",
    "--trainer.check_val_every_n_epoch=2",
]


def sweeping(folder, **settings):
    """A config with the callback, as a user would write it."""
    toy = {"class_path": "lightning_ript.envs.toy.ToySpec"}
    far = {"class_path": "sweep_probe.SuiteSpec", "init_args": {"suite": "far", "num_tasks": 3}}
    given = {
        "environments": {"own": toy, "far": far},
        "every_n_iterations": 2,
        "states_per_task": STATES,
        **settings,
    }
    callbacks = [
        {"class_path": "lightning_ript.callbacks.EvaluationSweep", "init_args": given},
        {"class_path": "lightning_ript.callbacks.RunReport"},
    ]
    path = folder / "sweeping.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}, sort_keys=False))
    return [f"--config={path}", *EVALUATION]


def table(run_dir):
    with (run_dir / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("swept")
    fit(run_dir, 4, *sweeping(run_dir, at_start=True, seeds=[0, 9]))
    return run_dir


def test_the_policy_is_prepared_for_all_tasks(tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(
        ToyPolicy, "prepare", lambda self, tasks: prepared.append({task.suite for task in tasks})
    )
    fit(tmp_path, 1, *sweeping(tmp_path))
    assert prepared == [{"toy"}, {"toy", "far"}]


def test_there_is_a_row_per_iteration_environment_seed_and_task(swept):
    rows = table(swept)
    keys = [(row["iteration"], row["environment"], row["seed"], row["task"]) for row in rows]
    assert keys == [
        (iteration, name, seed, f"turn_{90 * task}")
        for iteration in ("0", "2", "4")
        for name, tasks in (("own", 2), ("far", 3))
        for seed in ("0", "9")
        for task in range(tasks)
    ]
    for row in rows:
        assert row["episodes"] == str(STATES)
        interval = float(row["interval_low"]), float(row["interval_high"])
        assert interval == wilson_interval(int(row["successes"]), STATES)
        assert (row["sampled_actions"], row["caveats"]) == ("True", "")


def test_on_the_runs_own_tasks_it_finds_what_validation_finds(swept):
    """The same weights, states and noise."""
    for iteration in (2, 4):
        evaluation = history(swept)[iteration - 1]["evaluation"]
        mine = [
            (row["task"], int(row["successes"]), float(row["mean_steps"]))
            for row in table(swept)
            if (row["iteration"], row["environment"], row["seed"]) == (str(iteration), "own", "0")
        ]
        expected = [(t["task"], t["successes"], t["mean_steps"]) for t in evaluation["tasks"]]
        assert mine == expected


def test_the_rates_are_metrics_of_their_iteration(swept):
    rows = table(swept)
    for entry in history(swept):
        for name in ("own", "far"):
            metric = f"sweep/{name}/success_rate"
            mine = [
                row
                for row in rows
                if (row["iteration"], row["environment"]) == (str(entry["iteration"]), name)
            ]
            assert (metric in entry["metrics"]) == bool(mine)
            if mine:
                rate = sum(int(row["successes"]) for row in mine) / (STATES * len(mine))
                assert entry["metrics"][metric] == pytest.approx(rate)
    (log,) = swept.glob("metrics/**/metrics.csv")
    with log.open() as file:
        logged = [row for row in csv.DictReader(file) if row["sweep/far/success_rate"]]
    assert next(row["step"] for row in logged) == "0"  # of the starting policy
    assert len(logged) == 3


def test_a_resumed_run_has_the_rows_of_one_that_was_not_interrupted(swept, tmp_path):
    more = sweeping(tmp_path, at_start=True, seeds=[0, 9])
    fit(tmp_path, 3, *more)
    assert {row["iteration"] for row in table(tmp_path)} == {"0", "2"}
    fit(tmp_path, 4, *more)
    assert table(tmp_path) == table(swept)


def test_it_does_not_change_what_is_learned(swept, tmp_path):
    run, other = checkpoint(swept), fit(tmp_path, 4, *EVALUATION)
    for name, value in other["state_dict"].items():
        assert value.equal(run["state_dict"][name]), name


def test_rows_beyond_the_resumed_iteration_are_dropped():
    sweep = EvaluationSweep({"toy": ToySpec()}, at_start=True)
    sweep.load_state_dict({"rows": [{"iteration": i} for i in (0, 1, 2, 3)]})
    sweep.on_train_start(SimpleNamespace(current_epoch=2), Counter())
    assert [row["iteration"] for row in sweep.rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"environments": {}}, "0 environments"),
        ({"seeds": ()}, r"the seeds \(\)"),
        ({"seeds": (1, 1)}, "no seed twice"),
        ({"every_n_iterations": 0}, "every_n_iterations is 0"),
        ({"states_per_task": 0}, "states_per_task 0"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        EvaluationSweep(**{"environments": {"toy": ToySpec()}, **settings})


def test_refusals_before_training(tmp_path, capsys):
    for settings, more, said in [
        ({"seeds": [0, 1]}, ["--data.eval_sampling=false"], "Give one seed"),
        ({"environments": {"none": toy_spec(0)}}, [], "ToySpec.num_tasks is 0"),
    ]:
        with pytest.raises(SystemExit):
            main(
                [
                    *("fit", *SHORT, *sweeping(tmp_path, **settings), f"--run_dir={tmp_path}"),
                    *("--trainer.max_epochs=1", *more),
                ]
            )
        assert said in capsys.readouterr().err
    assert not (tmp_path / "history.json").exists()
    with pytest.raises(TypeError, match="the data module is Episodes"):
        make_trainer(tmp_path, EvaluationSweep({"toy": ToySpec()}), max_epochs=1).fit(
            Counter(), Episodes()
        )


def toy_spec(num_tasks):
    return {
        "class_path": "lightning_ript.envs.toy.ToySpec",
        "init_args": {"num_tasks": num_tasks},
    }


# -- which episodes --------------------------------------------------------------------------------


def test_starts_are_the_first_test_states_of_every_task():
    starts = evaluation_starts(ToySpec(num_tasks=2, test_states=3), 2, videos=1)
    found = [(context.task.name, context.index, record) for context, record in starts]
    assert found == [
        ("turn_0", 0, True),
        ("turn_0", 1, False),
        ("turn_90", 0, True),
        ("turn_90", 1, False),
    ]
    assert len(evaluation_starts(ToySpec(num_tasks=2, test_states=3))) == 6


def test_videos_of_chosen_tasks():
    starts = evaluation_starts(ToySpec(test_states=3), videos={"turn_90": 2})
    assert [context.index for context, record in starts if record] == [0, 1]
    assert {context.task.name for context, record in starts if record} == {"turn_90"}
    data = RolloutDataModule(ToySpec(), eval_videos={"turn_45": 2})
    data.trainer = SimpleNamespace(world_size=1, reload_dataloaders_every_n_epochs=1)
    with pytest.raises(ValueError, match="eval_videos names turn_45, not among"):
        data.setup("validate")
    for videos in (-1, {"turn_0": -1}):
        with pytest.raises(ValueError, match="eval_videos is"):
            RolloutDataModule(ToySpec(), eval_videos=videos)
    assert RolloutDataModule(ToySpec(), eval_videos={}).eval_videos == {}


def test_chosen_tasks_are_settings(tmp_path):
    main(
        [
            *("validate", "--config=configs/toy.yaml", f"--run_dir={tmp_path}"),
            *("--trainer.enable_progress_bar=false", "--data.eval_states_per_task=3"),
            '--data.eval_videos={"turn_90": 2}',
            "--trainer.callbacks+=lightning_ript.callbacks.RolloutVideo",
            "--trainer.callbacks.per_task=1",
        ]
    )
    (video,) = (tmp_path / "videos/validate").iterdir()
    assert video.name.startswith("turn_90-00")
    assert json.loads((tmp_path / "evaluation/validate.json").read_text())["tasks"]
