"""The Hugging Face Hub, and whatever else speaks its protocol."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from threading import Lock
from typing import NoReturn
from urllib.parse import quote

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, SecretStr

from blocks.cleaning import cleaned
from blocks.errors import Refused, Unavailable
from blocks.fields import BareEndpoint, Secret
from blocks.http.origins import Address, Reach
from blocks.http.waits import told_to_wait
from blocks.http.wire import Ask, Reply, answer, fetched
from blocks.hubs import answers
from blocks.ports.hub import Model, ModelFile

ANSWER_AT_MOST_BYTES = 32 << 20
PAGES_AT_MOST = 2000
LINKS_AT_MOST = 1000
SIBLINGS_CUT_AT = 1000
"""So many files, or a few more, the hub names in a model's description; of larger models it leaves out the rest."""
RETRIABLE = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
NO_TREE = {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
NO_HEAD = {HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}

_LINK = re.compile(r'<([^<>]*)>((?:\s*;\s*[\w*.-]+(?:\s*=\s*(?:"[^"]*"|[^\s",;]*))?)*)')
"""As of RFC 8288: an address, and what is said of it."""
_RELATION = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^\s",;]*))', re.IGNORECASE)

_Place = tuple[str, SecretStr | None, str, str, str]
_links: dict[_Place, tuple[Address, Reach | None]] = {}
"""Where the content of a file was last found, a signed address that expires, and from where somebody led there.

By endpoint, token, repository, commit and path: asked for each part, the hub would redirect thousands of times, and
limit the rate.
"""
_links_lock = Lock()


class HuggingFaceHub(Block):
    """Where models come from: the Hugging Face Hub, or a server that speaks its protocol."""

    _block_type_name = "Hugging Face Hub"
    _block_type_slug = "hugging-face-hub"
    model_config = ConfigDict(hide_input_in_errors=True)

    endpoint: BareEndpoint = Field(
        default="https://huggingface.co",
        title="Endpoint",
        description="The hub's address, without a slash at the end.",
    )
    token: Secret = Field(
        default=None,
        title="Token",
        description="A token with read access, needed only for private and gated models.",
    )
    content_hosts: list[str] = Field(
        default_factory=list,
        title="Content hosts",
        description="Hosts that the hub may redirect to though they are on a private network and the hub is not.",
    )

    stall_seconds: float = Field(
        default=20,
        gt=0,
        title="Stall (seconds)",
        description="A connection that brings nearly nothing for this long is given up, and another one is opened.",
    )

    def look_up(self, repo: str, revision: str) -> Model:
        what = f"{cleaned(repo)} at {cleaned(revision)}"
        try:
            answers.check_asked(repo, revision)
        except answers.NotBelievedError as error:
            raise Refused(f"{what} {error}") from None
        home = f"/api/models/{repo}"
        said = self._json(f"{home}/revision/{quote(revision, safe='')}", what, repo)
        with self._believed(what):
            about = answers.description(said, revision)
        files = self._files(home, what, repo, about)
        model = Model(repo=repo, commit=about.commit, files=files, license=about.license)
        if about.is_gated and files:
            self._check_right_to_read(model, max(files, key=lambda file: file.size_bytes))
        return model

    def read(self, model: Model, file: ModelFile) -> Iterator[bytes]:
        """In the pieces that the network brings, and no further than the size that was promised."""
        ask = self._ask(_path(model, file), f"{file.path} of {model.repo} at {model.commit}")
        left = file.size_bytes
        with fetched(ask) as reply:
            self._check(reply, model.repo)
            for piece in reply.pieces():
                left -= len(piece)
                if left < 0:
                    break
                yield piece
        if left:
            is_more = left < 0
            raise (Refused if is_more else Unavailable)(
                f"{ask.address.origin} sends {'more' if is_more else 'fewer'} than the {file.size_bytes} bytes of "
                f"{ask.what} that it promised; {'use another hub' if is_more else 'try again later'}"
            )

    def read_part(self, model: Model, file: ModelFile, start: int, buffer: memoryview) -> None:
        """Files in Xet storage come the same way: to whoever does not speak its protocol, the hub sends plain HTTP."""
        # no range has no byte
        headers = {"Range": f"bytes={start}-{start + len(buffer) - 1}"} if len(buffer) else {}
        what = f"{file.path} of {model.repo} at {model.commit}, bytes {start} to {start + len(buffer)}"
        ask = replace(self._ask(_path(model, file), what), headers=headers)
        place = (self.endpoint, self.token, model.repo, model.commit, file.path)
        if (link := _links.get(place)) is not None:
            with self._kept_while_it_serves(place), answer(self._along(ask, *link)) as reply:
                if reply.is_good:
                    reply.fill(start, buffer)
                    return
                if _may_pass(reply.status):
                    self._raise(reply, model.repo)
            self._forget(place)  # the signature has expired, or the content has moved: the hub knows the new address
        with fetched(ask) as reply:
            self._check(reply, model.repo)
            reply.fill(start, buffer)
        if reply.address.origin != ask.address.origin:
            with _links_lock:
                while len(_links) >= LINKS_AT_MOST:
                    _links.pop(next(iter(_links)))
                _links[place] = reply.address, reply.ask.led_from

    @contextmanager
    def _kept_while_it_serves(self, place: _Place) -> Iterator[None]:
        """An address at which anything goes wrong is asked for anew the next time: its host may have died."""
        try:
            yield
        except (Refused, Unavailable):
            self._forget(place)
            raise

    def _forget(self, place: _Place) -> None:
        with _links_lock:
            _links.pop(place, None)

    def _files(self, home: str, what: str, repo: str, about: answers.Description) -> tuple[ModelFile, ...]:
        """All of them, page by page. A model's description names them too, but of many not all."""
        found = self._tree(home, what, repo, about.commit)
        with self._believed(what):
            files = answers.together(self._siblings(home, what, repo, about.commit) if found is None else found)
            if missing := about.named - {file.path for file in files}:
                raise answers.NotBelievedError(
                    f"lists {len(files)} files and leaves out {len(missing)} that it names elsewhere, such as "
                    f"{cleaned(min(missing), 100)}"
                )
        return files

    def _tree(self, home: str, what: str, repo: str, commit: str) -> list[ModelFile] | None:
        """None where this hub has none."""
        files, asked = list[ModelFile](), set[tuple[str, str]]()
        seen, opened = {""}, set[str]()
        while unopened := seen - opened:
            folder = min(unopened)
            opened.add(folder)
            path = f"{home}/tree/{commit}" + (f"/{quote(folder, safe='')}" if folder else "")
            query: str | None = "recursive=true"
            while query is not None:
                if (folder, query) in asked or len(asked) >= PAGES_AT_MOST:
                    raise Refused(f"{self.endpoint} lists the files of {what} without an end; ask whoever runs it")
                asked.add((folder, query))
                with fetched(self._ask(f"{path}?{query}", f"the files of {what}")) as reply:
                    if reply.status in NO_TREE and len(asked) == 1:
                        return None
                    self._check(reply, repo)
                    said = self._parsed(reply)
                with self._believed(what):
                    page, query = answers.listing(said), _next_query(reply.headers)
                    files += page.files
                seen |= page.folders
                # Git has no empty folder: one without a file below it was not opened, whatever was asked for.
                opened |= {parent for file in page.files for parent in answers.folders_above(file.path)}
                if len(files) > answers.MOST_FILES:
                    raise Refused(f"{self.endpoint} lists more than {answers.MOST_FILES} files of {what}")
        return files

    def _siblings(self, home: str, what: str, repo: str, commit: str) -> tuple[ModelFile, ...]:
        said = self._json(f"{home}/revision/{commit}?blobs=true", f"the files of {what}", repo)
        found = answers.siblings(said)
        if len(found) >= SIBLINGS_CUT_AT:
            raise answers.NotBelievedError(
                f"has no list of files but the description's, with {len(found)} of them, where more may be missing"
            )
        return found

    def _check_right_to_read(self, model: Model, file: ModelFile) -> None:
        """Everybody may see a gated model's description; only the answer to a download says who may read it."""
        what = f"{file.path} of {model.repo} at {model.commit}"
        with answer(replace(self._ask(_path(model, file), what), method="HEAD")) as reply:
            if not reply.is_redirect and reply.status not in NO_HEAD:
                self._check(reply, model.repo)

    def _json(self, path: str, what: str, repo: str) -> object:
        with fetched(self._ask(path, what)) as reply:
            self._check(reply, repo)
            return self._parsed(reply)

    def _parsed(self, reply: Reply) -> object:
        body, may_be_cut = reply.body(ANSWER_AT_MOST_BYTES), reply.may_be_cut
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            if may_be_cut:
                raise Unavailable(
                    f"{reply.address.origin} answers {reply.ask.what} without a length, and with what is no JSON, or "
                    f"broke off; try again later, and if that stays so, correct the endpoint"
                ) from None
            raise Refused(
                f"{reply.address.origin} answers {reply.ask.what} with something else than JSON, so it is no hub; "
                f"correct the endpoint"
            ) from None

    def _ask(self, path: str, what: str) -> Ask:
        """Without a token of its own the block sends none, whatever this machine has stored."""
        token = self.token.get_secret_value() if self.token else ""
        try:
            address = Address.of(f"{self.endpoint}{path}")
        except ValueError as error:
            raise Refused(f"the hub was not asked for {what}, for its endpoint is {error}; correct the block") from None
        return Ask(
            what=what,
            address=address,
            secrets={"Authorization": f"Bearer {token}"} if token else {},
            stall_seconds=self.stall_seconds,
            trusted_hosts=tuple(host.lower() for host in self.content_hosts),
        )

    def _along(self, ask: Ask, address: Address, led_from: Reach | None) -> Ask:
        return replace(ask, address=address, led_from=led_from, secrets={})

    def _check(self, reply: Reply, repo: str) -> None:
        if not reply.is_good:
            self._raise(reply, repo)

    @contextmanager
    def _believed(self, what: str) -> Iterator[None]:
        try:
            yield
        except answers.NotBelievedError as error:
            raise Refused(
                f"{self.endpoint} cannot be believed about {what}: it {error}; ask whoever runs it, or use another hub"
            ) from None

    def _raise(self, reply: Reply, repo: str) -> NoReturn:
        """Status first, then the hub's own codes."""
        status, code, said = reply.status, reply.headers.get("x-error-code", ""), _said(reply)
        answered = f"{reply.address.origin} answered {status} for {reply.ask.what}{said}"
        if _may_pass(status):
            seconds = told_to_wait(reply.headers, datetime.now(UTC))
            wish = f", after {seconds:.0f} s" if seconds else ""
            raise Unavailable(f"{answered}; try again later{wish}", after_seconds=seconds)
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise Unavailable(
                f"{answered}: it has fewer bytes than the hub promised; try again later, or ask its owner"
            )
        if reply.address.origin != Address.of(self.endpoint).origin:
            raise Refused(f"{answered}; the hub sent us there: see that your network lets {reply.address.host} pass")
        if code == "GatedRepo":
            raise Refused(
                f"{repo} is gated: accept its licence at {self.endpoint}/{repo} with the account of the token{said}"
            )
        if code in ("RevisionNotFound", "EntryNotFound"):
            raise Refused(f"{self.endpoint} has no {reply.ask.what}; correct the revision or the file's name")
        if code == "RepoNotFound" or status == HTTPStatus.NOT_FOUND:
            raise Refused(
                f"{self.endpoint} has no {repo}, or not that of it, or this token may not read it ({status} for "
                f"{reply.ask.what}{said}); correct the name, or set a token"
            )
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise Refused(f"{answered}; check the name, and the token and its rights")
        raise Refused(f"{answered}; ask whoever runs it")


def _path(model: Model, file: ModelFile) -> str:
    return f"/{model.repo}/resolve/{model.commit}/{quote(file.path)}"


def _may_pass(status: int) -> bool:
    return status in RETRIABLE or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED)


def _next_query(headers: Mapping[str, str]) -> str | None:
    """Of the next page, which is asked of the hub itself: mirrors hand on addresses of the hub that they mirror."""
    for link in _LINK.finditer(headers.get("link", "")):
        relation = _RELATION.search(link[2])
        if relation is not None and "next" in (relation[1] or relation[2] or "").lower().split():
            if query := link[1].partition("?")[2].partition("#")[0]:
                return query
            raise answers.NotBelievedError("says that there are more files, and not by which query they are had")
    return None


def _said(reply: Reply) -> str:
    """What the hub adds in words."""
    said = reply.headers.get("x-error-message") or ""
    return f" ({cleaned(said, 200)})" if said else ""
