"""`openvla-ros predict`, `convert` and `merge`: what needs the network's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from openvla_ros.cli.output import needs, print_json, wide_console
from openvla_ros.cli.progress import loading_bar
from openvla_ros.errors import ConfigurationError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from openvla_ros.types import Prediction

_DTYPES = ("bfloat16", "float16", "float32")


def predict(
    checkpoint: Annotated[
        str, typer.Option(help="Folder or hub id such as openvla/openvla-7b, or a result.")
    ],
    image: Annotated[Path, typer.Option(help="Picture: JPEG, PNG, ...")],
    instruction: Annotated[str, typer.Option(help="The task, in plain language.")],
    unnorm_key: Annotated[str, typer.Option(help="Statistics key; see `openvla-ros keys`.")] = "",
    adapter: Annotated[str, typer.Option(help="PEFT adapter folder or hub id.")] = "",
    quantization: Annotated[
        str, typer.Option(help="none, fp8, int8, int4, nf4 or bnb_int8.")
    ] = "none",
    exactness: Annotated[str, typer.Option(help="self, hf or approx.")] = "self",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    revision: Annotated[str, typer.Option(help="Hub commit.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Answer one picture and instruction with an action."""
    picture = open_picture(image)
    with needs("predict"):
        from openvla_ros.policy import OpenVLAPolicy
    with loading_bar() as progress:
        policy = OpenVLAPolicy.from_pretrained(
            checkpoint,
            device=device,
            dtype=dtype,
            quantization=quantization,
            exactness=exactness,
            adapter=adapter or None,
            unnorm_key=unnorm_key or None,
            revision=revision or None,
            progress=progress,
        )
    prediction = policy.predict_action(picture, instruction)
    if not as_json:
        console = wide_console()
        console.print(prediction.prompt, style="dim", markup=False, highlight=False)
        console.print(_table(prediction))
        return
    print_json(
        {
            "token_ids": prediction.token_ids,
            "action": prediction.action,
            "normalized": prediction.normalized,
            "is_valid": prediction.is_valid,
            "invalid_dims": prediction.invalid_dims,
            "unnorm_key": prediction.unnorm_key,
            "prompt": prediction.prompt,
            "timings": dict(prediction.timings),
            "passes": prediction.passes,
            "choices": dict(policy.info.choices),
        }
    )


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Prismatic run, .pt file or .bin folder.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="New folder.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with tokenizer.json; a native run has none.")
    ] = None,
    base_vlm: Annotated[
        str, typer.Option(help="Overrides vla.base_vlm of a native run's config.json.")
    ] = "",
    config_file: Annotated[
        Path | None, typer.Option("--config", help="config.json in the Hugging Face form.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Turn a pickled checkpoint into the Hugging Face layout with safetensors."""
    with needs("convert"):
        from openvla_ros.model.convert import convert_checkpoint

        convert_checkpoint(
            source,
            destination,
            tokenizer=tokenizer,
            base_vlm=base_vlm or None,
            config_file=config_file,
        )
    if as_json:
        print_json({"checkpoint": destination})
    else:
        Console().print(
            f"Written to [bold]{destination}[/]. Look at it: openvla-ros keys {destination}"
        )


def merge(
    adapter: Annotated[Path, typer.Argument(help="Result of fine-tuning, or PEFT LoRA folder.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    base: Annotated[
        str, typer.Option(help="Folder or hub id; empty = the one that the result names.")
    ] = "",
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16 or float32; empty = as the base.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Fold an adapter into its base: a plain checkpoint, written one shard at a time."""
    with needs("merge"):
        import torch

        from openvla_ros.model.merge import merge_adapter
    if dtype not in ("", *_DTYPES):
        raise ConfigurationError(f"--dtype is {dtype!r}; use one of {', '.join(_DTYPES)}.")
    with loading_bar() as progress:
        merge_adapter(
            adapter,
            out,
            base=base or None,
            dtype=getattr(torch, dtype) if dtype else None,
            progress=progress,
        )
    if as_json:
        print_json({"checkpoint": out})
    else:
        Console().print(f"Written to [bold]{out}[/]. Look at it: openvla-ros keys {out}")


def open_picture(path: Path) -> Image:
    """Return a picture file as PIL opens it.

    Raises:
        ImageError: Absent, or not a picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as a picture: {error}") from error


def _table(prediction: Prediction) -> Table:
    table = Table(title="one step", title_justify="left")
    for heading in ("token", "normalised", f"action ({prediction.unnorm_key})"):
        table.add_column(heading, justify="right")
    rows = zip(prediction.token_ids, prediction.normalized, prediction.action, strict=False)
    for position, (token, normalized, value) in enumerate(rows):
        bad = position in prediction.invalid_dims
        table.add_row(f"{token}", f"{normalized:+.4f}", f"{value:+.5f}", style="red" if bad else "")
    verdict = "valid" if prediction.is_valid else "INVALID: ids outside the action range"
    total = prediction.timings.get("total_ms", np.nan)
    table.caption = f"{verdict}, {total:.0f} ms"
    return table
