"""Files of a hub repository: which a release has, getting them through huggingface_hub and its cache, sending some."""

import re
from pathlib import Path

from dcae_core.errors import DcaeError, DownloadError, UploadError, UsageError, explain_network_failure, http_status
from dcae_core.zoo import AutoencoderEntry, DenoiserEntry, embedded_directory

CONFIG_NAME = "config.json"
WEIGHTS_STEM = "model"
DIFFUSERS_WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_hub_id(name: str) -> bool:
    """Whether a name is `organisation/name` and no path; one below a folder that exists is a mistyped path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).parent.is_dir()


def neither_here_nor_there(name: str, refusal: DcaeError) -> DcaeError:
    """The hub's refusal of a name that may as well have been meant as a place on this disk."""
    return type(refusal)(f"there is no directory {name} here; {refusal}")


def fetch_files(repository: str, files: list[str], revision: str | None = None, *, offline: bool = False) -> Path:
    """The local directory that holds all `files` of a hub repository, downloaded where they are not cached.

    `revision`: branch, tag or commit; by default the main branch. `offline`: look into the cache only.

    Raises:
        DownloadError: a file is not cached and cannot be downloaded.
        UsageError: the hub has no such repository or revision, or no such file in it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    directory = None
    for file in files:
        try:
            if not offline and try_to_load_from_cache(repository, file, revision=revision) is None:
                # Asked once: hf_hub_download would wait half a minute for a network that is not there.
                get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
            local = hf_hub_download(repository, file, revision=revision, local_files_only=offline)
        except GatedRepoError as error:
            raise DownloadError(f"{repository} asks for a login: run `hf auth login`, then try again") from error
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            private = ", or it is private (401): run `hf auth login`" if http_status(error) == 401 else ""
            raise UsageError(
                f"the hub has no repository {repository!r} at revision {revision or 'main'}{private}"
            ) from error
        except LocalEntryNotFoundError as error:
            raise DownloadError(_how_to_place(repository, file, HF_HUB_CACHE, error)) from error
        except EntryNotFoundError as error:
            raise UsageError(f"hub repository {repository} has no file {file}") from error
        except Exception as error:
            # Whatever the network stack raises (it changes with huggingface_hub's HTTP library) means the same here.
            raise DownloadError(_how_to_place(repository, file, HF_HUB_CACHE, error)) from error
        directory = Path(local).parents[len(Path(file).parents) - 1]
    assert directory is not None
    return directory


def is_cached(repository: str, files: list[str]) -> bool:
    """Whether all of `files` lie in the cache."""
    try:
        fetch_files(repository, files, offline=True)
    except (DownloadError, UsageError):
        return False
    return True


def repositories_of(entry: AutoencoderEntry | DenoiserEntry) -> list[tuple[str, list[str]]]:
    """Where a release lies, the original layout first, and the files of it that are needed."""
    in_diffusers_layout = entry.diffusers_hub_id if isinstance(entry, AutoencoderEntry) else None
    places = ((entry.hub_id, f"{WEIGHTS_STEM}.safetensors"), (in_diffusers_layout, DIFFUSERS_WEIGHTS_NAME))
    return [(repository, [CONFIG_NAME, weights]) for repository, weights in places if repository]


def is_release_cached(entry: AutoencoderEntry | DenoiserEntry) -> bool:
    """Whether a model of the zoo can be loaded without a network: from the cache or from this package."""
    if embedded_directory(entry.name).is_dir():
        return True
    return any(is_cached(repository, files) for repository, files in repositories_of(entry))


def declared_sha256(path: Path) -> dict[Path, str]:
    """The SHA-256 that the hub declared for a cached large file: the cache names the blob behind the link by it."""
    name = path.resolve().name
    return {path: name} if _SHA256.fullmatch(name) else {}


def require_repository_name(name: str) -> None:
    """UsageError where this cannot be the name of a repository, with its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name!r} is no name for the hub: letters, digits, -, _ and . make one") from error
    if "/" not in name:
        raise UsageError(f"{name!r} does not say whose it is to be: give USER/{name} or ORGANISATION/{name}")


def require_login() -> None:
    """UsageError where there is nothing to log in to the hub with; asks no network."""
    from huggingface_hub import get_token

    if not get_token():
        raise UsageError(
            "there is no token for the hub here: run `hf auth login`, or set HF_TOKEN to one that may write"
        )


def upload(directory: Path, repository: str, *, private: bool) -> str:
    """Send all files of a directory to a repository, made where there is none, as one commit; return its address.

    `private`: make it so that only its owners see it.

    Raises:
        UsageError: it is to be private, and is there for all to see already.
        UploadError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        # Without a wish an organisation's own rule holds.
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        is_public = private and not api.repo_info(repository).private
        if not is_public:
            api.upload_folder(repo_id=repository, folder_path=directory, commit_message="Upload by dcae push")
    except Exception as error:  # as for downloads: whatever the network stack raises means the same here
        raise UploadError(_why_not_sent(repository, error)) from error
    if is_public:
        raise UsageError(f"{repository} exists and is public: make it private on its page, or leave --private out")
    return str(address)


def _why_not_sent(repository: str, error: Exception) -> str:
    said = getattr(error, "server_message", None) or (str(error) if isinstance(error, ValueError) else None)
    answer = f": {' '.join(said.split())}" if said else ""
    login = (
        "; give a token that may write there (`hf auth login`, HF_TOKEN)" if http_status(error) in (401, 403) else ""
    )
    return f"{repository} was not written: {explain_network_failure(error)}{answer}{login}"


def _how_to_place(repository: str, file: str, cache: str, error: Exception) -> str:
    login = ": run `hf auth login`, or look at HF_TOKEN" if http_status(error) in (401, 403) else ""
    return (
        f"{file} of {repository} is not in the cache ({cache}) and could not be downloaded: "
        f"{explain_network_failure(error)}{login}; "
        f"run `dcae models download {repository}` where there is a network and copy the cache, "
        "or place the repository's files in a directory and pass it with --model DIR"
    )
