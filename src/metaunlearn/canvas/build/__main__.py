"""``python -m metaunlearn.canvas.build``: Canvas from the npm packages to the shipped weights; it resumes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from metaunlearn import canvas
from metaunlearn.canvas.build.autoencoder import train_autoencoder, train_decoder
from metaunlearn.canvas.build.clip import train_clip
from metaunlearn.canvas.build.denoiser import train_denoiser
from metaunlearn.canvas.build.pipeline import assemble, text_tower, write_weights
from metaunlearn.canvas.build.render import render_art
from metaunlearn.canvas.build.tokenizer import build_tokenizer


def main() -> None:
    """Render, train the three parts, write the weights."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    start = None
    if options.only_denoiser:
        shipped = canvas.load_pipeline()
        vae, tokenizer, (clip, _) = shipped.vae.requires_grad_(False), shipped.tokenizer, canvas.load_judge()
        start = shipped.unet if options.warm else None
    else:
        vae, clip, tokenizer = _parts(options)
    text = text_tower(clip)
    unet = train_denoiser(vae, text, tokenizer, options.work, steps=options.denoiser_steps, start=start)
    if options.decoder_steps:
        vae = train_decoder(vae, options.work, steps=options.decoder_steps)
    write_weights(assemble(vae, clip, tokenizer, unet), clip, tokenizer, options.weights)


def _parts(options: argparse.Namespace) -> tuple[AutoencoderKL, CLIPModel, CLIPTokenizer]:
    """Everything but the denoiser, from the packages on."""
    if not options.skip_art:
        render_art(options.work / "packages", canvas.weights_folder().parent / "art")
    tokenizer = build_tokenizer()
    clip = train_clip(tokenizer, options.work, steps=options.clip_steps)
    vae = train_autoencoder(options.work, crop_steps=options.crop_steps, full_steps=options.full_steps)
    return vae.requires_grad_(False), clip, tokenizer


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m metaunlearn.canvas.build", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/canvas"), help="packages and training states")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", type=Path, default=canvas.weights_folder(), help="where the weights are written")
    parser.add_argument("--skip-art", action="store_true", help="use the sprites that are in the package")
    parser.add_argument("--only-denoiser", action="store_true", help="keep the shipped autoencoder and judge")
    parser.add_argument("--warm", action="store_true", help="with --only-denoiser: go on from the shipped denoiser")
    parser.add_argument("--clip-steps", type=int, default=3000)
    parser.add_argument("--crop-steps", type=int, default=3000, help="of each autoencoder, on crops")
    parser.add_argument("--full-steps", type=int, default=600, help="of each autoencoder, on whole pictures")
    parser.add_argument("--decoder-steps", type=int, default=0, help="of the decoder alone, afterwards")
    parser.add_argument("--denoiser-steps", type=int, default=20_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
