"""Two processes with all of the parameters, or with half of them each, learn what one learns."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from block_policy import BlockPolicy
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from test_ranks import TIMES
from torch import nn
from toy_runs import checkpoint, fit, history, interrupting, start, weights

from lightning_ript.module import RIPTLightningModule

RANKS = ["ddp", "fsdp2"]
LEARNING = [
    "--model.init_args.policy=block_policy.BlockPolicy",
    "--model.init_args.optimizer=torch.optim.SGD",
    "--model.init_args.optimizer.lr=0.5",
    "--model.init_args.optimizer.momentum=0.5",
    # Several passes per step; ranks have different numbers of decisions.
    "--model.init_args.decisions_per_microbatch=9",
    # Clipping acts on the adapters, and not on the head.
    "--model.init_args.max_grad_norm=0.01",
    "--model.init_args.policy.adapter_lr=2",
    "--model.init_args.policy.head_norm=1000",
    "--trainer.limit_val_batches=1.0",
    "--data.init_args.eval_states_per_task=5",
]
UNITS = 4  # three blocks and what is around them


def on_two(strategy):
    return ["--trainer.devices=2", f"--trainer.strategy={strategy}"]


def watched(run_dir):
    return [
        "--trainer.callbacks+=sharding_probe.Watch",
        f"--trainer.callbacks.folder={run_dir}",
    ]


def finish(process):
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, out + err
    assert "Warning" not in err
    return err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind over two iterations, and what one process has after the first."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alone", "ddp", "fsdp2")}
    for name in RANKS:
        finish(start(folders[name], 2, *LEARNING, *on_two(name), *watched(folders[name])))
    finish(start(folders["alone"], 1, *LEARNING, *watched(folders["alone"])))
    shutil.copytree(folders["alone"], folders["alone"] / "first")
    fit(folders["alone"], 2, *LEARNING)
    return folders


def gradients(run_dir, rank):
    return torch.load(run_dir / f"gradients{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", RANKS)
def test_the_first_gradient_is_that_of_one_process(runs, name):
    alone = gradients(runs["alone"], 0)
    assert len(alone) == 8  # two in each block, two in the head
    assert alone["net.head.weight"].norm() > 0.05
    adapters = torch.stack([g.norm() for n, g in alone.items() if "blocks" in n]).norm()
    assert adapters == pytest.approx(0.01, rel=1e-3)  # after clipping, as it is when it steps
    for rank in range(2):
        for parameter, gradient in gradients(runs[name], rank).items():
            torch.testing.assert_close(gradient, alone[parameter], rtol=1e-5, atol=1e-8)


def assert_same_run(run, other):
    """Weights and momentum to 1e-5 of what they are, and frozen ones exactly."""
    assert run["state_dict"].keys() == other["state_dict"].keys()
    for name, value in weights(run).items():
        torch.testing.assert_close(value, weights(other)[name], rtol=1e-5, atol=1e-6, msg=name)
    (ours,), (theirs,) = run["optimizer_states"], other["optimizer_states"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys() == set(range(8))
    for number, state in ours["state"].items():
        momentum = theirs["state"][number]["momentum_buffer"]
        torch.testing.assert_close(state["momentum_buffer"], momentum, rtol=1e-4, atol=1e-8)
    assert run["RolloutDataModule"] == other["RolloutDataModule"]
    assert run["epoch"] == other["epoch"]


@pytest.mark.parametrize("name", RANKS)
def test_after_two_iterations_so_are_weights_and_optimizer(runs, name):
    alone, shared = checkpoint(runs["alone"]), checkpoint(runs[name])
    moved = alone["state_dict"]["policy.net.blocks.0.up.weight"]
    assert (moved - BlockPolicy().net.blocks[0].up.weight).abs().max() > 0.001
    assert_same_run(shared, alone)


@pytest.mark.parametrize("name", RANKS)
def test_metrics_and_evaluations_are_of_all_ranks(runs, name):
    for entry, other in zip(history(runs["alone"]), history(runs[name]), strict=True):
        assert entry["metrics"].keys() == other["metrics"].keys()
        for metric in entry["metrics"].keys() - TIMES:
            expected = pytest.approx(entry["metrics"][metric], rel=1e-4, abs=1e-5)
            assert other["metrics"][metric] == expected, metric
        assert entry["evaluation"]["tasks"] == other["evaluation"]["tasks"]


def sent(run_dir):
    ours, theirs = (json.loads((run_dir / f"sent{rank}.json").read_text()) for rank in range(2))
    assert ours.pop("resting_values") + theirs.pop("resting_values") > 0
    assert ours == theirs
    assert ours["microbatches"] > 2 * ours["steps"]
    return ours


def test_ddp_sends_gradients_once_per_step(runs):
    counts = sent(runs["ddp"])
    assert counts["ddp_reductions"] == counts["steps"]


def test_fsdp_gathers_once_to_act_and_sends_gradients_once_per_step(runs):
    counts = sent(runs["fsdp2"])
    assert counts["reductions"] == UNITS * counts["steps"]
    # To collect and to evaluate, in both iterations; forward and back, in each micro-batch.
    passes = 2 * 2 + 2 * counts["microbatches"]
    assert counts["gathers"] == UNITS * passes


def test_fsdp_leaves_each_rank_half(runs):
    size = sum(p.numel() for p in BlockPolicy().parameters())
    for rank in range(2):
        held = json.loads((runs["fsdp2"] / f"sent{rank}.json").read_text())["resting_values"]
        assert 0.4 * size < held < 0.6 * size


@pytest.mark.slow
def test_one_process_goes_on_from_shards(runs, tmp_path):
    finish(start(tmp_path, 1, *LEARNING, *on_two("fsdp2")))
    assert_same_run(fit(tmp_path, 2, *LEARNING), checkpoint(runs["alone"]))


@pytest.mark.slow
def test_shards_go_on_from_one_process(runs, tmp_path):
    shutil.copytree(runs["alone"] / "first", tmp_path, dirs_exist_ok=True)
    finish(start(tmp_path, 2, *LEARNING, *on_two("fsdp2")))
    assert_same_run(checkpoint(tmp_path), checkpoint(runs["alone"]))
    before = history(tmp_path)
    finish(start(tmp_path, 2, *LEARNING, *on_two("fsdp2")))  # finished
    assert history(tmp_path) == before


def test_validate_repeats_the_evaluation(runs, tmp_path):
    last = runs["alone"] / "checkpoints/last.ckpt"
    more = [*LEARNING, *on_two("fsdp2"), f"--ckpt_path={last}"]
    finish(start(tmp_path, 2, *more, command="validate"))
    result = json.loads((tmp_path / "evaluation/last.json").read_text())
    assert result["tasks"] == history(runs["alone"])[-1]["evaluation"]["tasks"]


@pytest.mark.slow
def test_a_critic_and_a_kl_penalty_learn_in_shards(tmp_path):
    critic = "--model=lightning_ript.extensions.critic.CriticModule"
    more = [critic, "--model.init_args.kl_coefficient=0.5"]
    finish(start(tmp_path / "two", 2, *LEARNING, *more, *on_two("fsdp2")))
    alone, shared = fit(tmp_path / "one", 2, *LEARNING, *more), checkpoint(tmp_path / "two")
    assert any(name.startswith("critic.") for name in weights(alone))
    for name, value in alone["state_dict"].items():
        torch.testing.assert_close(
            shared["state_dict"][name], value, rtol=1e-5, atol=2e-6, msg=name
        )
    for entry, other in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        for metric in ("value_loss", "explained_variance", "loss"):
            expected = pytest.approx(entry["metrics"][f"train/{metric}"], rel=1e-3, abs=1e-5)
            assert other["metrics"][f"train/{metric}"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_frozen_may_be_of_another_dtype(tmp_path, precision):
    one_step = ["--model.init_args.passes=1", "--model.init_args.episodes_per_minibatch=999"]
    more = ["--model.init_args.policy.base=bfloat16", f"--trainer.precision={precision}"]
    finish(start(tmp_path, 1, *LEARNING, *one_step, *more, *on_two("fsdp2")))
    state = checkpoint(tmp_path)["state_dict"]
    assert state["policy.net.blocks.0.base.weight"].dtype == torch.bfloat16
    assert state["policy.net.blocks.0.up.weight"].dtype == torch.float32
    (entry,) = history(tmp_path)
    assert entry["metrics"]["train/grad_norm"] > 0
    # Decisions meet others in a batch than when they were made, which rounds them otherwise.
    assert entry["metrics"]["train/ratio"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_cannot_do_it_are_refused(strategy):
    module = RIPTLightningModule(BlockPolicy())
    module.trainer = SimpleNamespace(strategy=strategy())
    with pytest.raises(TypeError, match=f"is {strategy.__name__}, .* set fsdp2"):
        module.configure_model()


def test_quantized_weights_are_not_cut():
    policy = BlockPolicy()
    layer = policy.net.blocks[1].base
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    module = RIPTLightningModule(policy)
    module.trainer = SimpleNamespace(strategy=None)
    module._device_mesh = {"data_parallel": None}
    with pytest.raises(TypeError, match=r"fsdp2 cannot .* policy\.net\.blocks\.1\.base\.weight"):
        module.configure_model()


def test_lightnings_fsdp_wants_a_gpu(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit(tmp_path, 1, *on_two("fsdp"))
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert "requires a GPU accelerator" in line


@pytest.mark.slow
def test_terminated_shards_end_and_go_on(runs, tmp_path):
    signalled = interrupting(tmp_path, history(runs["alone"])[:2], "SIGTERM")
    process = start(tmp_path, 2, *LEARNING, *on_two("fsdp2"), *signalled)
    _, err = process.communicate(timeout=800)
    assert process.returncode != 0
    assert "Stopped by SIGTERM" in err
    assert len(history(tmp_path)) == 1, err
    assert checkpoint(tmp_path)["epoch"] == 0
    finish(start(tmp_path, 2, *LEARNING, *on_two("fsdp2")))
    assert_same_run(checkpoint(tmp_path), checkpoint(runs["alone"]))
