"""A local server with a small part of the Hub's HTTP interface: create repositories, commit files, download files.

It does not implement tokens, limits or large-file storage. It tests the requests of this package, not the Hub.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


COMMIT = "c" * 40


class HubStub:
    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.refuse = False
        self.endpoint = ""


def _handler(hub: HubStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, content=b"", status: int = 200, **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            path = urlparse(self.path).path
            content = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if hub.refuse:
                self.answer({"error": "You have no rights here"}, 403)
            elif path == "/api/repos/create":
                asked = json.loads(content)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                exists = name in hub.repositories
                hub.repositories.setdefault(name, {})
                hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
                self.answer({"url": f"{hub.endpoint}/{name}", "id": name}, 409 if exists else 200)
            elif path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = json.loads(content)["files"]
                answers = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                self.answer({"files": answers})
            elif "/commit/" in path:
                name = path.removeprefix("/api/models/").split("/commit/")[0]
                for line in content.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        hub.repositories[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                    elif entry["key"] == "deletedFile":
                        del hub.repositories[name][entry["value"]["path"]]
                    elif entry["key"] == "header":
                        hub.commits.append(entry["value"]["summary"])
                self.answer({"commitUrl": f"{hub.endpoint}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
            else:
                self.answer({"error": path}, 404)

        def do_GET(self):
            path = unquote(urlparse(self.path).path)
            if path.endswith("/auth-check/write"):
                self.answer({}, 403 if hub.refuse else 200)
            elif path.startswith("/api/models/"):
                name = path.removeprefix("/api/models/").split("/tree/")[0].split("/revision/")[0]
                files = hub.repositories.get(name)
                if files is None:
                    self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                elif "/tree/" in path:
                    self.answer([{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in files.items()])
                else:
                    self.answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files], "tags": []})
            else:
                self.answer_file(path)

        def answer_file(self, path: str):
            name, _, rest = path[1:].partition("/resolve/")
            content = hub.repositories.get(name, {}).get(rest.partition("/")[2])
            if content is None:
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    return Handler


@contextlib.contextmanager
def running_hub() -> Iterator[HubStub]:
    """Run the server on a free port of this machine. Other processes use it with HF_ENDPOINT set to `endpoint`."""
    hub = HubStub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
