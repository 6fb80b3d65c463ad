"""Where does a GAN loss help: nowhere, in the whole network, or in the decoder's head alone?

The paper (arXiv 2410.10733, table 4): FID 3.82 without GAN, 0.82 with full GAN training, 0.69 with local refinement.
Here: one small f32 network, trained without GAN, then continued in three ways for as many steps.

    python benchmarks/paper_claims/adversarial_refinement.py --images IMAGES
"""

from study import Study, judge, parse_arguments, phase, report, stages, train, validation_curve

from dcae_core.training.trackers import Panel

RESOLUTION = 128
WIDTHS = [16, 16, 32, 64, 128, 128]
LINEAR = {"downsample": "conv", "head_norm": False, "head_act": None}
GAN = {
    "weight": 0.2,
    "start_step": 20,
    "optimiser": {"learning_rate": 3e-4, "betas": [0.5, 0.9]},
    "discriminator": {"width": 24, "num_layers": 2, "norm": "group"},
}
LOSSES = {"l1": 1.0, "efficientnet": 0.05}


def main() -> None:
    study: Study = parse_arguments("adversarial_refinement", __doc__ or "")
    config = stages([0, 1, 1, 1, 1, 1], WIDTHS, 32, attention_from=6) | LINEAR
    network = {"model": "custom", "config": config, "init": "pca"}
    first = train(study, "start", network, [phase("full", RESOLUTION, 8, study.steps(500), 5e-4)], RESOLUTION)
    start = {"weights": str(first / "autoencoder")}
    steps = study.steps(300)
    with_gan = {"losses": LOSSES | {"adversarial": GAN}}
    variants = {
        "without GAN": phase("full", RESOLUTION, 8, steps, 2e-4),
        "full GAN training": phase("full", RESOLUTION, 8, steps, 2e-4, **with_gan),
        "local refinement": phase("local_refinement", RESOLUTION, 8, steps, 2e-4, adjacent_stages=1, **with_gan),
    }
    results = {"start": judge(study, first / "autoencoder", RESOLUTION)}
    curves = {}
    for name, settings in variants.items():
        folder = train(study, name.replace(" ", "-"), start, [settings], RESOLUTION)
        results[name] = judge(study, folder / "autoencoder", RESOLUTION)
        curves[name] = validation_curve(folder)
    report(study, results, [Panel("held-out PSNR (dB) over steps", curves)])


if __name__ == "__main__":
    main()
