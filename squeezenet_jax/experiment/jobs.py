"""Several runs of a sweep at once on one machine, each in a process of its own with its share of the devices.

The process that a person started gives out the runs and talks; it never touches a device. Its workers run what they are
given as `sweep.py` does, one run after the other. A worker that is killed costs its run, which the next start resumes,
and another one takes its place; whatever else ends a sweep of one run at a time (a stop, a hang, wrong input, a full
disk) stops all of them, with a checkpoint each. Read next: `worker.py`, and `shares.py`, which divides the machine.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from rich.console import Console

from squeezenet_jax.data import catalog
from squeezenet_jax.experiment import shares, sweep, worker
from squeezenet_jax.experiment.planning import Plan, PlannedRun
from squeezenet_jax.experiment.progress import Progress, RunReporter, SideBySide
from squeezenet_jax.runs.directory import FINISHED, RunDirectory, fetch_runs
from squeezenet_jax.system import children, storage
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.system.watchdog import EXIT_HUNG

LOOK_SECONDS = 0.2  # between two looks at whether to stop


def run(plan: Plan, workdir: Path, jobs: shares.Jobs, console: Console, should_stop: Callable[[], bool]) -> list[str]:
    """Runs what is not finished, up to `jobs` runs at a time, and returns every run's status, as `sweep.run` does.

    A run whose process was killed counts as failed.
    """
    unfinished = sweep.unfinished_runs(plan, workdir)
    if not unfinished or jobs == 1:
        return sweep.run(plan, workdir, Progress(console), should_stop)
    machine = worker.ask_machine()
    count = shares.number(jobs, machine, [planned.settings for planned in (*plan.runs, *plan.others)])
    if count == 1:
        return sweep.run(plan, workdir, Progress(console), should_stop)
    with SideBySide(console, count) as progress:
        given_out = _Sweep(plan, workdir, unfinished, progress, should_stop)
        return given_out.run(shares.divide(machine, count, os.environ))


def _work(planned: PlannedRun) -> float:
    """How long a run takes beside the sweep's other ones, roughly: as its multiply-adds."""
    _, macs = planned.cost
    return macs * planned.settings.train.epochs * catalog.count(planned.settings.data, "train_split")


class _Worker:
    """A worker as it is seen from here."""

    def __init__(self, share: shares.Share, plan: Plan, workdir: Path, unfinished: Sequence[str]) -> None:
        self.share = share
        self.ready = self.dismissed = False
        self.run: PlannedRun | None = None  # which it was given
        self.setting = ""  # whose programs it has
        self.following: PlannedRun | None = None  # whose programs it was told to compile meanwhile
        self.reporter: RunReporter | None = None  # while it is at the run
        place = storage.named(str(workdir))  # in a bucket: each process has a copy of its own
        self.pipe, self.process = children.start(worker.work, share, plan, place, unfinished, own_cores=share.cores)

    def tell(self, order: worker.Order) -> None:
        with contextlib.suppress(OSError):  # it is dead, which its pipe says, too
            self.pipe.send(order)

    def give(self, planned: PlannedRun, following: PlannedRun | None) -> None:
        self.run, self.setting, self.following = planned, planned.setting, following
        self.tell((planned.name, following.name if following else ""))

    def dismiss(self) -> None:
        self.dismissed = True
        self.tell(worker.QUIT)


class _Sweep:
    """The runs that are left, and who is at them."""

    def __init__(
        self,
        plan: Plan,
        workdir: Path,
        unfinished: Sequence[str],
        progress: SideBySide,
        should_stop: Callable[[], bool],
    ) -> None:
        self._plan, self._workdir, self._unfinished = plan, workdir, unfinished
        self._progress, self._should_stop = progress, should_stop
        self._number = {planned.name: number for number, planned in enumerate(plan.runs, start=1)}
        waiting = [planned for planned in plan.runs if planned.name in unfinished]
        self._work = {planned.name: _work(planned) for planned in waiting}
        # Long ones first: in the end somebody may be at one alone.
        self._waiting = sorted(waiting, key=lambda planned: self._work[planned.name], reverse=True)
        self._workers: list[_Worker] = []
        self._begun: set[str] = set()  # settings
        self._busy: dict[str, str] = {}  # run -> who else is at it
        self._killed: set[str] = set()
        self._error: Exception | None = None
        self._stopping = self._claimed = False

    def run(self, all_shares: Sequence[shares.Share]) -> list[str]:
        try:
            if self._should_stop():
                self._stopping = True
            else:
                for share in all_shares[: len(self._waiting)]:
                    self._start(share)
            while self._workers:
                self._look()
        finally:
            for left in self._workers:  # whatever was raised here: they end where their pipes do
                left.pipe.close()
                left.process.join()
        if self._error:
            raise self._error
        fetch_runs(self._workdir)
        sweep.check_not_all_busy(self._busy, self._unfinished, self._workdir)
        return [self._status(planned.name) for planned in self._plan.runs]

    def _status(self, name: str) -> str:
        if name in self._killed:
            return "failed"
        status = RunDirectory(self._workdir / name).status
        return "preempted" if self._stopping and status not in FINISHED else status

    def _start(self, share: shares.Share) -> None:
        self._workers.append(_Worker(share, self._plan, self._workdir, self._unfinished))

    def _look(self) -> None:
        by_pipe: dict[Any, _Worker] = {one.pipe: one for one in self._workers}
        for pipe in connection.wait(list(by_pipe), LOOK_SECONDS):
            try:
                message = by_pipe[pipe].pipe.recv()
            except (EOFError, OSError):
                self._bury(by_pipe[pipe])
            else:
                self._listen(by_pipe[pipe], *message)
        if not self._stopping and (self._error or self._should_stop()):
            self._stop()
        if not self._stopping and not self._claimed and all(one.ready for one in self._workers):
            self._claim()  # all can start: from here on something is written
        given = []
        for idle in [one for one in self._workers if one.ready and not one.run and not one.dismissed]:
            if self._stopping or (self._claimed and not self._waiting):
                idle.dismiss()
            elif self._claimed:
                given.append((idle, self._next(idle)))
        for one, planned in given:  # now that all have theirs, it is known what nobody has begun
            one.give(planned, self._following(one))
        self._progress.waiting = [self._work[planned.name] for planned in self._waiting]
        self._progress.say()

    def _claim(self) -> None:
        sweep.claim(self._plan, self._workdir)
        sweep.check_inputs(self._plan, self._workdir)
        self._claimed = True
        for name, number in self._number.items():
            if name not in self._unfinished:
                why = f"already {RunDirectory(self._workdir / name).status}"
                self._progress.skip(name, number, len(self._number), why)

    def _stop(self) -> None:
        self._stopping = True
        for one in self._workers:
            one.tell(worker.STOP)

    def _next(self, idle: _Worker) -> PlannedRun:
        """A long one; of a setting that nobody is at, so that workers which start together compile different programs.

        A worker keeps to the setting whose programs it has while there are as many new ones as workers. The last ones
        are begun early: in the end all would wait for the programs of the same one.
        """
        following = [planned for planned in self._waiting if planned == idle.following]
        own = [planned for planned in self._waiting if planned.setting == idle.setting]
        new = [planned for planned in self._waiting if planned.setting not in self._begun]
        few = len({planned.setting for planned in new}) < len(self._workers)
        chosen = (following or new)[0] if new and (few or not own) else (own or self._waiting)[0]
        self._begun.add(chosen.setting)
        self._waiting.remove(chosen)
        return chosen

    def _following(self, one: _Worker) -> PlannedRun | None:
        """Whose programs it may compile meanwhile: those of a setting that nobody has begun or is told to compile."""
        taken = self._begun | {other.following.setting for other in self._workers if other.following and other != one}
        return next((planned for planned in self._waiting if planned.setting not in taken), None)

    def _listen(self, one: _Worker, kind: str, *content: Any) -> None:
        if kind == worker.READY:
            one.ready = True
        elif kind == worker.FAILED:
            self._error = self._error or content[0]
            self._end_run(one)
        elif kind == worker.TOLD:
            method, *arguments = content
            if one.reporter:  # a notice of a thread may come behind its run's end
                getattr(one.reporter, method)(*arguments)
        elif kind == worker.ENDED:
            self._end_run(one)
            if content[0] == "preempted" and not self._stopping:  # somebody told this process alone
                self._stop()
        elif one.run:
            name, total = one.run.name, len(self._number)
            if kind == worker.BEGAN:
                one.reporter = self._progress.begin(name, self._number[name], total, self._work[name])
            elif kind == worker.BUSY:
                self._busy[name] = content[0]
                self._progress.skip(name, self._number[name], total, f"is being run by {content[0]}")
                one.run = None

    def _end_run(self, one: _Worker) -> None:
        if one.run and one.reporter:
            self._progress.end(one.run.name)
        one.run = one.reporter = None

    def _bury(self, dead: _Worker) -> None:
        self._workers.remove(dead)
        dead.pipe.close()
        dead.process.join()
        code = dead.process.exitcode
        if dead.dismissed or self._error:  # what failed has said so
            return
        if code == EXIT_HUNG and dead.run:  # which the watchdog has said
            self._end_run(dead)
            self._stop()
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if code == -signal.SIGKILL:
            how += " (if for want of memory: fewer --jobs need less)"
        if not dead.run:
            self._error = UserError(f"--jobs: a process {how} before it was given a run")
            return
        self._killed.add(dead.run.name)
        if dead.reporter:
            dead.reporter.notice(f"KILLED: its process {how}; the same command resumes it")
        self._end_run(dead)
        if self._waiting and not self._stopping:
            self._start(dead.share)
