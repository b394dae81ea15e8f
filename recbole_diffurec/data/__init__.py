"""Files of other people: data sets from their publishers, histories to recommend for. Knows nothing of RecBole."""
