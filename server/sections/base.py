"""What a section of a configuration file is. pydantic alone."""

import difflib
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A mapping of the YAML file. An unknown key is an error that names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in valid and key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), valid, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
                    raise ValueError(f"unknown key {key!r}: {hint}")
        return data


def check_http(url: str) -> None:
    """That it is the URL of a server.

    Raises:
        ValueError: it is no URL of a server, or has a password in it.
    """
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(
            f"the port of {parts.hostname} is no number up to 65535: write a URL such as http://127.0.0.1:8101/v1"
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http(s) URL, such as http://127.0.0.1:8101/v1")
    if "@" in parts.netloc:
        raise ValueError("leave user and password out, which logs would show; api_key_env names a key's variable")
