"""A hub on loopback that keeps what is sent to it in memory and gives it back, as far as huggingface_hub asks."""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_loopback"


@dataclass
class Hub:
    """What it holds, and what it refuses.

    Attributes:
        files: repository -> path -> content.
        private: repository -> whether it is.
        refuses: the status that every request for writing is answered with.
        refuses_card: what it says against every card.
    """

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    refuses: int | None = None
    refuses_card: str | None = None


@contextmanager
def loopback_hub(patch: pytest.MonkeyPatch, cache: str) -> Iterator[Hub]:
    """Let huggingface_hub talk to one, with a token and an empty cache."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        place = unquote(urlsplit(self.path).path).strip("/").split("/")
        if place[:2] == ["api", "models"]:
            repository = "/".join(place[2:4])
            if repository not in self.hub.files:
                return self._answer(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
            return self._answer(200, {"id": repository, "private": self.hub.private[repository], "sha": "0" * 40})
        repository, name = "/".join(place[:2]), "/".join(place[4:])
        if repository not in self.hub.files:
            return self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        if name not in self.hub.files[repository]:
            return self._answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40})
        content = self.hub.files[repository][name]
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": "0" * 40})

    do_HEAD = do_GET  # noqa: N815  the name that http.server looks for

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
        if not body and self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        if self.hub.refuses is not None or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(self.hub.refuses or 401, {"error": "you may not write here"})
        place = urlsplit(self.path).path.strip("/").split("/")
        if place[1] == "validate-yaml":
            if self.hub.refuses_card is not None:
                return self._answer(400, {"errors": [{"message": self.hub.refuses_card}], "warnings": []})
            return self._answer(200, {"errors": [], "warnings": []})
        if place[1:] == ["repos", "create"]:
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            is_there = repository in self.hub.files
            self.hub.files.setdefault(repository, {})
            self.hub.private.setdefault(repository, asked.get("visibility") == "private")
            return self._answer(409 if is_there else 200, {"url": f"{self.hub.address}/{repository}"})
        repository = "/".join(place[2:4])
        if place[4] == "preupload":
            wanted = [entry["path"] for entry in json.loads(body)["files"]]
            return self._answer(
                200, {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]}
            )
        assert place[4] == "commit"
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = f"{self.hub.address}/{repository}/commit/{'0' * 40}"
        return self._answer(200, {"commitUrl": commit, "commitOid": "0" * 40})

    def _chunk(self) -> bytes:
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
