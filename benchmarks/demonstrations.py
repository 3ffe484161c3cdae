"""Steps per second and memory of the loader of demonstrations, on made-up files of real sizes.

python benchmarks/demonstrations.py [--tasks 10] [--workers 4] [--storage contiguous] [--json FILE]

Files as LIBERO's: a task each, 50 demonstrations of 100 to 200 steps, two cameras of 128 x 128
pixels. They are made in a temporary folder and removed afterwards; 10 tasks take 7 GB. `storage`:

contiguous  random bytes, as LIBERO's files hold them
gzip        chunked and compressed, as other tools write them
sparse      contiguous, but holes in the file instead of pictures, which take no room on disk:
            `--tasks 90 --storage sparse` is LIBERO-90's number of files

Memory is what a process has to itself plus its share of what it shares (PSS), at its peak. The
files are freshly written, so what fits into memory is read from there and not from the disk.
"""

from __future__ import annotations

import itertools
import json as json_format
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Literal, get_args

import h5py
import numpy as np
from jsonargparse import auto_cli
from measuring.processes import pss_mib
from measuring.report import table
from tqdm import tqdm

from lightning_ript.demos.datamodule import DemonstrationDataModule
from lightning_ript.policies.quest.model import ACTION_DIM, CAMERAS, LOWDIM

Storage = Literal["contiguous", "gzip", "sparse"]
STATE_DIM = 110  # about as wide as LIBERO's
BATCHES_PER_LOOK = 5  # at memory, which takes a few milliseconds


def write_file(
    path: Path, demonstrations: int, image_size: int, storage: Storage, random: np.random.Generator
) -> None:
    """Writes one task's file."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json_format.dumps({"language_instruction": "do something"})
        for number in range(demonstrations):
            demo = data.create_group(f"demo_{number}")
            steps = int(random.integers(100, 201))
            demo["actions"] = random.uniform(-1, 1, (steps, ACTION_DIM))
            demo["states"] = random.normal(size=(steps, STATE_DIM))
            for name, width in LOWDIM.items():
                demo[f"obs/{name}"] = random.normal(size=(steps, width))
            shape = (steps, image_size, image_size, 3)
            for name in CAMERAS:
                if storage == "sparse":
                    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                    demo["obs"].create_dataset(name, shape, np.uint8, dcpl=layout)
                    continue
                pictures = random.integers(0, 256, shape, dtype=np.uint8)
                compression = "gzip" if storage == "gzip" else None
                demo["obs"].create_dataset(name, data=pictures, compression=compression)


def main(
    tasks: int = 10,
    demonstrations: int = 50,
    image_size: int = 128,
    storage: Storage = "contiguous",
    batch_size: int = 128,
    workers: int = 2,
    seconds: float = 30.0,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Writes the files, loads from them for a while and prints the numbers.

    Args:
        tasks: Files.
        demonstrations: Demonstrations per file.
        image_size: Pixels of the pictures.
        storage: How the files hold their pictures, see above.
        batch_size: Steps per batch.
        workers: Loader processes; 0 loads in this one.
        seconds: How long to load.
        seed: Seed of what the files hold.
        json: File for the numbers.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage is {storage!r}; choose one of {', '.join(get_args(Storage))}")
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="demonstrations") as folder:
        for number in tqdm(range(tasks), "writing", unit="file", leave=False):
            path = Path(folder, f"task_{number}_demo.hdf5")
            write_file(path, demonstrations, image_size, storage, random)
        found = measure(folder, batch_size, workers, seconds)
    found["settings"] = {
        "tasks": tasks,
        "demonstrations": demonstrations,
        "image_size": image_size,
        "storage": storage,
        "batch_size": batch_size,
        "workers": workers,
    }
    memory = found["peak_memory_mib"]
    header = ["set up", "steps/s", "main MiB", "workers MiB", "steps in all"]
    row = [
        f"{found['setup_seconds']:.1f} s",
        f"{found['steps_per_second']:.0f}",
        f"{memory['main']:.0f}",
        " + ".join(f"{each:.0f}" for each in memory["workers"]) or "none",
        found["steps"],
    ]
    print(table(header, [row]))
    if json is not None:
        json.write_text(json_format.dumps(found, indent=2))


def measure(folder: str, batch_size: int, workers: int, seconds: float) -> dict[str, object]:
    """Sets up and loads shuffled batches for so many seconds, epoch after epoch."""
    data = DemonstrationDataModule([folder], batch_size=batch_size, num_workers=workers)
    started = time.perf_counter()
    data.setup("fit")
    setup_seconds = time.perf_counter() - started
    assert data.training is not None
    loader = data.train_dataloader()
    peaks: dict[int, float] = {}
    steps = 0
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    next(batches)  # starts the workers
    started = time.perf_counter()
    for number, batch in enumerate(batches):
        steps += len(batch["actions"])
        ended = time.perf_counter() - started
        if number % BATCHES_PER_LOOK == 0 or ended > seconds:
            for pid in [os.getpid(), *(each.pid for each in multiprocessing.active_children())]:
                peaks[pid] = max(peaks.get(pid, 0.0), pss_mib(pid))
        if ended > seconds:
            break
    main = peaks.pop(os.getpid())
    return {
        "setup_seconds": setup_seconds,
        "steps_per_second": steps / ended,
        "steps": len(data.training),
        "peak_memory_mib": {"main": main, "workers": sorted(peaks.values())},
    }


if __name__ == "__main__":
    auto_cli(main)
