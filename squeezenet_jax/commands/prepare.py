"""prepare SOURCE --out DIR: a folder or an archive of images to a TFDS data set, without TensorFlow."""

import argparse
import shlex
import sys
import time
from typing import TYPE_CHECKING

from squeezenet_jax.commands import arguments
from squeezenet_jax.system import storage, terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

SHOWN = 10  # of each list of names
INTERRUPTED = 130  # as a shell has it for Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder or tar archive with train/<class>/<image> and test, val, valid, validation or "
        "eval/<class>/<image>, or a folder with ImageNet's ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar or both",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="where data sets are: DIR/NAME/1.0.0")
    parser.add_argument(
        "--short-side", metavar="PX", type=int, help="resize larger images to this short side (256 suits 224 px crops)"
    )
    parser.add_argument("--name", help="the data set's name (default: made from SOURCE's)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    out = storage.cached(args.out, "--out")
    try:
        from rich.console import Console

        from squeezenet_jax.data.prepare.writer import prepare

        with Bar(Console(stderr=True)) as bar:
            prepared = prepare(
                arguments.path_of(args.source),
                out,
                bar,
                short_side=args.short_side,
                name=args.name,
            )
        if storage.is_remote(out):
            storage.publish(prepared.directory)
    except KeyboardInterrupt:
        terminal.say("\ninterrupted; the same command continues from here")
        return INTERRUPTED
    if prepared.was_there:
        print(f"{storage.named(str(prepared.directory))} is there already, complete")
    else:
        print(f"wrote {storage.named(str(prepared.directory))}")
    for split, size in prepared.sizes.items():
        print(f"{split}: {size:,} images")
    print(f"{prepared.num_classes:,} classes, {len(prepared.unreadable):,} unreadable files left out")
    if prepared.ignored:
        print(f"{prepared.ignored:,} ignored: hidden, in no class folder, or no file")
    print(f"use it with: --config.data.name={prepared.name} --config.data.dir={shlex.quote(str(args.out))}")
    for what, lines, name in (
        ("left out", prepared.unreadable, "unreadable.txt"),
        ("ignored", prepared.ignored_names, "ignored.txt"),
    ):
        for line in lines[:SHOWN]:
            print(f"{what}: {line}", file=sys.stderr)
        if len(lines) > SHOWN:
            print(f"all {len(lines):,} are in {prepared.directory / name}", file=sys.stderr)
    return 0


class Bar:
    """A bar with the rate and the time left on a terminal; elsewhere a line now and then."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from squeezenet_jax.experiment.progress import QUIET_SECONDS

        self._quiet_seconds = QUIET_SECONDS
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._what, self._total, self._unit = "", 0, ""
        self._done = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def begin(self, what: str, total: int, unit: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=total, numbers="")
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._began = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if (
            self._console.is_terminal
            and (now - self._said > 0.1 or self._done >= self._total)
            and self._task is not None
        ):
            self._said = now
            self._progress.update(self._task, completed=self._done, numbers=self._numbers(now))
        elif not self._console.is_terminal and now - self._said > self._quiet_seconds:
            self._said = now
            left = (now - self._began) * (self._total / self._done - 1)
            self.say(f"{self._what}: {self._numbers(now)}, {int(left) // 60}m{int(left) % 60:02d}s left")

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _numbers(self, now: float) -> str:
        rate = self._done / max(now - self._began, 1e-3)
        if self._unit == "bytes":
            return f"{self._done >> 20:,}/{self._total >> 20:,} MiB, {rate / (1 << 20):,.1f} MiB/s"
        return f"{self._done:,}/{self._total:,} {self._unit}, {rate:,.0f} {self._unit}/s"
