"""The exported adapter: an ordinary PEFT folder, and the zip that goes into a model again."""

import json
import shutil
import warnings
import zipfile

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from app.errors import JobFailure
from worker.training.adapter import build_adapter_zip, export_adapter, load_adapter_zip
from worker.training.models import add_adapter, load_base, trainable_parameters

TOKENS = torch.tensor([[65, 66, 67, 68, 69]])


@pytest.fixture
def trained(make_model):
    """A model whose adapter has moved from where it began."""
    return make_model(drift=0.1)


@pytest.fixture
def base(tmp_path, make_base, make_tokenizer):
    make_base().save_pretrained(tmp_path / "secret-base")
    make_tokenizer("marked").save_pretrained(tmp_path / "secret-base")
    return tmp_path / "secret-base"


@pytest.fixture
def exported(trained, base, tmp_path):
    _, tokenizer = load_base(base, device=torch.device("cpu"))
    export_adapter(trained, tokenizer, tmp_path / "adapter", base_name="tiny-llama", base_digest="d1ge57")
    return tmp_path / "adapter"


def test_peft_loads_it_with_equal_logits(exported, trained, base):
    model, _ = load_base(base, device=torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        loaded = PeftModel.from_pretrained(model, exported)
    assert torch.equal(loaded(TOKENS).logits, trained(TOKENS).logits)


def test_the_configuration_is_portable(exported):
    config = json.loads((exported / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llama"
    assert config["revision"] is None
    assert config["inference_mode"] is True
    assert config["bias"] == "none"
    assert config["modules_to_save"] is None
    assert config["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]


def test_it_brings_tokenizer_template_and_card_and_names_no_folder(exported, make_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.chat_template == make_tokenizer("marked").chat_template
    assert (exported / "chat_template.jinja").is_file()
    card = (exported / "README.md").read_text()
    assert "base_model: tiny-llama" in card
    assert "d1ge57" in card
    assert "unprotected" not in card
    for path in exported.iterdir():
        assert b"secret-base" not in path.read_bytes(), path.name


def test_the_card_of_an_unprotected_adapter_says_so(trained, make_tokenizer, tmp_path):
    names = {"base_name": "tiny-llama", "base_digest": "d1ge57"}
    export_adapter(trained, make_tokenizer(), tmp_path / "out", method="none", **names)
    assert "**unprotected**" in (tmp_path / "out" / "README.md").read_text()
    export_adapter(trained, make_tokenizer(), tmp_path / "out", method="adaptive_kl", **names)
    assert "Safety method: `adaptive_kl`" in (tmp_path / "out" / "README.md").read_text()


def test_the_zip_is_deterministic(exported, trained, base, tmp_path):
    digest = build_adapter_zip(exported, tmp_path / "one.zip")
    shutil.rmtree(exported)
    _, tokenizer = load_base(base, device=torch.device("cpu"))
    export_adapter(trained, tokenizer, exported, base_name="tiny-llama", base_digest="d1ge57")
    assert build_adapter_zip(exported, tmp_path / "two.zip") == digest
    with zipfile.ZipFile(tmp_path / "two.zip") as archive:
        assert archive.testzip() is None
        assert sorted(path.name for path in exported.iterdir()) == archive.namelist()


def test_it_goes_into_a_fresh_model_bit_for_bit(exported, trained, make_model, tmp_path):
    build_adapter_zip(exported, tmp_path / "out.zip")
    fresh = make_model()
    load_adapter_zip((tmp_path / "out.zip").read_bytes(), fresh)
    expected = trainable_parameters(trained)
    for name, value in trainable_parameters(fresh).items():
        assert torch.equal(value, expected[name])
        assert value.requires_grad


@pytest.mark.parametrize(
    ("change", "says"),
    [({"lora_r": 2}, "its r is"), ({"lora_alpha": 64}, "its lora_alpha is")],
)
def test_it_does_not_go_into_another_shape(exported, make_base, make_spec, tmp_path, change, says):
    build_adapter_zip(exported, tmp_path / "out.zip")
    other = add_adapter(make_base(torch.float32), make_spec(**change), seed=3)
    with pytest.raises(JobFailure, match=says) as found:
        load_adapter_zip((tmp_path / "out.zip").read_bytes(), other)
    assert (found.value.code, found.value.param) == ("parent_unfit", "model")


def test_weights_with_a_hostile_header_are_refused_before_they_are_read(
    exported, trained, make_model, tmp_path
):
    header = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    (exported / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    build_adapter_zip(exported, tmp_path / "out.zip")
    with pytest.raises(JobFailure, match="overflows"):
        load_adapter_zip((tmp_path / "out.zip").read_bytes(), make_model())


def test_it_does_not_go_into_a_model_of_other_layers(exported, make_model, tmp_path):
    build_adapter_zip(exported, tmp_path / "out.zip")
    with pytest.raises(JobFailure, match="other names, shapes or types"):
        load_adapter_zip((tmp_path / "out.zip").read_bytes(), make_model(num_hidden_layers=1))
