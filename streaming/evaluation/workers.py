"""Several files at once, in processes of one thread each. One that dies takes its file with it, not the others.

This module imports no torch, so that a new process can say how many threads it may have before torch is there.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, final

from streaming.evaluation.equip import Wanted
from streaming.evaluation.files import Asked, Failed

if TYPE_CHECKING:
    from streaming.evaluation.run import Outcome

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def outcomes(
    asked: Sequence[Asked], wanted: Wanted, jobs: int, report: Callable[[int, int], None]
) -> "Iterator[tuple[int, Outcome]]":
    """(place in `asked`, what became of it), as they are finished; the same whatever the number of jobs.

    report: told (place, frames of that file done so far). Raises UserError for what cannot be loaded.
    """
    if jobs == 1 or len(asked) < 2:
        yield from _here(asked, wanted, report)
    else:
        yield from _there(asked, wanted, min(jobs, len(asked)), report)


def _here(
    asked: Sequence[Asked], wanted: Wanted, report: Callable[[int, int], None]
) -> "Iterator[tuple[int, Outcome]]":
    from streaming.evaluation.equip import equip
    from streaming.evaluation.run import evaluate

    equipment = equip(wanted)
    for place, each in enumerate(asked):
        with _one_thread():
            outcome = evaluate(each, equipment, lambda done, place=place: report(place, done))
        yield place, outcome


@contextmanager
def _one_thread() -> Iterator[None]:
    """As sums in another order are rounded otherwise, and results must not depend on the number of jobs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@final
class _Worker:
    """A process, and which file it has."""

    def __init__(self, wanted: Wanted) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, wanted), daemon=True)
        with _few_threads():
            self.process.start()
        theirs.close()
        self.place: int | None = None

    def give(self, place: int, asked: Asked) -> None:
        """The next file."""
        self.place = place
        with suppress(OSError):  # one that has died is noticed when it is waited for
            self.pipe.send((place, asked))

    def end(self) -> None:
        """Stops it, whatever it does."""
        self.pipe.close()
        self.process.terminate()
        self.process.join()


@contextmanager
def _few_threads() -> Iterator[None]:
    """What processes that are started meanwhile find in their environment."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _there(
    asked: Sequence[Asked], wanted: Wanted, jobs: int, report: Callable[[int, int], None]
) -> "Iterator[tuple[int, Outcome]]":
    waiting = list(enumerate(asked))[::-1]
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                workers.append(_Worker(wanted))
                workers[-1].give(*waiting.pop())
            for ready in connection.wait([worker.pipe for worker in workers]):
                worker = next(each for each in workers if each.pipe is ready)
                yield from _hear(worker, asked, report)
                if worker.place is None and waiting and worker.process.is_alive():
                    worker.give(*waiting.pop())
                elif worker.place is None:
                    workers.remove(worker)
                    worker.end()
    finally:
        for worker in workers:
            worker.end()


def _hear(
    worker: _Worker, asked: Sequence[Asked], report: Callable[[int, int], None]
) -> "Iterator[tuple[int, Outcome]]":
    """What a worker says. Its `place` is None once it has nothing to do. Raises the UserError that it ends with."""
    assert worker.place is not None
    try:
        said = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        place, worker.place = worker.place, None
        code = worker.process.exitcode
        told = f"the process that evaluated it died ({code}): was there memory enough? Try fewer --jobs"
        yield place, Failed(file=str(asked[place].path), error=told)
        return
    if isinstance(said, Exception):
        raise said
    if isinstance(said, int):
        report(worker.place, said)
        return
    place, worker.place = worker.place, None
    yield place, said


def _work(pipe: "connection.Connection", wanted: Wanted) -> None:
    """What a process does: files that it is given, until there are no more."""
    import signal
    import warnings

    from streaming.errors import UserError

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    warnings.simplefilter("ignore")
    try:
        from streaming.evaluation.equip import equip
        from streaming.evaluation.run import evaluate

        equipment = equip(wanted)
        _set_threads()
    except UserError as error:
        pipe.send(error)
        return
    with suppress(EOFError, OSError):
        while True:
            _, asked = pipe.recv()
            pipe.send(evaluate(asked, equipment, pipe.send))


def _set_threads() -> None:
    import torch

    torch.set_num_threads(1)
    with suppress(ImportError):  # told by what needs it
        import cv2

        cv2.setNumThreads(1)
