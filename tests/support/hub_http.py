"""The HTTP side of the loopback Hub: the routes that the real client asks for."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.hub_store import LARGE, TOKEN, Commit, Hub, Repository, Request


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: the second would wait until the client has acknowledged the first.
    disable_nagle_algorithm = True
    hub: Hub
    cut_after: int | None = None
    size_error: int = 0

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815 - http.server's names

    def _handle(self) -> None:
        self.cut_after, self.size_error = None, 0
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers)
        self.hub.requests.append(request)
        for i, (pattern, fault, times) in enumerate(self.hub.faults):
            if pattern.search(str(request)) and times > 0:
                self.hub.faults[i] = (pattern, fault, times - 1)
                if fault(self):
                    return
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        for method, route, handle in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(route, url.path)):
                handle(self, *(unquote(part) if part is not None else "" for part in match.groups()))
                return
        self.error(404, f"no such route: {request}")

    # What every answer is made with.

    def answer(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        all_headers = {"content-length": str(len(body) + self.size_error), **(headers or {})}
        for name, value in all_headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if self.cut_after is None else body[: self.cut_after])
        if self.cut_after is not None or self.size_error:
            self.close_connection = True

    def json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"content-type": "application/json", **(headers or {})})

    def error(self, code: int, message: str, name: str = "") -> None:
        headers = {"x-error-message": message, **({"x-error-code": name} if name else {})}
        self.answer(code, json.dumps({"error": message}).encode(), headers)

    @property
    def logged_in(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def find(self, kind: str, name: str, revision: str = "main") -> tuple[Repository, Commit] | None:
        """Answers itself where there is nothing, or nothing for this client."""
        token = self.headers.get("authorization")
        if token is not None and not self.logged_in:
            self.error(401, "Invalid credentials in Authorization header")
            return None
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and not self.logged_in):
            self.error(404 if self.logged_in else 401, "Repository not found", "RepoNotFound")
            return None
        if repository.gated:
            self.error(403, f"Access to {name} is restricted", "GatedRepo")
            return None
        commit = repository.at(revision)
        if commit is None:
            self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repository, commit

    # Reading.

    def info(self, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind.removesuffix("s"), name, revision or "main"):
            repository, commit = found
            files: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
            if "blobs" in self.query and self.hub.sizes_in_info:
                for file in files:
                    entry = tree_entry(file["rfilename"], commit.files[file["rfilename"]])
                    file |= {"size": entry["size"], "blobId": entry["oid"]}
                    if lfs := entry.get("lfs"):
                        file["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            self.json({"id": name, "sha": commit.sha, "private": repository.private, "tags": [], "siblings": files})

    def tree(self, kind: str, name: str, revision: str, folder: str) -> None:
        if found := self.find(kind.removesuffix("s"), name, revision):
            commit = found[1]
            entries = [tree_entry(path, commit.files[path]) for path in sorted(commit.files)]
            if folder:
                entries = [entry for entry in entries if entry["path"].startswith(folder + "/")]
                if not entries:
                    self.error(404, f"{folder} does not exist", "EntryNotFound")
                    return
            recursive = self.query.get("recursive", "true").lower() == "true"
            if not recursive:
                entries = top_of(entries, folder)
            start = int(self.query.get("cursor", 0))
            headers = {}
            if start + self.hub.page < len(entries):
                path, _, _ = self.path.partition("?")
                query = f"recursive={recursive}&expand=False&cursor={start + self.hub.page}"
                headers["link"] = f'<{self.hub.url}{path}?{query}>; rel="next"'
            self.json(entries[start : start + self.hub.page], headers)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind.removesuffix("s"), name, revision):
            paths = parse_qs(self.body.decode()).get("paths") or json.loads(self.body)["paths"]
            files = found[1].files
            self.json([tree_entry(path, files[path]) for path in paths if path in files])

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        if found := self.find("dataset" if kind else "model", name, revision):
            commit = found[1]
            if path not in commit.files:
                self.error(404, "Entry not found", "EntryNotFound")
                return
            content = commit.files[path]
            headers = {"x-repo-commit": commit.sha, "accept-ranges": "bytes"}
            if path.endswith(LARGE):
                oid = hashlib.sha256(content).hexdigest()
                self.hub.large[oid] = content
                headers |= {
                    "x-linked-etag": f'"{oid}"',
                    "x-linked-size": str(len(content) + self.size_error),
                    # Another host, as the Hub's own: the client must not send it its token.
                    "location": f"http://localhost:{self.hub.port}/large/{oid}",
                }
                self.size_error = 0
                self.answer(302, b"", headers)
            else:
                self.content(content, headers | {"etag": f'"{git_oid(content)}"'})

    def large(self, oid: str) -> None:
        self.content(self.hub.large[oid], {"etag": f'"{oid}"'})

    def content(self, content: bytes, headers: dict[str, str]) -> None:
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "")):
            start = int(wanted[1])
            headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], headers)
        else:
            self.answer(200, content, headers)

    # Writing.

    def who_am_i(self) -> None:
        if self.logged_in:
            self.json({"name": "ann", "type": "user", "orgs": []})
        else:
            self.error(401, "Invalid username or password.")

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'ann'}/{wanted['name']}"
        kind = wanted.get("type", "model")
        if not self.logged_in:
            self.error(401, "Invalid username or password.")
        elif (kind, name) in self.hub.repositories:
            self.error(409, "You already created this repo")
        else:
            private = wanted.get("visibility") == "private" or wanted.get("private") is True
            self.hub.repository(name, kind, private)
            self.json({"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}", "name": name})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        warnings = [] if content.startswith("---\n") else [{"message": "empty or missing yaml metadata in repo card"}]
        self.json({"warnings": warnings, "errors": []})

    def writable(self, kind: str, name: str) -> Repository | None:
        if found := self.find(kind, name):
            if self.logged_in:
                return found[0]
            self.error(403, "You don't have the rights to create a model under this namespace")
        return None

    def preupload(self, kind: str, name: str, _: str) -> None:
        if repository := self.writable(kind.removesuffix("s"), name):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": local_oid(file["path"], repository.files.get(file["path"])),
                }
                for file in json.loads(self.body)["files"]
            ]
            self.json({"files": files})

    def lfs_batch(self, kind: str, name: str) -> None:
        if self.writable("dataset" if kind else "model", name):
            objects = [
                {"oid": wanted["oid"], "size": wanted["size"]}
                | (
                    {}
                    if wanted["oid"] in self.hub.large
                    else {"actions": {"upload": {"href": f"{self.hub.url}/upload/{wanted['oid']}"}}}
                )
                for wanted in json.loads(self.body)["objects"]
            ]
            self.json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.error(400, "the object's hash is not its name")
        else:
            self.hub.large[oid] = self.body
            self.answer(200)

    def commit(self, kind: str, name: str, _: str) -> None:
        repository = self.writable(kind.removesuffix("s"), name)
        if repository is None:
            return
        if self.hub.before_commit is not None:
            quicker, self.hub.before_commit = self.hub.before_commit, None
            quicker(repository)
        header: dict[str, str] = {}
        files: dict[str, bytes | None] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    self.error(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                    return
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                files[value["path"]] = None
        if header.get("parentCommit", repository.refs["main"]) != repository.refs["main"]:
            self.error(412, "A commit has happened since. Please refresh and try again.")
            return
        sha = repository.commit(files, header["summary"])
        self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})


_KIND, _NAME, _REVISION = r"(models|datasets)", r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", Handler.who_am_i),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", f"/api/{_KIND}/{_NAME}(?:/revision/{_REVISION})?", Handler.info),
    ("GET", f"/api/{_KIND}/{_NAME}/tree/{_REVISION}(?:/(.+))?", Handler.tree),
    ("POST", f"/api/{_KIND}/{_NAME}/paths-info/{_REVISION}", Handler.paths_info),
    ("POST", f"/api/{_KIND}/{_NAME}/preupload/{_REVISION}", Handler.preupload),
    ("POST", f"/api/{_KIND}/{_NAME}/commit/{_REVISION}", Handler.commit),
    ("POST", rf"/(datasets/)?{_NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("GET", f"/(datasets/)?{_NAME}/resolve/{_REVISION}/(.+)", Handler.resolve),
    ("GET", r"/large/(\w+)", Handler.large),
    ("PUT", r"/upload/(\w+)", Handler.upload),
]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def local_oid(path: str, content: bytes | None) -> str | None:
    if content is None:
        return None
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git_oid(content)


def top_of(entries: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Of a folder's tree its own files and folders alone."""
    below = len(folder) + 1 if folder else 0
    folders = {entry["path"][: entry["path"].index("/", below)] for entry in entries if "/" in entry["path"][below:]}
    files = [entry for entry in entries if "/" not in entry["path"][below:]]
    return [*files, *({"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders))]


def tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
