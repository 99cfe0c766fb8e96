"""Reward servers over loopback, in threads of the test's process."""

import socket
import threading
import time

import uvicorn

from flash_grpo.serve import Limits, application, listener


class Server:
    """A reward server in a thread, on one port throughout, that can be killed and started again."""

    def __init__(self, reward, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self._made = f"http://127.0.0.1:{self.port}", (reward, options)

    def start(self):
        reward, options = self._made
        sizes = {"max_megabytes": 1, "buffered_megabytes": 4, "read_seconds": 10.0}
        limits = Limits(**{name: options.get(name, default) for name, default in sizes.items()})
        more = {name: value for name, value in options.items() if name not in sizes}
        app = application(reward, "tested", limits=limits, **{"token": None, **more})
        self._server = uvicorn.Server(listener(app, limits, port=self.port, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), f"no server on port {self.port}"
            time.sleep(0.005)
        return self

    def kill(self):
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
