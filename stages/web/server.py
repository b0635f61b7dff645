"""Run one of the two web applications until it is interrupted."""

import importlib.util
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.errors import MissingDependencyError, UsageError

PACKAGES = ("fastapi", "uvicorn", "python_multipart")
LOGGER = logging.getLogger("musicldm.web")


def check_installed() -> None:
    """Raises MissingDependencyError when the extra `web` is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"The web pages need {', '.join(missing).replace('_', '-')}, which is not installed.",
            "Install it: pip install 'musicldm[web]'",
        )


def serve(app: Any, host: str, port: int, log: Path, ready: Callable[[str], None]) -> None:
    """Serve `app`; refusals are appended to `log`. `ready(address)` is called once the port (0: any) is bound.

    Raises UsageError when the address cannot be bound.
    """
    import uvicorn

    try:
        bound = _bind(host, port)
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be served: {error.strerror}.", "Choose another --port.") from error
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.addHandler(handler)
    shown = f"[{host}]" if ":" in host else host
    try:
        ready(f"http://{shown}:{bound.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):  # Ctrl-C is how a server ends, and uvicorn raises it again
            uvicorn.Server(server_config(app)).run(sockets=[bound])
    finally:
        LOGGER.removeHandler(handler)
        handler.close()
        bound.close()


def server_config(app: Any) -> Any:
    """uvicorn's settings for `app`, with a deadline for every wait on a client."""
    import uvicorn

    from stages.web.protocol import ImpatientProtocol

    return uvicorn.Config(
        app, http=ImpatientProtocol, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
    )  # fmt: skip


def _bind(host: str, port: int) -> Any:
    import socket

    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(512)
    except OSError:
        bound.close()
        raise
    return bound
