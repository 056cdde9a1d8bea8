"""The allowed values of configuration keys, checked before any work starts."""

import datetime
import functools
import math
import re
from collections.abc import Callable

from kpod_jax import baselines
from kpod_jax.config.defaults import METHODS, Config
from kpod_jax.data import answers, chat_template, custom, mathematics, sources
from kpod_jax.data.published import SPLITS
from kpod_jax.models import families
from kpod_jax.training import losses, trackers
from kpod_jax.utils import config_dict, plugins
from kpod_jax.utils.errors import UserError, did_you_mean, one_of
from kpod_jax.weighting import weightings

# Keys that also accept an import path, and its form.
CUSTOM = {
    "method": "package.module:Class",
    "data.name": "package.module:Class",
    "data.answer_kind": "package.module:function",
    "student.family": "package.module:FAMILY",
    "weighting.weights": "package.module:function",
    "schedule.curriculum": "package.module:Class",
    "distill.loss": "package.module:function",
}
# Keys that also accept a file, and its suffix.
FILE_SUFFIXES = {"weighting.weights": ".npz"}
CHOICES = {
    "method": tuple(METHODS),
    "data.name": sources.NAMES,
    "data.splits": ("paper", "official"),
    "data.answer_kind": ("", *answers.KINDS),
    "student.family": ("",),
    "student.init": ("pretrained", "random"),
    "teacher.style": ("zero_shot", "few_shot"),
    "teacher.max_tokens_name": ("max_tokens", "max_completion_tokens"),
    "teacher.keep": ("right", "all"),
    "teacher.rationale_from": ("answer", "thought", "both"),
    "teacher.batch": ("none", "write", "read"),
    "student.dtype": ("float32", "bfloat16"),
    "student.remat": ("none", "dots", "full"),
    "student.attention": ("auto", "xla", "cudnn", "blocks", "splash"),
    "student.lora.base_dtype": ("float32", "bfloat16", "int8"),
    "export.lora": ("merged", "adapter"),
    "export.dtype": ("float32", "bfloat16"),
    "weighting.weights": ("learned", "uniform", *weightings.WEIGHTINGS),
    "weighting.preset": ("", "paper"),
    "weighting.lora.base_dtype": ("float32", "bfloat16", "int8"),
    "weighting.prefixes": ("sampled", "all", "step_ends", "late"),
    "weighting.encoding": ("bidirectional", "causal"),
    "weighting.estimator": ("score_function", "straight_through", "soft"),
    "weighting.fit": ("other_fold", "fresh", "same"),
    "difficulty.weights": ("learned", "uniform"),
    "schedule.curriculum": ("kpod", "full", "icl", "spl", "acl"),
    "schedule.solver": ("greedy", "ftgp"),
    "distill.loss": ("cross_entropy",),
    "distill.step_start_weight": ("learned", "answer"),
    "distill.rescale_weights": ("none", "mean"),
    "distill.optimizer": ("adam", "adamw", "adafactor"),
    "distill.decay": ("constant", "linear", "cosine"),
    "distill.input_steps": ("decoder", "encoder"),
    "eval.split": SPLITS,
}
_INFINITY = float("inf")
# Minimum and maximum values, inclusive. Other numbers must be at least 0.
RANGES = {
    "seed": (0, 2**31 - 1),
    "data.arithmetic.verbosity": (0, 1),
    "data.max_rejected_fraction": (0, 1),
    "teacher.samples": (1, 1000),
    "teacher.temperature": (-1, 2),
    "teacher.top_p": (0, 1),
    "teacher.max_tokens": (1, _INFINITY),
    "teacher.logprobs": (0, 20),
    "teacher.concurrency": (1, 1000),
    "teacher.timeout": (0.1, _INFINITY),
    "teacher.total_timeout": (0, _INFINITY),
    "teacher.retries": (0, 1000),
    "student.lora.dropout": (0, 0.999),
    "student.max_question_tokens": (8, _INFINITY),
    "student.max_target_tokens": (8, _INFINITY),
    "weighting.reference_steps": (1, _INFINITY),
    "weighting.kept_fraction": (1e-6, 1),
    "weighting.alpha_warmup": (0, 1),
    "weighting.prefix_samples": (1, _INFINITY),
    "weighting.eval_examples": (1, _INFINITY),
    "weighting.mask_samples": (2, _INFINITY),
    "weighting.exploration": (0, 0.49),
    "weighting.initial_weight": (0.01, 0.99),
    "weighting.fit_unmasked_fraction": (0, 1),
    "weighting.steps": (1, _INFINITY),
    "weighting.batch_size": (1, _INFINITY),
    "weighting.clip_norm": (1e-6, _INFINITY),
    "weighting.patience": (1, _INFINITY),
    "weighting.temperature_start": (1e-3, _INFINITY),
    "weighting.temperature_end": (1e-3, _INFINITY),
    "weighting.min_gap": (-_INFINITY, _INFINITY),
    "weighting.hidden_size": (1, _INFINITY),
    "weighting.num_heads": (1, _INFINITY),
    "difficulty.batch_size": (1, _INFINITY),
    "schedule.p": (-0.999, _INFINITY),
    "schedule.initial_fraction": (0, 1),
    "schedule.ramp_fraction": (0, 1),
    "schedule.clusters": (1, _INFINITY),
    "schedule.growth": (1, _INFINITY),
    "schedule.mixing": (0, 1),
    "distill.weight_context": (0, _INFINITY),
    "distill.min_weight": (0, 1),
    "distill.buckets": (1, _INFINITY),
    "distill.batch_size": (1, _INFINITY),
    "distill.micro_batches": (1, _INFINITY),
    "distill.log_every": (1, _INFINITY),
    "distill.checkpoint_every": (1, _INFINITY),
    "distill.max_to_keep": (1, _INFINITY),
    "baseline.counterfactual_weight": (0, 1),
    "baseline.diverse_rationales": (2, _INFINITY),
    "baseline.ngram": (1, _INFINITY),
    "baseline.demonstrations": (1, _INFINITY),
    "mesh.data": (-1, _INFINITY),
    "mesh.fsdp": (-1, _INFINITY),
    "mesh.tensor": (-1, _INFINITY),
    "eval.batch_size": (1, _INFINITY),
    "eval.top_p": (1e-6, 1),
    "eval.samples": (1, _INFINITY),
}
# Keys whose minimum, 0, would switch off what they belong to.
POSITIVE = {
    "student.lora.alpha",
    "weighting.learning_rate",
    "weighting.fit_learning_rate",
    "distill.learning_rate",
}


def check(config: Config) -> None:
    """Checks every value, before any work starts.

    Raises:
      UserError: the message lists each invalid key, its value and what was expected.
    """
    errors = []
    for key, value in config_dict.flatten(config).items():
        if key in CHOICES:
            if value not in CHOICES[key]:
                errors += _choice_errors(key, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            low, high = RANGES.get(key, (0, _INFINITY))
            if not low <= value <= high or math.isinf(value):
                bound = f"at least {low}" if high == _INFINITY else f"{low} to {high}"
                bound += " and finite" * math.isinf(value)
                errors.append(f"{key}={value!r}: expected {bound}")
            elif key in POSITIVE and not value:
                errors.append(f"{key}={value!r}: expected above 0")
    for block, key, field in (
        ("student", "prompt", "{question}"),
        ("student", "answer_template", "{answer}"),
        ("baseline", "answer_prompt", "{question}"),
    ):
        if config[block][key].count(field) != 1:
            errors.append(f"{block}.{key}={config[block][key]!r}: expected {field} exactly once")
    try:
        trackers.require(config.track)
    except UserError as error:
        errors.append(str(error))
    errors += _chat_errors(config.student)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}|", config.export.license):
        errors.append(
            f"export.license={config.export.license!r}: expected an identifier such as apache-2.0"
        )
    errors += _teacher_errors(config.teacher)
    if config.distill.batch_size % config.distill.micro_batches:
        errors.append(
            f"distill.micro_batches={config.distill.micro_batches}: expected a divisor of "
            f"distill.batch_size={config.distill.batch_size}"
        )
    if config.distill.equal_tokens and config.schedule.curriculum in ("full", "spl", "acl"):
        errors.append(
            "distill.equal_tokens=True: expected schedule.curriculum kpod or icl, whose tokens are "
            f"fewer and known before training, got {config.schedule.curriculum!r}"
        )
    if config.eval.samples > 1 and not config.eval.temperature:
        errors.append(
            f"eval.samples={config.eval.samples}: expected eval.temperature above 0, because "
            "greedy generations are identical"
        )
    if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
        errors.append("mesh: expected at most one axis of -1")
    learned = config.weighting.weights == "learned"
    own = plugins.is_path(config.data.name) or config.data.name in CHOICES["data.name"]
    is_fresh = learned and config.weighting.fit == "fresh"
    if is_fresh and own and config.data.name != "arithmetic":
        errors.append(
            f"weighting.fit='fresh': only the built-in task generates fresh problems, not "
            f"{config.data.name}; expected other_fold"
        )
    operations = tuple(config.data.arithmetic.operations)
    if len(operations) != 2 or not 1 <= operations[0] <= operations[1] <= 8:
        errors.append(
            f"data.arithmetic.operations={operations}: expected a minimum and a maximum in 1 to 8"
        )
    if config.data.name in custom.FILES and not config.data.path:
        suffix = config.data.name
        errors.append(
            f"data.path='': expected the folder with train.{suffix}, validation.{suffix}, …, or "
            "a file"
        )
    if config.data.name == "huggingface" and not config.data.path:
        errors.append("data.path='': expected a directory or the id of a data set on the hub")
    if config.data.name == "asdiv" and config.data.splits == "official":
        errors.append("data.splits='official': ASDiv has no official splits; expected paper")
    if config.data.answer_kind == "math":
        mathematics.require()
    errors += _ood_errors(config.eval)
    checkpoint = str(config.eval.checkpoint)
    if checkpoint not in ("best", "latest") and not checkpoint.isdecimal():
        errors.append(f"eval.checkpoint={checkpoint!r}: expected best, latest or a step number")
    errors += baselines.config_errors(config)
    if errors:
        raise UserError("\n  ".join(["Invalid configuration:", *errors]))


def _choice_errors(key: str, value: object) -> list[str]:
    """Checks a value that is none of its key's choices; imports what an import path names."""
    if key in FILE_SUFFIXES and str(value).endswith(FILE_SUFFIXES[key]):
        return []
    if key not in CUSTOM or not plugins.is_path(str(value)):
        file = f"a {FILE_SUFFIXES[key]} file" if key in FILE_SUFFIXES else ""
        others = " or ".join(filter(None, (file, CUSTOM.get(key, ""))))
        return [f"{key}={value!r}: {one_of(value, CHOICES[key], others)}"]
    load: Callable[[str], object] = {
        "data.name": custom.class_of,
        "data.answer_kind": answers.load_judge,
        "distill.loss": losses.token_loss_of,
        "student.family": families.load_custom_family,
        "weighting.weights": weightings.load,
    }.get(key, functools.partial(plugins.load, key=key))
    try:
        load(str(value))
    except UserError as error:
        return [str(error)]
    return []


def _chat_errors(student: Config) -> list[str]:
    """Checks what is passed to a chat template."""
    errors = [
        f"student.{key}={student[key]!r}: expected student.chat=True"
        for key in ("system_prompt", "chat_template_kwargs")
        if student[key] and not student.chat
    ]
    if "{question}" in student.system_prompt:
        errors.append("student.system_prompt: expected a text without {question}")
    try:
        datetime.date.fromisoformat(student.date or "2000-01-01")
    except ValueError:
        errors.append(f"student.date={student.date!r}: expected YYYY-MM-DD, or ''")
    try:
        chat_template.arguments(student.chat_template_kwargs)
    except UserError as error:
        errors.append(str(error))
    return errors


def _ood_errors(options: Config) -> list[str]:
    """Checks `eval.ood` and `eval.ood_paths`."""
    names, paths = tuple(options.ood), tuple(options.ood_paths)
    choices = CHOICES["data.name"]
    unknown = [name for name in names if not plugins.is_path(name) and name not in choices]
    if unknown or len(set(names)) < len(names):
        hint = did_you_mean(unknown[0], choices) if unknown else ""
        return [f"eval.ood={names!r}: expected distinct names out of {', '.join(choices)}{hint}"]
    for name in names:
        if name not in choices and (errors := _choice_errors("data.name", name)):
            return errors
    if paths and len(paths) != len(names):
        return [
            f"eval.ood_paths={paths!r}: expected a folder, or '', for each of eval.ood={names!r}"
        ]
    for name, path in zip(names, paths or [""] * len(names), strict=True):
        if name in custom.FORMATS and not path:
            return [f"eval.ood={name}: expected the path of its test split in eval.ood_paths"]
    return []


def _teacher_errors(teacher: Config) -> list[str]:
    errors, temperature = [], teacher.temperature
    if teacher.extra_body:
        from kpod_jax.teacher import fields  # Imports the endpoint's client, which takes a second.

        try:
            temperature = fields.extra_fields(teacher).get("temperature", temperature)
        except UserError as error:
            errors.append(str(error))
    if teacher.prompt.count("{question}") != 1:
        errors.append(f"teacher.prompt={teacher.prompt!r}: expected {{question}} exactly once")
    if teacher.samples > 1 and temperature == 0:
        errors.append(
            f"teacher.samples={teacher.samples}: expected teacher.temperature above 0, because "
            "greedy answers are identical"
        )
    if "@" in teacher.base_url or "?" in teacher.base_url:  # May hold a secret, so not shown.
        errors.append(
            "teacher.base_url: expected a URL without user, password or query; the key is read "
            "from the environment variable OPENAI_API_KEY"
        )
    elif teacher.base_url and not re.match(r"https?://[^/\s]", teacher.base_url):
        errors.append(
            f"teacher.base_url={teacher.base_url!r}: expected a URL such as "
            "http://localhost:8000/v1"
        )
    if teacher.batch == "read" and not teacher.batch_results:
        errors.append(
            "teacher.batch_results='': expected the results file for teacher.batch='read'"
        )
    return errors
