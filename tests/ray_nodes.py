"""A Ray cluster of two nodes on this machine, and somebody who kills a worker in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def two_nodes(*, processors: int) -> Iterator[str]:
    """Its address; each node says that it has so many ``processors``."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": processors, "object_store_memory": 80 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Else the workers give way to everything else on a busy machine, and the test waits for minutes.
        patch.setenv("RAY_worker_niceness", "0")
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            cluster.add_node(**node)
            yield cluster.address
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextlib.contextmanager
def killing(out: Path, cell: str, *, lines: int) -> Iterator[list[int]]:
    """Whoever makes ``cell`` in ``out`` gets a SIGKILL once its ``log.jsonl`` has so many lines; the killed process."""
    log, lock = out / "cells" / f".{cell}.partial" / "log.jsonl", out / "locks" / f"{cell}.lock"
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if log.exists() and len(log.read_text().splitlines()) >= lines:
                killed.append(json.loads(lock.read_text())["pid"])
                os.kill(killed[0], signal.SIGKILL)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()
