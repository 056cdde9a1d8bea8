r"""Resources of steps on TPUs and GPUs, and a cost model compared with compiled steps.

    python -m kpod_jax.main --mode=compile --config=configs/t5_base.py --topology=v5e:4x4 \
        --workdir=runs/compiled/t5_base-v5e-16
    ...                                      # any number of jobs
    python -m benchmarks.scale --compiled=runs/compiled [--write]  # prints tables for docs/scale.md

Compiled results are stored in benchmarks/compiled/, one file per job. Each `compile.json` below
--compiled adds or replaces steps of these results, and --write stores them. This benchmark compiles
nothing itself.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import tables
from configs import flan_t5_large, flan_t5_xl, llama_7b, smollm2_135m, t5_base
from kpod_jax.aot.compile import bytes_on_a_device, fits
from kpod_jax.aot.steps import STEPS, Step, job_steps, make_job
from kpod_jax.config.defaults import Config
from kpod_jax.models import hub
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import devices
from kpod_jax.utils import files

_COMPILED = flags.DEFINE_string("compiled", "", "Directory of work directories with new results.")
_STORED = pathlib.Path("benchmarks/compiled")
# The fields of a step's report used in the tables.
_FIELDS = ("name", "fits", "peak_bytes", "beside_bytes", "where", "flops", "counted", "sent_bytes")
_CONFIGS = (smollm2_135m, t5_base, flan_t5_large, flan_t5_xl, llama_7b)
_GPU = "NVIDIA H100 80GB HBM3"
# Data of `plan_table`: total rationale tokens; tokens of a question, a rationale and an answer
# sentence; assumed fraction of peak FLOP/s.
_RATIONALE_TOKENS, _LENGTHS, _PEAK_FRACTION = 1e9, (60, 150, 12), 0.4


def configs() -> list[Config]:
    """Returns the students' configurations, with names of known architectures as models."""
    result = [module.get_config() for module in _CONFIGS]
    for config in result:
        config.student.model = config.student.model.removesuffix("-Instruct")
    return result


def forward_products(model: str, source: int, target: int) -> tuple[float, float, float]:
    """Returns the FLOPs of a row's forward pass: layer weights, attention, and head.

    Args:
      model: a name in `models.families.NAMED`.
      source: tokens of the prompt.
      target: tokens of the target.
    """
    c = hub.load_config(model)
    if isinstance(c, T5Config):
        inner = c.d_model * c.num_heads * c.d_kv
        mlp = (3 if c.gated else 2) * c.d_model * c.d_ff
        encoder, decoder = c.num_layers, c.num_decoder_layers
        weights = encoder * source * (4 * inner + mlp) + decoder * target * (6 * inner + mlp)
        weights += decoder * source * 2 * inner  # Keys and values of the encoder output.
        pairs = encoder * source**2 + decoder * (target**2 + source * target)
        width = c.num_heads * c.d_kv
    else:
        length, width = source + target, c.num_attention_heads * c.head_dim
        keys = c.num_key_value_heads * c.head_dim
        layer = c.hidden_size * (2 * width + 2 * keys + 3 * c.intermediate_size)
        weights = c.num_hidden_layers * length * layer
        pairs = c.num_hidden_layers * length**2
    return 2.0 * weights, 4.0 * pairs * width, 2.0 * target * c.d_model * c.vocab_size


def train_flops(
    model: str, rows: int, source: int, target: int, *, remat: str = "none", lora: int = 0
) -> float:
    """Returns the FLOPs of a train step: forward, backward to inputs and weights, recomputation.

    Ignores the adapters themselves.
    """
    weights, attention, head = forward_products(model, source, target)
    to_weights = 0 if lora else 1
    total = weights * (2 + to_weights + (remat == "full"))
    total += attention * (3 + (remat != "none"))
    return rows * (total + head * (2 + to_weights))


def matrix_parameters(model: str) -> float:
    """Returns the parameters of layers and head, the ones that are gathered and reduced."""
    source = int(
        isinstance(hub.load_config(model), T5Config)
    )  # 1 would count decoder-only layers twice.
    weights, _, head = forward_products(model, source, 1)
    return (weights + head) / 2


def train_sent(mesh: dict[str, int], parameters: float, trained: float) -> float:
    """Returns the bytes a device sends for parameters and gradients in a train step.

    Gradients are all-reduced over data replicas (two rounds, bfloat16), or reduce-scattered to
    their owners (one round, with fsdp). Parameters are gathered twice in bfloat16, for the forward
    and the backward pass.
    """
    fraction = 1 / mesh["tensor"]
    sent = 2 * 2 * trained * fraction / mesh["fsdp"] if mesh["data"] > 1 else 0.0
    if mesh["fsdp"] > 1:
        sent += 2 * 2 * parameters * fraction + 2 * trained * fraction
    return sent


def activations_sent(
    model: str, mesh: dict[str, int], rows: int, source: int, target: int
) -> float:
    """Returns the bytes a device sends for activations under tensor parallelism.

    Each sublayer's output is all-reduced, forward and backward, in two rounds of bfloat16.
    """
    if mesh["tensor"] == 1:
        return 0.0
    c, device_rows = hub.load_config(model), rows / (mesh["data"] * mesh["fsdp"])
    if isinstance(c, T5Config):
        tokens = 2 * c.num_layers * source + 3 * c.num_decoder_layers * target
    else:
        tokens = 2 * c.num_hidden_layers * (source + target)
    return 2 * 2 * 2 * device_rows * tokens * c.d_model


def train_traffic(
    model: str,
    mesh: dict[str, int],
    rows: int,
    source: int,
    target: int,
    *,
    remat: str = "none",
    lora: int = 0,
) -> float:
    """Returns the approximate memory traffic of a device in a train step, in bytes.

    Weights are read in bfloat16 in each pass; Adam reads and writes 28 bytes per trained parameter;
    activations take 34 bytes per token, layer and unit of width (Korthikanti et al., "Reducing
    Activation Recomputation in Large Transformer Models", 2022, section 4.1; those of attention
    are fused), written and read once, and once more with remat.
    """
    c, parameters = hub.load_config(model), matrix_parameters(model)
    passes = 2 + (remat == "full")
    fraction = 1 / (mesh["tensor"] * mesh["fsdp"])
    weights = 2 * passes * parameters / mesh["tensor"]
    optimizer = 0.0 if lora else 28 * parameters * fraction
    if isinstance(c, T5Config):
        tokens = c.num_layers * source + c.num_decoder_layers * target
    else:
        tokens = c.num_hidden_layers * (source + target)
    device_rows = rows / (mesh["data"] * mesh["fsdp"] * mesh["tensor"])
    return weights + optimizer + 34 * passes * device_rows * tokens * c.d_model


def read_compiled(folder: str | pathlib.Path, name: str = "**/compile.json") -> list[dict]:
    """Reads all results below a directory."""
    return [json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob(name))]


def merged(jobs: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns jobs by name; later results replace earlier ones of the same step."""
    result: dict[str, dict[str, Any]] = {}
    for job in jobs:
        sizes = "x".join(str(job["mesh"][axis]) for axis in ("data", "fsdp", "tensor"))
        topology = job["topology"].replace(":", "-")
        name = f"{_short(job['student'])}-{topology}-mesh-{sizes}-rows-{job['batch_size']}"
        steps = {step["name"]: step for step in result.get(name, {"steps": []})["steps"]}
        for step in job["steps"]:
            steps[step["name"]] = {field: step[field] for field in _FIELDS}
        order = [steps[step] for step in STEPS if step in steps]
        result[name] = job | {"steps": order}
    students = [config.student.model for config in configs()]

    def order_key(item: tuple[str, dict[str, Any]]) -> tuple[int, str]:
        student = item[1]["student"]
        return students.index(student) if student in students else len(students), item[0]

    return dict(sorted(result.items(), key=order_key))


def compiled_table(jobs: list[dict[str, Any]]) -> list[str]:
    """Returns the table of compiled steps; its times are lower bounds at peak rates."""
    rows = [
        "| student | devices | data × fsdp × tensor | rows | step | GB of HBM | "
        "largest parts, GB | TFLOP | sent, GB | compute, ms | links, ms |",
        "| --- " * 11 + "|",
    ]
    for job in jobs:
        device = devices.lookup(job["device_kind"])
        assert device is not None
        mesh = job["mesh"]
        count = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
        for step in job["steps"]:
            need = step["peak_bytes"] + step["beside_bytes"]
            verdict = "" if step["fits"] else " (does not fit)"
            parts = sorted(step["where"].items(), key=lambda item: -item[1])[:3]
            largest = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts)
            compute = step["flops"] / count / device.peak_flops * 1e3
            links = step["sent_bytes"] / device.link_bandwidth * 1e3
            sent = f"{step['sent_bytes'] / 1e9:.2f} | {compute:.2f} | {links:.2f}"
            if step["counted"] is None:
                sent = f"| {compute:.2f} | "
            rows.append(
                f"| {_short(job['student'])} | {job['topology']} | {mesh['data']} × {mesh['fsdp']} "
                f"× {mesh['tensor']} | {job['batch_size']} | {step['name']} | {need / 1e9:.2f} of "
                f"{device.hbm_bytes / 1e9:.1f}{verdict} | {largest} | {step['flops'] / 1e12:.2f} "
                f"| {sent} |"
            )
    return rows


def model_table(jobs: list[dict[str, Any]]) -> list[str]:
    """Returns the table of ratios of modeled to compiled costs of train steps."""
    rows = [
        "| student | devices | data × fsdp × tensor | rows | operations: compiler / counted | "
        "operations: model / counted | sent: model / compiled |",
        "| --- " * 7 + "|",
    ]
    for job in jobs:
        for step in job["steps"]:
            if step["name"] != "train" or step["counted"] is None:
                continue
            mesh, size = job["mesh"], job["batch_size"]
            model, lengths = job["student"], job["lengths"]
            options = {"remat": job["remat"], "lora": job["lora"]}
            modelled = train_flops(model, size, *lengths, **options) / step["flops"]
            parameters = matrix_parameters(model)
            sent = train_sent(mesh, parameters, 0 if job["lora"] else parameters)
            sent += activations_sent(model, mesh, size, *lengths)
            ratio = f"{sent / step['sent_bytes']:.2f}" if sent and step["sent_bytes"] else ""
            rows.append(
                f"| {_short(model)} | {job['topology']} | {mesh['data']} × {mesh['fsdp']} × "
                f"{mesh['tensor']} | {size} | {step['counted']:.2f} | {modelled:.2f} | {ratio} |"
            )
    return rows


def gpu_table(jobs: list[dict[str, Any]]) -> list[str]:
    """Returns the table of memory on one GPU.

    Arguments and gradients are exact; temporaries are those of one TPU chip. If the step was only
    compiled for several chips, a chip's temporaries times the number of chips are an upper bound,
    "≤", since replicated values are counted several times.
    """
    gpu = devices.DEVICES[_GPU]
    rows = [
        "| student | step | parameters | optimiser state | gradients | held beside | without "
        "activations | activations of one chip | all, GB | fits |",
        "| --- " * 10 + "|",
    ]
    temporaries: dict[tuple[str, str, int], dict[int, float]] = {}
    for job in jobs:
        chips = int(np.prod([*job["mesh"].values()]))
        for step in job["steps"]:
            if step["counted"] is not None:
                size = step["where"]["activations"] + step["where"]["logits"]
                key = (job["student"], step["name"], job["batch_size"])
                temporaries.setdefault(key, {})[chips] = chips * size
    for config in configs():
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 1, 1
        run = make_job(config, jax.devices()[:1])
        for step in job_steps(run, ("train", "fit")):
            sizes = _without_activations(step)
            base = sum(sizes.values())
            key = (config.student.model, step.name, config.distill.batch_size)
            chips, temporary = min(temporaries.get(key, {0: 0.0}).items())
            total = base + temporary
            verdict = "yes" if fits(int(total), gpu.hbm_bytes) else "no"
            if fits(int(base), gpu.hbm_bytes):
                if not chips:
                    verdict = "not compiled"
                elif chips > 1 and verdict == "no":
                    verdict = "not shown"
            columns = " | ".join(f"{size / 1e9:.1f}" for size in sizes.values())
            bound = "≤ " if chips > 1 else ""
            activations = f"{bound}{temporary / 1e9:.1f}" if chips else ""
            rows.append(
                f"| {_short(config.student.model)} | {step.name} | {columns} | {base / 1e9:.1f} | "
                f"{activations} | {bound}{total / 1e9:.1f} | {verdict} |"
            )
    return rows


def _without_activations(step: Step) -> dict[str, int]:
    return {
        "parameters": bytes_on_a_device(step.parts["parameters"]),
        "optimiser state": bytes_on_a_device(step.parts["optimiser state"]),
        "gradients": bytes_on_a_device(step.gradients),
        "beside": bytes_on_a_device(step.beside),
    }


# Mesh and batch size by device count: data, fsdp, tensor, rows.
_SHAPES = {16: (1, 4, 4, 4), 256: (16, 16, 1, 256)}
_SHAPES_OF_SMALL = {16: (16, 1, 1, 32), 256: (256, 1, 1, 256)}
# Tokens of prompt and target: GSM8K, the maximum of the configurations, and LLaMA's limit.
_CONTEXTS = ((60, 162), (256, 512), (512, 1536))


def step_table() -> list[str]:
    """Returns the table of modeled lower bounds on the train step time."""
    rows = [
        "| student | chips | data × fsdp × tensor | rows | prompt + target | compute, ms | "
        "memory, ms | links, ms | bound by |",
        "| --- " * 9 + "|",
    ]
    device = devices.DEVICES["TPU v5 lite"]
    for config in configs():
        model = config.student.model
        options = {"remat": config.student.remat, "lora": config.student.lora.rank}
        shapes = _SHAPES_OF_SMALL if config.mesh.data == -1 else _SHAPES
        parameters = matrix_parameters(model)
        trained = 0 if options["lora"] else parameters
        for chips, (data, fsdp, tensor, size) in shapes.items():
            mesh = {"data": data, "fsdp": fsdp, "tensor": tensor}
            for lengths in _CONTEXTS:
                flops = train_flops(model, size, *lengths, **options)
                sent = train_sent(mesh, parameters, trained)
                sent += activations_sent(model, mesh, size, *lengths)
                seconds = {
                    "compute": flops / chips / device.peak_flops,
                    "memory": train_traffic(model, mesh, size, *lengths, **options)
                    / device.hbm_bandwidth,
                    "links": sent / device.link_bandwidth,
                }
                columns = " | ".join(f"{value * 1e3:.1f}" for value in seconds.values())
                rows.append(
                    f"| {_short(model)} | {chips} | {data} × {fsdp} × {tensor} | {size} | "
                    f"{lengths[0]} + {lengths[1]} | {columns} | "
                    f"{max(seconds, key=lambda key: seconds[key])} |"
                )
    return rows


def plan_table() -> list[str]:
    """Returns the table of modeled times of an epoch and a scoring pass of 1e9 rationale tokens."""
    rows = [
        "| student | chips | scoring, min | an epoch of distillation, min | tokens of a batch at "
        "which links take as long as compute |",
        "| --- " * 5 + "|",
    ]
    question, rationale, answer = _LENGTHS
    examples = _RATIONALE_TOKENS / rationale
    device = devices.DEVICES["TPU v5 lite"]
    for config in configs():
        model = config.student.model
        target = rationale + answer
        options = {"remat": config.student.remat, "lora": config.student.lora.rank}
        row = train_flops(model, 1, question, target, **options)
        parameters = matrix_parameters(model)
        trained = 0 if options["lora"] else parameters
        for chips in (16, 256):
            rate = chips * device.peak_flops * _PEAK_FRACTION
            score = examples * sum(forward_products(model, question, target)) / rate / 60
            epoch = examples * row / rate / 60
            mesh = {"data": 1, "fsdp": chips, "tensor": 1}
            links = train_sent(mesh, parameters, trained) / device.link_bandwidth
            tokens = links * rate / row * (question + target)
            columns = f"{score:.1f} | {epoch:.1f} | {tokens:,.0f}"
            rows.append(f"| {_short(model)} | {chips} | {columns} |")
    return rows


def _short(model: str) -> str:
    return model.rsplit("/", 1)[-1]


def main(argv: list[str]) -> None:
    """Prints the tables."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    new_jobs = read_compiled(_COMPILED.value) if _COMPILED.value else []
    jobs_by_name = merged([*read_compiled(_STORED, "*.json"), *new_jobs])
    if tables.WRITE.value:
        for name, job in jobs_by_name.items():
            files.write_json(_STORED / f"{name}.json", job)
    jobs = list(jobs_by_name.values())
    tables_by_name = {
        "compiled": compiled_table(jobs),
        "model": model_table(jobs),
        "gpu": gpu_table(jobs),
        "steps": step_table(),
        "plan": plan_table(),
    }
    for name, rows in tables_by_name.items():
        print("\n".join(rows))
        if tables.WRITE.value:
            tables.put("docs/scale.md", name, rows)


if __name__ == "__main__":
    app.run(main)
