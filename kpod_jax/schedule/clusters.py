"""Clusters of questions, over which a selection is spread (C_1 ... C_K of Eq. 12).

A question is the mean of its words' vectors, as in the paper with GloVe, or, where there is no file
of word vectors, the mean of its tokens' embeddings in the student. k-means makes the clusters.

Letters: N questions, V words or tokens, D dimensions, K clusters.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from kpod_jax.data.records import Ragged
from kpod_jax.utils.errors import UserError

# Letters and digits; what word vectors keep apart, such as "Janet" and "'s", comes apart.
_WORD = re.compile(r"[^\W_]+")
# Beyond this many questions, mini-batches; the full algorithm takes seconds up to here.
_MAX_FULL = 20_000
_SILHOUETTE_SAMPLE = 2_000


@dataclasses.dataclass(frozen=True)
class Clusters:
    """A clustering of N questions.

    Attributes:
      labels: [N] int32, from 0.
      silhouette: mean silhouette of a sample, in [-1, 1], larger for clusters that lie further
        apart; NaN where there is one cluster, or as many as questions.
      warning: what the user should be told about it; empty for nothing.
    """

    labels: np.ndarray
    silhouette: float
    warning: str = ""


def question_vectors(questions: Sequence[str], path: str | os.PathLike[str]) -> np.ndarray:
    """Means of the vectors of each question's words, in lower case.

    Words that the file does not have are skipped; a question that has no others is 0.

    Args:
      questions: N texts.
      path: word vectors in GloVe's text format, a word and its D values on each line, or in
        word2vec's, which is the same after a line with the number of words and D. Only the lines of
        words that occur are read to their end.

    Returns:
      [N, D] float32.

    Raises:
      UserError: the file cannot be read, a line that is needed is malformed, or the file has none
        of the words.
    """
    words = [_WORD.findall(question.lower()) for question in questions]
    vectors = _read_vectors(path, {word for question in words for word in question})
    if not vectors:
        raise UserError(
            f"{path} has a vector for none of the words of the {len(questions)} questions; "
            "expected lower-case words of the questions' language. Choose another file of word "
            "vectors, or none to cluster by the student's embeddings."
        )
    row = {word: i for i, word in enumerate(vectors)}
    ids = [[row[word] for word in question if word in row] for question in words]
    return mean_token_vectors(np.stack([*vectors.values()]), Ragged.from_list(ids, np.int32))


def read_question_vectors(path: str | os.PathLike[str], count: int) -> np.ndarray:
    """Vectors of your own making, such as those of a sentence encoder.

    Args:
      path: of a .npy file, [N, D] of any type of float, a row for each training record in the order
        of `records/train.jsonl`.
      count: N.

    Raises:
      UserError: it cannot be read, or is of another shape or type.
    """
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read the question vectors {path}: {error}. Expected a .npy file of numbers "
            "alone, as numpy.save writes it."
        ) from error
    if vectors.ndim != 2 or len(vectors) != count or vectors.dtype.kind != "f":
        raise UserError(
            f"{path} holds an array of shape {vectors.shape} and type {vectors.dtype}; expected "
            f"floats of shape ({count}, D): a row for each record of records/train.jsonl, in its "
            "order."
        )
    return vectors


def mean_token_vectors(embedding_table_VxD: np.ndarray, questions: Ragged) -> np.ndarray:
    """Means of the embeddings of each question's tokens; an empty question is 0.

    Args:
      embedding_table_VxD: [V, D], any type of float.
      questions: N slices of token ids, 0 <= id < V.

    Returns:
      [N, D] float32.

    Raises:
      ValueError: an id is out of range.
    """
    table_VxD = np.asarray(embedding_table_VxD, np.float32)
    ids = np.asarray(questions.values)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(table_VxD):
        raise ValueError(f"ids {ids.min()} ... {ids.max()} for a table of {len(table_VxD)} rows")
    lengths_N = questions.lengths
    # Row i of this [N, V] matrix has 1 / length at each token of question i; repeats add up.
    shares = np.repeat(1 / np.maximum(lengths_N, 1), lengths_N).astype(np.float32)
    shape = (len(questions), len(table_VxD))
    return sparse.csr_array((shares, ids, questions.offsets), shape) @ table_VxD


def cluster_questions(vectors_NxD: np.ndarray, clusters: int, seed: int) -> Clusters:
    """k-means of the questions; the same for the same arguments, whatever the number of cores.

    Args:
      vectors_NxD: [N, D] finite values, from `question_vectors` or `mean_token_vectors`.
      clusters: K, at least 1; the paper has 5. Fewer are made, with a warning, where fewer
        questions differ.
      seed: of the first centres, of mini-batches and of the silhouette's sample.

    Raises:
      UserError: K is below 1, or a vector is not finite.
    """
    if clusters < 1:
        raise UserError(
            f"clusters={clusters} is not possible for the schedule; expected at least 1 (K of "
            "Eq. 12). Change it in the configuration."
        )
    vectors_NxD = np.asarray(vectors_NxD, np.float64)
    bad = np.flatnonzero(~np.isfinite(vectors_NxD).all(axis=1))
    if bad.size:
        raise UserError(
            f"The vector of question {bad[0]} (counted from 0) is not finite, nor are those of "
            f"{bad.size - 1} further questions. Look for NaN in the word vectors or in the "
            "student's embedding table."
        )
    size = len(vectors_NxD)
    distinct = len({row.tobytes() for row in vectors_NxD})
    warning = ""
    if distinct < clusters:
        warning = f"only {distinct} of {size} questions differ: {distinct} clusters, not {clusters}"
        clusters = distinct
    if clusters < 2:
        return Clusters(np.zeros(size, np.int32), math.nan, warning)
    # Most commands do without it, and it takes a second to import.
    from sklearn.cluster import KMeans, MiniBatchKMeans

    algorithm = KMeans if size <= _MAX_FULL else MiniBatchKMeans
    model = algorithm(clusters, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    with threadpool_limits(1):  # Several threads add up in an order that changes.
        labels_N = model.fit_predict(vectors_NxD).astype(np.int32)
        return Clusters(labels_N, _silhouette(vectors_NxD, labels_N, seed), warning)


def _silhouette(vectors_NxD: np.ndarray, labels_N: np.ndarray, seed: int) -> float:
    size = min(len(labels_N), _SILHOUETTE_SAMPLE)
    sample = np.random.default_rng(seed).choice(len(labels_N), size, replace=False)
    if not 2 <= len(np.unique(labels_N[sample])) < size:
        return math.nan  # It is not defined for these.
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(vectors_NxD[sample], labels_N[sample]))


def _read_vectors(path: str | os.PathLike[str], wanted: set[str]) -> dict[str, np.ndarray]:
    """Vectors of the wanted words, in the order of the file; the first of a repeated word."""
    vectors: dict[str, np.ndarray] = {}
    dimensions = 0
    try:
        # Only "\n" ends a line: some files have words that hold other line separators.
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                word = line[: line.find(" ")]
                if dimensions and (word not in wanted or word in vectors):
                    continue
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2 and all(map(str.isdecimal, fields)):
                    dimensions = int(fields[1])  # word2vec's header.
                    continue
                dimensions = dimensions or len(fields) - 1
                if len(fields) > dimensions + 1 and _vector(fields[1:2]) is None:
                    continue  # A phrase that starts with the word, such as "at name@domain.com".
                vector = _vector(fields[1:])
                if vector is None or len(vector) != dimensions or not dimensions:
                    raise UserError(
                        f"{path}:{number}: expected a word and {dimensions or 'its'} finite "
                        f"numbers, single spaces between them, found {line.rstrip()[:60]!r}. Mend "
                        "or remove the line, or choose another file of word vectors."
                    )
                if word in wanted:
                    vectors[word] = vector
    except OSError as error:
        raise UserError(
            f"Cannot read the word vectors {path}: {error.strerror or error}. Choose another file, "
            "or none to cluster by the student's embeddings."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason}). Expected GloVe's or word2vec's text "
            "format; convert a binary word2vec file to text first."
        ) from error
    return vectors


def _vector(fields: Sequence[str]) -> np.ndarray | None:
    """The numbers, or None where one is none or is not finite."""
    try:
        vector = np.array(fields, np.float32)
    except ValueError:
        return None
    return vector if np.isfinite(vector).all() else None
