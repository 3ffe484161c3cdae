"""OpenVLA-OFT's batches, precision and memory saving, on a tiny random model."""

import pytest
import torch

from lightning_ript.policies.openvla_oft import laplace

tiny = pytest.importorskip("tiny_openvla")
FORWARDS = pytest.mark.parametrize("forward", ["prefix_cache", "single_pass"])


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model()


def same(ours, theirs, atol=1e-5):
    for name in ("mean", "log_scale", "features"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=atol, rtol=0)


@FORWARDS
@torch.no_grad()
def test_padding_changes_nothing(model, forward):
    lengths = (5, 12, 2)
    tokens, mask, pixels, proprio = tiny.tiny_inputs(lengths)
    together = model(tokens, mask, pixels, proprio, forward)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = model(tokens[one, :length], mask[one, :length], pixels[one], proprio[one], forward)
        same(type(alone)(*(value[one] for value in together)), alone)


@FORWARDS
@torch.no_grad()
def test_every_input_matters(model, forward):
    tokens, mask, pixels, proprio = tiny.tiny_inputs((6,))
    before = model(tokens, mask, pixels, proprio, forward).mean
    other_tokens = tokens.clone()
    other_tokens[0, 2] += 1
    other_view = pixels.clone()
    other_view[:, 6:] = pixels[:, :6]
    for changed in (
        (other_tokens, mask, pixels, proprio),
        (tokens, mask, other_view, proprio),
        (tokens, mask, pixels, -proprio),
    ):
        assert (model(*changed, forward).mean - before).abs().max() > 1e-4


def test_one_image_and_no_proprio():
    model = tiny.tiny_model(proprio=False)
    tokens, mask, pixels, proprio = tiny.tiny_inputs((4,), images=1)
    assert model(tokens, mask, pixels, None).mean.shape == (1, 8, 7)
    with pytest.raises(ValueError, match="no proprio projector, but was given some"):
        model(tokens, mask, pixels, proprio)


@FORWARDS
def test_checkpointing_changes_no_gradient(model, forward):
    inputs = tiny.tiny_inputs((5, 7))
    gradients, runs = [], []
    layer = model.base.language_model.model.layers[0]
    counter = layer.self_attn.register_forward_hook(lambda *_: runs.append(model.training))
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        prediction = model(*inputs, forward)
        (prediction.mean.square().sum() + prediction.log_scale.sum()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    counter.remove()
    model.gradient_checkpointing = False
    model.zero_grad()
    passes = 2 if forward == "prefix_cache" else 1
    assert runs == [False] * (2 * passes + 1)  # once more, and in eval mode as RIPT learns
    assert gradients[0].keys() == gradients[1].keys()
    unused = model.unused(forward)
    for name, parameter in model.named_parameters():
        assert (name in gradients[0]) == (not name.startswith(unused)), name
        if name in gradients[0]:
            assert parameter.shape == gradients[0][name].shape
            torch.testing.assert_close(gradients[0][name], gradients[1][name])


@FORWARDS
@torch.no_grad()
def test_bfloat16(model, forward):
    inputs = tiny.tiny_inputs((5, 9))
    exact = model(*inputs, forward)
    half = tiny.tiny_model()
    half.base.to(torch.bfloat16)
    rounded = half(*inputs, forward)
    assert rounded.mean.dtype == rounded.log_scale.dtype == torch.float32
    assert rounded.features.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.mean, exact.mean, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ([[0, 1, 1, 1]], "pad on the right"),
        ([[1, 1, 0, 1]], "pad on the right"),
        ([[1, 0, 0, 0]], "pad on the right"),
        ([[1, 1, 1]], "a mask of their shape"),
    ],
)
def test_refuses_other_padding(model, mask, sentence):
    tokens, _, pixels, proprio = tiny.tiny_inputs((4,))
    with pytest.raises(ValueError, match=sentence):
        model(tokens, torch.tensor(mask), pixels, proprio)


def test_refuses_other_inputs(model):
    tokens, mask, pixels, proprio = tiny.tiny_inputs((4,))
    with pytest.raises(ValueError, match="forward must be one of"):
        model(tokens, mask, pixels, proprio, "causal")
    with pytest.raises(ValueError, match="6 channels"):
        model(tokens, mask, pixels[:, :3], proprio)
    with pytest.raises(ValueError, match="a proprio projector, but was given none"):
        model(tokens, mask, pixels, None)


def test_laplace_samples_as_torch_does():
    mean, log_scale = torch.tensor([0.5, -1.0]), torch.tensor([-1.0, 0.3])
    uniform = torch.linspace(0.001, 0.999, 999)[:, None].expand(-1, 2)
    reference = torch.distributions.Laplace(mean, log_scale.exp())
    torch.testing.assert_close(laplace.sample(mean, log_scale, uniform), reference.icdf(uniform))
    wide = laplace.sample(mean, log_scale, uniform, scale_factor=5)
    torch.testing.assert_close(wide - mean, 5 * (reference.icdf(uniform) - mean))
    torch.testing.assert_close(laplace.log_prob(wide, mean, log_scale), reference.log_prob(wide))
    torch.testing.assert_close(laplace.entropy(log_scale), reference.entropy())


def test_laplace_is_finite_for_every_noise():
    ends = torch.tensor([0.0, 0.5, 1 - 2**-24])
    drawn = laplace.sample(torch.zeros(3), torch.zeros(3), ends)
    assert drawn.isfinite().all()
    assert drawn[1] == 0
    assert drawn[0] < -10 < 10 < drawn[2]


def test_laplace_clips_and_aggregates():
    clipped = laplace.clip_log_scale(torch.tensor([-3.0, 0.0, 1.0]))
    assert clipped.tolist() == [-2.0, 0.0, 0.5]
    values = torch.arange(2 * 8 * 7.0).reshape(2, 8, 7)
    assert laplace.aggregate(values)[0, 1] == sum(range(7, 14))
    assert laplace.aggregate(values, "mean")[0, 1] == 10
    assert laplace.aggregate(values, "per_dimension").tolist() == values.flatten(1).tolist()
    with pytest.raises(ValueError, match="aggregation must be one of"):
        laplace.aggregate(values, "max")
