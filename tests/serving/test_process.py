"""`vip2clip serve` as a user starts it: a process of its own, under load, and how it stops."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from helpers.browser import missing, open_browser
from helpers.servers import as_png, multipart, serving
from helpers.tiny import EXAMPLES
from vip2clip_hf import AnomalyDetectionPipeline, bundled_checkpoint


pytest.importorskip("uvicorn", reason="the server needs uvicorn (pip install 'vip2clip_hf[serve]')")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serving-process")]
KEY = "k3y-of-this-test-0123456789"


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """Photos that differ in size: parts of the examples."""
    found = []
    for path in sorted(EXAMPLES.glob("hazelnut*.jpg"))[:4]:
        photo = Image.open(path).convert("RGB")
        found += [as_png(photo.crop((8 * step, 0, photo.width, photo.height))) for step in range(4)]
    return found


@pytest.fixture(scope="module")
def expected(contents) -> list[dict]:
    detector = AnomalyDetectionPipeline.from_pretrained(bundled_checkpoint(), device="cpu")
    return [detector({"bytes": content}, regions=True) for content in contents]


def test_under_load(contents, expected, tmp_path):
    """200 parallel requests with bad files among them: all are answered, with the results of the pipeline."""
    arguments = ["--queue", "256", "--timeout", "600", "--device", "cpu"]
    with serving(arguments, tmp_path, VIP2CLIP_API_KEY=KEY) as server:
        address = server.ready()
        start = threading.Barrier(200)

        def send(number: int):
            good = contents[number % len(contents)]
            files = [(f"{number}.png", good[:500] if number % 5 == 4 else good)]
            if number % 10 == 0:
                files.append(("bad.txt", b"not a photo"))
            body, kind = multipart(files)
            start.wait()
            headers = {"Content-Type": kind, "Authorization": f"Bearer {KEY}"}
            return server.request("POST", "/predict", body, headers, address)

        with ThreadPoolExecutor(200) as pool:
            responses = list(pool.map(send, range(200)))
        for number, (status, content, _) in enumerate(responses):
            results = json.loads(content)["results"]
            if number % 5 == 4:
                assert (status, results[0]["status"]) == (422, 422)
                continue
            assert status == 200
            result = expected[number % len(contents)]
            assert results[0]["name"] == f"{number}.png"
            assert results[0]["score"] == pytest.approx(result["score"], abs=1e-6)
            assert results[0]["label"] == result["label"]
            assert [one["box"] for one in results[0]["regions"]] == [one["box"] for one in result["regions"]]
            if number % 10 == 0:
                assert results[1] == {"name": "bad.txt", "status": 422, "error": results[1]["error"]}
        key = {"Authorization": f"Bearer {KEY}"}
        assert server.request("POST", "/predict", b"x", {"Content-Type": "image/png"}, address)[0] == 401
        metrics = server.request("GET", "/metrics", headers=key, address=address)[1].decode()
        assert 'vip2clip_images_total{outcome="ok"} 160.0' in metrics
        batches = float(metrics.partition("vip2clip_batch_images_count ")[2].split()[0])
        assert batches < 100  # photos of several requests shared batches
        assert server.stop() == 0
        assert len([line for line in server.log if line["path"] == "/predict"]) == 201
        assert KEY not in server.out.read_text() + server.errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.skipif(os.name == "nt", reason="these signals cannot be sent on Windows")
def test_stopping_answers_what_was_accepted(contents, expected, tmp_path, number):
    with serving(["--device", "cpu", "--max-batch", "1", "--timeout", "300"], tmp_path) as server:
        address = server.ready()
        body, kind = multipart([(f"{position}.png", content) for position, content in enumerate(contents[:12])])
        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(server.request, "POST", "/predict", body, {"Content-Type": kind}, address)
                    for _ in range(4)]  # fmt: skip
            server.wait_for(
                lambda: b"vip2clip_queue_images 48" in server.request("GET", "/metrics", None, None, address)[1]
            )
            code = server.stop(number)
            for future in sent:
                status, content, _ = future.result()
                assert status == 200
                for found, result in zip(json.loads(content)["results"], expected[:12], strict=True):
                    assert found["score"] == pytest.approx(result["score"], abs=1e-6)
        assert code == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)


def test_stopping_while_the_model_is_loaded(tmp_path):
    with serving([], tmp_path) as server:
        address = server.address()
        server.wait_for(lambda: _answers(server, address))
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 60


def _answers(server, address) -> bool:
    try:
        return server.request("GET", "/health", address=address)[0] == 200
    except OSError:
        return False


def test_errors_of_the_start(tmp_path):
    """A model that does not exist is wrong usage, a port that is in use is an error; both are explained."""
    with serving(["--model", str(tmp_path / "absent")], tmp_path) as server:
        assert server.process.wait(timeout=600) == 2
        assert "absent" in server.errors.splitlines()[-1]
        assert server.errors.splitlines()[-1].startswith("Error: ")
        assert "Traceback" not in server.errors
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, serving(["--port", str(taken.getsockname()[1])], tmp_path) as server:
        assert server.process.wait(timeout=600) == 1
        assert "cannot be bound" in server.errors


def test_a_body_that_is_not_read(tmp_path):
    """A large body is refused before it is sent, or while it is sent."""
    with serving(["--device", "cpu", "--max-file-size", "1"], tmp_path) as server:
        host, port = server.ready()
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\n"
        with socket.create_connection((host, port), timeout=60) as connection:
            connection.sendall(f"{head}Content-Length: 99999999\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 413"
        with socket.create_connection((host, port), timeout=60) as connection:
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 500 * 2**20:
                    connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                    sent += 0x10000
            assert sent < 100 * 2**20
        server.wait_for(lambda: [line["status"] for line in server.log if line["path"] == "/predict"] == [413, 413])
        assert server.stop() == 0


def test_tls(contents, tmp_path):
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, capture_output=True, check=False,
    ) if shutil.which("openssl") else None  # fmt: skip
    if done is None or done.returncode:
        pytest.skip("openssl is not installed")
    import http.client
    import ssl

    files = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    with serving(["--device", "cpu", *files], tmp_path) as server:
        port = server.address()[1]
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=60)
        server.wait_for(lambda: _status(connection) == 200)
        assert server.stop() == 0
    (tmp_path / "key.pem").write_text("no key")
    with serving(["--device", "cpu", *files], tmp_path) as server:
        assert server.process.wait(timeout=600) == 1
        assert "certificate or its key cannot be used" in server.errors


def _status(connection) -> int:
    try:
        connection.request("GET", "/ready")
        response = connection.getresponse()
        response.read()
        return response.status
    except OSError:
        connection.close()
        return 0


def test_form_in_a_browser(tmp_path):
    """The form of /docs works in a real browser, and a page of another origin cannot use the server."""
    if absent := missing():
        pytest.skip(f"the browser test of the server needs {', '.join(absent)}")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def send(driver) -> str:
        photo = str(EXAMPLES / "hazelnut_normal_1.jpg")
        driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(photo)
        driver.find_element(By.TAG_NAME, "button").click()
        WebDriverWait(driver, 300).until(lambda found: "/predict" in found.current_url)
        return driver.find_element(By.TAG_NAME, "body").text

    foreign = tmp_path / "page.html"
    with open_browser(tmp_path / "profile") as driver, serving(["--device", "cpu"], tmp_path) as server:
        address = "http://{}:{}".format(*server.ready())
        driver.get(f"{address}/docs")
        text = send(driver)
        assert "hazelnut_normal_1.jpg" in text
        assert '"heatmap"' in text
        form = f'<form method=post enctype=multipart/form-data action="{address}/predict">'
        foreign.write_text(f"{form}<input type=file name=images><button>x</button></form>")
        driver.get(foreign.as_uri())
        assert "other servers are refused" in send(driver)
