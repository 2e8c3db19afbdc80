"""A Ray cluster of several nodes on this machine, in a process of its own.

Ray forks to start a node, which a process that has used JAX must not do.
"""

import contextlib
import os
import socket
import subprocess
import sys

import psutil  # Orbax needs it

# Ports that are given: on a busy machine a node gives up waiting for its helpers to find some.
_PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "JAX_NUM_CPU_DEVICES": "8",  # and the same precision: workers compute as the tests do
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
}


class RayCluster:
    """Two nodes. Use it in a `with` statement.

    Attributes:
      address: for `--ray`.
    """

    def __enter__(self) -> "RayCluster":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.ray_cluster"],
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._said()
        return self

    def kill_a_node(self) -> None:
        """Kills the node that is not the head, with all its processes."""
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        assert self._said() == "killed"

    def _said(self) -> str:
        for line in self._process.stdout:
            if line.startswith("cluster: "):
                return line.removeprefix("cluster: ").strip()
        raise AssertionError("the cluster has ended")

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _node() -> dict[str, int]:
    """What a node has, on free ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in _PORTS]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    return {
        "num_cpus": 1,
        "object_store_memory": 200 << 20,
        **dict(zip(_PORTS, ports, strict=True)),
    }


def _children(pid: int) -> list[psutil.Process]:
    """All processes below this one, or none if it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    """Keeps the cluster until stdin ends; a line on it kills a node."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=_node() | {"include_dashboard": False})
    node = cluster.add_node(**_node())
    print("cluster:", cluster.address, flush=True)
    for _ in sys.stdin:
        # A machine that fails takes its workers with it. Here they would outlive their node, and
        # could finish all that they have in hand before they notice.
        for process in (info.process for infos in node.all_processes.values() for info in infos):
            for worker in _children(process.pid):
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended with another one
                    worker.kill()
                    worker.wait()
        cluster.remove_node(node, allow_graceful=False)
        print("cluster: killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
