"""What a bundle tells of its maker: names without folders, a digest for the device."""

import concurrent.futures
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onmetal import cli
from onmetal.bundles import privacy
from onmetal.deploy import vectors
from onmetal.records import Tensor
from tests.bundles import change_manifest, refused, sign, verify
from tests.conftest import DIGITS, ROOT, deploy

Capture = pytest.CaptureFixture[str]
MODEL, DATA = DIGITS / "digits_cnn.onnx", DIGITS / "digits.npz"
QUICK = ("--target", "x86-onnxruntime", "--recipes", "fp32", "--no-device")


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def made(tmp_path: Path, *words: str) -> Path:
    ran = deploy(MODEL, *QUICK, "--data", DATA, *words, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    return tmp_path / "out"


# --- paths and addresses


def test_a_bundle_names_no_folder(bundle: Path, shared_home: Path) -> None:
    folders = {ROOT, DIGITS, Path.cwd(), Path.home(), bundle.parent, shared_home, Path(sys.prefix)}
    for file in bundle.iterdir():
        content = file.read_bytes()
        for folder in folders:
            assert f"{folder}/".encode() not in content, (file.name, folder)


def test_its_device_is_a_digest_that_is_the_same_in_all_bundles(
    bundle: Path, shared_home: Path
) -> None:
    device = manifest_of(bundle)["device"]
    secret = (shared_home / privacy.SECRET).read_bytes()
    assert device["address"] == "local"
    assert device["digest"] == privacy.digest(privacy.identity("local"), secret)
    assert device["digest"] != privacy.digest(privacy.identity("local"), b"\0" * 32)


def test_paths_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    ran = deploy(
        *(MODEL, *QUICK, "--data", DATA, "--keep-paths", "--json", "--out", tmp_path / "out")
    )
    assert ran.code == 0, ran.err
    manifest = manifest_of(tmp_path / "out")
    assert {key: manifest[key] for key in ran.document} == ran.document
    assert manifest["models"][0]["path"] == str(MODEL)


def test_a_report_names_no_folder_and_json_does(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = deploy(MODEL, *QUICK, "--data", DATA, "--max-size", "1k", "--json", "--out", out)
    assert ran.code == 5
    assert ran.document["models"][0]["path"] == str(MODEL)
    assert str(out) in ran.document["error"]["message"]
    text = (out / "report.json").read_text()
    assert str(tmp_path) not in text and str(ROOT) not in text
    assert json.loads(text)["error"]["message"].startswith(
        "no candidate meets the budget; report.json has every figure"
    )


SAID = [
    ("{home}/nets/my net.onnx: 3 inputs", "my net.onnx: 3 inputs"),
    ("{data}/cat 1.png is broken, {data}/a/b/dog.png too", "cat 1.png is broken, dog.png too"),
    ("cannot read '{home}/.cache/x/y.bin' (Permission denied)", "cannot read 'y.bin' (Permission"),
    ("in {home}.", "in ~."),
    ("in {home}/: x", "in ~: x"),
    ("/conv/Conv_output_0 has no kernel", "/conv/Conv_output_0 has no kernel"),
    ("2.3x/s", "2.3x/s"),
]


@pytest.mark.parametrize(("text", "shown"), SAID)
def test_of_paths_in_sentences_the_last_part_is_told(
    text: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "ann"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    data = home / "my pictures"
    known = privacy.known([home / "nets/my net.onnx", str(data), None], "none")
    found = known.text(text.format(home=home, data=data))
    assert found.startswith(shown.format(home=home, data=data))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{home}/Other Secret Project/cal.png: broken", "cal.png: broken"),
        ("{home}/Acme, Inc. (old)/it's [1]/a b.png, too", "a b.png, too"),
        ("{home}/Gone Secret Project/cal.png: broken", "cal.png: broken"),
        ("{home}/a.npz has inputs/outputs", "a.npz has inputs/outputs"),
        ("{home}/net has inputs/outputs", "net has inputs/outputs"),
        ("{home}/gone.npz has inputs/outputs", "gone.npz has inputs/outputs"),
        ("cc -I{home}/include -isystem{home}/sys", "cc -Iinclude -isystemsys"),
        ("-L{home}/lib --sysroot={home}/root", "-Llib --sysroot=root"),
        ("/{home}//Secret/./x.bin and file://{home}/y", "x.bin and file:y"),
        ("{root}/./ann/../ann/Secret/x", "x"),
        ("pictures/Secret/x.png, pictures/layers", "x.png, pictures/layers"),
        ("\\n{home}/Secret/x", "\\nx"),
    ],
)
def test_no_folder_on_the_way_is_told(
    text: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "ann"
    for folder in ("Other Secret Project", "Acme, Inc. (old)/it's [1]", "pictures/Secret"):
        (home / folder).mkdir(parents=True)
    for file in ("Acme, Inc. (old)/it's [1]/a b.png", "net", "pictures/Secret/x.png"):
        (home / file).write_text("")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    known = privacy.known(["pictures/x.npz"], "none")
    assert known.text(text.format(home=home, root=tmp_path)) == shown


@pytest.mark.parametrize(
    "piece", ["/", "/./", "/tmp/", "/tmp//", "a ", "ann@", "ann.", "/tmp/q w e/", "ssh://ann@pi?"]
)
def test_no_sentence_takes_long(piece: str) -> None:
    """Where the time would grow with the square of the length, one of these takes an hour."""
    known = privacy.known(["/tmp/a b/x.onnx"], "ssh://ann@pi:22")
    known.text(piece * (1_000_000 // len(piece)))
    known.text("/tmp/" + piece * (1_000_000 // len(piece)))


def test_a_folder_of_a_longer_name_is_another() -> None:
    text = "/home/anna/x, /srv/home/ann/y, /home/ann.old/z, /home/ann-2"
    assert privacy.Known(("/home/ann",)).text(text) == text


@pytest.mark.parametrize(
    ("address", "text", "shown"),
    [
        ("adb:R58M1234", "adb:R58M1234: hot; R58M1234 is offline", "the device: hot; the device"),
        ("ssh://ann@pi.lan:2222", "ssh: ann@pi.lan port 2222", "ssh: the device port 2222"),
        ("ssh://ann@pi.lan:2222", "pi.lan: no route; pi.lan.org", "the device: no route; pi.lan."),
        ("ssh://[fe80::1]:22", "connect to [fe80::1] failed", "connect to the device failed"),
        ("serial:///dev/ttyACM0?baud=9600", "/dev/ttyACM0 is busy", "the device is busy"),
        ("serial:///dev/a?meter=lpm01a:/dev/b", "on /dev/b and /dev/a", "on the meter and the dev"),
        ("socket://lab7:4000", "lab7:4000 refused by lab7", "the device refused by the device"),
        ("qemu:/srv/ann/x.elf?machine=m", "/srv/ann/x.elf ended", "x.elf ended"),
        ("local", "local figures", "local figures"),
        ("adb:192.168.1.7:5555", "192.168.1.7 is offline", "the device is offline"),
        ("adb:adb-R58M12-aB._adb-tls-connect._tcp", "R58M12: off", "the device: off"),
        ("ssh://ann@Pi.Lan", "ann@pi.lan, PI.LAN", "the device, the device"),
        ("ssh://ann@pi.lan", "connect to host 10.0.0.4 port 22:", "connect to host the device:"),
        ("ssh://[fe80::1]:22", "fe80::1 is unreachable", "the device is unreachable"),
        ("ssh://pi?python=/srv/v/python", "ssh://pi?python=/srv/v/python: a", "the device: a"),
        ("ssh://pi?python=/srv/v/python", "no /srv/v/python", "no python"),
        ("ssh://pi", "ssh://pi?python=x: a", "the device: a"),
        ("serial:///dev/ttyACM0", "the board at ///dev/ttyACM0 is", "the board at the device is"),
        ("ssh://openvino", "ann@openvino:22 (openvino)", "the device:22 (openvino)"),
        ("ssh://data", "data and ssh://data, data:22", "data and the device, the device:22"),
    ],
)
def test_of_an_address_in_sentences_nothing_is_told(address: str, text: str, shown: str) -> None:
    known = privacy.known([], address)
    assert known.text(text).startswith(shown)
    device = {"address": address, "cpu": "x", "emulated_why": text}
    document = {"device": device, "warnings": [text]}
    told = privacy.shared(document, known, b"k" * 32)
    assert told["device"]["address"] == address.partition(":")[0]
    assert told["device"]["digest"].startswith("hmac-sha256:")
    assert told["warnings"][0].startswith(shown)
    assert told["device"]["emulated_why"].startswith(shown)
    assert document["warnings"] == [text]


def test_names_of_tensors_are_left_as_they_are(tmp_path: Path) -> None:
    name = str(tmp_path / "x/conv")
    model = {"outputs": [name], "notes": [f"'{name}' is dead, see {name}2"], "path": name + "2"}
    document = {"device": {}, "run": {"inputs": [name]}, "models": [model]}
    told = privacy.shared(document, privacy.known([tmp_path / "m.onnx"], "none"), b"")
    assert told["run"] == {"inputs": [name]}
    said = f"'{name}' is dead, see conv2"
    assert told["models"] == [{"outputs": [name], "notes": [said], "path": "conv2"}]


def test_a_bundle_of_the_older_form_still_verifies(
    bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Of schema 1 as it was: with paths, without a digest and without what vectors are made of."""
    old = Path(shutil.copytree(bundle, tmp_path / "old"))

    def change(manifest: dict[str, Any]) -> None:
        manifest["models"][0]["path"] = str(MODEL)
        manifest["data"]["source"] = str(DATA)
        manifest["bundle"] = str(bundle)
        del manifest["device"]["digest"], manifest["golden"]["inputs"]

    change_manifest(old, change)
    code, found = verify(old, capsys, "--run")
    assert code == 0 and set(found["checks"].values()) == {"ok"}


ADDRESSES = ("ssh://{}", "ssh://ann@{}:22", "socket://{}:4000", "adb:{}", "serial://{}")


SAID_IN = {"reason", "warnings", "notes", "missing", "how", "message", "from", "note"}


def without_sentences(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_sentences(part) for key, part in value.items() if key not in SAID_IN}
    return [*map(without_sentences, value)] if isinstance(value, list) else value


def for_programs(document: dict[str, Any]) -> Any:
    """Of a document all that stays as it is in a bundle."""
    found = without_sentences(document)
    for holder, key in (("models", "path"), ("data", "source"), ("device", "address")):
        for entry in found[holder] if holder == "models" else [found[holder]]:
            del entry[key]
    found["device"].pop("digest", None)
    del found["bundle"]
    return found


def words_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(words_of, value.values()))
    if isinstance(value, list):
        return set().union(*map(words_of, value))
    return {value, *re.split(r"\W+", value)} if isinstance(value, str) else set()


def test_only_sentences_are_changed_whatever_the_device_is_called(
    bundle: Path, shared_folder: Path
) -> None:
    """By the name of a runtime, a tensor or whatever else a manifest holds; by someone who works in
    folders that tensors' names begin with."""
    document = {**manifest_of(bundle), **json.loads((shared_folder / "digits.json").read_text())}
    one = document["candidates"][0]
    one["details"]["in_float"] = ["/model/layers.0/mlp/MatMul", "/data/x"]
    one["warnings"] = [f"{one['name']}: '/model/layers.0/mlp/MatMul' overflows in {one['runtime']}"]
    document["device"]["flags"] = ["avx2", "fma"]
    document["builds"] = {"measured": {"runner": "native"}, "shipped": {"path": "android"}}
    held = for_programs(document)
    words = words_of(held) - {""}
    assert {"onnxruntime", "openvino", "fp32", "fp32@onnxruntime", "latency_ms"} <= words
    folders = ("/model", "/data", "/model/layers.0", "/onnxruntime", "/fp32@openvino")
    for number, word in enumerate(sorted(words)):
        address = ADDRESSES[number % len(ADDRESSES)].format(word)
        document["device"]["address"] = address
        told = privacy.shared(document, privacy.Known(folders, address), b"k" * 32)
        assert for_programs(told) == held, address
        assert told["candidates"][0]["warnings"] == one["warnings"], address


# --- the secret


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONMETAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_secret_is_the_users_own_and_stays(home: Path) -> None:
    first = privacy.secret()
    assert len(first) == privacy.SECRET_BYTES and privacy.secret() == first
    assert stat.S_IMODE((home / privacy.SECRET).stat().st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == [privacy.SECRET]


def test_without_onmetal_home_it_is_among_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONMETAL_HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    privacy.secret()
    assert (tmp_path / ".config/onmetal" / privacy.SECRET).is_file()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    privacy.secret()
    assert (tmp_path / "settings/onmetal" / privacy.SECRET).is_file()


def spoil(place: Path, how: str) -> None:
    if how == "short":
        place.write_bytes(b"short")
    elif how == "long":
        place.write_bytes(b"l" * 33)
    elif how == "readable by others":
        place.write_bytes(b"r" * 32)
        place.chmod(0o644)
        return
    elif how == "a link":
        (place.parent.parent / "elsewhere").write_bytes(b"e" * 32)
        (place.parent.parent / "elsewhere").chmod(0o600)
        place.symlink_to(place.parent.parent / "elsewhere")
    elif how == "a FIFO":
        os.mkfifo(place, 0o600)
    if not place.is_symlink():
        place.chmod(0o600)


@pytest.mark.parametrize("how", ["short", "long", "readable by others", "a link", "a FIFO"])
def test_a_spoiled_secret_is_made_anew(how: str, home: Path) -> None:
    home.mkdir()
    place = home / privacy.SECRET
    spoil(place, how)
    first = privacy.secret()
    assert first not in (b"r" * 32, b"e" * 32)
    assert place.is_file() and not place.is_symlink() and place.read_bytes() == first
    assert stat.S_IMODE(place.stat().st_mode) == 0o600 and privacy.secret() == first


@pytest.mark.parametrize("how", ["missing", "short"])
def test_those_who_make_it_at_once_have_the_same(how: str, home: Path) -> None:
    home.mkdir()
    if how == "short":
        spoil(home / privacy.SECRET, how)
    code = "from onmetal.bundles import privacy; print(privacy.secret().hex())"
    words = [sys.executable, "-c", code]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = {entry.hex() for entry in pool.map(lambda _: privacy.secret(), range(40))}
    found |= {process.communicate(timeout=60)[0].strip() for process in processes}
    assert found == {privacy.secret().hex()}


def test_where_it_cannot_be_kept_that_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("ONMETAL_HOME")
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(MODEL), *QUICK, "--data", str(DATA)]) == 2
    said = capsys.readouterr().err
    assert "--keep-paths" in said and "reading the model" not in said


# --- golden vectors


def test_golden_vectors_of_random_inputs_hold_none_of_the_data(
    tmp_path: Path, capsys: Capture
) -> None:
    out = made(tmp_path, "--golden", "random")
    assert manifest_of(out)["golden"] == {"vectors": 4, "inputs": "random", "tolerance": 1e-4}
    with np.load(out / "golden.npz") as found, np.load(DATA) as data:
        images = {image.astype(np.float32).tobytes() for image in data["x"]}
        for number in range(4):
            image = found[f"input/image/{number}"]
            assert image.shape == (1, 1, 8, 8) and image.tobytes() not in images
            assert image.min() >= min(0, -2 * abs(data["x"].min()))
            assert np.abs(image).max() <= 2 * np.abs(data["x"]).max()
    code, checked = verify(out, capsys, "--run")
    assert code == 0 and checked["checks"]["golden"] == "ok"


def test_random_inputs_tell_no_more_than_an_order_of_magnitude() -> None:
    tensors = (
        Tensor("real", "float32", (2, 3)),
        Tensor("half", "float16", (2, 3)),
        Tensor("ids", "int64", (2, 3)),
        Tensor("flag", "bool", (2, 3)),
        Tensor("stored", "int8", (2, 3), 0.5, -3),
    )

    def made_of(seed: int, scale: float) -> list[dict[str, np.ndarray]]:
        source = np.random.default_rng(seed)
        feeds: list[dict[str, np.ndarray]] = [
            {
                "real": source.uniform(-scale, scale, (2, 3)).astype(np.float32),
                "half": source.uniform(0, scale, (2, 3)).astype(np.float16),
                "ids": source.integers(0, 30000, (2, 3)),
                "flag": source.integers(0, 2, (2, 3)).astype(bool),
                "stored": np.array([[-128, 0, 100], [1, 2, 127]], np.int8),
            }
        ]
        feeds[0]["real"].flat[0], feeds[0]["half"].flat[0] = -scale, scale
        return vectors.random_alike(tensors, feeds)

    one, other = made_of(1, 3.1), made_of(2, 3.7)
    for tensor in tensors:
        assert one[0][tensor.name].tobytes() == other[0][tensor.name].tobytes()
        assert one[0][tensor.name].dtype == tensor.dtype
    assert (one[0]["real"] < 0).any() and (one[0]["half"] >= 0).all()
    assert set(one[0]["ids"].flat) <= {0, 1}
    assert len(set(one[0]["stored"].flat)) > 2
    empty: list[dict[str, np.ndarray]] = [
        {"real": np.zeros((2, 3), np.float32), "half": np.full((2, 3), np.inf, np.float16)}
    ]
    assert np.isfinite(vectors.random_alike(tensors[:2], empty)[0]["half"]).all()


def test_without_golden_vectors_nothing_is_called_checked(tmp_path: Path, capsys: Capture) -> None:
    out = made(tmp_path, "--golden", "none")
    assert not (out / "golden.npz").exists()
    assert "golden vectors\n" not in (out / "README.md").read_text()
    code, found = verify(out, capsys, "--run")
    assert code == 0
    assert (found["checks"]["golden"], found["checks"]["run.py"]) == ("none", "none")
    assert cli.main(["verify", str(out)]) == 0
    said = capsys.readouterr().out
    assert "golden)" not in said and "holds no golden vectors" in said
    words = [sys.executable, str(out / "run.py")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "holds no golden vectors" in done.stderr
    np.savez(tmp_path / "in.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    words += [str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    assert subprocess.run(words, timeout=120).returncode == 0
    np.savez(out / "golden.npz", x=np.zeros(3))
    sign(out)
    assert "golden" in refused(out, capsys)


@pytest.mark.parametrize("target", ["cortex-m4", "android-arm64", "linux-arm64"])
def test_what_checks_itself_by_golden_vectors_needs_some(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(MODEL), "--target", target, "--no-device", "--golden", "none"]
    assert cli.main(words) == 2
    assert "--golden random" in capsys.readouterr().err
