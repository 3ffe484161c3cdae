"""Videos of evaluation episodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import lightning as L
import numpy as np
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from lightning_ript.callbacks.evaluation_report import evaluation_name
from lightning_ript.storage.files import replacing
from lightning_ript.storage.run_directory import videos_path
from lightning_ript.types import Rollout

_SUCCESS = (40, 180, 70)  # RGB of the border
_FAILURE = (215, 50, 45)


class RolloutVideo(Callback):
    """Writes `<run_dir>/videos/<evaluation>/<task>-<context>-<success|failure>.mp4`.

    Every evaluation rollout that carries frames (`data.eval_videos`) is written, by the rank that
    ran it. A green border means success, a red one failure.

    Args:
        name: Name of an evaluation by `validate`, as in `EvaluationReport`.
        per_task: Videos of a task to keep, failures before successes and early test states before
            late ones; by default all. Failures are found among what is recorded: record more
            episodes than are kept.
        height: Frames are enlarged by the smallest whole factor that makes them this high, so that
            the small images policies see can be looked at.
        fps: Frames per second; LIBERO's control rate (20 Hz) plays episodes in real time.
        flip: Whether frames come upside down, as LIBERO's do, and must be turned.

    Raises:
        ValueError: If height, fps or per_task are not positive.
    """

    def __init__(
        self,
        name: str | None = None,
        per_task: int | None = None,
        height: int = 384,
        fps: int = 20,
        flip: bool = True,
    ) -> None:
        if height < 1 or fps < 1:
            raise ValueError(f"height and fps must be positive, got {height} and {fps}.")
        if per_task is not None and per_task < 1:
            raise ValueError(f"per_task is {per_task}: set it to 1 or more, or leave it out.")
        self.name = name
        self.per_task = per_task
        self.height = height
        self.fps = fps
        self.flip = flip
        self._written: list[Video] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the evaluation before."""
        self._written = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Rollout,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the rollout's video if it was recorded."""
        if trainer.sanity_checking or not batch.frames:
            return
        folder = videos_path(trainer.default_root_dir, evaluation_name(trainer, self.name))
        stem = f"{_file_name(batch.context.task.name)}-{batch.context.index:03d}"
        outcome, colour = ("success", _SUCCESS) if batch.success else ("failure", _FAILURE)
        frames = [prepare_frame(frame, self.height, colour, self.flip) for frame in batch.frames]
        path = folder / f"{stem}-{outcome}.mp4"
        write_video(path, frames, self.fps)
        task, state = batch.context.task.name, batch.context.index
        self._written.append(Video(task, batch.success, state, str(path)))
        # An evaluation repeated under the same name may have ended the other way before.
        other = "failure" if batch.success else "success"
        (folder / f"{stem}-{other}.mp4").unlink(missing_ok=True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps so many videos per task, whichever ranks have written them."""
        if self.per_task is None:
            return
        everyone = [self._written]
        if trainer.world_size > 1:
            everyone = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(everyone, self._written)
        if trainer.is_global_zero:
            for video in surplus([video for part in everyone for video in part], self.per_task):
                Path(video.path).unlink(missing_ok=True)


class Video(NamedTuple):
    """A video of this evaluation; sorted, failures and early test states come first."""

    task: str
    success: bool
    state: int
    path: str


def surplus(videos: Sequence[Video], per_task: int) -> list[Video]:
    """The videos beyond the first `per_task` of each task: failures first, then early states."""
    seen: Counter[str] = Counter()
    beyond = []
    for video in sorted(videos):
        seen[video.task] += 1
        if seen[video.task] > per_task:
            beyond.append(video)
    return beyond


def prepare_frame(
    frame: np.ndarray, height: int, colour: tuple[int, int, int], flip: bool
) -> np.ndarray:
    """Turns, enlarges and frames one image.

    Args:
        frame: Image (H, W, 3) uint8.
        height: Height in pixels that the enlarged image has at least.
        colour: RGB of the border.
        flip: Whether the image is upside down.

    Returns:
        Image (H', W', 3) uint8 with even sides, which H.264 needs.
    """
    factor = -(-height // frame.shape[0])
    upright = frame[::-1] if flip else frame
    enlarged = upright.repeat(factor, axis=0).repeat(factor, axis=1)
    rows, columns = enlarged.shape[:2]
    border = max(2, rows // 64)
    canvas = np.empty(
        (rows + rows % 2 + 2 * border, columns + columns % 2 + 2 * border, 3), dtype=np.uint8
    )
    canvas[:] = colour
    canvas[border : border + rows, border : border + columns] = enlarged
    return canvas


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Writes an H.264 mp4 that common players show.

    Args:
        path: The file; it takes its name only when complete.
        frames: At least one image (H, W, 3) uint8, all of the same even size.
        fps: Frames per second.
    """
    rows, columns = frames[0].shape[:2]
    with replacing(path) as temporary:
        # One thread: simulators share the cores.
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (columns, rows),
            fps=fps,
            codec="libx264",
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-threads", "1", "-movflags", "+faststart"],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
