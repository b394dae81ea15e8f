"""Data as files of other people and as tensors of histories and rows. Knows nothing of RecBole."""
