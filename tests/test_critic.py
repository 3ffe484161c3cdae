"""The critic: worked numbers, and the loop on the toy twin with it."""

import json

import lightning as L
import pytest
import torch
from test_quest_policy import TINY, decide
from test_quest_policy import policy as quest_policy
from toy_runs import SGD, assert_same_state, checkpoint, fit, history, start, weights

from lightning_ript.cli import main
from lightning_ript.envs.toy import ToyEnvironment, ToySpec
from lightning_ript.extensions.critic import (
    Critic,
    CriticConfig,
    CriticModule,
    discounted_success,
    generalized_advantages,
    moments,
    standardize,
)
from lightning_ript.minibatches import (
    LearningSchedule,
    MinibatchSchedule,
    filler_of,
    flatten,
    kept_episodes,
)
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.policies.toy import ToyPolicy
from lightning_ript.types import Context, Rollout, RolloutGroup

CRITIC = ["--config=configs/ablations/critic.yaml"]
METRICS = {"train/value_loss", "train/explained_variance"}
TIMES = {"time/collecting", "time/learning", "rollout/episodes_per_second"}


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("success", "gamma", "lam", "expected"),
    [
        # Values 0.5, 0.6, 0.8. What came of it minus what was expected:
        (True, 1.0, 1.0, [0.5, 0.4, 0.2]),
        (False, 1.0, 1.0, [-0.5, -0.6, -0.8]),
        # How the values went on:
        (True, 1.0, 0.0, [0.1, 0.2, 0.2]),
        (False, 1.0, 0.0, [0.1, 0.2, -0.8]),
        # -0.8 | 0.2 + 0.9 * -0.8 | 0.1 + 0.9 * -0.52
        (False, 1.0, 0.9, [-0.368, -0.52, -0.8]),
        # 0.2 | 0.5 * 0.8 - 0.6 + 0.25 * 0.2 | 0.5 * 0.6 - 0.5 + 0.25 * -0.15
        (True, 0.5, 0.5, [-0.2375, -0.15, 0.2]),
    ],
)
def test_generalized_advantages_by_hand(success, gamma, lam, expected):
    advantages = generalized_advantages(torch.tensor([0.5, 0.6, 0.8]), success, gamma, lam)
    torch.testing.assert_close(advantages, torch.tensor(expected))


def test_generalized_advantages_are_the_sum_of_equation_16():
    values = torch.rand(7, generator=torch.Generator().manual_seed(0))
    gamma, lam = 0.97, 0.8
    following = torch.cat([values[1:], torch.zeros(1)])
    differences = torch.tensor([0.0] * 6 + [1.0]) + gamma * following - values
    literal = [
        sum((gamma * lam) ** i * float(d) for i, d in enumerate(differences[t:])) for t in range(7)
    ]
    torch.testing.assert_close(
        generalized_advantages(values, True, gamma, lam), torch.tensor(literal)
    )


def test_discounted_success_by_hand():
    assert discounted_success(3, True, 0.5).tolist() == [0.25, 0.5, 1]
    assert discounted_success(2, True, 1.0).tolist() == [1, 1]
    assert discounted_success(2, False, 0.5).tolist() == [0, 0]


def test_moments_of_parts_add_up_to_those_of_all():
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([6.0])
    total = moments(first) + moments(second) + moments(torch.empty(0))
    assert total.tolist() == [3, 9, 41]
    # Mean 3, variance 41 / 3 - 9.
    expected = torch.tensor([-2.0, -1.0, 3.0]) / (14 / 3) ** 0.5
    torch.testing.assert_close(standardize(torch.cat([first, second]), total), expected)
    assert standardize(torch.ones(2), moments(torch.ones(2))).tolist() == [0, 0]


def test_a_fresh_critic_knows_nothing_and_is_pulled_towards_the_returns():
    critic = Critic(3, CriticConfig(hidden=4))
    features, returns = torch.randn(5, 3), torch.tensor([0.0, 1.0, 0.25, 0.5, 0.5])
    assert critic.values(features).tolist() == [0.5] * 5
    losses = critic.losses(features, returns)
    assert losses.tolist() == pytest.approx([0.6931] * 5, abs=1e-4)  # log 2
    losses.sum().backward()
    bias = critic.net[-1].bias
    assert bias.grad.item() == pytest.approx(5 * 0.5 - 2.25)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": 0},
        {"lr": 0.0},
        {"gamma": 0.0},
        {"gamma": 1.1},
        {"gae_lambda": -0.1},
        {"gae_lambda": float("nan")},
    ],
)
def test_it_refuses(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"model.critic.{name} is|model.critic.{name} "):
        CriticConfig(**settings)


# -- what it sees ----------------------------------------------------------------------------------


def toy_decisions():
    task = ToySpec().tasks()[1]
    observations = [ToyEnvironment().reset(Context(task, i, seed=i)) for i in range(3)]
    return ToyPolicy(), ToyPolicy().act(observations, [task] * 3, torch.rand(3, 4))


def quest_decisions():
    return quest_policy(), decide(quest_policy())[0]


@pytest.mark.parametrize("make", [toy_decisions, quest_decisions])
def test_policies_give_a_row_of_features_per_decision(make):
    policy, decisions = make()
    features = policy.features(decisions.record)
    assert features.shape == (3, policy.feature_size)
    assert not features.requires_grad
    assert len(features.unique(dim=0)) == 3


def test_quest_shows_both_its_context_tokens():
    policy, decisions = quest_decisions()
    width = TINY.embed_dim
    features = policy.features(decisions.record)
    for token in range(2):
        mine = features[:, token * width : (token + 1) * width]
        assert torch.equal(mine, decisions.record["context"][:, token])


class BlindPolicy(PolicyAdapter):
    """Offers a critic nothing to see."""

    def act(self, observations, tasks, noise):
        raise AssertionError

    def log_prob(self, record):
        raise AssertionError


def test_a_policy_without_features_is_refused():
    with pytest.raises(TypeError, match=r"BlindPolicy has no features .* without a critic"):
        CriticModule(BlindPolicy())


def test_features_of_another_width_are_refused(monkeypatch):
    module, _trainer = module_of()
    monkeypatch.setattr(ToyPolicy, "features", lambda self, record: record["features"])
    with pytest.raises(ValueError, match=r"features are \(4, 16\), not \(4, feature_size 18\)"):
        judge(module, [toy_group(0, [1, 0], [1, 3])])


# -- in the module ---------------------------------------------------------------------------------


class TrainedFeatures(ToyPolicy):
    """Its features depend on its own weights."""

    @property
    def feature_size(self):
        return 64

    def features(self, record):
        return self.net[0](record["features"])


def toy_group(number, rewards, decisions):
    context = Context(ToySpec().tasks()[0], number)
    generator = torch.Generator().manual_seed(number)
    rollouts = []
    for k, (reward, length) in enumerate(zip(rewards, decisions, strict=True)):
        record = {
            "features": torch.randn(length, 16, generator=generator),
            "to_goal": torch.randn(length, 2, generator=generator),
            "indices": torch.randint(8, (length, 4), generator=generator),
        }
        log_probs, _ = ToyPolicy().log_prob(record)
        old = log_probs.detach()
        rollouts.append(Rollout(context, k, bool(reward), length, record, old))
    return RolloutGroup(context, tuple(rollouts))


def module_of(policy=None, **settings):
    module = CriticModule(policy or ToyPolicy(), critic=CriticConfig(**settings))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer = trainer
    return module, trainer  # the module holds it weakly


def judge(module, groups):
    return module.judge(groups, flatten(groups))


def test_judging_by_hand():
    """A fresh critic says 1/2, so at λ = 1 every advantage is 1/2 or -1/2."""
    group = toy_group(0, [1, 0], [1, 3])
    module, _trainer = module_of(gae_lambda=1.0, normalize=False)
    judged = judge(module, [group])
    advantages, returns = judged.advantages, judged.targets["returns"]
    assert advantages.tolist() == [0.5, -0.5, -0.5, -0.5]
    assert returns.tolist() == [1, 0, 0, 0]
    assert module.explained_variance.compute() == pytest.approx(0, abs=1e-6)
    module, _trainer = module_of(gae_lambda=1.0)
    judged = judge(module, [group])
    advantages, returns = judged.advantages, judged.targets["returns"]
    # Mean -1/4, variance 3/16.
    root = 3**0.5
    assert advantages.tolist() == pytest.approx([root, -1 / root, -1 / root, -1 / root], rel=1e-4)
    assert returns.tolist() == [1, 0, 0, 0]


def test_explained_variance_by_hand(monkeypatch):
    module, _trainer = module_of()
    values = torch.tensor([0.9, 0.1, 0.2, 0.3])
    monkeypatch.setattr(module.critic, "values", lambda features: values)
    judge(module, [toy_group(0, [1, 0], [1, 3])])
    # Outcomes 1, 0, 0, 0 have variance 3/16; what is left of them, 0.1, -0.1, -0.2, -0.3, has
    # 0.15 / 4 - (0.5 / 4)^2.
    left = 0.15 / 4 - 0.125**2
    assert module.explained_variance.compute() == pytest.approx(1 - left / (3 / 16), rel=1e-4)


def test_values_follow_their_own_rollouts():
    module, _trainer = module_of(gae_lambda=1.0, normalize=False)
    torch.nn.init.normal_(module.critic.net[-1].weight)
    groups = [toy_group(0, [1, 0], [2, 3]), toy_group(1, [0, 1], [4, 1])]
    advantages = judge(module, groups).advantages
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    literal = [
        float(rollout.success) - module.critic.values(module.policy.features(rollout.record))
        for rollout in rollouts
    ]
    torch.testing.assert_close(advantages, torch.cat(literal))
    assert len(advantages.unique()) == 10


def test_a_rank_without_groups_judges_nothing():
    module, _trainer = module_of(normalize=False)
    judged = judge(module, [])
    assert len(judged) == len(judged.targets["returns"]) == 0


def value_gradients(groups, aggregation, size):
    module, _trainer = module_of(gae_lambda=1.0, normalize=False)
    decisions = judge(module, groups)
    schedule = MinibatchSchedule(
        decisions,
        kept_episodes(groups, 0),
        filler_of(decisions),
        LearningSchedule(1, 100, size, aggregation),
    )
    for batch in schedule:
        loss = (
            batch.weights * module.auxiliary_losses(batch)["value_loss"]
        ).sum() / batch.normalizer
        loss.backward()
    return module.critic.net[-1].bias.grad.item()


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_how_decisions_are_weighed(size):
    """A fresh critic's bias is pulled by 1/2 minus the return, each decision or episode alike."""
    groups = [toy_group(0, [1, 0], [1, 3])]
    decisions = value_gradients(groups, "token", size)
    assert decisions == pytest.approx((-0.5 + 3 * 0.5) / 4, abs=1e-6)
    assert value_gradients(groups, "sequence", size) == pytest.approx(0, abs=1e-6)


def test_the_critic_trains_nothing_of_the_policy():
    module, _trainer = module_of(TrainedFeatures())
    torch.nn.init.normal_(module.critic.net[-1].weight)
    groups = [toy_group(0, [1, 0], [1, 3])]
    decisions = judge(module, groups)
    (batch,) = MinibatchSchedule(
        decisions,
        kept_episodes(groups, 0),
        filler_of(decisions),
        LearningSchedule(1, 9, 99, "token"),
    )
    module.auxiliary_losses(batch)["value_loss"].sum().backward()
    assert all(p.grad is None for p in module.policy.parameters())
    assert all(p.grad.any() for p in module.critic.net[1].parameters())


# -- the loop --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("critic")
    main(["fit", "--config=configs/toy.yaml", *CRITIC, f"--run_dir={run_dir}"])
    return run_dir


def test_it_learns(learned):
    entries = history(learned)
    assert entries[0]["metrics"]["rollout/success_rate"] < 0.5
    assert entries[-1]["metrics"]["val/success_rate"] > 0.9
    assert entries[0]["metrics"]["train/explained_variance"] == pytest.approx(0, abs=1e-5)
    assert max(e["metrics"]["train/explained_variance"] for e in entries) > 0.05
    assert all(entry["metrics"].keys() >= METRICS for entry in entries)


def test_its_checkpoint_can_be_evaluated(learned, tmp_path):
    last = learned / "checkpoints" / "last.ckpt"
    command = ["validate", "--config=configs/toy.yaml", *CRITIC, f"--run_dir={tmp_path}"]
    main([*command, f"--ckpt_path={last}"])
    result = json.loads((tmp_path / "evaluation" / "last.json").read_text())
    assert result["tasks"] == history(learned)[-1]["evaluation"]["tasks"]


def test_without_it_there_is_nothing_of_it(tmp_path):
    run = fit(tmp_path, 1)
    assert not METRICS & history(tmp_path)[0]["metrics"].keys()
    assert not [name for name in run["state_dict"] if "critic" in name]


# Plain gradient descent, in which differences show; few episodes per step, so that of two ranks one
# often holds none of them.
SETTINGS = [
    *CRITIC,
    *SGD,
    "--model.init_args.optimizer.lr=0.1",
    "--model.init_args.critic.lr=0.1",
    "--model.init_args.critic.gamma=0.99",
    "--model.init_args.episodes_per_minibatch=3",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("alone")
    return fit(run_dir, 2, *SETTINGS), history(run_dir)


def assert_close(run, other):
    assert any(name.startswith("critic.") for name in weights(run))
    for name, value in weights(run).items():
        torch.testing.assert_close(value, weights(other)[name], rtol=1e-5, atol=1e-5)


def test_micro_batches_do_not_matter(alone, tmp_path):
    run = fit(tmp_path, 2, *SETTINGS, "--model.init_args.decisions_per_microbatch=7")
    assert_close(run, alone[0])


def test_advantages_are_of_the_critic_that_saw_the_rollouts(tmp_path):
    """How it learns makes no difference to the policy before the next iteration."""
    runs = []
    for rate in (0.1, 0.5):
        learning = f"--model.init_args.critic.lr={rate}"
        runs.append(fit(tmp_path / str(rate), 1, *SETTINGS, learning)["state_dict"])
    one, other = runs
    for name in one:
        alike = torch.equal(one[name], other[name])
        assert alike == (not name.startswith("critic.")), name


@pytest.mark.slow
def test_two_ranks_end_where_one_process_ends(alone, tmp_path):
    ranks = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.callbacks+=toy_runs.SaveEveryRank",
        f"--trainer.callbacks.folder={tmp_path}",
    ]
    process = start(tmp_path, 2, *SETTINGS, *ranks)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, out + err
    assert "Warning" not in err
    run, entries = alone
    assert_close(run, checkpoint(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2))
    for name in weights(run):
        assert torch.equal(first[name], second[name]), name
    for entry, other in zip(entries, history(tmp_path), strict=True):
        for name in entry["metrics"].keys() - TIMES:
            expected = pytest.approx(entry["metrics"][name], rel=1e-4, abs=1e-5)
            assert other["metrics"][name] == expected, name


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    schedule = [
        *CRITIC,
        "--model.init_args.scheduler=torch.optim.lr_scheduler.StepLR",
        "--model.init_args.scheduler.step_size=1",
        "--model.init_args.scheduler.gamma=0.7",
    ]
    whole = fit(tmp_path / "whole", 3, *schedule)
    fit(tmp_path / "parts", 1, *schedule)
    assert_same_state(fit(tmp_path / "parts", 3, *schedule), whole)
    policy, critic = whole["optimizer_states"][0]["param_groups"]
    assert policy["lr"] == pytest.approx(0.01 * 0.7**3)
    assert critic["lr"] == pytest.approx(1e-3 * 0.7**3)
    for entry, other in zip(history(tmp_path / "parts"), history(tmp_path / "whole"), strict=True):
        for metric in entry["metrics"].keys() - TIMES:
            assert entry["metrics"][metric] == other["metrics"][metric], metric
