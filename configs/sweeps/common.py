"""Parses the argument of the sweeps for the paper's tables and builds their runs.

The argument is the file name of the base configuration and options, separated by commas:

    quickstart,seeds=5                 configs/quickstart.py, seeds 0 to 4 (default: one seed)
    quickstart,steps=400               training steps of every run, regardless of its examples
    quickstart,short                   a version of minutes that shows that everything works
    flan_t5_large,data=gsm8k+svamp     a column for each data set
    t5_base,data.path=gsm8k,student.dtype=float32      configuration keys, for all runs

In a key's value, `{data}` is replaced by the data set's name, and "+" separates several values.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Iterable, Mapping

from kpod_jax.config import defaults, paper
from kpod_jax.config.defaults import METHODS, Config
from kpod_jax.utils import config_dict
from kpod_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """A parsed argument.

    Attributes:
      base: name of a file in configs/.
      seeds: number of seeds.
      steps: training steps of every run; 0: as given by the configuration's epochs.
      short: whether runs are shortened to minutes.
      data: data sets; (): the base configuration's.
      keys: values of configuration keys, as text.
      more: sweep-specific options.
    """

    base: str
    seeds: int = 1
    steps: int = 0
    short: bool = False
    data: tuple[str, ...] = ()
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    more: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse(argument: str, base: str = "quickstart", more: Iterable[str] = ()) -> Options:
    """Parses an argument.

    Args:
      argument: an argument such as "quickstart,seeds=5".
      base: the base for arguments without one.
      more: names of sweep-specific options.

    Raises:
      UserError: the base or an option is unknown, or an option has an invalid value.
    """
    options = Options(base)
    for number, part in enumerate(filter(None, argument.split(","))):
        name, equals, value = part.partition("=")
        if part == "short":
            options = dataclasses.replace(options, short=True)
        elif not equals and number == 0:
            options = dataclasses.replace(options, base=part)
        elif name == "seeds" and value.isdecimal() and int(value):
            options = dataclasses.replace(options, seeds=int(value))
        elif name == "steps" and value.isdecimal() and int(value):
            options = dataclasses.replace(options, steps=int(value))
        elif name == "data" and value:
            options = dataclasses.replace(options, data=tuple(value.split("+")))
        elif name in more and value:
            options = dataclasses.replace(options, more={**options.more, name: value})
        elif equals and name in _KEYS:
            options = dataclasses.replace(options, keys={**options.keys, name: value})
        else:
            raise UserError(
                f"--sweep=…:{argument}: cannot parse {part!r}. Expected, separated by commas, a "
                "file of configs/ first, then "
                f"{', '.join(f'{name}=…' for name in ('seeds', 'steps', 'data', *more))}, short, "
                "or KEY=VALUE for a configuration key other than method and seed."
            )
    names = sorted(path.stem for path in _CONFIGS.glob("*.py") if path.stem != "__init__")
    if options.base not in names:
        raise UserError(
            f"--sweep=…:{argument}: no such file: configs/{options.base}.py. Expected one of "
            f"{', '.join(names)}."
        )
    return options


def runs(
    options: Options, variants: Mapping[str, tuple[str, Mapping[str, object]]]
) -> dict[str, Config]:
    """Returns the runs of every variant on every data set with every seed.

    Args:
      options: options from `parse`.
      variants: method and changed keys of each variant, by name.

    Returns:
      Configurations by run name, such as "kpod-seed0" or "kpod-svamp-seed0".
    """
    configs = {}
    for data in options.data or ("",):
        for name, (method, keys) in variants.items():
            for seed in range(options.seeds):
                config = _config(options, method, data)
                config.update_from_flattened_dict(dict(keys))
                config.seed = seed
                configs["-".join(filter(None, (name, data, f"seed{seed}")))] = config
                if not config.distill.epochs:
                    break  # Without distillation nothing is random.
    return configs


def methods(names: Iterable[str]) -> dict[str, tuple[str, Mapping[str, object]]]:
    """Returns methods as variants with the same names and no changed keys."""
    return {name: (name, {}) for name in names}


# Sweeps set method and seed themselves.
_KEYS = config_dict.flatten(defaults.get_config()).keys() - {"method", "seed"}
_CONFIGS = pathlib.Path(__file__).parents[1]


def _config(options: Options, method: str, data: str) -> Config:
    """Returns the base configuration with a method and those options the method does not set."""
    config = importlib.import_module(f"kpod_jax.configs.{options.base}").get_config(method)
    method_keys = METHODS[method][1]
    if data and data != config.data.name:
        base_epochs, data_epochs = (
            paper.settings(config.student.model, name).get("distill.epochs")
            for name in (config.data.name, data)
        )
        if data_epochs is not None and config.distill.epochs == base_epochs:
            config.distill.epochs = data_epochs
        config.data.name = data
    if options.short:
        shorten(config)
    if options.steps and config.distill.epochs:
        config.distill.max_steps = options.steps
        config.distill.epochs = options.steps  # Enough: an epoch has at least one step.
    for key, text in options.keys.items():
        if key not in method_keys:
            value = _value(key, text.replace("{data}", config.data.name))
            config.update_from_flattened_dict({key: value})
    return config


def shorten(config: Config) -> None:
    """Shortens a run to a minute or two for a tiny student; its results mean nothing."""
    config.data.train_examples = 96
    config.data.validation_examples = 32
    config.data.test_examples = 48
    config.weighting.steps = 10
    config.weighting.allow_failed = True
    config.schedule.phase_steps = 0
    config.distill.epochs = min(config.distill.epochs, 4)


def _value(key: str, text: str) -> object:
    """Converts a key's value to the type of its default."""
    default = config_dict.flatten(defaults.get_config())[key]
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(text.split("+")) if text else ()
        if isinstance(default, int):
            return int(text)
        return float(text) if isinstance(default, float) else text
    except (ValueError, KeyError) as error:
        raise UserError(
            f"--sweep=…: {key}={text!r}: expected the type of the default, {default!r}."
        ) from error
