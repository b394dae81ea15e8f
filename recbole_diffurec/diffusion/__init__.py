"""The mathematics of the diffusion process: schedules, forward and reverse steps, step samplers. Knows no network."""
