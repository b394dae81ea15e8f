from recbole.sampler.sampler import RepeatableSampler as RepeatableSampler
