"""The server's limits: one value for all of its parts."""

import dataclasses
from collections.abc import Callable

from musicgen_jax.serving.http.about import About


@dataclasses.dataclass(frozen=True)
class Settings:
    """The server's limits.

    Attributes:
      model: the name under which the model is offered.
      queue: clips that may wait.
      max_duration: seconds of a clip that a client waits for.
      max_job_duration: seconds of a piece made as a job.
      max_endless: seconds of music without an end; None: as of a job.
      token: the secret that clients must send, or None.
      hosts: names that a request's Host may have; addresses of this machine count anyway.
      any_address: whether Host may be any IP address, not only this machine's own.
      origins: pages of other sites whose scripts may use the server.
      log_prompts: whether the log contains the clients' descriptions.
      deadline: seconds after which a clip is given up; a client can ask for fewer.
      text: most characters of a description.
      json_bytes: most bytes of a body without files.
      upload_bytes: most bytes of a body with files.
      uploads: bodies with files that are read at the same time.
      upload_seconds: longest audio in a file.
      upload_samples: most samples of audio in a file, over all channels.
      body_seconds: time in which a body must arrive.
      header_seconds: time in which the head of a request must arrive.
      send_seconds: time that a client may leave bytes unread.
      steer_seconds: time that a change may wait for its slot before it is answered.
      connections: most connections at the same time.
      jobs: most jobs that are kept, including finished ones.
      job_bytes: most bytes of all finished jobs; the one that finished last may have more.
      job_seconds: time that a finished job is kept.
      hear: what the model understands of a description, in one line; None if nobody can say.
      page: what the page says about the model; None for a server without a page.
    """

    model: str
    queue: int = 32
    max_duration: float = 30.0
    max_job_duration: float = 600.0
    max_endless: float | None = None
    token: str | None = None
    hosts: frozenset[str] = frozenset({"localhost"})
    any_address: bool = False
    origins: tuple[str, ...] = ()
    log_prompts: bool = False
    deadline: float = 600.0
    text: int = 2000
    json_bytes: int = 2 << 20
    upload_bytes: int = 32 << 20
    uploads: int = 4
    upload_seconds: float = 300.0
    upload_samples: int = 1 << 25
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    send_seconds: float = 60.0
    steer_seconds: float = 5.0
    connections: int = 512
    jobs: int = 256
    job_bytes: int = 512 << 20
    job_seconds: float = 3600.0
    hear: Callable[[str], str] | None = None
    page: About | None = None
