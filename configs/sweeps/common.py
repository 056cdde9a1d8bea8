"""What the sweeps of the paper's tables share: their argument, and runs made of it.

The argument is the base configuration's file, then options, parted by commas:

    quickstart,seeds=5                 configs/quickstart.py, seeds 0 to 4 (one, if not given)
    quickstart,steps=400               training steps of every run, however many examples it has
    quickstart,short                   a form of minutes that shows that everything works
    flan_t5_large,data=gsm8k+svamp     a column for each data set
    t5_base,data.path=gsm8k,student.dtype=float32      keys of the configuration, for all runs

In a key's value `{data}` stands for the data set's name; the parts of several values are joined
by "+".
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Iterable, Mapping

from kpod_jax.config import defaults, paper
from kpod_jax.config.defaults import METHODS, Config
from kpod_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """An argument, read.

    Attributes:
      base: the name of a file of configs/.
      seeds: their number.
      steps: of every training; 0: those of the configuration's epochs.
      short: whether runs are cut down to minutes.
      data: data sets; (): the base configuration's.
      keys: configuration keys with their values as text.
      more: options that a sweep has for itself.
    """

    base: str
    seeds: int = 1
    steps: int = 0
    short: bool = False
    data: tuple[str, ...] = ()
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    more: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse(argument: str, base: str = "quickstart", more: Iterable[str] = ()) -> Options:
    """Reads an argument.

    Args:
      argument: such as "quickstart,seeds=5".
      base: of an argument that names none.
      more: names of options besides those above.

    Raises:
      UserError: the base or an option is unknown, or its value is none.
    """
    found = Options(base)
    for number, part in enumerate(filter(None, argument.split(","))):
        name, equals, value = part.partition("=")
        if part == "short":
            found = dataclasses.replace(found, short=True)
        elif not equals and number == 0:
            found = dataclasses.replace(found, base=part)
        elif name == "seeds" and value.isdecimal() and int(value):
            found = dataclasses.replace(found, seeds=int(value))
        elif name == "steps" and value.isdecimal() and int(value):
            found = dataclasses.replace(found, steps=int(value))
        elif name == "data" and value:
            found = dataclasses.replace(found, data=tuple(value.split("+")))
        elif name in more and value:
            found = dataclasses.replace(found, more={**found.more, name: value})
        elif equals and name in _KEYS:
            found = dataclasses.replace(found, keys={**found.keys, name: value})
        else:
            raise UserError(
                f"--sweep=…:{argument}: cannot read {part!r}. Expected a file of configs/ first, "
                f"then {', '.join(f'{name}=…' for name in ('seeds', 'steps', 'data', *more))}, "
                "short, or a key of the configuration, other than method and seed, with its value, "
                "parted by commas."
            )
    there = sorted(path.stem for path in _CONFIGS.glob("*.py") if path.stem != "__init__")
    if found.base not in there:
        raise UserError(
            f"--sweep=…:{argument}: there is no configs/{found.base}.py; expected one of "
            f"{', '.join(there)}."
        )
    return found


def runs(
    options: Options, variants: Mapping[str, tuple[str, Mapping[str, object]]]
) -> dict[str, Config]:
    """Every variant on every data set with every seed.

    Args:
      options: of `parse`.
      variants: by name: the method, and keys that it is tried with.

    Returns:
      Configurations by the runs' names, such as "kpod-seed0" or "kpod-svamp-seed0".
    """
    found = {}
    for data in options.data or ("",):
        for name, (method, keys) in variants.items():
            for seed in range(options.seeds):
                config = _config(options, method, data)
                config.update_from_flattened_dict(dict(keys))
                config.seed = seed
                found["-".join(filter(None, (name, data, f"seed{seed}")))] = config
                if not config.distill.epochs:
                    break  # Without distillation there is nothing random.
    return found


def methods(names: Iterable[str]) -> dict[str, tuple[str, Mapping[str, object]]]:
    """Methods as variants, under their own names and with their own keys alone."""
    return {name: (name, {}) for name in names}


# A sweep chooses methods and seeds itself.
_KEYS = defaults.flatten(defaults.get_config()).keys() - {"method", "seed"}
_CONFIGS = pathlib.Path(__file__).parents[1]


def _config(options: Options, method: str, data: str) -> Config:
    """The base configuration under a method, with the argument's keys where it leaves them free."""
    config = importlib.import_module(f"kpod_jax.configs.{options.base}").get_config(method)
    own = METHODS[method][1]
    if data and data != config.data.name:
        ours, theirs = (
            paper.settings(config.student.model, name).get("distill.epochs")
            for name in (config.data.name, data)
        )
        if theirs is not None and config.distill.epochs == ours:
            config.distill.epochs = theirs
        config.data.name = data
    if options.short:
        shorten(config)
    if options.steps and config.distill.epochs:
        config.distill.max_steps = options.steps
        config.distill.epochs = options.steps  # Enough: an epoch has a step at least.
    for key, text in options.keys.items():
        if key not in own:
            value = _value(key, text.replace("{data}", config.data.name))
            config.update_from_flattened_dict({key: value})
    return config


def shorten(config: Config) -> None:
    """Cuts a run down to a minute or two, where the student is tiny; its figures mean nothing."""
    config.data.train_examples = 96
    config.data.validation_examples = 32
    config.data.test_examples = 48
    config.weighting.steps = 10
    config.weighting.allow_failed = True
    config.schedule.phase_steps = 0
    config.distill.epochs = min(config.distill.epochs, 4)


def _value(key: str, text: str) -> object:
    """A key's value, of the type that its default has."""
    default = defaults.flatten(defaults.get_config())[key]
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
            f"--sweep=…: {key}={text!r}: expected a value of the type of its default, {default!r}."
        ) from error
