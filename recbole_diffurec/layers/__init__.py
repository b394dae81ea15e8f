"""Network layers over ragged batches of item histories. Knows nothing of diffusion."""
