import ast
import math

import huggingface_hub
import pytest

from configs import quickstart, smollm2_135m
from kpod_jax.report import model_card

RESULTS = {
    "split": "test",
    "accuracy": 0.25,
    "correct": 10,
    "total": 40,
    "interval": [0.14, 0.4],
    "checkpoint_step": 384,
}


def card(config, **options):
    defaults = {
        "prompt": "Q: {question} A:",
        "step": 384,
        "decoder_only": False,
        "is_adapter": False,
        "results": RESULTS,
    }
    text = model_card.model_card(config, **(defaults | options))
    return text, huggingface_hub.ModelCard(text)


def test_a_card_says_what_was_measured_and_how_to_ask():
    config = quickstart.get_config("scotd")
    config.student.model = 'odd: "name"'
    text, parsed = card(config)
    assert parsed.data.to_dict().get("base_model") is None
    assert 'A student of `odd: "name"`' in text
    assert parsed.data.to_dict()["library_name"] == "transformers"
    assert "Accuracy on test: 25.0% (10 of 40; 95% interval 14.0% to 40.0%), at step 384." in text
    assert 'prompt = "Q: QUESTION A:"\n' in text
    assert 'tokenizer(prompt, add_special_tokens=True, return_tensors="pt")' in text
    assert "AutoModelForSeq2SeqLM" in text
    assert "distilled on `arithmetic` by SCoTD" in text
    [model] = parsed.data.to_dict()["model-index"]
    [result] = model["results"]
    assert result["dataset"] == {"type": "arithmetic", "name": "arithmetic", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.25}]


@pytest.mark.parametrize(
    "name",
    [
        "---",
        "a\n---\nlicense: mit",
        "a: [b",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "null",
        "\u2028é",
        "\r" * 999,
    ],
)
def test_no_name_breaks_the_front_matter(name):
    config = quickstart.get_config()
    config.student.model = config.data.name = name
    results = RESULTS | {"split": name, "accuracy": float("nan")}
    text, parsed = card(config, prompt=f"{name} {{question}}", results=results)
    data = parsed.data.to_dict()
    assert data.keys() - {"base_model"} == {
        "library_name",
        "pipeline_tag",
        "tags",
        "model-index",
        "metrics",
    }
    assert data.get("base_model") in (None, name)
    [result] = data["model-index"][0]["results"]
    assert result["dataset"] == {"type": name, "name": name, "split": name}
    assert math.isnan(result["metrics"][0]["value"])
    assert f"```text\n{name} {{question}}\n```" in text


def test_the_example_of_a_card_is_python():
    prompt = 'Say "😀\\" \n{question}'
    text, _ = card(quickstart.get_config(), prompt=prompt)
    code = text.partition("```python\n")[2].partition("```")[0]
    strings = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert prompt.replace("{question}", "QUESTION") in strings


def test_a_card_names_no_private_files():
    config = quickstart.get_config()
    config.data.path = config.data.cache_dir = config.data.rationales = "/home/me/secret"
    text, _ = card(config)
    assert "secret" not in text
    config = quickstart.get_config("scott")
    config.baseline.counterfactuals = "/home/me/secret"
    text, _ = card(config)
    assert "secret" not in text and '"counterfactual_weight": 0.5' in text
    assert "distilled on `arithmetic` by SCOTT" in text


@pytest.mark.parametrize("is_adapter", [True, False])
def test_a_card_of_a_decoder_only_student(is_adapter):
    text, parsed = card(
        smollm2_135m.get_config(), decoder_only=True, is_adapter=is_adapter, results=None
    )
    assert "AutoModelForCausalLM" in text
    assert "It was not evaluated." in text
    assert "model-index" not in parsed.data.to_dict()
    assert parsed.data.to_dict()["library_name"] == ("peft" if is_adapter else "transformers")
    assert ("`peft` package" in text) == is_adapter
    assert parsed.data.to_dict()["pipeline_tag"] == "text-generation"
