"""The Hugging Face Hub, and whatever else speaks its protocol."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from threading import Lock
from urllib.parse import urljoin, urlsplit

import httpx
from huggingface_hub import HfApi, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.ports import Model, ModelFile
from blocks.ranges import Answer, read_range

TIMEOUT_SECONDS = 60
RETRIABLE = {408, 429}
REDIRECTS_AT_MOST = 5
LINKS_AT_MOST = 1000

_links: dict[tuple[str, str, str, str], str] = {}
"""Where the content of a file was last found, by endpoint, repository, commit and path: a signed address that expires.

Asked for each part, the hub would redirect thousands of times, and limit the rate.
"""
_links_lock = Lock()


class HuggingFaceHub(Block):
    """Where models come from: the Hugging Face Hub, or a server that speaks its protocol."""

    _block_type_name = "Hugging Face Hub"
    _block_type_slug = "hugging-face-hub"

    endpoint: str = Field(
        default="https://huggingface.co",
        pattern=r"^https?://.*[^/]$",
        title="Endpoint",
        description="The hub's address, without a slash at the end.",
    )
    token: SecretStr | None = Field(
        default=None,
        title="Token",
        description="A token with read access, needed only for private and gated models.",
    )

    stall_seconds: float = Field(
        default=20,
        gt=0,
        title="Stall (seconds)",
        description="A connection that brings nearly nothing for this long is given up, and another one is opened.",
    )

    def look_up(self, repo: str, revision: str) -> Model:
        with self._translated(f"{repo} at {revision}", repo):
            api = HfApi(endpoint=self.endpoint, token=self._token)
            info = api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
            if info.gated:
                # Everybody may see a gated model's description; only this asks whether its files may be read.
                api.auth_check(repo)
        if info.sha is None:
            raise Refused(f"{self.endpoint} names no commit for {repo} at {revision}; it cannot be pinned")
        return Model(
            repo=repo,
            commit=info.sha,
            files=tuple(self._file(repo, sibling) for sibling in info.siblings or ()),
            license=", ".join(tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
            or None,
        )

    def read(self, model: Model, file: ModelFile) -> Iterator[bytes]:
        """In the pieces that the network brings: collecting larger ones doubles the CPU time."""
        url = hf_hub_url(model.repo, file.path, revision=model.commit, endpoint=self.endpoint)
        headers = {"Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        # The session follows redirects, and leaves the token out once they lead to another host.
        with (
            self._translated(f"{file.path} of {model.repo} at {model.commit}", model.repo),
            get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as response,
        ):
            hf_raise_for_status(response)
            yield from response.iter_bytes()

    def read_part(self, model: Model, file: ModelFile, start: int, buffer: memoryview) -> None:
        """Files in Xet storage come the same way: to whoever does not speak its protocol, the hub sends plain HTTP."""
        what = f"{file.path} of {model.repo} at {model.commit}, bytes {start} to {start + len(buffer)}"
        place = (self.endpoint, model.repo, model.commit, file.path)
        with self._translated(what, model.repo):
            if (link := _links.get(place)) is not None:
                answer = read_range(link, {}, start, buffer, stall_seconds=self.stall_seconds)
                if answer.is_filled:
                    return
                if answer.status in RETRIABLE or answer.status >= httpx.codes.INTERNAL_SERVER_ERROR:
                    _raise(answer, link)
                with _links_lock:  # the signature has expired, or the content has moved: the hub knows the new address
                    _links.pop(place, None)
            url = hf_hub_url(model.repo, file.path, revision=model.commit, endpoint=self.endpoint)
            for _ in range(REDIRECTS_AT_MOST):
                is_hub = urlsplit(url).netloc == urlsplit(self.endpoint).netloc
                headers = {"Authorization": f"Bearer {self._token}"} if is_hub and self._token else {}
                answer = read_range(url, headers, start, buffer, stall_seconds=self.stall_seconds)
                if answer.is_filled:
                    if not is_hub:
                        with _links_lock:
                            while len(_links) >= LINKS_AT_MOST:
                                _links.pop(next(iter(_links)))
                            _links[place] = url
                    return
                if not (httpx.codes.is_redirect(answer.status) and "location" in answer.headers):
                    _raise(answer, url)
                url = urljoin(url, answer.headers["location"])
        raise Refused(f"{self.endpoint} redirects {what} for ever; check the hub")

    @property
    def _token(self) -> str | bool:
        """False where there is none: otherwise the library sends any hub the token it finds on this machine."""
        return self.token.get_secret_value() if self.token else False

    def _file(self, repo: str, sibling: RepoSibling) -> ModelFile:
        if sibling.size is None or sibling.blob_id is None:
            raise Refused(f"{self.endpoint} gives no size or hash for {sibling.rfilename} of {repo}; use another hub")
        return ModelFile(
            path=sibling.rfilename,
            size_bytes=sibling.size,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            git_sha1=sibling.blob_id,
        )

    @contextmanager
    def _translated(self, what: str, repo: str) -> Iterator[None]:
        try:
            yield
        except HfHubHTTPError as error:
            raise self._translation(error, what, repo) from error
        except OfflineModeIsEnabled as error:
            raise Refused(f"{self.endpoint} was not asked for {what}: HF_HUB_OFFLINE is set; unset it") from error
        except (httpx.TransportError, OSError, HTTPException) as error:
            raise Unavailable(f"{self.endpoint} did not send {what}: {error!r}; check the connection to it") from error
        except ValueError as error:
            raise Refused(f"{self.endpoint} cannot be asked for {what}, or is no hub: {error}") from error

    def _translation(self, error: HfHubHTTPError, what: str, repo: str) -> SkyferryError:
        status = error.response.status_code
        match error:
            case GatedRepoError():
                return Refused(
                    f"{repo} is gated: accept its licence at {self.endpoint}/{repo} with the account of the token"
                )
            case RepositoryNotFoundError():
                return Refused(
                    f"{self.endpoint} has no {repo}, or this token may not read it; correct the name or set a token"
                )
            case RevisionNotFoundError() | EntryNotFoundError():
                return Refused(f"{self.endpoint} has no {what}; correct the revision or the file's name")
            case _ if status in RETRIABLE or status >= httpx.codes.INTERNAL_SERVER_ERROR:
                after = error.response.headers.get("retry-after", "")
                return Unavailable(
                    f"{self.endpoint} answered {status} for {what}; try again later",
                    after_seconds=float(after) if after.isdigit() else None,
                )
            case _:
                return Refused(f"{self.endpoint} answered {status} for {what}: {error}; check the token and its rights")


def _raise(answer: Answer, url: str) -> None:
    """What the hub's own library makes of an answer, which knows the hub's codes."""
    # The path alone: the address of content is signed, and whoever has it may read.
    request = httpx.Request("GET", urlsplit(url)._replace(query="").geturl())
    hf_raise_for_status(httpx.Response(answer.status, headers=dict(answer.headers), request=request))
    raise ValueError(f"it answered {answer.status} for {request.url}")
