"""
A Hub on 127.0.0.1 that speaks the part of the Hub's interface that pushing and loading need. `huggingface_hub` reads the
address when it is imported, so clients run in processes of their own: see `SmallHub.run`.

Like the real Hub, it keeps every commit: a repository is loaded by the name of a branch or by the id of a commit. Weights
are uploaded by the protocol of Git LFS, other files within the commit. Whoever sends a token has the account `me`, which may
write to its own repositories alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


Files = dict[str, bytes]
ACCOUNT = "me"
_REPOSITORY = r"(?P<name>[^/]+/[^/]+)"


@dataclass
class Repository:
    """
    One repository.

    Attributes:
        branches (`dict[str, str]`): the last commit of each branch.
        commits (`dict[str, dict[str, bytes]]`): the files by their paths, by the id of the commit.
    """

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)

    def files(self, revision: str = "main") -> Files:
        """The files of a branch or a commit."""
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class SmallHub:
    """
    The state of the Hub.

    Attributes:
        endpoint (`str`): its address, for `HF_ENDPOINT`.
        repositories (`dict[str, Repository]`): the repositories by their names.
        cards (`list[str]`): all model cards that were uploaded, in their order.
        objects (`dict[str, bytes]`): the files that were uploaded by Git LFS, by their SHA-256.
        uploaded_bytes (`int`): size of all files that were uploaded.
    """

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)
    objects: Files = field(default_factory=dict)
    uploaded_bytes: int = 0

    def files(self, name: str, revision: str = "main") -> Files:
        """The files of a repository."""
        return self.repositories[name].files(revision)

    def json(self, name: str, path: str) -> Any:
        """The content of a JSON file in a repository."""
        return json.loads(self.files(name)[path])

    def create(self, name: str) -> Repository:
        """Creates a repository unless it exists."""
        if name not in self.repositories:
            self.repositories[name] = Repository()
            self.commit(name, "main", {})
        return self.repositories[name]

    def commit(self, name: str, branch: str, files: Files, deleted: tuple[str, ...] = ()) -> str:
        """Adds a commit to a branch, and returns its id."""
        repository = self.repositories[name]
        before = repository.commits.get(repository.branches.get(branch, ""), {})
        after = {path: content for path, content in {**before, **files}.items() if path not in deleted}
        revision = hashlib.sha1(f"{name} {branch} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[revision] = after
        repository.branches[branch] = revision
        if "README.md" in files:
            self.cards.append(files["README.md"].decode())
        return revision

    def add_folder(self, name: str, folder: Path) -> None:
        """Publishes the files of a folder."""
        self.create(name)
        self.commit(name, "main", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})

    def run(self, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """
        Runs code in a new process that uses this Hub and has a cache and a working folder of its own.

        Raises:
            AssertionError: if the code fails; the message is what it wrote to stderr.
        """
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(folder / "cache"),
            "HF_TOKEN": "hf_token_of_the_test",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", textwrap.dedent(code)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        return result


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests to one [`SmallHub`]. Methods are named after the interface: `get_tree`, `post_commit`, ..."""

    hub: SmallHub
    protocol_version = "HTTP/1.1"

    # Requests by their method, and the pattern of their path.
    ROUTES = (
        ("POST", r"/api/repos/create", "post_repository"),
        ("POST", r"/api/validate-yaml", "post_card_check"),
        ("POST", rf"/api/models/{_REPOSITORY}/branch/(?P<revision>[^/]+)", "post_branch"),
        ("POST", rf"/api/models/{_REPOSITORY}/preupload/(?P<revision>[^/]+)", "post_upload_modes"),
        ("POST", rf"/api/models/{_REPOSITORY}/commit/(?P<revision>[^/]+)", "post_commit"),
        ("POST", rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", "post_lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "put_lfs_object"),
        ("GET", rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "get_file"),
        ("GET", rf"/api/models/{_REPOSITORY}/auth-check/write", "get_permission"),
        ("GET", rf"/api/models/{_REPOSITORY}/tree/(?P<revision>[^/]+)/?(?P<path>.*)", "get_tree"),
        ("GET", rf"/api/models/{_REPOSITORY}(/revision/(?P<revision>[^/]+))?", "get_repository"),
    )

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any = b"", status: int = 200, **headers: str) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def dispatch(self) -> None:
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        method = "GET" if self.command == "HEAD" else self.command
        for route, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if route == method and match:
                self.respond(getattr(self, name), match.groupdict())
                return
        self.answer(status=404)

    do_GET = do_HEAD = do_POST = do_PUT = dispatch  # noqa: N815

    def respond(self, respond: Any, found: dict[str, str | None]) -> None:
        if "name" not in found:
            respond(**found)
            return
        repository = self.hub.repositories.get(found.pop("name") or "")
        revision = found.pop("revision", None) or "main"
        known = {} if repository is None else {**repository.branches, **dict.fromkeys(repository.commits)}
        if repository is None:
            self.answer(status=404, X_Error_Code="RepoNotFound")
        elif self.command == "POST" and self.refuses(self.name_of(repository)):
            pass
        elif self.command != "POST" and revision not in known:
            self.answer(status=404, X_Error_Code="RevisionNotFound")
        else:
            respond(repository, revision, **found)

    def refuses(self, name: str) -> bool:
        """Whether the client may not write to a repository of this name, which it is then told."""
        if not self.headers.get("Authorization"):
            self.answer({"error": "Invalid username or password."}, 401)
            return True
        owner = name.partition("/")[0]
        if owner != ACCOUNT:
            self.answer(
                status=403, X_Error_Message=f'You don\'t have the rights to write under the namespace "{owner}"'
            )
            return True
        return False

    def name_of(self, repository: Repository) -> str:
        return next(name for name, each in self.hub.repositories.items() if each is repository)

    # ------------------------------------------------------------------------------------------------- uploading

    def post_repository(self) -> None:
        wanted = json.loads(self.content)
        name = f"{wanted.get('organization') or ACCOUNT}/{wanted['name']}"
        if self.refuses(name):
            return
        exists = name in self.hub.repositories
        self.hub.create(name)
        self.answer({"url": f"{self.hub.endpoint}/{name}", "name": name}, 409 if exists else 200)

    def get_permission(self, repository: Repository, revision: str) -> None:
        if not self.refuses(self.name_of(repository)):
            self.answer()

    def post_card_check(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def post_branch(self, repository: Repository, revision: str) -> None:
        exists = revision in repository.branches
        repository.branches.setdefault(revision, repository.branches["main"])
        self.answer(status=409 if exists else 200)

    def post_upload_modes(self, repository: Repository, revision: str) -> None:
        files = json.loads(self.content)["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
        self.answer({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})

    def post_lfs_batch(self, repository: Repository, revision: str) -> None:
        objects = json.loads(self.content)["objects"]
        for each in objects:
            if each["oid"] not in self.hub.objects:
                each["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}", "header": {}}}
        self.answer({"transfer": "basic", "objects": objects})

    def put_lfs_object(self, oid: str) -> None:
        assert hashlib.sha256(self.content).hexdigest() == oid
        self.hub.objects[oid] = self.content
        self.hub.uploaded_bytes += len(self.content)
        self.answer()

    def post_commit(self, repository: Repository, revision: str) -> None:
        files: Files = {}
        deleted = []
        for line in self.content.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.hub.uploaded_bytes += len(files[value["path"]])
            elif part["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif part["key"] == "deletedFile":
                deleted.append(value["path"])
        name = self.name_of(repository)
        commit = self.hub.commit(name, revision, files, tuple(deleted))
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        self.answer({"commitUrl": url, "commitOid": commit, "success": True})

    # ------------------------------------------------------------------------------------------------- downloading

    def get_repository(self, repository: Repository, revision: str) -> None:
        name, commit = self.name_of(repository), repository.branches.get(revision, revision)
        siblings = [{"rfilename": path} for path in repository.files(revision)]
        self.answer({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})

    def get_tree(self, repository: Repository, revision: str, path: str) -> None:
        found = {file: content for file, content in repository.files(revision).items() if file.startswith(path)}
        if path and not found:
            self.answer(status=404, X_Error_Code="EntryNotFound")
        else:
            self.answer([{"type": "file", "path": file, "size": len(found[file]), "oid": ""} for file in found])

    def get_file(self, repository: Repository, revision: str, path: str) -> None:
        commit = repository.branches.get(revision, revision)
        content = repository.files(revision).get(path)
        if content is None:
            self.answer(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        else:
            self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=commit)


@contextmanager
def serve() -> Iterator[SmallHub]:
    """An empty [`SmallHub`] that answers until the block ends."""
    hub = SmallHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
