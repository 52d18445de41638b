"""Proxies of the environment: none for this machine, and none that Prefect's client cannot be made with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from panoda.system.machine import loopback_past_proxies, proxy_variables

log = logging.getLogger("panoda")
_set_aside: dict[str, str] = {}


def make_usable() -> None:
    """Keep loopback past every proxy, and set SOCKS proxies aside where httpx lacks their package.

    httpx makes a client of every proxy that the environment names, needed or not; without ``socksio`` that is
    an error. requests, which downloads, has its own package for SOCKS: see ``all_proxies``.
    """
    loopback_past_proxies()
    if find_spec("socksio") is None:
        socks = {n: v for n, v in proxy_variables().items() if v.lower().startswith("socks")}
        for name in socks:
            del os.environ[name]
        _set_aside.update(socks)


@contextmanager
def all_proxies() -> Iterator[None]:
    """The user's proxies as they were: for downloads, and for what reports nothing to Prefect meanwhile."""
    os.environ.update(_set_aside)
    try:
        yield
    finally:
        for name in _set_aside:
            os.environ.pop(name, None)
