"""Do residual shortcuts around resampling help at f64, and what does a PCA start do to that difference?

The paper (arXiv 2410.10733, table 2): at f64 they take rFID from 28.3 to 0.50. Here: one small f64 network, four
ways: with and without shortcuts, from random weights and from the best linear code.

    python benchmarks/paper_claims/residual_shortcuts.py --images IMAGES
"""

from study import Study, judge, parse_arguments, phase, report, stages, train, validation_curve

from dcae_core.training.trackers import Panel

RESOLUTION = 128
WIDTHS = [8, 8, 16, 64, 128, 128, 128]
LINEAR = {"downsample": "conv", "head_norm": False, "head_act": None}  # what a PCA start asks for


def main() -> None:
    study: Study = parse_arguments("residual_shortcuts", __doc__ or "")
    results, curves = {}, {}
    for start in ("random", "pca"):
        for shortcuts in (True, False):
            name = f"{start}-{'with' if shortcuts else 'without'}"
            config = stages([0, 1, 1, 1, 1, 1, 1], WIDTHS, 128, attention_from=7) | LINEAR
            network = {
                "model": "custom",
                "config": config | {"residual_shortcuts": shortcuts, "latent_shortcuts": shortcuts},
                "init": start,
            }
            full = phase("full", RESOLUTION, 8, study.steps(600), 1e-3, losses={"mse": 1.0})
            folder = train(study, name, network, [full], RESOLUTION)
            results[name] = judge(study, folder / "autoencoder", RESOLUTION)
            curves[name] = validation_curve(folder)
    report(study, results, [Panel("held-out PSNR (dB) over steps", curves)])


if __name__ == "__main__":
    main()
