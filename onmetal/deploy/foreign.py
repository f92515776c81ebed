"""What a file is that is no model onmetal reads: told by its first bytes and the names in its
archive, of which nothing is unpacked."""

from pathlib import Path, PurePosixPath

from onmetal.converters import archive
from onmetal.converters.torch_export.checks import EXPORT

HEAD_BYTES = 512
"""How much of a file is looked at: a tar archive says what it is at byte 257."""
MOST_HEADER_BYTES = 100_000_000
"""The longest header of safetensors, by its format."""
WEIGHTS = f"weights without the model that they belong to; {EXPORT}"
_LOAD = "(before them, of a state dict: model.load_state_dict(torch.load(file, weights_only=True)))"
_PICKLED = f"a pickle runs code when it is loaded, which is not done here; {EXPORT} {_LOAD}"


def what_is(path: Path, head: bytes) -> str | None:
    """What the file is, and what to do; None where that is not known. `head`: its first HEAD_BYTES
    bytes."""
    if archive.is_zip(head):
        return _zipped(archive.names(path))
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"a Python pickle, as torch.save and others write it; {_PICKLED}"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it, and give the model in it"
    if head.startswith(b"\x1f\x8b"):
        return "compressed by gzip; unpack it, and give the model in it"
    if _is_safetensors(path, head):
        load = "model.load_state_dict(safetensors.torch.load_file(file))"
        return f"a safetensors file: {WEIGHTS} (before them: {load})"
    if head.startswith(b"GGUF"):
        return "a GGUF file, quantized weights for llama.cpp alone; export the original model"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the file; `git lfs pull` fetches it"
    return None


def _zipped(names: list[str]) -> str:
    parts = [PurePosixPath(name).parts for name in names]
    if any("code" in place[:-1] or place[-1:] == ("constants.pkl",) for place in parts):
        return (
            "TorchScript (torch.jit.save), code and a pickle, of which nothing is run; export the "
            f"module that it was made of: {EXPORT}"
        )
    if any(place[-1:] == ("data.pkl",) for place in parts):
        return f"a zip archive of torch.save, a state dict or a whole model, pickled; {_PICKLED}"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of arrays (.npz), which --data takes"
    return (
        "a zip archive of no known model, or one that is damaged or cut off; export or download it "
        "again"
    )


def _is_safetensors(path: Path, head: bytes) -> bool:
    """The length of a header in eight bytes, little-endian, and the header, in JSON:
    https://huggingface.co/docs/safetensors/index#format"""
    length = int.from_bytes(head[:8], "little")
    fits = 2 <= length <= min(MOST_HEADER_BYTES, path.stat().st_size - 8)
    return fits and head[8:9] == b"{"
