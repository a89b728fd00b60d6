"""Sources are inlined and signatures read; cubins are compiled once and found again."""

import json
import re
import sys
from pathlib import Path

import pytest

from trioserve.errors import KernelError
from trioserve.kernels import __main__ as command
from trioserve.kernels import nvrtc as nvrtc_module
from trioserve.kernels import source
from trioserve.kernels.build import Builder, cache_folder, key_of
from trioserve.kernels.nvrtc import Cubin, Nvrtc, Usage, usages_of
from trioserve.kernels.source import Kernel, essence, inlined, signature

KERNEL = Kernel("rope.cu", "apply_rope<bf16, false, 8, 256>")
LOG = """\
ptxas info    : Compiling entry function '_Z1a' for 'sm_80'
ptxas info    : Function properties for _Z1a
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 32 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1b' for 'sm_80'
ptxas info    : Function properties for _Z1b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


class Counting(Nvrtc):
    """Compiles nothing, and counts."""

    def __init__(self) -> None:
        self.compiled: list[tuple[str, ...]] = []
        self.version = "13.0"

    def check_architecture(self, architecture: str) -> None:
        assert architecture.startswith("sm_")

    def compile(self, text: str, kernels: object, architecture: str) -> Cubin:
        self.compiled.append((*kernels, architecture))  # type: ignore[misc]
        assert "#include" not in text
        return Cubin(b"\x7fELF\nimage\n", ("_Z4name",), (Usage("_Z4name", 40, 0, 0, 32),))


def test_includes_are_inlined_once_and_the_emulator_is_left_out() -> None:
    text = inlined("paged_decode.cu")
    assert "#include" not in text
    assert "#pragma once" not in text
    assert text.count("struct bf16 {") == 1
    assert (
        text.index("using u32")
        < text.index("struct bf16 {")
        < text.index("struct Softmax")
        < text.index("merge_splits(")
    )
    with pytest.raises(KernelError, match=r"there is no kernel source .*nothing\.cu"):
        inlined("nothing.cu")


def test_ptx_is_in_one_file_only() -> None:
    holders = [
        path.name for path in sorted(source.FOLDER.iterdir()) if re.search(r"\basm\b", path.read_text())
    ]
    assert holders == ["device.cuh"]


def test_a_signature_is_what_the_source_says() -> None:
    found = {argument.name: argument.kind for argument in signature(KERNEL)}
    assert found == {
        "q": "out bf16",
        "k": "out bf16",
        "positions": "in i64",
        "table": "in f32",
        **dict.fromkeys(("num_heads", "num_kv_heads", "head_dim"), "i32"),
        **dict.fromkeys(("q_stride", "k_stride"), "i64"),
    }


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("turn<bf16>", "rope.cu has no kernel turn"),
        ("apply_rope<bf16>", "apply_rope in rope.cu is a template of 4, not of apply_rope<bf16>"),
        ("apply_rope<double, false, 1, 256>", "takes 'T. __restrict__ q', which no launch can give"),
    ],
)
def test_what_is_no_kernel_is_named(name: str, sentence: str) -> None:
    with pytest.raises(KernelError, match=sentence):
        signature(Kernel("rope.cu", name))


def test_a_kernel_is_compiled_once(tmp_path: Path) -> None:
    compiler = Counting()
    first = Builder("sm_90a", tmp_path, compiler=lambda: compiler).get(KERNEL)
    again = Builder("sm_90a", tmp_path, compiler=lambda: compiler).get(KERNEL)
    assert first == again
    assert (first.path.read_bytes(), first.mangled) == (b"\x7fELF\nimage\n", "_Z4name")
    assert (first.usage.registers, first.cuda) == (40, "13.0")
    Builder("sm_80", tmp_path, compiler=lambda: compiler).get(KERNEL)
    assert compiler.compiled == [(KERNEL.name, "sm_90a"), (KERNEL.name, "sm_80")]
    assert len(list(tmp_path.glob("*.cubin"))) == 2
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())


def test_a_filled_folder_needs_no_compiler(tmp_path: Path) -> None:
    Builder("sm_90a", tmp_path, compiler=Counting).get(KERNEL)

    def absent() -> Nvrtc:
        raise KernelError("NVRTC is not installed")

    builder = Builder("sm_90a", tmp_path, compiler=absent)
    assert builder.get(KERNEL).mangled == "_Z4name"
    with pytest.raises(KernelError, match="not installed"):
        builder.get(Kernel("rope.cu", "apply_rope<fp16, false, 8, 256>"))


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json", b"[]"])
@pytest.mark.parametrize("suffix", [".cubin", ".json"])
def test_a_damaged_cubin_is_compiled_anew(tmp_path: Path, suffix: str, damage: bytes) -> None:
    compiler = Counting()
    builder = Builder("sm_90a", tmp_path, compiler=lambda: compiler)
    whole = builder.get(KERNEL)
    path = builder.path(KERNEL).with_suffix(suffix)
    for text in (damage, path.read_bytes()[:-3]):
        path.write_bytes(text)
        assert builder.get(KERNEL) == whole
    path.unlink()
    assert builder.get(KERNEL) == whole
    assert len(compiler.compiled) == 4


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    builder = Builder("sm_90a", file / "kernels", compiler=Counting)
    with pytest.raises(
        KernelError, match=r"cannot be kept \(.*file/kernels.*\): set XDG_CACHE_HOME to a folder"
    ):
        builder.get(KERNEL)


@pytest.mark.parametrize(("addition", "is_same"), [("struct New {};\n", False), ("\n   // new\n", True)])
def test_a_changed_source_is_another_cubin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addition: str, is_same: bool
) -> None:
    """Also where only an included file changed, and not where only a comment did."""
    before = key_of(KERNEL, "sm_90a")
    for path in source.FOLDER.iterdir():
        text = path.read_text()
        (tmp_path / path.name).write_text(text + addition if path.name == "types.cuh" else text)
    monkeypatch.setattr(source, "FOLDER", tmp_path)
    for read in (inlined, essence):
        read.cache_clear()
    try:
        assert (key_of(KERNEL, "sm_90a") == before) == is_same
    finally:
        for read in (inlined, essence):
            read.cache_clear()


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trioserve" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "trioserve" / "kernels"


def test_what_ptxas_says_is_read() -> None:
    assert list(usages_of(LOG)) == [Usage("_Z1a", 40, 16, 12, 32), Usage("_Z1b", 8, 0, 0, 0)]
    with pytest.raises(KernelError, match="ptxas says nothing of"):
        list(usages_of("Compiling entry function '_Z1a' for 'sm_80'\n"))


def test_a_missing_compiler_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nvrtc_module, "_candidates", lambda: iter(()))
    nvrtc_module.nvrtc.cache_clear()
    assert command.main(["--compile-kernels", "sm_90a"]) == 78
    said = capsys.readouterr().err
    assert said == (
        "trioserve: NVRTC, which compiles the CUDA kernels, is not installed: pip install 'trioserve[cuda]'.\n"
    )


def test_a_library_that_is_none_is_said_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "libnvrtc.so.13"
    path.write_text("")
    with pytest.raises(KernelError, match=r"NVRTC cannot be loaded \(.*libnvrtc.so.13.*\): pip install"):
        Nvrtc(path)


def has_nvrtc() -> bool:
    return next(nvrtc_module._candidates(), None) is not None


@pytest.mark.skipif(not has_nvrtc(), reason="NVRTC is not installed")
def test_the_command_compiles_and_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no CuPy, too."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    nvrtc_module.nvrtc.cache_clear()
    arguments = ["--kernel-cache", str(tmp_path), "--only", "copy_blocks", "--compile-kernels"]
    assert command.main([*arguments, "sm_80", "sm_90a"]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^ +\d+ +0 +0  copy_blocks<256, 4>$", said, re.MULTILINE)) == 2
    assert said.count("1 kernels, none spills") == 2
    cubins = sorted(tmp_path.glob("*.cubin"))
    assert [path.name.split("-")[1] for path in cubins] == ["sm_80", "sm_90a"]
    words = json.loads(cubins[0].with_suffix(".json").read_bytes())
    assert words["mangled"].startswith("_Z11copy_blocks") and words["cuda"] == nvrtc_module.nvrtc().version
    assert cubins[0].read_bytes().startswith(b"\x7fELF")
    for wrong, sentence in (
        ("sm_50", "compiles for sm_.* to sm_.*, not for sm_50"),
        ("90", "'90' is no GPU arch"),
    ):
        assert command.main([*arguments, wrong]) == 78
        assert re.search(sentence, capsys.readouterr().err)


@pytest.mark.skipif(not has_nvrtc(), reason="NVRTC is not installed")
def test_what_the_compiler_refuses_comes_with_its_log() -> None:
    nvrtc_module.nvrtc.cache_clear()
    with pytest.raises(
        KernelError, match=r'refuses the kernels for sm_80:\n(.|\n)*identifier "nonsense" is undefined'
    ):
        nvrtc_module.nvrtc().compile("__global__ void k() { nonsense; }", ["k"], "sm_80")
