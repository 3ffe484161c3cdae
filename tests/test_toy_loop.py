"""The whole loop on the toy twin: it learns, and the knobs do what they say."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from block_policy import BlockPolicy
from toy_runs import SGD, fit, history, weights

from lightning_ript.cli import main
from lightning_ript.datamodule import RolloutDataModule
from lightning_ript.envs.toy import ToySpec
from lightning_ript.module import RIPTLightningModule
from lightning_ript.policies.toy import ToyPolicy

METRICS = [
    "rollout/success_rate",
    "rollout/success_rate_kept",
    "rollout/groups_kept",
    "rollout/groups_dropped",
    "rollout/episode_length",
    "rollout/episodes_per_second",
    "time/collecting",
    "time/learning",
    "train/loss",
    "train/advantage",
    "train/ratio",
    "train/clip_fraction",
    "train/approx_kl",
    "train/entropy",
    "train/grad_norm",
    "train/lr",
]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("toy")
    main(["fit", "--config", "configs/toy.yaml", f"--run_dir={run_dir}"])
    return run_dir


def test_it_learns(learned):
    entries = history(learned)
    assert entries[0]["metrics"]["rollout/success_rate"] < 0.5
    assert entries[-1]["metrics"]["val/success_rate"] > 0.95
    assert entries[-1]["metrics"]["rollout/success_rate"] > 0.9


def test_a_run_leaves_its_numbers_and_settings(learned):
    for entry in history(learned):
        assert set(METRICS) <= entry["metrics"].keys()
    (log,) = learned.glob("metrics/**/metrics.csv")
    with log.open() as file:
        assert set(METRICS) <= set(csv.DictReader(file).fieldnames)
    (config,) = learned.glob("**/config.yaml")
    assert "groups_per_iteration: 32" in config.read_text()
    assert (learned / "learning_curve.png").stat().st_size > 1000


def test_validate_repeats_the_evaluation(learned, tmp_path, recwarn):
    last = learned / "checkpoints" / "last.ckpt"
    fewer = "--trainer.callbacks=lightning_ript.callbacks.EvaluationReport"
    config = ("--config", "configs/toy.yaml")
    main(["validate", *config, fewer, f"--run_dir={tmp_path}", f"--ckpt_path={last}"])
    assert not [each for each in recwarn if "callbacks used to create" in str(each.message)]
    result = json.loads((tmp_path / "evaluation" / "last.json").read_text())
    assert result["tasks"] == history(learned)[-1]["evaluation"]["tasks"]


def test_the_best_checkpoint_is_the_best(learned, tmp_path):
    best = learned / "checkpoints" / "best.ckpt"
    main(
        ["validate", "--config", "configs/toy.yaml", f"--run_dir={tmp_path}", f"--ckpt_path={best}"]
    )
    result = json.loads((tmp_path / "evaluation" / "best.json").read_text())
    rates = [entry["metrics"]["val/success_rate"] for entry in history(learned)]
    assert result["overall"]["success_rate"] == pytest.approx(max(rates))
    assert torch.load(best, weights_only=False)["epoch"] == rates.index(max(rates))
    names = sorted(path.name for path in best.parent.iterdir())
    assert names == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_the_first_step_starts_where_the_rollouts_were_drawn(tmp_path):
    fit(tmp_path, 1, "--model.init_args.passes=1", "--model.init_args.episodes_per_minibatch=999")
    (entry,) = history(tmp_path)
    assert entry["metrics"]["train/ratio"] == pytest.approx(1, abs=1e-5)
    assert entry["metrics"]["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert entry["metrics"]["train/clip_fraction"] == 0
    assert entry["metrics"]["train/grad_norm"] > 0


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("plain"), 1, *SGD)


def assert_close(run, other):
    for name, value in weights(run).items():
        torch.testing.assert_close(value, weights(other)[name], rtol=1e-5, atol=1e-5)


def distance(run, start):
    """How far a run's policy went from the one it started with."""
    mine = {n: v for n, v in weights(run).items() if n.startswith("policy.")}
    return sum(float((v - start[n]).abs().sum()) for n, v in mine.items())


@pytest.mark.parametrize(
    "change",
    ["--model.init_args.decisions_per_microbatch=7", "--data.init_args.num_workers=2"],
)
def test_what_must_not_matter_does_not(plain_run, tmp_path, change):
    assert_close(fit(tmp_path, 1, *SGD, change), plain_run)


@pytest.mark.parametrize(
    "change",
    [
        "--model.init_args.advantage=group_normalized",
        "--model.init_args.advantage=plain",
        "--model.init_args.loss_aggregation=sequence",
        "--model.init_args.clip_high=0.001",
        "--model=lightning_ript.extensions.critic.CriticModule",
        "--data.init_args.dynamic_sampling=false",
        "--data.init_args.init_object_noise=0.1",
        "--data.init_args.seed=1",
    ],
)
def test_ablations_matter(plain_run, tmp_path, change):
    run = fit(tmp_path, 1, *SGD, change)
    start = {f"policy.{n}": v for n, v in ToyPolicy().state_dict().items()}
    assert distance(run, weights(plain_run)) > 0.01 * distance(plain_run, start)


def test_an_iteration_without_any_advantage_changes_nothing_but_time(tmp_path):
    more = ["--data.init_args.dynamic_sampling=false", *hopeless(0), "--trainer.max_epochs=1"]
    run = fit(tmp_path, 1, *SGD, *more)
    for name, value in ToyPolicy().net.state_dict().items():
        assert torch.equal(run["state_dict"][f"policy.net.{name}"], value)
    (entry,) = history(tmp_path)
    assert entry["metrics"]["train/loss"] == entry["metrics"]["train/grad_norm"] == 0
    assert entry["metrics"]["train/ratio"] == pytest.approx(1)


def test_the_schedule_may_step_every_second_iteration(tmp_path):
    settings = [
        "--model.init_args.scheduler=torch.optim.lr_scheduler.StepLR",
        "--model.init_args.scheduler.step_size=1",
        "--model.init_args.scheduler.gamma=0.5",
        "--model.init_args.scheduler_interval=2",
    ]
    fit(tmp_path, 5, *SGD, *settings)
    rates = [entry["metrics"]["train/lr"] for entry in history(tmp_path)]
    assert [rate / rates[0] for rate in rates] == pytest.approx([1, 1, 0.5, 0.5, 0.25])


def test_groups_of_parameters_have_rates_and_norms_of_their_own(tmp_path):
    settings = [
        "--model.init_args.policy=block_policy.BlockPolicy",
        "--model.init_args.policy.head_norm=0.01",
        "--model.init_args.max_grad_norm=0.002",
        *SGD,
        "--model.init_args.scheduler=torch.optim.lr_scheduler.StepLR",
        "--model.init_args.scheduler.step_size=1",
        "--model.init_args.scheduler.gamma=0.5",
        "--model.init_args.passes=1",
        "--model.init_args.episodes_per_minibatch=999",
    ]
    run = fit(tmp_path, 2, *settings)
    first, second = (entry["metrics"] for entry in history(tmp_path))
    for entry, factor in ((first, 1), (second, 0.5)):
        rates = [entry["train/lr/head"], entry["train/lr/adapters"]]
        assert rates == pytest.approx([0.5 * factor, 0.02 * factor])
    head, adapters = first["train/grad_norm/head"], first["train/grad_norm/adapters"]
    assert head > 0.01
    assert adapters > 0.002
    assert first["train/grad_norm"] == pytest.approx((head**2 + adapters**2) ** 0.5)
    # Both steps are as long as rate and norm allow: 0.5 * 0.01 and
    # 0.25 * 0.01 for the head; together at most the sum.
    moved = {"net.head": 0.0, "net.blocks": 0.0}
    for name, value in BlockPolicy().named_parameters():
        change = (run["state_dict"][f"policy.{name}"] - value).norm().item()
        if not value.requires_grad:
            assert change == 0
            continue
        moved[".".join(name.split(".")[:2])] += change**2
    assert 0.5 * 0.0075 < moved["net.head"] ** 0.5 <= 0.0075 * 1.001
    assert 0.5 * 0.00006 < moved["net.blocks"] ** 0.5 <= 0.00006 * 1.01


def test_groups_of_parameters_have_different_names(tmp_path):
    class Twice(BlockPolicy):
        def parameter_groups(self):
            return [{**group, "name": "head"} for group in super().parameter_groups()]

    module = RIPTLightningModule(Twice())
    with pytest.raises(ValueError, match="two groups of a name"):
        module.configure_optimizers()


def test_the_kl_penalty_holds_the_policy_back(plain_run, tmp_path):
    start = {f"policy.{n}": v for n, v in ToyPolicy().state_dict().items()}
    held = fit(tmp_path, 1, *SGD, "--model.init_args.kl_coefficient=10")
    assert distance(held, start) < 0.9 * distance(plain_run, start)
    kept = [v for name, v in held["state_dict"].items() if name.startswith("reference.")]
    for value, parameter in zip(kept, ToyPolicy().parameters(), strict=True):
        assert torch.equal(value, parameter)


def test_the_schedule_counts_iterations(tmp_path):
    scheduler = [
        "--model.init_args.scheduler=torch.optim.lr_scheduler.StepLR",
        "--model.init_args.scheduler.step_size=1",
        "--model.init_args.scheduler.gamma=0.5",
    ]
    fit(tmp_path, 3, *SGD, *scheduler)
    rates = [entry["metrics"]["train/lr"] for entry in history(tmp_path)]
    assert rates == pytest.approx([0.5, 0.25, 0.125])


# -- ends ------------------------------------------------------------------------------------------


def hopeless(since):
    return [
        "--data.init_args.environment=core_probe.HopelessSpec",
        f"--data.init_args.environment.since={since}",
        "--data.init_args.max_contexts=8",
    ]


def test_nothing_to_learn_at_first_ends_the_run(tmp_path):
    with pytest.warns(UserWarning, match=r"All 8 contexts .* nothing to learn"):
        assert fit(tmp_path, 3, *hopeless(0)) is None


def test_nothing_to_learn_later_ends_the_run_as_it_stood(tmp_path):
    with pytest.warns(UserWarning, match=r"All 8 contexts of iteration 1 .* nothing to learn"):
        run = fit(tmp_path, 5, *hopeless(8))
    assert run["epoch"] == 0
    assert run["RolloutDataModule"]["next_context"] == 8
    assert run["RolloutDataModule"]["environment"]["class"] == "HopelessSpec"
    (entry,) = history(tmp_path)
    assert 0 < entry["metrics"]["rollout/groups_kept"] <= 6
    with pytest.warns(UserWarning, match=r"All 8 contexts of iteration 1 .* nothing to learn"):
        again = fit(tmp_path, 5, *hopeless(8))
    assert again["epoch"] == 0


def test_a_finished_run_does_not_start_again(tmp_path):
    fit(tmp_path, 1)
    before = history(tmp_path)
    broken = ["core_probe.FaultySpec", "--data.init_args.environment.fault=make"]
    fit(tmp_path, 1, "--data.init_args.environment", *broken)  # would raise if it were built
    assert history(tmp_path) == before
    (name,) = [path.name for path in Path(tmp_path, "checkpoints").iterdir()]
    assert name == "last.ckpt"


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"rollouts_per_context": 1},
        {"groups_per_iteration": 0},
        {"stop_fraction": 0.0},
        {"stop_fraction": 1.5},
        {"num_workers": -1},
        {"hang_seconds": 0.0},
        {"eval_states_per_task": 0},
        {"groups_per_iteration": 8, "max_contexts": 7},
    ],
)
def test_the_data_module_refuses(settings):
    (name, _), *_ = settings.items()
    with pytest.raises(ValueError, match="max_contexts" if len(settings) > 1 else name):
        RolloutDataModule(ToySpec(), **settings)


def test_every_process_needs_an_episode_to_evaluate():
    data = RolloutDataModule(ToySpec(num_tasks=2), eval_states_per_task=1)
    data.trainer = SimpleNamespace(
        world_size=3,
        reload_dataloaders_every_n_epochs=1,
        limit_train_batches=1.0,
        val_check_interval=1.0,
        fast_dev_run=False,
    )
    with pytest.raises(ValueError, match="2 tasks are fewer than the 3 processes"):
        data.setup("fit")


@pytest.mark.parametrize(
    "settings",
    [
        {"passes": 0},
        {"episodes_per_minibatch": 0},
        {"decisions_per_microbatch": -1},
        {"clip_low": 0.0},
        {"max_grad_norm": float("nan")},
        {"kl_coefficient": -0.1},
    ],
)
def test_the_module_refuses(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"model.{name} is"):
        RIPTLightningModule(ToyPolicy(), **settings)


def test_stop_fraction_lowers_the_number_of_groups():
    assert RolloutDataModule(ToySpec(), stop_fraction=0.8).groups_wanted == 144
