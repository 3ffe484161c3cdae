"""The program's own commands, beside LightningCLI's `fit` and `validate`.

Each is a function, imported only when its command is given, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pkgutil import resolve_name
from typing import Any

from lightning_ript.console.near_match import did_you_mean


def _own(command: str, *functions: str) -> Callable[[list[str]], None]:
    """A command that is a function, or has several as subcommands; imported when it is called."""

    def run(arguments: list[str]) -> None:
        from jsonargparse import auto_cli

        from lightning_ript.commands.own_parser import OwnParser

        found = [resolve_name(f"lightning_ript.{function}") for function in functions]
        auto_cli(
            found if len(found) > 1 else found[0],
            args=arguments,
            prog=f"lightning-ript {command}",
            parser_class=OwnParser,
        )

    return run


def _export(arguments: list[str]) -> None:
    from lightning_ript.commands.own_parser import OwnParser
    from lightning_ript.console.described import described

    export = resolve_name("lightning_ript.policies.quest.export:export")
    parser = OwnParser(prog="lightning-ript export", description=described(export))
    parser.add_function_arguments(export, as_positional=True, skip={"overwrite"})
    parser.add_argument("--overwrite", action="store_true", help="Replace a file that is there.")
    settings = parser.parse_args(arguments)
    flow: Any = resolve_name("lightning_ript.policies.flow.export")
    if flow.is_flow(settings.checkpoint):
        flow.export(settings.checkpoint, settings.out)
    else:
        export(**settings.as_dict())


def _report(arguments: list[str]) -> None:
    from lightning_ript.commands.own_parser import OwnParser
    from lightning_ript.commands.summary import report_on
    from lightning_ript.console.described import described

    parser = OwnParser(prog="lightning-ript report", description=described(report_on))
    parser.add_argument("runs", nargs="+", type=str, help="run directories")
    parser.add_argument("--out", type=str, help="the page; <first run>/report.html by default")
    settings = parser.parse_args(arguments)
    report_on(settings.runs, settings.out)


def _sweep(arguments: list[str]) -> None:
    resolve_name("lightning_ript.commands.sweep:run_sweep")(arguments)


def _submit(arguments: list[str]) -> None:
    resolve_name("lightning_ript.commands.submit:submit")(arguments)


def _compare(arguments: list[str]) -> None:
    from lightning_ript.commands.compare import compare
    from lightning_ript.commands.own_parser import OwnParser

    parser = OwnParser(prog="lightning-ript compare", description="Compares finished runs.")
    parser.add_argument("runs", nargs="+", type=str, help="a line each, see docs/evaluation.md")
    parser.add_argument("--out", required=True, type=str, help="folder of the tables and the plot")
    settings = parser.parse_args(arguments)
    compare(settings.runs, settings.out)


def _configs(arguments: list[str]) -> None:
    resolve_name("lightning_ript.running.configs:show_configs")(arguments)


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "collect-demos": (
        _own("collect-demos", "commands.collect_demos:collect_demos"),
        "run the scripted expert and write LIBERO HDF5 files",
    ),
    "data": (
        _own("data", "commands.download_data:download", "commands.check_data:check"),
        "download LIBERO's demonstrations; check those in a folder",
    ),
    "export": (_export, "write a checkpoint in its policy's official format"),
    "merge-adapter": (
        _own("merge-adapter", "policies.openvla_oft.merge:merge_adapter"),
        "add a LoRA adapter to OpenVLA-OFT's weights",
    ),
    "new-smolvla": (
        _own("new-smolvla", "policies.smolvla.create:new_smolvla"),
        "make a small SmolVLA for supervised fine-tuning on demonstrations",
    ),
    "report": (_report, "one HTML page of a run, or of several: figures, videos, settings"),
    "watch": (
        _own("watch", "commands.watch:watch"),
        "what a run is doing, in the terminal, while it runs",
    ),
    "configs": (_configs, "list the configs that come with the package, or show one"),
    "doctor": (
        _own("doctor", "commands.doctor:doctor"),
        "check that this machine has what a LIBERO run needs",
    ),
    "quickstart": (
        _own("quickstart", "commands.quickstart:quickstart"),
        "demonstrations, SFT, RIPT and evaluation on one LIBERO task",
    ),
    "submit": (_submit, "hand a command to SLURM, as a job or as an array of them"),
    "sweep": (_sweep, "evaluate checkpoints x suites x seeds: table and chart, resumable"),
    "compare": (_compare, "learning curves and a table of several runs, e.g. of an ablation"),
}


def check_command(name: str, others: Iterable[str]) -> None:
    """Refuses a command that does not exist.

    Args:
        name: What was typed first; an option is left to a parser.
        others: LightningCLI's commands.

    Raises:
        ValueError: It does not exist.
    """
    known = [*others, *COMMANDS]
    if name in known or name.startswith("-"):
        return
    near = did_you_mean(name, known, ": `lightning-ript --help` lists those there are.")
    raise ValueError(f"There is no command {name}{near}")


def usage() -> str:
    """What `--help` shows."""
    own = "".join(f"  {name:14} {text}\n" for name, (_, text) in COMMANDS.items())
    return (
        f"usage: lightning-ript COMMAND [--config FILE ...]\n\ncommands:\n{own}"
        "  fit, validate  train or evaluate; LightningCLI's, see fit --help\n"
    )
