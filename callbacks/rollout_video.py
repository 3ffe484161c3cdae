"""Videos of evaluation episodes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from lightning_ript.callbacks.evaluation_report import evaluation_name
from lightning_ript.files import replacing
from lightning_ript.run_directory import videos_path
from lightning_ript.types import Rollout

_SUCCESS = (40, 180, 70)  # RGB of the border
_FAILURE = (215, 50, 45)


class RolloutVideo(Callback):
    """Writes `<run_dir>/videos/<evaluation>/<task>-<context>-<success|failure>.mp4`.

    Every evaluation rollout that carries frames is written, by the rank that ran it. A green
    border means success, a red one failure.

    Args:
        name: Name of an evaluation by `validate`, as in `EvaluationReport`.
        height: Frames are enlarged by the smallest whole factor that makes them this high, so that
            the small images policies see can be looked at.
        fps: Frames per second; LIBERO's control rate (20 Hz) plays episodes in real time.
        flip: Whether frames come upside down, as LIBERO's do, and must be turned.

    Raises:
        ValueError: If height or fps are not positive.
    """

    def __init__(
        self, name: str | None = None, height: int = 384, fps: int = 20, flip: bool = True
    ) -> None:
        if height < 1 or fps < 1:
            raise ValueError(f"height and fps must be positive, got {height} and {fps}.")
        self.name = name
        self.height = height
        self.fps = fps
        self.flip = flip

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
        write_video(folder / f"{stem}-{outcome}.mp4", frames, self.fps)
        # An evaluation repeated under the same name may have ended the other way before.
        other = "failure" if batch.success else "success"
        (folder / f"{stem}-{other}.mp4").unlink(missing_ok=True)


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
