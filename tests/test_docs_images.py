"""The strip of frames before and after RIPT; how a browser shows a page is not tested here."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_ript.reports.video import prepare_frame, write_video
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult
from lightning_ript.storage.run_directory import evaluation_path, history_path, videos_path

sys.path.append(str(Path(__file__).parents[1] / "docs"))
import make_images

RED, GREEN = (215, 50, 45), (40, 180, 70)


@pytest.fixture
def run(tmp_path):
    """Three filmed episodes: 0 always succeeds, 1 learns to, 2 never does."""
    history_path(tmp_path).write_text("[]")
    for name, successes, outcomes in (("before", 30, "sff"), ("after", 46, "ssf")):
        task = TaskResult("lift", "lift the lid", 50, successes, 80.0)
        EvaluationResult((task,), {}).write(evaluation_path(tmp_path, name))
        for number, outcome in enumerate(outcomes):
            ending = "success" if outcome == "s" else "failure"
            # Only episode 1 gets lighter, by 20 from one frame to the next.
            lights = [np.full((64, 64, 3), 20 * t * (number == 1), np.uint8) for t in range(11)]
            colour = GREEN if outcome == "s" else RED
            frames = [prepare_frame(each, 64, colour) for each in lights]
            write_video(videos_path(tmp_path, name) / f"lift-00{number}-{ending}.mp4", frames, 20)
    return tmp_path


def test_the_strip_shows_the_episode_that_was_learned(run, tmp_path):
    path = tmp_path / "strip.png"
    make_images.save(make_images.before_after(run), path)
    assert path.stat().st_size < 400_000
    strip = np.asarray(make_images.Image.open(path).convert("RGB")).astype(int)
    tile, gap, left = make_images.TILE, make_images.GAP, make_images.LABEL
    for row, border in enumerate((RED, GREEN)):
        top = make_images.TOP + row * (tile + make_images.BELOW + gap)
        for column in range(6):
            x = left + column * (tile + gap)
            middle = strip[top + tile // 2, x + tile // 2]
            assert middle == pytest.approx([40 * column] * 3, abs=12)
            assert strip[top + 1, x + tile // 2] == pytest.approx(border, abs=40)
        label = strip[top : top + tile, : left - gap]
        assert (label < 100).any(), "no text"


def test_a_run_in_which_no_filmed_episode_was_learned_is_refused(run):
    for video in videos_path(run, "after").glob("*-001-*"):
        video.unlink()
    with pytest.raises(SystemExit, match="failed before RIPT and succeeded after"):
        make_images.before_after(run)
