"""Two processes with all of OpenVLA-OFT, or with half of it each, learn what one learns."""

import json
import shutil

import pytest
import torch
from slow_cases import first_and_slow
from two_processes import begin, finish, on_two, strayed

from lightning_ript.cli import main
from lightning_ript.storage.run_directory import adapter_path, scale_head_path

load_file = pytest.importorskip("safetensors.torch").load_file
tiny = pytest.importorskip("tiny_openvla")  # needs timm
RANKS = ["ddp", "fsdp2"]
FORWARDS = first_and_slow(["prefix_cache", "single_pass"])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvla")
    return tiny.write_tiny_openvla(folder, dtype=torch.float32)


def arguments(published, run_dir, iterations, *more, command="fit", fresh_head=False):
    head = f"--model.policy.scale_head={published}/scale_header.pth"
    return [
        command,
        "--config=configs/openvla_oft/ript.yaml",
        "--seed_everything=0",
        f"--run_dir={run_dir}",
        f"--trainer.max_epochs={iterations}",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.callbacks+=sharding_probe.Watch",
        f"--trainer.callbacks.folder={run_dir}",
        f"--model.policy.checkpoint={published}",
        f"--model.policy.statistics={tiny.UNNORM_KEY}",
        "--model.policy.lora={r: 2, alpha: 4}",
        "--model.policy.precision=float32",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.02",
        "--model.optimizer.momentum=0.5",
        "--model.passes=2",
        # Several passes per step; ranks have different numbers of decisions.
        "--model.episodes_per_minibatch=6",
        "--model.decisions_per_microbatch=3",
        "--data.environment=openvla_probe.ReachSpec",
        "--data.rollouts_per_context=4",
        "--data.groups_per_iteration=3",
        "--data.num_workers=0",
        *([] if fresh_head else [head]),
        *more,
    ]


def start(*args, **kwargs):
    return begin(arguments(*args, **kwargs))


def checkpoint(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=False)


@pytest.fixture(scope="module", params=FORWARDS)
def runs(request, published, tmp_path_factory):
    """A run of each kind over two iterations, and what one process has after the first."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alone", *RANKS)}
    forward = f"--model.policy.forward={request.param}"
    for name in RANKS:
        finish(start(published, folders[name], 2, forward, *on_two(name)))
    main(arguments(published, folders["alone"], 1, forward))
    shutil.copytree(folders["alone"], folders["alone"] / "first")
    main(arguments(published, folders["alone"], 2, forward))
    return {"forward": forward, **folders}


def gradients(run_dir, rank):
    return torch.load(run_dir / f"gradients{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", RANKS)
def test_the_first_gradient_is_that_of_one_process(runs, name):
    alone = gradients(runs["alone"] / "first", 0)
    assert {"lora_" in n for n in alone} == {True, False}
    # Where LoRA begins, one of the two factors is zero, and so is the other's gradient.
    assert any(".lora_B." in n and g.abs().max() > 1e-4 for n, g in alone.items())
    for rank in range(2):
        theirs = gradients(runs[name], rank)
        assert theirs.keys() == alone.keys()
        for parameter, gradient in theirs.items():
            torch.testing.assert_close(
                gradient, alone[parameter], rtol=1e-5, atol=1e-6, msg=parameter
            )


def assert_same_run(run, other):
    assert run["state_dict"].keys() == other["state_dict"].keys()
    for name, value in run["state_dict"].items():
        if name.startswith("policy."):
            theirs = other["state_dict"][name]
            torch.testing.assert_close(value, theirs, rtol=1e-5, atol=1e-5, msg=name)
    assert run["RolloutDataModule"] == other["RolloutDataModule"]
    assert run["epoch"] == other["epoch"]


@pytest.mark.parametrize("name", RANKS)
def test_after_two_iterations_so_are_adapter_and_head(runs, name):
    alone, shared = checkpoint(runs["alone"]), checkpoint(runs[name])
    first = checkpoint(runs["alone"] / "first")["state_dict"]
    moved = {
        n: (v - first[n]).abs().max()
        for n, v in alone["state_dict"].items()
        if ".lora_B." in n or "action_head" in n
    }
    assert max(moved.values()) > 1e-3
    assert_same_run(shared, alone)


def test_checkpoints_leave_out_the_base(runs):
    for name in ("alone", *RANKS):
        state = checkpoint(runs[name])["state_dict"]
        base = [n for n in state if n.startswith("policy.model.base.")]
        assert base
        assert all(".lora_" in n for n in base)


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("which", ["iteration_001", "iteration_002", "best"])
def test_the_adapter_is_written_as_by_one_process(runs, name, which):
    ours, theirs = adapter_path(runs[name], which), adapter_path(runs["alone"], which)
    assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}
    settings = [json.loads((p / "adapter_config.json").read_text()) for p in (ours, theirs)]
    for each in settings:
        each["target_modules"].sort()  # peft keeps them in a set
    assert settings[0] == settings[1]
    weights = "adapter_model.safetensors"
    mine, other = load_file(ours / weights), load_file(theirs / weights)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    heads = (torch.load(p / "openvla_headers.pt", weights_only=True) for p in (ours, theirs))
    torch.testing.assert_close(*heads, rtol=1e-5, atol=1e-5)


def test_fsdp_leaves_each_rank_half(runs):
    held = {
        name: [
            json.loads((runs[name] / f"sent{rank}.json").read_text())["resting_values"]
            for rank in range(2 if name == "fsdp2" else 1)
        ]
        for name in ("alone", "fsdp2")
    }
    (size,) = held["alone"]
    assert all(0.4 * size < each < 0.6 * size for each in held["fsdp2"])


@pytest.mark.slow
@pytest.mark.parametrize("runs", FORWARDS[:1], indirect=True)
def test_one_process_goes_on_from_shards(runs, published, tmp_path):
    finish(start(published, tmp_path, 1, runs["forward"], *on_two("fsdp2")))
    main(arguments(published, tmp_path, 2, runs["forward"]))
    assert_same_run(checkpoint(tmp_path), checkpoint(runs["alone"]))


@pytest.mark.slow
@pytest.mark.parametrize("runs", FORWARDS[:1], indirect=True)
def test_shards_go_on_from_one_process(runs, published, tmp_path):
    shutil.copytree(runs["alone"] / "first", tmp_path, dirs_exist_ok=True)
    finish(start(published, tmp_path, 2, runs["forward"], *on_two("fsdp2")))
    assert_same_run(checkpoint(tmp_path), checkpoint(runs["alone"]))


def test_learning_without_a_trained_scale_head_is_refused(published, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(arguments(published, tmp_path, 1, fresh_head=True))
    assert "no trained scale head" in capsys.readouterr().err


def test_a_kl_penalty_goes_with_a_scale_head_that_is_trained_first(published, tmp_path):
    data = "openvla_probe.MadeUpDemonstrations"
    more = [
        "--trainer.callbacks+=lightning_ript.callbacks.ScaleHeadPretraining",
        f"--trainer.callbacks.data={data}",
        "--model.kl_coefficient=0.1",
    ]
    main(arguments(published, tmp_path, 1, *more, fresh_head=True))
    state = checkpoint(tmp_path)["state_dict"]
    assert any(n.startswith("policy.model.scale_head.") for n in state)
    assert any(n.startswith("reference.") for n in state)


@pytest.mark.slow
def test_a_scale_head_is_trained_in_shards(published, tmp_path):
    data = "openvla_probe.MadeUpDemonstrations"
    more = [
        "--trainer.callbacks+=lightning_ript.callbacks.ScaleHeadPretraining",
        f"--trainer.callbacks.data={data}",
        "--trainer.callbacks.epochs=3",
        "--trainer.callbacks.lr=0.01",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    err = finish(start(published, two, 1, *more, *on_two("fsdp2"), fresh_head=True))
    assert "negative log-likelihood" in err
    main(arguments(published, one, 1, *more, fresh_head=True))
    heads = [
        torch.load(scale_head_path(folder), weights_only=True)["log_b_head"]["weight"]
        for folder in (one, two)
    ]
    torch.testing.assert_close(*heads, rtol=1e-5, atol=1e-5)
    assert_same_run(checkpoint(two), checkpoint(one))
    name = "policy.model.scale_head.log_b_head.weight"
    torch.testing.assert_close(checkpoint(two)["state_dict"][name], heads[1])
    # The same command, longer: the head is read again, and the sharded run goes on.
    finish(start(published, two, 2, *more, *on_two("fsdp2"), fresh_head=True))
    torch.testing.assert_close(checkpoint(two)["state_dict"][name], heads[1])


@pytest.mark.slow
def test_a_bfloat16_base_lies_in_shards_beside_a_float32_adapter(published, tmp_path):
    one_step = ["--model.passes=1", "--model.episodes_per_minibatch=999"]
    more = ["--model.policy.precision=bfloat16", *one_step]
    finish(start(published, tmp_path, 1, *more, *on_two("fsdp2")))
    found = gradients(tmp_path, 0)
    assert {g.dtype for g in found.values()} == {torch.float32}
    (entry,) = json.loads((tmp_path / "history.json").read_text())
    assert entry["metrics"]["train/grad_norm"] > 0
    # Decisions meet others in a batch than when they were made, which rounds them otherwise.
    assert entry["metrics"]["train/ratio"] == pytest.approx(1, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_tokens_have_the_gradient_of_one_process(name, tmp_path):
    published = tiny.write_tiny_openvla_tokens(tmp_path / "tokens", dtype=torch.float32)
    more = ["--config=configs/openvla_oft/tokens.yaml", "--trainer.limit_val_batches=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    main(arguments(published, one, 1, *more, fresh_head=True))
    finish(start(published, two, 1, *more, *on_two(name), fresh_head=True))
    alone = gradients(one, 0)
    assert any("lm_head.lora_B" in n for n in alone)
    for rank in range(2):
        theirs = gradients(two, rank)
        assert theirs.keys() == alone.keys()
        # Rounding makes another token, now and then, where the noise lies next to a bin's boundary.
        assert strayed(theirs, alone) < 0.01
