"""`lightning-ript doctor`: has this machine what a LIBERO run needs, and if not, what helps?"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_ript.envs.libero.assets import resolve_assets
from lightning_ript.envs.libero.graphics import choose_backend
from lightning_ript.envs.libero.spec import is_as_published
from lightning_ript.envs.libero.suites import libero_root
from lightning_ript.storage.files import cache_folder

GIB = 2**30
WORKER = 0.4 * GIB  # memory of its own, with LIBERO's real assets (docs/performance.md)
SCENES = 4 * GIB  # what a suite's compiled scenes may take in the cache
BACKENDS = {"egl": "libegl1, and a GPU's driver or Mesa's", "osmesa": "libosmesa6"}
_DRAW = """
import sys, time, mujoco
scene = '<mujoco><worldbody><light pos="0 0 3"/><geom size=".2"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 128, 128)
renderer.update_scene(data)
started = time.perf_counter()
picture = renderer.render()
assert picture.std() > 1, "the picture is empty"
print(1000 * (time.perf_counter() - started))
"""


@dataclass(frozen=True)
class Line:
    """What was found out about one thing.

    Attributes:
        what: The thing.
        said: How it is, and where it is not well what helps.
        fine: Whether a run can do with it; None for what only some runs need.
    """

    what: str
    said: str
    fine: bool | None = True


def python() -> Iterator[Line]:
    """Python and torch."""
    yield Line("Python", f"{platform.python_version()} ({sys.executable})")
    import torch

    if not torch.cuda.is_available():
        yield Line("torch", f"{torch.__version__}; no GPU that it can use, so training runs on CPU")
        return
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Line("torch", f"{torch.__version__}, CUDA {torch.version.cuda}: {', '.join(names)}")


def mujoco() -> Iterator[Line]:
    """MuJoCo's version, which decides what pictures and physics are like."""
    try:
        version = importlib.metadata.version("mujoco")
    except importlib.metadata.PackageNotFoundError:
        yield Line("MuJoCo", "not installed: pip install 'mujoco>=3.3.6,<3.4'", False)
        return
    if is_as_published(version):
        yield Line("MuJoCo", f"{version}, in which LIBERO moves and looks as published")
    else:
        yield Line(
            "MuJoCo",
            f"{version}, with which LIBERO behaves differently from the published version: "
            "pip install 'mujoco>=3.3.6,<3.4'",
            False,
        )


def drawing() -> Iterator[Line]:
    """Draws a frame with each back-end."""
    chosen = choose_backend()
    if chosen not in BACKENDS:
        yield Line("MUJOCO_GL", f"is {chosen!r}: unset it, or set egl or osmesa", False)
    for name, package in BACKENDS.items():
        variables = {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
        try:
            done = subprocess.run(
                [sys.executable, "-c", _DRAW],
                env={**os.environ, **variables},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            problem = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            failed = done.returncode != 0
        except subprocess.TimeoutExpired:
            failed, problem = True, "it does not answer"
        used = " (used here)" if name == chosen else ""
        if not failed:
            yield Line(f"drawing by {name}", f"a frame in {float(done.stdout):.0f} ms{used}")
        else:
            said = f"fails: {problem[:150]}; needs {package}{used}"
            yield Line(f"drawing by {name}", said, False if name == chosen else None)


def libero() -> Iterator[Line]:
    """LIBERO's tasks and looks."""
    try:
        root = libero_root()
    except (ImportError, OSError, ValueError) as error:
        yield Line("LIBERO", str(error), False)
        return
    yield Line("LIBERO", f"tasks in {root}")
    try:
        assets = resolve_assets(None, "libero_spatial")
    except FileNotFoundError as error:
        yield Line("LIBERO's assets", str(error), False)
        return
    yield Line("LIBERO's assets", f"{assets.path} ({assets.source})")


def disk() -> Iterator[Line]:
    """Room for checkpoints and scenes."""
    free = shutil.disk_usage(Path.cwd()).free
    yield Line("disk here", f"{free / GIB:.1f} GiB free", free > GIB)
    try:
        folder = cache_folder()
        probe = folder / f".probe.{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        yield Line("cache", str(error), False)
        return
    free = shutil.disk_usage(folder).free
    yield Line(
        "cache",
        f"{folder}, {free / GIB:.1f} GiB free; compiled scenes take up to 16 GiB",
        free > SCENES or None,
    )


def workers() -> Iterator[Line]:
    """How many simulators fit."""
    cores = len(os.sched_getaffinity(0))
    yield Line("cores", f"{cores}: data.num_workers {cores} to {cores + 2} keeps them busy")
    available = _memory()
    fits = int(available / WORKER)
    yield Line(
        "memory", f"{available / GIB:.1f} GiB available, enough for {fits} simulators", fits > 1
    )
    shared = Path("/dev/shm")
    if not shared.is_dir():
        said = "missing: pictures travel from the simulators in temporary files, which is slower"
        yield Line("/dev/shm", said, None)
        return
    free = shutil.disk_usage(shared).free
    helps = "" if free > 2**26 else ": start the container with --shm-size=1g"
    yield Line("/dev/shm", f"{free / 2**20:.0f} MiB free{helps}", not helps)


def _memory() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * float(line.split()[1])
    return 0.0


def cluster() -> Iterator[Line]:
    """Where jobs could go."""
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        yield Line("SLURM", f"inside job {job}", None)
    elif shutil.which("sbatch"):
        yield Line("SLURM", "here: lightning-ript submit", None)
    else:
        yield Line("SLURM", "none: runs start on this machine", None)


def hub() -> Iterator[Line]:
    """Whether published checkpoints can be fetched."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Line("Hugging Face hub", "not asked: HF_HUB_OFFLINE is set", None)
        return
    import urllib.request

    started = time.perf_counter()
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(place, method="HEAD"), timeout=5).close()
    except (OSError, ValueError) as error:
        helps = "needed for hf:// addresses only; what was fetched before is found again"
        yield Line("Hugging Face hub", f"{place} cannot be reached ({error}); {helps}", None)
        return
    yield Line("Hugging Face hub", f"reached in {1000 * (time.perf_counter() - started):.0f} ms")


def extras() -> Iterator[Line]:
    """Packages that only some runs need."""
    for module, extra, use in (
        ("tensorboard", "tensorboard", "the logger"),
        ("wandb", "wandb", "the logger"),
        ("timm", "openvla", "OpenVLA-OFT"),
        ("peft", "openvla", "LoRA adapters"),
        ("pyarrow", "lerobot", "LeRobot's datasets"),
        ("av", "lerobot", "LeRobot's datasets"),
        ("bitsandbytes", "quantization", "a quantized base"),
    ):
        if importlib.util.find_spec(module) is None:
            said = f"not installed, for {use}: the extra `{extra}`"
            yield Line(module, said, None)
        else:
            yield Line(module, f"installed, for {use}", None)


CHECKS: tuple[Callable[[], Iterator[Line]], ...] = (
    *(python, mujoco, drawing, libero, disk, workers, cluster, hub, extras),
)


def doctor() -> None:
    """Checks what a LIBERO run needs: a line each, fine or what helps. The toy needs less.

    Raises:
        SystemExit: Something that every LIBERO run needs is missing.
    """
    wrong = []
    marks = {True: "ok", False: "NO", None: "--"}
    for check in CHECKS:
        for line in check():
            sys.stdout.write(f"{marks[line.fine]}  {line.what:18} {line.said}\n")
            sys.stdout.flush()
            if line.fine is False:
                wrong.append(line.what)
    if wrong:
        raise SystemExit(f"\nFix before running LIBERO: {', '.join(wrong)}.")
    sys.stdout.write("\nThis machine has what a LIBERO run needs.\n")
