"""--mode=push: uploads a run's export to the Hugging Face hub in one commit.

It uploads only the files of a model, never records, predictions or other data, and follows no
links. The token is that of HF_TOKEN or `hf auth login`; it is never printed or written.
"""

import os
import pathlib
import re
import tempfile

import huggingface_hub
import jax
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from kpod_jax import pipeline
from kpod_jax.config.defaults import Config
from kpod_jax.parallel import processes
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError, listed, one_line
from kpod_jax.utils.redaction import redact
from kpod_jax.version import __version__

# The files of an export and, in base/, of an adapter's base model.
_ALLOWED = re.compile(
    r"(?:base/)?(?:README\.md|chat_template\.jinja|merges\.txt|[\w-]{1,80}\.(?:safetensors|model)"
    r"|model\.safetensors\.index\.json|(?:config|generation_config|adapter_config|tokenizer"
    r"|tokenizer_config|special_tokens_map|added_tokens|vocab|prompt)\.json)"
)
_ADVICE = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token with write access.",
    403: "Use a token with write access to this user or organization, or another push.repo_id.",
    404: "Check the user or organization in push.repo_id, and that the token has access to it.",
}


def push(config: Config, workdir: files.PathLike) -> None:
    """Exports a run's student if needed and uploads it.

    Args:
      config: validated configuration; `push.repo_id` names the repository.
      workdir: the run's work directory.

    Raises:
      UserError: the repository name is not valid, there is no token, the export contains other
        files than a model's, the repository is public despite `push.private`, or the upload fails.
    """
    repo_id = config.push.repo_id
    check_access(repo_id)
    root = pipeline.run(config, workdir, "export")
    if jax.process_index() != 0:
        return
    with tempfile.TemporaryDirectory() as directory:
        folder = root / "export"
        names = model_files(folder)
        if files.is_remote(root):  # The hub's client reads local files.
            for name in names:
                with files.atomic_write(pathlib.Path(directory) / name) as file:
                    file.write((folder / name).read_bytes())
            folder = pathlib.Path(directory)
        line = upload(folder, names, repo_id, private=config.push.private)
    processes.log(f"push: {line}")


def check_access(repo_id: str) -> None:
    """Checks the repository name and that there is a token, before any work starts.

    Raises:
      UserError: the name is not valid, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("expected one slash")
    except HFValidationError as error:
        raise UserError(
            f"push.repo_id={repo_id!r}: expected a repository on the Hugging Face hub, as "
            f"USER/NAME ({one_line(error):.120})."
        ) from error
    if not huggingface_hub.get_token():
        raise UserError(f"--mode=push needs a token of the Hugging Face hub. {_ADVICE[401]}")


def model_files(folder: pathlib.Path) -> list[str]:
    """Returns the names of the files to upload, relative to an export.

    Raises:
      UserError: one of the files is not part of an export, or is a link or in a linked folder.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in files.files_under(folder)}
    names = sorted(paths)
    others = [n for n in names if not _ALLOWED.fullmatch(n) or _is_linked(paths[n], folder)]
    if others:
        raise UserError(
            f"{folder} contains files that are not part of an export, or links: "
            f"{listed(others, 5)}. Nothing was uploaded. Remove them and push again."
        )
    return names


def _is_linked(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Returns whether a file, or a folder between it and `folder`, is a link."""
    below = [path, *path.parents][: len(path.relative_to(folder).parts)]
    return any(map(os.path.islink, below))  # Paths of buckets have no `is_symlink`.


def upload(folder: pathlib.Path, names: list[str], repo_id: str, *, private: bool) -> str:
    """Creates the repository if it is missing and uploads files in one commit.

    Args:
      folder: a local folder.
      names: names of the files, relative to the folder.
      repo_id: USER/NAME.
      private: whether the repository must be private.

    Returns:
      A one-line summary.

    Raises:
      UserError: the repository is public but must be private, the hub cannot be reached, or it
        refuses.
    """
    api = huggingface_hub.HfApi(library_name="kpod-jax", library_version=__version__)
    operations = [
        huggingface_hub.CommitOperationAdd(name, _content(folder / name, repo_id)) for name in names
    ]
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        is_private = bool(api.model_info(repo_id).private)
        if private and not is_private:
            raise UserError(
                f"{repo_id} exists and is public. Nothing was uploaded. Set push.private=False to "
                "upload to it, or choose another push.repo_id."
            )
        commit = api.create_commit(
            repo_id, operations, commit_message="Upload a student of KPOD-JAX"
        )
    except UserError:
        raise
    except Exception as error:  # Many types, including those of the client's HTTP library.
        raise UserError(f"Cannot push to {api.endpoint}/{repo_id}: {_reason(error)}") from error
    size = sum((folder / name).stat().st_size for name in names)
    kind = "private" if is_private else "public"
    what = f"{len(names)} files, {size / 1e6:.1f} MB"
    return f"{what} → {api.endpoint}/{repo_id} ({kind}), commit {commit.oid}"


def _content(path: pathlib.Path, repo_id: str) -> pathlib.Path | bytes:
    """Returns a file to upload; the model card's code gets the repository for DIRECTORY."""
    if path.name != "README.md":
        return path
    return path.read_text(encoding="utf-8").replace('"DIRECTORY"', f'"{repo_id}"').encode()


def _reason(error: Exception) -> str:
    """Returns an error on one line, with advice and without the token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    server = error.server_message if isinstance(error, HfHubHTTPError) else None
    text = server or one_line(error) or type(error).__name__
    token = huggingface_hub.get_token()
    text = redact(text.replace(token, "[key]") if token else text)
    advice = _ADVICE.get(status, "Try again later; the export is kept.")
    code = f"{status}: " if status else ""
    return f"{code}{' '.join(text.split())[:200].rstrip('.')}. {advice}"
