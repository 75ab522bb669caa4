"""Institutions train on a Ray cluster: jobs as tasks with fractional GPUs, instead of processes of this machine.

Jobs are the same as anywhere, so a study comes to the same models. A task whose worker or node dies is done again and
goes on at its last checkpoint. The study's folder must lie on a file system that all nodes see; images need not: they
go into the cluster's object store, once a node. Jobs and results travel as Ray's pickles, within the cluster only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import numpy.typing as npt
import torch

from fedddpm.data.image_set import ImageSet
from fedddpm.errors import ConfigError, TrainingError
from fedddpm.experiment.design.images import ImageSource, open_source, provide
from fedddpm.experiment.runs.workers import OnProgress, Tell, teller

if TYPE_CHECKING:
    from ray import ObjectRef

Job = TypeVar("Job")
Result = TypeVar("Result")
Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any] | None]  # images, labels

RETRIES = 5  # of a job whose worker or node died
_LOOK_EVERY_S = 0.2


class RayWorkers:
    """Tasks on the cluster at ``address``, each with ``cpus`` processors and ``gpus`` GPUs; a context manager.

    Raises:
        ConfigError: ray is not installed, the cluster cannot be reached, or has no room for one institution.
    """

    def __init__(self, address: str, folder: Path, images: ImageSource, cpus: float = 1.0, gpus: float = 0.0) -> None:
        self._address, self._folder, self._source = address, folder.resolve(), images
        self._cpus, self._gpus, self._batch = cpus, gpus, 0
        self._images: Any = None
        self._board: Any = None

    def __enter__(self) -> Self:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ConfigError("--ray needs Ray", "Install it: pip install 'fedddpm-sdk[ray]'") from error
        own: dict[str, Any] = {"include_dashboard": False} if self._address == "local" else {}
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"there is no Ray cluster at {self._address!r} ({str(error).splitlines()[0]})",
                "Start one with ray start --head, or use --ray local",
            ) from error
        with contextlib.ExitStack() as undo:
            undo.callback(ray.shutdown)
            self._require_room(ray.cluster_resources())  # type: ignore[no-untyped-call]
            self._images = ray.put(tuple(_arrays(images) for images in open_source(self._source)))
            self._board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        self._images = self._board = None
        ray.shutdown()

    def map(
        self, function: Callable[[Job, Tell], Result], jobs: Sequence[Job], on_progress: OnProgress
    ) -> list[Result]:
        """``function`` of every job, in order; it must be a module's own function, and jobs must pickle.

        Raises:
            TrainingError: a worker died again and again; whatever a job raises.
        """
        import ray
        from ray.exceptions import RayError

        need: dict[str, Any] = {"num_cpus": self._cpus, "num_gpus": self._gpus}
        task = ray.remote(max_retries=RETRIES, scheduling_strategy="SPREAD", **need)(_call)
        task = task.options(name=function.__name__)
        threads = max(1, int(self._cpus))
        self._batch += 1
        shared = (self._images, self._source, self._board, self._batch, str(self._folder), threads)
        tasks = [task.remote(function, number, job, *shared) for number, job in enumerate(jobs)]
        try:
            self._follow(tasks, on_progress)
            results: list[Result] = ray.get(tasks)
        except BaseException as error:
            for one in tasks:
                ray.cancel(one, force=True)
            if isinstance(error, RayError):
                _raise(error)
            raise
        return results

    def device(self, device: str) -> str:
        """Where a job computes: on the GPU that it was given, if it asks for one."""
        return "cuda" if self._gpus else device

    def _follow(self, tasks: Sequence[ObjectRef[Any]], on_progress: OnProgress) -> None:
        """Pass on what the tasks tell until all are done or one has failed."""
        import ray
        from ray.exceptions import RayError

        numbers = {task: number for number, task in enumerate(tasks)}
        waiting = list(tasks)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_LOOK_EVERY_S, fetch_local=False)
            ray.get(done)  # raises what one of them raised
            running = {numbers[task] for task in waiting}
            with contextlib.suppress(RayError):  # while the board starts again on another node, nothing is shown
                news = ray.get(self._board.news.remote(self._batch), timeout=1)
                for number in running & news.keys():
                    on_progress(number, news[number])
            for task in done:
                on_progress(numbers[task], 1.0)

    def _require_room(self, there: dict[str, float]) -> None:
        for name, wanted in (("CPU", self._cpus), ("GPU", self._gpus)):
            if there.get(name, 0) < wanted:
                raise ConfigError(
                    f"an institution wants {wanted:g} {name}, and the Ray cluster has {there.get(name, 0):g}",
                    f"Use a smaller --{name.lower()}s-per-institution",
                )


class _Board:
    """An actor that keeps how far each job of the newest batch is, until it is asked."""

    def __init__(self) -> None:
        self._batch, self._shares = 0, dict[int, float]()

    def tell(self, batch: int, number: int, share: float) -> None:
        """Job ``number`` of ``batch`` is so far."""
        if batch >= self._batch:
            self.news(batch)
            self._shares[number] = share

    def news(self, batch: int) -> dict[int, float]:
        """What was told of ``batch`` so far."""
        if batch != self._batch:
            self._batch, self._shares = batch, {}
        return self._shares


def _call(
    function: Callable[[Any, Tell], Any],
    number: int,
    job: Any,
    images: tuple[Arrays, Arrays],
    source: ImageSource,
    board: Any,
    batch: int,
    folder: str,
    threads: int,
) -> Any:
    """One job, in a worker."""
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder} is not on this node", "Put --out on a file system that all nodes of Ray share")
    torch.set_num_threads(threads)
    train, test = (_image_set(arrays) for arrays in images)
    provide(source, train, test)
    return function(job, teller(number, lambda at, share: board.tell.remote(batch, at, share)))


def _arrays(images: ImageSet) -> Arrays:
    return images.images.numpy(), None if images.labels is None else images.labels.numpy()


def _image_set(arrays: Arrays) -> ImageSet:
    """Views of what the node's object store holds."""
    images, labels = arrays
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # and nobody writes
        return ImageSet(torch.from_numpy(images), None if labels is None else torch.from_numpy(labels))


def _raise(error: Exception) -> NoReturn:
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        raise cause from None
    raise TrainingError(
        f"Ray gave up a job: {str(error).strip().splitlines()[0]}",
        "Look at the cluster, or at the memory of its nodes; the same command goes on where it was",
    ) from error
