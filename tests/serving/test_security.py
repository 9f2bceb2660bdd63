"""Who may use the server: keys, names of the server, web pages of others, and what the pages and the log contain."""

import json
import logging
import re

import pytest
from typer.testing import CliRunner

from vip2clip_hf.cli import app as command
from vip2clip_hf.utils.addresses import is_loopback, is_private_network, is_public


pytest.importorskip("fastapi", reason="the server needs fastapi (pip install 'vip2clip_hf[serve]')")

from vip2clip_hf.serving import ServerSettings
from vip2clip_hf.serving.guard import host_name
from vip2clip_hf.serving.keys import api_key_from_environment, same_key
from vip2clip_hf.serving.settings import check_exposure


pytestmark = pytest.mark.xdist_group("serving")
KEY = "k3y-of-this-test-0123456789"


def test_key(start, photos, capfd):
    client, files = start(api_key=KEY), {"images": photos[0]}
    for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": "é"}):
        response = client.post("/predict", files=files, headers={k: v.encode() for k, v in headers.items()})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/metrics", "/info", "/absent"):
        assert client.get(path).status_code == 401
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"X-API-Key": KEY}):
        assert client.post("/predict", files=files, headers=headers).status_code == 200
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert "<form" not in client.get("/docs").text
    assert KEY not in "".join(capfd.readouterr())
    assert KEY not in repr(client.app.state.service.settings)


def test_keys_are_compared_as_digests(monkeypatch):
    """The comparison takes as long for any key."""
    import hmac

    seen, compare = [], hmac.compare_digest
    monkeypatch.setattr(
        hmac, "compare_digest", lambda one, two: seen.append((len(one), len(two))) or compare(one, two)
    )
    assert same_key(KEY, KEY)
    assert not same_key(None, KEY)
    assert not same_key("short", KEY)
    assert not same_key("\udcff", KEY)
    assert seen == [(32, 32)] * 4


@pytest.mark.parametrize(
    ("header", "local", "allowed"),
    [
        ("127.0.0.1:8000", True, True),
        ("localhost", True, True),
        ("LOCALHOST:1", True, True),
        ("[::1]:8000", True, True),
        ("evil.example", True, False),  # a name of a web page that resolves to 127.0.0.1
        ("127.0.0.1.evil.example", True, False),
        ("localhost@evil.example", True, False),
        ("", True, False),
        ("vision.example:443", True, True),
        ("vision.example", False, True),
        ("evil.example", False, False),
        ("127.0.0.1", False, False),
    ],
)
def test_host(start, header, local, allowed):
    client = start(lambda: None, allow_hosts=("Vision.example:443",), local=local)
    response = client.get("/health", headers={"Host": header})
    assert response.status_code == (200 if allowed else 421)


def test_any_host_on_the_network(start):
    assert start(local=False, host="192.0.2.7").get("/health").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9"}, 403),
        ({"Origin": "http://[bad"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_web_pages_of_others(start, photos, headers, status):
    assert start().post("/predict", files={"images": photos[0]}, headers=headers).status_code == status


def test_log(start, photos, capfd):
    """One line of JSON for each request, without names of photos, queries and line breaks of the client."""
    client = start()
    capfd.readouterr()
    headers = {"X-Request-ID": "abc-1"}
    first = client.post("/predict?mask=rle", files=[("i", ("secret.png", photos[0])), ("i", ("b.png", b"x"))],
                        headers=headers)  # fmt: skip
    second = client.get("/a%0Ab", headers={"X-Request-ID": "a b"})
    assert first.headers["x-request-id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{32}", second.headers["x-request-id"])
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert {name: lines[0][name] for name in ("request_id", "method", "path", "status", "images", "failed")} == {
        "request_id": "abc-1", "method": "POST", "path": "/predict", "status": 200, "images": 2, "failed": 1,
    }  # fmt: skip
    assert lines[0]["bytes"] > len(photos[0])
    assert (lines[1]["path"], lines[1]["status"]) == ("/a\nb", 404)
    assert "secret" not in json.dumps(lines)
    quiet = start(access_log=False)
    quiet.get("/health")
    assert capfd.readouterr().out == ""


def test_pages(start):
    """The pages contain no scripts and name no other server; the description is complete."""
    client = start()
    page = client.get("/", follow_redirects=True)
    assert page.url.path == "/docs"
    assert "<script" not in page.text
    assert not re.findall(r"(?:src|href|action)=\"(?:https?:)?//", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/health", "/ready", "/metrics", "/info", "/predict"}
    predict = schema["paths"]["/predict"]["post"]
    assert {one["name"] for one in predict["parameters"]} == {"heatmap", "mask", "anomaly_map", "regions"}
    assert set(predict["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/json"}
    assert {"200", "413", "422", "503", "504"} <= set(predict["responses"])
    for name in ("PhotoResult", "p_value", "Retry-After", "/predict"):
        assert name in page.text


def test_metrics(start, photos):
    client = start()
    client.post("/predict", files={"images": photos[0]})
    client.get("/" + "x" * 50)
    client.request("STRANGE", "/health")
    text = client.get("/metrics").text
    for line in (
        'vip2clip_requests_total{method="POST",path="/predict",status="200"} 1.0',
        'vip2clip_requests_total{method="GET",path="other",status="404"} 1.0',
        'vip2clip_requests_total{method="other",path="/health",status="405"} 1.0',
        "vip2clip_ready 1.0",
        "vip2clip_queue_images 0.0",
        "vip2clip_score_count 1.0",
        "vip2clip_batch_images_count 1.0",
    ):
        assert line in text


def test_info(start, detector):
    found = start(max_images=3).get("/info").json()
    assert (found["model"], found["image_size"], found["max_images"]) == ("model", 48, 3)
    assert (found["image_threshold"], found["calibrated"], found["references"]) == (0.5, False, 0)


def test_loading(start, detector, photos):
    """While the model is loaded, the server lives and is not ready."""
    import threading

    go = threading.Event()

    def load():
        assert go.wait(30)
        return detector

    client = start(load)
    assert (client.get("/health").status_code, client.get("/ready").status_code) == (200, 503)
    for response in (client.post("/predict", files={"images": photos[0]}), client.get("/info")):
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    go.set()
    while client.get("/ready").status_code != 200:
        pass
    assert client.post("/predict", files={"images": photos[0]}).status_code == 200


def test_loading_fails(start):
    errors = []

    def load():
        raise OSError("not found")

    client = start(load, failed=errors.append)
    while not errors:
        client.get("/health")
    assert str(errors[0]) == "not found"
    assert client.get("/ready").status_code == 503


def test_the_thread_of_the_model_ends(start, detector, monkeypatch):
    """A server that can never answer again says so to the probe of liveness."""
    client = start()
    client.app.state.service._running.worker.close()
    assert (client.get("/health").status_code, client.get("/ready").status_code) == (500, 503)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0; expected a positive integer"),
        ({"queue": True}, "queue is True"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"max_wait": -1}, "max_wait is -1"),
        ({"max_images": 65}, "max_images is 65; expected at most 64"),
        ({"max_file_size": 600}, "max_upload_memory is 512; expected at least 600"),
        ({"allow_urls": ("https://x.example/",)}, "allow_urls contains 'https://x.example/'"),
        ({"allow_hosts": ("*",)}, "allow_hosts contains '\\*'"),
        ({"allow_private_urls": True}, "allow_urls is empty"),
        ({"api_key": "short"}, "The API key has 5 characters"),
        ({"api_key": "x" * 20 + " "}, "The API key has 21 characters"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        ServerSettings(**settings)
    assert settings.get("api_key", "-") not in str(error.value).replace("-", "")


def test_key_of_the_environment(monkeypatch):
    monkeypatch.delenv("VIP2CLIP_API_KEY", raising=False)
    assert api_key_from_environment() is None
    monkeypatch.setenv("VIP2CLIP_API_KEY", f"{KEY}\n")  # from a file
    assert api_key_from_environment() == KEY
    for bad in ("", "short"):
        monkeypatch.setenv("VIP2CLIP_API_KEY", bad)
        with pytest.raises(ValueError, match="VIP2CLIP_API_KEY: The API key has"):
            api_key_from_environment()


def test_exposure():
    assert check_exposure("127.0.0.1", ServerSettings(), False) is None
    assert check_exposure("::1", ServerSettings(), False) is None
    assert check_exposure("0.0.0.0", ServerSettings(api_key=KEY), False) is None
    assert "Anyone" in check_exposure("0.0.0.0", ServerSettings(), True)
    for address in ("0.0.0.0", "::", "192.168.0.5"):
        with pytest.raises(ValueError, match="VIP2CLIP_API_KEY"):
            check_exposure(address, ServerSettings(), False)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "there is no API key"),
        (["--host", "no-such-host.invalid"], 1, "cannot be bound"),
        (["--max-images", "100"], 2, "max_images is 100"),
        (["--max-batch", "0"], 2, "max-batch"),
        (["--allow-urls", "http://x"], 2, "allow_urls contains"),
        (["--tls-cert", "a.pem"], 2, "belong together"),
        (["--references", "absent"], 1, "is not a folder"),
        (["--references", "EMPTY"], 1, "contains no images"),
        (["--references", "absent", "--no-references"], 2, "exclude each other"),
    ],
)
def test_the_command_refuses_before_loading(monkeypatch, tmp_path, arguments, code, message):
    from vip2clip_hf import AnomalyDetectionPipeline

    def load(*args, **kwargs):
        raise AssertionError("the weights were loaded")

    monkeypatch.delenv("VIP2CLIP_API_KEY", raising=False)
    monkeypatch.setattr(AnomalyDetectionPipeline, "from_pretrained", load)
    arguments = [str(tmp_path) if word == "EMPTY" else word for word in arguments]
    result = CliRunner().invoke(command, ["serve", "--port", "0", *arguments])
    assert result.exit_code == code
    assert message in f"{result.output} {result.exception}"
    assert "Serving on" not in result.output


@pytest.mark.parametrize(
    ("address", "loopback", "private", "public"),
    [
        ("127.0.0.1", True, True, False),
        ("::1", True, True, False),
        ("::ffff:127.0.0.1", True, True, False),
        ("10.1.2.3", False, True, False),
        ("192.168.1.1", False, True, False),
        ("fd12::1", False, True, False),
        ("169.254.169.254", False, False, False),  # credentials in a cloud
        ("::ffff:169.254.169.254", False, False, False),
        ("64:ff9b::a9fe:a9fe", False, False, False),
        ("fd00:ec2::254", False, False, False),
        ("100.100.100.200", False, False, False),
        ("fe80::1%eth0", False, False, False),
        ("0.0.0.0", False, False, False),
        ("::", False, False, False),
        ("224.0.0.1", False, False, False),
        ("240.0.0.1", False, False, False),
        ("2002:7f00:1::", True, True, False),  # 6to4 of 127.0.0.1
        ("8.8.8.8", False, False, True),
        ("2606:4700::1111", False, False, True),
    ],
)
def test_addresses(address, loopback, private, public):
    assert (is_loopback(address), is_private_network(address), is_public(address)) == (loopback, private, public)


def test_host_names():
    names = {"[::1]:80": "::1", "A.example.:1": "a.example", "a:b": "", "x]": "", " localhost ": "localhost"}
    assert {header: host_name(header) for header in names} == names


def test_a_closed_output_does_not_stop_the_server(start, monkeypatch, caplog):
    import sys

    class Closed:
        def write(self, text):
            raise BrokenPipeError

    with caplog.at_level(logging.ERROR):
        client = start()
        monkeypatch.setattr(sys, "stdout", Closed())
        assert client.get("/health").status_code == 200
        monkeypatch.undo()
    assert caplog.text == ""


def test_missing_packages(monkeypatch):
    """The message names the extra."""
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(command, ["serve", "--port", "0"])
    assert result.exit_code == 1
    assert "The server needs uvicorn, which is not installed: pip install 'vip2clip_hf[serve]'" in str(
        result.exception
    )
