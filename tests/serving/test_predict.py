"""Results of the server: those of the pipeline, for each photo, whatever the others are."""

import asyncio
import base64
import json
import logging
import threading
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image

from helpers.servers import as_png, multipart, nothing_is_kept, random_photo
from vip2clip_hf import AnomalyDetectionPipeline, DecisionConfig, ReferenceBank
from vip2clip_hf.models.vip2clip.heif_vip2clip import register_heif
from vip2clip_hf.models.vip2clip.results_vip2clip import decode_result


pytest.importorskip("fastapi", reason="the server needs fastapi (pip install 'vip2clip_hf[serve]')")

from vip2clip_hf.serving import ServerSettings, create_server_app
from vip2clip_hf.serving.predicting import prefers_png


pytestmark = pytest.mark.xdist_group("serving")
EVERYTHING = {"heatmap": "true", "mask": "png", "anomaly_map": "png"}


def files(contents) -> list:
    return [("images", (f"{number}.png", content)) for number, content in enumerate(contents)]


def same_result(record: dict, expected: dict, tolerance: float = 0, threshold: float = 0.5):
    """Compare JSON of the server with a result of the pipeline. With a tolerance, pixels whose value is that close to
    the threshold may be on the other side of it."""
    found = decode_result(record)
    assert abs(found["score"] - expected["score"]) <= tolerance
    assert found["label"] == expected["label"]
    assert ("p_value" in found, found.get("p_value")) == ("p_value" in expected, expected.get("p_value"))
    unsure = np.abs(expected["anomaly_map"] - threshold) <= tolerance if tolerance else np.zeros_like(expected["mask"])
    if not unsure.any():
        for region, other in zip(found["regions"], expected["regions"], strict=True):
            assert (region["box"], region["area"]) == (other["box"], other["area"])
            assert abs(region["peak_score"] - other["peak_score"]) <= tolerance
    if "mask" in record:
        np.testing.assert_array_equal(found["mask"][~unsure], expected["mask"][~unsure])
    if "anomaly_map" in record:
        assert np.abs(found["anomaly_map"] - expected["anomaly_map"]).max() <= tolerance + 1 / 131070 + 1e-7
        pixels = np.asarray(found["heatmap"], np.int16) - np.asarray(expected["heatmap"], np.int16)
        assert np.abs(pixels).max() <= (1 if tolerance else 0)


def tiled(detector) -> AnomalyDetectionPipeline:
    return AnomalyDetectionPipeline(
        model=detector.model, image_processor=detector.image_processor, device="cpu", tile_size=40
    )


def with_references(detector) -> AnomalyDetectionPipeline:
    good = [random_photo(seed) for seed in range(100, 104)]
    detector.model.references = ReferenceBank.from_images(detector.model, detector.image_processor, good)
    return detector


def calibrated(detector) -> AnomalyDetectionPipeline:
    detector.model.decision = DecisionConfig(
        image_threshold=0.4, pixel_threshold=0.45, min_region_area=0.01, image_scores=[0.1, 0.3, 0.5],
        calibration={"settings": detector.score_settings(), "num_images": 3},
    )  # fmt: skip
    return detector


@pytest.mark.parametrize("kind", [None, tiled, with_references, calibrated])
@pytest.mark.parametrize(("max_batch", "tolerance"), [(1, 0), (5, 1e-6)])
def test_same_as_the_pipeline(start, detector, photos, kind, max_batch, tolerance):
    """One photo at a time bit for bit, and in a batch to 1e-6. With tiles, photos with and without tiles are mixed."""
    detector = detector if kind is None else kind(detector)
    expected = [detector({"bytes": photo}, regions=True, heatmap=True) for photo in photos]
    client = start(detector, max_batch=max_batch, max_wait=60_000 if max_batch > 1 else 0)
    response = client.post("/predict", files=files(photos), params=EVERYTHING)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [one["name"] for one in results] == [f"{number}.png" for number in range(len(photos))]
    for record, result in zip(results, expected, strict=True):
        same_result(record, result, tolerance, detector.decision.pixel_threshold)
    if max_batch > 1:
        assert 'vip2clip_batch_images_bucket{le="4.0"} 0.0' in client.get("/metrics").text  # all in one batch


def test_forms_of_requests_and_responses(start, detector, photos):
    client, expected = start(), detector({"bytes": photos[0]}, regions=True, heatmap=True)
    plain = client.post("/predict", files=files(photos[:1])).json()["results"][0]
    assert set(plain) == {"name", "score", "label", "size", "regions"}
    same_result(plain, expected, 1e-6)
    assert plain["size"] == [30, 40]
    assert "regions" not in client.post("/predict?regions=false", files=files(photos[:1])).json()["results"][0]
    encoded = client.post("/predict?mask=rle", files=files(photos[:1])).json()["results"][0]
    np.testing.assert_array_equal(decode_result(encoded)["mask"], expected["mask"])
    body = {"content": photos[0], "headers": {"Content-Type": "image/png"}}
    assert client.post("/predict", **body).json()["results"] == [{**plain, "name": "image"}]
    body["headers"]["Accept"] = "image/png"
    picture = client.post("/predict", **body)
    assert picture.headers["content-type"] == "image/png"
    assert (float(picture.headers["x-score"]), picture.headers["x-label"]) == (plain["score"], plain["label"])
    np.testing.assert_array_equal(Image.open(BytesIO(picture.content)), np.asarray(expected["heatmap"]))
    two = client.post("/predict", files=files(photos[:2]), headers={"Accept": "image/png"})
    assert two.status_code == 422
    assert "one photo" in two.json()["detail"]
    bad = client.post("/predict", content=b"no photo", headers={"Content-Type": "image/png", "Accept": "image/png"})
    assert (bad.status_code, bad.headers["content-type"]) == (422, "application/json")


def test_nothing_is_written_to_the_disk(start, monkeypatch):
    """Large uploads stay in memory."""
    import tempfile

    def write(*args, **kwargs):
        raise AssertionError("an upload was written to the disk")

    monkeypatch.setattr(tempfile, "TemporaryFile", write)
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    large = as_png(Image.fromarray(noise))
    assert len(large) > 2**20
    assert start().post("/predict", files=files([large])).status_code == 200


@pytest.mark.parametrize(
    ("accept", "png"),
    [
        ("*/*", False),
        ("image/png", True),
        ("image/*", True),
        ("application/json, image/png", False),
        ("application/json;q=0.5, image/png", True),
        ("image/png;q=0, */*", False),
        ("text/html,*/*;q=0.8", False),
        ("image/png;q=x", False),
        ("", False),
    ],
)
def test_accept(accept, png):
    assert prefers_png(accept) is png


def bomb(side: int) -> bytes:
    """A small file with many pixels."""
    content = BytesIO()
    Image.new("1", (side, side)).save(content, format="PNG")
    return content.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"


def pages() -> bytes:
    content, pictures = BytesIO(), [random_photo(seed) for seed in range(2)]
    pictures[0].save(content, format="TIFF", save_all=True, append_images=pictures[1:])
    return content.getvalue()


def bad_photos(photo: bytes) -> list[tuple[str, bytes, int, str]]:
    """Files without a result: name, content, status, and a part of the reason."""
    return [
        ("text.png", b"This is not a photo.", 422, "cannot be read as an image"),
        ("empty.png", b"", 422, "empty"),
        ("cut.png", photo[: len(photo) // 2], 422, "truncated"),
        ("large.png", photo + bytes(40_000), 413, "larger than 40,960 bytes"),
        ("bomb.png", bomb(500), 422, "500 x 500 pixels; expected at most 200,000"),
        ("script.eps", EPS, 422, "format of the file is EPS"),
        ("pages.tiff", pages(), 422, "pages"),
    ]


def test_a_bad_file_does_not_fail_the_others(start, detector, photos):
    client = start(max_file_size=0.0390625, max_pixels=200_000)
    bad = bad_photos(photos[0])
    mixed = [("images", ("good.png", photos[1])), *(("images", one[:2]) for one in bad), ("x", ("b.png", photos[2]))]
    response = client.post("/predict", files=mixed)
    assert response.status_code == 200
    first, *middle, last = response.json()["results"]
    for record, photo in ((first, photos[1]), (last, photos[2])):
        same_result(record, detector({"bytes": photo}, regions=True), 1e-6)
    for record, (name, _, status, reason) in zip(middle, bad, strict=True):
        assert (record["name"], record["status"]) == (name, status)
        assert reason in record["error"]
        assert set(record) == {"name", "error", "status"}
    for name, content, status, _ in bad:  # alone, the status is that of the error
        assert client.post("/predict", files=[("images", (name, content))]).status_code == status
    text = client.get("/metrics").text
    assert 'vip2clip_images_total{outcome="ok"} 2.0' in text
    assert f'vip2clip_images_total{{outcome="rejected"}} {2.0 * len(bad)}' in text


def test_a_bomb_is_not_decoded(start, monkeypatch):
    from PIL import PngImagePlugin

    def load(self):
        raise AssertionError("it was decoded")

    client = start(max_pixels=10_000)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    response = client.post("/predict", files=files([bomb(120), bomb(4000)]))
    assert [one["status"] for one in response.json()["results"]] == [422, 422]
    assert "expected at most 10,000" in response.json()["results"][0]["error"]


def test_notices(start, photos):
    """What was guessed about a photo is in its result, not in that of another one."""
    content = BytesIO()
    Image.new("RGBA", (40, 30), (200, 0, 0, 100)).save(content, format="PNG")
    found = start().post("/predict", files=files([photos[0], content.getvalue()])).json()["results"]
    assert "notices" not in found[0]
    assert "ransparent" in found[1]["notices"][0]


def test_a_fault_of_the_model_fails_one_photo(start, detector, photos, monkeypatch, caplog):
    """A batch that fails runs again, one photo at a time. The reason is in the log, not in the response."""
    forward = detector.model.forward

    def faulty(pixel_values=None, **kwargs):
        if float(pixel_values.mean(dim=(1, 2, 3)).max()) > 1.5:
            raise RuntimeError("secret of the machine")
        return forward(pixel_values=pixel_values, **kwargs)

    client = start(max_batch=3, max_wait=60_000)
    monkeypatch.setattr(detector.model, "forward", faulty)
    white = as_png(Image.new("RGB", (40, 40), "white"))
    with caplog.at_level(logging.ERROR):
        found = client.post("/predict", files=files([photos[0], white, photos[1]])).json()["results"]
    same_result(found[0], detector({"bytes": photos[0]}, regions=True))
    same_result(found[2], detector({"bytes": photos[1]}, regions=True))
    assert found[1]["status"] == 500
    assert "secret" not in json.dumps(found)
    assert "secret of the machine" in caplog.text


def test_two_hundred_requests(detector):
    """All of them are answered, with the results of the pipeline; bad files fail alone."""
    contents = [as_png(random_photo(seed, (40, 30))) for seed in range(50)]
    expected = [detector({"bytes": content}, regions=True) for content in contents]
    app = create_server_app(detector, ServerSettings(queue=256, max_batch=16, access_log=False))
    sizes = []

    async def send(client, number):
        bad = number % 4 == 3
        content = contents[number % 3][:100] if bad else contents[number % 50]
        body, kind = multipart([(f"{number}.png", content)])
        return await client.post("/predict", content=body, headers={"Content-Type": kind})

    async def send_all():
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                found = await asyncio.gather(*(send(client, number) for number in range(200)))
            sizes.append(app.state.service.metrics.batch_images._sum.get())
        return found

    responses = asyncio.run(send_all())
    assert [response.status_code for response in responses] == [422 if n % 4 == 3 else 200 for n in range(200)]
    for number, response in enumerate(responses):
        (record,) = response.json()["results"]
        assert record["name"] == f"{number}.png"
        if number % 4 != 3:
            same_result(record, expected[number % 50], 1e-6)
    assert sizes == [150]
    nothing_is_kept(app.state.service)


# Limits


class Gate:
    """Holds the model until it is opened."""

    def __init__(self, detector, monkeypatch):
        self.entered, self.opened, forward = threading.Event(), threading.Event(), detector.model.forward

        def wait(**kwargs):
            self.entered.set()
            assert self.opened.wait(30)
            return forward(**kwargs)

        self.close = lambda: monkeypatch.setattr(detector.model, "forward", wait)


@pytest.fixture
def gate(detector, monkeypatch) -> Gate:
    return Gate(detector, monkeypatch)


def test_the_queue_is_bounded(start, photos, gate):
    client = start(queue=3, max_images=3, max_batch=1)
    assert client.post("/predict", files=files(photos[:4])).status_code == 413
    gate.close()
    responses = []
    thread = threading.Thread(target=lambda: responses.append(client.post("/predict", files=files(photos[:2]))))
    thread.start()
    assert gate.entered.wait(30)
    refused = client.post("/predict", files=files(photos[:2]))
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    other = threading.Thread(target=lambda: responses.append(client.post("/predict", files=files(photos[:1]))))
    other.start()
    service = client.app.state.service
    while service.queue.used < 3:
        pass
    full = client.post("/predict", content=b"", headers={"Content-Type": "image/png"})  # before the body is read
    assert (full.status_code, full.json()["detail"]) == (503, "The queue is full; try again later.")
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    gate.opened.set()
    thread.join()
    other.join()
    assert [response.status_code for response in responses] == [200, 200]
    assert client.post("/predict", files=files(photos[:3])).status_code == 200


def test_time_out(start, photos, gate):
    """A place in the queue is given back when the photo leaves the model, not when the client is told."""
    client = start(timeout=1, max_batch=1)
    gate.close()
    response = client.post("/predict", files=files(photos[:2]))
    assert response.status_code == 504
    assert {one["status"] for one in response.json()["results"]} == {504}
    service = client.app.state.service
    assert service.queue.used == 2
    gate.opened.set()
    while service.queue.used:
        pass
    text = client.get("/metrics").text
    assert 'vip2clip_images_total{outcome="timeout"} 1.0' in text  # the other one had reached the model
    assert "vip2clip_batch_images_count 1.0" in text


def test_client_is_gone(detector, photos, gate):
    """Photos of a client that has closed the connection are dropped."""
    app = create_server_app(detector, ServerSettings(max_batch=1, access_log=False))
    body, kind = multipart([("a.png", photos[0]), ("b.png", photos[1])])
    gone = threading.Event()

    async def send():
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while not gone.is_set():
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def reply(message):
            pass

        headers = [(b"host", b"localhost"), (b"content-type", kind.encode())]
        scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
                 "headers": headers, "client": ("1.2.3.4", 5), "server": ("localhost", 80), "scheme": "http",
                 "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"}}  # fmt: skip
        async with app.router.lifespan_context(app):
            gate.close()
            task = asyncio.create_task(app(scope, receive, reply))
            while not gate.entered.is_set():
                await asyncio.sleep(0.01)
            gone.set()
            await task
            assert app.state.service.queue.used == 2
            gate.opened.set()
        return scope["state"]["facts"]

    assert asyncio.run(send())["status"] == 499
    nothing_is_kept(app.state.service)
    assert app.state.service.metrics.batch_images._sum.get() == 1


def test_bodies_are_limited(start, photos):
    client = start(max_file_size=0.01, max_images=2, max_upload_memory=1)
    kind = {"Content-Type": "image/png"}
    limit = client.app.state.service.settings.max_body_bytes
    sent = []

    def chunks(total):
        for _ in range(total // 10_000):
            sent.append(10_000)
            yield bytes(10_000)

    stated = client.post("/predict", content=b"", headers={**kind, "Content-Length": str(limit + 1)})
    assert stated.status_code == 413
    assert client.post("/predict", content=b"", headers={**kind, "Content-Length": "9" * 30}).status_code == 413
    assert client.post("/predict", content=chunks(50_000), headers=kind).status_code == 413  # no length
    multi = {"Content-Type": "multipart/form-data; boundary=x"}
    head = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'

    def endless():
        yield head
        yield from chunks(2 * limit)

    response = client.post("/predict", content=endless(), headers=multi)
    assert response.status_code in (413, 503)
    # Many small parts are refused by their number.
    many = client.post("/predict", files=files([b""] * 300))
    assert (many.status_code, "more than 2 photos" in many.json()["detail"]) == (413, True)
    assert client.post("/predict", files=files(photos[:2])).status_code == 200


def test_upload_memory_is_limited(start, detector, photos, gate):
    """All bodies together, as they arrive."""
    client = start(max_file_size=0.9, max_upload_memory=1, max_batch=1)
    service = client.app.state.service
    assert service.uploads.take(900_000)
    response = client.post("/predict", content=bytes(300_000), headers={"Content-Type": "image/png"})
    assert response.status_code == 503
    assert response.headers["retry-after"]
    service.uploads.give(900_000)
    assert client.post("/predict", files=files(photos[:1])).status_code == 200


def test_slow_upload(start):
    """A request that does not arrive is answered with 408."""
    client = start(timeout=0.2)
    service = client.app.state.service

    async def send():
        async def receive():
            await asyncio.sleep(30)

        statuses = []

        async def reply(message):
            statuses.append(message.get("status"))

        headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
                 "headers": headers, "client": None, "server": ("localhost", 80), "scheme": "http",
                 "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"}}  # fmt: skip
        await client.app(scope, receive, reply)
        return statuses

    assert asyncio.run(send())[0] == 408
    nothing_is_kept(service)


def test_wrong_requests(start):
    client = start()
    json_, kind = {"Content-Type": "application/json"}, "multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="images"%s\r\n\r\n%s\r\n--x--\r\n'
    for request, status, reason in (
        ({"content": part % (b"", b"photo.jpg"), "headers": {"Content-Type": kind}}, 422, "-F images=@photo.jpg"),
        ({"content": part % (b'; filename=""', b""), "headers": {"Content-Type": kind}}, 422, "contains no photo"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "multipart/form-data"),
        ({"content": b"x"}, 415, "multipart/form-data"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"[]", "headers": json_}, 403, "does not fetch URLs"),
        ({"content": b"x", "params": {"heatmaps": "true"}}, 422, "'heatmaps' is not known"),
        ({"content": b"x", "params": {"mask": "jpg"}}, 422, "mask:"),
        ({"content": b"x", "params": {"heatmap": "maybe"}}, 422, "heatmap:"),
    ):
        response = client.post("/predict", **request)
        assert response.status_code == status, request
        assert reason in response.json()["detail"]
    assert client.get("/predict").status_code == 405
    assert client.get("/absent").json() == {"detail": "Not Found"}


def test_base64_of_pictures(start, photos):
    record = start().post("/predict?mask=png&heatmap=true", files=files(photos[:1])).json()["results"][0]
    mask = Image.open(BytesIO(base64.b64decode(record["mask"]["png"])))
    assert (mask.mode, mask.size) == ("L", (40, 30))
    assert Image.open(BytesIO(base64.b64decode(record["heatmap"]["png"]))).size == (40, 30)


def test_heic_photos(start):
    """Also if nothing else has read a HEIC photo before."""
    heif = pytest.importorskip("pillow_heif")
    stream = BytesIO()
    heif.from_pillow(random_photo(0, (40, 30))).save(stream)
    register_heif.cache_clear()
    heif_openers = {name: Image.OPEN.pop(name) for name in ("HEIF",) if name in Image.OPEN}
    try:
        answer = start().post("/predict", files=[("images", ("a.heic", stream.getvalue()))])
        assert answer.status_code == 200, answer.text
    finally:
        Image.OPEN.update(heif_openers)
