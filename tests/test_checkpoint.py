"""A model on disk: what goes in comes out bit for bit, and what is damaged or hostile is refused with a typed error."""

from __future__ import annotations

import copy
import errno
import functools
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae import checkpoint
from ppl_vae.distributions import zuko
from ppl_vae.errors import CheckpointError, ConfigError, PartError
from ppl_vae.networks import MLP, Conv

IMAGE = (1, 8, 8)
SMALL: dict[str, Any] = {"hidden": [8]}


def weights(vae: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in vae.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def disturb(vae: pv.VAE) -> pv.VAE:
    """Give every weight a value that no constructor would."""
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(torch.randn_like(p) * 0.01)
    return vae


MODELS: dict[str, Callable[[], pv.VAE]] = {
    "ae": lambda: pv.ae(IMAGE, 2, **SMALL),
    "vae": lambda: pv.vae(IMAGE, 2, **SMALL),
    "cvae": lambda: pv.cvae(IMAGE, 2, 3, **SMALL),
    "p(z) in a cvae": lambda: pv.cvae(IMAGE, 2, 3, prior={"name": "Gaussian", "context": 0}, **SMALL),
    "beta": lambda: pv.vae(IMAGE, 2, beta=0.1, **SMALL),
    "learned p(z)": lambda: pv.vae(IMAGE, 2, prior="Gaussian", **SMALL),
    "Fixed": lambda: pv.vae(IMAGE, 2, prior={"name": "Fixed", "distribution": "Laplace", "args": [0.0, 2.0]}, **SMALL),
    "Binomial": lambda: pv.vae(IMAGE, 2, likelihood="Binomial", levels=17, range=(0, 16), **SMALL),
    "grey": lambda: pv.vae(IMAGE, 2, likelihood={"name": "Bernoulli", "grey": True}, **SMALL),
    "Conv": lambda: pv.cvae(IMAGE, 2, 3, network=functools.partial(Conv, channels=(2, 3)), **SMALL),
    "MLP by name": lambda: pv.vae(IMAGE, 2, network="MLP", **SMALL),
    "point and prior": lambda: pv.vae(IMAGE, 2, encoder="Delta", **SMALL),
    "range": lambda: pv.vae(IMAGE, 2, likelihood="Gaussian", range=(-3.0, 5.0), **SMALL),
}
MODELS |= {
    f"sigma {sigma}": lambda sigma=sigma: pv.vae(IMAGE, 2, likelihood={"name": "Gaussian", "sigma": sigma}, **SMALL)
    for sigma in (0.3, "shared", "pixel", "output")
}
MODELS |= {
    flow: lambda flow=flow: pv.cvae(
        IMAGE, 2, 3, prior={"name": flow, **({} if flow in ("GMM", "CNF") else {"transforms": 1})}, **SMALL
    )
    for flow in ("MAF", "NSF", "NICE", "BPF", "GMM", "CNF")
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    pv.save(disturb(pv.cvae(IMAGE, 2, 3, **SMALL)), tmp_path)
    return tmp_path


def the_weights(folder: Path) -> Path:
    (path,) = folder.glob("model-*.safetensors")
    return path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_named_parts_comes_back_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    vae = disturb(MODELS[name]().to(dtype))
    before = torch.get_rng_state()
    pv.save(vae, tmp_path)
    again = pv.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(weights(vae), weights(again))
    assert again.beta == vae.beta
    assert again.name != vae.name
    assert next(again.parameters()).dtype == dtype
    y = None if vae.condition is None else torch.arange(3)
    x = (torch.rand(3, *IMAGE) < 0.5).float()
    results = []
    for model in (vae, again):
        torch.manual_seed(9)
        drawn = model.reconstruct(x, y) if vae.prior is None else model.sample(4, y)
        results.append((drawn, model.reconstruct(x, y)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


PRECISE: list[dict[str, Any]] = [
    {"likelihood": {"name": "StudentT", "sigma": 0.1, "df": 2.3, "shift": 0.3, "scale": 1.7}},
    {"likelihood": {"name": "DiscretizedLogisticMixture", "levels": 4, "components": 3}},
    {"prior": {"name": "Fixed", "distribution": "StudentT", "args": [5.3, 0.1], "scale": 1.2}},
    {"encoder": {"name": "Gaussian", "shift": 0.1, "scale": 0.7}},
    {"condition": {"name": "Continuous", "features": 2, "shift": [0.1, 0.2], "scale": 0.7}},
    {"condition": {"name": "Image", "y_shape": [1, 2, 2], "features": 2, "shift": 0.1, "scale": 0.7}},
]


@pytest.mark.parametrize("parts", PRECISE, ids=str)
def test_constants_are_as_precise_as_the_model(parts: dict[str, Any], tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        vae = pv.vae((4,), 2, **parts)
    finally:
        torch.set_default_dtype(torch.float32)
    (part,) = (getattr(vae, kind) for kind in parts)
    assert part._constants
    pv.save(vae, tmp_path)
    for other in (pv.load(tmp_path), copy.deepcopy(vae).float().double(), pv.vae((4,), 2, **parts).double()):
        for name, value in vae.named_buffers():
            assert torch.equal(other.get_buffer(name), value)
    # What was set since then is nobody else's to set: neither by a move nor by a cast.
    for name in part._constants:
        part.get_buffer(name).fill_(0.1)
        assert (part.to("cpu").get_buffer(name) == 0.1).all()
        assert (copy.deepcopy(part).float().get_buffer(name) == 0.1).all()


def test_the_path_that_save_returns_is_one_to_load(tmp_path: Path) -> None:
    vae = MODELS["vae"]()
    path = pv.save(vae, tmp_path / "run")
    assert same(weights(pv.load(path)), weights(vae))
    assert pv.load(str(path), into=MODELS["vae"]()).name != vae.name


@pytest.mark.parametrize("device", ["cud", "cuda:99"])
def test_a_device_that_is_not_here_is_not_the_files_fault(device: str, saved: Path) -> None:
    with pytest.raises(ConfigError, match=f"device: .*'{device}'"):
        pv.load(saved, device=device)
    with pytest.raises(ConfigError, match="device"):
        pv.load(saved, pv.load(saved), device=device)
    assert pv.load(saved, device="auto")._beta.device.type in ("cpu", "cuda")


def test_into_goes_to_a_device_that_is_asked_for_and_stays_otherwise(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Any] = []
    into = pv.load(saved)
    monkeypatch.setattr(into, "to", lambda device: moved.append(device) or into)
    assert pv.load(saved, into) is into
    assert moved == []
    assert pv.load(saved, into, device="cpu") is into
    assert moved == [torch.device("cpu")]


def test_a_loaded_model_is_its_own(saved: Path) -> None:
    first, second = pv.load(saved), pv.load(saved)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert not same(weights(first), weights(second))
    x = (torch.rand(12, *IMAGE) < 0.5).float()
    pv.fit(second, (x, torch.arange(12) % 3), epochs=1, progress=False)


def test_what_was_never_trained_on_is_remembered(tmp_path: Path) -> None:
    vae = pv.cvae(IMAGE, 2, 3, **SMALL)
    pv.fit(vae, (torch.zeros(8, *IMAGE), torch.arange(8) % 2), epochs=1, progress=False)
    pv.save(vae, tmp_path)
    with pytest.warns(UserWarning, match="label 2 was never seen"):
        pv.load(tmp_path).sample(1, y=2)


def test_saving_again_replaces_and_leaves_one_set_of_weights(saved: Path) -> None:
    old = the_weights(saved)
    vae = disturb(pv.load(saved))
    pv.save(vae, saved, note="second")
    assert the_weights(saved) != old
    assert sorted(p.name for p in saved.iterdir()) == sorted(["model.json", the_weights(saved).name])
    assert same(weights(pv.load(saved)), weights(vae))
    assert checkpoint.read(saved, "model")[1]["note"] == "second"


def test_info_that_json_cannot_hold_is_a_typed_error(saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    for bad in (float("nan"), torch.zeros(2), {1, 2}):
        with pytest.raises(CheckpointError, match="JSON"):
            pv.save(pv.load(saved), saved, bad=bad)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


# Shared tensors


class Tied(nn.Module):
    """One network for every class of part: the encoder's is a part of the condition too."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, y: Tensor) -> Tensor:
        return self.body(torch.nn.functional.one_hot(y, 4).float())


def a_tied_vae() -> pv.VAE:
    body = nn.Linear(4, 3)
    network = nn.Sequential(nn.Linear(7, 4), nn.ReLU(), body, nn.Linear(3, 4))
    return pv.VAE(
        pv.priors.Gaussian(2, context=3, hidden=(8,)),
        pv.likelihoods.Bernoulli((4,), 2, context=3, hidden=(8,)),
        pv.encoders.Gaussian(2, (4,), context=3, network=network),
        condition=Tied(body),
    )


def test_shared_tensors_are_written_once_and_are_shared_again(tmp_path: Path) -> None:
    vae, into = disturb(a_tied_vae()), a_tied_vae()
    pv.save(vae, tmp_path)
    aliases = json.loads((tmp_path / "model.json").read_text())["weights"]["aliases"]
    assert len(aliases) == 2
    elements = sum(p.numel() for p in vae.parameters())
    assert the_weights(tmp_path).stat().st_size < 4 * elements + 2500
    assert pv.load(tmp_path, into=into) is into
    assert same(weights(vae), weights(into))
    with torch.no_grad():
        into.condition.body.weight.fill_(7.0)
    assert (into.encoder.network.body[2].weight == 7.0).all()


def test_views_of_one_storage_are_saved_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": whole, "b": whole.T, "c": whole[1:], "d": whole, "empty": torch.empty(0), "none": torch.empty(0)}
    checkpoint.write(tmp_path, "model", tensors, {})
    read, _ = checkpoint.read(tmp_path, "model")
    assert same(read, tensors)


# Parts without a name


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.ones(2))

    def forward(self, c: Any = None) -> Any:
        return dist.Normal(self.loc, 1.0).to_event(1)


@pytest.mark.parametrize(
    ("prior", "named"),
    [
        (lambda c: dist.Normal(torch.zeros(2), 1.0).to_event(1), "function"),
        (Mine(), "Mine"),
        (zuko.flows.NSF(2, transforms=1), "NSF"),
    ],
    ids=["lambda", "module", "flow made by hand"],
)
def test_parts_without_a_name_need_into(prior: Any, named: str, tmp_path: Path) -> None:
    vae = disturb(pv.vae((4,), 2, prior=prior, **SMALL))
    pv.save(vae, tmp_path)
    with pytest.raises(CheckpointError, match=f"prior: .*{named}.*into="):
        pv.load(tmp_path)
    into = disturb(copy.deepcopy(vae))
    pv.load(tmp_path, into=into)
    assert same(weights(vae), weights(into))


def test_a_network_of_ones_own_needs_into(tmp_path: Path) -> None:
    body = nn.Linear(4, 4)
    vae = pv.vae((4,), 2, encoder=pv.encoders.Gaussian(2, (4,), network=body), **SMALL)
    with pytest.raises(PartError, match="into="):
        pv.presets.to_dict(vae)
    pv.save(vae, tmp_path)
    with pytest.raises(CheckpointError, match="into="):
        pv.load(tmp_path)


def test_into_is_unchanged_by_any_misfit_and_all_are_listed(tmp_path: Path) -> None:
    tensors = weights(pv.vae((4,), 2, prior="Gaussian", **SMALL))
    del tensors["prior.loc"]
    tensors["prior.mean"] = torch.zeros(2)
    tensors["likelihood.network.body.0.weight"] = torch.zeros(8, 3)
    tensors["encoder.shift"] = tensors["encoder.shift"].double()
    checkpoint.write(tmp_path, "model", tensors, {"config": None})
    into = disturb(pv.vae((4,), 2, prior="Gaussian", **SMALL))
    before = weights(into)
    with pytest.raises(CheckpointError) as caught:
        pv.load(tmp_path, into=into)
    for words in (
        "missing prior.loc",
        "unexpected prior.mean",
        "likelihood.network.body.0.weight: expected float32 (8, 2), got float32 (8, 3)",
        "encoder.shift: expected float32 (), got float64 ()",
    ):
        assert words in str(caught.value)
    assert same(before, weights(into))


def test_configuration_and_weights_that_disagree_are_refused(saved: Path) -> None:
    config = json.loads((saved / "model.json").read_text())["config"]
    config["prior"]["hidden"] = [9]
    edit(saved, config=config)
    with pytest.raises(CheckpointError, match="prior"):
        pv.load(saved)


# Damage


def test_truncation_anywhere_is_refused(saved: Path) -> None:
    path = the_weights(saved)
    data = path.read_bytes()
    into = pv.load(saved)
    before = weights(into)
    for length in [*range(0, 64), *range(64, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            pv.load(saved, into=into)
    path.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError):
        pv.load(saved, into=into)
    assert same(before, weights(into))


def test_one_flipped_bit_anywhere_is_refused(saved: Path) -> None:
    path = the_weights(saved)
    data = path.read_bytes()
    into = pv.load(saved)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        at = int(torch.randint(len(data) * 8, (), generator=generator))
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="SHA-256"):
            pv.load(saved, into=into)


def test_weights_with_the_right_sum_that_are_no_safetensors_are_refused(saved: Path) -> None:
    data = the_weights(saved).read_bytes()
    header = int.from_bytes(data[:8], "little")
    for bad in (
        b"",
        (2**63).to_bytes(8, "little") + data[8:],
        data[:8] + b"[" * header + data[8 + header :],
        data[:20],
        pickle.dumps({"a": 1}),
    ):
        (saved / "bad.safetensors").write_bytes(bad)
        weights_entry = {"file": "bad.safetensors", "sha256": hashlib.sha256(bad).hexdigest(), "aliases": {}}
        edit(saved, weights=weights_entry)
        with pytest.raises(CheckpointError):
            pv.load(saved)


def test_json_with_mutated_bytes_gives_typed_errors_only(saved: Path) -> None:
    path = saved / "model.json"
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(250):
        mutated = bytearray(data)
        mutated[int(torch.randint(len(data), (), generator=generator))] = int(
            torch.randint(256, (), generator=generator)
        )
        path.write_bytes(mutated)
        try:
            pv.load(saved)
        except CheckpointError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"format"', '{"format": "1"}', "\xff\xfe", "[" * 100_000, '{"format": 1}'],
    ids=range(10),
)
def test_json_that_is_no_record_is_refused(text: str, saved: Path) -> None:
    (saved / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="expected"):
        pv.load(saved)


def test_deleted_weights_a_missing_folder_and_a_file_for_a_folder_are_refused(saved: Path) -> None:
    the_weights(saved).unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        pv.load(saved)
    with pytest.raises(CheckpointError, match="expected a saved model"):
        pv.load(saved / "nowhere")
    (saved / "a file").touch()
    with pytest.raises(CheckpointError, match="expected a saved model"):
        pv.load(saved / "a file")


def test_a_newer_format_names_both(saved: Path) -> None:
    edit(saved, format=2)
    with pytest.raises(CheckpointError, match="format ≤ 1, got 2"):
        pv.load(saved)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "\0", "a\0b", None, 3, ["x"]]
)
def test_a_weights_file_elsewhere_is_refused(file: Any, saved: Path) -> None:
    data = the_weights(saved).read_bytes()
    (saved.parent / "x.safetensors").write_bytes(data)
    entry = json.loads((saved / "model.json").read_text())["weights"]
    edit(saved, weights=entry | {"file": file})
    with pytest.raises(CheckpointError):
        pv.load(saved)


def test_aliases_of_nothing_are_refused(saved: Path) -> None:
    entry = json.loads((saved / "model.json").read_text())["weights"]
    for aliases in ({"prior.x": "nothing"}, ["prior.x"], 3, {"prior.x": ["unhashable"]}):
        edit(saved, weights=entry | {"aliases": aliases})
        with pytest.raises(CheckpointError):
            pv.load(saved)


def test_nan_weights_are_refused_unless_asked_for(tmp_path: Path) -> None:
    vae = pv.vae((4,), 2, **SMALL)
    with torch.no_grad():
        vae.likelihood.network.body[0].weight[0, 0] = float("nan")
        vae.encoder.network.body[0].bias[0] = float("inf")
    pv.save(vae, tmp_path)
    into = pv.vae((4,), 2, **SMALL)
    before = weights(into)
    for options in ({}, {"into": into}):
        with pytest.raises(CheckpointError, match="allow_nonfinite=True") as caught:
            pv.load(tmp_path, **options)
        assert "likelihood.network.body.0.weight" in str(caught.value)
        assert "encoder.network.body.0.bias" in str(caught.value)
    assert same(before, weights(into))
    assert pv.load(tmp_path, allow_nonfinite=True).likelihood.network.body[0].weight.isnan().any()


# Hostile configurations


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("prior", {"name": "os.system", "command": "echo"}),
        ("prior", {"name": "builtins.eval"}),
        ("prior", {"name": "ppl_vae.priors.Gaussian", "features": 2}),
        ("prior", {"name": "Fixed", "distribution": "os.system", "args": ["echo"], "features": 2}),
        ("prior", {"name": "Fixed", "distribution": "torch_distribution", "features": 2}),
        ("likelihood", {"name": "Gaussian", "x_shape": [4], "features": 2, "network": "subprocess.Popen"}),
        ("likelihood", {"name": "Gaussian", "x_shape": [4], "features": 2, "network": {"name": "os.system"}}),
        ("prior", {"name": "Gaussian", "features": -1}),
        ("prior", {"name": "Gaussian", "features": 2, "hidden": "abc"}),
        ("prior", {"name": "Unconditional"}),
        ("prior", {"name": None}),
        ("prior", []),
        ("prior", 3),
        ("likelihood", None),
        ("condition", {"name": "OneHot", "classes": 1e9}),
        ("prior", {"name": "NSF", "features": 2, "hidden_features": [[[]]]}),
    ],
    ids=str,
)
def test_a_configuration_of_anything_but_the_tables_is_refused(kind: str, spec: Any, tmp_path: Path) -> None:
    pv.save(pv.vae((4,), 2, **SMALL), tmp_path)
    config = json.loads((tmp_path / "model.json").read_text())["config"]
    edit(tmp_path, config=config | {kind: spec})
    with pytest.raises(CheckpointError):
        pv.load(tmp_path)


@pytest.mark.parametrize("dtype", ["int64", "load", "nonsense", None, 3, "float8_e5m2"])
def test_a_dtype_that_is_none_is_refused(dtype: Any, saved: Path) -> None:
    edit(saved, dtype=dtype)
    with pytest.raises(CheckpointError, match="dtype"):
        pv.load(saved)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".safetensors", ".json"])
def test_pickles_are_never_opened(suffix: str, saved: Path) -> None:
    target = saved / "executed"
    entry = json.loads((saved / "model.json").read_text())["weights"]
    pickled = pickle.dumps(Payload(target))
    torch.save(Payload(target), saved / "zipped.pt")
    for data in (pickled, (saved / "zipped.pt").read_bytes()):
        for name in (f"model{suffix}", f"model-0000{suffix}", f"training{suffix}"):
            (saved / name).write_bytes(data)
        edit_target = {"file": f"model-0000{suffix}", "sha256": hashlib.sha256(data).hexdigest(), "aliases": {}}
        if suffix != ".json":
            edit(saved, weights=entry | edit_target)
        with pytest.raises(CheckpointError):
            pv.load(saved)
        with pytest.raises(CheckpointError):
            pv.fit(pv.vae((4,), 2), torch.zeros(4, 4), resume=saved, progress=False)
    assert not target.exists()
    pickle.loads(pickled)  # The payload itself works.
    assert target.exists()


def test_the_source_loads_no_pickle() -> None:
    for path in Path(pv.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text
        assert not re.search(r"(?<!safetensors\.)torch\.load\(", text)
        assert "allow_pickle=True" not in text


# Interruptions


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="expected a folder to write to"):
            pv.save(pv.vae((4,), 2, **SMALL), path)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("succeed", [0, 1])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_whatever_interrupts_saving_leaves_the_former_model(
    call: str, succeed: int, error: BaseException, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pv.load(saved), disturb(pv.load(saved))
    original, calls = getattr(os, call), []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > succeed:
            raise error
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
            pv.save(new, saved)
    assert same(weights(pv.load(saved)), weights(old))
    assert not list(saved.glob(".*"))
    pv.save(new, saved)
    assert same(weights(pv.load(saved)), weights(new))
    assert len(list(saved.iterdir())) == 2


def test_files_of_a_killed_process_do_not_confuse(saved: Path) -> None:
    vae = pv.load(saved)
    (saved / ".model.json.123.tmp").write_text("{")
    (saved / f".{the_weights(saved).name}.123.tmp").write_bytes(b"half")
    (saved / "model-0123456789abcdef.safetensors").write_bytes(b"orphan")
    assert same(weights(pv.load(saved)), weights(vae))
    # Younger than the record, it may be of somebody who writes now; than that which replaces it, of nobody any more.
    for _ in range(2):
        pv.save(disturb(vae), saved)
        assert same(weights(pv.load(saved)), weights(vae))
    assert not (saved / "model-0123456789abcdef.safetensors").exists()


def test_a_model_and_a_state_of_training_share_a_folder(tmp_path: Path) -> None:
    vae, x = pv.vae((4,), 2, **SMALL), torch.zeros(8, 4)
    pv.fit(vae, x, epochs=1, checkpoint=tmp_path, progress=False)
    pv.save(vae, tmp_path)
    pv.fit(vae, x, epochs=3, resume=tmp_path, progress=False)
    pv.save(vae, tmp_path)
    assert same(weights(pv.load(tmp_path)), weights(vae))
    kinds = sorted(p.name.split("-")[0] for p in tmp_path.iterdir())
    assert kinds == ["model", "model.json", "training", "training.json"]


def test_named_bodies_are_the_classes_they_were(tmp_path: Path) -> None:
    pv.save(pv.vae(IMAGE, 2, network=functools.partial(Conv, channels=(2, 3)), **SMALL), tmp_path)
    again = pv.load(tmp_path)
    assert isinstance(again.encoder.network.body, Conv)
    assert again.encoder.network.body.small == (3, 2, 2)
    assert not isinstance(again.likelihood.network.body, MLP)


def test_files_of_others_in_the_folder_stay(tmp_path):
    theirs = tmp_path / "model-best.safetensors"
    theirs.write_bytes(b"theirs")
    for seed in (0, 1):
        torch.manual_seed(seed)
        pv.save(pv.vae((4,), 2), tmp_path)
    assert theirs.read_bytes() == b"theirs"
    assert len([*tmp_path.glob("model-*.safetensors")]) == 2


@pytest.mark.parametrize("name", ["format", "config", "why", "dtype", "weights"])
def test_names_of_ours_are_no_names_for_info(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model\.json has itself, got {name}"):
        pv.save(pv.vae((4,), 2, **SMALL), tmp_path / "folder", note="mine", **{name: 1})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [True, False])
def test_two_that_save_at_once_leave_the_model_of_one(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, one, other = (pv.vae((4,), 2, **SMALL) for _ in range(3))
    if before:
        pv.save(old, tmp_path)
    replace, calls = checkpoint.replace, []

    def slow(path: Path, data: bytes) -> None:
        calls.append(path.name)
        # Between the two files of the one, all of the other.
        if len(calls) == 2:
            pv.save(other, tmp_path)
        replace(path, data)

    monkeypatch.setattr(checkpoint, "replace", slow)
    pv.save(one, tmp_path)
    assert len(calls) == 4
    assert same(weights(pv.load(tmp_path)), weights(one))
    # What is left of the other goes with the next.
    pv.save(other, tmp_path)
    pv.save(one, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
