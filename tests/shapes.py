"""Checks types and array shapes of every call while the tests run (jaxtyping's import hook asks for `check`)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
