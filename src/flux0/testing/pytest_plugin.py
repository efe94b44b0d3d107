"""The pytest plugin under its old name; it is `flux0_pytest`, which loads nothing of flux0."""

pytest_plugins: list[str] = ["flux0_pytest"]
