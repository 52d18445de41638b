"""The Prefect server of a flow: the one that the user named, that of ``make server``, or a temporary one.

The stages of one ``dvc repro`` share a temporary one, which saves each of them the seconds of a start.
"""

from __future__ import annotations

import importlib
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.temporary_server import temporary_server
from panoda.system.files import write_json
from panoda.tracking import preload

log = logging.getLogger("panoda")
SERVER_NOTE = Path(".prefect/server.json")
SHARED_NOTE = Path(".prefect/shared_server.json")
ANSWER_SECONDS = 5.0


@contextmanager
def server(module: str) -> Iterator[None]:
    """A server that answers; ``module`` loads while a temporary one starts."""
    named = PREFECT_API_URL.value()
    url = named or running_server()
    reason = why_not(url) if url else None
    if url and reason is None:
        with temporary_settings({PREFECT_API_URL: url}):
            yield
        return
    if named:
        log.warning(
            "PREFECT_API_URL %s: %s. This stage goes on with a temporary server of its own, and is not "
            "recorded there. Start that server, or unset PREFECT_API_URL (in the environment, .env or "
            "Prefect's profile)",
            httpx.URL(named).copy_with(userinfo=b"") if "@" in named else named,
            reason,
        )
    dvc = running_dvc()
    shared = running_server(SHARED_NOTE, owner=dvc.pid) if dvc else None
    if shared:
        with temporary_settings({PREFECT_API_URL: shared}):
            yield
        return
    # The server's process takes seconds to start; ours would only wait for it.
    loading = threading.Thread(target=_prefetch, args=(module,), daemon=True)
    loading.start()
    with temporary_server(dvc) as started:
        # Not side by side with the flow: of packages that two threads import, one may see a half.
        loading.join()
        if dvc:
            write_json(SHARED_NOTE, {"api_url": started, "owner": dvc.pid})
        yield


def running_dvc() -> psutil.Process | None:
    """The DVC that runs this stage, if one does."""
    for process in psutil.Process().parents():
        try:
            if "dvc" in [Path(word).name for word in process.cmdline()[:3]]:
                return process
        except psutil.Error:  # another user's
            continue
    return None


def running_server(note: Path = SERVER_NOTE, owner: int | None = None) -> str | None:
    """API address of the server that a note in this project is of, if it answers and ends with process ``owner``."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        if noted.get("owner") != owner:
            return None
        url = str(noted["api_url"])
        with urlopen(f"{url}/health", timeout=2) as answer:
            return url if answer.status == 200 else None
    except (OSError, URLError, ValueError, KeyError):
        return None


def why_not(url: str) -> str | None:
    """Why flows cannot report to what is at ``url``, in a few words; None when they can."""
    asked = {PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}
    try:
        with (
            temporary_settings(asked),
            get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client,
        ):
            client.raise_for_api_version_mismatch()
            client.read_flows(limit=1)
    except Exception as error:  # whatever a foreign service makes of it
        return _in_words(error.__cause__ or error)
    return None


def _in_words(error: BaseException) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {ANSWER_SECONDS:.0f} s"
    if isinstance(error, httpx.TransportError):
        return f"nothing answers ({error})"
    if isinstance(error, PrefectHTTPStatusError):
        status = error.response.status_code
        if status in (401, 403):
            return f"it wants another key or password (PREFECT_API_KEY, PREFECT_API_AUTH_STRING; {status})"
        return f"what answers is no Prefect server (status {status})"
    if "incompatible versions" in str(error):
        return str(error)
    first = next(iter(str(error).splitlines()), "")
    return f"what answers is no Prefect server ({type(error).__name__}: {first})"


def _prefetch(module: str) -> None:
    try:
        importlib.import_module(module)
        preload()
    except Exception:  # the same import in the flow reports it
        return
