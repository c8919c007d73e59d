"""Settings from a preset, a file, the environment and flags, in that order of strength.

A section is a group of settings: `[batching] max_rows` in a TOML file is `VAESERVE_BATCHING_MAX_ROWS` in the
environment and `--set batching.max_rows=...` on the command line.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from vaeserve.errors import ConfigError

C = TypeVar("C", bound="Config")

# Where `load` hands over what is below the environment; no section can have these names.
_FILE, _DEFAULTS = "<file>", "<defaults>"


class Section(BaseModel):
    """A group of settings, validated when made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Config(BaseSettings):
    """All sections of a program's settings."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="VAESERVE_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
    )

    @classmethod
    def settings_customise_sources(  # noqa: D102 - pydantic-settings documents it
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        flags = init_settings()
        below = [InitSettingsSource(settings_cls, flags.pop(name, {})) for name in (_FILE, _DEFAULTS)]
        return InitSettingsSource(settings_cls, flags), env_settings, *below


def load(
    kind: type[C],
    *,
    file: Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> C:
    """Return settings of `kind` from `defaults`, a TOML file, the environment and `overrides`, each above the last.

    Raises ConfigError, naming the setting, its value and what was expected.
    """
    tables: dict[str, Any] = read_toml(file) if file else {}
    try:
        values: dict[str, Any] = {_FILE: tables, _DEFAULTS: defaults or {}, **(overrides or {})}
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(_explain(kind, error, file, tables)) from None
    except SettingsError as error:
        raise ConfigError(f"environment: {error}; expected VAESERVE_SECTION_KEY, lists as JSON") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's tables; raises ConfigError if it can't be read."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def parse_overrides(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return `section.key=value` assignments as sections; a value is TOML, or else text.

    Raises ConfigError for one of another form.
    """
    sections: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        setting, equals, value = assignment.partition("=")
        section, dot, key = setting.strip().partition(".")
        if not (equals and dot and section and key):
            raise ConfigError(f"--set {assignment}: expected section.key=value")
        sections.setdefault(section, {})[key] = _value(value.strip())
    return sections


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(kind: type[BaseModel], error: ValidationError, file: Path | None, tables: dict[str, Any]) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    setting = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = _known(kind, place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        return f"{setting}: no such setting{f' (from {file})' if _holds(tables, place) else ''}; {hint}"
    if first["type"] == "missing":
        return f"{setting}: not set; expected it in a file, the environment or a flag"
    return f"{setting}: {first['input']!r}; {first['msg'].removeprefix('Value error, ')}"


def _holds(tables: Any, place: list[str]) -> bool:
    for part in place:
        if not isinstance(tables, dict) or part not in tables:
            return False
        tables = tables[part]
    return True


def _known(kind: type[BaseModel], sections: list[str]) -> list[str]:
    for section in sections:
        field = kind.model_fields.get(section)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        kind = field.annotation
    return list(kind.model_fields)
