"""Every policy keeps the contract, and each way of breaking it is noticed."""

from dataclasses import replace

import pytest
import torch
from test_quest_policy import OTHER_TASK, TASK, observation
from test_quest_policy import policy as quest

from lightning_ript.envs.toy import ToySpec
from lightning_ript.policies.contract import ContractError, check_contract
from lightning_ript.policies.toy import ToyPolicy


def toy_starts():
    """An observation and its task, four times."""
    spec = ToySpec()
    contexts = [c for task in spec.tasks() for c in spec.test_contexts(task)[:2]]
    return [spec.make().reset(c) for c in contexts], [c.task for c in contexts]


def test_toy():
    policy = ToyPolicy()
    check_contract(policy, *toy_starts(), tolerance=1e-5)
    assert policy.training


@pytest.mark.parametrize("score", ["full", "sampled"])
def test_quest(score):
    tasks = [TASK, OTHER_TASK, TASK]
    check_contract(quest(score=score), [observation(i) for i in range(3)], tasks)


class Broken(ToyPolicy):
    """A toy policy of which one function does something else."""

    def __init__(self, **changes):
        super().__init__()
        self.changes = changes

    def act(self, observations, tasks, noise):
        decisions = super().act(observations, tasks, noise)
        return self.changes.get("act", lambda d, noise: d)(decisions, noise)

    def log_prob(self, record):
        return self.changes.get("log_prob", lambda *scores: scores)(*super().log_prob(record))

    def parameter_groups(self):
        return self.changes.get("groups", super().parameter_groups())


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("actions are .* chunk", {"act": lambda d, _: replace(d, actions=d.actions[:, 0])}),
        ("log_probs are .* tokens", {"act": lambda d, _: replace(d, log_probs=d.log_probs[:1])}),
        ("not all finite", {"act": lambda d, _: replace(d, log_probs=d.log_probs.log())}),
        ("'indices'.* each of the 4", {"act": lambda d, _: replace(d, record={"indices": None})}),
        ("'n'. has another", {"act": lambda d, _: replace(d, record=d.record | grow(d))}),
        (
            "carries gradients",
            {"act": lambda d, _: replace(d, actions=d.actions.requires_grad_())},
        ),
        ("log_prob differs by 1 ", {"log_prob": lambda p, e: (p + 1, e)}),
        ("returns .* and .*, but", {"log_prob": lambda p, e: (p, e.sum(1))}),
        ("log_prob has no gradient", {"log_prob": lambda p, e: (p.detach(), e)}),
        ("no parameter to train", {"groups": [{"params": []}]}),
        ("no gradient of log_prob", {"groups": [{"params": [torch.nn.Parameter(torch.ones(2))]}]}),
        ("are frozen", {"groups": [{"params": [torch.ones(2)]}]}),
        (
            "actions of decision 0 differ",
            {"act": lambda d, _: replace(d, actions=d.actions - d.actions.mean(0))},
        ),
        (
            "differently each time",
            {"act": lambda d, noise: d if noise is not None else shaken(d)},
        ),
    ],
)
def test_what_breaks_it(message, changes):
    with pytest.raises(ContractError, match=message):
        check_contract(Broken(**changes), *toy_starts())


def grow(decisions):
    """A record as wide as the batch is long, as an instruction padded to its batch's longest."""
    return {"n": torch.zeros(len(decisions.actions), len(decisions.actions))}


def shaken(decisions):
    return replace(decisions, actions=decisions.actions + torch.rand(()))
