"""Finds a published data set's files in a folder, or downloads them from their source."""

import pathlib
from typing import cast

import requests
import tensorflow_datasets as tfds

from kpod_jax.data.published import DataSet, Splits
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


def files_in(data_set: DataSet, splits: Splits, folder: str) -> list[pathlib.Path]:
    """Returns the paths of the required files in a folder.

    Raises:
      UserError: a file is missing.
    """
    root = files.expand(folder)
    names = list(data_set.files[splits])
    paths = [root / name for name in names]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is None:
        return paths
    if data_set.single_file and (root / data_set.single_file).is_file():
        return [root / data_set.single_file]
    instead = f", or {data_set.single_file} for all of them" if data_set.single_file else ""
    raise UserError(
        f"No such file: {missing}. Expected a folder with {data_set.title}'s original "
        f"{' and '.join(names)}{instead}; set --config.data.path to it, or leave it empty to "
        "download them."
    )


def download(
    data_set: DataSet, splits: Splits, dl_manager: tfds.download.DownloadManager
) -> list[pathlib.Path]:
    """Downloads the required files and stores them under their original names.

    Raises:
      UserError: a download fails, or a file's checksum differs.
    """
    required = data_set.files[splits]
    names = list(required)
    try:
        # TFDS retries for minutes; this request fails at once if there is no network.
        requests.head(required[names[0]].url, timeout=30, allow_redirects=True).raise_for_status()
        downloaded = dl_manager.download({name: file.url for name, file in required.items()})
    except Exception as error:  # From requests, urllib3, TFDS or the file system.
        raise UserError(
            f"Cannot download {data_set.title} from {required[names[0]].url}: {error}. Download "
            f"{' and '.join(names)} elsewhere and set --config.data.path to their folder."
        ) from error
    paths = []
    for name, path in cast(dict[str, pathlib.Path], downloaded).items():
        path = pathlib.Path(path)
        file = required[name]
        if file.sha256 and files.digest(path) != file.sha256:
            raise UserError(
                f"{path}, downloaded from {file.url}, is not the expected file: its SHA-256 "
                "differs. Delete it and try again, or set --config.data.path to a folder with "
                "your own copy."
            )
        # TFDS renames the file, but splits are identified by the original name.
        named = path.parent / f"kpod_{data_set.name}_{splits}" / name
        named.parent.mkdir(exist_ok=True)
        with files.atomic_write(named) as copy:
            copy.write(path.read_bytes())
        paths.append(named)
    return paths
