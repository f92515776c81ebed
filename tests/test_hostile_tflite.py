"""Damaged .tflite files before TFLite Micro: whatever they do to a worker, the parent lives, and
each has a reason."""

import resource
from collections import Counter
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from onmetal.converters.tflite import io, quantize, reader
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from onmetal.deploy import model as models
from onmetal.errors import OnmetalError, UsageError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker
from tests.conftest import deploy
from tests.hostile_files import special
from tests.tflite_nets import small

COUNT = 1000
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small int8 network of operators of several kinds."""
    net = read(small(tmp_path_factory.mktemp("sound") / "net", "Relu", "Sigmoid", "LeakyRelu"))
    made = quantize.quantize(net, dict.fromkeys(quantize.observed(net), (-3.0, 3.0)), "s8")
    io.integers(made)
    return write(made)


def mutated(content: bytes, seed: int) -> bytes:
    """One of the ways in which files go wrong: bits, bytes, words of extremes, cuts, shifts."""
    rng = np.random.default_rng(seed)
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(8, len(found) - 4))  # its identifier stays: else nothing is tried
        match int(rng.integers(6)):
            case 0:
                found[place] ^= 1 << int(rng.integers(8))
            case 1:
                found[place] = int(rng.integers(256))
            case 2:
                extreme = rng.choice([0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
                found[place : place + 4] = int(extreme).to_bytes(4, "little")
            case 3:
                del found[max(64, place) :]
            case 4:
                other = int(rng.integers(8, len(found) - 4))
                found[place : place + 4] = found[other : other + 4]
            case _:
                found[place:place] = bytes(int(rng.integers(1, 9)))
        if len(found) < 80:
            break
    return bytes(found)


class Trier:
    """Reads a file as `deploy` does and runs what is accepted in TFLite Micro, in one worker, which
    is started again where it died."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.device = cache, Local(cache)
        self.worker: LocalWorker | None = None

    def outcome(self, path: Path) -> str:
        """`runs`, or the reason; the kind of error that it came with is one of onmetal's own."""
        if self.worker is None or self.worker.closed or not self.worker.running:
            self.close()
            self.worker = self.device.worker()
        try:
            facts = self.worker.call(
                "call",
                timeout_s=LIMIT_S,
                function="onmetal.converters.tflite.reader:examine",
                arguments={
                    "path": str(path),
                    "shapes": {},
                    "batch": None,
                    "folder": str(path.parent / "out"),
                },
            )
            models._check_memory(path, facts)
            names = [[t["name"] for t in facts[side]] for side in ("inputs", "outputs")]
            self.worker.call(
                "open",
                timeout_s=LIMIT_S,
                runtime="tflm",
                files=[str(path)],
                options={},
                inputs=names[0],
                outputs=names[1],
            )
            feed = {f"0/{t['name']}": np.zeros(t["shape"], t["dtype"]) for t in facts["inputs"]}
            np.savez(path.parent / "feed.npz", **feed)  # type: ignore[arg-type]
            self.worker.call(
                "run",
                timeout_s=LIMIT_S,
                path=str(path.parent / "feed.npz"),
                folder=str(path.parent / "out"),
            )
        except OnmetalError as error:
            return str(error)
        return "runs"

    def close(self) -> None:
        if self.worker and not self.worker.closed:
            self.worker.close()


def test_a_thousand_damaged_files_each_have_a_reason(
    sound: bytes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "damaged.tflite"
    outcomes: Counter[str] = Counter()
    with Cache() as cache:
        trier = Trier(cache)
        request.addfinalizer(trier.close)
        for seed in range(COUNT):
            path.write_bytes(mutated(sound, seed))
            said = trier.outcome(path)
            assert said.strip(), seed
            outcomes["runs" if said == "runs" else "reason"] += 1
        path.write_bytes(sound)
        assert trier.outcome(path) == "runs"
    assert outcomes["reason"] > COUNT / 3, outcomes
    assert outcomes["runs"] > COUNT / 20, "mutations that leave nothing standing try little"


@pytest.mark.parametrize("seed", range(6))
def test_by_the_command_each_ends_with_a_message_and_nothing_written(
    seed: int, sound: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.tflite"
    path.write_bytes(mutated(sound, seed))
    ran = deploy(path, "--target", "cortex-m4", "--no-device", "--out", tmp_path / "out")
    assert ran.code in (0, 2, 3, 4, 5), ran.err
    assert (ran.code == 0) == (tmp_path / "out" / "manifest.json").exists()
    if ran.code:
        assert ran.err.strip().splitlines()[-1]


def test_a_sound_file_is_read_by_the_same_way(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sound.tflite"
    path.write_bytes(sound)
    with Cache() as cache:
        found = models.read(path, {}, None, cache, Local(cache))
    assert found.quantized and found.sha256 == caches.sha256(path)


def repeated(list_of: str, times: int) -> bytes:
    """A file one of whose lists names one table very often, which does so as well."""
    builder = flatbuffers.Builder(1 << 20)

    def many(item: int) -> int:
        builder.StartVector(4, times, 4)
        for _ in range(times):
            builder.PrependUOffsetTRelative(item)
        return int(builder.EndVector())

    if list_of == "subgraphs":
        schema.OperatorStart(builder)
        operators = many(schema.OperatorEnd(builder))
        schema.SubGraphStart(builder)
        schema.SubGraphAddOperators(builder, operators)
        inner = many(schema.SubGraphEnd(builder))
    elif list_of == "tensors":
        schema.DimensionMetadataStart(builder)
        dimensions = many(schema.DimensionMetadataEnd(builder))
        schema.SparsityParametersStart(builder)
        schema.SparsityParametersAddDimMetadata(builder, dimensions)
        sparsity = schema.SparsityParametersEnd(builder)
        schema.TensorStart(builder)
        schema.TensorAddSparsity(builder, sparsity)
        tensors = many(schema.TensorEnd(builder))
        schema.SubGraphStart(builder)
        schema.SubGraphAddTensors(builder, tensors)
        graph = schema.SubGraphEnd(builder)
        builder.StartVector(4, 1, 4)
        builder.PrependUOffsetTRelative(graph)
        inner = builder.EndVector()
    else:
        schema.TensorMapStart(builder)
        maps = many(schema.TensorMapEnd(builder))
        schema.SignatureDefStart(builder)
        schema.SignatureDefAddInputs(builder, maps)
        inner = many(schema.SignatureDefEnd(builder))
    schema.ModelStart(builder)
    if list_of == "signatures":
        schema.ModelAddSignatureDefs(builder, inner)
    else:
        schema.ModelAddSubgraphs(builder, inner)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("list_of", ["subgraphs", "tensors", "signatures"])
def test_a_small_file_of_endless_parts_takes_no_memory(list_of: str) -> None:
    content = repeated(list_of, 20_000)
    assert len(content) < 200_000
    with pytest.raises(UsageError, match="more than 1000000 parts"):
        read(content)


def test_a_buffer_of_many_tensors_is_kept_once(sound: bytes) -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(sound))
    graph = model.subgraphs[0]
    large = schema.BufferT()
    large.data = np.zeros(1 << 20, np.uint8)
    model.buffers.append(large)
    for number in range(5000):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = f"t{number}", [1 << 20], schema.TensorType.INT8
        tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read(bytes(builder.Output())).ops
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB, not 5 GB


@pytest.mark.parametrize("kind", ["pipe", "device", "broken link", "socket"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = special(tmp_path / "model.tflite", kind)
    with pytest.raises(UsageError, match=r"not a regular file|No such file"):
        reader.examine(str(path), {}, None, str(tmp_path))
