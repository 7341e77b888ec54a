"""The autoencoder's promises: the reference's numbers, strict files, pictures independent of one another."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from support.places import TESTS
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_data.loading.batch import unit_range
from sigma_data.sample import Sample
from sigma_data.sources import open_source
from sigma_model.autoencoder import Autoencoder
from sigma_model.config import ModelConfig, VaeConfig, header_shapes, preset, preset_directory
from sigma_model.vae import TILE, Vae, from_tokens, to_tokens

GOLDEN = TESTS / "golden"
FILE = GOLDEN / "ae.safetensors"
PRESET_PSNR = 26.5
"""dB that the shipped preset's autoencoder reaches at least on pictures of the world at 64 pixels; it measures 27.0 on these."""


def golden_config() -> VaeConfig:
    facts = json.loads((GOLDEN / "vae.json").read_text())
    return VaeConfig(
        ch=facts["ch"], mult=facts["ch_mult"], num_res_blocks=facts["num_res_blocks"], z_channels=facts["z_channels"],
        scale_factor=facts["scale_factor"], shift_factor=facts["shift_factor"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> Vae:
    return Vae.load(FILE, golden_config())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth(height: int, width: int) -> Tensor:
    """A picture of slow waves, [3, height, width]."""
    y, x = torch.arange(height)[:, None] / 60, torch.arange(width) / 60
    return torch.stack([torch.sin(y + phase) * torch.cos(x - phase) for phase in (0.0, 0.7, 1.9)]) * 0.8


def written(path: Path, **changes: Tensor | None) -> Path:
    """The golden file with tensors replaced, added, or (None) left out."""
    tensors: dict[str, Tensor | None] = {**load_file(FILE), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def test_latents_and_pictures_are_the_references(golden: Vae) -> None:
    io_ = load_file(GOLDEN / "vae_io.safetensors")
    for picture, latent, decoded in zip(io_["x"], io_["z_mean_scaled"], io_["decoded"], strict=True):
        assert (golden.encode([picture])[0] - latent).abs().max() <= 1e-4
        assert (golden.decode([latent])[0] - decoded).abs().max() <= 1e-4


@pytest.mark.slow
def test_the_full_autoencoder_has_exactly_the_released_names_and_shapes() -> None:
    with torch.device("meta"):
        vae = Vae(VaeConfig())
    released = json.loads((GOLDEN / "ae_keys.json").read_text())
    assert {name: list(shape) for name, shape in vae.shapes().items()} == released
    assert len(set(vae.names.values())) == len(released)


def test_the_widths_follow_from_released_shapes() -> None:
    assert VaeConfig.from_shapes(json.loads((GOLDEN / "ae_keys.json").read_text())) == VaeConfig()
    assert VaeConfig.from_shapes(header_shapes(FILE)) == golden_config()


@pytest.mark.parametrize(
    "missing", ["encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "decoder.conv_in.weight"]
)
def test_shapes_of_something_else_are_an_error_that_names_the_tensor(missing: str) -> None:
    shapes = header_shapes(FILE)
    with pytest.raises(ConfigError, match=missing):
        VaeConfig.from_shapes({name: shape for name, shape in shapes.items() if name != missing})


def test_a_directory_with_an_autoencoder_and_no_word_of_it_is_read_from_the_shapes(tmp_path: Path) -> None:
    for name in ("llm_config.json", "vit_config.json", "ae.safetensors"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    config = ModelConfig.from_directory(tmp_path)
    assert config.vae == golden_config()
    assert config.latent.downsample == 4
    (tmp_path / "sigma.json").write_text('{"vae": {"scale_factor": 2.0}}')
    assert ModelConfig.from_directory(tmp_path).vae == golden_config().model_copy(update={"scale_factor": 2.0})
    (tmp_path / "sigma.json").write_text('{"vae": [2]}')
    with pytest.raises(ConfigError, match="vae must be a JSON object"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "sigma.json").unlink()
    (tmp_path / "ae.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ConfigError, match=r"ae\.safetensors: not a safetensors file"):
        ModelConfig.from_directory(tmp_path)


def test_a_missing_tensor_is_an_error_that_names_it_and_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "ae.safetensors", **{"decoder.up.2.block.1.conv2.bias": None})
    with pytest.raises(ConfigError, match=r"ae\.safetensors: lacks tensor decoder\.up\.2\.block\.1\.conv2\.bias:"):
        Vae.load(path, golden_config())


def test_an_unknown_tensor_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = written(tmp_path / "ae.safetensors", **{"quant_conv.weight": noise(4), "quant_conv.bias": noise(4)})
    with pytest.raises(ConfigError, match=r"ae\.safetensors: .*unknown tensor quant_conv\.bias and 1 more"):
        Vae.load(path, golden_config())


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3, 3), (64, 32, 1, 1), (64 * 64,)])
def test_a_tensor_of_another_shape_is_an_error_that_names_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = written(tmp_path / "ae.safetensors", **{"encoder.mid.attn_1.q.weight": noise(*shape)})
    with pytest.raises(ConfigError, match=r"ae\.safetensors: encoder\.mid\.attn_1\.q\.weight has the shape"):
        Vae.load(path, golden_config())


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    path = written(tmp_path / "ae.safetensors", **{"encoder.norm_out.bias": torch.zeros(64, dtype=torch.int32)})
    with pytest.raises(ConfigError, match=r"encoder\.norm_out\.bias holds torch\.int32"):
        Vae.load(path, golden_config())


def test_a_file_that_is_none_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        Vae.load(tmp_path / "ae.safetensors", golden_config())
    (tmp_path / "ae.safetensors").write_bytes(FILE.read_bytes()[:50_000])
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        Vae.load(tmp_path / "ae.safetensors", golden_config())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_loading_and_saving_gives_the_same_bytes(tmp_path: Path, dtype: torch.dtype) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    Vae.load(FILE, golden_config(), dtype).save(first)
    Vae.load(first, golden_config(), dtype).save(second)
    assert first.read_bytes() == second.read_bytes()
    original = load_file(FILE)
    saved = load_file(first)
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], tensor.to(dtype)) for name, tensor in original.items())


def test_it_computes_in_the_type_asked_whatever_the_file_holds(golden: Vae) -> None:
    half = Vae.load(FILE, golden_config(), torch.bfloat16)
    picture = smooth(32, 48)
    latent = half.encode([picture])[0]
    assert latent.dtype == half.decode([latent])[0].dtype == torch.bfloat16
    exact = golden.encode([picture])[0]
    assert exact.dtype == torch.float32
    assert (latent - exact).abs().max() < 0.05


def test_latents_of_a_picture_do_not_depend_on_its_neighbours(golden: Vae) -> None:
    pictures = [
        noise(3, *size, seed=seed) for seed, size in enumerate([(64, 64), (48, 32), (64, 64), (16, 80), (48, 32)])
    ]
    latents = golden.encode(pictures)
    assert [tuple(latent.shape) for latent in latents] == [(4, 16, 16), (4, 12, 8), (4, 16, 16), (4, 4, 20), (4, 12, 8)]
    decoded = golden.decode(latents)
    for picture, latent, given_back in zip(pictures, latents, decoded, strict=True):
        assert torch.equal(golden.encode([picture])[0], latent)
        assert torch.equal(golden.decode([latent])[0], given_back)
        assert given_back.shape == picture.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tile", [64, TILE], ids=["tiled", "whole"])
def test_a_picture_as_bytes_has_the_latents_of_the_same_picture_as_floats(tile: int, dtype: torch.dtype) -> None:
    vae = Vae.load(FILE, golden_config(), dtype, tile=tile)
    levels = (noise(3, 96, 64) * 127 + 128).to(torch.uint8)
    assert torch.equal(vae.encode([levels])[0], vae.encode([unit_range(levels)])[0])


def test_nothing_of_it_learns(golden: Vae) -> None:
    assert not golden.training
    assert not any(parameter.requires_grad for parameter in golden.parameters())
    assert not golden.encode([noise(3, 16, 16).requires_grad_()])[0].requires_grad
    assert not golden.decode([noise(4, 4, 4).requires_grad_()])[0].requires_grad


@pytest.mark.parametrize("shape", [(3, 30, 32), (3, 32, 31), (4, 32, 32), (1, 3, 32, 32), (3, 0, 32)])
def test_a_picture_that_does_not_fit_is_an_error(golden: Vae, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="image 1"):
        golden.encode([noise(3, 32, 32), torch.zeros(shape)])


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (4, 0, 8)])
def test_a_latent_that_does_not_fit_is_an_error(golden: Vae, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="latent 0"):
        golden.decode([torch.zeros(shape)])


def tiled_pair() -> tuple[Vae, Vae]:
    """The shipped autoencoder, with tiles of 64 pixels and without."""
    path, config = preset_directory("tiny") / "ae.safetensors", preset("tiny").vae
    return Vae.load(path, config, tile=64), Vae.load(path, config)


def test_tiles_give_nearly_what_the_whole_gives_on_a_smooth_picture() -> None:
    tiled, whole = tiled_pair()
    picture = smooth(148, 100)
    expected = whole.encode([picture])[0]
    found = tiled.encode([picture])[0]
    assert found.shape == expected.shape and not torch.equal(found, expected)
    assert (found - expected).square().mean().sqrt() < 0.15 * expected.std()
    decoded, expected = tiled.decode([expected])[0], whole.decode([expected])[0]
    assert decoded.shape == picture.shape and not torch.equal(decoded, expected)
    assert (decoded - expected).square().mean().sqrt() < 0.1
    assert torch.equal(tiled.encode([picture])[0], found), "tiling is deterministic"


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 68), (256, 64), (192, 320)])
def test_no_call_of_the_network_sees_more_than_a_tile_however_large_the_picture(size: tuple[int, int]) -> None:
    vae = Vae.load(FILE, golden_config(), tile=64)
    seen: list[int] = []
    vae.autoencoder.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2:].numel()))
    vae.autoencoder.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2:].numel() * 16))
    vae.decode(vae.encode([noise(3, *size)]))
    assert len(seen) >= 4 and max(seen) <= 64 * 64


def test_a_picture_of_1024_pixels_a_side_goes_through_the_network_whole() -> None:
    with torch.device("meta"):
        vae = Vae(golden_config())
        seen: list[tuple[int, ...]] = []
        vae.autoencoder.encoder.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
        latent = vae.encode([torch.empty(3, 1024, 1024)])[0]
    assert seen == [(1, 3, 1024, 1024)] and TILE == 1024
    assert latent.shape == (4, 256, 256)


@pytest.mark.parametrize("tile", [0, 12, 65])
def test_a_tile_that_does_not_fit_the_stride_is_an_error(tile: int) -> None:
    with pytest.raises(ConfigError, match="tile"):
        Vae(golden_config(), tile=tile)


@given(z=st.integers(1, 5), rows=st.integers(1, 6), columns=st.integers(1, 6), patch=st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_tokens_are_patches_row_by_row_with_the_channel_innermost(z: int, rows: int, columns: int, patch: int) -> None:
    latent = noise(z, rows * patch, columns * patch)
    tokens = to_tokens(latent, patch)
    assert tokens.shape == (rows * columns, patch * patch * z)
    for row, column in {(0, 0), (rows - 1, columns - 1), (0, columns - 1)}:
        corner = latent[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        spelled = [corner[c, y, x] for y in range(patch) for x in range(patch) for c in range(z)]
        assert torch.equal(tokens[row * columns + column], torch.stack(spelled))
    assert torch.equal(from_tokens(tokens, rows, columns, patch), latent)


def test_tokens_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        to_tokens(noise(4, 6, 5), 2)
    with pytest.raises(ConfigError, match="are no 2 x 3 patches"):
        from_tokens(noise(5, 16), 2, 3, 2)


@pytest.mark.slow
def test_the_presets_autoencoder_gives_pictures_of_the_world_back_and_its_latents_are_standard() -> None:
    directory = preset_directory("tiny")
    config = preset("tiny")
    assert (directory / "ae.safetensors").stat().st_size < 3_000_000
    assert (config.latent.channels, config.latent.downsample) == (config.vae.z_channels, config.vae.downsample)
    vae = Vae.load(directory / "ae.safetensors", config.vae)
    reader = open_source("world:18?size=64&seed=77")
    pictures = [
        torch.from_numpy(np.array(Image.open(io.BytesIO(image.data or b"")).convert("RGB"))).permute(2, 0, 1) / 127.5
        - 1
        for fragment in reader.fragments()
        for sample in reader.read(fragment)
        if isinstance(sample, Sample)
        for image in sample.images
    ]
    assert len(pictures) >= 36
    latents = vae.encode(pictures)
    decoded = vae.decode(latents)
    errors = [((a.clamp(-1, 1) - b) / 2).square().mean() for a, b in zip(decoded, pictures, strict=True)]
    psnr = torch.stack([-10 * error.log10() for error in errors]).mean()
    assert psnr >= PRESET_PSNR
    spread = torch.stack(latents)
    assert abs(spread.mean()) < 0.15 and 0.85 < spread.std() < 1.15


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "groups"), [(torch.float32, 8), (torch.bfloat16, 16)])
def test_the_network_is_diffusers_autoencoder_to_the_bit(dtype: torch.dtype, groups: int) -> None:
    """Names, random weights, and both directions; importing the original takes seconds that no command should."""
    from diffusers import AutoencoderKL

    widths, inputs = (16, 32, 32), {"latent": 4, "depth": 1, "groups": groups}
    torch.manual_seed(0)
    ours = Autoencoder(widths, **inputs).to(dtype).eval()
    torch.manual_seed(0)
    theirs = (
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=widths,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=groups,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        .to(dtype)
        .eval()
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(one, theirs.state_dict()[name]) for name, one in ours.state_dict().items())
    for height, width in ((32, 32), (24, 40)):
        moments = [net.encoder(noise(2, 3, height, width).to(dtype)) for net in (ours, theirs)]
        assert torch.equal(*moments)
        assert torch.equal(ours.decoder(moments[0][:, :4]), theirs.decoder(moments[1][:, :4]))


@pytest.mark.slow
def test_with_it_no_library_for_quantisation_is_imported_and_nothing_said() -> None:
    code = (
        "import sys; from sigma_model.config import VaeConfig; from sigma_model.vae import Vae; Vae(VaeConfig(ch=32)); "
        "sys.exit(', '.join({'diffusers', 'transformers', 'torchao', 'bitsandbytes', 'peft'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
