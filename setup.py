"""What pyproject.toml cannot say: the folder properties/ is a part of the package once that is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["recbole_diffurec", "recbole_diffurec.*"]), "recbole_diffurec.properties"],
    package_dir={"recbole_diffurec.properties": "properties"},
)
