"""Many runs: comparisons of models, their statistics, tables, figures and reports."""
