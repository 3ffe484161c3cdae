"""Configs and command lines of version 0.1 keep working, with a warning that says what to write."""

import pytest
import yaml

from lightning_ript.commands.old_names import with_current_names

CRITIC = "lightning_ript.extensions.critic.CriticModule"
RIPT = "lightning_ript.module.RIPTLightningModule"


def config(tmp_path, content):
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def translated(tmp_path, content):
    (_, _, text) = with_current_names(["fit", "--config", str(config(tmp_path, content))])
    return yaml.safe_load(text)


def test_what_is_current_is_left_alone(tmp_path, recwarn):
    path = config(tmp_path, {"model": {"class_path": CRITIC, "init_args": {"critic": {"lr": 1}}}})
    arguments = [
        "fit",
        "--config",
        str(path),
        "--model.init_args.critic.lr=0.1",
        "--data.seed",
        "1",
    ]
    assert with_current_names(arguments) == arguments
    joined = [f"--config={path}", "--config=configs/toy.yaml"]
    expected = ["--config", str(path), "--config", "configs/toy.yaml"]
    assert with_current_names(joined) == expected
    assert not recwarn


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "lightning_ript.demos.supervised.SupervisedFineTuning",
            "lightning_ript.policies.quest.stages.SupervisedFineTuning",
        ),
        (
            "lightning_ript.strategies.ShardedStrategy",
            "lightning_ript.distributed.strategies.ShardedStrategy",
        ),
    ],
)
def test_classes_that_have_moved(tmp_path, old, new):
    with pytest.warns(FutureWarning, match=f"{old} is {new} now"):
        assert with_current_names([f"--model={old}", "--model", old]) == [
            f"--model={new}",
            "--model",
            new,
        ]
    content = {"model": {"class_path": old, "init_args": {"lr": 0.1}}, "trainer": {"x": [old]}}
    with pytest.warns(FutureWarning):
        assert translated(tmp_path, content) == {
            "model": {"class_path": new, "init_args": {"lr": 0.1}},
            "trainer": {"x": [new]},
        }


def test_a_run_without_a_critic_says_null(tmp_path, recwarn):
    content = {"model": {"class_path": RIPT, "init_args": {"critic": None, "passes": 2}}}
    expected = {"model": {"class_path": RIPT, "init_args": {"passes": 2}}}
    assert translated(tmp_path, content) == expected
    assert with_current_names(
        ["fit", "--model.critic=null", "--model.init_args.critic", "null"]
    ) == ["fit"]
    assert not recwarn


@pytest.mark.parametrize("head", [{}, {"class_path": RIPT}])
def test_a_critic_in_a_file_chooses_the_module(tmp_path, head):
    content = {"model": {**head, "init_args": {"critic": {"lr": 0.5}}}}
    with pytest.warns(FutureWarning, match=f"model.critic is model.class_path {CRITIC} now"):
        assert translated(tmp_path, content) == {
            "model": {"class_path": CRITIC, "init_args": {"critic": {"lr": 0.5}}}
        }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--model.critic={}"], [f"--model={CRITIC}", "--model.critic={}"]),
        (["--model.critic", "{}"], [f"--model={CRITIC}", "--model.critic", "{}"]),
        (
            ["--model.init_args.critic.lr", "0.1", "--model.critic.gamma=1"],
            [f"--model={CRITIC}", "--model.init_args.critic.lr", "0.1", "--model.critic.gamma=1"],
        ),
    ],
)
def test_a_critic_on_the_command_line_chooses_the_module(old, new):
    with pytest.warns(FutureWarning, match=CRITIC):
        assert with_current_names(["fit", *old]) == ["fit", *new]


def test_a_policy_of_ones_own_may_have_a_critic(tmp_path, recwarn):
    content = {"model": {"class_path": "mine.Module", "init_args": {"critic": None}}}
    path = str(config(tmp_path, content))
    arguments = ["--config", path, "--model.critic.lr=1"]
    assert with_current_names(arguments) == arguments
    arguments = ["--model", "mine.Module", "--model.critic={}"]
    assert with_current_names(arguments) == arguments
    assert not recwarn
