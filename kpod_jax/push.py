"""--mode=push: uploads a run's export to the Hugging Face hub, in one commit.

Only files of a model are uploaded, never records, predictions or other data. The token is that of
the environment variable HF_TOKEN or of `hf auth login`.
"""

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

# The files of an export, and of an adapter's base model.
_ALLOWED = re.compile(
    r"(?:base/)?(?:README\.md|chat_template\.jinja|merges\.txt|[\w-]{1,80}\.(?:safetensors|model)"
    r"|model\.safetensors\.index\.json|(?:config|generation_config|adapter_config|tokenizer"
    r"|tokenizer_config|special_tokens_map|added_tokens|vocab|prompt)\.json)"
)
_ADVICE = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token that may write.",
    403: "Use a token that may write to this namespace, or another push.repo_id.",
    404: "Check push.repo_id: the user or organization, and the token's access to it.",
}


def push(config: Config, workdir: files.PathLike) -> None:
    """Exports a run's student if needed and uploads it.

    Args:
      config: validated configuration; `push.repo_id` names the repository.
      workdir: the run's work directory.

    Raises:
      UserError: there is no repository name or token, the export holds other files than a model's,
        the repository is public against `push.private`, or the hub refuses.
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
    """Checks a repository's name and that there is a token.

    Raises:
      UserError: the name is no valid one, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it has no user or organization")
    except HFValidationError as error:
        raise UserError(
            f"push.repo_id={repo_id!r}: expected USER/NAME, the repository on the Hugging Face hub "
            f"({one_line(error):.120})."
        ) from error
    if not huggingface_hub.get_token():
        raise UserError(f"--mode=push needs a token of the Hugging Face hub. {_ADVICE[401]}")


def model_files(folder: pathlib.Path) -> list[str]:
    """Returns the names of the files to upload, relative to an export.

    Raises:
      UserError: there is a file that no export holds, or a link.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in files.files_under(folder)}
    others = [n for n, path in paths.items() if not _ALLOWED.fullmatch(n) or path.is_symlink()]
    if others:
        raise UserError(
            f"{folder} holds files that are not part of an export: {listed(sorted(others), 5)}. "
            "Nothing was uploaded. Remove them and push again."
        )
    return sorted(paths)


def upload(folder: pathlib.Path, names: list[str], repo_id: str, *, private: bool) -> str:
    """Creates the repository if it is missing and uploads files in one commit.

    Args:
      folder: a local folder.
      names: the files' names in it.
      repo_id: USER/NAME.
      private: whether the repository is to be private; a public one is then refused.

    Returns:
      A line that says what was uploaded.

    Raises:
      UserError: the hub refuses or cannot be reached, or the repository is public.
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
    except Exception as error:  # The client raises many types, those of its HTTP client included.
        raise UserError(f"Cannot push to {api.endpoint}/{repo_id}: {_reason(error)}") from error
    size = sum((folder / name).stat().st_size for name in names)
    kind = "private" if is_private else "public"
    what = f"{len(names)} files, {size / 1e6:.1f} MB"
    return f"{what} → {api.endpoint}/{repo_id} ({kind}), commit {commit.oid}"


def _content(path: pathlib.Path, repo_id: str) -> pathlib.Path | bytes:
    """Returns a file to upload; in the model card's code the repository replaces DIRECTORY."""
    if path.name != "README.md":
        return path
    return path.read_text(encoding="utf-8").replace('"DIRECTORY"', f'"{repo_id}"').encode()


def _reason(error: Exception) -> str:
    """Returns an error of the hub on one line, with advice and without the token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    server = error.server_message if isinstance(error, HfHubHTTPError) else None
    text = server or one_line(error) or type(error).__name__
    token = huggingface_hub.get_token()
    text = redact(text.replace(token, "[key]") if token else text)
    advice = _ADVICE.get(status, "Try again later; the export stays as it is.")
    code = f"{status}: " if status else ""
    return f"{code}{' '.join(text.split())[:200].rstrip('.')}. {advice}"
