"""Jobs on a Ray cluster, which may lose machines while it works.

There is a worker for each accelerator of the cluster, or for each node if no node has any. A worker
is an actor: it opens what it needs once, such as a model with its weights, and does one job after
the other. If it dies, its jobs go back to the queue, and its node gets a new one.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

from musicgen_jax.errors import UserError, reason

Job = TypeVar("Job")
_TRIES = 5  # of a job
_LOSSES = 3  # of workers of one node, after which it gets no more
_POLL = 5.0  # seconds between two looks at the nodes
_PATIENCE = 60.0  # seconds until we say that no worker is ready


class Worker(Protocol):
    """What an actor opens. Its jobs are done in several threads at once."""

    about: dict[str, Any]
    """Plain JSON types; `Work.agree` compares them."""

    def do(self, packed: Any, /) -> Any:
        """Does a job."""
        ...


@dataclasses.dataclass(frozen=True)
class Work(Generic[Job]):
    """What to do on the cluster. Functions and values are pickled, and no path is needed there.

    Attributes:
      open_worker: opens a worker; called once in each actor.
      jobs: different from each other.
      at_once: jobs that a worker has in hand.
      devices: accelerators of a worker, where the cluster has any.
      pack: makes what a worker gets of a job, when it gets it.
      agree: is told what each worker says about itself, and raises a UserError to refuse it.
    """

    open_worker: Callable[[], Worker]
    jobs: Iterable[Job]
    at_once: int
    devices: int = 1
    pack: Callable[[Job], Any] = lambda job: job
    agree: Callable[[dict[str, Any]], object] = lambda about: None


def require() -> ModuleType:
    """Ray.

    Raises:
      UserError: it is not installed; the message says how to install it.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--ray needs Ray: pip install 'musicgen-jax[ray]'")
    import ray

    return ray


def spread(address: str, work: Work[Job]) -> Iterator[tuple[Job, Any]]:
    """Does jobs on a cluster.

    Args:
      address: of the cluster, "host:port"; "auto" for the one that this machine belongs to.
      work: what to do.

    Yields:
      each job with its answer, in the order in which they are finished.

    Raises:
      UserError: no cluster answers, all workers were lost, or a worker raised one.
    """
    with _connected(address) as ray:
        yield from _Crew(ray, work).run()


@contextlib.contextmanager
def _connected(address: str) -> Iterator[ModuleType]:
    ray = require()
    if ray.is_initialized():
        yield ray
        return
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: start one with `ray start --head`, or name its "
            f"address ({reason(error)})"
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray has one of its own
    try:
        yield ray
    finally:
        ray.shutdown()


class _Actor:
    """Holds a worker. It is not opened in `__init__`, whose exceptions Ray turns into text."""

    def __init__(self, open_worker: Callable[[], Worker]):
        self._open, self._worker = open_worker, None

    def begin(self) -> dict[str, Any]:
        self._worker = self._open()
        return self._worker.about

    def do(self, packed: Any, /) -> Any:
        assert self._worker is not None
        return self._worker.do(packed)


@dataclasses.dataclass(eq=False)
class _Member:
    """A worker as the driver sees it: its actor, its node, and how many more jobs it can take."""

    actor: Any
    node: str
    free: int = 0


class _Crew(Generic[Job]):
    """The workers, and what each of them has in hand."""

    def __init__(self, ray: ModuleType, work: Work[Job]):
        self._ray, self._work = ray, work
        self._actor = ray.remote(_Actor)
        self._open = ray.put(work.open_worker)
        self._members: list[_Member] = []
        self._in_hand: dict[Any, tuple[_Member, Job | None]] = {}  # None: it is being opened
        self._waiting = deque(work.jobs)
        self._tries: Counter[Job] = Counter()
        self._losses: Counter[str] = Counter()
        self._last_loss = "no node of the cluster is alive"
        self._look = float("-inf")  # when to look at the nodes again

    def run(self) -> Iterator[tuple[Job, Any]]:
        """Does everything."""
        patience = time.monotonic() + _PATIENCE
        while self._waiting or any(job is not None for _, job in self._in_hand.values()):
            if time.monotonic() >= self._look:
                self._recruit()
                self._look = time.monotonic() + _POLL
            self._hand_out()
            ended, _ = self._ray.wait(list(self._in_hand), timeout=_POLL)
            for answer in ended:
                member, job = self._in_hand.pop(answer)
                try:
                    value = self._ray.get(answer)
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except self._ray.exceptions.RayError as error:
                    self._lose(member, job, reason(error))
                    continue
                if job is None:
                    self._work.agree(value)
                    member.free, patience = self._work.at_once, float("inf")
                else:
                    member.free += 1
                    yield job, value
            if time.monotonic() > patience:
                patience = float("inf")
                print(
                    "musicgen-jax: no worker is ready yet: the cluster's devices are taken, or "
                    "the weights are still being loaded",
                    file=sys.stderr,
                )

    def _recruit(self) -> None:
        """Starts workers on nodes that have too few: at the start, after a loss, on new nodes."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        for node, resources, count in _places(nodes, self._work.devices):
            have = sum(member.node == node for member in self._members)
            for _ in range(count - have if self._losses[node] < _LOSSES else 0):
                actor = self._actor.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                    max_concurrency=self._work.at_once,
                    **resources,
                ).remote(self._open)
                self._members.append(_Member(actor, node))
                self._in_hand[actor.begin.remote()] = self._members[-1], None
        if not self._members:
            raise UserError(f"no worker of the Ray cluster is left: {self._last_loss}")

    def _hand_out(self) -> None:
        """Gives waiting jobs to the workers that can take most."""
        while self._waiting:
            member = max(self._members, key=lambda each: each.free, default=None)
            if member is None or member.free <= 0:
                return
            job = self._waiting.popleft()
            member.free -= 1
            self._tries[job] += 1
            self._in_hand[member.actor.do.remote(self._work.pack(job))] = member, job

    def _lose(self, member: _Member, job: Job | None, why: str) -> None:
        """A worker has died; this is called for each of the jobs that it had in hand."""
        self._last_loss = why
        if member in self._members:
            self._members.remove(member)
            self._losses[member.node] += 1
            member.free, self._look = 0, float("-inf")
        if job is None:
            return
        if self._tries[job] >= _TRIES:
            raise UserError(f"{_TRIES} workers died with the same job, {job!s:.100}: {why}")
        self._waiting.appendleft(job)


def _places(
    nodes: Iterable[dict[str, Any]], devices: int
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """(node, resources of one worker, number of workers) for the nodes that get any.

    A node without accelerators gets none if another one has them: its clips would be of another
    program. JAX takes all TPU chips of a host, so they go to one worker.
    """
    cpus = []
    accelerated = False
    for node in nodes:
        has = node["Resources"]
        if gpus := int(has.get("GPU", 0)):
            accelerated = True
            yield node["NodeID"], {"num_gpus": devices}, gpus // devices
        elif chips := int(has.get("TPU", 0)):
            accelerated = True
            yield node["NodeID"], {"resources": {"TPU": chips}}, 1
        else:
            cpus.append(node["NodeID"])
    if not accelerated:
        yield from ((node, {"num_cpus": 1}, 1) for node in cpus)
