"""The Hugging Face Hub, and whatever else speaks its protocol."""

from collections.abc import Iterator
from contextlib import contextmanager

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

TIMEOUT_SECONDS = 60
RETRIABLE = {408, 429}


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
        except httpx.TransportError as error:
            raise Unavailable(f"{self.endpoint} did not send {what}: {error!r}; check the connection to it") from error
        except OfflineModeIsEnabled as error:
            raise Refused(f"{self.endpoint} was not asked for {what}: HF_HUB_OFFLINE is set; unset it") from error
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
                return Unavailable(f"{self.endpoint} answered {status} for {what}; try again later")
            case _:
                return Refused(f"{self.endpoint} answered {status} for {what}: {error}; check the token and its rights")
