"""Safetensors -> parameters, and every way in which a folder can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.model.pieces import Bench, Piece
from trioserve.errors import ModelError
from trioserve.model import decoder
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder, DecoderLayer
from trioserve.model.loader import checkpoint_targets, dummy_weights, load_weights, resolve_dtype
from trioserve.model.native import Crew

SINGLE = "model.safetensors"


def empty(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(read_config(folder), dtype, num_positions=8)


def same(one: Decoder, other: Decoder) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def folder(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(checkpoints.folder("llama"), tmp_path / "llama"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


@pytest.mark.parametrize("name", ["llama", "llama-odd-heads-tied", "qwen2", "qwen3", "ernie-biased"])
def test_merged_parameters_hold_the_checkpoints_rows_in_order(checkpoints: Checkpoints, name: str) -> None:
    folder = checkpoints.folder(name)
    model = empty(folder)
    load_weights(model, folder)
    state = checkpoints.reference(name).state_dict()
    layer = model.model.layers[1]
    assert isinstance(layer, DecoderLayer)
    for kind in ("weight", "bias") if model.config.qkv_bias else ("weight",):
        parts = [state[f"model.layers.1.self_attn.{part}_proj.{kind}"] for part in "qkv"]
        assert torch.equal(getattr(layer.self_attn.qkv_proj, kind), torch.cat(parts))
    parts = [state[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(layer.mlp.gate_up_proj.weight, torch.cat(parts))
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])


def test_shards_are_read_as_one_checkpoint(checkpoints: Checkpoints) -> None:
    sharded = checkpoints.folder("qwen3", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, other = empty(sharded), empty(checkpoints.folder("qwen3"))
    load_weights(one, sharded)
    load_weights(other, checkpoints.folder("qwen3"))
    assert same(one, other)


def test_progress_counts_up_to_the_bytes_of_the_files(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("llama", max_shard_size="100KB")
    seen: list[tuple[int, int]] = []
    load_weights(empty(folder), folder, lambda loaded, total: seen.append((loaded, total)))
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert len(seen) > 20


def test_weights_are_converted_to_the_type_asked_for(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("llama")
    model = empty(folder, torch.bfloat16)
    load_weights(model, folder)
    expected = checkpoints.reference("llama").state_dict()["model.norm.weight"].bfloat16()
    assert torch.equal(model.model.norm.weight, expected)


# ---- borrowed from the mapped file -----------------------------------------------------------------------------------

TEXT = prompt_of(40, seed=2)


def native(folder: Path, *, may_borrow: bool) -> Decoder:
    model = Decoder(read_config(folder), torch.bfloat16, num_positions=64)
    load_weights(model, folder, may_borrow=may_borrow)
    assert model.pack(Crew(2, alone_work=0)).startswith("native")
    return model


def logits(model: Decoder) -> Tensor:
    return Bench(model).run(Piece(TEXT, 0, len(TEXT), [3, 1, 2]))


@pytest.mark.parametrize("name", ["llama", "llama-odd-heads-tied", "qwen2", "qwen3", "ernie-biased"])
def test_borrowed_weights_are_packed_as_copied_ones_are(checkpoints: Checkpoints, name: str) -> None:
    folder = checkpoints.folder(name, dtype=torch.bfloat16, max_shard_size="40KB")
    assert torch.equal(*(logits(native(folder, may_borrow=may_borrow)) for may_borrow in (True, False)))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_once_packed_nothing_is_read_from_the_file(
    checkpoints: Checkpoints, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(checkpoints.folder(name, dtype=torch.bfloat16), tmp_path / name))
    model = native(folder, may_borrow=True)
    before = logits(model)
    with (folder / SINGLE).open("r+b") as file:
        file.write(bytes((folder / SINGLE).stat().st_size))
    assert torch.equal(logits(model), before)


def test_what_is_of_another_type_is_converted_and_not_borrowed(checkpoints: Checkpoints) -> None:
    wide, half = (checkpoints.folder("qwen3", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(logits(native(wide, may_borrow=True)), logits(native(half, may_borrow=True)))


def test_progress_of_borrowed_weights_is_told_as_they_are_packed(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_PACKED_AT_ONCE_BYTES", 1)  # after every layer
    folder = checkpoints.folder("llama", dtype=torch.bfloat16)
    model = empty(folder, torch.bfloat16)
    loaded: list[tuple[int, int]] = []
    load_weights(model, folder, lambda *bytes_: loaded.append(bytes_), may_borrow=True)
    assert all(count < total / 2 for count, total in loaded)
    packed: list[tuple[int, int]] = []
    model.pack(Crew(1), progress=lambda *bytes_: packed.append(bytes_))
    assert packed == sorted(packed)
    assert len(packed) >= 3
    assert packed[-1][0] == packed[-1][1] > 50_000


# ---- types -----------------------------------------------------------------------------------------------------------


def test_auto_takes_the_type_of_the_checkpoint(checkpoints: Checkpoints, folder: Path) -> None:
    half = checkpoints.folder("llama", dtype=torch.bfloat16)
    assert resolve_dtype(half, read_config(half), "auto") == torch.bfloat16
    assert resolve_dtype(half, read_config(half), "float32") == torch.float32
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert resolve_dtype(folder, read_config(folder), "auto") == torch.float32
    rewrite(folder, lambda tensors: tensors.update({name: t.double() for name, t in tensors.items()}))
    with pytest.raises(ModelError, match="weights of type F64"):
        resolve_dtype(folder, read_config(folder), "auto")


def test_dummy_weights_follow_from_the_seed(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("qwen2")
    models = [empty(folder) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        dummy_weights(model, seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])
    assert models[0].lm_head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert models[0].model.norm.weight.eq(1).all()


def test_old_buffers_and_the_tied_head_are_passed_over(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints.folder("qwen2"), tmp_path / "qwen2"))
    rewrite(
        folder,
        lambda tensors: tensors.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
                "lm_head.weight": torch.ones(160, 64),
            }
        ),
    )
    model = empty(folder)
    load_weights(model, folder)
    assert "lm_head.weight" not in checkpoint_targets(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("model.norm.weight"), r"lacks 1 tensors: model\.norm\.weight"),
        (lambda t: [t.pop(name) for name in list(t) if "mlp" in name], r"lacks 6 tensors: .* and 3 more"),
        (lambda t: t.update(extra=torch.ones(2)), "holds unknown 1 tensors: extra"),
        (
            lambda t: t.update({"model.layers.1.self_attn.k_proj.weight": torch.ones(64, 64)}),
            r"tensor model\.layers\.1\.self_attn\.k_proj\.weight has shape \[64, 64\], the config says \[32, 64\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}),
            r"model\.norm\.weight is of type torch\.int8",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(
    folder: Path, change: Callable[[dict[str, Tensor]], object], sentence: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(ModelError, match=sentence):
        load_weights(empty(folder), folder)


@pytest.mark.parametrize("keep_bytes", [0, 7, 100, 5000, -1])
def test_a_truncated_file_is_named(folder: Path, keep_bytes: int) -> None:
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[:keep_bytes])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or truncated"):
        load_weights(empty(folder), folder)


def test_a_pointer_in_place_of_the_weights_is_named(folder: Path) -> None:
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="damaged or truncated"):
        load_weights(empty(folder), folder)


def test_a_folder_of_pickles_is_told_what_is_needed(folder: Path) -> None:
    (folder / SINGLE).unlink()
    with pytest.raises(ModelError, match="holds no weights; safetensors are needed"):
        load_weights(empty(folder), folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds only pytorch_model\.bin; safetensors are needed"):
        load_weights(empty(folder), folder)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ("{", "index.json is damaged"),
        ("[]", "index.json is damaged"),
        ('{"weight_map": {}}', "does not name files of its own folder"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "does not name files of its own folder"),
        ('{"weight_map": {"a": 3}}', "does not name files of its own folder"),
        (
            '{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}',
            "lacks 2 of 2 weight files, such as x",
        ),
    ],
)
def test_a_damaged_index_is_named(folder: Path, index: str, sentence: str) -> None:
    (folder / SINGLE).rename(folder / "other.bin")
    (folder / f"{SINGLE}.index.json").write_text(index)
    with pytest.raises(ModelError, match=sentence):
        load_weights(empty(folder), folder)
