"""One run: prepare, train, evaluate, resume, report."""
