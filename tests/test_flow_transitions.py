"""The probabilities of flow-matching policies, where everything is known in closed form."""

import math

import pytest
import torch

from lightning_ript.policies.flow import transitions

M, S = 0.7, 0.4  # actions are N(M, S^2), one number each


def velocity(x, t):
    """The true one: E[noise - action | x], where x = t noise + (1 - t) action."""
    variance = t**2 + (1 - t) ** 2 * S**2
    return -M + (t - (1 - t) * S**2) / variance * (x - (1 - t) * M)


def marginal(t):
    return (1 - t) * M, t**2 + (1 - t) ** 2 * S**2


def affine(step):
    """A step's mean is a x + b, from what it makes of 0 and 1."""
    zero, one = step(torch.zeros(1, 1, 1)), step(torch.ones(1, 1, 1))
    return (one - zero).item(), zero.item()


def test_times_are_the_nearest_float32_numbers():
    found = transitions.times(10)
    assert found.dtype == torch.float32
    exact = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert torch.equal(found, torch.tensor(exact, dtype=torch.float64).float())


@pytest.mark.parametrize("level", [0.2, 0.5])
def test_marginals_of_flow_sde_are_those_of_the_plain_steps(level):
    """Means and variances of both, followed exactly through 2,000 steps."""
    steps = 2000
    sde, plain = [0.0, 1.0], [0.0, 1.0]  # mean and variance, at t = 1
    for k in range(steps):
        t = 1 - k / steps
        number = torch.tensor([k])

        def moments(x, t=t, number=number):
            return transitions.sde_moments(x, velocity(x, t), number, steps, level)

        a, b = affine(lambda x: moments(x)[0])
        noise = moments(torch.zeros(1, 1, 1))[1].item()
        sde = [a * sde[0] + b, a * a * sde[1] + noise**2]
        a, b = affine(lambda x, t=t: x.double() - velocity(x.double(), t) / steps)
        plain = [a * plain[0] + b, a * a * plain[1]]
        if k in (steps // 2, steps - 1):
            mean, variance = marginal(t - 1 / steps)
            assert plain == pytest.approx([mean, variance], abs=2e-3)
            # The reference's first step adds noise of standard deviation a however many steps
            # there are, and so a variance of a^4 / 4 too much, which is forgotten on the way.
            assert sde == pytest.approx([mean, variance], abs=3e-3)


def test_worked_numbers_of_a_step():
    """t = 0.5, K = 4, a = 0.5: sigma^2 = 0.25 and d = 0.25."""
    x, v = torch.tensor([[[2.0]]]), torch.tensor([[[-1.0]]])
    mean, deviation = transitions.sde_moments(x, v, torch.tensor([2]), 4, 0.5)
    # 2 + 0.25 - 0.25 * 0.25 / 1 * (2 - 0.5)
    assert mean.item() == pytest.approx(2.15625)
    assert deviation.item() == pytest.approx(0.25)
    # The first: sigma^2 = 0.25 / 0.25 = 1.
    mean, deviation = transitions.sde_moments(x, v, torch.tensor([0]), 4, 0.5)
    assert mean.item() == pytest.approx(2 + 0.25 - 0.25 / 2 * 2)
    assert deviation.item() == pytest.approx(0.5)
    density = transitions.log_density(x, mean, deviation)
    assert density.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(0.5))


def objective(slopes, level, noisy):
    """E[x^2] in the end, where the velocity is slope * x + 0.3 with a slope for each step.

    Mean and variance are followed exactly; steps that are not `noisy` are plain.
    """
    steps = len(slopes)
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for k in range(steps):
        one = torch.ones(1, 1, 1, dtype=torch.float64)
        at = torch.tensor([k])

        def step(x, k=k, at=at):
            v = slopes[k] * x + 0.3
            if k not in noisy:
                return x - v / steps
            return transitions.sde_moments(x, v, at, steps, level)[0]

        b = step(0 * one)
        a = step(one) - b
        mean = (a * mean + b).reshape(())
        variance = (a * a * variance).reshape(())
        if k in noisy:
            variance = variance + transitions.sde_moments(one, one, at, steps, level)[1].item() ** 2
    return mean**2 + variance


@pytest.mark.parametrize("noisy", [(0, 1, 2, 3), (0,), (2,), (3,)])
def test_the_policy_gradient_is_right(noisy):
    """Of the noisy steps' slopes, within four standard errors of what 400,000 episodes estimate."""
    level, steps, episodes = 0.5, 4, 400_000
    slopes = torch.full((steps,), -0.6, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(objective(slopes, level, noisy), slopes)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(episodes, 1, 1, generator=generator, dtype=torch.float64)
    scores = torch.zeros(episodes, steps, dtype=torch.float64)
    for k in range(steps):
        step = torch.full((episodes,), k)
        v = slopes[k].detach() * x + 0.3
        if k not in noisy:
            x = x - v / steps
            continue
        mean, deviation = transitions.sde_moments(x, v, step, steps, level)
        after = mean + deviation * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        slope = torch.full((episodes, 1, 1), -0.6, dtype=torch.float64, requires_grad=True)
        mean, _ = transitions.sde_moments(x, slope * x + 0.3, step, steps, level)
        density = transitions.log_density(after, mean, deviation)
        (gradient,) = torch.autograd.grad(density.sum(), slope)
        scores[:, k] = gradient.flatten()
        x = after
    samples = (x.flatten() ** 2)[:, None] * scores
    error = samples.std(0) / episodes**0.5
    for k in noisy:
        assert abs(samples.mean(0)[k] - exact[k]) < 4 * error[k]
        assert error[k] < 0.1 * abs(exact[k]), "too few episodes to show anything"


def test_tokens():
    values = torch.arange(12.0).view(1, 3, 4)
    assert transitions.tokens(values, "chunk").tolist() == [[66.0]]
    assert transitions.tokens(values, "action").tolist() == [[6.0, 22.0, 38.0]]
    assert transitions.tokens(values, "dimension").tolist() == [list(range(12))]


def test_entropy_is_the_mean_of_minus_log_density():
    deviation = torch.tensor(0.37)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(100_000, generator=generator) * deviation
    found = -transitions.log_density(drawn, torch.zeros(()), deviation).mean()
    assert found.item() == pytest.approx(transitions.entropy(deviation).item(), abs=0.01)


def test_normal_noise_is_finite_and_normal():
    ends = torch.tensor([0.0, 0.5, 1 - 2**-24])
    found = transitions.normal_noise(ends)
    assert found.isfinite().all()
    assert found[0] < -5 < 5 < found[2]
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    drawn = transitions.normal_noise(uniform)
    assert drawn.mean().item() == pytest.approx(0, abs=0.01)
    assert drawn.std().item() == pytest.approx(1, abs=0.01)
