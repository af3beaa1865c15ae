"""The `ledger` section of a configuration file. pydantic alone."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from server.sections.base import Section


class Ledger(Section):
    """Where decisions, outcomes, budgets and sessions are kept; without this section nowhere."""

    url: str | None = None
    """sqlite:///FILE, relative to the YAML file's folder, or postgresql://USER@HOST/DATABASE. Default:
    sqlite:///pika-ledger.sqlite."""
    url_env: str | None = None
    """Instead: name of the environment variable that holds the URL, which may then have a password in it."""
    prompts: bool = False
    """Whether prompts are kept too."""
    keep_days: float = Field(default=30, gt=0, le=3660)
    """Of decisions and outcomes."""
    max_decisions: int = Field(default=2_000_000, ge=1000)
    """The newest are kept."""

    @field_validator("url")
    @classmethod
    def _without_password(cls, url: str | None) -> str | None:
        if url is not None:
            if not url.startswith(("sqlite:///", "postgresql:", "postgresql+psycopg:")):
                raise ValueError(
                    f"{url.partition('://')[0][:40]!r}: must be sqlite:///FILE or postgresql://USER@HOST/DATABASE"
                )
            if urlsplit(url).password is not None or "password=" in url:
                raise ValueError("leave the password out: url_env names a variable that holds the whole URL")
        return url

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.url is not None and self.url_env is not None:
            raise ValueError("the ledger has either url or url_env (the variable that holds the URL)")
        return self
