# What this package uses of RecBole 1.2, typed here because RecBole has no types of its own. `python -m mypy.stubtest`
# holds it against the installed RecBole (tests/unit/test_host_hooks.py).
__version__: str
