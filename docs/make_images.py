"""Makes the pictures of the documentation from a finished run.

python docs/make_images.py runs/quickstart/seed0/ript [--site site] [--watched RUN]

Writes the run's report page on a phone and on a desktop, light and dark; the same of the
documentation's home page if `--site` names the built documentation; `before_after.png`, a test
episode before and after RIPT; and `watch.svg`, what `lightning-ript watch` shows of the run, or of
another one that `--watched` names, e.g. because it is running. Needs Chromium.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
from jsonargparse import auto_cli
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console, RenderableType

from lightning_ript.commands.errors import one_sentence_errors
from lightning_ript.reports.run_page import read_run, write_page
from lightning_ript.reports.run_view import read_moment, run_view
from lightning_ript.reports.video import by_episode, failed
from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.files import replacing
from lightning_ript.storage.run_directory import evaluation_path, videos_of


class Screen(NamedTuple):
    """What a page is looked at with.

    Attributes:
        width: Of the page, in CSS pixels.
        height: Of the part that is shown.
        scale: Pixels of the picture for each of these.
    """

    width: int
    height: int
    scale: int


SCREENS = {"phone": Screen(390, 800, 2), "desktop": Screen(1280, 660, 1)}
FRAMES = 6
# Pixels of the strip: a frame, between two of them, its border, and above, left and below frames.
TILE, GAP, BORDER, TOP, LABEL, BELOW = 168, 8, 4, 44, 168, 22


def make_images(
    run: Path,
    site: Path | None = None,
    watched: Path | None = None,
    out: Path = Path("docs/images"),
) -> None:
    """Makes all pictures.

    Args:
        run: Directory of a run of RIPT that was evaluated, with videos, before and after.
        site: Folder of the built documentation; left out, its home page is not photographed.
        watched: A run to show as `watch` does; `run` when left out.
        out: Folder for the pictures.

    Raises:
        SystemExit: Something is missing that the pictures show, or Chromium.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("There is no Chromium here to look at pages with: install it.")
    if site is not None and not (site / "index.html").is_file():
        raise SystemExit(f"There is no {site}/index.html: build the documentation first.")
    save(before_after(run), out / "before_after.png")
    photograph_terminal(run_view(read_moment(watched or run)), out / "watch.svg")
    with TemporaryDirectory() as folder:
        pages = {"report": Path(folder, "report.html")}
        write_page([run], pages["report"])
        if site is not None:
            pages["site"] = site / "index.html"
        for page, file in pages.items():
            for name, screen in SCREENS.items():
                for scheme in ("light", "dark"):
                    picture = photograph(browser, file, screen, dark=scheme == "dark")
                    save(picture, out / f"{page}_{name}_{scheme}.png")


def save(picture: Image.Image, path: Path) -> None:
    """Writes a PNG of 256 colours, a third as large as one of all."""
    with replacing(path) as draft:
        picture.quantize(256, dither=Image.Dither.NONE).save(draft, optimize=True)


# -- pages -----------------------------------------------------------------------------------------


def photograph_terminal(view: RenderableType, path: Path) -> None:
    """Writes what a terminal shows as SVG, in whatever font the reader's machine has."""
    console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True)
    console.print(view)
    drawn = console.export_svg(title="lightning-ript watch", unique_id="watch")
    with replacing(path) as draft:
        draft.write_text(re.sub(r"@font-face {.*?}", "", drawn, flags=re.DOTALL), encoding="utf-8")


def photograph(browser: str, page: Path, screen: Screen, dark: bool) -> Image.Image:
    """The top of a page as Chromium shows it.

    Args:
        browser: The program.
        page: An HTML file.
        screen: What it is looked at with.
        dark: Whether the reader prefers dark pages.

    Raises:
        SystemExit: It has made no picture.
    """
    with TemporaryDirectory() as folder:
        # A window cannot be narrower than 500 pixels, a frame in it can.
        frame = Path(folder, "frame.html")
        frame.write_text(
            "<!doctype html><meta name=color-scheme content='light dark'><body style=margin:0>"
            f"<iframe src='{page.resolve().as_uri()}' width={screen.width} height={screen.height} "
            "style='border:0; display:block'></iframe>",
            encoding="utf-8",
        )
        picture = Path(folder, "picture.png")
        done = subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                *("--disable-component-update", f"--user-data-dir={folder}/profile"),
                *("--hide-scrollbars", f"--force-device-scale-factor={screen.scale}"),
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--window-size={max(screen.width, 500)},{screen.height}",
                *(f"--screenshot={picture}", frame.as_uri()),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if not picture.exists():
            raise SystemExit(f"{browser} has made no picture of {page}: {done.stderr.strip()}")
        size = (screen.width * screen.scale, screen.height * screen.scale)
        return Image.open(picture).convert("RGB").crop((0, 0, *size))


# -- episodes --------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the strip.

    Attributes:
        title: What is on its left.
        result: The evaluation that the episode is of.
        frames: (H, W, 3) uint8 each.
        seconds: Their times in the episode.
    """

    title: str
    result: EvaluationResult
    frames: Sequence[np.ndarray]
    seconds: Sequence[float]


def before_after(folder: Path) -> Image.Image:
    """The strip of a run: the first filmed test episode that fails before RIPT and succeeds after.

    Raises:
        SystemExit: The run lacks an evaluation, or there is no such episode.
    """
    run = read_run(folder)
    if run.before is None or run.after is None:
        raise SystemExit(f"{folder} was not evaluated both before and after RIPT.")
    old, new = (
        by_episode(videos_of(evaluation_path(folder, name))) for name in ("before", "after")
    )
    learned = [each for each in sorted(old.keys() & new.keys()) if failed(old[each])]
    learned = [each for each in learned if not failed(new[each])]
    if not learned:
        raise SystemExit(
            f"No episode in {folder}/videos failed before RIPT and succeeded after: give a run "
            "with RolloutVideo among the callbacks of both evaluations and a larger "
            "data.eval_videos."
        )
    return draw_strip(
        [
            Row("Before RIPT", run.before, *evenly(old[learned[0]])),
            Row("After RIPT", run.after, *evenly(new[learned[0]])),
        ]
    )


def evenly(video: Path) -> tuple[list[np.ndarray], list[float]]:
    """Frames (H, W, 3) from the first to the last of a video, and their seconds."""
    frames = iio.imread(video, plugin="FFMPEG")
    fps = iio.immeta(video, plugin="FFMPEG")["fps"]
    chosen = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    return [frames[i] for i in chosen], [(i + 1) / fps for i in chosen]


def draw_strip(rows: Sequence[Row]) -> Image.Image:
    """Frames of episodes, an episode a row, with the success rate of its evaluation before them."""
    width = LABEL + FRAMES * (TILE + GAP)
    height = TOP + len(rows) * (TILE + BELOW + GAP)
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    task = rows[0].result.tasks[0]
    heading = f"“{task.language or task.task}”: the same test episode, before and after"
    draw.text((LABEL, 13), heading, "#333", font(17))
    for number, row in enumerate(rows):
        top = TOP + number * (TILE + BELOW + GAP)
        draw.text((GAP, top + 24), row.title, "#333", font(19, bold=True))
        draw.text((GAP, top + 52), f"{row.result.rate:.0%}", "#111", font(46, bold=True))
        episodes = row.result.overall.episodes
        for line, text in enumerate((f"of {episodes} test", "episodes succeed")):
            draw.text((GAP, top + 110 + 19 * line), text, "#333", font(15))
        for column, (frame, second) in enumerate(zip(row.frames, row.seconds, strict=True)):
            left = LABEL + column * (TILE + GAP)
            tile = Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.LANCZOS)
            strip.paste(tile, (left, top))
            box = (left, top, left + TILE - 1, top + TILE - 1)
            # The video's own border, which would be thin at this size.
            draw.rectangle(box, outline=tuple(frame[0, 0].tolist()), width=BORDER)
            middle = (left + TILE / 2, top + TILE + 3)
            draw.text(middle, f"{second:.1f} s", "#555", font(13), anchor="ma")
    return strip


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which every machine has."""
    weight = "bold" if bold else "normal"
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=weight)), size)


if __name__ == "__main__":
    with one_sentence_errors():
        auto_cli(make_images)
