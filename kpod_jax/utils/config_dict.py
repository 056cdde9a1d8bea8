"""Configuration trees, and the keys renamed in version 0.2.0, whose old names still work."""

import functools
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

RENAMED = {
    "data.cache": "data.cache_dir",
    "data.max_bad_share": "data.max_rejected_fraction",
    "weighting.judge_every": "weighting.eval_every",
    "weighting.judged_examples": "weighting.eval_examples",
    "weighting.hidden": "weighting.hidden_size",
    "weighting.heads": "weighting.num_heads",
    "weighting.fresh_examples": "weighting.fit_fresh_examples",
    "weighting.reading_steps": "weighting.fit_unmasked_steps",
    "weighting.masking_steps": "weighting.fit_masked_steps",
    "weighting.clear_share": "weighting.fit_unmasked_fraction",
    "weighting.answerer_learning_rate": "weighting.fit_learning_rate",
    "schedule.stage_steps": "schedule.phase_steps",
    "schedule.initial_share": "schedule.initial_fraction",
    "schedule.ramp_share": "schedule.ramp_fraction",
    "distill.pack": "distill.pack_length",
    "distill.least_weight": "distill.min_weight",
    "distill.keep": "distill.max_to_keep",
    "watch": "monitoring",
    "baseline.format_shares": "baseline.format_weights",
}
# Keys that stages of earlier versions lack, with the values that those versions implied.
ADDED: Mapping[str, Any] = {
    "weighting.reference": "",
    "weighting.reference_steps": 300,
    "weighting.kept_fraction": 0.6,
    "export.license": "",
    "student.system_prompt": "",
    "student.chat_template_kwargs": "",
    "student.date": "",
}
_NEW_NAMES = {old.split(".")[-1]: new.split(".")[-1] for old, new in RENAMED.items()}


class ConfigDict(ml_collections.ConfigDict):
    """A ConfigDict that also accepts old key names, warning once about each."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(self._current(key))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(self._current(key), value)

    def __contains__(self, key: str) -> bool:
        return super().__contains__(self._current(key))

    def get_type(self, key: str, *args: Any) -> Any:
        """Returns the type of a key's value."""
        return super().get_type(self._current(key), *args)

    def _current(self, key: str) -> str:
        new = _NEW_NAMES.get(key)
        if new is None or key in self._fields or new not in self._fields:
            return key
        _warn(key, new)
        return new


def current(settings: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Renames the keys of settings written by an earlier version.

    Args:
      settings: values by key, flat or nested.
      section: the settings' section of the configuration, with a trailing dot; "": all of it.
    """
    result = {}
    for key, value in settings.items():
        new = RENAMED.get(section + key, section + key).removeprefix(section)
        if isinstance(value, Mapping):
            # A fingerprint may contain another one, whose keys are flat.
            is_flat = any("." in name for name in value)
            value = current(value, "" if is_flat else f"{section}{new}.")
        result[new] = value
    return result


def current_name(key: str) -> str:
    """Returns the present name of a dotted key, warning once if it was renamed."""
    (new,) = current({key: None})
    if new != key:
        _warn(key.rpartition(".")[2], new.rpartition(".")[2])
    return new


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the values of a configuration by dotted key, in order."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, ml_collections.ConfigDict):
            found |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            found[key] = value
    return found


@functools.cache
def _warn(old: str, new: str) -> None:
    print(
        f"warning: the configuration key {old} is now {new}; the old name works until the next "
        "release.",
        file=sys.stderr,
    )
