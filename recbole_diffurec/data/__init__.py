"""Data outside of RecBole, which nothing here knows: other people's files, and training rows and histories as tensors."""
