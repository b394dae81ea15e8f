"""Models: what recommends. Knows the diffusion, the layers and RecBole's base classes; nothing of training or data."""
