"""Deep Compression Autoencoders and the latent diffusion models on top of them."""
