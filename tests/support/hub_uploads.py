"""What the hub on loopback does with uploads: accounts, new repositories, large files in parts, commits of lines of JSON.

It can be told to fail: with a status, by cutting a file off, by another commit in between.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

TOKEN = "hf_writer"
Answer = tuple[object, int, dict[str, str]]


@dataclass
class Uploads:
    """`accounts`: token -> name; a name may write under itself alone. `hidden`: repositories of others."""

    accounts: dict[str, str] = field(default_factory=lambda: {TOKEN: "Owner"})
    private: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    heads: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> bytes of large files that have arrived."""
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    chunk: int = 1 << 40
    """A large file of more bytes goes in parts of so many."""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """Part of a path -> statuses to answer with, one after the other, before it works."""
    cut: list[int | None] = field(default_factory=list)
    """After how many bytes of a large file the connection is closed, a file each; None lets it pass."""
    commits: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    """Message, paths that were added, paths that were removed."""
    sent: list[str] = field(default_factory=list)
    """SHA-256 of each large file as it began to arrive."""
    commit_statuses: list[int] = field(default_factory=list)
    """What commits are answered with, one after the other; 200 is done."""
    racing: bool = False
    """Somebody else commits before the next commit."""

    def account(self, headers: Mapping[str, str]) -> Answer:
        name = self.accounts.get((headers.get("Authorization") or "").removeprefix("Bearer "))
        return ({"name": name, "type": "user"}, 200, {}) if name else ({"error": "Invalid credentials"}, 401, {})

    def answer(self, hub: Any, method: str, path: str, headers: Mapping[str, str], stream: IO[bytes]) -> Answer | None:
        """None closes the connection."""
        size = int(headers.get("Content-Length") or 0)
        for part, statuses in self.statuses.items():
            if part in path and statuses:
                stream.read(size)
                return {"error": "told to fail"}, statuses.pop(0), {}
        if method == "PUT":
            return self._put(path, headers, stream)
        body = self._body(headers, stream)
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}, 200, {}
        name = self.accounts.get((headers.get("Authorization") or "").removeprefix("Bearer "))
        if path.startswith("/lfs/"):
            return self._whole(path, json.loads(body))
        if name is None:
            return {"error": "Invalid credentials"}, 401, {}
        if path == "/api/repos/create":
            return self._create(hub, name, json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(hub, json.loads(body))
        repo, _, action = path.removeprefix("/api/").rpartition("/")[0].rpartition("/")
        if repo.split("/")[1] != name:
            return {"error": "Forbidden"}, 403, {}
        if action == "preupload":
            return self._modes(hub, repo, json.loads(body))
        return self._commit(hub, repo, [json.loads(line) for line in body.splitlines()])

    def _create(self, hub: Any, name: str, asked: dict[str, Any]) -> Answer:
        owner = asked["organization"] or name
        repo = f"{asked.get('type') or 'model'}s/{owner}/{asked['name']}"
        if repo in hub.repos:
            return {"error": "You already created this repo"}, 409, {}
        if owner != name:
            return {"error": "Forbidden"}, 403, {}
        hub.repos[repo] = {".gitattributes": b"*.tar filter=lfs"}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.private.add(repo)
        return {"url": f"{hub.endpoint}/{repo.removeprefix('models/')}", "name": repo}, 200, {}

    def _modes(self, hub: Any, repo: str, asked: dict[str, Any]) -> Answer:
        files = [
            {"path": one["path"], "uploadMode": "lfs" if one["size"] > hub.large else "regular", "shouldIgnore": False}
            for one in asked["files"]
        ]
        return {"files": files}, 200, {}

    def _batch(self, hub: Any, asked: dict[str, Any]) -> Answer:
        objects = []
        for one in asked["objects"]:
            told = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.large:
                address = f"{hub.endpoint}/lfs/{one['oid']}"
                if one["size"] > self.chunk:
                    count = -(-one["size"] // self.chunk)
                    parts = {str(number): f"{address}/{number}" for number in range(1, count + 1)}
                    upload = {"href": address, "header": {"chunk_size": str(self.chunk), **parts}}
                else:
                    upload = {"href": f"{address}/1"}
                told |= {"actions": {"upload": upload}}
            objects.append(told)
        return {"transfer": "basic", "objects": objects}, 200, {}

    def _put(self, path: str, headers: Mapping[str, str], stream: IO[bytes]) -> Answer | None:
        _, _, oid, number = path.split("/")
        self.sent.append(oid)
        cut = self.cut.pop(0) if self.cut else None
        if cut is not None:
            stream.read(min(cut, int(headers.get("Content-Length") or 1) - 1))
            return None
        data = self._body(headers, stream)
        if hashlib.sha256(data).hexdigest() == oid:
            self.large[oid] = data
        self.parts.setdefault(oid, {})[int(number)] = data
        return {}, 200, {"ETag": f"part-{number}"}

    def _whole(self, path: str, asked: dict[str, Any]) -> Answer:
        """All parts of a large file are there."""
        oid = path.removeprefix("/lfs/")
        data = b"".join(self.parts[oid][one["partNumber"]] for one in asked["parts"])
        if hashlib.sha256(data).hexdigest() != oid or not all(one["etag"] for one in asked["parts"]):
            return {"error": "wrong parts"}, 400, {}
        self.large[oid] = data
        return {}, 200, {}

    def _commit(self, hub: Any, repo: str, lines: list[dict[str, Any]]) -> Answer:
        if repo not in hub.repos:
            return {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"}
        if self.commit_statuses and (status := self.commit_statuses.pop(0)) != 200:
            return {"error": "told to fail"}, status, {}
        [head] = [line["value"] for line in lines if line["key"] == "header"]
        if self.racing:
            self.racing = False
            self.heads[repo] = "beef" + "0" * 36
        parent = head.get("parentCommit")
        if parent is not None and parent != self.heads.get(repo, "c0ffee" + "0" * 34):
            return {"error": "A commit has happened since"}, 412, {}
        added, removed = [], []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
                added.append(value["path"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.large:
                    return {"error": "no such large file"}, 400, {}
                hub.repos[repo][value["path"]] = self.large[value["oid"]]
                added.append(value["path"])
            elif line["key"] == "deletedFile":
                del hub.repos[repo][value["path"]]
                removed.append(value["path"])
        self.commits.append((head["summary"], added, removed))
        oid = f"{len(self.commits):040x}"
        self.heads[repo] = oid
        address = f"{hub.endpoint}/{repo.removeprefix('models/')}/commit/{oid}"
        return {"commitUrl": address, "commitOid": oid, "pullRequestUrl": None}, 200, {}

    @staticmethod
    def _body(headers: Mapping[str, str], stream: IO[bytes]) -> bytes:
        if "chunked" not in (headers.get("Transfer-Encoding") or ""):
            return stream.read(int(headers.get("Content-Length") or 0))
        data = b""
        while size := int(stream.readline().split(b";")[0], 16):
            data += stream.read(size)
            stream.readline()
        stream.readline()
        return data
