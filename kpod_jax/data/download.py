"""Finding a published data set's files: in a folder, or at its own source."""

import pathlib
from typing import cast

import requests
import tensorflow_datasets as tfds

from kpod_jax.data.published import DataSet, Splits
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


def files_in(data_set: DataSet, splits: Splits, folder: str) -> list[pathlib.Path]:
    """The files that are needed, in a folder.

    Raises:
      UserError: one is not there.
    """
    root = pathlib.Path(folder).expanduser()
    names = list(data_set.files[splits])
    paths = [root / name for name in names]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is None:
        return paths
    if data_set.instead and (root / data_set.instead).is_file():
        return [root / data_set.instead]
    instead = f", or {data_set.instead} for all of them" if data_set.instead else ""
    raise UserError(
        f"There is no {missing}. Expected a folder with {data_set.title}'s original "
        f"{' and '.join(names)}{instead}; set --config.data.path to it, or to nothing to download "
        "them."
    )


def download(
    data_set: DataSet, splits: Splits, dl_manager: tfds.download.DownloadManager
) -> list[pathlib.Path]:
    """Downloads the files that are needed, under their own names.

    Raises:
      UserError: there is no network, or a file is not the known one.
    """
    needed = data_set.files[splits]
    names = list(needed)
    try:
        # TFDS tries again for minutes; where there is no network, this says so at once.
        requests.head(needed[names[0]].url, timeout=30, allow_redirects=True).raise_for_status()
        got = dl_manager.download({name: file.url for name, file in needed.items()})
    except Exception as error:  # requests, urllib3, TFDS and the file system have their own each.
        raise UserError(
            f"Cannot download {data_set.title} from {needed[names[0]].url}: {error}. Download "
            f"{' and '.join(names)} elsewhere and set --config.data.path to their folder."
        ) from error
    paths = []
    for name, path in cast(dict[str, pathlib.Path], got).items():
        path = pathlib.Path(path)
        file = needed[name]
        if file.sha256 and files.digest(path) != file.sha256:
            raise UserError(
                f"What was downloaded from {file.url} to {path} is not the known file (its SHA-256 "
                "differs). Delete it and try again, or set --config.data.path to a folder with "
                "your own copy."
            )
        # TFDS has a name of its own for it; a split is known by the original one.
        named = path.parent / f"kpod_{data_set.name}_{splits}" / name
        named.parent.mkdir(exist_ok=True)
        with files.atomic_write(named) as copy:
            copy.write(path.read_bytes())
        paths.append(named)
    return paths
