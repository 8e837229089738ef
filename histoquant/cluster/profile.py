"""A cluster profile: where a study runs, as a person writes it in TOML. Nothing in it changes a result."""

from __future__ import annotations

import re
import tomllib
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from histoquant.errors import ClusterError, raise_all

MAX_PROFILE_BYTES = 100_000

_WALLTIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d)(?::([0-5]\d))?")


class _Part(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LocalProfile(_Part):
    """Worker processes on this machine."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["local"]
    workers: int | None = Field(None, ge=1, description="Processes; as many as there are cores when not given.")
    memory_gb: float | None = Field(None, gt=0, description="Of all processes together.")


class ThreadsProfile(_Part):
    """Threads of one process: for a debugger, and where no process may be started."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["threads"]
    workers: int | None = Field(None, ge=1, description="Threads; as many as there are cores when not given.")


class Job(_Part):
    """What every job asks the queue for."""

    cores: int = Field(ge=1)
    memory_gb: float = Field(gt=0, description="Of the whole job.")
    walltime: str = Field(description="HH:MM, HH:MM:SS or D-HH:MM:SS.")
    workers: int | None = Field(
        None,
        ge=1,
        description="Tiles worked on at once; one per core, or per GPU, when not given.",
    )
    queue: str | None = Field(None, description="Queue or partition.")
    account: str | None = Field(None, description="Whom the time is charged to.")
    gpus: int = Field(0, ge=0, le=1, description="GPUs of each job; more GPUs are more jobs.")
    directives: tuple[str, ...] = Field((), description="Further lines of the submit script, as '--constraint=avx2'.")
    skip: tuple[str, ...] = Field((), description="Directives to leave out, as '--mem' where the site refuses it.")
    prologue: tuple[str, ...] = Field((), description="Shell lines before the worker starts, as 'module load python'.")
    scratch: str = Field("${TMPDIR:-/tmp}", description="Folder on the node's own disk, in the words of its shell.")
    python: str | None = Field(None, description="The interpreter of the jobs; the driver's own when not given.")
    retire_before_min: float | None = Field(
        None, gt=0, description="How long before its walltime a worker takes nothing new; 5, or a fifth of a short job."
    )

    @field_validator("walltime")
    @classmethod
    def _is_a_time(cls, walltime: str) -> str:
        if walltime_s(walltime) < 60:
            raise ValueError("a walltime is at least a minute, as '04:00:00'")
        return walltime

    @field_validator("queue", "account", "python")
    @classmethod
    def _one_line(cls, text: str | None) -> str | None:
        if text is not None and (not text.strip() or "\n" in text):
            raise ValueError("one line, not empty; leave it out instead")
        return text

    @field_validator("directives", "skip", "prologue")
    @classmethod
    def _lines(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        if any(not line.strip() or "\n" in line for line in lines):
            raise ValueError("each is one line, and none is empty")
        return lines

    @model_validator(mode="after")
    def _workers_have_cores(self) -> Job:
        if self.n_workers > self.cores:
            raise ValueError(f"{self.n_workers} workers need {self.n_workers} cores, there are {self.cores}")
        if self.retire_before_s >= walltime_s(self.walltime):
            raise ValueError("retire_before_min leaves no time to work")
        return self

    @property
    def n_workers(self) -> int:
        """Worker processes of a job."""
        return self.workers or (self.gpus or self.cores)

    @property
    def memory_bytes(self) -> int:
        """Memory of a job."""
        return int(self.memory_gb * 1e9)

    @property
    def retire_before_s(self) -> float:
        """How long before its walltime a worker takes nothing new, seconds."""
        if self.retire_before_min is not None:
            return 60 * self.retire_before_min
        return min(300.0, 0.2 * walltime_s(self.walltime))


class Scale(_Part):
    """How many jobs there are."""

    max_jobs: int = Field(ge=1)
    min_jobs: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Scale:
        if self.min_jobs > self.max_jobs:
            raise ValueError(f"min_jobs is {self.min_jobs}, more than max_jobs, {self.max_jobs}")
        return self


class Network(_Part):
    """How driver and jobs reach each other."""

    interface: str | None = Field(None, description="As 'ib0'; the one that leads to the nodes when not given.")
    tls: bool = Field(True, description="Encrypt, with certificates made for this run.")
    dashboard: bool = Field(True, description="Dask's page about its workers, on the driver's machine only.")


class QueueProfile(_Part):
    """Jobs of a queueing system, each a dask worker, under a driver that runs where the command was given."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["slurm", "pbs", "lsf", "sge"]
    job: Job
    scale: Scale
    network: Network = Network()


class Tls(_Part):
    """Files (PEM) that a scheduler asks for."""

    ca: str
    cert: str
    key: str


class AddressProfile(_Part):
    """A dask scheduler that runs already, with its workers."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["address"]
    address: str | None = Field(None, description="As 'tls://10.1.2.3:8786'.")
    file: str | None = Field(None, description="The scheduler's file, instead of its address.")
    memory_gb: float | None = Field(None, gt=0, description="Of each worker; what dask was told when not given.")
    tls: Tls | None = None
    plain: bool = Field(
        False, description="True to talk to a scheduler without encryption; beyond this machine the run notes it."
    )

    @model_validator(mode="after")
    def _reachable(self) -> AddressProfile:
        if (self.address is None) == (self.file is None):
            raise ValueError("give either address or file")
        if (self.tls is None) == (not self.plain):
            raise ValueError("give [tls] with ca, cert and key, or plain = true to talk without encryption")
        protocol = (self.address or "").partition("://")[0]
        if protocol == ("tcp" if self.tls else "tls"):
            asked = "with [tls] it begins with tls://" if self.tls else "plain = true talks to tcp:// only"
            raise ValueError(f"address begins with {protocol}://, {asked}")
        return self


Profile = LocalProfile | ThreadsProfile | QueueProfile | AddressProfile

_KINDS: dict[str, type[_Part]] = {
    "local": LocalProfile,
    "threads": ThreadsProfile,
    "slurm": QueueProfile,
    "pbs": QueueProfile,
    "lsf": QueueProfile,
    "sge": QueueProfile,
    "address": AddressProfile,
}
_ADAPTER: TypeAdapter[Profile] = TypeAdapter(Annotated[Profile, Field(discriminator="kind")])


def walltime_s(text: str) -> int:
    """Return a walltime in seconds.

    Raises
    ------
    ValueError
        If it is not like HH:MM, HH:MM:SS or D-HH:MM:SS.

    Examples
    --------
    >>> walltime_s("1-02:00:30")
    93630
    """
    match = _WALLTIME.fullmatch(text.strip())
    if match is None:
        raise ValueError("a walltime is like '04:00:00' or '1-12:00:00'")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_profile(text: str, *, source: str = "cluster profile") -> Profile:
    """Read a cluster profile from TOML text.

    Raises
    ------
    ClusterError
        If it is not TOML, or one thing in it is wrong.
    Faults
        If several things are; all are listed.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClusterError(f"{source}: not valid TOML ({error}).", "Mend that line.") from error
    kind = content.get("kind")
    if kind not in _KINDS:
        given = f"kind is {kind!r:.40}" if "kind" in content else "there is no kind"
        raise ClusterError(f"{source}: {given}.", f"Give one of {', '.join(_KINDS)}.")
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        raise_all(_describe(fault, source, _KINDS[kind]) for fault in error.errors())
        raise AssertionError from error


def _describe(fault: Any, source: str, model: type[_Part]) -> ClusterError:
    place = [str(part) for part in fault["loc"][1:]]  # the first names the kind
    where = ".".join(place) or "the profile"
    if fault["type"] == "extra_forbidden":
        known = _known(model, place[:-1])
        close = get_close_matches(place[-1], known, n=1)
        remedy = f"Did you mean '{close[0]}'?" if close else f"Known here: {', '.join(known)}."
        return ClusterError(f"{source}: unknown key '{where}'.", remedy)
    if fault["type"] == "missing":
        return ClusterError(f"{source}: {where} is missing.", "Add it.")
    message = str(fault["msg"]).removeprefix("Value error, ")
    shown = "" if isinstance(fault["input"], dict | BaseModel) else f" (got {fault['input']!r:.80})"
    return ClusterError(f"{source}: {where}: {message}{shown}.", "Mend this value.")


def _known(model: type[BaseModel], place: list[str]) -> list[str]:
    """Return the keys that are allowed in a part of a profile."""
    for name in place:
        field = model.model_fields.get(name)
        kinds = [kind for kind in (Job, Scale, Network, Tls) if field and str(kind.__name__) in str(field.annotation)]
        if not kinds:
            return []
        model = kinds[0]
    return [field.alias or name for name, field in model.model_fields.items()]
