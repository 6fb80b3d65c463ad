#!/usr/bin/env bash
# The whole way on two CPU cores and without a network: images -> reconstructions -> latents -> a diffusion model of
# one's own -> new images -> figures. docs/tour.md walks through it.
#
#   examples/tour.sh [IMAGES] [OUT]
#
# IMAGES is a folder with a folder per class (default: the sample pack), OUT where everything goes (default: out/tour).
# STEPS shortens or lengthens the training, DCAE is the program (default: the one on the PATH, or make demo's).
# Stopped at any moment, the same command goes on where it was.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
images=${1:-$here/examples/photographs}
out=${2:-out/tour}
steps=${STEPS:-4000}
dcae=${DCAE:-$(command -v dcae || echo "$here/.venv/bin/dcae")}

say() { printf '\n== %s\n' "$1"; }

say "1. What the autoencoder keeps of a photograph"
"$dcae" reconstruct "$here/examples/test_images/astronaut.png" -o "$out/reconstructed"

say "2. How good that is, over all images"
"$dcae" eval --images "$images" --resolution 256 --psnr --ssim

say "3. Encode the images into latents, and prove them"
"$dcae" encode-dataset --images "$images" --out "$out/latents" --resolution 128 --shard-size 8 --nproc 2
"$dcae" encode-dataset --verify "$out/latents"

say "4. Train a tiny USiT on the latents ($steps steps)"
"$dcae" train-diffusion tiny --set "latents=$out/latents" --set "run_dir=$out/run" --set "steps=$steps" \
  --set "optimiser.warmup_steps=$((steps / 20))"

say "5. Sample new images, four of each of four classes"
"$dcae" sample --model "$out/run" --classes 0,0,0,0,1,1,1,1,2,2,2,2,3,3,3,3 --cfg 1.5 --sampler heun --steps 25 \
  -o "$out/samples"

say "Done"
echo "reconstruction  $out/reconstructed/astronaut.compare.png"
echo "training        $out/run/metrics.png and $out/run/samples/"
echo "new images    $out/samples/grid.png"
