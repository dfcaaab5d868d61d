"""Ranks in tests: processes that are started once, and form a group of another size for each job."""

import contextlib
import multiprocessing
import os
import socket

import torch

from egoaudio.data.ranks import joined

MOST = 4
SECONDS = 240  # in which a job has to be done, beside whatever else runs


class RankProcesses:
    """``run(size, function, ...)`` calls ``function(group, ...)`` in that many processes, and returns their results.

    With ``alone`` it calls ``function(...)``, which makes its own group. An exception is returned as
    ``(type, message, told)``; a rank that ended as None.
    """

    def __enter__(self):
        self._context = multiprocessing.get_context("forkserver")  # torch is imported once for all
        self._context.set_forkserver_preload(
            ["pytest", "egoaudio.training.train", "egoaudio.models.cnn", "small_steps"]
        )
        self._ranks = [None] * MOST
        return self

    def __exit__(self, *_):
        for process, connection in filter(None, self._ranks):
            connection.close()
            process.join(10)
            process.kill()

    def run(self, size, function, *arguments, alone=False):
        connections = [self._connection(rank) for rank in range(size)]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        for rank, connection in enumerate(connections):
            connection.send((rank, size, port, function, arguments, alone))
        results = []
        for rank, connection in enumerate(connections):
            assert connection.poll(SECONDS), "a rank waits for ever"
            try:
                results.append(connection.recv())
            except EOFError:
                results.append(None)
                self._ranks[rank] = None  # it has ended, or is about to
        return results

    def _connection(self, rank):
        if self._ranks[rank] is None or not self._ranks[rank][0].is_alive():
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._ranks[rank] = process, ours
        return self._ranks[rank][1]


def _work(connection):
    torch.set_num_threads(1)
    while True:
        try:
            rank, size, port, function, arguments, alone = connection.recv()
        except EOFError:
            return
        numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
        try:
            with contextlib.ExitStack() as stack:
                result = function(*(() if alone else (stack.enter_context(joined("cpu")),)), *arguments)
        except Exception as error:
            result = type(error).__name__, str(error), getattr(error, "told", False)
        connection.send(result)
