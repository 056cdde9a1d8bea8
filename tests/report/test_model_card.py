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
    assert parsed.data.to_dict()["base_model"] == 'odd: "name"'
    assert parsed.data.to_dict()["library_name"] == "transformers"
    assert "Accuracy on test: 25.0% (10 of 40; 95 % interval 14.0% to 40.0%), at step 384." in text
    assert 'tokenizer("Q: QUESTION A:", return_tensors="pt")' in text
    assert "AutoModelForSeq2SeqLM" in text
    assert "distilled on `arithmetic` by SCoTD" in text


def test_a_card_names_no_private_files():
    config = quickstart.get_config()
    config.data.path = config.data.cache = config.data.rationales = "/home/me/secret"
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
    assert parsed.data.to_dict()["library_name"] == ("peft" if is_adapter else "transformers")
    assert ("`peft` package" in text) == is_adapter
