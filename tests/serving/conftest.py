from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from helpers.servers import as_png, nothing_is_kept, random_photo
from helpers.tiny import change_weights
from vip2clip_hf import AnomalyDetectionPipeline


pytest.importorskip("fastapi", reason="the server needs fastapi (pip install 'vip2clip_hf[serve]')")

from starlette.testclient import TestClient

from vip2clip_hf.serving import ServerSettings, create_server_app


@pytest.fixture
def detector(model, image_processor) -> AnomalyDetectionPipeline:
    change_weights(model)
    return AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")


@pytest.fixture
def photos() -> list[bytes]:
    """Photos of different sizes."""
    return [as_png(random_photo(seed, (40 + 7 * seed, 30 + 11 * seed))) for seed in range(5)]


@pytest.fixture
def start(detector) -> Iterator[Callable[..., TestClient]]:
    """Start a server with settings. At the end, nothing may be kept."""
    with ExitStack() as stack:
        clients = []

        def make(found=None, *, local: bool = True, host: str = "127.0.0.1", failed=None, **settings) -> TestClient:
            app = create_server_app(
                detector if found is None else found, ServerSettings(**settings), local=local, failed=failed
            )
            client = stack.enter_context(TestClient(app, base_url=f"http://{host}"))
            clients.append(client)
            return client

        yield make
    for client in clients:
        nothing_is_kept(client.app.state.service)
