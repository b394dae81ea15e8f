"""RecBole's insides: the only room, beside the trainer that subclasses RecBole's, that may use its private names."""
