"""Run the server: bind, load, answer, and stop without losing what was accepted."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from ..utils.addresses import is_loopback
from .application import create_server_app
from .settings import ServerSettings, check_exposure


# Seconds after the time-out of requests until a stopping server drops what is left.
_GRACE = 5
# Seconds until a connection without a request is closed.
_KEEP_ALIVE = 10
_STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


def serve_detector(
    model: str | os.PathLike,
    settings: ServerSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_anonymous: bool = False,
    tls: tuple[str, str] | None = None,
    runtime: str | None = None,
    **options: Any,
) -> None:
    """
    Serve a checkpoint or an export until the process is stopped with SIGTERM or Ctrl+C. What was accepted before is
    answered.

    The address is bound first. `/health` answers at once, `/ready` with status 200 when the model is loaded. Prints
    the address to the standard output, and then one line of JSON for each request.

    Args:
        model (`str` or `os.PathLike`):
            Checkpoint folder or Hub id, or folder of an export with `runtime`.
        settings ([`ServerSettings`], *optional*):
            Limits and security.
        host (`str`, defaults to `"127.0.0.1"`):
            Address to bind. Others can reach an address that is not a loopback address, so it needs an API key.
        port (`int`, defaults to 8000):
            Port to bind; 0 chooses a free one.
        allow_anonymous (`bool`, defaults to `False`):
            Whether others may use the server without a key. Prints a warning.
        tls (`tuple[str, str]`, *optional*):
            Files with the certificate chain and the private key, in PEM format.
        runtime (`"onnxruntime"` or `"openvino"`, *optional*):
            Engine of an exported model, which needs neither torch nor transformers. By default, `model` is a
            checkpoint.
        options:
            Arguments of [`AnomalyDetectionPipeline.from_pretrained`], or of [`OnnxDetector`] with `runtime`.

    Raises:
        OSError: if the address cannot be bound, the checkpoint cannot be read, or the certificate is not valid.
        ValueError: if others can reach the server and there is no key, or an argument is out of range.
        RuntimeError: if the server stops by itself.
    """
    settings = settings or ServerSettings()
    listener = bind(host, port)
    try:
        address = listener.getsockname()
        warning = check_exposure(address[0], settings, allow_anonymous)
        if warning is not None:
            print(warning, file=sys.stderr, flush=True)
        _serve(listener, model, settings, tls, runtime, options)
    finally:
        listener.close()


def _serve(
    listener: socket.socket,
    model: str | os.PathLike,
    settings: ServerSettings,
    tls: tuple[str, str] | None,
    runtime: str | None,
    options: dict[str, Any],
) -> None:
    def load() -> Any:
        if runtime is not None:
            from ..runtime.detector import OnnxDetector

            exported = OnnxDetector(model, engine=runtime, **options)
            print(f"The model is loaded in {runtime}.", file=sys.stderr, flush=True)
            return exported
        from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline

        found = AnomalyDetectionPipeline.from_pretrained(model, **options)
        print(f"The model is loaded on {found.device}.", file=sys.stderr, flush=True)
        return found

    errors: list[BaseException] = []

    def failed(error: BaseException) -> None:
        errors.append(error)
        server.should_exit = True

    local = is_loopback(listener.getsockname()[0])
    name = os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else str(model)
    application = create_server_app(load, settings, name=name, local=local, failed=failed)
    config = uvicorn.Config(
        application,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.timeout) + _GRACE,
        ssl_certfile=None if tls is None else tls[0],
        ssl_keyfile=None if tls is None else tls[1],
    )
    server = uvicorn.Server(config)
    try:
        config.load()
    except OSError as error:
        raise OSError(f"The certificate or its key cannot be used ({error.strerror or error}).") from error
    print(f"Serving on {url_of(listener, tls is not None)} (press Ctrl+C to stop)", flush=True)
    with _stopping_is_success():
        server.run(sockets=[listener])
    if errors:
        raise errors[0]
    if not server.started:
        raise RuntimeError("The server could not be started.")


@contextlib.contextmanager
def _stopping_is_success() -> Iterator[None]:
    """Ignore the signals that stop the server: it repeats them when it has stopped, which would end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """
    Bind an address, before the model is loaded.

    Args:
        host (`str`): IP address or host name.
        port (`int`): port; 0 chooses a free one.

    Returns:
        `socket.socket`: the socket.

    Raises:
        OSError: if the address cannot be bound.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if os.name != "nt":  # on Windows, it would allow two servers on the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.set_inheritable(True)
    except OSError as error:
        if listener is not None:
            listener.close()
        reason = error.strerror or str(error)
        raise OSError(
            f"Address {host}, port {port} cannot be bound ({reason}). Choose another with --port or --host."
        ) from error
    return listener


def url_of(listener: socket.socket, tls: bool) -> str:
    """
    Return the URL of a bound socket.

    Args:
        listener (`socket.socket`): the socket.
        tls (`bool`): whether connections are encrypted.

    Returns:
        `str`: such as `"http://127.0.0.1:8000"`.
    """
    host, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


__all__ = ["bind", "serve_detector", "url_of"]
