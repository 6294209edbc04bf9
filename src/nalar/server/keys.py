"""The file of API keys: who may ask, and how much. It holds hashes; a secret is shown once, when it is made.

A secret is 32 random bytes, so one SHA-256 keeps it as well as a slow hash would: slow hashes guard words that people
choose, and 2^256 values cannot be tried, however fast one try is. Checking stays cheap enough to do for every request.
"""

import hashlib
import hmac
import logging
import re
import secrets
import stat
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from nalar.config import Config, UserError, nearest
from nalar.disk import decode, encode, only_writer, write_atomic

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
PREFIX = "nk-"
RELOAD_EVERY_S = 1.0
"""How often a running server looks whether the file was replaced."""
_ONLY_OWNER = 0o600
_NAME = re.compile(r"[\w.@+-]{1,64}")
_Stamp = tuple[int, int, int]


class Key(Config):
    """One key: what may be asked with it. None: no limit."""

    id: str = Field(pattern=r"^[\w-]{1,64}$")
    """Stands in the ledger. Never used again, so that a bill stays whose it was."""
    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the secret, in hexadecimal."""
    created: str
    """When, in UTC."""
    monthly_budget_usd: float | None = Field(default=None, ge=0, le=1e6)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Of prompts and answers together."""
    max_parallel: int | None = Field(default=None, ge=1)
    """Choices under way or waiting at once: a request of n choices counts n times."""
    revoked: str | None = None
    """When, in UTC. None: it is in force."""


class _File(Config):
    schema_version: int
    keys: tuple[Key, ...] = ()


class OneKey:
    """A single key, of no file and without limits."""

    def __init__(self, id: str, sha256: str) -> None:
        self.keys = (Key(id=id, name=id, sha256=sha256, created=_now()),)

    def find(self, secret: str) -> Key | None:
        key = self.keys[0]
        return key if hmac.compare_digest(key.sha256, digest_of(secret)) else None


class KeyRing:
    """All keys of one file. `find` follows the file: what another process changes holds within seconds."""

    def __init__(self, path: Path, keys: tuple[Key, ...], stamp: _Stamp | None) -> None:
        self.path, self._keys, self._stamp = path, keys, stamp
        self._looked_s = time.monotonic()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, must_exist: bool = True) -> "KeyRing":
        """UserError where the file is missing, is no file of keys, or can be changed by others than its owner.

        must_exist: False takes a missing file for one without keys; `create` makes it.
        """
        stamp = _stamp(path)  # before it is read, so that no change is missed
        if stamp is None and not must_exist:
            return cls(path, (), None)
        return cls(path, _read(path), stamp)

    @property
    def keys(self) -> tuple[Key, ...]:
        """In the order in which they were made, revoked ones too."""
        return self._keys

    def find(self, secret: str) -> Key | None:
        """The key in force that has this secret. Takes as long whichever key it is, and where it is none."""
        self._follow()
        digest = digest_of(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest) and key.revoked is None:
                found = key
        return found

    def create(
        self,
        name: str,
        *,
        monthly_budget_usd: float | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_parallel: int | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which nothing can show again. UserError where a key in force has that name."""
        if not _NAME.fullmatch(name):
            raise UserError(
                at="keys create",
                got=repr(name),
                want="a name of up to 64 letters, digits and any of . @ + - _",
            )
        secret = PREFIX + secrets.token_urlsafe(32)
        try:
            key = Key(
                id=f"key-{secrets.token_hex(6)}",
                name=name,
                sha256=digest_of(secret),
                created=_now(),
                monthly_budget_usd=monthly_budget_usd,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                max_parallel=max_parallel,
            )
        except ValidationError as error:
            raise _refused("keys create", error) from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(self.path.parent):
            others = _read(self.path) if self.path.exists() else ()
            if any(other.name == name and other.revoked is None for other in others):
                raise UserError(
                    at=str(self.path),
                    got=f"a second key named {name}",
                    want="one key in force a name",
                    hint=f"another name, or first: nalar keys revoke {name} --file {self.path}",
                )
            self._replace((*others, key))
        return key, secret

    def revoke(self, id_or_name: str) -> Key:
        """No request is taken with it from now on; those under way go on. UserError where no key in force is meant."""
        with only_writer(self.path.parent):
            keys = _read(self.path)
            in_force = [key for key in keys if key.revoked is None]
            meant = [key for key in in_force if id_or_name in (key.id, key.name)]
            if not meant:
                close = nearest(id_or_name, [key.name for key in in_force])
                raise UserError(
                    at=str(self.path),
                    got=repr(id_or_name),
                    want="the name or the id of a key in force",
                    hint=f"did you mean {close}?"
                    if close
                    else f"nalar keys list --file {self.path}",
                )
            gone = meant[0].model_copy(update={"revoked": _now()})
            self._replace(tuple(gone if key.id == gone.id else key for key in keys))
        return gone

    def _replace(self, keys: tuple[Key, ...]) -> None:
        form = _File(schema_version=SCHEMA_VERSION, keys=keys).model_dump(mode="json")
        write_atomic(self.path, encode(form, indent=2) + b"\n", mode=_ONLY_OWNER)
        self._keys, self._stamp = keys, _stamp(self.path)

    def _follow(self) -> None:
        """Read the file again where it was replaced.

        One that cannot be read leaves the keys as they were, and says so in the log: only a hand can have broken it.
        One that is gone leaves none.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._looked_s < RELOAD_EVERY_S:
                return
            self._looked_s = now
            stamp = _stamp(self.path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            if stamp is None:
                self._keys = ()
                log.error("the file of keys %s is gone: no key is in force", self.path)
                return
            try:
                self._keys = _read(self.path)
                log.info("%s was changed: %d keys", self.path, len(self._keys))
            except (UserError, OSError) as error:
                log.error("%s was changed, and the keys stay as they were: %s", self.path, error)


def digest_of(secret: str) -> str:
    """SHA-256 in hexadecimal, of whatever a client sends."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> tuple[Key, ...]:
    try:
        data = path.read_bytes()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(
            at=str(path),
            got="no such file",
            want="a file of keys",
            hint=f"nalar keys create NAME --file {path}",
        ) from None
    _refuse_others(path, mode)
    form = decode(data)
    if form is None or "schema_version" not in form:
        raise UserError(
            at=str(path), got="no file of keys", want="one that `nalar keys create` has made"
        )
    if form["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            at=str(path),
            got=f"version {form['schema_version']!r} of the form",
            want=f"version {SCHEMA_VERSION}",
            hint="use the nalar that made it, or a newer one",
        )
    try:
        return _File.model_validate(form).keys
    except ValidationError as error:
        raise _refused(str(path), error) from None


def _refuse_others(path: Path, mode: int) -> None:
    hint = f"chmod 600 {path}"
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            at=str(path),
            got=f"a file that others may write, mode {stat.S_IMODE(mode):o}",
            want="one that its owner alone can put keys into",
            hint=hint,
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("%s can be read by others; it holds hashes, names and budgets: %s", path, hint)


def _refused(at: str, error: ValidationError) -> UserError:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return UserError(at=f"{at}: {field}", got=repr(first["input"])[:80], want=first["msg"])


def _stamp(path: Path) -> _Stamp | None:
    """Differs where the file was replaced or rewritten; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
