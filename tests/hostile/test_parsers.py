"""Every parser that touches files of strangers, attacked with mutated and generated ones (see `attack.py`)."""

import io
import json
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from dcae_core.checkpoints.autoencoders import load_autoencoder
from dcae_core.checkpoints.denoisers import locate_diffusion, read_diffusion
from dcae_core.checkpoints.layouts import to_diffusers, to_diffusers_config
from dcae_core.data.images import DEFAULT_MAX_PIXELS, open_image
from dcae_core.data.latent_file import check_latents
from dcae_core.data.latent_file import read_latents as read_latent_file
from dcae_core.data.latents import LatentDataset, verify_dataset
from dcae_core.data.sources import find_images
from dcae_core.errors import DataError, RecipeError, printable
from dcae_core.metrics.reference import read_reference
from dcae_core.recipes.loading import SCHEMAS, load_any_recipe, load_recipe, schema_of, shipped_recipes
from dcae_core.weights import read_weights
from tests.diffusion_models import write_diffusion
from tests.hostile.attack import Reader, attack_at_length, attack_quickly, hold_to_promises
from tests.hostile.child import run_in_child
from tests.hostile.material import image_bytes, pax_member, png, tar
from tests.hostile.strategies import AWKWARD_TEXT, awkward_json, awkward_yaml, mutated
from tests.latents.datasets import write_dataset
from tests.parquet_files import rows, write
from tests.small import small_autoencoder, small_config

CORPUS = Path(__file__).parents[1] / "fixtures" / "hostile"


def found_before(name: str) -> list[bytes]:
    """What an attack on this parser found, kept so that it is tried again."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def images() -> list[bytes]:
    kinds = [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK")]
    kinds += [("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "F"), ("WEBP", "RGB"), ("PPM", "RGB")]
    kinds += [("TGA", "RGB"), ("JPEG2000", "RGB"), ("AVIF", "RGB"), ("QOI", "RGB"), ("HEIF", "RGB")]
    open_image(image_bytes())  # after which Pillow knows HEIF too, where its package is installed
    made = []
    for kind, mode in kinds:
        try:
            made.append(image_bytes(kind, mode=mode))
        except (KeyError, OSError, ValueError):  # this build of Pillow does not write it
            continue
    return [*made, image_bytes("TIFF", compression="tiff_lzw"), png(4, 4, depth=16, colour=6)]


def use_images(path: Path) -> None:
    """As a data loader would: every image that is found is opened."""
    for image in find_images([path]):
        with suppress(DataError):
            image.open()


def read_all_of_a_list(path: Path) -> None:
    found = find_images([path], skip_damaged=True)
    assert len(found) < 10_000
    for image in found:
        assert printable(image.name) == image.name
        assert image.label is None or 0 <= image.label < len(found.classes)


def recipe_texts() -> list[str]:
    shipped = [path.read_text() for path in shipped_recipes().values()]
    return [*shipped, *(content.decode() for content in found_before("recipes"))]


def read_recipe_by_every_command(path: Path) -> None:
    with suppress(RecipeError):
        load_any_recipe(path)
    for command in SCHEMAS:
        with suppress(RecipeError):
            load_recipe(path, schema_of(command))
    load_recipe(path, schema_of("train-ae"))


def own_description() -> dict:
    config = json.loads(json.dumps(small_config().to_dict()))
    return {"layout": "dcae", "name": None, "config": config, "scaling_factor": 0.5, "weights": {"w.safetensors": "0"}}


def write_own_weights(directory: Path) -> None:
    (directory / "w.safetensors").write_bytes(save(small_autoencoder().state_dict()))


def write_diffusers_weights(directory: Path) -> None:
    state = to_diffusers(small_config(), small_autoencoder().state_dict())
    (directory / "diffusion_pytorch_model.safetensors").write_bytes(save(state))


def load_directory(path: Path) -> None:
    load_autoencoder(path.parent, prepare=False)


INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}


def write_index(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(to_diffusers_config(small_config(), 1.0)))
    for name in ("part-1.safetensors", "part-2.safetensors"):
        (directory / name).write_bytes(save({"a": torch.zeros(1)}))


def diffusion_description() -> dict:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return json.loads((write_diffusion(Path(folder) / "model") / "dcae.json").read_text())


def load_diffusion_directory(path: Path) -> None:
    read_diffusion(locate_diffusion(path.parent), autoencoder=path.parent / "ae")


def write_denoiser(directory: Path) -> None:
    model = write_diffusion(directory / "made" / "model")
    (model / "model.safetensors").rename(directory / "model.safetensors")
    model.with_name("model-autoencoder").rename(directory / "ae")


def write_latents(directory: Path) -> None:
    write_dataset(directory, [2, 3])


def one_dataset() -> dict[str, bytes]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        write_latents(Path(folder) / "latents")
        return {path.name: path.read_bytes() for path in (Path(folder) / "latents").iterdir()}


DATASET = one_dataset()


def read_dataset(path: Path) -> None:
    verify_dataset(path.parent)
    dataset = LatentDataset(path.parent)
    dataset.read(range(min(len(dataset), 5)))
    for shard in range(len(dataset.manifest.shards)):
        dataset.names(shard)


def references() -> list[bytes]:
    made = []
    for save_arrays in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save_arrays(buffer, mu=np.zeros(3), sigma=np.eye(3), num_images=np.array(4), weights=np.array("x"))
        made.append(buffer.getvalue())
    buffer = io.BytesIO()
    np.savez(buffer, np.zeros((2, 4, 4, 3), np.uint8), mu=np.zeros(3), sigma=np.eye(3))
    return [*made, buffer.getvalue()]


def parquet_files() -> list[bytes]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        table = rows(5, label=lambda n: n % 2)
        return [write(Path(folder) / "a.parquet", table, group=size).read_bytes() for size in (2, 5)]


def use_reference(path: Path) -> None:
    reference = read_reference(path)
    json.dumps(reference.description)
    if reference.num_images:
        for _ in reference.images([range(1)]):
            pass


def torch_files() -> list[bytes]:
    made = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, buffer, _use_new_zipfile_serialization=zipped)
        made.append(buffer.getvalue())
    return made


def latent_files() -> list[bytes]:
    metadata = {"model": "", "fingerprint": "x", "height": "8", "width": "8", "tile": ""}
    return [save({"latent": torch.zeros(8, 2, 2)}, metadata), save({"latents": torch.zeros(2, 8, 2, 2)})]


def use_latents(path: Path) -> None:
    check_latents(path, read_latent_file(path), channels=8, ratio=4, fingerprint="x")


SHARDS = [tar({"a.png": image_bytes(), "a.cls": b"3", "b.png": image_bytes()})]
SHARDS += [pax_member("b.png", image_bytes(), path="c.png", mtime="1.5") + SHARDS[0]]
LISTS = [b"a.png\tcat\nb.png\tdog\n", b"\xef\xbb\xbfa.png\n", b"# x\n../a.png\n", b"/dev/zero\nhttp://x/y.png\n\n"]

READERS = [
    Reader("images", "image", mutated([*images(), *found_before("images")]), lambda path: open_image(path)),
    Reader("tars", "shard.tar", mutated([*SHARDS, *found_before("tars")]), use_images),
    Reader(
        "lists",
        "list.txt",
        st.one_of(mutated([*LISTS, *found_before("lists")]), st.text().map(lambda text: text.encode())),
        read_all_of_a_list,
    ),
    Reader("recipes", "recipe.yaml", awkward_yaml(recipe_texts()), read_recipe_by_every_command),
    Reader("own descriptions", "dcae.json", awkward_json([own_description()]), load_directory, write_own_weights),
    Reader(
        "diffusers configurations",
        "config.json",
        awkward_json([to_diffusers_config(small_config(), 1.0)]),
        load_directory,
        write_diffusers_weights,
    ),
    Reader(
        "indices of parts", "diffusion_pytorch_model.safetensors.index.json", awkward_json([INDEX]), load_directory,
        write_index,
    ),
    Reader(
        "descriptions of diffusion models",
        "dcae.json",
        awkward_json([diffusion_description()]),
        load_diffusion_directory,
        write_denoiser,
    ),
    Reader(
        "manifests", "manifest.json", awkward_json([json.loads(DATASET["manifest.json"])]), read_dataset, write_latents
    ),
    Reader(
        "shards",
        "shard-000000.safetensors",
        mutated([DATASET["shard-000000.safetensors"], *found_before("shards")]),
        read_dataset,
        write_latents,
    ),
    Reader(
        "safetensors", "a.safetensors", mutated([save({"a": torch.ones(3), "b": torch.zeros(2, 2)})]), read_weights
    ),
    Reader("torch files", "a.pt", mutated([*torch_files(), *found_before("torch")]), read_weights),
    Reader("references", "ref.npz", mutated([*references(), *found_before("references")]), use_reference),
    Reader("latents", "a.safetensors", mutated(latent_files()), use_latents),
]  # fmt: skip
if find_spec("pyarrow") is not None:
    READERS.append(Reader("parquet files", "a.parquet", mutated(parquet_files()), use_images))
_QUICK_CASES = 30


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_what_hurt_once_is_read_or_refused(reader: Reader, tmp_path: Path) -> None:
    reader.prepare(tmp_path)
    for content in found_before({"torch files": "torch"}.get(reader.name, reader.name)):
        (tmp_path / reader.file_name).write_bytes(content)
        hold_to_promises(lambda: reader.read(tmp_path / reader.file_name))


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_parser_keeps_its_promises(reader: Reader) -> None:
    attack_quickly(reader, _QUICK_CASES)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_parser_keeps_its_promises_at_length(reader: Reader) -> None:
    start = time.monotonic()
    cases = attack_at_length(reader)
    print(f"{reader.name}: {cases} cases in {time.monotonic() - start:.0f} s")


def test_every_awkward_name_of_a_hub_listing_is_asked_for_or_refused(tmp_path) -> None:
    """What a repository is called, which file it names: words of strangers that become paths."""

    def ask() -> None:
        for text in AWKWARD_TEXT:
            hold_to_promises(lambda text=text: load_autoencoder(text or " "))
            hold_to_promises(lambda text=text: load_autoencoder(f"someone/{text}"))
            hold_to_promises(lambda text=text: find_images([text or " "]))
            hold_to_promises(lambda text=text: find_images([f"memory://{text}"]))
            hold_to_promises(lambda text=text: load_recipe(text, schema_of("train-ae")))

    run_in_child(ask)


def test_images_are_counted_against_the_limit_that_is_documented() -> None:
    assert DEFAULT_MAX_PIXELS == 178_956_970
