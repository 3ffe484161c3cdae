"""Videos of evaluation episodes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_ript.callbacks.evaluation_report import evaluation_name
from lightning_ript.distributed.exchange import gather_objects
from lightning_ript.reports.video import (
    Video,
    VideoError,
    file_name,
    prepare_frame,
    surplus,
    write_video,
)
from lightning_ript.storage.run_directory import videos_path
from lightning_ript.types import Rollout

_SUCCESS = (40, 180, 70)  # RGB of the border
_FAILURE = (215, 50, 45)
log = logging.getLogger(__name__)


class RolloutVideo(Callback):
    """Writes `<run_dir>/videos/<evaluation>/<task>-<context>-<success|failure>.mp4`.

    Every evaluation rollout that carries frames (`data.eval_videos`) is written, by the rank that
    ran it. A green border means success, a red one failure. Where FFmpeg is missing or fails, a
    warning says so, and the run goes on without videos.

    Args:
        name: Name of an evaluation by `validate`, as in `EvaluationReport`.
        per_task: Videos of a task to keep, failures before successes and early test states before
            late ones; by default all. Failures are found among what is recorded: record more
            episodes than are kept.
        height: Frames are enlarged by the smallest whole factor that makes them this high, so that
            the small images policies see can be looked at.
        fps: Frames per second; LIBERO's control rate (20 Hz) plays episodes in real time.
        flip: A setting of version 0.1 without effect: environments give upright frames.

    Raises:
        ValueError: If height, fps or per_task are not positive.
    """

    def __init__(
        self,
        name: str | None = None,
        per_task: int | None = None,
        height: int = 384,
        fps: int = 20,
        flip: bool | None = None,
    ) -> None:
        if height < 1 or fps < 1:
            raise ValueError(f"height and fps must be positive, got {height} and {fps}.")
        if per_task is not None and per_task < 1:
            raise ValueError(f"per_task is {per_task}: set it to 1 or more, or leave it out.")
        if flip is not None:
            rank_zero_warn(
                "RolloutVideo.flip has no effect: environments give upright frames. Leave it out.",
                category=FutureWarning,
            )
        self.name = name
        self.per_task = per_task
        self.height = height
        self.fps = fps
        self._written: list[Video] = []
        self._works = True

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
        if trainer.sanity_checking or not batch.frames or not self._works:
            return
        folder = videos_path(trainer.default_root_dir, evaluation_name(trainer, self.name))
        stem = f"{file_name(batch.context.task.name)}-{batch.context.index:03d}"
        outcome, colour = ("success", _SUCCESS) if batch.success else ("failure", _FAILURE)
        frames = [prepare_frame(frame, self.height, colour) for frame in batch.frames]
        path = folder / f"{stem}-{outcome}.mp4"
        # An evaluation repeated under the same name may have ended the other way before.
        other = "failure" if batch.success else "success"
        (folder / f"{stem}-{other}.mp4").unlink(missing_ok=True)
        try:
            write_video(path, frames, self.fps)
        except VideoError as error:
            self._works = False
            log.warning(
                "No videos from now on, as FFmpeg cannot write %s: %s. Make room if the disk is "
                "full; else reinstall imageio-ffmpeg, or name another FFmpeg with "
                "IMAGEIO_FFMPEG_EXE.",
                path,
                str(error).rstrip("."),
            )
            return
        task, state = batch.context.task.name, batch.context.index
        self._written.append(Video(task, batch.success, state, str(path)))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps `per_task` videos per task, whichever ranks have written them."""
        if self.per_task is None:
            return
        everyone = gather_objects(self._written)
        if trainer.is_global_zero:
            for video in surplus([video for part in everyone for video in part], self.per_task):
                Path(video.path).unlink(missing_ok=True)
