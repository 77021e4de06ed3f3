"""Measured figures. A module with a function `main` is a benchmark; `editable bench` lists them."""
