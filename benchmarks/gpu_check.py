"""What this project does on a GPU: is it right, how fast is it, and what does it take?

python benchmarks/gpu_check.py [--device cuda] [--json FILE]

For whoever has a GPU: `make gpu-check` ends with a table, and a JSON file to paste into an issue.
It was made to take at most ten minutes on one; on GPUs it has not been run yet.

numbers    Small policies in float32 and bfloat16 against the CPU in float32, and, where
           LIGHTNING_RIPT_GOLDENS names them, the golden models against the golden tensors.
pictures   LIBERO as EGL draws it, against OSMesa.
policies   OpenVLA-OFT and SmolVLA at full size with random weights: decision steps per second of
           acting and learning, and peak memory against what `benchmarks/memory.py` computes.
learning   QueST's optimizer steps against the reference's schedule (`benchmarks/ppo_update.py`).
ranks      Two GPUs, where there are two: with DDP and FSDP2 the toy succeeds as often as with one.

`--device cpu` does all of it at a small size; its speeds say nothing of a GPU's.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json as json_format
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import memory
import numpy as np
import torch
from jsonargparse import auto_cli
from measuring.report import spread, table, with_range
from memory import GIB, Name
from safetensors.torch import load_file

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.pool import EnvironmentPool

ROOT = Path(__file__).parents[1]
GOLDENS = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "goldens"))
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
PICTURES = 2.0  # mean difference of pixels, of 255; other drivers round and filter otherwise


@dataclass(frozen=True)
class Finding:
    """A line of the table.

    Attributes:
        what: What was looked at.
        found: What came out.
        fine: Whether it is as it should be; None where nothing is expected, or it was left out.
        numbers: All that was measured.
    """

    what: str
    found: str
    fine: bool | None = None
    numbers: Any = None


Check = Callable[[str, int], Iterator[Finding]]
Golden = Callable[[str, torch.dtype], tuple[torch.Tensor, torch.Tensor]]


def machine(device: str, rounds: int) -> Iterator[Finding]:
    """What it ran on."""
    versions = {n: importlib.metadata.version(n) for n in ("torch", "lightning", "mujoco")}
    name = f"CPU, {os.cpu_count()} cores"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        name = f"{count} x {properties.name}, {properties.total_memory / GIB:.0f} GiB"
        versions["CUDA"] = str(torch.version.cuda)
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding("machine", f"{name}; {said}", numbers=versions)


def numbers(device: str, rounds: int) -> Iterator[Finding]:
    """Small policies here against the CPU."""
    for name in ("smolvla", "openvla_oft"):
        for dtype in (torch.float32, torch.bfloat16):
            difference = _difference(name, device, dtype)
            kind = str(dtype).removeprefix("torch.")
            yield Finding(
                f"{name}, small, {kind} against the CPU in float32",
                f"outputs differ by {difference:.1e} at most",
                difference < TOLERANCE[kind],
                difference,
            )
    if not (GOLDENS / "openvla_oft").is_dir():
        yield Finding("golden tensors", f"none in {GOLDENS}: set LIGHTNING_RIPT_GOLDENS")
        return
    for name, outputs in GOLDEN.items():
        for dtype in (torch.float32, torch.bfloat16):
            kind = str(dtype).removeprefix("torch.")
            with _plain_products(), torch.no_grad():
                found, expected = outputs(device, dtype)
            difference = _apart(found, expected)
            yield Finding(
                f"{name}, golden tensors, {kind}",
                f"outputs differ by {difference:.1e} at most",
                difference < TOLERANCE[kind],
                difference,
            )


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    found, expected = found.float().cpu(), expected.float().cpu()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


def _golden_quest(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    from lightning_ript.policies.quest.checkpoint import load_official
    from lightning_ript.policies.quest.model import QueST, QueSTConfig

    model = QueST(
        QueSTConfig(
            image_embed_dim=32,
            lowdim_embed_dim=16,
            embed_dim=96,
            prior_layers=2,
            prior_heads=4,
            autoencoder_dim=64,
        )
    ).eval()
    load_official(model, GOLDENS / "quest" / "checkpoint.pth")
    golden = load_file(GOLDENS / "quest" / "tensors.safetensors")
    context = golden["out.context"].to(device, dtype)
    logits = model.to(device, dtype).prior_logits(context, golden["out.indices"].to(device))
    return logits, golden["out.logits"]


def _golden_openvla(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    sys.path.append(str(ROOT / "tests"))
    import openvla_models  # noqa: F401  (registers the goldens' image encoders with timm)

    from lightning_ript.policies.openvla_oft.checkpoint import load_openvla

    folder = GOLDENS / "openvla_oft"
    model = load_openvla(folder, folder / "LIBERO_GOAL_scale_header.pth", dtype=dtype).to(device)
    golden = load_file(folder / "tensors.safetensors")
    names = ("input_ids", "attention_mask", "pixel_values", "proprio_normalized")
    tokens, mask, pixels, proprio = (golden[f"in.{name}"].to(device) for name in names)
    prediction = model(tokens, mask, pixels.to(dtype), proprio, forward="prefix_cache")
    return prediction.mean, golden["prefix_cache.mean"]


def _golden_flow(kind: str) -> Golden:
    def outputs(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        from lightning_ript.policies.pi0 import Pi0Policy, Pi05Policy
        from lightning_ript.policies.smolvla import SmolVLAPolicy

        folder = str(GOLDENS / kind)
        policy: Any = {
            "smolvla": lambda: SmolVLAPolicy(folder),
            "pi0": lambda: Pi0Policy(folder, vision_heads=3),
            "pi05": lambda: Pi05Policy(folder, vision_heads=3),
        }[kind]()
        golden = load_file(GOLDENS / kind / "tensors.safetensors")
        record = {
            "images": torch.stack([golden["in.images.image"], golden["in.images.image2"]], dim=1),
            "state": policy.published.state.normalize(golden["in.state"]),
            "tokens": golden["in.tokens"],
            "token_mask": golden["in.token_mask"],
        }
        policy.to(device)
        seen = policy.seen({name: value.to(device) for name, value in record.items()})
        x = golden["in.velocity_x"][0].to(device)
        time_ = golden["in.velocity_time"][:1].expand(3).to(device)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            velocity = policy.network.velocity(policy.network.prefix(seen), x, time_)[0]
        return velocity, golden["out.velocity"][0]

    return outputs


GOLDEN: dict[str, Golden] = {
    "QueST": _golden_quest,
    "OpenVLA-OFT": _golden_openvla,
    **{kind: _golden_flow(kind) for kind in ("smolvla", "pi0", "pi05")},
}


@torch.no_grad()
def _difference(name: Name, device: str, dtype: torch.dtype) -> float:
    """How far a small policy's output is from the CPU's in float32."""
    outputs = []
    for where, precision in (("cpu", torch.float32), (device, dtype)):
        torch.manual_seed(0)
        model = memory.make(name, "expert", None, False, "float32", "cpu", smaller=True)
        network = model.module.float().to(where)
        output = _velocity if name == "smolvla" else _mean
        with (
            _plain_products(),
            torch.autocast(where, precision, enabled=precision != torch.float32),
        ):
            outputs.append(output(network, where))
    return _apart(outputs[1], outputs[0])


@contextmanager
def _plain_products() -> Iterator[None]:
    """Float32 products in float32: TF32 is a choice of the user's."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _velocity(network: Any, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    side = network.sizes.vision.image
    seen = memory.Seen(
        torch.rand(2, 2, 3, side, side, generator=generator).to(device),
        torch.ones(2, 2, dtype=torch.bool, device=device),
        torch.arange(48, device=device).reshape(2, 24),
        torch.ones(2, 24, dtype=torch.bool, device=device),
        torch.rand(2, network.state_dim, generator=generator).to(device),
    )
    x = torch.randn(2, network.chunk, network.action_dim, generator=generator).to(device)
    velocity: torch.Tensor = network.velocity(
        network.prefix(seen), x, torch.full((2,), 0.5, device=device)
    )[0]
    return velocity


def _mean(model: Any, device: str) -> torch.Tensor:
    import openvla_oft

    torch.manual_seed(1)
    tokens, mask, pixels, proprio = openvla_oft.made_up(model, 2, "cpu")
    inputs = tokens.to(device), mask.to(device), pixels.float().to(device), proprio.to(device)
    mean: torch.Tensor = model(*inputs, "prefix_cache").mean
    return mean


def pictures(device: str, rounds: int) -> Iterator[Finding]:
    """A scene as each driver draws it."""
    seen: dict[str, np.ndarray] = {}
    before = os.environ.get("MUJOCO_GL")
    for driver in ("osmesa", *(["egl"] if device == "cuda" else [])):
        os.environ["MUJOCO_GL"] = driver
        try:
            spec = LiberoSpec(suite="libero_object", task_subset=[0], image_size=128)
            spec.check()
            pool = EnvironmentPool(spec, 1)
            try:
                (context, *_) = spec.test_contexts(spec.tasks()[0])
                pool.reset(0, context)
                ((_, observation),) = pool.wait()
                started = time.perf_counter()
                for _ in range(rounds):
                    pool.step_chunk(0, np.zeros((8, 7), dtype=np.float32))
                    pool.wait()
                each = (time.perf_counter() - started) / rounds
            finally:
                pool.close()
        except (OSError, ValueError, RuntimeError) as error:
            yield Finding(f"pictures by {driver}", str(error).splitlines()[0], False)
            continue
        finally:
            os.environ.pop("MUJOCO_GL")
            if before is not None:
                os.environ["MUJOCO_GL"] = before
        seen[driver] = np.asarray(observation["agentview_rgb"], dtype=float)
        yield Finding(f"pictures by {driver}", f"{1000 * each:.0f} ms per 8 control steps", True)
    if len(seen) == 2:
        difference = float(np.abs(seen["egl"] - seen["osmesa"]).mean())
        yield Finding(
            "EGL's pictures against OSMesa's",
            f"pixels differ by {difference:.2f} of 255 on average",
            difference < PICTURES,
            difference,
        )
    elif device != "cuda":
        yield Finding("EGL's pictures against OSMesa's", "left out: there is no GPU")


def policies(device: str, rounds: int) -> Iterator[Finding]:
    """Acting and learning at full size."""
    settings: dict[Name, dict[str, Any]] = {
        "smolvla": {"lora": None, "checkpointing": False},
        "openvla_oft": {"lora": 32, "checkpointing": True},
    }
    on_gpu = device == "cuda"
    for name, chosen in settings.items():
        size = "full size" if on_gpu else "small"
        batches = (1, 4, 8, 16) if on_gpu else (1, 2)
        try:
            yield from _policy(name, chosen, device, batches, rounds, f"{name}, {size}")
        except torch.cuda.OutOfMemoryError as error:
            yield Finding(f"{name}, {size}", str(error).splitlines()[0], None)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def _policy(
    name: Name,
    chosen: dict[str, Any],
    device: str,
    batches: tuple[int, ...],
    rounds: int,
    title: str,
) -> Iterator[Finding]:
    on_gpu = device == "cuda"
    make = {**chosen, "train": "expert", "precision": "bfloat16" if on_gpu else "float32"}
    model = memory.make(name, device=device, smaller=not on_gpu, **make)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    for what, run in (("acting", model.act), ("learning", model.learn)):
        speeds = {n: _speed(lambda n=n, run=run: run(n), n, rounds, on_gpu) for n in batches}
        said = ", ".join(f"{n}: {with_range(speed, 1)}" for n, speed in speeds.items())
        yield Finding(f"{title}: {what}, decision steps/s by batch", said, None, speeds)
    if not on_gpu:
        return
    meta = memory.make(name, **make)
    held = memory.resting(meta, 1, "ddp")
    for batch in batches[-2:]:
        torch.cuda.reset_peak_memory_stats()
        model.learn(batch)
        took = torch.cuda.max_memory_allocated() / GIB
        # Nothing has been stepped here, so there is no state of an optimizer.
        told = (held.weights + held.gradients + memory.learning_peak(meta, batch)) / GIB
        yield Finding(
            f"{title}: memory of learning from {batch}",
            f"{took:.2f} GiB, computed {told:.2f} ({told / took - 1:+.0%})",
            abs(told / took - 1) < 0.1,
            {"took": took, "computed": told},
        )


def _speed(run: Callable[[], None], decisions: int, rounds: int, on_gpu: bool) -> dict[str, float]:
    found = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        if number:  # the first one warms up
            found.append(decisions / (time.perf_counter() - started))
    return spread(found)


def learning(device: str, rounds: int) -> Iterator[Finding]:
    """QueST's schedule against the reference's."""
    sizes = ["--sizes=full"] if device == "cuda" else ["--sizes=small", "--groups=2"]
    few = [] if device == "cuda" else ["--max_decisions=12"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        given = [*sizes, *few, f"--rounds={rounds}", f"--device={device}", f"--json={out}"]
        done = _run(ROOT / "benchmarks" / "ppo_update.py", *given)
        if done.returncode:
            yield Finding("QueST, learning", done.stderr.strip().splitlines()[-1], False)
            return
        found = json_format.loads(out.read_text())
    ratio = with_range(found["ratio"], 2)
    yield Finding("QueST, learning against the reference's schedule", f"{ratio} x", None, found)


def ranks(device: str, rounds: int) -> Iterator[Finding]:
    """Two processes against one."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        yield Finding("two ranks", "left out: there is one GPU")
        return
    accelerator = "gpu" if device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        rates = {}
        for name, more in (
            ("one process", ["--trainer.devices=1"]),
            ("ddp", ["--trainer.devices=2", "--trainer.strategy=ddp"]),
            ("fsdp2", ["--trainer.devices=2", "--trainer.strategy=fsdp2"]),
        ):
            run_dir = Path(folder, name)
            common = ["fit", "--config=configs/toy.yaml", "--trainer.max_epochs=2"]
            quiet = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
            where = [f"--trainer.accelerator={accelerator}", f"--run_dir={run_dir}"]
            done = _run("-m", "lightning_ript", *common, *quiet, *where, *more)
            if done.returncode:
                yield Finding(name, (done.stderr.strip().splitlines() or ["failed"])[-1], False)
                continue
            entries = json_format.loads((run_dir / "history.json").read_text())
            rates[name] = entries[-1]["metrics"]["rollout/success_rate"]
        for name in rates.keys() - {"one process"} if "one process" in rates else ():
            same = abs(rates[name] - rates["one process"]) < 1e-6
            said = (
                f"success after an iteration {rates[name]:.4f}, of one {rates['one process']:.4f}"
            )
            yield Finding(f"two ranks, {name}", said, same, rates)


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, cwd=ROOT
    )


CHECKS: tuple[Check, ...] = (machine, numbers, pictures, policies, learning, ranks)
Part = Literal["machine", "numbers", "pictures", "policies", "learning", "ranks"]


def main(
    device: str | None = None,
    rounds: int = 5,
    only: list[Part] | None = None,
    json: Path | None = None,
) -> None:
    """Looks at everything and prints a table.

    Args:
        device: `cuda`, or `cpu` at a small size; the GPU if there is one.
        rounds: Repetitions of what is timed.
        only: Parts to look at; all by default.
        json: File to write all numbers to.

    Raises:
        SystemExit: Something is not as it should be.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        print("Without a GPU: small sizes, whose speeds say nothing of a GPU's.\n")
    found: list[Finding] = []
    for check in CHECKS:
        if only is None or check.__name__ in only:
            print(f"{check.__name__} ...", file=sys.stderr)
            found += check(device, rounds)
    marks = {True: "fine", False: "WRONG", None: ""}
    print(table(["what", "found", ""], [[f.what, f.found, marks[f.fine]] for f in found]))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(json_format.dumps([asdict(each) for each in found], indent=2))
        print(f"\nAll numbers are in {json}.")
    wrong = [each.what for each in found if each.fine is False]
    if wrong:
        raise SystemExit(f"Not as it should be: {', '.join(wrong)}.")


if __name__ == "__main__":
    auto_cli(main)
