"""Packaging of recbole_diffurec. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "recbole_diffurec" / "version.py").read_text()).group(1)

# Models as files for other runtimes; an index of the items.
EXPORT = ["torch>=2.6", "onnx>=1.17", "onnxscript>=0.6", "onnxruntime>=1.18", "safetensors>=0.4", "faiss-cpu>=1.8"]
# Recommendations over HTTP.
SERVE = ["fastapi>=0.110", "uvicorn>=0.29", "prometheus-client>=0.20"]

setup(
    name="recbole-diffurec",
    version=VERSION,
    description="DiffuRec and DiffuRecSys: diffusion models for sequential recommendation, as a RecBole plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.9",
    # The YAML files live beside the package in the repository and inside it once installed.
    packages=[
        *find_packages(include=["recbole_diffurec", "recbole_diffurec.*"]),
        "recbole_diffurec.properties",
        "recbole_diffurec.properties.model",
        "recbole_diffurec.properties.dataset",
        "recbole_diffurec.properties.experiment",
    ],
    package_dir={"recbole_diffurec.properties": "properties"},
    package_data={
        "recbole_diffurec": ["py.typed", "static/*.html"],
        **{"recbole_diffurec.properties": ["*.yaml", "*/*.yaml", "*/*/*.yaml"]},
    },
    install_requires=[
        "recbole>=1.2.0",
        "torch>=2.4",
        "numpy>=1.26",
        "pandas>=2.1",
        "pyyaml>=6.0",
        "scipy>=1.11",
        "tqdm>=4.60",
        # The free memory decides how many users are scored at once.
        "psutil>=5.9",
        # Figures and clusters of comparisons.
        "matplotlib>=3.7",
        "scikit-learn>=1.3",
        # The data sets' originals are fetched with it.
        "pooch>=1.8",
        "requests>=2.28",
        "urllib3>=1.26",
        # recbole 1.2.1 caps ray at a version that today's Python has no wheel for; this bound makes pip choose the
        # recbole that works with it.
        "ray[tune]>=2.43",
        # An undeclared import of recbole 1.2.0's LDiffRec, and so of all its general models.
        "kmeans-pytorch>=0.3",
    ],
    extras_require={
        # Bayesian search; RecBole's own HyperTuning.
        "tune": ["optuna>=3", "hyperopt>=0.2.7"],
        # Parquet files of histories and recommendations.
        "parquet": ["pyarrow>=14"],
        "export": EXPORT,
        "serve": SERVE,
        "test": [
            *EXPORT,
            *SERVE,
            "pytest>=7",
            "hypothesis>=6",
            "ruff>=0.6",
            "mypy>=1.8",
            "types-PyYAML",
            "types-requests",
        ],
    },
    entry_points={"console_scripts": ["recbole-diffurec = recbole_diffurec.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords="recommender-systems sequential-recommendation diffusion recbole",
)
