"""A soak of the reward server over loopback: `python tests/rewards/reward_soak.py` prints what it measured, as JSON.

The server is the command itself, in a process of its own. Slow senders connect again and again, send a part of a request, then
a byte now and then. Meanwhile honest clients have their videos scored. Exit code 1 if a bound is broken.
"""

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil
import torch

from flash_grpo.rewards.client import RemoteReward
from flash_grpo.rewards.wire import packed_request

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Soak:
    """slow: senders that stall. requests: of the honest clients, together. megabytes: of a request. buffered: the setting."""

    slow: int = 200
    requests: int = 1000
    clients: int = 8
    megabytes: int = 4
    buffered: int = 256

    def run(self) -> dict:
        """Return what was measured; RewardError if an honest client was not served."""
        video = torch.randint(0, 256, (1, self.megabytes, 512, 683, 3), dtype=torch.uint8)
        body, stop = packed_request(video, ["a"]), threading.Event()
        with server(self.buffered) as (port, process):
            clients = [RemoteReward(urls=[f"http://127.0.0.1:{port}"], max_wait=120.0) for _ in range(self.clients)]
            memory = Memory(process, stop)
            memory.start()
            for _ in range(5):
                clients[0](video, ("a",))
            memory.before = memory.peak - len(body)  # what the reward itself needs is part of the base
            senders = [
                threading.Thread(target=send_slowly, args=(port, body, stop), daemon=True) for _ in range(self.slow)
            ]
            for thread in senders:
                thread.start()
            time.sleep(2)  # by now they fill the memory
            start, waits, moments = time.monotonic(), [], [time.monotonic()]
            self._score_all(clients, video, waits, moments)
            stop.set()
            for thread in [memory, *senders]:
                thread.join(30)
        gaps = [after - before for before, after in itertools.pairwise(moments)]
        return {
            **asdict(self),
            "served": len(waits),
            "seconds": round(time.monotonic() - start, 1),
            "longest_wait_s": round(max(waits), 2),
            "longest_time_without_an_answer_s": round(max(gaps), 2),
            "memory_before_mb": round(memory.before / 2**20),
            "memory_rise_mb": round((memory.peak - memory.before) / 2**20),
            "allowed_rise_mb": round(1.2 * self.buffered),
        }

    def _score_all(self, clients: list[RemoteReward], video: torch.Tensor, waits: list, moments: list) -> None:
        def work(client: RemoteReward) -> None:
            while True:
                with lock:
                    if left[0] == 0:
                        return
                    left[0] -= 1
                began = time.monotonic()
                assert len(client(video, ("a",)).total_B) == 1
                with lock:
                    moments.append(time.monotonic())
                    waits.append(moments[-1] - began)

        left, lock = [self.requests], threading.Lock()
        threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(waits) == self.requests, f"{len(waits)} of {self.requests} requests were served"


class Memory(threading.Thread):
    """Watches the resident memory of a process. peak: the most seen, in bytes; before: what it needs without bodies."""

    def __init__(self, process: psutil.Process, stop: threading.Event):
        super().__init__(daemon=True)
        self.process, self.stop = process, stop
        self.before = self.peak = 0

    def run(self) -> None:
        while not self.stop.wait(0.01):
            self.peak = max(self.peak, self.process.memory_info().rss)


def send_slowly(port: int, body: bytes, stop: threading.Event) -> None:
    """Send a part of a request and then a byte now and then, until the server has enough of it; then begin again."""
    chance = random.Random(threading.get_ident())
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head + body[: chance.randrange(len(body) - 10_000)])
            connection.setblocking(False)
            while not stop.wait(0.5):
                connection.send(b"x")
                with suppress(BlockingIOError):
                    connection.recv(1)  # the server answers, or has closed the connection
                    break
        stop.wait(chance.uniform(1.0, 3.0))


@contextmanager
def server(buffered: int):
    """Start the command on a free port; yield the port and the process. It ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [f"server.port={port}", f"server.buffered_megabytes={buffered}", f"server.max_megabytes={buffered // 4}"]
    command = [sys.executable, "-m", "flash_grpo.serve", "reward=brightness", "device=cpu", *settings]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        for _ in range(1200):
            with suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            assert process.poll() is None, "the server has ended"
            time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    measured = Soak().run()
    print(json.dumps(measured, indent=1))
    sys.exit(measured["memory_rise_mb"] > measured["allowed_rise_mb"])
