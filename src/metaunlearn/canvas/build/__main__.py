"""``python -m metaunlearn.canvas.build``: Canvas from the npm packages to the shipped weights; it resumes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from metaunlearn import canvas
from metaunlearn.canvas.build.autoencoder import train_autoencoder, train_decoder
from metaunlearn.canvas.build.clip import sharpen_eyes, train_clip
from metaunlearn.canvas.build.denoiser import Lessons, teach_styles, train_denoiser
from metaunlearn.canvas.build.others import other_sprites, split
from metaunlearn.canvas.build.pipeline import assemble, text_tower, write_weights
from metaunlearn.canvas.build.render import render_art
from metaunlearn.canvas.build.tokenizer import build_tokenizer


def main() -> None:
    """Render, train the three parts, write the weights."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.skip_art:
        render_art(options.work / "packages", canvas.weights_folder().parent / "art")
    sprites, _ = split(other_sprites(options.work / "packages", options.work / "others.safetensors"))

    tokenizer = build_tokenizer()
    if "judge" in options.keep:
        clip, _ = canvas.load_judge()
    else:
        clip = train_clip(tokenizer, sprites, options.work, steps=options.clip_steps)
    if "eyes" not in options.keep:
        clip = sharpen_eyes(clip, tokenizer, sprites, options.work, steps=options.eyes_steps)
    if "autoencoder" in options.keep:
        vae = canvas.load_pipeline().vae
    else:
        vae = train_autoencoder(options.work, crop_steps=options.crop_steps, full_steps=options.full_steps)
    vae.requires_grad_(False)
    if "styles" in options.keep:
        unet = canvas.load_pipeline().unet
    else:
        lessons = Lessons.encode(vae, text_tower(clip), tokenizer, sprites, options.work)
        if "denoiser" in options.keep:
            unet = canvas.load_pipeline().unet
        else:
            unet = train_denoiser(lessons, options.work, steps=options.denoiser_steps)
        unet = teach_styles(unet, lessons, options.work, steps=options.styles_steps)
    if options.decoder_steps:
        vae = train_decoder(vae, options.work, steps=options.decoder_steps)
    write_weights(assemble(vae, clip, tokenizer, unet), clip, tokenizer, options.weights)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m metaunlearn.canvas.build", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/canvas"), help="packages and training states")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", type=Path, default=canvas.weights_folder(), help="where the weights are written")
    parser.add_argument("--skip-art", action="store_true", help="use the sprites that are in the package")
    parser.add_argument(
        "--keep",
        action="append",
        choices=("autoencoder", "judge", "eyes", "denoiser", "styles"),
        default=[],
        help="start from the shipped one; repeatable. 'eyes' and 'styles': the last stages of judge and denoiser",
    )
    parser.add_argument("--clip-steps", type=int, default=3000)
    parser.add_argument("--eyes-steps", type=int, default=1500, help="of the judge's vision tower, on harder pictures")
    parser.add_argument("--crop-steps", type=int, default=3000, help="of each autoencoder, on crops")
    parser.add_argument("--full-steps", type=int, default=600, help="of each autoencoder, on whole pictures")
    parser.add_argument("--decoder-steps", type=int, default=0, help="of the decoder alone, afterwards")
    parser.add_argument("--denoiser-steps", type=int, default=9_000)
    parser.add_argument("--styles-steps", type=int, default=1_500, help="of the denoiser with more of the other emoji")
    return parser.parse_args()


if __name__ == "__main__":
    main()
