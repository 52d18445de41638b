"""A Prefect server in a process of its own that never outlives its owner: the flow, or the DVC that runs it.

Prefect can start one itself, but then the flow's process imports the whole server as well (seconds), and the
server stays behind when the flow is killed.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

PAUSE = 0.05
FLUSH_SECONDS = 5.0
OWNER_SECONDS = 0.5
SETTINGS = {
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}
_OF_ANOTHER_SERVER = ("PREFECT_SERVER_", "PREFECT_API_DATABASE_")
"""Variables for a server of the user's, such as its password or database; this one has neither."""


@contextmanager
def temporary_server(owner: psutil.Process | None = None) -> Iterator[str]:
    """Start a server on a free port of 127.0.0.1, and point Prefect at it.

    Args:
        owner: The server ends with this process; None = with the block.

    Yields:
        The API's address.

    Raises:
        OSError: it did not answer in time (``server.ephemeral.startup_timeout_seconds`` in prefect.toml).
    """
    log = Path(get_current_settings().home) / "temporary_server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # The server gets the socket, not its number: until it listens, somebody else could take that.
    with log.open("wb") as sink, socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                __name__,
                f"{listener.fileno()}",
                f"{owner.pid if owner else os.getpid()}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            pass_fds=[listener.fileno()],
            env={k: v for k, v in os.environ.items() if not k.startswith(_OF_ANOTHER_SERVER)} | SETTINGS,
            start_new_session=True,  # ctrl-C reaches the flow first, which still has something to report
        )
    kept = False
    try:
        _wait(process, url, log)
        kept = owner is not None
        with temporary_settings({PREFECT_API_URL: url}):
            try:
                yield url
            finally:
                _send_what_waits()
    finally:
        if not kept:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _send_what_waits() -> None:
    """Prefect sends logs and events in the background, and complains of each that finds no server."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that some are still waiting is no news here
    try:
        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=FLUSH_SECONDS)
    finally:
        logging.disable(before)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    seconds = get_current_settings().server.ephemeral.startup_timeout_seconds
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise OSError(f"the temporary Prefect server ended with code {process.returncode}; see {log}")
        try:
            with urlopen(f"{url}/health", timeout=2):
                return
        except (URLError, OSError):
            time.sleep(PAUSE)
    raise OSError(f"the temporary Prefect server did not answer within {seconds} s; see {log}")


def _end_with(owner: psutil.Process) -> None:
    while _lives(owner):
        time.sleep(OWNER_SECONDS)
    os._exit(0)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def serve(listener: socket.socket, owner: psutil.Process) -> None:
    """Run the server on a socket that listens, until ``owner`` ends."""
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True), log_level="error"))
    server.run(sockets=[listener])


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), psutil.Process(int(sys.argv[2])))
