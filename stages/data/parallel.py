"""One function on many items at once: processes of this machine, or the workers of a Dask cluster."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

from joblib import Parallel, cpu_count, delayed, parallel_config

from stages.errors import Interrupted, MissingDependencyError, UsageError
from stages.progress import Progress, silent

Result = TypeVar("Result")
CONNECT_SECONDS = 10


def run_each(
    function: Callable[..., Result],
    items: Sequence[tuple[Any, ...]],
    *,
    jobs: int | None = None,
    dask: str | None = None,
    label: str = "",
    progress: Progress = silent,
) -> Iterator[tuple[int, Result]]:
    """(index, function(*items[index])) of each item as it gets ready, in any order.

    By `jobs` processes of one thread each (default: one for each CPU). With `dask`, a scheduler's address, by all
    workers of that cluster; they must see the same files under the same absolute paths, and a task whose worker
    dies is done again by another. Raises UsageError when no scheduler answers and MissingDependencyError without Dask;
    Interrupted where a process of this machine dies, and what `function` raises.
    """
    progress(label, 0, len(items))
    if not items:
        return
    with _pool(min(jobs or cpu_count(), len(items)), dask) as pool:
        results = pool(delayed(_numbered)(function, index, item) for index, item in enumerate(items))
        try:
            for done, result in enumerate(results, start=1):
                progress(label, done, len(items))
                yield result
        except BrokenProcessPool as error:
            raise Interrupted(
                "A worker process was killed, as the system does when it runs out of memory.",
                "The same command goes on with what is not done; with fewer --jobs it needs less memory.",
            ) from error
        finally:
            with warnings.catch_warnings():  # joblib would warn a caller who stops early that tasks are cancelled
                warnings.simplefilter("ignore", UserWarning)
                results.close()


def _numbered(function: Callable[..., Result], index: int, item: tuple[Any, ...]) -> tuple[int, Result]:
    return index, function(*item)


@contextmanager
def _pool(jobs: int, dask: str | None) -> Iterator[Parallel]:
    """joblib takes its backend when the pool is made, so the configuration need not outlast that."""
    if dask is not None:
        with _client(dask) as client:
            with parallel_config("dask", client=client):
                pool = Parallel(return_as="generator_unordered")
            yield pool
    else:
        # Said where joblib replaces, between two tasks, a process that has grown; one that died breaks the pool.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        with parallel_config("loky", inner_max_num_threads=1):
            pool = Parallel(n_jobs=jobs, return_as="generator_unordered")
        yield pool


@contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise MissingDependencyError("--dask needs the package distributed.", "pip install 'musicldm[dask]'") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # asyncio's timeout is an OSError
        raise UsageError(f"No Dask scheduler answers at {address}.", "Start one with: dask scheduler") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            raise UsageError(f"The Dask scheduler at {address} has no worker.", f"dask worker {address}") from error
        yield client
